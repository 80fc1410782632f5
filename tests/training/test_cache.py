"""The cache: what scoring would see, decoded once, read in any order, completed by the next run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from angio_ray.dicom.reader import ClipReader, Limits, to_uint8
from angio_ray.phantom import generate
from angio_ray.sampling import ClipWindow, resize_frames
from angio_ray.scoring.rows import KEYS
from angio_ray.storage import Storage
from angio_ray.training.cache import ClipCache, entry_name
from tests.dicom.objects import moving_frames, xa_bytes

WINDOW = ClipWindow(name="w", size=24, stride=8)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A cluster of two processors, unless another test of this process has one."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, patients=3, clips=(2, 2), seed=5, size=48, frames=(40, 44), syntax="native", workers=1)
    (folder / "labels.parquet").unlink()
    return folder


def keys(folder: Path) -> pa.Table:
    infos = [info for page in Storage(str(folder)).list() for info in page]
    rows = [
        {"object_id": f"o{i}", "uri": info.uri, "size_bytes": info.size_bytes, "etag": info.etag}
        for i, info in enumerate(sorted(infos, key=lambda info: info.uri))
    ]
    return pa.Table.from_pylist(rows, KEYS)


def truth(folder: Path) -> list[np.ndarray]:
    """What the scorer's reader gives."""
    storage = Storage(str(folder))
    with ClipReader([WINDOW]) as reader:
        return [reader.read(storage.open(uri)).inputs["w"] for uri in keys(folder)["uri"].to_pylist()]


@pytest.mark.usefixtures("ray_here")
def test_clips_are_decoded_once_and_are_what_scoring_sees(clips: Path, tmp_path: Path) -> None:
    table, source = keys(clips), Storage(str(clips))
    cache = ClipCache(Storage(str(tmp_path)), WINDOW)
    first = cache.fill(table.slice(0, 4), source, workers=1)
    assert (first.decoded, first.reused, first.rejected, first.postponed) == (4, 0, {}, {})

    # an interrupted run is completed; a damaged clip has its reason for good, a vanished one is not kept
    path = Path(table["uri"][4].as_py())
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:-200])
        damaged = keys(clips)
        gone = pa.concat_tables([damaged, pa.table({"object_id": ["g"], "uri": [f"{clips}/none.dcm"], "size_bytes": [9], "etag": ["x"]}, KEYS)])  # fmt: skip # noqa: E501
        second = cache.fill(gone, source, workers=1)
        assert (second.decoded, second.reused) == (3, 4)
        assert {key: reason for key, (reason, _) in second.rejected.items()} == {"o4": "truncated", "g": "read_error"}
        # another object under a key that is already listed: not the one that the labels are for
        stale = cache.fill(table.slice(4, 1), source, workers=1)
        assert stale.postponed == {"o4": ("changed", None)}
    finally:
        path.write_bytes(kept)

    good = [0, 1, 2, 3, 5]
    found = pickle.loads(pickle.dumps(cache)).open([f"o{i}" for i in good], table["etag"].take(good).to_pylist())
    expected = truth(clips)
    np.testing.assert_array_equal(found.read(np.array([4, 0, 0, 2])), np.stack([expected[i] for i in (5, 0, 0, 2)]))
    assert len(found) == 5
    with pytest.raises(KeyError, match="1 of 2 clips"):
        cache.open(["o4", "o0"], [damaged["etag"][4].as_py(), table["etag"][0].as_py()])
    # nothing to do: no Ray Data run
    assert cache.fill(table.slice(0, 4), source, workers=1).reused == 4


@pytest.mark.usefixtures("ray_here")
def test_a_clip_that_runs_out_of_time_each_time_is_left_out_for_good(tmp_path: Path) -> None:
    """Else it would keep a training from ever beginning; and the folds that were made without it must hold."""
    slow, cached = tmp_path / "slow", Storage(str(tmp_path / "cached"))
    slow.mkdir()  # a second's work, so that no pause of this process lets it be in time
    (slow / "big.dcm").write_bytes(
        xa_bytes(moving_frames(4, 16, 16), Rows=9000, Columns=9000, NumberOfFrames="4", PixelData=bytes(4 * 81_000_000))
    )
    table, source = keys(slow), Storage(str(slow))
    hasty = ClipCache(cached, WINDOW, limits=Limits(timeout_s=0.02))
    first = hasty.fill(table, source, workers=1)
    assert ({key: reason for key, (reason, _) in first.rejected.items()}, first.postponed) == ({"o0": "decode_timeout"}, {})
    again = ClipCache(cached, WINDOW).fill(table, source, workers=1)
    assert (again.reused, again.rejected) == (1, first.rejected)


