"""`angio-ray evaluate`: an experiment's held-out predictions, or a scored run against labels, become rows of `metrics`.

    predictions -> evaluate_experiment     run + labels -> predictions -> evaluate_run     -> Assessments, metrics

All figures of a model on some data are written by one call, so a rerun replaces and never doubles them. What a figure is
stands in `evaluation`; here is only what it is of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console

from angio_ray.evaluation.assess import (
    UNCHECKED,
    Assessment,
    assess,
    compare_assessed,
    print_assessments,
    print_comparison,
)
from angio_ray.evaluation.bootstrap import RESAMPLES
from angio_ray.evaluation.metrics import FIGURES
from angio_ray.evaluation.paired import PairedComparison
from angio_ray.evaluation.report_data import UNCHECKED_ROWS
from angio_ray.judging.labelled import (
    Labels,
    header_facts,
    load_labels,
    only_writer,
    prepare,
    review_note,
    run_scores,
    training_patients,
)
from angio_ray.models import TASKS
from angio_ray.pseudonyms import PseudonymKey
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.row_sets import read_set
from angio_ray.training.folds import in_sample
from angio_ray.training.labels import task_clips
from angio_ray.training.predictions import (
    ModelFacts,
    Row,
    calibration_rows,
    comparison_rows,
    decision_rows,
    folds_rows,
    held_out,
    metrics_rows,
    read_predictions,
    subgroup_rows,
    write_metrics,
    write_set_predictions,
)
from angio_ray.training.stenosis_results import LevelSummary, level_summaries, with_artery

OUT_OF_FOLD = "out_of_fold"
"""Name in `metrics` of an experiment's own left-out clips."""
_FOLDS = "folds"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A model's assessment and where it is filed."""

    experiment: str
    model: str
    data: str
    """In `metrics`."""
    bundle: str | None
    assessment: Assessment
    levels: Sequence[LevelSummary] = ()
    """Of tasks whose clips are pooled: arteries and studies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What one call judged."""

    models: tuple[Judged, ...]
    comparisons: tuple[tuple[Judged, Judged, PairedComparison], ...]
    """(A, B, B less A); filed with B."""
    notes: tuple[str, ...]
    num_rows: int
    """Rows of `metrics`, 0 where they were there already."""

    def print(self, console: Console) -> None:
        """Tables and notes, for people."""
        print_assessments([judged.assessment for judged in self.models], console)
        for judged in self.models:
            if judged.levels:
                console.print()
                console.print(f"{judged.assessment.title}, by the worst clip of", soft_wrap=True, markup=False)
            for level in judged.levels:
                console.print(level.line(), soft_wrap=True, markup=False)
        for a, b, found in self.comparisons:
            print_comparison(a.assessment.title, b.assessment.title, found, console)
        if self.notes:
            console.print()
        for note in self.notes:
            console.print(note, soft_wrap=True, markup=False)


