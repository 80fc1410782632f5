"""One small Ray cluster and one set of synthetic clips for the tests that score in this process.

Tests that kill things start processes and clusters of their own (`test_faults.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from angio_ray.scoring.config import ScoreConfig


@pytest.fixture(scope="session")
def ray_here():
    """A local cluster of two processors; runs in this process join it."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=400 << 20, log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> Path:
    """Bundles of an untrained X3D-S: the pipeline's tests need numbers, not good ones."""
    return make_bundles(tmp_path_factory.mktemp("bundles"), threshold=0.5)


def make_bundles(folder: Path, *, threshold: float, seed: int = 0, trained_on: str = "synthetic") -> Path:
    """A folder with one quality bundle of random weights."""
    import torch

    from angio_ray.models import NETS
    from angio_ray.models.bundles import write_bundle

    torch.manual_seed(seed)
    weights = NETS["x3d_s"].build().state_dict()
    write_bundle(
        folder / "quality", task="quality", net="x3d_s", state_dicts=[weights], threshold=threshold, trained_on=trained_on
    )
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder of 8 synthetic clips and the broken objects, and {name of broken object: expected reason}."""
    from angio_ray.phantom import generate, write_broken

    folder = tmp_path_factory.mktemp("clips")
    generate(folder, patients=2, clips=(4, 4), seed=3, size=128, frames=(40, 50), workers=1)
    for path in (*folder.glob("*.parquet"), *folder.glob("*.json"), *folder.rglob("*.truth.npz")):
        path.unlink()  # the clips alone
    return folder, write_broken(folder / "broken")


def config_for(source: Path, tables: Path, bundles: Path, **changes) -> ScoreConfig:
    """A run that measures nothing: float32 torch, short intervals."""
    options = {"run": "r", "backend": "torch", "precision": "float32", "batch_size": 4, "commit_interval_s": 2.0}
    return ScoreConfig(str(source), tables=str(tables), bundles=bundles, **(options | changes))


def rows_of(tables: Path, run: str = "r") -> list[dict]:
    """The rows of a run, sorted by object."""
    from deltalake import DeltaTable

    rows = DeltaTable(str(tables / "scores")).to_pyarrow_table(filters=[("run_id", "=", run)]).to_pylist()
    return sorted(rows, key=lambda row: row["object_id"])


def comparable(rows: list[dict]) -> list[dict]:
    """Rows without what may differ between two equal runs: times, tries, and floats beyond 1e-3."""
    varying = {"scored_at", "attempts", "fetch_ms", "decode_ms", "model_ms", "run_id"}
    return [
        {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k not in varying}
        for row in rows
    ]
