"""Figures of the frames of full contrast: where they begin and end (stenosis paper; spec section 2).

    true and found interval of clips -> contrast_frames -> ContrastFrames

Frames are counted at 15 per second, from 0, both ends included; a clip without full contrast has no interval (None).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from angio_ray.evaluation.metrics import ratio

Interval = tuple[int, int]
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
    def begin_mean_ms(self) -> float | None:
        """The same in ms."""
        return None if self.begin_mean is None else self.begin_mean * 1000 / FRAMES_PER_S

    @property
    def end_mean_ms(self) -> float | None:
        """The same in ms."""
        return None if self.end_mean is None else self.end_mean * 1000 / FRAMES_PER_S


def contrast_frames(
    truth: Sequence[Interval | None], found: Sequence[Interval | None]
) -> tuple[ContrastFrames, ContrastFrames]:
    """(runs of SHORT or more frames of full contrast, shorter ones). ValueError where the two differ in length."""
    parts: tuple[list[Any], list[Any]] = [], []
    for t, f in zip(truth, found, strict=True):
        parts[t is not None and t[1] - t[0] + 1 < SHORT].append((t, f))
    return _figures(parts[0]), _figures(parts[1])


def _figures(pairs: Sequence[tuple[Interval | None, Interval | None]]) -> ContrastFrames:
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
