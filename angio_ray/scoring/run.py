"""The driver of a scoring run: manifest, anti-join, waves through the two stages, fenced commits, retries, an exit code.

Invariant: a run that ends by itself has exactly one row in `scores` per object of its manifest. Whatever dies before that, the
same command again scores what is missing (`tables.run_log` says why no row can be written twice).
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from angio_ray.clip import Reason, is_transient
from angio_ray.dicom.reader import Limits
from angio_ray.models import TASKS
from angio_ray.models.backends import BackendChoice, choose_backend, unsupported
from angio_ray.models.bundles import SHIPPED, Bundle, BundleError, load_bundle
from angio_ray.pseudonyms import (
    KEY_FILE_VARIABLE,
    PatientIdentity,
    PatientMap,
    PatientMapError,
    PseudonymKey,
    PseudonymKeyError,
    generate_key,
    load_key,
)
from angio_ray.sampling import ClipWindow
from angio_ray.scoring.cluster import check_nodes_see, ray_cluster
from angio_ray.scoring.config import RunError, ScoreConfig
from angio_ray.scoring.crash_ledger import start_ledger
from angio_ray.scoring.pipeline import Plan, scored_blocks
from angio_ray.scoring.pools import Pools, size_pools
from angio_ray.scoring.progress import Progress
from angio_ray.scoring.rows import KEYS, RunFacts, result_rows
from angio_ray.storage import Storage, StorageUnavailable
from angio_ray.tables.fence import STORE_ERRORS, describe
from angio_ray.tables.lookups import ids_with_reason, run_counts
from angio_ray.tables.root import TableRoot
from angio_ray.tables.run_log import RunHeld, RunIncomplete, RunLog, TableUnwritable, run_state

log = logging.getLogger(__name__)

_WAVE_OBJECTS = 250_000
_PASSES = 3
"""The first, and up to two more for what failed in a transient way."""
_BROKEN_PIPELINES_ALLOWED = 3
_TICK_S = 0.25
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this for the driver of a submitted job."""


@dataclass(frozen=True)
class RunSummary:
    """How a run ended."""

    run_id: str
    statuses: Counter[str]
    """Rows of the whole run by status, whichever driver wrote them."""
    reasons: Counter[str]
    """Rejected rows of the whole run by reason."""
    written: int
    """Rows that this driver wrote."""
    seconds: float
    notes: list[str]
    """What the user should know: objects that changed, appeared or vanished since the manifest was made."""

    @property
    def exit_code(self) -> int:
        """0: all scored or gated; 3: done, with rejects."""
        return 3 if self.statuses["rejected"] else 0


def score(config: ScoreConfig) -> RunSummary:
    """Score every object of the source that this run has no row for yet. RunError carries the exit code where it cannot."""
    started = time.monotonic()
    try:
        written, notes = _score(config)
        statuses, reasons = run_counts(open_root(config.tables, config.clips), config.run)
    except RunHeld as error:
        raise RunError(str(error), 4) from error
    except (TableUnwritable, RunIncomplete) as error:
        raise RunError(f"not finished: {error}; run the same command again", 1) from error
    except STORE_ERRORS as error:
        raise RunError(
            f"not finished: the tables cannot be read: {describe(error)}; run the same command again", 1
        ) from error
    return RunSummary(config.run, statuses, reasons, written, time.monotonic() - started, notes)


