"""Cross-validation as a user starts it: what it leaves, and that it ends the same whatever was killed meanwhile."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import save_file

from angio_ray.cli import main
from angio_ray.judging.report import write_report
from angio_ray.models import NETS
from angio_ray.models.bundles import load_bundle, write_bundle
from angio_ray.phantom import generate
from angio_ray.scoring.config import ConfigError
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import read_set
from angio_ray.tables.sql import query
from angio_ray.training.config import TrainConfig
from angio_ray.training.cross_validation import (
    Rooms,
    _filesystem,
    _initial,
    _read_outcome,
    _why,
    _write_outcome,
    size_rooms,
)
from angio_ray.training.named_frames import worst_class
from angio_ray.training.predictions import read_predictions
from angio_ray.training.results import Outcome
from tests.s3 import S3Proxy, S3Server

pytest_plugins = ("tests.s3",)

PATIENCE_S = 400.0
KEY = "5a" * 32
EPOCHS = 6
"""Long enough that a worker, and then the driver, can be killed between two of them."""


# -- how folds share a cluster ---------------------------------------------------------------------------------------


def config(**changes: Any) -> TrainConfig:
    return TrainConfig("quality", labels="l.csv", clips="c", tables="t", **changes)


@pytest.mark.parametrize(
    ("nodes", "changes", "rooms"),
    [
        ([(2, 0)], {}, Rooms(2, 1, False)),
        ([(16, 0)], {}, Rooms(5, 3, False)),
        ([(3, 0), (3, 0)], {}, Rooms(5, 1, False)),
        ([(4, 0)], {"parallel": 1}, Rooms(1, 4, False)),
        ([(4, 0)], {"workers": 2}, Rooms(2, 1, False)),
        ([(64, 0)], {"parallel": 30}, Rooms(5, 12, False)),
        ([(16, 1)], {}, Rooms(1, 16, True)),
        ([(16, 4), (8, 4), (4, 0)], {}, Rooms(5, 2, True)),
    ],
    ids=["two cores", "one node", "two nodes", "one at once", "two workers", "no more than folds", "a GPU", "GPUs"],
)
def test_folds_share_the_cluster(nodes: list[tuple[int, int]], changes: dict[str, Any], rooms: Rooms) -> None:
    assert size_rooms([{"CPU": c, "GPU": g} for c, g in nodes], config(**changes), 5) == rooms


# -- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "out"),
    [
        ("s3://bucket", "s3://bucket/tables.training"),
        ("s3://bucket/", "s3://bucket/tables.training"),
        ("s3a://bucket/t/", "s3a://bucket/t.training"),
        ("/data/t", "/data/t.training"),
    ],
)
def test_what_is_trained_lies_beside_the_tables_never_in_another_bucket(tables: str, out: str) -> None:
    assert TrainConfig("quality", labels="l.csv", clips="c", tables=tables).out_uri == out


def test_validation_is_a_share_of_a_split_too() -> None:
    assert config(scheme="split").shares == (0.7, 0.15, 0.15)
    assert config(scheme="split", validation=0.3).shares == (0.55, 0.3, 0.15)
    with pytest.raises(ConfigError, match="nothing of the split is left to train on"):
        config(scheme="split", validation=0.9)


def test_weights_that_lack_the_head_begin_every_driver_the_same(tmp_path: Path) -> None:
    """The digest of what a training begins from is part of what an experiment's name stands for."""
    tensors = {k: v for k, v in NETS["r18_2d"].build().state_dict().items() if not k.startswith("fc.")}
    save_file(tensors, tmp_path / "w.safetensors")
    none = pa.table({"patient_id": pa.array([], pa.string()), "group_id": pa.array([], pa.string())})

    def digest(seed: int) -> str | None:
        return _initial(config(net="r18_2d", weights=tmp_path / "w.safetensors", seed=seed), none, ()).digest

    first = digest(0)
    torch.rand(7)  # another process has drawn other numbers
    assert digest(0) == first
    assert digest(1) != first


