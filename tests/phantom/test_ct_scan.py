"""The synthetic CT: the painted lumen has the stated narrowing, tissues have their HU, the seed decides all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from angio_ray.phantom.ct_heart import STEP_MM, Branch, draw_lesion, filling
from angio_ray.phantom.ct_scan import CtHeart, Volume, _Painted, draw_heart
from tests.phantom.test_ct_heart import straight

AIR = Volume(hu_ZYX=np.zeros((200, 200, 200), np.float32), origin=np.full(3, -50.0), voxel_mm=0.5)


def painted_area(branch: Branch, at_mm: float) -> float:
    """Open lumen's cross-section as painted, mm2, mean over 2.5 mm of the course."""
    painted = _Painted.of(AIR, branch, 400.0)
    near = np.abs(painted.where.nearest - round(at_mm / STEP_MM)) <= 2
    return float(painted.layers["lumen"][0][near].sum()) * AIR.voxel_mm**3 / (5 * STEP_MM)


@pytest.fixture(scope="module")
def heart() -> CtHeart:
    return draw_heart(np.random.default_rng(7), diseased=1.0, voxel_mm=1.0)


def test_painted_calibre_of_a_healthy_branch() -> None:
    assert 2 * np.sqrt(painted_area(straight(), 30) / np.pi) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("percent", [20, 40, 60, 80])
def test_painted_lumen_has_the_stated_narrowing(percent: int) -> None:
    """An even plaque: the diameter follows from the painted area."""
    lesion = replace(
        draw_lesion(np.random.default_rng(percent), percent=percent, at_mm=30, plaque="soft"),
        eccentricity=0.0,
        length_mm=16.0,
    )
    branch = straight(lesions=(lesion,))
    measured = 100 * (1 - np.sqrt(painted_area(branch, 30) / painted_area(straight(), 30)))
    assert measured == pytest.approx(percent, abs=6)


def test_an_occlusion_is_closed_and_fills_less_behind() -> None:
    lesion = draw_lesion(np.random.default_rng(1), percent=100, at_mm=30, plaque="soft")
    branch = straight(lesions=(lesion,))
    assert painted_area(branch, 30) < 0.02 * painted_area(straight(), 30)
    full = filling(branch)
    assert full[100] < 0.7 * full[20]


def test_calcified_plaque_is_painted_brighter_than_blood_and_soft_plaque_darker() -> None:
    for plaque, low, high in (("calcified", 1000, 1100), ("soft", 20, 60)):
        lesion = draw_lesion(np.random.default_rng(4), percent=40, at_mm=30, plaque=plaque)  # type: ignore[arg-type]
        painted = _Painted.of(AIR, straight(lesions=(lesion,)), 400.0)
        layer = painted.layers["calcium" if plaque == "calcified" else "wall"]
        assert low <= float(layer[1].max()) <= high
        assert (painted.layers["calcium"][0].max() > 0.9) == (plaque == "calcified")


def test_branches_begin_at_the_aorta_and_lie_where_blood_is_bright(heart: CtHeart) -> None:
    for branch in heart.branches:
        assert np.linalg.norm(np.diff(branch.path_N3, axis=0), axis=1).max() < 3 * STEP_MM
        healthy = replace(branch, lesions=()) if branch.lesions else branch
        voxel = np.rint((healthy.path_N3[:40] - heart.volume.origin) / heart.volume.voxel_mm).astype(int)
        lumen = heart.volume.hu_ZYX[voxel[:, 2], voxel[:, 1], voxel[:, 0]]
        assert np.median(lumen) > 220


def test_tissues_have_their_hu(heart: CtHeart) -> None:
    hu = heart.volume.hu_ZYX
    assert np.percentile(hu, 2) < -700  # lung
    assert (np.abs(hu + 95) < 40).mean() > 0.05  # fat
    assert ((hu > 300) & (hu < 550)).mean() > 0.03  # blood with contrast
    assert (hu > 600).mean() < 0.02  # bone, calcium


def test_the_same_seed_gives_the_same_scan(heart: CtHeart) -> None:
    again = draw_heart(np.random.default_rng(7), diseased=1.0, voxel_mm=1.0)
    assert np.array_equal(again.volume.hu_ZYX, heart.volume.hu_ZYX)
    assert [b.name for b in again.branches] == [b.name for b in heart.branches]
    assert [b.lesions for b in again.branches] == [b.lesions for b in heart.branches]
