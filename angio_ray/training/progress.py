"""What a training says while it works: a line per epoch, TensorBoard files, and MLflow when its address is set.

Knows nothing of Ray: the driver hands it each epoch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from angio_ray.storage.place import local_path
from angio_ray.training.loop import Epoch
from angio_ray.training.results import Experiment

log = logging.getLogger(__name__)

MLFLOW_ADDRESS = "MLFLOW_TRACKING_URI"


class Progress:
    """Follows the folds of one driver. Close it at the end."""

    def __init__(self, experiment: Experiment, folds: Sequence[int], parallel: int) -> None:
        self._experiment = experiment
        self._parallel = parallel
        self._left: dict[int, float | None] = dict.fromkeys(folds)
        """Seconds that each fold still takes; None before its first epoch."""
        self._whole: list[float] = []
        """Seconds that a fold takes in all, as far as known."""
        self._begun: dict[int, float] = {}
        self._boards: dict[int, Any] = {}
        self._mlflow = _MlflowRuns(experiment) if os.environ.get(MLFLOW_ADDRESS) else None

    def epoch(self, fold: int, epoch: Epoch) -> None:
        """One epoch of a fold has ended."""
        self._begun.setdefault(fold, time.monotonic() - epoch.seconds)
        self._left[fold] = epoch.seconds_left
        auc = "" if epoch.validation_auc is None else f", validation AUC {epoch.validation_auc:.3f}"
        log.info(
            "fold %d, epoch %d of %d (%d frames of %d px): loss %.3f%s, %.1f clips/s, %s to go",
            fold, epoch.number, epoch.of, epoch.frames, epoch.size, epoch.loss, auc, epoch.clips_per_s,
            _minutes(self.seconds_left()),
        )  # fmt: skip
        values = {
            "loss/train": epoch.loss,
            "loss/validation": epoch.validation_loss,
            "auc/validation": epoch.validation_auc,
            "rate/learning": epoch.learning_rate,
            "rate/clips_per_s": epoch.clips_per_s,
        }
        known = {name: value for name, value in values.items() if value is not None}
        if board := self._board(fold):
            for name, value in known.items():
                board.add_scalar(name, value, epoch.number)
            board.flush()
        if self._mlflow:
            self._mlflow.log(fold, known, epoch.number)

    def done(self, fold: int) -> None:
        """A fold has its bundle and rows."""
        self._left.pop(fold, None)
        if fold in self._begun:
            self._whole.append(time.monotonic() - self._begun[fold])
        log.info("fold %d is done, %d to go", fold, len(self._left))
        if self._mlflow:
            self._mlflow.end(fold)

    def seconds_left(self) -> float:
        """Of all folds, those at work side by side."""
        known = [left for left in self._left.values() if left is not None]
        running = [time.monotonic() - self._begun[fold] + left for fold, left in self._left.items() if left is not None]
        typical = max([*self._whole, *running], default=0.0)
        to_come = sum(left is None for left in self._left.values()) * typical
        return max([sum(known) + to_come, 0.0]) / min(self._parallel, max(1, len(self._left)))

    def close(self) -> None:
        """Close the files."""
        for board in self._boards.values():
            board.close()

    def _board(self, fold: int) -> Any:
        """TensorBoard's writer of a fold; None where `out` is a bucket."""
        out = self._experiment.out
        if out.is_s3:
            return None
        if fold not in self._boards:
            from tensorboardX import SummaryWriter

            self._boards[fold] = SummaryWriter(
                local_path(out.child(self._experiment.name, "tensorboard", f"fold-{fold}"))
            )
        return self._boards[fold]


class _MlflowRuns:
    """One MLflow run per fold; it never stops a training."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._runs: dict[int, str] = {}
        self._client: Any = None
        try:
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient()
            found = self._client.get_experiment_by_name(experiment.name)
            self._id = found.experiment_id if found else self._client.create_experiment(experiment.name)
        except Exception as error:  # not installed, no answer, no right
            log.warning("MLflow at $%s is not used: %s", MLFLOW_ADDRESS, type(error).__name__)
            self._client = None

    def log(self, fold: int, values: dict[str, float], step: int) -> None:
        try:
            if self._client is None:
                return
            if fold not in self._runs:
                run = self._client.create_run(self._id, run_name=f"fold-{fold}")
                self._runs[fold] = run.info.run_id
                for name, value in asdict(self._experiment.recipe).items():
                    self._client.log_param(run.info.run_id, name, str(value)[:500])
            for name, value in values.items():
                self._client.log_metric(self._runs[fold], name, value, step=step)
        except Exception as error:
            log.warning("MLflow does not answer and is left out: %s", type(error).__name__)
            self._client = None

    def end(self, fold: int) -> None:
        try:
            if self._client is not None and fold in self._runs:
                self._client.set_terminated(self._runs[fold])
        except Exception as error:
            log.warning("MLflow does not answer and is left out: %s", type(error).__name__)
            self._client = None


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
