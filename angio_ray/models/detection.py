"""An anchor-based detector on the features of a net with maps (stenosis paper, step 4; spec section 2).

    picture -> the classifier's features -> feature pyramid -> RetinaNet's head -> a score and a box of each anchor

Pyramid, head, anchors and box coding are torchvision's. The paper puts its detector on the features of the classifier of two
classes; here they stay as they were learnt, so that the classes of frames do not change, and only what comes after them learns.
Boxes are x0, y0, x1, y1, px of the picture where not said otherwise.

Shapes: B clips, T frames, C channels (3), H x W pixels, N = B * T pictures, K classes, h x w cells, A anchors, D boxes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork

from angio_ray.models.frame_maps import FrameMaps
from angio_ray.models.stenosis import NUM_BOXES

_SIDES = (36, 52, 80)
"""Of the anchors at each level, px."""
_RATIOS = (0.6, 1.0, 1.6)


class FrameDetector(FrameMaps):
    """Maps of frames as `FrameMaps`, and boxes."""

    def __init__(self, maps: FrameMaps, num_features: int, *, stride: int = 8, width: int = 32) -> None:
        """`maps`: whose features these are, with cells of `stride` px. `width`: channels of the pyramid."""
        super().__init__(maps.features, num_features, maps.cells.out_channels + 1, vessels=maps.vessels, twice=maps.twice)
        self.cells = maps.cells
        self._strides = [stride * 2**level for level in range(len(_SIDES))]
        self.coarser = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(num_features, num_features, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(num_features),
                nn.ReLU(),
            )
            for _ in _SIDES[1:]
        )
        self.pyramid = FeaturePyramidNetwork([num_features] * len(_SIDES), width)
        self.anchors = AnchorGenerator(tuple((side,) for side in _SIDES), (_RATIOS,) * len(_SIDES))
        self.head = RetinaNetHead(width, len(_RATIOS), 1, norm_layer=nn.BatchNorm2d)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        for part in (self.features, self.cells, self.vessels):
            if part is not None:
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> FrameDetector:
        """As every module's, but the classifier stays in its evaluation mode: its statistics are not to change."""
        super().train(mode)
        self.features.eval()
        self.cells.eval()
        return self

    def raw(self, x_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps (B, T, K - 1, h, w), then of the N pictures logits (N, A, 1), coded boxes (N, A, 4), and the anchors (A, 4)."""
        num_frames, height, width = x_BCTHW.shape[2:]
        frames_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
        features = self.features(frames_NCHW)
        levels = [features]
        for step in self.coarser:
            levels.append(step(levels[-1]))
        fine_to_coarse = list(self.pyramid(OrderedDict((str(i), level) for i, level in enumerate(levels))).values())
        found = self.head(fine_to_coarse)
        maps = self._maps(frames_NCHW, features).unflatten(0, (-1, num_frames))
        return maps, found["cls_logits"], found["bbox_regression"], self.anchors_of(height, width).to(features.device)

    def anchors_of(self, height: int, width: int) -> Tensor:
        """Of a picture of this size: (A, 4), in the order of the head's answers."""
        grids = [[-(-height // stride), -(-width // stride)] for stride in self._strides]
        strides = [[torch.tensor(stride), torch.tensor(stride)] for stride in self._strides]
        return torch.cat(self.anchors.grid_anchors(grids, strides)).float()

    def detect(self, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Maps, and the NUM_BOXES best boxes of each frame, (B, T, D, 5): as shares of width and height, and probability."""
        maps, logits_NA1, coded_NA4, anchors_A4 = self.raw(x_BCTHW)
        scores_ND, best_ND = logits_NA1[..., 0].float().topk(NUM_BOXES, dim=1)
        coded_ND4 = coded_NA4.float().gather(1, best_ND[..., None].expand(-1, -1, 4))
        boxes_ND4 = self.coder.decode_single(coded_ND4.flatten(0, 1), anchors_A4[best_ND].flatten(0, 1)).view_as(coded_ND4)
        sides = torch.tensor([x_BCTHW.shape[-1], x_BCTHW.shape[-2]] * 2, device=boxes_ND4.device)
        boxes_ND5 = torch.cat([(boxes_ND4 / sides).clamp(0, 1), torch.sigmoid(scores_ND)[..., None]], dim=2)
        return maps, boxes_ND5.unflatten(0, maps.shape[:2])
