"""Two readers on the same clips: Cohen's kappa with interval, the clips they disagree on, and those they agree on.

    agreement -> Agreement

Knows no files and no tables: labels come as clip -> label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from angio_ray.evaluation.bootstrap import RESAMPLES, divided, number_patients, percentile, resample
from angio_ray.evaluation.metrics import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """A clip that two readers labelled differently."""

    clip_id: str
    label_a: str
    label_b: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """What two readers say of the same clips."""

    labels: tuple[str, ...]
    """Sorted; the order of `table`."""
    table: tuple[tuple[int, ...], ...]
    """Clips by label of A (rows) and of B (columns)."""
    num_both: int
    """Clips that both labelled: what the figures are of."""
    num_only_a: int
    num_only_b: int
    num_patients: int | None
    """Of these clips; None where patients were not given."""
    observed: float | None
    """Share of the clips with one label; None without clips."""
    kappa: float | None
    """1: always; 0: as often as by chance. None where it is undefined: no clips, or one label for all."""
    low: float | None
    high: float | None
    level: float
    method: Literal["fleiss_cohen_everitt", "clustered_bootstrap"] | None
    """Of the interval; None, as its ends, where there is none."""
    conflicts: tuple[Conflict, ...]
    """By clip_id."""
    agreed: Mapping[str, str]
    """Clip -> the label that both gave."""


def agreement(
    labels_a: Mapping[str, str | None],
    labels_b: Mapping[str, str | None],
    *,
    patients: Mapping[str, str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Agreement:
    """Compare two readers' labels (clip_id -> label; None or a missing clip: not labelled).

    The interval is the large-sample one of Fleiss, Cohen and Everitt 1969 for independent clips; with `patients` (clip_id
    -> patient) of whom one has several, patients are resampled. Raises ValueError for a clip without its patient.
    """
    a, b = ({clip: label for clip, label in labels.items() if label is not None} for labels in (labels_a, labels_b))
    both = sorted(a.keys() & b.keys())
    names = tuple(sorted({a[clip] for clip in both} | {b[clip] for clip in both}))
    given_a, given_b = [a[clip] for clip in both], [b[clip] for clip in both]
    table = _table(given_a, given_b, names)
    kappa = float(cohen_kappa_score(given_a, given_b, labels=list(names))) if len(names) > 1 else None
    number, num_patients = None, None
    if patients is not None:
        if unknown := [clip for clip in both if patients.get(clip) is None]:
            raise ValueError(f"{len(unknown)} clips have no patient: {', '.join(unknown[:5])}")
        number, num_patients = number_patients([patients[clip] for clip in both])
    limits: tuple[float, float] | None = None
    method: Literal["fleiss_cohen_everitt", "clustered_bootstrap"] | None = None
    if kappa is not None and number is not None and num_patients is not None and num_patients < len(both):
        at = {name: i for i, name in enumerate(names)}
        pairs = np.array([at[x] * len(names) + at[y] for x, y in zip(given_a, given_b, strict=True)])
        limits, method = (
            _clustered(pairs, number, num_patients, len(names), level, resamples, seed),
            "clustered_bootstrap",
        )
    elif kappa is not None:
        limits, method = _asymptotic(table, level), "fleiss_cohen_everitt"
    return Agreement(
        labels=names,
        table=tuple(tuple(int(cell) for cell in row) for row in table),
        num_both=len(both),
        num_only_a=len(a.keys() - b.keys()),
        num_only_b=len(b.keys() - a.keys()),
        num_patients=num_patients,
        observed=float(np.trace(table) / len(both)) if both else None,
        kappa=kappa,
        low=limits[0] if limits else None,
        high=limits[1] if limits else None,
        level=level,
        method=method if limits else None,
        conflicts=tuple(
            Conflict(clip_id=clip, label_a=a[clip], label_b=b[clip]) for clip in both if a[clip] != b[clip]
        ),
        agreed={clip: a[clip] for clip in both if a[clip] == b[clip]},
    )


def _table(given_a: Sequence[str], given_b: Sequence[str], names: tuple[str, ...]) -> NDArray[np.int64]:
    at = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(names)), np.int64)
    for a, b in zip(given_a, given_b, strict=True):
        table[at[a], at[b]] += 1
    return table


def _asymptotic(table: np.ndarray, level: float) -> tuple[float, float] | None:
    """Kappa +- z times the standard error, cut at -1 and 1; None where the error is 0 (no conflict seen)."""
    p = table / table.sum()
    row, column = p.sum(axis=1), p.sum(axis=0)
    observed, expected = np.trace(p), row @ column
    kappa = (observed - expected) / (1 - expected)
    diagonal = (np.diag(p) * (1 - (row + column) * (1 - kappa)) ** 2).sum()
    weights = (column[:, None] + row[None, :]) ** 2
    beside = (1 - kappa) ** 2 * ((p * weights).sum() - (np.diag(p) * np.diag(weights)).sum())
    variance = (diagonal + beside - (kappa - expected * (1 - kappa)) ** 2) / (table.sum() * (1 - expected) ** 2)
    if variance <= 1e-15:
        return None
    half = NormalDist().inv_cdf((1 + level) / 2) * variance**0.5
    return max(-1.0, float(kappa - half)), min(1.0, float(kappa + half))


def _clustered(
    pair_N: np.ndarray,
    patient_N: np.ndarray,
    num_patients: int,
    num_labels: int,
    level: float,
    resamples: int,
    seed: int,
) -> tuple[float, float] | None:
    cells = num_labels * num_labels
    counts_PC = np.bincount(patient_N * cells + pair_N, minlength=num_patients * cells).reshape(num_patients, cells)

    def figures(weights_BP: Floats) -> dict[str, Floats]:
        tables = (weights_BP @ counts_PC).reshape(-1, num_labels, num_labels)
        whole = tables.sum(axis=(1, 2))
        observed = np.einsum("bii->b", tables) / whole
        expected = np.einsum("bk,bk->b", tables.sum(axis=2), tables.sum(axis=1)) / whole**2
        return {"kappa": divided(observed - expected, 1 - expected)}

    if num_patients < 2:
        return None
    limits = percentile(
        resample(figures, num_patients, cells, resamples=resamples, seed=seed)["kappa"], num_patients, level
    )
    return None if limits is None or limits[0] == limits[1] else limits[:2]
