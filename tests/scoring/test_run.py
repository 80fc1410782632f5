"""Whole runs on real DICOM, real Ray and real Delta, in this process: one row per object, resumed, bound to a config."""

import dataclasses
import shutil
from collections import Counter

import pytest
from deltalake import DeltaTable

from angio_ray.models import NETS, TASKS
from angio_ray.models.bundles import SHIPPED, _digest, load_bundle, save_bundle, write_bundle
from angio_ray.scoring.config import RunError
from angio_ray.scoring.run import _load_bundles, score
from tests.scoring.conftest import comparable, config_for, make_bundles, rows_of

pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.fixture(scope="module")
def finished(clips, bundles, tmp_path_factory, ray_here):
    """A finished run over good and broken objects."""
    tables = tmp_path_factory.mktemp("finished") / "tables"
    config = config_for(clips[0], tables, bundles, gate="off")
    return config, tables, score(config)


def test_exactly_one_row_per_object_with_the_right_reason(finished, clips):
    folder, broken = clips
    _config, tables, summary = finished
    by_uri = {row["object_id"]: row["uri"] for row in DeltaTable(str(tables / "clips")).to_pyarrow_table().to_pylist()}
    rows = rows_of(tables)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    assert len(rows) == len(files) == summary.written
    assert sorted(by_uri[row["object_id"]] for row in rows) == [str(p) for p in files]
    reasons = {by_uri[row["object_id"]].rsplit("/", 1)[1]: row["reason"] for row in rows}
    assert {name: reasons[name] for name in broken} == broken
    assert summary.statuses == {"scored": 8, "rejected": len(broken)}
    assert summary.exit_code == 3


def test_scored_rows_are_complete_and_rejected_ones_have_no_score(finished):
    for row in rows_of(finished[1]):
        if row["status"] == "rejected":
            assert row["quality_probability"] is None
            assert row["detail"]
        else:
            assert 0 <= row["quality_probability"] <= 1
            assert row["quality_satisfactory"] == (row["quality_probability"] < row["quality_threshold"])
            assert row["synthetic"]
            assert len(row["sampled_frames"]) == 16
            assert row["codec"]
            assert row["clip_id"]
            assert row["patient_id"]
            assert row["study_id"]
            assert (row["backend"], row["precision"]) == ("torch", "float32")


def test_results_hold_no_identifier_and_no_path(finished, clips):
    header = DeltaTable(str(finished[1] / "clips")).to_pyarrow_table().to_pylist()
    secrets = {row[name] for row in header for name in
               ("uri", "dicom_patient_id", "sop_instance_uid", "study_instance_uid", "study_date") if row[name]}
    secrets |= {str(clips[0]), "PHANTOM"}
    assert len(secrets) > 10
    for table in ("scores", "runs"):
        text = str(DeltaTable(str(finished[1] / table)).to_pyarrow_table().to_pylist())
        assert not [secret for secret in secrets if secret in text]


def test_a_finished_run_is_a_no_op_and_says_what_changed(finished, clips, tmp_path):
    config, tables, _ = finished
    version = DeltaTable(str(tables / "scores")).version()
    extra = clips[0] / "extra.dcm"
    extra.write_bytes(b"new")
    try:
        again = score(config)
    finally:
        extra.unlink()
    assert again.written == 0
    assert any("1 object new since" in note for note in again.notes)
    assert DeltaTable(str(tables / "scores")).version() == version


def test_another_config_under_the_same_run_is_refused(finished, bundles, tmp_path):
    config, _, _ = finished
    with pytest.raises(Exception, match="gate") as refused:
        score(dataclasses.replace(config, gate="on"))
    assert getattr(refused.value, "exit_code", 2) == 2
    other = make_bundles(tmp_path, threshold=0.25)
    with pytest.raises(Exception, match=r"models\.quality"):
        score(dataclasses.replace(config, bundles=other))


