"""A scoring run from its config: places, key, bundles, cluster and tables brought together, then `driver` works through it.

Invariant: a run that ends by itself has exactly one row in `scores` per object of its manifest. Whatever dies before that, the
same command again scores what is missing (`tables.run_log` says why no row can be written twice).
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from angio_ray.dicom.reader import Limits
from angio_ray.models import TASKS
from angio_ray.models.backends import BackendChoice, Converted, choose_backend, convert, for_net, unsupported
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
from angio_ray.scoring.driver import TICK_S, Driver, StopEvent, stop_signals
from angio_ray.scoring.pipeline import Plan
from angio_ray.scoring.pools import Pools, size_pools
from angio_ray.scoring.rows import KEYS, RunFacts
from angio_ray.storage import Storage, StorageUnavailable
from angio_ray.tables.fence import STORE_ERRORS, describe
from angio_ray.tables.lookups import ids_with_reason, known_people, run_counts
from angio_ray.tables.root import TableRoot
from angio_ray.tables.run_log import RunHeld, RunIncomplete, RunLog, TableUnwritable, run_state

log = logging.getLogger(__name__)

SCORING_VERSION = 2
"""Raised by any change of reading, sampling or grey values that changes a score, so that no run mixes two of them."""
MODELS_VERSION = 2
"""Raised where the same bundle gives other scores by the same backend: small nets of calcification look at a patch mirrored, too,
and nets of local contrast leave OpenVINO's bfloat16 (2)."""
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
        root, written, notes = _score(config)
        statuses, reasons = run_counts(root, config.run)
    except RunHeld as error:
        raise RunError(str(error), 4) from error
    except (TableUnwritable, RunIncomplete) as error:
        raise RunError(f"not finished: {error}; run the same command again", 1) from error
    except STORE_ERRORS as error:
        raise RunError(
            f"not finished: the tables cannot be read: {describe(error)}; run the same command again", 1
        ) from error
    return RunSummary(config.run, statuses, reasons, written, time.monotonic() - started, notes)


