"""What the pictures show: iodine where and when the truth says, devices and calcium at all times, nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from angio_ray.phantom.anatomy import Calcification, Tree
from angio_ray.phantom.contrast import contrast_frames
from angio_ray.phantom.render import render
from angio_ray.phantom.scene import Chamber, Device, Motion, Rendered, Scene
from tests.phantom import stage


def on_vessel(scene: Scene, name: str = "RCA") -> tuple[np.ndarray, Rendered]:
    """Grey values along a vessel's centreline, (T, N), where it is in the picture."""
    result = render(scene)
    xy = result.vessel_xy[name].round().astype(int)
    inside = ((xy >= 2) & (xy < scene.view.size - 2)).all(axis=(0, 2))
    frames = np.arange(len(xy))[:, None]
    return result.frames_THW[frames, xy[:, inside, 1], xy[:, inside, 0]].astype(float), result


def darkening(scene: Scene, name: str = "RCA") -> float:
    """How much darker the vessel becomes, grey values."""
    grey, _ = on_vessel(scene, name)
    return float(grey[:6].mean() - grey.mean(axis=1).min())


def moving(frames: int) -> Motion:
    """A heart that beats every 0.8 s."""
    phase = (np.arange(frames) / 15 / stage.PERIOD_S) % 1
    squeeze = np.where(phase < 0.45, np.sin(np.pi * np.minimum(phase, 0.45) / 0.45) ** 2, 0)
    return replace(stage.steady(frames), phase_T=phase, contraction_T=squeeze)


def test_vessels_darken_when_the_truth_says_that_they_fill() -> None:
    grey, result = on_vessel(stage.scene(frames=60))
    found = contrast_frames(result.filling_T)
    assert np.corrcoef(grey.mean(axis=1), result.filling_T)[0, 1] < -0.98
    assert np.ptp(grey[: found["first_contrast"]].mean(axis=1)) < 2
    assert grey[found["best_frame"]].mean() < grey[0].mean() - 30


def test_the_mask_covers_the_vessels_while_they_are_filled_and_nothing_else() -> None:
    scene = stage.scene(frames=45, size=256)
    result = render(scene)
    found = contrast_frames(result.filling_T)
    assert not result.vessel_mask_THW[: found["first_contrast"]].any()
    full = result.vessel_mask_THW[found["best_frame"]]
    frame = result.frames_THW[found["best_frame"]].astype(float) - result.frames_THW[2]
    assert frame[full].mean() < -20
    assert abs(frame[~full].mean()) < 1.5
    size_mm = full[100:110].sum(axis=1).mean() / scene.view.px_per_mm
    assert size_mm == pytest.approx(3.0, abs=0.45)


def test_a_known_point_lands_where_the_c_arm_puts_it() -> None:
    result = render(stage.scene(frames=2))
    x, y = result.vessel_xy["RCA"][0, 0]
    assert (x, y) == pytest.approx((64, 64 - 50 * 1000 / 750 / 150 * 128), abs=0.01)
    assert result.vessel_radius_px["RCA"][0, 0] == pytest.approx(1.5 * 1000 / 750 / 150 * 128)


@pytest.mark.parametrize("percent", [40, 70])
def test_a_stenosis_is_as_narrow_in_the_picture_as_stated(percent: float) -> None:
    main, _ = stage.tree().vessels
    shape = np.exp(-(((main.distance_N - 50) / 5) ** 4))
    narrowed = replace(main, radius_N=1.6 * (1 - percent / 100 * shape), healthy_radius_N=main.radius_N)
    detector = stage.clean_detector(noise=0.0005, noise_blur_px=(0.0, 0.0), blur_px=0.3)
    scene = stage.scene(
        frames=24, size=512, tree=Tree(artery="RCA", vessels=(narrowed,)), detector=detector,
        injection={"start_s": 0.5},
    )  # fmt: skip
    scene = replace(scene, times_s=scene.times_s[[0, 1, 23]], motion=stage.steady(3))
    frames = render(scene).frames_THW.astype(float)
    difference = frames[1] - frames[2]

    def width(row: int) -> float:
        """Full width at half maximum of the mean of five rows, px."""
        line = np.maximum(difference[row - 2 : row + 3, 226:286].mean(axis=0), 0)
        fine = np.interp(np.arange(0, 59, 0.05), np.arange(60), line)
        return float((fine >= fine.max() / 2).sum() * 0.05)

    assert 100 * (1 - width(256) / width(380)) == pytest.approx(percent, abs=6)


