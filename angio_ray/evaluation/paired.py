"""Two models on the same clips: differences of their figures with intervals, and McNemar's test of their verdicts.

    compare_models -> PairedComparison

Every difference is B less A. Where each patient has one clip, the areas are compared by DeLong's paired test; else, and
for the other figures, patients are resampled and both models judged on the same draws.
Shapes: N rows, P patients, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, binomtest, norm

from angio_ray.evaluation.bootstrap import (
    FEW_PATIENTS,
    RESAMPLES,
    VERDICT_FIGURES,
    difference_interval,
    grouped_rows,
    number_patients,
    rarer_patients,
    resample,
    weighted_figures,
)
from angio_ray.evaluation.intervals import FEW_NOTE, Difference, delong_difference
from angio_ray.evaluation.metrics import Floats, Metrics, binary_metrics

PAIRED_FIGURES = ("auc", "average_precision", "brier", *(name for name in VERDICT_FIGURES if name != "prevalence"))


@dataclass(frozen=True, kw_only=True, slots=True)
class McNemar:
    """Verdicts of two models on the same rows: those that only one of them got right."""

    only_a_right: int
    only_b_right: int
    p_exact: float
    """Two-sided binomial; 1 where no verdict differs. Takes rows as independent, as the next."""
    p_mid: float
    """Exact less half the probability of the split seen: less conservative (Fagerland and others 2013)."""
    p_clustered: float | None
    """By patients, z = sum d / sqrt(sum d^2) with d = (only B right) - (only A right) of a patient: McNemar's without
    correction where each has one row, and valid where they have several. None where no verdict differs."""
    independent: bool
    """Each patient has one row; where False, only `p_clustered` holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedComparison:
    """Two models on the same rows."""

    num_rows: int
    num_patients: int
    a: Metrics
    b: Metrics
    differences: Mapping[str, Difference]
    """Figure -> B less A."""
    mcnemar: McNemar


def compare_models(
    target_N: ArrayLike,
    probability_a_N: ArrayLike,
    probability_b_N: ArrayLike,
    patients_N: ArrayLike,
    *,
    threshold_a: float | ArrayLike,
    threshold_b: float | ArrayLike,
    figures: Sequence[str] = PAIRED_FIGURES,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models on the same N rows; thresholds are one for all rows or one for each (N,).

    Raises ValueError as `intervals`.
    """
    rows_a = grouped_rows(target_N, probability_a_N, patients_N, threshold_a)
    rows_b = grouped_rows(target_N, probability_b_N, patients_N, threshold_b)
    metrics_a = binary_metrics(target_N, probability_a_N, threshold_a)
    metrics_b = binary_metrics(target_N, probability_b_N, threshold_b)
    independent = rows_a.num_patients == rows_a.target_N.size
    by_delong = {"auc"} & set(figures) if independent else set()
    names = [name for name in figures if name not in by_delong]
    of_a, of_b = weighted_figures(rows_a, names), weighted_figures(rows_b, names)

    def difference(weights_BP: Floats) -> dict[str, Floats]:
        a, b = of_a(weights_BP), of_b(weights_BP)
        return {name: b[name] - a[name] for name in names}

    num_patients, num_rows = rows_a.num_patients, rows_a.target_N.size
    draws = resample(difference, num_patients, num_rows, resamples=resamples, seed=seed) if num_patients > 1 else {}
    found = {}
    degrees = rarer_patients(rows_a) - 1
    for name in figures:
        if name in by_delong:
            found[name] = delong_difference(rows_a.target_N, rows_a.probability_N, rows_b.probability_N, level=level)
        else:
            found[name] = _difference(
                metrics_a.figures()[name], metrics_b.figures()[name], draws.get(name), degrees, num_patients, level
            )
    return PairedComparison(
        num_rows=num_rows,
        num_patients=num_patients,
        a=metrics_a,
        b=metrics_b,
        differences=found,
        mcnemar=mcnemar(rows_a.called_N == rows_a.target_N, rows_b.called_N == rows_b.target_N, patients_N),
    )


def mcnemar(right_a_N: ArrayLike, right_b_N: ArrayLike, patients_N: ArrayLike) -> McNemar:
    """McNemar's test on whether each of two models got each row right. Raises ValueError for lists of unequal length."""
    right_a, right_b = np.asarray(right_a_N, bool), np.asarray(right_b_N, bool)
    patient, num_patients = number_patients(patients_N)
    if not right_a.shape == right_b.shape == patient.shape:
        raise ValueError(f"{right_a.size}, {right_b.size} and {patient.size} rows cannot be paired")
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_exact = p_mid = 1.0
    p_clustered = None
    if only_a + only_b:
        p_exact = float(binomtest(only_a, only_a + only_b).pvalue)
        p_mid = min(1.0, p_exact - float(binom.pmf(only_a, only_a + only_b, 0.5)))
        if only_a == only_b:
            p_mid = 1.0 - float(binom.pmf(only_a, only_a + only_b, 0.5)) / 2
        d_P = np.bincount(patient, right_b.astype(float) - right_a, num_patients)
        spread = float((d_P**2).sum())
        p_clustered = float(2 * norm.sf(abs(float(d_P.sum())) / spread**0.5)) if spread else 1.0
    return McNemar(
        only_a_right=only_a,
        only_b_right=only_b,
        p_exact=p_exact,
        p_mid=p_mid,
        p_clustered=p_clustered,
        independent=num_patients == patient.size,
    )


def _difference(
    a: float | None, b: float | None, values_R: Floats | None, degrees: int, num_patients: int, level: float
) -> Difference:
    if a is None or b is None:
        return Difference(level=level, note="undefined on these rows")
    if values_R is None:
        return Difference(estimate=b - a, level=level, note="one patient")
    limits = difference_interval(b - a, values_R, degrees, num_patients, level)
    if limits is None:
        few = 2 * np.isfinite(values_R).sum() < values_R.size
        return Difference(estimate=b - a, level=level, note="undefined in most draws" if few else "no draw differs")
    low, high, p_value = limits
    return Difference(
        estimate=b - a,
        low=low,
        high=high,
        p_value=p_value,
        level=level,
        method="clustered_bootstrap",
        note=FEW_NOTE if num_patients < FEW_PATIENTS else None,
    )
