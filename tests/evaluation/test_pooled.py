from __future__ import annotations

import numpy as np
import pytest

from angio_ray.evaluation.intervals import interval
from angio_ray.evaluation.metrics import binary_metrics
from angio_ray.evaluation.pooled import by_subgroup, folds_summary

THRESHOLDS = np.array([0.3, 0.5, 0.7])


def crossvalidated(seed: int = 0):
    """Targets, probabilities, patients and folds: 3 folds of 15 patients with 4 clips, the folds' scores shifted."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(45), 4)
    fold = patient % 3
    target = (rng.random(180) < 0.4).astype(int)
    probability = np.clip(rng.normal(THRESHOLDS[fold] - 0.1 + 0.2 * target, 0.15), 0, 1)
    return target, probability, [f"p{n:02}" for n in patient], fold


def test_folds_are_judged_at_their_own_thresholds_and_pooled_beside() -> None:
    target, probability, patients, fold = crossvalidated()
    found = folds_summary(target, probability, patients, fold, THRESHOLDS[fold], resamples=200)
    for number, threshold in enumerate(THRESHOLDS):
        rows = fold == number
        assert found.folds[number] == binary_metrics(target[rows], probability[rows], threshold)
    areas = [metrics.auc for metrics in found.folds.values()]
    auc = found.mean_of_folds["auc"]
    assert (auc.mean, auc.sd, auc.num_folds) == pytest.approx((np.mean(areas), np.std(areas, ddof=1), 3))
    # The folds' scores are on different levels, which the pooled area suffers from and the mean of the folds hides.
    assert found.pooled.auc == binary_metrics(target, probability, 0.5).auc
    assert (found.pooled.auc or 1) < (auc.mean or 0) - 0.02
    assert found.pooled.threshold is None
    called = sum(metrics.confusion.true_positive for metrics in found.folds.values())
    assert found.pooled.confusion.true_positive == called
    expected = interval("auc", target, probability, patients, resamples=200)
    assert found.pooled_intervals["auc"] == expected
    assert (found.num_patients, found.num_in_sample, found.num_patients_in_several_folds) == (45, 0, 0)


def test_in_sample_rows_are_left_out_and_counted() -> None:
    target, probability, patients, fold = crossvalidated()
    seen = np.isin(patients, ["p00", "p01"])
    found = folds_summary(target, probability, patients, fold, 0.5, in_sample_N=seen, resamples=100)
    without = folds_summary(
        target[~seen], probability[~seen], list(np.array(patients)[~seen]), fold[~seen], 0.5, resamples=100
    )
    assert found.num_in_sample == 8
    assert (found.pooled, found.pooled_intervals, found.folds) == (
        without.pooled,
        without.pooled_intervals,
        without.folds,
    )
    assert found.num_patients == 43


def test_leave_one_out_is_read_from_the_pooled_rows() -> None:
    target, probability, patients, _ = crossvalidated()
    one_class = np.arange(180)  # one clip a fold: leave one acquisition out
    found = folds_summary(target, probability, patients, one_class, 0.5, resamples=100)
    assert (found.mean_of_folds["auc"].mean, found.mean_of_folds["auc"].num_folds) == (None, 0)
    assert found.pooled.auc is not None
    assert found.pooled_intervals["auc"].low is not None
    assert found.num_patients_in_several_folds == 45


def test_no_rows_are_no_figures() -> None:
    found = folds_summary([], [], [], [], 0.5)
    assert (found.folds, found.pooled.num_rows, found.pooled_intervals["auc"].estimate) == ({}, 0, None)
    with pytest.raises(ValueError, match="1 folds and 2 marks for 2 rows"):
        folds_summary([0, 1], [0.1, 0.2], ["a", "b"], [0], 0.5)
    with pytest.raises(ValueError, match="1 patients for 2 rows"):
        folds_summary([0, 1], [0.1, 0.2], ["a"], [0, 0], 0.5)


def test_subgroups_are_the_rows_of_each_value() -> None:
    target, probability, patients, fold = crossvalidated()
    vendor = [("A", "B", None)[number] if n < 170 else "A" for n, number in enumerate(fold)]
    found = by_subgroup(target, probability, patients, 0.5, vendor, resamples=100)
    assert [group.value for group in found] == ["A", "B", None]
    assert sum(group.metrics.num_rows for group in found) == 180
    rows = np.array([value is None for value in vendor])
    assert found[2].metrics == binary_metrics(target[rows], probability[rows], 0.5)
    assert found[2].num_patients == len(set(np.array(patients)[rows]))
    assert found[2].intervals["auc"].method == "clustered_bootstrap"
    with pytest.raises(ValueError, match="1 values for 180 rows"):
        by_subgroup(target, probability, patients, 0.5, ["A"])
