"""Labels from a CSV or Parquet file, joined with the clips that the tables know. Nothing is dropped without being listed.

A label file has one row per clip: a column that names the clip and any of the label columns.

    names the clip   clip_id (pseudonym) | sop_instance_uid | uri | path; several may be given, then they must agree.
                     A relative uri or path is below the label file's own folder.
    patient_id       optional, the original PatientID: clips that share it stay on one side of every split
    quality          satisfactory | unsatisfactory
    artery           LCA | RCA
    quality_class, view                 words of up to 64 letters, digits, spaces and . _ / + -
    first_contrast, contrast_begin, contrast_end, last_contrast, best_frame    frames, from 0 in the file's own
    heart_period_frames                 frames
    calcified, synthetic                true | false (also yes, no, 1, 0)
    stenoses         list of (segment, percent, length_mm, frame, x0, y0, x1, y1); in CSV the same as JSON
    calcification_masks, vessel_masks    list of (frame, png), the bytes of a PNG, one of a frame; in CSV as JSON (frame, path), a
                     path below the label file's folder

That is what the phantom's `labels.parquet` has. Other columns are named and not read. CSV: UTF-8; comma, semicolon or
tab. Knows nothing of pixels, models or Ray; what it says of a clip is a line number and pseudonyms.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from angio_ray.pseudonyms import PseudonymKey, is_placeholder
from angio_ray.storage import Storage, canonical_uri
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import check_set, read_set, write_set
from angio_ray.tables.schema import arrow_schema
from angio_ray.training.named_frames import worst_class

KEY_COLUMNS = ("clip_id", "sop_instance_uid", "uri", "path")
"""Columns that name the clip."""

TARGETS: dict[str, tuple[str, Any]] = {
    "quality": ("quality", "unsatisfactory"),
    "artery": ("artery", "RCA"),
    "calcium": ("calcified", True),
    "oblique": ("view", "LAO"),
}
"""Task -> the column of its label, and the value that is the positive class; of a view its first word."""
_OBLIQUES = ("LAO", "RAO")
"""First words of views from either side; those from the middle are no label of `oblique`."""
FRAME_TARGETS = {"contrast": ("first_contrast", "contrast_begin", "contrast_end", "last_contrast")}
"""Task with a class per frame -> the columns that say which frames have which: the middle two, or the outer two where no
frame is full."""

_NAMED_FRAMES = "stenosis"
"""The task that is taught on frames of full contrast, each with the class of the clip's worst narrowing."""

_LABELS = arrow_schema("labels")
LABEL_COLUMNS = tuple(
    name
    for name in _LABELS.names
    if name not in ("label_set", "clip_id", "patient_id", "study_id", "group_id", "synthetic", "origin", "added_at")
)
"""What a label says of a clip, in the order of the table `labels`."""

LABELLED = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string()),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("acquisition_id", pa.string(), nullable=False),
        pa.field("plane", pa.string()),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("rows", pa.int32()),
        pa.field("columns", pa.int32()),
        pa.field("num_frames", pa.int32()),
        pa.field("frame_time_ms", pa.float64()),
        pa.field("imager_pixel_spacing_mm", pa.list_(pa.float64())),
        pa.field("distance_source_to_detector_mm", pa.float64()),
        pa.field("distance_source_to_patient_mm", pa.float64()),
        *(_LABELS.field(name).remove_metadata() for name in LABEL_COLUMNS),
    ]
)
"""One labelled clip: where it lies, whose it is, what the label says. Holds URIs: not for a result table."""


class LabelError(ValueError):
    """The label file cannot be used: one clear line, and never a value from it."""


