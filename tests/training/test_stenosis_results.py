from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from angio_ray.training.contrast_results import Span
from angio_ray.training.stenosis_results import (
    FoundBoxes,
    box_figures,
    box_rows,
    choose_study_threshold,
    clip_probability,
    frame_figures,
    frame_rows,
    level_summaries,
)


def rows(*clips: tuple[Any, ...], **columns: Any) -> pa.Table:
    """(study, artery, target, probability)."""
    found = [
        {"study_id": s, "group_id": f"p{s}", "artery": a, "target": t, "probability": p, "threshold": 0.5, "fold": None} | columns
        for s, a, t, p in clips
    ]
    types = [("study_id", pa.string()), ("group_id", pa.string()), ("artery", pa.string()), ("target", pa.bool_())]
    return pa.Table.from_pylist(
        found, pa.schema([*types, ("probability", pa.float32()), ("threshold", pa.float64()), ("fold", pa.int32())])
    )


CLIPS = [
    (f"{number}", artery, positive and artery == "LCA", 0.2 + 0.6 * positive * (artery == "LCA") + 0.01 * number)
    for number in range(10)
    for positive in [number % 2 == 0]
    for artery in ("LCA", "RCA")
]


def test_a_clip_is_its_worst_frame_to_show_any_narrowing() -> None:
    p = np.array([[[0.9, 0.1, 0.0], [0.4, 0.3, 0.3]], [[0.8, 0.0, 0.2], [0.7, 0.3, 0.0]]], np.float32)
    np.testing.assert_allclose(clip_probability(p), [0.6, 0.3], atol=1e-6)


def test_the_threshold_is_chosen_on_studies_and_on_clips_where_they_have_one_class() -> None:
    table = rows(*CLIPS).drop_columns(["threshold"])
    threshold, level = choose_study_threshold(table, "youden", None)
    assert level == "studies"
    assert 0.29 < threshold <= 0.8, "between the worst clips of the negative and of the positive studies"
    alone = table.filter(pa.array([artery == "LCA" for artery in table["artery"].to_pylist()]))
    assert choose_study_threshold(alone, "sensitivity", 0.9)[1] == "clips", "no study of one artery can be negative"


def test_frames_beyond_those_of_a_clip_count_nowhere() -> None:
    p = np.array([[[0.1, 0.9], [0.1, 0.9]], [[0.8, 0.2], [0.1, 0.9]]], np.float32)
    found = frame_figures(p, [1, 0], [Span(2, None), Span(1, None)])
    assert (found["frame_accuracy"], found["frame_sensitivity"], found["frame_auc"]) == (1.0, 1.0, 1.0)
    assert frame_figures(p, [1, 0], [Span(2, None), Span(2, None)])["frame_accuracy"] == 0.75


def test_rows_of_a_level_say_what_was_not_evaluable_and_their_scope() -> None:
    lost = [("x", "LCA", True, None), ("y", "RCA", False, 0.1)]
    summaries = level_summaries(rows(*CLIPS, *lost), resamples=100)
    names = [summary.level.name for summary in summaries]
    assert names == ["artery", "artery LCA", "artery RCA", "study"]
    study = summaries[-1]
    assert "study, 10 (5 positive): auc 1.000" in study.line()
    assert "2 more not evaluable, 1 of them positive" in study.line()
    made = {row["metric"]: row for row in study.rows()}
    assert {row["scope"] for row in study.rows()} == {"set"}
    assert made["auc"]["value"] == 1.0
    assert made["sensitivity_with_not_evaluable"]["value"] == pytest.approx(5 / 6)
    assert made["num_not_evaluable"]["value"] == 2
    assert made["accuracy_at_80%_positive"]["value"] == 1.0
    right = summaries[2]
    assert right.figures is None
    assert "no figures" in right.line()
    assert {row["scope"] for row in level_summaries(rows(*CLIPS, fold=0), resamples=100)[-1].rows()} >= {"fold", "pooled"}


def test_boxes_are_judged_in_px_of_512_at_both_overlaps() -> None:
    mark = {"segment": "LAD", "frame": 7, "x0": 10.0, "y0": 10.0, "x1": 30.0, "y1": 30.0}
    clip = {"rows": 100, "columns": 100, "stenoses": [mark | {"percent": 70.0}]}
    clear = clip | {"stenoses": []}
    half = np.array([[0.1, 0.1, 0.3, 0.18, 0.9], [0.6, 0.6, 0.7, 0.7, 0.2]])
    whole, none = np.array([[0.1, 0.1, 0.3, 0.3, 0.9]]), np.empty((0, 5))
    found = box_figures([clip, clear], [FoundBoxes(0, 7, half, whole), FoundBoxes(1, 3, none, none)])
    assert found["box_global_sensitivity_iou20"] == 1.0, "two fifths of it"
    assert found["box_global_sensitivity_iou50"] == 0.0
    assert found["box_frame_specificity_iou50"] == 1.0
    assert found["map_box_global_sensitivity_iou50"] == 1.0, "what the map shows is judged beside it"
    assert found["box_centre_distance_mean_iou20"] == pytest.approx(0.06 * 512)
    assert box_figures([clip], []) == {}


def test_what_bundles_state_becomes_rows_by_fold_and_over_them() -> None:
    stated = [{"test_frame_auc": 0.6, "test_box_precision_iou20": 0.5}, {"test_frame_auc": 0.8}]
    frames = [row for row in frame_rows(stated) if row["metric"] == "auc"]
    assert [row["scope"] for row in frames] == ["fold", "fold", "mean_of_folds"]
    assert [row["value"] for row in frames] == [0.6, 0.8, pytest.approx(0.7)]
    boxes = box_rows(stated)
    assert {(row["metric"], row["subgroup_value"]) for row in boxes} == {("precision", "IoU 0.2")}
    assert boxes[1]["value"] is None, "a fold without is no zero"
