"""Vessels as a second lesson for nets that look for narrowings: where they are, and how wide.

    vessel mask -> local_radius                drawn vessels and radii of a net, masks -> vessel_loss

Boxes alone say little of what a narrowing is: of some hundred patients a net learns them by heart. Knows no nets, clips or loops.
Shapes: N pictures, H x W pixels, h x w cells.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_NEAR_PX = 7
"""Side of the square in which a pixel's vessel has its middle, px."""
_DRAWN = 4.0
"""How much more where the vessels are counts than how wide they are: mean cross entropies of pixels are small."""
_LEAST_SHARE = 0.25
"""Of a cell's pixels, to say the radius of what lies in it."""


def local_radius(mask_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Of each pixel of a vessel the radius of the vessel there, px; 0 outside. What lies beyond the border is taken for vessel.

    The largest distance to the vessel's edge among the pixels around.
    """
    mask = mask_HW.astype(np.uint8)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    return np.asarray(cv2.dilate(distance, np.ones((_NEAR_PX, _NEAR_PX), np.uint8)) * mask, np.float32)


def vessel_loss(
    drawn_N1HW: Tensor, log_radius_N1hw: Tensor, masks_NHW: NDArray[np.bool_], known_N: NDArray[np.bool_]
) -> Tensor:
    """Cross entropy of the drawn vessels, and how far their radius is off as a natural logarithm, summed over the pictures.

    drawn_N1HW, log_radius_N1hw: `frame_maps.FrameMaps.with_vessels`'s. Of pictures not `known_N` nothing is said.
    """
    device = drawn_N1HW.device
    cell = drawn_N1HW.shape[-1] // log_radius_N1hw.shape[-1]
    radius_NHW = np.stack([local_radius(mask) for mask in masks_NHW])
    mask, radius = (torch.from_numpy(a[:, None].astype(np.float32)).to(device) for a in (masks_NHW, radius_NHW))
    known = torch.from_numpy(known_N).to(device).float()
    drawn = F.binary_cross_entropy_with_logits(drawn_N1HW, mask, reduction="none").mean(dim=(1, 2, 3))
    share = F.avg_pool2d(mask, cell)
    inside = (share >= _LEAST_SHARE).float()
    target = (F.avg_pool2d(radius, cell) / share.clamp(min=1e-3)).clamp(min=0.5).log()
    apart = ((log_radius_N1hw - target).abs() * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3)).clamp(min=1)
    return ((_DRAWN * drawn + apart) * known).sum()
