"""Nets that look at single frames and give a map: in each cell the log-odds of each class against the first.

What a frame is called follows from its map (`classifier.pooled`), so where a class was seen costs no second pass: with the mean
as the pool these are class activation maps (Zhou and others 2016). Knows no task.

Shapes: B clips, T frames, C channels (3), H x W pixels, N = B * T pictures, K classes, h x w cells.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from angio_ray.models.classifier import KINETICS_MEAN, KINETICS_STD
from angio_ray.views import OWN_MODEL


class FrameMaps(nn.Module):
    """Maps (B, T, K - 1, h, w) of clips (B, C, T, H, W), each frame by itself."""

    def __init__(
        self,
        features: nn.Module,
        num_features: int,
        classes: int,
        *,
        bias: float = 0.0,
        vessels: nn.Conv2d | None = None,
        twice: bool = False,
    ) -> None:
        """
        Parameters
        ----------
        features
            (N, C, H, W) -> (N, F, h, w).
        bias
            Log-odds of every class but the first to begin with.
        vessels
            What `with_vessels` draws with, 1 + side * side channels of cells that are squares of `side` px.
        twice
            Judge each frame as it is and mirrored, and take the mean, except in training.
        """
        super().__init__()
        self.twice = twice
        self.features = features
        self.vessels = vessels
        self.cells = nn.Conv2d(num_features, classes - 1, 1)
        assert self.cells.bias is not None
        nn.init.constant_(self.cells.bias, bias)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """See the class."""
        num_frames = x_BCTHW.shape[2]
        frames_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
        return self._maps(frames_NCHW, self.features(frames_NCHW)).unflatten(0, (-1, num_frames))

    def _maps(self, frames_NCHW: Tensor, features: Tensor) -> Tensor:
        """Of N pictures, (N, K - 1, h, w), with those of the mirrored pictures where these count, too."""
        maps: Tensor = self.cells(features)
        if self.training or not self.twice:
            return maps
        return (maps + self.cells(self.features(frames_NCHW.flip(-1))).flip(-1)) / 2

    def with_vessels(self, x_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps, then of the N pictures the log-odds that a pixel is a vessel's, (N, 1, H, W), and of each cell the natural
        logarithm of its vessel's radius in px, (N, 1, h, w). For training alone."""
        assert self.vessels is not None
        num_frames = x_BCTHW.shape[2]
        features = self.features(x_BCTHW.transpose(1, 2).flatten(0, 1))
        maps: Tensor = self.cells(features)
        drawn = self.vessels(features)
        side = math.isqrt(drawn.shape[1] - 1)
        return maps.unflatten(0, (-1, num_frames)), F.pixel_shuffle(drawn[:, 1:], side), drawn[:, :1]


class LocalContrast(nn.Module):
    """Two channels of each frame: its logarithm, and how much that differs from its surroundings (32 px), in their deviations.

    Iodine takes a share of the light, so in the logarithm a vessel looks the same before a bright and a dark background.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W), normalised as `classifier` does -> (N, 2, H, W)."""
        grey = (x_NCHW[:, :1].float() * KINETICS_STD[0] + KINETICS_MEAN[0]).clamp(0, 1)
        log = torch.log1p(255 * grey) / 5.5
        apart = log - _surroundings(log)
        spread = _surroundings(apart.square()).clamp(min=1e-4).sqrt()
        return torch.cat([2 * log - 1.5, apart / (2 * spread + 0.02)], dim=1)


class _ToldView(nn.Sequential):
    """Layers, after the `place`-th of which something is added that each view has of its own, nothing to begin with."""

    def __init__(self, *layers: nn.Module, place: int, width: int) -> None:
        super().__init__(*layers)
        self.place, self.most = place, len(OWN_MODEL)
        # not among the layers: a state dict of the same layers alone fits
        self.view = nn.Embedding(1 + self.most, width)
        nn.init.zeros_(self.view.weight)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """(N, C, H, W), whose first pixel says the view (`stenosis.with_view`) -> features."""
        grey_N = 255 * (frames_NCHW[:, 0, 0, 0].float() * KINETICS_STD[0] + KINETICS_MEAN[0])
        told_NF11 = self.view(grey_N.round().long().clamp(0, self.most))[:, :, None, None]
        x = frames_NCHW
        *layers, _ = self.children()  # the last one is `view`
        for number, layer in enumerate(layers):
            x = layer(x)
            if number == self.place:
                x = x + told_NF11
        return x


def stenosis_s(classes: int, width: int = 32, *, told_view: bool = False) -> FrameMaps:
    """Squares of 4 x 4 px as channels, then convolutions of 3 px down to cells of 8 px that see some 200 px around.

    1.7 GMAC of convolutions a frame of 512 px, twice, since a frame is judged mirrored, too: of 802 phantom frames the AUC of
    either look was 0.77 and 0.79, that of both 0.79 (of 300 clips 0.79 and 0.82, and 0.83). With squares as channels nothing is
    lost before the first convolution, at a third of the time of convolutions of 5 and 3 px that halve the picture twice. In
    training it may have to draw the vessels and say their radius, too (`with_vessels`); what that is worth is not known yet
    (docs/experiments.md). `told_view`: it is told the artery and view of each frame (`stenosis.with_view`).
    """
    layers = (
        LocalContrast(),
        nn.PixelUnshuffle(4),
        nn.Conv2d(32, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width),
        Residual(width),
        halved(width, 2 * width, 3),
        Residual(2 * width),
        Residual(2 * width),
        Residual(2 * width, 2),
    )
    features = _ToldView(*layers, place=4, width=width) if told_view else nn.Sequential(*layers)
    return FrameMaps(features, 2 * width, classes, bias=-3.0, vessels=nn.Conv2d(2 * width, 1 + 8**2, 1), twice=True)


def stenosis_s_view(classes: int) -> FrameMaps:
    """`stenosis_s`, which is told the artery and view."""
    return stenosis_s(classes, told_view=True)


def inception_v3(classes: int) -> FrameMaps:
    """Torchvision's Inception-v3 before its pooling; with the mean as the pool the same classifier as with its own last layer."""
    from torchvision.models import inception_v3 as build

    net = build(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    net.avgpool, net.dropout, net.fc = nn.Identity(), nn.Dropout2d(0.5), nn.Identity()
    return FrameMaps(_Unflattened(net), 2048, classes)


class _Unflattened(nn.Module):
    """Inception's last features with their places: its forward pass flattens them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_NCHW: Tensor) -> Tensor:
        flat: Tensor = self.net(x_NCHW)
        side = math.isqrt(flat.shape[1] // 2048)
        return flat.unflatten(1, (2048, side, side))


class Residual(nn.Module):
    """Two convolutions of 3 px beside a shortcut."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)  # it begins as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


def halved(before: int, after: int, kernel: int) -> nn.Sequential:
    """A convolution down to half the size."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


def _surroundings(x_N1HW: Tensor) -> Tensor:
    """Mean over some 32 px, from a picture of a quarter of the size: smooth, and cheap."""
    small = F.avg_pool2d(x_N1HW, 4, ceil_mode=True, count_include_pad=False)
    small = F.avg_pool2d(F.pad(small, (3, 3, 3, 3), mode="replicate"), 7, 1)
    return F.interpolate(small, x_N1HW.shape[-2:], mode="bilinear", align_corners=False)
