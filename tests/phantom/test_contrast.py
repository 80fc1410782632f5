"""When contrast is where: after the catheter, near before far, and gone in the same order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from angio_ray.phantom.anatomy import Tree
from angio_ray.phantom.contrast import CONTRAST_FRAMES, contrast_frames, curves
from angio_ray.phantom.scene import Chamber, Scene
from tests.phantom import stage


def main_curve(scene: Scene) -> np.ndarray:
    return curves(scene).vessels["RCA"]


def first_above(level_TN: np.ndarray, share: float = 0.5) -> np.ndarray:
    return (level_TN >= share).argmax(axis=0)


def test_nothing_before_the_injection_and_all_full_at_its_end() -> None:
    scene = stage.scene(frames=90)
    found = curves(scene)
    before = scene.times_s <= scene.injection.start_s
    assert found.filling_T[before].max() == 0
    assert 0.95 < found.filling_T.max() <= 1
    assert found.filling_T[-1] < 0.05


def test_near_fills_before_far_at_the_stated_speed() -> None:
    scene = stage.scene(frames=300, injection={"flow_mm_s": 100.0}, times_s=np.arange(300) / 100)
    first = first_above(main_curve(scene))
    assert (np.diff(first) >= 0).all()
    travelled_s = (first[-1] - first[0]) / 100
    assert travelled_s == pytest.approx(100 / 100.0, rel=0.35)  # the front comes in steps, and blurs


def test_far_empties_last() -> None:
    level = main_curve(stage.scene(frames=90))
    last = len(level) - 1 - (level[::-1] >= 0.5).argmax(axis=0)
    assert last[-1] > last[0] + 2


def test_the_front_blurs_on_its_way() -> None:
    level = main_curve(stage.scene(frames=300, times_s=np.arange(300) / 100))
    rise = first_above(level, 0.9) - first_above(level, 0.1)
    assert rise[-1] > 1.5 * rise[0]


def test_the_beats_dilute_the_plateau_with_their_period() -> None:
    times = np.arange(600) / 100
    scene = stage.scene(frames=600, times_s=times, injection={"pulsation": 0.5, "length_s": 5.0, "start_s": 0.1})
    plateau = main_curve(scene)[120:440, 3]  # 3.2 s, four beats
    strongest = np.abs(np.fft.rfft(plateau - plateau.mean())).argmax()
    assert strongest == 3.2 / stage.PERIOD_S
    assert np.ptp(plateau) > 0.2


def test_contrast_gets_no_farther_than_it_reaches() -> None:
    level = main_curve(stage.scene(injection={"reach_mm": 40.0}))
    distance = stage.tree().vessels[0].distance_N
    assert level[:, distance < 30].max() > 0.9
    assert level[:, distance > 40].max() == 0


def test_beyond_an_occlusion_nothing_comes_or_late() -> None:
    main, branch = stage.tree().vessels
    beyond = main.distance_N > 50
    blocked = replace(main, supply_N=np.where(beyond, 0.0, 1.0))
    fed = replace(main, supply_N=np.where(beyond, 0.5, 1.0), delay_N=np.where(beyond, 1.5, 0.0))
    for vessel, most in ((blocked, 0.0), (fed, 0.5)):
        tree = Tree(artery="RCA", vessels=(vessel, branch))
        level = main_curve(stage.scene(frames=90, tree=tree))
        assert level[:, beyond].max() == pytest.approx(most, abs=0.02)
    late = first_above(level / level.max(axis=0))
    assert late[beyond].min() - late[~beyond].max() > 1.2 * 15


def test_collaterals_show_nothing_yet_at_the_fullest_frame() -> None:
    main, branch = stage.tree().vessels
    beyond = main.distance_N > 30
    fed = replace(main, supply_N=np.where(beyond, 0.7, 1.0), delay_N=np.where(beyond, 1.0, 0.0))
    scene = stage.scene(frames=90, tree=Tree(artery="RCA", vessels=(fed, branch)), injection={"length_s": 2.5})
    found = curves(scene)
    level = found.vessels["RCA"][:, beyond]
    assert level[found.filling_T.argmax()].max() < 0.1
    assert level.max() > 0.5


def test_with_a_conduit_the_tree_stays_dark() -> None:
    graft = stage.vessel("SVG", (20, 0, 60), (20, 0, 0))
    found = curves(stage.scene(conduits=(graft,)))
    assert found.vessels["RCA"].max() == 0
    assert found.vessels["SVG"].max() > 0.9
    assert found.filling_T.max() > 0.9


@pytest.mark.parametrize("nothing", [{"iodine": 0.0}, {"length_s": 0.0}])
def test_without_an_injection_nothing_fills(nothing: dict[str, float]) -> None:
    found = curves(stage.scene(injection=nothing))
    assert found.filling_T.max() == 0
    assert found.catheter_T.max() == 0
    assert contrast_frames(found.filling_T) == dict.fromkeys(CONTRAST_FRAMES)


def test_filling_weighs_by_the_volume_that_contrast_can_get_to() -> None:
    main, branch = stage.tree().vessels
    thin = replace(main, supply_N=np.full(len(main.points_N3), 0.01))
    filling = curves(stage.scene(tree=Tree(artery="RCA", vessels=(thin, branch)), frames=60)).filling_T
    share = (36.06 * 0.75**2 + 0.01 * 100 * 1.5**2) / (36.06 * 0.75**2 + 100 * 1.5**2)
    assert filling.max() == pytest.approx(share, rel=0.06)
    closed = replace(main, supply_N=np.zeros(len(main.points_N3)))
    filling = curves(stage.scene(tree=Tree(artery="RCA", vessels=(closed, branch)), frames=60)).filling_T
    assert filling.max() > 0.9  # beyond an occlusion nothing counts


def test_the_vein_comes_after_the_artery() -> None:
    sinus = Chamber(tube=stage.vessel("sinus", (0, 20, 0), (-40, 20, 0)), iodine=0.02, delay_s=3.0)
    found = curves(stage.scene(frames=120, chambers=(sinus,)))
    assert found.chambers[0].max(axis=1).argmax() > found.filling_T.argmax() + 15
    assert found.chambers[0].max() > 0.5


def test_the_muscle_stains_after_the_vessels_filled() -> None:
    found = curves(stage.scene(frames=120, injection={"blush_iodine": 0.1}))
    frames = contrast_frames(found.filling_T)
    assert found.blush_T.argmax() >= (frames["contrast_begin"] or 0)
    assert found.blush_T[: frames["first_contrast"]].max() == 0


def test_contrast_frames_follow_the_thresholds() -> None:
    filling = np.array([0, 0, 0.01, 0.02, 0.3, 0.7, 0.8, 0.75, 0.73, 0.5, 0.1, 0.017, 0.01])
    found = contrast_frames(filling)
    assert found == {
        "first_contrast": 3, "contrast_begin": 6, "contrast_end": 8, "last_contrast": 11, "best_frame": 6
    }  # fmt: skip
    assert set(contrast_frames(filling * 0.06).values()) == {None}
