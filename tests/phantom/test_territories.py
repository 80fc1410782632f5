"""Aorta, ventricle, sinus, grafts and the arteries of other parts of the body: sizes, connections, courses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from angio_ray.phantom import anatomy, territories
from angio_ray.phantom.anatomy import Artery, Tree, Vessel
from angio_ray.phantom.carm import Floats
from angio_ray.phantom.territories import GRAFTS, TERRITORIES, GraftKind, TerritoryName


@pytest.fixture(scope="module")
def trees() -> dict[Artery, Tree]:
    return anatomy.grow_trees(np.random.default_rng(3), female=False, dominance="right")


def bend_radii(points: Floats) -> Floats:
    step = np.diff(points, axis=0)
    length = np.linalg.norm(step, axis=1)
    ahead = step / length[:, None]
    turn = np.arccos(np.clip((ahead[1:] * ahead[:-1]).sum(axis=1), -1, 1))
    return np.asarray(length[1:] / np.maximum(turn, 1e-9))


def nearest_mm(points: Floats, point: Floats) -> float:
    return float(np.linalg.norm(points - point, axis=1).min())


def test_rounding_leaves_the_ends_and_straight_lines_alone() -> None:
    line = np.linspace([0.0, 0, 0], [0.0, 30, 0], 31)
    assert territories.rounded(line, 3.0) == pytest.approx(line)
    corner = np.vstack([line, np.linspace([1.0, 30, 0], [30.0, 30, 0], 30)])
    rounded = territories.rounded(corner, 3.0)
    assert rounded[[0, -1]] == pytest.approx(corner[[0, -1]])
    assert bend_radii(rounded).min() > 2 > bend_radii(corner).min()


def test_course_goes_through_its_points_in_even_steps() -> None:
    control = np.array([(0.0, 0, 0), (10, 0, 0), (14, 8, 0), (40, 8, 5)])
    points = territories.course(control, step_mm=0.5)
    assert all(nearest_mm(points, point) < 0.3 for point in control)
    assert np.linalg.norm(np.diff(points, axis=0), axis=1) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_aorta_narrows_behind_its_sinuses_and_again_behind_the_arch(seed: int) -> None:
    aorta = territories.aorta(np.random.default_rng(seed))
    at = np.interp([12, 26, 55, 260], aorta.distance_N, 2 * aorta.radius_N)
    assert 27 < at[0] < 38
    assert 26 < at[2] < 38
    assert 18 < at[3] < 27
    assert at[0] > at[1]
    assert at[2] > at[3]
    assert aorta.points_N3[:, 2].max() > 85
    assert aorta.points_N3[-1, 2] < -100
    assert bend_radii(aorta.points_N3).min() > 9


@pytest.mark.parametrize("seed", range(6))
def test_a_patients_ostia_lie_on_the_wall_of_his_root(seed: int) -> None:
    patient = anatomy.grow_trees(np.random.default_rng(seed), female=bool(seed % 2))
    aorta = territories.aorta(np.random.default_rng(seed), patient)
    for tree in patient.values():
        off = np.linalg.norm(aorta.points_N3 - tree.ostium, axis=1) - aorta.radius_N
        assert abs(off.min()) < 6


def test_arch_branches_leave_the_arch_upwards() -> None:
    aorta = territories.aorta(np.random.default_rng(0))
    branches = territories.arch_branches(aorta, np.random.default_rng(0))
    assert [b.name for b in branches] == ["brachiocephalic", "left carotid", "left subclavian"]
    for branch in branches:
        assert nearest_mm(aorta.points_N3, branch.points_N3[0]) < 0.1
        assert branch.points_N3[-1, 2] > aorta.points_N3[:, 2].max()
    assert branches[0].distance_N[0] < branches[1].distance_N[0] < branches[2].distance_N[0]


@pytest.mark.parametrize("seed", range(5))
def test_ventricle_has_the_volume_of_an_adults_and_a_closed_apex(seed: int) -> None:
    chamber = territories.ventricle(np.random.default_rng(seed))
    axis = (anatomy.APEX - anatomy.BASE) / np.linalg.norm(anatomy.APEX - anatomy.BASE)
    millilitres = np.trapezoid(np.pi * chamber.radius_N**2, chamber.points_N3 @ axis) / 1000
    assert 80 < millilitres < 160
    assert nearest_mm(chamber.points_N3, anatomy.BASE) < 10
    assert np.linalg.norm(chamber.points_N3[-1] - anatomy.APEX) < 15
    assert chamber.radius_N[-1] < 2 < chamber.radius_N[0]
    assert chamber.distance_N.min() < 2
    assert 20 < chamber.distance_N[0] < 60


def test_coronary_sinus_widens_towards_the_right_atrium_behind() -> None:
    sinus = territories.coronary_sinus(np.random.default_rng(1))
    assert 6.5 < 2 * sinus.radius_N[-1] < 10.5
    assert sinus.radius_N[-1] > 2.5 * sinus.radius_N[0]
    assert sinus.points_N3[-1, 0] < 0 < 30 < sinus.points_N3[:, 1].max()


# ---- grafts


@pytest.mark.parametrize("kind", GRAFTS)
def test_graft_meets_the_artery_that_it_feeds(kind: GraftKind, trees: dict[Artery, Tree]) -> None:
    body, beyond, *others = territories.grafts(np.random.default_rng(5), trees, kind)
    segment = beyond.name.split(":")[1]
    native = next(v for t in trees.values() for v in t.vessels if v.name == segment)
    assert segment.startswith(kind.split()[-1])
    assert nearest_mm(native.points_N3, body.points_N3[-1]) < 0.2
    assert beyond.points_N3[0] == pytest.approx(body.points_N3[-1], abs=0.2)
    assert beyond.distance_N[0] == pytest.approx(body.distance_N[-1])
    assert beyond.parent == body.name
    assert bend_radii(body.points_N3).min() > 4
    assert body.moves_N is not None
    assert body.moves_N[0] <= 0.2
    assert body.moves_N[-1] == pytest.approx(1)
    calibre = 2 * body.radius_N.mean()
    assert 1.8 < calibre < 2.8 if kind == "mammary to LAD" else 2.9 < calibre < 5.2
    assert all(v.parent in {body.name, beyond.name, *(o.name for o in others)} for v in others)


@pytest.mark.parametrize("kind", GRAFTS)
def test_graft_fills_only_what_lies_beyond_its_anastomosis(kind: GraftKind, trees: dict[Artery, Tree]) -> None:
    body, beyond, *others = territories.grafts(np.random.default_rng(5), trees, kind)
    segment = beyond.name.split(":")[1]
    native = next(v for t in trees.values() for v in t.vessels if v.name == segment)
    at = int(np.argmin(np.linalg.norm(native.points_N3 - body.points_N3[-1], axis=1)))
    assert beyond.points_N3 == pytest.approx(native.points_N3[at:])
    proximal = {
        v.name
        for t in trees.values()
        for v in t.vessels
        if v.parent == segment and np.argmin(np.linalg.norm(native.points_N3 - v.points_N3[0], axis=1)) < at - 2
    }
    filled = {v.name.removeprefix(f"{body.name}:") for v in others}
    assert proximal
    assert not proximal & filled
    assert not {"LM", "LCX", "RCA"} & filled
    names = [v.name for v in (body, beyond, *others)]
    assert len(set(names)) == len(names)
    assert not set(names) & {v.name for t in trees.values() for v in t.vessels}


def test_graft_goes_round_an_occlusion(trees: dict[Artery, Tree]) -> None:
    def occluded(vessel: Vessel) -> Vessel:
        return replace(vessel, supply_N=np.zeros(len(vessel.points_N3)), delay_N=np.ones(len(vessel.points_N3)))

    blocked = {a: replace(t, vessels=tuple(occluded(v) for v in t.vessels)) for a, t in trees.items()}
    _, beyond, *_ = territories.grafts(np.random.default_rng(5), blocked, "vein to LAD")
    assert beyond.supply_N is None
    assert beyond.delay_N is None


def test_no_graft_to_a_segment_that_the_patient_lacks(trees: dict[Artery, Tree]) -> None:
    lca = trees["LCA"]
    bare: dict[Artery, Tree] = {
        "LCA": replace(lca, vessels=tuple(v for v in lca.vessels if not v.name.startswith("OM")))
    }
    with pytest.raises(ValueError, match="vein to OM"):
        territories.grafts(np.random.default_rng(0), bare, "vein to OM")
    for seed in range(8):
        assert not territories.grafts(np.random.default_rng(seed), bare)[1].name.startswith("SVG:OM")


# ---- other parts of the body

_TRUNK_MM: dict[TerritoryName, tuple[float, float]] = {
    "femoral": (7, 10),
    "iliac": (14, 20),
    "radial": (4, 5.5),
    "renal": (4.8, 7),
    "cerebral": (4.5, 7.6),
    "mammary": (2.2, 3.2),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", TERRITORIES)
def test_territory_is_one_connected_tapering_tree_of_the_right_size(name: TerritoryName, seed: int) -> None:
    place = territories.territory(name, np.random.default_rng(seed))
    by_name = {v.name: v for v in place.vessels}
    assert len(by_name) == len(place.vessels) > 15
    trunk, *branches = place.vessels
    low, high = _TRUNK_MM[name]
    assert low < 2 * trunk.radius_N[0] < high
    assert trunk.parent is None
    assert trunk.distance_N[0] == 0
    for branch in branches:
        assert branch.parent is not None
        mother = by_name[branch.parent]
        gaps = np.linalg.norm(mother.points_N3 - branch.points_N3[0], axis=1)
        assert gaps.min() < 0.05
        assert branch.distance_N[0] == pytest.approx(mother.distance_N[gaps.argmin()])
        assert branch.radius_N[0] <= 1.45 * mother.radius_N[gaps.argmin()] + 0.05
        assert branch.radius_N[-1] < branch.radius_N[0]
        assert (np.diff(branch.distance_N) > 0).all()
    thin = [v for v in branches if v.radius_N[-1] < 0.7]
    assert len(thin) > 0.5 * len(branches)


@pytest.mark.parametrize("name", TERRITORIES)
def test_territory_lies_in_the_field_with_its_catheter_in_it(name: TerritoryName) -> None:
    for seed in range(4):
        place = territories.territory(name, np.random.default_rng(seed))
        points = np.concatenate([v.points_N3 for v in place.vessels])
        weight = np.concatenate([v.radius_N**2 for v in place.vessels])
        centre = (points * weight[:, None]).sum(axis=0) / weight.sum()
        assert np.linalg.norm(centre) < 30
        tip = place.catheter.points_N3[-1]
        inside = [np.linalg.norm(v.points_N3 - tip, axis=1) - v.radius_N for v in place.vessels]
        assert min(float(gap.min()) for gap in inside) < 0
        assert abs(place.primary_deg) < 100
        assert abs(place.secondary_deg) < 35


@pytest.mark.parametrize("name", TERRITORIES)
def test_wide_vessels_have_no_kinks(name: TerritoryName) -> None:
    for seed in range(4):
        for vessel in territories.territory(name, np.random.default_rng(seed)).vessels:
            if vessel.radius_N[0] > 1.2:
                assert (bend_radii(vessel.points_N3) > 0.6 * vessel.radius_N[1:-1]).all(), vessel.name


def test_same_seed_same_territory_and_no_two_alike() -> None:
    first, again, other = (territories.territory("renal", np.random.default_rng(s)) for s in (1, 1, 2))
    assert len(first.vessels) == len(again.vessels)
    for a, b in zip(first.vessels, again.vessels, strict=True):
        assert np.array_equal(a.points_N3, b.points_N3)
        assert np.array_equal(a.radius_N, b.radius_N)
    assert not np.array_equal(first.vessels[0].points_N3, other.vessels[0].points_N3)
