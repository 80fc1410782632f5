"""What folds leave behind: threshold, bundle, predictions and figures. From probabilities to folders and tables.

    fold -> write_fold -> bundle folder + rows of `predictions`       all folds -> write_summary -> ensemble + `metrics`

Of tasks with a class per frame `contrast_results` makes threshold, rows and figures.

The threshold comes from validation rows alone; figures come from test rows of patients that the fold's model has not seen.
Knows nothing of Ray, of clips' pixels or of how the weights were found.

Shapes: N rows of a part.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from angio_ray import __version__
from angio_ray.evaluation.contrast_frames import contrast_frames
from angio_ray.evaluation.metrics import binary_metrics, calibration, decision_curve
from angio_ray.evaluation.pooled import FoldsSummary, folds_summary
from angio_ray.evaluation.thresholds import Rule, choose_threshold
from angio_ray.models import NETS, TASKS
from angio_ray.models.bundles import Bundle, Origin, load_bundle, write_bundle
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import read_set
from angio_ray.training.contrast_results import (
    ContrastSummary,
    Span,
    choose_contrast_threshold,
    contrast_summary,
    judge_contrast,
)
from angio_ray.training.folds import Fold, Folds, check_disjoint
from angio_ray.training.loop import Epoch
from angio_ray.training.named_frames import worst_class
from angio_ray.training.predictions import (
    ModelFacts,
    calibration_rows,
    decision_rows,
    folds_rows,
    held_out,
    read_predictions,
    write_fold_predictions,
    write_metrics,
)
from angio_ray.training.recipes import Recipe
from angio_ray.training.region_results import ClipRegions, region_figures, region_lines, region_rows, regions_json
from angio_ray.training.stenosis_results import (
    FoundBoxes,
    box_figures,
    box_rows,
    choose_study_threshold,
    clip_probability,
    frame_figures,
    frame_rows,
    level_summaries,
    with_artery,
)

log = logging.getLogger(__name__)

OUT_OF_FOLD = "out_of_fold"
ENSEMBLE = "ensemble"
_MOST_MEMBERS = 20
"""Of an ensemble of leave-one-out folds: more would be slow to score with, and would not fit in memory together."""
_COST = ("epochs", "steps", "clips_seen", "train_seconds", "core_hours")
_MORE = ("frame_", "box_", "map_box_", "region_", "patch_")
"""How the names of figures begin that single tasks have beside these."""
_SHOWN = ("auc", "average_precision", "accuracy", "precision", "sensitivity", "specificity", "npv", "f1", "brier")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What all folds of a training share."""

    name: str
    task: str
    net: str
    recipe: Recipe
    recipe_name: str
    folds: Folds
    label_set: str
    clips: pa.Table
    """Schema `labels.LABELLED`, of every clip in the folds."""
    rule: Rule
    at_least: float | None
    seen_before: tuple[str, ...]
    """Pseudonyms of the patients whom the model to begin from has seen; none of them is in the folds."""
    began_from: str
    """In words."""
    began_on: Origin | None
    """What the model to begin from was trained on; None where there is none."""
    command: str
    resamples: int
    out: Storage

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the net's outputs."""
        spec = TASKS[self.task]
        return spec.classes if NETS[self.net].classes == len(spec.classes) else spec.finer

    @property
    def trained_on(self) -> Origin:
        """patients, as soon as one clip is of a patient, or the model to begin from has seen one."""
        synthetic = pc.all(self.clips["synthetic"]).as_py() and self.began_on != "patients"
        return "synthetic" if synthetic else "patients"

    @property
    def data_domain(self) -> str:
        """Of the clips: synthetic, patients or mixed."""
        synthetic = set(self.clips["synthetic"].to_pylist())
        return "mixed" if len(synthetic) > 1 else "synthetic" if synthetic == {True} else "patients"

    def bundle_place(self, fold: int | str) -> str:
        """Where the bundle of a fold (or the ensemble) lies, below `out`: `score --bundles` takes the folder above it."""
        return f"{self.name}/bundles/{fold if isinstance(fold, str) else f'fold-{fold}'}/{self.task}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a fold's training came to."""

    state_dict: Mapping[str, Tensor]
    validation_N: NDArray[np.float32]
    """Probability of the positive class of each validation clip, in the order of the fold's part; of each class of each frame
    (N, T, K) of nets with a class per frame."""
    test_N: NDArray[np.float32]
    validation_spans: tuple[Span, ...] = ()
    """Of nets with a class per frame: what is known of these clips' frames."""
    test_spans: tuple[Span, ...] = ()
    test_boxes: tuple[FoundBoxes, ...] = ()
    """Of nets with maps: what they show on the frames of test clips that boxes were marked on."""
    test_regions: tuple[ClipRegions, ...] = ()
    """Of nets of regions: those of the test clips' pairs, compared with their outlines."""
    region_threshold: tuple[float, str] | None = None
    """Of these, the threshold that the regions follow from, and the level that it was chosen at; None where there is none."""
    epochs: tuple[Epoch, ...]
    best_epoch: int

    @property
    def cost(self) -> dict[str, float]:
        """Epochs, steps of the optimizer, clips seen, seconds, core-hours (processor time)."""
        return {
            "epochs": float(len(self.epochs)),
            "steps": float(sum(epoch.steps for epoch in self.epochs)),
            "clips_seen": float(sum(epoch.clips for epoch in self.epochs)),
            "train_seconds": sum(epoch.seconds for epoch in self.epochs),
            "core_hours": sum(epoch.core_seconds for epoch in self.epochs) / 3600,
        }


