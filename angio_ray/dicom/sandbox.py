"""A child process for untrusted bytes: its own memory limit, a timeout, one thread, no secrets; it dies with its parent.

Fault isolation, not a security boundary (design 3). The child is started anew after a crash or a timeout, and nothing is
tried twice here. Knows nothing of DICOM: it runs functions, and says what became of the process that ran them.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import popen_spawn_posix, resource_tracker, spawn, util
from multiprocessing.connection import Connection
from multiprocessing.context import reduction, set_spawning_popen  # type: ignore[attr-defined]
from types import TracebackType
from typing import Any, TypeVar

from angio_ray.clip import ClipRejected, Reason

T = TypeVar("T")

_INHERITED = frozenset(
    {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
    | {"PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
)
"""All that a child sees of the environment: a list of what is let through cannot miss a new name for a secret."""
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "NUMEXPR_NUM_THREADS"), "1"
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START_TIMEOUT_S = 120.0
_OUT_OF_MEMORY_KILL = -signal.SIGKILL
"""Nobody but the kernel's out-of-memory killer (or an operator) kills a child so; its own timeout is told apart."""


class SandboxUnavailable(RuntimeError):
    """No child can be started here: the machine's fault, and no clip's."""


class Sandbox:
    """Runs functions in one child process, one at a time; callers on other threads wait their turn.

    Not pebble's pool: there a child that is killed while it waits for work (by the out-of-memory killer, say) dies with
    the lock of the task queue in its hands, and the next call hangs for ever without its timeout ever starting. Here one
    pipe belongs to one child, and both are thrown away together.
    """

    def __init__(self, *, memory_bytes: int, timeout_s: float, prepare: Callable[[], None] | None = None) -> None:
        """`prepare` runs in each new child before its limits are set: what it imports is not paid for by a clip."""
        self._memory_bytes = memory_bytes
        self._timeout_s = timeout_s
        self._prepare = prepare
        self._turn = threading.Lock()
        self._child: _Child | None = None
        self._closed = False
        # The kernel ends a child when the *thread* that started it ends: this one lives as long as the sandbox
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter")

    def run(self, function: Callable[..., T], *args: Any, timeout_s: float | None = None) -> T:
        """Result of `function(*args)`, or the exception it raised. All must pickle; the timeout counts from its start.

        Raises
        ------
        ClipRejected
            `decode_timeout`, `out_of_memory` or `decoder_crashed` (with the number of the signal or the exit status).
        SandboxUnavailable
            No child came up, twice.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        with self._turn:
            child = self._living_child()
            try:
                done, result = child.ask((function, args), limit_s)
            except BaseException:
                self._child = None
                child.end()
                raise
        if done:
            return result
        if isinstance(result, MemoryError):
            raise ClipRejected(Reason.OUT_OF_MEMORY, f"not done within a limit of {self._memory_bytes >> 20} MiB")
        raise result

    def close(self) -> None:
        """End the child. `run` may not be called again."""
        with self._turn:
            self._closed = True
            child, self._child = self._child, None
            if child is not None:
                child.end()
        self._starter.shutdown()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _living_child(self) -> _Child:
        if self._closed:
            raise ValueError("the sandbox is closed")
        if self._child is not None and not self._child.is_alive():  # killed while it was idle: no clip's fault
            self._child.end()
            self._child = None
        if self._child is None:
            self._child = self._starter.submit(self._start).result()
        return self._child

    def _start(self) -> _Child:
        try:
            return _Child(self._memory_bytes, self._prepare)
        except SandboxUnavailable:  # killed on its way up, by the out-of-memory killer, say: once is no clip's fault
            return _Child(self._memory_bytes, self._prepare)


class _Child:
    """One child process and the pipe to it."""

    def __init__(self, memory_bytes: int, prepare: Callable[[], None] | None) -> None:
        self._pipe, childs_end = multiprocessing.Pipe()
        arguments = (childs_end, memory_bytes, os.getpid(), prepare)
        self._process = _SandboxContext().Process(target=_serve, args=arguments, name="sandbox", daemon=True)
        self._process.start()
        childs_end.close()  # so that the pipe ends with the child
        try:
            self.ask(None, _START_TIMEOUT_S)
        except ClipRejected as rejected:
            self.end()
            raise SandboxUnavailable(f"no decoding process could be started: {rejected.detail}") from None

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def ask(self, question: Any, limit_s: float) -> tuple[bool, Any]:
        """Whether it went well, and the result or the exception. `ClipRejected` where the child died or is too slow."""
        try:
            self._pipe.send(question)
            if self._pipe.poll(limit_s):
                answer: tuple[bool, Any] = self._pipe.recv()
                return answer
        except (EOFError, OSError):
            self._process.join(timeout=5)
            raise _cause_of_death(self._process.exitcode) from None
        raise ClipRejected(Reason.DECODE_TIMEOUT, f"not done within {limit_s:g} s")

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


class SharedBytes:
    """Memory that the child can open by `path`: sparse, `size` bytes, gone when closed or when this process dies."""

    def __init__(self, size: int) -> None:
        self._named: str | None = None
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
            # No name, and no part of /dev/shm, which containers limit to 64 MB by default
            self.fd = os.memfd_create("clip", os.MFD_CLOEXEC)
            self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        else:
            self.fd, self._named = tempfile.mkstemp(prefix="angio-ray-")
            self.path = self._named
        os.ftruncate(self.fd, size)
        self.size = size

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Put bytes at their place."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written

    def read(self, size: int, offset: int) -> bytes:
        """Bytes from their place."""
        parts = []
        while size > 0:
            part = os.pread(self.fd, size, offset)
            if not part:
                raise EOFError(f"shared memory ends at {offset}")
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give the memory back (as soon as the child has closed its side)."""
        os.close(self.fd)
        if self._named is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._named)

    def __enter__(self) -> SharedBytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child sees of an environment."""
    return {name: value for name, value in environment.items() if name in _INHERITED} | _ONE_THREAD


def _cause_of_death(exitcode: int | None) -> ClipRejected:
    if exitcode == _OUT_OF_MEMORY_KILL:
        return ClipRejected(Reason.OUT_OF_MEMORY, f"the decoding process was ended by signal {signal.SIGKILL.value}")
    if exitcode is not None and exitcode < 0:
        return ClipRejected(Reason.DECODER_CRASHED, f"the decoding process was ended by signal {-exitcode}")
    return ClipRejected(Reason.DECODER_CRASHED, f"the decoding process ended with status {exitcode}")


def _serve(pipe: Connection, memory_bytes: int, parent_pid: int, prepare: Callable[[], None] | None) -> None:
    """The child's life: answer one question after another until the pipe ends."""
    _enter(memory_bytes, parent_pid, prepare)
    while True:
        try:
            question = pipe.recv()
            if question is None:
                answer: tuple[bool, Any] = (True, None)
            else:
                function, args = question
                answer = (True, function(*args))
        except EOFError:
            return
        except Exception as error:
            answer = (False, error)
        try:
            pipe.send(answer)
        except (OSError, BrokenPipeError):
            return
        except Exception as error:  # what cannot be pickled
            pipe.send((False, TypeError(f"the sandbox cannot send back {type(error).__name__}")))


