"""Stenosis: which of a clip's candidate frames show a narrowing, how severe, and where.

The stenosis paper (spec section 2) classifies single frames of full contrast with Inception-v3, in two classes (below 25 % and
from there on) or three (total occlusion apart), and takes the worst frame for clip, artery and study. `inception_v3` is the
paper's; `stenosis_s` gives each cell of 8 px a say and takes a smooth maximum, at a small part of the cost; `stenosis_s_view` is
told the artery and view, too; `stenosis_fpn` has a detector on the features (`detection`). The paper has a model for each view:
a bundle may hold these (`bundles.with_views`). Which frames are candidates the task `contrast` has said. Knows nothing of
tables, gates or Ray.

Shapes: B clips, T frames, H x W pixels, K classes, h x w cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from angio_ray.models.backends import CompiledScorer
from angio_ray.models.contrast import CANDIDATE_STEP, NUM_CANDIDATES
from angio_ray.models.interface import NetSpec
from angio_ray.sampling import ClipWindow
from angio_ray.views import OWN_MODEL, own_model, view_of

if TYPE_CHECKING:
    from torch import nn

    from angio_ray.models.bundles import Bundle

TWO_CLASSES = ("<25%", ">=25%")
"""Of a frame: its worst narrowing, in percent of the diameter (the paper's 2-CAT)."""
THREE_CLASSES = ("<25%", "25-99%", "100%")
"""The paper's 3-CAT: total occlusions apart."""
COLUMNS = ("stenosis_probability", "stenosis_threshold", "stenosis_class", "stenosis_frames")
READS = (
    "contrast_status", "candidate_frames", "rows", "columns",
    "artery", "oblique", "primary_angle_deg", "secondary_angle_deg", "positioner_motion",
)  # fmt: skip

NO_FULL_CONTRAST = "no_full_contrast"
"""Why a clip is skipped: no frame of it is a candidate."""
CONTRAST_FAILED = "contrast_failed"
"""Why a clip is skipped: the task `contrast` could not look for any."""

NUM_BOXES = 50
"""Of a frame, a detector's best ones, before those that overlap better ones are left out."""
SMALLEST = 35 / 512
"""Side of the paper's smallest box, as a share of its frames' 512 px: smaller ones are taught to detectors, and judged, as if
they were as large."""
_OVERLAP = 0.2
"""Intersection over union with a better box from which on a box is left out: narrowings that touch are one."""
_LEAST = 0.01
"""Probability below which nothing is called a box at all."""

NAMED_512 = ClipWindow(name="named8_512px", size=512, start=0, length=NUM_CANDIDATES, stride=1)
NAMED_299 = ClipWindow(name="named8_299px", size=299, start=0, length=NUM_CANDIDATES, stride=1)


def decoded_windows(bundle: Bundle) -> tuple[ClipWindow, ...]:
    """What a clip is decoded to before its candidate frames are known: all frames that may be one (all at 15 per second would be
    52 MB a clip)."""
    return (may_be_candidates(bundle.window.size),)


def may_be_candidates(size: int) -> ClipWindow:
    """The frames that the contrast task chooses from."""
    return ClipWindow(name=f"t200s{CANDIDATE_STEP}_{size}px", size=size, start=0, length=200, stride=CANDIDATE_STEP)


class StenosisScorer(CompiledScorer):
    """The worst of a clip's candidate frames, and what was seen in each."""

    task = "stenosis"

    def __init__(self, bundle: Bundle, *args: Any, **options: Any) -> None:
        super().__init__(bundle, *args, **options)
        self.classes = bundle.classes
        self.num_boxes = NETS[bundle.net].num_boxes * len(bundle.weights)
        self.num_frames = bundle.window.num_frames
        self.sees_view = NETS[bundle.net].sees_view
        self.of_views = {view: StenosisScorer(own, *args, **options) for view, own in bundle.views.items()}

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[NDArray[np.integer]]],
        known: Mapping[str, Sequence[Any]],
    ) -> dict[str, np.ndarray]:
        """Classify the candidate frames of B clips: -> COLUMNS and stenosis_reason, each of length B.

        A clip whose artery or view has a model of its own is given to that. A clip without candidate frames is skipped.
        ValueError when a net returns no number (NaN) for a clip.
        """
        window = self.windows[0]
        chosen = [
            [place for place, frame in enumerate(shown.tolist()) if frame in (candidates or ()) and frame not in shown[:place]]
            for shown, candidates in zip(frames[window.name], known["candidate_frames"], strict=True)
        ]
        columns = {name: np.full(len(chosen), None, object) for name in (*COLUMNS, "stenosis_reason")}
        found = [i for i, places in enumerate(chosen) if len(places)]
        for i in set(range(len(chosen))) - set(found):
            failed = known["contrast_status"][i] == "failed"
            columns["stenosis_reason"][i] = CONTRAST_FAILED if failed else NO_FULL_CONTRAST
        if not found:
            return columns
        views = {i: _view(known, i) for i in found}
        for own, mine in self._by_model(views):
            # fewer frames stand again, and change no maximum
            x_BTHW = np.stack([inputs[window.name][i][np.resize(chosen[i], self.num_frames)] for i in mine])
            if own.sees_view:
                x_BTHW = with_view(x_BTHW, [views[i] for i in mine])
            for i, p_TX in zip(mine, own.probabilities_of(x_BTHW), strict=True):
                shown, sides = frames[window.name][i], (known["columns"][i], known["rows"][i])
                rows = [
                    own._frame(int(shown[place]), p_X, *sides, self.threshold)
                    for place, p_X in zip(chosen[i], p_TX[: len(chosen[i])], strict=True)
                ]
                columns["stenosis_probability"][i] = max(row["probability"] for row in rows)
                columns["stenosis_threshold"][i] = float(self.threshold)
                columns["stenosis_class"][i] = max((row["class"] for row in rows), key=self.classes.index)
                columns["stenosis_frames"][i] = rows
        return columns

    def _by_model(self, views: Mapping[int, str | None]) -> list[tuple[StenosisScorer, list[int]]]:
        """Which model judges which of the clips."""
        mine: dict[str | None, list[int]] = {}
        for clip, view in views.items():
            mine.setdefault(view if view in self.of_views else None, []).append(clip)
        return [(self if view is None else self.of_views[view], clips) for view, clips in mine.items()]

    def _frame(
        self, frame: int, p_X: NDArray[np.float32], columns: int, rows: int, threshold: np.float32
    ) -> dict[str, Any]:
        """A frame's element of stenosis_frames."""
        p_K, cells_hw, boxes_D5 = taken_apart(p_X, len(self.classes), self.num_boxes)
        return {
            "frame": frame,
            "probability": float(positive(p_K)),
            "class": self.classes[int(classes_at(p_K, threshold))],
            "boxes": [
                {"x0": x0 * columns, "y0": y0 * rows, "x1": x1 * columns, "y1": y1 * rows, "probability": p}
                for x0, y0, x1, y1, p in shown_boxes(cells_hw, boxes_D5).tolist()
            ],
        }


