from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from angio_ray.cli import main
from angio_ray.evaluation.metrics import binary_metrics
from angio_ray.judging.calibrate import calibrate
from angio_ray.judging.evaluate import evaluate_run
from angio_ray.models.bundles import BundleError, load_bundle
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.training.labels import LabelError, join_labels, read_label_file, store_labels
from tests.judging.conftest import EACH, PATIENTS, all_scores, patient_id, probability, site, target, uid, write_run
from tests.training.indexed import KEY, add_clips

OWN = [(p, c) for p in range(5, PATIENTS) for c in range(EACH)]
"""Clips of patients that the bundle has not seen."""


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path) -> TableRoot:
    folder = tmp_path_factory.mktemp("site")
    root = site(folder)
    write_run(root, "r", all_scores(), bundle=load_bundle(bundle_folder, weights=False).digest, folder=folder)
    return root


def test_the_threshold_is_chosen_on_own_patients_and_the_weights_stay(
    scored: TableRoot, bundle_folder: Path, tmp_path: Path
) -> None:
    found = calibrate(scored, bundle_folder, "r", "readers", tmp_path / "b2", rule="sensitivity", at_least=0.9)
    before, after = load_bundle(bundle_folder, weights=False), load_bundle(tmp_path / "b2")
    assert (found.num_clips, found.num_patients, found.num_in_sample) == (len(OWN), PATIENTS - 5, 5 * EACH)
    judged = binary_metrics([target(*p) for p in OWN], [probability(*p) for p in OWN], after.threshold)
    assert judged.confusion == found.point.confusion
    assert judged.confusion.sensitivity is not None
    assert judged.confusion.sensitivity >= 0.9
    assert (after.weights, after.trained_on, after.net) == (before.weights, "synthetic", before.net)
    assert after.digest != before.digest
    assert after.threshold_from == (
        f"set by sensitivity of 0.9 or more on {len(OWN)} patients' clips of {PATIENTS - 5} patients "
        f"({sum(target(*p) for p in OWN)} unsatisfactory), labels readers, run r"
    )
    card = (tmp_path / "b2" / "MODEL_CARD.md").read_text()
    assert after.threshold_from in card
    assert "# the card as trained" in card
    assert "not for clinical use" in card
    assert any("gated only with --gate on" in note for note in found.notes)
    out = io.StringIO()
    found.print(Console(file=out, width=200))
    assert f"threshold 0.5 -> {after.threshold:.4g}" in out.getvalue()
    assert "the rule, judged on other patients (5 parts): sensitivity" in out.getvalue()


def test_patients_that_the_threshold_was_set_on_count_as_seen(
    scored: TableRoot, bundle_folder: Path, tmp_path: Path
) -> None:
    found = calibrate(scored, bundle_folder, "r", "readers", tmp_path / "b2")
    assert set(found.bundle.training_patients) == {patient_id(p) for p in range(PATIENTS)}
    write_run(scored, "r2", all_scores(), bundle=found.bundle.digest, threshold=found.bundle.threshold)
    with pytest.raises(TablesError, match="no held-out row"):
        evaluate_run(scored, "r2", "readers", key=KEY, bundles=[tmp_path / "b2"])


def test_a_bundle_without_a_new_threshold_keeps_its_digest(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder, weights=False)
    assert bundle.threshold_from is None
    assert "threshold_from" not in (bundle_folder / "bundle.json").read_text()
    with pytest.raises(BundleError, match="digest"):
        replace(bundle, threshold_from="nowhere").check(weights=False)


def test_what_cannot_be_is_one_clear_line(
    scored: TableRoot, bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = load_bundle(bundle_folder, weights=False).digest
    write_run(scored, "another", all_scores(), bundle="f" * 64)
    with pytest.raises(BundleError, match="was scored by the bundle ffff"):
        calibrate(scored, bundle_folder, "another", "readers", tmp_path / "b")
    with pytest.raises(BundleError, match="holds a bundle already"):
        calibrate(scored, bundle_folder, "r", "readers", bundle_folder)
    one_class = {pair: p for pair, p in all_scores().items() if not target(*pair)}
    write_run(scored, "one-class", one_class, bundle=digest)
    tables = str(Path(scored.uri("scores")).parent)
    words = ["calibrate", "--bundle", str(bundle_folder), "--tables", tables, "--out", str(tmp_path / "b")]
    assert main([*words, "--run", "one-class", "--labels", "readers"]) == 2
    assert main([*words, "--run", "r", "--labels", "readers", "--rule", "specificity"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [len(said), "without a positive one" in said[0], "need --at-least" in said[1]] == [2, True, True]
    assert not (tmp_path / "b").exists()


def test_clips_of_both_domains_set_no_threshold(bundle_folder: Path, tmp_path: Path) -> None:
    mixed = site(tmp_path)
    header = {
        "sop_instance_uid": uid(99, 0),
        "study_instance_uid": "1.2.99",
        "dicom_patient_id": "Q",
        "synthetic": True,
    }
    add_clips(mixed, [{"uri": "/99/0.dcm"} | header])
    file = tmp_path / "labels.csv"
    file.write_text(file.read_text() + f"{uid(99, 0)},satisfactory,LCA\n")
    store_labels(mixed, "both", join_labels(mixed, KEY, read_label_file(file)))
    digest = load_bundle(bundle_folder, weights=False).digest
    write_run(mixed, "without-it", all_scores(), bundle=digest)
    assert calibrate(mixed, bundle_folder, "without-it", "both", tmp_path / "b").num_clips == len(OWN)
    write_run(mixed, "with-it", {**all_scores(), (99, 0): 0.2}, bundle=digest)
    with pytest.raises(LabelError, match="both synthetic and of patients"):
        calibrate(mixed, bundle_folder, "with-it", "both", tmp_path / "c")


def test_labels_from_review_are_said_to_be_a_selection(scored: TableRoot, bundle_folder: Path, tmp_path: Path) -> None:
    file = Path(scored.uri("labels")).parents[1] / "labels.csv"
    store_labels(scored, "read", join_labels(scored, KEY, read_label_file(file)), origin="review")
    found = calibrate(scored, bundle_folder, "r", "read", tmp_path / "b")
    assert any(f"{len(OWN)} of {len(OWN)} labels are from review sheets" in note for note in found.notes)
