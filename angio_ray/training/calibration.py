"""Scale and offsets that make what a map says of a frame a probability.

    maps of validation frames, their classes -> calibrate -> Calibration -> with_calibration(last layer)

A net that learns from squares meets narrowings far more often than a frame holds them, and so says far too much of each. Which
frame shows more than another is little changed by this; what share of them is narrowed is. (Platt 1999: a scale and an offset
fitted by likelihood, here within the last layer, so that the map's cells are calibrated with the frames.) Knows no loops.

Shapes: N frames, K classes, C cells of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 60
_SCALES = (0.05, 20.0)
"""No scale beyond these: frames that a net does not tell apart, or tells apart without an error, have no best one."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """log-odds -> scale * log-odds + offset of the class."""

    scale: float
    offset_K: tuple[float, ...]
    """Of every class but the first."""


def calibrate(log_odds_NKC: Tensor, target_N: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Calibration:
    """The scale and the offsets under which the frames' classes are likeliest.

    Parameters
    ----------
    log_odds_NKC
        Of each class but the first against it in each cell, (N, K - 1, C).
    target_N
        Class of each frame.
    logits_of
        What makes logits (N, K) of such cells: the pool.

    ValueError where the frames are of one class only.
    """
    if len(target_N.unique()) < 2:
        raise ValueError("frames of one class only")
    cells = log_odds_NKC.float()
    log_scale = torch.zeros((), requires_grad=True)
    offset_K = torch.zeros(cells.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, offset_K], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def scale() -> Tensor:
        return log_scale.exp().clamp(*_SCALES)

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(logits_of(scale() * cells + offset_K[:, None]), target_N)
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    return Calibration(scale().item(), tuple(offset_K.tolist()))


@torch.no_grad()
def with_calibration(last: nn.Conv2d, calibration: Calibration) -> None:
    """Change a layer that gives log-odds so that it gives calibrated ones."""
    assert last.bias is not None
    last.weight.mul_(calibration.scale)
    last.bias.mul_(calibration.scale).add_(torch.tensor(calibration.offset_K, device=last.bias.device))