def with_view(x_BTHW: NDArray[np.uint8], views_B: Sequence[str | None]) -> NDArray[np.uint8]:
    """Frames whose top corners say which artery or view they show (`views.own_model`), as nets take it that see it.

    A number, 0 where it is not known, in the first and the last pixel of the first row: so every runner has one input. A corner
    of an angiogram shows the collimator, or nothing that matters.
    """
    said_BTHW = np.array(x_BTHW)
    numbers_B = [0 if view is None else 1 + OWN_MODEL.index(view) for view in views_B]
    said_BTHW[:, :, 0, [0, -1]] = np.array(numbers_B, np.uint8)[:, None, None]
    return said_BTHW


def _view(known: Mapping[str, Sequence[Any]], place: int) -> str | None:
    """Which of `views.OWN_MODEL` a clip is for, by what was found and its header says."""
    row = {name: values[place] for name, values in known.items()}
    view, suspect = view_of(row)
    return own_model(row.get("artery"), view.name if view else None, suspect)


def taken_apart(
    p_X: NDArray[np.float32], num_classes: int, num_boxes: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """What a net with maps says, (..., K + h * w + D * 5): probability of each class (..., K), the map (..., h, w), a square, and
    a detector's boxes (..., D, 5), None of nets that are none."""
    end = p_X.shape[-1] - 5 * num_boxes
    cells = p_X[..., num_classes:end]
    side = math.isqrt(cells.shape[-1])
    boxes = p_X[..., end:].reshape(*p_X.shape[:-1], num_boxes, 5) if num_boxes else None
    return p_X[..., :num_classes], cells.reshape(*cells.shape[:-1], side, side), boxes


def shown_boxes(cells_hw: NDArray[np.float32], boxes_D5: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """A frame's boxes, best first, x0, y0, x1, y1 as shares of its sides and probability: a detector's, else the map's."""
    return map_boxes(cells_hw, 1.0) if boxes_D5 is None else without_overlaps(boxes_D5)


def positive(p_XK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of any class but the first, (...)."""
    return np.asarray(p_XK[..., 1:].sum(axis=-1), np.float32)


def classes_at(p_XK: NDArray[np.float32], threshold: float | np.float32) -> NDArray[np.intp]:
    """The class of each frame: the first below the threshold, else the likeliest of the others."""
    return np.where(positive(p_XK) >= np.float32(threshold), 1 + p_XK[..., 1:].argmax(axis=-1), 0)


def map_boxes(cells_hw: NDArray[np.float32], size: float, *, share: float = 0.5, least: float = 0.05) -> NDArray[np.float64]:
    """Boxes around what stands out in a map: (D, 5), x0, y0, x1, y1 in px of a square of `size`, and probability; best first.

    A box holds the cells that hang together, each with at least `share` of the largest probability of the map and `least`.
    """
    top = float(cells_hw.max(initial=0.0))
    mask = (cells_hw >= max(share * top, least)).astype(np.uint8)
    num, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    boxes = []
    for label in range(1, num):
        x, y, width, height = stats[label, :4]
        boxes.append([x, y, x + width, y + height, float(cells_hw[labels == label].max())])
    boxes.sort(key=lambda box: -box[4])
    found = np.array(boxes, np.float64).reshape(-1, 5)
    found[:, :4] *= size / cells_hw.shape[0]
    return found


def without_overlaps(boxes_D5: NDArray[np.floating]) -> NDArray[np.float64]:
    """Boxes that no better one overlaps much, best first: x0, y0, x1, y1 as shares, probability (OpenCV's suppression)."""
    boxes = np.asarray(boxes_D5, np.float64)
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxes(corners.tolist(), boxes[:, 4].tolist(), _LEAST, _OVERLAP) if len(boxes) else ()
    return boxes[np.asarray(kept, int).reshape(-1)]


def grown(boxes_D4: NDArray[np.floating], least: float = SMALLEST) -> NDArray[np.float64]:
    """Boxes as shares of the sides, each side at least so long, around the same middle."""
    low, high = np.asarray(boxes_D4, np.float64)[:, :2], np.asarray(boxes_D4, np.float64)[:, 2:]
    more = np.maximum(0, least - (high - low)) / 2
    return np.concatenate([low - more, high + more], axis=1)


def _net(name: str, classes: int) -> nn.Module:
    from angio_ray.models import frame_maps

    built: nn.Module = getattr(frame_maps, name)(classes)
    return built


def _detector(classes: int) -> nn.Module:
    from angio_ray.models.detection import FrameDetector
    from angio_ray.models.frame_maps import stenosis_s

    return FrameDetector(stenosis_s(classes), 64)


def _spec(name: str, classes: Sequence[str], suffix: str, **facts: Any) -> NetSpec:
    build: Callable[[], nn.Module] = partial(_detector if facts.get("num_boxes") else partial(_net, name), len(classes))
    return NetSpec(name=name + suffix, build=build, layout="BCTHW-maps", classes=len(classes), **facts)


NETS: dict[str, NetSpec] = {
    spec.name: spec
    for classes, suffix in ((TWO_CLASSES, ""), (THREE_CLASSES, "_3cat"))
    for spec in (
        _spec(
            "stenosis_s", classes, suffix, window=NAMED_512, pool="logsumexp", cost_input=(3, 1, 512, 512), autocast=True,
            part="stenosis_s" if suffix else None,
        ),
        _spec(
            "stenosis_s_view", classes, suffix, window=NAMED_512, pool="logsumexp", cost_input=(3, 1, 512, 512), autocast=True,
            sees_view=True, part=f"stenosis_s{suffix}",
        ),
        _spec(
            "stenosis_fpn", classes, suffix, window=NAMED_512, pool="logsumexp", cost_input=(3, 1, 512, 512), num_boxes=NUM_BOXES,
            part=f"stenosis_s{suffix}", autocast=True,
        ),
        _spec("inception_v3", classes, suffix, window=NAMED_299, pool="mean", cost_input=(3, 1, 299, 299)),
    )
}
