"""Intervals of figures: DeLong's, Wilson's, and the patient-clustered bootstrap where patients have several clips.

    intervals -> name -> Interval, each saying how it was made

Where each patient has one clip the rows are independent, and the area under the ROC curve gets DeLong's interval, a
proportion Wilson's. Else, and for what has no such form, patients are resampled (`bootstrap.logit_interval`).
Shapes: N rows, M models, P patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit
from scipy.stats import binomtest, norm, rankdata, t

from angio_ray.evaluation.bootstrap import (
    FEW_PATIENTS,
    RESAMPLES,
    VERDICT_FIGURES,
    Rows,
    grouped_rows,
    logit_interval,
    rarer_patients,
    resample,
    weighted_figures,
)
from angio_ray.evaluation.metrics import Bools, Floats, binary_metrics, checked_rows, logits, recalibration

Method = Literal["delong", "wilson", "wilson_patients", "clustered_bootstrap", "clustered_sandwich"]

FEW_NOTE = f"fewer than {FEW_PATIENTS} patients: the interval is rough"

DEFAULT_FIGURES = ("auc", "average_precision", "brier", *VERDICT_FIGURES)
CALIBRATION_FIGURES = ("calibration_slope", "calibration_intercept")


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A figure with its confidence interval."""

    estimate: float | None
    """None where the figure is undefined on these rows."""
    low: float | None
    """None, with `high`, where there is no interval."""
    high: float | None
    level: float
    method: Method | None
    """How it was made (see `intervals`); None without an interval."""
    num_patients: int
    resamples: int | None = None
    """Draws of the bootstrap."""
    undefined_draws: int = 0
    """Of these, draws in which the figure is undefined (one class only); they are left out."""
    note: str | None = None
    """Why there is no interval, or what to know of it."""


@dataclass(frozen=True, slots=True)
class DeLong:
    """Areas under M correlated ROC curves and their covariance."""

    auc_M: Floats
    covariance_MM: Floats
    """NaN where a class has a single row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A figure of B less that of A, with interval and two-sided p-value of no difference."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    level: float
    method: Method | None = None
    """How interval and p-value were made; None without."""
    note: str | None = None
    """Why there is no interval, or what to know of it."""


def intervals(
    target_N: ArrayLike,
    probability_N: ArrayLike,
    patients_N: ArrayLike,
    *,
    threshold: float | ArrayLike = 0.5,
    figures: Sequence[str] = DEFAULT_FIGURES,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each named figure of N rows with its interval; figures of one call share their draws.

    `figures` are of DEFAULT_FIGURES and CALIBRATION_FIGURES; `threshold` is one for all or one for each row (N,), and
    the intervals are at that threshold: its own choice is not resampled. Which method a figure gets:

    auc                     delong where each patient has one row, else clustered_bootstrap
    shares (sensitivity ..) wilson where each patient has one row, else clustered_bootstrap; where every row agrees (0 or
                            1) a bootstrap has no width: wilson_patients, one trial for each patient that counts
    calibration_*           clustered_sandwich
    others                  clustered_bootstrap

    Raises ValueError as `binary_metrics`, for rows without a patient and for unknown figures.
    """
    rows = grouped_rows(target_N, probability_N, patients_N, threshold)
    if unknown := [name for name in figures if name not in (*DEFAULT_FIGURES, *CALIBRATION_FIGURES)]:
        raise ValueError(f"no interval for {', '.join(unknown)}")
    estimates = binary_metrics(rows.target_N, rows.probability_N, threshold).figures()
    by_patient = rows.num_patients < rows.target_N.size
    resampled = [
        name
        for name in figures
        if name in DEFAULT_FIGURES
        and (by_patient or not (name == "auc" or name in _SHARES))
        and estimates[name] is not None
        and rows.num_patients > 1
    ]
    draws = {}
    if resampled:
        weighted = weighted_figures(rows, resampled)
        draws = resample(weighted, rows.num_patients, rows.target_N.size, resamples=resamples, seed=seed)
    found = {}
    degrees = rarer_patients(rows) - 1
    for name in figures:
        if name in CALIBRATION_FIGURES:
            found[name] = _sandwich(rows, name, level)
        elif (estimate := estimates[name]) is None:
            found[name] = _without(None, "undefined on these rows", level, rows)
        elif name in draws:
            found[name] = _resampled(rows, name, estimate, draws[name], degrees, level)
        elif by_patient or rows.num_patients < 2:
            found[name] = _without(estimate, "one patient", level, rows)
        elif name == "auc":
            found[name] = _delong_interval(rows, level)
        else:
            found[name] = _wilson(rows, name, level)
    return found


