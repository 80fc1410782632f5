"""What is known of each synthetic clip: a row of `labels.parquet`, and a side file with what is known of each frame.

The side file is an .npz that `np.load(allow_pickle=False)` opens; `read` gives it as a `Truth`. Frames count from 0, boxes
and masks are in the file's own pixels. Everything is derived from the scene and from where the renderer put it; nothing is
measured in the pictures. What lies behind the shutter is in no mask and no box.

A narrowing counts as visible where its vessel is filled and no smaller than readers score, most of it lies inside the field,
the view does not look along it, other vessels over it do not fill in what it lacks, and what it lacks stands out of the noise.
What one reader would mark and another would not is neither visible nor not: it is unclear. Devices in front of it are not
looked at (`covered_share` tells of them).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from angio_ray.phantom.anatomy import Calcification, Floats, Stenosis, Tree, Vessel
from angio_ray.phantom.contrast import contrast_frames
from angio_ray.phantom.detector import REFERENCE_SIZE, shutter_mask
from angio_ray.phantom.devices import hidden_mask
from angio_ray.phantom.dicom_writer import ClipFacts, sop_instance_uid, study_instance_uid
from angio_ray.phantom.scene import QUALITY_GROUPS, Rendered, Scene

SUFFIX = ".truth.npz"
"""Of a side file's name, in place of the clip's .dcm."""
FILLED = 0.5
"""Share of a vessel's own fullest from which on its narrowings count as filled."""
INSIDE = 0.7
"""Share of a narrowing's length that must lie inside the field."""
FORESHORTENED = 0.4
"""Projected over true length: below it, the view looks along the narrowing."""
MARKED_FRAMES = 8
"""Frames of full contrast, evenly spread, on which narrowings have boxes in the labels; side files have those of all frames."""
MASKED_FRAMES = 3
"""Frames without contrast, evenly spread, whose calcification is outlined in the labels; side files have all of them."""
HIDDEN = (0.4, 0.6)
"""Shares of the contrast that a narrowing lacks from which on other vessels over it, filling it in, make it unclear, and hide it.
(A net found those of a quarter to 0.4 as well as any that nothing lies over, those from 0.6 on little better than by chance.)"""
ROSE = (10.0, 5.0)
"""Contrast to noise, over the area of what is missing, below which it is unclear, and not made out: an eye needs 5 before an even
field (Rose, J Opt Soc Am 1948; 38:196), and anatomy is none."""
SCORED_MM = 1.5
"""Diameter of the healthy lumen from which on readers score a narrowing (SYNTAX; Sianos, EuroIntervention 2005; 1:219-227); in a
smaller vessel it is unclear."""
COUNTS_PERCENT = 25.0
"""Narrowing below which nobody marks one that is unclear."""
VISIBLE_IODINE = 0.05
"""Attenuation of a filled vessel per mm below which its narrowings cannot be judged."""
THINNEST_IODINE = 0.01
"""The same below which nothing is seen of it: no contrast frames."""