def test_calcium_shows_in_every_frame_and_moves_with_the_vessel() -> None:
    line = np.array([[0.0, 0.0, -20.0], [0.0, 0.0, -14.0]])
    speck = Calcification(segment="RCA", kind="specks", lines=(line,), width_mm=1.2, attenuation=0.35)
    scene = stage.scene(frames=30, motion=moving(30), tree=replace(stage.tree(), calcifications=(speck,)))
    with_calcium, without = render(scene), render(replace(scene, tree=stage.tree()))
    mask = with_calcium.calcium_mask_THW
    assert mask is not None
    assert without.calcium_mask_THW is None
    assert mask.any(axis=(1, 2)).all()
    darker = without.frames_THW.astype(float) - with_calcium.frames_THW
    assert darker[:6][mask[:6]].mean() > 8
    middle = np.array([np.argwhere(m).mean(axis=0)[::-1] for m in mask])
    at = np.abs(stage.tree().vessels[0].points_N3[:, 2] + 17).argmin()
    np.testing.assert_allclose(middle, with_calcium.vessel_xy["RCA"][:, at], atol=0.8)
    assert np.ptp(middle[:, 1]) > 3


def test_without_iodine_the_picture_does_not_change_with_time() -> None:
    result = render(stage.scene(injection={"iodine": 0.0}))
    assert np.ptp(result.frames_THW.mean(axis=(1, 2))) < 1.5
    assert not result.vessel_mask_THW.any()


def test_a_counterfactual_keeps_noise_and_background() -> None:
    detector = stage.clean_detector(noise=0.02)
    good = render(stage.scene(detector=detector)).frames_THW.astype(float)
    none = render(stage.scene(detector=detector, injection={"iodine": 0.0})).frames_THW.astype(float)
    assert np.array_equal(good[:8], none[:8])
    away = np.s_[25:32, :, :40]
    assert np.abs(good[away] - none[away]).mean() < 0.5


def test_weak_and_distant_injections_darken_less() -> None:
    good = darkening(stage.scene())
    assert darkening(stage.scene(injection={"iodine": 0.02})) < 0.25 * good
    assert darkening(stage.scene(injection={"reach_mm": 30.0})) < 0.6 * good


@pytest.mark.parametrize("moves", [0.0, 1.0])
def test_devices_stay_with_the_chest_or_go_with_the_heart(moves: float) -> None:
    wire = Device(name="wire", lines=(np.array([[-40.0, 0, -20], [-10.0, 0, -20]]),), attenuation=1.0, moves=moves)
    can = Device(name="can", plates=(np.array([[20.0, 0, 20], [40, 0, 20], [40, 0, 30], [20, 0, 30]]),), attenuation=2)
    scene = stage.scene(frames=12, motion=moving(12), injection={"iodine": 0.0}, devices=(wire, can))
    bare = replace(scene, devices=())
    darker = render(bare).frames_THW.astype(float) - render(scene).frames_THW
    metal = darker[:, :, :60] > 20
    rows = np.array([np.argwhere(m)[:, 0].mean() for m in metal])
    assert (np.ptp(rows) > 3) == (moves == 1.0)
    assert (darker[:, 30:40, 90:105] > 50).any(axis=(1, 2)).all()


def test_a_pan_moves_everything() -> None:
    frames = 12
    pan = np.zeros((frames, 3))
    pan[:, 0] = np.linspace(0, 20, frames)
    scene = stage.scene(frames=frames, motion=replace(stage.steady(frames), pan_T3=pan))
    x = render(scene).vessel_xy["RCA"][:, 0, 0]
    assert x[-1] - x[0] == pytest.approx(20 * 1000 / 750 / 150 * 128, rel=0.01)


