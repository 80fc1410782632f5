"""Second stage: sampled frames in, scores out. One actor hosts the models of all tasks and applies the quality gate inside.

So a clip is decoded once, and no pool idles behind the gate. Knows nothing of networks: a task is an entry of
`angio_ray.models.TASKS`, whose scorer takes the inputs of a batch and returns the columns that it declares. A new task is a
model file and an entry there; nothing here changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from angio_ray.clip import Reason
from angio_ray.models import TASKS
from angio_ray.scoring.config import Gate
from angio_ray.scoring.crash_ledger import run_guarded
from angio_ray.scoring.rows import scored_schema

log = logging.getLogger(__name__)


class ClipScorer:
    """Callable for `map_batches`: a table of `decoded_schema` -> a table of `scored_schema(tasks)`, one row per clip."""

    def __init__(
        self,
        bundles: Mapping[str, Any],
        converted: Mapping[str, Any],
        backend: Any,
        ledger: Any,
        *,
        gate: Gate,
        threads: int,
    ) -> None:
        self.bundles = {task: ray.get(ref) for task, ref in bundles.items()}
        for bundle in self.bundles.values():
            bundle.check(weights=False)  # the tensors were looked at when the backend was chosen
        forms = {digest: ray.get(ref) for digest, ref in converted.items()}
        self.scorers = {
            task: TASKS[task].scorer(bundle, backend, num_threads=threads, converted=forms)
            for task, bundle in self.bundles.items()
        }
        self.ledger = ledger
        self.gate = gate
        self.schema = scored_schema(list(self.bundles))

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Score the clips of a block that were decoded; the others pass through with their reason."""
        inputs = [n for n in decoded.column_names if n.startswith(("input_", "shape_", "frames_"))]
        rows = decoded.drop_columns(inputs).to_pylist()
        frames = _Frames(decoded)
        todo = [p for p, row in enumerate(rows) if row["reason"] is None]

        def score(positions: Sequence[int]) -> list[dict[str, Any]]:
            return self._score([todo[p] for p in positions], rows, frames)

        def give_up(position: int) -> dict[str, Any]:
            return {"reason": str(Reason.MODEL_ERROR), "detail": "the scoring actor died 2 times on this clip"}

        results = (
            run_guarded(self.ledger, "score", [rows[p]["object_id"] for p in todo], score, give_up) if todo else []
        )
        for position, result in zip(todo, results, strict=True):
            rows[position].update(result)
        for row in rows:
            if row["reason"] is not None:
                row["status"] = "rejected"
        return pa.Table.from_pylist(rows, schema=self.schema)

    def _score(
        self, positions: Sequence[int], rows: Sequence[Mapping[str, Any]], frames: _Frames
    ) -> list[dict[str, Any]]:
        """Columns of each clip: the gate first, then the other tasks on what it lets through."""
        started = time.perf_counter()
        results: dict[int, dict[str, Any]] = {p: {"status": "scored"} for p in positions}
        for task in self.scorers:
            live = [p for p in positions if results[p]["status"] == "scored"]
            for p in positions:
                results[p][f"{task}_status"] = "skipped"
            self._run_task(task, live, frames, rows, results)
            if gate := TASKS[task].gate_column:
                for p in live:
                    if results[p].get(gate) is False and self._gates(task, rows[p]):
                        results[p]["status"] = "gated"
        elapsed_ms = (time.perf_counter() - started) * 1000 / max(len(positions), 1)
        for result in results.values():
            result["model_ms"] = elapsed_ms
            result["model_domain"] = (
                "patients" if all(b.trained_on == "patients" for b in self.bundles.values()) else "synthetic"
            )
            failed = [result[f"{task}_reason"] for task in self.scorers if result[f"{task}_status"] == "failed"]
            if failed and not any(result[f"{task}_status"] == "scored" for task in self.scorers):
                result.update(reason=failed[0], detail="no task could score this clip", status="rejected")
        return [results[p] for p in positions]

    def _gates(self, task: str, row: Mapping[str, Any]) -> bool:
        """Whether this task may stop this clip: one trained on synthetic clips alone does not judge patients unasked."""
        if self.gate == "auto":
            return self.bundles[task].trained_on == "patients" or bool(row["header"]["synthetic"])
        return self.gate == "on"

    def _run_task(
        self,
        task: str,
        positions: Sequence[int],
        frames: _Frames,
        rows: Sequence[Mapping[str, Any]],
        results: dict[int, dict[str, Any]],
    ) -> None:
        """Fill a task's columns; a batch that fails is halved down to the clip at fault."""
        if not positions:
            return
        scorer = self.scorers[task]
        try:
            columns = scorer(
                {w.name: frames.stack(w.name, positions) for w in scorer.windows},
                {w.name: frames.shown(w.name, positions) for w in scorer.windows},
                {name: [{**rows[p]["header"], **results[p]}.get(name) for p in positions] for name in TASKS[task].reads},
            )
        except Exception as error:  # model code on odd input, or too little memory: a row, not the end of the run
            if len(positions) > 1:
                half = len(positions) // 2
                self._run_task(task, positions[:half], frames, rows, results)
                self._run_task(task, positions[half:], frames, rows, results)
                return
            memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            reason = Reason.OUT_OF_MEMORY if memory else Reason.MODEL_ERROR
            log.error("%s: %s on one clip", task, type(error).__name__)
            results[positions[0]].update({f"{task}_status": "failed", f"{task}_reason": str(reason)})
            return
        for index, p in enumerate(positions):
            results[p].update({name: _plain(values[index]) for name, values in columns.items()})
            results[p][f"{task}_status"] = "skipped" if results[p].get(f"{task}_reason") else "scored"


class _Frames:
    """Inputs of a batch by window, without copying them out of the Arrow buffers before they are stacked."""

    def __init__(self, decoded: pa.Table) -> None:
        self.decoded = decoded

    def stack(self, window: str, positions: Sequence[int]) -> np.ndarray:
        """uint8 (B, T, H, W) of the clips at `positions`."""
        data, shapes = self.decoded.column(f"input_{window}"), self.decoded.column(f"shape_{window}")
        return np.stack([np.frombuffer(data[p].as_buffer(), np.uint8).reshape(shapes[p].as_py()) for p in positions])

    def shown(self, window: str, positions: Sequence[int]) -> list[np.ndarray]:
        """The file's frames that these clips' inputs show, without padding."""
        column = self.decoded.column(f"frames_{window}")
        return [np.asarray(column[p].as_py(), np.int64) for p in positions]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
