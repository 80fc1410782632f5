"""The calcification paper's double-head ResUNet-18: is there calcification in a patch, and where (spec section 4).

    pair of frames -> two heads (blocks 1, 2) -> concatenated -> tail (blocks 3-6) -> fully connected: one logit
                             \\_____________ skips ______________/ -> decoder -> a map of logits

The paper leaves open, and here is: a block's stride (block 1 halves by a convolution of 7 px as ResNet-18's first, without the
pooling after it, which the paper does not show and which small calcifications would not survive; block 2 keeps the size; each
block of the tail halves it, so that block 6 has 1/32 of the side as ResNet-18's last stage), widths ("four identical blocks"
taken as alike in form, with 2, 4, 8 and 8 times the first one's channels, ResNet-18's 128, 256, 512 and 512), one BasicBlock a
block as its text says ("double convolution"; ResNet-18 has two a stage), and the decoder's blocks (MONAI's `UpCat`: transposed
convolution, skip, two convolutions). Both heads have weights of their own. Weights begin at random, each residual block as its
shortcut.

Of a patch of 256 px, by ptflops as `cost.count` counts (`tests/models/test_double_head.py`):

    width   heads   all                   classifier alone (no decoder)
    64      2       19.54 M, 15.49 GMAC   10.04 M, 6.03 GMAC
    64      1       19.35 M, 13.28 GMAC    9.88 M, 4.42 GMAC
    16      2        1.23 M,  1.10 GMAC    0.63 M, 0.40 GMAC
    16      1        1.21 M,  0.95 GMAC    0.62 M, 0.29 GMAC

Knows no patches' places, losses or tasks.
Shapes: B patches, H x W pixels (multiples of 32), w width, C channels, h x w cells of block 6.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from angio_ray.models.classifier import KINETICS_MEAN, KINETICS_STD, smooth_maximum
from angio_ray.models.frame_maps import LocalContrast
from angio_ray.models.interface import Pool

STRIDE = 32
"""Pixels of a cell of block 6; sides must be multiples of it."""


def normalised(pair_B2HW: Tensor) -> Tensor:
    """How much each pixel differs from its surroundings, of grey values in 0..255, uint8 or float: the same input for all nets of
    regions. Calcification is a few grey levels of 255 beside the edges of lung and spine: on grey values themselves the nets of
    some hundred pairs learnt nothing in five epochs."""
    grey_N1HW = (pair_B2HW.float().flatten(0, 1)[:, None] / 255.0 - KINETICS_MEAN[0]) / KINETICS_STD[0]
    contrast: Tensor = LocalContrast()(grey_N1HW)[:, 1]
    return contrast.unflatten(0, (-1, pair_B2HW.shape[1]))


class ResUNet(nn.Module):
    """Pairs (B, 2, H, W) of grey frames, no contrast and contrast, 0..255, uint8 or float -> verdict and map.

    `encoder`, `classifier` and `decoder` hold all weights. With one head the contrast frame is not looked at, and all blocks are
    there still: what the paper's second head is worth.
    """

    def __init__(
        self, width: int = 64, *, num_heads: Literal[1, 2] = 2, pool: Pool = "mean", twice: bool = False
    ) -> None:
        """`width`: channels of blocks 1 and 2, an even number; the paper's net has 64 as ResNet-18. `pool`: of the cells' logits;
        the mean is what the paper's pooling and linear layer come to, a smooth maximum lets one cell speak alone. `twice`: a
        patch's verdict is the mean of its own and its mirror image's, except in training."""
        super().__init__()
        self.pool = pool
        self.twice = twice
        self.encoder = Encoder(width, num_heads)
        self.classifier = nn.Linear(8 * width, 1)
        self.decoder = Decoder(width, num_heads)
        if pool != "mean":
            nn.init.constant_(self.classifier.bias, -3.0)  # or 64 cells that know nothing would speak for calcification
        self._frozen = False

    def features(self, pair_B2HW: Tensor) -> tuple[Tensor, ...]:
        """Of the heads together (B, heads * w, H/2, W/2), then of blocks 3 to 6: 2 w at 1/4, 4 w at 1/8, 8 w at 1/16 and 1/32."""
        found: tuple[Tensor, ...] = self.encoder(normalised(pair_B2HW))
        return found

    def classify(self, pair_B2HW: Tensor) -> Tensor:
        """Logits (B,) of calcification in the patch, without the decoder's work."""
        return self._with_mirrored(pair_B2HW, self.verdict_of(self.cells(pair_B2HW)))

    def cells(self, pair_B2HW: Tensor) -> Tensor:
        """What each cell of block 6 says, logits (B, h, w)."""
        return self._cells(self.features(pair_B2HW)[-1])

    def verdict_of(self, cells_Bhw: Tensor) -> Tensor:
        """Logits (B,) of patches whose cells say so."""
        flat = cells_Bhw.flatten(1).float()
        return flat.mean(dim=1) if self.pool == "mean" else smooth_maximum(flat)

    def regions(self, pair_B2HW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,) of calcification in the patch, and (B, 1, H, W) of each pixel to be in its region.

        Raises ValueError for sides that are no multiples of 32.
        """
        features = self.features(pair_B2HW)
        verdict_B = self.verdict_of(self._cells(features[-1]))
        return self._with_mirrored(pair_B2HW, verdict_B), self.decoder(features)

    def forward(self, pair_B2HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `regions`."""
        return self.regions(pair_B2HW)

    def heat(self, pair_B2HW: Tensor) -> Tensor:
        """Grad-CAM of calcification from block 6, (B, h, w), not scaled.

        Between block 6 and the logit lie one linear layer and a pool over the cells, so the mean's gradient is that layer's
        weights: no backward pass.
        """
        return F.relu(torch.einsum("bchw,c->bhw", self.features(pair_B2HW)[-1], self.classifier.weight[0]))

    def freeze_classifier(self) -> None:
        """From now on encoder and classifier stay as they are, running statistics too; only the decoder learns."""
        self._frozen = True
        for part in (self.encoder, self.classifier):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ResUNet:
        """As every module's, but what is frozen stays in its evaluation mode, or its batch statistics would go on changing."""
        super().train(mode)
        if self._frozen:
            self.encoder.eval()
            self.classifier.eval()
        return self

    def _with_mirrored(self, pair_B2HW: Tensor, verdict_B: Tensor) -> Tensor:
        if self.training or not self.twice:
            return verdict_B
        return (verdict_B + self.verdict_of(self.cells(pair_B2HW.flip(-1)))) / 2

    def _cells(self, block6_BChw: Tensor) -> Tensor:
        logits: Tensor = self.classifier(block6_BChw.movedim(1, -1))
        return logits.squeeze(-1)


