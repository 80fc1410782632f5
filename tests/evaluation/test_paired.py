from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, norm

from angio_ray.evaluation.intervals import delong_difference
from angio_ray.evaluation.paired import PAIRED_FIGURES, compare_models, mcnemar

ONLY_A, ONLY_B = (True, False), (False, True)


def verdicts(*, only_a: int, only_b: int, both: int = 0, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    cells = [ONLY_A] * only_a + [ONLY_B] * only_b + [(True, True)] * both + [(False, False)] * neither
    return np.array(cells).T[0], np.array(cells).T[1]


def two_models(seed: int = 0, patients: int = 60, clips: int = 5, gain: float = 1.0):
    """Targets, a weak and a stronger model's probabilities whose errors go together within a patient, patients."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), clips)
    target = rng.random(patient.size) < 0.3
    shared = rng.normal(size=patients)[patient]
    a = norm.cdf(target + shared + rng.normal(size=patient.size) - 0.5)
    b = norm.cdf((1 + gain) * target + shared + rng.normal(size=patient.size) - 0.5)
    return target, a, b, patient


def test_mcnemar_gives_published_values() -> None:
    # Airway hyper-responsiveness before and after stem cell transplantation: exact 0.070, mid-p 0.039, asymptotic 0.034
    # (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91)
    a, b = verdicts(only_a=1, only_b=7, both=1, neither=12)
    found = mcnemar(a, b, np.arange(a.size))
    assert (found.only_a_right, found.only_b_right, found.independent) == (1, 7, True)
    assert [found.p_exact, found.p_mid, found.p_clustered] == pytest.approx([0.070, 0.039, 0.034], abs=5e-4)


def test_mcnemar_by_patients_is_the_plain_one_where_each_has_one_row() -> None:
    a, b = verdicts(only_a=150, only_b=86, both=794, neither=570)
    found = mcnemar(a, b, np.arange(a.size))
    assert found.p_clustered == pytest.approx(chi2.sf((150 - 86) ** 2 / (150 + 86), 1))


def test_mcnemar_without_discordant_rows_and_with_as_many_on_both_sides() -> None:
    same = np.ones(4, bool)
    found = mcnemar(same, same, np.arange(4))
    assert (found.p_exact, found.p_mid, found.p_clustered) == (1, 1, None)
    found = mcnemar(*verdicts(only_a=2, only_b=2), np.arange(4))
    assert (found.p_exact, found.p_mid, found.p_clustered) == (1, 1 - 6 / 16 / 2, 1)
    with pytest.raises(ValueError, match="cannot be paired"):
        mcnemar(same, same[:3], np.arange(4))


def test_rows_that_come_twice_prove_no_more() -> None:
    a, b = verdicts(only_a=1, only_b=7, both=13)
    once, twice = mcnemar(a, b, np.arange(21)), mcnemar(np.tile(a, 2), np.tile(b, 2), np.tile(np.arange(21), 2))
    assert twice.p_exact < once.p_exact
    assert twice.p_clustered == pytest.approx(once.p_clustered)
    assert not twice.independent


def test_the_stronger_model_is_found_by_either_method() -> None:
    target, a, b, patient = two_models()
    found = compare_models(target, a, b, patient, threshold_a=0.5, threshold_b=0.5, resamples=500)
    assert (found.num_rows, found.num_patients) == (300, 60)
    assert set(found.differences) == set(PAIRED_FIGURES)
    assert {d.method for d in found.differences.values()} == {"clustered_bootstrap"}
    auc = found.differences["auc"]
    assert auc.estimate == pytest.approx((found.b.auc or 0) - (found.a.auc or 0))
    assert auc.low is not None
    assert auc.low > 0
    assert auc.p_value is not None
    assert auc.p_value < 0.01
    assert (found.differences["brier"].estimate or 0) < 0
    alone = compare_models(target, a, b, np.arange(300), threshold_a=0.5, threshold_b=0.5, resamples=100)
    assert alone.differences["auc"] == delong_difference(target, a, b)
    assert alone.mcnemar.independent


def test_comparing_the_other_way_round_turns_the_sign() -> None:
    target, a, b, patient = two_models(gain=0.3)
    forth = compare_models(target, a, b, patient, threshold_a=0.4, threshold_b=0.6, resamples=300).differences
    back = compare_models(target, b, a, patient, threshold_a=0.6, threshold_b=0.4, resamples=300).differences
    for name, d in forth.items():
        assert d.estimate is not None
        assert d.low is not None
        assert (back[name].estimate, back[name].high) == pytest.approx((-d.estimate, -d.low))
        assert back[name].p_value == pytest.approx(d.p_value)


def test_equal_models_differ_in_one_study_of_twenty() -> None:
    found = []
    for seed in range(200):
        target, a, b, patient = two_models(seed, patients=40, clips=3, gain=0.0)
        figures = ["auc", "accuracy"]
        compared = compare_models(
            target, a, b, patient, threshold_a=0.5, threshold_b=0.5, figures=figures, resamples=200, seed=seed
        )
        found.append([(compared.differences[name].p_value or 0) < 0.05 for name in figures])
    assert np.mean(found, axis=0).tolist() == pytest.approx([0.05, 0.05], abs=0.035)


def test_a_model_against_itself_and_what_is_undefined() -> None:
    target, a, _, patient = two_models()
    same = compare_models(target, a, a, patient, threshold_a=0.5, threshold_b=0.5, resamples=50)
    assert {(d.estimate, d.low, d.high, d.p_value) for d in same.differences.values()} == {(0, 0, 0, 1)}
    none = compare_models([0, 0], [0.1, 0.2], [0.3, 0.2], [1, 1], threshold_a=0.5, threshold_b=0.5)
    assert none.differences["auc"].note == "undefined on these rows"
    assert (none.differences["accuracy"].estimate, none.differences["accuracy"].note) == (0, "one patient")
