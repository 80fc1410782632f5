from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from angio_ray.evaluation.metrics import calibration, decision_curve
from angio_ray.evaluation.paired import compare_models
from angio_ray.evaluation.pooled import by_subgroup, folds_summary
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import read_set
from angio_ray.tables.sql import query
from angio_ray.training.folds import FoldPlan, Folds, make_folds
from angio_ray.training.predictions import (
    ModelFacts,
    calibration_rows,
    comparison_rows,
    decision_rows,
    folds_rows,
    held_out,
    read_predictions,
    subgroup_rows,
    write_fold_predictions,
    write_metrics,
    write_set_predictions,
)
from tests.training.indexed import new_root
from tests.training.test_folds import clips, unsatisfactory

FACTS = ModelFacts(experiment="e", model="x3d_s", threshold=0.4, model_domain="synthetic", bundle="b1", label_set="l")


@pytest.fixture
def root(tmp_path: Any) -> TableRoot:
    return new_root(tmp_path / "tables")


@pytest.fixture
def labelled() -> tuple[pa.Table, np.ndarray, Folds]:
    table = clips(20).append_column("synthetic", pa.array([True] * 120))
    target = unsatisfactory(table)
    return table, target, make_folds(table, target, FoldPlan(folds=3), name="f")


def scores(ids: list[str], shift: float = 0.0) -> dict[str, float]:
    """Better than chance, not perfect."""
    return {clip: min(0.99, (0.5 if int(clip) % 100 < 30 else 0.3) + int(clip) % 7 / 20 - shift) for clip in ids}


def held_ids(folds: Folds, number: int) -> list[str]:
    fold = folds.fold(number)
    return [*fold.validation["clip_id"].to_pylist(), *fold.test["clip_id"].to_pylist()]


def test_each_clip_has_one_held_out_row_however_often_a_fold_is_written(
    root: TableRoot, labelled: tuple[pa.Table, np.ndarray, Folds]
) -> None:
    table, target, folds = labelled
    for shift in (0.1, 0.0):  # the first try died before the fold was marked as done
        for number in range(3):
            assert (
                write_fold_predictions(root, FACTS, folds, number, scores(held_ids(folds, number), shift), table) == ()
            )
    rows = held_out(read_predictions(root, "e", "x3d_s", folds=range(3)))
    assert sorted(rows["clip_id"].to_pylist()) == sorted(table["clip_id"].to_pylist())
    truth = dict(zip(table["clip_id"].to_pylist(), target.tolist(), strict=True))
    wanted = scores(table["clip_id"].to_pylist())
    for row in rows.to_pylist():
        assert row["target"] == truth[row["clip_id"]]
        assert row["probability"] == pytest.approx(wanted[row["clip_id"]])
        assert (row["fold_set"], row["bundle"], row["synthetic"], row["in_sample"]) == ("f", "b1", True, False)
    view = query(root, "SELECT count(*) AS n, count(DISTINCT clip_id) AS clips FROM out_of_fold").to_pylist()
    assert view == [{"n": 120, "clips": 120}]


def test_clips_without_a_score_are_named_and_training_clips_refused(
    root: TableRoot, labelled: tuple[pa.Table, np.ndarray, Folds]
) -> None:
    table, _, folds = labelled
    ids = held_ids(folds, 0)
    assert write_fold_predictions(root, FACTS, folds, 0, scores(ids[2:]), table) == tuple(sorted(ids[:2]))
    stolen = folds.fold(0).train["clip_id"].to_pylist()[:1]
    with pytest.raises(ValueError, match="1 probabilities are of clips that fold 0 does not hold out"):
        write_fold_predictions(root, FACTS, folds, 0, scores(ids + stolen), table)