_BOX = pa.struct(
    [
        ("segment", pa.string()),
        ("percent", pa.float32()),
        ("length_mm", pa.float32()),
        ("frame", pa.int32()),
        *((name, pa.float32()) for name in ("x0", "y0", "x1", "y1")),
    ]
)
_MASK = pa.struct([("frame", pa.int32()), ("png", pa.binary())])
_CALCIUM = pa.struct([("segment", pa.string()), ("kind", pa.string()), ("length_mm", pa.float32())])
LABELS = pa.schema(
    [
        pa.field("sop_instance_uid", pa.string(), nullable=False),
        pa.field("study_instance_uid", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("quality", pa.string(), nullable=False),
        pa.field("quality_class", pa.string(), nullable=False),
        pa.field("quality_group", pa.string()),
        pa.field("quality_detail", pa.string()),
        pa.field("covered_share", pa.float32(), nullable=False),
        pa.field("artery", pa.string()),
        pa.field("dominance", pa.string()),
        pa.field("view", pa.string()),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("frame_time_ms", pa.float32()),
        *(pa.field(n, pa.int32()) for n in ("first_contrast", "contrast_begin", "contrast_end", "last_contrast")),
        pa.field("best_frame", pa.int32()),
        pa.field("heart_period_frames", pa.float32()),
        pa.field("stenoses", pa.list_(_BOX)),
        pa.field("artery_percent", pa.float32()),
        pa.field("calcified", pa.bool_()),
        pa.field("calcifications", pa.list_(_CALCIUM)),
        pa.field("calcification_masks", pa.list_(_MASK)),
        pa.field("vessel_masks", pa.list_(_MASK)),
        pa.field("devices", pa.list_(pa.string())),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("twin_of", pa.string()),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("truth_path", pa.string(), nullable=False),
    ]
)
"""`labels.parquet`: the truth per clip.

stenoses: those visible in the clip, and without their percentage those that are unclear, each with its boxes in up to
MARKED_FRAMES frames of full contrast (an entry per frame, as of somebody who marks several), or in the fullest in which it is
seen where it is seen in none of these. artery_percent: the worst narrowing of the artery, seen in this view or not (0: none).
artery, dominance and artery_percent are null where a coronary is not what is filmed (quality_group not_coronary, and grafts).
twin_of: SOPInstanceUID of the clip that this one is the counterfactual of. calcification_masks: of satisfactory clips
MASKED_FRAMES frames before any contrast, as somebody outlines them who knows where to look; black where there is none.
vessel_masks: the filled tree in the frames that stenoses are marked in.
The frames of contrast are null where the vessels never fill visibly.
"""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One narrowing of the tree as this clip shows it."""

    number: int
    """Position in `Tree.stenoses`, and in the side file's arrays."""
    stenosis: Stenosis
    reference_mm: float
    """Diameter of the healthy lumen at the throat."""
    minimal_mm: float
    """Diameter at the throat."""
    frames_K: NDArray[np.int64]
    """Where it is visible, or unclear; empty where it is neither anywhere."""
    boxes_K4: Floats
    """x0, y0, x1, y1 in px for each of these frames."""
    unclear: bool = False
    """Visible in no frame, and unclear in these."""

    @property
    def visible(self) -> bool:
        """In one frame at least."""
        return len(self.frames_K) > 0 and not self.unclear


def lesions(scene: Scene, rendered: Rendered, concentration: Mapping[str, Floats]) -> tuple[Lesion, ...]:
    """Every narrowing of the scene's tree, with the frames and places in which it is seen.

    Parameters
    ----------
    scene : Scene
        What was drawn.
    rendered : Rendered
        Where it lies.
    concentration : mapping of str to (T, N) array
        Contrast in each vessel's samples over time, 1 = undiluted.
    """
    if scene.tree is None:
        return ()
    field_HW = shutter_mask(scene.detector, scene.view.size) & ~hidden_mask(scene.devices, scene.view)
    found = []
    for number, stenosis in enumerate(scene.tree.stenoses):
        vessel = _segment(scene.tree, stenosis.segment)
        reach = _reach(vessel, stenosis)
        filled_T = _filled(concentration.get(stenosis.segment), max(int(reach[0]) - 2, 0), scene)
        xy_TN2 = rendered.vessel_xy[stenosis.segment][:, reach]
        shown_T = filled_T & _inside(xy_TN2, field_HW)
        noise_T = _contrast_to_noise(scene, vessel, stenosis, reach, concentration)
        hidden_T = _hidden(rendered, vessel, reach, concentration, scene.view.px_per_mm)
        healthy = _healthy(vessel)
        scored = 2 * float(healthy[stenosis.index]) >= SCORED_MM
        for unclear, rose, hidden in zip((False, True), ROSE, HIDDEN, strict=True):
            frames = np.flatnonzero(shown_T & (noise_T >= rose) & (hidden_T < hidden) & (scored or unclear))
            if len(frames) and _shortening(vessel, reach, xy_TN2[frames], scene.view.px_per_mm) >= FORESHORTENED:
                break
            frames = frames[:0]
        margin = float(healthy[reach].max()) * scene.view.px_per_mm
        low = xy_TN2[frames].min(axis=1) - margin
        high = xy_TN2[frames].max(axis=1) + margin
        found.append(
            Lesion(
                number=number,
                stenosis=stenosis,
                reference_mm=2 * float(healthy[stenosis.index]),
                minimal_mm=2 * float(vessel.radius_N[stenosis.index]),
                frames_K=frames,
                boxes_K4=np.clip(np.hstack([low, high]), 0, scene.view.size),
                unclear=unclear and len(frames) > 0,
            )
        )
    return tuple(found)


def row(
    scene: Scene,
    rendered: Rendered,
    facts: ClipFacts,
    found: tuple[Lesion, ...],
    *,
    path: str,
    truth_path: str,
    protocol: str = "default",
    site: str = "seen",
    twin_of: str | None = None,
) -> dict[str, Any]:
    """The clip's row of `LABELS`; `found` is what `lesions` gave."""
    tree, steps_s = scene.tree, np.diff(scene.times_s)
    frame_s = float(steps_s.mean()) if len(steps_s) else None
    satisfactory = scene.quality_class == "satisfactory"
    coronary = None if QUALITY_GROUPS.get(scene.quality_class) == "not_coronary" else tree
    filling = rendered.filling_T if _fills(scene) else np.zeros_like(rendered.filling_T)
    contrast = contrast_frames(filling)
    return {
        "sop_instance_uid": sop_instance_uid(facts),
        "study_instance_uid": study_instance_uid(facts),
        "patient_id": facts.patient_id,
        "quality": "satisfactory" if satisfactory else "unsatisfactory",
        "quality_class": scene.quality_class,
        "quality_group": QUALITY_GROUPS.get(scene.quality_class),
        "quality_detail": scene.detail or None,
        "covered_share": rendered.covered_share,
        "artery": coronary.artery if coronary else None,
        "dominance": coronary.dominance if coronary else None,
        "view": scene.view.name or None,
        "num_frames": len(rendered.frames_THW),
        "frame_time_ms": 1000 * frame_s if frame_s else None,
        **contrast,
        "heart_period_frames": _period_s(scene) / frame_s if frame_s and scene.region == "chest" else None,
        "stenoses": [
            box
            for lesion in found
            if lesion.visible or (lesion.unclear and lesion.stenosis.percent >= COUNTS_PERCENT)
            for box in _marks(lesion, rendered.filling_T, contrast)
        ],
        "artery_percent": max((s.percent for s in coronary.stenoses), default=0.0) if coronary else None,
        "calcified": _shows_calcium(scene, rendered) if tree else None,
        "calcifications": [
            {"segment": c.segment, "kind": c.kind, "length_mm": _length_mm(c, _segment(tree, c.segment))}
            for c in (tree.calcifications if tree else ())
        ],
        "calcification_masks": _calcification(scene, rendered, contrast["first_contrast"]) if satisfactory and coronary else None,
        "vessel_masks": _vessels(scene, rendered, contrast) if satisfactory and coronary else None,
        "devices": sorted({device.name for device in scene.devices}),
        "protocol": protocol,
        "site": site,
        "twin_of": twin_of,
        "synthetic": True,
        "path": path,
        "truth_path": truth_path,
    }


def side_file(scene: Scene, rendered: Rendered, found: tuple[Lesion, ...]) -> bytes:
    """The clip's side file: masks of one bit per pixel, boxes, the heart's cycle, the narrowings."""
    calcium = rendered.calcium_mask_THW
    field_HB = np.packbits(shutter_mask(scene.detector, scene.view.size), axis=-1)
    return _npz(
        {
            "size": np.array(rendered.frames_THW.shape[1:], np.int32),
            "vessel_mask": np.packbits(rendered.vessel_mask_THW & _fills(scene), axis=-1) & field_HB,
            **({} if calcium is None else {"calcium_mask": np.packbits(calcium, axis=-1) & field_HB}),
            "times_s": scene.times_s,
            "phase": scene.motion.phase_T.astype(np.float32),
            "contraction": scene.motion.contraction_T.astype(np.float32),
            "beat_onsets_s": scene.motion.onsets_s.astype(np.float32),
            "filling": rendered.filling_T.astype(np.float32),
            "boxes": _boxes(found),
            "stenosis_segment": np.array([lesion.stenosis.segment for lesion in found], np.str_),
            "stenosis_percent": np.array([lesion.stenosis.percent for lesion in found], np.float32),
            "stenosis_length_mm": np.array([lesion.stenosis.length_mm for lesion in found], np.float32),
            "stenosis_reference_mm": np.array([lesion.reference_mm for lesion in found], np.float32),
            "stenosis_minimal_mm": np.array([lesion.minimal_mm for lesion in found], np.float32),
            "stenosis_visible": np.array([lesion.visible for lesion in found], np.bool_),
        }
    )


class Truth:
    """A side file's contents; the masks are unpacked when they are asked for."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays

    @cached_property
    def size(self) -> tuple[int, int]:
        """Rows and columns, px."""
        rows, columns = self._arrays["size"].tolist()
        return rows, columns

    @cached_property
    def times_s(self) -> Floats:
        """Start of each frame, (T,)."""
        return np.asarray(self._arrays["times_s"])

    @cached_property
    def phase_T(self) -> NDArray[np.float32]:
        """Position in the cardiac cycle, 0 to 1, 0 at the beginning of systole."""
        return np.asarray(self._arrays["phase"])

    @cached_property
    def contraction_T(self) -> NDArray[np.float32]:
        """How contracted the heart is, 0 to 1."""
        return np.asarray(self._arrays["contraction"])

    @cached_property
    def beat_onsets_s(self) -> NDArray[np.float32]:
        """When each beat begins; some before the first and after the last frame."""
        return np.asarray(self._arrays["beat_onsets_s"])

    @cached_property
    def filling_T(self) -> NDArray[np.float32]:
        """Mean contrast of the vessels by volume, 1 = all filled with undiluted contrast."""
        return np.asarray(self._arrays["filling"])

    @cached_property
    def boxes_K6(self) -> NDArray[np.float32]:
        """A row per frame and narrowing seen there: frame, number of the narrowing, x0, y0, x1, y1."""
        return np.asarray(self._arrays["boxes"])

    @cached_property
    def stenoses(self) -> tuple[dict[str, Any], ...]:
        """Every narrowing of the tree, seen or not: segment, percent, length_mm, reference_mm, minimal_mm, visible."""
        names = ("segment", "percent", "length_mm", "reference_mm", "minimal_mm", "visible")
        columns = [self._arrays[f"stenosis_{name}"].tolist() for name in names]
        return tuple(dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))

    def boxes_in(self, frame: int) -> NDArray[np.float32]:
        """(K, 5): number of the narrowing, x0, y0, x1, y1."""
        return self.boxes_K6[self.boxes_K6[:, 0] == frame][:, 1:]

    def vessel_mask(self, frames: int | slice = slice(None)) -> NDArray[np.bool_]:
        """Where a vessel with contrast lies in the field, (T, H, W), or (H, W) for one frame."""
        return self._unpacked(self._vessel_bits, frames)

    def calcium_mask(self, frames: int | slice = slice(None)) -> NDArray[np.bool_]:
        """Where calcification lies; nowhere where the artery has none."""
        if self._calcium_bits is None:
            return np.zeros((len(self.times_s), *self.size), np.bool_)[frames]
        return self._unpacked(self._calcium_bits, frames)

    @property
    def calcified(self) -> bool:
        """Whether there is a calcium mask at all."""
        return self._calcium_bits is not None

    @cached_property
    def _vessel_bits(self) -> NDArray[np.uint8]:
        return np.asarray(self._arrays["vessel_mask"])

    @cached_property
    def _calcium_bits(self) -> NDArray[np.uint8] | None:
        return np.asarray(self._arrays["calcium_mask"]) if "calcium_mask" in self._arrays else None

    def _unpacked(self, bits_THB: NDArray[np.uint8], frames: int | slice) -> NDArray[np.bool_]:
        return np.unpackbits(bits_THB[frames], axis=-1, count=self.size[1]).astype(np.bool_)


def read(source: str | PathLike[str] | bytes) -> Truth:
    """Open a side file, by its path or its bytes."""
    data = source if isinstance(source, bytes) else Path(fspath(source)).read_bytes()
    return Truth(np.load(io.BytesIO(data), allow_pickle=False))


def _fills(scene: Scene) -> bool:
    """Whether anything is seen of the contrast in the vessels, however full they are."""
    return scene.injection.iodine >= THINNEST_IODINE


def _segment(tree: Tree | None, name: str) -> Vessel:
    assert tree is not None
    return next(vessel for vessel in tree.vessels if vessel.name == name)


def _along_mm(vessel: Vessel) -> Floats:
    """Path along the vessel from its own beginning."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(vessel.points_N3, axis=0), axis=1))])


def _reach(vessel: Vessel, stenosis: Stenosis) -> NDArray[np.int64]:
    """Samples of the narrowing: at least three, so that it has a direction."""
    along = _along_mm(vessel)
    near = np.abs(along - along[stenosis.index]) <= stenosis.length_mm / 2
    near[max(stenosis.index - 1, 0) : stenosis.index + 2] = True
    return np.flatnonzero(near)


def _filled(concentration_TN: Floats | None, before: int, scene: Scene) -> NDArray[np.bool_]:
    """In which frames contrast stands just before the narrowing (behind an occlusion there is none)."""
    none = np.zeros(len(scene.times_s), np.bool_)
    if concentration_TN is None or scene.conduits or scene.injection.iodine < VISIBLE_IODINE:
        return none
    here_T = concentration_TN[:, before]
    most = float(here_T.max())
    return here_T >= FILLED * most if most >= 0.3 else none


def _inside(xy_TN2: Floats, field_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Per frame, whether enough of these points lie inside the field."""
    at = np.round(xy_TN2).astype(int)
    size = np.array(field_HW.shape[::-1])
    within = ((at >= 0) & (at < size)).all(axis=-1)
    at = np.clip(at, 0, size - 1)
    return np.asarray((within & field_HW[at[..., 1], at[..., 0]]).mean(axis=1) >= INSIDE)


def _contrast_to_noise(
    scene: Scene, vessel: Vessel, stenosis: Stenosis, reach: NDArray[np.int64], concentration: Mapping[str, Floats]
) -> Floats:
    """Per frame, how far the contrast that the narrowing lacks stands out of the noise over its area (see ROSE)."""
    filled_TN = concentration.get(stenosis.segment)
    if filled_TN is None:
        return np.zeros(len(scene.times_s))
    px, healthy = scene.view.px_per_mm, _healthy(vessel)
    missing_mm = 2 * float(healthy[stenosis.index] - vessel.radius_N[stenosis.index])
    length_mm = float(np.ptp(_along_mm(vessel)[reach])) / 2  # it is at its narrowest in its middle alone
    area_px = max(1.0, length_mm * px) * max(1.0, 2 * float(healthy[stenosis.index]) * px)
    across, down = (max(0.5, sigma * scene.view.size / REFERENCE_SIZE) for sigma in scene.detector.noise_blur_px)
    grains = max(1.0, area_px / (4 * np.pi * across * down))
    lacking_T = scene.injection.iodine * filled_TN[:, max(int(reach[0]) - 2, 0)] * missing_mm
    return np.asarray(lacking_T / scene.detector.noise * np.sqrt(grains))


def _hidden(
    rendered: Rendered, vessel: Vessel, reach: NDArray[np.int64], concentration: Mapping[str, Floats], px_per_mm: float
) -> Floats:
    """Per frame, the share of what the narrowing lacks that other filled vessels over it fill in (see HIDDEN)."""
    own_TN2 = rendered.vessel_xy[vessel.name][:, reach]
    missing_N = 2 * px_per_mm * (_healthy(vessel) - vessel.radius_N)[reach]
    over_TN = np.zeros(own_TN2.shape[:2])
    for name, xy_TM2 in rendered.vessel_xy.items():
        radius_TM = rendered.vessel_radius_px[name]
        if name == vessel.name or name not in concentration or 4 * radius_TM.max() < missing_N.max():
            continue
        apart_TNM = ((own_TN2[:, :, None] - xy_TM2[:, None]) ** 2).sum(axis=-1)
        path_TNM = 2 * np.sqrt(np.maximum(radius_TM[:, None] ** 2 - apart_TNM, 0)) * concentration[name][:, None]
        over_TN += path_TNM.max(axis=-1)
    filled_in_T = np.minimum(over_TN, missing_N).sum(axis=1)
    return np.asarray(filled_in_T / max(float(missing_N.sum()), 1e-9))


def _healthy(vessel: Vessel) -> Floats:
    """Radius of each sample without its narrowings, mm."""
    return vessel.radius_N if vessel.healthy_radius_N is None else vessel.healthy_radius_N


def _shortening(vessel: Vessel, reach: NDArray[np.int64], xy_KN2: Floats, px_per_mm: float) -> float:
    """Projected over true length of these samples, the median of the frames."""
    true_mm = float(np.linalg.norm(np.diff(vessel.points_N3[reach], axis=0), axis=1).sum())
    projected_K = np.linalg.norm(np.diff(xy_KN2, axis=1), axis=-1).sum(axis=1)
    return float(np.median(projected_K)) / (true_mm * px_per_mm)


def _boxes(found: tuple[Lesion, ...]) -> NDArray[np.float32]:
    """Of all lesions, by frame: frame, number, x0, y0, x1, y1."""
    rows = [
        np.column_stack([lesion.frames_K, np.full(len(lesion.frames_K), lesion.number), lesion.boxes_K4])
        for lesion in found
    ]
    boxes = np.concatenate([np.zeros((0, 6)), *rows])
    return boxes[np.lexsort((boxes[:, 1], boxes[:, 0]))].astype(np.float32)


def _marks(lesion: Lesion, filling_T: Floats, contrast: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """A lesion with its box, once for each frame that it is marked on: without its percentage where it is unclear."""
    marked = np.flatnonzero(np.isin(lesion.frames_K, _marked_frames(contrast)))
    if not len(marked):
        marked = np.array([filling_T[lesion.frames_K].argmax()])
    return [
        {
            "segment": lesion.stenosis.segment,
            "percent": None if lesion.unclear else lesion.stenosis.percent,
            "length_mm": lesion.stenosis.length_mm,
            "frame": int(lesion.frames_K[k]),
            **dict(zip(("x0", "y0", "x1", "y1"), lesion.boxes_K4[k].tolist(), strict=True)),
        }
        for k in marked
    ]


def _marked_frames(contrast: Mapping[str, int | None]) -> list[int]:
    """Of full contrast, evenly spread."""
    begin, end = contrast["contrast_begin"], contrast["contrast_end"]
    return [] if begin is None or end is None else np.unique(np.linspace(begin, end, MARKED_FRAMES).round().astype(int)).tolist()


def _vessels(scene: Scene, rendered: Rendered, contrast: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """The filled tree in the frames on which narrowings are marked, as PNG."""
    field_HW = shutter_mask(scene.detector, scene.view.size)
    return [
        {"frame": frame, "png": _png(rendered.vessel_mask_THW[frame] & field_HW)} for frame in _marked_frames(contrast)
    ]


def _calcification(scene: Scene, rendered: Rendered, first_contrast: int | None) -> list[dict[str, Any]]:
    """Calcification in frames before contrast comes, as PNG: none where it is there from the first frame on."""
    last = first_contrast - 1 if first_contrast is not None else -1
    frames = sorted({round(last * (k + 0.5) / MASKED_FRAMES) for k in range(MASKED_FRAMES)}) if last >= 0 else []
    field_HW = shutter_mask(scene.detector, scene.view.size)
    calcium = rendered.calcium_mask_THW
    found = []
    for frame in frames:
        mask_HW = np.zeros_like(field_HW) if calcium is None else calcium[frame] & field_HW
        found.append({"frame": frame, "png": _png(mask_HW)})
    return found


def _png(mask_HW: NDArray[np.bool_]) -> bytes:
    return bytes(cv2.imencode(".png", 255 * mask_HW.astype(np.uint8))[1])


def _length_mm(calcification: Calcification, vessel: Vessel) -> float:
    """How far the calcification reaches along its vessel."""
    points = np.concatenate(calcification.lines)
    nearest = np.linalg.norm(points[:, None] - vessel.points_N3[None], axis=-1).argmin(axis=1)
    return float(np.ptp(_along_mm(vessel)[nearest]))


def _shows_calcium(scene: Scene, rendered: Rendered) -> bool:
    """Whether calcium lies inside the field in any frame."""
    mask = rendered.calcium_mask_THW
    return mask is not None and bool((mask & shutter_mask(scene.detector, scene.view.size)).any())


def _period_s(scene: Scene) -> float:
    """Median length of the beats that the clip shows some of; an ectopic one does not shift it."""
    onsets = scene.motion.onsets_s
    shown = (onsets[1:] > scene.times_s[0]) & (onsets[:-1] < scene.times_s[-1])
    return float(np.median(np.diff(onsets)[shown])) if shown.any() else scene.motion.period_s


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """As `np.savez_compressed`, with the fastest deflate (masks shrink to a tenth of the time and the same size)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            # without a date of its own, a member has the zip format's first: the same bytes at any time
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED, 1)
    return out.getvalue()
