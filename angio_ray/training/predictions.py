"""Rows of `predictions` and `metrics`: what a trained model says of labelled clips, and the figures made of it.

Writing the same fold or set again replaces it, so a rerun never doubles a row. Figures are made by `evaluation`; here
they only become rows. Knows nothing of nets or Ray.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from angio_ray.evaluation.intervals import Interval
from angio_ray.evaluation.metrics import Calibration, DecisionCurve, Metrics
from angio_ray.evaluation.paired import PairedComparison
from angio_ray.evaluation.pooled import FoldsSummary, MeanOverFolds, Subgroup
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import read_set, write_set
from angio_ray.tables.schema import arrow_schema
from angio_ray.training.folds import Folds, check_disjoint, in_sample

_FOLDS = "folds"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """Which model scored: what is the same on all its rows."""

    experiment: str
    model: str
    """The net, or the name of an ensemble."""
    threshold: float | None
    """Its operating threshold, chosen on validation."""
    model_domain: str | None = None
    """What it was trained on: synthetic | patients."""
    bundle: str | None = None
    """Digest of its bundle."""
    label_set: str | None = None
    """The labels that the targets are from."""


def write_fold_predictions(
    root: TableRoot,
    facts: ModelFacts,
    folds: Folds,
    number: int,
    probability: Mapping[str, float],
    clips: pa.Table,
    found: pa.Table | None = None,
) -> tuple[str, ...]:
    """Write what the model of one fold says of its validation and test clips, in place of what it said before.

    Parameters
    ----------
    probability
        clip_id -> probability of the positive class.
    clips
        Labelled clips with clip_id and synthetic (`LabelJoin.clips`).
    found
        Of tasks with a class per frame: clip_id and the columns beside the probability (`contrast_results`), of every clip
        that has a probability.

    Returns
    -------
    tuple
        clip_ids of these parts without a probability (they could not be read): to be reported.

    Raises
    ------
    ValueError
        A probability for a clip that is not in these parts: a training clip's score is no out-of-fold row.
    """
    fold = folds.fold(number)
    check_disjoint(fold.train, fold.validation, fold.test)
    parts = [
        part.append_column("part", pa.array([name] * len(part), pa.string()))
        for name, part in (("validation", fold.validation), ("test", fold.test))
    ]
    rows = pa.concat_tables(parts)
    if strangers := probability.keys() - set(rows["clip_id"].to_pylist()):
        raise ValueError(f"{len(strangers)} probabilities are of clips that fold {number} does not hold out")
    marks = np.array([part == "validation" for part in rows["part"].to_pylist()], np.bool_)
    rows = rows.append_column("in_sample", pa.array(marks))  # it chose the threshold: not held out
    if found is not None:
        rows = rows.join(found, "clip_id", join_type="left outer")
        # what the folds balance is no label: here it is whether there is full contrast
        at = rows.schema.get_field_index("target")
        rows = rows.set_column(at, "target", pc.is_valid(rows["true_begin"]))
    return _write(root, facts, rows, probability, clips, folds.task, {"data": _FOLDS, "fold": number}, folds.name)


def write_set_predictions(
    root: TableRoot,
    facts: ModelFacts,
    data: str,
    clips: pa.Table,
    target: Sequence[bool] | NDArray[np.bool_],
    probability: Mapping[str, float],
    *,
    training_patients: Collection[str],
    task: str = "quality",
) -> tuple[str, ...]:
    """Write what a model says of a set of labelled clips outside its folds; rows of patients it has seen are in-sample.

    `clips` and `target` as `labels.task_clips` gives them; `training_patients` as in the model's bundle (those of all
    members of an ensemble). Returns the clip_ids without a probability.
    """
    names = ["clip_id", "patient_id", "study_id", "group_id"]
    rows = clips.select(names).append_column("target", pa.array(np.asarray(target, np.bool_)))
    rows = rows.append_column("part", pa.array(["independent"] * len(rows), pa.string()))
    rows = rows.append_column("in_sample", pa.array(in_sample(rows, training_patients)))
    return _write(root, facts, rows, probability, clips, task, {"data": data, "fold": None}, None)


def read_predictions(
    root: TableRoot, experiment: str, model: str, *, data: str = _FOLDS, folds: Sequence[int] | None = None
) -> pa.Table:
    """Rows of `predictions`, those of the given folds or (None) those of no fold."""
    numbers: Sequence[int | None] = [None] if folds is None else folds
    name = {"experiment": experiment, "model": model, "data": data}
    return pa.concat_tables([read_set(root, "predictions", **name, fold=number) for number in numbers])


def held_out(rows: pa.Table) -> pa.Table:
    """The rows that a held-out figure may count: test or independent, labelled, and of a patient not seen in training."""
    part = pc.is_in(rows["part"], pa.array(["test", "independent"]))
    return rows.filter(pc.and_(part, pc.and_(pc.invert(rows["in_sample"]), pc.is_valid(rows["target"]))))


def _write(
    root: TableRoot,
    facts: ModelFacts,
    rows: pa.Table,
    probability: Mapping[str, float],
    clips: pa.Table,
    task: str,
    name: Mapping[str, Any],
    fold_set: str | None,
) -> tuple[str, ...]:
    ids = rows["clip_id"].to_pylist()
    missing = tuple(sorted(set(ids) - probability.keys()))
    rows = rows.filter(pa.array([clip_id in probability for clip_id in ids], pa.bool_()))
    synthetic = dict(zip(clips["clip_id"].to_pylist(), clips["synthetic"].to_pylist(), strict=True))
    ids = rows["clip_id"].to_pylist()
    schema = arrow_schema("predictions")
    columns: dict[str, Any] = {
        "task": [task] * len(ids),
        "probability": [float(probability[clip_id]) for clip_id in ids],
        "threshold": [facts.threshold] * len(ids),
        "fold_set": [fold_set] * len(ids),
        "label_set": [facts.label_set] * len(ids),
        "bundle": [facts.bundle] * len(ids),
        "model_domain": [facts.model_domain] * len(ids),
        "synthetic": [synthetic.get(clip_id) for clip_id in ids],
    }
    for column, values in columns.items():
        rows = rows.append_column(column, pa.array(values, schema.field(column).type))
    rows = rows.select([column for column in rows.column_names if column in schema.names])
    write_set(root, "predictions", rows, replace=True, experiment=facts.experiment, model=facts.model, **name)
    return missing


# -- figures ---------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def write_metrics(root: TableRoot, facts: ModelFacts, data: str, rows: Sequence[Row], **columns: Any) -> int:
    """Write all figures of a model on some data, in place of those before; rows written.

    `rows` as the functions below give them, those of one call together; `columns` are the same on all of them
    (data_domain ...).
    """
    same = {"model_domain": facts.model_domain, "bundle": facts.bundle, **columns}
    complete = [same | row for row in rows]
    return write_set(root, "metrics", complete, replace=True, experiment=facts.experiment, model=facts.model, data=data)


def folds_rows(summary: FoldsSummary) -> list[Row]:
    """Figures of each fold, over the folds, and pooled with intervals."""
    rows: list[Row] = []
    for number, metrics in summary.folds.items():
        rows += metrics_rows(metrics, scope="fold", fold=number)
    rows += mean_rows(summary.mean_of_folds)
    return rows + metrics_rows(
        summary.pooled,
        scope="pooled",
        intervals=summary.pooled_intervals,
        num_patients=summary.num_patients,
        num_in_sample=summary.num_in_sample,
        num_folds=len(summary.folds),
    )


def mean_rows(means: Mapping[str, MeanOverFolds]) -> list[Row]:
    """One row per figure: its mean and spread over the folds."""
    return [
        {"scope": "mean_of_folds", "metric": name, "value": mean.mean, "sd": mean.sd, "num_folds": mean.num_folds}
        | {"note": None if mean.num_folds else "defined in no fold"}
        for name, mean in means.items()
    ]


def subgroup_rows(subgroup: str, groups: Sequence[Subgroup], *, scope: str = "pooled") -> list[Row]:
    """Figures of each value of a header fact. A value that could name a place (an institution) must come hashed."""
    return [
        row | {"subgroup": subgroup, "subgroup_value": group.value}
        for group in groups
        for row in metrics_rows(group.metrics, scope=scope, intervals=group.intervals, num_patients=group.num_patients)
    ]


def metrics_rows(
    metrics: Metrics, *, scope: str, intervals: Mapping[str, Interval] | None = None, **columns: Any
) -> list[Row]:
    """One row per figure and per count of the confusion matrix, with its interval where there is one."""
    confusion = metrics.confusion
    counts = {
        "true_positive": confusion.true_positive,
        "false_positive": confusion.false_positive,
        "false_negative": confusion.false_negative,
        "true_negative": confusion.true_negative,
    }
    same = {"scope": scope, "num_clips": metrics.num_rows, "num_positive": metrics.num_positive, **columns}
    rows = []
    for name, value in (metrics.figures() | counts).items():
        row = same | {"metric": name, "value": None if value is None else float(value)}
        if name not in _WITHOUT_THRESHOLD:
            row["threshold"] = metrics.threshold
        rows.append(row | interval_columns((intervals or {}).get(name), value))
    return rows


def calibration_rows(
    found: Calibration, *, scope: str, intervals: Mapping[str, Interval] | None = None, **columns: Any
) -> list[Row]:
    """Expected calibration error and the logistic recalibration, with the intervals of the latter where there are."""
    figures = {
        "ece": found.ece,
        "calibration_slope": found.slope,
        "calibration_intercept": found.intercept,
        "calibration_in_the_large": found.in_the_large,
    }
    same = {"scope": scope, **columns}
    return [
        same | {"metric": name, "value": value} | interval_columns((intervals or {}).get(name), value)
        for name, value in figures.items()
    ]


def decision_rows(curve: DecisionCurve, *, scope: str, **columns: Any) -> list[Row]:
    """Net benefit at each threshold probability (the column cutoff), the model's and that of calling all positive."""
    rows = []
    for cutoff, model, call_all in zip(curve.threshold_T, curve.net_benefit_T, curve.call_all_T, strict=True):
        same = {"scope": scope, "cutoff": float(cutoff), **columns}
        rows.append(same | {"metric": "net_benefit", "value": float(model)})
        rows.append(same | {"metric": "net_benefit_call_all", "value": float(call_all)})
    return rows