@pytest.mark.usefixtures("ray_here")
def test_an_object_may_come_for_several_lists_of_frames_by_several_workers(clips: Path, tmp_path: Path) -> None:
    """Each is decoded on its own, and none counts as the death of another."""
    table, source = keys(clips), Storage(str(clips))
    lists = [(3, 9, 30), (1,), (5, 6), (39, 99)]
    rows = [row | {"frames": frames} for row in table.to_pylist() for frames in lists]
    asked = pa.Table.from_pylist(rows, KEYS.append(pa.field("frames", pa.list_(pa.int32()))))
    cache = ClipCache(Storage(str(tmp_path)), WINDOW)
    filled = cache.fill(asked, source, workers=2)
    assert (filled.decoded, filled.rejected, filled.postponed) == (len(asked), {}, {})
    assert cache.fill(asked, source, workers=2).reused == len(asked)
    found = cache.open(["o0", "o0"], table["etag"].take([0, 0]).to_pylist(), [(3, 9, 30), (39, 99)])
    assert [frames.tolist() for frames in found.frames] == [[3, 9, 30], [39]], "those that the file has"
    path = table["uri"][0].as_py()
    expected = resize_frames(to_uint8(Path(path).read_bytes(), [3, 9, 30, 39]), WINDOW.size)
    np.testing.assert_array_equal(found.read(np.array([0]))[0, :3], expected[:3])
    np.testing.assert_array_equal(found.read(np.array([1]))[0], np.stack([expected[3]] * WINDOW.num_frames))


@pytest.mark.usefixtures("ray_here")
def test_frames_that_only_fill_a_clip_up_are_not_stored(clips: Path, tmp_path: Path) -> None:
    table, source, cache = keys(clips).slice(0, 3), Storage(str(clips)), ClipCache(Storage(str(tmp_path)), WINDOW)
    lists = [[3], [2, 9, 30], [0, 1]]
    cache.fill(table.append_column("frames", pa.array(lists, pa.list_(pa.int32()))), source, workers=1)
    stored = [len(value) for batch in cache.shards() for value in batch.column("input").to_pylist()]
    assert sorted(stored) == [24 * 24, 2 * 24 * 24, 3 * 24 * 24]
    found = cache.open(table["object_id"].to_pylist(), table["etag"].to_pylist(), lists)
    with ClipReader([WINDOW]) as reader:
        seen = [
            reader.read(source.open(uri), frames).inputs["w"]
            for uri, frames in zip(table["uri"].to_pylist(), lists, strict=True)
        ]
    np.testing.assert_array_equal(found.read(np.arange(3)), seen)
    places = np.array([[0, WINDOW.num_frames - 1], [1, 2], [0, 3]])
    np.testing.assert_array_equal(
        found.read(np.arange(3), places), [clip[p] for clip, p in zip(seen, places, strict=True)]
    )
    np.testing.assert_array_equal(found.frame(0, 3), seen[0][3])


def test_what_changes_an_input_has_a_folder_of_its_own(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    same = ClipCache(place, replace(WINDOW)).folder.uri
    assert ClipCache(place, WINDOW).folder.uri == same
    others = [replace(WINDOW, size=25), replace(WINDOW, start=3), replace(WINDOW, stride=4), replace(WINDOW, fps=10.0)]
    folders = {ClipCache(place, window).folder.uri for window in others} | {
        ClipCache(place, WINDOW, assume_fps=15.0).folder.uri
    }
    assert len(folders | {same}) == 6
    assert entry_name("a", "1") != entry_name("a", "2") != entry_name("b", "2")
    assert len({entry_name("a", "1"), entry_name("a", "1", ()), entry_name("a", "1", (1, 2)), entry_name("a", "1", (12,))}) == 4
