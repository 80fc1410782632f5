from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from angio_ray.phantom import generate
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import SetDiffers, read_set
from angio_ray.training.labels import (
    LABELLED,
    Kind,
    LabelError,
    LabelJoin,
    check_labels,
    join_labels,
    label_sets,
    names_a_file,
    read_label_file,
    store_labels,
    stored_labels,
    task_clips,
)
from tests.training.indexed import KEY, add_clips, index_folder, new_root

if TYPE_CHECKING:
    from tests.s3 import S3Server

pytest_plugins = ("tests.s3",)


def header(number: int, patient: str | None = None, **facts: Any) -> dict[str, Any]:
    """Clip number n of patient P(n // 2), one study a patient."""
    patient = patient or f"P{number // 2}"
    return {
        "uri": f"/in/{number}.dcm",
        "sop_instance_uid": f"1.2.{number}",
        "study_instance_uid": f"1.9.{patient}",
        "dicom_patient_id": patient,
        "synthetic": False,
    } | facts


def uid(number: int) -> str:
    return KEY.clip_id(f"1.2.{number}")


@pytest.fixture
def tables(tmp_path: Path) -> TableRoot:
    return new_root(tmp_path / "tables")


@pytest.fixture
def indexed(tables: TableRoot) -> TableRoot:
    add_clips(tables, [header(number) for number in range(8)])
    return tables


def joined(root: TableRoot, tmp_path: Path, text: str, **options: Any) -> LabelJoin:
    file = tmp_path / "labels.csv"
    file.write_text(text, encoding="utf-8")
    return join_labels(root, KEY, read_label_file(file), **options)


def said(join: LabelJoin, kind: str) -> list[tuple[int | None, str | None, str]]:
    return [(found.line, found.pseudonym, found.detail) for found in join.findings if found.kind == kind]


def test_the_phantoms_own_labels_join_its_clips(tables: TableRoot, tmp_path: Path) -> None:
    truth = generate(tmp_path / "clips", patients=2, clips=(3, 3), seed=5, size=64, frames=(24, 30), workers=1)
    index_folder(tables, tmp_path / "clips")
    labels = read_label_file(tmp_path / "clips" / "labels.parquet")
    read = ("quality", "quality_class", "artery", "view", "best_frame", "stenoses", "calcified", "synthetic")
    assert set(labels.ignored_columns).isdisjoint(read)
    join = join_labels(tables, KEY, labels, source=str(tmp_path / "clips"))
    assert join.findings == ()
    assert join.clips.schema.equals(LABELLED)
    rows = {row["clip_id"]: row for row in join.clips.to_pylist()}
    for wanted in truth.to_pylist():
        row = rows[KEY.clip_id(wanted["sop_instance_uid"])]
        assert Storage(str(tmp_path)).read_bytes(row["uri"])[128:132] == b"DICM"
        assert row["uri"].endswith(wanted["path"])
        for name in read:
            assert row[name] == wanted[name], name
    assert len(set(join.clips["group_id"].to_pylist())) == 2
    clips, target = task_clips(join.clips)
    assert target.tolist() == [word == "unsatisfactory" for word in clips["quality"].to_pylist()]
    assert store_labels(tables, "phantom", join) == 6
    assert store_labels(tables, "phantom", join) == 0
    assert "1.2.826" not in json.dumps(read_set(tables, "labels", label_set="phantom").to_pylist(), default=str)


