"""What the double-head ResUNet is compared with: nets that seek the region itself, without a classifier (spec section 4).

All take pairs (B, 2, H, W) of grey frames, no contrast and contrast, 0..255, uint8 or float, whole frames or patches, and give a
map of logits (B, 1, H, W). The paper compared U-Net, TransUNet, Mask R-CNN and YOLOv5. `unet` is MONAI's. `transunet` is built as
TransUNet is (ResNet, transformer over its cells, U-Net's way up), but on ResNet-18 and small, with weights at random: not the
authors' R50-ViT-B/16 with ImageNet weights. `mask_rcnn` and `fcos` are torchvision's on ResNet-18 with random weights; FCOS
stands for the one-stage detectors, in the place of YOLOv5, whose code is under the AGPL.

    net         parameters   GMAC a patch of 256 px (ptflops; of detectors as many boxes as a fresh net finds)
    unet        1.95 M       3.25
    transunet   6.77 M       4.70
    mask_rcnn   30.91 M      some 9
    fcos        19.10 M      9.72

Detectors have a loss of their own (`Detector.losses`); the others learn as the decoder does (`training.regions.region_loss`).
Shapes: B pairs, H x W pixels, D found boxes of a pair, S islands of its target region.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from angio_ray.models.double_head import normalised, up
from angio_ray.models.regions import islands, region_facts

_IS_REGION = 1
"""The detectors' class; 0 is the background."""


