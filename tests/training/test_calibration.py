from __future__ import annotations

import pytest
import torch
from torch import nn

from angio_ray.models.classifier import pooled_cells
from angio_ray.training.calibration import calibrate, with_calibration


def logits_of(cells: torch.Tensor) -> torch.Tensor:
    return pooled_cells(cells, "logsumexp")


def frames(classes: int, num: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells whose frames are of a class as often as their pooled log-odds say."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(num, classes - 1, 6, generator=generator) * 2 - 2
    target = torch.multinomial(torch.softmax(logits_of(cells), dim=1), 1, generator=generator)[:, 0]
    return cells, target


@pytest.mark.parametrize("classes", [2, 3])
def test_what_says_too_much_is_put_right(classes: int) -> None:
    cells, target = frames(classes)
    found = calibrate(2 * cells + 5, target, logits_of)
    assert found.scale == pytest.approx(0.5, abs=0.05)
    assert found.offset_K == pytest.approx((-2.5,) * (classes - 1), abs=0.3)
    p = torch.softmax(logits_of(found.scale * (2 * cells + 5) + torch.tensor(found.offset_K)[:, None]), dim=1)
    for k in range(classes):
        assert float(p[:, k].mean()) == pytest.approx(float((target == k).float().mean()), abs=0.01)


def test_maps_of_many_cells_that_all_say_far_too_much_are_put_right() -> None:
    """What a net says that learnt from squares: thousands of cells, a mean far above 0 (one long first step was its end)."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(300) % 2
    cells = torch.randn(300, 1, 4096, generator=generator) + 6
    cells[:, 0, 0] += 4 + 1.5 * target + torch.randn(300, generator=generator)
    before = logits_of(cells)[:, 1]
    assert before.mean() > 9
    found = calibrate(cells, target, logits_of)
    logits = logits_of(found.scale * cells + torch.tensor(found.offset_K)[:, None])
    assert 0.2 < found.scale < 5
    assert float(torch.softmax(logits, dim=1)[:, 1].mean()) == pytest.approx(0.5, abs=0.01)
    assert float(nn.functional.cross_entropy(logits, target)) < 0.66
    told_apart = [float((z[target == 1][:, None] > z[target == 0]).float().mean()) for z in (before, logits[:, 1])]
    assert told_apart[1] > told_apart[0] - 0.02


def test_frames_that_are_told_apart_without_an_error_get_a_finite_scale() -> None:
    target = torch.arange(40) % 2
    found = calibrate(target[:, None, None] * 4.0 - 2.0, target, logits_of)
    assert 1 < found.scale <= 20
    assert calibrate(2.0 - target[:, None, None] * 4.0, target, logits_of).scale >= 0.05  # the wrong way round: never turned


@pytest.mark.parametrize(("classes", "there"), [(2, [0]), (3, [0, 1]), (3, [1, 2])])
def test_frames_that_lack_a_class_have_no_calibration(classes: int, there: list[int]) -> None:
    target = torch.tensor(there * 3)
    with pytest.raises(ValueError, match="not of all classes"):
        calibrate(torch.zeros(len(target), classes - 1, 4), target, logits_of)


def test_the_last_layer_says_it_by_itself() -> None:
    torch.manual_seed(0)
    last, x = nn.Conv2d(4, 2, 1), torch.randn(3, 4, 5, 5)
    before = last(x).detach()
    cells, target = frames(3)
    found = calibrate(2 * cells + 5, target, logits_of)
    with_calibration(last, found)
    assert torch.allclose(last(x), found.scale * before + torch.tensor(found.offset_K)[:, None, None], atol=1e-5)
