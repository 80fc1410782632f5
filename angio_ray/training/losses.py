"""Losses that no library has: a soft F1 score of frames in order, and boxes as a lesson for maps.

The F1 score is the stenosis paper's (spec section 2), which names it "convolutional F1 score" and defines it no further. Here a
frame called full counts as right by how much of the true span lies within `tolerance` frames of it (the target convolved in time,
at most 1), and a true frame as found by how much the calls around it add up to. Knows nothing of clips or nets.

Shapes: B clips, T frames, N frames, K classes, h x w cells of a map, S boxes of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from angio_ray.models.classifier import smooth_maximum
from angio_ray.models.stenosis import grown


def soft_convolutional_f1(probability_BT: Tensor, target_BT: Tensor, judged_BT: Tensor, *, tolerance: int = 2) -> Tensor:
    """Soft F1 of each clip, (B,), in 0..1, with a gradient in the probabilities.

    Parameters
    ----------
    probability_BT
        Of the frame to be of the class, 0..1.
    target_BT
        1 where it is, else 0.
    judged_BT
        1 where the target is known; other frames count nowhere.
    tolerance
        Frames by which a call may be early or late; 0: the plain soft F1 (Dice).

    A clip without a frame of the class is right where nothing is called: its F1 falls with the mean of the calls.
    """
    p = probability_BT * judged_BT
    y = target_BT.to(p.dtype) * judged_BT
    precision = (p * _near(y, tolerance)).sum(dim=1) / p.sum(dim=1).clamp(min=1e-6)
    recall = (y * _near(p, tolerance)).sum(dim=1) / y.sum(dim=1).clamp(min=1e-6)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-6)
    empty = 1 - p.sum(dim=1) / judged_BT.sum(dim=1).clamp(min=1)
    return torch.where(y.sum(dim=1) > 0, f1, empty)


MOTION = 0.04
"""How far the heart carries a narrowing from one frame to another, as a share of the side (20 px of 512)."""
_CELLS_PER_BOX = 20.0
"""So many cells without a narrowing weigh as much as one narrowing. A focal loss in place of this weight learnt nothing from
random weights in 1,000 steps."""


_NEAR_UNKNOWN = 0.2
"""Overlap of an anchor with a box of unknown class from which on nothing is said of it."""


def box_loss(maps_NKhw: Tensor, boxes_N: Sequence[Tensor | None]) -> Tensor:
    """What a map says of boxes and of what lies outside them, summed over the frames.

    Each box of a known class must hold a cell that says so (the smooth maximum of its cells, as of a frame); no cell outside all
    boxes may say anything. Boxes of the first class are background; of an unknown class, neither.

    Parameters
    ----------
    maps_NKhw
        Log-odds of each class but the first against it, (N, K - 1, h, w).
    boxes_N
        Of each frame (S, 5): class, x0, y0, x1, y1 as shares of the sides; None where nobody looked: no loss.
    """
    height, width = maps_NKhw.shape[-2:]
    outside = np.ones((len(maps_NKhw), height, width), np.float32)
    held, frames, classes = [], [], []
    for frame, boxes_S5 in enumerate(boxes_N):
        if boxes_S5 is None:
            outside[frame] = 0
            continue
        for of, x0, y0, x1, y1 in boxes_S5.tolist():
            if of == 0:
                continue
            inside = np.zeros((height, width), np.bool_)
            inside[
                max(0, math.floor(y0 * height)) : max(0, min(height, math.ceil(y1 * height))),
                max(0, math.floor(x0 * width)) : max(0, min(width, math.ceil(x1 * width))),
            ] = True
            outside[frame][inside] = 0
            if of > 0 and inside.any():
                held.append(inside)
                frames.append(frame)
                classes.append(int(of))
    device = maps_NKhw.device
    says = F.softplus(torch.logsumexp(maps_NKhw, dim=1))  # -log of the first class's probability
    loss = (says * torch.from_numpy(outside).to(device)).sum() / _CELLS_PER_BOX
    if held:
        without_S1hw = torch.from_numpy(~np.stack(held))[:, None].to(device)
        logits_SK = F.pad(smooth_maximum(maps_NKhw[frames].masked_fill(without_S1hw, -1e4).flatten(2)), (1, 0))
        loss = loss + F.cross_entropy(logits_SK, torch.tensor(classes, device=device), reduction="sum")
    return loss


def detection_loss(
    head: RetinaNetHead,
    logits_NA1: Tensor,
    coded_NA4: Tensor,
    anchors_A4: Tensor,
    boxes_N: Sequence[Tensor | None],
    *,
    size: int,
    smallest: float,
) -> Tensor:
    """RetinaNet's own loss (focal and L1, torchvision's), summed over the frames.

    boxes_N: as for `box_loss`, all of them where they are on that frame, None: no loss. Sides of `size` px; shorter boxes than
    `smallest` px are taught as that long. An anchor at a box of unknown class is neither right nor wrong.
    """
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    known, targets, matched = [], [], []
    for frame, boxes_S5 in enumerate(boxes_N):
        if boxes_S5 is None:
            continue
        middles = (boxes_S5[:, 1:3] + boxes_S5[:, 3:5]) / 2
        inside = ((middles > 0) & (middles < 1)).all(dim=1)  # of others no anchor may be near
        kinds = torch.where(inside | (boxes_S5[:, 0] <= 0), boxes_S5[:, 0], -1.0)
        all_S4 = torch.from_numpy(grown(boxes_S5[:, 1:].cpu().numpy(), smallest / size)).float().to(anchors_A4.device) * size
        counted, unknown = all_S4[kinds > 0], all_S4[kinds < 0]
        of_A = torch.full((len(anchors_A4),), Matcher.BELOW_LOW_THRESHOLD, device=anchors_A4.device)
        if len(counted):
            of_A = matcher(box_iou(counted, anchors_A4))
        if len(unknown):
            near = box_iou(unknown, anchors_A4).amax(dim=0) > _NEAR_UNKNOWN
            of_A = torch.where(near & (of_A < 0), Matcher.BETWEEN_THRESHOLDS, of_A)
        known.append(frame)
        targets.append({"boxes": counted, "labels": torch.zeros(len(counted), dtype=torch.long, device=counted.device)})
        matched.append(of_A)
    if not known:
        return 0.0 * logits_NA1.sum()
    outputs = {"cls_logits": logits_NA1[known].float(), "bbox_regression": coded_NA4[known].float()}
    losses = head.compute_loss(targets, outputs, [anchors_A4] * len(known), matched)  # means over the frames
    return torch.stack(list(losses.values())).sum() * len(known)


def boxes_of_frames(
    boxes_S7: NDArray[np.float32],
    places: Sequence[int],
    homography_33: Tensor | None = None,
    *,
    motion: float = MOTION,
) -> list[Tensor]:
    """The boxes of a clip as its frames at these places may have them: (S, 5) for `box_loss`.

    boxes_S7: `named_frames.NamedFrames`'s. One that was marked on another frame is larger by `motion` on each side.
    homography_33: where the frames' points come from, in -1..1 (`augment_located`).
    """
    boxes = torch.from_numpy(np.asarray(boxes_S7, np.float32))
    found = []
    for place in places:
        of_frame = boxes[boxes[:, 0] == place]
        here = of_frame[:, 3:] + of_frame[:, 1:2] * motion * torch.tensor([-1.0, -1.0, 1.0, 1.0])
        here = torch.cat([of_frame[:, 2:3], here], dim=1)
        found.append(here if homography_33 is None else _moved(here, homography_33))
    return found


def _moved(boxes_S5: Tensor, homography_33: Tensor) -> Tensor:
    """Class and corners of boxes, in shares, in a frame whose points come from there, in -1..1 (`augment_located`)."""
    if not len(boxes_S5) or torch.equal(homography_33, torch.eye(3)):
        return boxes_S5
    corners = boxes_S5[:, [1, 2, 3, 2, 1, 4, 3, 4]].view(-1, 4, 2) * 2 - 1
    points = F.pad(corners, (0, 1), value=1.0) @ torch.linalg.inv(homography_33.float().cpu()).T
    points = (points[..., :2] / points[..., 2:] + 1) / 2
    return torch.cat([boxes_S5[:, :1], points.amin(dim=1), points.amax(dim=1)], dim=1)


def _near(x_BT: Tensor, tolerance: int) -> Tensor:
    """What of x lies within so many frames, at most 1."""
    if not tolerance:
        return x_BT
    kernel = torch.ones(1, 1, 2 * tolerance + 1, dtype=x_BT.dtype, device=x_BT.device)
    return F.conv1d(x_BT[:, None], kernel, padding=tolerance)[:, 0].clamp(max=1)
