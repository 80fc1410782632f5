from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, precision_score

from angio_ray.evaluation.levels import by_artery, by_study, weighted_f1_and_kappa


def rows(*clips: tuple[Any, ...]) -> pa.Table:
    """(study, artery, target, probability)."""
    return pa.Table.from_pylist(
        [
            {"study_id": study, "group_id": f"p{study}", "artery": artery, "target": target, "probability": p, "threshold": 0.5}
            for study, artery, target, p in clips
        ],
        pa.schema(
            [(n, pa.string()) for n in ("study_id", "group_id", "artery")]
            + [("target", pa.bool_()), ("probability", pa.float32()), ("threshold", pa.float64())]
        ),
    )


CLIPS = rows(
    ("a", "LCA", False, 0.2), ("a", "LCA", True, 0.6), ("a", "RCA", False, 0.7),
    ("b", "LCA", False, 0.1), ("b", "RCA", False, 0.3),
    ("c", "LCA", True, 0.9),  # found: positive without a right artery
    ("d", "LCA", True, 0.4),  # not found: the score says nothing of the study
    ("e", "RCA", False, 0.8),  # found, but whether it is so the labels do not say
)  # fmt: skip


def test_an_artery_is_its_worst_clip() -> None:
    level = by_artery(CLIPS)
    assert level.patients_N == ("pa", "pa", "pb", "pb", "pc", "pd", "pe")
    assert level.target_N.tolist() == [True, False, False, False, True, True, False]
    assert level.probability_N.tolist() == pytest.approx([0.6, 0.7, 0.1, 0.3, 0.9, 0.4, 0.8])
    assert by_artery(CLIPS, "RCA").patients_N == ("pa", "pb", "pe")
    assert len(by_artery(rows(("a", None, True, 0.5))).target_N) == 0, "an unknown artery is none"


def test_a_study_without_both_arteries_counts_only_where_it_is_positive_and_found() -> None:
    level = by_study(CLIPS)
    assert level.patients_N == ("pa", "pb", "pc")
    assert level.target_N.tolist() == [True, False, True]
    assert level.probability_N.tolist() == pytest.approx([0.7, 0.3, 0.9])
    assert (level.num_not_evaluable, level.num_lost) == (2, 1)
    assert level.sensitivity_with_lost() == pytest.approx(2 / 3), "of a, c and d"


def test_what_was_not_scored_still_says_what_a_study_is() -> None:
    gated = rows(("a", "LCA", True, None), ("a", "LCA", False, 0.1), ("a", "RCA", False, 0.2), ("b", "LCA", True, None))
    level = by_study(gated)
    assert (level.target_N.tolist(), level.patients_N) == ([True], ("pa",))
    assert (level.num_not_evaluable, level.num_lost) == (1, 1)
    assert by_artery(gated).target_N.tolist() == [True, False]
    assert by_artery(gated).num_lost == 1


def test_a_clip_of_no_study_is_one_by_itself() -> None:
    assert len(by_artery(rows((None, "LCA", True, 0.5), (None, "LCA", False, 0.1))).target_N) == 2


def test_prevalence_changes_accuracy_and_precision_as_repeated_rows_would() -> None:
    level = by_study(rows(*[(f"a{i}", artery, t, p) for i, (t, p) in enumerate(
        [(True, 0.9), (True, 0.2), (True, 0.7), (False, 0.1), (False, 0.6)]) for artery in ("LCA", "RCA")]))  # fmt: skip
    # 80 % positive: each of the two negatives once, each of the three positives 8/3 times
    target, called = [1] * 24 + [0] * 6, [1] * 16 + [0] * 8 + [0] * 3 + [1] * 3
    found = level.at_prevalence(0.8)
    assert found["accuracy"] == pytest.approx(accuracy_score(target, called))
    assert found["precision"] == pytest.approx(precision_score(target, called))
    assert found["npv"] == pytest.approx(3 / 11)
    assert by_study(rows(("a", "LCA", True, 0.9))).at_prevalence(0.5)["accuracy"] is None


def test_kappa_and_weighted_f1_of_known_tables() -> None:
    # kappa of Cohen 1960's kind of table: 20 and 15 agreed, 5 and 10 not
    truth, found = [0] * 25 + [1] * 25, [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15
    got = weighted_f1_and_kappa(truth, found)
    assert got["kappa"] == pytest.approx(0.4)
    assert got["weighted_f1"] == pytest.approx((40 / 55 + 30 / 45) / 2)
    assert weighted_f1_and_kappa([], []) == {"weighted_f1": None, "kappa": None}
    assert weighted_f1_and_kappa([1, 1], [1, 1])["kappa"] is None