def evaluate_experiment(
    root: TableRoot,
    experiment: str,
    *,
    against: str | None = None,
    key: PseudonymKey | None = None,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Judge every model of an experiment on every set of clips that it predicted, and models of one set against each other.

    The clips of the experiment's folds are judged on each fold's test part, pooled out of fold. With `against`, another
    experiment's models are judged as well and each pair compared on the clips that both held out, whatever their folds:
    differences are `experiment` less `against`, and filed with `experiment`. Raises TablesError where an experiment has
    no predictions or no held-out ones, or the two have no clip in common.
    """
    if against == experiment:
        raise TablesError(f"--against {against}: the same experiment")
    prepare(root, key)
    judged: list[Judged] = []
    notes: list[str] = []
    for name in (experiment,) if against is None else (against, experiment):
        found, said = _judge_experiment(root, name, key, resamples, named=against is not None)
        judged += found
        notes += [note for note in said if note not in notes]
    comparisons = _compared([(a, b) for a, b in combinations(judged, 2) if _alike(a, b)], resamples)
    if against is not None and all(a.experiment == b.experiment for a, b, _ in comparisons):
        raise TablesError(f"experiments {experiment} and {against} held out no clip in common")
    return _file(root, judged, comparisons, notes)


def _alike(a: Judged, b: Judged) -> bool:
    """Whether they say the same thing of the same clips."""
    return a.data == b.data and a.assessment.classes == b.assessment.classes


def _judge_experiment(
    root: TableRoot, experiment: str, key: PseudonymKey | None, resamples: int, *, named: bool
) -> tuple[list[Judged], list[str]]:
    """Its models on their sets; `named`: with the experiment in their titles."""
    there = _predicted(root, experiment)
    if not there:
        raise TablesError(f"there are no predictions of experiment {experiment} ({_experiments(root)})")
    judged: list[Judged] = []
    notes: list[str] = []
    for model, data in sorted(there):
        folds = sorted(fold for fold in there[model, data] if fold is not None)
        rows = pa.concat_tables(
            [read_predictions(root, experiment, model, data=data, folds=[fold]) for fold in folds]
            + ([read_predictions(root, experiment, model, data=data)] if None in there[model, data] else [])
        )
        rows = rows.filter(pc.is_in(rows["part"], pa.array(["test", "independent"])))
        if not rows.num_rows:  # an ensemble of the folds has seen all of their patients
            notes.append(f"{model} on {data}: no test rows, not judged")
            continue
        if any(TASKS[task].per_frame for task in _values(rows["task"]) if task in TASKS):
            notes.append(f"{model} on {data}: figures of frames, not of clips (they stand in `metrics`)")
            continue
        labels = next((name for name in _values(rows["label_set"])), None)
        missing = _missing(root, rows)
        title = f"{experiment}: " * named + _title(model, data)
        found, said = _assess(root, rows, title, labels, key, missing, resamples)
        notes += [note for note in said if note not in notes]
        levels = _levels(rows, _labels_of(root, labels, None), resamples)
        bundles = _values(rows["bundle"])
        filed = OUT_OF_FOLD if data == _FOLDS else data
        judged.append(
            Judged(
                experiment=experiment,
                model=model,
                data=filed,
                bundle=bundles[0] if len(bundles) == 1 else None,
                assessment=found,
                levels=levels,
            )
        )
    if not judged:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise TablesError(f"experiment {experiment} has no test or independent row of clips{why}")
    return judged, notes


def evaluate_run(
    root: TableRoot,
    run: str,
    labels: str,
    *,
    key: PseudonymKey | None = None,
    task: str = "quality",
    against: str | None = None,
    bundles: Sequence[Path] = (),
    experiment: str | None = None,
    data: str | None = None,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Judge a scored run on labelled clips, and against another run on the clips that both held out.

    Parameters
    ----------
    labels
        A set of the table `labels`, or a CSV or Parquet file (which needs the key).
    task
        Which scores of the run, and which of the labels: quality, artery or stenosis.
    against
        Another run: differences are `run` less `against`.
    bundles
        Folders in which the bundles that scored are looked for, at any depth, where they neither ship nor lie where `train`
        leaves them: a bundle names the patients that it has seen.
    experiment
        Name to file predictions and metrics under. Default: the run's.
    data
        Name of these clips. Default: that of the labels (of a file called labels: its folder).

    Raises
    ------
    TablesError
        No such run or labels, the same run twice, or it cannot be known which patients the bundle has seen.
    LabelError, ValueError
        Labels that cannot be used; no held-out row.
    """
    if against == run:
        raise TablesError(f"--against {against}: the same run")
    prepare(root, key)
    found = load_labels(root, labels, key)
    notes = list(found.report)
    judged = []
    for name in (run,) if against is None else (against, run):
        one, said = _judge_run(
            root, name, found, task, key, bundles, experiment or name, data or found.name, experiment is not None, resamples
        )
        judged.append(one)
        notes += [note for note in said if note not in notes]
    return _file(root, judged, _compared([(judged[0], judged[1])] if against is not None else [], resamples), notes)


def _judge_run(
    root: TableRoot,
    run: str,
    labels: Labels,
    task: str,
    key: PseudonymKey | None,
    bundles: Sequence[Path],
    experiment: str,
    data: str,
    name_by_bundle: bool,
    resamples: int,
) -> tuple[Judged, list[str]]:
    """One run on the labels; its rows are written to `predictions`, so that a report can draw them."""
    clips, target = task_clips(labels.clips, task)
    scores = run_scores(root, run, clips["clip_id"].to_pylist(), task=task)
    if not scores.probability:
        raise TablesError(f"run {run} has no score of the {clips.num_rows:,} clips labelled in {labels.name}")
    net, seen = training_patients(root, scores.bundle, bundles)
    # two bundles of one net under one experiment are two models
    model = f"{net}-{scores.bundle[:8]}" if name_by_bundle else net
    model += f"-{task}" * (task != "quality")  # one run can be judged in both
    facts = ModelFacts(
        experiment=experiment,
        model=model,
        threshold=scores.threshold,
        model_domain=scores.model_domain,
        bundle=scores.bundle,
        label_set=labels.label_set,
    )
    with only_writer():
        write_set_predictions(root, facts, data, clips, target, scores.probability, training_patients=seen, task=task)
    rows = read_predictions(root, experiment, model, data=data)
    assessment, notes = _assess(
        root, rows, f"{run}: {model}", labels.label_set, key, scores.unscored, resamples, labels, [] if seen else [UNCHECKED]
    )
    if seen and not assessment.num_in_sample:
        notes.append(
            f"{model}: none of its {len(seen):,} training patients is among these (pseudonyms of another key would not show)"
        )
    levels = _levels(_with_unscored(rows, clips, target, seen), labels.clips, resamples)
    return (
        Judged(
            experiment=experiment,
            model=model,
            data=data,
            bundle=scores.bundle,
            assessment=assessment,
            levels=levels,
        ),
        notes,
    )


def _assess(
    root: TableRoot,
    rows: pa.Table,
    title: str,
    label_set: str | None,
    key: PseudonymKey | None,
    unscored: Mapping[str, int],
    resamples: int,
    labels: Labels | None = None,
    known: Sequence[str] = (),
) -> tuple[Assessment, list[str]]:
    """The assessment, with what is `known` of all its figures, and notes on how it was made."""
    clips = _labels_of(root, label_set, labels)
    selected = review_note(clips, rows["clip_id"].to_pylist())
    known = [*known, *([selected] if selected else [])]
    facts, notes = header_facts(root, clips, rows["clip_id"].to_pylist(), key)
    (task,) = _values(rows["task"])
    try:
        found = assess(
            rows,
            title=title,
            classes=TASKS[task].classes,
            facts=facts,
            unscored=unscored,
            notes=known,
            resamples=resamples,
        )
    except ValueError as error:
        raise TablesError(str(error)) from error
    return found, notes


def _labels_of(root: TableRoot, label_set: str | None, labels: Labels | None) -> pa.Table | None:
    if labels:
        return labels.clips
    return read_set(root, "labels", label_set=label_set) if label_set else None


def _with_unscored(rows: pa.Table, clips: pa.Table, target: NDArray[np.bool_], seen: Collection[str]) -> pa.Table:
    """Rows of `predictions`, and without a probability the labelled clips that are not among them: they say what a study is."""
    scored = set(rows["clip_id"].to_pylist())
    names = ["clip_id", "patient_id", "study_id", "group_id"]
    left = clips.select(names).append_column("target", pa.array(target, pa.bool_()))
    left = left.append_column("in_sample", pa.array(in_sample(left, seen)))
    left = left.append_column("part", pa.array(["independent"] * len(left)))
    left = left.filter(pa.array([clip_id not in scored for clip_id in left["clip_id"].to_pylist()], pa.bool_()))
    return pa.concat_tables([rows, left], promote_options="default")


def _levels(rows: pa.Table, clips: pa.Table | None, resamples: int) -> list[LevelSummary]:
    """Arteries and studies of held-out clips, of tasks that pool clips to them; the arteries are the labels'."""
    if clips is None or not any(TASKS[task].named_frames for task in _values(rows["task"]) if task in TASKS):
        return []
    return level_summaries(with_artery(held_out(rows), clips), resamples=resamples)


Compared = tuple[Judged, Judged, PairedComparison]


def _compared(pairs: Sequence[tuple[Judged, Judged]], resamples: int) -> list[Compared]:
    """The pairs that held out a clip in common."""
    found = ((a, b, compare_assessed(a.assessment, b.assessment, resamples=resamples)) for a, b in pairs)
    return [(a, b, paired) for a, b, paired in found if paired is not None]


def _file(
    root: TableRoot, judged: Sequence[Judged], comparisons: Sequence[Compared], notes: Sequence[str]
) -> Evaluation:
    """Write all figures of each model in one call."""
    written = 0
    for one in judged:
        rows = [*metric_rows(one.assessment), *(row for level in one.levels for row in level.rows())]
        for a, b, found in comparisons:
            if b is one:
                other = a.model if a.experiment == b.experiment else f"{a.experiment}/{a.model}"
                rows += comparison_rows(found, other, scope=_scope(one.assessment))
        rows += _foreign(root, one, rows)
        facts = ModelFacts(
            experiment=one.experiment,
            model=one.model,
            threshold=one.assessment.metrics.threshold,
            model_domain=one.assessment.model_domain,
            bundle=one.bundle,
        )
        with only_writer():
            written += write_metrics(root, facts, one.data, rows, data_domain=one.assessment.data_domain)
    return Evaluation(models=tuple(judged), comparisons=tuple(comparisons), notes=tuple(notes), num_rows=written)


_OWN = frozenset(
    {
        *FIGURES,
        *("true_positive", "false_positive", "false_negative", "true_negative"),
        *("ece", "calibration_slope", "calibration_intercept", "calibration_in_the_large"),
        *("net_benefit", "net_benefit_call_all", "mcnemar", "unscored_clips", UNCHECKED_ROWS),
    }
)
"""Figures that are made here, and replaced by another call."""


def _foreign(root: TableRoot, one: Judged, rows: Sequence[Row]) -> list[Row]:
    """Rows under the same name that this call does not make: a set is replaced as a whole, these stay.

    Epochs and core hours of the training, its figures of single frames; comparisons with models of other experiments, as long as
    the rows judged are the same.
    """
    own = _OWN | {str(row["metric"]) for row in rows}
    stored = read_set(root, "metrics", experiment=one.experiment, model=one.model, data=one.data).to_pylist()
    made = {"experiment", "model", "data", "measured_at", "code_version"}
    again = {row.get("compared_with") for row in rows}
    unchanged = _fingerprint(stored) == _fingerprint(rows)
    return [
        {column: value for column, value in row.items() if column not in made}
        for row in stored
        if (
            (row["metric"] not in own or row["subgroup_value"] == "frame" or row["subgroup"] == "boxes")
            and not (row["subgroup"] == "level" and row["subgroup_value"] != "frame")
            if row["compared_with"] is None
            else unchanged and "/" in row["compared_with"] and row["compared_with"] not in again
        )
    ]


def _fingerprint(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Figures of all rows that other rows, labels or scores would hardly leave as they are."""
    names = ("subgroup", "compared_with", "fold")
    return sorted(
        (row["metric"], row["value"], row["num_clips"], row["num_positive"])
        for row in rows
        if row["metric"] in ("auc", "brier")
        and row["scope"] in ("set", "pooled")
        and all(row.get(name) is None for name in names)
    )


def metric_rows(found: Assessment) -> list[Row]:
    """The rows of `metrics` of one assessment: folds, pooled or set, subgroups, calibration, decision curve, rows left out."""
    scope = _scope(found)
    counts: dict[str, Any] = {"num_clips": found.metrics.num_rows, "num_patients": found.num_patients}
    counts["num_positive"] = found.metrics.num_positive
    if found.folds is not None:
        rows = folds_rows(found.folds)
    else:
        rows = metrics_rows(
            found.metrics,
            scope=scope,
            intervals=found.intervals,
            num_patients=found.num_patients,
            num_in_sample=found.num_in_sample,
        )
    rows += calibration_rows(found.calibration, scope=scope, intervals=found.calibration_intervals, **counts)
    rows += decision_rows(found.decision, scope=scope, **counts)
    for fact, groups in found.subgroups.items():
        rows += subgroup_rows(fact.replace(" ", "_"), groups, scope=scope)
    same = {"scope": scope, "metric": "prevalence", "value": found.metrics.confusion.prevalence, **counts}
    rows += [
        same | {"subgroup": fact.replace(" ", "_"), "subgroup_value": value} for fact, value in found.one_value.items()
    ]
    rows += [
        {"scope": scope, "metric": "unscored_clips", "value": float(n), "subgroup": "outcome", "subgroup_value": why}
        for why, n in found.unscored.items()
    ]
    if UNCHECKED in found.notes:
        value = float(found.metrics.num_rows)
        rows.append({"scope": scope, "metric": UNCHECKED_ROWS, "value": value, "subgroup": "outcome", "note": UNCHECKED})
    return rows


def _scope(found: Assessment) -> str:
    return "set" if found.folds is None else "pooled"


def _title(model: str, data: str) -> str:
    return f"{model}, out of fold" if data == _FOLDS else f"{model} on {data}"


def _missing(root: TableRoot, rows: pa.Table) -> dict[str, int]:
    """Clips that the folds of these rows leave out, but that no model of theirs scored."""
    scored = set(rows["clip_id"].to_pylist())
    left_out: set[str] = set()
    for fold_set in _values(rows["fold_set"]):
        folds = read_set(root, "folds", fold_set=fold_set)
        left_out.update(folds.filter(pc.equal(folds["part"], "test"))["clip_id"].to_pylist())
    missing = len(left_out - scored)
    return {"left out by a fold, not scored": missing} if missing else {}


def _predicted(root: TableRoot, experiment: str) -> dict[tuple[str, str], set[int | None]]:
    """(model, data) -> folds with rows (None: of no fold)."""
    names = ["model", "data", "fold"]
    rows = root.open("predictions").to_pyarrow_dataset()
    found: dict[tuple[str, str], set[int | None]] = {}
    for row in (
        rows.to_table(columns=names, filter=pc.field("experiment") == experiment)
        .group_by(names)
        .aggregate([])
        .to_pylist()
    ):
        found.setdefault((row["model"], row["data"]), set()).add(row["fold"])
    return found


def _experiments(root: TableRoot) -> str:
    names = _values(root.open("predictions").to_pyarrow_dataset().to_table(columns=["experiment"])["experiment"])
    return f"there is {', '.join(names)}" if names else "there are none at all: `angio-ray train` makes them"


def _values(column: pa.ChunkedArray) -> list[Any]:
    return sorted(value for value in pc.unique(column).to_pylist() if value is not None)
