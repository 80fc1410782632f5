"""What a training says meanwhile: how long it still takes, TensorBoard files, and nothing that stops it."""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from angio_ray.storage import Storage
from angio_ray.training import progress
from angio_ray.training.loop import Epoch
from angio_ray.training.progress import MLFLOW_ADDRESS, Progress
from angio_ray.training.results import Experiment

EPOCH = Epoch(
    number=1, of=3, size=48, frames=4, learning_rate=1e-3, precision="float32", loss=0.6, validation_loss=0.5,
    validation_auc=0.75, clips=30,
    steps=4, seconds=10.0, clips_per_s=5.0, core_seconds=9.0, seconds_left=20.0,
)  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Of an experiment only its name, its place and (for MLflow) its recipe are looked at."""
    monkeypatch.delenv(MLFLOW_ADDRESS, raising=False)
    empty: dict[str, Any] = dict.fromkeys(Experiment.__dataclass_fields__)
    return Experiment(**empty | {"name": "e", "out": Storage(str(tmp_path))})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_to_go_counts_folds_at_work_and_those_to_come(experiment: Experiment, clock: list[float]) -> None:
    board = Progress(experiment, [0, 1, 2, 3], parallel=2)
    assert board.seconds_left() == 0, "nothing is known yet"
    board.epoch(0, EPOCH)  # 10 s are spent, 20 s to go: a fold takes 30 s
    assert board.seconds_left() == pytest.approx((20 + 3 * 30) / 2)
    board.epoch(1, EPOCH)
    assert board.seconds_left() == pytest.approx((20 + 20 + 2 * 30) / 2)
    clock[0] += 20
    for fold in (0, 1):
        board.epoch(fold, replace(EPOCH, number=3, seconds_left=0.0))
        board.done(fold)
    assert board.seconds_left() == pytest.approx(2 * 30 / 2)
    board.epoch(2, replace(EPOCH, seconds_left=16.0))
    board.done(3)
    assert board.seconds_left() == pytest.approx(16)
    board.close()


def events(file: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of a TensorBoard file: records of length, its checksum, an Event, its checksum."""
    data, found = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    return found


def test_tensorboard_files_hold_every_epoch(experiment: Experiment, tmp_path: Path) -> None:
    board = Progress(experiment, [0], parallel=1)
    board.epoch(0, EPOCH)
    board.epoch(0, replace(EPOCH, number=2, loss=0.25, validation_auc=None))
    board.close()
    (file,) = (tmp_path / "e" / "tensorboard" / "fold-0").iterdir()
    found = {(step, tag): value for step, tag, value in events(file)}
    assert found[1, "loss/train"] == pytest.approx(0.6)
    assert found[2, "loss/train"] == pytest.approx(0.25)
    assert found[1, "auc/validation"] == pytest.approx(0.75)
    assert (2, "auc/validation") not in found, "it was not defined"
    assert found[1, "rate/clips_per_s"] == pytest.approx(5.0)


def test_mlflow_that_cannot_be_used_is_said_once_and_stops_nothing(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(MLFLOW_ADDRESS, "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        board = Progress(experiment, [0], parallel=1)
        board.epoch(0, EPOCH)
        board.epoch(0, replace(EPOCH, number=2))
        board.done(0)
        board.close()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        f"MLflow at ${MLFLOW_ADDRESS} is not used"
    ]
