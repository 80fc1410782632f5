"""How vessels join: no slit, no dark knot, whichever way one looks at a tree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from angio_ray.phantom import anatomy, joints
from angio_ray.phantom.anatomy import Artery, Vessel
from angio_ray.phantom.carm import View, project
from angio_ray.phantom.territories import TerritoryName, territory
from angio_ray.phantom.tubes import Tube, Tubes
from angio_ray.views import VIEWS
from tests.phantom import stage

NEAR = 12
"""Samples of a branch, from its origin, along which its joint is measured."""


def seen(primary_deg: float, secondary_deg: float, vessels: tuple[Vessel, ...], size: int = 512) -> View:
    """That direction, with the vessels in the middle of the picture."""
    plain = replace(stage.view(size), primary_deg=primary_deg, secondary_deg=secondary_deg)
    middle = np.mean([v.points_N3.mean(axis=0) for v in vessels], axis=0)
    x, y = project(middle, replace(plain, centre_px=(0.0, 0.0)))[0]
    return replace(plain, centre_px=(size / 2 - x, size / 2 - y))


def shadow(vessel: Vessel, view: View) -> Tube:
    xy, scale = project(vessel.points_N3[None], view)
    step = np.linalg.norm(np.diff(vessel.points_N3, axis=0), axis=1) * scale[:, 1:]
    radius = vessel.radius_N[None]
    return Tube(xy_TN2=xy, step_px_TN=step, radius_px_TN=radius * scale, radius_mm_TN=radius)


def drawn(vessels: tuple[Vessel, ...], view: View) -> np.ndarray:
    """Lumen along the beam, mm."""
    caps = joints.ends(vessels)
    whole = (*vessels, *caps.values())
    tubes = Tubes([shadow(v, view) for v in whole], view.size)
    own = joints.outside(vessels, caps, tubes, view)
    return tubes.draw(0, [np.ones(len(v.points_N3)) for v in whole], own)


def along_branches(vessels: tuple[Vessel, ...], view: View, least_mm: float) -> np.ndarray:
    """Per larger branch, the least lumen along its first samples, in its own diameters."""
    picture, by_name, found = drawn(vessels, view), {v.name: v for v in vessels}, []
    for vessel in vessels:
        parent = by_name.get(vessel.parent or "")
        if parent is None or vessel.radius_N[0] < least_mm:
            continue
        column, row = project(vessel.points_N3[:NEAR], view)[0].round().astype(int).T
        if min(column.min(), row.min()) >= 2 and max(column.max(), row.max()) < view.size - 2:
            found.append((picture[row, column] / (2 * vessel.radius_N[:NEAR])).min())
    return np.array(found)


@pytest.mark.parametrize("artery", ["LCA", "RCA"])
def test_no_coronary_joint_looks_like_a_narrowing(artery: Artery) -> None:
    measured = []
    for seed in range(5):
        vessels = anatomy.grow_trees(np.random.default_rng(seed), female=seed % 2 == 0)[artery].vessels
        for angles in VIEWS[artery].values():
            measured.append(along_branches(vessels, seen(*angles, vessels[:3]), 0.8))
    assert len(np.concatenate(measured)) > 40
    assert np.concatenate(measured).min() > 0.85


@pytest.mark.parametrize("name", ["femoral", "iliac", "renal", "cerebral"])
def test_no_joint_elsewhere_breaks(name: TerritoryName) -> None:
    for seed in range(4):
        filmed = territory(name, np.random.default_rng(seed))
        view = seen(filmed.primary_deg, filmed.secondary_deg, filmed.vessels[:3])
        assert along_branches(filmed.vessels, view, 1.5).min(initial=1.0) > 0.8


def test_what_branch_and_parent_share_counts_once() -> None:
    main, branch = stage.tree().vessels
    view = seen(0, 0, (main,))
    tubes = Tubes([shadow(v, view) for v in (main, branch)], view.size)
    own = joints.outside((main, branch), {}, tubes, view)
    begin = len(main.points_N3)
    assert own[tubes.at < begin].min() == 1
    assert own[(tubes.at >= begin) & (tubes.at < begin + 0.5)].max() == 0
    assert own[tubes.at > begin + 5].min() == 1  # 3.75 mm on, clear of a lumen 1.5 mm wide on each side
    picture = drawn((main, branch), view)
    row, column = np.array(view.centre_px).astype(int)[::-1]
    assert picture[row - 20 : row + 40, column].max() < 3.0 * 1.08


@pytest.mark.parametrize("angle_deg", [0, 30, 60, 90])
def test_a_vessel_that_turns_where_it_divides_stays_whole(angle_deg: float) -> None:
    turn = np.deg2rad(angle_deg)
    main = stage.vessel("LM", (0, 0, 30), (0, 0, 0))
    far = (30 * np.sin(turn), 0.0, -30 * np.cos(turn))
    branch = replace(stage.vessel("LAD", (0, 0, 0), far), parent="LM")
    picture = drawn((main, branch), seen(0, 0, (main, branch)))
    volume = picture.sum() / seen(0, 0, (main,)).px_per_mm ** 2
    assert volume == pytest.approx(np.pi * 1.5**2 * 60, rel=0.04)
    assert along_branches((main, branch), seen(0, 0, (main, branch)), 1.0).min() > 0.9
    assert picture.max() < 3.0 * 1.15
