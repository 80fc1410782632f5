"""The detector: monotone, exposed once, noisy in the stated amount, blanked, settled, and the same for the same streams."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from angio_ray.phantom.carm import View
from angio_ray.phantom.detector import (
    Detector,
    Exposure,
    Shutter,
    Site,
    Stored,
    display_table,
    draw,
    settling_error,
    shutter_mask,
)
from angio_ray.phantom.scene import Streams

SIZE = 128
STREAMS = Streams(key=(7, 0, 0))
PLAIN = Detector(
    style="plain",
    noise=0.0,
    noise_blur_px=(0.5, 0.5),
    noise_memory=0.0,
    scatter=0.0,
    scatter_px=80.0,
    blur_px=0.5,
    sharpen=0.0,
    sharpen_px=3.0,
    compression=0.0,
    compression_px=60.0,
    curve="log",
    gamma=1.0,
    levels=(0.2, 0.8),
    shoulder=1.0,
    settling=0.0,
    settling_s=0.2,
    vignette=0.0,
    shutter="none",
    shutter_half=0.46,
    shutter_cut=0.6,
    shutter_centre=(0.0, 0.0),
    outside=0.0,
    blades=(0.0, 0.0, 0.0, 0.0),
    blade_corner=0.0,
    blade_attenuation=2.5,
    wedge=None,
    bits=8,
    jpeg_quality=None,
)


def view(size: int = SIZE) -> View:
    return View(
        name="LAO",
        primary_deg=30.0,
        secondary_deg=0.0,
        source_to_detector_mm=1050.0,
        source_to_patient_mm=770.0,
        pitch_mm=0.4 * 512 / size,
        size=size,
        centre_px=(size / 2, size / 2),
    )


def machine(**changes: object) -> Detector:
    return dataclasses.replace(PLAIN, **changes)  # type: ignore[arg-type]


def ramp(size: int = SIZE) -> NDArray[np.float32]:
    """From bright left (0) to dark right (2)."""
    return np.tile(np.linspace(0, 2, size, dtype=np.float32), (size, 1))


def shoot(detector: Detector, attenuation: NDArray[np.float32], frames: int = 1) -> list[Stored]:
    exposure = Exposure(detector, view(attenuation.shape[0]), STREAMS)
    return [exposure.stored(attenuation, f, f / 15) for f in range(frames)]


@pytest.mark.parametrize("curve", ["linear", "root", "log", "film"])
def test_more_attenuation_is_darker_and_the_percentiles_get_their_levels(curve: str) -> None:
    frame = shoot(machine(curve=curve), ramp())[0].astype(float)
    assert np.all(np.diff(frame[SIZE // 2]) <= 0)
    low, high = np.percentile(frame, [5, 95])
    assert low / 255 == pytest.approx(0.2, abs=0.03)
    assert high / 255 == pytest.approx(0.8, abs=0.03)


def test_levels_are_those_of_the_first_frame() -> None:
    exposure = Exposure(PLAIN, view(), STREAMS)
    exposure.stored(ramp(), 0, 0.0)
    darker = exposure.stored(ramp() + np.float32(0.5), 1, 0.1)
    assert darker.mean() < exposure.stored(ramp(), 2, 0.2).mean() - 30


def test_attenuation_is_left_as_it_was() -> None:
    attenuation = ramp()
    shoot(machine(noise=0.05, blades=(0.1, 0.1, 0.1, 0.1), compression=0.5, sharpen=1.0), attenuation, 2)
    assert np.array_equal(attenuation, ramp())


@pytest.mark.parametrize("cell", [0.3, 1.2])
def test_noise_has_the_stated_amount_whatever_its_grain(cell: float) -> None:
    flat = np.zeros((512, 512), np.float32)
    frame = shoot(machine(noise=0.03, noise_blur_px=(cell, cell), bits=12), flat)[0].astype(float)
    per_log = 0.6 * 4095 / 0.8  # a flat picture gets the narrowest span
    assert frame.std() / per_log == pytest.approx(0.03, rel=0.05)
    neighbours = np.corrcoef(frame[:, 1:].ravel(), frame[:, :-1].ravel())[0, 1]
    assert neighbours == pytest.approx(np.exp(-1 / (4 * cell**2)), abs=0.06)


def test_dark_parts_are_noisier_as_photons_are_fewer() -> None:
    noisy = machine(noise=0.03, bits=12)
    frames = np.stack(shoot(noisy, ramp(), 12)).astype(float)
    spread = frames.std(axis=0).mean(axis=0)
    dark, bright = spread[110:120].mean(), spread[8:18].mean()
    assert dark / bright == pytest.approx(np.exp((115 - 13) / SIZE), rel=0.12)  # sqrt of the signals' ratio


def test_noise_does_not_depend_on_what_is_in_the_beam() -> None:
    noisy, still = machine(noise=0.02, bits=12), machine(bits=12)
    spans = []
    for attenuation in (ramp(), ramp() + np.float32(0.3)):
        noise = shoot(noisy, attenuation, 2)[1].astype(float) - shoot(still, attenuation, 2)[1]
        spans.append(noise[20:-20, 20:-20].ravel())
    assert np.corrcoef(*spans)[0, 1] > 0.99


def test_noise_memory_is_the_correlation_from_frame_to_frame() -> None:
    frames = np.stack(shoot(machine(noise=0.03, noise_memory=0.6, bits=12), ramp(), 4)).astype(float)
    frames -= frames.mean(axis=(0, 1))
    assert np.corrcoef(frames[2].ravel(), frames[3].ravel())[0, 1] == pytest.approx(0.6, abs=0.05)


def test_edge_enhancement_makes_a_bright_rim_beside_a_dark_line() -> None:
    attenuation = np.zeros((SIZE, SIZE), np.float32)
    attenuation[:, 60:68] = 0.4
    plain, sharp = (shoot(machine(sharpen=s, sharpen_px=12.0), attenuation)[0][64].astype(int) for s in (0.0, 1.5))
    assert plain[54:59].max() <= plain[20] + 1
    assert sharp[54:59].max() > sharp[20] + 8
    assert sharp[64] < plain[64]


def test_compression_takes_out_slow_changes_and_keeps_lines() -> None:
    attenuation = ramp()
    attenuation[:, 62:66] += 0.4
    depths, spans = [], []
    for compression in (0.0, 0.8):
        # the curve's levels would stretch the rest again: compare the line with the slow change
        row = shoot(machine(compression=compression, compression_px=60.0, bits=12), attenuation)[0][64].astype(float)
        depths.append((row[57] + row[71]) / 2 - row[62:66].min())
        spans.append(row[32] - row[96])
    assert depths[1] / spans[1] > 2 * depths[0] / spans[0]


def test_scatter_lightens_dark_places_more() -> None:
    attenuation = np.zeros((SIZE, SIZE), np.float32)
    attenuation[52:76, 52:76] = 0.6
    depths = []
    for scatter in (0.0, 0.5):
        exposure = Exposure(machine(scatter=scatter, bits=12), view(), STREAMS)
        frame = exposure.stored(attenuation, 0, 0.0).astype(float)
        depths.append(frame[20, 20] - frame[64, 64])
    assert depths[1] < 0.75 * depths[0]


@pytest.mark.parametrize(
    ("shutter", "least", "most"),
    [("none", 0.0, 0.0), ("octagon", 0.17, 0.28), ("rounded octagon", 0.15, 0.25), ("round", 0.32, 0.36),
     ("rectangle", 0.13, 0.17), ("rounded rectangle", 0.14, 0.2), ("tilted rectangle", 0.13, 0.18)],
)  # fmt: skip
def test_what_the_shutter_blanks_gets_the_outside_level(shutter: Shutter, least: float, most: float) -> None:
    detector = machine(shutter=shutter, outside=0.0, noise=0.02)
    closed = ~shutter_mask(detector, SIZE)
    assert least <= closed.mean() <= most
    assert np.all(shoot(detector, ramp())[0][closed] == 0)
    assert np.all(shoot(machine(shutter=shutter, outside=0.1), ramp())[0][closed] == round(25.5))


def test_shutter_is_the_same_picture_at_half_the_size() -> None:
    for shutter in ("octagon", "round", "rounded octagon", "tilted rectangle"):
        detector = machine(shutter=shutter)
        fine, coarse = shutter_mask(detector, 256), shutter_mask(detector, 128)
        assert np.mean(fine[::2, ::2] != coarse) < 0.02


def test_blades_darken_their_strip_and_only_that() -> None:
    frame = shoot(machine(blades=(0.1, 0.0, 0.0, 0.0)), np.zeros((SIZE, SIZE), np.float32))[0].astype(int)
    assert frame[:, 3].mean() < frame[:, 64].mean() - 60
    assert abs(frame[3, 64] - frame[-4, 64]) <= 1


def test_wedge_darkens_its_side_softly() -> None:
    frame = shoot(machine(wedge=(0.0, 0.2, 0.6)), np.zeros((SIZE, SIZE), np.float32))[0].astype(int)
    row = frame[64]
    assert row[120] < row[10] - 30
    assert np.abs(np.diff(row)).max() < 15


def test_settling_begins_at_its_error_and_ends() -> None:
    detector = machine(settling=0.3, settling_s=0.2)
    assert settling_error(detector, 0.0) == pytest.approx(0.3)
    assert settling_error(detector, 0.2) < 0
    assert abs(settling_error(detector, 0.6)) < 1e-4
    frames = shoot(detector, ramp(), 12)
    assert frames[0].mean() > frames[10].mean() + 10
    assert np.array_equal(frames[10], frames[11])


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_stored_values_fit_the_bits(bits: int) -> None:
    frame = shoot(machine(bits=bits, noise=0.03), ramp())[0]
    assert frame.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert 0.6 * (1 << bits) < frame.max() < 1 << bits


def test_jpeg_leaves_its_traces_and_blanking_dark() -> None:
    detector = machine(noise=0.03, shutter="octagon", jpeg_quality=60)
    through, plain = shoot(detector, ramp())[0], shoot(dataclasses.replace(detector, jpeg_quality=None), ramp())[0]
    assert 0.5 < np.abs(through.astype(int) - plain).mean() < 10
    corner = ~shutter_mask(detector, SIZE)
    assert through[corner].mean() < 4


def test_a_flat_picture_is_not_stretched() -> None:
    table = display_table(PLAIN, -0.01, 0.01).astype(int)
    assert table[len(table) // 2 + 36] - table[len(table) // 2 - 36] < 10  # 72 steps: 0.04 of log signal


@pytest.mark.parametrize("site", ["seen", "unseen"])
def test_drawn_machines_work_and_repeat(site: Site) -> None:
    styles = set()
    for seed in range(12):
        detector = draw(np.random.default_rng(seed), site=site)
        assert detector == draw(np.random.default_rng(seed), site=site)
        frame = shoot(detector, ramp())[0]
        again = shoot(detector, ramp())[0]
        assert np.array_equal(frame, again)
        inside = frame[shutter_mask(detector, SIZE)] / ((1 << detector.bits) - 1)
        assert 0.15 < inside.mean() < 0.85
        assert inside.std() > 0.05
        styles.add(detector.style)
    assert len(styles) >= 2


def test_unseen_machines_have_no_style_shutter_or_curve_of_the_seen() -> None:
    seen, unseen = ([draw(np.random.default_rng(s), site=site) for s in range(60)] for site in ("seen", "unseen"))
    for attribute in ("style", "curve", "shutter"):
        assert not {getattr(d, attribute) for d in seen} & {getattr(d, attribute) for d in unseen}


def test_bits_can_be_given_and_change_nothing_else() -> None:
    free, bound = draw(np.random.default_rng(3), site="seen"), draw(np.random.default_rng(3), site="seen", bits=10)
    assert bound.bits == 10
    assert bound.jpeg_quality is None
    assert dataclasses.replace(bound, bits=free.bits, jpeg_quality=free.jpeg_quality) == free


def test_a_dense_object_does_not_wash_out_the_rest() -> None:
    plain = ramp() * np.float32(0.5)
    hidden = plain.copy()
    hidden[20:60, 70:120] += 4
    free, beside = (shoot(PLAIN, attenuation)[0][90].astype(int) for attenuation in (plain, hidden))
    assert beside[10] - beside[-10] > 0.4 * (free[10] - free[-10])
