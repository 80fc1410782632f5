"""A net with its normalisation inside: grey uint8 frames in, class probabilities out.

Training, scoring and export share this one module, so that none can normalise differently. Knows no task.

Shapes: B clips, T frames, C channels (3), H x W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from angio_ray.models.interface import NetSpec, Pool
from angio_ray.models.regions import NUM_PATCHES, patches

Triple = tuple[float, float, float]

KINETICS_MEAN: Triple = (0.45, 0.45, 0.45)
KINETICS_STD: Triple = (0.225, 0.225, 0.225)
"""pytorchvideo's X3D normalisation; the default of all nets, equal in all channels since the frames are grey."""


SHARPNESS = 4.0
"""Of the smooth maximum over the cells of a map: the larger, the nearer to the maximum itself."""


class ClipClassifier(nn.Module):
    """`spec`'s net behind (x / 255 - mean) / std on grey frames that are repeated to three channels.

    `net` holds all weights (bundles store `net.state_dict()`); normalisation has none.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, spec: NetSpec, *, mean: Triple = KINETICS_MEAN, std: Triple = KINETICS_STD, net: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layout, self.pool, self.num_classes, self.num_boxes = spec.layout, spec.pool, spec.classes, spec.num_boxes
        self.window_size = spec.window.size
        self.net = spec.build() if net is None else net
        # Explicit device: these stay real when the net is built on the meta device.
        scale = torch.tensor([1.0 / (255.0 * s) for s in std], device="cpu")
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device="cpu")
        self.register_buffer("scale", scale.reshape(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.reshape(1, 3, 1, 1, 1), persistent=False)

    def logits(self, x_BTHW: Tensor) -> Tensor:
        """Logits (B, K) of grey frames (B, T, H, W), uint8 or float, both in 0..255; (B, T, K) of nets with a class per frame.

        For 2D nets these are the logarithms of the frames' mean probabilities, so that softmax and cross entropy
        treat all nets alike.
        """
        if self.layout == "BCTHW-maps":
            return pooled(self.maps(x_BTHW), self.pool)
        if self.layout == "B2HW-regions":  # a clip is what its worst patch is
            return F.pad(self.verdicts(x_BTHW).amax(dim=1, keepdim=True), (1, 0))
        x_BCTHW = self._normalised(x_BTHW)
        if self.layout != "BTCHW-mean":
            logits: Tensor = self.net(x_BCTHW)
            return logits
        num_frames = x_BTHW.shape[1]
        frames = x_BCTHW.transpose(1, 2).flatten(0, 1)  # (B*T, C, H, W)
        log_p_BTK = torch.log_softmax(self.net(frames).float(), dim=-1).unflatten(0, (-1, num_frames))
        return torch.logsumexp(log_p_BTK, dim=1) - math.log(num_frames)

    def verdicts(self, x_B2HW: Tensor) -> Tensor:
        """Of nets of regions: logits of the five patches, (B, 5)."""
        logits: Tensor = self.net.classify(self._patches(x_B2HW))  # type: ignore[operator]
        return logits.unflatten(0, (-1, NUM_PATCHES))

    def _patches(self, x_B2HW: Tensor) -> Tensor:
        return patches(x_B2HW.float(), x_B2HW.shape[-1] // 2)

    def maps(self, x_BTHW: Tensor) -> Tensor:
        """Of nets with maps: log-odds of each class against the first in each cell, (B, T, K - 1, h, w)."""
        log_odds: Tensor = self.net(self._normalised(x_BTHW))
        return log_odds

    def with_vessels(self, x_BTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, and what the net draws of the vessels (`frame_maps.FrameMaps.with_vessels`)."""
        found: tuple[Tensor, Tensor, Tensor] = self.net.with_vessels(self._normalised(x_BTHW))  # type: ignore[operator]
        return found

    def forward(self, x_BTHW: Tensor) -> Tensor:
        """Class probabilities (B, K), or (B, T, K), float32.

        Of nets with maps (B, T, K + h * w): after the classes, the cells row by row, each the probability of any class but the
        first; of detectors (B, T, K + h * w + D * 5): then the boxes, each x0, y0, x1, y1 as shares and its probability.
        Of nets of regions (B, K + 5 + 5 * P * P): after the classes those of the patches, then their pixels'.
        """
        if self.layout == "B2HW-regions":
            verdict_N, roi_N1PP = self.net.regions(self._patches(x_BTHW))  # type: ignore[operator]
            p_B5 = torch.sigmoid(verdict_N.float()).unflatten(0, (-1, NUM_PATCHES))
            p_B1 = p_B5.amax(dim=1, keepdim=True)
            pixels = torch.sigmoid(roi_N1PP.float()).flatten(1).unflatten(0, (-1, NUM_PATCHES)).flatten(1)
            return torch.cat([1 - p_B1, p_B1, p_B5, pixels], dim=1)
        if self.layout != "BCTHW-maps":
            return torch.softmax(self.logits(x_BTHW).float(), dim=-1)
        if self.num_boxes:
            maps, boxes_BTD5 = self.net.detect(self._normalised(x_BTHW))  # type: ignore[operator]
            return torch.cat([self._answer(maps.float()), boxes_BTD5.flatten(2)], dim=-1)
        return self._answer(self.maps(x_BTHW).float())

    def _answer(self, maps: Tensor) -> Tensor:
        return torch.cat([torch.softmax(pooled(maps, self.pool), dim=-1), cell_probability(maps).flatten(2)], dim=-1)

    def raw(self, x_BTHW: Tensor) -> tuple[Tensor, ...]:
        """What a detector says before its boxes are decoded (`detection.FrameDetector.raw`)."""
        found: tuple[Tensor, ...] = self.net.raw(self._normalised(x_BTHW))  # type: ignore[operator]
        return found

    def _normalised(self, x_BTHW: Tensor) -> Tensor:
        """(B, T, H, W) -> (B, C, T, H, W)."""
        return x_BTHW.to(torch.float32).unsqueeze(1) * self.scale + self.shift


