"""Rows that belong together under a name: labels taken in at once, the folds of an experiment, one fold's predictions.

A set is written as a whole by one fenced commit, so it is there entirely or not at all, and writing it again (a rerun
after a crash, a second driver) never doubles a row. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from angio_ray import __version__
from angio_ray.tables.fence import Fence, RunHeld
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.schema import arrow_schema, conform

__all__ = ["RunHeld", "SetDiffers", "check_set", "read_set", "write_set"]

logger = logging.getLogger(__name__)

Rows: TypeAlias = pa.Table | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What names a set of this table, and what names a row within it."""

    name: tuple[str, ...]
    key: tuple[str, ...]
    otherwise: Mapping[str, str | None] = field(default_factory=dict)
    """Parts of the name that need not be given."""


_KINDS = {
    "labels": _Kind(("label_set",), ("clip_id",)),
    "folds": _Kind(("fold_set",), ("fold", "clip_id")),
    "predictions": _Kind(("experiment", "model", "data", "fold"), ("clip_id",), {"data": "folds", "fold": None}),
    "metrics": _Kind(
        ("experiment", "model", "data"),
        ("scope", "fold", "subgroup", "subgroup_value", "metric", "cutoff", "compared_with"),
    ),
}
# the folds of a driver are threads: replacing two sets of one table at once would make one of them try again
_ONE_AT_A_TIME = threading.Lock()
_OPTIONAL = frozenset({"fold"})
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class SetDiffers(TablesError):
    """The name has other rows already, and they are not to be replaced."""


def write_set(root: TableRoot, table: str, rows: Rows, *, replace: bool = False, **name: str | int | None) -> int:
    """Writes the rows of one set in one commit, and returns how many that were: 0 where the same rows were there already.

    Args:
        root: the tables; this one must be there (`TableRoot.ensure`).
        table: labels | folds | predictions | metrics.
        rows: without the columns of the name, or with the same values in them. Times and the code version are filled in.
        replace: whether other rows under the name give way, in the same commit.
        **name: labels: label_set; folds: fold_set; predictions: experiment, model, data (the clips of the folds if not
            given) and fold (None if not given: a model of no single fold); metrics: experiment, model, data.

    Raises:
        SetDiffers: the name has other rows, and `replace` is false.
        RunHeld: another driver wrote other rows under the name at the same moment.
        ValueError: a key twice, not-a-number (null is what is not defined), a column that the schema does not have.
        TablesError: not a name (letters, digits, `.`, `_`, `+` and `-`), or the table is not there.
        TableUnwritable: the store or the table refused.
    """
    kind, name = _kind(table, name)
    fresh = _complete(table, kind, rows, name)
    with _ONE_AT_A_TIME:
        return _write(root, table, kind, fresh, replace, name)


def check_set(root: TableRoot, table: str, rows: Rows, **name: str | int | None) -> None:
    """Raises SetDiffers where the name has other rows, as `write_set` would: before work that would be in vain."""
    kind, name = _kind(table, name)
    stored = read_set(root, table, **name)
    if stored.num_rows and not _same(kind, stored, fresh := _complete(table, kind, rows, name)):
        raise SetDiffers(_difference(table, kind, name, stored, fresh))


def _write(
    root: TableRoot, table: str, kind: _Kind, fresh: pa.Table, replace: bool, name: Mapping[str, str | int | None]
) -> int:
    fence_name = "/".join("-" if name[part] is None else str(name[part]) for part in kind.name)
    fence = Fence(root, table, fence_name, uuid.uuid4().hex[:16])
    stored = _read(fence.handle, table, kind, name)
    if _same(kind, stored, fresh):
        return 0
    if stored.num_rows and not replace:
        raise SetDiffers(_difference(table, kind, name, stored, fresh))
    try:
        fence.commit(fresh, predicate=_predicate(kind, name) if stored.num_rows else None)
    except RunHeld:
        theirs = read_set(root, table, **name)
        if _same(kind, theirs, fresh):
            return 0
        if replace:
            raise
        raise SetDiffers(_difference(table, kind, name, theirs, fresh)) from None
    logger.debug("%s %s: %d rows", table, fence_name, fresh.num_rows)
    return fresh.num_rows


def read_set(root: TableRoot, table: str, **name: str | int | None) -> pa.Table:
    """The rows of one set in the table's schema, in the order of their keys; none where there is no such set.

    `name` as for `write_set`. Raises TablesError where the table is not there.
    """
    kind, name = _kind(table, name)
    return _sorted(kind, _read(root.open(table), table, kind, name))


