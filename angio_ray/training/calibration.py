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
_PULL = 1e-4
"""Of the scale towards 1: frames that a net tells apart without an error have no best one."""
_SCALES = (0.05, 20.0)
"""No scale beyond these: of frames that a net does not tell apart the best is none at all."""


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

    ValueError where the frames lack a class: nothing would say how rare it is.
    """
    cells = log_odds_NKC.float()
    if len(target_N.unique()) < cells.shape[1] + 1:
        raise ValueError("the frames are not of all classes")
    # around what the frames come to on average, or the first step, which is as long as that, may end where nothing leads back
    middle_K = logits_of(cells)[:, 1:].mean(dim=0)
    centred = cells - middle_K[:, None]

    def fitted(log_scale: Tensor, offset_K: Tensor) -> None:
        """Change those of the two that may change."""
        optimizer = torch.optim.LBFGS(
            [value for value in (log_scale, offset_K) if value.requires_grad], max_iter=_STEPS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = logits_of(log_scale.exp() * centred + offset_K[:, None])
            found = F.cross_entropy(logits, target_N) + _PULL * log_scale**2
            found.backward()
            return found

        with torch.enable_grad():
            optimizer.step(loss)

    log_scale, offset_K = torch.zeros((), requires_grad=True), torch.zeros(cells.shape[1], requires_grad=True)
    fitted(log_scale, offset_K)
    scale = log_scale.detach().exp().clamp(*_SCALES)
    if scale != log_scale.detach().exp():
        fitted(scale.log(), offset_K)
    return Calibration(scale.item(), tuple((offset_K.detach() - scale * middle_K).tolist()))


@torch.no_grad()
def with_calibration(last: nn.Conv2d, calibration: Calibration) -> None:
    """Change a layer that gives log-odds so that it gives calibrated ones."""
    assert last.bias is not None
    last.weight.mul_(calibration.scale)
    last.bias.mul_(calibration.scale).add_(torch.tensor(calibration.offset_K, device=last.bias.device))
