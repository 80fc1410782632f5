#!/bin/bash
# One run over the nodes of a Slurm job. From the repository's root, on a file system that all nodes see:
#   sbatch --nodes=4 cluster/slurm-score.sh /data/clips --tables /data/tables --run validation-1 --models quality
# The same line again resumes: what was committed before a time limit or a lost node stays.
# `ray symmetric-run` ends with `ray stop`, which ends every Ray process of this user on the node: hence --exclusive.
#SBATCH --job-name=angio-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=angio-ray-%j.log
# Where nodes have GPUs, add:  #SBATCH --gpus-per-node=4

set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this by sbatch}"
export PATH="${ANGIO_RAY_VENV:-$PWD/.venv}/bin:$PATH"

# A token per job: other users of these machines can reach Ray's ports, and without it no call is answered.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Nodes boot at their own pace; Ray's own limit is 30 s.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-600}"

# This script runs on the first node. Ray compares the address with the node's interfaces, so it cannot be a loopback name.
head_ip="${ANGIO_RAY_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}"
port=$((20000 + SLURM_JOB_ID % 20000))
# Both symmetric-run's own waiting and the driver would otherwise start a second, private cluster.
export RAY_ADDRESS="$head_ip:$port"

# Sockets, logs and spilled objects (frames of patients) of each node; gone when its task ends.
export ANGIO_RAY_TMP="/tmp/angio-ray-$SLURM_JOB_ID"

# symmetric-run ends with 0 even where the head could not start, so the driver leaves a mark.
ANGIO_RAY_MARK=$(mktemp)
export ANGIO_RAY_MARK
trap 'rm -f "$ANGIO_RAY_MARK"' EXIT

driver() {
    echo started >"$ANGIO_RAY_MARK"
    exec python jobs/score.py "$@"
}

node() {
    umask 077
    trap 'rm -rf "$ANGIO_RAY_TMP"' EXIT
    ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
        --num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="$ANGIO_RAY_TMP" --disable-usage-stats \
        -- bash -c 'driver "$@"' angio-ray "$@"
}
export -f driver node

# One task per node; the one on this node becomes the head and runs the driver, whose exit code is the job's.
# The other tasks end about a minute later: Ray waits that long for a head to come back.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none bash -c 'node "$@"' angio-ray "$@"
if [[ ! -s $ANGIO_RAY_MARK ]]; then
    echo "angio-ray: Ray did not start on $head_ip; see the lines above" >&2
    exit 1
fi
