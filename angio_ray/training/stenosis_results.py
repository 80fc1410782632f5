"""What a fold that classifies candidate frames comes to: the clip's worst frame, the threshold, figures of every level.

    probabilities per frame -> clip_probability     validation clips -> choose_study_threshold     test frames -> frame_figures
    rows of `predictions` -> level_summaries -> rows of `metrics`

Clips, arteries and studies are called by the maximum (stenosis paper; spec section 2). Knows nothing of Ray, pixels or folders.

Shapes: N clips of a part, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from angio_ray.evaluation.bootstrap import RESAMPLES
from angio_ray.evaluation.levels import ARTERIES, Level, by_artery, by_study, weighted_f1_and_kappa
from angio_ray.evaluation.localisation import FrameBoxes, localisation
from angio_ray.evaluation.metrics import binary_metrics
from angio_ray.evaluation.pooled import FoldsSummary, folds_summary, mean_over_folds
from angio_ray.evaluation.thresholds import Rule, choose_threshold
from angio_ray.models.stenosis import grown, positive
from angio_ray.training.contrast_results import Span
from angio_ray.training.named_frames import marked_boxes
from angio_ray.training.predictions import folds_rows, mean_rows

IOUS = (0.2, 0.5)
"""Overlaps from which on a box counts as right: the paper's for activation maps and for its detector."""
_SIDE_PX = 512
_BOX_FIGURES = (
    "global_sensitivity",
    "stenosis_sensitivity",
    "precision",
    "false_boxes_per_frame",
    "frame_specificity",
    "average_precision",
    "centre_distance_mean",
    "centre_distance_sd",
    "centre_distance_rmse",
)
PREVALENCES = (0.5, 0.8)
"""Shares of positive studies at which accuracy and predictive values are given: ours, and that of the paper's patients."""


