"""Sets of rows on real tables: written whole, once, whoever writes and whenever it dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError

from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.row_sets import SetDiffers, read_set, write_set
from angio_ray.tables.schema import TRAINING, arrow_schema, conform
from angio_ray.tables.sql import query
from tests.tables.run_driver import FINGERPRINT

if TYPE_CHECKING:
    from tests.s3 import S3Proxy, S3Server

pytest_plugins = ("tests.s3",)


def label_rows(count: int, **columns: Any) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        patient = f"p{number // 4}"
        quality = "satisfactory" if number % 3 else "unsatisfactory"
        rows.append(
            {
                "clip_id": f"c{number:03d}",
                "patient_id": patient,
                "group_id": patient,
                "quality": quality,
                "origin": "file",
            }
            | columns
        )
    return rows


def prediction_rows(clips: range, **columns: Any) -> list[dict[str, Any]]:
    return [
        {
            "clip_id": f"c{number:03d}",
            "part": "test",
            "patient_id": f"p{number // 4}",
            "group_id": f"p{number // 4}",
            "task": "quality",
            "target": number % 3 == 0,
            "probability": 0.9 if number % 3 == 0 else 0.2,
            "threshold": 0.5,
            "in_sample": False,
        }
        | columns
        for number in clips
    ]


def metric(name: str, value: float | None, **columns: Any) -> dict[str, Any]:
    return {"scope": "pooled", "metric": name, "value": value} | columns


@pytest.fixture
def trained(root: TableRoot) -> TableRoot:
    root.ensure(FINGERPRINT, TRAINING)
    return root


def test_a_set_is_written_once_and_read_back(trained: TableRoot) -> None:
    stenosis = [{"segment": "LAD-mid", "percent": 60.0, "frame": 12, "x0": 1.0}]
    rows = label_rows(12, stenoses=stenosis)
    assert write_set(trained, "labels", rows, label_set="readers-1") == 12
    version = trained.open("labels").version()
    assert write_set(trained, "labels", rows[::-1], label_set="readers-1") == 0, "the same rows in another order"
    assert trained.open("labels").version() == version
    stored = read_set(trained, "labels", label_set="readers-1")
    assert stored.schema.equals(arrow_schema("labels"))
    assert stored["clip_id"].to_pylist() == [row["clip_id"] for row in rows]
    assert stored["stenoses"].to_pylist()[0][0]["segment"] == "LAD-mid"
    assert read_set(trained, "labels", label_set="readers-2").num_rows == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "0 new and 1 gone"),
        (lambda rows: [*rows[:-1], rows[-1] | {"quality": "satisfactory", "artery": "LCA"}], "quality, artery"),
    ],
    ids=["fewer", "other values"],
)
def test_other_content_is_refused_by_name_unless_it_may_replace(trained: TableRoot, change: Any, message: str) -> None:
    rows = label_rows(10)
    for name in ("a", "b"):
        write_set(trained, "labels", rows, label_set=name)
    with pytest.raises(SetDiffers, match=f"label_set a .*{message}"):
        write_set(trained, "labels", change(rows), label_set="a")
    assert write_set(trained, "labels", change(rows), label_set="a", replace=True) == len(change(rows))
    assert read_set(trained, "labels", label_set="a").num_rows == len(change(rows))
    assert read_set(trained, "labels", label_set="b").num_rows == 10


def test_folds_of_one_experiment_written_at_once_by_threads_keep_each_row_once(trained: TableRoot) -> None:
    def write(fold: int | None) -> int:
        name = {"experiment": "e", "model": "x3d_s", "fold": fold}
        first = write_set(trained, "predictions", prediction_rows(range(8)), replace=True, **name)
        return first + write_set(
            trained, "predictions", prediction_rows(range(8), probability=0.7), replace=True, **name
        )

    folds = [0, 1, 2, 3, None]
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(write, folds)) == [16] * 5
    rows = trained.open("predictions").to_pyarrow_table(columns=["fold", "clip_id", "probability"]).to_pylist()
    assert len(rows) == len({(row["fold"], row["clip_id"]) for row in rows}) == 40
    assert {round(row["probability"], 3) for row in rows} == {0.7}


def test_of_processes_that_write_one_name_one_wins_and_the_others_see_its_rows(
    trained: TableRoot, tables: Path
) -> None:
    program = f"""
