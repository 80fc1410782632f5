"""One run's life in the tables: claimed, fed with rows, finished; resumed by whoever comes next, held by one at a time.

`scores` gets each object of a run once, whatever dies and whenever (see `fence`). Knows nothing of clips, models or
how rows come about; the pipeline that uses it knows nothing of Delta.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from angio_ray import __version__
from angio_ray.tables.clip_log import ClipLog
from angio_ray.tables.fence import Fence, RunHeld, TableUnwritable
from angio_ray.tables.root import STORE_ERRORS, TableRoot, TablesError, describe, fingerprint
from angio_ray.tables.schema import arrow_schema, conform, empty

__all__ = ["ConfigMismatch", "RunHeld", "RunIncomplete", "RunLog", "RunState", "TableUnwritable", "run_state"]

logger = logging.getLogger(__name__)

ABANDONED_AFTER_S = 600.0
"""A run whose newest commit is older than this (and than three of its intervals) has no living driver."""

COMPACTION = "compaction"
"""Mark of a compaction's commits under a run's name."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPLACED_AT_ONCE = 2000


class ConfigMismatch(TablesError):
    """The run id belongs to another configuration."""


class RunIncomplete(Exception):
    """The run cannot be finished: objects of its manifest have no row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """What `runs` says of a run."""

    run_id: str
    events: tuple[dict[str, Any], ...]
    """Rows of `runs`, oldest first."""

    @property
    def finished(self) -> bool:
        """Whether every object had its row once (a later --retry does not undo that)."""
        return any(event["event"] == "finished" for event in self.events)

    @property
    def newest(self) -> dict[str, Any] | None:
        """The newest event, None for a run that `runs` does not know."""
        return self.events[-1] if self.events else None

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration that the run id is bound to."""
        return json.loads(self.events[0]["config_json"]) if self.events else None


def run_state(root: TableRoot, run_id: str) -> RunState:
    """Reads a run's events, without claiming it."""
    events = root.open("runs").to_pyarrow_table(filters=[("run_id", "=", run_id)]).to_pylist()
    # by the fence, not by the clock: drivers of a run may sit on machines whose clocks differ
    events.sort(key=lambda event: (event["fence"], event["at"]))
    return RunState(run_id=run_id, events=tuple(events))


