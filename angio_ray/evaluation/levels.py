"""From clips to arteries and studies by the maximum, as the stenosis paper pools them (spec section 2).

    rows of clips -> by_artery, by_study -> Level      rows that `metrics`, `intervals` and `pooled` take

A positive artery makes the study positive. Without one, a study of which the left or the right artery is missing says nothing:
it is not evaluable, never negative. That goes for the truth, of all labelled clips, as for the score, of those that were scored.
Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, f1_score

ARTERIES = ("LCA", "RCA")


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """Arteries of studies, or studies, as rows with target and probability."""

    name: str
    """artery | study, or artery LCA, artery RCA."""
    target_N: NDArray[np.bool_]
    probability_N: NDArray[np.float32]
    patients_N: tuple[str, ...]
    threshold_N: NDArray[np.float64]
    fold_N: NDArray[np.int64]
    """-1 without folds."""
    num_not_evaluable: int
    """Arteries or studies that are no row: nothing of them was scored, or of a study neither artery positive nor both there."""
    num_lost: int
    """Of these, the positive ones: missed, if not by the model."""

    @property
    def called_N(self) -> NDArray[np.bool_]:
        """Whether each is called positive."""
        return np.asarray(self.probability_N >= np.float32(self.threshold_N))

    @property
    def has_both(self) -> bool:
        """Whether there are rows of both classes."""
        return bool(0 < self.target_N.sum() < len(self.target_N))

    def sensitivity_with_lost(self) -> float | None:
        """Share of all positive ones that are called so, those that are not evaluable counted as missed."""
        positive = int(self.target_N.sum()) + self.num_lost
        return float((self.called_N & self.target_N).sum() / positive) if positive else None

    def at_prevalence(self, share: float) -> dict[str, float | None]:
        """Accuracy, precision and negative predictive value as they would be if so many of the rows were positive.

        From sensitivity and specificity, which do not depend on it; None where one of these is not defined.
        """
        if not self.has_both:
            return dict.fromkeys(("accuracy", "precision", "npv"))
        sensitivity, specificity = self.called_N[self.target_N].mean(), 1 - self.called_N[~self.target_N].mean()
        called = share * sensitivity + (1 - share) * (1 - specificity)
        return {
            "accuracy": float(share * sensitivity + (1 - share) * specificity),
            "precision": float(share * sensitivity / called) if called else None,
            "npv": float((1 - share) * specificity / (1 - called)) if called < 1 else None,
        }


def by_artery(rows: pa.Table, artery: str | None = None) -> Level:
    """The largest probability of the scored clips of each artery of a study; positive where one of its labelled clips is.

    `rows`: study_id, group_id, artery, target, probability (null: not scored), threshold, and fold where there are folds. Clips
    whose artery is not known are in no row. With `artery`, only these.
    """
    groups = [
        clips
        for (_, of), clips in _groups(rows, ("study_id", "artery")).items()
        if of is not None and artery in (None, of)
    ]
    return _level(f"artery {artery}" if artery else "artery", [(clips, _scored(clips)) for clips in groups])


def by_study(rows: pa.Table) -> Level:
    """The largest probability of the scored clips of each study, of those that are evaluable in truth and by the scores."""
    judged = []
    for clips in _groups(rows, ("study_id",)).values():
        scored = _scored(clips)
        known = any(clip["target"] for clip in clips) or _both(clips)
        said = any(np.float32(clip["probability"]) >= np.float32(clip["threshold"]) for clip in scored) or _both(scored)
        judged.append((clips, scored if known and said else []))
    return _level("study", judged)


def weighted_f1_and_kappa(class_N: Sequence[int], found_N: Sequence[int]) -> dict[str, float | None]:
    """F1 of each class weighted by its rows, and Cohen's kappa, of classes by number; None where not defined."""
    if not len(class_N):
        return {"weighted_f1": None, "kappa": None}
    kappa = float(cohen_kappa_score(class_N, found_N)) if len({*class_N, *found_N}) > 1 else None
    return {"weighted_f1": float(f1_score(class_N, found_N, average="weighted", zero_division=0.0)), "kappa": kappa}


Clip = dict[str, Any]


def _both(clips: Sequence[Clip]) -> bool:
    return {clip["artery"] for clip in clips} >= set(ARTERIES)


def _scored(clips: Sequence[Clip]) -> list[Clip]:
    return [clip for clip in clips if clip["probability"] is not None]


def _groups(rows: pa.Table, keys: Sequence[str]) -> dict[tuple[str | None, ...], list[Clip]]:
    """Rows by study (a clip without one stands for itself) and whatever else is asked for, in a fixed order."""
    groups: dict[tuple[str | None, ...], list[Clip]] = {}
    for number, row in enumerate(rows.to_pylist()):
        key = tuple(row[name] if name != "study_id" or row[name] else f"clip {number}" for name in keys)
        groups.setdefault(key, []).append(row)
    return dict(sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))))


def _level(name: str, groups: Sequence[tuple[Sequence[Clip], Sequence[Clip]]]) -> Level:
    """Of (labelled clips, those of them that say something)."""
    kept = [(clips, max(scored, key=lambda clip: float(clip["probability"]))) for clips, scored in groups if scored]
    lost = [clips for clips, scored in groups if not scored]
    return Level(
        name=name,
        target_N=np.array([any(clip["target"] for clip in clips) for clips, _ in kept], np.bool_),
        probability_N=np.array([worst["probability"] for _, worst in kept], np.float32),
        patients_N=tuple(str(worst["group_id"]) for _, worst in kept),
        threshold_N=np.array([worst["threshold"] for _, worst in kept], np.float64),
        fold_N=np.array([-1 if worst.get("fold") is None else worst["fold"] for _, worst in kept], np.int64),
        num_not_evaluable=len(lost),
        num_lost=sum(any(clip["target"] for clip in clips) for clips in lost),
    )
