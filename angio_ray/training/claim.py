"""One driver at a time to an experiment: a small file beside its checkpoints says whose it is, with a sign of life.

A driver that has died gives way: on this machine at once, on another one after its signs of life have stopped. Two that
begin at the same moment both write the file, and the later one stays. What they could still write at once is safe in any
case: sets of rows are fenced, and bundles are the same. Knows nothing of folds or of Ray.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from angio_ray.storage import Storage, StorageUnavailable
from angio_ray.tables.fence import RunHeld
from angio_ray.tables.run_log import driver_is_gone, this_host

log = logging.getLogger(__name__)

_BEAT_S = 10.0
"""Between two signs of life."""
_SILENT_S = 45.0
"""A driver on another machine that gives none for so long is dead."""
_SETTLE_S = 1.5
"""In which another one that began at the same moment has written its claim, too."""


class Claim:
    """The right to train an experiment, from `__enter__` to `__exit__`. Raises RunHeld where another driver has it."""

    def __init__(self, out: Storage, experiment: str) -> None:
        self._out = out
        self._experiment = experiment
        self._uri = out.child(experiment, "claim.json")
        self._mine: dict[str, Any] = {
            "event": "claimed", "driver": uuid.uuid4().hex, "host": this_host(), "pid": os.getpid(),
            "at": datetime.now(UTC).isoformat(), "beat": 0,
        }  # fmt: skip
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="claim", daemon=True)
        self._lost = False

    def __enter__(self) -> Claim:
        other = self._read()
        if other is not None and not self._is_dead(other):
            raise self._held()
        self._write()
        time.sleep(_SETTLE_S)
        self._lost = not self._is_mine()
        self.check()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()  # a sign of life that is on its way would bring the claim back
        try:
            if self._is_mine():
                self._out.delete(self._uri)
        except StorageUnavailable as error:
            log.debug("the claim stays: %s", error)  # this process ends: it is no obstacle

    def check(self) -> None:
        """Raises RunHeld where another driver has taken the experiment meanwhile."""
        if self._lost:
            raise self._held()

    def _held(self) -> RunHeld:
        return RunHeld(f"another driver holds experiment {self._experiment}")

    def _is_dead(self, other: dict[str, Any]) -> bool:
        if driver_is_gone({**other, "at": datetime.fromisoformat(other["at"])}):
            return True
        if other["host"] == self._mine["host"]:
            return False
        log.info("%s was begun on another machine: waiting for a sign of life", self._experiment)
        deadline = time.monotonic() + _SILENT_S
        while time.monotonic() < deadline:
            time.sleep(1.0)
            if (now := self._read()) != other:
                return now is None
        return True

    def _live(self) -> None:
        while not self._lost and not self._ended.wait(_BEAT_S):
            try:
                if self._is_mine():
                    self._mine["beat"] += 1
                    self._write()
                else:
                    self._lost = True
            except StorageUnavailable as error:
                log.debug("no sign of life: %s", error)

    def _is_mine(self) -> bool:
        found = self._read()
        return found is not None and found["driver"] == self._mine["driver"]

    def _read(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._out.read_bytes(self._uri)))
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        self._out.write_bytes(self._uri, json.dumps(self._mine).encode())
