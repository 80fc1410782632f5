"""Figures of boxes against values found by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from angio_ray.evaluation.localisation import FrameBoxes, localisation


def frame(truth: list[Any], found: list[Any]) -> FrameBoxes:
    """truth: (box, severity); found: (box, score)."""
    return FrameBoxes(
        truth_S4=np.array([box for box, _ in truth], float).reshape(-1, 4),
        severity_S=np.array([severity for _, severity in truth], float),
        found_D4=np.array([box for box, _ in found], float).reshape(-1, 4),
        score_D=np.array([score for _, score in found], float),
    )


A, B, FAR = (0, 0, 40, 40), (100, 100, 140, 140), (300, 300, 340, 340)
HALF = (0, 0, 40, 20)
"""Its overlap with A is a half."""
MOVED = (103, 104, 143, 144)
"""5 px from B: IoU 37 * 36 / (2 * 1600 - 1332) = 0.713."""
FRAMES = [
    frame([(A, 80), (B, 30)], [(A, 0.9), (MOVED, 0.6), (FAR, 0.4)]),
    frame([(A, 30), (B, 80)], [(A, 0.8)]),  # the milder one only
    frame([(A, 50)], []),
    frame([], [(FAR, 0.7)]),
    frame([], [(FAR, 0.2)]),
]


def test_figures_are_those_counted_by_hand() -> None:
    got = localisation(FRAMES, iou=0.5, threshold=0.5)
    assert (got.num_frames, got.num_stenoses) == (5, 5)
    assert got.global_sensitivity == pytest.approx(1 / 3)
    assert got.stenosis_sensitivity == pytest.approx(3 / 5)
    assert got.precision == pytest.approx(3 / 4)
    assert got.false_boxes_per_frame == pytest.approx(1 / 5)
    assert got.frame_specificity == pytest.approx(1 / 2)
    distance = [0.0, 100 * 2**0.5]
    assert got.centre_distance_mean == pytest.approx(np.mean(distance))
    assert got.centre_distance_sd == pytest.approx(np.std(distance, ddof=1))
    assert got.centre_distance_rmse == pytest.approx(100.0)
    # by score: hit 0.9, hit 0.8, false 0.7, hit 0.6, false, false: recall 0.2, 0.4 at precision 1, 0.6 at 3/4
    assert got.average_precision == pytest.approx((41 * 1 + 20 * 0.75) / 101)


def test_the_overlap_asked_for_decides() -> None:
    frames = [frame([(A, 60)], [(HALF, 0.9)])]
    assert localisation(frames, iou=0.5, threshold=0.5).global_sensitivity == 1.0
    assert localisation(frames, iou=0.51, threshold=0.5).global_sensitivity == 0.0
    assert localisation(frames, iou=0.51, threshold=0.5).average_precision == 0.0
    assert localisation(frames, iou=0.2, threshold=0.5).stenosis_sensitivity == 1.0


def test_a_narrowing_is_met_once() -> None:
    got = localisation([frame([(A, 60)], [(A, 0.9), (A, 0.8)])], iou=0.5, threshold=0.5)
    assert (got.stenosis_sensitivity, got.precision, got.false_boxes_per_frame) == (1.0, 0.5, 1.0)


def test_of_equally_severe_narrowings_any_may_be_met() -> None:
    for truth in ([(A, 100), (B, 100)], [(B, 100), (A, 100)]):
        got = localisation([frame(truth, [(MOVED, 0.9)])], iou=0.5, threshold=0.5)
        assert got.global_sensitivity == 1.0
        assert got.centre_distance_mean == pytest.approx(5.0)


def test_boxes_beyond_the_hundred_best_are_not_looked_at() -> None:
    got = localisation([frame([(A, 60)], [(A, 0.55)] + [(FAR, 0.9)] * 120)], iou=0.5, threshold=0.5)
    assert (got.stenosis_sensitivity, got.false_boxes_per_frame) == (0.0, 100.0)


def test_nothing_to_judge_is_no_figure() -> None:
    got = localisation([frame([], [])], iou=0.5, threshold=0.5)
    assert got.frame_specificity == 1.0
    assert got.false_boxes_per_frame == 0.0
    for name in (
        "global_sensitivity",
        "stenosis_sensitivity",
        "precision",
        "average_precision",
        "centre_distance_mean",
    ):
        assert getattr(got, name) is None
    assert localisation([frame([(A, 60)], [])], iou=0.5, threshold=0.5).average_precision == 0.0


def test_boxes_without_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="four numbers"):
        localisation(
            [
                FrameBoxes(
                    truth_S4=np.zeros((1, 4)), severity_S=np.zeros(0), found_D4=np.zeros((0, 4)), score_D=np.zeros(0)
                )
            ],
            iou=0.5,
            threshold=0.5,
        )