def test_another_key_is_refused(finished, tmp_path):
    key = tmp_path / "other.key"
    key.write_text("ab" * 32)
    with pytest.raises(Exception, match="pseudonym key") as refused:
        score(dataclasses.replace(finished[0], key_file=key))
    assert getattr(refused.value, "exit_code", 2) == 2


def interrupt(tables, lost_ids):
    """Leave the tables as a driver does that died before these rows were committed."""
    names = ", ".join(f"'{i}'" for i in lost_ids)
    DeltaTable(str(tables / "scores")).delete(f"object_id IN ({names})")
    DeltaTable(str(tables / "runs")).delete("event = 'finished'")


def copy_of(tables, folder):
    """The tables and their key, elsewhere."""
    copy = folder / "tables"
    shutil.copytree(tables, copy)
    shutil.copy(f"{tables}.key", f"{copy}.key")
    return copy


@pytest.mark.slow
def test_an_interrupted_run_is_completed_with_only_what_is_missing(finished, tmp_path):
    config, tables, _ = finished
    copy = copy_of(tables, tmp_path)
    whole = rows_of(tables)
    lost = {row["object_id"] for row in whole[::3]}
    interrupt(copy, lost)
    again = score(dataclasses.replace(config, tables=str(copy)))
    assert again.written == len(lost)
    assert comparable(rows_of(copy)) == comparable(whole)


@pytest.mark.slow
def test_rejects_only(clips, bundles, tmp_path):
    """A batch of rejects only has the same columns as any other."""
    summary = score(config_for(clips[0] / "broken", tmp_path / "tables", bundles))
    assert summary.statuses == {"rejected": len(clips[1])}
    assert Counter(row["reason"] for row in rows_of(tmp_path / "tables")) == Counter(clips[1].values())


@pytest.mark.slow
def test_the_gate_stops_synthetic_clips_and_not_those_of_patients_unless_told(clips, tmp_path, shared_data):
    strict = make_bundles(tmp_path, threshold=1e-6)
    source = tmp_path / "mixed"
    source.mkdir()
    shutil.copy(next(clips[0].glob("patient_*/*.dcm")), source / "synthetic.dcm")
    shutil.copy(shared_data / "xa_real" / "0002.DCM", source / "real.dcm")
    auto = score(config_for(source, tmp_path / "tables", strict, run="auto"))
    assert auto.statuses == {"gated": 1, "scored": 1}
    assert {row["synthetic"]: row["status"] for row in rows_of(tmp_path / "tables", "auto")} == {True: "gated", False: "scored"}
    on = score(config_for(source, tmp_path / "tables", strict, run="on", gate="on"))
    assert on.statuses == {"gated": 2}
    assert on.exit_code == 0


@pytest.mark.nightly
@pytest.mark.slow
def test_a_vanished_object_is_a_read_error_and_is_scored_when_it_is_back(finished, clips, tmp_path):
    config, tables, _ = finished
    copy = copy_of(tables, tmp_path)
    victim = sorted(clips[0].glob("patient_*/*.dcm"))[0]
    uris = {row["uri"]: row["object_id"] for row in DeltaTable(str(tables / "clips")).to_pyarrow_table().to_pylist()}
    interrupt(copy, [uris[str(victim)]])
    config = dataclasses.replace(config, tables=str(copy))
    moved = victim.rename(tmp_path / "moved.dcm")
    try:
        summary = score(config)
    finally:
        moved.rename(victim)
    assert summary.reasons["read_error"] == 1
    assert any("1 object gone since" in note for note in summary.notes)
    retried = score(dataclasses.replace(config, retry=("read_error",)))
    assert retried.written == 1
    assert comparable(rows_of(copy)) == comparable(rows_of(tables))


