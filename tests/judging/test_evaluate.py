from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from angio_ray.cli import main
from angio_ray.judging.evaluate import OUT_OF_FOLD, Evaluation, evaluate_experiment, evaluate_run
from angio_ray.judging.labelled import header_facts
from angio_ray.judging.report import write_report
from angio_ray.models.bundles import BundleError, load_bundle, save_bundle
from angio_ray.pseudonyms import KeyMissing
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.row_sets import read_set, write_set
from angio_ray.tables.sql import query
from angio_ray.training.folds import FoldPlan, ensure_folds
from angio_ray.training.labels import join_labels, read_label_file, store_labels, task_clips
from angio_ray.training.predictions import ModelFacts, write_fold_predictions
from tests.judging.conftest import (
    EACH,
    PATIENTS,
    all_scores,
    clip_id,
    commit_run,
    make_bundle,
    patient_id,
    probability,
    site,
    target,
    write_run,
)
from tests.training.indexed import KEY

FEW = 200
"""Draws of the bootstrap: intervals are tested elsewhere."""


def printed(found: Evaluation) -> str:
    out = io.StringIO()
    found.print(Console(file=out, width=200))
    return out.getvalue()


def metrics(root: TableRoot, experiment: str, model: str, data: str) -> list[dict[str, object]]:
    return read_set(root, "metrics", experiment=experiment, model=model, data=data).to_pylist()


def one(rows: list[dict[str, object]], metric: str, scope: str, **more: object) -> dict[str, object]:
    found = [
        row
        for row in rows
        if row["metric"] == metric
        and row["scope"] == scope
        and all(
            row[name] == more.get(name) for name in ("subgroup", "subgroup_value", "compared_with", "cutoff", "fold")
        )
    ]
    assert len(found) == 1
    return found[0]


# -- a run against labels --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path) -> tuple[TableRoot, Evaluation]:
    folder = tmp_path_factory.mktemp("site")
    root = site(folder)
    scores = all_scores()
    gone = scores.pop((29, 3)), scores.pop((28, 0))
    assert gone
    digest = load_bundle(bundle_folder, weights=False).digest
    write_run(root, "r", scores, bundle=digest, rejected={(29, 3): "truncated"}, folder=folder)
    return root, evaluate_run(root, "r", "readers", key=KEY, bundles=[bundle_folder.parent], resamples=FEW)


def test_rows_of_patients_that_the_bundle_has_seen_are_kept_out_and_counted(
    judged: tuple[TableRoot, Evaluation],
) -> None:
    root, found = judged
    kept = [(p, c) for p in range(5, PATIENTS) for c in range(EACH) if (p, c) not in ((29, 3), (28, 0))]
    m = found.models[0].assessment
    assert (m.metrics.num_rows, m.num_patients, m.num_in_sample) == (len(kept), PATIENTS - 5, 5 * EACH)
    wanted = roc_auc_score([target(*pair) for pair in kept], [probability(*pair) for pair in kept])
    assert m.metrics.auc == pytest.approx(wanted, abs=1e-6)
    rows = metrics(root, "r", "x3d_s", "readers")
    auc = one(rows, "auc", "set")
    assert auc["value"] == pytest.approx(wanted, abs=1e-6)
    assert (auc["num_in_sample"], auc["num_clips"], auc["num_patients"]) == (5 * EACH, len(kept), PATIENTS - 5)
    assert auc["low"] < auc["value"] < auc["high"]  # type: ignore[operator]
    assert (auc["data_domain"], auc["model_domain"], auc["method"]) == ("patients", "synthetic", "clustered_bootstrap")
    stored = read_set(root, "predictions", experiment="r", model="x3d_s", data="readers")
    seen = {patient_id(p) for p in range(5)}
    assert {row["patient_id"] for row in stored.to_pylist() if row["in_sample"]} == seen
    assert set(stored["label_set"].to_pylist()) == {"readers"}


def test_labelled_clips_without_a_score_are_in_no_figure_and_named_by_why(judged: tuple[TableRoot, Evaluation]) -> None:
    root, found = judged
    assert found.models[0].assessment.unscored == {"rejected: truncated": 1, "not in the run": 1}
    rows = metrics(root, "r", "x3d_s", "readers")
    assert one(rows, "unscored_clips", "set", subgroup="outcome", subgroup_value="rejected: truncated")["value"] == 1