def comparison_rows(paired: PairedComparison, compared_with: str, *, scope: str) -> list[Row]:
    """Differences of this model (B of the comparison) less another (A), and McNemar's test of their verdicts."""
    same = {
        "scope": scope,
        "compared_with": compared_with,
        "num_clips": paired.num_rows,
        "num_patients": paired.num_patients,
    }
    rows: list[Row] = []
    for name, found in paired.differences.items():
        row = {"metric": name, "value": found.estimate, "low": found.low, "high": found.high, "method": found.method}
        row |= {"p_value": found.p_value, "note": found.note, "confidence": found.level if found.method else None}
        rows.append(same | row)
    test = paired.mcnemar
    more = {"metric": "mcnemar", "value": float(test.only_b_right - test.only_a_right)}
    more |= {"p_value": test.p_exact if test.independent else test.p_clustered}
    return [*rows, same | more | {"method": "mcnemar_exact" if test.independent else "mcnemar_clustered"}]


def interval_columns(found: Interval | None, value: float | None) -> Row:
    """The columns of a figure's interval, and why there is no value."""
    row: Row = {}
    if found is not None:
        row = {"low": found.low, "high": found.high, "method": found.method, "note": found.note}
        row["confidence"] = found.level if found.method else None
    if value is None and not row.get("note"):
        row["note"] = "not defined on these rows"
    return row


_WITHOUT_THRESHOLD = ("auc", "average_precision", "brier", "prevalence")
