"""What a decoder of regions learns: target regions around calcifications, their distance maps, and the loss (spec section 4).

    calcification mask -> target_region -> signed_distance -> region_loss

The boundary loss is Kervadec's and others (2021): the mean of probability times signed distance to the target's boundary. The
calcification paper trains by it alone (`boundary_weight=1`); Kervadec combines it with a regional loss, since alone it is near
its least already where nothing is called: outside pixels are many and far, inside ones few and near. Tried on noisy discs, the
boundary loss alone found those of a fifth of the picture, if later than with Dice beside it, and those of a hundredth only
unsteadily; with Dice both were found. The paper's decoder, too, found next to nothing without dilation. Knows no nets, clips or
loops.
Shapes: B patches, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from angio_ray.models.regions import patches
from angio_ray.training.paired_frames import mask_of

LEAST_PX = 4
"""Pixels of calcification from which on a patch of a frame of 512 px holds some."""
ITERATIONS = 4
"""Dilations of the paper's final experiment; it tried 0, 3, 4 and 6."""
KERNEL = 11
"""px: extends by 5 px each time, as the paper says. A kernel of 5 px, which extends by 2, is the other reading."""

_DICE = DiceLoss(sigmoid=True, batch=True)


def kernel_at(size: int) -> int:
    """KERNEL for a frame of `size` px, an odd number."""
    return max(1, round(KERNEL * size / 512) // 2 * 2 + 1)


def target_region(
    calcification_HW: NDArray[np.bool_], *, iterations: int = ITERATIONS, kernel: int = KERNEL
) -> NDArray[np.bool_]:
    """ROI_GT: the mask of calcification dilated so often by an ellipse that is `kernel` px wide."""
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (kernel, kernel))
    mask = np.ascontiguousarray(calcification_HW, np.uint8)
    return np.asarray(cv2.dilate(mask, ellipse, iterations=iterations) > 0) if iterations else mask > 0


def signed_distance(target_HW: NDArray[np.bool_], *, empty: float = 0.0) -> NDArray[np.float32]:
    """Distance of each pixel to the target's boundary, negative inside, in shares of the picture's diagonal: -1..1.

    As in Kervadec's code, a pixel outside has its distance to the nearest pixel inside, one inside that to the nearest outside
    less 1, so that the outermost pixels of the target have 0. A target that fills the picture: -1 everywhere.

    Parameters
    ----------
    target_HW
        The target region.
    empty
        The distance everywhere where there is no target. 0, as in Kervadec's code and in MONAI: such a patch teaches nothing,
        which suits a decoder whose false regions the classifier clears. 1, as far as can be: what is called there costs most.
    """
    if not target_HW.any():
        return np.full(target_HW.shape, empty, np.float32)
    if target_HW.all():
        return np.full(target_HW.shape, -1, np.float32)
    inside = np.maximum(distance_transform_edt(target_HW) - 1, 0)
    return np.asarray((distance_transform_edt(~target_HW) - inside) / np.hypot(*target_HW.shape), np.float32)


class Outlines:
    """Outlines of calcification, one of each pair of frames, held as bits at the nets' size."""

    def __init__(self, pngs: Sequence[bytes], size: int) -> None:
        """ValueError for what is no picture."""
        self.size = size
        self._bits = [np.packbits(mask_of(png, size)) for png in pngs]

    def read(self, rows_B: NDArray[np.intp], size: int) -> Tensor:
        """(B, size, size), booleans: at a smaller size a pixel counts of which a quarter does."""
        masks_BHW = np.stack([self[row] for row in rows_B.tolist()]).astype(np.float32)
        if size != self.size:
            masks_BHW = np.stack([cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) for mask in masks_BHW])
        return torch.from_numpy(masks_BHW >= 0.25)

    def __len__(self) -> int:
        return len(self._bits)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> NDArray[np.bool_]:
        """One of them, (H, W)."""
        return np.unpackbits(self._bits[row]).reshape(self.size, self.size).astype(np.bool_)

    def rarity(self) -> float:
        """Patches without calcification to one that holds some, 1 to 20: how much more the latter count."""
        holds = torch.cat([holds_calcification(torch.from_numpy(outline_HW)[None], self.size) for outline_HW in self])
        return float(np.clip((~holds).sum() / max(1, int(holds.sum())), 1, 20))


def holds_calcification(masks_BHW: Tensor, size: int) -> Tensor:
    """Which of the five patches of each frame hold some, (B * 5,), booleans."""
    least = max(1.0, LEAST_PX * (size / 512) ** 2)
    return patches(masks_BHW[:, None].float(), size // 2).flatten(1).sum(dim=1) >= least


def cell_loss(cells_Nhw: Tensor, masks_N1PP: Tensor) -> Tensor:
    """Mean cross entropy of what each cell of a patch says, against whether any calcification lies in it. Cells with some are
    few: one counts as much as _CELLS others."""
    target_Nhw = F.adaptive_max_pool2d(masks_N1PP, cells_Nhw.shape[-2:])[:, 0]
    weight = torch.tensor(_CELLS, device=cells_Nhw.device)
    return F.binary_cross_entropy_with_logits(cells_Nhw, target_Nhw, pos_weight=weight)


_CELLS = 20.0


def region_targets(masks_BHW: NDArray[np.bool_], iterations: int) -> tuple[Tensor, Tensor]:
    """Regions to learn around the calcifications of whole frames, and signed distances to their boundaries, both (B, 1, H, W).

    The kernel is KERNEL px of a frame of 512 px. Distances are of whole frames, so that those of patches go on over their edges.
    """
    kernel = kernel_at(masks_BHW.shape[-1])
    targets = np.stack([target_region(mask, iterations=iterations, kernel=kernel) for mask in masks_BHW])
    distances = np.stack([signed_distance(target) for target in targets])
    return torch.from_numpy(targets[:, None].astype(np.float32)), torch.from_numpy(distances[:, None])


def boundary_loss(logits_B1HW: Tensor, distance_B1HW: Tensor) -> Tensor:
    """Mean over all pixels of probability (sigmoid) times signed distance: at its least, and negative, on the target itself."""
    return (torch.sigmoid(logits_B1HW) * distance_B1HW).mean()


def region_loss(logits_B1HW: Tensor, target_B1HW: Tensor, distance_B1HW: Tensor, *, boundary_weight: float = 1.0) -> Tensor:
    """`boundary_weight` times the boundary loss and the rest, to 1, times soft Dice loss.

    Dice is that of the whole batch at once (MONAI's), so patches without a target need no rule of their own; a batch without any
    target has next to no gradient from it. ValueError for a weight outside 0..1.
    """
    if not 0 <= boundary_weight <= 1:
        raise ValueError(f"a boundary weight of {boundary_weight} is not in 0..1")
    loss = boundary_weight * boundary_loss(logits_B1HW, distance_B1HW)
    if boundary_weight < 1:
        loss = loss + (1 - boundary_weight) * _DICE(logits_B1HW, target_B1HW)
    return loss
