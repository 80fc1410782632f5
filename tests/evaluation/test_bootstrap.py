from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from angio_ray.evaluation import bootstrap
from angio_ray.evaluation.bootstrap import (
    WEIGHTED_FIGURES,
    difference_interval,
    grouped_rows,
    logit_interval,
    number_patients,
    patient_draws,
    percentile,
    resample,
    weighted_figures,
)
from angio_ray.evaluation.metrics import binary_metrics


def study(seed: int = 0, rows: int = 120, patients: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, probabilities in steps of 0.05 (many ties) and patients."""
    rng = np.random.default_rng(seed)
    target = rng.random(rows) < 0.3
    probability = np.round(np.clip(rng.normal(0.4 + 0.2 * target, 0.2), 0, 1) * 20) / 20
    return target, probability, rng.integers(0, patients, rows)


def test_a_draw_weighs_as_if_its_patients_rows_were_repeated() -> None:
    target, probability, patients = study()
    rows = grouped_rows(target, probability, patients, 0.5)
    weights = np.concatenate([np.ones((1, 20)), *patient_draws(20, len(target), 8, seed=3)])
    found = weighted_figures(rows)(weights)
    for draw, weight_P in enumerate(weights):
        repeated = np.repeat(np.arange(len(target)), weight_P[patients].astype(int))
        expected = binary_metrics(target[repeated], probability[repeated], 0.5).figures()
        assert {name: found[name][draw] for name in WEIGHTED_FIGURES} == pytest.approx(expected)


def test_a_draw_of_one_class_has_no_area() -> None:
    rows = grouped_rows([0, 1], [0.2, 0.7], ["a", "b"], 0.5)
    found = weighted_figures(rows)(np.array([[2.0, 0], [0, 2], [1, 1]]))
    assert np.isnan(found["auc"]).tolist() == [True, True, False]
    assert np.isnan(found["average_precision"]).tolist() == [True, True, False]
    assert np.isnan(found["sensitivity"]).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="no weighted form of ece"):
        weighted_figures(rows, ["ece"])


def test_draws_are_the_same_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(patient_draws(7, 30, 50, seed=1)))
    monkeypatch.setattr(bootstrap, "CHUNK", 30 * 9)
    chunks = list(patient_draws(7, 30, 50, seed=1))
    assert len(chunks) == 6
    assert np.array_equal(np.concatenate(chunks), whole)
    assert (whole.sum(axis=1) == 7).all()
    assert not np.array_equal(np.concatenate(list(patient_draws(7, 30, 50, seed=2))), whole)


def test_the_spread_of_a_mean_of_patients_is_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    value_P = rng.normal(size=400)
    means = resample(lambda weights: {"mean": weights @ value_P / 400}, 400, 400, resamples=4000)["mean"]
    assert means.mean() == pytest.approx(value_P.mean(), abs=0.005)
    assert means.std() == pytest.approx(value_P.std() / 20, rel=0.05)


def test_percentiles_leave_out_undefined_draws_and_count_them() -> None:
    values = np.append(np.linspace(0, 1, 101), [np.nan] * 20)
    assert percentile(values, 100_000, 0.9) == pytest.approx((0.05, 0.95, 20), abs=1e-4)
    assert percentile(np.append(values, [np.nan] * 90), 100) is None
    assert percentile(values, 1) is None


def test_few_patients_widen_the_percentiles_to_students_t() -> None:
    draws = norm.ppf(np.arange(1, 20_000) / 20_000)  # of a mean with a standard error of 1, as the bootstrap sees it
    low, high, _ = percentile(draws, 8) or (0, 0, 0)
    assert [low, high] == pytest.approx([-2.365 * (8 / 7) ** 0.5, 2.365 * (8 / 7) ** 0.5], abs=0.01)
    low, high, _ = percentile(draws, 10_000) or (0, 0, 0)
    assert [low, high] == pytest.approx([-1.96, 1.96], abs=0.01)


@pytest.mark.parametrize("patients", [8, 1000])
def test_the_p_value_is_where_the_interval_touches_zero(patients: int) -> None:
    draws = norm.ppf(np.arange(1, 20_000) / 20_000) + 2.2
    _, _, p_value = difference_interval(2.2, draws, patients - 1, patients) or (0, 0, 0)
    back = difference_interval(-2.2, -draws, patients - 1, patients) or (0, 0, 0)
    assert back[2] == pytest.approx(p_value)
    low, _, _ = difference_interval(2.2, draws, patients - 1, patients, 1 - p_value) or (1, 0, 0)
    assert low == pytest.approx(0, abs=1e-6)
    assert difference_interval(0, np.zeros(50), patients - 1, patients) == (0, 0, 1)
    assert difference_interval(0.1, np.full(50, 0.1), patients - 1, patients) is None


def test_an_interval_on_the_logit_scale_stays_below_one_and_has_students_width() -> None:
    draws = 0.5 + 0.01 * norm.ppf(np.arange(1, 20_000) / 20_000)
    low, high, undefined = logit_interval(0.5, np.append(draws, np.nan), 10_000, 10_000) or (0, 0, 0)
    assert [low, high] == pytest.approx([0.5 - 0.0196, 0.5 + 0.0196], abs=1e-4)
    assert undefined == 1
    few = logit_interval(0.5, draws, 4, 10_000) or (0, 0, 0)
    assert few[1] - 0.5 == pytest.approx(0.0278, abs=1e-4)
    low, high, _ = logit_interval(0.98, np.clip(draws + 0.48, 0, 1), 10, 100) or (0, 1, 0)
    assert 1 - 0.98 > high - 0.98 > 0
    assert 0.98 - low > high - 0.98
    assert logit_interval(1.0, np.ones(50), 9, 10) is None
    assert logit_interval(0.9, np.full(50, 0.9), 9, 10) is None
    assert logit_interval(0.9, np.full(50, np.nan), 9, 10) is None


def test_patients_are_numbered_and_none_may_be_missing() -> None:
    number, count = number_patients(np.array(["b", "a", "b"], object))
    assert (number.tolist(), count) == ([1, 0, 1], 2)
    with pytest.raises(ValueError, match="without a patient"):
        number_patients(np.array(["b", None], object))
    with pytest.raises(ValueError, match="1 patients for 2 rows"):
        grouped_rows([0, 1], [0.1, 0.2], ["a"], 0.5)
