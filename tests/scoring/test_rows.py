"""The rows between the stages: what no table can hold costs one clip, and results carry neither names nor times."""

import pyarrow as pa
import pytest

from angio_ray.clip import ClipHeader, ClipRejected
from angio_ray.pseudonyms import PatientIdentity, PseudonymKey
from angio_ray.scoring.rows import RunFacts, header_struct, result_rows, scored_schema
from angio_ray.tables.schema import arrow_schema

KEY = PseudonymKey(b"0123456789abcdef")
FACTS = RunFacts(run_id="r", bundles={"quality": "d"}, backend="torch", precision="float32")


def rows(header: ClipHeader | None, *, tasks=("quality",), **changes) -> tuple[dict, dict]:
    """The row of `scores` and of `clips` of one object."""
    row = {"object_id": "o", "uri": "/clips/DOE^JOHN.dcm", "size_bytes": 5, "etag": "18e9d4999c480045-5", "status": "scored"}
    block = pa.Table.from_pylist([row | {"header": header_struct(header)} | changes], schema=scored_schema(tasks))
    scores, clips = result_rows(block, facts=FACTS, key=KEY, patients=PatientIdentity(KEY), attempts=1)
    assert scores.schema == arrow_schema("scores")
    assert clips.schema == arrow_schema("clips")
    return scores.to_pylist()[0], clips.to_pylist()[0]


@pytest.mark.parametrize(
    "header",
    [
        ClipHeader(rows=2**32 - 1),
        ClipHeader(shutter_box=(1, 1, 99_999_999_999, 5)),
        ClipHeader(manufacturer="\ud800"),
    ],
    ids=["too large an integer", "too large in a list", "no Unicode"],
)
def test_a_header_that_no_table_can_hold_costs_its_clip_only(header):
    with pytest.raises(ClipRejected, match="header_invalid"):
        header_struct(header)


@pytest.mark.parametrize(("date", "year"), [("20140301", 2014), ("²²²²", None), ("", None), (None, None), ("99", None)])
def test_the_year_is_of_digits(date, year):
    assert rows(ClipHeader(study_date=date))[0]["study_year"] == year


def test_scores_hold_pseudonyms_and_clips_the_way_back():
    header = ClipHeader(sop_instance_uid="1.2.3", study_instance_uid="1.2", dicom_patient_id="4711", study_date="20140301")
    score, clip = rows(header)
    assert (score["clip_id"], score["study_id"]) == (KEY.clip_id("1.2.3"), KEY.study_id("1.2"))
    assert score["patient_id"] == clip["patient_id"] == KEY.patient_id(None, "4711")
    assert not {"18e9d4999c480045-5", "DOE", "4711", "1.2.3", "20140301"} & {str(value) for value in score.values()}
    assert (clip["uri"], clip["etag"]) == ("/clips/DOE^JOHN.dcm", "18e9d4999c480045-5")


def test_an_object_without_header_is_a_row_too():
    score, clip = rows(None, status="rejected", reason="not_dicom", detail="5 bytes without the DICM mark")
    assert (score["status"], score["reason"], score["patient_id"], score["bundles"]) == ("rejected", "not_dicom", None, None)
    assert clip["reason"] == "not_dicom"


@pytest.mark.parametrize(
    ("artery", "header", "view"),
    [
        ("LCA", ClipHeader(primary_angle_deg=-25.0, secondary_angle_deg=-24.0), "RAO caudal"),
        ("RCA", ClipHeader(primary_angle_deg=-34.0, secondary_angle_deg=0.0), "RAO"),
        ("RCA", ClipHeader(primary_angle_deg=-25.0, secondary_angle_deg=-24.0), None),
        ("LCA", ClipHeader(primary_angle_deg=-25.0, secondary_angle_deg=-24.0, positioner_motion="DYNAMIC"), None),
        ("LCA", ClipHeader(), None),
        (None, ClipHeader(primary_angle_deg=-25.0, secondary_angle_deg=-24.0), None),
    ],
    ids=["left", "right", "far from all of that artery", "rotating", "no angles", "no artery"],
)
def test_the_view_is_one_of_the_artery_that_was_told(artery, header, view):
    told = {} if artery is None else {"artery": artery, "artery_probability": 0.3, "artery_threshold": 0.5}
    score, _ = rows(header, tasks=("artery",), **told)
    assert (score["artery"], score["view"]) == (artery, view)
    assert (score["view_distance_deg"] is None) == (view is None)
    assert view is None or 0 <= score["view_distance_deg"] < 5


@pytest.mark.parametrize(
    ("oblique", "header", "suspect"),
    [
        ("LAO", ClipHeader(primary_angle_deg=-30.0, secondary_angle_deg=0.0), True),
        ("RAO", ClipHeader(primary_angle_deg=-30.0, secondary_angle_deg=0.0), False),
        ("LAO", ClipHeader(), None),
        (None, ClipHeader(primary_angle_deg=-30.0, secondary_angle_deg=0.0), None),
    ],
    ids=["other side", "same side", "no angles", "not asked"],
)
def test_angles_that_the_picture_contradicts_are_suspect(oblique, header, suspect):
    told = {} if oblique is None else {"oblique": oblique, "oblique_probability": 0.3, "oblique_threshold": 0.5}
    score, _ = rows(header, tasks=("oblique",), **told)
    assert (score["oblique"], score["view_suspect"], score["view"]) == (oblique, suspect, None)