def test_rows_of_patients_that_a_model_has_seen_are_in_sample(
    root: TableRoot, labelled: tuple[pa.Table, np.ndarray, Folds]
) -> None:
    table, target, folds = labelled
    seen = folds.fold(0).training_patients
    for data in ("site-a", "site-b"):
        write_set_predictions(
            root, FACTS, data, table, target, scores(table["clip_id"].to_pylist()), training_patients=seen
        )
    rows = read_predictions(root, "e", "x3d_s", data="site-a")
    assert len(rows) == 120
    kept = held_out(rows)
    assert sorted(kept["clip_id"].to_pylist()) == folds.fold(0).test["clip_id"].to_pylist()
    assert query(root, "SELECT count(*) AS n FROM predictions").to_pylist() == [{"n": 240}]
    assert query(root, "SELECT count(*) AS n FROM out_of_fold").to_pylist() == [{"n": 0}]


def test_figures_become_rows_and_are_replaced_as_a_whole(
    root: TableRoot, labelled: tuple[pa.Table, np.ndarray, Folds]
) -> None:
    table, _, folds = labelled
    for number in range(3):
        write_fold_predictions(root, FACTS, folds, number, scores(held_ids(folds, number)), table)
    rows = held_out(read_predictions(root, "e", "x3d_s", folds=range(3)))
    truth, probability = rows["target"].to_numpy(), rows["probability"].to_numpy()
    groups = rows["group_id"].to_pylist()
    summary = folds_summary(truth, probability, groups, rows["fold"].to_numpy(), 0.4, resamples=50)
    views = [["LAO", "RAO", None][int(clip) % 3] for clip in rows["clip_id"].to_pylist()]
    figures = folds_rows(summary)
    figures += subgroup_rows("view", by_subgroup(truth, probability, groups, 0.4, views, resamples=50))
    figures += calibration_rows(calibration(truth, probability), scope="pooled")
    figures += decision_rows(decision_curve(truth, probability), scope="pooled")
    paired = compare_models(
        truth, probability[::-1], probability, groups, threshold_a=0.4, threshold_b=0.4, resamples=50
    )
    figures += comparison_rows(paired, "r18_3d", scope="pooled")
    figures += [{"scope": "fold", "fold": 0, "metric": "epochs", "value": 3.0}]
    assert write_metrics(root, FACTS, "out_of_fold", figures, data_domain="synthetic") == len(figures)
    assert write_metrics(root, FACTS, "out_of_fold", figures, data_domain="synthetic") == 0
    assert write_metrics(root, FACTS, "out_of_fold", figures[:-1], data_domain="synthetic") == len(figures) - 1
    stored = read_set(root, "metrics", experiment="e", model="x3d_s", data="out_of_fold").to_pylist()
    assert len(stored) == len(figures) - 1
    wide = query(root, "SELECT * FROM metrics_wide ORDER BY scope, fold").to_pylist()
    assert [(row["scope"], row["fold"]) for row in wide] == [
        ("fold", 0), ("fold", 1), ("fold", 2), ("mean_of_folds", None), ("pooled", None),
    ]  # fmt: skip
    pooled = wide[-1]
    assert pooled["auc"] == pytest.approx(summary.pooled.auc)
    assert pooled["auc_low"] < pooled["auc"] < pooled["auc_high"]
    assert (pooled["num_clips"], pooled["num_patients"], pooled["data_domain"]) == (120, 19, "synthetic")
    assert wide[3]["auc"] == pytest.approx(np.mean([row["auc"] for row in wide[:3]]))
    by_name = {
        (row["metric"], row["subgroup_value"], row["compared_with"]): row for row in stored if row["fold"] is None
    }
    assert by_name["true_positive", None, None]["value"] == summary.pooled.confusion.true_positive
    assert by_name["auc", None, None]["threshold"] is None
    assert by_name["mcnemar", None, "r18_3d"]["p_value"] is not None
    assert by_name["auc", "LAO", None]["subgroup"] == "view"


def test_a_figure_that_is_not_defined_is_null_with_its_reason(root: TableRoot) -> None:
    summary = folds_summary([1, 1, 1], [0.5, 0.6, 0.7], ["a", "b", "c"], [0, 0, 1], 0.4, resamples=20)
    write_metrics(root, FACTS, "out_of_fold", folds_rows(summary))
    sql = "SELECT scope, fold, value, note FROM metrics WHERE metric = 'auc' ORDER BY scope, fold"
    rows = query(root, sql).to_pylist()
    assert len(rows) == 4
    assert all(row["value"] is None and row["note"] for row in rows)
