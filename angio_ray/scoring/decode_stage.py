"""First stage: object keys in, sampled frames or a reason out. Runs as a pool of workers, each with one sandboxed child.

The worker fetches (trusted, with credentials), its child parses and decodes (untrusted bytes, no credentials). Several threads
fetch while the one child decodes. Knows nothing of models but the windows they look at.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pyarrow as pa

from angio_ray.clip import ClipRejected, Reason
from angio_ray.dicom.reader import ClipOutcome, ClipReader, Limits
from angio_ray.dicom.sandbox import SandboxUnavailable
from angio_ray.sampling import ClipWindow
from angio_ray.scoring.crash_ledger import run_guarded
from angio_ray.scoring.rows import decoded_schema, header_struct
from angio_ray.storage import ObjectInfo, Storage

log = logging.getLogger(__name__)


class DecodeStage:
    """Callable for `map_batches`: a table of keys -> a table of `decoded_schema(windows)`, one row per key.

    Keys may have a column `frames`: the file's frames to show of each object, whatever the windows' rates ask for.
    """

    def __init__(
        self,
        storage: Storage,
        windows: Sequence[ClipWindow],
        ledger: Any,
        *,
        limits: Limits,
        assume_fps: float | None = None,
        header_only: bool = False,
        fetch_threads: int = 4,
    ) -> None:
        self.storage = storage
        self.windows = windows
        self.schema = decoded_schema(windows)
        self.ledger = ledger
        self.header_only = header_only
        self.reader = ClipReader(windows, limits=limits, assume_fps=assume_fps)
        self.threads = ThreadPoolExecutor(fetch_threads)

    def __call__(self, keys: pa.Table) -> pa.Table:
        """Read, decode and sample the objects of a block."""
        rows = keys.to_pylist()

        def decode(positions: Sequence[int]) -> list[dict[str, Any]]:
            return list(self.threads.map(lambda p: self._read(rows[p]), positions))

        def give_up(position: int) -> dict[str, Any]:
            # the worker parses no bytes: it died of memory or with its node, so another time may do
            return self._rejected(
                rows[position], Reason.OUT_OF_MEMORY, "the decoding worker died 2 times at this object"
            )

        # an object may come several times, for other frames each time: its rows are not one another's deaths
        ids = [row["object_id"] + (f" {row['frames']}" if row.get("frames") is not None else "") for row in rows]
        return pa.Table.from_pylist(run_guarded(self.ledger, "decode", ids, decode, give_up), schema=self.schema)

    def _read(self, key: dict[str, Any]) -> dict[str, Any]:
        info = ObjectInfo(key["uri"], key["size_bytes"], key["etag"])
        try:
            with closing(self.storage.open(info)) as source:
                outcome = self.reader.index(source) if self.header_only else self.reader.read(source, key.get("frames"))
            return self._row(key, outcome)
        except ClipRejected as rejected:
            return self._rejected(key, rejected.reason, rejected.detail)
        except SandboxUnavailable:  # this machine cannot decode: no row may say that it was the clip
            raise
        except Exception as error:
            # a fault of ours must not cost the neighbours; its text may hold a path, so: class only
            log.error("object %s: unexpected %s in the reader", key["object_id"], type(error).__name__)
            return self._rejected(key, Reason.DECODE_ERROR, "unexpected error in the reader")

    def _rejected(self, key: dict[str, Any], reason: Reason, detail: str) -> dict[str, Any]:
        return {**key, "reason": str(reason), "detail": detail}

    def _row(self, key: dict[str, Any], outcome: ClipOutcome) -> dict[str, Any]:
        row = {
            "object_id": key["object_id"],
            "uri": key["uri"],
            "size_bytes": outcome.info.size_bytes,
            "etag": outcome.info.etag,
            "changed": outcome.info.etag != key["etag"],
            "header": header_struct(outcome.header),
            "reason": None if outcome.reason is None else str(outcome.reason),
            "detail": outcome.detail,
            "codec": outcome.codec,
            "content_sha256": outcome.content_sha256,
            "fetch_ms": outcome.fetch_s * 1000,
            "decode_ms": outcome.decode_s * 1000,
        }
        if outcome.selections:
            first = outcome.selections[self.windows[0].name]
            row["sampled_frames"] = list(first.indices)
            row["repeated_frames"] = first.num_repeated
        for name, frames in outcome.inputs.items():
            row[f"input_{name}"] = frames.tobytes()
            row[f"shape_{name}"] = list(frames.shape)
            selection = outcome.selections[name]
            row[f"frames_{name}"] = list(selection.indices[: selection.num_shown])
        return row
