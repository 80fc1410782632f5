"""The operating threshold, chosen on validation rows: by Youden's index, or at a fixed sensitivity or specificity.

Knows rows only: that they are no test rows is for the caller to see to. A threshold is a short decimal number between
two neighbouring scores, so that rounding where it is stored or printed moves no row to the other side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from angio_ray.evaluation.metrics import Confusion, binary_metrics, both_classes, checked_rows

Rule = Literal["youden", "sensitivity", "specificity"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """A threshold and what it gives on the rows it was chosen on."""

    threshold: float
    """In (0, 1]: a row at or above it is called positive."""
    rule: Rule
    at_least: float | None
    """What the rule asked for; None for Youden's."""
    confusion: Confusion
    """Of the rows it was chosen on: optimistic, no measurement."""


def choose_threshold(
    target_N: ArrayLike, probability_N: ArrayLike, *, rule: Rule = "youden", at_least: float | None = None
) -> OperatingPoint:
    """The threshold that `rule` names, on N rows with targets 0 and 1 and probabilities in 0..1.

    youden       largest sensitivity + specificity; of several as good, the lowest (highest sensitivity)
    sensitivity  sensitivity of `at_least` or more; of these the highest threshold (highest specificity)
    specificity  specificity of `at_least` or more; of these the lowest threshold (highest sensitivity)

    Candidates are "at or above each score that occurs" and "above all"; the threshold lies halfway down to the next lower
    score (to 0 below the lowest, up to 1 above all), shortened to as few decimals as keep the same verdicts.
    Raises ValueError where a class is lacking, `at_least` does not fit the rule, or no threshold reaches it (scores of 0 and 1).
    """
    target, probability = checked_rows(target_N, np.asarray(probability_N, np.float32))
    if not both_classes(target):
        lacking = "positive" if not target.any() else "negative"
        raise ValueError(f"no threshold can be chosen on {target.size} rows without a {lacking} one")
    if (rule == "youden") != (at_least is None) or not 0 <= (at_least or 0) <= 1:
        raise ValueError(
            f"rule {rule} and at_least={at_least} do not fit: a share for a fixed sensitivity or specificity"
        )
    scores = np.unique(probability)[::-1]
    at_or_above = [np.searchsorted(np.sort(probability[side]), scores) for side in (target, ~target)]
    # One candidate more than scores: none is called positive. Falling thresholds, hence rising sensitivity.
    sensitivity, called_negative = (
        np.concatenate([[0.0], 1 - below / side.sum()])
        for below, side in zip(at_or_above, (target, ~target), strict=True)
    )
    specificity = 1 - called_negative
    # No threshold in (0, 1] leaves out a score of 1 or takes in a score of 0.
    possible = np.ones(len(scores) + 1, bool)
    possible[0], possible[-1] = scores[0] < 1, scores[-1] > 0
    if rule == "youden":
        gain = np.where(possible, sensitivity + specificity, -1)
        good = gain >= gain.max() - 1e-12
    else:
        good = possible & ((sensitivity if rule == "sensitivity" else specificity) >= (at_least or 0) - 1e-12)
    if not good.any():
        raise ValueError(f"no threshold above 0 and up to 1 has a {rule} of {at_least:g} or more on these scores")
    candidates = np.flatnonzero(good)
    chosen = int(candidates[0] if rule == "sensitivity" else candidates[-1])
    threshold = _between(scores, chosen)
    return OperatingPoint(
        threshold=threshold,
        rule=rule,
        at_least=at_least,
        confusion=binary_metrics(target, probability, threshold).confusion,
    )


def _between(scores: np.ndarray, chosen: int) -> float:
    """A short number in (next lower score, score of the candidate], halfway or nearly so; scores fall."""
    upper = float(scores[chosen - 1]) if chosen else 1.0
    lower = float(scores[chosen]) if chosen < len(scores) else 0.0
    middle = (lower + upper) / 2
    for decimals in range(2, 12):
        if lower < np.float32(round(middle, decimals)) <= upper:
            return round(middle, decimals)
    return upper
