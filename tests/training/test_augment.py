"""Augmentation: one draw per clip, the same for its frames, within bounds, and the same for the same seed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torchvision.transforms import v2

from angio_ray.training.augment import augment
from angio_ray.training.recipes import NO_AUGMENTATION, PAPER_AUGMENTATION, AugmentConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(batch: int = 6, frames: int = 3, size: int = 40) -> torch.Tensor:
    """Different clips, each the same in all of its frames."""
    still = torch.rand(batch, 1, size, size, generator=generator(9)) * 255
    smooth = v2.functional.gaussian_blur(still, [7, 7], [2.0])
    return smooth.repeat(1, frames, 1, 1)


@pytest.mark.parametrize("config", [AugmentConfig(), PAPER_AUGMENTATION, AugmentConfig(cut_share=1.0)])
def test_shape_and_range_stay_and_a_seed_repeats(config: AugmentConfig) -> None:
    x = clips()
    changed = augment(x.to(torch.uint8), config, generator(1))
    assert changed.shape == x.shape
    assert changed.dtype == torch.float32
    assert 0 <= float(changed.min()) < float(changed.max()) <= 255
    assert torch.equal(changed, augment(x.to(torch.uint8), config, generator(1)))
    assert not torch.equal(changed, augment(x.to(torch.uint8), config, generator(2)))


def test_all_frames_of_a_clip_move_alike_and_clips_do_not() -> None:
    quiet = replace(AugmentConfig(), noise_share=0.0, blur_share=1.0, halo_share=1.0, cut_share=1.0)
    changed = augment(clips(), quiet, generator())
    torch.testing.assert_close(changed, changed[:, :1].expand_as(changed), atol=1e-3, rtol=0)
    same = augment(clips(1).repeat(6, 1, 1, 1), quiet, generator())
    assert all(not torch.allclose(same[0], other, atol=1.0) for other in same[1:])


def test_nothing_asked_for_changes_nothing() -> None:
    x = clips()
    torch.testing.assert_close(augment(x, NO_AUGMENTATION, generator()), x, atol=1e-3, rtol=0)


def test_a_flip_is_a_mirror_image() -> None:
    x = clips()
    flipped = augment(x, replace(NO_AUGMENTATION, flip=1.0), generator())
    torch.testing.assert_close(flipped, x.flip(-1), atol=0.05, rtol=0)


def test_rotation_agrees_with_torchvision() -> None:
    """Whatever angle was drawn, torchvision's rotation by the best angle gives the same picture inside the circle."""
    x = clips(1, 1, 64)
    turned = augment(x, replace(NO_AUGMENTATION, rotation_deg=30.0), generator(4))
    angles = torch.arange(-30, 30.01, 0.25).tolist()
    inner = (slice(None), slice(None), slice(20, 44), slice(20, 44))
    bilinear = v2.InterpolationMode.BILINEAR
    errors = [float((v2.functional.rotate(x, a, bilinear)[inner] - turned[inner]).abs().mean()) for a in angles]
    assert min(errors) < 0.5
    assert abs(angles[errors.index(min(errors))]) > 1


@pytest.mark.parametrize("name", [f.name for f in fields(AugmentConfig) if f.name not in ("blur_px", "noise", "halo")])
def test_each_bound_does_something_by_itself(name: str) -> None:
    all_or_none = "share" in name or name in ("flip", "upside_down", "turned")
    strength = {name: 5.0 if name == "rotation_deg" else 1.0 if all_or_none else 0.1}
    others = {"blur_share": {"blur_px": 2.0}, "noise_share": {"noise": 0.1}, "halo_share": {"halo": 1.0}}
    config = replace(NO_AUGMENTATION, **strength, **others.get(name, {}))
    x = clips()
    changed = (augment(x, config, generator(3)) - x).abs().mean(dim=(1, 2, 3))
    assert int((changed > 0.05).sum()) >= 2, changed


def test_strength_scales_everything_but_flips() -> None:
    assert AugmentConfig().scaled(0.5).rotation_deg == 5.0
    assert AugmentConfig(flip=0.3).scaled(0.0).flip == 0.3
    assert augment(clips(), replace(AugmentConfig().scaled(0.0), flip=0.0), generator()).allclose(clips(), atol=1e-3)


def test_upside_down_and_turned_are_what_they_say() -> None:
    x = clips(batch=40, frames=1)
    only = NO_AUGMENTATION.scaled(1.0)
    for config, expected in (
        (replace(only, upside_down=1.0), x.flip(2)), (replace(only, turned=1.0), x.transpose(2, 3)),
        (replace(only, upside_down=1.0, turned=1.0), x.transpose(2, 3).flip(3)),
    ):  # fmt: skip
        torch.testing.assert_close(augment(x, config, generator()), expected, atol=0.02, rtol=0)
    half = augment(x, replace(only, turned=0.5), generator())
    same = (half - x).abs().amax(dim=(1, 2, 3)) < 0.02
    assert 10 < int(same.sum()) < 30
    assert AugmentConfig(turned=0.5).scaled(0.1).turned == 0.5, "it has no strength"
