"""Figures of the frames of full contrast: where they begin and end (stenosis paper; spec section 2).

    true and found interval of clips -> contrast_frames -> ContrastFrames        -> contrast_intervals -> Interval of each

Frames are counted at 15 per second, from 0, both ends included; a clip without full contrast has no interval (None).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from angio_ray.evaluation.bootstrap import (
    FEW_PATIENTS,
    RESAMPLES,
    difference_interval,
    divided,
    logit_interval,
    number_patients,
    resample,
)
from angio_ray.evaluation.intervals import FEW_NOTE, Interval
from angio_ray.evaluation.metrics import Floats, ratio

Frames = tuple[int, int]
"""Beginning and ending frame of full contrast (BCF, ECF)."""

FRAMES_PER_S = 15.0
ACCEPTED = 3.0
"""Mean of both errors, in frames, up to which a clip is accepted."""
WRONG = 10.0
"""The same from which on it counts as an error."""
SHORT = 5
"""Runs with fewer frames of full contrast are the paper's failure case, and counted apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastFrames:
    """Errors over the clips that have full contrast. Frames at 15/s; rates are shares of these clips."""

    num_clips: int
    num_missed: int
    """Clips in which no interval was found: neither accepted nor in the means, counted as errors."""
    begin_mean: float | None
    """Mean size of the error of the beginning frame."""
    begin_sd: float | None
    end_mean: float | None
    end_sd: float | None
    accept_rate: float | None
    error_rate: float | None
    num_without: int
    """Clips without full contrast, in no other figure."""
    num_false: int
    """Of these, those in which an interval was found."""

    @property
    def figures(self) -> dict[str, float | None]:
        """By the names that `metrics` has."""
        return {
            "begin_error_frames": self.begin_mean,
            "begin_error_sd": self.begin_sd,
            "end_error_frames": self.end_mean,
            "end_error_sd": self.end_sd,
            "accept_rate": self.accept_rate,
            "error_rate": self.error_rate,
        }

    @property
    def begin_mean_ms(self) -> float | None:
        """The same in ms."""
        return None if self.begin_mean is None else self.begin_mean * 1000 / FRAMES_PER_S

    @property
    def end_mean_ms(self) -> float | None:
        """The same in ms."""
        return None if self.end_mean is None else self.end_mean * 1000 / FRAMES_PER_S


def contrast_frames(
    truth: Sequence[Frames | None], found: Sequence[Frames | None]
) -> tuple[ContrastFrames, ContrastFrames]:
    """(runs of SHORT or more frames of full contrast, shorter ones). ValueError where the two differ in length."""
    parts: tuple[list[Any], list[Any]] = [], []
    for t, f in zip(truth, found, strict=True):
        parts[is_short(t)].append((t, f))
    return _figures(parts[0]), _figures(parts[1])


def is_short(truth: Frames | None) -> bool:
    """Whether a clip has full contrast, but in fewer than SHORT frames."""
    return truth is not None and truth[1] - truth[0] + 1 < SHORT


def mean_errors(truth: Sequence[Frames], found: Sequence[Frames | None]) -> Floats:
    """Of each clip the mean of both errors, frames, (N,); WRONG at most, and where no interval was found."""
    pairs = zip(truth, found, strict=True)
    errors = [WRONG if f is None else min(WRONG, (abs(f[0] - t[0]) + abs(f[1] - t[1])) / 2) for t, f in pairs]
    return np.array(errors, float)


def contrast_intervals(
    truth: Sequence[Frames | None],
    found: Sequence[Frames | None],
    patients: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Mapping[str, Interval]:
    """Intervals of the means and rates of the clips with SHORT or more frames of full contrast: patients are resampled.

    Raises ValueError where the lengths differ.
    """
    kept = [(t, f, p) for t, f, p in zip(truth, found, patients, strict=True) if t is not None and not is_short(t)]
    if not kept:
        return {}
    patient_N, num_patients = number_patients([p for _, _, p in kept])
    figures = _figures([(t, f) for t, f, _ in kept]).figures
    there_N = np.array([f is not None for _, f, _ in kept], float)
    error_N2 = np.array([(0, 0) if f is None else (abs(f[0] - t[0]), abs(f[1] - t[1])) for t, f, _ in kept], float)
    mean_N = error_N2.mean(axis=1)
    parts_N = {
        "begin_error_frames": (error_N2[:, 0], there_N),
        "end_error_frames": (error_N2[:, 1], there_N),
        "accept_rate": ((mean_N <= ACCEPTED) * there_N, np.ones(len(kept))),
        "error_rate": (np.maximum(mean_N >= WRONG, 1 - there_N), np.ones(len(kept))),
    }
    parts_P = {name: [np.bincount(patient_N, part, num_patients) for part in parts] for name, parts in parts_N.items()}

    def weighted(weights_BP: Floats) -> dict[str, Floats]:
        return {name: divided(weights_BP @ part, weights_BP @ whole) for name, (part, whole) in parts_P.items()}

    draws = resample(weighted, num_patients, len(kept), resamples=resamples, seed=seed)
    made = {}
    for name, values_R in draws.items():
        estimate = figures[name]
        of = logit_interval if name.endswith("rate") else difference_interval
        limits = None if estimate is None else of(estimate, values_R, num_patients - 1, num_patients, level)
        low, high = limits[:2] if limits else (None, None)
        made[name] = Interval(
            estimate=estimate, low=low, high=high, level=level,
            method="clustered_bootstrap" if limits else None, num_patients=num_patients, resamples=resamples,
            note=None if limits and num_patients >= FEW_PATIENTS else FEW_NOTE if limits else "no draw differs",
        )  # fmt: skip
    return made


def _figures(pairs: Sequence[tuple[Frames | None, Frames | None]]) -> ContrastFrames:
    filled = [(t, f) for t, f in pairs if t is not None]
    error_C2 = np.array([[abs(f[0] - t[0]), abs(f[1] - t[1])] for t, f in filled if f is not None], float).reshape(
        -1, 2
    )
    mean_C = error_C2.mean(axis=1)
    missed = len(filled) - len(error_C2)
    begin, end = ((_mean(side), _sd(side)) for side in error_C2.T)
    return ContrastFrames(
        num_clips=len(filled),
        num_missed=missed,
        begin_mean=begin[0],
        begin_sd=begin[1],
        end_mean=end[0],
        end_sd=end[1],
        accept_rate=ratio(int((mean_C <= ACCEPTED).sum()), len(filled)),
        error_rate=ratio(int((mean_C >= WRONG).sum()) + missed, len(filled)),
        num_without=sum(t is None for t, _ in pairs),
        num_false=sum(t is None and f is not None for t, f in pairs),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _sd(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