class RunLog:
    """A run that this driver holds. Thread-safe; one per driver.

    A thread commits a sign of life when nothing else was committed for a third of `interval_s`, so that another
    driver sees the run move while this one waits for a slow start. It ends with this object or with the process.
    """

    def __init__(
        self, root: TableRoot, state: RunState, config: Mapping[str, Any], interval_s: float, wait: bool
    ) -> None:
        self.run_id = state.run_id
        self.driver_id = uuid.uuid4().hex[:16]
        self.interval_s = interval_s
        self.state = state
        """The run as it was found at the opening."""
        self._root = root
        self._wait = wait
        self._config_json = canonical_json(config)
        self._fence = Fence(root, "scores", self.run_id, self.driver_id)
        self._lock = threading.RLock()
        self._claimed = False
        self._closed = threading.Event()
        self._last_commit = time.monotonic()
        self._num_events = 0
        self._ids: set[str] = set()
        self._clips: ClipLog | None = None
        self._totals: tuple[int, int] | None = None

    @classmethod
    def open(
        cls,
        root: TableRoot,
        run_id: str,
        config: Mapping[str, Any],
        *,
        interval_s: float = 30.0,
        wait: bool = True,
        heartbeat: bool = True,
    ) -> RunLog:
        """Takes the run, or says why not.

        An unfinished run may have a living driver. It has none if its driver sat on this machine and is gone, or if
        its newest commit is old; otherwise this call watches the run for one interval. A finished run is only looked
        at: it is claimed by the first write, if there is one. The tables must be there (`TableRoot.ensure`).

        Args:
            root: the tables.
            run_id: letters, digits, `.`, `_` and `-`.
            config: everything that changes a score, as JSON values. The run id is bound to it.
            interval_s: the run commits at least this often, s.
            wait: whether to watch; if not, a run that may have a living driver is held.
            heartbeat: whether a thread commits signs of life.

        Raises:
            RunHeld: another driver works on the run.
            ConfigMismatch: the run was started with another configuration (the message names the difference).
            TablesError: the run id is not valid, or the tables are not there.
            TableUnwritable: the store refused the claim.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise TablesError(f"run id {run_id!r}: letters, digits, '.', '_' and '-', at most 128")
        try:
            state = run_state(root, run_id)
            _check_config(state, config)
            log = cls(root, state, config, interval_s, wait)
            if state.finished:
                log._ids = log._read_ids()
            else:
                log._claim()
        except STORE_ERRORS as error:
            raise TableUnwritable(f"run {run_id} cannot be claimed: {describe(error)}") from None
        if heartbeat:
            threading.Thread(target=_beat, args=(weakref.ref(log), log._closed, interval_s / 3), daemon=True).start()
        return log

    @property
    def finished(self) -> bool:
        """Whether the run was finished when it was opened: then there is nothing to score but --retry."""
        return self.state.finished

    def scored_ids(self) -> Set[str]:
        """object_ids that have a row in this run: those found at the opening and those committed since."""
        return self._ids

    # -- the manifest ------------------------------------------------------------------------------------------------

    @property
    def has_manifest(self) -> bool:
        """Whether the run's listing is complete and stored."""
        return bool(self._root.open("manifests").transaction_version(self._manifest_name))

    def write_manifest(self, batches: Iterable[pa.Table]) -> int:
        """Stores the run's listing, all of it or nothing, and returns the number of objects.

        Columns of a batch: object_id, uri, size_bytes, etag (run_id is filled in). An object that is listed twice is
        stored once. Raises TablesError when the run has its manifest, TableUnwritable (list again in a rerun), and
        whatever the listing itself raises.
        """
        if self.has_manifest:
            raise TablesError(f"run {self.run_id} has its manifest")
        with self._lock:
            self._claim()
        totals = [0, 0]
        failures: list[Exception] = []

        def listing() -> Iterator[pa.RecordBatch]:
            try:
                yield from self._manifest_batches(batches, totals)
            except Exception as error:
                failures.append(error)  # on its way through delta-rs it would become another error
                raise

        reader = pa.RecordBatchReader.from_batches(arrow_schema("manifests"), listing())
        # a fence of its own in its own table: the atomic commit is what makes the manifest complete
        try:
            Fence(self._root, "manifests", self._manifest_name, self.driver_id).commit(reader)
            self._totals = (totals[0], totals[1])
        except TableUnwritable as error:
            raise (failures[0] if failures else error) from None
        except RunHeld:
            self.commit()  # raises RunHeld unless it was an earlier driver, now fenced: then its listing holds
        return self._manifest_totals()[0] or 0

    def manifest(self, batch_rows: int = 65536) -> Iterator[pa.Table]:
        """The run's listing, in tables of at most so many rows. Raises TablesError when it has none."""
        if not self.has_manifest:
            raise TablesError(f"run {self.run_id} has no manifest")
        dataset = self._root.open("manifests").to_pyarrow_dataset()
        for batch in dataset.to_batches(filter=pc.field("run_id") == self.run_id, batch_size=batch_rows):
            if batch.num_rows:
                yield pa.table(batch)

    def pending(self, batch_rows: int = 65536) -> Iterator[pa.Table]:
        """The part of the listing that has no row in this run yet."""
        for table in self.manifest(batch_rows):
            todo = [object_id not in self._ids for object_id in table.column("object_id").to_pylist()]
            if any(todo):
                yield table.filter(pa.array(todo, pa.bool_()))

    # -- rows --------------------------------------------------------------------------------------------------------

    def commit(self, rows: pa.Table | None = None) -> int:
        """Appends rows to `scores`, or without rows commits a sign of life. Returns how many rows were new.

        Rows of objects that this run has already are dropped. When this returns, the rows are in the log, once.
        Raises RunHeld, TableUnwritable, ValueError (rows that do not fit the schema or the run).
        """
        with self._lock:
            self._claim()
            fresh = self._absent(self._own(rows)) if rows is not None else empty("scores")
            self._commit(fresh)
            self._ids.update(fresh.column("object_id").to_pylist())
            return fresh.num_rows

    def replace(self, rows: pa.Table) -> int:
        """Puts these rows in the place of this run's rows of the same objects. Returns how many rows were written."""
        with self._lock:
            self._claim()
            rows = self._own(rows)
            ids = rows.column("object_id").to_pylist()
            if len(set(ids)) < len(ids):
                raise ValueError("an object has two new rows")
            for start in range(0, len(ids), _REPLACED_AT_ONCE):
                part = slice(start, start + _REPLACED_AT_ONCE)
                names = ", ".join(_sql_text(object_id) for object_id in ids[part])
                predicate = f"run_id = {_sql_text(self.run_id)} AND object_id IN ({names})"
                self._commit(rows.slice(start, _REPLACED_AT_ONCE), predicate)
                self._ids.update(ids[part])
            return len(ids)

    def append_clips(self, rows: pa.Table) -> int:
        """Appends to `clips` those rows whose (object_id, etag) is absent. To be called before the scores' commit."""
        with self._lock:
            if self._clips is None:
                self._clips = ClipLog(self._root)
            return self._clips.append(rows)

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, counts: Mapping[str, int]) -> None:
        """Marks the run as finished. Raises RunIncomplete when an object of the manifest has no row, RunHeld."""
        if self.has_manifest:
            missing = sum(table.num_rows for table in self.pending())
            if missing:
                raise RunIncomplete(f"{missing} objects of run {self.run_id} have no row")
        with self._lock:
            self._claim()
            self._commit(empty("scores"))  # a driver that lost the run must not mark it
            self._event("finished", counts)
            self.close()

    def stop(self, counts: Mapping[str, int] | None = None) -> bool:
        """Marks the run as left unfinished, so that the next driver need not wait. False when that was not possible
        (the run is held by another, the store does not answer): nothing is lost by that."""
        with self._lock:
            self.close()
            if not self._claimed:
                return True
            try:
                self._commit(empty("scores"))
                self._event("stopped", counts)
            except (RunHeld, TableUnwritable, *STORE_ERRORS) as error:
                logger.warning("run %s is not marked as stopped: %s", self.run_id, describe(error))
                return False
            return True

    def close(self) -> None:
        """Ends the signs of life; the run stays as it is in the tables."""
        self._closed.set()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed.is_set():
            self.stop()

    # -- claiming ----------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        if self._claimed:
            return
        number = self._fence.refresh()
        if number:
            state = run_state(self._root, self.run_id)
            if not _resting(state, self._fence):
                self._watch(state)
                state = run_state(self._root, self.run_id)  # a driver that was just starting has written its event now
            _check_config(state, json.loads(self._config_json))
            self.state = state
        self._commit(empty("scores"))
        self._ids = self._read_ids()
        self._claimed = True
        self._event("claimed")

    def _watch(self, state: RunState) -> None:
        """Returns when the unfinished run has no living driver; raises RunHeld when it has (or may have: no wait)."""
        event = state.newest or {}
        if event and self._fence.number_of(event["driver_id"]) != self._fence.number:
            event = {}  # someone claimed the run since and has not said who it is
        interval_s = event.get("interval_s") or self.interval_s
        if driver_is_gone(event):
            logger.info("run %s: its driver (pid %d here) is gone", self.run_id, event["pid"])
            return
        age_s = _age_s(self._fence, self.run_id)
        if age_s > max(ABANDONED_AFTER_S, 3 * interval_s):
            logger.info("run %s: its newest commit is %.0f s old", self.run_id, age_s)
            return
        held = f"another driver holds run {self.run_id}"
        if event:
            held += f" (on {event['host'].partition(':')[0]}, pid {event['pid']})"
        if not self._wait:
            raise RunHeld(held)
        logger.info("run %s is unfinished: watching for %.0f s whether a driver works on it", self.run_id, interval_s)
        before = self._fence.number
        until = time.monotonic() + interval_s
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, interval_s / 5))
            if self._fence.refresh() != before:
                raise RunHeld(held)

    def _event(self, event: str, counts: Mapping[str, int] | None = None) -> None:
        objects, size = self._manifest_totals() if event != "claimed" else (None, None)
        row = {
            "run_id": self.run_id,
            "event": event,
            "at": datetime.now(UTC),
            "fence": self._fence.number,
            "driver_id": self.driver_id,
            "host": this_host(),
            "pid": os.getpid(),
            "interval_s": self.interval_s,
            "config_json": self._config_json,
            "config_digest": hashlib.sha256(self._config_json.encode()).hexdigest(),
            "code_version": __version__,
            "counts": list((counts or {}).items()),
            "manifest_objects": objects,
            "manifest_bytes": size,
            "key_fingerprint": fingerprint(self._fence.handle),
        }
        # a name of its own for each event: a lost reply does not write it twice, and runs do not wait for one another
        self._num_events += 1
        name = f"{self.run_id}/{self.driver_id}/{self._num_events}"
        Fence(self._root, "runs", name, self.driver_id).commit(pa.Table.from_pylist([row], arrow_schema("runs")))

    def _commit(self, rows: pa.Table, predicate: str | None = None) -> None:
        self._fence.commit(rows, predicate=predicate)
        self._last_commit = time.monotonic()

    def _sign_of_life(self, quiet_s: float) -> None:
        # not while a commit is under way: that is one
        if self._lock.acquire(blocking=False):
            try:
                if self._claimed and not self._closed.is_set() and time.monotonic() - self._last_commit >= quiet_s:
                    self._commit(empty("scores"))
            finally:
                self._lock.release()

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read_ids(self) -> set[str]:
        dataset = self._fence.handle.to_pyarrow_dataset()
        ids: set[str] = set()
        for batch in dataset.to_batches(columns=["object_id"], filter=pc.field("run_id") == self.run_id):
            ids.update(batch.column(0).to_pylist())
        return ids

    def _own(self, rows: pa.Table) -> pa.Table:
        rows = conform("scores", rows)
        if any(run_id != self.run_id for run_id in rows.column("run_id").unique().to_pylist()):
            raise ValueError(f"rows of another run than {self.run_id}")
        return rows

    def _absent(self, rows: pa.Table) -> pa.Table:
        seen: set[str] = set()
        keep = []
        for object_id in rows.column("object_id").to_pylist():
            keep.append(object_id not in self._ids and object_id not in seen)
            seen.add(object_id)
        if not all(keep):
            logger.info("%d rows are in run %s already", keep.count(False), self.run_id)
        return rows.filter(pa.array(keep, pa.bool_()))

    @property
    def _manifest_name(self) -> str:
        return f"manifest/{self.run_id}"

    def _manifest_batches(self, batches: Iterable[pa.Table], totals: list[int]) -> Iterator[pa.RecordBatch]:
        seen: set[str] = set()
        for table in batches:
            run = pa.array([self.run_id] * table.num_rows, pa.string())
            table = table.drop_columns(["run_id"]) if "run_id" in table.column_names else table
            rows = conform("manifests", table.append_column("run_id", run))
            keep = []
            for object_id in rows.column("object_id").to_pylist():
                keep.append(object_id not in seen)
                seen.add(object_id)
            rows = rows.filter(pa.array(keep, pa.bool_()))
            totals[0] += rows.num_rows
            totals[1] += pc.sum(rows.column("size_bytes")).as_py() or 0
            yield from rows.to_batches()

    def _manifest_totals(self) -> tuple[int | None, int | None]:
        if self._totals is None and self.has_manifest:
            objects = size = 0
            for table in self.manifest():
                objects += table.num_rows
                size += pc.sum(table.column("size_bytes")).as_py() or 0
            self._totals = (objects, size)
        return self._totals or (None, None)


