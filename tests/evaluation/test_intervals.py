from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from angio_ray.evaluation.bootstrap import grouped_rows, logit_interval, rarer_patients, resample, weighted_figures
from angio_ray.evaluation.intervals import (
    CALIBRATION_FIGURES,
    DEFAULT_FIGURES,
    delong,
    delong_difference,
    interval,
    intervals,
    wilson,
)

# WFNS grade 1..5 by outcome (good, poor) of the 113 patients of Turck 2010, pROC's example data `aSAH`.
WFNS_GOOD, WFNS_POOR = (37, 20, 3, 8, 4), (2, 12, 1, 8, 18)

# DeLong, DeLong and Clarke-Pearson 1988, the 43 patients with all three tests, as SAS/STAT prints them in its example
# "Comparing Receiver Operating Characteristic Curves": albumin, total protein, 10 - K-G score, outcome.
OVARIAN = np.fromstring(
    """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
    3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
    2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
    3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
    3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
    3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
    """,
    sep=" ",
).reshape(-1, 4)


def clustered(
    rng: np.random.Generator, patients: int = 100, clips: int = 4
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Clips that resemble one another within a patient, in class and in score (normal, 1 higher for positives)."""
    patient = np.repeat(np.arange(patients), clips)
    target = rng.random(patient.size) < norm.cdf(-0.5 + 1.5 * rng.normal(size=patients))[patient]
    score = target + rng.normal(size=patients)[patient] + rng.normal(size=patient.size)
    return target, norm.cdf(score - 0.5), patient


def brute_force(target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's areas and covariance by their definition: all pairs, O(n^2)."""
    above, below = [], []
    for score in scores:
        pairs = np.sign(score[target][:, None] - score[~target][None, :]) / 2 + 0.5
        above.append(pairs.mean(axis=1))
        below.append(pairs.mean(axis=0))
    covariance = np.cov(above) / target.sum() + np.cov(below) / (~target).sum()
    return np.mean(above, axis=1), covariance


def test_delong_is_procs_on_its_own_example() -> None:
    target = np.repeat([0, 1], [sum(WFNS_GOOD), sum(WFNS_POOR)])
    grade = np.concatenate([np.repeat(range(1, 6), WFNS_GOOD), np.repeat(range(1, 6), WFNS_POOR)])
    found = delong(target, grade)
    assert found is not None
    # pROC: auc(roc(outcome ~ wfns)) 0.8237, ci.auc 0.7485-0.8988 (DeLong); var(roc) in its tests/testthat/test-var.R
    assert found.covariance_MM[0, 0] == pytest.approx(0.00146991470882363, rel=1e-12)
    found = interval("auc", target, grade / 5, np.arange(113))
    assert (found.method, found.num_patients) == ("delong", 113)
    assert [found.estimate, found.low, found.high] == pytest.approx([0.8237, 0.7485, 0.8988], abs=5e-5)


def test_delong_is_sass_on_delongs_own_data() -> None:
    albumin, protein, score, outcome = OVARIAN.T
    # The data are from SAS's page; its printed figures are from memory, so the definition is held against them as well.
    areas, covariance = brute_force(outcome == 1, np.array([albumin, 10 - score, protein]))
    assert areas == pytest.approx([0.7366, 0.7258, 0.6478], abs=5e-5)
    assert np.sqrt(np.diag(covariance)) == pytest.approx([0.0927, 0.1028, 0.1000], abs=5e-5)
    # SAS: areas 0.7366 (0.0927), 0.7258 (0.1028), 0.6478 (0.1000); all three alike: chi-square 2.5340, p 0.2817
    found = delong(outcome, [albumin, 10 - score, protein])
    assert found is not None
    assert found.auc_M == pytest.approx([0.7366, 0.7258, 0.6478], abs=5e-5)
    assert np.sqrt(np.diag(found.covariance_MM)) == pytest.approx([0.0927, 0.1028, 0.1000], abs=5e-5)
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    both = contrast @ found.auc_M
    statistic = both @ np.linalg.solve(contrast @ found.covariance_MM @ contrast.T, both)
    assert [statistic, chi2.sf(statistic, 2)] == pytest.approx([2.5340, 0.2817], abs=5e-5)
    # each against K-G: estimate, limits, p
    printed = ((albumin, 0.0108, -0.1761, 0.1976, 0.9102), (protein, -0.0780, -0.2830, 0.1271, 0.4561))
    for test, *expected in printed:
        d = delong_difference(outcome, 10 - score, test)
        assert [d.estimate, d.low, d.high, d.p_value] == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("decimals", [1, 8], ids=["ties", "no ties"])
def test_delong_by_midranks_is_delong_by_all_pairs(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    target = rng.random(150) < 0.3
    scores = np.round(rng.normal(size=(3, 150)) + target, decimals)
    found = delong(target, scores)
    assert found is not None
    areas, covariance = brute_force(target, scores)
    assert found.auc_M == pytest.approx(areas)
    assert found.covariance_MM.ravel() == pytest.approx(covariance.ravel())


def test_a_model_does_not_differ_from_itself() -> None:
    _, protein, _, outcome = OVARIAN.T
    same = delong_difference(outcome, protein, protein)
    assert (same.estimate, same.p_value, same.method) == (0, 1, "delong")
    assert delong(np.zeros(3), [1, 2, 3]) is None
    assert delong_difference([0, 0], [1, 2], [2, 1]).note == "one class only"
    one = delong_difference([0, 0, 1], [1, 2, 3], [3, 2, 1])
    assert (one.estimate, one.low, one.note) == (-1, None, "one row of a class")
    sure = delong_difference([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert (sure.estimate, sure.p_value, sure.note) == (-1, None, "no variance")


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_newcombes_table(successes: int, trials: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, method 3
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_no_trials_have_no_interval() -> None:
    assert wilson(0, 0) is None


def test_clustered_intervals_cover_and_naive_ones_do_not() -> None:
    # The score of a clip is N(class, 2), half of the variance the patient's; 0.5 is called positive.
    truth = {"auc": norm.cdf(0.5), "sensitivity": norm.cdf(0.5 / 2**0.5)}
    covered, naive, studies = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0), 1000
    rng = np.random.default_rng(0)
    for seed in range(studies):
        target, probability, patient = clustered(rng)
        rows = grouped_rows(target, probability, patient, 0.5)
        weighted = weighted_figures(rows, list(truth))
        draws = resample(weighted, 100, 400, resamples=300, seed=seed)
        estimates = {name: float(value[0]) for name, value in weighted(np.ones((1, 100))).items()}
        for name, true in truth.items():
            low, high, _ = logit_interval(estimates[name], draws[name], rarer_patients(rows) - 1, 100) or (1, 0, 0)
            covered[name] += low <= true <= high
        if seed < 200:
            for name, made in intervals(target, probability, np.arange(400), figures=list(truth)).items():
                naive[name] += (made.low or 1) <= truth[name] <= (made.high or 0)
        if seed < 3:  # what was counted is what `intervals` gives
            made = interval("auc", target, probability, patient, resamples=300, seed=seed)
            expected = logit_interval(estimates["auc"], draws["auc"], rarer_patients(rows) - 1, 100)
            assert (made.low, made.high, 0) == pytest.approx(expected)
    for name in truth:
        assert covered[name] / studies == pytest.approx(0.95, abs=0.02), name
        assert naive[name] / 200 < 0.9, name


@pytest.mark.parametrize("patients", [20, 60])
def test_intervals_cover_where_the_product_works(patients: int) -> None:
    """AUC 0.96, 14 % positive, 7 clips a patient: percentiles of the same draws cover the AUC in 0.86 and 0.90 of studies."""
    truth = {"auc": norm.cdf(2.5 / 2**0.5), "sensitivity": norm.cdf(1.25), "specificity": norm.cdf(1.25)}
    covered, without, studies = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0), 400
    rng = np.random.default_rng(7)
    for seed in range(studies):
        patient = np.repeat(np.arange(patients), 7)
        target = rng.random(patient.size) < 0.14
        score = 2.5 * target + 0.5**0.5 * (rng.normal(size=patients)[patient] + rng.normal(size=patient.size))
        made = intervals(target, norm.cdf(score - 1.25), patient, figures=list(truth), resamples=200, seed=seed)
        for name, true in truth.items():
            low, high = made[name].low, made[name].high
            if low is None or high is None:
                without[name] += 1  # an AUC of 1
            else:
                covered[name] += low <= true <= high
    for name in truth:
        assert without[name] <= 0.05 * studies, name
        assert 0.925 <= covered[name] / (studies - without[name]) <= 0.99, name


def test_each_figure_says_how_its_interval_was_made() -> None:
    target, probability, patient = clustered(np.random.default_rng(0), patients=30)
    figures = (*DEFAULT_FIGURES, *CALIBRATION_FIGURES)
    found = intervals(target, probability, patient, figures=figures, resamples=200)
    assert {name: made.method for name, made in found.items()} == {
        **dict.fromkeys(DEFAULT_FIGURES, "clustered_bootstrap"),
        **dict.fromkeys(CALIBRATION_FIGURES, "clustered_sandwich"),
    }
    assert {made.num_patients for made in found.values()} == {30}
    alone = intervals(target, probability, np.arange(120), figures=figures, resamples=200)
    ways = {"auc": "delong", **dict.fromkeys(("average_precision", "brier", "f1"), "clustered_bootstrap")}
    ways |= dict.fromkeys(CALIBRATION_FIGURES, "clustered_sandwich")
    assert {name: made.method for name, made in alone.items()} == {name: ways.get(name, "wilson") for name in figures}
    assert (found["auc"].resamples, alone["auc"].resamples) == (200, None)
    for made in (*found.values(), *alone.values()):
        assert made.low is not None
        assert made.estimate is not None
        assert made.high is not None
        assert made.low < made.estimate < made.high


def test_one_figure_is_the_same_as_among_others_and_again() -> None:
    target, probability, patient = clustered(np.random.default_rng(0), patients=20)
    among = intervals(target, probability, patient, resamples=100, seed=4)
    assert interval("f1", target, probability, patient, resamples=100, seed=4) == among["f1"]
    assert interval("f1", target, probability, patient, resamples=100, seed=5) != among["f1"]


def test_on_independent_rows_bootstrap_and_delong_agree() -> None:
    rng = np.random.default_rng(1)
    target = rng.random(400) < 0.3
    probability = norm.cdf(rng.normal(size=400) + target)
    made = interval("auc", target, probability, np.arange(400))
    twice = np.repeat(np.arange(400), 2)  # every row twice: no more is known
    again = interval("auc", target[twice], probability[twice], twice, resamples=1000)
    assert (made.method, again.method) == ("delong", "clustered_bootstrap")
    assert [again.low, again.high] == pytest.approx([made.low, made.high], abs=0.006)


def test_calibration_intervals_do_not_narrow_when_every_row_comes_twice() -> None:
    rng = np.random.default_rng(1)
    target = rng.random(400) < 0.3
    probability = norm.cdf(rng.normal(size=400) + target - 1)
    made = interval("calibration_slope", target, probability, np.arange(400))
    twice = np.repeat(np.arange(400), 2)
    again = interval("calibration_slope", target[twice], probability[twice], twice)
    assert [again.estimate, again.low, again.high] == pytest.approx([made.estimate, made.low, made.high], rel=1e-3)


def test_calibration_intervals_cover() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        logit = rng.normal(size=300)
        target = rng.random(300) < 1 / (1 + np.exp(-logit))
        made = interval("calibration_slope", target, 1 / (1 + np.exp(-logit)), np.arange(300))
        assert made.low is not None
        assert made.high is not None
        covered += made.low <= 1 <= made.high
    assert covered / 100 == pytest.approx(0.95, abs=0.05)


def test_a_share_without_a_miss_gets_a_cautious_interval() -> None:
    target, patient = np.repeat([0, 1], 60), np.tile(np.repeat(np.arange(20), 3), 2)
    probability = np.where(target, 0.9, 0.1)
    found = intervals(target, probability, patient, resamples=100)
    assert found["sensitivity"].method == "wilson_patients"
    assert (found["sensitivity"].low, found["sensitivity"].high) == pytest.approx(wilson(20, 20))
    assert (found["auc"].estimate, found["auc"].low, found["auc"].method) == (1, None, None)
    assert "classes that do not overlap" in (found["auc"].note or "")
    assert interval("auc", target[::3], probability[::3], np.arange(40)).note == (
        "no variance: classes that do not overlap"
    )


@pytest.mark.parametrize(
    ("target", "patient", "figure", "estimate", "note"),
    [
        ([0, 0, 0], [1, 1, 2], "auc", None, "undefined on these rows"),
        ([0, 0, 1], [1, 1, 1], "auc", 0.5, "one patient"),
        ([0, 0, 1], [1, 1, 1], "sensitivity", 0, "one patient"),
        ([0, 0, 1], [1, 2, 3], "auc", 0.5, "one row of a class"),
        ([0, 0, 0], [1, 1, 2], "calibration_slope", None, "undefined on these rows"),
        ([], [], "accuracy", None, "undefined on these rows"),
    ],
)
def test_without_an_interval_it_says_why(
    target: list[int], patient: list[int], figure: str, estimate: float | None, note: str
) -> None:
    made = interval(figure, target, [0.2, 0.4, 0.3][: len(target)], patient, resamples=50)
    assert (made.estimate, made.low, made.high, made.method, made.note) == (estimate, None, None, None, note)


def test_draws_of_one_class_are_counted() -> None:
    made = interval("auc", [0, 0, 0, 1, 1, 0], [0.1, 0.5, 0.2, 0.4, 0.6, 0.7], [1, 1, 2, 2, 2, 3], resamples=300)
    assert made.resamples == 300
    assert 20 < made.undefined_draws < 150


def test_intervals_of_few_patients_are_marked() -> None:
    target, probability, patient = clustered(np.random.default_rng(0), patients=20)
    assert interval("auc", target, probability, patient, resamples=50).note is None
    few = interval("auc", target[:60], probability[:60], patient[:60], resamples=50)
    assert few.note == "fewer than 20 patients: the interval is rough"


def test_unknown_figures_and_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="no interval for ece"):
        interval("ece", [0, 1], [0.1, 0.9], [1, 2])
    with pytest.raises(ValueError, match="3 patients for 2 rows"):
        interval("auc", [0, 1], [0.1, 0.9], [1, 2, 3])
