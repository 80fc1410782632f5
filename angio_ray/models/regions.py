"""Frames into patches and back, and from a map of probabilities to a region of interest (calcification paper, spec section 4).

    frames -> patches -> (a net) -> verdicts, probabilities -> stitched -> refined -> region_facts

Five patches of 256 px: the corners, which tile a frame of 512 px without overlap, and the centre, which shares a quarter of each.
Knows no nets, truth or files.
Shapes: B frames, C channels, H x W pixels of a frame, P px a patch's side, K = 5 patches of a frame in the order of `corners`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from torch import Tensor

NUM_PATCHES = 5
PATCH = 256
"""px; the paper's."""
MIN_AREA = 1000
"""px of a frame of 512 px; the paper's least island."""
SIGMA = 3.0
"""px; of the paper's 1, 3 and 5 the one that it reports."""


def corners(height: int, width: int, size: int = PATCH) -> tuple[tuple[int, int], ...]:
    """Row and column where each of the five patches begins: top left, top right, bottom left, bottom right, centre.

    Raises ValueError for frames over which patches of this size leave gaps, or that are smaller than one.
    """
    if not size <= min(height, width) <= max(height, width) <= 2 * size:
        raise ValueError(f"five patches of {size} px do not cover {height} x {width}")
    bottom, right = height - size, width - size
    return (0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)


def patches(frames_BCHW: Tensor, size: int = PATCH) -> Tensor:
    """The five patches of each frame, (B * 5, C, P, P), frame by frame. Raises ValueError as `corners`."""
    import torch  # here, so that a scoring actor without torch can put regions together

    height, width = frames_BCHW.shape[-2:]
    places = corners(height, width, size)
    return torch.stack([frames_BCHW[..., y : y + size, x : x + size] for y, x in places], dim=1).flatten(0, 1)


def stitched(
    probability_NPP: NDArray[np.floating], positive_N: NDArray[np.bool_] | None = None, *, height: int = 512, width: int = 512
) -> NDArray[np.float32]:
    """Patches' probabilities as those of frames, (B, H, W), float32.

    Where patches overlap, their mean. A patch that the classifier calls negative has no say: in its overlap with a positive one
    the positive one alone decides, and where no positive patch is, the probability is 0. So a calcification that one patch
    holds whole, and another cuts off and misses, is kept. (The paper says that regions without calcification "as determined by
    the classifier" are excluded, not what becomes of overlaps.)

    Parameters
    ----------
    probability_NPP
        Of each pixel to be in the region, 0..1, N = B * 5 in the order of `patches`.
    positive_N
        The classifier's verdicts, booleans; None: all count.
    height, width
        Of a frame, px.

    Raises
    ------
    ValueError
        As `corners`, or patches that are no five a frame, or verdicts that are not one a patch.
    """
    size = probability_NPP.shape[-1]
    places = corners(height, width, size)
    counts_N = np.ones(len(probability_NPP), bool) if positive_N is None else np.asarray(positive_N, bool)
    if len(probability_NPP) % len(places) or counts_N.shape != probability_NPP.shape[:1]:
        raise ValueError(f"{len(probability_NPP)} patches are no five a frame with one verdict each")
    p_BKPP = np.asarray(probability_NPP, np.float32).reshape(-1, len(places), size, size)
    counts_BK11 = counts_N.reshape(-1, len(places), 1, 1)
    total = np.zeros((len(p_BKPP), height, width), np.float32)
    number = np.zeros_like(total)
    for k, (y, x) in enumerate(places):
        here = (slice(None), slice(y, y + size), slice(x, x + size))
        # selected, not multiplied: a NaN of a negative patch must not get through
        total[here] += np.where(counts_BK11[:, k], p_BKPP[:, k], 0)
        number[here] += counts_BK11[:, k]
    return np.asarray(total / np.maximum(number, 1), np.float32)


def refined(
    probability_HW: NDArray[np.floating], *, threshold: float = 0.5, min_area: int = MIN_AREA, sigma: float = SIGMA
) -> NDArray[np.bool_]:
    """The region of interest of a frame: at least `threshold`, islands below `min_area` px removed, its outline smoothed.

    The paper's order: islands first (of pixels that share an edge, as scikit-image's `remove_small_objects` takes them), then a
    Gaussian filter of the mask, of which a half and more stays (the paper does not say how its filtered mask becomes one again).
    Outside the frame its edge goes on, so that regions there are not eaten. Smoothing may leave an island somewhat below
    `min_area`. `sigma` in px, 0: no smoothing.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats((probability_HW >= threshold).astype(np.uint8), connectivity=4)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_area
    kept[0] = False  # the background
    mask = kept[labels]
    if sigma > 0:
        mask = gaussian_filter(mask.astype(np.float32), sigma, mode="nearest") >= 0.5
    return np.asarray(mask, np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionFacts:
    """A region, or one island of it. Rows and columns count from 0 at the top left."""

    area_px: int
    area_mm2: float | None
    """None without the size of a pixel."""
    centroid: tuple[float, float] | None
    """Row, column, px: the mean place of its pixels, which may lie outside it; None where the region is empty, as the next."""
    box: tuple[int, int, int, int] | None
    """x0, y0, x1, y1, px; the last two just outside."""


def region_facts(mask_HW: NDArray[np.bool_], pixel_mm: tuple[float, float] | None = None) -> RegionFacts:
    """Facts of a mask as a whole.

    pixel_mm: height and width of a pixel of this mask, in the plane that the area is meant in: for a frame that was resampled to
    512 px, not the file's.
    """
    rows, columns = np.nonzero(mask_HW)
    area = len(rows)
    return RegionFacts(
        area_px=area,
        area_mm2=None if pixel_mm is None else area * pixel_mm[0] * pixel_mm[1],
        centroid=(float(rows.mean()), float(columns.mean())) if area else None,
        box=(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1) if area else None,
    )


def islands(mask_HW: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """A mask of each connected part (pixels that share an edge or a corner), from the top down."""
    num, labels = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=8)
    return [labels == label for label in range(1, num)]
