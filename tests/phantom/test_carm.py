"""The C-arm: where points land, which way the angles turn the picture."""

from __future__ import annotations

import numpy as np
import pytest

from angio_ray.phantom import anatomy, carm
from angio_ray.phantom.carm import View
from angio_ray.views import VIEWS


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
        xy, scale = carm.project(np.zeros(3), view(*angles))
        assert xy == pytest.approx([256, 256])
        assert scale == pytest.approx(1000 / 750 / 0.4)
        assert scale == pytest.approx(view(*angles).px_per_mm)


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
    xy, _ = carm.project(np.array(point), view())
    assert xy == pytest.approx(expected)


def test_lao_moves_the_detector_to_the_left_and_the_spine_to_the_right_of_the_picture() -> None:
    spine = np.array([0.0, 60.0, 0.0])
    assert carm.project(spine, view(40))[0][0] > 256
    assert carm.project(spine, view(-40))[0][0] < 256
    assert carm.axes(90, 0)[2] == pytest.approx([1, 0, 0])  # PS3.3 C.8.7.5.1.2: +90 is the patient's left


def test_cranial_moves_the_detector_to_the_head() -> None:
    assert carm.axes(0, 90)[2] == pytest.approx([0, 0, 1])
    front = np.array([0.0, -50.0, 0.0])
    assert carm.project(front, view(0, 30))[0][1] > 256  # seen from above, the front lies lower
    assert carm.project(front, view(0, -30))[0][1] < 256


@pytest.mark.parametrize("angles", [(0, 0), (42, -26), (-24, 30)])
def test_axes_are_orthonormal(angles: tuple[float, float]) -> None:
    assert np.array(carm.axes(*angles)) @ np.array(carm.axes(*angles)).T == pytest.approx(np.eye(3))


def test_views_lie_where_their_names_say() -> None:
    for views in VIEWS.values():
        for name, (primary, secondary) in views.items():
            side, *tilt = name.split()
            assert {"LAO": primary > 25, "RAO": primary < -10, "AP": abs(primary) < 10}[side]
            assert {"cranial": secondary > 15, "caudal": secondary < -15}[tilt[0]] if tilt else abs(secondary) < 5


def test_right_coronary_artery_is_a_c_in_lao_and_an_l_in_rao() -> None:
    trees = anatomy.grow_trees(np.random.default_rng(2), female=False, dominance="right")
    trunk, pda = trees["RCA"].vessel("RCA").points_N3, trees["RCA"].vessel("PDA").points_N3
    lao, _ = carm.project(trunk, view(*VIEWS["RCA"]["LAO"]))
    left_most = int(np.argmin(lao[:, 0]))
    assert 0.25 * len(lao) < left_most < 0.75 * len(lao)  # out to the left and back again
    assert lao[0, 0] - lao[left_most, 0] > 60
    assert lao[-1, 0] - lao[left_most, 0] > 60
    rao, _ = carm.project(trunk, view(*VIEWS["RCA"]["RAO"]))
    foot, _ = carm.project(pda, view(*VIEWS["RCA"]["RAO"]))
    assert rao[-1, 1] - rao[0, 1] > 2 * abs(rao[-1, 0] - rao[0, 0])  # the groove edge-on: a line downwards,
    assert foot[-1, 0] - foot[0, 0] > 2 * abs(foot[-1, 1] - foot[0, 1])  # then the inferior wall's to the right
