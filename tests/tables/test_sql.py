from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.schema import TABLES
from angio_ray.tables.sql import SqlError, connect, query, write_result
from tests.tables.run_driver import FINGERPRINT, object_ids, score_rows
from tests.tables.test_run_log import clip_rows, take

IDS = object_ids(20)


def rejected(run: str, ids: list[str], reason: str, **columns: Any) -> pa.Table:
    nothing = {"status": "rejected", "reason": reason, "quality_probability": None, "quality_satisfactory": None}
    return score_rows(run, ids, **(nothing | {"quality_status": None, "bundles": None} | columns))


def run_with(root: TableRoot, run: str, *rows: pa.Table, finish: bool = True) -> None:
    log = take(root, run)
    for table in rows:
        log.commit(table)
    if finish:
        log.finish({})
    else:
        log.stop()


def records(root: TableRoot, sql: str) -> list[dict[str, Any]]:
    return query(root, sql).to_pylist()


@pytest.fixture
def scored(root: TableRoot) -> TableRoot:
    """Run `first`: objects 0-7 (studies s0, s1, patient p0); 6 and 7 rejected; 1 is gated; 2 is 0's clip again."""
    run_with(
        root,
        "first",
        score_rows("first", [IDS[0]]),
        score_rows("first", [IDS[1]], status="gated", quality_probability=0.9, quality_satisfactory=False),
        score_rows("first", [IDS[2]], clip_id="c0"),
        score_rows("first", IDS[3:6]),
        rejected("first", [IDS[6]], "truncated", detail="frame 3 of 9"),
        rejected("first", [IDS[7]], "not_dicom", clip_id=None, study_id=None, patient_id=None),
    )
    return root


def test_latest_scores_has_each_clip_once_from_the_newest_finished_run(scored: TableRoot) -> None:
    run_with(scored, "second", score_rows("second", IDS[3:5], quality_probability=0.7, quality_satisfactory=False))
    run_with(scored, "third", score_rows("third", IDS[3:5], quality_probability=0.1), finish=False)
    rows = records(scored, "SELECT object_id, run_id, quality_probability FROM latest_scores ORDER BY object_id")
    assert [int(row["object_id"], 16) for row in rows] == [0, 1, 3, 4, 5, 6, 7], "2 is the clip of 0"
    assert [row["run_id"] for row in rows] == ["first", "first", "second", "second", "first", "first", "first"]
    assert rows[2]["quality_probability"] == pytest.approx(0.7)


def test_latest_scores_keeps_the_quality_of_a_run_that_a_later_task_did_not_ask_for(scored: TableRoot) -> None:
    frames = [{"frame": 4, "probability": 0.8, "class": "25-99", "boxes": None}, {"frame": 5, "probability": 0.2}]
    stenosis = {"stenosis_status": "scored", "stenosis_probability": 0.8, "stenosis_frames": frames, "artery": "LCA"}
    without_quality = {"quality_status": None, "quality_probability": None, "quality_satisfactory": None}
    run_with(scored, "later", score_rows("later", IDS[3:5], **stenosis, **without_quality))
    row = records(scored, f"SELECT * FROM latest_scores WHERE object_id = '{IDS[3]}'")[0]
    assert (row["run_id"], row["quality_run_id"], row["stenosis_run_id"]) == ("later", "first", "later")
    assert row["quality_probability"] == pytest.approx(0.03)
    assert row["stenosis_probability"] == pytest.approx(0.8)
    flat = records(scored, "SELECT frame, probability FROM stenosis_frames ORDER BY object_id, frame")
    assert [(f["frame"], round(f["probability"], 3)) for f in flat] == [(4, 0.8), (5, 0.2)] * 2
    study = records(scored, "SELECT * FROM study_scores WHERE study_id = 's0'")[0]
    assert (study["num_lca_clips"], study["num_rca_clips"], study["complete"]) == (1, 0, False)
    assert records(scored, "SELECT num_clips FROM artery_scores") == [{"num_clips": 1}, {"num_clips": 1}]


