"""The artery task: a name beside its probability, and no mirrored clip in its training."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from angio_ray.models import NETS, TASKS
from angio_ray.models.artery import CLASSES, COLUMNS
from angio_ray.models.backends import BackendChoice
from angio_ray.models.bundles import Bundle, write_bundle
from angio_ray.scoring.config import ConfigError
from angio_ray.training.config import TrainConfig
from angio_ray.training.labels import LABELLED, task_clips
from angio_ray.training.recipes import RecipeChanges


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(3)
    net = NETS["x3d_s"].build()
    return write_bundle(
        tmp_path_factory.mktemp("bundle"), task="artery", net="x3d_s", state_dicts=[net.state_dict()], threshold=0.5,
        trained_on="synthetic", classes=CLASSES,
    )  # fmt: skip


def test_the_name_is_the_one_that_the_threshold_gives(bundle: Bundle) -> None:
    (window,) = TASKS["artery"].windows(bundle)
    clips = np.random.default_rng(0).integers(0, 256, (4, window.num_frames, window.size, window.size), dtype=np.uint8)
    clips[2:] //= 8
    columns = TASKS["artery"].scorer(bundle, BackendChoice(), num_threads=1)({window.name: clips})
    assert tuple(columns) == COLUMNS
    probability = columns["artery_probability"]
    assert probability.dtype == np.float32
    middle = float(np.sort(probability)[2])
    scorer = TASKS["artery"].scorer(bundle.with_threshold(middle), BackendChoice(), num_threads=1)
    names = scorer({window.name: clips})["artery"]
    assert names.tolist() == ["RCA" if p >= np.float32(middle) else "LCA" for p in probability]
    assert sorted(names) == ["LCA", "LCA", "RCA", "RCA"]


def test_a_net_that_returns_nan_names_no_artery(bundle: Bundle) -> None:
    scorer = TASKS["artery"].scorer(bundle, BackendChoice(), num_threads=1)
    (window,) = scorer.windows
    scorer._run = lambda clips: np.full((len(clips), 2), np.nan, np.float32)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="NaN"):
        scorer({window.name: np.zeros((1, window.num_frames, window.size, window.size), np.uint8)})


def test_training_flips_no_clip() -> None:
    places = {"labels": "l", "clips": "c", "tables": "t"}
    assert TrainConfig("quality", **places).chosen_recipe.augment.flip == 0.5
    assert TrainConfig("artery", **places).chosen_recipe.augment.flip == 0
    with pytest.raises(ConfigError, match="left and right"):
        TrainConfig("artery", **places, changes=RecipeChanges(augment=(("flip", 0.5),)))


def test_what_the_gate_stops_is_not_trained_on() -> None:
    rows = [
        {"artery": "LCA", "quality": "satisfactory"},
        {"artery": "RCA", "quality": "unsatisfactory"},
        {"artery": "RCA", "quality": None},
        {"artery": None, "quality": "satisfactory"},
    ]
    blank = dict.fromkeys(LABELLED.names)
    clips = pa.Table.from_pylist([blank | row | {"clip_id": str(i)} for i, row in enumerate(rows)], schema=LABELLED)
    kept, target = task_clips(clips, "artery")
    assert kept["clip_id"].to_pylist() == ["0", "2"]
    assert target.tolist() == [False, True]
