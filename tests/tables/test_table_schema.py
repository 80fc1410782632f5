from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
import pytest
from deltalake import Schema

from angio_ray.clip import ClipHeader, Reason
from angio_ray.tables import schema


@pytest.mark.parametrize("table", schema.TABLES)
def test_arrow_schema_is_what_delta_makes_of_the_file(table: str) -> None:
    assert schema.arrow_schema(table).equals(pa.schema(Schema.from_json(schema.delta_json(table)).to_arrow()))


@pytest.mark.parametrize("table", schema.TABLES)
def test_every_column_has_a_comment_and_every_measure_a_unit(table: str) -> None:
    for field in schema.declaration(table)["fields"]:
        assert field["metadata"]["comment"].endswith((".", ":")), field["name"]
        if field["name"].endswith(("_ms", "_mm", "_mm2", "_deg", "_bytes", "probability")):
            assert field["metadata"].get("unit"), field["name"]


def test_scores_document_every_reason_and_no_other() -> None:
    declaration = schema.declaration("scores")
    assert set(declaration["reasons"]) == {str(reason) for reason in Reason}
    assert all(f"'{reason}'" in declaration["constraints"]["reason_known"] for reason in Reason)


def test_clips_have_every_header_fact() -> None:
    facts = {field.name for field in dataclasses.fields(ClipHeader)}
    assert facts <= set(schema.arrow_schema("clips").names)


@pytest.mark.parametrize("table", ["scores", "runs", *schema.TRAINING])
def test_result_tables_hold_no_identifier(table: str) -> None:
    identifying = {"uri", "sop_instance_uid", "study_instance_uid", "dicom_patient_id", "study_date", "institution"}
    assert not identifying & set(schema.arrow_schema(table).names)


def test_conform_orders_casts_and_fills_with_null() -> None:
    rows = pa.table({"event": ["claimed"], "run_id": ["r"], "fence": pa.array([1], pa.int32()), "driver_id": ["d"]})
    rows = rows.append_column("at", pa.array([0], pa.timestamp("ms", tz="UTC")))
    table = schema.conform("runs", rows)
    assert table.schema.equals(schema.arrow_schema("runs"))
    assert table.to_pylist()[0]["counts"] is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"run_id": ["r"], "colour": ["red"]}, "no column colour"),
        ({"run_id": pa.array([None], pa.string())}, "runs.run_id is null"),
        ({"run_id": ["r"], "event": ["claimed"], "pid": ["twelve"]}, "is null|runs.pid"),
    ],
    ids=["unknown", "null", "type"],
)
def test_conform_refuses(columns: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema.conform("runs", pa.table(columns))


@pytest.mark.parametrize("table", schema.TABLES)
def test_markdown_names_every_column(table: str) -> None:
    text = schema.markdown(table)
    assert all(f"| `{name}` |" in text for name in schema.arrow_schema(table).names)
    assert json.dumps(table) not in text
    if table == "scores":
        assert all(f"| `{reason}` |" in text for reason in Reason)
