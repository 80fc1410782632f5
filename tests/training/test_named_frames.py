from __future__ import annotations

from typing import Any

import pytest

from angio_ray.training.named_frames import (
    UNKNOWN,
    frames_without_contrast,
    named_frames,
    percent_class,
    worst_class,
)


def clip(**changes: Any) -> dict[str, Any]:
    whole = {"first_contrast": 10, "contrast_begin": 20, "contrast_end": 41, "rows": 512, "columns": 1024, "stenoses": []}
    return whole | changes


def box(**changes: Any) -> dict[str, Any]:
    return {"percent": 60.0, "frame": 23, "x0": 256.0, "y0": 128.0, "x1": 512.0, "y1": 256.0} | changes


def test_frames_are_the_candidates_that_scoring_would_take() -> None:
    named = named_frames(clip(), 8, 2)
    assert named.frames == (20, 23, 26, 29, 32, 35, 38, 41)
    assert (named.target, named.boxes_S6.shape) == (0, (0, 6))
    assert named_frames(clip(contrast_end=22), 8, 2).frames == (20, 21, 22), "fewer where there are fewer"


def test_boxes_are_shares_of_the_frame_with_the_place_of_theirs() -> None:
    found = named_frames(clip(stenoses=[box(), box(frame=24, percent=10.0), box(percent=None)]), 8, 2)
    assert found.boxes_S6.tolist() == [
        [1, 1, 0.25, 0.25, 0.5, 0.5],
        [UNKNOWN, 0, 0.25, 0.25, 0.5, 0.5],  # its frame is none of those shown
        [1, UNKNOWN, 0.25, 0.25, 0.5, 0.5],
    ]
    assert found.target == 1, "the worst that is known"


@pytest.mark.parametrize("lacking", [{"rows": None}, {"stenoses": [{"percent": 80.0, "frame": 23}]}])
def test_without_a_size_or_a_box_the_class_alone_is_known(lacking: dict[str, Any]) -> None:
    found = named_frames(clip(stenoses=[box()]) | lacking, 8, 2)
    assert (found.target, len(found.boxes_S6)) == (1, 0)


@pytest.mark.parametrize(
    ("percent", "two", "three"), [(0, 0, 0), (24.9, 0, 0), (25, 1, 1), (99, 1, 1), (99.5, 1, 2), (100, 1, 2)]
)
def test_classes_are_the_papers(percent: float, two: int, three: int) -> None:
    assert (percent_class(percent, 2), percent_class(percent, 3)) == (two, three)
    assert worst_class([{"percent": 3.0}, {"percent": percent}, {"percent": None}], 3) == three
    assert worst_class([], 3) == 0


def test_frames_without_contrast_lie_before_the_first_that_has_some() -> None:
    assert frames_without_contrast(clip(), 4) == (0, 3, 6, 9)
    assert frames_without_contrast(clip(first_contrast=2), 4) == (0, 1)
    assert frames_without_contrast(clip(first_contrast=0), 4) == ()
    assert frames_without_contrast(clip(first_contrast=None), 4) == (), "nobody said where it begins"