def _kind(table: str, given: Mapping[str, str | int | None]) -> tuple[_Kind, dict[str, str | int | None]]:
    """The table's kind of set, and the whole name."""
    kind = _KINDS[table]
    name = {**kind.otherwise, **given}
    if set(name) != set(kind.name):
        raise TypeError(f"a set of {table} is named by {', '.join(kind.name)}, not by {', '.join(name)}")
    for part, value in name.items():
        if part in _OPTIONAL:
            if value is not None and (not isinstance(value, int) or value < 0):
                raise TablesError(f"{part} {value!r}: a number from 0, or none")
        elif not isinstance(value, str) or not _WORD.fullmatch(value):
            raise TablesError(f"{part} {value!r}: letters, digits, '.', '_', '+' and '-', at most 128")
    return kind, {part: name[part] for part in kind.name}


def _complete(table: str, kind: _Kind, rows: Rows, name: Mapping[str, str | int | None]) -> pa.Table:
    """The rows in the table's schema, checked. ValueError."""
    schema = arrow_schema(table)
    if not isinstance(rows, pa.Table):
        given = {column for row in rows for column in row}
        if unknown := sorted(given - set(schema.names)):  # from_pylist would drop them without a word
            raise ValueError(f"{table} has no column {', '.join(unknown)}")
        known = [field.with_nullable(True) for field in schema if field.name in given]
        rows = pa.Table.from_pylist([dict(row) for row in rows], pa.schema(known))
    filled: dict[str, Any] = dict(name)
    for part in kind.name:
        if part in rows.column_names and any(value != name[part] for value in pc.unique(rows[part]).to_pylist()):
            raise ValueError(f"rows of another {part} than {name[part]}")
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    filled |= {column: datetime.now(UTC) for column in times if column not in rows.column_names}
    if "code_version" in schema.names and "code_version" not in rows.column_names:
        filled["code_version"] = __version__
    for column, value in filled.items():
        field = schema.field(column)
        values = pa.array([value] * rows.num_rows, field.type)
        index = rows.schema.get_field_index(column)
        rows = rows.set_column(index, column, values) if index >= 0 else rows.append_column(column, values)
    complete = conform(table, rows)
    if not complete.num_rows:
        raise ValueError(f"no rows for {table}")
    for field in complete.schema:
        if pa.types.is_floating(field.type) and pc.any(pc.invert(pc.is_finite(complete[field.name]))).as_py():
            raise ValueError(f"{table}.{field.name} is not a finite number in a row: what is not defined is null")
    if complete.group_by(list(kind.key)).aggregate([]).num_rows < complete.num_rows:
        raise ValueError(f"two rows of {table} have one key ({', '.join(kind.key)})")
    return complete


def _read(handle: DeltaTable, table: str, kind: _Kind, name: Mapping[str, str | int | None]) -> pa.Table:
    wanted = pc.scalar(True)
    for part in kind.name:
        value = name[part]
        wanted = wanted & (pc.field(part).is_null() if value is None else pc.field(part) == value)
    names = set(handle.to_pyarrow_dataset().schema.names)
    columns = [column for column in arrow_schema(table).names if column in names]
    return conform(table, handle.to_pyarrow_dataset().to_table(columns=columns, filter=wanted))


def _sorted(kind: _Kind, rows: pa.Table) -> pa.Table:
    return rows.sort_by([(column, "ascending") for column in kind.key]).combine_chunks()


def _content(kind: _Kind, rows: pa.Table) -> pa.Table:
    """What makes two sets the same: all but times and the version of the code."""
    aside = [field.name for field in rows.schema if pa.types.is_timestamp(field.type) or field.name == "code_version"]
    return _sorted(kind, rows.drop_columns(aside))


def _same(kind: _Kind, one: pa.Table, other: pa.Table) -> bool:
    return one.num_rows == other.num_rows and _content(kind, one).equals(_content(kind, other))


def _difference(
    table: str, kind: _Kind, name: Mapping[str, str | int | None], stored: pa.Table, fresh: pa.Table
) -> str:
    keys = list(kind.key)
    there = stored.select(keys).append_column("stored", pa.array([True] * len(stored)))
    given = fresh.select(keys).append_column("fresh", pa.array([True] * len(fresh)))
    both = there.join(given, keys, join_type="full outer")
    gone, new = both["fresh"].null_count, both["stored"].null_count
    changed = [
        column
        for column in _content(kind, stored).column_names
        if not (gone or new or _sorted(kind, stored)[column].equals(_sorted(kind, fresh)[column]))
    ]
    what = f"{new} new and {gone} gone" if gone or new else f"other values of {', '.join(changed)}"
    said = ", ".join(f"{part} {value}" for part, value in name.items() if value is not None)
    return (
        f"{table}: {said} is there with other rows ({stored.num_rows}; now {fresh.num_rows}: {what}): take another name"
    )


def _predicate(kind: _Kind, name: Mapping[str, str | int | None]) -> str:
    tests = []
    for part in kind.name:
        value = name[part]
        if value is None:
            tests.append(f"{part} IS NULL")
        else:
            tests.append(f"{part} = {value}" if isinstance(value, int) else f"{part} = '{value}'")  # _WORD: no quotes
    return " AND ".join(tests)