class Kind(StrEnum):
    """What was found in joining labels with clips."""

    NO_KEY = "no_key"
    """The row names no clip. Left out."""
    INVALID_VALUE = "invalid_value"
    """A cell is not what its column holds. The row is left out."""
    UNKNOWN_CLIP = "unknown_clip"
    """No such clip in `clips` (or not under the source). Left out."""
    KEYS_DISAGREE = "keys_disagree"
    """The row's key columns name two clips. Left out."""
    UNREADABLE_CLIP = "unreadable_clip"
    """`clips` has a reason in place of the clip's header. Left out."""
    NO_FRAMES = "no_frames"
    """The task is taught on frames of full contrast, and those of the clip, or its class, are not known. Left out of it."""
    NO_PATIENT = "no_patient"
    """The header names neither patient nor study, so the clip cannot be kept on one side. Left out."""
    CONFLICT = "conflict"
    """Rows of one clip that contradict each other. All of them are left out."""
    DUPLICATE = "duplicate"
    """A further row of a clip that contradicts nothing. Taken together with the first."""
    UNLABELLED = "unlabelled"
    """A readable clip without a label."""
    COPY = "copy"
    """The labelled clip lies under several URIs. One of them is read."""
    PATIENT_DIFFERS = "patient_differs"
    """The file's patient_id is not the header's. Kept; both patients stay on one side."""
    JOINED_PATIENTS = "joined_patients"
    """Several patients that a shared study, clip or patient_id of the file joins. Kept; they stay on one side."""


LEFT_OUT = frozenset(
    {
        Kind.NO_KEY,
        Kind.INVALID_VALUE,
        Kind.UNKNOWN_CLIP,
        Kind.KEYS_DISAGREE,
        Kind.UNREADABLE_CLIP,
        Kind.NO_PATIENT,
        Kind.CONFLICT,
    }
)
"""Kinds that cost a row of the label file."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing, without original identifiers."""

    kind: Kind
    line: int | None
    """Of the label file: the line of a CSV (its header is 1), the row of a Parquet file from 1. None: not of a row."""
    pseudonym: str | None
    """clip_id, where the row names a clip; object_id, where only a URI; for joined patients the group_id."""
    detail: str = ""
    """Names of columns, counts, reason codes: no cell of the file."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row of a label file, checked."""

    line: int
    keys: Mapping[str, str]
    """The KEY_COLUMNS that it fills, uri and path made absolute."""
    patient_id: str | None
    """The original, None for an empty cell and for a placeholder such as ANON."""
    synthetic: bool | None
    values: Mapping[str, Any]
    """The LABEL_COLUMNS that it fills."""
    group_id: str | None = None
    """Of a stored set: clips that were on one side then stay on one side."""


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A label file as read."""

    rows: tuple[LabelRow, ...]
    num_rows: int
    """Rows of the file, with those left out."""
    findings: tuple[Finding, ...]
    """Rows left out so far: no_key, invalid_value."""
    ignored_columns: tuple[str, ...]
    """Columns that mean nothing here."""


@dataclass(frozen=True, slots=True)
class LabelJoin:
    """The labelled clips, and all that did not fit."""

    clips: pa.Table
    """One row per clip, schema LABELLED, sorted by clip_id."""
    num_rows: int
    """Rows of the label file."""
    findings: tuple[Finding, ...]
    ignored_columns: tuple[str, ...]

    @property
    def counts(self) -> Counter[str]:
        """Findings by kind."""
        return Counter(str(finding.kind) for finding in self.findings)

    def report(self, listed: int = 5) -> list[str]:
        """What to tell the user: totals, then a line per kind of finding with the first few of them."""
        groups = len(set(self.clips["group_id"].to_pylist()))
        quality = Counter(self.clips["quality"].to_pylist())
        classes = ", ".join(f"{n:,} {word or 'without quality'}" for word, n in sorted(quality.items(), key=str))
        lines = [f"labels: {self.num_rows:,} rows, {len(self.clips):,} clips of {groups:,} patients ({classes})"]
        for kind in Kind:
            found = [finding for finding in self.findings if finding.kind == kind]
            if found:
                what = f"{len(found):,} {kind}{' (left out)' if kind in LEFT_OUT else ''}"
                more = ", ..." if len(found) > listed else ""
                lines.append(f"  {what}: {', '.join(_said(finding) for finding in found[:listed])}{more}")
        if self.ignored_columns:
            lines.append(f"  columns not read: {', '.join(self.ignored_columns)}")
        return lines

    def findings_csv(self) -> str:
        """All findings as CSV: kind, line, pseudonym, detail."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("kind", "line", "pseudonym", "detail"))
        for finding in self.findings:
            writer.writerow((finding.kind, finding.line, finding.pseudonym, finding.detail))
        return text.getvalue()


