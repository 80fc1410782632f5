"""The trees: connected, smooth, as wide as the literature says, with the segments that the dominance asks for."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from angio_ray.phantom import anatomy
from angio_ray.phantom.anatomy import Artery, Dominance, Tree, Vessel


@cache
def patients(dominance: Dominance = "right", female: bool = False) -> tuple[dict[Artery, Tree], ...]:
    return tuple(
        anatomy.grow_trees(np.random.default_rng(seed), female=female, dominance=dominance) for seed in range(6)
    )


def trees(dominance: Dominance = "right") -> list[Tree]:
    return [tree for patient in patients(dominance) for tree in patient.values()]


def named(tree: Tree) -> list[Vessel]:
    return [v for v in tree.vessels if "-" not in v.name]


@pytest.mark.parametrize("dominance", ["right", "left", "co"])
def test_every_branch_begins_on_its_parent_and_continues_its_path(dominance: Dominance) -> None:
    for tree in trees(dominance):
        assert tree.vessels[0].distance_N[0] == 0
        for vessel in tree.vessels[1:]:
            assert vessel.parent is not None
            mother = tree.vessel(vessel.parent)
            gaps = np.linalg.norm(mother.points_N3 - vessel.points_N3[0], axis=1)
            assert gaps.min() < 1.0
            assert vessel.distance_N[0] == pytest.approx(mother.distance_N[gaps.argmin()], abs=2 * anatomy.STEP_MM)


def test_vessels_taper_and_small_branches_end_at_half_a_millimetre() -> None:
    for tree in trees():
        for vessel in tree.vessels:
            assert vessel.radius_N[-1] < vessel.radius_N[0]
            assert 2 * vessel.radius_N.min() > 0.2
            if "-" in vessel.name:
                assert 0.25 < 2 * vessel.radius_N[-1] < 0.5


def test_samples_are_even_and_measure_the_path() -> None:
    for tree in trees():
        for vessel in tree.vessels:
            steps = np.linalg.norm(np.diff(vessel.points_N3, axis=0), axis=1)
            assert np.diff(vessel.distance_N) == pytest.approx(steps)
            assert 0.6 * anatomy.STEP_MM < steps.mean() < 1.3 * anatomy.STEP_MM


def test_trunks_have_no_kinks() -> None:
    for tree in trees():
        for vessel in named(tree):
            ahead = np.diff(vessel.points_N3[::4], axis=0)  # 3 mm pieces
            ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
            bends = np.degrees(np.arccos(np.clip((ahead[1:] * ahead[:-1]).sum(1), -1, 1)))
            assert bends.max() < 70
            if vessel.name in ("LM", "LAD", "LCX", "RCA"):
                assert np.percentile(bends, 90) < 32


@pytest.mark.parametrize(
    ("segment", "dominance", "mean_mm"),
    [
        ("LM", "right", 4.5),
        ("LAD", "right", 3.7),
        ("LCX", "right", 3.4),
        ("RCA", "right", 3.9),
        ("LCX", "left", 4.2),
        ("RCA", "left", 2.8),
    ],
)
def test_proximal_calibre_is_the_published_one(segment: str, dominance: Dominance, mean_mm: float) -> None:
    artery: Artery = "RCA" if segment == "RCA" else "LCA"
    widths = [2 * p[artery].vessel(segment).radius_N[:8].mean() for p in patients(dominance)]
    assert np.mean(widths) == pytest.approx(mean_mm, rel=0.12)
    assert np.std(widths) > 0.05  # patients differ


def test_women_have_narrower_arteries() -> None:
    men = [p["LCA"].vessel("LAD").radius_N.mean() for p in patients()]
    women = [p["LCA"].vessel("LAD").radius_N.mean() for p in patients(female=True)]
    assert np.mean(women) == pytest.approx(0.91 * np.mean(men), rel=0.03)  # Dodge 1992; same seeds, so same hearts


@pytest.mark.parametrize(
    ("dominance", "left", "right"),
    [("right", set(), {"PDA", "PLV"}), ("co", {"PLV"}, {"PDA"}), ("left", {"PDA", "PLV"}, set())],
)
def test_inferior_wall_is_fed_by_the_dominant_artery(dominance: Dominance, left: set[str], right: set[str]) -> None:
    for patient in patients(dominance):
        assert {v.name for v in patient["LCA"].vessels} & {"PDA", "PLV"} == left
        assert {v.name for v in patient["RCA"].vessels} & {"PDA", "PLV"} == right
        assert patient["LCA"].dominance == patient["RCA"].dominance == dominance


def test_most_hearts_are_right_dominant() -> None:
    rng = np.random.default_rng(0)
    drawn = [anatomy.draw_dominance(rng) for _ in range(2000)]
    assert drawn.count("right") / 2000 == pytest.approx(0.82, abs=0.04)
    assert drawn.count("left") / 2000 == pytest.approx(0.10, abs=0.03)
    assert anatomy.grow_trees(rng, female=True)["LCA"].dominance in drawn


def test_branches_stay_on_the_epicardium_and_septals_go_into_the_muscle() -> None:
    heart = anatomy._Heart(size=1.0, turn_33=np.eye(3), tortuosity=1.0)
    places = anatomy._Sway(np.random.default_rng(0)).angles(np.array([[40.0, 90.0, 1.0]]), np.random.default_rng(0))
    assert np.abs(places - (40, 90)).max() < 25
    points = np.array([[60.0, 10.0, -20.0], [10.0, -45.0, 5.0]])
    assert heart.depth(heart.settle(points, np.array([1.0, 0.7]))) == pytest.approx([1.0, 0.7])
    for tree in trees():
        for vessel in tree.vessels:
            ends = heart.depth(vessel.points_N3[[0, -1]])  # of the mean heart: patients' differ a little
            if vessel.name in ("S1", "S2"):
                assert ends[1] < ends[0] - 0.1
            elif vessel.name[0] != "S" and "-s" not in vessel.name:
                assert ends.min() > 0.78


def test_trees_fit_a_chest_and_have_many_small_branches() -> None:
    for tree in trees():
        everything = np.concatenate([v.points_N3 for v in tree.vessels])
        assert np.abs(everything).max() < 105
        assert sum("-" in v.name for v in tree.vessels) > 25


def test_same_seed_same_tree_other_seed_other_tree() -> None:
    first, again, other = (anatomy.grow_trees(np.random.default_rng(s), female=False)["LCA"] for s in (1, 1, 2))
    assert [v.name for v in first.vessels] == [v.name for v in again.vessels]
    assert all(np.array_equal(a.points_N3, b.points_N3) for a, b in zip(first.vessels, again.vessels, strict=True))
    assert not np.array_equal(first.vessels[1].points_N3[:20], other.vessels[1].points_N3[:20])


def test_unknown_vessel_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="PDA"):
        patients("left")[0]["RCA"].vessel("PDA")
