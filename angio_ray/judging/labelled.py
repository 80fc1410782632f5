"""Where labels, header facts and a run's scores are looked up: names and files in, Arrow tables and dicts out.

    load_labels: a set of `labels` or a file     run_scores: what a run says of labelled clips     header_facts: subgroups

Knows nothing of figures.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from angio_ray.evaluation.assess import selected_labels
from angio_ray.evaluation.compare import read_run, task_columns
from angio_ray.models.bundles import SHIPPED, Bundle, BundleError, load_bundle
from angio_ray.pseudonyms import KEY_FILE_VARIABLE, KeyMissing, PseudonymKey, load_key
from angio_ray.tables.fence import RunHeld
from angio_ray.tables.root import STORE_ERRORS, TableRoot, TablesError, fingerprint
from angio_ray.tables.row_sets import read_set
from angio_ray.tables.schema import TABLES
from angio_ray.training.config import training_place
from angio_ray.training.labels import (
    Kind,
    LabelError,
    LabelFile,
    join_labels,
    label_sets,
    names_a_file,
    read_label_file,
)

_STRAIGHT_DEG = 10.0
"""Positioner angles nearer to 0 than this are called straight."""
_FRAME_RATES = ((12.0, "under 12/s"), (17.0, "12 to 17/s"), (27.0, "17 to 27/s"), (float("inf"), "27/s and more"))


@dataclass(frozen=True, slots=True)
class Labels:
    """Labelled clips, and where they are from."""

    name: str
    """Of the set; of a file, its name without what a set's name cannot hold."""
    clips: pa.Table
    """clip_id, patient_id, study_id, group_id, synthetic and the label columns."""
    label_set: str | None
    """None for a file, which is not in `labels`."""
    report: tuple[str, ...]
    """What the join found, for the user."""


def tables_key(tables: str, key_file: Path | None) -> PseudonymKey:
    """The key of tables that are there: the named one, else the one beside a local root. Raises PseudonymKeyError."""
    named = key_file or os.environ.get(KEY_FILE_VARIABLE)
    beside = Path(tables.removeprefix("file://").rstrip("/") + ".key")
    return load_key(named or (beside if not tables.startswith(("s3:", "s3a:")) and beside.exists() else None))


def optional_key(tables: str, key_file: Path | None) -> PseudonymKey | None:
    """As `tables_key`, None where no key is named or lies beside the tables; a named one that is missing is an error."""
    try:
        return tables_key(tables, key_file)
    except KeyMissing:
        if key_file or os.environ.get(KEY_FILE_VARIABLE):
            raise
        return None


def prepare(root: TableRoot, key: PseudonymKey | None) -> None:
    """Make the tables of training where they are absent. Raises KeyMismatch for another key, TablesError without tables."""
    made_with = fingerprint(root.open("runs"))  # first: nothing is made where there are no tables
    root.ensure(key.fingerprint if key else made_with or "", TABLES)


@contextmanager
def only_writer() -> Iterator[None]:
    """Another process that writes the same rows at this moment is one clear line."""
    try:
        yield
    except RunHeld as error:
        raise TablesError(f"{error}; run the same command again") from error


def load_labels(root: TableRoot, named: str, key: PseudonymKey | None) -> Labels:
    """A set of the table `labels`, else a CSV or Parquet file (local or s3://), joined with `clips`.

    Raises TablesError for a name that is neither, LabelError for a file that cannot be used, KeyMissing for one without
    the key.
    """
    sets = label_sets(root)
    if named in sets:
        return Labels(named, read_set(root, "labels", label_set=named), named, ())
    if not names_a_file(named):
        there = ", ".join(sorted(sets)) or "none"
        raise TablesError(f"there is no set of labels {named} in these tables (there is {there}), and no such file")
    if key is None:
        raise KeyMissing("a label file names clips by their originals: name the key of the tables with --key-file")
    file = read_label_file(named)
    wrong = wrong_values(file)
    try:
        join = join_labels(root, key, file)
    except LabelError as error:
        raise LabelError(f"{error}; {wrong}" if wrong else str(error)) from error
    return Labels(_set_name(named), join.clips, None, (*join.report(), *([f"  {wrong}"] if wrong else [])))


def _set_name(file: str) -> str:
    """What the clips of a label file are called: as the file, or as its folder where the file is just called labels."""
    *folders, name = re.split(r"[/\\]", file)
    words = [name.rsplit(".", 1)[0], *reversed(folders)]
    found = [re.sub(r"[^A-Za-z0-9._+-]+", "-", word).strip("-._+") for word in words]
    return (next((word for word in found if word not in ("", "labels")), "labels"))[:128]


def wrong_values(file: LabelFile, listed: int = 5) -> str | None:
    """Lines whose quality (or artery) is no such word, and which words are; None where there are none."""
    told = []
    for column, allowed in (("quality", "satisfactory or unsatisfactory"), ("artery", "LCA or RCA")):
        invalid = (f for f in file.findings if f.kind == Kind.INVALID_VALUE and column in f.detail.split(", "))
        if lines := [str(finding.line) for finding in invalid]:
            more = f" and {len(lines) - listed:,} more" if len(lines) > listed else ""
            told.append(f"line {', '.join(lines[:listed])}{more}: {column} is {allowed}, or empty")
    return "; ".join(told) or None


