"""Fixtures of the reader's tests: one child process for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from angio_ray.dicom.reader import ClipReader
from angio_ray.sampling import ClipWindow

WINDOW = ClipWindow(name="quality", size=32)


@pytest.fixture(scope="session")
def reader() -> Iterator[ClipReader]:
    with ClipReader([WINDOW]) as shared:
        yield shared


@pytest.fixture(scope="session")
def any_class_reader() -> Iterator[ClipReader]:
    with ClipReader([WINDOW], require_xa=False, assume_fps=15.0) as shared:
        yield shared
