from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ptflops import get_model_complexity_info

from angio_ray.models.region_nets import NETS, Detector, Segmenter, fcos, islands_of, mask_rcnn, transunet, unet


def pair(batch: int = 1, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 2, size, size), dtype=torch.uint8, generator=generator)


def small(name: str) -> Segmenter | Detector:
    torch.manual_seed(0)
    made: dict[str, Segmenter | Detector] = {
        "unet": unet(4), "transunet": transunet(layers=1, size=64), "mask_rcnn": mask_rcnn(64), "fcos": fcos(64)
    }  # fmt: skip
    return made[name]


@pytest.mark.parametrize("name", NETS)
def test_every_net_gives_a_map_of_logits_and_looks_at_both_frames(name: str) -> None:
    made = small(name).eval()
    x = pair()
    with torch.inference_mode():
        logits = made(x)
        assert logits.shape == (1, 1, 64, 64)
        assert logits.isfinite().all()
        torch.testing.assert_close(made(x.float()), logits)
        for frame in (0, 1):
            other = x.clone()
            other[:, frame] = 255 - other[:, frame]
            assert not torch.equal(made(other), logits)


def test_transunet_takes_pictures_of_other_sizes() -> None:
    made = small("transunet").eval()
    with torch.inference_mode():
        assert made(torch.randint(0, 256, (1, 2, 128, 96), dtype=torch.uint8)).shape == (1, 1, 128, 96)
        net: Any = made.net
        torch.testing.assert_close(net._places_of(torch.zeros(1, 256, 4, 4)), net.places)
        net.places.copy_(torch.arange(4.0).repeat_interleave(4)[None, :, None].expand(1, 16, 256))  # the row's number
        taller = net._places_of(torch.zeros(1, 256, 8, 6)).unflatten(1, (8, 6))[0, :, :, 0]
        assert (taller.diff(dim=0)[1:-1] > 0.3).all()
        assert (taller.diff(dim=1) == 0).all()


@pytest.mark.parametrize(("name", "params_m"), [("unet", 1.95), ("transunet", 6.77), ("mask_rcnn", 30.91), ("fcos", 19.10)])
def test_parameters_are_those_of_the_docstring(name: str, params_m: float) -> None:
    with torch.device("meta"):
        made = NETS[name]()
    assert round(sum(p.numel() for p in made.parameters()) / 1e6, 2) == params_m


@pytest.mark.parametrize(("name", "gmac"), [("unet", 3.25), ("transunet", 4.70)])
def test_gmac_are_those_of_the_docstring(name: str, gmac: float) -> None:
    macs, _ = get_model_complexity_info(
        NETS[name]().eval(), (2, 256, 256), as_strings=False, print_per_layer_stat=False, verbose=False, backend="pytorch"
    )
    assert round(macs / 1e9, 2) == gmac


@pytest.mark.parametrize("name", ["mask_rcnn", "fcos"])
def test_detectors_learn_from_a_batch_with_and_without_regions(name: str) -> None:
    made = small(name).train()
    assert isinstance(made, Detector)
    target = torch.zeros(2, 1, 64, 64)
    target[0, 0, 10:30, 10:40] = target[0, 0, 45:60, 45:60] = 1
    loss = made.losses(pair(2), target)
    assert loss.isfinite()
    loss.backward()
    without = [n for n, p in made.named_parameters() if p.grad is None]
    assert without == []
    assert made.losses(pair(2), torch.zeros(2, 1, 64, 64)).isfinite()


def test_objects_are_the_islands_of_the_target() -> None:
    target = torch.zeros(1, 50, 60)
    target[0, 10:20, 30:34] = 1
    target[0, 40, 5] = 1
    got = islands_of(target)
    assert got["boxes"].tolist() == [[30, 10, 34, 20], [5, 40, 6, 41]]
    assert got["labels"].tolist() == [1, 1]
    np.testing.assert_array_equal(got["masks"].sum(dim=0), target[0])
    empty = islands_of(torch.zeros(1, 50, 60))
    assert (empty["boxes"].shape, empty["labels"].shape, empty["masks"].shape) == ((0, 4), (0,), (0, 50, 60))


class Found(torch.nn.Module):
    """A detector that has found these."""

    def __init__(self, found: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.found = found

    def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert all(picture.shape[0] == 3 and torch.equal(picture[0], picture[2]) for picture in pictures)
        return [self.found] * len(pictures)


def test_a_detectors_map_is_the_highest_score_of_the_boxes_at_each_pixel() -> None:
    found = {"boxes": torch.tensor([[10.0, 20, 30, 40], [20, 30, 50, 60]]), "scores": torch.tensor([0.9, 0.3])}
    p = torch.sigmoid(Detector(Found(found))(pair()))[0, 0]
    assert p[25, 15] == pytest.approx(0.9)
    assert p[35, 25] == pytest.approx(0.9), "in both"
    assert p[50, 40] == pytest.approx(0.3)
    assert p[5, 5] < 1e-6
    assert (p > 0.5).sum() == 20 * 20
    assert (p > 0.2).sum() == 20 * 20 + 30 * 30 - 10 * 10


def test_where_a_detector_has_masks_they_count_and_not_the_boxes() -> None:
    masks = torch.zeros(1, 1, 64, 64)
    masks[0, 0, 20:40, 10:20], masks[0, 0, 20:40, 20:30] = 0.7, 0.4
    found = {"boxes": torch.tensor([[10.0, 20, 30, 40]]), "scores": torch.tensor([0.8]), "masks": masks}
    p = torch.sigmoid(Detector(Found(found))(pair()))[0, 0]
    assert (p > 0.5).sum() == 20 * 10
    assert p[25, 15] == pytest.approx(0.8)


def test_nothing_found_is_nowhere() -> None:
    found = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "masks": torch.zeros(0, 1, 64, 64)}
    logits = Detector(Found(found))(pair(2))
    assert logits.shape == (2, 1, 64, 64)
    assert (logits < -16).all()
