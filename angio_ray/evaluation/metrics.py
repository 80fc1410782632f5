"""Figures of a binary classifier on rows: discrimination, verdicts at a threshold, calibration, decision curve.

    rows -> binary_metrics -> Metrics     calibration -> Calibration     decision_curve -> DecisionCurve

A row is a clip with a target (1: the positive class, for quality "unsatisfactory") and the probability of that class;
it is called positive where the probability is at or above the threshold, compared in float32 as the scorer does.
A figure that is undefined (one class only, an empty denominator) is None, never NaN. Knows no patients: intervals that
do are in `intervals`.
Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

FIGURES = (
    "auc",
    "average_precision",
    "brier",
    "accuracy",
    "precision",
    "sensitivity",
    "specificity",
    "npv",
    "f1",
    "positive_rate",
    "prevalence",
)
"""Names of what `Metrics.figures` holds, in the order in which reports show them."""

NUM_BINS = 15
"""Of the expected calibration error: equal mass, so each holds about a fifteenth of the rows."""
LOGIT_LIMIT = 1e-6
"""Probabilities are kept this far from 0 and 1 where their logit is taken."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """How many rows came out how at a threshold."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def num_rows(self) -> int:
        """All four together."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def accuracy(self) -> float | None:
        """Share of the rows called right."""
        return ratio(self.true_positive + self.true_negative, self.num_rows)

    @property
    def precision(self) -> float | None:
        """Share of positives among those called so (positive predictive value)."""
        return ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def sensitivity(self) -> float | None:
        """Share of the positives that were found (recall)."""
        return ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float | None:
        """Share of the negatives that were let pass."""
        return ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def npv(self) -> float | None:
        """Share of negatives among those called so; for quality, of satisfactory clips among those kept."""
        return ratio(self.true_negative, self.true_negative + self.false_negative)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and sensitivity."""
        return ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def positive_rate(self) -> float | None:
        """Share called positive; for quality, the exclusion rate."""
        return ratio(self.true_positive + self.false_positive, self.num_rows)

    @property
    def prevalence(self) -> float | None:
        """Share of true positives and misses: what is positive in truth (for quality, the readers' exclusion rate)."""
        return ratio(self.true_positive + self.false_negative, self.num_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """All figures of some rows at their operating threshold."""

    confusion: Confusion
    auc: float | None
    """None with one class only, as the next."""
    average_precision: float | None
    brier: float | None
    """Mean squared difference of probability and target; None without rows."""
    threshold: float | None
    """None where the rows have several: pooled folds, each with its own."""

    @property
    def num_rows(self) -> int:
        """Rows that were judged."""
        return self.confusion.num_rows

    @property
    def num_positive(self) -> int:
        """Rows of the positive class."""
        return self.confusion.true_positive + self.confusion.false_negative

    def figures(self) -> dict[str, float | None]:
        """Name -> value of each of FIGURES, as the metrics table takes them."""
        own = {"auc": self.auc, "average_precision": self.average_precision, "brier": self.brier}
        return {name: own[name] if name in own else getattr(self.confusion, name) for name in FIGURES}


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBin:
    """Rows of about the same probability."""

    num_rows: int
    low: float
    """Least and largest probability in it."""
    high: float
    mean_probability: float
    observed: float
    """Share of positives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Whether a probability of 0.3 means three in ten."""

    ece: float | None
    """Expected calibration error: mean over the rows of |observed - mean probability| of their bin. None without rows.

    Never negative, hence above zero by chance alone in small samples.
    """
    bins: tuple[CalibrationBin, ...]
    """Of equal mass, by rising probability; rows of one probability are in one bin, so there may be fewer than asked."""
    slope: float | None
    """Of the logistic recalibration logit P(y=1) = intercept + slope * logit(p): below 1, the probabilities are too extreme.

    None, as its intercept, with one class, one probability for all, or classes that do not overlap (no finite fit).
    """
    intercept: float | None
    in_the_large: float | None
    """The intercept with the slope held at 1: above 0, the probabilities are too low on the whole. None with one class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionCurve:
    """Net benefit over threshold probabilities t: TP/n - FP/n * t / (1 - t). All (T,); calling nothing positive gives 0."""

    threshold_T: Floats
    net_benefit_T: Floats
    call_all_T: Floats
    """Of calling every row positive."""


def binary_metrics(target_N: ArrayLike, probability_N: ArrayLike, threshold: float | ArrayLike) -> Metrics:
    """All figures of N rows (N may be 0).

    target_N holds 0 and 1 (or booleans), probability_N values in 0..1; `threshold` is one for all or one for each row (N,).
    Raises ValueError for anything else, also for NaN: rows without a score are the caller's to count.
    """
    target, probability = checked_rows(target_N, probability_N)
    verdict = called_positive(probability, threshold)
    tn = fp = fn = tp = 0
    auc = average_precision = brier = None
    if target.size:
        (tn, fp), (fn, tp) = confusion_matrix(target, verdict, labels=[False, True]).tolist()
        brier = float(brier_score_loss(target, probability))
    if both_classes(target):
        auc = float(roc_auc_score(target, probability))
        average_precision = float(average_precision_score(target, probability))
    thresholds = np.unique(np.asarray(threshold, float))
    return Metrics(
        confusion=Confusion(true_positive=tp, false_positive=fp, false_negative=fn, true_negative=tn),
        auc=auc,
        average_precision=average_precision,
        brier=brier,
        threshold=float(thresholds[0]) if thresholds.size == 1 else None,
    )


def calibration(target_N: ArrayLike, probability_N: ArrayLike, *, num_bins: int = NUM_BINS) -> Calibration:
    """Expected calibration error with its bins, and the logistic recalibration. Raises ValueError as `binary_metrics`."""
    target, probability = checked_rows(target_N, probability_N)
    bins = tuple(_bins(target, probability, num_bins)) if target.size else ()
    slope, intercept = recalibration(target, probability) or (None, None)
    return Calibration(
        ece=sum(b.num_rows * abs(b.observed - b.mean_probability) for b in bins) / target.size if bins else None,
        bins=bins,
        slope=slope,
        intercept=intercept,
        in_the_large=_in_the_large(target, probability),
    )


def decision_curve(
    target_N: ArrayLike, probability_N: ArrayLike, thresholds: Sequence[float] | None = None
) -> DecisionCurve:
    """Net benefit at each threshold in 0 < t < 1 (None: 0.01, 0.02, ... 0.99); Vickers and Elkin 2006.

    Raises ValueError without rows, for a threshold outside, and as `binary_metrics`.
    """
    target, probability = checked_rows(target_N, probability_N)
    at = np.arange(1, 100) / 100 if thresholds is None else np.asarray(thresholds, float)
    if not target.size:
        raise ValueError("a decision curve needs rows")
    if not np.all((at > 0) & (at < 1)):
        raise ValueError("thresholds of a decision curve lie between 0 and 1, both left out")
    odds = at / (1 - at)
    called = called_positive(probability[:, None], at[None, :])
    true_positive, false_positive = (called & target[:, None]).mean(axis=0), (called & ~target[:, None]).mean(axis=0)
    prevalence = target.mean()
    return DecisionCurve(
        threshold_T=at,
        net_benefit_T=true_positive - false_positive * odds,
        call_all_T=prevalence - (1 - prevalence) * odds,
    )


def called_positive(probability_N: ArrayLike, threshold: float | ArrayLike) -> Bools:
    """Whether each probability is at or above its threshold, in float32: as a score is stored and judged."""
    return np.asarray(np.asarray(probability_N, np.float32) >= np.asarray(threshold, np.float32))


def checked_rows(target_N: ArrayLike, probability_N: ArrayLike, *, unit: bool = True) -> tuple[Bools, Floats]:
    """Targets and probabilities as arrays (N,). With `unit` False any finite score will do.

    Raises ValueError for unequal lengths, targets besides 0 and 1, and scores that are not finite or (unit) not in 0..1.
    """
    target, probability = np.asarray(target_N), np.asarray(probability_N, float)
    if target.ndim != 1 or target.shape != probability.shape:
        raise ValueError(
            f"targets {target.shape} and probabilities {probability.shape} are not two lists of one length"
        )
    if not np.isin(target, (0, 1)).all():
        raise ValueError("targets are 0 and 1")
    if not np.isfinite(probability).all():
        raise ValueError(f"{int((~np.isfinite(probability)).sum())} of {probability.size} rows have no finite score")
    if unit and probability.size and (probability.min() < 0 or probability.max() > 1):
        raise ValueError("probabilities lie in 0..1")
    return target.astype(bool), probability


def both_classes(target_N: Bools) -> bool:
    """Whether there is a row of each class."""
    return bool(target_N.any() and not target_N.all())


def logits(probability_N: Floats) -> Floats:
    """Logit of each probability, kept LOGIT_LIMIT away from 0 and 1."""
    return np.asarray(logit(np.clip(probability_N, LOGIT_LIMIT, 1 - LOGIT_LIMIT)), float)


def recalibration(target_N: Bools, probability_N: Floats) -> tuple[float, float] | None:
    """(slope, intercept) of the logistic regression of the target on the logit; None where there is no finite fit."""
    if not both_classes(target_N):
        return None
    x = logits(probability_N)
    positive, negative = x[target_N], x[~target_N]
    if negative.max() <= positive.min() or positive.max() <= negative.min():
        return None
    fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200).fit(x[:, None], target_N)
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def _in_the_large(target: Bools, probability: Floats) -> float | None:
    if not both_classes(target):
        return None
    x, share = logits(probability), target.mean()
    return float(brentq(lambda a: expit(a + x).mean() - share, -60.0, 60.0, xtol=1e-12))


def _bins(target: Bools, probability: Floats, num_bins: int) -> list[CalibrationBin]:
    edges = np.quantile(probability, np.arange(1, num_bins) / num_bins)
    number = np.searchsorted(edges, probability)
    order = np.argsort(number, kind="stable")
    found = []
    limits = [0, *(np.flatnonzero(np.diff(number[order])) + 1).tolist(), target.size]
    for begin, end in pairwise(limits):
        rows = order[begin:end]
        p = probability[rows]
        found.append(
            CalibrationBin(
                num_rows=len(rows),
                low=float(p.min()),
                high=float(p.max()),
                mean_probability=float(p.mean()),
                observed=float(target[rows].mean()),
            )
        )
    return found


def ratio(part: float, whole: float) -> float | None:
    """A share; None where there is nothing to share."""
    return part / whole if whole else None
