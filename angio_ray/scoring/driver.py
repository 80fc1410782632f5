"""The run at work: takes the pipeline's rows, sets transient failures aside for another pass, commits the rest, stops when told.

Knows the pipeline as an iterator of blocks and the tables as a `RunLog`; `run` sets both up.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from angio_ray.clip import GONE, ClipRejected, Reason, is_transient
from angio_ray.pseudonyms import PatientIdentity, PseudonymKey
from angio_ray.scoring.config import RunError, ScoreConfig
from angio_ray.scoring.pipeline import Plan, scored_blocks
from angio_ray.scoring.progress import Progress
from angio_ray.scoring.rows import KEYS, RunFacts, result_rows, side_objects
from angio_ray.storage import Storage, StorageUnavailable
from angio_ray.tables.run_log import RunLog

log = logging.getLogger(__name__)

_WAVE_OBJECTS = 250_000
_PASSES = 3
"""The first, and up to two more for what failed in a transient way."""
_BROKEN_PIPELINES_ALLOWED = 3
_PIPELINE_END_S = 20.0
"""Longest wait for the pipeline's end when the driver leaves it: it ends with the block at hand."""
TICK_S = 0.25
"""How often a waiting driver looks up: progress, commits, signals."""


class StopEvent(threading.Event):
    """Set by SIGTERM or SIGINT."""

    signum = 0
    """Which of them it was."""

    def check(self) -> None:
        """RunError (128 + signal) once it is set."""
        if self.is_set():
            raise RunError("stopped: what was scored is committed; run the same command again", 128 + self.signum)


class Driver:
    """Takes the pipeline's rows, sets transient failures aside, and commits the rest."""

    def __init__(
        self,
        config: ScoreConfig,
        run_log: RunLog,
        source: Storage,
        plan: Plan,
        facts: RunFacts,
        key: PseudonymKey,
        patients: PatientIdentity,
        stop: StopEvent,
    ) -> None:
        self.config = config
        self.run_log = run_log
        self.source = source
        self.plan = plan
        self.facts = facts
        self.key = key
        self.patients = patients
        self.stop = stop
        self.written = 0
        self.buffer: list[tuple[pa.Table, pa.Table]] = []
        self.beside = Storage(config.tables)
        self.files: dict[str, bytes] = {}
        """To be written before the buffered rows, which name them."""
        self.buffered = 0
        self.committed_at = time.monotonic()
        self.failures_in_a_row = 0
        self.replacing = False
        self.changed = 0
        """Objects that were not the version that the manifest lists when they were read."""
        self.witness: str | None = None
        """An object that could be read."""

    def run(self, retried: set[str]) -> None:
        """All objects that have no row yet, then again those whose rows --retry names."""
        total = sum(page.num_rows for page in self.run_log.manifest())
        with Progress(total, len(self.run_log.scored_ids() - retried)) as self.progress:
            for wave in _waves(self.run_log.pending()):
                self._score_wave(wave)
            if retried:
                self.replacing = True
                again = pa.array(sorted(retried), pa.string())
                for wave in _waves(page.filter(pc.is_in(page["object_id"], again)) for page in self.run_log.manifest()):
                    self._score_wave(wave)
        self.run_log.finish(dict(self.progress.counts))

    def _score_wave(self, wave: pa.Table) -> None:
        self.open_ids = set(wave["object_id"].to_pylist())
        for attempt in range(1, _PASSES + 1):
            wave = self._still_open(wave)
            if not len(wave):
                break
            if attempt > 1:
                log.info("%d clips failed in a way that another try may cure: pass %d", len(wave), attempt)
            self._pass(wave, attempt)

    def _still_open(self, keys: pa.Table) -> pa.Table:
        return keys.filter(pc.is_in(keys["object_id"], pa.array(sorted(self.open_ids), pa.string())))

    def _pass(self, keys: pa.Table, attempt: int) -> None:
        """One pass over the keys. A pipeline that breaks is started again on what is left, while that gets somewhere."""
        self.progress.waiting = 0
        set_aside: set[str] = set()
        broken = 0
        while len(keys):
            before = len(self.open_ids) - len(set_aside)
            try:
                if attempt > 1:
                    ray.get(self.plan.ledger.forgive.remote())
                with closing(_in_background(scored_blocks(keys, self.plan))) as blocks:
                    for table in blocks:
                        if table is not None:
                            set_aside |= self._take(table, attempt)
                        if self.stop.is_set():
                            self._commit()
                            self.stop.check()
                        self._commit_if_due()
                self._commit()
                return
            except (ray.exceptions.RayError, _PipelineBroken) as error:
                self._commit()
                broken = 1 if len(self.open_ids) - len(set_aside) < before else broken + 1
                log.error(
                    "the pipeline broke (%s); starting it again on what is left",
                    type(error.__cause__ or error).__name__,
                )
                if broken >= _BROKEN_PIPELINES_ALLOWED or not ray.is_initialized():
                    raise RunError(
                        f"not finished: the pipeline broke {broken} times without progress; run the same command again",
                        1,
                    ) from error
                keys = keys.filter(pc.invert(pc.is_in(keys["object_id"], pa.array(sorted(set_aside), pa.string()))))
                keys = self._still_open(keys)

    def _take(self, table: pa.Table, attempt: int) -> set[str]:
        """Buffer the final rows of a block; returns the object ids set aside for another pass."""
        fresh, aside = [], set()
        for position, (object_id, reason, detail) in enumerate(
            zip(table["object_id"].to_pylist(), table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True)
        ):
            if object_id not in self.open_ids:
                continue  # a block that Ray computed twice
            again = is_transient(reason, detail) or (detail == GONE and attempt == 1)
            self.failures_in_a_row = self.failures_in_a_row + 1 if again else 0
            if attempt == 1 and self.failures_in_a_row > self.config.max_failures_in_a_row:
                self._commit()
                raise RunError(
                    f"not finished: {self.failures_in_a_row} clips in a row failed ({reason}: {detail}); mend the cause and "
                    "run the same command again (with a larger --max-failures-in-a-row if the clips themselves are the cause)",
                    1,
                )
            if again and attempt < _PASSES:
                aside.add(object_id)
                continue
            fresh.append(position)
        if fresh:
            rows = table.take(pa.array(fresh))
            self._check_source(rows)
            self.changed += pc.sum(rows["changed"]).as_py() or 0
            rows, files = side_objects(rows, self.beside, self.facts.run_id)
            self.files.update(files)
            scores, clips = result_rows(rows, facts=self.facts, key=self.key, patients=self.patients, attempts=attempt)
            self.buffer.append((scores, clips))
            self.buffered += len(rows)
            self.open_ids.difference_update(rows["object_id"].to_pylist())
            self.progress.add_statuses(rows["status"].to_pylist())
        self.progress.waiting += len(aside)
        return aside

    def _check_source(self, rows: pa.Table) -> None:
        """Before rows become `read_error`: the place must answer, and an object that could be read must be readable still.

        Otherwise the store or the credentials are at fault, and not these objects: RunError (1), no false rows.
        """
        reasons = rows["reason"].to_pylist()
        if Reason.READ_ERROR in reasons:
            try:
                self.source.probe()
                if self.witness:
                    with closing(self.source.open(self.witness)) as source:
                        source.read([(0, 1024)])
            except (StorageUnavailable, ClipRejected) as error:
                fault = error.detail if isinstance(error, ClipRejected) else str(error)
                if fault != GONE:  # that one object may go; the next that is read takes its place
                    raise RunError(
                        f"not finished: the clips cannot be read ({fault}); run the same command again", 1
                    ) from error
                self.witness = None
        if self.witness is None:
            uris = zip(rows["uri"].to_pylist(), reasons, strict=True)
            self.witness = next((uri for uri, reason in uris if reason != Reason.READ_ERROR), None)

    def _commit_if_due(self) -> None:
        self.progress.tick()
        if (
            self.buffered >= self.config.commit_rows
            or time.monotonic() - self.committed_at >= self.config.commit_interval_s
        ):
            self._commit()

    def _commit(self) -> None:
        """Append the buffered rows: `clips` first, so that no score lacks the way back to its object, and before these what they
        name."""
        if self.buffer:
            for uri, data in self.files.items():
                self.beside.write_bytes(uri, data)
            self.files = {}
            scores = pa.concat_tables([scores for scores, _ in self.buffer])
            self.run_log.append_clips(pa.concat_tables([clips for _, clips in self.buffer]))
            self.written += self.run_log.replace(scores) if self.replacing else self.run_log.commit(scores)
            self.buffer, self.buffered = [], 0
        self.committed_at = time.monotonic()


