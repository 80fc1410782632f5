from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.losses import BoundaryLoss, DiceLoss
from torch import nn

from angio_ray.training.regions import boundary_loss, cell_loss, region_loss, signed_distance, target_region


def disc(row: float, column: float, radius: float, size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.asarray((y - row) ** 2 + (x - column) ** 2 <= radius**2)


def tensor(*masks: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(masks))[:, None].float()


def distances(*masks: np.ndarray, empty: float = 0.0) -> torch.Tensor:
    return tensor(*(signed_distance(mask, empty=empty) for mask in masks))


def test_cells_learn_where_calcification_lies() -> None:
    mask = np.zeros((64, 64), bool)
    mask[40, 9] = True
    right = torch.full((1, 8, 8), -9.0)
    right[0, 5, 1] = 9.0
    assert cell_loss(right, tensor(mask)) < 0.01
    assert cell_loss(right.roll(1, dims=2), tensor(mask)) > 2
    assert cell_loss(torch.full((1, 8, 8), -9.0), tensor(~mask & mask)) < 0.01, "where none is, none is found"


@pytest.mark.parametrize(("kernel", "iterations", "reach"), [(11, 4, 20), (11, 1, 5), (11, 6, 30), (5, 4, 8), (11, 0, 0)])
def test_each_dilation_reaches_half_a_kernel_further(kernel: int, iterations: int, reach: int) -> None:
    mask = np.zeros((101, 101), bool)
    mask[50, 50] = True
    got = target_region(mask, iterations=iterations, kernel=kernel)
    assert got.dtype == bool
    rows, columns = np.nonzero(got)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (50 - reach, 50 + reach, 50 - reach, 50 + reach)
    if reach:
        assert not got[50 - reach, 50 - reach], "an ellipse has no corners"
    assert mask.sum() == 1, "the calcification itself stays as it was"


def test_the_papers_four_dilations_are_the_default_and_end_at_the_frame() -> None:
    mask = np.zeros((64, 64), bool)
    mask[0, 0] = True
    got = target_region(mask)
    assert got[0, 20]
    assert got[20, 0]
    assert not got[:, 21:].any()


def test_the_distance_is_that_of_monais_boundary_loss_in_shares_of_the_diagonal() -> None:
    masks = [disc(20, 30, 9), disc(40, 10, 12) | disc(8, 50, 3)]
    theirs = BoundaryLoss(sigmoid=True)
    diagonal = 64 * 2**0.5
    torch.testing.assert_close(distances(*masks) * diagonal, theirs.compute_distance_map(tensor(*masks)))
    logits = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(boundary_loss(logits, distances(*masks)) * diagonal, theirs(logits, tensor(*masks)))


def test_distances_are_shares_of_the_diagonal_and_defined_without_a_boundary() -> None:
    assert (signed_distance(np.zeros((8, 8), bool)) == 0).all()
    assert (signed_distance(np.zeros((8, 8), bool), empty=1.0) == 1).all()
    assert (signed_distance(np.ones((8, 8), bool)) == -1).all()
    corner = np.zeros((8, 8), bool)
    corner[0, 0] = True
    assert 0.8 < signed_distance(corner).max() < 1


def test_the_boundary_loss_is_least_on_the_target() -> None:
    target = disc(30, 30, 12)
    d = distances(target)

    def of(mask: np.ndarray) -> float:
        return float(boundary_loss(tensor(mask) * 40 - 20, d))

    others = [disc(30, 36, 12), disc(30, 30, 16), disc(30, 30, 8), np.zeros((64, 64), bool), np.ones((64, 64), bool)]
    assert of(target) < 0
    assert all(of(target) < of(other) for other in others)


def test_its_gradient_calls_what_lies_inside_and_clears_what_lies_outside() -> None:
    target = disc(30, 30, 12)
    logits = torch.zeros(1, 1, 64, 64, requires_grad=True)
    d = distances(target)
    boundary_loss(logits, d).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.sign(), d.sign())
    far, near = logits.grad[0, 0, 63, 63], logits.grad[0, 0, 30, 45]
    assert far > near > 0


def test_a_call_where_nothing_is_costs_what_was_asked_for() -> None:
    nowhere = np.zeros((64, 64), bool)
    called, not_called = tensor(disc(30, 30, 12)) * 40 - 20, torch.full((1, 1, 64, 64), -20.0)
    assert boundary_loss(called, distances(nowhere)) == 0
    assert boundary_loss(called, distances(nowhere, empty=1.0)) > 0.1
    assert boundary_loss(not_called, distances(nowhere, empty=1.0)) < 1e-6


def test_the_weight_leads_from_dice_to_the_boundary() -> None:
    target = disc(30, 30, 12)
    logits = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    t, d = tensor(target), distances(target)
    dice = DiceLoss(sigmoid=True)(logits, t)
    torch.testing.assert_close(region_loss(logits, t, d, boundary_weight=0), dice)
    torch.testing.assert_close(region_loss(logits, t, d), boundary_loss(logits, d))
    torch.testing.assert_close(
        region_loss(logits, t, d, boundary_weight=0.25), 0.75 * dice + 0.25 * boundary_loss(logits, d)
    )
    with pytest.raises(ValueError, match=r"a boundary weight of 1\.5"):
        region_loss(logits, t, d, boundary_weight=1.5)


def test_dice_is_of_the_batch_so_that_an_empty_patch_does_not_outweigh_it() -> None:
    target, nowhere = disc(30, 30, 12), np.zeros((64, 64), bool)
    logits = tensor(target, nowhere) * 40 - 20
    t, d = tensor(target, nowhere), distances(target, nowhere)
    assert region_loss(logits, t, d, boundary_weight=0) < 1e-3


def found_after_training(weight: float) -> float:
    """Dice on held-out noisy pictures, a third of them empty, of a small net trained with this boundary weight."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    channels = [1, 8, 8, 8]
    layers = [
        layer
        for before, after in pairwise(channels)
        for layer in (nn.Conv2d(before, after, 5, padding=2), nn.BatchNorm2d(after), nn.ReLU())
    ]
    net = nn.Sequential(*layers, nn.Conv2d(8, 1, 1))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        masks = [disc(*rng.integers(8, 24, 2), 7 if i % 3 else 0.1, 32) & (i % 3 > 0) for i in range(9)]
        x = tensor(*masks) + 0.5 * torch.from_numpy(rng.standard_normal((9, 1, 32, 32))).float()
        return x, tensor(*masks), distances(*masks)

    for _ in range(90):
        x, t, d = batch()
        loss = region_loss(net(x), t, d, boundary_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, t, _ = batch()
    with torch.inference_mode():
        called = (net.eval()(x) > 0).float()
    return float(2 * (called * t).sum() / (called.sum() + t.sum()))


@pytest.mark.parametrize("boundary_weight", [1.0, 0.5])
def test_a_small_net_learns_to_find_discs(boundary_weight: float) -> None:
    assert found_after_training(boundary_weight) > 0.8