# -- a set of the tables ---------------------------------------------------------------------------------------------


def label_sets(root: TableRoot) -> set[str]:
    """Names of the sets in `labels`."""
    if not root.exists("labels"):
        return set()
    names = root.open("labels").to_pyarrow_dataset().to_table(columns=["label_set"])
    return set(pc.unique(names["label_set"]).to_pylist())


def stored_labels(root: TableRoot, name: str) -> LabelFile:
    """A set of the table `labels`, as if it were a file: `line` is a row's number in the order of clip_id, from 1."""
    rows = []
    for line, row in enumerate(read_set(root, "labels", label_set=name).to_pylist(), start=1):
        values = {column: row[column] for column in LABEL_COLUMNS if row[column] is not None}
        rows.append(LabelRow(line, {"clip_id": row["clip_id"]}, None, row["synthetic"], values, row["group_id"]))
    return LabelFile(tuple(rows), len(rows), (), ())


def names_a_file(text: str) -> bool:
    """Whether what was given for labels is meant as a file, not as the name of a set."""
    return bool(re.search(r"[/\\]|\.(csv|tsv|txt|parquet)$", text, re.IGNORECASE)) or Path(text).exists()


# -- the file --------------------------------------------------------------------------------------------------------


def read_label_file(uri: str | Path) -> LabelFile:
    """Read a CSV or Parquet file of labels from a folder or s3://.

    Raises LabelError where it is missing, neither of the two, or has no column that names a clip or no label column;
    StorageUnavailable where the store does not answer. Rows at fault are findings, not errors.
    """
    place = canonical_uri(uri)
    folder, _, name = place.rpartition("/")
    try:
        data = Storage(folder or "/").read_bytes(place)
    except FileNotFoundError:
        raise LabelError(f"there is no label file {uri}") from None
    records = _parquet(data, name) if data[:4] == b"PAR1" else _csv(data, name)
    columns = records.columns
    if not set(columns) & set(KEY_COLUMNS):
        raise LabelError(f"{name} has no column that names a clip: one of {', '.join(KEY_COLUMNS)}")
    if not set(columns) & set(LABEL_COLUMNS):
        raise LabelError(f"{name} has no label column: one of {', '.join(LABEL_COLUMNS)}")
    rows: list[LabelRow] = []
    findings: list[Finding] = []
    num_rows = 0
    for line, record in records.rows:
        num_rows += 1
        outcome = _row(line, record, folder)
        if isinstance(outcome, LabelRow):
            rows.append(outcome)
        else:
            findings.append(outcome)
    known = {*KEY_COLUMNS, *LABEL_COLUMNS, "patient_id", "synthetic"}
    ignored = tuple(column for column in columns if column not in known)
    return LabelFile(tuple(rows), num_rows, tuple(findings), ignored)


@dataclass(frozen=True, slots=True)
class _Records:
    columns: tuple[str, ...]
    rows: Iterable[tuple[int, Mapping[Any, Any]]]


def _parquet(data: bytes, name: str) -> _Records:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        raise LabelError(f"{name} is not a readable Parquet file") from None
    table = table.rename_columns(_columns(table.column_names, name))
    return _Records(tuple(table.column_names), enumerate(table.to_pylist(), start=1))


def _csv(data: bytes, name: str) -> _Records:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LabelError(f"{name} is neither Parquet nor UTF-8 text") from None
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        columns = _columns(next(reader, []), name)
        rows: list[tuple[int, Mapping[Any, Any]]] = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                named: dict[Any, Any] = dict(zip(columns, cells, strict=False))
                if any(cell.strip() for cell in cells[len(columns) :]):
                    named[None] = ""  # the row is at fault
                rows.append((reader.line_num, named))
    except csv.Error:
        raise LabelError(f"{name} is not a readable CSV file (line {reader.line_num})") from None
    return _Records(tuple(columns), rows)