def test_boxes_have_their_sides_in_mm_at_the_patient(scored: TableRoot) -> None:
    box = {"x0": 10.0, "y0": 20.0, "x1": 40.0, "y1": 30.0, "probability": 0.7}
    frames = [{"frame": 4, "probability": 0.8, "class": ">=25%", "boxes": [box]}, {"frame": 5, "probability": 0.2, "boxes": []}]
    log = take(scored, "later")
    geometry = {"imager_pixel_spacing_mm": [0.4, 0.2], "distance_source_to_detector_mm": 1000.0}
    log.append_clips(clip_rows([IDS[3]], **geometry, distance_source_to_patient_mm=750.0))
    log.append_clips(clip_rows([IDS[4]], **geometry))
    log.commit(score_rows("later", IDS[3:5], stenosis_status="scored", stenosis_frames=frames))
    log.finish({})
    rows = records(scored, "SELECT * FROM stenosis_boxes ORDER BY object_id")
    assert [(row["frame"], row["frame_class"], row["x0"], row["y1"]) for row in rows] == [(4, ">=25%", 10.0, 30.0)] * 2
    assert (rows[0]["width_mm"], rows[0]["height_mm"]) == (pytest.approx(30 * 0.2 * 0.75), pytest.approx(10 * 0.4 * 0.75))
    assert (rows[1]["width_mm"], rows[1]["height_mm"]) == (None, None), "no geometry, no mm"


def narrow(
    run: str, number: int, artery: str | None, probability: float, view: str | None = None, **columns: Any
) -> pa.Table:
    """A row of a run with stenosis, threshold 0.5."""
    stenosis = {"stenosis_status": "scored", "stenosis_probability": probability, "stenosis_threshold": 0.5}
    return score_rows(run, [IDS[number]], **(stenosis | {"artery": artery, "view": view} | columns))


def test_a_study_is_positive_by_one_artery_and_negative_by_both_alone(root: TableRoot) -> None:
    run_with(
        root,
        "r",
        narrow("r", 0, "LCA", 0.2, "LAO cranial"),  # s0: one artery, low
        narrow("r", 4, "RCA", 0.7, "LAO"),  # s1: one artery, high
        narrow("r", 8, "LCA", 0.2, "LAO cranial", stenosis_class="<25"),  # s2: both, low
        narrow("r", 9, "LCA", 0.3, "RAO caudal", stenosis_class="25-99"),
        narrow("r", 10, "RCA", 0.1, "LAO"),
        narrow("r", 12, "LCA", 0.2, "LAO caudal"),  # s3: the other artery's clip was gated, one was rejected
        score_rows("r", [IDS[13]], status="gated", quality_satisfactory=False, stenosis_status="skipped"),
        rejected("r", [IDS[14]], "truncated"),
    )
    rows = {row["study_id"]: row for row in records(root, "SELECT * FROM study_scores")}
    verdicts = {study: (row["complete"], row["stenosis_positive"]) for study, row in rows.items()}
    assert verdicts == {"s0": (False, None), "s1": (False, True), "s2": (True, False), "s3": (False, None)}
    scores = {study: row["stenosis_probability"] for study, row in rows.items()}
    assert (scores["s0"], scores["s3"]) == (None, None)
    assert (scores["s1"], scores["s2"]) == (pytest.approx(0.7), pytest.approx(0.3))
    assert [rows["s3"][name] for name in ("num_clips", "num_gated", "num_rejected")] == [3, 1, 1]
    assert rows["s2"]["views_missing"] == ["LCA LAO caudal", "LCA RAO cranial", "RCA AP cranial", "RCA RAO"]
    assert len(rows["s1"]["views_missing"]) == 6
    asked = "SELECT * FROM artery_scores WHERE study_id = 's2' ORDER BY artery"
    left, right = records(root, asked)
    assert (left["stenosis_class"], left["num_clips"], left["views"]) == ("25-99", 2, ["LAO cranial", "RAO caudal"])
    assert (left["stenosis_positive"], right["stenosis_positive"], right["run_id"]) == (False, False, "r")


