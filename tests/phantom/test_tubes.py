"""What tubes cast: round lumens' chords, calibres to a fraction of a pixel, sums where they cross."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from angio_ray.phantom.tubes import Tube, Tubes, add_plate

SIZE, PX_PER_MM = 128, 4.0


def straight(
    angle_deg: float, radius_mm: np.ndarray | float, *, length_px: float = 80.0, flat: float = 1.0, at: float = 64.3
) -> Tube:
    """A tube through the middle of the picture; `flat` is its foreshortening."""
    along = np.linspace(-0.5, 0.5, 41) * length_px
    way = np.array([np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))])
    radius = np.broadcast_to(radius_mm, (1, 41)).astype(float)
    return Tube(
        xy_TN2=(at + np.outer(along * flat, way))[None],
        step_px_TN=np.full((1, 40), length_px / 40),
        radius_px_TN=radius * PX_PER_MM,
        radius_mm_TN=radius,
    )


def across(picture: np.ndarray, angle_deg: float, shift_px: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Offsets in px and values along a line at right angles to the tube, `shift_px` along it from the middle."""
    k = np.arange(-16, 16.01, 0.1)
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    x, y = 64.3 + shift_px * c - s * k, 64.3 + shift_px * s + c * k
    values = cv2.remap(picture, x.astype(np.float32)[None], y.astype(np.float32)[None], cv2.INTER_LINEAR)
    return k, values[0]


def width(k: np.ndarray, values: np.ndarray) -> float:
    """Full width at half maximum, px."""
    above = k[values >= values.max() / 2]
    return float(above[-1] - above[0])


ONES = [np.ones(41)]


@pytest.mark.parametrize("angle_deg", [0, 17, 45, 90, 163])
def test_a_tube_casts_the_chord_through_a_round_lumen(angle_deg: float) -> None:
    k, values = across(Tubes([straight(angle_deg, 1.5)], SIZE).draw(0, ONES), angle_deg)
    chord = 2 * np.sqrt(np.clip(1.5**2 - (k / PX_PER_MM) ** 2, 0, None))
    assert values.sum() == pytest.approx(chord.sum(), rel=0.02)
    assert np.abs(values - chord)[np.abs(k) < 4].max() < 0.09  # mm; the rim is as soft as a pixel


@pytest.mark.parametrize("radius_mm", [0.15, 0.4, 1.0, 2.3])
@pytest.mark.parametrize("at", [64.0, 64.3, 64.5])
def test_what_is_drawn_is_the_volume_whatever_the_calibre_and_the_place(radius_mm: float, at: float) -> None:
    picture = Tubes([straight(29, radius_mm, at=at)], SIZE).draw(0, ONES)
    volume = np.pi * radius_mm**2 * (80 / PX_PER_MM)  # mm3
    assert picture.sum() / PX_PER_MM**2 == pytest.approx(volume, rel=1e-3)


def test_a_calibre_a_sixteenth_of_a_pixel_wider_is_seen() -> None:
    thin, wide = (Tubes([straight(10, (8.0 + extra) / 2 / PX_PER_MM)], SIZE).draw(0, ONES) for extra in (0.0, 1 / 16))
    grown = across(wide, 10)[1].sum() / across(thin, 10)[1].sum()
    assert grown == pytest.approx((8.0625 / 8) ** 2, rel=2e-3)


@pytest.mark.parametrize("percent", [30, 50, 70])
def test_a_drawn_stenosis_measures_what_it_is(percent: float) -> None:
    along = np.linspace(-10, 10, 41)  # mm
    radius = 1.6 * (1 - percent / 100 * np.exp(-((along / 4.0) ** 4)))
    picture = Tubes([straight(33, radius)], SIZE).draw(0, ONES)
    throat, healthy = width(*across(picture, 33)), width(*across(picture, 33, 32))
    assert 100 * (1 - throat / healthy) == pytest.approx(percent, abs=6)


def test_crossing_tubes_add_up() -> None:
    one, other = straight(20, 1.0), straight(110, 0.7)
    both = Tubes([one, other], SIZE).draw(0, ONES * 2)
    apart = Tubes([one], SIZE).draw(0, ONES) + Tubes([other], SIZE).draw(0, ONES)
    np.testing.assert_allclose(both, apart, atol=1e-4)
    assert both.max() > 3.0


@pytest.mark.parametrize("flat", [0.6, 0.25])
def test_a_tube_seen_from_its_end_is_denser(flat: float) -> None:
    lying = Tubes([straight(0, 1.0)], SIZE).draw(0, ONES)
    steep = Tubes([straight(0, 1.0, flat=flat)], SIZE).draw(0, ONES)
    assert steep.sum() == pytest.approx(lying.sum(), rel=1e-3)
    assert steep[64, 60:68].mean() == pytest.approx(lying[64, 60:68].mean() / flat, rel=0.1)


def test_nothing_is_drawn_where_nothing_is() -> None:
    tubes = Tubes([straight(0, 1.0, at=-300.0)], SIZE)
    assert not tubes.draw(0, ONES).any()
    assert not Tubes([], SIZE).draw(0, []).any()
    assert not Tubes([straight(0, 1.0)], SIZE).draw(0, [np.zeros(41)]).any()


def test_a_tube_that_leaves_the_picture_is_cut_at_its_edge() -> None:
    inside = Tubes([straight(0, 1.0, length_px=300)], SIZE).draw(0, ONES)
    assert inside[64, 0] == pytest.approx(inside[64, 64], rel=0.05)
    assert inside[64, -1] == pytest.approx(inside[64, 64], rel=0.05)
    assert not inside[:50].any()


def test_large_pixels_show_the_same_picture() -> None:
    tube = straight(40, 4.0)
    fine, coarse = (Tubes([tube], SIZE, c).draw(0, ONES) for c in (1, 4))
    assert coarse.shape == (32, 32)
    np.testing.assert_allclose(coarse, cv2.resize(fine, (32, 32), interpolation=cv2.INTER_AREA), atol=1.2)
    assert coarse.mean() == pytest.approx(fine.mean(), rel=1e-3)


def test_a_plate_covers_its_outline() -> None:
    corners = np.array([[20.0, 30.0], [60.0, 30.0], [60.0, 50.0], [20.0, 50.0]])
    picture = np.ones((SIZE, SIZE), np.float32)
    add_plate(picture, corners, 0.5)
    assert picture[40, 40] == 1.5
    assert (picture - 1).sum() == pytest.approx(0.5 * 40 * 20, rel=0.02)
    assert (picture[:28] == 1).all()
    add_plate(picture, corners + 500, 0.5)  # out of the picture
    assert picture.max() == 1.5