def _enter(memory_bytes: int, parent_pid: int, prepare: Callable[[], None] | None) -> None:
    """First thing in a child: die with the parent, import, then limits; silence, since decoders print what they read."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)
    if prepare is not None:
        prepare()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not RLIMIT_AS: address space is reserved by big imports long before it is used
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


class _SandboxPopen(popen_spawn_posix.Popen):
    """`spawn` as in the standard library, but for two things: the child does not import the parent's `__main__` (in a
    Ray worker that would be all of Ray), and it gets `child_environment` instead of everything."""

    def _launch(self, process_obj: Any) -> None:
        tracker_fd = resource_tracker.getfd()
        self._fds: list[int]
        self._fds.append(tracker_fd)
        preparation = spawn.get_preparation_data(process_obj._name)
        for key in ("init_main_from_name", "init_main_from_path", "dir"):
            preparation.pop(key, None)
        preparation["sys_argv"] = [""]
        message = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(preparation, message)
            reduction.dump(process_obj, message)
        finally:
            set_spawning_popen(None)
        parent_reads, child_writes = os.pipe()
        child_reads, parent_writes = os.pipe()
        try:
            command = spawn.get_command_line(tracker_fd=tracker_fd, pipe_handle=child_reads)
            self.pid = _spawn(command, [*self._fds, child_reads, child_writes])
            self.sentinel = parent_reads
            with open(parent_writes, "wb", closefd=False) as pipe:
                pipe.write(message.getbuffer())
        finally:
            self.finalizer = util.Finalize(self, util.close_fds, (parent_reads, parent_writes))  # type: ignore[attr-defined]
            os.close(child_reads)
            os.close(child_writes)


def _spawn(command: Sequence[str | bytes], fds: Sequence[int]) -> int:
    # Duplicating a descriptor onto itself lets the child inherit it; all others close on exec, as Python opens them
    actions = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in dict.fromkeys(fds)]
    environment = child_environment(os.environ)
    executable = spawn.get_executable()
    return os.posix_spawn(executable, [executable, *command[1:]], environment, file_actions=actions)


class _SandboxProcess(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _SandboxPopen(process_obj)


class _SandboxContext(multiprocessing.context.SpawnContext):
    Process = _SandboxProcess
