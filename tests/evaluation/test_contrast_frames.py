"""Errors of the frames of full contrast, counted by hand."""

from __future__ import annotations

import pytest

from angio_ray.evaluation.contrast_frames import contrast_frames


def test_errors_and_rates_are_those_counted_by_hand() -> None:
    truth = [(20, 40), (10, 30), (5, 60), (0, 50), None, None, (8, 11)]
    found = [(22, 41), (10, 36), (20, 70), None, None, (3, 9), (8, 30)]
    long, short = contrast_frames(truth, found)
    assert (long.num_clips, long.num_missed, long.num_without, long.num_false) == (4, 1, 2, 1)
    assert long.begin_mean == pytest.approx((2 + 0 + 15) / 3)
    assert long.end_mean == pytest.approx((1 + 6 + 10) / 3)
    assert long.begin_sd == pytest.approx(8.1445, abs=1e-3)
    assert long.begin_mean_ms == pytest.approx(377.78, abs=0.01)
    # mean errors 1.5, 3 and 12.5 frames; the missed one is an error
    assert long.accept_rate == pytest.approx(2 / 4)
    assert long.error_rate == pytest.approx(2 / 4)
    assert (short.num_clips, short.accept_rate, short.end_mean) == (1, 0.0, 19.0)
    assert short.begin_sd is None


def test_nothing_to_judge_is_no_figure() -> None:
    long, short = contrast_frames([None], [(1, 2)])
    assert (long.num_false, long.begin_mean, long.accept_rate, long.end_mean_ms) == (1, None, None, None)
    assert short.num_clips == 0


def test_the_same_clip_twice_is_two_clips() -> None:
    long, short = contrast_frames([(0, 2), (0, 2), (0, 9)], [(0, 2), (0, 2), (0, 9)])
    assert (long.num_clips, short.num_clips) == (1, 2)
