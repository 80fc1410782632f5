"""Fixtures of the tables' tests: a fresh root, and drivers as processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from tests.tables.run_driver import FINGERPRINT

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    path = tmp_path / "tables"
    path.mkdir()
    return path


@pytest.fixture
def root(tables: Path) -> TableRoot:
    made = TableRoot(Storage(str(tables)))
    made.ensure(FINGERPRINT)
    return made


@pytest.fixture
def spawn(tables: Path) -> Iterator[Spawn]:
    """Starts `run_driver.py` on the tables; what still runs at the end of the test is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(run: str, *arguments: str) -> subprocess.Popen[str]:
        program = str(Path(__file__).with_name("run_driver.py"))
        command = [sys.executable, program, str(tables), run, *arguments]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