import sys
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import SetDiffers, write_set
from tests.tables.test_row_sets import label_rows
root = TableRoot(Storage({str(tables)!r}))
print("ready", flush=True); sys.stdin.readline()
try:
    print(write_set(root, "labels", label_rows(20, view=sys.argv[1]), label_set="l"))
except SetDiffers:
    print("differs")
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, view], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for view in ("v1", "v1", "v2")
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        said = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    stored = read_set(trained, "labels", label_set="l")
    assert stored.num_rows == 20
    first = stored["view"].to_pylist()[0]
    assert sorted(said) == (["0", "20", "differs"] if first == "v1" else ["20", "differs", "differs"])


def test_a_writer_killed_at_any_moment_leaves_all_or_nothing(trained: TableRoot, tables: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
import threading
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from angio_ray.tables.row_sets import write_set
from tests.tables.test_row_sets import prediction_rows
place = Path({str(tables)!r}) / "predictions"
def watch():
    while not list(place.glob("*.parquet")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
write_set(TableRoot(Storage({str(tables)!r})), "predictions", prediction_rows(range(30)), experiment="e", model="m", fold=0)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120)
    assert done.returncode in (-signal.SIGKILL, 0)
    name: dict[str, Any] = {"experiment": "e", "model": "m", "fold": 0}
    assert read_set(trained, "predictions", **name).num_rows in (0, 30)
    write_set(trained, "predictions", prediction_rows(range(30)), replace=True, **name)
    assert read_set(trained, "predictions", **name).num_rows == 30
    assert trained.open("predictions").to_pyarrow_table().num_rows == 30


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([metric("auc", float("nan"))], "not a finite number"),
        ([metric("auc", 0.9), metric("auc", 0.8)], "one key"),
        ([metric("net_benefit", 0.1, cutoff=0.2), metric("net_benefit", 0.1, cutoff=0.2)], "one key"),
        ([metric("auc", 0.9, colour="red")], "no column colour"),
        ([metric("auc", 0.9, model="resnet")], "another model"),
        ([{"scope": "pooled", "value": 0.9}], "metric is null"),
        ([], "no rows"),
    ],
    ids=["nan", "key twice", "key twice at a cutoff", "unknown", "another name", "null", "empty"],
)
def test_rows_at_fault_are_refused_before_anything_is_written(
    trained: TableRoot, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_set(trained, "metrics", rows, experiment="e", model="x3d_s", data="out_of_fold")
    assert trained.open("metrics").version() == 0


def test_names_that_could_be_mistaken_are_refused(trained: TableRoot) -> None:
    for name in ("", "a'b", "a b", "../x"):
        with pytest.raises(TablesError, match="label_set"):
            write_set(trained, "labels", label_rows(1), label_set=name)
    with pytest.raises(TablesError, match="fold -1"):
        write_set(trained, "predictions", prediction_rows(range(1)), experiment="e", model="m", fold=-1)
    with pytest.raises(TypeError, match="label_set"):
        write_set(trained, "labels", label_rows(1), name="x")


def test_without_the_table_it_is_one_clear_line(root: TableRoot) -> None:
    with pytest.raises(TablesError, match="there is no table labels"):
        read_set(root, "labels", label_set="x")


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("labels", {"quality": "fine"}),
        ("labels", {"artery": "LAD"}),
        ("predictions", {"probability": 1.5}),
        ("predictions", {"part": "exam"}),
        ("metrics", {"scope": "all"}),
        ("metrics", {"scope": "fold"}),
        ("folds", {"part": "exam"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_constraints_refuse_any_writer(trained: TableRoot, table: str, columns: dict[str, Any]) -> None:
    good = {
        "labels": label_rows(1, label_set="l", added_at=0)[0],
        "predictions": prediction_rows(range(1), experiment="e", model="m", data="folds", predicted_at=0)[0],
        "metrics": metric("auc", 0.5, experiment="e", model="m", data="d", measured_at=0),
        "folds": dict.fromkeys(arrow_schema("folds").names, "x")
        | {"fold": 0, "part": "test", "target": True, "made_at": 0},
    }[table]
    for row, refused in ((good, False), (good | columns, True)):
        rows = conform(table, pa.Table.from_pylist([row], arrow_schema(table)))
        if refused:
            with pytest.raises(DeltaError):
                write_deltalake(trained.open(table), rows, mode="append")
        else:
            write_deltalake(trained.open(table), rows, mode="append")


def test_views_of_training(trained: TableRoot) -> None:
    write_set(trained, "labels", label_rows(12), label_set="l")
    for fold in (0, 1):
        clips = range(6 * fold, 6 * fold + 6)
        rows = prediction_rows(clips) + prediction_rows(range(20, 22), part="validation")
        rows += prediction_rows(range(30, 31), in_sample=True)
        rows[1] |= {"probability": 0.8}
        write_set(trained, "predictions", rows, experiment="e", model="x3d_s", fold=fold)
    figures = [metric("auc", 0.98, low=0.96, high=0.99, num_clips=12), metric("f1", 0.87)]
    figures += [metric("auc", 0.97, scope="fold", fold=0), metric("auc", 0.5, subgroup="view", subgroup_value="LAO")]
    write_set(trained, "metrics", figures, experiment="e", model="x3d_s", data="out_of_fold")

    def ask(sql: str) -> list[dict[str, Any]]:
        return list(query(trained, sql).to_pylist())

    assert ask("SELECT num_clips, num_patients, num_unsatisfactory FROM label_sets") == [
        {"num_clips": 12, "num_patients": 3, "num_unsatisfactory": 4}
    ]
    assert ask("SELECT count(*) AS n, count(*) FILTER (correct) AS right FROM out_of_fold") == [{"n": 12, "right": 10}]
    sql = "SELECT true_positive, false_negative, true_negative, false_positive FROM confusion WHERE part = 'test' AND fold = 0"
    assert ask(sql) == [{"true_positive": 2, "false_negative": 0, "true_negative": 3, "false_positive": 1}]
    wide = ask("SELECT scope, auc, auc_low, f1, num_clips FROM metrics_wide ORDER BY scope")
    assert wide == [
        {"scope": "fold", "auc": 0.97, "auc_low": None, "f1": None, "num_clips": None},
        {"scope": "pooled", "auc": 0.98, "auc_low": 0.96, "f1": 0.87, "num_clips": 12},
    ]
    assert ask("SELECT count(*) AS n FROM labelled_scores WHERE status IS NULL") == [{"n": 12}]


def test_sets_lie_beside_the_results_and_not_with_the_identifiers(tmp_path: Path) -> None:
    for name in ("results", "identified"):
        (tmp_path / name).mkdir()
    root = TableRoot(Storage(str(tmp_path / "results")), Storage(str(tmp_path / "identified")))
    root.ensure(FINGERPRINT, TRAINING)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(TRAINING)


@pytest.mark.parametrize("loss", ["drop_reply", "spoil_reply"])
def test_a_set_on_s3_whose_reply_is_lost_is_written_once(
    s3_server: S3Server, s3_proxy: S3Proxy, s3_bucket: str, loss: str
) -> None:
    straight, proxied = (
        TableRoot(Storage(f"s3://{s3_bucket}/tables", place.options)) for place in (s3_server, s3_proxy)
    )
    straight.ensure(FINGERPRINT, ["predictions"])
    for probability in (0.3, 0.4):
        getattr(s3_proxy, loss)(match=r"/predictions/_delta_log/[0-9]+\.json")
        rows = prediction_rows(range(12), probability=probability)
        assert write_set(proxied, "predictions", rows, replace=True, experiment="e", model="m", fold=0) == 12
    assert write_set(straight, "predictions", rows, replace=True, experiment="e", model="m", fold=0) == 0
    assert straight.open("predictions").to_pyarrow_table(columns=["clip_id"]).num_rows == 12
