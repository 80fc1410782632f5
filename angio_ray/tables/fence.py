"""Exactly-once commits of one writer to one Delta table, and a stop for every other writer of the same name.

A fence is a number that a name (a run id) has in the table's log: Delta's app transaction. Each commit raises it by
one in the same atomic log entry as its rows. What delta-rs 1.6.6 does with that, measured:

- it refuses a commit from a handle that is older than another commit of the same name ("Concurrent transaction
  failed"), but accepts a repeated number from a fresh handle. So the handle is held for the whole run, and a number is
  never written without having been read from that same handle.
- a refused commit has four causes: a twin; our own commit whose reply was lost; a delete or rewrite of other rows; a
  change of the schema. The message does not tell them apart. So the log decides (see `_settle`): every commit carries
  a second transaction under the driver's own id, and who raised the number is read back without reading history.
- both numbers survive log checkpoints and the clean-up of expired log files.
- an empty append is a commit like any other (no file is written) and costs about the same;
  `create_write_transaction([])` commits too but leaves its own handle stale.

Knows nothing of what the rows mean.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from angio_ray.tables.root import STORE_ERRORS, TableRoot, TablesError, describe

logger = logging.getLogger(__name__)

_TRIES = 6
_FIRST_PAUSE_S = 0.25


class RunHeld(Exception):
    """Another driver holds the run: this one must stop and write nothing more."""


class TableUnwritable(Exception):
    """The table did not take a commit. One clear line; nothing is known to be lost, a rerun completes the run."""


class Fence:
    """The right of one driver to write under one name in one table. Not thread-safe."""

    def __init__(self, root: TableRoot, table: str, name: str, driver_id: str, *, kind: str | None = None) -> None:
        self._root = root
        self._table = table
        self._name = name
        self._mark = f"{name}/{driver_id}"
        # what a driver is, for others to read back with `number_of`
        self._marks = [self._mark] + ([f"{name}/{kind}"] if kind else [])
        self._metadata = {"run": name, "driver": driver_id}
        self._broken: Exception | None = None
        self._open()
        self.number = self._read(name)
        """Number of the newest commit known under this name; 0 when there is none."""

    @property
    def handle(self) -> DeltaTable:
        """The table as this fence last saw it."""
        return self._handle

    def number_of(self, driver: str) -> int:
        """Number of the newest commit under this name by that driver id, or kind of driver; 0 when there is none."""
        return self._read(f"{self._name}/{driver}")

    def refresh(self) -> int:
        """Reads the table's newest state and returns the name's number there. Only for one who does not write yet."""
        self._open()
        self.number = self._read(self._name)
        return self.number

    def commit(
        self,
        rows: pa.Table | pa.RecordBatchReader,
        *,
        predicate: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Appends rows (none: a sign of life), or puts them in the place of those that match the predicate.

        Returns when the commit is in the log, once. Raises RunHeld when another driver raised the number, and
        TableUnwritable when the store or the table refused to the end; after either, every later call does the same.
        A RecordBatchReader can be read once only, so its commit is not tried again.
        """
        if self._broken:
            raise self._broken
        try:
            self._commit(rows, predicate, metadata or {})
        except (RunHeld, TableUnwritable) as error:
            self._broken = error
            raise

    def _commit(
        self, rows: pa.Table | pa.RecordBatchReader, predicate: str | None, metadata: Mapping[str, str]
    ) -> None:
        number = self.number + 1
        tries = _TRIES if isinstance(rows, pa.Table) else 1
        refusal = ""
        for attempt in range(1, tries + 1):
            try:
                renewed = self._root.options(self._table) != self._options
                if not (renewed and self._settle(number)):
                    self._write(rows, number, predicate, metadata)
                break
            except STORE_ERRORS as error:
                before, refusal = refusal, describe(error)
                # the same answer twice is about the rows themselves, unless it is about other writers or the store
                hopeless = refusal == before and not isinstance(error, (CommitFailedError, OSError))
            logger.debug("commit %d of %s, try %d: %s", number, self._name, attempt, refusal)
            try:
                if self._settle(number):
                    logger.info("commit %d of %s is in the log, only its reply was lost", number, self._name)
                    break
                if hopeless:
                    raise TableUnwritable(f"table {self._table} refuses the rows: {refusal}")
            except STORE_ERRORS as error:
                refusal = describe(error)
            if attempt < tries:
                time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        else:
            raise TableUnwritable(f"table {self._table} took no commit after {tries} tries: {refusal}")
        self.number = number

    def _write(
        self,
        rows: pa.Table | pa.RecordBatchReader,
        number: int,
        predicate: str | None,
        metadata: Mapping[str, str],
    ) -> None:
        properties = CommitProperties(
            custom_metadata={**self._metadata, **metadata, "seq": number},
            app_transactions=[Transaction(name, number) for name in (self._name, *self._marks)],
        )
        data = align(rows, self._handle) if isinstance(rows, pa.Table) else rows
        if predicate is None:
            write_deltalake(self._handle, data, mode="append", commit_properties=properties)
        else:
            write_deltalake(self._handle, data, mode="overwrite", predicate=predicate, commit_properties=properties)

    def _settle(self, number: int) -> bool:
        """After a refused commit: reloads, and says whether the commit is in the log after all (True) or may be tried
        again from the new state (False). Raises RunHeld when somebody else raised the number."""
        self._open()
        found, ours = self._read(self._name), self._read(self._mark)
        if found == number and ours == number:
            return True
        if found == number - 1:
            return False
        if found < number - 1:
            raise TableUnwritable(
                f"table {self._table} went back from commit {number - 1} of {self._name} to {found}: was it restored?"
            )
        raise RunHeld(f"another driver holds run {self._name}")

    def _open(self) -> None:
        # A new handle rather than an update of the old one: credentials may have been renewed, and the log files that
        # an old handle would go on from may have been cleaned up.
        self._options = self._root.options(self._table)
        try:
            self._handle = self._root.open(self._table)
        except TablesError as error:
            raise TableUnwritable(str(error)) from None

    def _read(self, name: str) -> int:
        return self._handle.transaction_version(name) or 0


def align(rows: pa.Table, handle: DeltaTable) -> pa.Table:
    """Rows in the table's own columns and order: columns that only a newer release knows are filled with null."""
    schema = pa.schema(handle.schema().to_arrow())
    if missing := sorted(set(rows.column_names) - set(schema.names)):
        raise TableUnwritable(f"the table has no column {', '.join(missing)}: run `angio-ray tables upgrade`")
    columns = []
    for field in schema:
        index = rows.schema.get_field_index(field.name)
        columns.append(rows.column(index) if index >= 0 else pa.nulls(rows.num_rows, field.type))
    return pa.table(columns, schema=schema)