def test_what_is_not_known_of_a_clip_makes_no_study_negative(root: TableRoot) -> None:
    run_with(
        root,
        "r",
        narrow("r", 0, "LCA", 0.2),  # s0: no candidate frame in the other artery
        narrow("r", 1, "RCA", 0.1, stenosis_probability=None),
        narrow("r", 4, "LCA", 0.9, stenosis_threshold=None),  # s1: from before thresholds were kept
        narrow("r", 5, "RCA", 0.1),
        narrow("r", 8, "LCA", 0.2),  # s2: the artery was not told of the clip that is positive
        narrow("r", 9, "RCA", 0.1),
        narrow("r", 10, None, 0.99),
        narrow("r", 12, "LCA", 0.3, clip_id="twice"),  # s3 and s4: one clip under two studies; s3's RCA failed under one URI
        narrow("r", 16, "LCA", 0.9, clip_id="twice"),
        narrow("r", 13, "RCA", 0.0, clip_id="rca", stenosis_status="failed", stenosis_probability=None),
        narrow("r", 14, "RCA", 0.2, clip_id="rca"),
    )
    found = records(root, "SELECT study_id, complete, stenosis_positive, stenosis_probability FROM study_scores")
    verdicts = {row["study_id"]: (row["complete"], row["stenosis_positive"]) for row in found}
    assert verdicts == {
        "s0": (False, None), "s1": (True, None), "s2": (True, True), "s3": (True, False), "s4": (False, True)
    }  # fmt: skip
    highest = {row["study_id"]: row["stenosis_probability"] for row in found}
    assert (highest["s0"], highest["s2"], highest["s4"]) == (None, pytest.approx(0.99), pytest.approx(0.9))
    left = records(root, "SELECT stenosis_positive FROM artery_scores WHERE study_id = 's1' AND artery = 'LCA'")
    assert left == [{"stenosis_positive": None}]


def test_a_run_over_part_of_a_study_or_without_stenosis_does_not_replace_what_is_said_of_it(root: TableRoot) -> None:
    run_with(root, "whole", narrow("whole", 0, "LCA", 0.9), narrow("whole", 1, "RCA", 0.1))
    run_with(root, "part", narrow("part", 1, "RCA", 0.2))
    run_with(root, "quality", score_rows("quality", [*IDS[:2], *IDS[4:8]]))
    run_with(root, "one", score_rows("one", IDS[4:5]))
    names = "run_id, num_clips, num_rejected, complete, views_missing, stenosis_positive"
    asked = f"SELECT {names} FROM study_scores ORDER BY study_id"
    first, second = records(root, asked)
    assert (first["run_id"], first["stenosis_positive"]) == ("whole", True)
    assert tuple(second.values()) == ("quality", 4, 0, None, None, None)
    # the same clips again, and the one that was positive cannot be read: its study is known from before
    lost = {"clip_id": None, "study_id": None, "patient_id": None}
    run_with(root, "again", rejected("again", [IDS[0]], "read_error", **lost), narrow("again", 1, "RCA", 0.1))
    first = records(root, asked)[0]
    assert (first["run_id"], first["num_clips"], first["num_rejected"]) == ("again", 2, 1)
    assert (first["complete"], first["stenosis_positive"]) == (False, None)