def fold_is_written(experiment: Experiment, root: TableRoot, number: int) -> bool:
    """Whether the fold's predictions are there, and the bundle that made them."""
    stored = read_predictions(root, experiment.name, experiment.net, folds=[number])
    if not stored.num_rows:
        return False
    manifest = _manifest(experiment, number)
    return manifest is not None and manifest["digest"] == stored["bundle"][0].as_py()


def write_fold(experiment: Experiment, root: TableRoot, fold: Fold, outcome: Outcome) -> None:
    """Choose the threshold on validation, write the bundle and its card, then the predictions.

    ValueError where validation lacks a class or no threshold reaches what was asked for.
    """
    check_disjoint(fold.train, fold.validation, fold.test)
    verdict = _verdict(experiment, fold, outcome)
    threshold = verdict.threshold
    figures = {f"test_{name}": round(value, 4) for name, value in verdict.tested.items() if value is not None}
    card = _fold_card(experiment, fold, outcome, verdict)
    bundle = _publish(
        experiment.out,
        experiment.bundle_place(fold.number),
        lambda folder: write_bundle(
            folder,
            task=experiment.task,
            net=experiment.net,
            state_dicts=[outcome.state_dict],
            threshold=threshold,
            trained_on=experiment.trained_on,
            classes=experiment.classes,
            metrics=figures | outcome.cost,
            training_patients=[*fold.training_patients, *experiment.seen_before],
            card=card,
            half=True,
        ),
    )
    ids = [*fold.validation["clip_id"].to_pylist(), *fold.test["clip_id"].to_pylist()]
    facts = _facts(experiment, bundle)
    named = dict(zip(ids, verdict.probability_N.tolist(), strict=True))
    found = verdict.found if verdict.found is None else verdict.found.append_column("clip_id", pa.array(ids, pa.string()))
    if outcome.test_regions:
        clip_ids, patients = (fold.test[name].to_pylist() for name in ("clip_id", "group_id"))
        uri = experiment.out.child(experiment.name, "regions", f"fold-{fold.number}.json")
        experiment.out.write_bytes(uri, regions_json(outcome.test_regions, clip_ids, patients))
    write_fold_predictions(root, facts, experiment.folds, fold.number, named, experiment.clips, found)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """What a fold's outcome says of its clips."""

    threshold: float
    rule: str
    """How it was chosen, in words."""
    tested: Mapping[str, float | None]
    """Figures of the test clips."""
    probability_N: NDArray[np.float32]
    """Of each validation clip, then of each test clip."""
    found: pa.Table | None = None
    """More columns of `predictions`, of the same clips."""


