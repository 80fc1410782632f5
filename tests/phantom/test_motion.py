"""The beat keeps its period, the groove moves more than the apex, breath and table shift what they should."""

from __future__ import annotations

import numpy as np
import pytest

from angio_ray.phantom import anatomy, contrast, motion
from angio_ray.phantom.carm import Floats, project
from angio_ray.phantom.planning import PatientPlan, PhantomConfig, plan_patient, plan_scene
from angio_ray.phantom.scene import QUALITY_GROUPS, Motion, Scene


def still(count: int, *, contraction: Floats | None = None, phase: Floats | None = None) -> Motion:
    return Motion(
        phase_T=np.zeros(count) if phase is None else phase,
        contraction_T=np.zeros(count) if contraction is None else contraction,
        onsets_s=np.array([-0.5, 0.3]),
        period_s=0.8,
        breath_T3=np.zeros((count, 3)),
        pan_T3=np.zeros((count, 3)),
    )


@pytest.mark.parametrize("period", [0.45, 0.8, 1.3])
def test_heart_beats_with_its_period_within_a_tenth(period: float) -> None:
    times = np.arange(0, 60, 0.01)
    phase, squeeze, onsets = motion.beats(times, period, np.random.default_rng(0), ectopics=0.0)
    gaps = np.diff(onsets)
    assert gaps.min() >= 0.9 * period
    assert gaps.max() <= 1.1 * period
    assert gaps.mean() == pytest.approx(period, rel=0.03)
    assert onsets[0] <= times[0]
    assert onsets[-1] > times[-1]
    assert ((phase >= 0) & (phase < 1)).all()
    # the strongest frequency of the contraction is the heart's
    power = np.abs(np.fft.rfft(squeeze - squeeze.mean()))
    assert np.fft.rfftfreq(len(times), 0.01)[power.argmax()] == pytest.approx(1 / gaps.mean(), rel=0.06)


def test_contraction_is_continuous_rests_in_diastole_and_is_zero_where_a_beat_begins() -> None:
    times = np.arange(0, 30, 0.001)
    _, squeeze, onsets = motion.beats(times, 0.9, np.random.default_rng(1), ectopics=0.1)
    assert squeeze.min() >= 0
    assert squeeze.max() <= 1
    assert np.abs(np.diff(squeeze)).max() < 0.02  # per millisecond
    inside = onsets[(onsets > 0.01) & (onsets < 29)]
    assert np.interp(inside, times, squeeze).max() < 0.02
    assert np.mean(squeeze < 0.2) > 0.35  # diastole is the longer part at 67 beats a minute


def test_ectopic_beat_comes_early_squeezes_less_and_a_pause_follows() -> None:
    times = np.arange(0, 200, 0.01)
    _, squeeze, onsets = motion.beats(times, 0.8, np.random.default_rng(2), ectopics=0.1)
    gaps = np.diff(onsets)
    early = np.flatnonzero(gaps[:-2] < 0.72 * 0.8)
    assert 8 < len(early) < 60
    coupling = gaps[early] / 0.8
    assert (coupling > 0.54).all()
    assert gaps[early] + gaps[early + 1] == pytest.approx(1.6)  # compensatory pause
    for i in early[early < len(gaps) - 3]:
        weak, strong = (squeeze[(times >= onsets[k]) & (times < onsets[k + 1])].max() for k in (i + 1, i + 2))
        assert weak < 0.65
        assert strong > 0.9


def test_phase_is_zero_at_each_onset_and_rises_to_one() -> None:
    times = np.arange(0, 5, 0.001)
    phase, _, onsets = motion.beats(times, 0.7, np.random.default_rng(3), ectopics=0.0)
    wraps = times[1:][np.diff(phase) < -0.5]
    inside = onsets[(onsets > 0) & (onsets < 5)]
    assert wraps == pytest.approx(inside, abs=0.0021)


def test_groove_moves_ten_to_fifteen_millimetres_and_the_apex_little() -> None:
    trees = anatomy.grow_trees(np.random.default_rng(4), female=False, dominance="right")
    systole = still(2, contraction=np.array([0.0, 0.9]), phase=np.array([0.0, 0.35]))

    def excursion(points: Floats) -> Floats:
        moved = motion.displace(points, systole)
        assert moved[0] == pytest.approx(points)
        return np.linalg.norm(moved[1] - points, axis=1)

    rca = excursion(trees["RCA"].vessel("RCA").points_N3)
    lad = excursion(trees["LCA"].vessel("LAD").points_N3)
    assert 9 < np.median(rca) < 16
    assert np.median(lad) < 0.65 * np.median(rca)
    assert excursion(anatomy.APEX[None])[0] < 2.5


def test_points_go_out_and_come_back_by_different_ways() -> None:
    place = np.array([[-40.0, -24.0, -5.0]])
    half = still(2, contraction=np.array([0.5, 0.5]), phase=np.array([0.15, 0.5]))
    out, back = motion.displace(place, half)
    assert 0.2 < np.linalg.norm(out - back) < 4