def interval(
    figure: str,
    target_N: ArrayLike,
    probability_N: ArrayLike,
    patients_N: ArrayLike,
    *,
    threshold: float | ArrayLike = 0.5,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """One figure with its interval, as `intervals`."""
    return intervals(
        target_N,
        probability_N,
        patients_N,
        threshold=threshold,
        figures=[figure],
        level=level,
        resamples=resamples,
        seed=seed,
    )[figure]


def delong(target_N: ArrayLike, score_MN: ArrayLike) -> DeLong | None:
    """Areas under the ROC curves of M scores of the same N rows, with DeLong's covariance; any finite scores will do.

    The midrank form of Sun and Xu 2014 (IEEE Signal Processing Letters 21:1389), O(M N log N); ties count half. Rows must
    be independent: one a patient. None with one class only. Raises ValueError as `checked_rows`.
    """
    scores = np.atleast_2d(np.asarray(score_MN, float))
    target = np.asarray(target_N)
    for score_N in scores:
        target, _ = checked_rows(target, score_N, unit=False)
    positives, negatives = int(target.sum()), int((~target).sum())
    if not positives or not negatives:
        return None
    rank_MN = rankdata(scores, axis=1)
    # Of each positive the share of negatives below it, of each negative that of positives above it.
    above = (rank_MN[:, target] - rankdata(scores[:, target], axis=1)) / negatives
    below = 1 - (rank_MN[:, ~target] - rankdata(scores[:, ~target], axis=1)) / positives
    covariance = np.full((len(scores), len(scores)), np.nan)
    if positives > 1 and negatives > 1:
        covariance = np.atleast_2d(np.cov(above) / positives + np.cov(below) / negatives)
    return DeLong(above.mean(axis=1), covariance)


def delong_difference(
    target_N: ArrayLike, score_a_N: ArrayLike, score_b_N: ArrayLike, *, level: float = 0.95
) -> Difference:
    """Area of B less that of A on the same independent rows, by DeLong's paired test (two-sided, normal).

    Undefined with one class only or a single row of a class. Raises ValueError as `delong`.
    """
    found = delong(target_N, np.stack([np.asarray(score_a_N, float), np.asarray(score_b_N, float)]))
    if found is None:
        return Difference(level=level, note="one class only")
    estimate = float(found.auc_M[1] - found.auc_M[0])
    contrast = np.array([-1.0, 1.0])
    variance = float(contrast @ found.covariance_MM @ contrast)
    if np.isnan(variance):
        return Difference(estimate=estimate, level=level, note="one row of a class")
    if variance <= 1e-15 and estimate:
        return Difference(estimate=estimate, level=level, note="no variance")
    error = max(variance, 0.0) ** 0.5
    half = _quantile(level) * error
    return Difference(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        p_value=float(2 * norm.sf(abs(estimate) / error)) if error else 1.0,
        level=level,
        method="delong",
    )


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float] | None:
    """Wilson's score interval of a proportion of independent trials; None without trials."""
    if not trials:
        return None
    found = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


_SHARES: dict[str, tuple[str, str]] = {
    # name -> cells of the confusion counted, cells that they are a share of
    "accuracy": ("tp tn", "tp fp fn tn"),
    "precision": ("tp", "tp fp"),
    "sensitivity": ("tp", "tp fn"),
    "specificity": ("tn", "tn fp"),
    "npv": ("tn", "tn fn"),
    "positive_rate": ("tp fp", "tp fp fn tn"),
    "prevalence": ("tp fn", "tp fp fn tn"),
}


