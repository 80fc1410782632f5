"""The synthetic coronary branches: plaques, grades, and what they leave of the lumen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from angio_ray.phantom.ct_heart import (
    STEP_MM,
    Anatomy,
    Branch,
    Dominance,
    Line,
    course_normals,
    draw_lesion,
    draw_lesions,
    grow,
    lumen_along,
    lumen_path,
    upstream_percent,
)


def straight(**changes: object) -> Branch:
    """A 3 mm branch of 60 mm, slanting through the volume."""
    path = np.array([-20.0, -30.0, -20.0]) + np.arange(0, 60, STEP_MM)[:, None] * np.array([0.6, 0.48, 0.64])
    made = Branch(name="LAD", artery="LAD", path_N3=path, start=0, radius_N=np.full(len(path), 1.5))
    return replace(made, **changes)  # type: ignore[arg-type]


@cache
def grown(dominance: Dominance) -> list[tuple[Anatomy, tuple[Branch, ...], tuple[Line, ...]]]:
    rng = np.random.default_rng(5)
    return [(anatomy, *grow(anatomy, dominance, rng)) for anatomy in (Anatomy.draw(rng) for _ in range(6))]


@pytest.mark.parametrize("eccentricity", [0.0, 0.5, 1.0])
def test_worst_side_has_the_percent_and_the_other_less(eccentricity: float) -> None:
    lesion = replace(draw_lesion(np.random.default_rng(1), percent=50, at_mm=30), eccentricity=eccentricity)
    lumen = lumen_along(straight(lesions=(lesion,)))
    assert lumen.narrow_N.min() == pytest.approx(1.5 * 0.5, abs=0.01)
    assert lumen.wide_N.min() == pytest.approx(1.5 * (1 - 0.5 * (1 - 0.8 * eccentricity * 0.875)), abs=0.01)
    assert np.all(lumen.narrow_N[:30] == 1.5)


def test_eccentric_plaque_pushes_the_lumen_away() -> None:
    lesion = replace(draw_lesion(np.random.default_rng(1), percent=60, at_mm=30), eccentricity=0.9, side_rad=0.0)
    branch = straight(lesions=(lesion,))
    pushed = lumen_path(branch) - branch.path_N3
    at = int(30 / STEP_MM)
    assert np.linalg.norm(pushed[at]) > 0.4
    assert pushed[at] @ course_normals(branch.path_N3)[at, 0] < 0
    assert np.allclose(pushed[:20], 0)


def test_plaque_without_narrowing_is_grade_one() -> None:
    lesion = draw_lesion(np.random.default_rng(1), percent=0, at_mm=30)
    branch = straight(lesions=(lesion,))
    assert (branch.percent, branch.grade) == (0, 1)
    assert branch.plaque == lesion.plaque
    assert (straight().grade, straight().plaque) == (0, "none")


def test_calcium_of_a_lesser_plaque_counts() -> None:
    worst, lesser = (
        draw_lesion(np.random.default_rng(1), percent=percent, at_mm=at_mm, plaque=plaque)  # type: ignore[arg-type]
        for percent, at_mm, plaque in ((60, 40, "soft"), (20, 15, "mixed"))
    )
    both = straight(lesions=(lesser, worst))
    assert (both.plaque, both.calcified) == ("soft", True)
    assert not straight(lesions=(worst,)).calcified


@pytest.mark.parametrize("dominance", ["right", "left"])
def test_a_branch_shows_its_parent_up_to_the_take_off_only(dominance: Dominance) -> None:
    """A plaque of the parent just before the take-off, and a worse one just behind it."""
    seen = set()
    for _, branches, _ in grown(dominance):
        for parent, child in ((p, c) for c in branches for p in branches if p.name in c.upstream):
            take_off = np.linalg.norm(parent.path_N3 - child.path_N3[child.start], axis=1).argmin() - parent.start
            before, behind = (
                replace(draw_lesion(np.random.default_rng(1), percent=percent, at_mm=at_mm), length_mm=8.0)
                for percent, at_mm in ((30, take_off * STEP_MM - 2), (80, take_off * STEP_MM + 6))
            )
            for lesions, percent in (((before, behind), 30), ((behind,), 0), ((), 0)):
                assert upstream_percent(child, (replace(parent, lesions=lesions), child)) == percent
            seen.add(child.name)
    assert len(seen) >= 3


def test_a_grandparent_is_shown_up_to_where_the_parent_leaves_it() -> None:
    lad = straight(lesions=(draw_lesion(np.random.default_rng(1), percent=80, at_mm=30),))
    diagonal = straight(name="D-1", start=20, upstream=("LAD",))
    twig = straight(name="D-2", start=100, upstream=("LAD", "D-1"))
    assert upstream_percent(twig, (twig, diagonal, lad)) == 0
    assert upstream_percent(replace(twig, upstream=("LAD",)), (twig, diagonal, lad)) == 80


def test_all_grades_are_drawn_and_plaques_lie_on_the_own_course() -> None:
    grades = set()
    for seed in range(400):
        branch = straight(start=10)
        for lesion in draw_lesions(branch, np.random.default_rng(seed), likely=1.0):
            grades.add(lesion.grade)
            assert 0 < lesion.at_mm < (len(branch.path_N3) - branch.start) * STEP_MM
    assert grades == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("dominance", ["right", "left"])
def test_branches_run_from_the_ostium_without_gaps_and_on_the_heart(dominance: Dominance) -> None:
    for anatomy, branches, twigs in grown(dominance):
        for branch in branches:
            assert np.linalg.norm(np.diff(branch.path_N3, axis=0), axis=1).max() < 4 * STEP_MM
            own = branch.path_N3[branch.start + 20 :] @ anatomy.axes.T / anatomy.size
            assert np.percentile(np.abs(anatomy.surface(own)), 90) < 9
            assert branch.name not in {"right": ("PDA-LCX", "PLV-LCX"), "left": ("PDA-RCA", "PLV-RCA")}[dominance]
        assert len(twigs) >= 4


def test_trunks_have_their_calibres_and_taper() -> None:
    lad = [b for _, branches, _ in grown("right") for b in branches if b.name == "LAD"]
    assert np.mean([2 * b.radius_N[b.start + 8] for b in lad]) == pytest.approx(3.7, abs=0.25)
    assert np.mean([2 * b.radius_N[-1] for b in lad]) == pytest.approx(1.75, abs=0.3)
