from __future__ import annotations

import numpy as np
import pytest
import torch

from angio_ray.training.vessels import local_radius, vessel_loss


def drawn(*radii: int) -> np.ndarray:
    """Straight vessels from edge to edge."""
    mask = np.zeros((96, 96), bool)
    for i, radius in enumerate(radii):
        middle = 24 + 48 * i
        mask[:, middle - radius : middle + radius] = True
    return mask


def test_the_radius_of_a_pixel_is_its_vessels() -> None:
    radius = local_radius(drawn(3, 6))
    assert not radius[:, :20].any()
    np.testing.assert_allclose(radius[:, 21:27], 3, atol=0.5)
    np.testing.assert_allclose(radius[:, 69:75], 6, atol=0.5)
    assert radius[0, 24] == radius[48, 24], "it goes on beyond the border"


def test_the_loss_falls_with_drawing_and_radius_and_counts_what_is_known() -> None:
    masks = np.stack([drawn(3, 6), drawn(4)])
    right = torch.from_numpy(np.where(masks, 9.0, -9.0)).float()[:, None]
    radius = torch.nn.functional.max_pool2d(torch.from_numpy(np.stack([local_radius(m) for m in masks]))[:, None], 4)
    known = np.array([True, True])
    log_radius, twice = radius.clamp(min=1).log(), (2 * radius).clamp(min=1).log()
    best = float(vessel_loss(right, log_radius, masks, known))
    assert best < 0.1
    assert vessel_loss(right, twice, masks, known) == pytest.approx(best + 2 * np.log(2), abs=0.05)
    assert vessel_loss(0 * right, log_radius, masks, known) == pytest.approx(best + 8 * np.log(2), abs=0.05), "four times as much"
    other = torch.cat([right[:1], -right[1:]])
    assert vessel_loss(other, log_radius, masks, np.array([True, False])) < 0.05
