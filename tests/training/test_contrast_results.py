from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from angio_ray.training.contrast_results import Span, choose_contrast_threshold, contrast_summary, judge_contrast


def probabilities(*spans: tuple[int, int], high: float = 0.9, low: float = 0.1, frames: int = 20) -> np.ndarray:
    p_NTK = np.full((len(spans), frames, 3), low, np.float32)
    for p_TK, (begin, end) in zip(p_NTK, spans, strict=True):
        p_TK[begin : end + 1, 2] = high
    return p_NTK


def test_a_span_is_of_the_frames_shown_alone() -> None:
    class_T = np.array([0, 1, 2, 2, 1, 2, 2])
    assert Span.of(class_T, 5, 2) == Span(5, (2, 3))
    assert Span.of(class_T, 2, 2) == Span(2, None)


def test_padding_is_never_found() -> None:
    verdict = judge_contrast(probabilities((3, 19)), [Span(10, (3, 8))], 0.5)
    assert verdict.found == ((3, 9),)
    assert verdict.columns == {"contrast_begin": [3], "contrast_end": [9], "true_begin": [3], "true_end": [8]}


def test_the_threshold_is_the_one_with_the_least_error() -> None:
    p_NTK = probabilities((5, 12), high=0.9)
    p_NTK[0, 3:5, 2] = p_NTK[0, 13:15, 2] = 0.6  # what is nearly full
    narrow, wide = [Span(20, (5, 12))], [Span(20, (3, 14))]
    assert 0.6 < choose_contrast_threshold(p_NTK, narrow) < 0.9
    assert choose_contrast_threshold(p_NTK, wide) == 0.5, "of equals the nearest to a half"
    with pytest.raises(ValueError, match="no validation clip has full contrast"):
        choose_contrast_threshold(p_NTK, [Span(20, None)])


def rows(*pairs: tuple[tuple[int, int] | None, tuple[int, int] | None]) -> pa.Table:
    columns: dict[str, list] = {name: [] for name in ("true_begin", "true_end", "contrast_begin", "contrast_end")}
    for true, found in pairs:
        for name, pair in (("true", true), ("contrast", found)):
            for at, side in enumerate(("begin", "end")):
                columns[f"{name}_{side}"].append(None if pair is None else pair[at])
    count = len(pairs)
    return pa.table(columns | {"fold": [i % 2 for i in range(count)], "group_id": [f"p{i // 2}" for i in range(count)]})


def test_figures_of_folds_and_of_all_with_intervals_by_patient() -> None:
    pairs = [((10, 30), (10 + i % 4, 30 - i % 3)) for i in range(24)] + [((10, 30), None), ((5, 7), (5, 7))]
    summary = contrast_summary(rows(*pairs), resamples=200)
    assert summary.pooled.num_clips == 25
    assert summary.pooled.begin_mean == pytest.approx(1.5)
    assert summary.pooled.end_mean == pytest.approx(1.0)
    assert summary.pooled.accept_rate == pytest.approx(24 / 25)
    assert summary.pooled.error_rate == pytest.approx(1 / 25)
    assert summary.short.num_clips == 1
    assert set(summary.folds) == {0, 1}
    low_high = summary.intervals["begin_error_frames"]
    assert low_high.low < 1.5 < low_high.high
    assert 0 < summary.intervals["accept_rate"].low < 24 / 25
    found = {(row["scope"], row.get("subgroup"), row["metric"]): row for row in summary.rows() if row["scope"] != "fold"}
    assert found["pooled", None, "begin_error_frames"]["method"] == "clustered_bootstrap"
    assert found["pooled", None, "num_missed"]["value"] == 1
    assert found["mean_of_folds", None, "accept_rate"]["num_folds"] == 2
    assert found["pooled", "full_contrast", "accept_rate"]["value"] == 1
    assert any("begin_error_frames 1.500" in line for line in summary.lines())


def test_nothing_found_is_said_not_raised() -> None:
    summary = contrast_summary(rows(((10, 30), None), ((8, 20), None)), resamples=100)
    assert summary.pooled.begin_mean is None
    assert summary.pooled.error_rate == 1
    assert all(row["note"] for row in summary.rows() if row["value"] is None)