def _verdict(experiment: Experiment, fold: Fold, outcome: Outcome) -> _Verdict:
    """ValueError where validation lacks a class or no threshold reaches what was asked for."""
    spec = TASKS[experiment.task]
    if spec.per_frame:
        threshold = choose_contrast_threshold(outcome.validation_N, outcome.validation_spans)
        validation = judge_contrast(outcome.validation_N, outcome.validation_spans, threshold)
        test = judge_contrast(outcome.test_N, outcome.test_spans, threshold)
        columns = {name: values + test.columns[name] for name, values in validation.columns.items()}
        return _Verdict(
            threshold=threshold,
            rule="the least mean error of both ends",
            tested=contrast_frames(test.truth, test.found)[0].figures,
            probability_N=np.concatenate([validation.probability_N, test.probability_N]),
            found=pa.table({name: pa.array(values, pa.int32()) for name, values in columns.items()}),
        )
    rule, more = str(experiment.rule), {}
    validation_N, test_N = outcome.validation_N, outcome.test_N
    if spec.named_frames:
        clips = {row["clip_id"]: row for row in experiment.clips.to_pylist()}
        tested = [clips[clip_id] for clip_id in fold.test["clip_id"].to_pylist()]
        targets = [worst_class(row["stenoses"], len(experiment.classes)) or 0 for row in tested]
        more = frame_figures(outcome.test_N, targets, outcome.test_spans) | box_figures(tested, outcome.test_boxes)
        validation_N, test_N = clip_probability(validation_N), clip_probability(test_N)
        rows = with_artery(fold.validation, experiment.clips).append_column("probability", pa.array(validation_N))
        threshold, level = choose_study_threshold(rows, experiment.rule, experiment.at_least)
        rule = f"{rule} of {level}"
    elif outcome.region_threshold:
        threshold, level = outcome.region_threshold
        rule = f"{rule} of {level}"
    else:
        threshold = choose_threshold(
            _target(fold.validation), validation_N, rule=experiment.rule, at_least=experiment.at_least
        ).threshold
    if outcome.test_regions:
        more = region_figures(outcome.test_regions, fold.test["group_id"].to_pylist())
    return _Verdict(
        threshold=threshold,
        rule=rule,
        tested=binary_metrics(_target(fold.test), test_N, threshold).figures() | more,
        probability_N=np.concatenate([validation_N, test_N]),
    )


def write_summary(
    experiment: Experiment, root: TableRoot, *, trained: bool = True
) -> FoldsSummary | ContrastSummary:
    """The ensemble of all folds' bundles, and the figures of the out-of-fold rows, from what is stored.

    Of many folds that leave one out there is no ensemble.

    With `trained` false (no fold is new) nothing that is there is written again: `evaluate` may have added to it.
    """
    numbers = range(experiment.folds.num_folds)
    rows = read_predictions(root, experiment.name, experiment.net, folds=numbers)
    rows = rows.filter(pc.equal(rows["part"], "test"))
    there = read_set(root, "metrics", experiment=experiment.name, model=experiment.net, data=OUT_OF_FOLD).num_rows
    if TASKS[experiment.task].per_frame:
        found = contrast_summary(rows, resamples=experiment.resamples)
        if trained or not there:
            costs = _cost_rows([(_manifest(experiment, number) or {}).get("metrics", {}) for number in numbers])
            _maybe_ensemble(experiment, found)
            facts = _facts(experiment, None)
            write_metrics(root, facts, OUT_OF_FOLD, [*found.rows(), *costs], data_domain=experiment.data_domain)
        return found
    names = ("target", "probability", "group_id", "fold", "threshold", "in_sample")
    columns = {name: rows[name].to_pylist() for name in names}
    summary = folds_summary(
        columns["target"],
        columns["probability"],
        columns["group_id"],
        columns["fold"],
        columns["threshold"],
        in_sample_N=columns["in_sample"],
        resamples=experiment.resamples,
    )
    if there and not trained:
        return summary
    kept = held_out(rows)
    target, probability = kept["target"].to_pylist(), kept["probability"].to_pylist()
    stated = [(_manifest(experiment, number) or {}).get("metrics", {}) for number in numbers]
    counts = {"num_clips": len(kept), "num_positive": sum(target), "num_patients": summary.num_patients}
    figures = [
        *folds_rows(summary),
        *calibration_rows(calibration(target, probability), scope="pooled", **counts),
        *decision_rows(decision_curve(target, probability), scope="pooled", **counts),
        *_cost_rows(stated),
    ]
    if TASKS[experiment.task].named_frames:
        for level in level_summaries(with_artery(kept, experiment.clips), resamples=experiment.resamples):
            figures += level.rows()
        figures += [*frame_rows(stated), *box_rows(stated)]
    if TASKS[experiment.task].paired_frames:
        figures += region_rows(stated)
    _maybe_ensemble(experiment, summary)
    facts = _facts(experiment, None)
    write_metrics(root, facts, OUT_OF_FOLD, figures, data_domain=experiment.data_domain)
    return summary


