"""Upkeep of the tables: fewer and larger files, removal of dead files, new columns. All safe beside a running driver.

`DeltaTable.optimize` is never called: two overlapping compactions by it doubled every row in 6 of 6 trials without an
error. Here a compaction replaces the rows of one name by themselves, under that name's own fence, so that the second
of two is refused.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Field, Transaction, write_deltalake

from angio_ray.tables.clip_log import CLIPS_WRITER
from angio_ray.tables.fence import Fence, RunHeld, TableUnwritable
from angio_ray.tables.root import (
    STORE_ERRORS,
    TableRoot,
    TablesError,
    configuration,
    describe,
    fingerprint,
    missing_columns,
)
from angio_ray.tables.run_log import COMPACTION, run_state
from angio_ray.tables.schema import SCORING, TABLES, declaration

logger = logging.getLogger(__name__)

MIN_VACUUM_HOURS = 168
"""Files younger than this may belong to a query or a driver that is still at work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compaction:
    """What became of one run's files (or those of `clips`)."""

    name: str
    num_rows: int
    files_before: int
    files_after: int
    skipped: str | None = None
    """Why nothing was done."""


def compact(root: TableRoot, run_id: str | None = None) -> list[Compaction]:
    """Rewrites the rows of finished runs (of one, or of all) into few files, and those of `clips` with all runs.

    Runs that a driver holds or that are unfinished are left alone, and so is what is in few files already. After each
    rewrite rows and distinct keys are counted; should they differ from before, the old rows are put back and
    TableUnwritable is raised. Raises TablesError for a run that is not there.
    """
    if run_id is not None:
        if not run_state(root, run_id).events:
            raise TablesError(f"there is no run {run_id}")
        return [_compact_run(root, run_id)]
    names = pc.unique(root.open("runs").to_pyarrow_table(columns=["run_id"]).column("run_id")).to_pylist()
    return [*(_compact_run(root, name) for name in sorted(names)), _compact_clips(root)]


def vacuum(root: TableRoot, hours: int = MIN_VACUUM_HOURS) -> dict[str, int]:
    """Deletes data files that no version of the last `hours` needs. Returns the number of files by table.

    Raises TablesError below 168 hours.
    """
    if hours < MIN_VACUUM_HOURS:
        raise TablesError(f"vacuum keeps at least {MIN_VACUUM_HOURS} hours, not {hours}")
    # never `full`: that deletes every file the log does not name, those of a commit under way too
    present = [table for table in TABLES if table in SCORING or root.exists(table)]
    return {table: len(root.open(table).vacuum(retention_hours=hours, dry_run=False, full=False)) for table in present}


def upgrade(root: TableRoot) -> list[str]:
    """Brings the tables to this release's schema: adds tables, columns, comments, constraints; says what it did.

    Changes no row and drops no column. A driver at work goes on: it takes up the new schema at its next commit.
    """
    done: list[str] = []
    key = fingerprint(root.open("scores"))
    for table in TABLES:
        if not root.exists(table):
            if table not in SCORING:
                continue  # made by the first training
            if key is not None:
                root.create(table, key)
                done.append(f"{table}: made")
        handle = root.open(table)
        declared = {field["name"]: field for field in declaration(table)["fields"]}
        if missing := missing_columns(table, handle):
            if required := [name for name in missing if not declared[name]["nullable"]]:
                raise TablesError(f"{root.uri(table)} has no column {', '.join(required)}: it cannot be upgraded")
            handle.alter.add_columns([Field.from_json(json.dumps(declared[name])) for name in missing])
            done += [f"{table}: column {name}" for name in missing]
        for field in handle.schema().fields:
            if field.name in declared and field.metadata != declared[field.name]["metadata"]:
                handle.alter.set_column_metadata(field.name, declared[field.name]["metadata"])
                done.append(f"{table}: comment of {field.name}")
        done += _upgrade_constraints(table, handle)
    return done


