"""Calcification: whether a clip's arteries hold any, and where to look for it (calcification paper; spec section 4).

    all frames, small -> heart_phase -> a frame without contrast and one of full contrast of the same phase
        -> five patches -> verdicts and regions -> stitched, refined -> columns, and the region as a picture

The pair is found among frames a fifth of a second apart, which the stenosis task is handed too, so they are decoded once.
Knows nothing of tables, stores or Ray.

Shapes: B clips, T frames, H x W pixels, P px a patch's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from angio_ray.models.backends import CompiledScorer
from angio_ray.models.contrast import CONTRAST_FPS, WHOLE_112
from angio_ray.models.heart_phase import FramePair, HeartPhase, frame_pair, heart_phase
from angio_ray.models.interface import NetSpec, SideObject
from angio_ray.models.regions import MIN_AREA, NUM_PATCHES, SIGMA, refined, region_facts, stitched
from angio_ray.models.stenosis import CONTRAST_FAILED, NO_FULL_CONTRAST, may_be_candidates
from angio_ray.sampling import ClipWindow

if TYPE_CHECKING:
    from torch import nn

    from angio_ray.models.bundles import Bundle

CLASSES = ("none", "calcified")
COLUMNS = (
    "calcium_probability",
    "calcium_threshold",
    "calcium_roi_area_mm2",
    "calcium_frames",
    "calcium_regions",
    "calcium_heart_period_s",
    "calcium_phase_quality",
    "calcium_phase_difference_frames",
)
READS = (
    "contrast_status", "first_contrast", "candidate_frames", "rows", "columns", "imager_pixel_spacing_mm",
    "distance_source_to_detector_mm", "distance_source_to_patient_mm",
)  # fmt: skip
MASK = SideObject(column="calcium_mask", suffix=".calcium.png", list_column="calcium_regions", uri_field="mask_uri")
"""The region as a picture. XA has neither a frame of reference nor positions in space, so a DICOM segmentation would say no more
than this and the row do."""

PAIR_512 = ClipWindow(name="pair_512px", size=512, start=0, length=2, stride=1)
"""A frame without contrast and one of full contrast."""


def decoded_windows(bundle: Bundle) -> tuple[ClipWindow, ...]:
    """All frames, small, for the heart's phase, and those that may be of the pair."""
    return WHOLE_112, may_be_candidates(bundle.window.size)


