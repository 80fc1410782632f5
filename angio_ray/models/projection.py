"""A small net that looks at a whole run at once: at what was darkest at each place over time.

Contrast passes through a tree in a few heartbeats; the minimum over time shows all of it in one picture, wherever in the run it
was full. Knows no task.

Shapes: B clips, C channels (3), T frames, H x W pixels, K classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from angio_ray.models.frame_maps import LocalContrast, Residual, halved


class Projection(nn.Module):
    """Logits (B, K) of clips (B, C, T, H, W): a residual net on the minimum over time, and on how much was not always as dark."""

    def __init__(self, classes: int, width: int = 32) -> None:
        """`width`: channels at half the size; twice as many at a quarter, three and four times as many below that."""
        super().__init__()
        self.contrast = LocalContrast()
        widths = (width, 2 * width, 3 * width, 4 * width)
        blocks: list[nn.Module] = [halved(3, width, 3), Residual(width)]
        for before, after in pairwise(widths):
            blocks += [halved(before, after, 3), Residual(after)]
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """See the class."""
        grey_BTHW = x_BCTHW[:, 0]
        darkest, usual = grey_BTHW.amin(dim=1, keepdim=True), grey_BTHW.mean(dim=1, keepdim=True)
        picture = torch.cat([self.contrast(darkest), usual - darkest], dim=1)
        pooled = F.adaptive_avg_pool2d(self.features(picture), 1).flatten(1)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


def projection_2d(classes: int) -> Projection:
    """0.2 GMAC a run of 112 px, whatever its length."""
    return Projection(classes)
