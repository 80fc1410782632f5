from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from angio_ray.evaluation import paper
from angio_ray.evaluation.assess import assess
from angio_ray.evaluation.report import Report, pick_examples, render
from angio_ray.evaluation.report_data import ModelOnSet


def model(name: str = "x3d_s", *, clips: int = 40, perfect: bool = False, data: str = "made-up") -> ModelOnSet:
    """Two clips a patient; every fourth is unsatisfactory."""
    rng = np.random.default_rng(0)
    target = np.arange(clips) % 4 == 0
    probability = np.where(target, 0.7, 0.3) + (0 if perfect else rng.normal(0, 0.25, clips))
    rows = pa.table(
        {
            "clip_id": [f"clip{i:04}-more" for i in range(clips)],
            "patient_id": [f"pat{i // 2:04}-more" for i in range(clips)],
            "group_id": [f"pat{i // 2:04}-more" for i in range(clips)],
            "target": target,
            "probability": pa.array(probability.clip(0, 1), pa.float32()),
            "threshold": pa.array([0.5] * clips, pa.float32()),
            "fold": pa.nulls(clips, pa.int32()),
            "bundle": ["b" * 64] * clips,
            "model_domain": ["synthetic"] * clips,
            "synthetic": [True] * clips,
            "in_sample": [False] * clips,
        }
    )
    found = assess(rows, title=name, resamples=100)
    return ModelOnSet(source="run-1", model=name, kind="set", data=data, assessment=found)


def page(*models: ModelOnSet) -> str:
    return render(Report(title="t", made_at=datetime(2026, 1, 2, tzinfo=UTC), code_version="0", models=models))


def test_examples_are_of_every_outcome_and_of_different_patients() -> None:
    one = model()
    counts = one.assessment.metrics.confusion
    picked = pick_examples(one, 3)
    by_outcome = {outcome: [e for e in picked if e.outcome == outcome] for outcome in ("found", "missed", "kept")}
    assert len(by_outcome["found"]) == min(3, counts.true_positive)
    assert len(by_outcome["missed"]) == min(3, counts.false_negative)
    for examples in by_outcome.values():
        assert len({e.patient_id for e in examples}) == len(examples)
    assert all(e.probability >= e.threshold for e in by_outcome["found"])
    missed = [e.probability for e in by_outcome["missed"]]
    assert missed == sorted(missed), "the worst first"
    kept = [p for p, t in zip(one.assessment.rows["probability"].to_pylist(), one.assessment.rows["target"].to_pylist(),
                              strict=True) if p < 0.5 and not t]  # fmt: skip
    assert abs(by_outcome["kept"][0].probability - np.median(kept)) == pytest.approx(
        min(abs(p - np.median(kept)) for p in kept)
    )
    assert pick_examples(one, 3) == picked
    assert pick_examples(model(perfect=True), 1)[0].outcome == "found"


def test_the_papers_row_stands_beside_the_net_that_it_is_of() -> None:
    raw = page(model("r152_3d"), model("x3d_s-1a2b3c4d"), model("ensemble"))
    assert raw.count('<tr class="paper">') == 3, "two nets of the paper's, and its exclusion rate"
    assert "0.56" in raw, "ResNet-152 3D's F1 on the independent set"
    assert "X3D-S-1a2b3c4d" in raw
    assert raw.index("ResNet-152 3D") < raw.index("X3D-S-1a2b3c4d") < raw.index("ensemble")


def test_the_four_counts_of_the_paper_give_its_row() -> None:
    counts, row = paper.INDEPENDENT_X3D_S, paper.INDEPENDENT.rows["x3d_s"]
    for figure in ("accuracy", "precision", "sensitivity", "specificity", "f1"):
        assert round(getattr(counts, figure), 2) == getattr(row, figure)
    assert counts.num_rows == 20_388
    assert round(100 * (counts.positive_rate or 0), 1) == 19.1


def test_one_class_only_is_said_and_not_drawn() -> None:
    one = model()
    rows = one.assessment.rows.filter(pa.compute.invert(one.assessment.rows["target"]))
    raw = page(ModelOnSet(source="s", model="x3d_s", kind="set", data="d", assessment=assess(rows, title="t")))
    assert raw.count("Not drawn: the clips are of one class only.") == 2
    assert raw.count('class="plot"') == 2


def test_pseudonyms_are_shortened_and_names_cannot_break_the_page() -> None:
    raw = page(model(data="<b>&"))
    assert "<b>&" not in raw
    assert "&lt;b&gt;&amp;" in raw
    assert "-more" not in raw


def test_ids_of_figures_are_unique() -> None:
    import re

    raw = page(model("x3d_s"), model("r18_3d", data="another"))
    ids = re.findall(r'\bid="([^"]+)"', raw)
    assert len(ids) > 100
    assert sorted(ids) == sorted(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', raw)) <= set(ids)


def test_without_anything_the_page_says_so() -> None:
    raw = page()
    assert raw.count('class="none"') >= 6
    assert "Research use only. Not for clinical use." in raw
