"""Every net and task keeps what the pipeline counts on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from angio_ray.models import NETS, TASKS
from angio_ray.models.backends import BackendChoice
from angio_ray.models.bundles import Bundle, write_bundle

SCORES = json.loads((Path(__file__).parents[2] / "schemas" / "scores.json").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_every_column_of_a_task_is_declared_in_the_scores_schema(task: str) -> None:
    declared = {field["name"] for field in SCORES["fields"]}
    spec = TASKS[task]
    assert {f"{task}_status", f"{task}_reason", *spec.columns} <= declared
    assert spec.name == task
    assert spec.gate_column is None or spec.gate_column in spec.columns


@pytest.mark.parametrize("net", [name for name, spec in NETS.items() if not spec.varying])
def test_every_net_gives_logits_of_its_classes_at_its_window(net: str) -> None:
    from angio_ray.models.classifier import ClipClassifier

    spec = NETS[net]
    assert spec.name == net
    with torch.device("meta"):
        classifier = ClipClassifier(spec).eval().to("meta")
    clip = torch.empty((2, spec.window.num_frames, spec.window.size, spec.window.size), device="meta")
    frames = spec.window.num_frames
    assert classifier.logits(clip).shape == ((2, frames, spec.classes) if spec.per_frame else (2, spec.classes))
    of_layout = {"BTCHW-mean": 4, "BCTHW": 16, "BCTHW-frames": 200, "BCTHW-maps": 8, "B2HW-regions": 2}[spec.layout]
    assert frames == (200 if net == "projection_2d" else of_layout)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(2)
    net = NETS["x3d_s"].build()
    return write_bundle(
        tmp_path_factory.mktemp("bundle"), task="quality", net="x3d_s", state_dicts=[net.state_dict()], threshold=0.5,
        trained_on="synthetic",
    )


def test_the_quality_scorer_fills_exactly_its_columns(small: Bundle) -> None:
    spec = TASKS["quality"]
    scorer = spec.scorer(small, BackendChoice(), num_threads=1)
    assert scorer.task == "quality"
    assert tuple(scorer.windows) == spec.windows(small)
    (window,) = scorer.windows
    clips = np.random.default_rng(0).integers(0, 256, (3, window.num_frames, window.size, window.size), dtype=np.uint8)
    columns = scorer({window.name: clips})
    assert tuple(columns) == spec.columns
    assert all(values.shape == (3,) for values in columns.values())
    probability = columns["quality_probability"]
    assert probability.dtype == np.float32
    assert ((probability > 0) & (probability < 1)).all()
    assert (columns["quality_satisfactory"] == (probability < 0.5)).all()
    np.testing.assert_array_equal(columns["quality_threshold"], np.float32(0.5))
    # A clip's score does not depend on its neighbours in the batch.
    np.testing.assert_allclose(scorer({window.name: clips[1:2]})["quality_probability"], probability[1:2], atol=1e-6)


def test_a_score_at_the_threshold_is_unsatisfactory(small: Bundle) -> None:
    scorer = TASKS["quality"].scorer(small, BackendChoice(), num_threads=1)
    (window,) = scorer.windows
    clip = {window.name: np.full((1, window.num_frames, window.size, window.size), 128, np.uint8)}
    probability = float(scorer(clip)["quality_probability"][0])
    at = TASKS["quality"].scorer(small.with_threshold(probability), BackendChoice(), num_threads=1)
    above = TASKS["quality"].scorer(small.with_threshold(probability + 1e-4), BackendChoice(), num_threads=1)
    assert not at(clip)["quality_satisfactory"][0]
    assert above(clip)["quality_satisfactory"][0]


def test_a_net_that_returns_nan_is_an_error_and_not_a_verdict(small: Bundle) -> None:
    scorer = TASKS["quality"].scorer(small, BackendChoice(), num_threads=1)
    (window,) = scorer.windows
    scorer._run = lambda clips: np.full((len(clips), 2), np.nan, np.float32)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="NaN"):
        scorer({window.name: np.zeros((1, window.num_frames, window.size, window.size), np.uint8)})
