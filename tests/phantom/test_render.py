"""What the pictures show: iodine where the truth says, when the truth says, and nothing else that changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from angio_ray.phantom import PhantomConfig, render_clip
from angio_ray.phantom.render import Scene, render
from angio_ray.phantom.scenes import PatientPlan, plan_patient, plan_scene

CONFIG = PhantomConfig(patients=1, seed=4, size=192, fps=15, frames=(45, 45))


def scene_of(quality: str, seed: int = 4) -> tuple[Scene, PatientPlan]:
    plan = replace(plan_patient(seed, 0, (1, 1), 0.0), clips=(quality,), devices=())
    scene = plan_scene(plan, 0, CONFIG.size, CONFIG.frames, CONFIG.fps, plan.clip_rng(0))
    steady = replace(
        scene, bits=8, settling=0.0, exposure=0.004, breath_mm=0.0, shift_px=(0.0, 0.0), collimator="none", devices=(),
        bolus_start_s=0.6, bolus_s=1.6, washout_s=0.5, sharpen=0.0, reflux_iodine=0.0, gamma=1.0, levels=(0.2, 0.8),
    )  # fmt: skip
    return steady, plan


def on_vessels(scene: Scene, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean grey value on the two largest vessels' centrelines per frame, of the whole picture, and the true filling."""
    result = render(scene, np.random.default_rng(seed))
    found = []
    for f, frame in enumerate(result.frames_THW):
        xy = np.concatenate([v[f] for v in result.vessel_xy[:2]]).round().astype(int)
        inside = ((xy >= 0) & (xy < scene.view.size)).all(axis=1)
        found.append(frame[xy[inside, 1], xy[inside, 0]].mean())
    return np.array(found), result.frames_THW.reshape(len(found), -1).mean(axis=1), result.filling_T


def test_vessels_darken_when_the_truth_says_that_they_fill() -> None:
    scene, _ = scene_of("satisfactory")
    grey, _, filling = on_vessels(scene)
    assert filling[:9].max() == 0  # nothing before 0.6 s
    assert filling.max() > 0.9
    assert np.corrcoef(grey, filling)[0, 1] < -0.9
    assert grey[filling > 0.9].mean() < 0.75 * grey[:9].mean()


@pytest.mark.parametrize(("quality", "most"), [("no_contrast", 0.08), ("weak_contrast", 0.3)])
def test_vessels_stay_pale_without_enough_contrast(quality: str, most: float) -> None:
    good, _ = scene_of("satisfactory")
    poor, _ = scene_of(quality)

    def darkening(scene: Scene) -> float:
        grey, _, _ = on_vessels(scene)
        return float(1 - grey[25:30].mean() / grey[:5].mean())

    assert darkening(poor) < most * darkening(good) + 0.02


def test_poor_engagement_fills_the_near_vessels_only() -> None:
    _, _, filling = on_vessels(scene_of("poor_engagement")[0])
    assert 0 < filling.max() < 0.6


@pytest.mark.parametrize("quality", ["ventricle", "aorta"])
def test_cavities_darken_a_large_area(quality: str) -> None:
    scene, _ = scene_of(quality)
    frames = render(scene, np.random.default_rng(1)).frames_THW.astype(float)
    darker = frames[:5].mean(axis=0) - frames[26:31].mean(axis=0)
    assert (darker > 20).mean() > 0.02


def test_no_contrast_leaves_the_mean_of_the_picture_alone() -> None:
    _, mean, _ = on_vessels(scene_of("no_contrast")[0])
    assert np.ptp(mean) < 4


def test_same_seed_gives_the_same_frames_and_another_does_not() -> None:
    plan = plan_patient(4, 0, (2, 2), 0.5)
    first = render_clip(plan, 0, CONFIG)[1].frames_THW
    assert np.array_equal(first, render_clip(plan, 0, CONFIG)[1].frames_THW)
    other = render_clip(plan_patient(5, 0, (2, 2), 0.5), 0, CONFIG)[1].frames_THW
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_values_use_the_range_of_their_bits(bits: int) -> None:
    scene, _ = scene_of("satisfactory")
    frames = render(replace(scene, bits=bits), np.random.default_rng(0)).frames_THW
    assert frames.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert 2 ** (bits - 2) < frames.max() <= 2**bits - 1


def test_size_changes_the_pixels_not_the_picture() -> None:
    scene, plan = scene_of("satisfactory")
    small = plan_scene(plan, 0, 128, CONFIG.frames, CONFIG.fps, plan.clip_rng(0))
    large = plan_scene(plan, 0, 512, CONFIG.frames, CONFIG.fps, plan.clip_rng(0))
    assert small.view.pitch_mm == pytest.approx(4 * large.view.pitch_mm)
    assert small.view.centre_px[0] == pytest.approx(large.view.centre_px[0] / 4)
    assert scene.times_s.shape == small.times_s.shape
