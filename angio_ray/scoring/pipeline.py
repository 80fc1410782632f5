"""The Ray Data plan: blocks of object keys -> decode pool -> scoring pool -> small rows, streamed back to the driver."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from angio_ray.dicom.reader import Limits
from angio_ray.sampling import ClipWindow
from angio_ray.scoring.clip_scorer import ClipScorer
from angio_ray.scoring.config import Gate
from angio_ray.scoring.decode_stage import DecodeStage
from angio_ray.scoring.pools import Pools
from angio_ray.storage import Storage

_NO_PROGRESS_TIMEOUT_S = 1800.0
_BLOCK_OBJECTS = (4, 64)
_BLOCK_BYTES = 64 << 20
"""Of the decoded inputs of a block at most: a worker holds them several times over."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the two stages are built from. Bundles, their converted forms and ledger are references into the
    cluster."""

    storage: Storage
    windows: tuple[ClipWindow, ...]
    bundles: Mapping[str, Any]
    converted: Mapping[str, Any]
    """Of each task that OpenVINO runs."""
    backend: Any
    ledger: Any
    pools: Pools
    batch_size: int
    gate: Gate
    limits: Limits
    assume_fps: float | None


def scored_blocks(keys: pa.Table, plan: Plan) -> Generator[pa.Table, None, None]:
    """Stream the keys (schema `rows.KEYS`) through both stages; yields tables of `scored_schema`, in no fixed order."""
    quiet_context()
    pools = plan.pools
    decoded = ray.data.from_blocks(key_blocks(keys, pools.decoders, plan.windows)).map_batches(
        DecodeStage,
        fn_constructor_args=(plan.storage, plan.windows, plan.ledger),
        fn_constructor_kwargs={"limits": plan.limits, "assume_fps": plan.assume_fps},
        batch_size=None,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
        num_cpus=pools.cpus_per_decoder,
        compute=ray.data.ActorPoolStrategy(size=pools.decoders),
    )
    scored = decoded.map_batches(
        ClipScorer,
        fn_constructor_args=(plan.bundles, plan.converted, plan.backend, plan.ledger),
        fn_constructor_kwargs={"gate": plan.gate, "threads": pools.threads_per_scorer},
        batch_size=plan.batch_size,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
        num_cpus=pools.cpus_per_scorer,
        num_gpus=pools.gpus_per_scorer or None,
        compute=ray.data.ActorPoolStrategy(size=pools.scorers),
    )
    yield from scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def quiet_context() -> None:
    """Ray Data's own bars and plans off: the driver says what a user needs to know. A standstill ends on purpose."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def key_blocks(keys: pa.Table, workers: int, windows: Sequence[ClipWindow] = ()) -> list[pa.Table]:
    """Blocks small enough that every worker has several and that their inputs fit, large enough to be worth a task."""
    least, most = _BLOCK_OBJECTS
    if input_bytes := sum(window.num_frames * window.size**2 for window in windows):
        most = min(most, max(1, _BLOCK_BYTES // input_bytes))
    least = min(least, most)
    size = min(most, max(least, len(keys) // (workers * 8)))
    return [keys.slice(start, size) for start in range(0, len(keys), size)]
