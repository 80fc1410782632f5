"""Several processes that make a data set's files, in order and with flat memory; and how they write one.

Knows nothing of what is made.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import cv2

from angio_ray.storage import Storage

Job = TypeVar("Job")
Made = TypeVar("Made")
_AHEAD = 3
"""Jobs per worker that are handed out and not yet collected."""


def in_order(make: Callable[[Job], Made], jobs: Iterable[Job], workers: int) -> Iterator[Made]:
    """Yield `make(job)` for each job, in the jobs' order, from so many processes (1: in this one).

    `make` and the jobs are pickled. OpenCV computes in one thread meanwhile: the same arithmetic whatever the machine.
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
    except BaseException:
        for process in list((pool._processes or {}).values()):  # a job in work takes seconds, and nobody wants it now
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def put(out: str, name: str, data: bytes) -> None:
    """Write one file below a folder or an s3:// prefix, whole or not at all."""
    if "://" in out:
        storage(out).write_bytes(f"{out.rstrip('/')}/{name}", data)
        return
    path = Path(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


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
