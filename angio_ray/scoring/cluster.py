"""The Ray cluster of a run: joined where there is one, else started here and stopped after; do all its nodes see the clips?"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from angio_ray.scoring.config import RunError

_RAY_DATA_END_S = 10.0


@contextmanager
def ray_cluster() -> Iterator[list[Mapping[str, float]]]:
    """The resources of each node of the cluster at RAY_ADDRESS (Ray sets it inside a job), else of one started here."""
    if ray.is_initialized():
        yield _node_resources()
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # its core's remarks on restarts would break up the progress
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address := os.environ.get("RAY_ADDRESS"):
        options["address"] = address
    else:
        if "RAY_AUTH_MODE" not in os.environ:
            # Ray then turns token authentication on, and would write a token under HOME: a private cluster has its own
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        memory = psutil.virtual_memory().total
        shm = psutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else memory
        options |= {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "object_store_memory": int(max(100 << 20, min(2 << 30, memory // 5, shm // 2))),
        }
    try:
        with _quiet_descriptor(2):  # Ray's core announces its log level there; what matters it raises
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"cannot reach the Ray cluster: {str(error).splitlines()[0]}", 2) from error
    except Exception as error:  # a node that does not come up in time, on a machine with too much to do, raises just this
        raise RunError(f"Ray did not start: {str(error).splitlines()[0]}; run the same command again", 1) from error
    try:
        yield _node_resources()
    finally:
        _wait_for_ray_data()
        ray.shutdown()


def _wait_for_ray_data() -> None:
    """Its scheduling threads outlive their pipelines on a busy machine; one that is in Ray's core while that is taken down
    ends the process (exit code -6 or 1, everything written).
    """
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(_RAY_DATA_END_S)


def _node_resources() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def _quiet_descriptor(number: int) -> Iterator[None]:
    """Send what is written to this file descriptor nowhere, whoever writes it."""
    kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(nowhere)


def check_nodes_see(path: str) -> None:
    """RunError (2) unless every node of the cluster can read this local path: a folder of one machine is not shared storage."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    see = ray.remote(num_cpus=0)(lambda: os.access(path, os.R_OK))
    seen = ray.get(
        [
            see.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
            for node in nodes
        ]
    )
    if not all(seen):
        raise RunError(
            f"{seen.count(False)} of {len(nodes)} nodes cannot read the clips' folder; use shared storage or s3://", 2
        )