def _score(config: ScoreConfig) -> tuple[TableRoot, int, list[str]]:
    """The tables, rows that this driver wrote, and what the user should know."""
    source = open_source(config.source)
    bundles = _load_bundles(config)
    root = open_root(config.tables, config.clips)
    key = load_run_key(config.key_file, config.tables, root)
    root.ensure(key.fingerprint)
    patients = load_patients(config.patient_map, key, root)
    state = run_state(root, config.run)
    bound = _bound_backend(config, state.config)
    source_id = key.hash("source", source.uri)
    if bound and state.finished and not config.retry:
        with RunLog.open(root, config.run, _facts(config, source_id, bundles, bound), heartbeat=False) as run_log:
            return root, 0, ["the run is finished: nothing to do", *_changes_since(run_log.manifest(), source)]

    # in this order: joining a cluster puts Ray's own handler of SIGTERM, which ends the process at once, over ours
    with ray_cluster() as nodes, stop_signals() as stop:
        if not source.is_s3:
            check_nodes_see(config.source)
        pools = size_pools(nodes, config)
        refs = {task: ray.put(bundle) for task, bundle in bundles.items()}
        backend, converted = _choose_backend(config, refs, pools, bound, stop)
        facts = _facts(config, source_id, bundles, backend)
        with RunLog.open(root, config.run, facts, interval_s=config.commit_interval_s) as run_log:
            notes = []
            if run_log.has_manifest:
                notes = _changes_since(run_log.manifest(), source)
            else:
                run_log.write_manifest(listing(source, key))
            plan = Plan(
                storage=source,
                windows=_windows(bundles),
                bundles=refs,
                converted=converted,
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
            driver = Driver(config, run_log, source, plan, run_facts, key, patients, stop)
            try:
                driver.run(retried)
            except StorageUnavailable as error:
                raise RunError(f"not finished: {error}; run the same command again", 1) from error
            finally:
                if ray.is_initialized():
                    ray.kill(plan.ledger)  # the stages hold its handle for ever: in a lasting cluster it would stay
            if driver.changed:
                notes.append(f"{driver.changed:,} objects were read as they are now, not as they were listed")
            return root, driver.written, notes


def open_source(uri: str) -> Storage:
    """The place of the clips; RunError (2) where it cannot be read or holds nothing."""
    source = Storage(uri)
    try:
        source.probe()
        if next(source.list(), None) is None:
            raise RunError(f"no objects under {uri}", 2)
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


def load_patients(patient_map: Path | None, key: PseudonymKey, root: TableRoot) -> PatientIdentity:
    """Who counts as one patient, knowing every header in `clips`: one PatientID of two people is seen before it merges them."""
    try:
        patients = PatientIdentity(key, PatientMap.read(patient_map) if patient_map else None)
    except PatientMapError as error:
        raise RunError(str(error), 2) from error
    for header in known_people(root):
        patients.observe(header)
    return patients


def _load_bundles(config: ScoreConfig) -> dict[str, Bundle]:
    """The bundle of each requested task, in the registry's order (quality first: it is the gate)."""
    if unknown := [task for task in config.models if task not in TASKS]:
        raise RunError(f"--models {','.join(unknown)}: no such task; there is {', '.join(TASKS)}", 2)
    asked = [task for task in TASKS if task in with_needed(config.models)]
    if added := [task for task in asked if task not in config.models]:
        because = [task for task in asked if set(TASKS[task].needs) & set(added)]
        log.info("%s: asked for too, since %s must know it", ", ".join(added), ", ".join(because))
    for task in asked:
        folder = _bundle_folder(config, task)
        if folder.parent == SHIPPED and not folder.is_dir():
            raise RunError(f"no bundle for {task} ships: train one, and name the folder above it with --bundles", 2)
        if config.bundles and folder.parent != config.bundles:
            log.info("%s: no bundle in %s, the one that ships is used", task, config.bundles)
    try:
        # tensors are looked at where the backend is chosen: the driver does without torch
        bundles = {task: load_bundle(_bundle_folder(config, task), weights=False) for task in asked}
    except BundleError as error:
        raise RunError(str(error), 2) from error
    return bundles


def with_needed(tasks: Iterable[str]) -> set[str]:
    """These tasks and those that must go before them."""
    asked = set(tasks)
    while more := {need for task in asked for need in TASKS[task].needs} - asked:
        asked |= more
    return asked


def _bundle_folder(config: ScoreConfig, task: str) -> Path:
    """Where the task's bundle is taken from: what ships serves the tasks that a named folder lacks, if it has any."""
    folder = config.bundles or SHIPPED
    if (folder / task).is_dir() or not any((folder / other).is_dir() for other in config.models):
        return folder / task
    return SHIPPED / task


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


def _facts(
    config: ScoreConfig, source_id: str, bundles: Mapping[str, Bundle], backend: BackendChoice
) -> dict[str, Any]:
    """Everything that changes a score: what the run id is bound to."""
    return {
        "source": source_id,  # hashed: the path of a source can name a patient
        "models": {task: bundle.digest for task, bundle in bundles.items()},
        "gate": config.gate,
        "assume_fps": config.assume_fps,
        "patient_map": hashlib.sha256(config.patient_map.read_bytes()).hexdigest() if config.patient_map else None,
        "backend": asdict(backend),
        "scoring_version": SCORING_VERSION,
        "models_version": MODELS_VERSION,
    }


def _bound_backend(config: ScoreConfig, bound: Mapping[str, Any] | None) -> BackendChoice | None:
    """What the run was started with, None for a new one; RunError (2) where something else is asked for."""
    if bound is None:
        return None
    stored = BackendChoice(**bound["backend"])
    for asked, was in ((config.backend, stored.backend), (config.precision, stored.precision)):
        if asked not in ("auto", was):
            raise RunError(f"run {config.run} was started with {was}, not {asked}: take another run id", 2)
    return stored


def _choose_backend(
    config: ScoreConfig, bundles: Mapping[str, Any], pools: Pools, bound: BackendChoice | None, stop: StopEvent
) -> tuple[BackendChoice, dict[str, Any]]:
    """What runs the models on all nodes: as the run is bound to, else measured once where a scoring actor would run.

    With it references to the nets in OpenVINO's form, by the digests of their bundles, where that runs them. RunError (2) where
    the models do not run, or a bundle's tensors do not fit its net.
    """
    names = {task: f"bundle {_bundle_folder(config, task)}" for task in bundles}

    def choose(refs: Mapping[str, Any]) -> tuple[BackendChoice | None, dict[str, Converted], str]:
        import torch

        loaded: dict[str, Bundle] = {task: ray.get(ref) for task, ref in refs.items()}
        forms: dict[str, Converted] = {}
        try:
            for task, bundle in loaded.items():
                bundle.check(names[task])
        except BundleError as error:
            return None, {}, str(error)
        every = [one for bundle in loaded.values() for one in (bundle, *bundle.views.values())]
        fault = unsupported(bound) if bound else None
        try:
            if fault:
                raise ValueError(fault)
            choice = bound or choose_backend(
                every,
                "cuda" if pools.gpus_per_scorer and torch.cuda.is_available() else "cpu",
                config.backend,
                precision=config.precision,
                num_threads=pools.threads_per_scorer,
                batch_size=config.batch_size,
                converted=forms,
            )
            if choice.backend != "openvino":
                return choice, {}, ""
            native = [one for one in every if for_net(choice, one.net).backend == "openvino"]
            for bundle in native:
                if bundle.digest not in forms:
                    forms[bundle.digest] = convert(bundle.ensemble(), bundle.window)
        except ValueError as error:
            return None, {}, f"the models cannot run as {'the run was started' if bound else 'asked for'}: {error}"
        return choice, {bundle.digest: forms[bundle.digest] for bundle in native}, ""

    remote = ray.remote(num_cpus=pools.cpus_per_scorer, num_gpus=pools.gpus_per_scorer)(choose)
    answer = remote.remote(dict(bundles))
    while not ray.wait([answer], timeout=TICK_S)[0]:
        stop.check()
    try:
        choice, forms, fault = ray.get(answer)
    except ray.exceptions.RayError as error:
        raise RunError(
            f"not finished: the backend could not be chosen ({type(error).__name__}); run the same command again", 1
        ) from error
    if choice is None:
        raise RunError(fault, 2)
    log.info("models run with %s", choice)
    return choice, {digest: ray.put(form) for digest, form in forms.items()}