def _score(config: ScoreConfig) -> tuple[int, list[str]]:
    source, root = open_source(config.source), open_root(config.tables, config.clips)
    bundles = _load_bundles(config)
    if next(source.list(), None) is None:
        raise RunError(f"no objects under {config.source}", 2)
    key = load_run_key(config.key_file, config.tables, root)
    patients = load_patients(config.patient_map, key)
    root.ensure(key.fingerprint)
    state = run_state(root, config.run)
    if state.finished and state.config and not config.retry:
        with RunLog.open(
            root,
            config.run,
            _facts(config, key.hash("source", source.uri), bundles, state.config["backend"]),
            heartbeat=False,
        ) as run_log:
            return 0, ["the run is finished: nothing to do", *_changes_since(run_log.manifest(), source)]

    # in this order: joining a cluster puts Ray's own handler of SIGTERM, which ends the process at once, over ours
    with ray_cluster() as nodes, _stop_signals() as stop:
        if not source.is_s3:
            check_nodes_see(config.source)
        pools = size_pools(nodes, config)
        refs = {task: ray.put(bundle) for task, bundle in bundles.items()}
        backend = _backend(config, refs, pools, state.config)
        facts = _facts(config, key.hash("source", source.uri), bundles, asdict(backend))
        with RunLog.open(root, config.run, facts, interval_s=config.commit_interval_s) as run_log:
            notes = []
            if run_log.has_manifest:
                notes = _changes_since(run_log.manifest(), source)
                for note in notes:
                    log.warning("%s", note)
            else:
                run_log.write_manifest(listing(source, key))
            plan = Plan(
                storage=source,
                windows=_windows(bundles),
                bundles=refs,
                backend=backend,
                ledger=start_ledger(),
                pools=pools,
                batch_size=config.batch_size,
                gate=config.gate,
                assume_fps=config.assume_fps,
                limits=Limits(timeout_s=config.decode_timeout_s, memory_bytes=config.decode_memory_mb << 20),
            )
            run_facts = RunFacts(
                run_id=config.run,
                bundles={task: bundle.digest for task, bundle in bundles.items()},
                backend=backend.backend,
                precision=backend.precision,
            )
            retried = ids_with_reason(root, config.run, config.retry)
            driver = _Driver(config, run_log, source, plan, run_facts, key, patients, stop)
            try:
                driver.run(retried)
            except StorageUnavailable as error:
                raise RunError(f"not finished: {error}; run the same command again", 1) from error
            finally:
                if ray.is_initialized():
                    ray.kill(plan.ledger)  # the stages' closures hold its handle for ever: in a lasting cluster it would stay
            return driver.written, notes


class StopEvent(threading.Event):
    """Set by SIGTERM or SIGINT."""

    signum = 0
    """Which of them it was."""


class _Driver:
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
        self.buffered = 0
        self.committed_at = time.monotonic()
        self.failures_in_a_row = 0
        self.replacing = False

    def run(self, retried: set[str]) -> None:
        """All objects that have no row yet, then again those whose rows --retry names."""
        total = sum(page.num_rows for page in self.run_log.manifest())
        with Progress(total, len(self.run_log.scored_ids())) as self.progress:
            for wave in _waves(self.run_log.pending()):
                self._score_wave(wave)
            if retried:
                self.replacing = True
                self.progress.done -= len(retried)
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
                ray.get(self.plan.ledger.forgive.remote())
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
                for table in _in_background(scored_blocks(keys, self.plan)):
                    if table is not None:
                        set_aside |= self._take(table, attempt)
                    if self.stop.is_set():
                        self._commit()
                        self.run_log.stop(dict(self.progress.counts))
                        raise RunError(
                            "stopped: what was scored is committed; run the same command again", 128 + self.stop.signum
                        )
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
            failed = is_transient(reason, detail)
            self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
            if self.failures_in_a_row > self.config.max_failures_in_a_row:
                self._commit()
                raise RunError(
                    f"not finished: {self.failures_in_a_row} clips in a row failed ({reason}: {detail}); "
                    "mend the cause and run the same command again",
                    1,
                )
            if failed and attempt < _PASSES:
                aside.add(object_id)
                continue
            fresh.append(position)
        if fresh:
            rows = table.take(pa.array(fresh))
            if Reason.READ_ERROR in rows["reason"].to_pylist():
                self._check_source()
            scores, clips = result_rows(rows, facts=self.facts, key=self.key, patients=self.patients, attempts=attempt)
            self.buffer.append((scores, clips))
            self.buffered += len(rows)
            self.open_ids.difference_update(rows["object_id"].to_pylist())
            self.progress.add_statuses(rows["status"].to_pylist())
        self.progress.waiting += len(aside)
        return aside

    def _check_source(self) -> None:
        """A place that cannot be read at all makes no row `read_error`: stop instead."""
        try:
            self.source.probe()
        except StorageUnavailable as error:
            raise RunError(f"not finished: {error}; run the same command again", 1) from error

    def _commit_if_due(self) -> None:
        self.progress.tick()
        if (
            self.buffered >= self.config.commit_rows
            or time.monotonic() - self.committed_at >= self.config.commit_interval_s
        ):
            self._commit()

    def _commit(self) -> None:
        """Append the buffered rows: `clips` first, so that no score lacks the way back to its object."""
        if self.buffer:
            scores = pa.concat_tables([scores for scores, _ in self.buffer])
            self.run_log.append_clips(pa.concat_tables([clips for _, clips in self.buffer]))
            self.written += self.run_log.replace(scores) if self.replacing else self.run_log.commit(scores)
            self.buffer, self.buffered = [], 0
        self.committed_at = time.monotonic()


