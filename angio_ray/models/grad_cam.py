"""Grad-CAM: where in a clip a model found what speaks for a class. For people to look at; no score depends on it.

Selvaraju and others 2017, at the last feature map of the net, so a map costs one forward pass and the gradient of the head
(MONAI's GradCAM, which the tests compare with, goes back through the whole net: three times the time on a processor). A heat
map says where the model looked, not what is there, and never that the verdict is right. Knows no files, tables or pictures.

Shapes: B clips, T frames, H x W pixels, C channels and t, h, w of the feature map, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from angio_ray.models.bundles import Bundle
from angio_ray.models.classifier import ClipClassifier

LAST_FEATURES: Mapping[str, str] = {
    "r18_2d": "layer4",
    "r152_2d": "layer4",
    "r18_3d": "layer4",
    "r152_3d": "layer4",
    "x3d_s": "blocks.4",
    "projection_2d": "features",
}
"""Net -> its last layer that still has places: what is before the pooling."""


class GradCam:
    """Heat maps of one bundle, on the CPU; built once, used for many clips."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises ValueError for a net without a known feature map."""
        if bundle.net not in LAST_FEATURES:
            raise ValueError(f"no Grad-CAM for {bundle.net}: its last feature map is not known")
        self._layer = LAST_FEATURES[bundle.net]
        members = bundle.ensemble().requires_grad_(False).members
        self._members = [member for member in members if isinstance(member, ClipClassifier)]

    def __call__(self, frames_THW: np.ndarray, class_index: int) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and heat of one clip.

        Parameters
        ----------
        frames_THW
            uint8, as the bundle's window gives them.
        class_index
            The class whose evidence is shown.

        Returns
        -------
        probability_K
            float32, those of the bundle (of an ensemble the mean).
        heat_THW
            float32 in 0..1: where the log-odds of the class rise with the features; 1 is the most of this clip, all 0
            where nothing speaks for the class. Of an ensemble the mean of its members' maps.
        """
        x_BTHW = torch.tensor(frames_THW)[None]  # a copy: what the reader gives cannot be written to
        found = [class_map(member, self._layer, x_BTHW, class_index) for member in self._members]
        probability_K = torch.stack([probability_BK[0] for probability_BK, _ in found]).mean(0)
        size = x_BTHW.shape[1:]
        heats = [F.interpolate(heat, size=size, mode="trilinear", align_corners=False)[0, 0] for _, heat in found]
        return probability_K.numpy(), _scaled(torch.stack([_scaled(heat) for heat in heats]).mean(0)).numpy()


def class_map(classifier: ClipClassifier, layer: str, x_BTHW: Tensor, class_index: int) -> tuple[Tensor, Tensor]:
    """Probabilities (B, K) of one clip (B = 1) and its map (B, 1, t, h, w), not scaled, at the size of the layer's features."""
    kept: list[Tensor] = []

    def begin_here(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # what follows may write into it

    handle = classifier.net.get_submodule(layer).register_forward_hook(begin_here)
    try:
        with torch.enable_grad():
            logits_BK = classifier.logits(x_BTHW).float()
            (gradient,) = torch.autograd.grad(_log_odds(logits_BK, class_index).sum(), kept)
    finally:
        handle.remove()
    features = kept[0].detach()
    places = tuple(range(2, features.ndim))
    heat = torch.relu((gradient.mean(places, keepdim=True) * features).sum(1, keepdim=True)).float()
    if heat.ndim == 4:  # a 2D net: its batch is the frames, (T, 1, h, w)
        heat = heat.transpose(0, 1)[None]
    return torch.softmax(logits_BK.detach(), -1), heat


def _log_odds(logits_BK: Tensor, k: int) -> Tensor:
    """log P(k) - log P(not k), (B,). A logit alone says nothing of the other classes."""
    others = [j for j in range(logits_BK.shape[1]) if j != k]
    return logits_BK[:, k] - logits_BK[:, others].logsumexp(1)


def _scaled(heat: Tensor) -> Tensor:
    top = heat.amax()
    return heat / top if top > 0 else torch.zeros_like(heat)
