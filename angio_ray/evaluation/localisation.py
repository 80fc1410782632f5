"""Figures of boxes: how well narrowings are found on single frames (stenosis paper, table 4; spec section 2).

    truth and found boxes of frames -> localisation -> Localisation

Boxes are (x0, y0, x1, y1) in px of one common size, 512 as in the paper; the scores of found boxes are probabilities.
Matching and average precision are MONAI's (COCO's rules). Undefined is None, never NaN.
Shapes: S narrowings of a frame, D found boxes of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou
from numpy.typing import NDArray

from angio_ray.evaluation.metrics import ratio

Floats = NDArray[np.float64]

MOST_FOUND = 100
"""Boxes of a frame that count, highest scores first, as in COCO; the rest is not looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameBoxes:
    """One frame: what is there and what was found."""

    truth_S4: Floats
    severity_S: Floats
    """Narrowing of each, any unit that grows with it (% of the diameter)."""
    found_D4: Floats
    score_D: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Localisation:
    """Figures over all frames. Sensitivities are shares of narrowings or frames, distances px."""

    iou: float
    threshold: float
    num_frames: int
    num_stenoses: int
    global_sensitivity: float | None
    """Frames with a narrowing whose highest-scoring box alone meets the most severe one, or one of several equal (COCO's AR at
    one detection)."""
    stenosis_sensitivity: float | None
    """Narrowings met by a box at or above the threshold."""
    precision: float | None
    """Boxes at or above the threshold that meet a narrowing. The paper's "specificity" is not defined there."""
    false_boxes_per_frame: float
    frame_specificity: float | None
    """Frames without a narrowing that have no box at or above the threshold."""
    average_precision: float | None
    """At this IoU, of all boxes, interpolated at 101 recalls as COCO does."""
    centre_distance_mean: float | None
    """From the highest-scoring box to the most severe narrowing, over the frames that have both."""
    centre_distance_sd: float | None
    centre_distance_rmse: float | None
    """The paper's "MSE" is given in pixels: it may be this one, or the mean."""


def localisation(frames: Sequence[FrameBoxes], *, iou: float, threshold: float) -> Localisation:
    """Compare found boxes with the truth.

    Parameters
    ----------
    frames
        All judged frames, those without narrowing or without box too.
    iou
        Least overlap (intersection over union) of a box with the narrowing that it meets; the paper has 0.5, and 0.2 for
        activation maps. Each narrowing is met once.
    threshold
        Least score of a box that is shown. Average precision, global sensitivity and distances look at all.

    Raises
    ------
    ValueError
        Boxes, severities or scores that do not go together.
    """
    for frame in frames:
        if frame.truth_S4.shape != (len(frame.severity_S), 4) or frame.found_D4.shape != (len(frame.score_D), 4):
            raise ValueError("a box is four numbers, with one severity or score each")
    frames = [_kept(frame, np.argsort(-frame.score_D, kind="stable")[:MOST_FOUND]) for frame in frames]
    shown = [_kept(frame, np.flatnonzero(frame.score_D >= threshold)) for frame in frames]
    met = sum(int(match["dtMatches"].sum()) for match in _matched(shown, iou))
    num_stenoses = sum(len(frame.truth_S4) for frame in frames)
    num_shown = sum(len(frame.found_D4) for frame in shown)
    diseased = [frame for frame in frames if len(frame.truth_S4)]
    clear = [frame for frame in shown if not len(frame.truth_S4)]
    tops = [_worst_and_top(frame) for frame in diseased if len(frame.found_D4)]
    hits = sum(float(_overlap(worst_W4, top[None]).max()) >= iou for worst_W4, top in tops)
    distance = np.array([np.linalg.norm(_centre(worst_W4) - _centre(top), axis=-1).min() for worst_W4, top in tops])
    return Localisation(
        iou=iou,
        threshold=threshold,
        num_frames=len(frames),
        num_stenoses=num_stenoses,
        global_sensitivity=ratio(hits, len(diseased)),
        stenosis_sensitivity=ratio(met, num_stenoses),
        precision=ratio(met, num_shown),
        false_boxes_per_frame=(num_shown - met) / max(1, len(frames)),
        frame_specificity=ratio(sum(not len(frame.found_D4) for frame in clear), len(clear)),
        average_precision=_average_precision(frames, iou) if num_stenoses else None,
        centre_distance_mean=float(distance.mean()) if tops else None,
        centre_distance_sd=float(distance.std(ddof=1)) if len(tops) > 1 else None,
        centre_distance_rmse=float(np.sqrt((distance**2).mean())) if tops else None,
    )


def _kept(frame: FrameBoxes, keep: NDArray[np.intp]) -> FrameBoxes:
    return FrameBoxes(
        truth_S4=frame.truth_S4, severity_S=frame.severity_S, found_D4=frame.found_D4[keep], score_D=frame.score_D[keep]
    )


def _worst_and_top(frame: FrameBoxes) -> tuple[Floats, Floats]:
    """The most severe narrowings (several may be equal), and the highest-scoring box."""
    worst = frame.severity_S == frame.severity_S.max()
    return frame.truth_S4[worst], frame.found_D4[int(np.argmax(frame.score_D))]


def _overlap(one_N4: Floats, other_M4: Floats) -> Floats:
    """Intersection over union, (N, M)."""
    return np.asarray(box_iou(one_N4, other_M4))


def _centre(box: Floats) -> Floats:
    return (box[..., :2] + box[..., 2:]) / 2


def _matched(frames: Sequence[FrameBoxes], iou: float) -> list[dict[str, NDArray[np.float64]]]:
    """What MONAI says of each frame that has a box of either kind; one class."""
    found = matching_batch(
        _overlap,
        [iou],
        [frame.found_D4 for frame in frames],
        [np.zeros(len(frame.score_D), int) for frame in frames],
        [frame.score_D for frame in frames],
        [frame.truth_S4 for frame in frames],
        [np.zeros(len(frame.severity_S), int) for frame in frames],
        max_detections=MOST_FOUND,
    )
    return [by_class[0] for by_class in found if by_class]


def _average_precision(frames: Sequence[FrameBoxes], iou: float) -> float:
    metric = COCOMetric(["stenosis"], [iou], (iou, iou, 0.1), [MOST_FOUND], per_class=False, verbose=False)
    figures, _ = metric([{0: match} for match in _matched(frames, iou)])
    return float(next(value for name, value in figures.items() if name.startswith("AP")))