def test_a_study_never_mixes_runs(root: TableRoot) -> None:
    run_with(root, "old", narrow("old", 0, "LCA", 0.9), narrow("old", 1, "RCA", 0.1), narrow("old", 4, "LCA", 0.6))
    run_with(root, "new", narrow("new", 0, "LCA", 0.3), narrow("new", 1, "RCA", 0.2), score_rows("new", [IDS[2]]))
    run_with(root, "half", narrow("half", 0, "LCA", 0.8), finish=False)
    calcium = {"calcium_status": "scored", "calcium_probability": 0.4, "calcium_roi_area_mm2": 30.0}
    run_with(root, "calcium", score_rows("calcium", IDS[:2], **calcium))
    run_with(root, "quality", score_rows("quality", IDS[:4]))
    asked = "SELECT * FROM study_scores ORDER BY study_id"
    first, second = records(root, asked)
    assert (first["run_id"], first["num_clips"], first["stenosis_positive"]) == ("new", 3, False)
    assert first["stenosis_probability"] == pytest.approx(0.3)
    assert (first["calcium_run_id"], first["calcium_probability"]) == ("calcium", pytest.approx(0.4))
    assert (second["run_id"], second["stenosis_positive"], second["calcium_run_id"]) == ("old", True, None)
    wide = records(root, "SELECT num_clips, lca_stenosis_probability FROM study_wide WHERE study_id = 's0'")[0]
    assert (wide["num_clips"], wide["lca_stenosis_probability"]) == (4, pytest.approx(0.3))


def test_latest_scores_has_the_artery_of_the_newest_run_asked_for_it_but_a_stenosis_keeps_its_own(
    scored: TableRoot,
) -> None:
    without_quality = {"quality_status": None, "quality_probability": None, "quality_satisfactory": None}
    stenosis = {"stenosis_status": "scored", "stenosis_probability": 0.8, "artery": "LCA"}
    told = {"artery_status": "scored", "artery_probability": 0.9, "artery": "RCA", "view": "RAO", "view_distance_deg": 3.0}
    run_with(scored, "narrow", score_rows("narrow", [IDS[3]], **stenosis, **without_quality))
    run_with(scored, "arteries", score_rows("arteries", IDS[3:5], **told, **without_quality))
    names = "artery, \"view\", view_distance_deg, artery_run_id, stenosis_run_id, quality_run_id, artery_probability"
    found = records(scored, f"SELECT {names} FROM latest_scores WHERE object_id IN ('{IDS[3]}', '{IDS[4]}') ORDER BY object_id")
    assert [tuple(row.values())[:6] for row in found] == [
        ("LCA", None, None, "arteries", "narrow", "first"),
        ("RCA", "RAO", 3.0, "arteries", None, "first"),
    ]
    assert found[1]["artery_probability"] == pytest.approx(0.9)
    assert records(scored, "SELECT artery, num_clips FROM artery_scores") == [{"artery": "LCA", "num_clips": 1}]
    assert records(scored, "SELECT has_artery FROM run_summary WHERE run_id = 'arteries'") == [{"has_artery": True}]


def test_latest_scores_has_the_side_of_the_newest_run_asked_for_it(scored: TableRoot) -> None:
    told = {"oblique_status": "scored", "oblique_probability": 0.9, "oblique": "LAO", "view_suspect": True}
    run_with(scored, "sides", score_rows("sides", [IDS[3]], quality_status=None, quality_probability=None, **told))
    names = "oblique, view_suspect, oblique_run_id, quality_run_id"
    found = records(scored, f"SELECT {names} FROM latest_scores WHERE object_id IN ('{IDS[3]}', '{IDS[4]}') ORDER BY object_id")
    assert [tuple(row.values()) for row in found] == [("LAO", True, "sides", "first"), (None, None, None, "first")]
    assert records(scored, "SELECT has_oblique FROM run_summary WHERE run_id = 'sides'") == [{"has_oblique": True}]


