"""One clip explained: its newest score, the frames that the model saw and its heat map, or one line of why not."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from angio_ray.cli import main
from angio_ray.judging.explain import explain
from angio_ray.models.bundles import SHIPPED, load_bundle
from angio_ray.phantom import generate
from angio_ray.tables.root import TableRoot, TablesError
from tests.judging.conftest import clip_id, site, write_run

DIGEST = load_bundle(SHIPPED / "quality", weights=False).digest


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[TableRoot, Path]:
    """Two runs; one phantom clip lies behind the URI of patient 1's first clip."""
    folder = tmp_path_factory.mktemp("explained")
    root = site(folder, synthetic=True)
    write_run(root, "old", {(1, 0): 0.2}, bundle=DIGEST, folder=folder, synthetic=True)
    new = {(1, 0): 0.9, (2, 0): 0.1}
    write_run(root, "new", new, bundle=DIGEST, rejected={(1, 1): "truncated"}, folder=folder, synthetic=True)
    write_run(root, "strange", {(1, 0): 0.3}, bundle="0" * 64, folder=folder, synthetic=True)
    generate(folder / "phantom", patients=1, clips=(1, 1), size=128, frames=(48, 48), fps=15.0, seed=3, workers=1)
    (folder / "clips" / "1").mkdir(parents=True)
    shutil.copy(next((folder / "phantom").rglob("*.dcm")), folder / "clips" / "1" / "0.dcm")
    return root, folder


def halves(picture: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(picture)))]
    return [(frame[:, : frame.shape[1] // 2], frame[:, frame.shape[1] // 2 :]) for frame in frames]


def colour(image: np.ndarray) -> float:
    """How far it is from grey."""
    return float(np.ptp(image.astype(int), axis=-1).mean())


def test_the_picture_shows_each_frame_that_the_model_saw_beside_its_heat(scored: tuple[TableRoot, Path]) -> None:
    found = explain(scored[0], clip_id(1, 0)[:10], run="new")
    assert found.clip_id == clip_id(1, 0)
    pairs = halves(found.picture)
    assert len(pairs) == load_bundle(SHIPPED / "quality", weights=False).window.num_frames
    assert pairs[0][0].shape == (448, 448, 3)
    assert min(colour(heat) for _, heat in pairs) > 2 * max(colour(plain) for plain, _ in pairs)
    text = "\n".join(found.lines)
    assert "run new, synthetic: gated" in text
    assert "unsatisfactory (probability of unsatisfactory 0.900, threshold 0.500)" in text
    assert "computed anew for the picture" in text  # the stored score is made up
    assert "what speaks for unsatisfactory" in text


def test_without_the_bundle_the_frames_are_shown_alone(scored: tuple[TableRoot, Path]) -> None:
    found = explain(scored[0], clip_id(1, 0))  # the newest run's
    assert "run strange" in found.lines[0]
    assert "no heat map: the bundle that scored it was not found" in found.lines
    assert not any("Grad-CAM" in line for line in found.lines)
    assert Image.open(io.BytesIO(found.picture)).size == (448, 448)


@pytest.mark.parametrize(
    ("clip", "options", "why"),
    [
        (clip_id(1, 0)[:7], {}, "at least 8 characters"),
        ("0" * 32, {}, "no clip 0+ in a finished run that was asked for quality"),
        (clip_id(1, 0), {"run": "none"}, "no clip .* in run none"),
        (clip_id(1, 1), {}, "run new rejected the clip: truncated"),
        (clip_id(1, 0), {"run": "new", "task": "artery"}, "run new has no artery of the clip: was not asked for it"),
        (clip_id(1, 0), {"task": "artery"}, "no clip .* in a finished run that was asked for artery"),
        (clip_id(1, 0), {"task": "colour"}, "no task 'colour'"),
        (clip_id(2, 0), {}, r"no picture: read_error \(the folder is not reachable\)"),
    ],
    ids=["short", "unknown", "no run", "rejected", "not asked", "no artery", "no task", "moved"],
)
def test_what_cannot_be_shown_is_said_in_one_line(
    scored: tuple[TableRoot, Path], clip: str, options: dict[str, str], why: str
) -> None:
    with pytest.raises(TablesError, match=why) as refused:
        explain(scored[0], clip, **options)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_the_command_writes_the_file(
    scored: tuple[TableRoot, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (scored[1] / "tables.training" / "cache").mkdir(parents=True)  # a training was begun, and left no bundle yet
    tables = str(scored[1] / "tables")
    assert main(["explain", "--clip", clip_id(1, 0), "--tables", tables, "--run", "old"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == f"{clip_id(1, 0)[:12]}-quality.webp"
    assert Image.open(tmp_path / out.strip()).size == (896, 448)
    assert "quality: satisfactory" in err
    assert main(["explain", "--clip", clip_id(1, 0), "--tables", tables, "--bundles", "none"]) == 2
    assert "no such folder" in capsys.readouterr().err
