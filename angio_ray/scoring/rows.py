"""The rows between the stages and out of the run, each in one fixed Arrow schema.

Fixed, since a block of rejects only (all inputs null) must look like any other to Ray Data, and the tables refuse surprises.
Inputs travel as nullable `large_binary` with their shape beside them, never as tensor columns. The driver alone turns original
identifiers into pseudonyms (`result_rows`), so the key never leaves it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from angio_ray import __version__
from angio_ray.clip import ClipHeader, ClipRejected, Reason
from angio_ray.models import TASKS
from angio_ray.models.interface import SideObject
from angio_ray.pseudonyms import PatientIdentity, PseudonymKey
from angio_ray.sampling import ClipWindow
from angio_ray.storage import Storage
from angio_ray.tables.schema import arrow_schema
from angio_ray.views import view_of

KEYS = pa.schema([("object_id", pa.string()), ("uri", pa.string()), ("size_bytes", pa.int64()), ("etag", pa.string())])
"""One object to score: what a block of the source holds."""

_HEADER = pa.struct([arrow_schema("clips").field(f.name) for f in fields(ClipHeader)])
_DECODED = [
    *KEYS,
    pa.field("changed", pa.bool_()),  # since the manifest was made
    pa.field("header", _HEADER),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("codec", pa.string()),
    pa.field("content_sha256", pa.string()),
    pa.field("sampled_frames", pa.list_(pa.int32())),
    pa.field("repeated_frames", pa.int32()),
    pa.field("fetch_ms", pa.float64()),
    pa.field("decode_ms", pa.float64()),
]


def decoded_schema(windows: Sequence[ClipWindow]) -> pa.Schema:
    """Rows out of the decode stage: keys, header, reason, and for each window `input_<name>` (T*H*W bytes), its shape
    and the file's frames that it shows, without those that only fill it up."""
    inputs = []
    for window in windows:
        inputs.append(pa.field(f"input_{window.name}", pa.large_binary()))
        inputs.append(pa.field(f"shape_{window.name}", pa.list_(pa.int32())))
        inputs.append(pa.field(f"frames_{window.name}", pa.list_(pa.int32())))
    return pa.schema([*_DECODED, *inputs])


def task_columns(tasks: Sequence[str]) -> list[str]:
    """Columns of `scores` that the given tasks fill, in the table's order."""
    wanted = {c for task in tasks for c in (f"{task}_status", f"{task}_reason", *TASKS[task].columns)}
    return [name for name in arrow_schema("scores").names if name in wanted]


def scored_schema(tasks: Sequence[str]) -> pa.Schema:
    """Rows out of the scoring actors: as decoded, without inputs, with the tasks' columns."""
    scores = arrow_schema("scores")
    return pa.schema(
        [
            *_DECODED,
            pa.field("status", pa.string()),
            pa.field("model_domain", pa.string()),
            pa.field("model_ms", pa.float64()),
            *(scores.field(name) for name in task_columns(tasks)),
            *(pa.field(side.column, pa.binary()) for side in _sides(tasks)),
        ]
    )


def _sides(tasks: Sequence[str]) -> list[SideObject]:
    return [side for task in tasks for side in TASKS[task].side_objects]


def side_objects(table: pa.Table, place: Storage, run_id: str) -> tuple[pa.Table, dict[str, bytes]]:
    """Files to write before the rows of a block (of `scored_schema`) are committed, by URI, and the rows that name them.

    A file's name follows from run and object, so a row that is computed again has the same.
    """
    files: dict[str, bytes] = {}
    for side in [side for side in _sides(list(TASKS)) if side.column in table.column_names]:
        lists = table[side.list_column].to_pylist()
        for object_id, items, data in zip(
            table["object_id"].to_pylist(), lists, table[side.column].to_pylist(), strict=True
        ):
            if data is not None:
                uri = place.child("masks", run_id, object_id + side.suffix)
                items[0][side.uri_field] = uri
                files[uri] = data
        where = table.column_names.index(side.list_column)
        field = table.schema.field(where)
        table = table.set_column(where, field, pa.array(lists, field.type)).drop_columns([side.column])
    return table, files


def header_struct(header: ClipHeader | None) -> dict[str, Any] | None:
    """A header as the value of the struct column. ClipRejected where it holds what no table can."""
    if header is None:
        return None
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(header).items()}
    try:
        pa.array([values], _HEADER)  # here it costs one clip, later the whole block
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        raise ClipRejected(Reason.HEADER_INVALID, "a header value that no table can hold") from None
    return values


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is the same on every row of a run."""

    run_id: str
    bundles: Mapping[str, str]
    backend: str
    precision: str


def _identity(header: Mapping[str, Any], key: PseudonymKey, patients: PatientIdentity) -> dict[str, Any]:
    """Pseudonyms of one header."""
    identity = patients.identify(ClipHeader(**header))
    return {
        "clip_id": key.clip_id(header["sop_instance_uid"]) if header["sop_instance_uid"] else None,
        "study_id": identity.study_id,
        "patient_id": identity.patient_id,
        "patient_fallback": identity.flag is not None,
    }


def result_rows(
    table: pa.Table, *, facts: RunFacts, key: PseudonymKey, patients: PatientIdentity, attempts: int
) -> tuple[pa.Table, pa.Table]:
    """Rows of `scores` and of `clips` for a block of scored rows."""
    now = datetime.now(UTC)
    names = arrow_schema("scores").names
    clips = clip_rows(table, key=key, patients=patients)
    scores = []
    for row, known in zip(table.to_pylist(), clips.to_pylist(), strict=True):
        rejected = row["status"] == "rejected"
        year = re.match(r"[0-9]{4}", known["study_date"] or "")
        values = {**known, **row, **_view(row), "reason": row["reason"], "detail": row["detail"]}
        scores.append(
            {name: values.get(name) for name in names}
            | {
                "run_id": facts.run_id,
                "study_year": int(year[0]) if year else None,
                "etag": key.hash("etag", row["etag"]),  # the store's may hold a time or a digest of the bytes
                "code_version": __version__,
                "scored_at": now,
                "attempts": attempts,
                "bundles": None if rejected else list(facts.bundles.items()),
                "backend": None if rejected else facts.backend,
                "precision": None if rejected else facts.precision,
            }
        )
    return pa.Table.from_pylist(scores, schema=arrow_schema("scores")), clips


def _view(row: Mapping[str, Any]) -> dict[str, Any]:
    """The view of a clip whose artery was told, and whether a clip whose side was told disagrees with its angles."""
    header = row["header"]
    if not header:
        return {}
    view, suspect = view_of({**header, "artery": row.get("artery"), "oblique": row.get("oblique")})
    found: dict[str, Any] = {"view_suspect": suspect}
    return found | ({"view": view.name, "view_distance_deg": view.distance_deg} if view else {})


def clip_rows(table: pa.Table, *, key: PseudonymKey, patients: PatientIdentity) -> pa.Table:
    """Rows of `clips` for a block of decoded or scored rows: header facts, originals, pseudonyms."""
    now = datetime.now(UTC)
    schema = arrow_schema("clips")
    names = set(schema.names)
    clips = []
    for row in table.to_pylist():
        header = row.pop("header")
        known = {**header, **_identity(header, key, patients)} if header else {}
        clips.append({name: value for name, value in (known | row).items() if name in names} | {"indexed_at": now})
    return pa.Table.from_pylist(clips, schema=schema)
