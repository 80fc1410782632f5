from __future__ import annotations

from typing import Any

import pytest

from angio_ray.training.named_frames import (
    UNKNOWN,
    NamedFrames,
    frames_without_contrast,
    marked_boxes,
    marked_frames,
    named_frames,
    percent_class,
    worst_class,
)


def clip(**changes: Any) -> dict[str, Any]:
    whole = {
        "first_contrast": 10, "contrast_begin": 20, "contrast_end": 42, "rows": 512, "columns": 1024, "num_frames": 60,
        "frame_time_ms": 1000 / 15, "stenoses": [],
    }  # fmt: skip
    return whole | changes


def box(**changes: Any) -> dict[str, Any]:
    return {"percent": 60.0, "frame": 23, "x0": 256.0, "y0": 128.0, "x1": 512.0, "y1": 256.0} | changes


def named(row: dict[str, Any], **options: Any) -> NamedFrames:
    found = named_frames(row, 8, 2, **options)
    assert found is not None
    return found


def test_frames_are_the_candidates_that_scoring_would_take() -> None:
    found = named(clip())
    assert found.frames == (21, 24, 27, 30, 33, 36, 39, 42), "a fifth of a second apart, as all that scoring chooses from"
    assert (found.target, found.boxes_S7.shape) == (0, (0, 7))
    assert named(clip(contrast_end=28)).frames == (21, 24, 27), "fewer where there are fewer"
    assert named(clip(contrast_begin=22, contrast_end=22)).frames == (21,), "the nearest where there is none"
    assert named(clip(frame_time_ms=1000 / 30, num_frames=120)).frames == (24, 30, 36, 42), "a file at 30 per second"


@pytest.mark.parametrize(
    "lacking",
    [
        {"contrast_begin": None}, {"frame_time_ms": None}, {"contrast_begin": 60, "contrast_end": 70}, {"num_frames": 3},
        {"stenoses": [{"percent": None, "frame": 23}]},
    ],
    ids=["no full contrast", "no frame time", "beyond the file", "too short", "a narrowing of unknown degree"],
)  # fmt: skip
def test_a_clip_whose_frames_or_class_are_not_known_has_none(lacking: dict[str, Any]) -> None:
    assert named_frames(clip(**lacking), 8, 2) is None


def test_frames_on_which_vessels_are_drawn_teach() -> None:
    row = clip(vessel_masks=[{"frame": frame, "png": bytes([frame])} for frame in (22, 30, 50)])
    taught = named(row, taught=True)
    assert taught.frames == (22, 24, 27, 30, 33, 36, 39, 42), "in place of the nearest; none beyond full contrast"
    assert taught.vessels == (bytes([22]), None, None, bytes([30]), None, None, None, None)
    assert (named(row).frames, named(row).vessels) == (named(clip()).frames, ()), "what is judged is what scoring would take"


def test_boxes_are_shares_of_the_frame_on_theirs_and_of_the_nearest_mark_elsewhere() -> None:
    moved = box(frame=31, segment="LAD", x0=512.0, x1=768.0)
    others = [box(frame=25, segment="D1", percent=10.0), box(frame=None, segment="PLV")]
    row = clip(contrast_end=33, stenoses=[box(frame=24, segment="LAD"), moved, *others])
    found = named(row)
    assert found.frames == (21, 24, 27, 30, 33)
    shares = {0.25: [0.25, 0.25, 0.5, 0.5], 0.5: [0.5, 0.25, 0.75, 0.5]}
    left = [0.25, 0.25, 0.25, 0.5, 0.5]  # of the first narrowing: where the nearest mark has it
    expected = []
    for place, (x0, own) in enumerate(zip(left, [False, True, False, False, False], strict=True)):
        expected += [[place, not own, 1, *shares[x0]], [place, 1, 0, *shares[0.25]], [place, 1, 1, *shares[0.25]]]
    assert found.boxes_S7.tolist() == expected
    assert found.target == 1


