"""What a fold that finds the frames of full contrast comes to: threshold, figures, rows. `results` writes them.

    probabilities per frame, true spans -> judge_contrast -> ContrastVerdict       rows of `predictions` -> contrast_summary

Frames count at 15 per second, from 0, both ends included: those that the net is shown. Knows nothing of Ray, pixels or folders.

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
from angio_ray.evaluation.contrast_frames import (
    FRAMES_PER_S,
    ContrastFrames,
    Frames,
    contrast_frames,
    contrast_intervals,
    is_short,
    mean_errors,
)
from angio_ray.evaluation.intervals import Interval
from angio_ray.evaluation.pooled import MeanOverFolds, mean_over_folds
from angio_ray.models.contrast import longest_run
from angio_ray.training.predictions import interval_columns, mean_rows

_THRESHOLDS = np.round(np.arange(0.1, 0.91, 0.05), 2)


@dataclass(frozen=True, slots=True)
class Span:
    """What is known of one clip's frames."""

    num_shown: int
    """Frames of the clip that the net is shown; what it sees beyond is padding."""
    full: Frames | None
    """Those of full contrast; None where none of them is shown."""

    @classmethod
    def of(cls, class_T: NDArray[np.int64], num_shown: int, full_class: int) -> Span:
        """From the class of each frame."""
        full = np.flatnonzero(class_T[:num_shown] == full_class)
        return cls(num_shown, (int(full[0]), int(full[-1])) if len(full) else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastVerdict:
    """What the model says of some clips."""

    probability_N: NDArray[np.float32]
    """The largest probability of full contrast of a clip's frames."""
    found: tuple[Frames | None, ...]
    truth: tuple[Frames | None, ...]

    @property
    def columns(self) -> dict[str, list[int | None]]:
        """Columns of `predictions`, each of length N."""
        named = {"contrast": self.found, "true": self.truth}
        return {
            f"{name}_{side}": [None if pair is None else pair[at] for pair in pairs]
            for name, pairs in named.items()
            for at, side in enumerate(("begin", "end"))
        }


def choose_contrast_threshold(probability_NTK: NDArray[np.float32], spans: Sequence[Span]) -> float:
    """The threshold of `longest_run` with the least mean error on these (validation) clips; of equals the nearest to 0.5.

    ValueError where none of them has full contrast.
    """
    full = [(p_TK, span) for p_TK, span in zip(probability_NTK, spans, strict=True) if span.full]
    if not full:
        raise ValueError("no validation clip has full contrast")
    truth = [span.full for _, span in full if span.full]

    def cost(threshold: float) -> tuple[float, float]:
        found = [_found(p_TK, span, threshold) for p_TK, span in full]
        return float(mean_errors(truth, found).mean()), abs(threshold - 0.5)

    return float(min(_THRESHOLDS, key=cost))


def judge_contrast(probability_NTK: NDArray[np.float32], spans: Sequence[Span], threshold: float) -> ContrastVerdict:
    """The frames found in each clip at a threshold, beside the true ones."""
    pairs = list(zip(probability_NTK, spans, strict=True))
    return ContrastVerdict(
        probability_N=np.array([p_TK[: span.num_shown, -1].max() for p_TK, span in pairs], np.float32),
        found=tuple(_found(p_TK, span, threshold) for p_TK, span in pairs),
        truth=tuple(span.full for _, span in pairs),
    )


def _found(p_TK: NDArray[np.float32], span: Span, threshold: float) -> Frames | None:
    return longest_run(p_TK[: span.num_shown, -1], threshold)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastSummary:
    """Figures of the left-out clips of all folds, or of a set without folds."""

    folds: Mapping[int, ContrastFrames]
    pooled: ContrastFrames
    short: ContrastFrames
    """The clips with fewer than 5 frames of full contrast, which are in no other figure."""
    intervals: Mapping[str, Interval]
    num_patients: int

    @property
    def mean_of_folds(self) -> dict[str, MeanOverFolds]:
        """Of each figure; empty without folds."""
        if not self.folds:
            return {}
        return {name: mean_over_folds([f.figures[name] for f in self.folds.values()]) for name in self.pooled.figures}

    def lines(self) -> list[str]:
        """What to tell the user."""
        pooled, lines = self.pooled, []
        for name, value in pooled.figures.items():
            if name.endswith("_sd"):
                continue
            interval = self.intervals.get(name)
            low_high = "" if interval is None or interval.low is None else f" ({interval.low:.3f}-{interval.high:.3f})"
            sd = pooled.figures.get(name.replace("frames", "sd")) if name.endswith("frames") else None
            among = "" if sd is None else f"; sd {sd:.2f}, {1000 / FRAMES_PER_S * (value or 0.0):.0f} ms"
            mean = self.mean_of_folds.get(name)
            spread = "" if mean is None or mean.sd is None else f"; folds {mean.mean:.3f} +- {mean.sd:.3f}"
            lines.append(f"  {name} {'not defined' if value is None else f'{value:.3f}'}{low_high}{among}{spread}")
        lines.append(
            f"  full contrast missed in {pooled.num_missed} of {pooled.num_clips} clips; apart from these, "
            f"{self.short.num_clips} clips with fewer than 5 frames of it, {self.short.num_missed} missed"
        )
        return lines

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `metrics`."""
        rows: list[dict[str, Any]] = []
        scope = "pooled" if self.folds else "set"
        for number, fold in self.folds.items():
            rows += _metrics(fold, scope="fold", fold=number)
        rows += mean_rows(self.mean_of_folds)
        pooled = _metrics(self.pooled, scope=scope, num_patients=self.num_patients, num_folds=len(self.folds) or None)
        for row in pooled:
            if interval := self.intervals.get(row["metric"]):
                row |= interval_columns(interval, row["value"])
        short = {"subgroup": "full_contrast", "subgroup_value": "fewer than 5 frames"}
        return [*rows, *pooled, *_metrics(self.short, scope=scope, **short)]


def contrast_summary(rows: pa.Table, *, resamples: int = RESAMPLES) -> ContrastSummary:
    """Of held-out rows of `predictions` (test parts of all folds), or of a set without folds (no column fold)."""
    names = ("group_id", "true_begin", "true_end", "contrast_begin", "contrast_end")
    patients, *ends = (rows[name].to_pylist() for name in names)
    fold = rows["fold"].to_pylist() if "fold" in rows.column_names else []
    truth = [None if b is None else (b, e) for b, e in zip(ends[0], ends[1], strict=True)]
    found = [None if b is None else (b, e) for b, e in zip(ends[2], ends[3], strict=True)]
    pooled, short = contrast_frames(truth, found)
    folds = {}
    for number in sorted(set(fold)):
        here = [i for i, of in enumerate(fold) if of == number]
        folds[number] = contrast_frames([truth[i] for i in here], [found[i] for i in here])[0]
    judged = {p for p, t in zip(patients, truth, strict=True) if t is not None and not is_short(t)}
    return ContrastSummary(
        folds=folds,
        pooled=pooled,
        short=short,
        intervals=contrast_intervals(truth, found, patients, resamples=resamples),
        num_patients=len(judged),
    )


def _metrics(figures: ContrastFrames, **columns: Any) -> list[dict[str, Any]]:
    counts = {"num_missed": figures.num_missed}
    if figures.num_without:  # else there is nothing to be false about
        counts |= {"num_without": figures.num_without, "num_false": figures.num_false}
    return [
        {"metric": name, "value": None if value is None else float(value), "num_clips": figures.num_clips}
        | {"note": "not defined on these rows" if value is None else None}
        | columns
        for name, value in (figures.figures | counts).items()
    ]
