"""The files of `cluster/`: valid for whom they are meant, without secrets, and with command lines that the real parser takes."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from angio_ray.cli import app
from angio_ray.scoring.config import ScoreConfig

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
JOB, STANDING, POLICY = "kuberay-rayjob.yaml", "kuberay-raycluster.yaml", "kuberay-network-policy.yaml"
CRDS = {JOB: "ray.io_rayjobs.yaml", STANDING: "ray.io_rayclusters.yaml"}
SLURM = CLUSTER / "slurm-score.sh"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def cluster_spec(name: str) -> dict[str, Any]:
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pod_specs(name: str) -> Iterator[dict[str, Any]]:
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]
    if name == JOB:
        yield load(name)["spec"]["submitterPodTemplate"]["spec"]


# --- the CRDs of KubeRay ---


@pytest.fixture(scope="module")
def crds(shared_data: Path) -> dict[str, Any]:
    folder = shared_data / "crds"
    if not folder.is_dir():
        pytest.skip("no CRD schemas among the real input")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for manifest, file in CRDS.items():
        crd = yaml.load((folder / file).read_text(), loader)
        versions = {v["name"]: v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"]}
        found[manifest] = strict(versions["v1"])
    return found


def strict(schema: Any) -> Any:
    """As JSON Schema, unknown fields forbidden: the API server would drop them without a word."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: strict(value) for key, value in schema.items()}
    if isinstance(plain.get("properties"), dict) and "type" in plain:
        keeps = plain.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in plain
        if not keeps and plain["type"] == "object":
            plain["additionalProperties"] = False
    return plain


@pytest.mark.parametrize("manifest", [JOB, STANDING])
def test_manifest_is_valid_for_the_crd(manifest: str, crds: dict[str, Any]) -> None:
    document = load(manifest)
    assert (document["apiVersion"], document["kind"]) == (
        "ray.io/v1",
        {JOB: "RayJob", STANDING: "RayCluster"}[manifest],
    )
    jsonschema.validate(document, crds[manifest])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "ttlAfterFinished"), 60),
        (("spec", "rayClusterSpec", "authOption"), {"mode": "token"}),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "basic"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "volumeMount"), []),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
    ],
    ids=["typo", "nested typo", "bad choice", "typo in a pod", "number for a string"],
)
def test_the_crd_check_finds(path: tuple[Any, ...], value: Any, crds: dict[str, Any]) -> None:
    document = copy.deepcopy(load(JOB))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, crds[JOB])


