"""Quality selection: satisfactory or unsatisfactory per clip. The five nets of the paper and the task's scorer.

Nets and inputs are those that give the paper's parameters and GMAC to the digit (spec section 1; cost.py checks): 2D ResNets
of torchvision on 299 px, 3D ResNets of MONAI, X3D-S of pytorchvideo on 160 px. Knows nothing of tables, gates or Ray.

Shapes: B clips, T frames, C channels (3), H x W pixels, K classes (satisfactory, unsatisfactory).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from angio_ray.models.backends import TwoClassScorer
from angio_ray.models.interface import NetSpec, PaperFigures
from angio_ray.sampling import ClipWindow

if TYPE_CHECKING:
    from torch import nn

CLASSES = ("satisfactory", "unsatisfactory")
COLUMNS = ("quality_probability", "quality_threshold", "quality_satisfactory")

# Names say what is in the window, so that two tasks with the same window share one decoded input.
EIGHTH_299 = ClipWindow(name="t32s8_299px", size=299, stride=8)
HALF_160 = ClipWindow(name="t32s2_160px", size=160, stride=2)


class QualityScorer(TwoClassScorer):
    """Probability that a clip is unsatisfactory, and the bundle's verdict on it."""

    task = "quality"

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[np.ndarray]] | None = None,
        known: Mapping[str, Sequence[Any]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Score B clips: {window name: uint8 (B, T, H, W)} -> COLUMNS, each of length B.

        quality_probability and quality_threshold are float32 in 0..1; quality_satisfactory is whether the former is below
        the latter. ValueError when the net returns no number (NaN) for a clip.
        """
        probability = self.positive(inputs)
        return {
            "quality_probability": probability,
            "quality_threshold": np.full_like(probability, self.threshold),
            "quality_satisfactory": probability < self.threshold,
        }


def _resnet18_2d() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=len(CLASSES))


def _resnet152_2d() -> nn.Module:
    from torchvision.models import resnet152

    return resnet152(num_classes=len(CLASSES))


def _resnet18_3d() -> nn.Module:
    from monai.networks.nets import resnet18

    return resnet18(spatial_dims=3, n_input_channels=3, num_classes=len(CLASSES))


def _resnet152_3d() -> nn.Module:
    from monai.networks.nets import resnet152

    return resnet152(spatial_dims=3, n_input_channels=3, num_classes=len(CLASSES))


def _x3d_s() -> nn.Module:
    from pytorchvideo.models.x3d import create_x3d

    # Without its softmax, so that all nets return logits. Its pooling fixes the least input: 16 frames of 160 px.
    return create_x3d(input_clip_length=16, input_crop_size=160, model_num_class=len(CLASSES), head_activation=None)


# The paper feeds 160 px to its 3D nets, but its GMAC of the 3D ResNets are those of 150 px: cost is taken there.
NETS: dict[str, NetSpec] = {
    spec.name: spec
    for spec in (
        NetSpec(
            name="r18_2d", build=_resnet18_2d, window=EIGHTH_299, layout="BTCHW-mean", cost_input=(3, 299, 299),
            paper=PaperFigures(params_m=11.18, gmac=3.41, ms_per_clip=24.31, frames_per_s=164.5),
        ),
        NetSpec(
            name="r152_2d", build=_resnet152_2d, window=EIGHTH_299, layout="BTCHW-mean", cost_input=(3, 299, 299),
            paper=PaperFigures(params_m=58.15, gmac=21.46, ms_per_clip=19.32, frames_per_s=207.1),
        ),
        NetSpec(
            name="r18_3d", build=_resnet18_3d, window=HALF_160, layout="BCTHW", cost_input=(3, 16, 150, 150),
            paper=PaperFigures(params_m=33.2, gmac=59.79, ms_per_clip=67.99, frames_per_s=268.8),
        ),
        NetSpec(
            name="r152_3d", build=_resnet152_3d, window=HALF_160, layout="BCTHW", cost_input=(3, 16, 150, 150),
            paper=PaperFigures(params_m=117.41, gmac=136.11, ms_per_clip=66.90, frames_per_s=239.2),
        ),
        NetSpec(
            name="x3d_s", build=_x3d_s, window=HALF_160, layout="BCTHW", cost_input=(3, 16, 160, 160),
            paper=PaperFigures(params_m=2.98, gmac=2.56, ms_per_clip=59.83, frames_per_s=267.4),
        ),
    )
}