def test_the_table_says_what_the_paper_says(judged: tuple[TableRoot, Evaluation]) -> None:
    _, found = judged
    text = printed(found)
    c = found.models[0].assessment.metrics.confusion
    assert (
        f"unsatisfactory found {c.true_positive}, missed {c.false_negative}; satisfactory kept {c.true_negative}"
        in text
    )
    assert (
        f"excludes {100 * (c.positive_rate or 0):.1f} % of the clips (labels: {100 * (c.prevalence or 0):.1f} %)"
        in text
    )
    assert f"of those kept {100 * (c.npv or 0):.1f} % are satisfactory" in text
    assert "patients' clips of 25 patients" in text
    assert "trained on synthetic" in text
    assert "in-sample rows kept out: 20" in text
    assert "1 rejected: truncated" in text


def test_subgroups_come_from_the_header_and_the_site_as_a_pseudonym(judged: tuple[TableRoot, Evaluation]) -> None:
    root, found = judged
    groups = found.models[0].assessment.subgroups
    assert {fact: {g.value for g in values} for fact, values in groups.items() if fact != "site"} == {
        "vendor": {"Siemens", "Philips", "GE MEDICAL SYSTEMS"},
        "view": {"LAO cranial", "RAO cranial", "LAO", "RAO"},
        "frame rate": {"12 to 17/s", "under 12/s"},
        "year": {"2019", "2020"},
        "artery": {"LCA", "RCA"},
    }
    assert len(groups["site"]) == 2
    for fact in groups:
        assert sum(g.metrics.num_rows for g in groups[fact]) == found.models[0].assessment.metrics.num_rows
    everything = str(read_set(root, "metrics", experiment="r", model="x3d_s", data="readers").to_pylist()) + printed(
        found
    )
    assert "Elsewhere" not in everything
    assert "General" not in everything
    views = query(root, "SELECT auc, num_clips FROM metrics_wide WHERE experiment = 'r'").to_pylist()
    assert len(views) == 1  # subgroups do not blur the line of all rows


def test_judging_again_replaces_and_keeps_what_others_filed(
    judged: tuple[TableRoot, Evaluation], bundle_folder: Path
) -> None:
    root, found = judged
    before = metrics(root, "r", "x3d_s", "readers")
    cost = {"scope": "set", "metric": "core_hours", "value": 1.5}
    made = ("experiment", "model", "data", "measured_at", "code_version")
    rows = [{k: v for k, v in row.items() if k not in made} for row in before]
    write_set(root, "metrics", [*rows, cost], replace=True, experiment="r", model="x3d_s", data="readers")
    again = evaluate_run(root, "r", "readers", key=KEY, bundles=[bundle_folder.parent], resamples=FEW)
    after = metrics(root, "r", "x3d_s", "readers")
    assert again.num_rows == 0  # the same rows are there
    assert len(after) == len(before) + 1
    assert one(after, "core_hours", "set")["value"] == 1.5
    assert one(after, "auc", "set")["value"] == one(before, "auc", "set")["value"]
    assert found.num_rows == len(before)


def test_a_label_file_does_as_well_and_needs_the_key(judged: tuple[TableRoot, Evaluation], bundle_folder: Path) -> None:
    root, found = judged
    file = str(Path(root.uri("labels")).parents[1] / "labels.csv")
    again = evaluate_run(root, "r", file, key=KEY, bundles=[bundle_folder.parent], data="own", resamples=FEW)
    assert again.models[0].assessment.metrics == found.models[0].assessment.metrics
    assert again.models[0].data == "own"
    with pytest.raises(KeyMissing, match="--key-file"):
        evaluate_run(root, "r", file, bundles=[bundle_folder.parent], resamples=FEW)


def test_without_the_key_there_are_no_sites(judged: tuple[TableRoot, Evaluation], bundle_folder: Path) -> None:
    root, _ = judged
    again = evaluate_run(root, "r", "readers", bundles=[bundle_folder.parent], data="keyless", resamples=FEW)
    assert "site" not in again.models[0].assessment.subgroups
    assert any("no subgroups by site" in note for note in again.notes)


