"""The surroundings: organs where the C-arm's angles put them, moving with beat, breath and table, drawn from a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from angio_ray.phantom.background import Background, Ellipsoid, Rays, build, length
from angio_ray.phantom.carm import View, axes, project
from angio_ray.phantom.scene import REGIONS, Region

STILL = np.zeros(3)


def view(primary: float = 0.0, secondary: float = 0.0, size: int = 128) -> View:
    return View(
        name="any",
        primary_deg=primary,
        secondary_deg=secondary,
        source_to_detector_mm=1050.0,
        source_to_patient_mm=770.0,
        pitch_mm=0.4 * 512 / size,
        size=size,
        centre_px=(size / 2, size / 2),
    )


def chest(primary: float = 0.0, secondary: float = 0.0, seed: int = 1, size: int = 128) -> Background:
    return build(view(primary, secondary, size), "chest", np.random.default_rng(seed))


def mean_row(seeds: range, primary: float, secondary: float = 0.0) -> np.ndarray:
    """Attenuation along the columns, mean over some patients."""
    frames = [chest(primary, secondary, seed).frame(0.0, STILL, STILL) for seed in seeds]
    return np.mean([frame.mean(axis=0) for frame in frames], axis=0)


def test_a_ray_runs_the_diameter_through_a_ball_and_nothing_beside_it() -> None:
    rays = Rays(view(25.0, -20.0))
    inside = length(rays.through(Ellipsoid(centre=(10, -5, 8), half=(20, 20, 20))))
    at, scale = project(np.array([10.0, -5.0, 8.0]), view(25.0, -20.0))
    assert inside.max() == pytest.approx(40, abs=0.1)
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    assert (column, row) == (pytest.approx(at[0], abs=2), pytest.approx(at[1], abs=2))
    assert np.sum(inside > 0) == pytest.approx(np.pi * (20 * scale) ** 2, rel=0.05)


def test_what_two_bodies_share_is_measured_along_the_ray() -> None:
    rays = Rays(view())
    front = rays.through(Ellipsoid(centre=(0, -10, 0), half=(20, 20, 20)))
    behind = rays.through(Ellipsoid(centre=(0, 10, 0), half=(20, 20, 20)))
    apart = rays.through(Ellipsoid(centre=(0, 60, 0), half=(20, 20, 20)))
    assert length(front, behind).max() == pytest.approx(20, abs=0.2)
    assert length(front, apart).max() == 0


def test_spine_lies_right_of_the_heart_in_lao_and_left_in_rao() -> None:
    """The spine is behind the isocentre: with the detector at the patient's left it moves to the picture's right."""
    lao, rao = (mean_row(range(4), angle) for angle in (40.0, -35.0))
    assert lao[74:110].mean() > lao[18:54].mean() + 0.3
    assert rao[18:54].mean() > rao[80:116].mean() + 0.2


def test_the_diaphragm_fills_more_of_the_picture_in_cranial_views() -> None:
    cranial, caudal = (
        np.mean([chest(0.0, angle, seed).breathing.mean() for seed in range(5)]) for angle in (30.0, -30.0)
    )
    assert cranial > 1.3 * caudal


def test_range_between_lung_and_spine_is_wide() -> None:
    frames = [chest(-30.0, 0.0, seed).frame(0.0, STILL, STILL) for seed in range(6)]
    spans = [np.subtract(*np.percentile(frame, [95, 5])) for frame in frames]
    assert 0.7 < np.median(spans) < 3.0


def test_the_heart_beats_in_its_place_and_the_rest_stays() -> None:
    background = chest(-30.0, 0.0, 2)
    rest, squeezed = (background.frame(c, STILL, STILL) for c in (0.0, 1.0))
    moved = np.abs(squeezed - rest)
    assert moved.max() > 0.02
    assert np.all(moved[background.heart < 1e-4].reshape(-1) < 0.3)
    assert np.median(moved[background.heart < 1e-4]) < 1e-3
    assert np.array_equal(rest, background.frame(0.0, STILL, STILL))


def test_breath_moves_the_diaphragm_and_not_the_spine() -> None:
    background = chest(0.0, 25.0, 3)
    down = background.frame(0.0, np.array([0.0, 0.0, -8.0]), STILL) - background.still
    rest = background.frame(0.0, STILL, STILL) - background.still
    shift_px = 8 * np.cos(np.deg2rad(25)) * background.view.px_per_mm
    lower = np.roll(rest, round(shift_px), axis=0)
    inner = (slice(24, -24), slice(24, -24))
    assert np.abs(down - lower)[inner].mean() < 0.3 * np.abs(down - rest)[inner].mean()


def test_the_table_moves_everything() -> None:
    background = chest(20.0, 0.0, 4)
    pan = np.array([6.0, 0.0, 0.0])
    shift = round(6 * np.cos(np.deg2rad(20)) * background.view.px_per_mm)
    rest, panned = background.frame(0.3, STILL, STILL), background.frame(0.3, STILL, pan)
    inner = (slice(8, -8), slice(24, -24))
    assert np.abs(panned - np.roll(rest, shift, axis=1))[inner].mean() < 0.4 * np.abs(panned - rest)[inner].mean()


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """No unevenness of the tissues: it is laid over the picture, and repeats around the field."""

    def drawn(rng: np.random.Generator, side: int, cells: int, margin: int) -> np.ndarray:
        rng.standard_normal((cells, cells), dtype=np.float32)
        return np.zeros((side + 2 * margin, side + 2 * margin), np.float32)

    monkeypatch.setattr("angio_ray.phantom.background._cloud", drawn)


@pytest.mark.usefixtures("even")
@pytest.mark.parametrize("region", REGIONS)
def test_what_the_table_brings_into_view_has_been_drawn(region: Region) -> None:
    """A pan of 50 mm, against the same patient drawn where it ends, right to the edge."""
    pan, c_arm = np.array([50.0, 0.0, -50.0]), view(15.0, 10.0, 256)
    right, down, _ = axes(c_arm.primary_deg, c_arm.secondary_deg)
    shift = c_arm.px_per_mm * np.array([pan @ right, pan @ down])
    there = replace(c_arm, centre_px=(128 + shift[0], 128 + shift[1]))
    background = build(c_arm, region, np.random.default_rng(7), shifts_N3=pan[None])
    panned = background.frame(0.2, STILL, pan)
    drawn = build(there, region, np.random.default_rng(7)).frame(0.2, STILL, STILL)
    x, y = np.ceil(shift).astype(int)
    new = np.zeros((256, 256), bool)
    new[:, :x] = new[:y] = True
    assert x > 60
    assert y > 60

    def off(frame: np.ndarray) -> np.ndarray:
        """How far from what was drawn there, but for the constant between the two pictures."""
        difference = frame - drawn
        return np.asarray(np.abs(difference - np.median(difference))[new])

    assert off(panned).mean() < 0.01 * np.ptp(drawn)
    assert np.percentile(off(panned), 99) < 0.06 * np.ptp(drawn)
    smeared = build(c_arm, region, np.random.default_rng(7)).frame(0.2, STILL, pan)
    assert off(smeared).mean() > 3 * off(panned).mean()


@pytest.mark.usefixtures("even")
def test_what_is_drawn_does_not_depend_on_how_much_is_drawn_around_it() -> None:
    alone = chest(20.0, 10.0, 9, 256)
    rng = np.random.default_rng(9)
    wide = build(view(20.0, 10.0, 256), "chest", rng, shifts_N3=np.array([[60.0, 0.0, 0.0]]))
    assert alone.margin_px == 0
    assert alone.still.shape == (256, 256)
    assert wide.margin_px == pytest.approx(60 * np.cos(np.deg2rad(20)) * wide.view.px_per_mm, abs=4)
    difference = (wide.frame(0.5, STILL, STILL) - alone.frame(0.5, STILL, STILL))[16:-16, 16:-16]
    assert np.ptp(difference) < 0.01


def test_texture_goes_on_beyond_the_field_without_a_seam() -> None:
    shift = np.array([[20.0, 0.0, 0.0]])
    background = build(view(size=256), "abdomen", np.random.default_rng(3), shifts_N3=shift)
    steps = np.abs(np.diff(background.still, axis=1)).mean(axis=0)
    for seam in (background.margin_px, background.margin_px + 256):
        assert steps[seam - 3 : seam + 3].max() < 1.5 * np.percentile(steps, 95)


def test_a_frame_can_be_written_to_without_harm() -> None:
    background = chest(seed=5)
    first = background.frame(0.0, STILL, STILL)
    kept = first.copy()
    first += 1
    assert np.array_equal(background.frame(0.0, STILL, STILL), kept)


@pytest.mark.parametrize("region", REGIONS)
def test_every_region_is_drawn_from_its_seed(region: Region) -> None:
    one, same, other = (build(view(10.0), region, np.random.default_rng(seed)) for seed in (1, 1, 2))
    frame = one.frame(0.5, STILL, STILL)
    assert frame.dtype == np.float32
    assert frame.shape == (128, 128)
    assert np.isfinite(frame).all()
    assert np.array_equal(frame, same.frame(0.5, STILL, STILL))
    assert not np.allclose(frame, other.frame(0.5, STILL, STILL), atol=0.02)
    assert 0.15 < np.subtract(*np.percentile(frame, [99, 1])) < 5


def test_a_patient_is_the_same_in_coarser_pixels() -> None:
    fine, coarse = (chest(-20.0, 10.0, 6, size).frame(0.0, STILL, STILL) for size in (256, 128))
    halved = fine.reshape(128, 2, 128, 2).mean(axis=(1, 3))
    assert np.corrcoef(halved.ravel(), coarse.ravel())[0, 1] > 0.97


def test_a_patient_is_the_same_from_every_side() -> None:
    """What is drawn at random does not depend on angles or pixels: the generators end in the same state."""
    ends = []
    for c_arm, pan_mm in ((view(), 0.0), (view(35.0, 25.0), 0.0), (view(-30.0, -20.0, 256), 40.0)):
        rng = np.random.default_rng(8)
        build(c_arm, "chest", rng, shifts_N3=np.array([[pan_mm, 0.0, 0.0]]))
        ends.append(rng.random())
    assert ends[0] == ends[1] == ends[2]
