"""Which pairs of frames of a labelled clip teach a net of regions: an outlined frame, and one of full contrast of its phase.

    row of LABELLED, all frames small -> paired_frames -> PairedFrames          mask_of -> where calcification is

As in the calcification paper (spec section 4), outlines are on frames without contrast, and the other is found by the phase.
Knows no folds, nets or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from angio_ray.models.contrast import CANDIDATE_STEP, CONTRAST_FPS, candidates_between
from angio_ray.models.heart_phase import NO_FULL_CONTRAST, frame_pair, heart_phase


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedFrames:
    """An outlined frame and its partner."""

    frames: tuple[int, int]
    """Of the file: without contrast, and of full contrast."""
    png: bytes
    """Calcification in the first, as the label has it."""
    difference_frames: float
    """Of their phases."""


def paired_frames(
    row: Mapping[str, Any], frames_THW: NDArray[np.uint8], shown_T: NDArray[np.integer]
) -> tuple[list[PairedFrames], str | None]:
    """The pairs of a clip, of schema LABELLED, nearest phases first; and why there are none.

    frames_THW, shown_T: all frames at 15 per second and which of the file they are.
    """
    first, begin, end = (row[name] for name in ("first_contrast", "contrast_begin", "contrast_end"))
    shown = shown_T.tolist()
    if begin > shown[-1]:
        return [], NO_FULL_CONTRAST
    heart = heart_phase(
        frames_THW[: len(shown)], step_s=1 / CONTRAST_FPS, first_contrast=min(int(np.searchsorted(shown_T, first)), len(shown))
    )
    full = [shown.index(frame) for frame in candidates_between(shown_T[::CANDIDATE_STEP], begin, end)]
    found, why = [], None
    for mask in row["calcification_masks"] or ():
        nearest = int(np.abs(shown_T - mask["frame"]).argmin())
        if mask["frame"] > shown[-1]:  # beyond the file, or beyond what is looked at
            continue
        pair = frame_pair(heart, [nearest], full)
        if pair.contrast is None or pair.difference_frames is None:
            why = pair.reason
            continue
        frames = (mask["frame"], shown[pair.contrast])
        found.append(PairedFrames(frames=frames, png=mask["png"], difference_frames=pair.difference_frames))
    return sorted(found, key=lambda one: (one.difference_frames, one.frames)), None if found else why


def mask_of(png: bytes, size: int) -> NDArray[np.bool_]:
    """Where calcification is, in a square of `size` px: (size, size); a pixel counts of which a quarter does.

    ValueError for what is no picture.
    """
    drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    if drawn is None:
        raise ValueError("an outline is no PNG")
    if drawn.shape == (size, size):
        return np.asarray(drawn > 0)
    share = cv2.resize((drawn > 0).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 0.25)