class Encoder(nn.Module):
    """Heads and tail."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(OrderedDict(block1=_stem(width), block2=_block(width, width, stride=1))) for _ in range(num_heads)
        )
        self.block3 = _block(num_heads * width, 2 * width)
        self.block4 = _block(2 * width, 4 * width)
        self.block5 = _block(4 * width, 8 * width)
        self.block6 = _block(8 * width, 8 * width)

    def forward(self, x_B2HW: Tensor) -> tuple[Tensor, ...]:
        """Normalised frames -> see `ResUNet.features`."""
        if x_B2HW.shape[-2] % STRIDE or x_B2HW.shape[-1] % STRIDE:
            raise ValueError(f"sides of {x_B2HW.shape[-2]} and {x_B2HW.shape[-1]} px are no multiples of {STRIDE}")
        both = torch.cat([head(x_B2HW[:, i : i + 1]) for i, head in enumerate(self.heads)], dim=1)
        block3 = self.block3(both)
        block4 = self.block4(block3)
        block5 = self.block5(block4)
        return both, block3, block4, block5, self.block6(block5)


class Decoder(nn.Module):
    """The encoder backwards, with what it saw at each size."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.up5 = up(8 * width, 8 * width, 8 * width)
        self.up4 = up(8 * width, 4 * width, 4 * width)
        self.up3 = up(4 * width, 2 * width, 2 * width)
        self.up2 = up(2 * width, num_heads * width, width)
        self.up1 = up(width, 0, width // 2)
        self.roi = nn.Conv2d(width // 2, 1, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """See `ResUNet.features` -> logits (B, 1, H, W)."""
        both, block3, block4, block5, x = features
        for step, skip in ((self.up5, block5), (self.up4, block4), (self.up3, block3), (self.up2, both), (self.up1, None)):
            x = step(x, skip)
        logits: Tensor = self.roi(x)
        return logits


def up(before: int, skip: int, after: int) -> UpCat:
    """Twice the size: (channels before, of the skip or 0, after), with batch normalisation and ReLU."""
    return UpCat(2, before, skip, after, act="relu", norm="batch", bias=False, is_pad=False)


def _stem(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _block(before: int, after: int, *, stride: int = 2) -> BasicBlock:
    shortcut = None
    if stride != 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
    block = BasicBlock(before, after, stride, shortcut)
    nn.init.zeros_(block.bn2.weight)
    return block
