"""`angio-ray review --read`: two readers' forms come back: how far they agree, where not, and what both say becomes labels.

    two forms (and what was settled together) -> read_forms -> Reading -> rows of `labels` with origin "review"

A form is a label file as `training.labels` reads it; an empty quality is no label.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from angio_ray.evaluation.agreement import Agreement, agreement
from angio_ray.evaluation.bootstrap import RESAMPLES
from angio_ray.judging.labelled import only_writer, prepare, wrong_values
from angio_ray.pseudonyms import PseudonymKey
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import SetDiffers
from angio_ray.training.labels import (
    LEFT_OUT,
    Kind,
    LabelError,
    LabelFile,
    LabelJoin,
    LabelRow,
    join_labels,
    read_label_file,
    store_labels,
)

_LISTED = 20


@dataclass(frozen=True, slots=True)
class Reading:
    """What two readers said, and what became labels."""

    agreement: Agreement
    settled: Mapping[str, str]
    """Conflicts that a third form settles: clip_id -> quality."""
    stored: int
    """Labels written now; 0 where they were there already, or none was asked for."""
    label_set: str | None
    notes: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        """clip_id -> quality: agreed or settled."""
        return {**self.agreement.agreed, **self.settled}

    def print(self, console: Console) -> None:
        """Agreement, its table, and the conflicts, for people."""
        found = self.agreement
        for note in self.notes:
            console.print(note, soft_wrap=True, markup=False)
        told = "kappa is not defined: the readers give all clips one label, or none"
        if found.kappa is not None:
            limits = "" if found.low is None or found.high is None else f" ({found.low:.2f} to {found.high:.2f})"
            told = f"kappa {found.kappa:.2f}{limits}"
        share = "" if found.observed is None else f", the same label for {found.observed:.1%}"
        console.print(f"{found.num_both:,} clips read by both: {told}{share}", soft_wrap=True)
        if found.num_only_a or found.num_only_b:
            console.print(f"  by one only: {found.num_only_a:,} (A), {found.num_only_b:,} (B): no labels")
        if found.labels:
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
            table.add_column("A \\ B")
            for name in found.labels:
                table.add_column(name, justify="right")
            for name, row in zip(found.labels, found.table, strict=True):
                table.add_row(name, *(f"{n:,}" for n in row))
            console.print(table)
        if found.conflicts:
            console.print(f"{len(found.conflicts):,} conflicts ({len(self.settled):,} settled):")
            for conflict in found.conflicts[:_LISTED]:
                settled = self.settled.get(conflict.clip_id)
                how = f"  -> {settled}" if settled else ""
                console.print(f"  {conflict.clip_id}  A {conflict.label_a}, B {conflict.label_b}{how}", soft_wrap=True)
            if len(found.conflicts) > _LISTED:
                console.print(f"  ... {len(found.conflicts) - _LISTED:,} more")
        if self.label_set is not None:
            what = f"{self.stored:,} labels written" if self.stored else "the same labels are there already"
            console.print(
                f"labels {self.label_set}: {what}" if self.labels else "no clip has an agreed label: none stored"
            )


def read_forms(
    root: TableRoot,
    key: PseudonymKey,
    forms: tuple[Path, Path],
    *,
    labels: str | None = None,
    consensus: Path | None = None,
    conflicts: Path | None = None,
    replace_labels: bool = False,
    resamples: int = RESAMPLES,
) -> Reading:
    """Compare two readers' forms and store what both say (and what `consensus` settles) as a set of labels.

    Parameters
    ----------
    labels
        Name of the set; None only reports.
    consensus
        A form on which the readers settled conflicts together; it counts for these alone.
    conflicts
        CSV file to write for that: the conflicting clips, with an empty quality.
    replace_labels
        Whether another set of this name gives way.

    Raises
    ------
    LabelError
        A form that cannot be used, or one form twice; SetDiffers where the name has other labels.
    """
    if forms[0].resolve() == forms[1].resolve():
        raise LabelError(f"--read names {forms[0]} twice: each reader fills in a form of their own")
    prepare(root, key)
    notes: list[str] = []
    joins = []
    for name, path in zip("AB", forms, strict=True):
        joins.append(_join(root, key, path, name, notes))
    said = [dict(zip(j.clips["clip_id"].to_pylist(), j.clips["quality"].to_pylist(), strict=True)) for j in joins]
    patients = {
        clip_id: group
        for join in joins
        for clip_id, group in zip(join.clips["clip_id"].to_pylist(), join.clips["group_id"].to_pylist(), strict=True)
    }
    found = agreement(said[0], said[1], patients=patients, resamples=resamples)
    settled: dict[str, str] = {}
    if consensus is not None:
        rows = _join(root, key, consensus, "consensus", notes).clips.select(["clip_id", "quality"]).to_pylist()
        together = {row["clip_id"]: row["quality"] for row in rows if row["quality"] is not None}
        settled = {c.clip_id: together[c.clip_id] for c in found.conflicts if c.clip_id in together}
    if conflicts is not None and found.conflicts:
        _write_conflicts(conflicts, found, forms[0])
    agreed = {**found.agreed, **settled}
    stored = 0
    if labels is not None and agreed:
        both = [{row["clip_id"]: row for row in join.clips.to_pylist()} for join in joins]
        rows = tuple(
            _row(line, clip_id, quality, both) for line, (clip_id, quality) in enumerate(sorted(agreed.items()), 1)
        )
        join = join_labels(root, key, LabelFile(rows, len(rows), (), ()))
        try:
            with only_writer():
                stored = store_labels(root, labels, join, origin="review", replace=replace_labels)
        except SetDiffers as error:
            raise SetDiffers(f"{error}; --replace puts these in their place") from error
    return Reading(found, settled, stored, labels, tuple(notes))


def _join(root: TableRoot, key: PseudonymKey, path: Path, name: str, notes: list[str]) -> LabelJoin:
    """One form's clips; what of it could not be used goes into the notes."""
    file = read_label_file(path)
    filled = replace(file, rows=tuple(row for row in file.rows if "quality" in row.values))
    wrong = wrong_values(file)
    if not filled.rows:
        raise LabelError(f"{path.name}: no clip has a quality" + (f" ({wrong})" if wrong else ""))
    join = join_labels(root, key, filled)
    notes.append(f"{name}: {path.name}, {join.clips.num_rows:,} of {file.num_rows:,} clips labelled")
    if inspected := join.counts[Kind.UNREADABLE_CLIP]:
        notes.append(f"  {inspected:,} labels of rejected clips not taken: these are for inspection only")
    told = (LEFT_OUT | {Kind.DUPLICATE}) - {Kind.UNREADABLE_CLIP}
    shown = replace(
        join, findings=tuple(finding for finding in join.findings if finding.kind in told), ignored_columns=()
    )
    notes += shown.report()[1:]
    notes += [f"  {wrong}"] if wrong else []
    return join