def _columns(given: Sequence[str], name: str) -> list[str]:
    columns = [column.strip().lower() for column in given]
    if twice := sorted(column for column, n in Counter(columns).items() if column and n > 1):
        raise LabelError(f"{name} has two columns {', '.join(twice)}")
    # a spreadsheet leaves nameless columns behind
    return [column or f"column {number}" for number, column in enumerate(columns, start=1)]


def _row(line: int, record: Mapping[Any, Any], folder: str) -> LabelRow | Finding:
    if None in record:
        return Finding(Kind.INVALID_VALUE, line, None, "more cells than columns")
    cells = {column: _plain(value) for column, value in record.items()}
    faults = []
    keys: dict[str, str] = {}
    values: dict[str, Any] = {}
    for column in KEY_COLUMNS:
        if (cell := cells.get(column)) is not None:
            try:
                keys[column] = _key(column, str(cell), folder)
            except ValueError:
                faults.append(column)
    for column in (*LABEL_COLUMNS, "synthetic"):
        if (cell := cells.get(column)) is not None:
            try:
                values[column] = _masks(cell, folder) if column in MASKS else _PARSERS[column](cell)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, FileNotFoundError):
                faults.append(column)
    frames = [values[column] for column in FRAME_TARGETS["contrast"] if column in values]
    if frames != sorted(frames):  # contrast comes, is full and goes
        faults += [column for column in FRAME_TARGETS["contrast"] if column in values]
    if faults:
        return Finding(Kind.INVALID_VALUE, line, None, ", ".join(faults))
    if not keys:
        return Finding(Kind.NO_KEY, line, None)
    patient = cells.get("patient_id")
    patient = None if patient is None or is_placeholder(str(patient)) else str(patient)
    return LabelRow(line, keys, patient, values.pop("synthetic", None), values)


def _plain(value: Any) -> Any:
    """A cell without padding; None where it is empty (also not-a-number: how pandas writes a missing number)."""
    if isinstance(value, str):
        return value.strip(" \0\t\r\n") or None
    return None if isinstance(value, float) and math.isnan(value) else value


def _key(column: str, cell: str, folder: str) -> str:
    if column not in ("uri", "path"):
        return cell
    absolute = cell.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", cell)
    return canonical_uri(cell if absolute else f"{folder}/{cell}")


def _one_of(*words: str) -> Callable[[Any], str]:
    known = {word.casefold(): word for word in words}
    return lambda cell: known[cell.casefold()]


def _word(cell: Any) -> str:
    if not isinstance(cell, str) or not re.fullmatch(r"[A-Za-z0-9 ._/+-]{1,64}", cell):
        raise ValueError
    return cell


def _number(cell: Any) -> float:
    if isinstance(cell, bool) or not math.isfinite(number := float(cell)):
        raise ValueError
    return number


def _frame(cell: Any) -> int:
    number = _number(cell)
    if number != int(number) or not 0 <= number < 2**31:
        raise ValueError
    return int(number)


def _yes_or_no(cell: Any) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(cell).casefold()]


def _stenoses(cell: Any) -> list[dict[str, Any]]:
    parse = {"segment": _word, "frame": _frame}
    kept = []
    for stenosis in json.loads(cell) if isinstance(cell, str) else cell:
        if set(stenosis) - set(_STENOSIS):
            raise ValueError
        filled = {name: value for name, value in stenosis.items() if _plain(value) is not None}
        kept.append(dict.fromkeys(_STENOSIS) | {name: parse.get(name, _number)(v) for name, v in filled.items()})
    return kept


