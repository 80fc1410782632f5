"""The window of the paper, by time: which file frames are shown, how many are repeats, and resizing."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from angio_ray.clip import ClipRejected, Reason
from angio_ray.sampling import ClipWindow, resize_frames, select_frames, select_named

THREE_D = ClipWindow(name="3d", size=160)
TWO_D = ClipWindow(name="2d", size=299, stride=8)


def times(num_frames: int, fps: float = 15.0) -> np.ndarray:
    return np.arange(num_frames) * 1000.0 / fps


@pytest.mark.parametrize(
    ("num_frames", "first", "last", "repeated"),
    [
        pytest.param(96, 15, 45, 0, id="as the paper: 32 frames from the 16th"),
        pytest.param(47, 15, 45, 0, id="just long enough"),
        pytest.param(46, 14, 44, 0, id="slides by one"),
        pytest.param(32, 0, 30, 0, id="slides to the start"),
        pytest.param(31, 0, 30, 0, id="31 frames have 16 of every second"),
        pytest.param(30, 0, 28, 1, id="the last one repeated"),
        pytest.param(16, 0, 14, 8, id="16 frames: 8 and 8 repeats"),
        pytest.param(4, 0, 2, 14, id="the least"),
    ],
)
def test_window_of_a_clip_at_its_own_rate(num_frames: int, first: int, last: int, repeated: int) -> None:
    selection = select_frames(times(num_frames), THREE_D)
    distinct = tuple(range(first, last + 1, 2))
    assert selection.indices == distinct + (last,) * (16 - len(distinct))
    assert selection.num_repeated == repeated
    assert selection.num_resampled == num_frames


def test_two_dimensional_nets_see_every_eighth_frame() -> None:
    assert select_frames(times(60), TWO_D).indices == (15, 23, 31, 39)
    assert select_frames(times(20), TWO_D).indices == (0, 8, 16, 16)


@pytest.mark.parametrize("num_frames", [0, 1, 3])
def test_fewer_than_four_frames_are_too_short(num_frames: int) -> None:
    with pytest.raises(ClipRejected) as rejected:
        select_frames(times(num_frames), THREE_D)
    assert rejected.value.reason == Reason.TOO_SHORT


def test_thirty_frames_a_second_are_resampled_to_every_second_frame() -> None:
    selection = select_frames(times(96, fps=30), THREE_D)
    assert selection.num_resampled == 48
    assert selection.indices == tuple(range(30, 92, 4))


def test_frames_count_after_resampling() -> None:
    assert select_frames(times(8, fps=30), THREE_D).num_resampled == 4
    with pytest.raises(ClipRejected, match="3 frames at 15/s"):
        select_frames(times(6, fps=30), THREE_D)


def test_a_slow_clip_repeats_frames_and_says_how_many() -> None:
    selection = select_frames(times(40, fps=7.5), THREE_D)
    assert selection.num_resampled == 79
    shown = np.array(selection.indices)
    assert (np.diff(shown) == 1).all()  # every second sample at 15/s is one frame at 7.5/s
    assert selection.num_repeated == 0
    every_sample = dataclasses.replace(THREE_D, stride=1)
    assert select_frames(times(40, fps=7.5), every_sample).num_repeated == 15  # 32 samples of 17 frames


def test_nearest_frame_in_time_with_uneven_intervals() -> None:
    uneven = np.array([0.0, 10.0, 20.0, 120.0, 140.0, 210.0])
    selection = select_frames(uneven, dataclasses.replace(THREE_D, stride=1, length=4, start=0))
    assert selection.indices == (0, 2, 4, 5)  # nearest to 0, 66.7, 133.3 and 200 ms


@pytest.mark.parametrize("interval_ms", [66, 66.667, 67])
def test_a_rounded_frame_time_of_fifteen_a_second_moves_no_frame(interval_ms: float) -> None:
    assert select_frames(np.arange(96) * interval_ms, THREE_D).indices == tuple(range(15, 47, 2))


def test_first_time_need_not_be_zero() -> None:
    assert select_frames(times(96, 30) + 500, THREE_D) == select_frames(times(96, 30), THREE_D)


@pytest.mark.parametrize("bad", [[0, 10, 5, 20], [0, np.nan, 5, 9], [[0, 1], [2, 3]]])
def test_times_that_are_none_are_an_error(bad: list) -> None:
    with pytest.raises(ValueError, match="ascending"):
        select_frames(np.array(bad, dtype=float), THREE_D)


@pytest.mark.parametrize("change", [{"size": 0}, {"stride": 0}, {"start": -1}, {"fps": 0.0}, {"stride": 33}])
def test_a_window_that_makes_no_sense_is_an_error(change: dict) -> None:
    with pytest.raises(ValueError, match="window '3d'"):
        dataclasses.replace(THREE_D, **change)


def test_resizing_averages_areas_down_and_interpolates_up() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    down = resize_frames(frames, 32)
    blocks = frames.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
    assert np.abs(down - blocks).max() <= 0.5
    assert (resize_frames(frames, 100)[1] == cv2.resize(frames[1], (100, 100), interpolation=cv2.INTER_LINEAR)).all()
    assert (resize_frames(frames, 64) == frames).all()
    assert resize_frames(frames[:, :, :40], 32).shape == (3, 32, 32)


def test_named_frames_are_shown_in_their_order_and_the_last_fills_up() -> None:
    window = ClipWindow(name="named", size=8, start=0, length=4, stride=1)
    found = select_named((7, 3, 90), 50, window)
    assert found.indices == (7, 3, 3, 3)
    assert (found.num_shown, found.num_repeated) == (2, 2)
    assert select_named(range(9), 50, window).indices == (0, 1, 2, 3), "no more than there is room for"
    with pytest.raises(ClipRejected, match="none of the 2 asked for") as caught:
        select_named((60, 70), 50, window)
    assert caught.value.reason == Reason.TOO_SHORT
