from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from angio_ray.cli import main
from angio_ray.judging.evaluate import evaluate_experiment, evaluate_run
from angio_ray.judging.report import write_report
from angio_ray.models.bundles import SHIPPED, load_bundle
from angio_ray.phantom import generate
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import read_set
from angio_ray.training.folds import FoldPlan, make_folds
from angio_ray.training.labels import task_clips
from angio_ray.training.predictions import ModelFacts, write_fold_predictions
from tests.judging.conftest import EACH, PATIENTS, clip_id, patient_id, probability, site, uid, write_run
from tests.training.indexed import KEY, new_root

NETS = {"x3d_s": 2.0, "r18_3d": 1.2, "r152_3d": 0.7}
"""Net -> how well its made-up scores tell the classes apart."""
DIGEST = load_bundle(SHIPPED / "quality").digest


def experiment(root: TableRoot, name: str = "nets") -> None:
    """Out-of-fold rows of three nets: synthetic numbers, no net was trained."""
    clips = read_set(root, "labels", label_set="readers")
    clips, target = task_clips(clips)
    clips = clips.append_column("acquisition_id", clips["clip_id"])
    folds = make_folds(clips, target, FoldPlan(folds=3), name="quality-k3-s0")
    truth = dict(zip(clips["clip_id"].to_pylist(), target.tolist(), strict=True))
    for net, sharpness in NETS.items():
        facts = ModelFacts(
            experiment=name, model=net, threshold=0.55, model_domain="synthetic", bundle=DIGEST, label_set="readers"
        )
        for number in range(3):
            fold = folds.fold(number)
            ids = [*fold.validation["clip_id"].to_pylist(), *fold.test["clip_id"].to_pylist()]
            # the same noise for all nets, so that they can be compared
            noise = {i: np.random.default_rng(zlib.crc32(i.encode())).normal() for i in ids}
            scores = {i: float(1 / (1 + np.exp(-(sharpness * (2 * truth[i] - 1) + noise[i])))) for i in ids}
            write_fold_predictions(root, facts, folds, number, scores, clips)
    evaluate_experiment(root, name, key=KEY, resamples=100)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TableRoot, Path]:
    """Tables with an experiment of three nets, an evaluated run with rejects, and one phantom clip behind every URI."""
    folder = tmp_path_factory.mktemp("reported")
    root = site(folder, synthetic=True)
    experiment(root)
    scores = {(p, c): probability(p, c) for p in range(PATIENTS) for c in range(EACH) if (p, c) not in ((0, 0), (1, 1))}
    rejected = {(0, 0): "truncated", (1, 1): "frame_time_unknown"}
    write_run(root, "night", scores, bundle=DIGEST, rejected=rejected, folder=folder, synthetic=True)
    evaluate_run(root, "night", "readers", key=KEY, resamples=100)
    generate(folder / "phantom", patients=1, clips=(1, 1), size=128, frames=(48, 48), fps=15.0, seed=3, workers=1)
    clip = next((folder / "phantom").rglob("*.dcm"))
    for patient in range(PATIENTS):
        (folder / "clips" / str(patient)).mkdir(parents=True)
        for number in range(EACH):
            shutil.copy(clip, folder / "clips" / str(patient) / f"{number}.dcm")
    return root, folder


@pytest.fixture(scope="module")
def page(reported: tuple[TableRoot, Path]) -> Path:
    root, folder = reported
    done = write_report(root, folder / "report.html", examples=1, resamples=100)
    assert (done.num_models, done.num_runs) == (4, 1)
    return folder / "report.html"


