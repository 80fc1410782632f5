from __future__ import annotations

import csv
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from angio_ray.judging.readers import read_forms
from angio_ray.judging.sheets import CLIPS_PER_SHEET, INSPECT, READERS, SHOWN_FRAMES, WINDOW, choose_clips, make_sheets
from angio_ray.phantom import generate, write_broken
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.training.labels import join_labels, read_label_file, store_labels
from tests.judging.conftest import commit_run
from tests.training.indexed import KEY, index_folder, new_root


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[TableRoot, Path]:
    """A run over ten phantom clips with made-up scores and the broken objects, rejected with the reason they have."""
    folder = tmp_path_factory.mktemp("site")
    generate(folder / "clips", patients=2, clips=(5, 5), seed=5, size=96, frames=(32, 40), workers=1)
    (folder / "clips" / "labels.parquet").rename(folder / "labels.parquet")
    broken = write_broken(folder / "clips" / "broken", seed=5)
    root = new_root(folder / "tables")
    (folder / "tables.key").write_text(bytes(range(32)).hex())
    os.chmod(folder / "tables.key", 0o600)
    index_folder(root, folder / "clips")
    clips = root.open("clips").to_pyarrow_table().to_pylist()
    rows: list[dict[str, Any]] = []
    for number, clip in enumerate(sorted(clips, key=lambda clip: clip["uri"])):
        same = {"run_id": "r", "scored_at": datetime.now(UTC), "attempts": 1}
        same |= {name: clip[name] for name in ("object_id", "clip_id", "patient_id")}
        reason = broken.get(clip["uri"].rsplit("/", 1)[1]) if "/broken/" in clip["uri"] else None
        if "/broken/" in clip["uri"]:
            rows.append(same | {"status": "rejected", "reason": reason or "model_error"})
        else:
            p = 0.05 + 0.09 * number % 0.9
            score = {"quality_probability": p, "quality_threshold": 0.5, "quality_satisfactory": p < 0.5}
            rows.append(same | score | {"status": "scored" if p < 0.5 else "gated", "quality_status": "scored"})
    commit_run(root, "r", rows)
    return root, folder