def test_who_was_seen_must_be_known(judged: tuple[TableRoot, Evaluation], bundle_folder: Path, tmp_path: Path) -> None:
    root, _ = judged
    with pytest.raises(TablesError, match="name its folder with --bundle"):
        evaluate_run(root, "r", "readers", key=KEY, resamples=FEW)
    save_bundle(tmp_path / "other", load_bundle(bundle_folder, weights=False).with_threshold(0.7))
    with pytest.raises(TablesError, match="the given ones are others"):
        evaluate_run(root, "r", "readers", key=KEY, bundles=[tmp_path / "other"], resamples=FEW)
    with pytest.raises(BundleError, match="no bundle in"):
        evaluate_run(root, "r", "readers", key=KEY, bundles=[tmp_path / "nowhere"], resamples=FEW)


@pytest.mark.parametrize(
    ("run", "labels", "said"),
    [("nowhere", "readers", "there is no run nowhere"), ("r", "nobody", "there is readers")],
)
def test_what_is_not_there_is_one_clear_line(
    judged: tuple[TableRoot, Evaluation], bundle_folder: Path, run: str, labels: str, said: str
) -> None:
    with pytest.raises(TablesError, match=said):
        evaluate_run(judged[0], run, labels, key=KEY, bundles=[bundle_folder.parent])


def test_two_runs_are_compared_on_the_clips_that_both_held_out(
    judged: tuple[TableRoot, Evaluation], bundle_folder: Path
) -> None:
    root, _ = judged
    duller = {pair: p for pair, p in all_scores(0.2).items() if pair[0] < 28}
    write_run(root, "dull", duller, bundle=load_bundle(bundle_folder, weights=False).digest)
    found = evaluate_run(root, "r", "readers", key=KEY, against="dull", bundles=[bundle_folder], resamples=FEW)
    a, b, paired = found.comparisons[0]
    assert (a.experiment, b.experiment) == ("dull", "r")
    assert paired.num_rows == (28 - 5) * EACH
    assert paired.differences["auc"].estimate > 0.05  # type: ignore[operator]
    row = one(metrics(root, "r", "x3d_s", "readers"), "auc", "set", compared_with="dull/x3d_s")
    assert row["value"] == paired.differences["auc"].estimate
    assert "r: x3d_s less dull: x3d_s" in printed(found)


def test_the_kind_that_labels_give_is_a_fact_to_divide_by(judged: tuple[TableRoot, Evaluation]) -> None:
    root, _ = judged
    labels = read_set(root, "labels", label_set="readers")
    assert "kind" not in header_facts(root, labels, labels["clip_id"].to_pylist(), None)[0]
    kinds = ["graft" if quality == "unsatisfactory" else None for quality in labels["quality"].to_pylist()]
    named = labels.set_column(labels.column_names.index("quality_class"), "quality_class", pa.array(kinds, pa.string()))
    facts, _ = header_facts(root, named, labels["clip_id"].to_pylist(), None)
    assert facts["kind"][clip_id(0, 0)] == "graft"
    assert facts["kind"][clip_id(0, 1)] is None


