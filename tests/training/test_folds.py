from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.row_sets import SetDiffers
from angio_ray.tables.sql import query
from angio_ray.training.folds import (
    PARTS,
    FoldError,
    FoldPlan,
    Folds,
    PatientLeak,
    check_disjoint,
    check_plan,
    ensure_folds,
    in_sample,
    make_folds,
    read_folds,
)
from tests.training.indexed import new_root

SCHEMES = ("kfold", "split", "leave_one_patient_out", "leave_one_acquisition_out")


def clips(patients: int, each: int = 6, *, seed: int = 0) -> pa.Table:
    """Two studies a patient; clips 0 and 1 of a patient are a biplane pair; the first two patients share a group."""
    rows = []
    for number in range(patients * each):
        patient, clip = divmod(number, each)
        rows.append(
            {
                "clip_id": f"{(number * 7919) % 100_003:06d}",
                "patient_id": f"p{patient:03d}",
                "study_id": f"s{patient:03d}-{clip % 2}" if clip else None,
                "group_id": f"p{0 if patient == 1 else patient:03d}",
                "acquisition_id": f"a{patient:03d}-{max(clip, 1)}",
            }
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    return pa.Table.from_pylist(rows).take(pa.array(order))


def unsatisfactory(table: pa.Table, share: float = 0.3) -> np.ndarray:
    """A label that depends on the clip alone."""
    return np.array([int(clip) % 100 < 100 * share for clip in table["clip_id"].to_pylist()])


def made(plan: FoldPlan, patients: int = 24) -> Folds:
    table = clips(patients)
    return make_folds(table, unsatisfactory(table), plan, name="f")


@pytest.fixture
def root(tmp_path: Path) -> TableRoot:
    return new_root(tmp_path / "tables")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_patient_study_or_pair_is_on_two_sides(scheme: Any, seed: int) -> None:
    folds = made(FoldPlan(scheme=scheme, seed=seed))
    for fold in folds:
        parts = [getattr(fold, part) for part in PARTS]
        check_disjoint(*parts)
        for column in ("group_id", "patient_id", "study_id", "acquisition_id", "clip_id"):
            sets = [set(part[column].to_pylist()) - {None} for part in parts]
            assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2], column
        for part in (fold.train, fold.validation):
            assert set(part["target"].to_pylist()) == {True, False}
        assert not in_sample(fold.test, fold.training_patients).any()
        assert in_sample(pa.concat_tables([fold.train, fold.validation]), fold.training_patients).all()


@pytest.mark.parametrize(
    ("scheme", "num_folds"),
    [("kfold", 5), ("split", 1), ("leave_one_patient_out", 23), ("leave_one_acquisition_out", 24 * 5)],
)
def test_every_clip_is_under_test_once(scheme: Any, num_folds: int) -> None:
    folds = made(FoldPlan(scheme=scheme))
    assert folds.num_folds == num_folds
    tested = [clip for fold in folds for clip in fold.test["clip_id"].to_pylist()]
    assert len(tested) == len(set(tested))
    if scheme == "split":
        fold = folds.fold(0)
        assert [len(fold.train), len(fold.validation), len(fold.test)] == pytest.approx([101, 21.6, 21.6], abs=7)
    else:
        assert len(tested) == 24 * 6
    if scheme == "leave_one_acquisition_out":
        left_out = folds.rows.filter(pc.equal(folds.rows["part"], "left_out"))
        assert len(folds.fold(0).test) in (1, 2)
        assert len(left_out) == 22 * (6 * 5 - 6) + 2 * 5 * (12 - 6 / 5), "the tested patient's other clips, in no part"


def test_classes_are_spread_evenly() -> None:
    table = clips(100)
    folds = make_folds(table, unsatisfactory(table), FoldPlan(), name="f")
    for fold in folds:
        for part, size in ((fold.train, 0.68), (fold.validation, 0.12), (fold.test, 0.2)):
            assert len(part) / len(table) == pytest.approx(size, abs=0.02)
            assert np.mean(part["target"].to_pylist()) == pytest.approx(0.3, abs=0.03)


def test_folds_do_not_depend_on_the_order_of_the_clips_but_on_the_seed() -> None:
    first, second = clips(20, seed=1), clips(20, seed=2)
    plans = [FoldPlan(seed=0), FoldPlan(seed=0), FoldPlan(seed=1)]
    tables = [first, second, first]
    a, b, c = (make_folds(t, unsatisfactory(t), p, name="f") for t, p in zip(tables, plans, strict=True))
    assert a.rows.equals(b.rows)
    assert a.digest == b.digest != c.digest
    assert not a.rows["part"].equals(c.rows["part"])


