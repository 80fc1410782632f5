"""The oblique task: the side beside its probability; labels are the views' first words; no mirrored clip in its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from angio_ray.models import NETS, TASKS
from angio_ray.models.backends import BackendChoice
from angio_ray.models.bundles import write_bundle
from angio_ray.models.oblique import CLASSES, COLUMNS
from angio_ray.training.config import TrainConfig
from angio_ray.training.labels import LABELLED, task_clips


def test_the_side_is_the_one_that_the_threshold_gives(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = NETS["projection_2d"].build()
    bundle = write_bundle(
        tmp_path, task="oblique", net="projection_2d", state_dicts=[net.state_dict()], threshold=0.5, trained_on="synthetic",
        classes=CLASSES,
    )  # fmt: skip
    (window,) = TASKS["oblique"].windows(bundle)
    clips = np.random.default_rng(0).integers(0, 256, (3, window.num_frames, window.size, window.size), dtype=np.uint8)
    clips[1:] //= 4
    columns = TASKS["oblique"].scorer(bundle, BackendChoice(), num_threads=1)({window.name: clips})
    assert tuple(columns) == COLUMNS
    middle = float(np.sort(columns["oblique_probability"])[1])
    scorer = TASKS["oblique"].scorer(bundle.with_threshold(middle), BackendChoice(), num_threads=1)
    names = scorer({window.name: clips})["oblique"]
    assert names.tolist() == ["LAO" if p >= np.float32(middle) else "RAO" for p in columns["oblique_probability"]]
    assert set(names) == {"LAO", "RAO"}


def test_views_from_either_side_are_labels_and_those_from_the_middle_are_none() -> None:
    views = ["LAO", "RAO", "LAO cranial", "RAO caudal", "AP cranial", None, "LAO caudal"]
    rows = [
        dict.fromkeys(LABELLED.names) | {
            "clip_id": str(i), "object_id": str(i), "uri": "u", "patient_id": "p", "study_id": "s", "group_id": "g", "view": view,
            "synthetic": True, "quality": "unsatisfactory" if i == 6 else None,
        }
        for i, view in enumerate(views)
    ]  # fmt: skip
    clips = pa.Table.from_pylist(rows, pa.schema([field.with_nullable(True) for field in LABELLED]))
    labelled, positive_N = task_clips(clips, "oblique")
    assert labelled["view"].to_pylist() == ["LAO", "RAO", "LAO cranial", "RAO caudal"]
    assert positive_N.tolist() == [True, False, True, False]


def test_training_flips_no_clip() -> None:
    config = TrainConfig("oblique", labels="l", clips="c", tables="t")
    assert config.chosen_recipe.augment.flip == 0
    assert config.net == "projection_2d"
