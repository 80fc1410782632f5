"""Pictures of example clips: the frames that a model saw, and beside them the same under a heat map.

    Example -> clip's URI -> sandboxed reader -> frames, heat, boxes -> animated WebP

The heat is Grad-CAM's, or the map that a net for single frames gives itself, with boxes around what stands out in it.

Bytes are untrusted: they are parsed and decoded in the reader's child process only. Clips whose header says that text is
burned into the pixels get no picture. Knows no page and no figure.

Shapes: T frames, H x W pixels.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from angio_ray.clip import ClipRejected
from angio_ray.dicom.reader import ClipReader
from angio_ray.evaluation.report import Example
from angio_ray.models import TASKS
from angio_ray.models.bundles import Bundle
from angio_ray.sampling import ClipWindow
from angio_ray.storage import ObjectInfo, Storage, StorageUnavailable
from angio_ray.views import own_model

log = logging.getLogger(__name__)

SHOWN_PX = 224
"""Side of a shown frame: more than the nets' 160 px, so that people see what the clip is."""
_QUALITY = 55
_STILL_MS = 500.0
"""Time for each of several frames that do not follow one another."""
_HEAT = 0.45
"""Most that the heat covers of the frame."""
_DIFFERS = 0.02
"""A probability that differs by more from the stored one is said: another precision, another file, another clip."""