@pytest.mark.parametrize(
    ("labels", "plan", "patients", "message"),
    [
        (lambda t: unsatisfactory(t), FoldPlan(folds=5), 5, "4 patients .* are too few: 5"),
        (lambda t: np.zeros(len(t), bool), FoldPlan(), 12, "all 72 clips have the same label"),
        (lambda t: of_patients(t, "p005"), FoldPlan(folds=3), 12, r"fold \d: its training part has no positive clip"),
        (
            lambda t: of_patients(t, "p005", "p006"),
            FoldPlan(folds=3),
            12,
            r"fold \d: its validation part cannot have both",
        ),
        (lambda t: of_patients(t, "p005"), FoldPlan(scheme="leave_one_patient_out"), 9, r"fold \d: its"),
        (lambda t: of_patients(t, "p005"), FoldPlan(scheme="split"), 9, "the split: its test part cannot have both"),
    ],
    ids=["few patients", "one class", "train", "validation", "leave one out", "split"],
)
def test_a_part_that_lacks_a_class_is_an_error_that_names_the_fold(
    labels: Callable[[pa.Table], np.ndarray], plan: FoldPlan, patients: int, message: str
) -> None:
    table = clips(patients)
    with pytest.raises(FoldError, match=message) as caught:
        make_folds(table, labels(table), plan, name="f")
    assert "\n" not in str(caught.value)


def of_patients(table: pa.Table, *patients: str) -> np.ndarray:
    """Positive: all clips of these patients."""
    return np.array([patient in patients for patient in table["patient_id"].to_pylist()])


def test_leave_one_out_may_test_one_class_alone() -> None:
    table = clips(12)
    target = np.array([patient in ("p003", "p004", "p005", "p006") for patient in table["patient_id"].to_pylist()])
    folds = make_folds(table, target, FoldPlan(scheme="leave_one_patient_out"), name="f")
    assert all(len(set(fold.test["target"].to_pylist())) == 1 for fold in folds)


@pytest.mark.parametrize("column", ["group_id", "patient_id", "study_id", "clip_id"])
def test_a_leak_is_seen_whichever_way_it_goes(column: str) -> None:
    fold = made(FoldPlan()).fold(1)
    check_disjoint(fold.train, fold.validation, fold.test)
    index = fold.test.schema.get_field_index(column)
    stolen = next(value for value in fold.train[column].to_pylist() if value is not None)
    leaking = fold.test.set_column(index, column, pa.array([stolen] * len(fold.test)))
    with pytest.raises(PatientLeak, match=f"1 {column} in two parts"):
        check_disjoint(fold.train, fold.validation, leaking)


def test_folds_are_written_once_and_read_after(root: TableRoot) -> None:
    table = clips(20)
    target = unsatisfactory(table)
    first = ensure_folds(root, "f", table, target, FoldPlan())
    version = root.open("folds").version()
    again = ensure_folds(root, "f", table.take(pa.array(range(len(table))[::-1])), target[::-1], FoldPlan())
    assert again.rows.equals(first.rows)
    assert again.plan == read_folds(root, "f").plan == FoldPlan()
    assert root.open("folds").version() == version
    for number in range(5):
        assert again.fold(number).test.equals(make_folds(table, target, FoldPlan(), name="f").fold(number).test)
    with pytest.raises(IndexError):
        again.fold(5)
    split = FoldPlan(scheme="split", shares=(0.6, 0.2, 0.2))
    assert ensure_folds(root, "s", table, target, split).plan == split
    assert query(root, "SELECT * FROM fold_leaks").num_rows == 0
    parts = query(root, "SELECT sum(num_clips) AS n FROM fold_parts WHERE fold_set = 'f' AND part = 'test'").to_pylist()
    assert parts == [{"n": 120}]
    with pytest.raises(TablesError, match="there are no folds g"):
        read_folds(root, "g")


