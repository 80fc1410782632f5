"""Nets that look at each frame of a clip and then read the frames in order: features, bidirectional LSTM, class of each frame.

After the stenosis paper's (spec section 2: Inception-v3, its last layer connected to a bidirectional LSTM). Knows no task.

Shapes: B clips, T frames, C channels (3), H x W pixels, N = B * T pictures, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from angio_ray.models.classifier import KINETICS_MEAN, KINETICS_STD


class FrameSequence(nn.Module):
    """Logits (B, T, K) of clips (B, C, T, H, W): features of each frame, read in both directions."""

    def __init__(self, features: nn.Module, num_features: int, hidden: int, classes: int, *, dropout: float = 0.2) -> None:
        """`features`: (B, C, T, H, W) -> (B, T, F)."""
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.sequence = nn.LSTM(num_features, hidden, batch_first=True, bidirectional=True)
        self.classify = nn.Linear(2 * hidden, classes)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """See the class."""
        sequence, _ = self.sequence(self.features(x_BCTHW))
        logits_BTK: Tensor = self.classify(self.dropout(sequence))
        return logits_BTK


class EachFrame(nn.Module):
    """A net for pictures, (N, C, H, W) -> (N, F), on every frame."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, T, F)."""
        frames_BTCHW = x_BCTHW.transpose(1, 2)
        features: Tensor = self.net(frames_BTCHW.flatten(0, 1))
        return features.unflatten(0, (-1, frames_BTCHW.shape[1]))


class VesselCurves(nn.Module):
    """How much of each frame is thin and dark, as vessels filled with contrast are: curves over time, without weights.

    Each curve runs from 0 to 1 between its least and its largest value in the clip, once as it is and once smoothed, since full
    contrast is what is near the clip's own fullest, however much iodine, X-rays or tissue there is. On the phantom a threshold on
    one such curve alone (black top-hat of 9 px, at 0.8) finds both ends within 3 frames in 85 % of clips; features that a small
    net of five convolutions learnt from 455 clips, without the scaling by the clip, in 31 %.
    """

    num_features = 16

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W), normalised as `classifier` does -> (B, T, F), -2 to 2."""
        num_frames = x_BCTHW.shape[2]
        with torch.no_grad():
            grey = (x_BCTHW[:, 0].float() * KINETICS_STD[0] + KINETICS_MEAN[0]).clamp(0, 1)
            dark = grey.amax(dim=1, keepdim=True) - grey
            # iodine takes a share of the light: in the logarithm it is the same before a bright and a dark background
            log_N1HW = torch.log1p(255 * grey).flatten(0, 1)[:, None] / 5.5
            maps = [_black_top_hat(log_N1HW), _black_top_hat(F.avg_pool2d(log_N1HW, 2))]
            maps = [*(m.unflatten(0, (-1, num_frames))[:, :, 0] for m in maps), dark]
            curves = [c for m in maps for c in (m.mean(dim=(2, 3)), m.square().mean(dim=(2, 3)).sqrt())]
            mean = grey.mean(dim=(2, 3))
            curves += [mean, (grey - mean[..., None, None]).square().mean(dim=(2, 3)).sqrt()]
            curves_BFT = torch.stack(curves, dim=1)
            smooth_BFT = F.avg_pool1d(curves_BFT, 5, 1, 2, count_include_pad=False)
            scaled = torch.cat([_from_0_to_1(curves_BFT), _from_0_to_1(smooth_BFT)], dim=1)
            return (4 * scaled - 2).transpose(1, 2)


def frames_lstm(classes: int, hidden: int = 48) -> FrameSequence:
    """Vessel curves behind the LSTM: all that is learnt is how to read them."""
    return FrameSequence(VesselCurves(), VesselCurves.num_features, hidden, classes)


def inception_lstm(classes: int, hidden: int = 256) -> FrameSequence:
    """The paper's: the 2,048 features of torchvision's Inception-v3. The size of its LSTM is not stated."""
    from torchvision.models import inception_v3

    net = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    net.fc = nn.Identity()
    return FrameSequence(EachFrame(net), 2048, hidden, classes)


def _from_0_to_1(curves_BFT: Tensor) -> Tensor:
    low, high = curves_BFT.amin(dim=2, keepdim=True), curves_BFT.amax(dim=2, keepdim=True)
    return (curves_BFT - low) / (high - low + 1e-6)


def _black_top_hat(x_N1HW: Tensor) -> Tensor:
    """Closing by a square of 5 px less the picture: what is darker than its surroundings and narrower than that."""
    return _of_five(torch.minimum, _of_five(torch.maximum, x_N1HW)) - x_N1HW


def _of_five(extreme: Callable[[Tensor, Tensor], Tensor], x_N1HW: Tensor) -> Tensor:
    """The extreme of 5 x 5 px around each pixel, by whole rows and columns: PyTorch's pooling takes five times as long."""
    x = F.pad(x_N1HW, (2, 2, 2, 2), mode="replicate")
    two = extreme(x[..., :-1], x[..., 1:])
    x = extreme(extreme(two[..., :-3], two[..., 2:-1]), x[..., 4:])
    two = extreme(x[..., :-1, :], x[..., 1:, :])
    return extreme(extreme(two[..., :-3, :], two[..., 2:-1, :]), x[..., 4:, :])
