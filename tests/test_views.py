"""The standard views: the nearest one by the angle between the beams, none that is far away."""

from __future__ import annotations

import pytest

from angio_ray.views import VIEWS, Artery, between_beams_deg, is_suspect, nearest_view, own_model


@pytest.mark.parametrize(
    ("one", "other", "degrees"),
    [
        ((0.0, 0.0), (30.0, 0.0), 30.0),
        ((0.0, -10.0), (0.0, 25.0), 35.0),
        ((90.0, 0.0), (0.0, 90.0), 90.0),
        ((0.0, 90.0), (77.0, 90.0), 0.0),  # both look down the body's axis
        ((170.0, 0.0), (-170.0, 0.0), 20.0),
        ((45.0, 60.0), (-45.0, 60.0), 41.4096),  # cos a = cos2 60 cos 90 + sin2 60 = 3/4
    ],
)
def test_the_angle_between_two_beams(one: tuple[float, float], other: tuple[float, float], degrees: float) -> None:
    assert between_beams_deg(one, other) == pytest.approx(degrees, abs=1e-3)
    assert between_beams_deg(other, one) == pytest.approx(degrees, abs=1e-3)


@pytest.mark.parametrize("artery", ["LCA", "RCA"])
def test_the_middle_of_a_view_is_that_view(artery: Artery) -> None:
    for name, (primary, secondary) in VIEWS[artery].items():
        view = nearest_view(artery, primary, secondary)
        assert view is not None
        assert view.name == name
        assert view.distance_deg == pytest.approx(0.0, abs=1e-4)


def test_a_beam_between_views_is_the_nearer_with_its_distance() -> None:
    view = nearest_view("RCA", 30.0, 4.0)
    assert view is not None
    assert view.name == "LAO"
    assert view.distance_deg == pytest.approx(14.5, abs=0.2)


def test_no_view_where_none_is_near_where_angles_lack_or_the_arm_moves() -> None:
    assert nearest_view("LCA", 90.0, 0.0) is None  # lateral
    assert nearest_view("RCA", 4.0, -30.0) is None  # caudal: a view of the left artery only
    assert nearest_view("LCA", 45.0, -30.0, moving=True) is None
    assert nearest_view("LCA", None, 10.0) is None
    assert nearest_view("LCA", 10.0, None) is None
    just_in, just_out = nearest_view("RCA", 44.0 + 24.9, 0.0), nearest_view("RCA", 44.0 + 25.1, 0.0)
    assert just_in is not None
    assert just_out is None


def test_angles_are_suspect_where_the_picture_shows_the_other_side() -> None:
    assert is_suspect("LAO", 30.0) is False
    assert is_suspect("RAO", -12.0) is False
    assert is_suspect("LAO", -30.0) is True
    assert is_suspect("RAO", 40.0) is True
    assert is_suspect(None, 40.0) is None
    assert is_suspect("LAO", None) is None
    assert is_suspect("LAO", 40.0, moving=True) is None
    assert is_suspect("RAO", 9.0) is None  # neither side


def test_the_right_artery_has_one_model_the_left_one_for_each_view() -> None:
    assert [own_model("RCA", view) for view in ("LAO", None)] == ["RCA", "RCA"]
    assert own_model("LCA", "RAO cranial") == "RAO cranial"
    assert own_model("LCA", "RAO cranial", suspect=True) is None
    assert own_model("RCA", "LAO", suspect=True) is None
    assert [own_model("LCA", None), own_model(None, "RAO cranial"), own_model("LCA", "spider")] == [None] * 3