def _cells(rows: Rows, names: str) -> Bools:
    """Rows that are in one of the named cells of the confusion."""
    target, called = rows.target_N, rows.called_N
    cells = {"tp": target & called, "fp": ~target & called, "fn": target & ~called, "tn": ~target & ~called}
    return np.asarray(np.logical_or.reduce([cells[name] for name in names.split()]))


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _without(estimate: float | None, note: str, level: float, rows: Rows) -> Interval:
    return Interval(
        estimate=estimate, low=None, high=None, level=level, method=None, num_patients=rows.num_patients, note=note
    )


def _resampled(rows: Rows, name: str, estimate: float, values_R: Floats, degrees: int, level: float) -> Interval:
    defined = values_R[np.isfinite(values_R)]
    if 2 * defined.size < values_R.size:
        return _without(estimate, "undefined in most draws", level, rows)
    limits = logit_interval(estimate, values_R, degrees, rows.num_patients, level)
    if limits is None:
        if name in _SHARES:
            return _patient_wilson(rows, name, estimate, level)
        return _without(estimate, "no draw differs: too few rows, or classes that do not overlap", level, rows)
    low, high, undefined = limits
    return Interval(
        estimate=estimate,
        low=low,
        high=high,
        level=level,
        method="clustered_bootstrap",
        num_patients=rows.num_patients,
        resamples=values_R.size,
        undefined_draws=undefined,
        note=FEW_NOTE if rows.num_patients < FEW_PATIENTS else None,
    )


def _patient_wilson(rows: Rows, name: str, estimate: float, level: float) -> Interval:
    patients = len(np.unique(rows.patient_N[_cells(rows, _SHARES[name][1])]))
    low, high = wilson(round(estimate * patients), patients, level) or (None, None)
    return Interval(
        estimate=estimate, low=low, high=high, level=level, method="wilson_patients", num_patients=rows.num_patients
    )


def _wilson(rows: Rows, name: str, level: float) -> Interval:
    part, whole = (int(_cells(rows, cells).sum()) for cells in _SHARES[name])
    low, high = wilson(part, whole, level) or (None, None)
    return Interval(
        estimate=part / whole, low=low, high=high, level=level, method="wilson", num_patients=rows.num_patients
    )


def _delong_interval(rows: Rows, level: float) -> Interval:
    found = delong(rows.target_N, rows.probability_N)
    assert found is not None, "an area that has an estimate has both classes"
    area, variance = float(found.auc_M[0]), float(found.covariance_MM[0, 0])
    if not variance > 0:
        why = "one row of a class" if np.isnan(variance) else "no variance: classes that do not overlap"
        return _without(area, why, level, rows)
    half = _quantile(level) * variance**0.5
    return Interval(
        estimate=area,
        low=max(0.0, area - half),
        high=min(1.0, area + half),
        level=level,
        method="delong",
        num_patients=rows.num_patients,
    )


def _sandwich(rows: Rows, name: str, level: float) -> Interval:
    """Slope and intercept of the logistic recalibration, variance by Liang and Zeger 1986 with P / (P - 1), Student's t."""
    fitted = recalibration(rows.target_N, rows.probability_N)
    if fitted is None:
        return _without(None, "undefined on these rows", level, rows)
    slope, intercept = fitted
    estimate = slope if name == "calibration_slope" else intercept
    if rows.num_patients < 2:
        return _without(estimate, "one patient", level, rows)
    x = logits(rows.probability_N)
    expected = expit(intercept + slope * x)
    design = np.stack([np.ones_like(x), x], axis=1)
    bread = np.linalg.inv(design.T @ (design * (expected * (1 - expected))[:, None]))
    score_P2 = np.stack([rows.per_patient(column * (rows.target_N - expected)) for column in design.T], axis=1)
    covariance = bread @ (score_P2.T @ score_P2) @ bread * rows.num_patients / (rows.num_patients - 1)
    spread = float(t.isf((1 - level) / 2, rows.num_patients - 1))
    half = spread * float(np.diag(covariance)[1 if name == "calibration_slope" else 0]) ** 0.5
    return Interval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        level=level,
        method="clustered_sandwich",
        num_patients=rows.num_patients,
    )