def kernel_format(net: nn.Module) -> torch.memory_format:
    """How a net's weights lie in memory for kernels that go through the channels last: of 3 or of 2 dimensions."""
    return torch.channels_last_3d if any(isinstance(part, nn.Conv3d) for part in net.modules()) else torch.channels_last


def pooled(maps_BTKhw: Tensor, pool: Pool) -> Tensor:
    """Logits of the frames, (B, T, K), the first class's at 0, of log-odds against it in each cell, (B, T, K - 1, h, w)."""
    return pooled_cells(maps_BTKhw.flatten(3).float(), pool)


def pooled_cells(cells: Tensor, pool: Pool) -> Tensor:
    """The same of cells in one dimension, (..., K - 1, C) -> (..., K)."""
    return F.pad(cells.mean(dim=-1) if pool == "mean" else smooth_maximum(cells), (1, 0))


def smooth_maximum(cells: Tensor) -> Tensor:
    """Over the last dimension; never below the maximum itself."""
    return torch.logsumexp(SHARPNESS * cells, dim=-1) / SHARPNESS


def cell_probability(maps_BTKhw: Tensor) -> Tensor:
    """Of any class but the first in each cell, (B, T, h, w), of log-odds against it, (B, T, K - 1, h, w)."""
    return 1 - torch.softmax(F.pad(maps_BTKhw, (0, 0, 0, 0, 1, 0)), dim=2)[:, :, 0]


class Ensemble(nn.Module):
    """The mean of several classifiers' probabilities (of one is that one's), and the boxes of all of them."""

    def __init__(self, members: Sequence[ClipClassifier]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        self.members = nn.ModuleList(members)
        self.layout, self.num_boxes = members[0].layout, members[0].num_boxes

    def forward(self, x_BTHW: Tensor) -> Tensor:
        """What each member gives, float32, of grey frames (B, T, H, W), uint8."""
        probabilities = [member(x_BTHW) for member in self.members]
        if len(probabilities) == 1:
            return probabilities[0]
        boxes = 5 * self.num_boxes
        if not boxes:
            return torch.stack(probabilities).mean(dim=0)
        mean = torch.stack([p[..., :-boxes] for p in probabilities]).mean(dim=0)
        return torch.cat([mean, *(p[..., -boxes:] for p in probabilities)], dim=-1)
