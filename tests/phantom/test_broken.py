"""Every broken object is refused by the reader for the reason that it was made for; the sound ones are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from angio_ray.clip import Reason
from angio_ray.dicom.reader import ClipReader
from angio_ray.models import NETS
from angio_ray.phantom import generate, write_broken
from angio_ray.storage import Storage

WINDOW = NETS["x3d_s"].window


@pytest.fixture(scope="module")
def reader() -> Iterator[ClipReader]:
    reader = ClipReader([WINDOW])
    yield reader
    reader.close()


def test_each_fault_is_rejected_for_its_reason(reader: ClipReader, tmp_path: Path) -> None:
    expected = write_broken(tmp_path, seed=3)
    found = {
        Path(info.uri).name: reader.read(Storage(str(tmp_path)).open(info)).reason
        for page in Storage(str(tmp_path)).list()
        for info in page
    }
    assert found == expected
    assert set(expected.values()) <= {str(r) for r in Reason}


def test_broken_objects_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_broken(tmp_path / name, seed=3, size=64)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_sound_clips_are_read_with_their_facts(reader: ClipReader, tmp_path: Path) -> None:
    generate(tmp_path, patients=2, seed=8, clips=(2, 2), size=96, frames=(40, 48), workers=1)
    storage = Storage(str(tmp_path))
    clips = [info for page in storage.list() for info in page if info.uri.endswith(".dcm")]
    for info in clips:
        outcome = reader.read(storage.open(info))
        assert outcome.reason is None, outcome.detail
        assert outcome.header is not None
        assert outcome.header.synthetic
        assert outcome.inputs[WINDOW.name].shape == (16, 160, 160)
    assert len(clips) == 4