class RegionOnly(nn.Module):
    """One of these nets in the place of a `double_head.ResUNet`: a patch is what its likeliest pixel is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def classify(self, pair_B2HW: Tensor) -> Tensor:
        """Logits (B,) of calcification in the patch."""
        return self.regions(pair_B2HW)[0]

    def regions(self, pair_B2HW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,) of the patch, and (B, 1, H, W) of each pixel to be in its region."""
        logits_B1HW: Tensor = self.net(pair_B2HW)
        return logits_B1HW.flatten(1).amax(dim=1), logits_B1HW

    def forward(self, pair_B2HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `regions`."""
        return self.regions(pair_B2HW)

    def freeze_classifier(self) -> None:
        """There is none."""


class Segmenter(nn.Module):
    """A net that gives a map, behind the normalisation that all share."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pair_B2HW: Tensor) -> Tensor:
        """Logits (B, 1, H, W)."""
        logits: Tensor = self.net(normalised(pair_B2HW))
        return logits


class Detector(nn.Module):
    """A detector of torchvision that sees no contrast, contrast, no contrast as its three channels.

    Each island of a region is an object: its box, and its mask where the detector has masks.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def losses(self, pair_B2HW: Tensor, target_B1HW: Tensor) -> Tensor:
        """The detector's own losses, summed; in training mode. target_B1HW: 1 in the region, else 0."""
        losses: Mapping[str, Tensor] = self.net(_three_channels(pair_B2HW), [islands_of(target) for target in target_B1HW])
        return torch.stack(list(losses.values())).sum()

    def forward(self, pair_B2HW: Tensor) -> Tensor:
        """Logits (B, 1, H, W), in evaluation mode: at each pixel the highest score of what was found there, as log-odds.

        Found at a pixel is a mask that has at least a half there, of detectors without masks a box that holds it. So the map from
        a threshold on is the union of all that scores as much; nothing found: -16 (a probability of 1e-7).
        """
        found = self.net(_three_channels(pair_B2HW))
        return torch.stack([_score_map(boxes, pair_B2HW.shape[-2:]) for boxes in found]).logit(eps=1e-7)


def unet(width: int = 16) -> Segmenter:
    """MONAI's BasicUNet with batch normalisation: width, and 2, 4, 8 and 16 times it below."""
    features = (width, 2 * width, 4 * width, 8 * width, 16 * width, width)
    return Segmenter(BasicUNet(2, 2, 1, features=features, act="relu", norm="batch", bias=False))


def transunet(*, layers: int = 4, size: int = 256) -> Segmenter:
    """A small TransUNet whose places are those of pictures of `size` px; others' sides are multiples of 16, too."""
    return Segmenter(_TransUNet(layers, size))


def mask_rcnn(size: int = 256) -> Detector:
    """Torchvision's Mask R-CNN on ResNet-18, trained as a whole; pictures are looked at with `size` px as their side.

    Fewer proposals and boxes than torchvision's defaults, which are for scenes with dozens of objects: a quarter of the time.
    """
    anchors = AnchorGenerator(sizes=((16,), (32,), (64,), (128,), (256,)), aspect_ratios=((0.5, 1.0, 2.0),) * 5)
    return Detector(MaskRCNN(
        _backbone(), 2, min_size=size, max_size=size, image_mean=_MEAN, image_std=_STD, rpn_anchor_generator=anchors,
        rpn_post_nms_top_n_train=500, rpn_post_nms_top_n_test=100, box_batch_size_per_image=128, box_detections_per_img=20,
    ))  # fmt: skip


def fcos(size: int = 256) -> Detector:
    """Torchvision's FCOS, one stage and no anchors, on ResNet-18; pictures are looked at with `size` px as their side."""
    backbone = _backbone(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    return Detector(FCOS(backbone, 2, min_size=size, max_size=size, score_thresh=0.05, image_mean=_MEAN, image_std=_STD))


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "unet": unet,
    "transunet": transunet,
    "mask_rcnn": mask_rcnn,
    "fcos": fcos,
}
"""Name -> a fresh net for patches of 256 px."""

_MEAN, _STD = [0.0] * 3, [1.0] * 3
"""Of torchvision's own normalisation: `normalised` has been there before."""


def islands_of(target_1HW: Tensor) -> dict[str, Tensor]:
    """A target region as torchvision's detectors take it: boxes (S, 4), x0, y0, x1, y1 px, labels (S,) and masks (S, H, W)."""
    found = islands(target_1HW[0].cpu().numpy() > 0.5)
    boxes = np.array([region_facts(mask).box for mask in found], np.float32).reshape(-1, 4)
    masks = np.array(found, np.uint8).reshape(-1, *target_1HW.shape[-2:])
    return {
        "boxes": torch.from_numpy(boxes).to(target_1HW.device),
        "labels": torch.full((len(found),), _IS_REGION, device=target_1HW.device),
        "masks": torch.from_numpy(masks).to(target_1HW.device),
    }


def _three_channels(pair_B2HW: Tensor) -> list[Tensor]:
    return list(normalised(pair_B2HW)[:, [0, 1, 0]])


def _score_map(found: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """Highest score at each pixel, (1, H, W), 0 where nothing is."""
    if "masks" in found:
        where_D1HW = found["masks"] >= 0.5
    else:
        where_D1HW = torch.zeros(len(found["boxes"]), 1, *shape, dtype=torch.bool, device=found["boxes"].device)
        for where_1HW, (x0, y0, x1, y1) in zip(where_D1HW, found["boxes"].round().int().tolist(), strict=True):
            where_1HW[:, y0:y1, x0:x1] = True
    scores = where_D1HW * found["scores"].view(-1, 1, 1, 1)
    return torch.cat([scores.new_zeros(1, 1, *shape), scores]).amax(dim=0)


def _backbone(**options: object) -> BackboneWithFPN:
    return resnet_fpn_backbone(  # batch statistics of its own, as no weights come with them
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5, **options
    )


class _TransUNet(nn.Module):
    """ResNet-18 to cells of 16 px, a transformer over these with learnt places, and up again with skips."""

    def __init__(self, layers: int, size: int, width: int = 256) -> None:
        super().__init__()
        net = resnet18(weights=None)
        first = nn.Conv2d(2, 64, 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(first, net.bn1, net.relu)
        self.pool, self.stages = net.maxpool, nn.ModuleList([net.layer1, net.layer2, net.layer3])
        self.places = nn.Parameter(0.02 * torch.randn(1, (size // 16) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, activation="gelu", batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.ups = nn.ModuleList([up(width, 128, 128), up(128, 64, 64), up(64, 64, 32), up(32, 0, 16)])
        self.roi = nn.Conv2d(16, 1, 1)

    def forward(self, x_B2HW: Tensor) -> Tensor:
        stem = self.stem(x_B2HW)  # 1/2
        quarter = self.stages[0](self.pool(stem))
        eighth = self.stages[1](quarter)
        cells = self.stages[2](eighth)  # 1/16
        tokens = self.transformer(cells.flatten(2).transpose(1, 2) + self._places_of(cells))
        x = tokens.transpose(1, 2).unflatten(2, cells.shape[-2:])
        for step, skip in zip(self.ups, (eighth, quarter, stem, None), strict=True):
            x = step(x, skip)
        logits: Tensor = self.roi(x)
        return logits

    def _places_of(self, cells_BChw: Tensor) -> Tensor:
        """The learnt places, or those of a smaller or larger picture between them."""
        shape, side = cells_BChw.shape[-2:], math.isqrt(self.places.shape[1])
        if shape == (side, side):
            return self.places
        grid = self.places.transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(grid, shape, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
