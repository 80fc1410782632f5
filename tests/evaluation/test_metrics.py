from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve

from angio_ray.evaluation.metrics import (
    FIGURES,
    Confusion,
    binary_metrics,
    calibration,
    called_positive,
    decision_curve,
)

# The quality paper's X3D-S on its independent set (20,388 clips), and its row of figures for them.
PAPER_COUNTS = Confusion(true_positive=1920, false_negative=531, true_negative=15971, false_positive=1966)
PAPER_ROW = {"accuracy": 0.88, "precision": 0.49, "sensitivity": 0.78, "specificity": 0.89, "f1": 0.61}


def rows_of(counts: Confusion) -> tuple[np.ndarray, np.ndarray]:
    """Rows that give these counts at a threshold of 0.5."""
    cells = ((1, 0.9, counts.true_positive), (1, 0.1, counts.false_negative))
    cells += ((0, 0.9, counts.false_positive), (0, 0.1, counts.true_negative))
    target = np.concatenate([np.full(number, value) for value, _, number in cells])
    return target, np.concatenate([np.full(number, score) for _, score, number in cells])


def drawn(number: int = 4000, seed: int = 0, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets drawn from probabilities whose logit is stated `sharpness` times too large."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-1, 1.5, number)
    return rng.random(number) < expit(truth), expit(sharpness * truth)


def test_the_papers_counts_give_its_row() -> None:
    found = binary_metrics(*rows_of(PAPER_COUNTS), 0.5)
    assert found.confusion == PAPER_COUNTS
    assert {name: round(found.figures()[name] or 0, 2) for name in PAPER_ROW} == PAPER_ROW
    assert found.num_rows == 20_388
    # It excludes 19.1 % of the clips, readers 12.0 %, and 96.8 % of the kept ones are satisfactory.
    shares = (found.confusion.positive_rate, found.confusion.prevalence, found.confusion.npv)
    assert [round(share or 0, 3) for share in shares] == [0.191, 0.12, 0.968]


def test_figures_of_a_few_rows_by_hand() -> None:
    found = binary_metrics([1, 0, 1, 0, 0], [0.9, 0.8, 0.6, 0.6, 0.1], 0.7)
    assert found.confusion == Confusion(true_positive=1, false_positive=1, false_negative=1, true_negative=2)
    assert found.figures() == pytest.approx(
        {
            "auc": (3 + 1.5) / 6,  # the second positive beats one negative and ties with one
            "average_precision": 0.5 * 1 + 0.5 * 2 / 4,
            "brier": (0.01 + 0.64 + 0.16 + 0.36 + 0.01) / 5,
            "accuracy": 3 / 5,
            "precision": 1 / 2,
            "sensitivity": 1 / 2,
            "specificity": 2 / 3,
            "npv": 2 / 3,
            "f1": 1 / 2,
            "positive_rate": 2 / 5,
            "prevalence": 2 / 5,
        }
    )
    assert tuple(found.figures()) == FIGURES
    assert (found.threshold, found.num_rows, found.num_positive) == (0.7, 5, 2)


def test_each_row_may_have_its_own_threshold() -> None:
    found = binary_metrics([1, 1, 0, 0], [0.4, 0.4, 0.4, 0.4], [0.3, 0.5, 0.3, 0.5])
    assert found.confusion == Confusion(true_positive=1, false_positive=1, false_negative=1, true_negative=1)
    assert found.threshold is None


@pytest.mark.parametrize(
    ("target", "defined"),
    [
        ([0, 0], {"brier", "accuracy", "precision", "specificity", "npv", "f1", "positive_rate", "prevalence"}),
        ([1, 1], {"brier", "accuracy", "precision", "sensitivity", "npv", "f1", "positive_rate", "prevalence"}),
        ([], set()),
    ],
    ids=["negatives", "positives", "no rows"],
)
def test_what_is_undefined_is_null_and_never_nan(target: list[int], defined: set[str]) -> None:
    probability = [0.2, 0.8][: len(target)]
    found = binary_metrics(target, probability, 0.5).figures()
    assert {name for name, value in found.items() if value is not None} == defined
    assert all(np.isfinite(value) for value in found.values() if value is not None)
    judged = calibration(target, probability)
    assert (judged.slope, judged.intercept, judged.in_the_large) == (None, None, None)
    assert (judged.ece is None) == (not target)


def test_nothing_called_positive_has_no_precision() -> None:
    found = binary_metrics([0, 1], [0.1, 0.2], 0.5)
    assert (found.confusion.precision, found.confusion.sensitivity, found.confusion.f1) == (None, 0, 0)


def test_a_score_at_the_threshold_is_positive_as_the_scorer_stores_it() -> None:
    stored = np.float32(0.659)
    assert float(stored) < 0.659
    assert called_positive([stored, 0.6589, 0.7], 0.659).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("target", "probability", "message"),
    [
        ([0, 1], [0.5], "not two lists of one length"),
        ([0, 2], [0.5, 0.5], "targets are 0 and 1"),
        ([0, 1], [0.5, float("nan")], "1 of 2 rows have no finite score"),
        ([0, 1], [0.5, 1.5], "probabilities lie in 0..1"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(target: list[int], probability: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binary_metrics(target, probability, 0.5)


def test_calibration_bins_are_scikit_learns_and_hold_equal_mass() -> None:
    target, probability = drawn()
    found = calibration(target, probability, num_bins=10)
    observed, expected = calibration_curve(target, probability, n_bins=10, strategy="quantile")
    assert [b.observed for b in found.bins] == pytest.approx(observed)
    assert [b.mean_probability for b in found.bins] == pytest.approx(expected)
    assert {b.num_rows for b in found.bins} == {400}
    assert found.ece == pytest.approx(np.abs(observed - expected).mean())


def test_rows_of_one_probability_share_a_bin_in_any_order() -> None:
    target = np.tile([1, 0, 0, 1, 0, 0], 10)
    probability = np.tile([0.3, 0.3, 0.3, 0.9, 0.9, 0.9], 10)
    found = calibration(target, probability, num_bins=5)
    assert [(b.num_rows, b.low, b.high) for b in found.bins] == [(30, 0.3, 0.3), (30, 0.9, 0.9)]
    assert found.ece == pytest.approx((abs(1 / 3 - 0.3) + abs(1 / 3 - 0.9)) / 2)
    back = calibration(target[::-1], probability[::-1], num_bins=5)
    assert back.ece == pytest.approx(found.ece)


def test_recalibration_finds_how_much_too_sharp_the_probabilities_are() -> None:
    fair, sharp = calibration(*drawn()), calibration(*drawn(sharpness=2.0))
    assert fair.slope == pytest.approx(1, abs=0.08)
    assert fair.intercept == pytest.approx(0, abs=0.1)
    assert sharp.slope == pytest.approx((fair.slope or 0) / 2, rel=1e-3)
    assert (sharp.ece or 0) > 3 * (fair.ece or 1)


def test_recalibration_solves_its_likelihood_equations() -> None:
    target, probability = drawn(500, seed=3, sharpness=1.7)
    found = calibration(target, probability)
    assert found.slope is not None
    assert found.intercept is not None
    assert found.in_the_large is not None
    x = logit(probability)
    residual = target - expit(found.intercept + found.slope * x)
    assert [residual.sum(), (residual * x).sum()] == pytest.approx([0, 0], abs=1e-4)
    assert expit(found.in_the_large + x).mean() == pytest.approx(target.mean())


@pytest.mark.parametrize("probability", [[0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.4, 0.4, 0.4, 0.4]])
def test_classes_that_do_not_overlap_have_no_slope(probability: list[float]) -> None:
    found = calibration([0, 0, 1, 1], probability)
    assert (found.slope, found.intercept) == (None, None)
    assert found.in_the_large is not None


def test_probabilities_of_0_and_1_have_a_finite_slope() -> None:
    found = calibration([0, 0, 1, 1, 0, 1], [0.0, 1.0, 1.0, 0.0, 0.3, 0.6])
    assert found.slope is not None
    assert np.isfinite(found.slope)


def test_net_benefit_by_hand_and_of_the_extremes() -> None:
    target, probability = rows_of(PAPER_COUNTS)
    found = decision_curve(target, probability, [0.05, 0.5, 0.95])
    call_all = [(2451 - 17937 * t / (1 - t)) / 20388 for t in (0.05, 0.5, 0.95)]
    assert found.call_all_T.tolist() == pytest.approx(call_all)
    assert found.net_benefit_T.tolist() == pytest.approx([call_all[0], (1920 - 1966) / 20388, 0])
    assert decision_curve(target, probability).threshold_T[[0, -1]].tolist() == [0.01, 0.99]
    with pytest.raises(ValueError, match="between 0 and 1"):
        decision_curve(target, probability, [1.0])
    with pytest.raises(ValueError, match="needs rows"):
        decision_curve([], [])
