"""The fence on real tables and real processes: whatever dies and whenever, each object has one row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, Field, Transaction, write_deltalake
from deltalake.exceptions import DeltaError
from deltalake.schema import PrimitiveType

from angio_ray.tables import run_log
from angio_ray.tables.clip_log import ClipLog
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.run_log import ConfigMismatch, RunHeld, RunIncomplete, RunLog, TableUnwritable, run_state
from angio_ray.tables.schema import arrow_schema
from tests.tables.run_driver import CONFIG, manifest_rows, object_ids, score_rows

Spawn = Callable[..., "subprocess.Popen[str]"]
IDS = object_ids(40)


def take(root: TableRoot, run: str = "r", *, interval_s: float = 30.0, **options: bool) -> RunLog:
    return RunLog.open(root, run, CONFIG, interval_s=interval_s, **options)


def stored(root: TableRoot, run: str = "r") -> list[dict[str, object]]:
    """The run's rows without times, by object."""
    rows = root.open("scores").to_pyarrow_table(filters=[("run_id", "=", run)]).drop_columns(["scored_at"])
    return sorted(rows.to_pylist(), key=lambda row: row["object_id"])


def undisturbed(run: str = "r", ids: list[str] = IDS) -> list[dict[str, object]]:
    return score_rows(run, ids).drop_columns(["scored_at"]).to_pylist()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == text:
            return
    raise AssertionError(f"the driver ended without saying {text!r}")


def finish_with(spawn: Spawn) -> list[str]:
    """A next driver; returns what it said."""
    process = spawn("r")
    assert process.stdout is not None
    said = [line.strip() for line in process.stdout]
    assert process.wait() == 0
    return said


# -- a run's plain life ----------------------------------------------------------------------------------------------


def test_a_run_from_claim_to_finish(root: TableRoot) -> None:
    log = take(root)
    assert log.write_manifest([manifest_rows(IDS[:3]), manifest_rows(IDS[2:5])]) == 5
    assert [table.num_rows for table in log.pending()] == [5]
    assert log.commit(score_rows("r", IDS[:3])) == 3
    assert log.commit(score_rows("r", IDS[2:5])) == 2, "a row that is there already is dropped"
    assert log.scored_ids() == set(IDS[:5])
    assert list(log.pending()) == []
    log.finish({"scored": 5})
    assert stored(root) == undisturbed(ids=IDS[:5])
    state = run_state(root, "r")
    assert [event["event"] for event in state.events] == ["claimed", "finished"]
    assert state.newest is not None
    assert dict(state.newest["counts"]) == {"scored": 5}
    assert (state.newest["manifest_objects"], state.newest["manifest_bytes"]) == (5, 0 + 1 + 2 + 3 + 4)


def test_a_finished_run_is_looked_at_and_not_touched(root: TableRoot) -> None:
    log = take(root)
    log.commit(score_rows("r", IDS))
    log.finish({})
    versions = [root.open(table).version() for table in ("scores", "runs")]
    again = take(root, wait=False)
    assert again.finished
    assert again.scored_ids() == set(IDS)
    again.close()
    assert [root.open(table).version() for table in ("scores", "runs")] == versions


def test_a_run_with_missing_objects_cannot_be_finished(root: TableRoot) -> None:
    with take(root) as log:
        log.write_manifest([manifest_rows(IDS)])
        log.commit(score_rows("r", IDS[:-2]))
        with pytest.raises(RunIncomplete, match="2 objects"):
            log.finish({})
    assert not run_state(root, "r").finished


def test_a_stopped_run_is_taken_up_without_waiting(root: TableRoot) -> None:
    with take(root) as log:
        log.commit(score_rows("r", IDS[:8]))
    resumed = take(root, wait=False)
    assert resumed.scored_ids() == set(IDS[:8])
    assert resumed.stop({"scored": 8})


def test_another_configuration_is_refused_by_name(root: TableRoot) -> None:
    take(root).stop()
    other = {"models": ["quality"], "quality": {"threshold": 0.6, "digest": "d1"}, "gate": True}
    with pytest.raises(ConfigMismatch, match=r"gate absent -> true; quality\.threshold 0\.5 -> 0\.6") as caught:
        RunLog.open(root, "r", other)
    assert "digest" not in str(caught.value)


@pytest.mark.parametrize("run", ["", "a/b", "a'b", ".", "-x", "x" * 129])
def test_run_ids_that_could_be_mistaken_are_refused(root: TableRoot, run: str) -> None:
    with pytest.raises(TablesError, match="run id"):
        take(root, run)