def _row(line: int, clip_id: str, quality: str, both: list[dict[str, dict[str, Any]]]) -> LabelRow:
    """The label of a clip: its quality, and of the other columns what both readers wrote alike."""
    a, b = (said[clip_id] for said in both)
    values: dict[str, Any] = {"quality": quality}
    for column in ("quality_class", "artery", "view"):
        if a[column] is not None and a[column] == b[column]:
            values[column] = a[column]
    return LabelRow(line, {"clip_id": clip_id}, None, None, values)


def _write_conflicts(path: Path, found: Agreement, form: Path) -> None:
    """The conflicting clips, with sheet and number where the form has them."""
    places: dict[str, tuple[str, str]] = {}
    with open(form, encoding="utf-8-sig", newline="") as file:
        text = file.read()
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    for row in csv.DictReader(text.splitlines(), delimiter=delimiter):
        cells = {(name or "").strip().lower(): value for name, value in row.items() if isinstance(value, str)}
        places[cells.get("clip_id", "").strip()] = (cells.get("sheet", ""), cells.get("number", ""))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sheet", "number", "clip_id", "reader_a", "reader_b", "quality", "comment"))
        for conflict in found.conflicts:
            writer.writerow(
                (*places.get(conflict.clip_id, ("", "")), conflict.clip_id, conflict.label_a, conflict.label_b, "", "")
            )
