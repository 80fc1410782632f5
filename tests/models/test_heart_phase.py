from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from angio_ray.models.heart_phase import (
    LEAST_QUALITY,
    NO_FULL_CONTRAST,
    NO_HEART_MOTION,
    NO_PRECONTRAST_FRAMES,
    FramePair,
    HeartPhase,
    _turn,
    distance_signal,
    fourier_period,
    frame_pair,
    heart_phase,
)
from angio_ray.phantom.contrast import contrast_frames
from angio_ray.phantom.planning import PhantomConfig, plan_patient, plan_scene
from angio_ray.phantom.render import render
from angio_ray.phantom.scene import Scene
from angio_ray.sampling import resize_frames

STEP_S = 1 / 15
SIZE = 112


def steady(frames: int, period: float) -> NDArray[np.float64]:
    """Phase in beats."""
    return np.arange(frames) / period


def beating(
    phase_T: NDArray[np.float64], *, arrival: int | None = None, amount: float = 6.0, noise: float = 3.0, seed: int = 0
) -> NDArray[np.float64]:
    """A heart's shadow whose border comes in and goes back with each beat; from `arrival` on dark vessels that follow it."""
    rng = np.random.default_rng(seed)
    T = len(phase_T)
    y_HW, x_HW = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    moved_T = amount * np.clip(np.sin(2 * np.pi * phase_T), -0.3, 1)[:, None, None]
    distance_THW = np.hypot(y_HW - 60 + moved_T, x_HW - 60) - 30
    clip_THW = 150 - 40 / (1 + np.exp(distance_THW / 2)) + 8 * np.sin(x_HW / 5) + 6 * np.sin(y_HW / 7)
    if arrival is not None:
        filling_T = np.clip((np.arange(T) - arrival) / 8, 0, 1)[:, None, None]
        vessel_THW = sum(np.exp(-(((y_HW - c + moved_T - 5 * np.sin(x_HW / 9)) / 1.5) ** 2)) for c in (45, 60, 75))
        clip_THW = clip_THW * (1 - 0.5 * filling_T * np.minimum(vessel_THW, 1))
    return clip_THW + rng.normal(0, noise, clip_THW.shape)


def grey(clip_THW: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.round(clip_THW), 0, 255).astype(np.uint8)


def wrapped(beats: NDArray[np.float64]) -> NDArray[np.float64]:
    return (beats + 0.5) % 1 - 0.5


