"""One run over everything real that there is: patient clip, cath-lab clips, every codec sample, every hostile file."""

import os
import subprocess
import sys
import threading
from collections import Counter

import psutil
import pytest
from deltalake import DeltaTable

from tests.scoring.conftest import rows_of

pytestmark = pytest.mark.slow

SYNTAXES_OF_XA = {"xa_real": 1, "xa_phantom_cathlab": 8}


@pytest.fixture(scope="module")
def everything(shared_data, tmp_path_factory):
    """(exit code, stderr, tables, peak MB by process) of `angio-ray score` over the whole folder."""
    tables = tmp_path_factory.mktemp("everything") / "tables"
    command = [sys.executable, "-m", "angio_ray.cli", "score", str(shared_data), "--tables", str(tables), "--run", "all"]
    env = os.environ | {"RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peaks: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        driver = psutil.Process(process.pid)
        while not done.wait(0.5):
            try:
                for p in [driver, *driver.children(recursive=True)]:
                    peaks[p.pid] = max(peaks.get(p.pid, 0), p.memory_info().rss / 2**30)
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        _, stderr = process.communicate(timeout=280)
    finally:
        done.set()
        if process.poll() is None:
            process.terminate()
            process.wait(30)
    return process.returncode, stderr, tables, peaks


def test_it_ends_by_itself_with_exactly_one_row_per_object(everything, shared_data):
    code, stderr, tables, _ = everything
    assert code == 3, stderr
    assert "Traceback" not in stderr
    files = [p for p in shared_data.rglob("*") if p.is_file()]
    rows = rows_of(tables, "all")
    assert len(rows) == len({row["object_id"] for row in rows}) == len(files)


def test_all_angiograms_are_scored_and_nothing_else(everything):
    tables = everything[2]
    uris = {row["object_id"]: row["uri"] for row in DeltaTable(str(tables / "clips")).to_pyarrow_table().to_pylist()}
    scored = Counter(uris[row["object_id"]].split("/")[-2] for row in rows_of(tables, "all") if row["status"] == "scored")
    assert scored == SYNTAXES_OF_XA


def test_the_real_clip_is_resampled_to_15_frames_per_second(everything):
    tables = everything[2]
    real = [row for row in rows_of(tables, "all") if row["status"] == "scored" and row["num_frames"] == 96]
    assert len(real) == 1
    # 33 ms a frame: the 16th frame at 15/s is file frame 30, and every second one of those lies 4 or 5 file frames on
    assert real[0]["sampled_frames"][0] == 30
    steps = {b - a for a, b in zip(real[0]["sampled_frames"], real[0]["sampled_frames"][1:], strict=False)}
    assert steps <= {4, 5}
    assert real[0]["frame_time_source"] == "frame_time"
    assert real[0]["repeated_frames"] == 0
    assert not real[0]["synthetic"]


def test_each_class_of_fault_has_its_reason(everything):
    tables = everything[2]
    uris = {row["object_id"]: row["uri"] for row in DeltaTable(str(tables / "clips")).to_pyarrow_table().to_pylist()}
    reasons = {uris[row["object_id"]].rsplit("/", 1)[-1]: row["reason"] for row in rows_of(tables, "all")}
    expected = {
        "TC0383_no_dicm.dcm": "not_dicom",
        "ray.io_rayjobs.yaml": "not_dicom",
        "BASELINE_valid_ct.dcm": "not_xa",
        "waveform_ecg.dcm": "not_xa",
        "rtplan_truncated.dcm": "not_xa",
        "TC0347_deflate_truncated.dcm": "header_invalid",
        "TC0647_meta_ALL_vr_4141.dcm": "header_invalid",
        "meta_missing_tsyntax.dcm": "header_invalid",
    }
    assert {name: reasons[name] for name in expected} == expected


def test_no_process_takes_4_gib(everything):
    peaks = everything[3]
    assert len(peaks) > 5
    assert max(peaks.values()) < 4.0
