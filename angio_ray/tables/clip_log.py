"""Appends to `clips`, the only table that leads back to a patient: one row per object version (object_id, etag).

Any number of drivers may append at once: each commit carries a transaction common to all of them, so a commit based
on an older state is refused, and its rows are compared with the newer keys again. Knows nothing of runs.
"""

from __future__ import annotations

import logging
import random
import time
from hashlib import blake2b

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from angio_ray.clip import is_transient
from angio_ray.tables.fence import TableUnwritable, align
from angio_ray.tables.root import STORE_ERRORS, TableRoot, describe
from angio_ray.tables.schema import conform

logger = logging.getLogger(__name__)

CLIPS_WRITER = "clips"
"""Name of the transaction that every writer of the table raises by one."""

_TRIES = 12


class ClipLog:
    """Writer of `clips` that never writes a key twice. Not thread-safe."""

    def __init__(self, root: TableRoot) -> None:
        self._root = root
        self._open()

    def absent(self, rows: pa.Table) -> pa.Table:
        """The rows (with object_id and etag) whose key is not in the table, as last seen, each key once."""
        return self._absent(rows)[0]

    def append(self, rows: pa.Table) -> int:
        """Appends the rows whose (object_id, etag) is not there yet, and returns how many those were.

        Rows of objects that could not be read this time (a transient reason and no header) are left out: they would
        stand in the way of the header when it can be read. Raises TableUnwritable.
        """
        fresh = _readable(conform("clips", rows))
        refusal = ""
        for attempt in range(1, _TRIES + 1):
            try:
                if self._options != self._root.options("clips"):
                    self._open()
                fresh, keys = self._absent(fresh)
                if fresh.num_rows:
                    self._write(fresh)
                    self._keys.update(keys)
                return fresh.num_rows
            except STORE_ERRORS as error:
                refusal = describe(error)
                logger.debug("append to clips, try %d: %s", attempt, refusal)
            try:
                self._open()  # if our commit is in the log after all, its keys are now known and no row is left
            except STORE_ERRORS as error:
                refusal = describe(error)
            if attempt < _TRIES:
                time.sleep(min(0.1 * 2 ** (attempt - 1), 4.0) * random.uniform(0.5, 1.5))
        raise TableUnwritable(f"table clips took no commit after {_TRIES} tries: {refusal}")

    def _write(self, rows: pa.Table) -> None:
        number = (self._handle.transaction_version(CLIPS_WRITER) or 0) + 1
        properties = CommitProperties(app_transactions=[Transaction(CLIPS_WRITER, number)])
        write_deltalake(self._handle, align(rows, self._handle), mode="append", commit_properties=properties)

    def _absent(self, rows: pa.Table) -> tuple[pa.Table, list[bytes]]:
        keys = _keys(rows)
        seen: set[bytes] = set()
        keep = []
        for key in keys:
            keep.append(key not in self._keys and key not in seen)
            seen.add(key)
        return rows.filter(pa.array(keep, pa.bool_())), [key for key, kept in zip(keys, keep, strict=True) if kept]

    def _open(self) -> None:
        self._options = self._root.options("clips")
        self._handle: DeltaTable = self._root.open("clips")
        self._keys: set[bytes] = set()
        for batch in self._handle.to_pyarrow_dataset().to_batches(columns=["object_id", "etag"]):
            self._keys.update(_keys(batch))


def _keys(rows: pa.Table | pa.RecordBatch) -> list[bytes]:
    # 16 bytes a key: the whole table's keys are held in memory
    pairs = zip(rows.column("object_id").to_pylist(), rows.column("etag").to_pylist(), strict=True)
    return [blake2b(f"{object_id}\0{etag or ''}".encode(), digest_size=16).digest() for object_id, etag in pairs]


def _readable(rows: pa.Table) -> pa.Table:
    facts = zip(*(rows.column(name).to_pylist() for name in ("reason", "detail", "sop_instance_uid")), strict=True)
    return rows.filter(pa.array([uid is not None or not is_transient(r, d) for r, d, uid in facts], pa.bool_()))
