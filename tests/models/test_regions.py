from __future__ import annotations

import numpy as np
import pytest
import torch

from angio_ray.models.regions import corners, islands, patches, refined, region_facts, stitched


def disc(row: float, column: float, radius: float, size: int = 128) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def test_patches_are_the_corners_and_the_centre_frame_by_frame() -> None:
    frames = torch.arange(2 * 2 * 512 * 512, dtype=torch.int32).view(2, 2, 512, 512)
    got = patches(frames)
    assert got.shape == (10, 2, 256, 256)
    for k, (y, x) in enumerate(((0, 0), (0, 256), (256, 0), (256, 256), (128, 128))):
        for b in range(2):
            assert torch.equal(got[5 * b + k], frames[b, :, y : y + 256, x : x + 256])


@pytest.mark.parametrize(("height", "width"), [(512, 512), (384, 512), (256, 256), (301, 477)])
def test_stitched_patches_are_the_frame_again(height: int, width: int) -> None:
    frames = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    got = stitched(patches(frames)[:, 0], height=height, width=width)
    torch.testing.assert_close(torch.from_numpy(got), frames[:, 0])


@pytest.mark.parametrize(("height", "width"), [(255, 512), (513, 512)])
def test_frames_that_five_patches_do_not_cover_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"do not cover {height} x {width}"):
        corners(height, width)


def test_overlaps_have_the_mean_of_the_patches_that_count() -> None:
    p = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.5]).view(5, 1, 1).expand(5, 256, 256)
    everything = stitched(p)[0]
    assert everything[10, 10] == pytest.approx(0.9)
    assert everything[200, 200] == pytest.approx(0.7)  # top left and centre
    # the centre is called negative: the top left keeps what it says there
    without_centre = stitched(p, torch.tensor([True, False, False, True, False]))[0]
    assert without_centre[200, 200] == pytest.approx(0.9)
    assert without_centre[200, 300] == 0  # top right and centre, both negative
    assert without_centre[500, 500] == pytest.approx(0.3)
    # only the centre is positive: nothing is left outside it
    only_centre = stitched(p, torch.tensor([False, False, False, False, True]))[0]
    assert (only_centre[128:384, 128:384] == 0.5).all()
    assert only_centre.sum() == pytest.approx(0.5 * 256 * 256)


def test_verdicts_are_those_of_their_own_frame() -> None:
    p = torch.ones(10, 256, 256)
    got = stitched(p, torch.arange(10) >= 5)
    assert got[0].sum() == 0
    assert (got[1] == 1).all()


def test_a_negative_patch_without_numbers_spoils_nothing() -> None:
    p = torch.full((5, 256, 256), 0.5)
    p[4] = torch.nan
    got = stitched(p, torch.tensor([True, True, True, True, False]))
    assert (got == 0.5).all()


def test_patches_and_verdicts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no five a frame"):
        stitched(torch.zeros(6, 256, 256))
    with pytest.raises(ValueError, match="no five a frame"):
        stitched(torch.zeros(5, 256, 256), torch.ones(4, dtype=torch.bool))


def test_islands_below_the_least_area_go_and_others_stay() -> None:
    p = np.zeros((200, 200), np.float32)
    p[10:37, 10:47] = 0.5  # 27 x 37 = 999 px
    p[100:125, 100:140] = 0.5  # 1000 px
    got = refined(p, sigma=0)
    assert got.sum() == 1000
    assert got[100:125, 100:140].all()
    assert not refined(p, threshold=0.6, sigma=0).any()
    assert refined(p, min_area=999, sigma=0).sum() == 1999


def test_islands_that_share_only_a_corner_are_two() -> None:
    p = np.zeros((100, 100), np.float32)
    p[10:30, 10:50] = p[30:50, 50:90] = 1  # 800 px each
    assert not refined(p, sigma=0).any()
    p[29, 50] = 1
    assert refined(p, sigma=0).sum() == 1601


def test_small_islands_go_before_the_outline_is_smoothed() -> None:
    p = np.zeros((200, 200), np.float32)
    p[50:90, 50:90] = 1
    p[92:112, 60:80] = 1  # 400 px, two px below: smoothing first would join it
    got = refined(p, sigma=3)
    assert not got[95:].any()
    assert abs(int(got.sum()) - 1600) < 100


@pytest.mark.parametrize("sigma", [1, 3, 5])
def test_smoothing_rounds_corners_and_keeps_what_lies_at_the_edge(sigma: float) -> None:
    p = np.zeros((200, 200), np.float32)
    p[:60, :60] = 1
    got = refined(p, sigma=sigma)
    assert got[0, 0]
    assert got[0, 59]
    assert not got[59, 59], "the corner inside the frame is rounded"
    assert 3600 - 2 * sigma**2 < got.sum() < 3600


def test_facts_of_a_known_region() -> None:
    mask = np.zeros((50, 60), bool)
    mask[10:20, 30:34] = True
    facts = region_facts(mask, (0.5, 0.25))
    assert facts.area_px == 40
    assert facts.area_mm2 == pytest.approx(5.0)
    assert facts.centroid == (14.5, 31.5)
    assert facts.box == (30, 10, 34, 20)
    assert region_facts(mask).area_mm2 is None


def test_an_empty_region_has_an_area_and_no_place() -> None:
    facts = region_facts(np.zeros((50, 60), bool), (0.2, 0.2))
    assert (facts.area_px, facts.area_mm2, facts.centroid, facts.box) == (0, 0.0, None, None)


def test_islands_are_the_connected_parts() -> None:
    upper, lower = disc(30, 40, 10), disc(90, 80, 20)
    got = islands(upper | lower)
    assert len(got) == 2
    np.testing.assert_array_equal(got[0], upper)
    np.testing.assert_array_equal(got[1], lower)
    assert islands(np.zeros((9, 9), bool)) == []
