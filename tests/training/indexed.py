"""A `clips` table for tests: rows as `index` makes them, from headers, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from angio_ray.clip import ClipHeader
from angio_ray.dicom.reader import ClipReader
from angio_ray.pseudonyms import PatientIdentity, PseudonymKey
from angio_ray.scoring.rows import clip_rows, decoded_schema, header_struct
from angio_ray.storage import Storage
from angio_ray.tables.clip_log import ClipLog
from angio_ray.tables.root import TableRoot
from angio_ray.tables.schema import TABLES

KEY = PseudonymKey(bytes(range(32)))


def new_root(folder: Path) -> TableRoot:
    """All tables, empty."""
    folder.mkdir(exist_ok=True)
    root = TableRoot(Storage(str(folder)))
    root.ensure(KEY.fingerprint, TABLES)
    return root


def add_clips(root: TableRoot, clips: Sequence[dict[str, Any]]) -> None:
    """Appends clips: dicts of header fields with `uri`, and `reason` where the object was rejected."""
    rows = []
    for clip in clips:
        facts = dict(clip)
        uri, reason, etag = facts.pop("uri"), facts.pop("reason", None), facts.pop("etag", "e1")
        header = header_struct(ClipHeader(**facts)) if facts else None
        rows.append(
            {
                "object_id": KEY.object_id(uri),
                "uri": uri,
                "etag": etag,
                "size_bytes": 1,
                "header": header,
                "reason": reason,
            }
        )
    _append(root, rows)


def index_folder(root: TableRoot, folder: Path) -> None:
    """Appends the header facts of the real objects in a folder."""
    storage, rows = Storage(str(folder)), []
    with ClipReader(()) as reader:
        for page in storage.list():
            for info in page:
                outcome = reader.index(storage.open(info))
                row = asdict(info) | {"header": header_struct(outcome.header), "reason": outcome.reason}
                rows.append(row | {"object_id": KEY.object_id(info.uri)})
    _append(root, rows)


def _append(root: TableRoot, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, decoded_schema(()))
    ClipLog(root).append(clip_rows(table, key=KEY, patients=PatientIdentity(KEY)))
