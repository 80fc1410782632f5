"""Header facts of every object into `clips`, once."""

import pytest
from deltalake import DeltaTable

from angio_ray.scoring.config import IndexConfig
from angio_ray.scoring.index import index
from angio_ray.scoring.run import score
from tests.scoring.conftest import config_for, rows_of

pytestmark = pytest.mark.usefixtures("ray_here")


def test_index_holds_what_the_headers_say_and_is_a_no_op_the_second_time(clips, tmp_path):
    folder, _broken = clips
    config = IndexConfig(str(folder), tables=str(tmp_path / "tables"))
    summary = index(config)
    files = [p for p in folder.rglob("*") if p.is_file()]
    rows = DeltaTable(str(tmp_path / "tables" / "clips")).to_pyarrow_table().to_pylist()
    assert len(rows) == len(files) == summary.written
    good = [row for row in rows if "/broken/" not in row["uri"]]
    assert {row["reason"] for row in good} == {None}
    assert all(row["synthetic"] and row["rows"] == row["columns"] == 128 for row in good)
    assert all(24 <= row["num_frames"] <= 50 and row["frame_time_ms"] > 0 and row["dicom_patient_id"] for row in good)
    assert len({row["patient_id"] for row in good}) == 2
    # what only the pixels tell (a frame that cannot be decoded, say) is not index's to find
    assert {row["reason"] for row in rows} >= {"not_dicom", "not_xa", None}

    again = index(config)
    assert (again.written, again.known) == (0, len(files))


@pytest.mark.nightly
@pytest.mark.slow
def test_clips_can_lie_under_another_root(clips, bundles, tmp_path):
    source = next(clips[0].glob("patient_*"))
    config = config_for(source, tmp_path / "tables", bundles, clips=str(tmp_path / "identified"))
    score(config)
    assert not (tmp_path / "tables" / "clips").exists()
    assert not (tmp_path / "tables" / "manifests").exists()
    clips_table = DeltaTable(str(tmp_path / "identified" / "clips")).to_pyarrow_table()
    assert len(clips_table) == len(rows_of(tmp_path / "tables")) == 4