def _masks(cell: Any, folder: str) -> list[dict[str, Any]]:
    """Outlined frames: the pictures themselves, or where they lie."""
    kept = []
    for mask in json.loads(cell) if isinstance(cell, str) else cell:
        png = mask["png"] if "png" in mask else Storage(folder or "/").read_bytes(_key("path", mask["path"], folder))
        drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE) if isinstance(png, bytes) and png else None
        if len(mask) != 2 or drawn is None:
            raise ValueError
        # anew: what else a program wrote into the picture may name a person
        again = cv2.imencode(".png", 255 * (drawn > 0).astype(np.uint8))[1].tobytes()
        kept.append({"frame": _frame(mask["frame"]), "png": again})
    if len({mask["frame"] for mask in kept}) < len(kept):
        raise ValueError
    return kept


MASKS = ("calcification_masks", "vessel_masks")
_STENOSIS = tuple(field.name for field in _LABELS.field("stenoses").type.value_type)
_PARSERS: dict[str, Callable[[Any], Any]] = {
    "quality": _one_of("satisfactory", "unsatisfactory"),
    "artery": _one_of("LCA", "RCA"),
    "quality_class": _word,
    "view": _word,
    **dict.fromkeys(("first_contrast", "contrast_begin", "contrast_end", "last_contrast", "best_frame"), _frame),
    "heart_period_frames": _number,
    "stenoses": _stenoses,
    "calcified": _yes_or_no,
    "synthetic": _yes_or_no,
}


# -- the join --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Clip:
    """A row of `clips`: the newest of its object."""

    object_id: str
    etag: str | None
    size_bytes: int | None
    uri: str
    clip_id: str | None
    patient_id: str | None
    study_id: str | None
    dicom_patient_id: str | None
    acquisition_datetime: str | None
    plane: str | None
    rows: int | None
    columns: int | None
    num_frames: int | None
    frame_time_ms: float | None
    imager_pixel_spacing_mm: list[float] | None
    distance_source_to_detector_mm: float | None
    distance_source_to_patient_mm: float | None
    synthetic: bool | None
    reason: str | None


_CLIP_COLUMNS = tuple(_Clip.__dataclass_fields__)


def join_labels(root: TableRoot, key: PseudonymKey, labels: LabelFile, *, source: str | None = None) -> LabelJoin:
    """The labels of clips that `clips` knows, one row per clip, with everything that did not fit as findings.

    Parameters
    ----------
    root
        The tables; `clips` must have been filled (`index` or `score`).
    key
        The key of the tables: label files name clips by their originals.
    source
        Folder or s3:// prefix that the clips must lie under. Default: all that `clips` has.

    Raises
    ------
    LabelError
        No label fits a clip.
    """
    clips, pairs = _clips(root)
    if source is not None:
        clips = _under(clips, source)
    index = _Index(clips)
    findings = list(labels.findings)
    by_clip: dict[str, list[LabelRow]] = defaultdict(list)
    for row in labels.rows:
        found = _resolve(row, index, key)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            by_clip[found].append(row)
    kept: dict[str, dict[str, Any]] = {}
    for clip_id, rows in by_clip.items():
        merged, more = _merge(clip_id, rows)
        findings += more
        if merged is not None:
            kept[clip_id] = merged
    if not kept:
        counts = Counter(str(finding.kind) for finding in findings)
        told = ", ".join(f"{n:,} {kind}" for kind, n in counts.most_common())
        raise LabelError(f"no label fits a clip of the tables ({told or 'the file has no rows'})")
    named = by_clip.keys() | {finding.pseudonym for finding in findings if finding.kind == Kind.NO_PATIENT}
    findings += (Finding(Kind.UNLABELLED, None, clip_id) for clip_id in index.readable() if clip_id not in named)
    findings += _notes(kept, by_clip, index)
    groups, joined = _groups(kept, by_clip, index, pairs, key)
    findings += joined
    acquisitions = _acquisitions(kept, index)
    records = []
    for clip_id in sorted(kept):
        clip = index.clip(clip_id)
        records.append(
            {name: getattr(clip, name) for name in LABELLED.names if hasattr(clip, name)}
            | {"group_id": groups[clip_id], "acquisition_id": acquisitions[clip_id]}
            | {"synthetic": bool(clip.synthetic) or any(row.synthetic for row in by_clip[clip_id])}
            | kept[clip_id]
        )
    table = pa.Table.from_pylist(records, LABELLED)
    order = {kind: number for number, kind in enumerate(Kind)}
    findings.sort(key=lambda found: (order[found.kind], found.line or 0, found.pseudonym or ""))
    return LabelJoin(table, labels.num_rows, tuple(findings), labels.ignored_columns)