def test_what_a_training_begins_from_says_whom_it_saw_and_must_fit(tmp_path: Path) -> None:
    none = pa.table({"patient_id": pa.array([], pa.string()), "group_id": pa.array([], pa.string())})
    weights = [NETS["x3d_s"].build().state_dict()]
    facts: dict[str, Any] = {"task": "quality", "net": "x3d_s", "state_dicts": weights, "threshold": 0.5}
    write_bundle(tmp_path / "patients", trained_on="patients", training_patients=["ab" * 16], **facts)
    initial = _initial(config(start=tmp_path / "patients"), none, ())
    assert (initial.trained_on, initial.seen) == ("patients", ("ab" * 16,))
    write_bundle(tmp_path / "darker", trained_on="synthetic", mean=(0.1, 0.1, 0.1), **facts)
    with pytest.raises(ConfigError, match="its window or normalisation is not the one that is trained with"):
        _initial(config(start=tmp_path / "darker"), none, ())
    here = pa.table({"patient_id": ["ab" * 16], "group_id": ["ab" * 16]})
    with pytest.raises(ConfigError, match="has seen 1 of these patients"):
        _initial(config(start=tmp_path / "patients"), here, ())


def test_a_fold_that_ran_out_of_memory_says_what_to_change() -> None:
    """Ray's own text ends with a link to its manual."""
    killed = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nRefer to the documentation")
    assert "--micro-batch" in _why(killed)
    assert _why(ValueError("first\nthe cause")) == "the cause"


