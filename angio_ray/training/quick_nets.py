"""The same nets, made fit for training: any input size, and quick on processors. Weights and function do not change.

Knows nets of torch, no clips, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from angio_ray.models.classifier import ClipClassifier, kernel_format


def fit_for_training(classifier: ClipClassifier, device: torch.device) -> None:
    """Any input size, quick on processors, on the device in the layout that is quickest there."""
    any_input_size(classifier)
    if device.type == "cpu":
        quick_on_cpu(classifier)
    layout = kernel_format(classifier.net)
    # the net alone: the normalisation's buffers have five dimensions in 2D nets too
    classifier.to(device).net.to(memory_format=layout)


def any_input_size(module: nn.Module) -> None:
    """X3D's head pools with a kernel fixed at 16 x 5 x 5, all of a 160 px input's last map: a global mean is the same there."""
    for child in module.modules():
        if isinstance(getattr(child, "pool", None), nn.AvgPool3d):
            child.pool = nn.AdaptiveAvgPool3d(1)


def quick_on_cpu(module: nn.Module) -> None:
    """Depthwise 3D convolutions, whose gradient PyTorch computes slowly on processors, by 2D ones.

    Measured: X3D-S 1550 -> 485 ms per clip and step at 160 px on two cores of an AMD EPYC; the sums written out as
    autograd sees them cost 1081 ms on two of a later Intel Xeon, `_Depthwise` 644 to 785, with bfloat16 around it 571.
    The weights and their names stay.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv3d) and child.groups > 1 and child.groups == child.in_channels:
            child.forward = MethodType(depthwise, child)  # type: ignore[method-assign]


def depthwise(self: nn.Conv3d, x_BCTHW: Tensor) -> Tensor:
    """`nn.Conv3d.forward` for one filter per channel, odd kernel, no stride or dilation over time; others go the usual way.

    Always in float32: oneDNN's gradient of a depthwise convolution is four times as slow in bfloat16.
    """
    taps = self.kernel_size[0]
    over_time = self.kernel_size[1:] == (1, 1)
    plain = (
        taps % 2 == 1
        and self.stride[0] == 1
        and self.padding[0] == taps // 2
        and self.bias is None
        and self.out_channels == self.in_channels
        and self.dilation == (1, 1, 1)
        and self.padding_mode == "zeros"
        and (not over_time or (self.stride[1:] == (1, 1) and self.padding[1:] == (0, 0)))
    )
    if not plain:
        return nn.Conv3d.forward(self, x_BCTHW)
    with torch.autocast(x_BCTHW.device.type, enabled=False):
        x, weight = x_BCTHW.float(), self.weight.float()
        if over_time:  # alone: the pixels in one row, one 2D convolution
            row = F.conv2d(x.flatten(3), weight.flatten(3), None, 1, (taps // 2, 0), 1, x.shape[1])
            y_BCTHW = row.unflatten(3, x.shape[3:])
        else:
            y_BCTHW = _Depthwise.apply(x, weight, self.stride[1:], self.padding[1:])
    return y_BCTHW.to(x_BCTHW.dtype)


class _Depthwise(torch.autograd.Function):
    """Sum over the taps of 2D convolutions of the frames, each tap's moved in time by so much.

    The clips lie one behind the other with blank frames between, so that one tap is one convolution of one stretch of
    memory and none sees its neighbour clip.
    """

    @staticmethod
    def forward(ctx: Any, x_BCTHW: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        batch, channels, frames, height, width = x_BCTHW.shape
        taps = weight.shape[2]
        blank = taps // 2
        padded = _frames_of(x_BCTHW, batch * (frames + 2 * blank), channels, height, width)
        by_clip = padded.unflatten(0, (batch, -1))
        by_clip[:, :blank] = 0
        by_clip[:, blank + frames :] = 0
        by_clip[:, blank : blank + frames] = x_BCTHW.transpose(1, 2)
        centres = len(padded) - 2 * blank
        total = F.conv2d(padded[:centres], weight[:, :, 0], None, stride, padding, 1, channels)
        for tap in range(1, taps):
            total += F.conv2d(padded[tap : tap + centres], weight[:, :, tap], None, stride, padding, 1, channels)
        ctx.save_for_backward(padded, weight)
        ctx.sizes = batch, frames, stride, padding
        y = _frames_of(x_BCTHW, batch * frames, channels, *total.shape[2:]).unflatten(0, (batch, frames))
        for clip in range(batch):
            begin = clip * (frames + 2 * blank)
            y[clip] = total[begin : begin + frames]
        return y.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCTHW: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight = ctx.saved_tensors
        batch, frames, stride, padding = ctx.sizes
        taps, channels = weight.shape[2], padded.shape[1]
        grad = _frames_of(grad_BCTHW, len(padded), channels, *grad_BCTHW.shape[3:])
        by_clip = grad.unflatten(0, (batch, -1))
        by_clip[:, frames:] = 0
        by_clip[:, :frames] = grad_BCTHW.transpose(1, 2)
        centres = len(padded) - taps + 1
        grad_x, grad_taps = torch.zeros_like(padded), []
        for tap in range(taps):
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(
                grad[:centres],
                padded[tap : tap + centres],
                weight[:, :, tap],
                None,
                stride,
                padding,
                (1, 1),
                False,
                (0, 0),
                channels,
                (True, True, False),
            )
            grad_x[tap : tap + centres] += of_x
            grad_taps.append(of_weight)
        blank = taps // 2
        of_clips = grad_x.unflatten(0, (batch, -1))[:, blank : blank + frames].transpose(1, 2)
        return of_clips, torch.stack(grad_taps, 2), None, None


def _frames_of(like: Tensor, count: int, channels: int, height: int, width: int) -> Tensor:
    """Room for frames, channels last."""
    return torch.empty(
        (count, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


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
