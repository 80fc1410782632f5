"""Scoring runs as processes of their own, to be watched, frozen and killed: the command line as a user starts it.

A test acts when something is so (`until`), never after a time. All that a run has started is ended with it (`Run`).
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

PATIENCE_S = 400.0
"""Longest wait for anything: two cores may be shared with other tests."""
KEY = "5a" * 32

DECODER = "ray::MapWorker(MapBatches(DecodeStage))"
SCORER = "ray::MapWorker(MapBatches(ClipScorer))"
SANDBOX = "multiprocessing.spawn"
_MEMORY_MB = 1024
"""Limit of a decoding child: when it is set, the child has ended its imports."""


class Run:
    """`angio-ray score` as a process. `options` are flags of the command line without their dashes."""

    def __init__(
        self,
        folder: Path,
        source: Path | str,
        tables: Path | str,
        bundles: Path,
        *,
        run: str = "r",
        env: Mapping[str, str] | None = None,
        below: int | None = None,
        **options: Any,
    ) -> None:
        """`below`: pid of the process whose tree holds the workers, where the run joins a cluster that is there."""
        key = folder / "pseudonym.key"
        if not key.exists():
            key.write_text(KEY)
            key.chmod(0o600)
        flags = {
            "tables": tables, "run": run, "bundles": bundles, "backend": "torch", "precision": "float32",
            "batch_size": 4, "commit_rows": 1, "commit_interval_s": 2.0, "decoders": 1, "scorers": 1,
            "decode_memory_mb": _MEMORY_MB, "key_file": key,
        } | options  # fmt: skip
        command = [sys.executable, "-m", "angio_ray.cli", "score", str(source)]
        for name, value in flags.items():
            if value is not None:
                command += [f"--{name.replace('_', '-')}", str(value)]
        self.said = folder / f"{run}-{time.monotonic_ns()}.log"
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**_clean_environment(), "RAY_AUTH_MODE": "disabled", **(env or {})},
                start_new_session=True,
            )
        self.tree: set[psutil.Process] = set()
        """Every process below this one (or of the cluster) that was ever seen."""
        self.titles: set[str] = set()
        self._below = below

    @property
    def text(self) -> str:
        """What it said so far."""
        return self.said.read_text(errors="replace")

    @property
    def written(self) -> int:
        """Rows that this process wrote, as it said itself at its end."""
        found = re.search(r"\(([\d,]+) rows written now", self.text)
        assert found, self.text
        return int(found[1].replace(",", ""))

    def end(self) -> int:
        """Waits for its end and returns the exit code."""
        return self.until(self.process.poll, "its end", may_end=True, every_s=0.2)

    def until(self, condition: Callable[[], T | None], what: str, *, may_end: bool = False, every_s: float = 0.02) -> T:
        """The condition's first result that is true (or 0), polled often; fails when the run ends before."""
        deadline = time.monotonic() + PATIENCE_S
        looked = 0.0
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            value = condition()
            if value or (value == 0 and value is not False):
                return value
            assert may_end or not ended, f"the run ended ({self.process.returncode}) before {what}:\n{self.text}"
            if time.monotonic() - looked > 2.0:  # costs a walk over all processes
                self.look()
                looked = time.monotonic()
            time.sleep(every_s)
        raise AssertionError(f"no {what} within {PATIENCE_S:g} s:\n{self.text}")

    def look(self) -> set[psutil.Process]:
        """The processes below this one now."""
        with suppress(psutil.NoSuchProcess):
            self.tree.update(psutil.Process(self._below or self.process.pid).children(recursive=True))
        alive = living(self.tree)
        self.titles.update(map(title, alive))
        return alive

    def worker(self, name: str, *, but: psutil.Process | None = None) -> psutil.Process:
        """The (new) worker process of this title, once there is one."""

        def find() -> psutil.Process | None:
            return next((p for p in self.look() if p != but and title(p).startswith(name)), None)

        return self.until(find, name)

    def decoding_child(self, worker: psutil.Process, *, but: Sequence[psutil.Process] = ()) -> psutil.Process:
        """The decoding worker's (new) child, stopped (SIGSTOP) in the middle of its work.

        It is stopped as soon as it has its limits. The worker is then given time to hand it the next clip if it had
        none: until the worker itself does nothing more.
        """
        known = {process.pid for process in but}

        def ready() -> psutil.Process | None:
            for pid in _children(worker.pid):
                with suppress(psutil.Error):
                    child = psutil.Process(pid)
                    if pid not in known and child.rlimit(resource.RLIMIT_DATA)[0] == _MEMORY_MB << 20:
                        child.suspend()
                        return child
            return None

        child = self.until(ready, "a decoding child")
        self.tree.add(child)
        self.until(lambda: _idle(worker), "a worker that waits for its child")
        return child

    def kill(self) -> None:
        """kill -9 of the driver."""
        self.look()
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Ends all that is left of it, by pid (a cluster that it joined is left to those who started it)."""
        if self._below is None:
            self.look()
        else:
            self.tree.clear()
        for process in (self.process, *living(self.tree)):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        self.process.wait()
        psutil.wait_procs(self.tree, timeout=30)


@contextmanager
def running(*arguments: Any, **options: Any) -> Iterator[Run]:
    """A `Run` that is ended when the block is left, whatever happened."""
    run = Run(*arguments, **options)
    try:
        yield run
    finally:
        run.close()


def finished(*arguments: Any, **options: Any) -> Run:
    """A `Run` that has ended by itself."""
    with running(*arguments, **options) as run:
        run.end()
    return run


def living(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Those that have not ended (a zombie has)."""
    left = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.add(process)
    return left