def test_latest_scores_has_the_newest_contrast_frames_but_a_stenosis_keeps_those_it_classified(scored: TableRoot) -> None:
    def frames(begin: int) -> dict[str, object]:
        return {"contrast_begin": begin, "contrast_end": begin + 9, "candidate_frames": [begin, begin + 9]}

    stenosis = {"stenosis_status": "scored", "stenosis_probability": 0.8, "contrast_status": "scored", **frames(20)}
    run_with(scored, "narrow", score_rows("narrow", [IDS[3]], **stenosis))
    run_with(scored, "newer", score_rows("newer", IDS[3:5], contrast_status="scored", **frames(30)))
    names = "contrast_run_id, contrast_begin, candidate_frames, contrast_status"
    found = records(scored, f"SELECT {names} FROM latest_scores WHERE object_id IN ('{IDS[3]}', '{IDS[4]}') ORDER BY object_id")
    assert [tuple(row.values()) for row in found] == [
        ("newer", 20, [20, 29], "scored"),
        ("newer", 30, [30, 39], "scored"),
    ]
    assert records(scored, "SELECT has_contrast FROM run_summary WHERE run_id = 'newer'") == [{"has_contrast": True}]


def test_a_run_that_rejects_a_clip_takes_its_older_score_away(scored: TableRoot) -> None:
    run_with(scored, "second", rejected("second", [IDS[3]], "decode_error"), score_rows("second", IDS[4:5]))
    row = records(scored, f"SELECT * FROM latest_scores WHERE object_id = '{IDS[3]}'")[0]
    assert (row["status"], row["quality_run_id"], row["quality_probability"]) == ("rejected", "second", None)


def test_exclusion_counts_verdicts_with_rejects_beside_them(scored: TableRoot) -> None:
    by_study = records(scored, "SELECT * FROM exclusion_by_study WHERE study_id IS NOT NULL ORDER BY study_id")
    columns = ("study_id", "num_clips", "num_evaluated", "num_unsatisfactory", "num_rejected", "exclusion_rate")
    assert [tuple(row[name] for name in columns) for row in by_study] == [
        ("s0", 3, 3, 1, 0, pytest.approx(1 / 3)),
        ("s1", 3, 2, 0, 1, 0.0),
    ]
    patient = records(scored, "SELECT * FROM exclusion_by_patient WHERE patient_id = 'p0'")[0]
    assert (patient["num_studies"], patient["num_evaluated"], patient["exclusion_rate"]) == (2, 5, pytest.approx(0.2))


def test_rejects_are_listed_and_counted_by_reason(scored: TableRoot) -> None:
    assert records(scored, "SELECT reason, num_objects, fraction FROM rejects_by_reason") == [
        {"reason": "not_dicom", "num_objects": 1, "fraction": 0.125},
        {"reason": "truncated", "num_objects": 1, "fraction": 0.125},
    ]
    assert records(scored, "SELECT detail FROM rejects WHERE reason = 'truncated'") == [{"detail": "frame 3 of 9"}]


def test_duplicates_are_counted(scored: TableRoot) -> None:
    assert records(scored, "SELECT * FROM duplicate_clips") == [
        {"run_id": "first", "clip_id": "c0", "num_objects": 2, "object_ids": [IDS[0], IDS[2]]}
    ]


def test_run_summary_has_counts_and_states(scored: TableRoot) -> None:
    run_with(scored, "open", score_rows("open", IDS[:2]), finish=False)
    rows = records(scored, "SELECT * FROM run_summary ORDER BY run_id")
    assert [(row["run_id"], row["finished"], row["last_event"]) for row in rows] == [
        ("first", True, "finished"),
        ("open", False, "stopped"),
    ]
    counts = ("num_objects", "num_scored", "num_gated", "num_rejected", "num_unsatisfactory")
    assert [rows[0][name] for name in counts] == [8, 5, 1, 2, 1]


def test_study_wide_has_a_line_per_study_with_days_from_clips(scored: TableRoot) -> None:
    log = take(scored, "x")
    log.append_clips(clip_rows(IDS[:4], study_id="s0", patient_id="p0", study_date="20200101"))
    log.append_clips(clip_rows(IDS[4:8], study_id="s1", patient_id="p0", study_date="20200131"))
    log.append_clips(clip_rows(IDS[8:9], study_id="s2", patient_id="p1", study_date="not a date"))
    log.stop()
    rows = records(scored, "SELECT * FROM study_wide ORDER BY study_id")
    assert [(row["study_id"], row["days_since_first_study"]) for row in rows] == [("s0", 0), ("s1", 30)]
    assert (rows[1]["num_scored"], rows[1]["num_rejected"], rows[1]["reject_reasons"]) == (2, 1, "truncated")