def test_replace_changes_these_objects_of_this_run_only(root: TableRoot) -> None:
    for run in ("r", "other"):
        log = take(root, run)
        log.commit(score_rows(run, IDS[:20], status="rejected", reason="read_error", quality_probability=None))
        log.finish({})
    log = take(root)
    assert log.replace(score_rows("r", IDS[:7], attempts=2)) == 7
    log.finish({})
    rows = stored(root)
    assert [row["object_id"] for row in rows] == IDS[:20]
    assert [row["status"] for row in rows] == ["scored"] * 7 + ["rejected"] * 13
    assert {row["status"] for row in stored(root, "other")} == {"rejected"}
    assert run_state(root, "r").finished


def test_rows_of_another_run_or_two_for_one_object_are_refused(root: TableRoot) -> None:
    with take(root) as log:
        with pytest.raises(ValueError, match="another run"):
            log.commit(score_rows("other", IDS[:1]))
        with pytest.raises(ValueError, match="two new rows"):
            log.replace(score_rows("r", [IDS[0], IDS[0]]))


def test_rows_that_the_table_refuses_are_named_by_cause_without_values(root: TableRoot) -> None:
    log = take(root)
    with pytest.raises(TableUnwritable, match="refuses the rows") as caught:
        log.commit(score_rows("r", IDS[:1], reason="truncated", detail="secret"))
    assert "secret" not in str(caught.value)
    with pytest.raises(TableUnwritable):
        log.commit(score_rows("r", IDS[1:2]))
    assert stored(root) == []


def test_manifest_is_all_or_nothing(root: TableRoot) -> None:
    def broken_listing() -> object:
        yield manifest_rows(IDS[:30])
        raise OSError("the bucket is gone")

    with take(root) as log:
        with pytest.raises(OSError, match="the bucket is gone"):
            log.write_manifest(broken_listing())
        assert not log.has_manifest
        assert log.write_manifest([manifest_rows(IDS)]) == 40
        with pytest.raises(TablesError, match="has its manifest"):
            log.write_manifest([manifest_rows(IDS)])
    assert root.open("manifests").to_pyarrow_table().num_rows == 40


# -- refused commits -------------------------------------------------------------------------------------------------


def test_a_twin_in_the_table_stops_the_driver(root: TableRoot) -> None:
    log = take(root)
    log.commit(score_rows("r", IDS[:8]))
    number = root.open("scores").transaction_version("r")
    twin = CommitProperties(app_transactions=[Transaction("r", number + 1)])
    write_deltalake(root.open("scores"), score_rows("r", IDS[8:9]), mode="append", commit_properties=twin)
    with pytest.raises(RunHeld):
        log.commit(score_rows("r", IDS[8:16]))
    with pytest.raises(RunHeld):
        log.commit()
    assert not log.stop()
    assert stored(root) == undisturbed(ids=IDS[:9])
    assert [event["event"] for event in run_state(root, "r").events] == ["claimed"]


def test_a_commit_whose_reply_is_lost_is_not_written_twice(root: TableRoot) -> None:
    # A checkpoint that cannot be written makes delta-rs report a failure after the commit is in the log.
    root.open("scores").alter.set_table_properties({"delta.checkpointInterval": "1"})
    log = take(root)
    place = Path(root.uri("scores")) / "_delta_log"
    version = root.open("scores").version()
    for number in range(version + 1, version + 12):
        (place / f"{number:020d}.checkpoint.parquet").mkdir()
    with pytest.raises(DeltaError, match="directory"):
        write_deltalake(root.open("scores"), score_rows("foreign", IDS[:1]), mode="append")
    for start in range(0, 40, 8):
        assert log.commit(score_rows("r", IDS[start : start + 8])) == 8
    assert log.replace(score_rows("r", IDS[:3])) == 3
    log.finish({})
    assert stored(root) == undisturbed()


def test_foreign_deletes_rewrites_and_appends_do_not_stop_a_run(root: TableRoot) -> None:
    with take(root, "old") as old:
        old.commit(score_rows("old", IDS[:8]))
        old.commit(score_rows("old", IDS[8:16]))
    log = take(root)
    log.commit(score_rows("r", IDS[:8]))
    root.open("scores").delete(f"run_id = 'old' AND object_id = '{IDS[0]}'")
    log.commit(score_rows("r", IDS[8:16]))
    rows = root.open("scores").to_pyarrow_table(filters=[("run_id", "=", "old")])
    write_deltalake(root.open("scores"), rows, mode="overwrite", predicate="run_id = 'old'")
    log.commit(score_rows("r", IDS[16:24]))
    with take(root, "new") as new:
        new.commit(score_rows("new", IDS))
    log.commit(score_rows("r", IDS[24:]))
    log.finish({})
    assert stored(root) == undisturbed()
    assert stored(root, "old") == undisturbed("old", IDS[1:16])


