"""The stenosis paper's loss for frames in order: a soft F1 score that forgives small shifts in time (spec section 2).

The paper names it "convolutional F1 score" and defines it no further. Here a frame called full counts as right by how much of
the true span lies within `tolerance` frames of it (the target convolved in time, at most 1), and a true frame as found by how
much the calls around it add up to. Knows nothing of clips or nets.

Shapes: B clips, T frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def _near(x_BT: Tensor, tolerance: int) -> Tensor:
    """What of x lies within so many frames, at most 1."""
    if not tolerance:
        return x_BT
    kernel = torch.ones(1, 1, 2 * tolerance + 1, dtype=x_BT.dtype, device=x_BT.device)
    return F.conv1d(x_BT[:, None], kernel, padding=tolerance)[:, 0].clamp(max=1)