def test_a_name_stands_for_its_clips_labels_and_plan(root: TableRoot) -> None:
    table = clips(20)
    target = unsatisfactory(table)
    ensure_folds(root, "f", table, target, FoldPlan())
    turned = target.copy()
    turned[:3] = ~turned[:3]
    moved = table.set_column(3, "group_id", pa.array(["p000", *table["group_id"].to_pylist()[1:]]))
    for clips_now, target_now, plan, message in (
        (table, turned, FoldPlan(), "3 other labels"),
        (table.slice(2), target[2:], FoldPlan(), "2 clips gone"),
        (moved, target, FoldPlan(), "1 other patients"),
        (table, target, FoldPlan(seed=3, folds=4), '"folds": 5.*"seed": 0.* -> .*"folds": 4.*"seed": 3'),
    ):
        with pytest.raises(SetDiffers, match=f"folds f are of other clips or another plan .*{message}"):
            ensure_folds(root, "f", clips_now, target_now, plan)
    with pytest.raises(SetDiffers, match="task quality -> calcium"):
        ensure_folds(root, "f", table, target, FoldPlan(), task="calcium")


def test_some_of_the_clips_keep_their_parts(root: TableRoot) -> None:
    table = clips(20)
    target = unsatisfactory(table)
    every = ensure_folds(root, "f", table, target, FoldPlan())
    chosen = np.array([study is not None for study in table["study_id"].to_pylist()])
    some = table.filter(pa.array(chosen))
    part = ensure_folds(root, "f", some, target[chosen], FoldPlan(), some=True)
    assert part.digest != every.digest
    assert len(part.rows) == 5 * chosen.sum()
    for fold, whole in zip(part, every, strict=True):
        for rows, all_rows in ((fold.train, whole.train), (fold.validation, whole.validation), (fold.test, whole.test)):
            assert rows.equals(all_rows.filter(pc.is_valid(all_rows["study_id"])))
    assert ensure_folds(root, "f", some, target[chosen], FoldPlan(), some=True).digest == part.digest
    assert root.open("folds").to_pyarrow_table(filters=[("fold_set", "=", "f")]).num_rows == 5 * 120

    turned = target[chosen].copy()
    turned[:2] = ~turned[:2]
    more = clips(21)
    for clips_now, target_now, message in ((some, turned, "2 other labels"), (more, unsatisfactory(more), "6 new clips")):
        with pytest.raises(SetDiffers, match=message):
            ensure_folds(root, "f", clips_now, target_now, FoldPlan(), some=True)
    one_class = table.filter(pa.array(target))
    with pytest.raises(FoldError, match="fold 0 of f: its training part of these clips has no negative clip"):
        ensure_folds(root, "f", one_class, target[target], FoldPlan(), some=True)
    patient = pc.equal(table["patient_id"], "p005")
    with pytest.raises(FoldError, match=r"of f: its .* part of these clips has no|of f has none of these clips under test"):
        ensure_folds(root, "f", table.filter(patient), target[patient.to_numpy()], FoldPlan(), some=True)


@pytest.mark.slow
def test_of_drivers_that_start_at_once_all_get_the_same_folds(root: TableRoot, tmp_path: Path) -> None:
    program = f"""
import sys, hashlib
from pathlib import Path
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from angio_ray.training.folds import FoldPlan, ensure_folds
from tests.training.test_folds import clips, unsatisfactory
table = clips(20, seed=int(sys.argv[1]))
print("ready", flush=True); sys.stdin.readline()
folds = ensure_folds(TableRoot(Storage({str(tmp_path / "tables")!r})), "f", table, unsatisfactory(table), FoldPlan())
print(folds.digest, hashlib.sha256(repr(folds.rows["part"].to_pylist()).encode()).hexdigest())
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, seed], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert said[0] == said[1] != ""
    assert root.open("folds").to_pyarrow_table().num_rows == 5 * 120


@pytest.mark.parametrize(
    "facts",
    [
        {"scheme": "random"},
        {"folds": 1},
        {"shares": (0.5, 0.5, 0.0)},
        {"shares": (0.5, 0.3, 0.3)},
        {"validation": 0.0},
        {"seed": -1},
    ],
    ids=str,
)
def test_plans_that_cannot_be_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(FoldError):
        FoldPlan(**facts)


def test_leave_one_out_of_many_clips_is_refused_before_it_is_made() -> None:
    """900 patients of 6 clips: 899 groups x 5,400 clips, 4.9 million rows."""
    table = clips(900)
    plan = FoldPlan(scheme="leave_one_patient_out")
    with pytest.raises(FoldError, match=r"899 folds of 5,400 clips are more than 2,000,000 rows: take kfold"):
        check_plan(table, unsatisfactory(table), plan)
    check_plan(table, unsatisfactory(table), FoldPlan())
    check_plan(clips(100), unsatisfactory(clips(100)), plan)
