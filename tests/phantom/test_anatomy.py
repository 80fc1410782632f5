"""Geometry: where points land, which way the angles turn the picture, what beats."""

from __future__ import annotations

import numpy as np
import pytest

from angio_ray.phantom import anatomy
from angio_ray.phantom.anatomy import View


def view(primary: float = 0.0, secondary: float = 0.0, size: int = 512) -> View:
    return View(
        name="test",
        primary_deg=primary,
        secondary_deg=secondary,
        source_to_detector_mm=1000.0,
        source_to_patient_mm=750.0,
        pitch_mm=0.4,
        size=size,
        centre_px=(256.0, 256.0),
    )


def test_isocentre_lands_in_the_middle_at_any_angle() -> None:
    for angles in ((0, 0), (40, 25), (-30, -20)):
        xy, scale = anatomy.project(np.zeros(3), view(*angles))
        assert xy == pytest.approx([256, 256])
        assert scale == pytest.approx(1000 / 750 / 0.4)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        # 30 mm to the patient's left: magnified by 1000/750, 0.4 mm pixels
        ((30.0, 0.0, 0.0), (256 + 30 * 1000 / 750 / 0.4, 256)),
        ((0.0, 0.0, 30.0), (256, 256 - 30 * 1000 / 750 / 0.4)),
        # 50 mm nearer to the detector, so farther from the source: smaller
        ((30.0, -50.0, 0.0), (256 + 30 * 1000 / 800 / 0.4, 256)),
    ],
    ids=["left is right in the picture", "head is up", "near the detector is smaller"],
)
def test_known_point_lands_on_the_computed_pixel(point: tuple[float, ...], expected: tuple[float, float]) -> None:
    xy, _ = anatomy.project(np.array(point), view())
    assert xy == pytest.approx(expected)


def test_lao_moves_the_detector_to_the_left_and_the_spine_to_the_right_of_the_picture() -> None:
    spine = np.array([0.0, 60.0, 0.0])
    assert anatomy.project(spine, view(40))[0][0] > 256
    assert anatomy.project(spine, view(-40))[0][0] < 256
    assert anatomy.axes(90, 0)[2] == pytest.approx([1, 0, 0])  # PS3.3 C.8.7.5.1.2: +90 is the patient's left


def test_cranial_moves_the_detector_to_the_head() -> None:
    assert anatomy.axes(0, 90)[2] == pytest.approx([0, 0, 1])
    front = np.array([0.0, -50.0, 0.0])
    assert anatomy.project(front, view(0, 30))[0][1] > 256  # seen from above, the front lies lower
    assert anatomy.project(front, view(0, -30))[0][1] < 256


@pytest.mark.parametrize("angles", [(0, 0), (42, -26), (-24, 30)])
def test_axes_are_orthonormal(angles: tuple[float, float]) -> None:
    assert np.array(anatomy.axes(*angles)) @ np.array(anatomy.axes(*angles)).T == pytest.approx(np.eye(3))


@pytest.mark.parametrize("artery", ["LCA", "RCA"])
def test_tree_is_connected_and_tapers(artery: anatomy.Artery) -> None:
    tree = anatomy.grow_tree(artery, np.random.default_rng(3))
    trunk = tree.vessels[0]
    assert trunk.distance_N[0] == 0
    everything = np.concatenate([v.points_N3 for v in tree.vessels])
    for vessel in tree.vessels[1:]:
        others = np.concatenate([v.points_N3 for v in tree.vessels if v is not vessel])
        assert np.linalg.norm(others - vessel.points_N3[0], axis=1).min() < 1.0
        assert vessel.distance_N[0] > 0
        assert vessel.radius_N[-1] < vessel.radius_N[0]
    assert 1.2 < trunk.radius_N.mean() < 3.0  # mm: Dodge et al. 1992, within the drawn spread
    assert np.abs(everything).max() < 100


def test_stenosis_narrows_by_the_stated_percent() -> None:
    plain = anatomy.grow_tree("LCA", np.random.default_rng(5))
    sick = anatomy.grow_tree("LCA", np.random.default_rng(5), stenosed=True)
    assert sick.stenoses
    for stenosis in sick.stenoses:
        before = next(v for v in plain.vessels if v.name == stenosis.segment)
        after = next(v for v in sick.vessels if v.name == stenosis.segment)
        kept = after.radius_N[stenosis.index] / before.radius_N[stenosis.index]
        assert 100 * (1 - kept) == pytest.approx(stenosis.percent)


def test_heart_beats_with_its_period_within_a_tenth() -> None:
    times = np.arange(0, 30, 0.01)
    squeeze = anatomy.contraction(anatomy.beat_phases(times, 0.8, np.random.default_rng(0)))
    systoles = times[1:-1][(squeeze[1:-1] > squeeze[:-2]) & (squeeze[1:-1] >= squeeze[2:]) & (squeeze[1:-1] > 0.9)]
    gaps = np.diff(systoles)
    assert gaps.min() > 0.8 * 0.85
    assert gaps.max() < 0.8 * 1.15
    assert gaps.mean() == pytest.approx(0.8, rel=0.05)


def test_systole_moves_the_base_more_than_the_apex() -> None:
    points = np.stack([anatomy.BASE, anatomy.APEX])
    rest, squeezed = anatomy.beat(points, np.array([0.0, 1.0]), np.zeros(2))
    assert rest == pytest.approx(points)
    moved = np.linalg.norm(squeezed - points, axis=1)
    assert moved[0] > 3 * moved[1]