def test_an_empty_folder_is_refused(bundles, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no objects") as refused:
        score(config_for(tmp_path / "empty", tmp_path / "tables", bundles))
    assert refused.value.exit_code == 2


@pytest.mark.slow
def test_openvino_runs_all_tasks_and_goes_on_as_it_began(clips, bundles, tmp_path):
    """All nets are converted once for all actors: where the backend is chosen, and anew where a run goes on."""
    pytest.importorskip("openvino")
    folder = tmp_path / "bundles"
    shutil.copytree(bundles / "quality", folder / "quality")
    weights = [NETS["x3d_s"].build().state_dict()]
    write_bundle(folder / "artery", task="artery", net="x3d_s", state_dicts=weights, threshold=0.5, trained_on="synthetic")
    weights = [NETS["frames_lstm"].build().state_dict()]
    write_bundle(
        folder / "contrast", task="contrast", net="frames_lstm", state_dicts=weights, threshold=0.1, trained_on="synthetic"
    )
    source = tmp_path / "clips"
    source.mkdir()
    for path in sorted(clips[0].rglob("*.dcm"))[-4:]:
        shutil.copy(path, source)
    config = config_for(
        source, tmp_path / "tables", folder, models=("quality", "artery", "contrast"), backend="openvino", gate="off"
    )
    score(config)
    whole = rows_of(tmp_path / "tables")
    outcomes = {(row["status"], row["backend"], row["artery_status"], row["contrast_status"]) for row in whole}
    assert outcomes == {("scored", "openvino", "scored", "scored")}
    for row in whole:  # an untrained net calls every frame full with about a third
        assert 0 <= row["first_contrast"] <= row["contrast_begin"] < row["contrast_end"] <= row["last_contrast"]
        assert row["contrast_end"] < row["num_frames"], "padding is no frame of the file"
        of_full = {one["frame"] for one in row["contrast_frames"][::3]}
        assert set(row["candidate_frames"]) <= of_full, "a fifth of a second apart"
    interrupt(tmp_path / "tables", {whole[0]["object_id"]})
    assert score(config).written == 1
    assert comparable(rows_of(tmp_path / "tables")) == comparable(whole)


@pytest.mark.nightly
@pytest.mark.slow
def test_weights_of_another_net_are_refused_with_one_line(clips, tmp_path):
    shipped = load_bundle(SHIPPED / "quality", weights=False)
    strange = dataclasses.replace(shipped, net="r18_3d")
    save_bundle(tmp_path / "quality", dataclasses.replace(strange, digest=_digest(strange)))
    with pytest.raises(RunError, match=r"^bundle .*/quality: \d+ tensors of r18_3d are missing") as refused:
        score(config_for(clips[0], tmp_path / "tables", tmp_path))
    assert refused.value.exit_code == 2


def test_a_task_that_the_folder_lacks_is_served_by_the_bundle_that_ships(tmp_path):
    weights = NETS["x3d_s"].build().state_dict()
    made = write_bundle(
        tmp_path / "artery", task="artery", net="x3d_s", state_dicts=[weights], threshold=0.5, trained_on="synthetic",
        classes=TASKS["artery"].classes,
    )  # fmt: skip
    config = config_for(tmp_path, tmp_path / "tables", tmp_path, models=("artery", "quality"))
    found = _load_bundles(config)
    assert list(found) == ["quality", "artery"]
    assert found["quality"].digest == load_bundle(SHIPPED / "quality").digest
    assert found["artery"].digest == made.digest
    with pytest.raises(RunError, match="no bundle in") as refused:
        _load_bundles(dataclasses.replace(config, models=("quality",)))
    assert refused.value.exit_code == 2


def test_a_task_without_any_bundle_is_one_line_that_says_what_to_do(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("angio_ray.scoring.run.SHIPPED", tmp_path / "a-package-without-it")
    with pytest.raises(RunError, match="no bundle for artery ships: train one, and name the folder above it") as caught:
        score(dataclasses.replace(config_for(clips[0], tmp_path / "tables", None), models=("artery",)))
    assert caught.value.exit_code == 2
