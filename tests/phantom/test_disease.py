"""Disease: the stated percent in the calibre, nothing behind an occlusion, calcium in the wall."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from angio_ray.phantom import anatomy, carm, disease
from angio_ray.phantom.anatomy import Artery, Tree
from angio_ray.views import VIEWS


@cache
def healthy() -> dict[Artery, Tree]:
    return anatomy.grow_trees(np.random.default_rng(5), female=False, dominance="right")


def narrowed(
    percent: float, *, length_mm: float = 12.0, seed: int = 0, eccentricity: float = 0.0, collaterals: bool = False
) -> Tree:
    return disease.add_stenosis(
        healthy()["RCA"],
        "RCA",
        at_mm=40.0,
        percent=percent,
        length_mm=length_mm,
        rng=np.random.default_rng(seed),
        eccentricity=eccentricity,
        collaterals=collaterals,
    )


@pytest.mark.parametrize("percent", [0, 20, 50, 75, 99, 100])
def test_throat_has_exactly_the_stated_percent_and_is_the_narrowest(percent: float) -> None:
    for seed in range(5):
        tree = narrowed(percent, seed=seed, eccentricity=0.8)
        vessel, found = tree.vessel("RCA"), tree.stenoses[-1]
        assert vessel.healthy_radius_N is not None
        lost = 100 * (1 - vessel.radius_N / vessel.healthy_radius_N)
        assert lost[found.index] == pytest.approx(percent)
        assert lost.max() == pytest.approx(percent)
        assert (found.segment, found.percent, found.length_mm) == ("RCA", percent, 12.0)
        assert vessel.distance_N[found.index] == pytest.approx(40, abs=anatomy.STEP_MM)


def test_lesion_has_its_length_and_smooth_shoulders() -> None:
    tree = narrowed(80, length_mm=16)
    vessel = tree.vessel("RCA")
    assert vessel.healthy_radius_N is not None
    lost = 1 - vessel.radius_N / vessel.healthy_radius_N
    inside = vessel.distance_N[lost > 0.01]
    assert 11 < inside[-1] - inside[0] <= 16
    assert np.abs(np.diff(lost)).max() < 0.3
    assert np.array_equal(vessel.radius_N[:40], healthy()["RCA"].vessel("RCA").radius_N[:40])


def test_eccentric_plaque_moves_the_lumen_to_one_wall_and_leaves_the_outer_wall() -> None:
    tree, central = narrowed(80, eccentricity=1.0), narrowed(80)
    before, at = healthy()["RCA"].vessel("RCA"), tree.stenoses[0].index
    moved = np.linalg.norm(tree.vessel("RCA").points_N3[at] - before.points_N3[at])
    assert moved == pytest.approx(0.8 * before.radius_N[at])
    assert np.array_equal(central.vessel("RCA").points_N3, before.points_N3)


def test_second_narrowing_keeps_the_first() -> None:
    tree = narrowed(70)
    rng = np.random.default_rng(1)
    tree = disease.add_stenosis(tree, "RCA", at_mm=70, percent=40, length_mm=8, rng=rng)
    vessel = tree.vessel("RCA")
    assert vessel.healthy_radius_N is not None
    for found, percent in zip(tree.stenoses, (70, 40), strict=True):
        assert 1 - vessel.radius_N[found.index] / vessel.healthy_radius_N[found.index] == pytest.approx(percent / 100)


def test_nothing_gets_past_an_occlusion() -> None:
    tree = narrowed(100)
    at = tree.stenoses[0].index
    trunk = tree.vessel("RCA")
    assert trunk.supply_N is not None
    assert trunk.supply_N[:at].min() == 1
    assert trunk.supply_N[at:].max() == 0
    below = disease.descendants(tree, "RCA", at)
    assert {"PDA", "PLV"} <= set(below)
    assert "conus" not in below  # leaves before
    for vessel in tree.vessels[1:]:
        supply = np.ones(1) if vessel.supply_N is None else vessel.supply_N
        assert supply.max() == (0 if vessel.name in below else 1)


def test_collaterals_fill_the_distal_part_late_and_thinly() -> None:
    tree = narrowed(100, collaterals=True)
    at = tree.stenoses[0].index
    trunk, end = tree.vessel("RCA"), tree.vessel("PDA")
    assert trunk.supply_N is not None
    assert end.supply_N is not None
    assert end.delay_N is not None
    assert trunk.supply_N[at : at + 8].max() == 0  # the stump's other side stays empty
    assert 0.3 <= end.supply_N[-1] <= 0.7
    assert 1.0 <= end.delay_N[-1] <= 2.5


def test_descendants_follow_the_branching() -> None:
    tree = healthy()["LCA"]
    assert set(disease.descendants(tree, "LM", 0)) == {v.name for v in tree.vessels} - {"LM"}
    ends = disease.descendants(tree, "LCX", len(tree.vessel("LCX").points_N3) - 1)
    assert not {"LAD", "OM1"} & set(ends)


def test_percent_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="not 120"):
        narrowed(120)


def test_specks_are_short_and_lie_in_the_wall() -> None:
    tree = healthy()["LCA"]
    vessel = tree.vessel("LAD")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        sick = disease.add_calcification(tree, "LAD", start_mm=10, length_mm=20, kind="specks", rng=rng)
        calcium = sick.calcifications[0]
        assert 3 <= len(calcium.lines) <= 12
        assert 0.05 <= calcium.attenuation <= 0.35
        for line in calcium.lines:
            assert 0.3 < np.linalg.norm(np.diff(line, axis=0), axis=1).sum() < 4.5
            gaps = np.linalg.norm(vessel.points_N3[None] - line[:, None], axis=2)
            assert gaps.min(1) == pytest.approx(1.08 * vessel.radius_N[gaps.argmin(1)], abs=0.35)
            along = vessel.distance_N[gaps.argmin(1)] - vessel.distance_N[0]
            assert (along > 8).all()
            assert (along < 33).all()


def test_tram_track_runs_along_opposite_walls_that_stay_apart_in_the_usual_views() -> None:
    tree = healthy()["LCA"]
    rng = np.random.default_rng(1)
    sick = disease.add_calcification(tree, "LAD", start_mm=5, length_mm=25, kind="tram track", rng=rng)
    lines = sick.calcifications[0].lines
    middle = tree.vessel("LAD")
    sides = [line - middle.points_N3[np.linalg.norm(middle.points_N3 - line[0], axis=1).argmin()] for line in lines]
    one, other = sides[0][0], sides[-1][0]
    assert one @ other < -0.5 * np.linalg.norm(one) * np.linalg.norm(other)
    for primary, secondary in VIEWS["LCA"].values():
        right, down, _ = carm.axes(primary, secondary)
        apart = one - other
        assert np.hypot(apart @ right, apart @ down) > 0.5 * np.linalg.norm(apart)


def test_about_half_of_the_patients_are_sick_a_third_calcified_and_lesions_spread() -> None:
    drawn = [disease.add_disease(healthy(), np.random.default_rng(seed)) for seed in range(1000)]
    lesions = [[s for tree in patient.values() for s in tree.stenoses] for patient in drawn]
    calcified = [any(tree.calcifications for tree in patient.values()) for patient in drawn]
    sick = [bool(found) for found in lesions]
    assert np.mean(sick) == pytest.approx(0.5, abs=0.05)
    assert np.mean(calcified) == pytest.approx(0.35, abs=0.05)
    assert np.mean(calcified, where=sick) > 1.4 * np.mean(calcified, where=~np.array(sick))
    percents = np.array([s.percent for found in lesions for s in found])
    assert percents.min() >= 1
    assert 0.05 < np.mean(percents < 20) < 0.25
    assert 0.02 < np.mean(percents == 100) < 0.15
    assert np.std(percents) > 15
    lengths = np.array([s.length_mm for found in lesions for s in found])
    assert lengths.min() >= 4
    assert lengths.max() <= 25


def test_drawn_lesions_all_keep_their_percent() -> None:
    for seed in range(150):
        for tree in disease.add_disease(healthy(), np.random.default_rng(seed), p_stenosis=1.0).values():
            for found in tree.stenoses:
                vessel = tree.vessel(found.segment)
                assert vessel.healthy_radius_N is not None
                kept = vessel.radius_N[found.index] / vessel.healthy_radius_N[found.index]
                assert 100 * (1 - kept) == pytest.approx(found.percent)


def test_shares_can_be_set_to_none_and_all() -> None:
    rng = np.random.default_rng(0)
    clean = disease.add_disease(healthy(), rng, p_stenosis=0, p_calcified=0)
    assert not any(tree.stenoses or tree.calcifications for tree in clean.values())
    for seed in range(10):
        shut = disease.add_disease(healthy(), np.random.default_rng(seed), p_stenosis=1, p_occlusion=1, p_calcified=1)
        found = [s.percent for tree in shut.values() for s in tree.stenoses if s.segment != "LM"]
        assert not found or max(found) == 100


def test_all_patients_can_be_calcified_the_healthy_ones_too() -> None:
    for share, sick in ((1.0, 0.0), (1.0, 0.5), (0.9, 0.5)):
        drawn = [disease.add_disease(healthy(), np.random.default_rng(i), p_stenosis=sick, p_calcified=share) for i in range(200)]
        found = np.mean([any(tree.calcifications for tree in trees.values()) for trees in drawn])
        assert found == 1 if share == 1 else abs(found - share) < 0.06


def test_healthy_trees_stay_as_they_were() -> None:
    before = [v.radius_N.copy() for v in healthy()["LCA"].vessels]
    disease.add_disease(healthy(), np.random.default_rng(3), p_stenosis=1, p_calcified=1)
    assert all(np.array_equal(a, v.radius_N) for a, v in zip(before, healthy()["LCA"].vessels, strict=True))
    assert not healthy()["LCA"].stenoses