def test_everything_that_does_not_fit_is_counted_and_listed(indexed: TableRoot, tmp_path: Path) -> None:
    add_clips(indexed, [{"uri": "/in/broken.dcm", "reason": "not_dicom"}])
    add_clips(indexed, [header(8, reason="truncated"), header(9, dicom_patient_id=None, study_instance_uid=None)])
    add_clips(indexed, [header(0, uri="/in/copy.dcm")])
    text = """sop_instance_uid,uri,quality,artery,reader
1.2.0,,satisfactory,LCA,a
1.2.0,/in/0.dcm,SATISFACTORY,,b
1.2.1,,satisfactory,,a
1.2.1,,unsatisfactory,,b
,/in/2.dcm,unsatisfactory,RCA,a
1.2.3,,good,,a
,,satisfactory,,a
1.2.99,,satisfactory,,a
,/in/nowhere.dcm,satisfactory,,a
1.2.4,/in/5.dcm,satisfactory,,a
,/in/broken.dcm,satisfactory,,a
1.2.8,,satisfactory,,a
1.2.9,,satisfactory,,a
1.2.6,,satisfactory,,a,more

1.2.7,,,LCA,a
"""
    join = joined(indexed, tmp_path, text)
    assert join.num_rows == 15
    assert join.ignored_columns == ("reader",)
    assert {row["clip_id"]: (row["quality"], row["artery"]) for row in join.clips.to_pylist()} == {
        uid(0): ("satisfactory", "LCA"),
        uid(2): ("unsatisfactory", "RCA"),
        uid(7): (None, "LCA"),
    }
    assert said(join, "duplicate") == [(3, uid(0), "of line 2")]
    assert said(join, "conflict") == [(4, uid(1), "quality"), (5, uid(1), "quality")]
    assert said(join, "invalid_value") == [(7, None, "quality"), (15, None, "more cells than columns")]
    assert said(join, "no_key") == [(8, None, "")]
    assert said(join, "unknown_clip") == [(9, uid(99), ""), (10, KEY.object_id("/in/nowhere.dcm"), "")]
    assert [line for line, _, _ in said(join, "keys_disagree")] == [11]
    assert said(join, "unreadable_clip") == [
        (12, KEY.object_id("/in/broken.dcm"), "not_dicom"),
        (13, uid(8), "truncated"),
    ]
    assert said(join, "no_patient") == [(14, uid(9), "")]
    assert said(join, "copy") == [(2, uid(0), "2 objects")]
    unlabelled = {pseudonym for _, pseudonym, _ in said(join, "unlabelled")}
    assert unlabelled == {uid(n) for n in (3, 4, 5, 6)}, "those of rows left out too, where nothing tells which clip"
    left_out = sum(
        join.counts[kind] for kind in ("conflict", "invalid_value", "no_key", "unknown_clip", "keys_disagree")
    )
    assert left_out + 2 + 1 + 1 + 3 == join.num_rows, "unreadable, no patient, duplicate, kept"
    report = "\n".join(join.report(listed=1))
    assert "15 rows, 3 clips of 3 patients (1 satisfactory, 1 unsatisfactory, 1 without quality)" in report
    assert "2 conflict (left out): line 4 (quality), ..." in report
    assert "4 unlabelled:" in report
    assert "columns not read: reader" in report
    listed = join.findings_csv()
    assert listed.count("\n") == len(join.findings) + 1
    for text in (report, listed):
        assert "1.2." not in text
        assert "/in/" not in text


def test_csv_of_a_spreadsheet_and_nested_cells(indexed: TableRoot, tmp_path: Path) -> None:
    boxes = json.dumps([{"segment": "LAD-mid", "percent": 60, "frame": 12}]).replace('"', '""')
    text = (
        f'\ufeffClip_ID ;Quality;calcified;best_frame;stenoses;;\r\n{uid(0)};satisfactory;yes;12.0;"{boxes}";;;\r\n'
        f"{uid(1)};;no;;[]\r\n{uid(2)};;;-1;\r\n{uid(3)};;;;[{{}}"
    )
    join = joined(indexed, tmp_path, text)
    rows = join.clips.to_pylist()
    first = next(row for row in rows if row["clip_id"] == uid(0))
    assert (first["calcified"], first["best_frame"]) == (True, 12)
    assert [(box["segment"], box["percent"], box["x0"]) for box in first["stenoses"]] == [("LAD-mid", 60.0, None)]
    second = next(row for row in rows if row["clip_id"] == uid(1))
    assert (second["calcified"], second["stenoses"]) == (False, [])
    assert [detail for _, _, detail in said(join, "invalid_value")] == ["best_frame", "stenoses"]