def phase_errors(heart: HeartPhase, phase_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviation from the true phase, beats, after the best shift of all frames together."""
    assert heart.phase_T is not None
    turned = np.exp(2j * np.pi * (heart.phase_T - phase_T))
    return np.angle(turned / turned.mean()) / (2 * np.pi)


def noise_filtered_in_time(frames: int, memory: float, seed: int) -> NDArray[np.uint8]:
    """A still picture under a detector's recursive filter."""
    rng = np.random.default_rng(seed)
    noise_THW = rng.normal(0, 8, (frames, SIZE, SIZE))
    for t in range(1, frames):
        noise_THW[t] = memory * noise_THW[t - 1] + np.sqrt(1 - memory**2) * noise_THW[t]
    return grey(beating(np.zeros(frames), noise=0) + noise_THW)


def test_the_papers_distance_is_that_of_its_formula() -> None:
    frames = np.array([[[3, 4]], [[0, 0]], [[6, 8]], [[4, 3]]], np.uint8)
    np.testing.assert_allclose(distance_signal(frames), [0, 5 / 5, 5 / 15, np.sqrt(2) / 10])
    assert distance_signal(np.zeros((3, 2, 2), np.uint8)).tolist() == [0, 0, 0]


def test_the_papers_period_is_the_largest_bins() -> None:
    k = np.arange(120)
    heart, breath = np.sin(2 * np.pi * k / 12), 3 * np.sin(2 * np.pi * k / 60)
    assert fourier_period(5 + heart) == 12
    assert fourier_period(5 + heart + breath) == 60, "slow change is the longest period, and the paper names no bounds"
    assert fourier_period(5 + heart + breath, shortest=5, longest=25) == 12
    assert fourier_period(np.full(20, 0.3)) is None
    assert fourier_period(np.zeros(1)) is None


@pytest.mark.parametrize("period", [5.6, 9.0, 13.5, 22.0])
def test_a_steady_heart_is_found_with_its_phase(period: float) -> None:
    phase_T = steady(100, period)
    heart = heart_phase(grey(beating(phase_T)), step_s=STEP_S)
    assert heart.period_frames == pytest.approx(period, abs=0.25)
    assert heart.period_s == pytest.approx(heart.period_frames / 15)
    assert np.percentile(np.abs(phase_errors(heart, phase_T)), 90) * period < 0.5
    assert heart.quality > 0.5
    assert heart.phase_T is not None
    assert (np.diff(heart.phase_T) >= 0).all()


def test_whole_beats_are_where_the_heart_is_stillest() -> None:
    phase_T = steady(100, 13)
    heart = heart_phase(grey(beating(phase_T)), step_s=STEP_S)
    assert heart.phase_T is not None
    still = np.sin(2 * np.pi * phase_T) < -0.3  # from 0.55 to 0.95 of the beat
    assert np.abs(wrapped(phase_T - heart.phase_T - 0.75)).max() < 0.15
    assert np.abs(wrapped(heart.phase_T[still])).max() < np.abs(wrapped(heart.phase_T[~still])).max()


@pytest.mark.parametrize("turn", [0.0, 0.3, -0.4, 0.5])
def test_a_phase_that_slipped_where_contrast_arrived_is_turned_back(turn: float) -> None:
    """Pictures that share little but a border: the way out of it and back is the same in both parts."""
    rng = np.random.default_rng(4)
    phase_T = steady(120, 12)
    moved_T1 = np.clip(np.sin(2 * np.pi * phase_T), -0.3, 1)[:, None]
    vessels_T1 = moved_T1 * (np.arange(120) >= 60)[:, None]
    cells_TN = 0.5 * moved_T1 * rng.normal(size=200) + 2 * vessels_T1 * rng.normal(size=200)
    cells_TN += rng.normal(0, 0.1, cells_TN.shape)
    parts = [slice(0, 60), slice(60, 120)]
    slipped_T = phase_T - turn * (np.arange(120) >= 60)
    assert abs(wrapped(np.array(_turn(cells_TN, slipped_T, parts) - turn))) < 0.06


def test_time_is_in_seconds() -> None:
    """Twice the rate, the same heart: the same period in seconds, twice as many frames."""
    heart = heart_phase(grey(beating(steady(160, 24))), step_s=STEP_S / 2)
    assert heart.period_s == pytest.approx(12 / 15, abs=0.02)
    assert heart.period_frames == pytest.approx(24, abs=0.5)


def test_beats_of_different_length_are_followed_one_by_one() -> None:
    rng = np.random.default_rng(2)
    onsets = np.concatenate([[0], np.cumsum(12 * rng.uniform(0.88, 1.12, 20))])
    phase_T = np.interp(np.arange(180), onsets, np.arange(len(onsets)))
    heart = heart_phase(grey(beating(phase_T)), step_s=STEP_S)
    assert heart.period_frames == pytest.approx(np.median(np.diff(onsets)), abs=0.5)
    tracked = np.abs(phase_errors(heart, phase_T))
    unvaried = np.abs(wrapped(phase_T - np.arange(180) / np.median(np.diff(onsets))))
    assert np.median(tracked) < 0.04
    assert np.median(tracked) < np.median(unvaried) / 2


def test_a_premature_beat_is_marked_irregular() -> None:
    lengths = [12.0] * 6 + [7.0, 17.0] + [12.0] * 6
    onsets = np.concatenate([[0], np.cumsum(lengths)])
    phase_T = np.interp(np.arange(160), onsets, np.arange(len(onsets)))
    heart = heart_phase(grey(beating(phase_T)), step_s=STEP_S)
    assert heart.irregularity_T is not None
    regular = np.nanmedian(heart.irregularity_T[10:60])
    assert np.nanmax(heart.irregularity_T[70:98]) > max(0.2, 4 * regular)
    assert np.isnan(heart.irregularity_T[[0, -1]]).all(), "no whole beat around the first and the last frame"


def test_brightness_and_table_are_no_heart() -> None:
    """Flicker of the whole picture, a slow trend and drift, and an exposure that settles: the same period and phase."""
    phase_T = steady(100, 11)
    clip_THW = beating(phase_T)
    rng = np.random.default_rng(1)
    brightness_T = rng.uniform(0.85, 1.05, 100) * np.linspace(0.9, 1.1, 100)
    brightness_T *= 1 + 0.2 * np.sin(2 * np.pi * steady(100, 7))  # as of a control loop that swings
    brightness_T[:4] *= [0.4, 0.6, 0.8, 0.9]
    drift_THW = 25 * np.linspace(0, 1, 100)[:, None, None] * np.sin(np.arange(SIZE) / 20)
    heart = heart_phase(grey((clip_THW + drift_THW) * brightness_T[:, None, None]), step_s=STEP_S)
    assert heart.period_frames == pytest.approx(11, abs=0.25)
    assert np.median(np.abs(phase_errors(heart, phase_T))) * 11 < 0.5
    assert heart.phase_T is not None
    assert len(heart.phase_T) == 100, "frames from before it settled have a phase too"


def test_what_the_shutter_hides_does_not_count() -> None:
    phase_T = steady(80, 10)
    clip_THW = beating(phase_T)
    clip_THW[:, :20] = clip_THW[:, -20:] = 4
    other_THW = clip_THW.copy()
    other_THW[:, :18] = 3 + 3 * np.sin(2 * np.pi * steady(80, 7))[:, None, None]  # something else pulses in the dark
    plain, pulsing = (heart_phase(grey(clip), step_s=STEP_S) for clip in (clip_THW, other_THW))
    assert plain.period_frames == pytest.approx(10, abs=0.25)
    assert pulsing.period_s == plain.period_s
    assert pulsing.quality == plain.quality


@pytest.mark.parametrize("seed", range(3))
def test_the_phase_goes_on_when_contrast_arrives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    onsets = np.concatenate([[0], np.cumsum(11 * rng.uniform(0.92, 1.08, 16))])
    phase_T = np.interp(np.arange(150), onsets, np.arange(len(onsets)))
    arrival = 70
    frames_THW = grey(beating(phase_T, arrival=arrival, seed=seed))
    heart = heart_phase(frames_THW, step_s=STEP_S, first_contrast=arrival)
    error_T = phase_errors(heart, phase_T)
    assert abs(np.median(error_T[5:arrival]) - np.median(error_T[arrival + 10 : -5])) < 0.06
    pair = frame_pair(heart, list(range(0, arrival, 3)), list(range(arrival + 10, 150, 3)))
    assert pair.reason is None
    assert pair.precontrast is not None
    assert pair.contrast is not None
    assert abs(wrapped(phase_T[pair.precontrast] - phase_T[pair.contrast])) * 11 < 0.8


@pytest.mark.parametrize("frames", [16, 60, 150])
@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_a_still_clip_has_no_confident_period(frames: int, memory: float) -> None:
    heart = heart_phase(noise_filtered_in_time(frames, memory, seed=frames), step_s=STEP_S)
    assert heart.quality < LEAST_QUALITY
    split = replace(heart, first_contrast=frames // 2)
    assert frame_pair(split, [0, 1], [frames - 1]).reason in (NO_HEART_MOTION, NO_PRECONTRAST_FRAMES)


def test_contrast_that_comes_and_goes_is_no_heart() -> None:
    frames_THW = grey(beating(np.zeros(160), arrival=80))
    heart = heart_phase(frames_THW, step_s=STEP_S, first_contrast=80)
    assert heart.quality < LEAST_QUALITY
    assert heart_phase(frames_THW, step_s=STEP_S).quality < LEAST_QUALITY, "nor where nobody has said when it comes"
    assert frame_pair(heart, list(range(0, 80, 3)), list(range(100, 160, 3))) == FramePair(reason=NO_HEART_MOTION)


def test_quality_falls_with_noise_with_shortness_and_without_beats_before_contrast() -> None:
    phase_T = steady(120, 12)
    by_noise = [heart_phase(grey(beating(phase_T, noise=n)), step_s=STEP_S).quality for n in (2, 30, 60)]
    assert by_noise == sorted(by_noise, reverse=True)
    assert by_noise[0] > by_noise[-1] + 0.1
    frames_THW = grey(beating(phase_T, noise=8))
    by_length = [heart_phase(frames_THW[:n], step_s=STEP_S).quality for n in (120, 40, 25)]
    assert by_length == sorted(by_length, reverse=True)
    assert by_length[0] > by_length[-1] + 0.1
    known = [heart_phase(frames_THW, step_s=STEP_S, first_contrast=first).quality for first in (60, 12, 0)]
    assert known[0] > known[1] > known[2] > 0


@pytest.mark.parametrize("frames", [0, 1, 2, 9])
def test_a_clip_too_short_for_two_of_the_fastest_beats_has_no_period(frames: int) -> None:
    clip = grey(beating(steady(12, 6)))[:frames]
    assert heart_phase(clip, step_s=STEP_S) == HeartPhase(
        step_s=STEP_S, first_contrast=None, period_s=None, quality=0.0, phase_T=None, irregularity_T=None
    )


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_picture_has_no_period(level: int) -> None:
    heart = heart_phase(np.full((60, SIZE, SIZE), level, np.uint8), step_s=STEP_S)
    assert (heart.period_s, heart.quality) == (None, 0.0)


def test_impossible_arguments_are_refused() -> None:
    frames = np.zeros((10, 16, 16), np.uint8)
    for wrong in ({"step_s": 0.0}, {"step_s": np.nan}, {"step_s": 0.1, "first_contrast": 11}):
        with pytest.raises(ValueError, match="must be positive, first_contrast"):
            heart_phase(frames, **wrong)


def known_heart(phase_T: NDArray[np.float64], period: float, /, **changes: Any) -> HeartPhase:
    heart = HeartPhase(
        step_s=STEP_S, first_contrast=len(phase_T) // 2, period_s=period * STEP_S, quality=0.8, phase_T=phase_T,
        irregularity_T=np.zeros(len(phase_T)),
    )  # fmt: skip
    return replace(heart, **changes)


def test_no_other_permitted_pair_is_nearer_in_phase() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        phase_T = np.cumsum(rng.uniform(0.02, 0.14, 60))
        heart = known_heart(phase_T, 13.0)
        early, late = sorted(rng.choice(30, 5, replace=False)), sorted(rng.choice(30, 4, replace=False) + 30)
        pair = frame_pair(heart, early, late)
        apart = {(a, b): abs(wrapped(phase_T[a] - phase_T[b])) * 13 for a in early for b in late}
        assert pair.precontrast in early
        assert pair.contrast in late
        assert pair.difference_frames == pytest.approx(apart[pair.precontrast, pair.contrast])
        assert pair.difference_frames <= max(0.25, min(apart.values()) + 1e-9)


def test_among_pairs_of_one_phase_regular_beats_and_the_middle_of_full_contrast_win() -> None:
    phase_T = steady(120, 10)  # frames that lie ten apart are equal
    early, late = [5, 15, 25], [65, 75, 85, 95, 105]
    assert frame_pair(known_heart(phase_T, 10.0), early, late).contrast == 85
    irregular_T = np.zeros(120)
    irregular_T[[5, 15, 85]] = 0.4
    pair = frame_pair(known_heart(phase_T, 10.0, irregularity_T=irregular_T), early, late)
    assert pair.precontrast == 25
    assert pair.contrast in (75, 95)
    irregular_T[[5, 15, 25, 65, 75, 85, 95]] = np.nan
    pair = frame_pair(known_heart(phase_T, 10.0, irregularity_T=irregular_T), early, late)
    assert pair.reason is None, "beats cut by an end are the last choice, and still one"


def test_among_equal_pairs_the_heart_is_still() -> None:
    phase_T = steady(120, 10)
    pair = frame_pair(known_heart(phase_T, 10.0), [15, 20], [75, 80])  # both as near the middle; half and whole beats
    assert (pair.precontrast, pair.contrast) == (20, 80)


@pytest.mark.parametrize(
    ("changes", "early", "late", "reason"),
    [
        ({}, [3, 6], [], NO_FULL_CONTRAST),
        ({"first_contrast": None}, [3, 6], [40], NO_FULL_CONTRAST),
        ({}, [], [40], NO_PRECONTRAST_FRAMES),
        ({}, [45], [50], NO_PRECONTRAST_FRAMES),  # contrast is there
        ({"first_contrast": 9}, [3, 6], [40], NO_PRECONTRAST_FRAMES),  # under a beat
        ({"first_contrast": 0}, [3, 6], [40], NO_PRECONTRAST_FRAMES),
        ({"quality": LEAST_QUALITY - 0.01}, [3, 6], [40], NO_HEART_MOTION),
        ({"period_s": None, "phase_T": None, "irregularity_T": None, "quality": 0.0}, [3, 6], [40], NO_HEART_MOTION),
        ({}, [3, 6], [40], None),
    ],
)
def test_why_there_is_no_pair(changes: dict[str, Any], early: list[int], late: list[int], reason: str | None) -> None:
    pair = frame_pair(known_heart(steady(60, 10), 10.0, **changes), early, late)
    assert pair.reason == reason
    assert (
        (pair.precontrast is None)
        == (pair.contrast is None)
        == (pair.difference_frames is None)
        == (reason is not None)
    )


def rendered(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    shot = render(scene)
    frames_THW = (shot.frames_THW * (255 / ((1 << scene.detector.bits) - 1))).astype(np.uint8)
    return resize_frames(frames_THW, SIZE), shot.filling_T


@pytest.mark.parametrize("patient", [0, 1])
def test_the_phantoms_heart_and_a_pair_of_its_frames(patient: int) -> None:
    config = PhantomConfig(patients=2, seed=77, size=128, protocol="calcium", clips=(2, 2), frames=(110, 110))
    scene = plan_scene(plan_patient(config, patient), 0, "satisfactory")
    frames_THW, filling_T = rendered(scene)
    contrast = contrast_frames(filling_T)
    first, begin, end = (contrast[name] for name in ("first_contrast", "contrast_begin", "contrast_end"))
    assert first is not None
    assert begin is not None
    assert end is not None
    heart = heart_phase(frames_THW, step_s=STEP_S, first_contrast=first)
    onsets = scene.motion.onsets_s * 15
    period = float(np.median(np.diff(onsets)))
    assert heart.period_frames == pytest.approx(period, abs=1)
    pair = frame_pair(heart, list(range(0, first, 3)), list(range(begin, end + 1, 3)))
    assert pair.precontrast is not None
    assert pair.contrast is not None
    true_T = scene.motion.phase_T
    assert abs(wrapped(true_T[pair.precontrast] - true_T[pair.contrast])) * period < 1

    nothing = np.zeros_like(true_T)
    still = replace(scene, motion=replace(scene.motion, contraction_T=nothing, phase_T=nothing))  # it breathes on
    stopped = heart_phase(rendered(still)[0], step_s=STEP_S, first_contrast=first)
    assert stopped.quality < LEAST_QUALITY < heart.quality