def text_of(page: Path) -> str:
    """What a reader sees, tags and style removed."""
    shown = re.sub(r"<(style|svg)\b.*?</\1>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


def test_the_page_says_what_it_is_and_on_which_data(page: Path) -> None:
    text = text_of(page)
    assert "Research use only. Not for clinical use." in text
    assert "Data of all figures here: synthetic clips (phantom)." in text
    assert re.search(r"\b(normal|no disease|rule-out|rule out)\b", text, re.IGNORECASE) is None
    for section in ("Left-out clips of the folds quality-k3-s0", "Set readers", "Subgroups", "Examples", "night"):
        assert section in text
    assert "test set, 15 % of 857 satisfactory and 180 unsatisfactory" in text
    assert "1,966" in text, "the paper's confusion matrix"
    assert "truncated" in text
    assert "ROC of all nets, left-out clips" in text
    assert "ResNet-18 3D: folds quality-k3-s0, 120 clips" in text
    assert "From left-out folds to another set" in text, "the run was scored by the experiment's bundle"
    assert "15 bins of about 8 clips: rough" in text
    assert "labelled clips without a score, in no figure: 1 (rejected: frame_time_unknown)" in text


def test_figures_are_those_that_evaluate_stores(reported: tuple[TableRoot, Path], page: Path) -> None:
    text, root = text_of(page), reported[0]
    for net in NETS:
        rows = read_set(root, "metrics", experiment="nets", model=net, data="out_of_fold").to_pylist()
        pooled = {row["metric"]: row for row in rows if row["scope"] == "pooled" and row["subgroup"] is None}
        for metric in ("auc", "sensitivity", "specificity", "f1", "brier"):
            assert f"{pooled[metric]['value']:.3f}" in text
        mean = next(row for row in rows if row["scope"] == "mean_of_folds" and row["metric"] == "accuracy")
        assert f"{mean['value']:.3f} ±{mean['sd']:.3f}" in text
        vendor = next(
            r for r in rows if (r["subgroup"], r["subgroup_value"], r["metric"]) == ("vendor", "Philips", "auc")
        )
        assert f"{vendor['value']:.3f}" in text


def test_nothing_is_loaded_and_nobody_is_named(reported: tuple[TableRoot, Path], page: Path) -> None:
    raw, folder = page.read_text("utf-8"), reported[1]
    assert "<script" not in raw
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", raw) == []
    assert re.findall(r"url\((?!#)", raw) == []
    assert "default-src 'none'" in raw
    names = [str(folder), "St. Elsewhere", "General Hospital", clip_id(0, 0), patient_id(0), uid(3, 1), "20190301"]
    assert [name for name in names if name in raw] == []


def test_examples_are_animated_frames_beside_their_heat(page: Path) -> None:
    raw = page.read_text("utf-8")
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)" width="(\d+)" height="(\d+)"', raw)
    assert 2 <= len(pictures) <= 4, "one for each outcome that occurs"
    for data, width, height in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (image.n_frames, image.size) == (16, (int(width), int(height)))
        assert image.width == 2 * image.height
        left, right = np.split(np.asarray(image.convert("RGB"), int), 2, axis=1)
        assert np.abs(left - left.mean(2, keepdims=True)).mean() < 4, "frames are grey"
        assert np.percentile(np.abs(left - right), 99.5) > 8, "the right half is under a map"
    # the scores are made up, so the bundle's own differ, and the page says so
    assert "computed anew for the picture" in raw


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    root = new_root(tmp_path / "tables")
    done = write_report(root, tmp_path / "empty.html")
    text = text_of(tmp_path / "empty.html")
    assert (done.num_models, done.num_runs, done.num_pictures) == (0, 0, 0)
    for said in (
        "No model has been judged", "No figures by subgroup", "No paired comparison", "No scoring run",
        "No labelled clip has been scored", "No net of the paper", "No epochs",
    ):  # fmt: skip
        assert said in text


def test_clips_that_have_moved_leave_a_report_without_pictures(tmp_path: Path) -> None:
    root = site(tmp_path, synthetic=True)  # no file is behind its URIs
    write_run(root, "r", {(p, c): probability(p, c) for p in range(20) for c in range(EACH)}, bundle=DIGEST)
    evaluate_run(root, "r", "readers", key=KEY, resamples=100)
    done = write_report(root, tmp_path / "r.html", runs=["r"], examples=1, resamples=100)
    assert (done.num_models, done.num_pictures) == (1, 0)
    text = text_of(tmp_path / "r.html")
    assert "no picture: read_error" in text
    assert str(tmp_path) not in (tmp_path / "r.html").read_text("utf-8")


