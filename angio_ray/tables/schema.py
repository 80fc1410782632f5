"""The columns of every table, read from `schemas/*.json` (Delta's own schema format, unit and comment per field).

Gives them as Arrow schemas, empty tables and Markdown. Knows no Delta table and no storage: workers import it too.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa

SCORING = ("scores", "clips", "runs", "manifests")
"""Tables that every project has."""

TRAINING = ("labels", "folds", "predictions", "metrics")
"""Tables that a project gets when it trains or evaluates."""

TABLES = SCORING + TRAINING

_PRIMITIVES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "long": pa.int64(),
    "integer": pa.int32(),
    "double": pa.float64(),
    "float": pa.float32(),
    "boolean": pa.bool_(),
    "binary": pa.binary(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


@cache
def declaration(table: str) -> dict[str, Any]:
    """The table's JSON file: `description`, `fields`, `constraints` (name -> SQL), for scores also `reasons`."""
    if table not in TABLES:
        raise ValueError(f"no table {table!r}: one of {', '.join(TABLES)}")
    text = files("angio_ray").joinpath("schemas", f"{table}.json").read_text("utf-8")
    return dict(json.loads(text))


@cache
def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table, comment and unit in each field's metadata."""
    return pa.schema([_field(field) for field in declaration(table)["fields"]])


def delta_json(table: str) -> str:
    """The table's schema as Delta's log stores it."""
    return json.dumps({"type": "struct", "fields": declaration(table)["fields"]})


def empty(table: str) -> pa.Table:
    """A table of no rows with all columns."""
    return arrow_schema(table).empty_table()


def conform(table: str, rows: pa.Table) -> pa.Table:
    """`rows` with exactly the declared columns, in order and type; absent nullable columns are filled with null.

    Raises ValueError for a column that the schema does not have, a null where none may be, or a lossy type.
    """
    schema = arrow_schema(table)
    unknown = sorted(set(rows.column_names) - set(schema.names))
    if unknown:
        raise ValueError(f"{table} has no column {', '.join(unknown)}")
    columns = []
    for field in schema:
        index = rows.schema.get_field_index(field.name)
        if index < 0:
            column: Any = pa.nulls(rows.num_rows, field.type)
        else:
            try:
                column = rows.column(index).cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                given = rows.schema.field(index).type
                raise ValueError(f"{table}.{field.name}: {given} is not {field.type}") from error
        if not field.nullable and column.null_count:
            raise ValueError(f"{table}.{field.name} is null in {column.null_count} rows")
        columns.append(column)
    return pa.table(columns, schema=schema)


def markdown(table: str) -> str:
    """The table's columns as a Markdown table, for the README; scores also gets its reasons."""
    parts = declaration(table)
    lines = [parts["description"], "", "| column | type | unit | meaning |", "|---|---|---|---|"]
    for field in parts["fields"]:
        meta = field["metadata"]
        null = "" if field["nullable"] else ", never null"
        meaning = meta["comment"].replace("|", "\\|")
        lines.append(f"| `{field['name']}` | {_type_text(field['type'])}{null} | {meta.get('unit', '')} | {meaning} |")
    if "reasons" in parts:
        lines += ["", "| reason | meaning |", "|---|---|"]
        lines += [f"| `{code}` | {meaning} |" for code, meaning in parts["reasons"].items()]
    return "\n".join(lines) + "\n"


def _field(field: dict[str, Any]) -> pa.Field:
    return pa.field(field["name"], _arrow_type(field["type"]), nullable=field["nullable"], metadata=field["metadata"])


def _arrow_type(kind: str | dict[str, Any]) -> pa.DataType:
    if isinstance(kind, str):
        return _PRIMITIVES[kind]
    if kind["type"] == "array":
        # "element": the name that delta-rs gives; another name would make every append a schema change
        return pa.list_(pa.field("element", _arrow_type(kind["elementType"]), nullable=kind["containsNull"]))
    if kind["type"] == "map":
        value = pa.field("value", _arrow_type(kind["valueType"]), nullable=kind["valueContainsNull"])
        return pa.map_(_arrow_type(kind["keyType"]), value)
    return pa.struct([_field(field) for field in kind["fields"]])


def _type_text(kind: str | dict[str, Any]) -> str:
    if isinstance(kind, str):
        return kind
    if kind["type"] == "array":
        return f"list of {_type_text(kind['elementType'])}"
    if kind["type"] == "map":
        return f"map of {_type_text(kind['keyType'])} to {_type_text(kind['valueType'])}"
    return "(" + ", ".join(f"{field['name']} {_type_text(field['type'])}" for field in kind["fields"]) + ")"


def document() -> str:
    """All tables as `docs/tables.md`; made by `python -m angio_ray.tables.schema > docs/tables.md`, kept true by a test."""
    how = "Made from `schemas/` by `python -m angio_ray.tables.schema`. Null means: not known or not asked for."
    head = f"# The tables\n\n{how}\n"
    return head + "".join(f"\n## {table}\n\n{markdown(table)}" for table in TABLES)


if __name__ == "__main__":
    print(document(), end="")
