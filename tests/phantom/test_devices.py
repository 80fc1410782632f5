"""Catheters sit where they should, devices have their sizes, and what hides the vessels is counted right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from angio_ray.phantom import anatomy, devices, territories
from angio_ray.phantom.anatomy import Artery, Stenosis, Tree, Vessel
from angio_ray.phantom.carm import Floats, View, axes, project
from angio_ray.phantom.devices import OBSTRUCTIONS, Access, CatheterStyle, Obstruction
from angio_ray.phantom.scene import Device


@pytest.fixture(scope="module")
def trees() -> dict[Artery, Tree]:
    return anatomy.grow_trees(np.random.default_rng(3), female=False, dominance="right")


def view_of(tree: Tree, primary: float = 0.0, secondary: float = 0.0) -> View:
    """The tree in the middle of a field of 140 mm."""
    points = np.concatenate([v.points_N3 for v in tree.vessels])
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    right, down, _ = axes(primary, secondary)
    scale = 1000 / 750 / 0.37
    return View(
        name="test",
        primary_deg=primary,
        secondary_deg=secondary,
        source_to_detector_mm=1000.0,
        source_to_patient_mm=750.0,
        pitch_mm=0.37,
        size=512,
        centre_px=(256.0 - middle @ right * scale, 256.0 - middle @ down * scale),
    )


def straight_tree() -> Tree:
    """One vessel of 80 mm along x through the isocentre, another of 40 mm that runs out of the picture."""
    along = np.linspace(-40, 40, 81)
    line = np.stack([along, 0 * along, 0 * along], axis=1)
    far = line[:41] + np.array([400.0, 0, 0])
    vessels = (
        Vessel(name="RCA", points_N3=line, radius_N=np.ones(81), distance_N=along + 40),
        Vessel(name="PDA", points_N3=far, radius_N=np.ones(41), distance_N=along[:41] + 40),
    )
    return Tree(artery="RCA", vessels=vessels)


def front_view() -> View:
    return View(
        name="test",
        primary_deg=0.0,
        secondary_deg=0.0,
        source_to_detector_mm=1000.0,
        source_to_patient_mm=750.0,
        pitch_mm=0.4,
        size=512,
        centre_px=(256.0, 256.0),
    )


def square(low_x: float, high_x: float) -> Floats:
    return np.array([(low_x, 0, -20), (high_x, 0, -20), (high_x, 0, 20), (low_x, 0, 20)], float)


# ---- catheters

_ENGAGED: tuple[tuple[CatheterStyle, Artery], ...] = (
    ("left", "LCA"),
    ("extra backup", "LCA"),
    ("left amplatz", "LCA"),
    ("right", "RCA"),
    ("right amplatz", "RCA"),
)


@pytest.mark.parametrize("access", devices.ACCESSES)
@pytest.mark.parametrize(("style", "artery"), _ENGAGED)
def test_catheter_seats_in_the_ostium_and_comes_from_outside(
    style: CatheterStyle, artery: Artery, access: Access, trees: dict[Artery, Tree]
) -> None:
    ostium = trees[artery].ostium
    tube = devices.catheter(ostium, np.random.default_rng(1), style=style, access=access)
    assert np.linalg.norm(tube.points_N3[-1] - ostium) < 3
    assert np.linalg.norm(tube.points_N3[0] - ostium) > 100
    assert (tube.points_N3[0, 2] < -100) == (access == "femoral")
    assert 1.6 < 2 * tube.radius_N.max() < 2.1  # 5 to 6 French
    step = np.diff(tube.points_N3, axis=0)
    length = np.linalg.norm(step, axis=1)
    turn = np.arccos(np.clip((step[1:] * step[:-1]).sum(axis=1) / length[1:] / length[:-1], -1, 1))
    assert (length[1:] / np.maximum(turn, 1e-9)).min() > 2
    assert tube.moves_N is not None
    assert tube.moves_N[-1] == 1
    assert tube.moves_N[0] == 0


@pytest.mark.parametrize("artery", ["LCA", "RCA"])
def test_catheter_stays_in_the_aorta(artery: Artery) -> None:
    inside = []
    for seed in range(6):
        patient = anatomy.grow_trees(np.random.default_rng(seed), female=bool(seed % 2))
        aorta = territories.aorta(np.random.default_rng(seed), patient)
        style: CatheterStyle = "left" if artery == "LCA" else "right"
        tube = devices.catheter(patient[artery].ostium, np.random.default_rng(seed), style=style, access="femoral")
        root = tube.points_N3[(tube.distance_N > 0.5 * tube.distance_N[-1]) & (tube.points_N3[:, 2] < 80)]
        gap = np.linalg.norm(root[:, None] - aorta.points_N3[None], axis=2) - aorta.radius_N
        inside.append((gap.min(axis=1) < 1.5).mean())
    assert np.mean(inside) > 0.85


def test_pigtail_goes_round_and_through_the_valve() -> None:
    middle = anatomy.BASE + 0.55 * (anatomy.APEX - anatomy.BASE)
    tube = devices.catheter(middle, np.random.default_rng(2), style="pigtail")
    from_tip = tube.distance_N[-1] - tube.distance_N
    loop = tube.points_N3[from_tip < 26]
    ahead = np.diff(loop, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    turned = np.arccos(np.clip((ahead[1:] * ahead[:-1]).sum(axis=1), -1, 1)).sum()
    assert turned > 1.2 * np.pi
    assert (np.linalg.norm(loop - middle, axis=1) < 8.5).all()
    assert np.linalg.norm(tube.points_N3 - anatomy.BASE, axis=1).min() < 8


@pytest.mark.parametrize("kind", territories.GRAFTS)
def test_graft_catheter_reaches_the_mouth(kind: territories.GraftKind, trees: dict[Artery, Tree]) -> None:
    mouth = territories.grafts(np.random.default_rng(4), trees, kind)[0].points_N3[0]
    for access in devices.ACCESSES:
        tube = devices.catheter(mouth, np.random.default_rng(4), style="graft", access=access)
        assert np.linalg.norm(tube.points_N3[-1] - mouth) < 5


@pytest.mark.parametrize("branch", ["LAD", "LCX"])
def test_catheter_slips_on_into_a_branch(branch: str, trees: dict[Artery, Tree]) -> None:
    tree = trees["LCA"]
    origin = tree.vessel(branch).points_N3[:4]
    tube = devices.catheter(tree.ostium, np.random.default_rng(1), style="left", further=origin[[0, 3]])
    assert np.linalg.norm(tube.points_N3[-1] - origin[3]) < 0.5
    assert np.linalg.norm(tube.points_N3 - tree.ostium, axis=1).min() < 3


# ---- in the arteries


@pytest.mark.parametrize("artery", ["LCA", "RCA"])
def test_guide_wire_runs_in_the_lumen_with_a_denser_tip(artery: Artery, trees: dict[Artery, Tree]) -> None:
    tree = trees[artery]
    lumen = np.concatenate([v.points_N3 for v in tree.vessels])
    for seed in range(4):
        wire = devices.guide_wire(tree, np.random.default_rng(seed))
        shaft, tip, again = wire.lines
        assert wire.moves == 1
        assert wire.width_mm == pytest.approx(0.36)
        assert shaft[0] == pytest.approx(tree.ostium)
        assert max(float(np.linalg.norm(lumen - p, axis=1).min()) for p in shaft) < 1.5
        assert territories.path_mm(shaft)[-1] > 50
        assert territories.path_mm(tip)[-1] == pytest.approx(30, abs=1.5)
        assert np.array_equal(tip, again)
        assert np.array_equal(tip[-1], shaft[-1])


def test_balloon_has_two_markers_or_a_body_of_its_size(trees: dict[Artery, Tree]) -> None:
    for seed in range(6):
        marks = devices.balloon(trees["LCA"], np.random.default_rng(seed), inflated=False)
        full = devices.balloon(trees["LCA"], np.random.default_rng(seed), inflated=True)
        apart = float(np.linalg.norm(marks.lines[0][0] - marks.lines[1][0]))
        assert len(marks.lines) == 2
        assert 8 < apart < 20.5
        (body,) = full.lines
        assert 2.5 <= full.width_mm <= 3.5
        assert 10 < territories.path_mm(body)[-1] < 20.5
        assert marks.moves == full.moves == 1


def test_balloon_lies_on_its_wire_at_the_worst_narrowing(trees: dict[Artery, Tree]) -> None:
    lcx = trees["LCA"].vessel("LCX")
    at = len(lcx.points_N3) // 3
    mild = Stenosis(segment="LAD", percent=40.0, length_mm=8.0, index=60)
    worst = Stenosis(segment="LCX", percent=80.0, length_mm=8.0, index=at)
    tree = replace(trees["LCA"], stenoses=(mild, worst))
    for seed in range(4):
        wire = devices.guide_wire(tree, np.random.default_rng(seed))
        assert np.linalg.norm(wire.lines[0] - lcx.points_N3[at], axis=1).min() < 1.5
        (body,) = devices.balloon(tree, np.random.default_rng(9), inflated=True, wire=wire).lines
        assert np.linalg.norm(body.mean(axis=0) - lcx.points_N3[at]) < 3
        assert max(float(np.linalg.norm(wire.lines[0] - p, axis=1).min()) for p in body) < 0.01


def test_stent_lines_the_wall(trees: dict[Artery, Tree]) -> None:
    mesh = devices.stent(trees["RCA"], np.random.default_rng(0))
    centre = np.stack([ring[:-1].mean(axis=0) for ring in mesh.lines])
    radius = np.linalg.norm(mesh.lines[0][:-1] - centre[0], axis=1)
    assert radius.min() > 1.0
    assert radius.max() < 2.8
    assert 10 < territories.path_mm(centre)[-1] < 34
    assert mesh.attenuation * mesh.width_mm < 0.05  # next to invisible


# ---- in and on the chest

_MAKERS: tuple[Callable[[np.random.Generator], Device | tuple[Device, ...]], ...] = (
    devices.sternal_wires,
    devices.surgical_clips,
    devices.ecg_leads,
    devices.pacemaker,
    devices.spinal_implant,
    devices.prosthetic_valve,
    devices.icd_coil,
    devices.loop_recorder,
    devices.echo_probe,
    devices.temperature_probe,
    devices.impella,
    devices.balloon_pump,
)


@pytest.mark.parametrize("make", _MAKERS, ids=lambda m: m.__name__)
def test_device_is_finite_near_the_chest_and_the_same_for_the_same_seed(
    make: Callable[[np.random.Generator], Device | tuple[Device, ...]],
) -> None:
    for seed in range(5):
        made, again = (make(np.random.default_rng(seed)) for _ in range(2))
        found, twice = ((d,) if isinstance(d, Device) else d for d in (made, again))
        for device, same in zip(found, twice, strict=True):
            outlines = (*device.lines, *device.plates)
            assert outlines
            for points, same_points in zip(outlines, (*same.lines, *same.plates), strict=True):
                assert points.shape[1] == 3
                assert len(points) >= 2
                assert np.isfinite(points).all()
                assert (np.abs(points) < 260).all()
                assert np.array_equal(points, same_points)
            assert 0.02 < device.attenuation < 7
            assert 0.1 < device.width_mm < 15


def test_pacemaker_has_the_leads_asked_for_and_one_ends_at_the_apex_of_the_right_ventricle() -> None:
    for leads in (1, 2):
        can, wires, tips = devices.pacemaker(np.random.default_rng(1), leads=leads)
        assert len(wires.lines) == leads
        assert len(tips.lines) == 2 * leads
        assert can.attenuation >= 2.5
        assert can.moves == 0
        assert wires.moves > 0.5
        assert can.plates[0][:, 0].mean() > 50  # upper left chest
        assert np.linalg.norm(wires.lines[0][-1] - np.array([42, -36, -50])) < 15


def test_spinal_implant_lies_behind_the_heart_and_sternal_wires_in_front() -> None:
    implant = devices.spinal_implant(np.random.default_rng(0))
    assert min(float(line[:, 1].min()) for device in implant for line in device.lines) > 60
    wires = devices.sternal_wires(np.random.default_rng(0))
    assert max(float(line[:, 1].max()) for line in wires.lines) < -65


def test_what_is_worn_in_every_clip_hides_next_to_nothing(trees: dict[Artery, Tree]) -> None:
    rng = np.random.default_rng(0)
    worn = (
        devices.sternal_wires(rng),
        devices.surgical_clips(rng),
        *devices.ecg_leads(rng),
        *devices.pacemaker(rng),
        devices.guide_wire(trees["LCA"], rng),
        devices.stent(trees["LCA"], rng),
    )
    assert devices.covered_share(worn, trees["LCA"], view_of(trees["LCA"], -25, 20)) < 0.1


# ---- in front of the vessels


def test_covered_share_is_the_share_of_the_length_in_the_picture() -> None:
    plate = Device(name="plate", plates=(square(-100, -20),), attenuation=5.0)
    # the near quarter of the vessel in the picture; the one outside does not count
    assert devices.covered_share([plate], straight_tree(), front_view()) == pytest.approx(0.25, abs=0.02)
    both = [plate, Device(name="plate", plates=(square(0, 100),), attenuation=5.0)]
    assert devices.covered_share(both, straight_tree(), front_view()) == pytest.approx(0.75, abs=0.02)
    assert devices.covered_share([], straight_tree(), front_view()) == 0


def test_neither_faint_things_nor_wires_hide_a_vessel_but_a_thick_rod_does() -> None:
    tree, view = straight_tree(), front_view()
    line = np.array([(-40.0, 0, 0), (40.0, 0, 0)])
    pad = Device(name="pad", plates=(square(-100, 100),), attenuation=1.5)
    wire = Device(name="wire", lines=(line,), width_mm=0.9, attenuation=5.0)
    rod = Device(name="rod", lines=(line,), width_mm=5.5, attenuation=5.0)
    assert devices.covered_share([pad, wire], tree, view) == 0
    assert devices.covered_share([rod], tree, view) > 0.95


def test_line_hides_as_far_as_it_is_wide() -> None:
    tree, view = straight_tree(), front_view()
    across = np.array([(0.0, 0, -30), (0.0, 0, 30)])
    rod = Device(name="rod", lines=(across,), width_mm=8.0, attenuation=5.0)
    assert devices.covered_share([rod], tree, view) == pytest.approx(8 / 80, abs=0.03)


@pytest.mark.parametrize("kind", OBSTRUCTIONS)
def test_obstruction_hides_what_was_asked_for(kind: Obstruction, trees: dict[Artery, Tree]) -> None:
    for artery, angles, share in (("LCA", (-25, 25), 0.5), ("RCA", (35, 0), 0.4)):
        tree = trees[artery]  # type: ignore[index]
        view = view_of(tree, *angles)
        found = devices.obstructing(tree, view, np.random.default_rng(7), share, kind=kind)
        assert share <= devices.covered_share(found, tree, view) < 1
        assert all(d.moves == 0 for d in found)


def test_nothing_that_hides_is_larger_than_what_there_is(trees: dict[Artery, Tree]) -> None:
    """Cages are no wider than a vertebra's body, generators than the largest sold, rods not thick."""
    view = view_of(trees["LCA"], -25, 25)
    wide: dict[str, list[float]] = {}
    for seed in range(6):
        for kind in ("generator", "spinal plates"):
            for d in devices.obstructing(trees["LCA"], view, np.random.default_rng(seed), 0.6, kind=kind):
                sizes = [float(np.linalg.norm(p - p.mean(axis=0), axis=1).max()) * 2 for p in d.plates]
                wide.setdefault(d.name, []).extend(sizes or [d.width_mm])
    assert max(wide["vertebral cages"]) < 40  # corner to corner
    assert max(wide["pulse generator"]) < 95
    assert max(wide["spinal rods"]) < 7.5


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_some_obstruction_is_found_for_any_share(share: float, trees: dict[Artery, Tree]) -> None:
    view = view_of(trees["RCA"], -30, 0)
    for seed in range(4):
        found = devices.obstructing(trees["RCA"], view, np.random.default_rng(seed), share)
        assert devices.covered_share(found, trees["RCA"], view) >= share


def test_obstruction_covers_in_its_own_view_and_leaves_another_freer(trees: dict[Artery, Tree]) -> None:
    tree = trees["LCA"]
    here, there = view_of(tree, -30, 25), view_of(tree, 45, -25)
    found = devices.obstructing(tree, here, np.random.default_rng(1), 0.6, kind="generator")
    assert devices.covered_share(found, tree, there) < 0.3
    centre, _ = project(found[0].plates[0].mean(axis=0), here)
    assert ((centre > 0) & (centre < 512)).all()


def test_obstruction_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="share"):
        devices.obstructing(straight_tree(), front_view(), np.random.default_rng(0), 1.2)