def test_the_command_writes_the_file_and_names_what_is_missing(
    reported: tuple[TableRoot, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, out = str(reported[1] / "tables"), tmp_path / "of_run.html"
    assert main(["report", "--tables", tables, "--run", "night", "--examples", "0", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    text = text_of(out)
    assert "Set readers" in text
    assert "quality-k3-s0" not in text
    assert main(["report", "--tables", tables, "--experiment", "other", "--out", str(out)]) == 2
    assert capsys.readouterr().err == "angio-ray: there is no experiment other in these tables; there is nets, night\n"
    assert main(["report", "--tables", tables, "--examples", "0", "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    for words, said in (
        (["--examples", "-1"], "--examples -1: 0 or more"),
        (["--time-clips", "-2"], "--time-clips -2: 0 or more"),
        (["--bundles", "/nope"], "--bundles /nope: there is no such folder"),
    ):
        assert main(["report", "--tables", tables, *words]) == 2
        assert capsys.readouterr().err == f"angio-ray: {said}\n"


# -- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

MEASURE = """
<script>
addEventListener("load", () => {
  for (const d of document.querySelectorAll("details")) d.open = true;
  const box = e => e.getBoundingClientRect(), name = e => e.tagName + " " + (e.textContent || e.id).trim().slice(0, 40);
  const inside = document.documentElement.clientWidth + 1;
  const all = [...document.body.querySelectorAll("*")].filter(e => !e.closest("svg") || e.tagName === "svg");
  const wide = all.filter(e => box(e).width && (box(e).right > inside || box(e).left < -1)).map(name);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1.5;
  const clashes = elements => {
    const boxes = elements.map(box);
    return elements.flatMap((a, i) => elements.slice(i + 1).filter((b, j) => meet(boxes[i], boxes[i + 1 + j])
      && !a.contains(b) && !b.contains(a)).map(b => name(a) + " / " + name(b)));
  };
  const blocks = [...document.querySelectorAll(
    "h1,h2,h3,h4,p,li,caption,figcaption,summary,th,td,dt,dd,img,.plot svg,.key span,nav a")].filter(e => box(e).width);
  const plots = [...document.querySelectorAll(".plot svg")];
  const letters = plots.flatMap(p => clashes([...p.querySelectorAll("g")].filter(g => /-text_\\d+$/.test(g.id))));
  const images = [...document.images];
  parent.document.body.textContent = "MEASURED" + JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth, wide, overlaps: clashes(blocks), letters,
    texts: plots.map(p => p.querySelectorAll("g[id*=text_]").length),
    plots: plots.map(p => Math.round(box(p).width)), images: images.map(i => i.complete && i.naturalWidth),
  }) + "MEASURED";
});
</script></body>"""


def measured(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """What Chromium makes of the page in a frame of so many px (its own windows are never as narrow as a phone).

    The page gets a script that measures it, and loses the policy that would forbid this.
    """
    assert CHROMIUM is not None
    copy = folder / f"measured-{width}.html"
    raw = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text("utf-8")).replace("</body>", MEASURE)
    style = f"width:{width}px;height:900px;border:0"
    copy.write_text(f'<!doctype html><body><iframe style="{style}" srcdoc="{html.escape(raw)}"></iframe>', "utf-8")
    options = [
        "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={folder}/chromium",
        "--window-size=1400,900", "--hide-scrollbars", "--virtual-time-budget=5000", "--dump-dom",
    ]  # fmt: skip
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run([CHROMIUM, *options, copy.as_uri()], capture_output=True, text=True, timeout=250, check=True)
    return dict(json.loads(html.unescape(done.stdout.split("MEASURED")[1])))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (apt-get install chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_overlaps_or_sticks_out(page: Path, tmp_path: Path, width: int) -> None:
    found = measured(page, width, tmp_path)
    assert (found["width"], found["scroll"]) == (width, width)
    assert found["wide"] == []
    assert found["overlaps"] == []
    assert found["letters"] == []
    assert len(found["plots"]) == 9, "one of all nets, four figures for the folds, four for the set"
    assert min(found["plots"]) > 300
    assert min(found["texts"]) > 8, "axes have their numbers and names"
    assert found["images"]
    assert min(found["images"]) >= 300