def test_views_work_without_the_root_of_clips(scored: TableRoot, tables: Path, tmp_path: Path) -> None:
    outside = TableRoot(Storage(str(tables)), Storage(str(tmp_path / "unreachable")))
    names = {row["view_name"] for row in records(scored, "SELECT view_name FROM duckdb_views() WHERE NOT internal")}
    assert len(names - set(TABLES)) == 24
    for name in names - {"clips", "manifests"}:
        columns = query(outside, f"SELECT * FROM {name}").column_names
        assert columns == query(scored, f"SELECT * FROM {name}").column_names, name
    with pytest.raises(SqlError, match="clips does not exist"):
        query(outside, "SELECT * FROM clips")


def test_views_work_on_empty_tables(root: TableRoot) -> None:
    for row in records(root, "SELECT view_name FROM duckdb_views() WHERE NOT internal"):
        assert records(root, f"SELECT * FROM {row['view_name']}") == []


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{folder}/x.csv'",
        "SELECT 1; COPY scores TO '{folder}/x.parquet'",
        "ATTACH '{folder}/x.db'",
        "EXPORT DATABASE '{folder}/x'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM glob('/etc/*')",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SELECT * FROM local_of_the_caller",
        "SELEC 1",
        "SELECT nothing FROM scores",
        "DELETE FROM scores",
    ],
)
def test_what_is_not_reading_the_tables_is_refused_in_one_line(root: TableRoot, tmp_path: Path, sql: str) -> None:
    local_of_the_caller = pa.table({"x": [1]})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SqlError) as caught:
        query(root, sql.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    assert local_of_the_caller.num_rows == 1


def test_without_tables_it_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(TablesError, match="there is no table scores"):
        connect(TableRoot(Storage(str(tmp_path))))


RESULT = "SELECT run_id, bundles, sampled_frames, reason, quality_probability, scored_at FROM scores ORDER BY object_id"


def test_csv_holds_nested_values_as_json_and_null_as_nothing(scored: TableRoot) -> None:
    stream = io.StringIO()
    write_result(query(scored, RESULT), "csv", stream)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert len(rows) == 8
    assert json.loads(rows[3]["bundles"]) == {"quality": "d1"}
    assert json.loads(rows[3]["sampled_frames"]) == [3, 5]
    assert rows[3]["reason"] == ""
    assert rows[3]["scored_at"].endswith("+00:00")


def test_json_is_an_array_of_objects_without_nan(scored: TableRoot, tmp_path: Path) -> None:
    result = query(scored, "SELECT bundles, 'NaN'::DOUBLE AS x FROM scores WHERE status = 'gated'")
    write_result(result, "json", tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == [{"bundles": {"quality": "d1"}, "x": None}]
    write_result(query(scored, "SELECT 1 WHERE false"), "json", tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_parquet_comes_back_as_it_was(scored: TableRoot, tmp_path: Path) -> None:
    result = query(scored, RESULT)
    write_result(result, "parquet", tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == result.to_pylist()


def test_table_shows_cells_as_they_are(scored: TableRoot, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(query(scored, "SELECT '[red]x' AS a, 0.123456::DOUBLE AS b, unnest(range(250)) AS n"))
    shown = capsys.readouterr().out
    assert "[red]x" in shown
    assert "0.1235" in shown
    assert "50 more rows" in shown


def test_the_fingerprint_is_of_the_key(root: TableRoot) -> None:
    run_with(root, "r", score_rows("r", IDS[:1]))
    assert records(root, "SELECT DISTINCT key_fingerprint AS k FROM runs") == [{"k": FINGERPRINT}]
