"""Nets that look at each frame of a clip and then read the frames in order: features, bidirectional LSTM, class of each frame.

After the stenosis paper's (spec section 2: Inception-v3, its last layer connected to a bidirectional LSTM). Knows no task.

Shapes: B clips, T frames, C channels (3), H x W pixels, F features, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrameSequence(nn.Module):
    """Logits (B, T, K) of clips (B, C, T, H, W) by features of each frame alone, read in both directions."""

    def __init__(
        self, features: nn.Module, num_features: int, hidden: int, classes: int, *, background: bool = False, dropout: float = 0.0
    ) -> None:
        """`features`: (B * T, C, H, W) -> (B * T, F). `background`: its channels are the frame, and the frame less the largest
        value that the pixel has in the clip, instead of C equal ones."""
        super().__init__()
        self.features = features
        self.background = background
        self.dropout = nn.Dropout(dropout)
        self.sequence = nn.LSTM(num_features, hidden, batch_first=True, bidirectional=True)
        self.classify = nn.Linear(2 * hidden, classes)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """See the class."""
        frames = x_BCTHW.transpose(1, 2)
        if self.background:
            grey = frames[:, :, :1]
            frames = torch.cat([grey, grey - grey.amax(dim=1, keepdim=True)], dim=2)
        features_BTF = self.features(frames.flatten(0, 1)).unflatten(0, (-1, frames.shape[1]))
        sequence, _ = self.sequence(self.dropout(features_BTF))
        logits_BTK: Tensor = self.classify(self.dropout(sequence))
        return logits_BTK


def frames_lstm(classes: int, channels: tuple[int, ...] = (16, 32, 64, 96, 128), hidden: int = 64) -> FrameSequence:
    """Five convolutions of stride 2 on the frame and on what contrast has darkened in it; mean and largest of each feature."""
    layers: list[nn.Module] = []
    before = 2
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return FrameSequence(
        nn.Sequential(*layers, _MeanAndLargest()), 2 * before, hidden, classes, background=True, dropout=0.2
    )


def inception_lstm(classes: int, hidden: int = 256) -> FrameSequence:
    """The paper's: the 2,048 features of torchvision's Inception-v3. The size of its LSTM is not stated."""
    from torchvision.models import inception_v3

    net = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    net.fc = nn.Identity()
    return FrameSequence(net, 2048, hidden, classes, dropout=0.2)


class _MeanAndLargest(nn.Module):
    """(N, F, H, W) -> (N, 2 F): how much there is of each feature, and whether it is anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
