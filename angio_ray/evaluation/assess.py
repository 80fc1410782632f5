"""One model on labelled clips, everything that is reported of it; the table as the paper prints it; two models on the same clips.

    rows of `predictions` -> assess -> Assessment     two of them -> compare_assessed     Assessments -> print_assessments

Rows of patients that the model has seen are marked, counted and left out. Knows where rows come from as little as what
the model is: a row is a clip with its patient, target, probability and threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from angio_ray.evaluation.bootstrap import RESAMPLES
from angio_ray.evaluation.intervals import CALIBRATION_FIGURES, DEFAULT_FIGURES, Interval, intervals
from angio_ray.evaluation.metrics import (
    Calibration,
    DecisionCurve,
    Metrics,
    binary_metrics,
    calibration,
    decision_curve,
)
from angio_ray.evaluation.paired import PairedComparison, compare_models
from angio_ray.evaluation.pooled import FoldsSummary, Subgroup, by_subgroup, folds_summary

PAPER_FIGURES = ("auc", "accuracy", "precision", "sensitivity", "specificity", "f1")
"""The paper's columns, in its order."""

QUALITY_CLASSES = ("satisfactory", "unsatisfactory")

MOST_VALUES = 12
"""Values of a header fact that get a subgroup of their own, those with most clips; the others are one: OTHER."""
OTHER = "other values"
_FEW_ROWS = 50
"""Fewer rows in a bin than these leave its share of positives uncertain by 0.14 and more (two standard errors at a half)."""

UNCHECKED = "its bundle names no training patients, so none could be marked in-sample"
"""What to know of figures of a model that does not say whom it has seen."""

Facts = Mapping[str, Mapping[str, str | None]]
"""Name of a header fact -> clip_id -> its value; a clip that is missing has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What is known of one model on some labelled clips; all figures are of held-out rows."""

    title: str
    classes: tuple[str, ...]
    """Names of the negative and the positive class."""
    rows: pa.Table
    """The held-out rows: clip_id, group_id, target, probability, threshold, synthetic, and fold where there are folds."""
    metrics: Metrics
    """Pooled, where there are folds."""
    intervals: Mapping[str, Interval]
    folds: FoldsSummary | None
    """None for a set without folds."""
    calibration: Calibration
    calibration_intervals: Mapping[str, Interval]
    decision: DecisionCurve
    subgroups: Mapping[str, tuple[Subgroup, ...]]
    """Header fact -> its values' figures, of facts with several values."""
    one_value: Mapping[str, str | None]
    """Header facts that are the same on all rows -> their value, None where it is not known."""
    num_patients: int
    num_in_sample: int
    """Rows left out since the model (or its threshold) has seen the patient."""
    data_domain: str
    """synthetic | patients | mixed."""
    model_domain: str | None
    unscored: Mapping[str, int]
    """Labelled clips without a score, by why; they are in no figure."""
    notes: tuple[str, ...] = ()
    """What to know of all its figures, such as UNCHECKED."""