def task_clips(clips: pa.Table, task: str = "quality") -> tuple[pa.Table, NDArray[np.bool_]]:
    """The clips that have a label for the task, and whether each is of its positive class, (N,).

    Clips labelled unsatisfactory are there for quality alone. Of a task with a class per frame the second says whether a clip
    is of the half in which full contrast lasts longer: folds are to have as many of both. Of stenosis a clip counts whose worst
    narrowing is known to be of 25 % or more, or to be less.
    `clips`: `LabelJoin.clips` or a set of the table `labels`. LabelError for a task without labels, or none for it.
    """
    if task not in (*TARGETS, *FRAME_TARGETS, _NAMED_FRAMES):
        known = ", ".join([*TARGETS, *FRAME_TARGETS, _NAMED_FRAMES])
        raise LabelError(f"no labels are known for task {task!r}: one of {known}")
    if task in FRAME_TARGETS:
        first, begin, end, last = (pc.is_valid(clips[name]) for name in FRAME_TARGETS[task])
        full, seen = pc.and_(begin, end), pc.and_(first, last)
        column = f"{FRAME_TARGETS[task][1]} and {FRAME_TARGETS[task][2]}"
        labelled = clips.filter(pc.or_(full, pc.and_(seen, pc.invert(pc.or_(begin, end)))))
    elif task == _NAMED_FRAMES:
        column = "stenoses"
        classes = [None if found is None else worst_class(found, 2) for found in clips[column].to_pylist()]
        labelled = clips.filter(pa.array([found is not None for found in classes], pa.bool_()))
    else:
        column = TARGETS[task][0]
        labelled = clips.filter(pc.is_valid(_target_values(clips, task)))
    if task != "quality":  # the gate stops these before any other task sees them
        labelled = labelled.filter(pc.fill_null(pc.not_equal(labelled["quality"], "unsatisfactory"), True))
    if not len(labelled):
        but = "" if task == "quality" else " that is not labelled unsatisfactory"
        raise LabelError(f"no clip{but} has a label for {task} (column {column})")
    if task in FRAME_TARGETS:
        _, name_begin, name_end, _ = FRAME_TARGETS[task]
        length_N = pc.fill_null(pc.subtract(labelled[name_end], labelled[name_begin]), -1).to_numpy()
        longest_first = np.lexsort((labelled["clip_id"].to_numpy(zero_copy_only=False), length_N))[::-1]
        longer_N = np.zeros(len(labelled), np.bool_)
        longer_N[longest_first[: len(labelled) // 2]] = True  # by rank: equal lengths are divided too
        return labelled, longer_N
    if task == _NAMED_FRAMES:
        return labelled, np.array([worst_class(found, 2) == 1 for found in labelled["stenoses"].to_pylist()], np.bool_)
    positive = TARGETS[task][1]
    return labelled, np.array([value == positive for value in _target_values(labelled, task).to_pylist()], np.bool_)


def _target_values(clips: pa.Table, task: str) -> pa.ChunkedArray:
    """What the labels say of each clip for the task; null where nothing."""
    values = clips[TARGETS[task][0]]
    if task != "oblique":
        return values
    words = pc.list_element(pc.split_pattern(values, " ", max_splits=1), 0)
    return pc.if_else(pc.is_in(words, pa.array(_OBLIQUES)), words, pa.scalar(None, pa.string()))


def check_labels(root: TableRoot, name: str, join: LabelJoin) -> None:
    """Raises SetDiffers where the name has other labels, as `store_labels` would; writes nothing."""
    check_set(root, "labels", _set_rows(join, "file"), label_set=name)


def store_labels(
    root: TableRoot,
    name: str,
    join: LabelJoin,
    *,
    origin: Literal["file", "review"] = "file",
    replace: bool = False,
) -> int:
    """Write the joined labels to `labels` under a name; rows written, 0 where they are there already.

    Raises SetDiffers where the name has other labels and `replace` is false.
    """
    return write_set(root, "labels", _set_rows(join, origin), replace=replace, label_set=name)


def _set_rows(join: LabelJoin, origin: str) -> pa.Table:
    table = join.clips.select([column for column in join.clips.column_names if column in _LABELS.names])
    return table.append_column("origin", pa.array([origin] * len(table)))


def _clips(root: TableRoot) -> tuple[list[_Clip], set[tuple[str, str]]]:
    """The newest row of each object, and every (patient, study) that any row names."""
    newest: dict[str, tuple[Any, _Clip]] = {}
    pairs: set[tuple[str, str]] = set()
    dataset = root.open("clips").to_pyarrow_dataset()
    for batch in dataset.to_batches(columns=[*_CLIP_COLUMNS, "indexed_at"]):
        for *values, at in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            clip = _Clip(*values)
            if clip.patient_id and clip.study_id:
                pairs.add((clip.patient_id, clip.study_id))
            if clip.object_id not in newest or newest[clip.object_id][0] < at:
                newest[clip.object_id] = (at, clip)
    return [clip for _, clip in newest.values()], pairs


def _under(clips: list[_Clip], source: str) -> list[_Clip]:
    place = Storage(source).uri.rstrip("/")
    return [clip for clip in clips if clip.uri == place or clip.uri.startswith(f"{place}/")]


class _Index:
    """Clips by what names them."""

    def __init__(self, clips: list[_Clip]) -> None:
        self.objects = {clip.object_id: clip for clip in clips}
        self.copies: dict[str, list[_Clip]] = defaultdict(list)
        for clip in sorted(clips, key=lambda clip: (clip.reason is not None, clip.object_id)):
            if clip.clip_id is not None:
                self.copies[clip.clip_id].append(clip)

    def clip(self, clip_id: str) -> _Clip:
        """The copy that is read: a readable one, then the one of the smallest object_id."""
        return self.copies[clip_id][0]

    def readable(self) -> Iterator[str]:
        """clip_id of every clip that a label could be for."""
        return (clip_id for clip_id, copies in self.copies.items() if copies[0].reason is None)


def _resolve(row: LabelRow, index: _Index, key: PseudonymKey) -> str | Finding:
    """clip_id of the clip that the row names."""
    found: set[str] = set()
    named: str | None = None
    for column, value in row.keys.items():
        if column in ("uri", "path"):
            object_id = key.object_id(value)
            named = named or object_id
            clip = index.objects.get(object_id)
            if clip is not None and clip.clip_id is None:
                return Finding(Kind.UNREADABLE_CLIP, row.line, object_id, clip.reason or "")
            clip_id = clip.clip_id if clip else None
        else:
            clip_id = value if column == "clip_id" else key.clip_id(value)
            named = clip_id if _is_pseudonym(clip_id) else named
        if clip_id in index.copies:
            found.add(str(clip_id))
    if not found:
        return Finding(Kind.UNKNOWN_CLIP, row.line, named)
    if len(found) > 1:
        return Finding(Kind.KEYS_DISAGREE, row.line, min(found), ", ".join(row.keys))
    clip = index.clip(clip_id := found.pop())
    if clip.reason is not None:
        return Finding(Kind.UNREADABLE_CLIP, row.line, clip_id, clip.reason)
    if clip.patient_id is None:
        return Finding(Kind.NO_PATIENT, row.line, clip_id)
    return clip_id


def _is_pseudonym(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"[0-9a-f]{32}", text) is not None


def _merge(clip_id: str, rows: list[LabelRow]) -> tuple[dict[str, Any] | None, Iterator[Finding]]:
    """The rows of one clip as one label, or None where they contradict each other."""
    merged: dict[str, Any] = {}
    columns: set[str] = set()
    for row in rows:
        for column, value in row.values.items():
            if merged.setdefault(column, value) != value:
                columns.add(column)
    if columns:
        detail = ", ".join(sorted(columns))
        return None, (Finding(Kind.CONFLICT, row.line, clip_id, detail) for row in rows)
    first = f"of line {rows[0].line}"
    return merged, (Finding(Kind.DUPLICATE, row.line, clip_id, first) for row in rows[1:])


def _notes(kept: Mapping[str, Any], by_clip: Mapping[str, list[LabelRow]], index: _Index) -> Iterator[Finding]:
    """What does not cost a label: copies, patients that differ."""
    for clip_id in kept:
        if (copies := len(index.copies[clip_id])) > 1:
            yield Finding(Kind.COPY, by_clip[clip_id][0].line, clip_id, f"{copies} objects")
        header = (index.clip(clip_id).dicom_patient_id or "").strip(" \0")
        for row in by_clip[clip_id]:
            if row.patient_id not in (None, header, index.clip(clip_id).patient_id):
                yield Finding(Kind.PATIENT_DIFFERS, row.line, clip_id)


def _groups(
    kept: Mapping[str, Any],
    by_clip: Mapping[str, list[LabelRow]],
    index: _Index,
    pairs: Iterable[tuple[str, str]],
    key: PseudonymKey,
) -> tuple[dict[str, str], list[Finding]]:
    """Each clip's group: what a shared patient, study, clip or patient_id of the file joins; and the groups of several."""
    numbers: dict[tuple[str, str], int] = {}
    edges: list[tuple[int, int]] = []

    def node(kind: str, name: str) -> int:
        return numbers.setdefault((kind, name), len(numbers))

    for patient, study in pairs:
        edges.append((node("patient", patient), node("study", study)))
    for clip_id in kept:
        for clip in index.copies[clip_id]:
            if clip.patient_id is not None:
                edges.append((node("clip", clip_id), node("patient", clip.patient_id)))
        for row in by_clip[clip_id]:
            if row.patient_id is not None and row.patient_id != index.clip(clip_id).patient_id:
                edges.append((node("clip", clip_id), node("file", key.hash("label_patient", row.patient_id))))
            if row.group_id is not None:
                edges.append((node("clip", clip_id), node("group", row.group_id)))
    size, ends = len(numbers), np.array(edges, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
    part = connected_components(graph, directed=False)[1]
    patients: dict[int, list[str]] = defaultdict(list)
    for (kind, name), number in numbers.items():
        if kind == "patient":
            patients[part[number]].append(name)
    groups = {clip_id: min(patients[part[numbers["clip", clip_id]]]) for clip_id in kept}
    used = {part[numbers["clip", clip_id]] for clip_id in kept}
    several = sorted((min(patients[p]), len(patients[p])) for p in used if len(patients[p]) > 1)
    return groups, [Finding(Kind.JOINED_PATIENTS, None, group, f"{n} patients") for group, n in several]


def _acquisitions(kept: Mapping[str, Any], index: _Index) -> dict[str, str]:
    """Each clip's acquisition: itself, or the smallest clip_id of both planes recorded at one moment of a study."""
    moments: dict[tuple[str, str], list[str]] = defaultdict(list)
    for clip_id in kept:
        clip = index.clip(clip_id)
        if clip.plane in ("a", "b") and clip.study_id and clip.acquisition_datetime:
            moments[clip.study_id, clip.acquisition_datetime].append(clip_id)
    acquisitions = {clip_id: clip_id for clip_id in kept}
    for clip_ids in moments.values():
        acquisitions |= dict.fromkeys(clip_ids, min(clip_ids))
    return acquisitions


def _said(finding: Finding) -> str:
    where = f"line {finding.line}" if finding.line is not None else (finding.pseudonym or "?")
    return f"{where} ({finding.detail})" if finding.detail else where