def canonical_json(config: Mapping[str, Any]) -> str:
    """One spelling per configuration. Raises TypeError or ValueError for what JSON cannot hold."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _beat(log_reference: weakref.ref[RunLog], closed: threading.Event, quiet_s: float) -> None:
    # a weak reference: a log that nobody holds any more must not keep the run alive
    while not closed.wait(quiet_s / 2):
        log = log_reference()
        if log is None:
            return
        try:
            log._sign_of_life(quiet_s)
        except (RunHeld, TableUnwritable) as error:
            logger.warning("%s", error)  # the fence raises it again at the driver's next commit
            return
        except STORE_ERRORS as error:
            logger.warning("no sign of life of run %s: %s", log.run_id, describe(error))
        del log


def _check_config(state: RunState, config: Mapping[str, Any]) -> None:
    if state.config is None:
        return
    bound, given = _flat(state.config), _flat(json.loads(canonical_json(config)))
    names = sorted(name for name in bound.keys() | given.keys() if bound.get(name) != given.get(name))
    if names:
        texts = [f"{name} {_short(bound.get(name))} -> {_short(given.get(name))}" for name in names]
        raise ConfigMismatch(
            f"run {state.run_id} was started with another configuration ({'; '.join(texts)}): take another run id"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return flat


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= 40 else value[:37] + "..."


def _resting(state: RunState, fence: Fence) -> bool:
    """Whether the run's newest commit is that of an event by which its driver left it, or of a compaction after it."""
    event = state.newest
    if event is None or event["event"] == "claimed":
        return False
    return fence.number in (event["fence"], fence.number_of(COMPACTION))


def this_host() -> str:
    """Name of this machine, and of the namespace that a pid means something in."""
    # a pid means something within its pid namespace: containers can share a host name
    try:
        return f"{socket.gethostname()}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}:"


def driver_is_gone(event: Mapping[str, Any]) -> bool:
    """Whether the claimed event's process ran on this machine and has ended."""
    if event.get("event") != "claimed" or event["host"] != this_host() or event["pid"] is None:
        return False
    try:
        process = psutil.Process(event["pid"])
        reused = datetime.fromtimestamp(process.create_time(), UTC) > event["at"] + timedelta(seconds=2)
        return reused or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _age_s(fence: Fence, run_id: str) -> float:
    """Age of the run's newest commit, or a lower bound of it when the table's newest commits are of other runs."""
    commits = fence.handle.history(20)
    at_ms = next((commit["timestamp"] for commit in commits if commit.get("run") == run_id), commits[-1]["timestamp"])
    return time.time() - at_ms / 1000


def _sql_text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