def assess(
    rows: pa.Table,
    *,
    title: str,
    classes: tuple[str, ...] = QUALITY_CLASSES,
    facts: Facts | None = None,
    unscored: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Assessment:
    """All figures of rows of `predictions` (test or independent ones, in-sample ones marked) of one model.

    Rows with a fold are judged as folds, else as one set. Raises ValueError without held-out rows, or where one has no
    threshold.
    """
    labelled = rows.filter(pc.is_valid(rows["target"]))
    marks = labelled["in_sample"].to_numpy(zero_copy_only=False).astype(bool)
    held_out = labelled.filter(pa.array(~marks))
    if not held_out.num_rows:
        why = (
            f"all {len(labelled):,} are of patients that the model has seen" if len(labelled) else "no clip has a label"
        )
        raise ValueError(f"{title}: no held-out row ({why})")
    if held_out["threshold"].null_count:
        raise ValueError(f"{title}: {held_out['threshold'].null_count:,} rows have no operating threshold")
    target, probability, patients, threshold = _columns(held_out)
    draws = {"resamples": resamples, "seed": seed}
    subgroups, one_value = _subgroups(held_out, facts or {}, resamples, seed)
    folds = None
    if held_out["fold"].null_count == 0:
        folds = folds_summary(
            *_columns(labelled)[:3],
            labelled["fold"].to_numpy(),
            _thresholds(labelled),
            in_sample_N=marks,
            resamples=resamples,
            seed=seed,
        )
    return Assessment(
        title=title,
        classes=classes,
        rows=held_out,
        metrics=folds.pooled if folds else binary_metrics(target, probability, threshold),
        intervals=folds.pooled_intervals
        if folds
        else intervals(target, probability, patients, threshold=threshold, figures=DEFAULT_FIGURES, **draws),
        folds=folds,
        calibration=calibration(target, probability),
        calibration_intervals=intervals(
            target, probability, patients, threshold=threshold, figures=CALIBRATION_FIGURES, **draws
        ),
        decision=decision_curve(target, probability),
        subgroups=subgroups,
        one_value=one_value,
        num_patients=len(set(patients)),
        num_in_sample=int(marks.sum()),
        data_domain=_domain(held_out["synthetic"].to_pylist()),
        model_domain=_one(rows["model_domain"].to_pylist()),
        unscored=dict(unscored or {}),
        notes=tuple(notes),
    )


def selected_labels(reviewed: int, total: int) -> str:
    """What to know where labels come from `review`."""
    return (
        f"{reviewed:,} of {total:,} labels are from review sheets, which hold clips chosen by gate and threshold: "
        "a selected sample, no estimate for all clips"
    )


def compare_assessed(
    a: Assessment, b: Assessment, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedComparison | None:
    """B less A on the clips that both models held out, None where there are none.

    Raises ValueError where a clip has another label in the one than in the other.
    """
    keys = ["clip_id", "group_id", "target", "probability", "threshold"]
    both = (
        a.rows.select(keys)
        .join(b.rows.select(keys), "clip_id", join_type="inner", right_suffix="_b")
        .sort_by("clip_id")
    )
    if not both.num_rows:
        return None
    if (differing := int(pc.sum(pc.not_equal(both["target"], both["target_b"])).as_py())) > 0:
        raise ValueError(f"{a.title} and {b.title} have other labels for {differing:,} clips: they cannot be compared")
    target, probability, patients, threshold = _columns(both)
    return compare_models(
        target,
        probability,
        both["probability_b"].to_numpy().astype(float),
        patients,
        threshold_a=threshold,
        threshold_b=both["threshold_b"].to_numpy().astype(float),
        resamples=resamples,
        seed=seed,
    )


def _columns(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Target, probability, patients and threshold of the rows."""
    target = rows["target"].to_numpy(zero_copy_only=False).astype(np.int64)
    return target, rows["probability"].to_numpy().astype(float), rows["group_id"].to_pylist(), _thresholds(rows)


def _thresholds(rows: pa.Table) -> np.ndarray:
    return np.array(rows["threshold"].to_pylist(), float)


def _subgroups(
    rows: pa.Table, facts: Facts, resamples: int, seed: int
) -> tuple[dict[str, tuple[Subgroup, ...]], dict[str, str | None]]:
    target, probability, patients, threshold = _columns(rows)
    found = {}
    one_value: dict[str, str | None] = {}
    for fact, values in facts.items():
        of_rows = [values.get(clip_id) for clip_id in rows["clip_id"].to_pylist()]
        counted = Counter(value for value in of_rows if value is not None).most_common()
        if len({*of_rows}) < 2:
            one_value[fact] = of_rows[0]
            continue
        rare = {value for value, _ in counted[MOST_VALUES - 1 :]} if len(counted) > MOST_VALUES else set()
        named = [OTHER if value in rare else value for value in of_rows]
        found[fact] = by_subgroup(target, probability, patients, threshold, named, resamples=resamples, seed=seed)
    return found, one_value


def _domain(synthetic: Sequence[bool | None]) -> str:
    if all(synthetic):
        return "synthetic"
    return "mixed" if any(synthetic) else "patients"


def _one(values: Sequence[str | None]) -> str | None:
    return ", ".join(sorted({value for value in values if value is not None})) or None


# -- what people read ------------------------------------------------------------------------------------------------


def print_assessments(found: Sequence[Assessment], console: Console) -> None:
    """The paper's table for each model, at 80 columns, and below it what each model's clips were."""
    for number, one in enumerate(found):
        console.print(Text(one.title, style="bold"), soft_wrap=True)
        table = Table(box=None, padding=(0, 1, 0, 0), show_header=number == 0)
        table.add_column("", width=7)
        for name in ("AUC", "accuracy", "precision", "sensitivity", "specificity", "F1"):
            table.add_column(name, width=11, no_wrap=True)
        values = one.metrics.figures()
        table.add_row("", *("-" if values[name] is None else f"{values[name]:.3f}" for name in PAPER_FIGURES))
        table.add_row("95 %", *(_limits(one.intervals.get(name)) for name in PAPER_FIGURES))
        if one.folds is not None and len(one.folds.folds) > 1:
            means = [one.folds.mean_of_folds[name] for name in PAPER_FIGURES]
            table.add_row("folds", *("-" if m.mean is None else f"{m.mean:.3f}" for m in means))
            table.add_row("", *("" if m.sd is None else f"± {m.sd:.3f}" for m in means))
        console.print(table)
    folds = "; folds: mean ± sd" if any(one.folds and len(one.folds.folds) > 1 for one in found) else ""
    positive = ", ".join(dict.fromkeys(one.classes[-1] for one in found))
    console.print(f"(95 %: intervals{folds}; positive: {positive})", style="dim")
    for one in found:
        console.print()
        for line in _lines(one):
            console.print(Text(line), soft_wrap=True)
        _print_subgroups(one, console)


def print_comparison(a: str, b: str, found: PairedComparison, console: Console) -> None:
    """B less A, figure by figure, and McNemar's test."""
    clips = f"{counted(found.num_rows, 'clip')} of {counted(found.num_patients, 'patient')}"
    console.print(f"\n{b} less {a}, on the {clips} that both held out", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "difference", "95 % interval", "p"):
        table.add_column(name)
    for name in PAPER_FIGURES:
        one = found.differences[name]
        limits = "-" if one.low is None or one.high is None else f"{one.low:+.3f} to {one.high:+.3f}"
        p = "-" if one.p_value is None else f"{one.p_value:.3g}"
        table.add_row(name, "-" if one.estimate is None else f"{one.estimate:+.3f}", limits, p)
    console.print(table)
    test = found.mcnemar
    chance = test.p_exact if test.independent else test.p_clustered
    told = f"McNemar: right in {a} only {test.only_a_right:,}, in {b} only {test.only_b_right:,}"
    console.print(
        f"{told}, p {'-' if chance is None else f'{chance:.3g}'}" + ("" if test.independent else " (by patients)"),
        soft_wrap=True,
    )


def _limits(found: Interval | None, digits: int = 3) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.low:.{digits}f}-{found.high:.{digits}f}"


def _lines(one: Assessment) -> list[str]:
    m, counts, (negative, positive) = one.metrics, one.metrics.confusion, one.classes
    quality = one.classes == QUALITY_CLASSES
    clips = {"synthetic": "synthetic clips", "patients": "patients' clips"}.get(
        one.data_domain, "clips, some synthetic,"
    )
    lines = [
        f"{one.title}: {m.num_rows:,} {clips} of {counted(one.num_patients, 'patient')}, {m.num_positive:,} {positive}"
        + (f"; model trained on {one.model_domain}" if one.model_domain else ""),
        f"  {positive} found {counts.true_positive:,}, missed {counts.false_negative:,}; "
        + f"{negative} {'kept' if quality else 'found'} {counts.true_negative:,}, "
        + f"{'wrongly excluded' if quality else f'called {positive}'} {counts.false_positive:,}"
        + ("" if m.threshold is None else f" (threshold {m.threshold:.4g})"),
    ]
    if quality:
        lines.append(
            f"  excludes {_percent(counts.positive_rate)} of the clips (labels: {_percent(counts.prevalence)}); "
            f"of those kept {_percent(counts.npv)} are satisfactory"
        )
    if one.folds is not None:
        mean = one.folds.mean_of_folds["auc"]
        if one.folds.num_patients_in_several_folds:
            lines.append(
                f"  {one.folds.num_patients_in_several_folds:,} patients are in several folds: no estimate for new patients"
            )
        if mean.mean is not None and m.auc is not None:
            lines.append(f"  AUC pooled {m.auc:.3f}, mean of {counted(mean.num_folds, 'fold')} {mean.mean:.3f}")
    c = one.calibration
    parts = [f"ECE {c.ece:.3f} ({bins_words(c)})"] if c.ece is not None else []
    parts += [f"{name.split('_')[1]} {_with_limits(one.calibration_intervals[name])}" for name in CALIBRATION_FIGURES]
    if m.brier is not None:
        lines.append(f"  Brier {m.brier:.3f}; calibration: {', '.join(parts)}")
    notes = Counter(found.note for found in one.intervals.values() if found.note)
    lines += [f"  {note}" for note, _ in notes.most_common(2)]
    lines += [f"  {note}" for note in one.notes]
    if one.num_in_sample:
        lines.append(
            f"  in-sample rows kept out: {one.num_in_sample:,} (patients that the model or its threshold has seen)"
        )
    if one.unscored:
        told = ", ".join(f"{n:,} {why}" for why, n in sorted(one.unscored.items(), key=lambda item: -item[1]))
        lines.append(f"  labelled clips without a score, in no figure: {told}")
    return lines


def _print_subgroups(one: Assessment, console: Console) -> None:
    if one.one_value:
        told = ", ".join(f"{fact} ({value or 'not known'})" for fact, value in one.one_value.items())
        console.print(Text(f"  one value only: {told}"), soft_wrap=True)
    if not one.subgroups:
        return
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("subgroup", width=20, overflow="fold")
    for name in ("clips", "pat.", "unsat."):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("AUC", "sens.", "spec."):
        table.add_column(name, width=9, no_wrap=True)
    table.add_column("excl.", justify="right", no_wrap=True)
    for fact, groups in one.subgroups.items():
        table.add_row(fact)
        for group in groups:
            m = group.metrics
            estimates = [group.intervals[name] for name in ("auc", "sensitivity", "specificity")]
            table.add_row(
                Text(f"  {group.value or 'not known'}"),
                f"{m.num_rows:,}",
                f"{group.num_patients:,}",
                f"{m.num_positive:,}",
                *("-" if e.estimate is None else f"{e.estimate:.2f}\n{_limits(e, 2)}".rstrip() for e in estimates),
                _percent(m.confusion.positive_rate),
            )
    console.print(table)


def counted(number: int, one: str, several: str | None = None) -> str:
    """1 patient, 2 patients."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def bins_words(found: Calibration) -> str:
    """In how many bins an ECE was taken, and how far that goes."""
    rows = sum(one.num_rows for one in found.bins) // max(len(found.bins), 1)
    rough = ": rough" if rows < _FEW_ROWS else ""
    return f"{counted(len(found.bins), 'bin')} of about {counted(rows, 'clip')}{rough}"


def _with_limits(found: Interval) -> str:
    if found.estimate is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.estimate:.2f}"
    return f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}".replace("%", " %")
