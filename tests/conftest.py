"""Fixtures shared by all tests: the folder of real input, when it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import angio_ray  # noqa: F401 - says how threads wait; test files import torch before it

# Ray's own default is to turn token authentication on and write a token under HOME: tests say what they want.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# workers at Ray's nice 15 wait for whatever test runs beside them
os.environ.setdefault("RAY_worker_niceness", "0")

_LONGEST = ("training/test_cross_validation.py", "scoring/test_faults.py", "scoring/test_s3_run.py")

SHARED_DATA = Path(os.environ.get("ANGIO_RAY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that a test process begins last leaves the other process idle for minutes."""
    files = [Path(__file__).parent / name for name in _LONGEST]
    items.sort(key=lambda item: files.index(item.path) if item.path in files else len(files))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real XA files, codec samples and malformed input (not part of the project)."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no folder of real input (set ANGIO_RAY_TEST_DATA)")
    return SHARED_DATA