def test_network_policy_rules_are_valid_and_select_all_pods(crds: dict[str, Any]) -> None:
    policy = load(POLICY)
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    # KubeRay's own field embeds the rules of Kubernetes.
    rules = crds[STANDING]["properties"]["spec"]["properties"]["networkPolicy"]["properties"]["head"]["properties"]
    jsonschema.validate(policy["spec"]["ingress"], rules["ingressRules"])
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    spec = cluster_spec(JOB)
    templates = [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    for template in (*templates, load(JOB)["spec"]["submitterPodTemplate"]):
        assert wanted <= template["metadata"]["labels"].items()


# --- what no schema says ---


def test_job_and_standing_cluster_have_one_spec() -> None:
    assert cluster_spec(JOB) == cluster_spec(STANDING)


def test_ray_version_is_the_locked_one() -> None:
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert cluster_spec(JOB)["rayVersion"] == locked[1]


def test_the_token_comes_from_a_secret_and_the_cluster_goes_with_the_run() -> None:
    assert cluster_spec(JOB)["authOptions"] == {"mode": "token", "secretName": "angio-ray-token"}
    assert load(JOB)["spec"]["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("manifest", [JOB, STANDING])
def test_pods_are_bounded_and_unprivileged(manifest: str) -> None:
    images = set()
    for pod in pod_specs(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            images.add(container["image"])
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
            assert set(mounts.values()) <= volumes.keys()
            if container["name"] != "ray-job-submitter":
                assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert len(images) == 1


@pytest.mark.parametrize("manifest", [JOB, STANDING])
def test_the_object_store_fits_into_dev_shm(manifest: str) -> None:
    spec = cluster_spec(manifest)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        shm = next(v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm")
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store < gibibytes(shm) < gibibytes(memory)


def gibibytes(text: str) -> int:
    assert text.endswith("Gi")
    return int(text[:-2]) << 30


@pytest.mark.parametrize("manifest", [JOB, STANDING])
def test_only_the_head_mounts_the_pseudonym_key_and_its_variable_names_it(manifest: str) -> None:
    head, *others = pod_specs(manifest)
    env = {variable["name"]: variable.get("value") for variable in head["containers"][0]["env"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    volume = next(v for v in head["volumes"] if "secret" in v)
    assert env["ANGIO_RAY_KEY_FILE"] == f"{mounts[volume['name']]}/{volume['secret']['items'][0]['path']}"
    assert not any("secret" in v for pod in others for v in pod.get("volumes", []))


@pytest.mark.parametrize("file", sorted(p.name for p in CLUSTER.iterdir()))
def test_no_file_holds_a_secret(file: str) -> None:
    text = (CLUSTER / file).read_text()
    assert not re.search(r"kind: Secret\b|AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{32,}\b", text)
    for document in yaml.safe_load_all(text) if file.endswith(".yaml") else ():
        for name, value in literal_variables(document):
            assert not re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", name), f"{name}={value}"


def literal_variables(node: Any) -> Iterator[tuple[str, str]]:
    """Every `{name: X, value: Y}` of a document."""
    if isinstance(node, dict):
        if isinstance(node.get("name"), str) and "value" in node:
            yield node["name"], node["value"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from literal_variables(item)


# --- command lines ---


def command_lines() -> list[tuple[str, list[str]]]:
    """(file, arguments of `score`) of every command in the folder: entrypoints, comments and the README."""
    found = [(JOB, shlex.split(load(JOB)["spec"]["entrypoint"]))]
    for file in sorted(CLUSTER.iterdir()):
        for line in file.read_text().splitlines():
            if re.search(r"sbatch .*slurm-score\.sh|ray job submit .*-- python", line):
                found.append((file.name, shlex.split(line.lstrip("# "))))
    starts = ("jobs/score.py", "slurm-score.sh")
    return [
        (file, words[next(i for i, word in enumerate(words) if word.endswith(starts)) + 1 :]) for file, words in found
    ]


def test_command_lines_are_found_in_all_three_places() -> None:
    assert {file for file, _ in command_lines()} == {JOB, SLURM.name, "README.md"}


@pytest.mark.parametrize(("file", "arguments"), command_lines())
def test_command_line_is_one_that_score_takes(file: str, arguments: list[str]) -> None:
    _, bound, _ = app.parse_args(["score", *arguments], exit_on_error=False, print_error=False)
    (config,) = bound.arguments.values()
    assert isinstance(config, ScoreConfig)
    assert config.run == "validation-1"


def test_the_entrypoint_is_a_file_of_the_image() -> None:
    python, script, *_ = shlex.split(load(JOB)["spec"]["entrypoint"])
    assert python == "python"
    image_root = "/opt/angio_ray/"
    assert script.startswith(image_root)
    assert (ROOT / script.removeprefix(image_root)).is_file()
    assert f"COPY jobs {image_root}jobs" in (CLUSTER / "Dockerfile").read_text()


# --- ray up ---


def test_ray_up_file_is_valid_for_ray() -> None:
    config = load("ray-up.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"head_node": {}}, schema)


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_up_starts_ray_with_a_token_and_flags_it_has(commands: str) -> None:
    command = load("ray-up.yaml")[commands][-1]
    assert "RAY_AUTH_MODE=token" in command
    arguments = shlex.split(command.partition("ray start ")[2])
    params = ray_start.make_context("ray start", arguments).params
    assert params["head"] == commands.startswith("head")
    assert params["dashboard_host"] in ("127.0.0.1", "localhost")


# --- Slurm ---


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which `srun` runs its task at once, and `ray` and `python` say what they were asked."""
    programs = {
        "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_CPUS_ON_NODE=16 exec "$@"',
        "ray": 'printf "%s\\n" "$RAY_AUTH_MODE:${#RAY_AUTH_TOKEN}" "$RAY_ADDRESS" "$@" >"$OUT"; '
        'while [[ $1 != -- ]]; do shift; done; shift; [[ -z ${HEAD_FAILS:-} ]] || exit 0; exec "$@"',
        "python": 'if [[ $1 == -c ]]; then echo 0123456789abcdef; else printf "%s\\n" "$@" >"$OUT.driver"; exit "$CODE"; fi',
        "hostname": "echo 192.0.2.7 192.0.2.8",
    }
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": os.environ["PATH"],
        "OUT": str(tmp_path / "out"),
        "CODE": "0",
        "ANGIO_RAY_VENV": str(tmp_path / "venv"),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "4",
        "TMPDIR": str(tmp_path),
    }


def run_slurm(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", SLURM, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_slurm_script_is_executable_bash() -> None:
    assert SLURM.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["bash", "-n", SLURM], capture_output=True).returncode == 0


def test_slurm_script_starts_ray_as_ray_allows_and_hands_on_its_arguments(slurm: dict[str, str]) -> None:
    arguments = ["/data/two words", "--tables", "/data/tables", "--run", "r1"]
    done = run_slurm(slurm, *arguments)
    assert done.returncode == 0, done.stderr
    auth, address, subcommand, *words = Path(slurm["OUT"]).read_text().splitlines()
    assert auth == "token:16"
    assert subcommand == "symmetric-run"
    before = words[: words.index("--")]
    options = dict(zip(before[::2], before[1::2], strict=False))
    assert (options["--address"], options["--min-nodes"]) == ("192.0.2.7:24711", "4")
    assert address == options["--address"]  # else symmetric-run and the driver start a cluster of their own
    start = curate_and_validate_ray_start_args(before)
    for node in (["--head", "--port=24711"], ["--address", address]):
        params = ray_start.make_context("ray start", [*node, *start]).params
        assert (params["num_cpus"], params["temp_dir"]) == (16, "/tmp/angio-ray-4711")
    assert Path(slurm["OUT"] + ".driver").read_text().splitlines() == ["jobs/score.py", *arguments]


def test_slurm_script_ends_with_the_drivers_exit_code(slurm: dict[str, str]) -> None:
    assert run_slurm(slurm | {"CODE": "4"}, "/data").returncode == 4


def test_slurm_script_fails_when_no_head_came_up_although_ray_ends_with_0(slurm: dict[str, str]) -> None:
    done = run_slurm(slurm | {"HEAD_FAILS": "1"}, "/data")
    assert done.returncode == 1
    assert "Ray did not start on 192.0.2.7" in done.stderr


# --- the image ---


def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (CLUSTER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_dockerfile_copies_only_what_is_there_and_lets_it_into_the_context() -> None:
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [source for word, rest in dockerfile() if word == "COPY" for source in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignore


def test_dockerfile_installs_by_hash_names_no_index_and_ends_unprivileged() -> None:
    instructions = dockerfile()
    installs = [rest for word, rest in instructions if word == "RUN" and "pip install" in rest]
    assert all("--no-deps" in rest for rest in installs)
    assert "--require-hashes" in installs[0]
    assert "requirements.lock" in installs[0]
    assert not re.search(r"https?://|--(extra-)?index-url|PIP_INDEX", (CLUSTER / "Dockerfile").read_text())
    users = [rest for word, rest in instructions if word == "USER"]
    uid = cluster_spec(JOB)["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert users == [str(uid)]