def test_temporary_keys_of_a_bucket_are_not_given_away(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray Train is given finds its own keys wherever it is, and finds new ones when they end."""
    for name, value in (s3_server.env | {"AWS_SESSION_TOKEN": "temporary-token"}).items():
        monkeypatch.setenv(name, value)
    place = Storage(f"s3://{s3_server.bucket()}")
    filesystem, path = _filesystem(place, place.child("x"))
    packed = pickle.dumps(filesystem)
    assert b"temporary-token" not in packed
    assert s3_server.env["AWS_SECRET_ACCESS_KEY"].encode() not in packed
    again = pickle.loads(packed)
    again.create_dir(path)
    with again.open_output_stream(f"{path}/file") as out:
        out.write(b"kept")
    assert place.read_bytes(place.child("x", "file")) == b"kept"
    assert [info.base_name for info in again.get_file_info(pa.fs.FileSelector(path))] == ["file"]


# -- on a cluster ----------------------------------------------------------------------------------------------------


class Training:
    """`angio-ray train` as a process of its own."""

    def __init__(
        self, folder: Path, experiment: str, env: Mapping[str, str] | None = None, task: str = "quality", **flags: Any
    ) -> None:
        options = {
            "labels": folder / "clips" / "labels.parquet", "clips": folder / "clips", "tables": folder / "tables",
            "cache": folder / "cache", "key_file": folder / "key", "experiment": experiment, "folds": 2,
            "validation": 0.3, "recipe": "smoke", "checkpoint_s": 0.0, "resamples": 100,
        } | flags  # fmt: skip
        command = [sys.executable, "-m", "angio_ray.cli", "train", task]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)] if value is not True else [f"--{name.replace('_', '-')}"]
        self.experiment = experiment
        self.said = folder / f"{experiment}-{time.monotonic_ns()}.log"
        dropped = ("RAY_ADDRESS", "RAY_AUTH", "RAY_JOB", "AWS_", "ANGIO_RAY_KEY_FILE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env=kept | {"RAY_AUTH_MODE": "disabled"} | dict(env or {}),
            )  # fmt: skip
        self.tree: set[psutil.Process] = set()

    @property
    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's first result that is true."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            if value := condition():
                return value
            assert not ended, f"it ended ({self.process.returncode}) before {what}:\n{self.text}"
            time.sleep(0.2)
        raise AssertionError(f"no {what}:\n{self.text}")

    def end(self) -> int:
        return self.process.wait(PATIENCE_S)

    def look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self.tree.update(psutil.Process(self.process.pid).children(recursive=True))

    def workers(self) -> set[psutil.Process]:
        self.look()
        found = set()
        for process in self.tree:
            with suppress(psutil.Error):
                if process.is_running() and "RayTrainWorker" in " ".join(process.cmdline()):
                    found.add(process)
        return found

    def close(self) -> None:
        self.look()
        with suppress(ProcessLookupError):
            self.process.kill()
        for process in self.tree:
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()
        psutil.wait_procs(self.tree, timeout=30)


@contextmanager
def training(folder: Path, experiment: str, **flags: Any) -> Iterator[Training]:
    run = Training(folder, experiment, **flags)
    try:
        yield run
    finally:
        run.close()


def finished(folder: Path, experiment: str, code: int = 0, **flags: Any) -> str:
    with training(folder, experiment, **flags) as run:
        ended = run.end()
    if ended == 1 and "Ray did not start" in run.text:  # its 30 s are fixed, and too few beside other tests: as it says, again
        with training(folder, experiment, **flags) as run:
            ended = run.end()
    assert ended == code, run.text
    return run.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 clips of 7 patients, one of them damaged, with labels and a key."""
    made = tmp_path_factory.mktemp("training")
    generate(made / "clips", patients=7, seed=3, size=96, clips=(3, 3), frames=(40, 44), syntax="rle", workers=1)
    key = made / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    path = made / "clips" / pq.read_table(made / "clips" / "labels.parquet")["path"][0].as_py()
    path.write_bytes(path.read_bytes()[:-4000])
    return made


def root(folder: Path) -> TableRoot:
    return TableRoot(Storage(str(folder / "tables")))


def rows(folder: Path, experiment: str) -> list[dict[str, Any]]:
    """Predictions of both folds, without what may differ between two equal experiments."""
    found = read_predictions(root(folder), experiment, "x3d_s", folds=range(2))
    return found.drop_columns(["experiment", "bundle", "predicted_at", "fold_set"]).to_pylist()


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    """What a training of two folds said to which nothing happened, but that a second driver tried the same meanwhile."""
    with training(folder, "whole", epochs=EPOCHS) as run:
        run.until(lambda: "labels:" in run.text, "labels")
        assert "another driver holds experiment whole" in finished(folder, "whole", 4, epochs=EPOCHS)
        assert run.end() == 3, run.text
        return run.text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_experiment_leaves_folds_rows_figures_and_bundles(folder: Path, whole: str) -> None:
    text = whole
    assert "truncated" in text
    assert "1 labelled clips could not be decoded" in text
    test = [row for row in rows(folder, "whole") if row["part"] == "test"]
    assert len({row["clip_id"] for row in test}) == len(test) == 20
    assert not any(row["in_sample"] for row in test)
    wide = query(root(folder), "SELECT scope, auc, num_clips FROM metrics_wide WHERE experiment = 'whole'").to_pylist()
    assert sorted(row["scope"] for row in wide) == ["fold", "fold", "mean_of_folds", "pooled"]
    assert query(root(folder), "SELECT * FROM fold_leaks").num_rows == 0
    names = set(query(root(folder), "SELECT DISTINCT metric FROM metrics").column(0).to_pylist())
    assert {"auc", "ece", "net_benefit", "epochs", "steps", "core_hours", "clips_seen"} <= names
    bundles = folder / "tables.training" / "whole" / "bundles"
    members = [load_bundle(bundles / f"fold-{n}" / "quality") for n in range(2)]
    ensemble = load_bundle(bundles / "ensemble" / "quality")
    assert set(ensemble.training_patients) == {p for member in members for p in member.training_patients}
    assert len(ensemble.weights) == 2
    for number, member in enumerate(members):
        tested = {row["patient_id"] for row in read_predictions(root(folder), "whole", "x3d_s", folds=[number]).to_pylist()
                  if row["part"] == "test"}  # fmt: skip
        assert not tested & set(member.training_patients)
    card = (bundles / "fold-0" / "quality" / "MODEL_CARD.md").read_text()
    for phrase in ("synthetic clips only", "not for clinical use", "angio-ray train quality", "core-hours"):
        assert phrase in card
    # the same again: nothing is trained, nothing is doubled
    before = rows(folder, "whole")
    assert "is done" not in finished(folder, "whole", 3, epochs=EPOCHS)
    assert rows(folder, "whole") == before
    # nor where the labels are the set that it has stored
    assert "is done" not in finished(folder, "whole", 3, epochs=EPOCHS, labels="quality")
    assert rows(folder, "whole") == before
    assert "no such set of labels (there is quality)" in finished(folder, "whole", 2, epochs=EPOCHS, labels="agreed")
    findings = (folder / "tables.training" / "whole" / "label_findings.csv").read_text()
    assert findings.startswith("kind,line,pseudonym,detail")
    assert "begun with another recipe" in finished(folder, "whole", 2, epochs=EPOCHS + 1)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_frames_of_full_contrast_are_learnt_by_two_workers_and_judged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = finished(folder, "frames", task="stenosis-frames", workers=2, parallel=1, folds=3, validation=0.2)
    assert "with full contrast; frames at 15/s" in text
    found = read_predictions(root(folder), "frames", "frames_lstm", folds=range(3)).to_pylist()
    assert {row["task"] for row in found} == {"contrast"}
    test = [row for row in found if row["part"] == "test"]
    assert len({row["clip_id"] for row in test}) == len(test)
    assert all(0 <= row["true_begin"] <= row["true_end"] < 200 and row["target"] for row in test)
    assert all((row["contrast_begin"] is None) == (row["contrast_end"] is None) for row in found)
    names = query(root(folder), "SELECT DISTINCT metric FROM metrics WHERE experiment = 'frames'").column(0).to_pylist()
    assert {"begin_error_frames", "end_error_frames", "accept_rate", "error_rate", "core_hours"} <= set(names)
    bundles = folder / "tables.training" / "frames" / "bundles"
    assert len(load_bundle(bundles / "ensemble" / "contrast").weights) == 3
    assert "none, partial or full contrast" in (bundles / "fold-0" / "contrast" / "MODEL_CARD.md").read_text()
    capsys.readouterr()
    assert main(["evaluate", "--experiment", "frames", "--tables", str(folder / "tables"), "--resamples", "100"]) == 0
    said = capsys.readouterr().out
    assert f"frames: frames_lstm, out of fold: {len(test)} clips" in said
    assert "accept_rate" in said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stenoses_are_learnt_on_single_frames_and_scored_after_artery_and_contrast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(tmp_path / "clips", patients=10, seed=5, size=128, clips=(3, 3), frames=(40, 44), unsatisfactory=0.0, workers=1)
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    text = finished(tmp_path, "stenosis", task="stenosis-class", redundancy=True)
    assert ">=25%" in text
    tables = root(tmp_path)
    found = read_predictions(tables, "stenosis", "stenosis_s", folds=range(2)).to_pylist()
    test = [row for row in found if row["part"] == "test"]
    assert {row["task"] for row in found} == {"stenosis"}
    classes = [worst_class(found, 2) for found in pq.read_table(tmp_path / "clips" / "labels.parquet")["stenoses"].to_pylist()]
    known = sum(found is not None for found in classes)
    assert 20 < known < 30, "what nobody is sure of has no class"
    assert len({row["clip_id"] for row in test}) == len(test) == known
    levels = query(tables, "SELECT DISTINCT subgroup_value FROM metrics WHERE subgroup = 'level'").column(0).to_pylist()
    assert {"frame", "artery"} <= set(levels)
    folds = tmp_path / "tables.training" / "stenosis" / "bundles"
    card = (folds / "fold-0" / "stenosis" / "MODEL_CARD.md").read_text()
    assert "the probability that a clip is >=25%" in card
    assert "frame_kappa" in card

    score = ["score", str(tmp_path / "clips"), "--tables", str(tmp_path / "tables"), "--run", "r", "--models", "stenosis"]
    score += ["--bundles", str(folds / "fold-0"), "--key-file", str(tmp_path / "key"), "--backend", "torch"]
    assert main(score) == 0
    rows = query(tables, "SELECT * FROM scores WHERE run_id = 'r'").to_pylist()
    assert len(rows) == 30
    bundle = load_bundle(folds / "fold-0" / "stenosis")
    for row in rows:
        assert dict(row["bundles"]).keys() == {"artery", "oblique", "contrast", "stenosis"}
        if row["contrast_begin"] is None:
            assert (row["stenosis_status"], row["stenosis_reason"]) == ("skipped", "no_full_contrast")
            continue
        assert (row["stenosis_status"], row["stenosis_reason"]) == ("scored", None)
        frames = row["stenosis_frames"]
        assert [one["frame"] for one in frames] == row["candidate_frames"]
        assert row["stenosis_probability"] == max(one["probability"] for one in frames)
        assert row["stenosis_class"] == bundle.classes[int(row["stenosis_probability"] >= row["stenosis_threshold"])]
    scored = [row for row in rows if row["stenosis_status"] == "scored"]
    assert scored
    studies = query(tables, "SELECT * FROM study_scores").to_pylist()
    assert {row["study_id"] for row in studies} == {row["study_id"] for row in rows}
    boxes = query(tables, "SELECT * FROM stenosis_boxes").to_pylist()
    assert len(boxes) == sum(len(one["boxes"]) for row in scored for one in row["stenosis_frames"])
    assert all(box["width_mm"] > 0 and 0 <= box["x0"] < box["x1"] <= 128 for box in boxes)

    capsys.readouterr()
    judge = ["evaluate", "--run", "r", "--labels", str(tmp_path / "clips" / "labels.parquet"), "--task", "stenosis"]
    judge += ["--tables", str(tmp_path / "tables"), "--key-file", str(tmp_path / "key"), "--resamples", "100"]
    assert main(judge) == 0
    assert "by the worst clip of" in capsys.readouterr().out
    out = tmp_path / "clip.webp"
    explain = ["explain", "--clip", scored[0]["clip_id"], "--tables", str(tmp_path / "tables"), "--task", "stenosis"]
    assert main([*explain, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"frame {scored[0]['stenosis_frames'][0]['frame']}: " in said
    with Image.open(out) as picture:
        assert picture.size == (896, 448)
        assert picture.n_frames == len(scored[0]["stenosis_frames"])
    write_report(tables, tmp_path / "report.html", runs=["r"], bundles=[folds], examples=1, resamples=100)
    section = (tmp_path / "report.html").read_text().partition('<section id="task-stenosis">')[2].partition("</section>")[0]
    assert "<em>&gt;=25%</em>" in section
    assert section.count("data:image/webp") >= 1
    assert ">artery<" in section


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_calcification_is_learnt_on_pairs_of_frames_and_scored_with_its_regions(tmp_path: Path) -> None:
    generate(tmp_path / "clips", patients=8, seed=6, size=128, clips=(2, 2), protocol="calcium", frames=(120, 120), workers=1)
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    text = finished(tmp_path, "calcium", task="calcium", net="resunet_s", scheme="split", validation=0.25)
    assert "pairs of frames of one heart phase: " in text
    assert "regions, sigma 3: " in text
    tables = root(tmp_path)
    stored = query(tables, "SELECT DISTINCT metric FROM metrics WHERE subgroup IN ('regions', 'level')").column(0).to_pylist()
    assert {"num_both", "f1"} <= set(stored)
    place = tmp_path / "tables.training" / "calcium"
    (regions,) = (place / "regions").iterdir()
    found = json.loads(regions.read_text())
    test = [row for row in read_predictions(tables, "calcium", "resunet_s", folds=[0]).to_pylist() if row["part"] == "test"]
    assert {row["clip_id"] for row in found} == {row["clip_id"] for row in test}
    assert "region_" in (place / "bundles" / "fold-0" / "calcium" / "MODEL_CARD.md").read_text()

    score = ["score", str(tmp_path / "clips"), "--tables", str(tmp_path / "tables"), "--run", "r", "--models", "calcium"]
    score += ["--bundles", str(place / "bundles" / "fold-0"), "--key-file", str(tmp_path / "key"), "--backend", "torch"]
    assert main(score) == 0
    rows = query(tables, "SELECT * FROM scores WHERE run_id = 'r'").to_pylist()
    assert len(rows) == 16
    scored = [row for row in rows if row["calcium_status"] == "scored"]
    for row in rows:
        assert dict(row["bundles"]).keys() == {"contrast", "calcium"}
        assert (row["calcium_status"] == "scored") == (row["calcium_reason"] is None)
    for row in scored:
        ((pair,), (region,)) = row["calcium_frames"], row["calcium_regions"]
        assert pair["mask_frame"] == region["frame"] < row["first_contrast"]
        assert row["contrast_begin"] <= pair["frame"] <= row["contrast_end"]
        with Image.open(region["mask_uri"]) as mask:
            assert mask.size == (128, 128)
            assert sum(mask.histogram()[1:]) == region["area_px"]
        assert row["object_id"] in region["mask_uri"]
    if scored:
        out = tmp_path / "clip.webp"
        explain = ["explain", "--clip", scored[0]["clip_id"], "--tables", str(tmp_path / "tables"), "--task", "calcium"]
        assert main([*explain, "--out", str(out)]) == 0
        with Image.open(out) as picture:
            assert picture.n_frames == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_worker_and_a_killed_driver_change_no_row(folder: Path, whole: str) -> None:
    """Both folds at once, one worker each; a worker is killed after a checkpoint, then the driver, then it goes on."""
    checkpoints = folder / "tables.training" / "killed" / "checkpoints"

    def kept(fold: int) -> bool:
        """Whether Ray Train has written down a checkpoint of this fold."""
        with suppress(FileNotFoundError):
            return "checkpoint_" in (checkpoints / f"fold-{fold}" / "checkpoint_manager_snapshot.json").read_text()
        return False

    # folds of its own: the same clips and plan must be divided the same
    with training(folder, "killed", epochs=EPOCHS, fold_set="again") as run:
        run.until(lambda: kept(0) and kept(1), "checkpoints of both folds")
        victims = run.workers()
        for victim in victims:
            victim.kill()
        run.until(lambda: run.workers() - victims and len(run.workers() - victims) == 2, "new workers")
        begun = run.text.count("epoch ")
        run.until(lambda: run.text.count("epoch ") > begun, "an epoch of the new workers")
        run.look()
        run.process.kill()
    first = set(re.findall(r"fold (\d), epoch (\d)", run.text))
    text = finished(folder, "killed", 3, epochs=EPOCHS, fold_set="again")
    assert rows(folder, "killed") == rows(folder, "whole")
    assert {("0", "1"), ("1", "1")} <= first
    assert "epoch 1 of" not in text, "a fold began anew"
    divided = [
        read_set(root(folder), "folds", fold_set=name).drop_columns(["fold_set", "made_at"])
        for name in ("quality-k2-s0", "again")
    ]
    assert divided[0].num_rows == 40
    assert divided[0].equals(divided[1])
    for name in ("killed", "whole"):
        facts = json.loads((folder / "tables.training" / name / "experiment.json").read_text())
        assert facts["folds"] == divided[0]["digest"][0].as_py()


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_places_can_be_a_bucket_and_two_workers_share_a_fold(
    folder: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    place = Storage(f"s3://{s3_server.bucket()}")
    for file in (folder / "clips").rglob("*"):
        if file.is_file():
            place.write_bytes(place.child("clips", *file.relative_to(folder / "clips").parts), file.read_bytes())
    places = {name: place.child(name) for name in ("tables", "clips", "out", "cache")}
    places["labels"] = place.child("clips", "labels.parquet")
    text = finished(folder, "bucket", 3, env=s3_server.env, **places, epochs=1, scheme="split", workers=2)
    assert "fold 0 is done" in text
    found = read_predictions(TableRoot(Storage(places["tables"])), "bucket", "x3d_s", folds=[0])
    assert set(found["part"].to_pylist()) == {"validation", "test"}
    names = {info.uri.removeprefix(places["out"]) for page in Storage(places["out"]).list() for info in page}
    assert "/bucket/bundles/fold-0/quality/bundle.json" in names
    assert any(re.fullmatch("/bucket/checkpoints/fold-0/checkpoint_.*/outcome.json", name) for name in names)
    assert "is done" not in finished(
        folder, "bucket", 3, env=s3_server.env, **places, epochs=1, scheme="split", workers=2
    )


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_object_that_cannot_be_read_now_postpones_the_training(
    folder: Path, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folds without it would hold for good."""
    for name, value in s3_proxy.env.items():
        monkeypatch.setenv(name, value)
    place = Storage(f"s3://{s3_proxy.bucket()}")
    files = [file for file in sorted((folder / "clips").rglob("*")) if file.is_file()]
    names = [file.relative_to(folder / "clips").parts for file in files]
    for file, name in zip(files, names, strict=True):
        place.write_bytes(place.child("clips", *name), file.read_bytes())
    denied = next(name for file, name in zip(files, names, strict=True) if file.suffix == ".dcm")
    s3_proxy.deny(match=re.escape("/".join(denied)))
    places = {name: place.child("clips", *below) for name, below in (("clips", ()), ("labels", ("labels.parquet",)))}
    tables = folder / "postponed"
    text = finished(folder, "postponed", 1, env=s3_proxy.env, **places, tables=tables)
    assert "1 objects could not be read (read_error); run the same command again" in text
    assert not read_set(TableRoot(Storage(str(tables))), "folds", fold_set="quality-k2-s0").num_rows


@pytest.mark.parametrize("threshold", [None, (0.375, "patches")])
def test_an_outcome_comes_back_as_it_was_written(threshold: tuple[float, str] | None, tmp_path: Path) -> None:
    outcome = Outcome(
        state_dict={"a": torch.ones(2)}, validation_N=np.array([0.25, 0.5], np.float32), test_N=np.array([0.75], np.float32),
        region_threshold=threshold, epochs=(), best_epoch=3,
    )  # fmt: skip
    assert _read_outcome(tmp_path) is None
    _write_outcome(tmp_path, outcome)
    found = _read_outcome(tmp_path)
    assert found is not None
    assert (found.region_threshold, found.best_epoch, found.epochs) == (threshold, 3, ())
    assert (found.validation_N.tolist(), found.test_N.tolist()) == ([0.25, 0.5], [0.75])
    assert torch.equal(found.state_dict["a"], torch.ones(2))