# -- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunScores:
    """What a run says of some labelled clips."""

    run_id: str
    probability: Mapping[str, float]
    """clip_id -> probability of the positive class."""
    unscored: Mapping[str, int]
    """Labelled clips without one, by why: "rejected: reason", "not in the run"."""
    threshold: float
    bundle: str
    """Digest."""
    model_domain: str | None


def run_scores(root: TableRoot, run: str, clip_ids: Collection[str], *, task: str = "quality") -> RunScores:
    """The scores of a run for these clips; of a clip under several URIs the one that has a score, then the smallest object_id.

    Raises TablesError where there is no such run or it scored nothing for the task.
    """
    columns = task_columns(task)
    rows = read_run(root, run, task)
    if not rows.num_rows:
        raise TablesError(f"there is no run {run} in these tables, or it has no rows")
    scored = rows.filter(pc.is_valid(rows[columns.probability]))
    if not scored.num_rows or columns.threshold is None:
        raise TablesError(f"run {run} has no {task} score")
    thresholds, digests = _values(scored[columns.threshold]), _values(scored["bundle"])
    if len(thresholds) != 1 or len(digests) != 1:
        raise TablesError(f"run {run} has scores of {len(digests)} bundles at {len(thresholds)} thresholds, not of one")
    wanted = set(clip_ids)
    probability: dict[str, float] = {}
    why: dict[str, str] = {}
    order = rows.sort_by("object_id")
    names = ("clip_id", columns.probability, "status", "reason", columns.status, f"{task}_reason")
    for clip_id, p, status, reason, task_status, why_not in zip(*(order[name].to_pylist() for name in names), strict=True):
        if clip_id not in wanted:
            continue
        if p is not None:
            probability.setdefault(clip_id, float(p))
        else:
            more = f": {why_not}" if why_not else " by the gate" if status == "gated" else ""
            why.setdefault(clip_id, f"{status}: {reason}" if reason else f"{task} {task_status}{more}")
    unscored = Counter(why.get(clip_id, "not in the run") for clip_id in wanted - probability.keys())
    return RunScores(
        run, probability, dict(unscored), thresholds[0], digests[0], _joined(_values(scored["model_domain"]))
    )


def find_bundle(digest: str, places: Sequence[Path]) -> Bundle | None:
    """The bundle with this digest in these places, at any depth, or among the ones that ship; None where it is none.

    Its tensors are not looked at. Raises BundleError for a place that holds no bundle, or where this one was altered.
    """
    for place in (*places, SHIPPED):
        folders = bundle_folders(place)
        if not folders and place != SHIPPED:
            raise BundleError(f"no bundle in {place} or in a folder of it")
        if digest in folders:
            return load_bundle(folders[digest], weights=False)
    return None


