from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable, Schema

from angio_ray.storage import Storage
from angio_ray.tables.maintenance import compact, upgrade, vacuum
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.run_log import RunHeld, RunLog
from angio_ray.tables.schema import SCORING, TABLES, arrow_schema, declaration
from angio_ray.tables.sql import query
from tests.tables.run_driver import CONFIG, FINGERPRINT, object_ids, score_rows
from tests.tables.test_run_log import Spawn, clip_rows, read_until, stored, take, undisturbed

IDS = object_ids(40)


def finished_run(root: TableRoot, run: str) -> None:
    log = take(root, run)
    for start in range(0, 40, 4):
        log.append_clips(clip_rows(IDS[start : start + 4]))
        log.commit(score_rows(run, IDS[start : start + 4]))
    log.finish({})


def test_compaction_changes_files_and_no_row(root: TableRoot) -> None:
    for run in ("a", "b"):
        finished_run(root, run)
    held = take(root, "held")
    held.commit(score_rows("held", IDS[:4]))
    held.commit(score_rows("held", IDS[4:8]))
    done = {result.name: result for result in compact(root)}
    assert [(done[name].files_before, done[name].files_after) for name in ("a", "b", "clips")] == [(10, 1)] * 3
    assert done["held"].skipped == "not finished"
    assert [stored(root, run) for run in ("a", "b")] == [undisturbed("a"), undisturbed("b")]
    assert root.open("clips").to_pyarrow_table().num_rows == 40
    held.commit(score_rows("held", IDS[8:]))
    held.finish({})
    assert stored(root, "held") == undisturbed("held")


def test_a_compacted_run_is_neither_waited_for_nor_lost_to_a_retry(root: TableRoot) -> None:
    finished_run(root, "r")
    compact(root, "r")
    log = take(root, wait=False)
    assert log.replace(score_rows("r", IDS[:3])) == 3
    assert compact(root, "r")[0].skipped == "not finished"
    log.finish({})
    assert stored(root) == undisturbed()


def test_a_retry_that_meets_a_compaction_goes_on_from_its_result(root: TableRoot) -> None:
    finished_run(root, "r")
    log = take(root)
    compact(root, "r")
    assert log.replace(score_rows("r", IDS[:3])) == 3
    log.finish({})
    assert stored(root) == undisturbed()


def test_overlapping_compactions_keep_each_row_once(root: TableRoot, tables: Path) -> None:
    finished_run(root, "r")
    program = f"""
import sys
from angio_ray.storage import Storage
from angio_ray.tables.maintenance import compact
from angio_ray.tables.root import TableRoot
root = TableRoot(Storage({str(tables)!r}))
print("ready", flush=True); sys.stdin.readline()
print([(result.name, result.files_after, result.skipped) for result in compact(root)])
"""
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert stored(root) == undisturbed()
    assert len(root.open("scores").file_uris()) == 1
    assert root.open("clips").to_pyarrow_table().num_rows == 40


def test_compaction_beside_a_driver_at_work(root: TableRoot, spawn: Spawn) -> None:
    for run in ("a", "b", "c"):
        finished_run(root, run)
    driver = spawn("r", "--batch", "2")
    read_until(driver, "committed 1")
    compact(root)
    said, _ = driver.communicate()
    assert driver.returncode == 0, said
    compact(root)
    for run in ("a", "b", "c", "r"):
        assert stored(root, run) == undisturbed(run)
    assert len(root.open("scores").file_uris()) == 4


def test_compaction_of_an_unknown_run_is_one_clear_line(root: TableRoot) -> None:
    with pytest.raises(TablesError, match="there is no run nope"):
        compact(root, "nope")


def test_vacuum_keeps_a_week_and_the_rows(root: TableRoot) -> None:
    finished_run(root, "r")
    compact(root)
    with pytest.raises(TablesError, match="at least 168 hours"):
        vacuum(root, 167)
    assert vacuum(root) == dict.fromkeys(SCORING, 0)
    root.ensure(FINGERPRINT, TABLES)
    assert vacuum(root) == dict.fromkeys(TABLES, 0)
    assert stored(root) == undisturbed()


def test_upgrade_brings_a_table_of_an_older_release_to_this_schema(tables: Path) -> None:
    old = [field for field in declaration("scores")["fields"] if not field["name"].startswith(("calcium", "stenosis"))]
    old[-1] = old[-1] | {"metadata": {"comment": "An older comment."}}
    DeltaTable.create(
        str(tables / "scores"),
        Schema.from_arrow(arrow_schema("scores").empty_table().select([field["name"] for field in old]).schema),
        configuration={
            "angio_ray.key_fingerprint": FINGERPRINT,
            "delta.minWriterVersion": "3",
            "delta.constraints.status_known": "status IN ('scored')",
        },
        raise_if_key_not_exists=False,
    )
    root = TableRoot(Storage(str(tables)))
    with pytest.raises(TablesError):
        root.ensure(FINGERPRINT)
    DeltaTable.create(str(tables / "runs"), Schema.from_arrow(arrow_schema("runs")))
    with pytest.raises(TablesError, match=r"is of an older release .*: run `angio-ray tables upgrade`"):
        query(root, "SELECT * FROM scores")  # the views name columns that it lacks
    shutil.rmtree(tables / "runs")
    done = upgrade(root)
    assert "runs: made" in done
    assert "scores: column stenosis_probability" in done
    assert "scores: constraint status_known" in done
    root.ensure(FINGERPRINT)
    assert upgrade(root) == []
    log = take(root)
    log.commit(score_rows("r", IDS))
    log.finish({})
    rows = root.open("scores").to_pyarrow_table(columns=arrow_schema("scores").names)
    assert rows.num_rows == 40
    for column in ("status", "stenosis_probability"):
        assert root.open("scores").schema().to_arrow().field(column).metadata[b"comment"]


def test_upgrade_in_mid_run_does_not_stop_the_driver(root: TableRoot) -> None:
    root.open("scores").alter.drop_constraint("quality_range")
    log = RunLog.open(root, "r", CONFIG)
    log.commit(score_rows("r", IDS[:8]))
    assert upgrade(root) == ["scores: constraint quality_range"]
    try:
        log.commit(score_rows("r", IDS[8:]))
        log.finish({})
    except RunHeld:
        pytest.fail("a change of the schema was taken for another driver")
    assert stored(root) == undisturbed()
