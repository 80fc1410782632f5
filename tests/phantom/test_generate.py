"""Generating: the same bytes whoever makes them, labels that describe the files, one set at one place."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest

from angio_ray.phantom import LABELS, PhantomConfig, generate, generation, read_truth, workers
from angio_ray.phantom.scene import QUALITY_GROUPS
from angio_ray.storage import StorageUnavailable
from tests.phantom.test_dicom_writer import verify

if TYPE_CHECKING:
    from tests.s3 import S3Server

pytest_plugins = ("tests.s3",)
SMALL: dict[str, Any] = {
    "patients": 1, "seed": 11, "clips": (2, 2), "size": 48, "frames": (24, 24), "fps": 15, "twins": ("no_contrast",)
}  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    generate(folder, workers=1, **SMALL)
    return folder


def labels_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "labels.parquet").to_pylist()


def header(folder: Path, row: dict[str, Any]) -> pydicom.Dataset:
    return pydicom.dcmread(folder / row["path"], stop_before_pixels=True)


@pytest.mark.timeout(120)
def test_bytes_do_not_depend_on_the_number_of_workers(made: Path, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())  # other tests' decoders may still be there
    generate(tmp_path, workers=2, **SMALL)
    assert digests(tmp_path) == digests(made)
    rows = labels_of(made)
    assert len(digests(made)) == 2 * len(rows) + 2
    assert set(multiprocessing.active_children()) <= before


def test_a_clip_does_not_depend_on_what_else_is_made(made: Path, tmp_path: Path) -> None:
    (row,) = generation.write_patient(str(tmp_path), PhantomConfig(**{**SMALL, "patients": 9, "twins": ()}), (0, (1,)))
    assert digests(tmp_path) == {name: digests(made)[name] for name in (row["path"], row["truth_path"])}


def test_another_seed_gives_other_clips_and_other_identifiers(made: Path, tmp_path: Path) -> None:
    generate(tmp_path, workers=1, **{**SMALL, "seed": 12, "clips": (1, 1), "twins": ()})
    assert not set(digests(tmp_path).values()) & set(digests(made).values())
    for name in ("sop_instance_uid", "study_instance_uid", "patient_id"):
        assert not {row[name] for row in labels_of(tmp_path)} & {row[name] for row in labels_of(made)}


def test_labels_describe_the_files(made: Path) -> None:
    assert pq.read_schema(made / "labels.parquet") == LABELS
    for row in labels_of(made):
        ds, truth = header(made, row), read_truth(made / row["truth_path"])
        assert ds.SOPInstanceUID == row["sop_instance_uid"]
        assert ds.StudyInstanceUID == row["study_instance_uid"]
        assert ds.PatientID == row["patient_id"]
        assert ds.NumberOfFrames == row["num_frames"] == len(truth.phase_T)
        assert (ds.Rows, ds.Columns) == truth.size
        assert row["frame_time_ms"] == pytest.approx(1000 / 15)
        assert (row["quality"] == "satisfactory") == (row["quality_class"] == "satisfactory")
        assert row["quality_group"] == QUALITY_GROUPS.get(row["quality_class"])
        assert row["synthetic"]
        if row["quality"] == "satisfactory":
            order = [
                row[n] for n in ("first_contrast", "contrast_begin", "best_frame", "contrast_end", "last_contrast")
            ]
            assert order == sorted(order)
            assert order[0] >= 0
            assert order[-1] < ds.NumberOfFrames
            assert row["artery"] in ("LCA", "RCA")
            assert truth.filling_T.argmax() == row["best_frame"]
            assert truth.vessel_mask(row["best_frame"]).any()
        for mask in row["calcification_masks"] or ():
            drawn = cv2.imdecode(np.frombuffer(mask["png"], np.uint8), cv2.IMREAD_GRAYSCALE)
            assert mask["frame"] < row["first_contrast"]
            np.testing.assert_array_equal(drawn > 0, truth.calcium_mask(mask["frame"]))
        if row["quality"] == "satisfactory":
            assert len(row["calcification_masks"]) == min(3, row["first_contrast"])
            assert 1 <= len(row["vessel_masks"]) <= 8
        for mask in row["vessel_masks"] or ():
            assert row["contrast_begin"] <= mask["frame"] <= row["contrast_end"]
            drawn = cv2.imdecode(np.frombuffer(mask["png"], np.uint8), cv2.IMREAD_GRAYSCALE)
            np.testing.assert_array_equal(drawn > 0, truth.vessel_mask(mask["frame"]))
        for stenosis in row["stenoses"]:
            assert any(np.allclose(box[1:], [stenosis[n] for n in ("x0", "y0", "x1", "y1")], atol=0.01)
                       for box in truth.boxes_in(stenosis["frame"]))  # fmt: skip


def test_a_verifier_of_the_standard_finds_no_error_in_the_files(made: Path, tmp_path: Path) -> None:
    for row in labels_of(made):
        _, lines = verify((made / row["path"]).read_bytes(), tmp_path)
        assert [line for line in lines if "Error" in line] == []


def test_a_twin_is_its_clip_with_one_thing_changed(made: Path) -> None:
    rows = {row["sop_instance_uid"]: row for row in labels_of(made)}
    twins = [row for row in rows.values() if row["twin_of"]]
    assert len(twins) == sum(row["quality"] == "satisfactory" for row in rows.values()) > 0
    for twin in twins:
        clip = rows[twin["twin_of"]]
        assert twin["quality_class"] == "no_contrast"
        assert twin["path"] == clip["path"].replace(".dcm", ".no_contrast.dcm")
        same = ("patient_id", "study_instance_uid", "view", "artery", "num_frames", "heart_period_frames", "site")
        assert {n: twin[n] for n in same} == {n: clip[n] for n in same}
        assert twin["best_frame"] is None
        before, after = header(made, clip), header(made, twin)
        assert {e.keyword for e in before if e != after.get(e.tag)} <= {
            "SOPInstanceUID", "SeriesInstanceUID", "LossyImageCompressionRatio"
        }  # fmt: skip
        assert len(before) == len(after)
        a, b = (read_truth(made / row["truth_path"]) for row in (clip, twin))
        assert np.array_equal(a.phase_T, b.phase_T)
        assert a.filling_T.max() > b.filling_T.max()


def test_a_bucket_gets_the_same_objects(
    made: Path, s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    workers.storage.cache_clear()
    generate(f"s3://{s3_bucket}/set/", workers=1, **SMALL)
    workers.storage.cache_clear()
    client = s3_server.client()
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=s3_bucket)["Contents"]]
    assert {key.removeprefix("set/") for key in keys} == set(digests(made))
    for key in ("set/labels.parquet", "set/" + labels_of(made)[0]["truth_path"]):
        body = client.get_object(Bucket=s3_bucket, Key=key)["Body"].read()
        assert body == (made / key.removeprefix("set/")).read_bytes()


def test_a_bucket_that_cannot_be_written_is_said_before_anything_is_drawn(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(generation, "render", lambda scene: pytest.fail("drawn"))
    with pytest.raises(StorageUnavailable):
        generate("s3://there-is-no-such-bucket/set", workers=1, **SMALL)


def test_a_folder_with_another_set_is_refused_and_stays_as_it_is(made: Path) -> None:
    before = digests(made)
    for other in ({"seed": 12}, {"patients": 2}, {"clips": (1, 1)}, {"twins": ()}):
        with pytest.raises(StorageUnavailable, match="another set"):
            generate(made, workers=1, **{**SMALL, **other})
    assert digests(made) == before


def test_jobs_are_handed_out_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of 20,000 clips is neither planned nor submitted at once."""
    planned: list[int] = []

    class Pool:
        """Runs a job when its result is asked for, and counts those that wait."""

        waiting = most = 0
        _processes: dict[int, Any] = {}  # noqa: RUF012

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def submit(self, function: Any, *args: Any) -> Any:
            Pool.waiting += 1
            Pool.most = max(Pool.most, Pool.waiting)
            return type("Future", (), {"result": lambda _: self.run(args[-1])})()

        def run(self, job: tuple[int, tuple[int, ...]]) -> list[dict[str, Any]]:
            Pool.waiting -= 1
            planned.append(job[0])
            return []

        def shutdown(self, **kwargs: Any) -> None: ...

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    generate(tmp_path, workers=4, patients=3000, seed=1)
    assert planned == list(range(3000))
    assert Pool.most <= 4 * 4


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"size": 8}], ids=lambda w: next(iter(w)))
def test_generate_refuses_what_makes_no_sense_before_it_writes(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()