@pytest.mark.parametrize("column", ["calcification_masks", "vessel_masks"])
def test_outlines_are_pictures_or_where_they_lie(indexed: TableRoot, tmp_path: Path, column: str) -> None:
    drawn = np.eye(9, dtype=np.uint8)
    png = cv2.imencode(".png", 255 * drawn)[1].tobytes()
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(png)
    (tmp_path / "masks" / "b.png").write_bytes(b"JFIF")
    cells = [json.dumps([{"frame": 4, "path": f"masks/{name}.png"}]).replace('"', '""') for name in "abc"]
    lines = [f'{uid(i)};"{cell}"' for i, cell in enumerate(cells)]
    join = joined(indexed, tmp_path, "\n".join([f"clip_id;{column}", *lines]))
    found = {row["clip_id"]: row[column] for row in join.clips.to_pylist()}
    assert list(found) == [uid(0)]
    (mask,) = found[uid(0)]
    assert mask["frame"] == 4
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(mask["png"], np.uint8), cv2.IMREAD_GRAYSCALE), 255 * drawn)
    assert [detail for _, _, detail in said(join, "invalid_value")] == [column] * 2, "no PNG, and no file"


def test_missing_numbers_of_pandas_are_missing(indexed: TableRoot, tmp_path: Path) -> None:
    columns = {
        "sop_instance_uid": ["1.2.0", "1.2.1"],
        "best_frame": [3.0, float("nan")],
        "quality": ["satisfactory"] * 2,
    }
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    join = join_labels(indexed, KEY, read_label_file(tmp_path / "l.parquet"))
    assert {row["clip_id"]: row["best_frame"] for row in join.clips.to_pylist()} == {uid(0): 3, uid(1): None}