def study_lines(experiment: Experiment, root: TableRoot) -> list[str]:
    """What to tell the user of arteries and studies, where the task pools clips to them, or of regions."""
    if TASKS[experiment.task].paired_frames:
        uris = [experiment.out.child(experiment.name, "regions", f"fold-{n}.json") for n in range(experiment.folds.num_folds)]
        return region_lines([experiment.out.read_bytes(uri) for uri in uris])
    if not TASKS[experiment.task].named_frames:
        return []
    numbers = range(experiment.folds.num_folds)
    rows = held_out(read_predictions(root, experiment.name, experiment.net, folds=numbers))
    return [level.line() for level in level_summaries(with_artery(rows, experiment.clips), resamples=experiment.resamples)]


def summary_lines(experiment: Experiment, summary: FoldsSummary | ContrastSummary) -> list[str]:
    """What to tell the user: the pooled figures with intervals beside the mean of the folds, and on which data."""
    if isinstance(summary, ContrastSummary):
        lines = [
            f"{experiment.name}: {summary.pooled.num_clips:,} out-of-fold clips of {summary.num_patients:,} patients "
            f"({experiment.data_domain}) with full contrast; frames at 15/s",
            *summary.lines(),
        ]
    else:
        lines = _clip_lines(experiment, summary)
    numbers = range(experiment.folds.num_folds)
    took = [manifest["metrics"] for number in numbers if (manifest := _manifest(experiment, number))]
    cost = {name: sum(fold.get(name, 0.0) for fold in took) for name in _COST}
    lines.append(
        f"  trained from {experiment.began_from}: {cost['epochs']:,.0f} epochs, {cost['steps']:,.0f} steps, "
        f"{cost['clips_seen']:,.0f} clips seen, {cost['core_hours']:.2f} core-hours (all folds together)"
    )
    return lines


def _clip_lines(experiment: Experiment, summary: FoldsSummary) -> list[str]:
    pooled = summary.pooled
    lines = [
        f"{experiment.name}: {pooled.num_rows:,} out-of-fold clips of {summary.num_patients:,} patients "
        f"({experiment.data_domain}), {pooled.num_positive:,} {TASKS[experiment.task].classes[-1]}"
    ]
    for name in ("auc", "accuracy", "precision", "sensitivity", "specificity", "f1"):
        value, mean = pooled.figures()[name], summary.mean_of_folds[name]
        interval = summary.pooled_intervals.get(name)
        low_high = "" if interval is None or interval.low is None else f" ({interval.low:.3f}-{interval.high:.3f})"
        spread = (
            ""
            if mean.mean is None
            else f"; folds {mean.mean:.3f}" + (f" +- {mean.sd:.3f}" if mean.sd is not None else "")
        )
        lines.append(f"  {name} {_said(value)}{low_high}{spread}")
    if summary.num_in_sample:
        lines.append(f"  {summary.num_in_sample:,} rows of patients that the model had seen are left out")
    return lines


# -- figures ---------------------------------------------------------------------------------------------------------


def _target(part: pa.Table) -> NDArray[np.int64]:
    return np.asarray(part["target"].to_pylist(), np.int64)


def _facts(experiment: Experiment, bundle: Bundle | None) -> ModelFacts:
    return ModelFacts(
        experiment=experiment.name,
        model=experiment.net,
        threshold=bundle.threshold if bundle else None,
        model_domain=experiment.trained_on,
        bundle=bundle.digest if bundle else None,
        label_set=experiment.label_set,
    )


