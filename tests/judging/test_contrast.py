"""Frames of full contrast that a run found, against labels in the file's own frames."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from angio_ray.cli import main
from angio_ray.evaluation.report_data import open_tables
from angio_ray.judging.contrast import evaluate_contrast
from angio_ray.models import NETS
from angio_ray.models.bundles import Bundle, write_bundle
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.row_sets import read_set
from tests.judging.conftest import clip_id, commit_run, patient_id, site, uid
from tests.training.indexed import KEY

FEW = 200
PAIRS = [(patient, clip) for patient in range(6) for clip in range(2)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """It has seen patient 0."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    made = write_bundle(
        folder / "contrast", task="contrast", net="frames_lstm", state_dicts=[NETS["frames_lstm"].build().state_dict()],
        threshold=0.5, trained_on="synthetic", training_patients=[patient_id(0)],
    )  # fmt: skip
    return folder, made


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, bundle: tuple[Path, Bundle]) -> tuple[TableRoot, Path]:
    """Full from frame 20 to 40 of the file; found 4 frames late at both ends, but in the last clip nothing."""
    folder = tmp_path_factory.mktemp("contrast")
    root = site(folder)
    lines = ["sop_instance_uid,contrast_begin,contrast_end"] + [f"{uid(*pair)},20,40" for pair in PAIRS]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    rows: list[dict[str, Any]] = []
    for patient, clip in PAIRS:
        found = (patient, clip) != PAIRS[-1]
        rows.append(
            {
                "run_id": "r", "scored_at": datetime.now(UTC), "attempts": 1, "synthetic": False, "status": "scored",
                "object_id": KEY.object_id(f"{folder}/clips/{patient}/{clip}.dcm"), "clip_id": clip_id(patient, clip),
                "patient_id": patient_id(patient), "frame_time_ms": 33.33, "model_domain": "synthetic",
                "bundles": [("contrast", bundle[1].digest)], "contrast_status": "scored",
                "contrast_begin": 24 if found else None, "contrast_end": 44 if found else None,
            }
        )  # fmt: skip
    commit_run(root, "r", rows)
    return root, folder


def test_errors_count_in_frames_at_15_per_second_of_patients_not_seen(
    scored: tuple[TableRoot, Path], bundle: tuple[Path, Bundle]
) -> None:
    root, folder = scored
    found = evaluate_contrast(
        root, "r", str(folder / "labels.csv"), key=KEY, bundles=[bundle[0]], data="set", resamples=FEW
    )
    pooled = found.summary.pooled
    assert (pooled.num_clips, pooled.num_missed, found.summary.num_patients) == (10, 1, 5)
    assert (pooled.begin_mean, pooled.end_mean) == (2.0, 2.0), "4 frames at 30/s"
    assert pooled.accept_rate == pytest.approx(0.9)
    assert "2 clips of patients that the model had seen are left out" in found.notes
    rows = read_set(root, "metrics", experiment="r", model="frames_lstm", data="set").to_pylist()
    assert len(rows) == found.num_rows
    (begin,) = [row for row in rows if row["metric"] == "begin_error_frames" and row["subgroup"] is None]
    assert (begin["scope"], begin["value"], begin["num_clips"], begin["data_domain"]) == ("set", 2.0, 10, "patients")


def test_the_command_prints_the_figures(
    scored: tuple[TableRoot, Path], bundle: tuple[Path, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = scored
    command = ["evaluate", "--run", "r", "--labels", str(folder / "labels.csv"), "--tables", str(folder / "tables")]
    assert main([*command, "--task", "contrast", "--bundle", str(bundle[0]), "--resamples", "100"]) == 0
    out = capsys.readouterr().out
    assert "r: frames_lstm: 10 clips of 5 patients with full contrast; frames at 15/s" in out
    assert "accept_rate 0.900" in out
    assert "full contrast missed in 1 of 10 clips" in out


def test_the_quality_report_has_no_figures_of_frames(
    scored: tuple[TableRoot, Path], bundle: tuple[Path, Bundle]
) -> None:
    root, folder = scored
    evaluate_contrast(root, "r", str(folder / "labels.csv"), key=KEY, bundles=[bundle[0]], data="set", resamples=FEW)
    with open_tables(root) as tables:
        assert not tables.stored_figures(["r"])


def test_a_run_without_them_and_an_unknown_bundle_are_one_line(scored: tuple[TableRoot, Path]) -> None:
    root, folder = scored
    labels = str(folder / "labels.csv")
    with pytest.raises(TablesError, match="there is no run other"):
        evaluate_contrast(root, "other", labels, key=KEY)
    with pytest.raises(TablesError, match="name its folder with --bundle"):
        evaluate_contrast(root, "r", labels, key=KEY)
