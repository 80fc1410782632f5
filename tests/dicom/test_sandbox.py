"""The child process: what it may see, what becomes of a crash, a hang or a hunger for memory, and that it dies in time."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from angio_ray.clip import ClipRejected, Reason
from angio_ray.dicom import decoding
from angio_ray.dicom.sandbox import Sandbox, SandboxUnavailable, SharedBytes, child_environment

MEMORY_BYTES = 600 << 20
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_SESSION_TOKEN": "s",
    "RAY_ADDRESS": "s",
    "MY_PASSWORD": "s",
    "ANGIO_RAY_KEY_FILE": "s",
    "SOMETHING_NEW": "s",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(memory_bytes=MEMORY_BYTES, timeout_s=20, prepare=decoding.prepare) as shared:
        yield shared


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    while True:
        pass


def hungry() -> int:
    return int(np.ones(2 << 30, dtype=np.uint8)[-1])


def child_facts() -> dict:
    return {
        "modules": set(sys.modules),
        "environment": dict(os.environ),
        "initial_environment": Path("/proc/self/environ").read_bytes() if sys.platform == "linux" else b"",
        "data": resource.getrlimit(resource.RLIMIT_DATA),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "threads": len(psutil.Process().threads()),
    }


def stop_iteration() -> None:
    raise StopIteration("the decoder's own")


def test_child_has_no_heavy_modules_no_secrets_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with Sandbox(memory_bytes=MEMORY_BYTES, timeout_s=20, prepare=decoding.prepare) as fresh:
        facts = fresh.run(child_facts)
    roots = {module.partition(".")[0] for module in facts["modules"]}
    # (pytest and psutil come with this file, whose function runs there)
    assert not roots & {"ray", "torch", "boto3", "botocore", "s3fs", "deltalake", "pyarrow"}
    assert {"numpy", "cv2", "imagecodecs", "pydicom"} <= roots
    assert not SECRETS.keys() & facts["environment"].keys()
    assert not any(name.encode() in facts["initial_environment"] for name in SECRETS)
    assert facts["data"] == (MEMORY_BYTES, MEMORY_BYTES)
    assert facts["core"] == (0, 0)
    assert facts["threads"] == 1


def test_environment_is_a_list_of_what_is_let_through() -> None:
    seen = child_environment({"PATH": "/bin", **SECRETS})
    assert seen["PATH"] == "/bin"
    assert seen["OMP_NUM_THREADS"] == "1"
    assert not SECRETS.keys() & seen.keys()


@pytest.mark.parametrize(
    ("function", "reason", "detail"),
    [
        (segfault, Reason.DECODER_CRASHED, f"signal {signal.SIGSEGV.value}"),
        (os.abort, Reason.DECODER_CRASHED, f"signal {signal.SIGABRT.value}"),
        (hungry, Reason.OUT_OF_MEMORY, "600 MiB"),
        (hang, Reason.DECODE_TIMEOUT, "within 0.5 s"),
    ],
)
def test_a_fault_costs_one_call_and_the_next_runs(sandbox: Sandbox, function, reason: Reason, detail: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ClipRejected, match=detail) as rejected:
        sandbox.run(function, timeout_s=0.5 if function is hang else None)
    assert rejected.value.reason == reason
    assert sandbox.run(len, b"abc") == 3


def test_a_child_killed_while_idle_is_replaced(sandbox: Sandbox) -> None:
    pid = sandbox.run(os.getpid)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert sandbox.run(os.getpid) != pid


def die_on_the_way_up(before: Path, times: int) -> None:
    deaths = len(list(before.iterdir()))
    if deaths < times:
        (before / str(deaths)).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_killed_on_its_way_up_is_started_again(tmp_path: Path) -> None:
    once = functools.partial(die_on_the_way_up, tmp_path, 1)
    with Sandbox(memory_bytes=MEMORY_BYTES, timeout_s=20, prepare=once) as fresh:
        assert fresh.run(len, b"abc") == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_a_machine_that_starts_no_child_is_no_clips_fault(tmp_path: Path) -> None:
    always = functools.partial(die_on_the_way_up, tmp_path, 100)
    with (
        Sandbox(memory_bytes=MEMORY_BYTES, timeout_s=20, prepare=always) as fresh,
        pytest.raises(SandboxUnavailable, match="signal 9"),
    ):
        fresh.run(len, b"abc")
    assert len(list(tmp_path.iterdir())) == 2


def test_exceptions_of_the_function_come_back(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        sandbox.run(int, "x")
    with pytest.raises(RuntimeError, match="asyncio"):
        sandbox.run(raise_runtime_error)
    with pytest.raises(StopIteration):
        sandbox.run(stop_iteration)
    with pytest.raises(TypeError, match="cannot send back"):
        sandbox.run(threading.Lock)
    assert sandbox.run(len, b"abc") == 3


def raise_runtime_error() -> None:
    raise RuntimeError("asyncio")


def test_threads_share_one_child_and_get_their_own_answers(sandbox: Sandbox) -> None:
    answers: dict[int, int] = {}

    def ask(number: int) -> None:
        for _ in range(20):
            answers[number] = sandbox.run(abs, -number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(4)}
    # The kernel ends a child when the thread that started it ends: that must not be one of these
    assert sandbox.run(os.getpid) == sandbox.run(os.getpid)


def test_a_short_lived_thread_may_be_the_first_to_ask() -> None:
    with Sandbox(memory_bytes=MEMORY_BYTES, timeout_s=20) as fresh:
        pids: list[int] = []
        thread = threading.Thread(target=lambda: pids.append(fresh.run(os.getpid)))
        thread.start()
        thread.join()
        time.sleep(0.3)
        assert fresh.run(os.getpid) == pids[0]


PARENT = """
import os, time
from angio_ray.dicom.sandbox import Sandbox
HEAVY = "this module would be imported by a plain spawn"
if __name__ != "__main__":
    raise SystemExit("the child imported the parent's main module")
sandbox = Sandbox(memory_bytes=1 << 30, timeout_s=60)
print(sandbox.run(os.getpid), flush=True)
sandbox.run(time.sleep, 60)
"""


def test_child_dies_with_a_killed_parent_and_does_not_import_its_main(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)
        assert child.is_running()
        parent.kill()
        parent.wait(5)
        gone, _ = psutil.wait_procs([child], timeout=5)
        assert gone == [child]
    finally:
        parent.kill()
        parent.wait(5)


def test_closing_ends_the_child_and_is_final() -> None:
    sandbox = Sandbox(memory_bytes=MEMORY_BYTES, timeout_s=20)
    child = psutil.Process(sandbox.run(os.getpid))
    sandbox.close()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone == [child]
    with pytest.raises(ValueError, match="closed"):
        sandbox.run(os.getpid)


def read_shared(path: str, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


def test_shared_bytes_are_sparse_and_seen_by_the_child(sandbox: Sandbox) -> None:
    with SharedBytes(1 << 32) as memory:
        memory.write(b"abc", 2)
        memory.write(memoryview(b"end"), (1 << 32) - 3)
        assert sandbox.run(read_shared, memory.path, 6) == b"\0\0abc\0"
        assert memory.read(3, (1 << 32) - 3) == b"end"
        assert os.fstat(memory.fd).st_blocks * 512 < 1 << 20
        with pytest.raises(EOFError):
            memory.read(4, (1 << 32) - 3)
    with pytest.raises(OSError):  # noqa: PT011
        sandbox.run(read_shared, memory.path, 6)
