"""Folds put together: each fold's figures, their mean and sd, and the pooled out-of-fold rows with intervals.

    rows of all folds -> folds_summary -> FoldsSummary     the same rows by vendor, view ... -> by_subgroup

Rows of patients that a model was trained on (in-sample) are left out first, and counted. A pooled figure mixes the
scores of several models, a mean of folds hides how unlike they are: both are given.
Shapes: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from angio_ray.evaluation.bootstrap import RESAMPLES
from angio_ray.evaluation.intervals import DEFAULT_FIGURES, Interval, intervals
from angio_ray.evaluation.metrics import FIGURES, Metrics, binary_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanOverFolds:
    """A figure over the folds in which it is defined."""

    mean: float | None
    """None where it is defined in no fold."""
    sd: float | None
    """Of the folds, with n - 1; None for fewer than two."""
    num_folds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldsSummary:
    """What cross-validation says of a model."""

    folds: Mapping[int, Metrics]
    """Fold -> figures of its left-out rows at its own threshold."""
    mean_of_folds: Mapping[str, MeanOverFolds]
    """Figure -> mean and sd; its AUC is to be read beside the pooled one."""
    pooled: Metrics
    """All out-of-fold rows together, each called by its own fold's threshold."""
    pooled_intervals: Mapping[str, Interval]
    num_patients: int
    num_in_sample: int
    """Rows left out since the model had seen the patient."""
    num_patients_in_several_folds: int
    """Above 0, a patient was held out by several folds (leave one acquisition out): that fold's model may have seen them
    elsewhere, so the figures are no estimate for new patients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """One value of a header fact: its rows' figures."""

    value: str | None
    """None: not known."""
    metrics: Metrics
    intervals: Mapping[str, Interval]
    num_patients: int


def folds_summary(
    target_N: ArrayLike,
    probability_N: ArrayLike,
    patients_N: Sequence[str],
    folds_N: ArrayLike,
    threshold_N: float | ArrayLike,
    *,
    in_sample_N: ArrayLike | None = None,
    figures: Sequence[str] = DEFAULT_FIGURES,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> FoldsSummary:
    """Figures by fold, over folds and pooled, of N out-of-fold rows.

    threshold_N is one for all or one for each row (N,): that of the fold's model. Rows with in_sample_N True are left out.
    Folds without rows of both classes have no AUC (leave-one-out): the pooled figures are what to read there.
    Raises ValueError as `intervals`.
    """
    every = _Columns.of(target_N, probability_N, patients_N, threshold_N)
    fold = np.asarray(folds_N, int)
    in_sample = np.zeros(every.target.size, bool) if in_sample_N is None else np.asarray(in_sample_N, bool)
    if not fold.shape == in_sample.shape == every.target.shape:
        raise ValueError(f"{fold.size} folds and {in_sample.size} marks for {every.target.size} rows")
    rows, fold = every.where(~in_sample), fold[~in_sample]
    by_fold = {int(number): rows.where(fold == number).metrics() for number in np.unique(fold)}
    held_out = Counter(patient for patient, _ in set(zip(rows.patients.tolist(), fold.tolist(), strict=True)))
    return FoldsSummary(
        folds=by_fold,
        mean_of_folds={name: mean_over_folds([found.figures()[name] for found in by_fold.values()]) for name in FIGURES},
        pooled=rows.metrics(),
        pooled_intervals=rows.intervals(figures, level, resamples, seed),
        num_patients=len(held_out),
        num_in_sample=int(in_sample.sum()),
        num_patients_in_several_folds=sum(count > 1 for count in held_out.values()),
    )


def by_subgroup(
    target_N: ArrayLike,
    probability_N: ArrayLike,
    patients_N: Sequence[str],
    threshold_N: float | ArrayLike,
    values_N: Sequence[str | None],
    *,
    figures: Sequence[str] = ("auc", "sensitivity", "specificity", "npv", "positive_rate"),
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Figures of the rows of each value (vendor, view, year ...), most rows first. Raises ValueError as `intervals`."""
    every = _Columns.of(target_N, probability_N, patients_N, threshold_N)
    if len(values_N) != every.target.size:
        raise ValueError(f"{len(values_N)} values for {every.target.size} rows")
    counted = sorted(Counter(values_N).items(), key=lambda item: (-item[1], item[0] is None, item[0] or ""))
    found = []
    for value, _ in counted:
        rows = every.where(np.array([other == value for other in values_N]))
        found.append(
            Subgroup(
                value=value,
                metrics=rows.metrics(),
                intervals=rows.intervals(figures, level, resamples, seed),
                num_patients=len(set(rows.patients.tolist())),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Columns:
    target: NDArray[np.int64]
    probability: NDArray[np.float64]
    patients: NDArray[np.object_]
    threshold: NDArray[np.float64]

    @classmethod
    def of(cls, target: ArrayLike, probability: ArrayLike, patients: Sequence[str], threshold: ArrayLike) -> _Columns:
        targets = np.asarray(target, int)
        names = np.empty(len(patients), object)
        names[:] = list(patients)
        if not targets.shape == names.shape:
            raise ValueError(f"{names.size} patients for {targets.size} rows")
        return cls(
            targets, np.asarray(probability, float), names, np.broadcast_to(np.asarray(threshold, float), targets.shape)
        )

    def where(self, kept_N: NDArray[np.bool_]) -> _Columns:
        return _Columns(self.target[kept_N], self.probability[kept_N], self.patients[kept_N], self.threshold[kept_N])

    def metrics(self) -> Metrics:
        return binary_metrics(self.target, self.probability, self.threshold)

    def intervals(self, figures: Sequence[str], level: float, resamples: int, seed: int) -> dict[str, Interval]:
        return intervals(
            self.target,
            self.probability,
            self.patients,
            threshold=self.threshold,
            figures=figures,
            level=level,
            resamples=resamples,
            seed=seed,
        )


def mean_over_folds(values: Sequence[float | None]) -> MeanOverFolds:
    """Of one value a fold, None where it is not defined."""
    defined = np.array([value for value in values if value is not None])
    return MeanOverFolds(
        mean=float(defined.mean()) if defined.size else None,
        sd=float(defined.std(ddof=1)) if defined.size > 1 else None,
        num_folds=int(defined.size),
    )
