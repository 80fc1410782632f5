"""SQL over the tables: DuckDB on one snapshot of each Delta table, with the ready-made views of `views*.sql`.

Read-only in effect: no file, network or extension can be reached from a query. Knows nothing of how rows came about.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from datetime import date, datetime
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from angio_ray.tables.root import STORE_ERRORS, TableRoot, TablesError, describe, missing_columns
from angio_ray.tables.schema import TRAINING, empty
from angio_ray.views import VIEWS

logger = logging.getLogger(__name__)

Format = Literal["table", "csv", "json", "parquet"]

_WITHOUT_CLIPS = """
CREATE VIEW study_days AS SELECT NULL::VARCHAR AS study_id, NULL::INTEGER AS days_since_first_study WHERE false;
CREATE VIEW pixel_sizes AS SELECT NULL::VARCHAR AS object_id, NULL::DOUBLE AS row_mm, NULL::DOUBLE AS column_mm WHERE false;
"""
_SHOWN_ROWS = 200


class SqlError(TablesError):
    """The query is wrong or not allowed: one clear line."""


def connect(root: TableRoot) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the tables as they are now, and the views.

    Where the root of `clips` cannot be reached, `clips` and `manifests` are missing and the views work without them.
    Raises TablesError when `scores` or `runs` is not there, cannot be read or is of an older release.
    """
    connection = duckdb.connect(":memory:", config={"python_enable_replacements": "false"})
    try:
        for table in ("scores", "runs"):
            handle = root.open(table)
            if missing := missing_columns(table, handle):  # the views name them
                raise TablesError(
                    f"{root.uri(table)} is of an older release (no column {', '.join(missing)}): run `angio-ray tables upgrade`"
                )
            connection.register(table, handle.to_pyarrow_dataset())
        for table in TRAINING:
            try:
                connection.register(table, root.open(table).to_pyarrow_dataset())
            except TablesError:  # nothing was trained yet
                connection.register(table, empty(table))
    except STORE_ERRORS as error:
        raise TablesError(f"the tables cannot be read: {describe(error)}") from None
    has_clips = True
    for table in ("clips", "manifests"):
        try:
            connection.register(table, root.open(table).to_pyarrow_dataset())
        except (TablesError, *STORE_ERRORS):
            logger.debug("no %s: views without it", table)
            has_clips = False
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(_text("views_clips.sql") if has_clips else _WITHOUT_CLIPS)
    connection.execute('CREATE TABLE standard_views (artery VARCHAR, "view" VARCHAR, primary_deg DOUBLE, secondary_deg DOUBLE)')
    middles = [(artery, name, *angles) for artery, views in VIEWS.items() for name, angles in views.items()]
    connection.executemany("INSERT INTO standard_views VALUES (?, ?, ?, ?)", middles)
    connection.execute(_text("views.sql"))
    connection.execute(_text("views_training.sql"))
    # last, since it cannot be taken back: a query reads what is registered and nothing else
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(root: TableRoot, sql: str) -> pa.Table:
    """The result of one query over a fresh snapshot. Raises SqlError or TablesError, one line each."""
    with connect(root) as connection:
        try:
            result = connection.sql(sql)
            return result.to_arrow_table() if result is not None else pa.table({})
        except duckdb.Error as error:
            raise SqlError(_one_line(error)) from None


def write_result(table: pa.Table, format: Format = "table", out: Path | IO[Any] | None = None) -> None:
    """Writes a result: to the path, or the stream (binary for parquet), or standard output.

    `table` is for people (wide cells folded, the first 200 rows); csv holds nested values as JSON; json is one array
    with a row a line; map columns become objects in both.
    """
    if isinstance(out, Path):
        binary = format == "parquet"
        with open(out, "wb" if binary else "w", encoding=None if binary else "utf-8", newline=None) as file:
            write_result(table, format, file)
        return
    if format == "parquet":
        pq.write_table(table, pa.PythonFile(out or sys.stdout.buffer, mode="w"))
        return
    stream = out or sys.stdout
    if format == "csv":
        _write_csv(table, stream)
    elif format == "json":
        _write_json(table, stream)
    else:
        _write_table(table, stream)


def _write_csv(table: pa.Table, stream: IO[str]) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow(["" if value is None else _cell(value) for value in row])


def _write_json(table: pa.Table, stream: IO[str]) -> None:
    lines = (json.dumps(dict(zip(table.column_names, row, strict=True)), ensure_ascii=False) for row in _rows(table))
    stream.write("[")
    for number, line in enumerate(lines):
        stream.write(("," if number else "") + "\n" + line)
    stream.write("\n]\n")


def _write_table(table: pa.Table, stream: IO[str]) -> None:
    console = Console(file=stream)
    if not stream.isatty():
        console.width = 10_000  # a pipe or a file has no width: no cell is folded
    view = Table(box=None if not stream.isatty() else Table().box, header_style="bold")
    for field in table.schema:
        numeric = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        view.add_column(field.name, justify="right" if numeric else "left", overflow="fold")
    for row in _rows(table.slice(0, _SHOWN_ROWS)):
        # Text: a cell is never read as markup
        view.add_row(*(Text("" if value is None else _cell(value, digits=4)) for value in row))
    if table.num_columns:
        console.print(view)
    if table.num_rows > _SHOWN_ROWS:
        console.print(f"... {table.num_rows - _SHOWN_ROWS} more rows (csv, json and parquet hold all)")


def _rows(table: pa.Table) -> Any:
    maps = [pa.types.is_map(field.type) for field in table.schema]
    for batch in table.to_batches(max_chunksize=4096):
        columns = [column.to_pylist() for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield [_plain(dict(value) if is_map and value else value) for value, is_map in zip(row, maps, strict=True)]


def _plain(value: Any) -> Any:
    """A value that JSON can hold: times as ISO text, not-a-number as null."""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _cell(value: Any, digits: int | None = None) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and digits is not None:
        return f"{value:.{digits}g}"
    return str(value)


def _text(name: str) -> str:
    return files("angio_ray.tables").joinpath(name).read_text("utf-8")


def _one_line(error: duckdb.Error) -> str:
    # DuckDB's message, without the picture of the query that follows
    return " ".join(line.strip() for line in str(error).split("\n\n")[0].splitlines() if line.strip())