def _upgrade_constraints(table: str, handle: DeltaTable) -> list[str]:
    done = []
    prefix = "delta.constraints."
    wanted = {key.removeprefix(prefix): sql for key, sql in configuration(table).items() if key.startswith(prefix)}
    found = {
        key.removeprefix(prefix): sql for key, sql in handle.metadata().configuration.items() if key.startswith(prefix)
    }
    for name in found:
        if wanted.get(name) != found[name]:
            handle.alter.drop_constraint(name)
            done.append(f"{table}: constraint {name} dropped")
    for name, sql in wanted.items():
        if found.get(name) != sql:
            handle.alter.add_constraint({name: sql})  # checks the rows that are there, and rewrites the text
            # in our own words again, so that the next upgrade knows it
            handle.alter.set_table_properties({prefix + name: sql}, raise_if_not_exists=False)
            done.append(f"{table}: constraint {name}")
    return done


def _compact_run(root: TableRoot, run_id: str) -> Compaction:
    # The compaction is one more driver of the run: a --retry of the run and a second compaction are kept off.
    fence = Fence(root, "scores", run_id, uuid.uuid4().hex[:16], kind=COMPACTION)
    newest = run_state(root, run_id).newest
    where = pc.field("run_id") == run_id
    files = _num_files(fence.handle, where)
    if newest is None or newest["event"] != "finished":
        return Compaction(name=run_id, num_rows=0, files_before=files, files_after=files, skipped="not finished")
    rows, keys = _count(fence.handle, where, "object_id")
    if files <= 1:
        return Compaction(name=run_id, num_rows=rows, files_before=files, files_after=files, skipped="one file")
    before = fence.handle.version()
    predicate = f"run_id = '{run_id}'"
    try:
        fence.commit(_reader(fence.handle, where), predicate=predicate, metadata={"compaction": "true"})
    except RunHeld:
        return Compaction(name=run_id, num_rows=rows, files_before=files, files_after=files, skipped="held by a driver")
    if (found := _count(fence.handle, where, "object_id")) != (rows, keys):
        # not DeltaTable.restore: that would undo the commits of other runs too
        old = DeltaTable(root.uri("scores"), version=before, storage_options=root.options("scores"))
        fence.commit(_reader(old, where), predicate=predicate, metadata={"compaction": "undone"})
        raise TableUnwritable(f"compaction of {run_id} gave {found[0]} rows for {rows}: the old ones were put back")
    after = _num_files(fence.handle, where)
    return Compaction(name=run_id, num_rows=rows, files_before=files, files_after=after)


def _compact_clips(root: TableRoot) -> Compaction:
    handle = root.open("clips")
    files = len(handle.file_uris())
    num_rows = handle.to_pyarrow_dataset().count_rows()
    if files <= 1:
        return Compaction(name="clips", num_rows=num_rows, files_before=files, files_after=files, skipped="one file")
    number = (handle.transaction_version(CLIPS_WRITER) or 0) + 1
    properties = CommitProperties(app_transactions=[Transaction(CLIPS_WRITER, number)])
    try:
        write_deltalake(handle, _reader(handle, None), mode="overwrite", commit_properties=properties)
    except STORE_ERRORS as error:
        # a writer of clips was faster, or the reply was lost: the log has either the old files or the new ones
        logger.info("clips not compacted: %s", describe(error))
        return Compaction(name="clips", num_rows=num_rows, files_before=files, files_after=files, skipped="in use")
    return Compaction(name="clips", num_rows=num_rows, files_before=files, files_after=len(handle.file_uris()))


def _reader(handle: DeltaTable, where: pc.Expression | None) -> pa.RecordBatchReader:
    dataset = handle.to_pyarrow_dataset()
    return dataset.scanner(filter=where).to_reader()


def _count(handle: DeltaTable, where: pc.Expression, key: str) -> tuple[int, int]:
    """Rows, and distinct keys among them."""
    rows = 0
    keys: set[str] = set()
    for batch in handle.to_pyarrow_dataset().to_batches(columns=[key], filter=where):
        rows += batch.num_rows
        keys.update(batch.column(0).to_pylist())
    return rows, len(keys)


def _num_files(handle: DeltaTable, where: pc.Expression) -> int:
    return sum(1 for _ in handle.to_pyarrow_dataset().get_fragments(filter=where))