def bundle_folders(place: Path) -> dict[str, Path]:
    """Digest, as its manifest states it -> folder, of the bundles in a place.

    At any depth: `train` leaves EXPERIMENT/bundles/fold-0/quality.
    """
    found: dict[str, Path] = {}
    for folder, _, names in os.walk(place):
        if "bundle.json" in names:
            try:
                digest = json.loads(Path(folder, "bundle.json").read_text("utf-8"))["digest"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found.setdefault(str(digest), Path(folder))
    return found


def training_patients(root: TableRoot, digest: str, places: Sequence[Path]) -> tuple[str, frozenset[str]]:
    """(net, patients that the bundle with this digest has seen): of these places, of what `train` left, or of what ships.

    The bundle alone says it: `folds` does not know whom the weights that a training began from have seen. Raises
    TablesError where it is nowhere: then no row may count as held out.
    """
    bundle = scored_bundle(root, digest, places)
    return bundle.net, frozenset(bundle.training_patients)


def scored_bundle(root: TableRoot, digest: str, places: Sequence[Path]) -> Bundle:
    """The bundle itself, likewise."""
    trained = training_folder(root.uri("runs").rpartition("/")[0])
    if (bundle := find_bundle(digest, [*places, *([trained] if bundle_folders(trained) else [])])) is not None:
        return bundle
    other = " (the given ones are others)" if places else ""
    raise TablesError(
        f"bundle {digest[:12]} scored the run: name its folder with --bundle, so that patients it has seen are kept out{other}"
    )


def training_folder(tables: str) -> Path:
    """Where `train` leaves its bundles unless told otherwise; tables in a bucket have no such folder."""
    return Path(training_place(tables).removeprefix("file://"))


def _values(column: pa.ChunkedArray) -> list[Any]:
    return sorted(value for value in pc.unique(column).to_pylist() if value is not None)


def _joined(values: Iterable[str]) -> str | None:
    return ", ".join(values) or None


def review_note(labels: pa.Table | None, clip_ids: Collection[str]) -> str | None:
    """What to know where labels come from `review`: its clips are no sample of all. None where no label of these clips does."""
    if labels is None or "origin" not in labels.column_names:
        return None
    wanted = set(clip_ids)
    origins = zip(labels["clip_id"].to_pylist(), labels["origin"].to_pylist(), strict=True)
    number = sum(origin == "review" for clip_id, origin in origins if clip_id in wanted)
    return selected_labels(number, len(wanted)) if number else None


# -- header facts ----------------------------------------------------------------------------------------------------


def header_facts(
    root: TableRoot, clips: pa.Table | None, clip_ids: Collection[str], key: PseudonymKey | None
) -> tuple[dict[str, dict[str, str | None]], list[str]]:
    """(fact -> clip_id -> value for subgroups, notes): vendor, site, artery, kind, view, frame rate, year.

    The site is a pseudonym (a keyed hash of InstitutionName), left out without the key; the artery and the kind (of
    unsatisfactory clip: quality_class) are the labels' (`clips`: a set of labels); the view is of the positioner angles.
    """
    notes = []
    facts: dict[str, dict[str, str | None]] = {}
    wanted = set(clip_ids)
    try:
        rows = _newest(root, wanted)
    except (TablesError, *STORE_ERRORS):
        rows, notes = [], ["no subgroups from the header: the table clips cannot be read"]
    if rows:
        by_clip = {row["clip_id"]: row for row in rows}
        facts["vendor"] = {clip_id: _vendor(row["manufacturer"]) for clip_id, row in by_clip.items()}
        if key is not None:
            facts["site"] = {clip_id: _site(row["institution"], key) for clip_id, row in by_clip.items()}
        else:
            notes.append("no subgroups by site: its name is hashed with the key (--key-file)")
        angles = ("primary_angle_deg", "secondary_angle_deg")
        facts["view"] = {clip_id: view_of(*(row[name] for name in angles)) for clip_id, row in by_clip.items()}
        facts["frame rate"] = {clip_id: _frame_rate(row["frame_time_ms"]) for clip_id, row in by_clip.items()}
        facts["year"] = {clip_id: _year(row["study_date"]) for clip_id, row in by_clip.items()}
    for fact, column in (("artery", "artery"), ("kind", "quality_class")):
        if clips is not None and clips[column].null_count < clips.num_rows:
            facts[fact] = dict(zip(clips["clip_id"].to_pylist(), clips[column].to_pylist(), strict=True))
    return facts, notes


def view_of(primary_deg: float | None, secondary_deg: float | None) -> str | None:
    """Name of a view from the positioner angles (PS3.3 C.8.7.5): "LAO cranial", "RAO", "caudal", "AP" ..., None without them."""
    if primary_deg is None or secondary_deg is None:
        return None
    side = "" if abs(primary_deg) < _STRAIGHT_DEG else "LAO" if primary_deg > 0 else "RAO"
    tilt = "" if abs(secondary_deg) < _STRAIGHT_DEG else "cranial" if secondary_deg > 0 else "caudal"
    return f"{side} {tilt}".strip() or "AP"


_FACTS = ("manufacturer", "institution", "primary_angle_deg", "secondary_angle_deg", "frame_time_ms", "study_date")


def _newest(root: TableRoot, wanted: set[str]) -> list[dict[str, Any]]:
    """The row of `clips` of each wanted clip: a readable one, then the newest."""
    chosen: dict[str, tuple[Any, dict[str, Any]]] = {}
    names = ["clip_id", "reason", "indexed_at", *_FACTS]
    for batch in root.open("clips").to_pyarrow_dataset().to_batches(columns=names):
        kept = batch.filter(pc.is_in(batch.column("clip_id"), pa.array(list(wanted), pa.string())))
        for row in kept.to_pylist():
            rank = (row["reason"] is None, row["indexed_at"])
            if row["clip_id"] not in chosen or rank > chosen[row["clip_id"]][0]:
                chosen[row["clip_id"]] = (rank, row)
    return [row for _, row in chosen.values()]


def _vendor(name: str | None) -> str | None:
    """Manufacturer as written, without padding; what does not look like a company's name is not shown."""
    text = " ".join((name or "").split())
    if not text:
        return None
    return text if re.fullmatch(r"[A-Za-z0-9 .,&()/_+-]{1,48}", text) else "unusual"


def _site(name: str | None, key: PseudonymKey) -> str | None:
    text = " ".join((name or "").split()).casefold()
    return f"site {key.hash('institution', text)[:8]}" if text else None


def _frame_rate(frame_time_ms: float | None) -> str | None:
    if not frame_time_ms or frame_time_ms <= 0:
        return None
    return next(name for limit, name in _FRAME_RATES if 1000 / frame_time_ms < limit)


def _year(study_date: str | None) -> str | None:
    return study_date[:4] if study_date and re.fullmatch(r"\d{8}", study_date) else None