def _cost_rows(took: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """What the training of each fold took, beside the figures that it gave."""
    rows: list[dict[str, Any]] = []
    for name in _COST:
        values = [fold.get(name) for fold in took]
        rows += ({"scope": "fold", "fold": i, "metric": name, "value": value} for i, value in enumerate(values))
        rows.append({"scope": "pooled", "metric": name, "value": sum(value or 0.0 for value in values)})
    return rows


# -- bundles ---------------------------------------------------------------------------------------------------------


def _maybe_ensemble(experiment: Experiment, summary: FoldsSummary | ContrastSummary) -> None:
    """Of several folds, but not of many that leave one out."""
    numbers = range(experiment.folds.num_folds)
    if len(numbers) > _MOST_MEMBERS and experiment.folds.plan.leaves_one_out:
        log.info("%d folds: no ensemble of them is written", len(numbers))
    elif len(numbers) > 1:
        _write_ensemble(experiment, [_fetch(experiment, number) for number in numbers], summary)


def _write_ensemble(
    experiment: Experiment, bundles: Sequence[Bundle], summary: FoldsSummary | ContrastSummary
) -> None:
    """All folds' weights. No clip is new to all of them, so its threshold is the mean of theirs, and no figure is its own."""
    threshold = round(float(np.mean([bundle.threshold for bundle in bundles])), 4)
    seen = sorted({patient for bundle in bundles for patient in bundle.training_patients})
    _publish(
        experiment.out,
        experiment.bundle_place(ENSEMBLE),
        lambda folder: write_bundle(
            folder,
            task=experiment.task,
            net=experiment.net,
            state_dicts=[load(data) for bundle in bundles for data in bundle.weights],
            threshold=threshold,
            trained_on=experiment.trained_on,
            classes=experiment.classes,
            training_patients=seen,
            card=_ensemble_card(experiment, bundles, summary, threshold),
            half=True,
        ),
    )


def _publish(out: Storage, place: str, write: Callable[[Path], Bundle]) -> Bundle:
    """Write a bundle folder wherever `out` is; its manifest last, so that it is there as a whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = write(Path(folder) / "bundle")
        files = sorted(Path(folder, "bundle").iterdir(), key=lambda file: file.name == "bundle.json")
        for file in files:
            out.write_bytes(out.child(place, file.name), file.read_bytes())
    return bundle


def _manifest(experiment: Experiment, number: int) -> dict[str, Any] | None:
    out = experiment.out
    try:
        return dict(json.loads(out.read_bytes(out.child(experiment.bundle_place(number), "bundle.json"))))
    except FileNotFoundError:
        return None


def _fetch(experiment: Experiment, number: int) -> Bundle:
    out, manifest = experiment.out, _manifest(experiment, number)
    assert manifest is not None
    with tempfile.TemporaryDirectory() as folder:
        for name in ["bundle.json", *(entry["file"] for entry in manifest["weights"])]:
            data = out.read_bytes(out.child(experiment.bundle_place(number), name))
            Path(folder, Path(name).name).write_bytes(data)
        return load_bundle(folder)


# -- cards -----------------------------------------------------------------------------------------------------------


def _fold_card(
    experiment: Experiment,
    fold: Fold,
    outcome: Outcome,
    verdict: _Verdict,
) -> str:
    parts = [("train", fold.train), ("validation", fold.validation), ("test", fold.test)]
    counts = [
        f"| {name} | {len(set(part['group_id'].to_pylist())):,} | {len(part):,} | {int(_target(part).sum()):,} |"
        for name, part in parts
    ]
    spec = TASKS[experiment.task]
    figures, threshold = verdict.tested, verdict.threshold
    own = figures if spec.per_frame else [*_SHOWN, *(name for name in figures if name.startswith(_MORE))]
    shown = [f"| {name} | {_said(figures[name])} |" for name in own]
    counted = "with full contrast longer than in the median clip" if spec.per_frame else spec.classes[-1]
    epochs = [
        f"{e.number}. {e.frames} frames of {e.size} px, rate {e.learning_rate:g}: loss {e.loss:.3f}, "
        f"validation AUC {_said(e.validation_auc)}"
        for e in outcome.epochs
    ]
    cost = outcome.cost
    precision = " and ".join(sorted({e.precision for e in outcome.epochs}))
    return f"""{_head(experiment, f"fold {fold.number} of {experiment.folds.num_folds}")}

## Data
{_data(experiment)}

| part (by patient) | patients | clips | {counted} |
|---|---|---|---|
{chr(10).join(counts)}

## Protocol
{_protocol(experiment)} Threshold {threshold:g} by {verdict.rule} on the validation patients only.
Weights of epoch {outcome.best_epoch} of {len(outcome.epochs)}; {cost["steps"]:,.0f} steps, {cost["clips_seen"]:,.0f} clips seen,
{cost["train_seconds"]:,.0f} s, {cost["core_hours"]:.2f} core-hours, in {precision}.
Made by angio_ray {__version__} with

    {experiment.command}

{chr(10).join(epochs)}

## Figures on the test patients ({experiment.data_domain}; this fold's alone, see `metrics` for all with intervals)

| figure | value |
|---|---|
{chr(10).join(shown)}
{"" if spec.per_frame else _kinds_table(experiment, fold, verdict.probability_N[-len(fold.test) :] >= np.float32(threshold))}"""


def _kinds_table(experiment: Experiment, fold: Fold, positive_N: NDArray[np.bool_]) -> str:
    """How many test clips of each kind are called positive."""
    kinds = dict(zip(*(experiment.clips[c].to_pylist() for c in ("clip_id", "quality_class")), strict=True))
    by_kind: dict[str, list[bool]] = {}
    for clip_id, hit in zip(fold.test["clip_id"].to_pylist(), positive_N.tolist(), strict=True):
        by_kind.setdefault(kinds[clip_id] or "(none given)", []).append(hit)
    classes = [f"| {kind} | {len(hits)} | {sum(hits)} |" for kind, hits in sorted(by_kind.items())]
    return f"""
| kind of test clip | clips | called {TASKS[experiment.task].classes[-1]} |
|---|---|---|
{chr(10).join(classes)}
"""


def _ensemble_card(
    experiment: Experiment, bundles: Sequence[Bundle], summary: FoldsSummary | ContrastSummary, threshold: float
) -> str:
    lines = "\n".join(f"- {line.strip()}" for line in summary_lines(experiment, summary)[1:])
    return f"""{_head(experiment, f"ensemble of {len(bundles)} folds")}

The mean of the folds' probabilities. Threshold {threshold:g}: the mean of the folds' own, each chosen on its validation
patients. **No figure of the ensemble was measured:** every patient of the data was seen by some of its members. To judge
it, score other patients.

## Data
{_data(experiment)}

## Protocol
{_protocol(experiment)} Made by angio_ray {__version__} with

    {experiment.command}

## Its members on their own left-out patients
{lines}
"""


def _head(experiment: Experiment, what: str) -> str:
    seen = "synthetic clips only" if experiment.trained_on == "synthetic" else "clips of patients"
    spec = TASKS[experiment.task]
    gives = (
        f"the probability of each frame to be of {', '.join(spec.classes[:-1])} or {spec.classes[-1]} contrast"
        if spec.per_frame
        else f"the probability that a clip is {spec.classes[-1]}"
    )
    return f"""# {experiment.net}, {experiment.task}: {experiment.name}, {what}

**Trained on {seen}. Research use only, not for clinical use.** It gives {gives}.
Its figures hold for clips like those it was tested on, and for no others."""


def _data(experiment: Experiment) -> str:
    clips = experiment.clips
    patients = len(set(clips["group_id"].to_pylist()))
    first = experiment.folds.fold(0)
    positive = int(sum(_target(part).sum() for part in (first.train, first.validation, first.test)))
    spec = TASKS[experiment.task]
    about = "" if spec.per_frame else f", about {positive:,} {spec.classes[-1]}"
    return (
        f"{len(clips):,} clips of {patients:,} patients ({experiment.data_domain}){about}; "
        f"labels `{experiment.label_set}`, folds `{experiment.folds.name}` "
        f"({experiment.folds.plan.scheme}, no patient on two sides)."
    )


def _protocol(experiment: Experiment) -> str:
    recipe = experiment.recipe
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("stages", "augment")}
    stages = ", then ".join(
        f"{s.epochs} epoch{'s' * (s.epochs > 1)} of {s.frames} frames of {s.size} px"
        + " (squares cut from the frames, taught by what is marked in them)" * s.cut
        + " (regions, the classifier left as it is)" * s.regions
        for s in recipe.stages
    )
    spec, cut = NETS[experiment.net], any(stage.cut for stage in recipe.stages)
    calibrated = cut and spec.layout == "BCTHW-maps" and not spec.num_boxes
    return (
        f"Recipe {experiment.recipe_name}: {stages}; begun from {experiment.began_from}. "
        f"Adam, {'half a cosine' if recipe.cosine else 'StepLR'}. "
        + "Maps calibrated on frames of the validation patients. " * calibrated
        + f"Settings: {', '.join(f'{k} {v}' for k, v in settings.items())}. Augmentation: "
        f"{', '.join(f'{k} {v:g}' for k, v in asdict(recipe.augment).items())}."
    )


def _said(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