def test_a_new_column_is_taken_up_in_mid_run(root: TableRoot) -> None:
    log = take(root)
    log.commit(score_rows("r", IDS[:8]))
    root.open("scores").alter.add_columns([Field("of_a_later_release", PrimitiveType("string"), nullable=True)])
    log.commit(score_rows("r", IDS[8:]))
    log.finish({})
    rows = stored(root)
    assert [row.pop("of_a_later_release") for row in rows] == [None] * 40
    assert rows == undisturbed()


def test_a_table_put_back_to_an_older_version_stops_the_run(root: TableRoot) -> None:
    log = take(root)
    log.commit(score_rows("r", IDS[:8]))
    log.commit(score_rows("r", IDS[8:16]))
    table = Path(root.uri("scores")) / "_delta_log"
    for entry in sorted(table.glob("*.json"))[-2:]:
        entry.unlink()
    with pytest.raises(TableUnwritable, match="went back"):
        log.commit(score_rows("r", IDS[16:24]))


def test_the_fence_survives_checkpoints_and_the_clean_up_of_the_log(root: TableRoot) -> None:
    root.open("scores").alter.set_table_properties(
        {"delta.checkpointInterval": "3", "delta.logRetentionDuration": "interval 0 seconds"}
    )
    log = take(root)
    for start in range(0, 32, 8):
        log.commit(score_rows("r", IDS[start : start + 8]))
    handle = root.open("scores")
    handle.create_checkpoint()
    handle.cleanup_metadata()
    assert len(list((Path(root.uri("scores")) / "_delta_log").glob("*.json"))) <= 2
    with pytest.raises(RunHeld):
        take(root, wait=False)
    log.commit(score_rows("r", IDS[32:]))
    log.finish({})
    assert stored(root) == undisturbed()
    assert take(root).finished


