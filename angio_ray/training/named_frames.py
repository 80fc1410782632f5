"""Which frames of a labelled clip a net for single frames is taught and judged on, and what is known of each of them.

    row of LABELLED -> named_frames -> NamedFrames          -> marked_frames, marked_boxes          -> frames_without_contrast

Candidate frames are chosen as in scoring, of those that the label calls full, each with the class of the clip's worst narrowing.
Boxes are marked on one frame or a few, and the heart moves between them: on another frame the box of the nearest holds good with
a margin (`losses`). Knows nothing of pixels, folds or Ray.

Shapes: S boxes of a clip on the frames shown; of a narrowing one on each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from angio_ray.clip import ClipRejected
from angio_ray.models.contrast import candidate_frames, candidates_between
from angio_ray.models.stenosis import may_be_candidates
from angio_ray.sampling import select_frames

SIGNIFICANT_PERCENT = 25.0
"""Narrowing of the diameter from which on a stenosis counts (the paper's 2-CAT and 3-CAT, spec section 2)."""
UNCLEAR_PERCENT = 15.0
"""From here on up to SIGNIFICANT_PERCENT a box teaches neither that something is narrow there nor that nothing is: two readers
would not agree."""
_OCCLUDED_PERCENT = 99.5
"""From here on a percentage says that the vessel is closed (3-CAT)."""

UNKNOWN = -1
"""In place of a box's class."""


@dataclass(frozen=True, slots=True)
class NamedFrames:
    """The frames of one clip that are shown, and their class."""

    frames: tuple[int, ...]
    """Of the file, from 0."""
    target: int
    """Class of the clip's worst narrowing."""
    boxes_S7: NDArray[np.float32] | None
    """A row per narrowing and frame: place among `frames`, 1 if it was marked on another frame (else 0), class or UNKNOWN, then
    x0, y0, x1, y1 as shares of the frame's width and height. None where a narrowing that may count has no box: who looks
    elsewhere may find it."""
    vessels: tuple[bytes | None, ...] = ()
    """To teach: the filled vessels of each frame as PNG, None where nobody drew them."""


def named_frames(row: Mapping[str, Any], count: int, num_classes: int, *, taught: bool = False) -> NamedFrames | None:
    """At most `count` candidate frames of a clip, of schema LABELLED.

    `taught`: frames within full contrast on which boxes were marked, or vessels drawn, stand in place of those next to them. None
    where the clip cannot be used: its frames of full contrast, its frame time or the class of its worst narrowing are not known.
    """
    target, frames = worst_class(row["stenoses"], num_classes), _candidates(row, count)
    if target is None or not frames:
        return None
    free = set(frames)
    drawn = {mask["frame"]: mask["png"] for mask in row.get("vessel_masks") or () if taught}
    marked = marked_frames(row, len(frames)) if taught and row["stenoses"] else ()
    for frame in dict.fromkeys((*marked, *drawn)):
        if frame not in frames and frames[0] <= frame <= frames[-1] and free:
            nearest = min(free, key=lambda other: abs(other - frame))
            frames[frames.index(nearest)] = frame
            free.remove(nearest)
    frames.sort()
    return NamedFrames(
        tuple(frames), target, _boxes(row, frames, num_classes), tuple(drawn.get(frame) for frame in frames) if drawn else ()
    )


def marked_frames(row: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """At most `count` frames to judge found boxes on: those on which every narrowing of the clip that may count is marked (told
    apart by their segments); of a clip without any narrowing its middle candidate, on which none may be found."""
    if not row["stenoses"]:
        candidates = _candidates(row, count)
        return tuple(candidates[len(candidates) // 2 :][:1])
    all_of_them = {s.get("segment") for s in row["stenoses"] if _may_count(s)}
    by_frame: dict[int, set[str | None]] = {}
    for s in row["stenoses"]:
        if s.get("frame") is not None and s["frame"] < (row["num_frames"] or 0) and _corners(s) and s.get("percent") is not None:
            by_frame.setdefault(s["frame"], set()).add(s.get("segment"))
    return tuple(sorted(frame for frame, segments in by_frame.items() if segments >= all_of_them)[:count])


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
    before = min(row["first_contrast"] or 0, row["num_frames"] or 0)  # not known, or the first frame has some: none
    return tuple(candidate_frames(np.arange(before), count)) if before else ()


def worst_class(stenoses: Sequence[Mapping[str, Any]], num_classes: int) -> int | None:
    """Class of the worst of the narrowings, the first class where there is none; None where one of unknown percentage may be
    worse than all that are known."""
    worst = max((percent_class(s["percent"], num_classes) for s in stenoses if s.get("percent") is not None), default=0)
    unknown = any(s.get("percent") is None for s in stenoses)
    return None if unknown and worst < num_classes - 1 else worst


def percent_class(percent: float, num_classes: int) -> int:
    """0 below 25 %; of two classes 1 from there on; of three 2 for an occlusion."""
    if percent < SIGNIFICANT_PERCENT:
        return 0
    return 2 if num_classes > 2 and percent >= _OCCLUDED_PERCENT else 1


def _is_unclear(percent: float) -> bool:
    """See UNCLEAR_PERCENT."""
    return UNCLEAR_PERCENT <= percent < SIGNIFICANT_PERCENT


def _candidates(row: Mapping[str, Any], count: int) -> list[int]:
    """As scoring would choose them, between the labelled ends of full contrast."""
    begin, end, num_frames, step_ms = (row[n] for n in ("contrast_begin", "contrast_end", "num_frames", "frame_time_ms"))
    if None in (begin, end, num_frames, step_ms) or begin >= num_frames:
        return []
    try:
        selection = select_frames(np.arange(num_frames) * step_ms, may_be_candidates(1))
    except (ClipRejected, ValueError):  # shorter than any task takes, or an impossible time
        return []
    return candidates_between(np.array(selection.indices[: selection.num_shown]), begin, end, count)


def _boxes(row: Mapping[str, Any], frames: Sequence[int], num_classes: int) -> NDArray[np.float32] | None:
    by_segment: dict[Any, list[Mapping[str, Any]]] = {}
    seen = Counter((s.get("segment"), s.get("frame")) for s in row["stenoses"])
    twice = {segment for (segment, _), number in seen.items() if number > 1}
    for number, stenosis in enumerate(row["stenoses"]):
        if _corners(stenosis) and row["rows"] and row["columns"]:
            segment = stenosis.get("segment")
            # boxes of one segment are one narrowing on several frames, unless there are several of them, or none is named
            alone = segment is None or segment in twice
            by_segment.setdefault(number if alone else segment, []).append(stenosis)
        elif _may_count(stenosis):
            return None
    boxes = []
    for place, frame in enumerate(frames):
        for marks in by_segment.values():
            for mark in _nearest(marks, frame):
                shares = np.asarray(_corners(mark), float) / np.tile([row["columns"], row["rows"]], 2)
                percent = mark.get("percent")
                kind = percent_class(percent, num_classes) if percent is not None and not _is_unclear(percent) else UNKNOWN
                boxes.append([place, mark.get("frame") != frame, kind, *shares])
    return np.array(boxes, np.float32).reshape(-1, 7)


def _nearest(marks: Sequence[Mapping[str, Any]], frame: int) -> list[Mapping[str, Any]]:
    """Of a segment's boxes those that are on the frame nearest to this one, and those of which no frame is known."""
    known = {mark["frame"] for mark in marks if mark.get("frame") is not None}
    nearest = min(known, key=lambda other: (abs(other - frame), other), default=None)
    return [mark for mark in marks if mark.get("frame") in (nearest, None)]


def _may_count(stenosis: Mapping[str, Any]) -> bool:
    return stenosis.get("percent") is None or stenosis["percent"] >= SIGNIFICANT_PERCENT


def _corners(stenosis: Mapping[str, Any]) -> list[float] | None:
    """x0, y0, x1, y1; None where one is not known."""
    corners = [stenosis.get(name) for name in ("x0", "y0", "x1", "y1")]
    return None if None in corners else [float(str(corner)) for corner in corners]
