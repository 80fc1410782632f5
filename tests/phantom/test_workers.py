"""How a set is made: begun at a place that is its own, in order, and finished or said to be unfinished."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from angio_ray.phantom.workers import Unfinished, in_order, make_set, put
from angio_ray.storage import Storage, StorageUnavailable

if TYPE_CHECKING:
    from tests.s3 import S3Server

pytest_plugins = ("tests.s3",)
TABLE, SCHEMA = "labels.parquet", pa.schema([("clip", pa.int64())])
Make = Callable[[int], list[dict[str, Any]]]


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "folder":
        return Storage(tmp_path / "new")
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return Storage(f"s3://{server.bucket()}/set")


def write_one(out: str, job: int) -> list[dict[str, Any]]:
    put(out, f"patient_{job:04d}/clip_00.dcm", b"x")
    return [{"clip": job}]


def make(place: Storage, *, patients: int = 2, maker: Make | None = None) -> pa.Table:
    maker = maker or partial(write_one, place.uri)
    return make_set(place.uri, TABLE, SCHEMA, {"patients": patients}, maker, range(patients), 1)


def has_table(place: Storage) -> bool:
    try:
        return bool(place.read_bytes(place.child(TABLE)))
    except FileNotFoundError:
        return False


def clips(place: Storage) -> list[str]:
    return [info.uri.removeprefix(place.uri) for page in place.list() for info in page]


def test_a_set_is_its_files_its_table_and_what_it_was_made_with(place: Storage) -> None:
    table = make(place)
    assert table["clip"].to_pylist() == [0, 1]
    assert pq.read_table(pa.BufferReader(place.read_bytes(place.child(TABLE)))) == table
    assert json.loads(place.read_bytes(place.child("phantom.json")))["patients"] == 2
    assert clips(place) == [
        "/patient_0000/clip_00.dcm",
        "/patient_0001/clip_00.dcm",
    ]  # and no more, for who scores them


def test_an_interrupted_set_has_no_table_of_an_earlier_one(place: Storage, caplog: pytest.LogCaptureFixture) -> None:
    def interrupted(job: int) -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    make(place)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        make(place, maker=interrupted)
    assert not has_table(place)
    assert f"no {TABLE}" in caplog.text
    make(place)
    assert has_table(place)


def test_a_place_with_another_sets_patients_is_refused_and_stays_as_it_is(place: Storage) -> None:
    make(place, patients=3)
    with pytest.raises(StorageUnavailable, match="another set"):
        make(place)
    assert has_table(place)
    assert len(clips(place)) == 3
    foreign = Storage(place.child("foreign"))
    foreign.write_bytes(foreign.child("notes.txt"), b"no patient")
    make(foreign)
    foreign.delete(foreign.child("phantom.json"))  # nobody knows what they were made with
    with pytest.raises(StorageUnavailable, match="another set"):
        make(foreign)


def test_what_goes_wrong_on_the_way_leaves_an_unfinished_set(place: Storage) -> None:
    def full(job: int) -> list[dict[str, Any]]:
        raise OSError(errno.ENOSPC, "No space left on device", "/set/clip_00.dcm")

    with pytest.raises(Unfinished, match=r"not finished: .*No space left.*clip_00.dcm.*begins anew") as caught:
        make(place, maker=full)
    assert len(str(caught.value).splitlines()) == 1
    assert not has_table(place)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing_and_names_its_file(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(type(error)) as caught:
        put(str(tmp_path), "patient_0000/clip_00.dcm", b"1234")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    if isinstance(error, OSError):
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f"{tmp_path}/patient_0000/clip_00.dcm")


@pytest.mark.timeout(120)
def test_a_killed_worker_is_an_unfinished_set() -> None:
    with pytest.raises(Unfinished, match="a worker process ended"):
        list(in_order(os._exit, [9], 2))


def test_no_place_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageUnavailable, match="an empty path"):
        make_set("", TABLE, SCHEMA, {}, partial(write_one, ""), range(1), 1)
    assert not list(tmp_path.iterdir())
