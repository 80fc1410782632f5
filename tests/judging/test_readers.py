from __future__ import annotations

import csv
from pathlib import Path

import pytest

from angio_ray.cli import main
from angio_ray.judging.readers import read_forms
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import SetDiffers, read_set
from angio_ray.training.labels import LabelError, task_clips
from tests.judging.conftest import clip_id, site
from tests.training.indexed import KEY

CLIPS = [(p, c) for p in range(10) for c in range(4)]
A_WRONG = {(0, 0), (3, 2)}
"""Where reader A says the other thing."""


def said(pair: tuple[int, int]) -> str:
    return "unsatisfactory" if sum(pair) % 3 == 0 else "satisfactory"


def other(quality: str) -> str:
    return "satisfactory" if quality == "unsatisfactory" else "unsatisfactory"


def write_form(path: Path, answers: dict[tuple[int, int], str], **columns: dict[tuple[int, int], str]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sheet", "number", "clip_id", "quality", *columns, "comment"))
        for number, (pair, quality) in enumerate(answers.items()):
            more = [column.get(pair, "") for column in columns.values()]
            writer.writerow((1 + number // 8, 1 + number % 8, clip_id(*pair), quality, *more, "x"))
    return path


@pytest.fixture
def forms(tmp_path: Path) -> tuple[TableRoot, Path, Path]:
    root = site(tmp_path)
    a = {pair: other(said(pair)) if pair in A_WRONG else said(pair) for pair in CLIPS}
    b = {pair: said(pair) for pair in CLIPS} | {(9, 3): ""}  # could not say
    arteries = dict.fromkeys(CLIPS, "LCA")
    return (
        root,
        write_form(tmp_path / "a.csv", a, artery=arteries),
        write_form(tmp_path / "b.csv", b, artery=arteries | {(1, 1): "RCA"}),
    )


def test_what_both_say_becomes_labels_and_conflicts_do_not(forms: tuple[TableRoot, Path, Path]) -> None:
    root, a, b = forms
    found = read_forms(root, KEY, (a, b), labels="read", resamples=200)
    g = found.agreement
    assert (g.num_both, g.num_only_a, g.num_only_b) == (39, 1, 0)
    assert {c.clip_id for c in g.conflicts} == {clip_id(*pair) for pair in A_WRONG}
    assert g.kappa is not None
    assert 0.8 < g.kappa < 1
    assert g.method == "clustered_bootstrap"
    stored = read_set(root, "labels", label_set="read")
    assert found.stored == stored.num_rows == 37
    assert set(stored["origin"].to_pylist()) == {"review"}
    quality = dict(zip(stored["clip_id"].to_pylist(), stored["quality"].to_pylist(), strict=True))
    assert quality == {clip_id(*p): said(p) for p in CLIPS if p not in {*A_WRONG, (9, 3)}}
    arteries = {row["clip_id"]: row["artery"] for row in stored.to_pylist()}
    assert arteries[clip_id(1, 1)] is None  # one says LCA, the other RCA
    assert arteries[clip_id(1, 2)] == "LCA"
    assert task_clips(stored)[0].num_rows == 37


def test_conflicts_go_out_and_come_back_settled(forms: tuple[TableRoot, Path, Path], tmp_path: Path) -> None:
    root, a, b = forms
    sheet = tmp_path / "conflicts.csv"
    read_forms(root, KEY, (a, b), conflicts=sheet, resamples=200)
    assert "read" not in {row["label_set"] for row in root.open("labels").to_pyarrow_table().to_pylist()}
    with open(sheet, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["sheet"], row["number"], row["quality"]) for row in rows} == {("1", "1", ""), ("2", "7", "")}
    sheet.write_text(
        sheet.read_text().replace(",satisfactory,unsatisfactory,,", ",satisfactory,unsatisfactory,unsatisfactory,")
    )
    found = read_forms(root, KEY, (a, b), labels="read", consensus=sheet, resamples=200)
    assert len(found.labels) == 37 + len(found.settled)
    assert found.settled == {clip_id(0, 0): "unsatisfactory"}
    assert found.stored == len(found.labels)
    with pytest.raises(SetDiffers, match="--replace"):
        read_forms(root, KEY, (a, b), labels="read", resamples=200)


def test_faults_of_a_form_are_named(forms: tuple[TableRoot, Path, Path], tmp_path: Path) -> None:
    root, a, b = forms
    lines = b.read_text().splitlines()
    lines[1] = lines[1].replace("unsatisfactory", "perhaps")
    lines.append(lines[2].replace(",satisfactory", ",unsatisfactory"))  # a second word on the same clip
    b.write_text("\n".join(lines) + "\n")
    found = read_forms(root, KEY, (a, b), resamples=200)
    assert any("1 invalid_value (left out): line 2 (quality)" in note for note in found.notes)
    assert any("line 2: quality is satisfactory or unsatisfactory" in note for note in found.notes)
    with pytest.raises(LabelError, match="twice"):
        read_forms(root, KEY, (a, a))
    assert any("2 conflict (left out)" in note for note in found.notes)
    assert found.agreement.num_both == 37
    empty = write_form(tmp_path / "empty.csv", dict.fromkeys(CLIPS, ""))
    with pytest.raises(LabelError, match=r"empty\.csv: no clip has a quality"):
        read_forms(root, KEY, (a, empty))


def test_the_command_prints_kappa_and_conflicts(
    forms: tuple[TableRoot, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, a, b = forms
    words = ["review", "--tables", str(tmp_path / "tables"), "--read", str(a), str(b)]
    assert main([*words, "--labels", "read"]) == 0
    out = capsys.readouterr().out
    assert "39 clips read by both: kappa 0." in out
    assert f"{clip_id(3, 2)}  A " in out
    assert "labels read: 37 labels written" in out
    assert main([*words, "--run", "r", "--out", "x"]) == 2
    assert "review takes" in capsys.readouterr().err
