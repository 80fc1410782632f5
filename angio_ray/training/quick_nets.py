"""The same nets, made fit for training: any input size, and quick on processors. Weights and function do not change.

Knows nets of torch, no clips, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from angio_ray.models.classifier import ClipClassifier


def any_input_size(module: nn.Module) -> None:
    """X3D's head pools with a kernel fixed at 16 x 5 x 5, all of a 160 px input's last map: a global mean is the same there."""
    for child in module.modules():
        if isinstance(getattr(child, "pool", None), nn.AvgPool3d):
            child.pool = nn.AdaptiveAvgPool3d(1)


def quick_on_cpu(module: nn.Module) -> None:
    """Depthwise 3D convolutions, whose gradient PyTorch computes slowly on processors, as sums of 2D ones.

    Measured: X3D-S 1550 -> 485 ms per clip and step at 160 px on two cores. The weights and their names stay.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv3d) and child.groups > 1 and child.groups == child.in_channels:
            child.forward = MethodType(depthwise, child)  # type: ignore[method-assign]


def depthwise(self: nn.Conv3d, x_BCTHW: Tensor) -> Tensor:
    """`nn.Conv3d.forward` for one filter per channel, odd kernel, stride 1 over time; others go the usual way."""
    batch, channels, frames, _, _ = x_BCTHW.shape
    taps = self.kernel_size[0]
    if taps % 2 == 0 or self.stride[0] != 1 or self.padding[0] != taps // 2 or self.bias is not None:
        return nn.Conv3d.forward(self, x_BCTHW)
    if self.kernel_size[1:] == (1, 1):
        padded = F.pad(x_BCTHW, (0, 0, 0, 0, taps // 2, taps // 2))
        moved = [padded[:, :, i : i + frames] * self.weight[:, 0, i].view(1, channels, 1, 1, 1) for i in range(taps)]
        return torch.stack(moved).sum(0)
    flat = x_BCTHW.transpose(1, 2).reshape(batch * frames, channels, *x_BCTHW.shape[3:])
    flat = flat.contiguous(memory_format=torch.channels_last)
    parts = [
        F.conv2d(flat, self.weight[:, :, i], None, self.stride[1:], self.padding[1:], 1, channels).unflatten(
            0, (batch, frames)
        )
        for i in range(taps)
    ]
    total = parts[taps // 2].clone()
    for i, part in enumerate(parts):
        back = taps // 2 - i  # this tap sees the frame `back` before
        if abs(back) >= frames:
            continue
        if back > 0:
            total[:, back:] += part[:, :-back]
        elif back < 0:
            total[:, :back] += part[:, -back:]
    return total.transpose(1, 2)


@torch.no_grad()
def settle_statistics(classifier: ClipClassifier, batches: Iterable[Tensor]) -> None:
    """Take batch normalisation's mean and variance anew from whole inputs (B, T, H, W), as the scorer sees them.

    Those of the epochs come from fewer, smaller and augmented frames; the weights do not change. Leaves eval mode on.
    """
    layers = [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches
    classifier.train()
    for batch in batches:
        classifier.logits(batch)
    for layer, momentum in zip(layers, kept, strict=True):
        layer.momentum = momentum
    classifier.eval()