class _PipelineBroken(Exception):
    """Ray Data gave up; the cause is chained."""


def _in_background(blocks: Iterator[pa.Table]) -> Iterator[pa.Table | None]:
    """The blocks as they come, and None every `_TICK_S` while none does, so that the driver can commit and stop meanwhile."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=8)
    done, cancelled = object(), threading.Event()

    def drain() -> None:
        try:
            for block in blocks:
                while not cancelled.is_set():
                    try:
                        ready.put(block, timeout=_TICK_S)
                        break
                    except queue.Full:
                        continue
                if cancelled.is_set():
                    return
            ready.put(done)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=drain, name="scored blocks", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=_TICK_S)
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


@contextmanager
def _stop_signals() -> Iterator[StopEvent]:
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


def open_source(uri: str) -> Storage:
    """The place of the clips; RunError (2) where it cannot be read."""
    source = Storage(uri)
    try:
        source.probe()
    except StorageUnavailable as error:
        raise RunError(str(error), 2) from error
    return source


def open_root(tables: str, clips: str | None) -> TableRoot:
    """The tables, wherever they are; RunError (2) where these places cannot be written."""
    places = [Storage(uri) for uri in (tables, clips) if uri]
    for place in places:
        try:
            place.probe_write()
        except StorageUnavailable as error:
            raise RunError(str(error), 2) from error
    return TableRoot(*places)


def load_run_key(key_file: Path | None, tables: str, root: TableRoot) -> PseudonymKey:
    """The key that was named, else (only for a local table root) the one beside it, made on first use and said aloud."""
    place = Storage(tables)
    try:
        if key_file or os.environ.get(KEY_FILE_VARIABLE) or place.is_s3 or _IN_JOB in os.environ:
            return load_key(key_file)
        beside = Path(tables.removeprefix("file://").rstrip("/") + ".key")
        if beside.exists():
            return load_key(beside)
        if root.exists("scores"):
            raise RunError(f"{tables} has a pseudonym key, but neither --key-file nor {KEY_FILE_VARIABLE} names it", 2)
        key = generate_key(beside)
        log.warning("a new pseudonym key: %s (whoever loses it loses the way from results back to patients)", beside)
        return key
    except PseudonymKeyError as error:
        raise RunError(str(error), 2) from error


def load_patients(patient_map: Path | None, key: PseudonymKey) -> PatientIdentity:
    """Who counts as one patient."""
    try:
        return PatientIdentity(key, PatientMap.read(patient_map) if patient_map else None)
    except PatientMapError as error:
        raise RunError(str(error), 2) from error


def _load_bundles(config: ScoreConfig) -> dict[str, Bundle]:
    """The bundle of each requested task, in the registry's order (quality first: it is the gate)."""
    if unknown := [task for task in config.models if task not in TASKS]:
        raise RunError(f"--models {','.join(unknown)}: no such task; there is {', '.join(TASKS)}", 2)
    folder = config.bundles or SHIPPED
    try:
        bundles = {task: load_bundle(folder / task) for task in TASKS if task in config.models}
        for bundle in bundles.values():
            bundle.check()
    except BundleError as error:
        raise RunError(str(error), 2) from error
    return bundles