def test_narrowings_without_a_segment_or_several_of_one_stand_alone() -> None:
    for segments in ((None, None), ("LAD", "LAD")):
        marks = [box(frame=21, segment=segments[0]), box(frame=33, segment=segments[1], x0=512.0, x1=768.0)]
        both_on_one = [] if segments[0] is None else [box(frame=33, segment="LAD", x0=0.0, x1=64.0)]
        found = named(clip(contrast_end=33, stenoses=marks + both_on_one))
        of_first = found.boxes_S7[found.boxes_S7[:, 0] == 0]
        assert len(of_first) == len(marks + both_on_one), "none of them is the same on another frame"


def test_of_one_unknown_degree_the_class_of_its_box_is_unknown() -> None:
    found = named(clip(stenoses=[box(frame=24), box(frame=24, segment="D1", percent=None)]))
    assert set(found.boxes_S7[:, 2].tolist()) == {1, UNKNOWN}
    assert found.target == 1, "it cannot be worse"
    assert named_frames(clip(stenoses=[box(), box(percent=None)]), 8, 3) is None, "but an occlusion would be"


def test_frames_with_boxes_stand_in_place_of_their_neighbours_in_training_alone() -> None:
    row = clip(stenoses=[box(frame=25, segment="LAD"), box(frame=26, segment="LAD"), box(frame=50, segment="LAD")])
    assert named(row, taught=True).frames == (21, 25, 26, 30, 33, 36, 39, 42), "not those outside full contrast"
    assert named(row).frames == (21, 24, 27, 30, 33, 36, 39, 42)
    assert named(row, taught=True).boxes_S7[:3, :2].tolist() == [[0, 1], [1, 0], [2, 0]]


def test_boxes_are_judged_on_frames_that_have_them_all() -> None:
    row = clip(stenoses=[box(frame=24, segment="LAD"), box(frame=24, segment="D1"), box(frame=30, segment="LAD")])
    assert marked_frames(row, 8) == (24,), "on 30 a found D1 would count as false"
    assert marked_boxes(row, 24).tolist() == [[0.25, 0.25, 0.5, 0.5, 60]] * 2
    mild = clip(stenoses=[box(frame=24, segment="LAD"), box(frame=30, segment="D1", percent=20.0)])
    assert marked_frames(mild, 8) == (24,), "a mild one need not be there"
    assert len(marked_boxes(mild, 30)) == 0
    assert marked_frames(clip(stenoses=[box(frame=70)]), 8) == (), "beyond the file"
    assert marked_frames(clip(), 8) == (33,), "of a clip without any the middle one"


@pytest.mark.parametrize("lacking", [{"rows": None}, {"stenoses": [box(), {"percent": 80.0, "frame": 23}]}])
def test_without_a_size_or_a_box_the_class_alone_is_known(lacking: dict[str, Any]) -> None:
    found = named(clip(stenoses=[box()]) | lacking)
    assert (found.target, found.boxes_S7) == (1, None), "elsewhere in the frame it may well be found"


@pytest.mark.parametrize(
    ("percent", "two", "three"), [(0, 0, 0), (24.9, 0, 0), (25, 1, 1), (99, 1, 1), (99.5, 1, 2), (100, 1, 2)]
)
def test_classes_are_the_papers(percent: float, two: int, three: int) -> None:
    assert (percent_class(percent, 2), percent_class(percent, 3)) == (two, three)
    assert worst_class([{"percent": 3.0}, {"percent": percent}], 3) == three
    assert worst_class([{"percent": percent}, {"percent": None}], 3) == (2 if three == 2 else None)
    assert worst_class([], 3) == 0


def test_frames_without_contrast_lie_before_the_first_that_has_some() -> None:
    assert frames_without_contrast(clip(), 4) == (0, 3, 6, 9)
    assert frames_without_contrast(clip(first_contrast=2), 4) == (0, 1)
    assert frames_without_contrast(clip(first_contrast=0), 4) == ()
    assert frames_without_contrast(clip(first_contrast=None), 4) == (), "nobody said where it begins"