class _PipelineBroken(Exception):
    """Ray Data gave up; the cause is chained."""


def _in_background(blocks: Generator[pa.Table, None, None]) -> Generator[pa.Table | None, None, None]:
    """The blocks as they come, and None every `TICK_S` while none does, so that the driver can commit and stop meanwhile.

    Closing it closes the blocks too, in the thread that reads them: a pipeline at work while Ray is shut down ends the
    process from within Ray's core.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=8)
    done, cancelled = object(), threading.Event()

    def hand_over(item: Any) -> bool:
        while not cancelled.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=TICK_S)
                return True
        return False

    def drain() -> None:
        last: Any = done
        try:
            with closing(blocks):
                for block in blocks:
                    if not hand_over(block):
                        return
        except BaseException as error:
            last = error
        hand_over(last)

    thread = threading.Thread(target=drain, name="scored blocks", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=TICK_S)
            except queue.Empty:
                yield None
                continue
            if item is done:
                return
            if isinstance(item, BaseException):
                raise _PipelineBroken from item
            yield item
    finally:
        cancelled.set()
        thread.join(_PIPELINE_END_S)


@contextmanager
def stop_signals() -> Iterator[StopEvent]:
    """An event that SIGTERM and SIGINT set while this is open in the main thread; its `signum` says which."""
    event = StopEvent()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(signum: int, _frame: object) -> None:
        event.signum = signum
        event.set()

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _waves(pages: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Pages of keys joined to tables of at most `_WAVE_OBJECTS`."""
    ready: list[pa.Table] = []
    for page in pages:
        if ready and sum(map(len, ready)) + len(page) > _WAVE_OBJECTS:
            yield pa.concat_tables(ready)
            ready = []
        ready.append(page.select(KEYS.names))
    if sum(map(len, ready)):
        yield pa.concat_tables(ready)