def _windows(bundles: Mapping[str, Bundle]) -> tuple[ClipWindow, ...]:
    """What the requested models look at, each window once: a clip is decoded once for all of them."""
    return tuple(dict.fromkeys(w for task, bundle in bundles.items() for w in TASKS[task].windows(bundle)))


def listing(source: Storage, key: PseudonymKey) -> Iterator[pa.Table]:
    """The source's objects as pages of keys (schema `rows.KEYS`), each URI once."""
    seen: set[str] = set()
    for page in source.list():
        fresh = [info for info in page if info.uri not in seen]
        seen.update(info.uri for info in fresh)
        yield pa.Table.from_pylist(
            [
                {
                    "object_id": key.object_id(info.uri),
                    "uri": info.uri,
                    "size_bytes": info.size_bytes,
                    "etag": info.etag,
                }
                for info in fresh
            ],
            schema=KEYS,
        )


def _changes_since(manifest: Iterable[pa.Table], source: Storage) -> list[str]:
    """One line for each kind of difference between the run's manifest and the source as it is now."""
    known = {
        uri: (size, etag)
        for page in manifest
        for uri, size, etag in zip(*(page[c].to_pylist() for c in ("uri", "size_bytes", "etag")), strict=True)
    }
    new = changed = 0
    for page in source.list():
        for info in page:
            before = known.pop(info.uri, None)
            new += before is None
            changed += before is not None and before != (info.size_bytes, info.etag)
    counts = {
        "changed since this run's manifest was made": changed,
        "new since then and not part of this run": new,
        "gone since then": len(known),
    }
    return [f"{count:,} object{'s' if count > 1 else ''} {what}" for what, count in counts.items() if count]


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


def _facts(
    config: ScoreConfig, source_id: str, bundles: Mapping[str, Bundle], backend: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that changes a score: what the run id is bound to."""
    return {
        "source": source_id,  # hashed: the path of a source can name a patient
        "models": {task: bundle.digest for task, bundle in bundles.items()},
        "gate": config.gate,
        "assume_fps": config.assume_fps,
        "patient_map": hashlib.sha256(config.patient_map.read_bytes()).hexdigest() if config.patient_map else None,
        "backend": dict(backend),
    }


def _backend(
    config: ScoreConfig,
    bundles: Mapping[str, Any],
    pools: Pools,
    bound: Mapping[str, Any] | None,
) -> BackendChoice:
    """What runs the models on all nodes: as the run is bound to, else measured once where a scoring actor would run."""
    stored = BackendChoice(**bound["backend"]) if bound else None
    if stored and (
        config.backend not in ("auto", stored.backend) or config.precision not in ("auto", stored.precision)
    ):
        stored = None  # the run log will name the difference

    def choose(refs: Mapping[str, Any]) -> tuple[BackendChoice | None, str | None]:
        import torch

        if stored:
            return stored, unsupported(stored)
        try:
            choice = choose_backend(
                [ray.get(ref) for ref in refs.values()],
                "cuda" if pools.gpus_per_scorer and torch.cuda.is_available() else "cpu",
                config.backend,
                precision=config.precision,
                num_threads=pools.threads_per_scorer,
                batch_size=config.batch_size,
            )
        except ValueError as error:
            return None, str(error)
        return choice, None

    remote = ray.remote(num_cpus=pools.cpus_per_scorer, num_gpus=pools.gpus_per_scorer)(choose)
    choice, fault = ray.get(remote.remote(dict(bundles)))
    if fault or choice is None:
        raise RunError(f"the models cannot run as {'the run was started' if stored else 'asked for'}: {fault}", 2)
    log.info("models run with %s", choice)
    return choice
