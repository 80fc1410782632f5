"""Several processes that make a data set's files, in order and with flat memory; and how a set begins, goes on and ends.

Knows nothing of what is made.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from angio_ray import __version__
from angio_ray.storage import Storage, StorageUnavailable

Job = TypeVar("Job")
Made = TypeVar("Made")
SET_NAME = "phantom.json"
"""Beside a set's files: what it is made with. A place with patients and without this very note holds another set."""
_AHEAD = 3
"""Jobs per worker that are handed out and not yet collected."""
_CHUNK_ROWS = 1000
"""Rows that are kept as Python objects, before they become an Arrow batch."""

_log = logging.getLogger(__name__)


class Unfinished(Exception):
    """A set was begun and not finished: one clear line. The same call makes it anew."""


def make_set(
    out: str,
    table_name: str,
    schema: pa.Schema,
    made_with: Mapping[str, Any],
    make: Callable[[Job], list[dict[str, Any]]],
    jobs: Iterable[Job],
    workers: int,
) -> pa.Table:
    """Make a set: `make(job)` writes a job's files and returns their rows, and the table of all rows is written last.

    So a place without the table holds an interrupted set, which the same call makes anew.

    Parameters
    ----------
    out : str
        A folder, made when absent, or an s3:// prefix.
    table_name, schema
        Of the table.
    made_with : mapping
        What the set's files depend on; goes into SET_NAME.
    make, jobs, workers
        As for `in_order`.

    Raises
    ------
    StorageUnavailable
        The place cannot be written, or holds patients of another set.
    Unfinished
        Something failed later on: a full disk, a store that went away, a killed worker.
    """
    begin(out, table_name, made_with)
    batches: list[pa.RecordBatch] = []
    rows: list[dict[str, Any]] = []
    try:
        for made in in_order(make, jobs, workers):
            rows += made
            if len(rows) >= _CHUNK_ROWS:
                batches.append(pa.RecordBatch.from_pylist(rows, schema))
                rows = []
                _log.info("%s rows of %s so far", f"{sum(map(len, batches)):,}", table_name)
        batches.append(pa.RecordBatch.from_pylist(rows, schema))
        table = pa.Table.from_batches(batches, schema).combine_chunks()
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        put(out, table_name, sink.getvalue().to_pybytes())
        return table
    except (OSError, StorageUnavailable, Unfinished) as error:
        raise Unfinished(f"not finished: {error}; the same command begins anew") from error
    except BaseException:
        _log.warning("stopped, and no %s was written: the same command begins anew", table_name)
        raise


def begin(out: str, table_name: str, made_with: Mapping[str, Any]) -> None:
    """Take an old table away from a place that can be written and holds no other set; note which set it is from now on.

    Files of a set made with anything else would stay between the new ones: where patients are, the note must be the same.
    Raises StorageUnavailable.
    """
    place = Storage(out)
    place.probe_write()
    note, said = place.child(SET_NAME), json.dumps({"angio_ray": __version__, **made_with}, indent=1).encode()
    patients, same = place.child("patient_"), True
    if any(info.uri.startswith(patients) for page in place.list() for info in page):
        try:
            same = place.read_bytes(note) == said
        except FileNotFoundError:
            same = False
    if not same:
        raise StorageUnavailable(
            f"{out} holds patients of another set (its {SET_NAME} says which): take another place, or clear it"
        )
    place.delete(place.child(table_name))
    place.write_bytes(note, said)


def in_order(make: Callable[[Job], Made], jobs: Iterable[Job], workers: int) -> Iterator[Made]:
    """Yield `make(job)` for each job, in the jobs' order, from so many processes (1: in this one).

    `make` and the jobs are pickled. OpenCV computes in one thread meanwhile: the same arithmetic whatever the machine.
    Raises what `make` raises, and Unfinished when a process is killed.
    """
    if workers == 1:
        for job in jobs:
            with _one_thread():
                made = make(job)
            yield made
        return
    waiting: deque[Future[Made]] = deque()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        for job in jobs:
            with _hidden_main():
                waiting.append(pool.submit(make, job))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException as error:
        for process in list((pool._processes or {}).values()):  # a job in work takes seconds, and nobody wants it now
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise Unfinished("a worker process ended (killed for memory?), and fewer workers need less") from None
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def put(out: str, name: str, data: bytes) -> None:
    """Write one file below a folder or an s3:// prefix, whole or not at all. Raises OSError with its name, StorageUnavailable."""
    if "://" in out:
        storage(out).write_bytes(f"{out.rstrip('/')}/{name}", data)
        return
    path = Path(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):  # that of a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@lru_cache(maxsize=1)
def storage(out: str) -> Storage:
    """The place, with its connections kept from file to file."""
    return Storage(out)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _start_worker() -> None:
    """One thread per worker, no traceback of each on Ctrl-C, and no worker that outlives a killed parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Spawned children re-import `__main__`: a caller's script without a guard would run again in each of them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