def test_share_of_the_motion_breath_and_table() -> None:
    points = np.repeat(np.array([[-40.0, -24.0, -5.0]]), 3, axis=0)
    scene = Motion(
        phase_T=np.array([0.3]),
        contraction_T=np.array([0.9]),
        onsets_s=np.array([0.0, 1.0]),
        period_s=1.0,
        breath_T3=np.array([[0.0, 0.0, -8.0]]),
        pan_T3=np.array([[20.0, 0.0, 0.0]]),
    )
    fixed, half, whole = motion.displace(points, scene, np.array([0.0, 0.5, 1.0]))[0] - points
    assert fixed == pytest.approx([20, 0, 0])  # what stays with the chest still lies on the table
    assert half - fixed == pytest.approx(0.5 * (whole - fixed))
    assert np.linalg.norm(whole - fixed) > 8
    assert motion.displace(points, scene)[0, 0] - points[0] == pytest.approx(whole)


def test_breath_stays_within_its_amplitude_and_runs_mostly_along_the_body() -> None:
    times = np.arange(90) / 15
    for seed in range(20):
        shift = motion.breath(times, np.random.default_rng(seed), amplitude_mm=5)
        assert shift.shape == (90, 3)
        assert np.abs(shift[:, 2]).max() < 6.5
        assert np.abs(shift[:, :2]).max() < 0.5 * np.abs(shift[:, 2]).max()
    assert not motion.breath(times, np.random.default_rng(0), amplitude_mm=0).any()


def table(times: Floats, seed: int, *, reach_mm: float = np.inf, held_T: np.ndarray | None = None) -> Floats:
    """A pan at 15 mm/s about towards the patient's left and feet, after which no shift of held frames is above a reach."""
    held = np.arange(len(times)) == 0 if held_T is None else held_T

    def kept(shift: Floats) -> bool:
        return bool(np.linalg.norm(shift[held], axis=1).max() <= reach_mm)

    along = np.array([1.0, 0.0, -1.0])
    return motion.pan(times, np.random.default_rng(seed), speed_mm_s=15, along=along, held_T=held, kept=kept)


def test_table_starts_and_stops_within_the_clip_at_the_stated_speed_and_level() -> None:
    times = np.arange(0, 6, 1 / 30)
    ends = []
    for seed in range(20):
        shift = table(times, seed)
        speed = np.linalg.norm(np.diff(shift, axis=0), axis=1) * 30
        assert shift[0] == pytest.approx([0, 0, 0])
        assert speed[0] < 0.5
        assert 10 < speed.max() < 31  # two moves may overlap
        assert not shift[:, 1].any()
        assert np.abs(np.diff(speed)).max() < 5  # no jerk
        assert np.linalg.norm(shift[-1]) < 50.1
        ends.append(shift[-1] / np.linalg.norm(shift[-1]))
    assert np.mean(ends, axis=0) @ [np.sqrt(0.5), 0, -np.sqrt(0.5)] > 0.6


def test_table_stands_right_in_the_frames_that_matter_and_goes_no_farther_than_they_allow() -> None:
    times = np.arange(0, 6, 1 / 30)
    held = (times > 2.0) & (times < 4.0)
    far = []
    for seed in range(20):
        shift = table(times, seed, reach_mm=6.0, held_T=held)
        assert shift[held].mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-9)
        assert np.linalg.norm(shift[held], axis=1).max() <= 6.0
        far.append(np.linalg.norm(shift[-1] - shift[0]))
        np.testing.assert_array_equal(shift, table(times, seed, reach_mm=6.0, held_T=held))
    assert max(far) > 20  # outside those frames it may


@pytest.fixture(scope="module")
def panning() -> list[tuple[PatientPlan, int, Scene]]:
    """Clips of a few patients in which the table moves."""
    plans = [plan_patient(PhantomConfig(patients=14, seed=4242, size=128), p) for p in range(14)]
    scenes = [(plan, c, plan_scene(plan, c)) for plan in plans for c in range(len(plan.clips))]
    return [(plan, c, scene) for plan, c, scene in scenes if scene.motion.pan_T3.any()]


def test_a_pan_keeps_the_larger_vessels_in_the_field_while_they_are_full(
    panning: list[tuple[PatientPlan, int, Scene]],
) -> None:
    ways = []
    for plan, clip, _ in panning:
        scene = plan_scene(plan, clip, "satisfactory")
        assert scene.tree is not None
        found = contrast.contrast_frames(contrast.curves(scene).filling_T)
        begin, end = found["contrast_begin"], found["contrast_end"]
        assert begin is not None
        assert end is not None
        larger = np.concatenate([v.points_N3 for v in scene.tree.vessels if v.radius_N[0] > 0.8])
        xy, _ = project(motion.displace(larger, scene.motion)[begin : end + 1], scene.view)
        assert ((xy >= 0) & (xy < scene.view.size)).all(axis=-1).mean(axis=1).min() > 0.85
        ways.append(np.linalg.norm(np.ptp(scene.motion.pan_T3, axis=0)))
    assert max(ways) > 25


def test_every_counterfactual_keeps_the_pan(panning: list[tuple[PatientPlan, int, Scene]]) -> None:
    for plan, clip, scene in panning[:2]:
        for quality in QUALITY_GROUPS:
            twin = plan_scene(plan, clip, quality)
            np.testing.assert_array_equal(twin.motion.pan_T3, scene.motion.pan_T3)