class Renewing:
    """A place whose credentials are renewed all the time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.renewals = 0

    def delta_uri(self, *parts: str) -> str:
        return str(self.folder.joinpath(*parts))

    def delta_options(self) -> dict[str, str]:
        self.renewals += 1
        return {"aws_session_token": str(self.renewals)}


def test_renewed_credentials_are_taken_up_and_the_fence_holds(root: TableRoot, tables: Path) -> None:
    log = take(TableRoot(Renewing(tables)), interval_s=0.3, heartbeat=False)
    for start in range(0, 24, 8):
        log.commit(score_rows("r", IDS[start : start + 8]))
        log.append_clips(clip_rows(IDS[start : start + 8]))
    with take(root) as other:
        with pytest.raises(RunHeld):
            log.commit(score_rows("r", IDS[24:32]))
        other.commit(score_rows("r", IDS[24:]))
    assert stored(root) == undisturbed()
    assert root.open("clips").to_pyarrow_table().num_rows == 24


# -- two drivers -----------------------------------------------------------------------------------------------------


def test_a_living_driver_is_seen_by_its_signs_of_life(root: TableRoot, spawn: Spawn) -> None:
    first = spawn("r", "--wait-for-line", "--interval", "1.5")
    read_until(first, "ready")
    second = spawn("r", "--interval", "30")  # the first one's interval counts
    assert second.stdout is not None
    assert "another driver holds run r" in second.stdout.read()
    assert second.wait() == 4
    first.communicate("\n" * 10)
    assert first.returncode == 0
    assert stored(root) == undisturbed()


def test_a_dead_driver_of_this_machine_is_not_waited_for(root: TableRoot, spawn: Spawn) -> None:
    first = spawn("r", "--wait-for-line", "--interval", "600")
    read_until(first, "ready")
    with pytest.raises(RunHeld, match=str(first.pid)):
        take(root, wait=False)
    first.kill()
    # not reaped yet: a dead process that still has its entry counts as dead
    while (Path("/proc") / str(first.pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    with take(root, wait=False) as log:
        assert log.commit(score_rows("r", IDS)) == 40


def test_an_old_run_of_another_machine_is_taken_at_once_and_a_young_one_is_watched(
    root: TableRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = RunLog.open(root, "r", CONFIG, interval_s=1.0, heartbeat=False)
    gone.commit(score_rows("r", IDS[:8]))
    with pytest.raises(RunHeld):
        take(root, wait=False)
    started = time.monotonic()
    watched = RunLog.open(root, "r", CONFIG, interval_s=1.0, heartbeat=False)
    assert time.monotonic() - started >= 1.0
    with pytest.raises(RunHeld):
        gone.commit(score_rows("r", IDS[8:16]))
    time.sleep(0.1)
    monkeypatch.setattr(run_log, "ABANDONED_AFTER_S", 0.05)
    monkeypatch.setattr(watched, "interval_s", 0.01)
    watched._event("claimed")  # as a driver with a short interval, so that three of them have passed
    assert take(root, wait=False).scored_ids() == set(IDS[:8])


def test_a_zombie_is_fenced(root: TableRoot, spawn: Spawn) -> None:
    zombie = spawn("r", "--wait-for-line", "--interval", "0.5")
    read_until(zombie, "ready")
    zombie.send_signal(signal.SIGSTOP)
    with take(root) as log:
        log.commit(score_rows("r", log_ids := [row["object_id"] for t in log.pending(8) for row in t.to_pylist()][:16]))
        zombie.send_signal(signal.SIGCONT)
        said, _ = zombie.communicate("\n" * 10)
        assert zombie.returncode == 4, said
        assert len(stored(root)) == 16
        log.commit(score_rows("r", [object_id for object_id in IDS if object_id not in log_ids]))
        log.finish({})
    assert stored(root) == undisturbed()


def test_of_two_that_start_at_once_one_gets_the_run(root: TableRoot, spawn: Spawn) -> None:
    drivers = [spawn("r", "--interval", "1", "--wait-for-line") for _ in range(2)]
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write("\n" * 10)
        driver.stdin.flush()
    assert sorted(driver.wait(60) for driver in drivers) in ([0, 4], [0, 0])
    assert stored(root) == undisturbed()


# -- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "rows_left"), [("before", 8), ("file", None), ("log", 16), ("after", 16)])
def test_killed_at_a_commit_and_run_again(root: TableRoot, spawn: Spawn, where: str, rows_left: int | None) -> None:
    driver = spawn("r", "--interval", "600", "--die", where)
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL
    assert len(stored(root)) == rows_left or (rows_left is None and len(stored(root)) in (8, 16))
    assert finish_with(spawn)[-1] == "finished"
    assert stored(root) == undisturbed()


@pytest.mark.nightly
@pytest.mark.slow
def test_killed_at_any_time_again_and_again(root: TableRoot, spawn: Spawn) -> None:
    delays = [0.02 * number for number in range(12)]
    for delay in delays:
        driver = spawn("r", "--batch", "2", "--interval", "600")
        assert driver.stdout is not None
        line = driver.stdout.readline()
        time.sleep(delay)
        driver.kill()
        driver.communicate()
        assert line
    said = finish_with(spawn) if not run_state(root, "r").finished else ["finished"]
    assert said[-1] == "finished"
    assert stored(root) == undisturbed()


# -- clips -----------------------------------------------------------------------------------------------------------


def clip_rows(ids: list[str], **columns: object) -> pa.Table:
    rows = [
        {"object_id": i, "uri": f"/in/{i}", "etag": "e1", "indexed_at": datetime.now(UTC), "sop_instance_uid": "1.2"}
        | columns
        for i in ids
    ]
    return pa.Table.from_pylist(rows, arrow_schema("clips"))


def test_clips_get_each_object_version_once_whoever_writes(root: TableRoot) -> None:
    logs = [take(root, "a"), take(root, "b")]
    assert logs[0].append_clips(clip_rows(IDS[:10])) == 10
    assert logs[1].append_clips(clip_rows([*IDS[5:15], IDS[14]])) == 5
    assert logs[0].append_clips(clip_rows(IDS[:20])) == 5, "its own keys are older than the other's commit"
    assert logs[0].append_clips(clip_rows(IDS[:2], etag="e2")) == 2
    assert logs[1].append_clips(clip_rows(IDS[:2], etag=None)) == 2
    keys = root.open("clips").to_pyarrow_table(columns=["object_id", "etag"]).to_pylist()
    assert len(keys) == 24
    assert len({tuple(key.values()) for key in keys}) == 24
    for log in logs:
        log.stop()


def test_clips_written_by_several_processes_at_once_do_not_double(root: TableRoot, tables: Path) -> None:
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from tests.tables.test_run_log import ClipLog, IDS, clip_rows
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
log = ClipLog(TableRoot(Storage({str(tables)!r})))
print(sum(log.append(clip_rows(IDS[i:i + 4])) for i in range(0, 36, 2)))
"""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    written = [int(process.communicate()[0]) for process in processes]
    assert sum(written) == 38
    ids = root.open("clips").to_pyarrow_table(columns=["object_id"]).column(0).to_pylist()
    assert sorted(ids) == IDS[:38]


def test_an_object_that_could_not_be_read_leaves_room_for_its_header(root: TableRoot) -> None:
    clips = ClipLog(root)
    assert clips.append(clip_rows(IDS[:1], reason="read_error", detail="HTTP status 503", sop_instance_uid=None)) == 0
    assert clips.append(clip_rows(IDS[1:2], reason="not_dicom", detail="no preamble", sop_instance_uid=None)) == 1
    assert clips.append(clip_rows(IDS[:1])) == 1