def test_the_artery_is_judged_on_satisfactory_clips_beside_the_quality_of_the_same_run(
    tmp_path: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = site(tmp_path)
    digest = load_bundle(bundle_folder, weights=False).digest
    pairs = [(p, c) for p in range(PATIENTS) for c in range(EACH)]
    wrong = {(7, 0), (9, 1)}
    rows = [
        {
            "run_id": "r", "object_id": KEY.object_id(f"{tmp_path}/clips/{p}/{c}.dcm"), "clip_id": clip_id(p, c),
            "patient_id": patient_id(p), "status": "scored", "scored_at": datetime.now(UTC), "attempts": 1,
            "synthetic": False, "model_domain": "synthetic", "bundles": [("quality", digest), ("artery", digest)],
            "quality_status": "scored", "quality_probability": probability(p, c), "quality_threshold": 0.5,
            "quality_satisfactory": probability(p, c) < 0.5, "artery_status": "scored", "artery_threshold": 0.4,
            "artery_probability": 0.9 if (c % 2 == 1) != ((p, c) in wrong) else 0.1,
        }
        for p, c in pairs
    ]  # fmt: skip
    commit_run(root, "r", rows)
    command = ["evaluate", "--run", "r", "--labels", "readers", "--tables", str(tmp_path / "tables"), "--bundle"]
    assert main([*command, str(bundle_folder.parent), "--resamples", str(FEW)]) == 0
    assert main([*command, str(bundle_folder.parent), "--resamples", str(FEW), "--task", "artery"]) == 0
    text = capsys.readouterr().out
    assert "positive: RCA" in text
    kept = [(p, c) for p, c in pairs if p >= 5 and not target(p, c)]
    right = sum(c % 2 for p, c in kept) - 1
    left = len(kept) - right - 2
    assert f"RCA found {right}, missed 1; LCA found {left}, called RCA 1 (threshold 0.4)" in text
    accuracy = one(metrics(root, "r", "x3d_s-artery", "readers"), "accuracy", "set")
    assert accuracy["value"] == pytest.approx((len(kept) - 2) / len(kept))
    assert one(metrics(root, "r", "x3d_s", "readers"), "auc", "set")["num_clips"] == EACH * (PATIENTS - 5)
    # two tasks of one run are no two models of the same thing
    assert main(["evaluate", "--experiment", "r", "--tables", str(tmp_path / "tables"), "--resamples", str(FEW)]) == 0
    assert "less" not in capsys.readouterr().out
    assert main(["evaluate", "--experiment", "r", "--task", "artery", "--tables", str(tmp_path / "tables")]) == 2
    assert "--task go with --run" in capsys.readouterr().err
    page = write_report(root, tmp_path / "report.html", examples=0, resamples=FEW).path.read_text()
    quality, _, artery = page.partition('<section id="task-artery">')
    assert f"{accuracy['value']:.3f}" in artery.partition("</section>")[0]
    assert "<em>RCA</em>" in artery
    assert "X3D-S-artery" not in quality + artery
    assert "x3d_s-artery" not in quality


# -- an experiment ---------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> TableRoot:
    """Two models of three folds, one better than the other; fold 1 of the worse one could not read a clip."""
    root = site(tmp_path, synthetic=True)
    clips, targets = task_clips(join_labels(root, KEY, read_label_file(tmp_path / "labels.csv")).clips)
    folds = ensure_folds(root, "f", clips, targets, FoldPlan(folds=3))
    of = {clip_id(p, c): (p, c) for p in range(PATIENTS) for c in range(EACH)}
    for model, sharpness in (("x3d_s", 1.6), ("r18_3d", 0.5)):
        facts = ModelFacts(
            experiment="e",
            model=model,
            threshold=0.5,
            model_domain="synthetic",
            bundle=f"{model}-b",
            label_set="readers",
        )
        for fold in folds:
            ids = [*fold.validation["clip_id"].to_pylist(), *sorted(fold.test["clip_id"].to_pylist())]
            if (model, fold.number) == ("r18_3d", 1):
                ids.pop()
            scores = {name: probability(*of[name], sharpness) for name in ids}
            write_fold_predictions(root, facts, folds, fold.number, scores, clips)
    return root


def test_an_experiment_is_judged_out_of_fold_and_its_models_against_each_other(trained: TableRoot) -> None:
    found = evaluate_experiment(trained, "e", key=KEY, resamples=FEW)
    by_model = {judged.model: judged for judged in found.models}
    assert set(by_model) == {"x3d_s", "r18_3d"}
    x3d = by_model["x3d_s"].assessment
    assert x3d.folds is not None
    assert (x3d.metrics.num_rows, len(x3d.folds.folds), x3d.num_patients) == (PATIENTS * EACH, 3, PATIENTS)
    assert x3d.data_domain == "synthetic"
    assert by_model["r18_3d"].assessment.unscored == {"left out by a fold, not scored": 1}
    rows = metrics(trained, "e", "x3d_s", OUT_OF_FOLD)
    pooled, mean = one(rows, "auc", "pooled"), one(rows, "auc", "mean_of_folds")
    of_folds = [one(rows, "auc", "fold", fold=fold)["value"] for fold in range(3)]
    assert mean["value"] == pytest.approx(np.mean(of_folds))  # type: ignore[arg-type]
    assert mean["sd"] == pytest.approx(np.std(of_folds, ddof=1))  # type: ignore[arg-type]
    assert pooled["value"] == x3d.metrics.auc
    assert one(rows, "net_benefit", "pooled", cutoff=0.5)["value"] is not None
    assert one(rows, "ece", "pooled")["num_clips"] == PATIENTS * EACH
    (a, b, paired) = found.comparisons[0]
    assert (a.model, b.model, paired.num_rows) == ("r18_3d", "x3d_s", PATIENTS * EACH - 1)
    text = printed(found)
    assert "folds: mean ± sd;" in text
    assert "mean of 3 folds" in text
    assert "x3d_s, out of fold less r18_3d, out of fold" in text
    assert "synthetic clips" in text
    assert evaluate_experiment(trained, "e", key=KEY, resamples=FEW).num_rows == 0


def test_validation_rows_are_in_no_figure(trained: TableRoot) -> None:
    stored = read_set(trained, "predictions", experiment="e", model="x3d_s", data="folds", fold=0)
    assert pc.sum(pc.equal(stored["part"], "validation")).as_py() > 0
    found = evaluate_experiment(trained, "e", resamples=FEW)
    assert all(m.assessment.num_in_sample == 0 for m in found.models)
    assert all("validation" not in set(m.assessment.rows["part"].to_pylist()) for m in found.models)


def test_patients_whom_a_fold_has_seen_are_known_from_its_bundle_alone(trained: TableRoot, tmp_path: Path) -> None:
    """A fold's rows do not say whom the weights that it began from have seen."""
    left = tmp_path / "tables.training" / "e" / "bundles" / "fold-0" / "quality"  # as `train` leaves it
    made = make_bundle(tmp_path / "elsewhere" / "e" / "bundles" / "fold-0" / "quality", patients=range(7))
    facts = {"experiment": "e2", "model": "x3d_s", "data": "folds", "fold": 0}
    rows = read_set(trained, "predictions", experiment="e", model="x3d_s", data="folds", fold=0)
    drop = ["experiment", "bundle", "predicted_at", "code_version"]
    rows = rows.drop_columns(drop).append_column("bundle", pa.array([made.digest] * len(rows)))
    write_set(trained, "predictions", rows, replace=True, **facts)
    write_run(trained, "scored-by-fold", all_scores(), bundle=made.digest, synthetic=True)
    with pytest.raises(TablesError, match="name its folder with --bundle"):
        evaluate_run(trained, "scored-by-fold", "readers", key=KEY, resamples=FEW)
    places = [tmp_path / "elsewhere"]
    found = evaluate_run(trained, "scored-by-fold", "readers", key=KEY, bundles=places, resamples=FEW)
    assert found.models[0].assessment.num_in_sample == 7 * EACH
    left.parent.mkdir(parents=True)
    (tmp_path / "elsewhere" / "e" / "bundles" / "fold-0" / "quality").rename(left)
    again = evaluate_run(trained, "scored-by-fold", "readers", key=KEY, resamples=FEW)
    assert again.models[0].assessment.num_in_sample == 7 * EACH


def test_models_of_two_experiments_are_compared_on_the_clips_that_both_held_out(trained: TableRoot) -> None:
    clips, targets = task_clips(read_set(trained, "labels", label_set="readers"))
    clips = clips.append_column("acquisition_id", clips["clip_id"])
    split = ensure_folds(trained, "split", clips, targets, FoldPlan(scheme="split"))
    of = {clip_id(p, c): (p, c) for p in range(PATIENTS) for c in range(EACH)}
    facts = ModelFacts(experiment="alone", model="r18_3d", threshold=0.5, label_set="readers", bundle="alone-b")
    fold = split.fold(0)
    ids = [*fold.validation["clip_id"].to_pylist(), *fold.test["clip_id"].to_pylist()]
    write_fold_predictions(trained, facts, split, 0, {name: probability(*of[name], 0.3) for name in ids}, clips)
    found = evaluate_experiment(trained, "e", against="alone", key=KEY, resamples=FEW)
    across = {(a.experiment, a.model, b.experiment, b.model): p for a, b, p in found.comparisons}
    assert set(across) == {
        ("alone", "r18_3d", "e", "r18_3d"), ("alone", "r18_3d", "e", "x3d_s"), ("e", "r18_3d", "e", "x3d_s"),
    }  # fmt: skip
    paired = across["alone", "r18_3d", "e", "x3d_s"]
    assert paired.num_rows == fold.test.num_rows
    row = one(metrics(trained, "e", "x3d_s", OUT_OF_FOLD), "auc", "pooled", compared_with="alone/r18_3d")
    assert (row["value"], row["num_clips"]) == (paired.differences["auc"].estimate, fold.test.num_rows)
    assert "e: x3d_s, out of fold less alone: r18_3d, out of fold" in printed(found)
    evaluate_experiment(trained, "e", key=KEY, resamples=FEW)  # a comparison with another experiment stays
    assert one(metrics(trained, "e", "x3d_s", OUT_OF_FOLD), "auc", "pooled", compared_with="alone/r18_3d") == row
    with pytest.raises(TablesError, match="the same experiment"):
        evaluate_experiment(trained, "e", against="e")
    with pytest.raises(TablesError, match="no predictions of experiment gone"):
        evaluate_experiment(trained, "e", against="gone")


def test_labels_from_review_are_said_to_be_a_selection(trained: TableRoot, tmp_path: Path) -> None:
    join = join_labels(trained, KEY, read_label_file(tmp_path / "labels.csv"))
    store_labels(trained, "read", join, origin="review")
    made = make_bundle(tmp_path / "b" / "quality")
    write_run(trained, "r", all_scores(), bundle=made.digest, synthetic=True)
    text = printed(evaluate_run(trained, "r", "read", key=KEY, bundles=[tmp_path / "b"], resamples=FEW))
    assert "120 of 120 labels are from review sheets" in text
    assert "names no training patients" in text
    assert "review sheets" not in printed(evaluate_experiment(trained, "e", key=KEY, resamples=FEW))
    write_report(trained, tmp_path / "r.html", experiments=["e"], runs=["r"], examples=0, resamples=FEW)
    page = (tmp_path / "r.html").read_text("utf-8")
    assert page.count("120 of 120 labels are from review sheets") == 1
    assert page.count("names no training patients, so none could be marked in-sample") == 1
    assert "From left-out folds to another set" not in page  # another bundle scored the set


@pytest.mark.parametrize("width", [80, 200])
def test_no_number_is_broken(trained: TableRoot, width: int) -> None:
    out = io.StringIO()
    evaluate_experiment(trained, "e", key=KEY, resamples=FEW).print(Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    intervals = next(line for line in lines if line.startswith("95 %")).split()[2:]
    assert len(intervals) == 6
    assert all(re.fullmatch(r"[01]\.\d{3}-[01]\.\d{3}", text) for text in intervals)
    row = next(line for line in lines if line.startswith("  RCA")).rstrip()
    assert re.fullmatch(r"  RCA +60 +30 +15( +[01]\.\d\d){3} +\d+\.\d %", row)


def test_a_fact_with_one_value_is_named(trained: TableRoot) -> None:
    store = read_set(trained, "labels", label_set="readers").drop_columns(["label_set", "added_at"])
    same = store.set_column(store.column_names.index("artery"), "artery", pa.array(["LCA"] * len(store), pa.string()))
    write_set(trained, "labels", same, replace=True, label_set="readers")
    found = evaluate_experiment(trained, "e", key=KEY, resamples=FEW)
    assert found.models[0].assessment.one_value == {"artery": "LCA"}
    assert "one value only: artery (LCA)" in printed(found)
    rows = metrics(trained, "e", "x3d_s", OUT_OF_FOLD)
    row = one(rows, "prevalence", "pooled", subgroup="artery", subgroup_value="LCA")
    assert row["num_clips"] == PATIENTS * EACH


def test_an_experiment_that_is_not_there_names_those_that_are(trained: TableRoot) -> None:
    with pytest.raises(TablesError, match="there is e"):
        evaluate_experiment(trained, "x")


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "evaluate takes --experiment E, or --run R with --labels L"),
        (["--run", "r"], "--run R with --labels L"),
        (["--experiment", "e", "--data", "d"], "go with --run"),
        (["--experiment", "e", "--resamples", "5"], "at least 100"),
        (["--experiment", "e"], "there is no table runs"),
        (["--experiment", "e", "--against", "e"], "--against e: the same experiment"),
        (["--run", "r", "--labels", "l", "--against", "r"], "--against r: the same run"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_made(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("ANGIO_RAY_KEY_FILE", str(tmp_path / "key"))
    assert main(["evaluate", "--tables", str(tmp_path / "new"), *words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines()), said in err) == ("", 1, True)
    assert not (tmp_path / "new").exists()


def test_the_command_judges_a_run_with_the_key_beside_the_tables(
    judged: tuple[TableRoot, Evaluation], bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = Path(judged[0].uri("scores")).parent
    words = ["--run", "r", "--labels", str(tables.parent / "labels.csv"), "--bundle", str(bundle_folder)]
    assert main(["evaluate", "--tables", str(tables), "--experiment", "site-check", *words, "--resamples", "100"]) == 0
    text = capsys.readouterr().out
    digest = load_bundle(bundle_folder, weights=False).digest[:8]
    assert f"r: x3d_s-{digest}" in text
    assert "site " in text
    assert "labels: 120 rows, 120 clips of 30 patients" in text
    assert metrics(judged[0], "site-check", f"x3d_s-{digest}", tables.parent.name)