class FrameMap:
    """What a net with maps finds in single frames, on the CPU."""

    def __init__(self, bundle: Bundle) -> None:
        every = [(None, bundle), *bundle.views.items()]
        self._models = {view: (own, own.ensemble().requires_grad_(False)) for view, own in every}

    def __call__(self, frames_THW: np.ndarray, view: str | None = None) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Of each frame: probability of any class but the first, the map (T, h, w), and boxes as shares of the sides.

        `view`: which of `views.OWN_MODEL` the clip is for."""
        import torch

        from angio_ray.models.stenosis import NETS, positive, shown_boxes, taken_apart, with_view

        own, model = self._models.get(view, self._models[None])
        frames_1THW = np.array(frames_THW)[None]
        if NETS[own.net].sees_view:
            frames_1THW = with_view(frames_1THW, [view])
        found_TX = model(torch.from_numpy(frames_1THW))[0].numpy()
        p_TK, heat_Thw, boxes_TD5 = taken_apart(found_TX, len(own.classes), model.num_boxes * len(own.weights))
        boxes = [None] * len(heat_Thw) if boxes_TD5 is None else boxes_TD5
        return positive(p_TK), heat_Thw, [shown_boxes(*both) for both in zip(heat_Thw, boxes, strict=True)]


class PairRegions:
    """What a net of regions finds in a pair of frames, on the CPU."""

    def __init__(self, bundle: Bundle) -> None:
        self._model = bundle.ensemble().requires_grad_(False)
        self._threshold, self._size = bundle.threshold, bundle.window.size

    def __call__(self, frames_2HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Of the pair: probability of calcification (1,), the heat of block 6 (2, H, W), the same on both frames, and the box
        of the final region as shares of the sides."""
        import torch

        from angio_ray.models.calcium import final_region, taken_apart
        from angio_ray.models.regions import islands, patches, region_facts, stitched

        pair = torch.from_numpy(np.array(frames_2HW))[None]
        probability, verdict_5, region_5PP = taken_apart(self._model(pair)[0].numpy(), self._size)
        mask_HW = final_region(verdict_5, region_5PP, self._threshold, self._size)
        net: Any = self._model.members[0].net
        heat_5PP = region_5PP
        if hasattr(net, "heat"):
            heat_5hw = net.heat(patches(pair.float(), self._size // 2)).numpy()
            heat_5PP = np.stack([cv2.resize(heat_hw, region_5PP.shape[1:]) for heat_hw in heat_5hw])
        heat_HW = stitched(heat_5PP, height=self._size, width=self._size)[0]
        heat_HW = heat_HW / max(float(heat_HW.max()), 1e-9)
        boxes = np.array([region_facts(one).box for one in islands(mask_HW)], np.float64).reshape(-1, 4) / self._size
        return np.array([probability]), np.stack([heat_HW] * 2), [boxes, boxes]


def seen_frames(row: Mapping[str, Any], task: str) -> tuple[int, ...] | None:
    """Which frames of the file a task saw of a clip with this row of `scores`, where it sees single frames or pairs."""
    if TASKS[task].paired_frames:
        return tuple(frame for pair in row["calcium_frames"] or () for frame in (pair["mask_frame"], pair["frame"]))
    return tuple(one["frame"] for one in row["stenosis_frames"] or ()) if TASKS[task].named_frames else None


def seen_view(row: Mapping[str, Any]) -> str | None:
    """For which of `views.OWN_MODEL` a clip with this row of `scores` is."""
    return own_model(row["artery"], row["view"], row["view_suspect"])


def add_pictures(
    examples: Sequence[Example],
    places: Mapping[str, Mapping[str, Any]],
    find_bundle: Callable[[str], Bundle | None],
    *,
    assume_fps: float | None = None,
    size_px: int = SHOWN_PX,
) -> None:
    """Give each example its picture, or a note of why it has none.

    `places`: clip_id -> uri, size_bytes, etag, burned_in_annotation (`ReportTables.clip_places`); `find_bundle`: digest ->
    bundle, None where it cannot be found (then the frames are shown without a heat map); `size_px`: side of a shown frame.
    """
    by_bundle: dict[str | None, list[Example]] = {}
    for example in examples:
        place = places.get(example.clip_id)
        if place is None:
            example.note = "no picture: the table clips does not say where the clip lies"
        elif (place["burned_in_annotation"] or "").upper() == "YES":
            example.note = "no picture: text is burned into the pixels"
        else:
            by_bundle.setdefault(example.bundle, []).append(example)
    for digest, mine in by_bundle.items():
        bundle = find_bundle(digest) if digest else None
        _of_bundle(mine, places, bundle, assume_fps, size_px)


def _of_bundle(
    examples: Sequence[Example],
    places: Mapping[str, Mapping[str, Any]],
    bundle: Bundle | None,
    assume_fps: float | None,
    size_px: int,
) -> None:
    seen = bundle.window if bundle else ClipWindow(name="seen", size=size_px)
    shown = replace(seen, name="shown", size=size_px)
    by_frame = bool(examples) and examples[0].frames is not None
    cam = _camera(bundle) if bundle else None
    positive = len(TASKS[bundle.task].classes) - 1 if bundle else 1
    with ClipReader([seen, shown], assume_fps=assume_fps) as reader:
        for example in examples:
            try:
                inputs = _frames(reader, places[example.clip_id], example.frames)
            except ClipRejected as rejected:
                example.note = f"no picture: {rejected.reason} ({rejected.detail})"
                continue
            except StorageUnavailable:  # its text may hold a path
                example.note = "no picture: the place of the clip cannot be read"
                continue
            heat_THW, boxes = None, None
            if example.frames is not None:
                inputs = {name: frames_THW[: len(example.frames)] for name, frames_THW in inputs.items()}
            if cam is None:
                example.note = "no heat map: the bundle that scored it was not found"
            elif isinstance(cam, (FrameMap, PairRegions)):
                of_view = {"view": example.view} if isinstance(cam, FrameMap) else {}
                probability_T, heat_THW, boxes = cam(inputs[seen.name], **of_view)
                if abs(float(probability_T.max()) - example.probability) > _DIFFERS:
                    example.note = f"computed anew for the picture: {probability_T.max():.3f}"
            else:
                excluded = example.probability >= example.threshold
                probability_K, heat_THW = cam(inputs[seen.name], positive if excluded else 1 - positive)
                if abs(float(probability_K[positive]) - example.probability) > _DIFFERS:
                    example.note = f"computed anew for the picture: {probability_K[positive]:.3f}"
            step_ms = _STILL_MS if by_frame else 1000 * seen.stride / seen.fps
            example.picture, example.size = picture(inputs["shown"], heat_THW, step_ms, boxes)


def _camera(bundle: Bundle) -> Any:
    """What shows where a bundle's model looks."""
    from angio_ray.models.grad_cam import GradCam

    spec = TASKS[bundle.task]
    return FrameMap(bundle) if spec.named_frames else PairRegions(bundle) if spec.paired_frames else GradCam(bundle)


def _frames(reader: ClipReader, place: Mapping[str, Any], frames: Sequence[int] | None) -> dict[str, np.ndarray]:
    storage = Storage(place["uri"])
    with closing(storage.open(ObjectInfo(place["uri"], place["size_bytes"], place["etag"]))) as source:
        outcome = reader.read(source, frames)
    if outcome.reason is not None:
        raise ClipRejected(outcome.reason, outcome.detail or "")
    return outcome.inputs


def picture(
    frames_THW: np.ndarray,
    heat_THW: np.ndarray | None,
    step_ms: float,
    boxes: Sequence[np.ndarray] | None = None,
) -> tuple[bytes, tuple[int, int]]:
    """An animated WebP (whose size in px comes second) of uint8 frames, with heat in 0..1 of any size beside them.

    boxes: of each frame (D, 4 or more), x0, y0, x1, y1 as shares of the sides, drawn on the heat.
    """
    images = []
    for number, frame_HW in enumerate(frames_THW):
        grey = cv2.cvtColor(frame_HW, cv2.COLOR_GRAY2RGB)
        parts = [grey]
        if heat_THW is not None:
            heat_HW = cv2.resize(
                heat_THW[number].astype(np.float32), frame_HW.shape[::-1], interpolation=cv2.INTER_LINEAR
            )
            colour = cv2.applyColorMap((255 * heat_HW).clip(0, 255).astype(np.uint8), cv2.COLORMAP_JET)[:, :, ::-1]
            alpha = (_HEAT * heat_HW.clip(0, 1))[:, :, None]
            parts.append((grey * (1 - alpha) + colour * alpha).round().astype(np.uint8))
            for box in boxes[number] if boxes is not None else ():
                height, width = frame_HW.shape
                (x0, y0, x1, y1) = (int(share * side) for share, side in zip(box[:4], (width, height) * 2, strict=True))
                cv2.rectangle(parts[1], (x0, y0), (min(x1, width - 1), min(y1, height - 1)), (255, 255, 0), 1)
        images.append(Image.fromarray(np.concatenate(parts, axis=1)))
    stream = io.BytesIO()
    images[0].save(
        stream,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=round(step_ms),
        loop=0,
        quality=_QUALITY,
        method=4,
    )
    return stream.getvalue(), images[0].size
