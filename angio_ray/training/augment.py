"""Augmentation of whole batches of clips on the accelerator: one draw per clip, the same for all of its frames (the
width of the blur alone is one draw per batch).

Flip, rotation, perspective and blur are the quality paper's (spec section 1); its strengths are not stated, so they are
ours. Brightness, contrast, gamma, noise and edge halo are ours too: what differs between one vendor's display and
another's. Geometry is one `grid_sample` for the batch; blur and halo are torchvision's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from angio_ray.training.recipes import AugmentConfig

__all__ = ["AugmentConfig", "augment", "augment_located", "changed_masks"]


def augment(clips_BTHW: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Changed copies of a batch of clips.

    Parameters
    ----------
    clips_BTHW : Tensor
        Grey values 0..255, any float type or uint8, on any device.
    config : AugmentConfig
        Bounds.
    generator : torch.Generator
        On the CPU, whatever the clips' device: a seed gives the same changes on every machine (of the noise, its amount).

    Returns
    -------
    Tensor
        float32, 0..255, same shape and device.
    """
    return augment_located(clips_BTHW, config, generator)[0]


def augment_located(
    clips_BTHW: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same, and where each point of the changed clips comes from: (B, 3, 3), in coordinates from -1 to 1."""
    batch, _, height, width = clips_BTHW.shape
    x = clips_BTHW.float() / 255
    homography_B33 = _homographies(batch, config, generator)
    eye = torch.eye(3)
    if not torch.equal(homography_B33, eye.expand_as(homography_B33)):
        fill_B = _uniform(generator, batch, 0.0, 0.2)
        x = _warped(x, homography_B33.to(x.device), fill_B.to(x.device))
    soft_B = _chosen(generator, batch, config.blur_share)
    sigma = float(_uniform(generator, 1, 0.3, max(0.3, config.blur_px)))
    halo_B = _chosen(generator, batch, config.halo_share)
    if bool(soft_B.any()):
        x = torch.where(_per_clip(soft_B, x), v2.functional.gaussian_blur(x, [5, 5], [sigma]), x)
    x = x.clamp(0, 1) ** _per_clip(torch.exp(_uniform(generator, batch, -config.gamma, config.gamma)), x)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * _per_clip(torch.exp(_uniform(generator, batch, -config.contrast, config.contrast)), x) + mean
    x = x + _per_clip(_uniform(generator, batch, -config.brightness, config.brightness), x)
    amount_B = _uniform(generator, batch, 0.0, config.halo) * halo_B
    if bool(halo_B.any()):
        x = x + _per_clip(amount_B, x) * (x - v2.functional.gaussian_blur(x, [9, 9], [3.0]))
    noise_B = _uniform(generator, batch, 0.0, config.noise) * _chosen(generator, batch, config.noise_share)
    if bool((noise_B > 0).any()):
        x = x + _per_clip(noise_B, x) * _noise(x, generator)
    cut_B = _chosen(generator, batch, config.cut_share)
    if bool(cut_B.any()):
        x = x * _borders(cut_B, generator, height, width).to(x.device)
    return x.clamp(0, 1) * 255, homography_B33


def changed_masks(masks_BTHW: Tensor, homography_B33: Tensor) -> Tensor:
    """Masks (0 or 1) that go with clips which `augment_located` changed so: (B, T, H, W), booleans."""
    none = torch.zeros(len(masks_BTHW))
    return _warped(masks_BTHW.float(), homography_B33.to(masks_BTHW.device), none.to(masks_BTHW.device)) >= 0.5


def _uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _chosen(generator: torch.Generator, count: int, share: float) -> Tensor:
    return torch.rand(count, generator=generator) < share


def _per_clip(values_B: Tensor, like: Tensor) -> Tensor:
    return values_B.to(like.device).view(-1, 1, 1, 1)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Made where it is used: a batch of it takes longer to carry to a GPU than to train on."""
    if like.device.type != "cpu":
        seed = int(torch.randint(2**62, (1,), generator=generator))
        generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device)


def _homographies(batch: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Where each output point comes from, (B, 3, 3), in coordinates from -1 to 1."""
    turn = torch.deg2rad(_uniform(generator, batch, -config.rotation_deg, config.rotation_deg))
    scale = torch.exp(_uniform(generator, batch, -config.zoom, config.zoom))
    shift = _uniform(generator, 2 * batch, -2 * config.shift, 2 * config.shift).view(batch, 2)
    tilt = _uniform(generator, 2 * batch, -config.perspective, config.perspective).view(batch, 2)
    tilt = tilt * _chosen(generator, batch, 0.5)[:, None]
    mirror = 1.0 - 2.0 * _chosen(generator, batch, config.flip).float()
    found = torch.zeros(batch, 3, 3)
    found[:, 0, 0], found[:, 0, 1] = torch.cos(turn) * scale * mirror, -torch.sin(turn) * scale
    found[:, 1, 0], found[:, 1, 1] = torch.sin(turn) * scale * mirror, torch.cos(turn) * scale
    if config.upside_down:
        found[:, :, 1] *= 1.0 - 2.0 * _chosen(generator, batch, config.upside_down).float()[:, None]
    if config.turned:
        exchanged = _chosen(generator, batch, config.turned)[:, None, None]
        found = torch.where(exchanged, found[:, :, [1, 0, 2]], found)
    found[:, :2, 2], found[:, 2, :2], found[:, 2, 2] = shift, tilt, 1.0
    return found


def _warped(x_BTHW: Tensor, homography_B33: Tensor, fill_B: Tensor) -> Tensor:
    height, width = x_BTHW.shape[-2:]
    down, across = torch.meshgrid(
        torch.linspace(-1 + 1 / height, 1 - 1 / height, height),
        torch.linspace(-1 + 1 / width, 1 - 1 / width, width),
        indexing="ij",
    )
    points_P3 = torch.stack([across, down, torch.ones_like(down)], dim=-1).view(-1, 3).to(x_BTHW)
    mapped = torch.einsum("bij,pj->bpi", homography_B33, points_P3)
    grid = (mapped[..., :2] / mapped[..., 2:]).view(-1, height, width, 2)
    fill = fill_B.view(-1, 1, 1, 1)
    return F.grid_sample(x_BTHW - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def _borders(cut_B: Tensor, generator: torch.Generator, height: int, width: int) -> Tensor:
    """1 inside, 0 in a border of up to a tenth on each side, (B, 1, H, W)."""
    mask = torch.ones(len(cut_B), 1, height, width)
    for i in torch.nonzero(cut_B).flatten().tolist():
        left, top, right, bottom = (
            _uniform(generator, 4, 0.0, 0.1) * torch.tensor([width, height, width, height])
        ).int()
        mask[i, :, :top], mask[i, :, height - bottom :] = 0, 0
        mask[i, :, :, :left], mask[i, :, :, width - right :] = 0, 0
    return mask