def form(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_sheets_show_frames_and_the_forms_hold_pseudonyms_only(scored: tuple[TableRoot, Path], tmp_path: Path) -> None:
    root, _ = scored
    found = make_sheets(root, "r", tmp_path / "review", per_kind=6)
    rows = form(tmp_path / "review" / READERS[0])
    assert rows == form(tmp_path / "review" / READERS[1])
    assert found.shown["near_threshold"] == 6
    assert found.shown["rejected"] >= 1  # no frame time, or another fault that leaves the pixels
    assert sum(found.left_out.values()) >= 1  # truncated ones
    assert len(rows) == found.shown.total()
    assert found.num_sheets == -(-len(rows) // CLIPS_PER_SHEET)
    known = {row["clip_id"] for row in root.open("scores").to_pyarrow_table(columns=["clip_id"]).to_pylist()}
    assert {row["clip_id"] for row in rows} <= known
    assert [row["clip_id"] for row in rows] == sorted(row["clip_id"] for row in rows)  # kinds are mixed
    assert all(row["quality"] == "" for row in rows)
    reasons = {row["clip_id"]: row["reason"] for row in root.open("clips").to_pyarrow_table().to_pylist()}
    inspect = [row["clip_id"] for row in rows if reasons[row["clip_id"]] is not None]
    assert inspect == [row["clip_id"] for row in rows if row["comment"] == INSPECT]
    assert found.num_inspect == len(inspect) > 0
    assert f"{len(inspect)} of the rejected are for inspection only: no label is asked for" in "\n".join(found.lines())
    for name in READERS:  # a label of one is not taken, and that is said once
        text = (tmp_path / "review" / name).read_text("utf-8")
        (tmp_path / name).write_text(re.sub(r"^((?:[^,]*,){3}),", r"\1satisfactory,", text, flags=re.MULTILINE))
    reading = read_forms(root, KEY, (tmp_path / READERS[0], tmp_path / READERS[1]), resamples=100)
    assert [n for n in reading.notes if "reject" in n] == [
        f"  {len(inspect):,} labels of rejected clips not taken: these are for inspection only"
    ] * 2
    assert not [n for n in reading.notes if "unreadable" in n]
    assert not set(inspect) & set(reading.labels)
    original = {
        str(row[n]) for row in root.open("clips").to_pyarrow_table().to_pylist() for n in ("dicom_patient_id", "uri")
    }
    written = "".join(path.read_text("utf-8") for path in (tmp_path / "review").glob("*.csv"))
    assert not [value for value in original - {"None", ""} if value in written]
    sheet = np.asarray(Image.open(tmp_path / "review" / "sheet-01.png"))
    assert sheet.shape[1] == SHOWN_FRAMES * WINDOW.size + (SHOWN_FRAMES - 1) * 4
    strip = sheet[26 : 26 + WINDOW.size]
    frames = [strip[:, n * (WINDOW.size + 4) :][:, : WINDOW.size].astype(float) for n in range(SHOWN_FRAMES)]
    assert all(frame.std() > 5 for frame in frames)
    assert np.abs(frames[0] - frames[-1]).mean() > 0.5  # another moment
    assert (tmp_path / "review" / "how-to.txt").exists()


def test_a_form_that_may_be_filled_in_is_never_overwritten(scored: tuple[TableRoot, Path], tmp_path: Path) -> None:
    (tmp_path / READERS[1]).write_text("a reader's work")
    with pytest.raises(TablesError, match="forms already"):
        make_sheets(scored[0], "r", tmp_path)
    with pytest.raises(TablesError, match="there is no run other"):
        make_sheets(scored[0], "other", tmp_path / "new")


def test_the_nearest_to_the_threshold_are_chosen_then_a_sample_of_each_kind(scored: tuple[TableRoot, Path]) -> None:
    chosen, more, already = choose_clips(scored[0], "r", per_kind=2)
    rows = root_rows(scored[0])
    nearest = sorted(rows, key=lambda row: abs(row["quality_probability"] - 0.5))[:2]
    kinds = {kind: [c for c in chosen if c.kind == kind] for kind in ("near_threshold", "unsatisfactory", "rejected")}
    assert {c.clip_id for c in kinds["near_threshold"]} == {row["clip_id"] for row in nearest}
    assert len(kinds["unsatisfactory"]) <= 2
    assert all(c.probability is not None and c.probability >= 0.5 for c in kinds["unsatisfactory"])
    assert all(c.probability is None for c in kinds["rejected"])
    assert len({c.clip_id for c in chosen}) == len(chosen)
    assert more["rejected"] > 0
    assert already == 0


def test_clips_with_a_label_are_not_read_again_unless_asked(tmp_path: Path, scored: tuple[TableRoot, Path]) -> None:
    root, folder = scored
    labels = tmp_path / "some.csv"
    uids = pq.read_table(folder / "labels.parquet").to_pylist()[:4]
    labels.write_text(
        "sop_instance_uid,quality\n" + "".join(f"{row['sop_instance_uid']},satisfactory\n" for row in uids)
    )
    store_labels(root, "some", join_labels(root, KEY, read_label_file(labels)))
    known = {KEY.clip_id(row["sop_instance_uid"]) for row in uids}
    chosen, _, already = choose_clips(root, "r", per_kind=40)
    assert already == 4
    assert not known & {clip.clip_id for clip in chosen}
    again, _, _ = choose_clips(root, "r", per_kind=40, again=True)
    assert known <= {clip.clip_id for clip in again}


def root_rows(root: TableRoot) -> list[dict[str, Any]]:
    rows = root.open("scores").to_pyarrow_table().to_pylist()
    return [row for row in rows if row["quality_probability"] is not None]