class CalciumScorer(CompiledScorer):
    """The pair of a clip, and what was seen in it."""

    task = "calcium"

    def __init__(self, bundle: Bundle, *args: Any, **options: Any) -> None:
        super().__init__(bundle, *args, **options)
        self.size = bundle.window.size

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[NDArray[np.integer]]],
        known: Mapping[str, Sequence[Any]],
    ) -> dict[str, np.ndarray]:
        """Find a pair in each of B clips and judge it: -> COLUMNS, MASK and calcium_reason, each of length B.

        A clip without a pair is skipped. ValueError when the net returns no number (NaN) for a clip.
        """
        small, large = (window.name for window in self.windows)
        num_clips = len(known["contrast_status"])
        columns = {name: np.full(num_clips, None, object) for name in (*COLUMNS, MASK.column, "calcium_reason")}
        pairs: dict[int, tuple[FramePair, NDArray[np.intp]]] = {}
        for i in range(num_clips):
            if known["contrast_status"][i] == "failed":
                columns["calcium_reason"][i] = CONTRAST_FAILED
                continue
            if known["first_contrast"][i] is None or not known["candidate_frames"][i]:
                columns["calcium_reason"][i] = NO_FULL_CONTRAST
                continue
            shown, offered = np.asarray(frames[small][i]), np.asarray(frames[large][i])
            heart, pair = pair_of(inputs[small][i], shown, offered, known["first_contrast"][i], known["candidate_frames"][i])
            columns["calcium_heart_period_s"][i], columns["calcium_phase_quality"][i] = heart.period_s, heart.quality
            columns["calcium_reason"][i] = pair.reason
            if pair.precontrast is not None and pair.contrast is not None:
                of_pair = (shown[pair.precontrast], shown[pair.contrast])
                pairs[i] = pair, np.array([int(np.argmax(offered == frame)) for frame in of_pair])
        if not pairs:
            return columns
        said_BX = self.probabilities_of(np.stack([inputs[large][i][places] for i, (_, places) in pairs.items()]))
        for (i, (pair, places)), said_X in zip(pairs.items(), said_BX, strict=True):
            offered = np.asarray(frames[large][i])
            row = {name: known[name][i] for name in READS}
            without, contrast = (int(offered[place]) for place in places)
            found = self._judged(said_X, without, contrast, pair, row)
            for name, value in found.items():
                columns[name][i] = value
        return columns

    def _judged(
        self, said_X: NDArray[np.float32], without: int, contrast: int, pair: FramePair, row: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The columns of one clip."""
        probability, verdict_5, region_5PP = taken_apart(said_X, self.size)
        mask_HW = final_region(verdict_5, region_5PP, float(self.threshold), self.size)
        rows, columns = row["rows"], row["columns"]
        mask_HW = cv2.resize(mask_HW.astype(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST) > 0
        facts = region_facts(mask_HW, patient_pixel_mm(row))
        region = {
            "frame": without,
            "mask_uri": None,  # where the driver stores it
            "area_px": facts.area_px,
            "area_mm2": facts.area_mm2,
            "centroid_y": facts.centroid[0] if facts.centroid else None,
            "centroid_x": facts.centroid[1] if facts.centroid else None,
            **dict(zip(("x0", "y0", "x1", "y1"), facts.box or (None,) * 4, strict=True)),
        }
        frame = {"frame": contrast, "mask_frame": without, "probability": probability, "roi_area_mm2": facts.area_mm2}
        return {
            "calcium_probability": probability,
            "calcium_threshold": float(self.threshold),
            "calcium_roi_area_mm2": facts.area_mm2,
            "calcium_frames": [frame],
            "calcium_phase_difference_frames": pair.difference_frames,
            "calcium_regions": [region],
            MASK.column: cv2.imencode(".png", 255 * mask_HW.astype(np.uint8))[1].tobytes(),
        }


def pair_of(
    frames_THW: NDArray[np.uint8],
    shown_T: NDArray[np.integer],
    offered: NDArray[np.integer],
    first_contrast: int,
    contrast_frames: Sequence[int],
) -> tuple[HeartPhase, FramePair]:
    """The heart's phase in all frames shown, and a pair of the frames offered; indices are of `shown_T`.

    Parameters
    ----------
    frames_THW
        All frames at 15 per second, and what fills them up.
    shown_T, offered
        The file's frames that these are, and those that a pair may be of.
    first_contrast, contrast_frames
        The first frame of the file with any contrast, and those of full contrast that may be of the pair.
    """
    shown = shown_T.tolist()
    first = int(np.searchsorted(shown_T, first_contrast))
    heart = heart_phase(frames_THW[: len(shown)], step_s=1 / CONTRAST_FPS, first_contrast=first)
    early = [shown.index(frame) for frame in dict.fromkeys(offered.tolist()) if frame < first_contrast and frame in shown]
    full = [shown.index(frame) for frame in contrast_frames if frame in shown]
    return heart, frame_pair(heart, early, full)


def taken_apart(said_X: NDArray[np.float32], size: int) -> tuple[float, NDArray[np.float32], NDArray[np.float32]]:
    """What a net of regions says of a pair: probability of calcification, that of each patch (5,), and of each pixel to be in the
    region, (5, P, P)."""
    side = size // 2
    return float(said_X[1]), said_X[2 : 2 + NUM_PATCHES], said_X[2 + NUM_PATCHES :].reshape(NUM_PATCHES, side, side)


def final_region(
    verdict_5: NDArray[np.float32], region_5PP: NDArray[np.float32], threshold: float, size: int, *, sigma: float | None = None
) -> NDArray[np.bool_]:
    """The refined region of a pair, (size, size): patches below the threshold have no say in it."""
    whole = stitched(region_5PP, verdict_5 >= np.float32(threshold), height=size, width=size)[0]
    scale = size / PAIR_512.size
    return refined(whole, min_area=round(MIN_AREA * scale**2), sigma=(SIGMA if sigma is None else sigma) * scale)


def patient_pixel_mm(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Height and width of the file's pixels in the plane of the patient; None where the header does not say.

    ImagerPixelSpacing is at the detector (PS3.3 C.8.19.6 and 10.7.1.3): smaller at the patient by the ratio of the distances.
    """
    spacing, detector, patient = (row[name] for name in READS[-3:])
    if not spacing or not detector or not patient or min(*spacing, detector, patient) <= 0:
        return None
    return spacing[0] * patient / detector, spacing[1] * patient / detector


def _net(width: int, heads: int, **options: Any) -> nn.Module:
    from angio_ray.models.double_head import ResUNet

    return ResUNet(width, num_heads=heads, **options)  # type: ignore[arg-type]


_SMALL: dict[str, Any] = {"pool": "logsumexp", "twice": True}
"""Of 300 patches of 60 phantom patients the AUC of a verdict was 0.909, of the mirrored patch's as well, of their mean 0.916."""


def _region_only(name: str) -> nn.Module:
    from angio_ray.models import region_nets

    return region_nets.RegionOnly(region_nets.NETS[name]())


def _spec(name: str, build: Any, *, varying: bool = False) -> NetSpec:
    return NetSpec(
        name=name, build=build, window=PAIR_512, layout="B2HW-regions", cost_input=(2, 256, 256), autocast=True, varying=varying
    )


NETS: dict[str, NetSpec] = {
    spec.name: spec
    for spec in (
        _spec("resunet_18", lambda: _net(64, 2)),
        _spec("resunet_18_one_head", lambda: _net(64, 1)),
        _spec("resunet_s", lambda: _net(16, 2, **_SMALL)),
        _spec("resunet_s_one_head", lambda: _net(16, 1, **_SMALL)),
        *(_spec(name, lambda name=name: _region_only(name)) for name in ("unet", "transunet")),
        *(_spec(name, lambda name=name: _region_only(name), varying=True) for name in ("mask_rcnn", "fcos")),
    )
}
"""The paper's double-head net, a small one, both without their contrast head, and the nets that it is compared with."""
