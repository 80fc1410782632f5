"""Which frames of a labelled clip a net for single frames is trained on, and what is known of each of them.

    row of LABELLED -> named_frames -> NamedFrames          -> frames_without_contrast

Candidate frames are chosen of those with full contrast as in scoring, each with the class of the clip's worst narrowing. Boxes
are marked on one frame or a few, and the heart moves between them: on another frame a box holds good with a margin (`losses`).
Knows nothing of pixels, folds or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from angio_ray.models.contrast import candidate_frames

SIGNIFICANT_PERCENT = 25.0
"""Narrowing of the diameter from which on a stenosis counts (the paper's 2-CAT and 3-CAT, spec section 2)."""
_OCCLUDED_PERCENT = 99.5
"""From here on a percentage says that the vessel is closed (3-CAT)."""

UNKNOWN = -1
"""In place of a box's class or of its frame's place."""


@dataclass(frozen=True, slots=True)
class NamedFrames:
    """The frames of one clip that are shown, and their class."""

    frames: tuple[int, ...]
    """Of the file, from 0."""
    target: int
    """Class of the clip's worst narrowing."""
    boxes_S6: NDArray[np.float32]
    """A row per box: place of its frame among `frames` (UNKNOWN where it is another), class or UNKNOWN, then x0, y0, x1, y1 as
    shares of the frame's width and height."""


def named_frames(row: Mapping[str, Any], count: int, num_classes: int) -> NamedFrames:
    """At most `count` candidate frames of a clip with stenoses, contrast_begin, contrast_end, rows and columns."""
    frames = candidate_frames(np.arange(row["contrast_begin"], row["contrast_end"] + 1), count)
    return NamedFrames(
        frames=tuple(frames),
        target=worst_class(row["stenoses"], num_classes),
        boxes_S6=_boxes(row, frames, num_classes),
    )


def marked_frames(row: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """At most `count` frames on which boxes were marked, to judge found ones by; of a clip without any narrowing its middle
    candidate frame, on which none may be found."""
    if not row["stenoses"]:
        return tuple(candidate_frames(np.arange(row["contrast_begin"], row["contrast_end"] + 1), 3)[1:2])
    return tuple(sorted({s["frame"] for s in row["stenoses"] if _corners(s) and s.get("frame") is not None})[:count])


def marked_boxes(row: Mapping[str, Any], frame: int) -> NDArray[np.float64]:
    """What was marked on a frame and counts: (S, 5), x0, y0, x1, y1 as shares of the sides, and percent."""
    sides = np.tile([row["columns"] or 1, row["rows"] or 1], 2)
    found = [
        [*np.asarray(corners) / sides, s["percent"]]
        for s in row["stenoses"]
        if s.get("frame") == frame and (s.get("percent") or 0) >= SIGNIFICANT_PERCENT and (corners := _corners(s))
    ]
    return np.array(found, np.float64).reshape(-1, 5)


def frames_without_contrast(row: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """At most `count` frames before any contrast, evenly spread: the paper's redundancy frames. Empty where there is none."""
    if not row["first_contrast"]:  # not known, or the first frame has some
        return ()
    return tuple(candidate_frames(np.arange(row["first_contrast"]), count))


def worst_class(stenoses: Sequence[Mapping[str, Any]], num_classes: int) -> int:
    """Class of the worst of the narrowings whose percentage is known; the first class where there is none."""
    return max((percent_class(s["percent"], num_classes) for s in stenoses if s.get("percent") is not None), default=0)


def percent_class(percent: float, num_classes: int) -> int:
    """0 below 25 %; of two classes 1 from there on; of three 2 for an occlusion."""
    if percent < SIGNIFICANT_PERCENT:
        return 0
    return 2 if num_classes > 2 and percent >= _OCCLUDED_PERCENT else 1


def _boxes(row: Mapping[str, Any], frames: Sequence[int], num_classes: int) -> NDArray[np.float32]:
    boxes = []
    for stenosis in row["stenoses"]:
        corners, percent = _corners(stenosis), stenosis.get("percent")
        if not corners or not row["rows"] or not row["columns"]:
            continue
        shares = np.asarray(corners, float) / np.tile([row["columns"], row["rows"]], 2)
        place = frames.index(stenosis["frame"]) if stenosis.get("frame") in frames else UNKNOWN
        boxes.append([place, UNKNOWN if percent is None else percent_class(percent, num_classes), *shares])
    return np.array(boxes, np.float32).reshape(-1, 6)


def _corners(stenosis: Mapping[str, Any]) -> list[float] | None:
    """x0, y0, x1, y1; None where one is not known."""
    corners = [stenosis.get(name) for name in ("x0", "y0", "x1", "y1")]
    return None if None in corners else [float(str(corner)) for corner in corners]
