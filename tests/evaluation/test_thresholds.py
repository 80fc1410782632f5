from __future__ import annotations

import numpy as np
import pytest

from angio_ray.evaluation.metrics import binary_metrics, called_positive
from angio_ray.evaluation.thresholds import Rule, choose_threshold

#                negatives: 4, of positives 4
TARGET = np.array([0, 0, 1, 0, 1, 0, 1, 1])
SCORE = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])


@pytest.mark.parametrize(
    ("rule", "at_least", "threshold", "sensitivity", "specificity"),
    [
        # J is 0.5 at 0.7 (2/4 + 4/4), at 0.5 (3/4 + 3/4) and at 0.3 (4/4 + 2/4): the lowest of them
        ("youden", None, 0.25, 1, 0.5),
        ("sensitivity", 0.75, 0.45, 0.75, 0.75),
        ("sensitivity", 0.7, 0.45, 0.75, 0.75),
        ("sensitivity", 1.0, 0.25, 1, 0.5),
        ("sensitivity", 0.0, 0.9, 0, 1),
        ("specificity", 0.75, 0.45, 0.75, 0.75),
        ("specificity", 1.0, 0.65, 0.5, 1),
        ("specificity", 0.0, 0.05, 1, 0),
    ],
)
def test_the_rule_and_its_ties_choose(
    rule: Rule, at_least: float | None, threshold: float, sensitivity: float, specificity: float
) -> None:
    found = choose_threshold(TARGET, SCORE, rule=rule, at_least=at_least)
    assert found.threshold == threshold
    assert (found.confusion.sensitivity, found.confusion.specificity) == (sensitivity, specificity)
    assert (found.rule, found.at_least) == (rule, at_least)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.random(60) < 0.4
    score = np.round(np.clip(rng.normal(0.4 + 0.2 * target, 0.2), 0.01, 0.99), 2).astype(np.float32)
    every = [binary_metrics(target, score, t).confusion for t in (*np.unique(score), 1.0)]
    sums = [(c.sensitivity or 0) + (c.specificity or 0) for c in every]
    chosen = choose_threshold(target, score).confusion
    assert (chosen.sensitivity or 0) + (chosen.specificity or 0) == pytest.approx(max(sums))
    fixed = choose_threshold(target, score, rule="sensitivity", at_least=0.9).confusion
    assert fixed.specificity == max(c.specificity or 0 for c in every if (c.sensitivity or 0) >= 0.9)
    fixed = choose_threshold(target, score, rule="specificity", at_least=0.9).confusion
    assert fixed.sensitivity == max(c.sensitivity or 0 for c in every if (c.specificity or 0) >= 0.9)


def test_it_divides_neighbouring_scores_also_when_stored_in_float32() -> None:
    low = np.float32(0.7)
    score = [low, np.nextafter(low, np.float32(1))]
    found = choose_threshold([0, 1], score)
    assert called_positive(score, np.float32(found.threshold)).tolist() == [False, True]
    assert choose_threshold([0, 1], [0.123, 0.989]).threshold == 0.56  # 0.556, shortened


def test_scores_of_0_and_1_limit_what_can_be_reached() -> None:
    with pytest.raises(ValueError, match=r"has a specificity of 0\.9 or more"):
        choose_threshold([0, 1], [1.0, 1.0], rule="specificity", at_least=0.9)
    with pytest.raises(ValueError, match="has a sensitivity of 1 or more"):
        choose_threshold([0, 1], [0.0, 0.0], rule="sensitivity", at_least=1.0)
    assert choose_threshold([0, 1], [1.0, 1.0]).confusion.sensitivity == 1
    assert choose_threshold([0, 1], [0.0, 0.0]).confusion.specificity == 1
    assert 0 < choose_threshold([1, 0, 1], [0.0, 1.0, 1.0]).threshold <= 1


@pytest.mark.parametrize(("target", "lacking"), [([1, 1], "negative"), ([0, 0], "positive"), ([], "positive")])
def test_both_classes_are_needed(target: list[int], lacking: str) -> None:
    with pytest.raises(ValueError, match=f"without a {lacking} one"):
        choose_threshold(target, [0.5] * len(target))


@pytest.mark.parametrize(("rule", "at_least"), [("youden", 0.9), ("sensitivity", None), ("specificity", 90.0)])
def test_rule_and_share_must_fit(rule: Rule, at_least: float | None) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        choose_threshold(TARGET, SCORE, rule=rule, at_least=at_least)