def clip_probability(probability_NTK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the worst frame of each clip to show a narrowing of 25 % or more, (N,). Frames that fill up repeat others."""
    return np.asarray(positive(probability_NTK).max(axis=1), np.float32)


def choose_study_threshold(rows: pa.Table, rule: Rule, at_least: float | None) -> tuple[float, str]:
    """The operating threshold of these (validation) clips, and at which level it was chosen: of studies where they have both
    classes, since that is what people decide on, else of clips.

    `rows`: study_id, group_id, artery, target, probability. ValueError as `choose_threshold`.
    """
    studies = by_study(_with_threshold(rows, 0.0))
    if studies.has_both:
        point = choose_threshold(studies.target_N, studies.probability_N, rule=rule, at_least=at_least)
        return point.threshold, "studies"
    point = choose_threshold(rows["target"].to_pylist(), rows["probability"].to_pylist(), rule=rule, at_least=at_least)
    return point.threshold, "clips"


def frame_figures(
    probability_NTK: NDArray[np.float32], target_N: Sequence[int], spans: Sequence[Span]
) -> dict[str, float | None]:
    """Accuracy, sensitivity, weighted F1, kappa and AUC of single frames, each called what is likeliest (as in the paper).

    target_N: class of each clip. AUC and sensitivity are of any class but the first. Without intervals: the frames of a clip are
    no independent rows.
    """
    class_F = np.concatenate([np.full(span.num_shown, target) for target, span in zip(target_N, spans, strict=True)])
    p_FK = np.concatenate([p_TK[: span.num_shown] for p_TK, span in zip(probability_NTK, spans, strict=True)])
    found_F = p_FK.argmax(axis=1)
    positive_F = class_F > 0
    plain = binary_metrics(positive_F, positive(p_FK), 0.5).figures()
    return {
        "frame_accuracy": float((class_F == found_F).mean()),
        "frame_sensitivity": float((found_F > 0)[positive_F].mean()) if positive_F.any() else None,
        **{f"frame_{name}": value for name, value in weighted_f1_and_kappa(class_F.tolist(), found_F.tolist()).items()},
        "frame_auc": plain["auc"],
    }


@dataclass(frozen=True, slots=True)
class LevelSummary:
    """Figures of arteries or studies."""

    level: Level
    figures: FoldsSummary | None
    """None where there are no rows of both classes. A set without folds is one fold."""

    def line(self) -> str:
        """What to tell the user."""
        level, said = self.level, []
        if self.figures is None:
            said.append("no figures: there are not both classes")
        else:
            for name in ("auc", "accuracy", "sensitivity", "specificity"):
                value, interval = self.figures.pooled.figures()[name], self.figures.pooled_intervals.get(name)
                low_high = "" if interval is None or interval.low is None else f" ({interval.low:.3f}-{interval.high:.3f})"
                said.append(f"{name} {'not defined' if value is None else f'{value:.3f}'}{low_high}")
        if level.num_not_evaluable:
            said.append(f"{level.num_not_evaluable:,} more not evaluable, {level.num_lost:,} of them positive")
        return f"  {level.name}, {len(level.target_N):,} ({int(level.target_N.sum()):,} positive): {', '.join(said)}"

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `metrics`."""
        level = self.level
        scope = "pooled" if len(level.fold_N) and level.fold_N.max() >= 0 else "set"
        rows: list[dict[str, Any]] = [
            {"scope": scope, "metric": "num_not_evaluable", "value": float(level.num_not_evaluable)},
            {"scope": scope, "metric": "num_not_evaluable_positive", "value": float(level.num_lost)},
        ]
        if self.figures is not None:
            made = folds_rows(self.figures)
            if scope == "set":
                made = [row | {"scope": "set", "num_folds": None} for row in made if row["scope"] == "pooled"]
            more = weighted_f1_and_kappa(level.target_N.tolist(), level.called_N.tolist())
            more |= {"sensitivity_with_not_evaluable": level.sensitivity_with_lost()}
            for share in PREVALENCES:
                more |= {f"{name}_at_{share:.0%}_positive": value for name, value in level.at_prevalence(share).items()}
            rows += [*made, *({"scope": scope, "metric": name, "value": value} for name, value in more.items())]
        return [row | {"subgroup": "level", "subgroup_value": level.name} for row in rows]


def with_artery(rows: pa.Table, clips: pa.Table) -> pa.Table:
    """Rows of clips with the artery of their label, null where none is known."""
    arteries = dict(zip(clips["clip_id"].to_pylist(), clips["artery"].to_pylist(), strict=True))
    of = [arteries.get(clip_id) for clip_id in rows["clip_id"].to_pylist()]
    return rows.append_column("artery", pa.array(of, pa.string()))


def level_summaries(rows: pa.Table, *, resamples: int = RESAMPLES) -> list[LevelSummary]:
    """Figures of arteries, of each artery alone, and of studies, of held-out rows of `predictions` with their artery."""
    found = []
    for level in (by_artery(rows), *(by_artery(rows, artery) for artery in ARTERIES), by_study(rows)):
        figures = None
        if level.has_both:
            figures = folds_summary(
                level.target_N, level.probability_N, level.patients_N, level.fold_N, level.threshold_N, resamples=resamples
            )
        found.append(LevelSummary(level, figures))
    return found


@dataclass(frozen=True, slots=True)
class FoundBoxes:
    """What a net finds on one frame."""

    clip: int
    """Row of the clip in its part."""
    frame: int
    """Of the file, from 0."""
    boxes_D5: NDArray[np.float64]
    """x0, y0, x1, y1 as shares of the sides, and probability: a detector's, else the map's."""
    of_map_D5: NDArray[np.float64]
    """The map's."""


def box_figures(clips: Sequence[Mapping[str, Any]], found: Sequence[FoundBoxes]) -> dict[str, float | None]:
    """How well boxes fit those that were marked, of 25 % and more, at both of the paper's overlaps.

    clips: rows of LABELLED, in the part's order. A box counts from half a probability on; distances are px of 512. Boxes are
    judged as if their sides were the paper's least (35 px) at least. Of the maps' boxes the figures begin with `map_`.
    """
    figures: dict[str, float | None] = {}
    for prefix, boxes in (("box", [one.boxes_D5 for one in found]), ("map_box", [one.of_map_D5 for one in found])):
        frames = [
            _frame_boxes(marked_boxes(clips[one.clip], one.frame), found_D5) for one, found_D5 in zip(found, boxes, strict=True)
        ]
        for iou in IOUS if frames else ():
            judged = localisation(frames, iou=iou, threshold=0.5)
            for name in _BOX_FIGURES:
                figures[f"{prefix}_{name}_iou{iou * 100:.0f}"] = getattr(judged, name)
    return figures


def _frame_boxes(truth_S5: NDArray[np.float64], found_D5: NDArray[np.float64]) -> FrameBoxes:
    return FrameBoxes(
        truth_S4=grown(truth_S5[:, :4]) * _SIDE_PX,
        severity_S=truth_S5[:, 4],
        found_D4=grown(found_D5[:, :4]) * _SIDE_PX,
        score_D=found_D5[:, 4],
    )


def box_rows(metrics: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Rows of `metrics` of found boxes, as `frame_rows`."""
    rows = []
    for iou in IOUS:
        end = f"_iou{iou * 100:.0f}"
        rows += stated_rows(metrics, "test_box_", end, {"subgroup": "boxes", "subgroup_value": f"IoU {iou:g}"})
        rows += stated_rows(metrics, "test_map_box_", end, {"subgroup": "boxes of the map", "subgroup_value": f"IoU {iou:g}"})
    return rows


def frame_rows(metrics: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Rows of `metrics` of single frames, by fold and over them, from what each fold's bundle states."""
    return stated_rows(metrics, "test_frame_", "", {"subgroup": "level", "subgroup_value": "frame"})


def stated_rows(
    metrics: Sequence[Mapping[str, float]], begin: str, end: str, same: dict[str, str]
) -> list[dict[str, Any]]:
    """Rows of `metrics`, by fold and over them, of the figures of bundles whose names begin and end so."""
    names = sorted({name for fold in metrics for name in fold if name.startswith(begin) and name.endswith(end)})
    short = {name: name.removeprefix(begin).removesuffix(end) for name in names}
    rows: list[dict[str, Any]] = [
        {"scope": "fold", "fold": number, "metric": short[name], "value": fold.get(name)}
        for number, fold in enumerate(metrics)
        for name in names
    ]
    rows += mean_rows({short[name]: mean_over_folds([fold.get(name) for fold in metrics]) for name in names})
    return [row | same for row in rows]


def _with_threshold(rows: pa.Table, threshold: float) -> pa.Table:
    return rows.append_column("threshold", pa.array([threshold] * len(rows), pa.float64()))