def test_the_catheter_darkens_while_it_injects() -> None:
    catheter = stage.vessel("catheter", (-40, 0, 50), (0, 0, 50), radius_N=np.full(54, 1.0))
    scene = stage.scene(catheter=catheter, tree=None)
    frames = render(scene).frames_THW.astype(float)
    row = round(64 - 50 * scene.view.px_per_mm)
    rest, injecting = (frames[f, row - 1 : row + 2, 30:55].mean() for f in (2, 18))
    assert injecting < rest - 6


@pytest.mark.parametrize("width_mm", [12.0, 30.0])
def test_cavities_darken_a_large_area_softly(width_mm: float) -> None:
    tube = stage.vessel("aorta", (0, 0, 45), (0, 0, -45))
    tube = replace(tube, radius_N=np.full(len(tube.points_N3), width_mm / 2))
    scene = stage.scene(tree=None, chambers=(Chamber(tube=tube, iodine=0.02),))
    result = render(scene)
    frames = result.frames_THW.astype(float)
    darker = frames[:6].mean(axis=0) - frames[20:24].mean(axis=0)
    assert result.filling_T.max() == 0
    assert not result.vessel_mask_THW.any()
    covered_mm2 = (darker > 0.4 * np.percentile(darker, 99)).sum() / scene.view.px_per_mm**2
    assert covered_mm2 == pytest.approx(90 * width_mm, rel=0.35)


def test_reflux_and_blush_darken_where_no_vessel_is() -> None:
    catheter = stage.vessel("catheter", (-30, 0, 54), (0, 0, 44))
    plain = stage.scene(frames=60, catheter=catheter)
    spilt = replace(plain, injection=replace(plain.injection, reflux_iodine=0.05))
    stained = replace(plain, injection=replace(plain.injection, blush_iodine=0.3))
    bare = render(plain)
    off = ~bare.vessel_mask_THW.any(axis=0)
    near_tip = np.zeros_like(off)
    near_tip[2:30, 45:83] = True

    def darker(scene: Scene) -> np.ndarray:
        return np.asarray(bare.frames_THW.astype(float) - render(scene).frames_THW)

    assert darker(spilt)[15:25, near_tip & off].mean() > 1.5
    assert abs(darker(spilt)[:6].mean()) < 0.2
    late = darker(stained).mean(axis=(1, 2))
    assert late.max() > 1
    assert late.argmax() > 25


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_values_use_the_range_of_their_bits(bits: int) -> None:
    frames = render(stage.scene(frames=4, detector=stage.clean_detector(bits=bits))).frames_THW
    assert frames.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert 2 ** (bits - 2) < frames.max() <= 2**bits - 1


def test_the_same_scene_gives_the_same_bytes() -> None:
    scene = stage.scene(frames=8, injection={"start_s": 0.0, "streaming": 0.5, "reflux_iodine": 0.02})
    first, again = render(scene), render(scene)
    assert np.array_equal(first.frames_THW, again.frames_THW)
    assert np.array_equal(first.vessel_mask_THW, again.vessel_mask_THW)


def test_the_vessels_beat_with_the_heart_s_period() -> None:
    frames = 120  # ten beats of 12 frames
    result = render(stage.scene(frames=frames, size=64, motion=moving(frames), injection={"iodine": 0.0}))
    y = result.vessel_xy["RCA"][:, 40, 1]
    assert np.abs(np.fft.rfft(y - y.mean())).argmax() == frames / (stage.PERIOD_S * 15)


def test_the_covered_share_counts_what_hides_the_tree() -> None:
    corners = np.array([[-60.0, 40, -10], [60, 40, -10], [60, 40, -60], [-60, 40, -60]])
    can = Device(name="can", plates=(corners,), attenuation=5.0)
    scene = stage.scene(frames=2)
    assert render(scene).covered_share == 0
    share = render(replace(scene, devices=(can,))).covered_share
    assert share == pytest.approx((40 + 36 / 4) / 118, abs=0.12)