def wait_gone(processes: set[psutil.Process], timeout_s: float) -> None:
    """Fails when one of them is still there after so long."""
    deadline = time.monotonic() + timeout_s
    while left := living(processes):
        assert time.monotonic() < deadline, [(p.pid, title(p)[:80]) for p in left]
        time.sleep(0.05)


def workers_of(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Those that hold clips or models, and the core of Ray; not Ray's agents, which take a minute to notice its end."""
    return {p for p in processes if "Agent" not in title(p)}


def differences(
    rows: list[dict[str, Any]], expected: list[dict[str, Any]], *, but: Set[str] = frozenset()
) -> list[str]:
    """What differs, row by row in the given order; floats count as equal within 1e-3, times and tries do not count."""
    if len(rows) != len(expected):
        return [f"{len(rows)} rows for {len(expected)}"]
    found = []
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - _VARYING - but:
            mine, theirs = row[name], other[name]
            same = (
                abs(mine - theirs) <= 1e-3 if isinstance(mine, float) and isinstance(theirs, float) else mine == theirs
            )
            if not same:
                found.append(f"{name}: {mine!r} for {theirs!r} ({row['status']}, {row['reason']}: {row['detail']})")
    return found


_VARYING = frozenset({"scored_at", "attempts", "fetch_ms", "decode_ms", "model_ms", "run_id"})
"""What two equal runs may differ in."""


def _clean_environment() -> dict[str, str]:
    """Without what the test process or another test has set for its own Ray or store."""
    dropped = ("RAY_ADDRESS", "RAY_AUTH", "RAY_JOB", "AWS_", "ANGIO_RAY_KEY_FILE")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


def title(process: psutil.Process) -> str:
    """Its command line; Ray's workers put the name of their actor there."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _children(pid: int) -> list[int]:
    """Pids of a process's children, without a walk over all processes."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _idle(process: psutil.Process) -> bool:
    """Whether it uses (nearly) no processor time for a while."""
    before = sum(process.cpu_times()[:2])
    time.sleep(1.0)
    return sum(process.cpu_times()[:2]) - before < 0.03


def resume(process: psutil.Process, last: int | None = None) -> None:
    """Lets a stopped process go on, or sends it a signal that ends it."""
    if last is not None:
        os.kill(process.pid, last)
    if last != signal.SIGKILL:
        os.kill(process.pid, signal.SIGCONT)
