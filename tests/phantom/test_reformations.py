"""Reformations: the branch lies in the middle of what is bright, distances are true, text is the brightest and away
from it, sets are the same whatever the workers and in a bucket."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from angio_ray.phantom.ct_heart import BRANCHES, STEP_MM, draw_lesion, grade
from angio_ray.phantom.ct_scan import CtHeart, draw_heart
from angio_ray.phantom.reformations import (
    ROTATIONS,
    TRUTH,
    Kind,
    Workstation,
    _finding,
    _known,
    draw_branch,
    generate_reformations,
)
from angio_ray.phantom.reports import BANNER, Report, Statement

pytest_plugins = ("tests.s3",)
SMALL = {"patients": 2, "seed": 4, "size": 128, "rotations": 2, "voxel_mm": 2.0}


@pytest.fixture(scope="module")
def heart() -> CtHeart:
    return draw_heart(np.random.default_rng(12), diseased=0.0, voxel_mm=0.8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reformations")
    generate_reformations(folder, workers=1, **SMALL)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def station(seed: int = 0) -> Workstation:
    return Workstation.draw(np.random.default_rng(seed))


def test_fifty_rotations_over_180_degrees(heart: CtHeart) -> None:
    angles = [r.angle_deg for r in draw_branch(heart, heart.branches[0], station(), patient_id="P", size=128)]
    assert len(angles) == ROTATIONS == 50
    assert np.allclose(np.diff(angles), 3.6)


@pytest.mark.parametrize("kind", ["curved", "straightened"])
def test_the_branch_lies_where_its_course_is_said_to_be(heart: CtHeart, kind: str) -> None:
    """Along the course it is brighter than 3 mm beside it, in every rotation."""
    branch = next(b for b in heart.branches if b.name in ("LAD", "RCA"))
    for made in draw_branch(heart, branch, station(), patient_id="P", size=200, rotations=4, kind=kind):  # type: ignore[arg-type]
        x, y = made.course_N2[branch.start + 40 : -40].T
        aside = 4.0 / made.px_mm
        grey = made.picture_HW.astype(np.float32)
        along, left, right = (
            np.median(cv2.remap(grey, (x + d).astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR))
            for d in (0, -aside, aside)
        )
        assert along > min(left, right) + 25
        assert along > 100


def test_lengths_along_the_course_are_true(heart: CtHeart) -> None:
    """A stretched reformation keeps them (Kanitsar 2002), so does a straightened one."""
    branch = heart.branches[0]
    whole = STEP_MM * (len(branch.path_N3) - 1)
    for kind in ("curved", "straightened"):
        for made in draw_branch(heart, branch, station(), patient_id="P", size=128, rotations=3, kind=kind):  # type: ignore[arg-type]
            drawn = np.linalg.norm(np.diff(made.course_N2, axis=0), axis=1).sum() * made.px_mm
            assert drawn == pytest.approx(whole, rel=0.04)


def test_course_turns_with_the_angle(heart: CtHeart) -> None:
    first, second = draw_branch(heart, heart.branches[0], station(), patient_id="P", size=128, rotations=2)
    assert np.abs(first.course_N2 - second.course_N2).max() > 10
    assert first.px_mm == second.px_mm


def test_text_is_the_brightest_and_nothing_else_is_as_bright(heart: CtHeart) -> None:
    for seed in range(8):
        made = next(draw_branch(heart, heart.branches[0], station(seed), patient_id="P", size=256, rotations=1))
        assert made.picture_HW[made.text_HW].min() == 255
        assert made.picture_HW[~made.text_HW].max() <= 250
        assert 300 < made.text_HW.sum() < 0.06 * made.text_HW.size


def test_every_station_says_synthetic_and_calcium_saturates(heart: CtHeart) -> None:
    for seed in range(40):
        drawn = station(seed)
        assert any("synthetic" in corner for corner in drawn.corners)
        assert drawn.level_hu + drawn.width_hu / 2 < 1000
    mute = replace(station(), corners=("", "", "", ""))
    with pytest.raises(ValueError, match="synthetic"):
        next(draw_branch(heart, heart.branches[0], mute, patient_id="P", size=128, rotations=1))


@pytest.mark.parametrize("kind", ["curved", "straightened"])
def test_synthetic_can_be_read_in_the_smallest_picture(heart: CtHeart, kind: Kind) -> None:
    """The word stands there whole, its letters as large as at 256 px, and nothing is written over it."""
    branch = replace(heart.branches[0], name="PDA-LCX")  # the longest name
    for seed in range(16):
        drawn = station(seed)
        scale = 0.62 if drawn.font == cv2.FONT_HERSHEY_PLAIN else 0.3
        (width, height), below = cv2.getTextSize("SYNTHETIC", drawn.font, scale, 1)
        word = np.zeros((height + below, width + 2), np.uint8)
        cv2.putText(word, "SYNTHETIC", (1, height), drawn.font, scale, 255, 1, cv2.LINE_8)
        word = np.where(word > 80, 255, 0).astype(np.uint8)[:height]
        made = next(draw_branch(heart, branch, drawn, patient_id="P" * 35, size=128, rotations=1, kind=kind))
        found = cv2.matchTemplate(made.text_HW.astype(np.uint8) * 255, word, cv2.TM_SQDIFF)
        assert found.min() < 255**2  # less than one pixel differs (what is left is rounding)
    with pytest.raises(ValueError, match="size must be 128"):
        next(draw_branch(heart, branch, station(), patient_id="P", size=127, rotations=1))


def test_what_is_known_of_a_branch_is_what_its_pictures_show(heart: CtHeart) -> None:
    child = next(c for c in heart.branches if any(p.name in c.upstream for p in heart.branches))
    parent = next(p for p in heart.branches if p.name in child.upstream)
    take_off_mm = STEP_MM * (child.start - parent.start)
    report = Report(text="", statements={child.name: Statement(text=None, grades=(0,))})  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    for at_mm, percent in ((take_off_mm / 2, 60), (take_off_mm + 20, 0)):
        soft = draw_lesion(rng, percent=60, at_mm=at_mm, plaque="soft")
        sick = replace(parent, lesions=(soft, draw_lesion(rng, percent=0, at_mm=at_mm + 20, plaque="calcified")))
        assert _known(replace(heart, branches=(sick, child)), child, report)["upstream_percent"] == percent
        assert (_finding(sick).plaque, _finding(sick).calcified) == ("soft", True)


def test_bytes_do_not_depend_on_the_number_of_workers(made: Path, tmp_path: Path) -> None:
    generate_reformations(tmp_path, workers=2, **SMALL)
    assert digests(tmp_path) == digests(made)


def test_another_seed_gives_other_pictures(made: Path, tmp_path: Path) -> None:
    truth = generate_reformations(tmp_path, workers=1, **{**SMALL, "seed": 5, "patients": 1})
    here = set(pq.read_table(made / "truth.parquet")["patient_id"].to_pylist())
    assert len(here) == SMALL["patients"]
    assert not here & set(truth["patient_id"].to_pylist())
    assert not set(digests(tmp_path).values()) & set(digests(made).values())


def test_truth_describes_the_files(made: Path) -> None:
    truth = pq.read_table(made / "truth.parquet")
    assert truth.schema.equals(TRUTH)
    named = set()
    for row in truth.to_pylist():
        folder = made / row["folder"]
        pictures = sorted(folder.iterdir())
        assert [p.name for p in pictures] == [f"rotation_{k:02d}.png" for k in range(row["rotations"])]
        assert cv2.imread(str(pictures[0]), cv2.IMREAD_UNCHANGED).shape == (128, 128)
        named |= {p.relative_to(made).as_posix() for p in pictures}
        report = (made / row["report_path"]).read_text()
        assert row["text"] is None or row["text"] in report
        assert row["grade"] in row["stated_grades"]
        assert row["percent"] == max((lesion["percent"] for lesion in row["lesions"]), default=0)
        assert row["grade"] == max(grade(row["percent"]), bool(row["lesions"]))
        assert row["branch"] in BRANCHES
        assert row["patient_id"].startswith("PHANTOM")
        assert row["synthetic"]
    others = {"truth.parquet", "phantom.json", *(f"patient_{k:04d}/report.txt" for k in range(2))}
    assert named | others == set(digests(made))


def test_nothing_passes_for_a_patients(made: Path) -> None:
    for file in made.rglob("*.png"):
        assert b"tEXtComment\x00Synthetic" in file.read_bytes()
    for file in made.rglob("report.txt"):
        assert file.read_text().startswith(BANNER)


def test_a_set_goes_into_a_bucket(
    made: Path, s3_server: object, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():  # type: ignore[attr-defined]
        monkeypatch.setenv(name, value)
    generate_reformations(f"s3://{s3_bucket}/ct/", workers=1, **{**SMALL, "patients": 1})
    client = s3_server.client()  # type: ignore[attr-defined]
    keys = {o["Key"] for o in client.list_objects_v2(Bucket=s3_bucket, Prefix="ct/")["Contents"]}
    expected = {f"ct/{name}" for name in digests(made) if name.startswith("patient_0000/")}
    assert keys == expected | {"ct/truth.parquet", "ct/phantom.json"}
    one = sorted(expected)[0]
    body = client.get_object(Bucket=s3_bucket, Key=one)["Body"].read()
    assert body == (made / one.removeprefix("ct/")).read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"patients": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"size": 127},
        {"rotations": 0},
        {"kind": "oblique"},
        {"workers": 0},
        {"voxel_mm": 0.1},
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_written(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate_reformations(tmp_path, **{**SMALL, **wrong})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_interrupted_set_has_no_truth(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from angio_ray.phantom import reformations

    (tmp_path / "truth.parquet").write_bytes(b"of an older set")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reformations, "draw_heart", stop)
    with pytest.raises(KeyboardInterrupt):
        generate_reformations(tmp_path, workers=1, **SMALL)
    assert not (tmp_path / "truth.parquet").exists()