def test_a_relative_path_is_below_the_label_files_folder(tables: TableRoot, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    add_clips(tables, [header(0, uri=f"{tmp_path}/a/0.dcm"), header(2, uri=f"{tmp_path}/b/2.dcm")])
    text = "path,quality\na/0.dcm,satisfactory\n./b/2.dcm,unsatisfactory\n"
    assert len(joined(tables, tmp_path, text).clips) == 2
    join = joined(tables, tmp_path, text, source=f"{tmp_path}/a")
    assert join.clips["clip_id"].to_pylist() == [uid(0)]
    assert join.counts == {"unknown_clip": 1}


def test_the_newest_version_of_an_object_counts(tables: TableRoot, tmp_path: Path) -> None:
    add_clips(tables, [header(0, uri="/in/x.dcm")])
    add_clips(tables, [header(1, uri="/in/x.dcm", etag="e2")])
    join = joined(tables, tmp_path, "uri,quality\n/in/x.dcm,satisfactory\n")
    assert join.clips["clip_id"].to_pylist() == [uid(1)]
    assert join.clips["etag"].to_pylist() == ["e2"]


def test_what_belongs_together_is_one_group(tables: TableRoot, tmp_path: Path) -> None:
    clips = [
        header(0, "A"),
        header(1, "B", study_instance_uid="1.9.A"),  # B shares a study with A
        header(2, "C"),
        header(3, "ANON", study_instance_uid="1.9.x"),  # placeholders fall back to their studies
        header(4, "ANON", study_instance_uid="1.9.y"),
        header(5, "D"),
        header(6, "E"),
        header(7, "E", study_instance_uid="1.9.B2"),
        header(8, "B", study_instance_uid="1.9.B2"),  # an unlabelled clip joins E with B
        header(9, "F"),
    ]
    add_clips(tables, clips)
    people = {3: "Z", 4: "Z", 5: "D", 9: "anonymous"}
    lines = [f"1.2.{n},satisfactory,{people.get(n, '')}" for n in (0, 1, 2, 3, 4, 5, 6, 9)]
    join = joined(tables, tmp_path, "sop_instance_uid,quality,patient_id\n" + "\n".join(lines))
    group = {row["clip_id"]: row["group_id"] for row in join.clips.to_pylist()}
    names = {n: group[uid(n)] for n in (0, 1, 2, 3, 4, 5, 6, 9)}
    assert names[0] == names[1] == names[6]
    assert names[3] == names[4]
    assert len(set(names.values())) == 5
    assert sorted(detail for _, _, detail in said(join, "joined_patients")) == ["2 patients", "3 patients"]
    assert {line for line, _, _ in said(join, "patient_differs")} == {5, 6}, "the header names nobody there"
    patient = {row["clip_id"]: row["patient_id"] for row in join.clips.to_pylist()}
    assert patient[uid(0)] != patient[uid(1)], "the patient stays that of the header"


def test_both_planes_of_a_biplane_pair_are_one_acquisition(tables: TableRoot, tmp_path: Path) -> None:
    moments = ["20200101101500.000000"] * 2 + ["20200101102000.000000"] * 2 + [None, None]
    planes = ["a", "b", "a", "single", "a", "b"]
    clips = [
        header(n, "A", plane=plane, acquisition_datetime=moment)
        for n, (plane, moment) in enumerate(zip(planes, moments, strict=True))
    ]
    add_clips(tables, [*clips, header(6, "B", plane="b", acquisition_datetime=moments[0])])
    text = "sop_instance_uid,quality\n" + "\n".join(f"1.2.{n},satisfactory" for n in range(7))
    names = {row["clip_id"]: row["acquisition_id"] for row in joined(tables, tmp_path, text).clips.to_pylist()}
    assert names[uid(0)] == names[uid(1)] == min(uid(0), uid(1))
    assert len(set(names.values())) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,quality\n1,satisfactory\n", "no column that names a clip"),
        (b"uri,notes\n/in/0.dcm,x\n", "no label column"),
        (b"uri,quality,quality\n", "two columns quality"),
        (b"\xff\xfe\x00", "neither Parquet nor UTF-8"),
        (b"PAR1 and then nothing", "not a readable Parquet"),
        (b'uri,quality\n"/in/0.dcm,satisfactory\n', "not a readable CSV file"),
        (b"", "no column that names a clip"),
        (b"uri,quality\n/in/7777.dcm,satisfactory\n", r"no label fits a clip of the tables \(1 unknown_clip\)"),
        (b"uri,quality\n", "the file has no rows"),
    ],
    ids=["no key", "no label", "twice", "not text", "not parquet", "open quote", "empty", "nothing fits", "no rows"],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(
    indexed: TableRoot, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(LabelError, match=message) as caught:
        join_labels(indexed, KEY, read_label_file(tmp_path / "labels.csv"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "other.csv").touch()
    with pytest.raises(LabelError, match="there is no label file"):
        read_label_file(tmp_path / "nothing.csv")


def test_labels_of_other_content_need_another_name(indexed: TableRoot, tmp_path: Path) -> None:
    store_labels(indexed, "a", joined(indexed, tmp_path, "uri,quality\n/in/0.dcm,satisfactory\n"))
    other = joined(indexed, tmp_path, "uri,quality\n/in/0.dcm,unsatisfactory\n")
    for refuse in (check_labels, store_labels):
        with pytest.raises(SetDiffers, match="other values of quality"):
            refuse(indexed, "a", other)
    check_labels(indexed, "b", other)
    assert label_sets(indexed) == {"a"}, "a check writes nothing"
    assert store_labels(indexed, "a", other, origin="review", replace=True) == 1


def test_a_stored_set_joins_as_the_file_did_that_it_came_from(indexed: TableRoot, tmp_path: Path) -> None:
    """Also who belongs together by the file's own patients, which the set holds as groups only."""
    text = "uri,quality,patient_id,best_frame\n/in/0.dcm,satisfactory,Z,3\n/in/4.dcm,unsatisfactory,Z,\n/in/7.dcm,satisfactory,,"
    join = joined(indexed, tmp_path, text)
    assert label_sets(indexed) == set()
    store_labels(indexed, "read", join, origin="review")
    again = join_labels(indexed, KEY, stored_labels(indexed, "read"), source="/in")
    assert label_sets(indexed) == {"read"}
    assert again.clips.equals(join.clips)
    assert len(set(again.clips["group_id"].to_pylist())) == 2
    assert again.counts == {"unlabelled": 5, "joined_patients": 1}


def test_a_set_and_a_file_are_told_apart_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert [names_a_file(text) for text in ("agreed", "l.csv", "s3://b/x", "L.PARQUET", "a/b", str(tmp_path / "plain"))] == [
        False, *[True] * 5
    ]  # fmt: skip


def test_a_task_without_labels_is_refused(indexed: TableRoot, tmp_path: Path) -> None:
    clips = joined(indexed, tmp_path, "uri,artery\n/in/0.dcm,LCA\n").clips
    with pytest.raises(LabelError, match="no clip has a label for quality"):
        task_clips(clips)
    with pytest.raises(LabelError, match="no labels are known for task 'colour'"):
        task_clips(clips, "colour")


def test_clips_whose_full_contrast_is_known_are_those_of_the_task_contrast(indexed: TableRoot, tmp_path: Path) -> None:
    header = "uri,quality,first_contrast,contrast_begin,contrast_end,last_contrast\n"
    rows = "/in/0.dcm,satisfactory,1,5,9,20\n/in/1.dcm,,,5,30,\n/in/2.dcm,satisfactory,,5,,\n/in/3.dcm,,3,,,9\n"
    clips, longer = task_clips(joined(indexed, tmp_path, header + rows).clips, "contrast")
    found = dict(zip(clips["contrast_end"].to_pylist(), longer.tolist(), strict=True))
    assert (len(clips), found[30]) == (3, True), "where no frame is full, first and last contrast say so"
    rows = "/in/0.dcm,,1,5,9,20\n/in/1.dcm,,1,5,9,20\n/in/2.dcm,,1,5,9,20\n"
    equal = task_clips(joined(indexed, tmp_path, header + rows).clips, "contrast")[1]
    assert sum(equal) == 1, "clips of equal length are divided too"
    with pytest.raises(LabelError, match="no clip that is not labelled unsatisfactory has a label for contrast"):
        task_clips(joined(indexed, tmp_path, header + "/in/0.dcm,,,5,,\n").clips, "contrast")


def test_contrast_that_ends_before_it_begins_is_no_label(indexed: TableRoot, tmp_path: Path) -> None:
    header = "uri,first_contrast,contrast_begin,contrast_end,last_contrast\n"
    found = joined(indexed, tmp_path, header + "/in/0.dcm,1,9,5,20\n/in/1.dcm,1,5,9,20\n")
    assert found.clips["contrast_begin"].to_pylist() == [5]
    (wrong,) = [finding for finding in found.findings if finding.kind == Kind.INVALID_VALUE]
    assert wrong.detail == "first_contrast, contrast_begin, contrast_end, last_contrast"


def test_labels_are_read_from_s3(s3_server: S3Server, indexed: TableRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    place = Storage(f"s3://{s3_server.bucket()}")
    place.write_bytes(
        place.child("set", "labels.csv"), b"uri,path,quality\n/in/0.dcm,,satisfactory\n,0.dcm,satisfactory\n"
    )
    labels = read_label_file(place.child("set", "labels.csv"))
    assert labels.rows[1].keys == {"path": place.child("set", "0.dcm")}
    assert len(join_labels(indexed, KEY, labels).clips) == 1
