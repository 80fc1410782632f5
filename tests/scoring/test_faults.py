"""Runs whose processes die, hang or meet one another: whatever happens, the table is that of an undisturbed run.

Real processes, killed by real signals: the command line as a subprocess with a Ray cluster of its own.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from deltalake import DeltaTable

from angio_ray.scoring.run import score
from angio_ray.storage import Storage
from angio_ray.tables.maintenance import compact
from angio_ray.tables.root import TableRoot
from angio_ray.tables.run_log import run_state
from tests.dicom.objects import encode_jpeg_lossless, moving_frames, xa_compressed
from tests.scoring.conftest import config_for, rows_of
from tests.scoring.processes import (
    DECODER,
    KEY,
    SANDBOX,
    SCORER,
    Run,
    differences,
    finished,
    resume,
    running,
    title,
    wait_gone,
    workers_of,
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
    pytest.mark.timeout(1800),
]

BOMB = "b/bomb.dcm"
PATIENT_S = 900
"""Time limit of decoding where a test stops the child for as long as another process takes."""


@pytest.fixture(scope="module")
def source(clips, tmp_path_factory) -> Path:
    """27 objects: 8 good clips under three names each, a bomb and a text among them, a truncated one at the end."""
    folder = tmp_path_factory.mktemp("fault") / "clips"
    good = sorted(clips[0].glob("patient_*/*.dcm"))
    assert len(good) == 8
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        for number, clip in enumerate(good):
            os.link(clip, folder / name / f"clip_{number}.dcm")
    (folder / BOMB).write_bytes(bomb())
    (folder / "b" / "clip_3_notes.dcm").write_text("no clip at all\n" * 20)
    (folder / "c" / "cut.dcm").write_bytes((clips[0] / "broken" / "upload_cut.dcm").read_bytes())
    return folder


TOTAL = 27


def bomb() -> bytes:
    """A 64 x 64 DICOM whose JPEG frames say that they are 65,500 x 65,500."""
    frames = moving_frames(40, 64, 64)
    streams = []
    for frame in frames:
        stream = encode_jpeg_lossless(frame)
        size = stream.index(b"\xff\xc3") + 5
        streams.append(stream[:size] + struct.pack(">HH", 65500, 65500) + stream[size + 4 :])
    return xa_compressed(streams, frames)


@pytest.fixture(scope="module")
def undisturbed(source, bundles, tmp_path_factory, ray_here) -> list[dict]:
    """The rows of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "key").write_text(KEY)
    before = actors_here()
    summary = score(config_for(source, folder / "tables", bundles, key_file=folder / "key"))
    assert summary.written == TOTAL
    wait_gone(actors_here() - before, 60)  # the cluster of this process stays; what the run had in it does not
    return rows_of(folder / "tables")


def actors_here() -> set[psutil.Process]:
    """Actors of runs in the Ray cluster of this process."""
    below = psutil.Process().children(recursive=True)
    return {process for process in below if title(process).startswith((DECODER, SCORER, "ray::_Ledger"))}


@pytest.fixture
def tables(tmp_path) -> Path:
    return tmp_path / "tables"


def ids(tables: Path, run: str = "r") -> list[str]:
    """object_ids of the run's rows; none while there is no table."""
    if not (tables / "scores" / "_delta_log" / f"{0:020}.json").exists():
        return []
    return [row["object_id"] for row in rows_of(tables, run)]


def committed(tables: Path) -> bool:
    """Whether a commit with rows is in the log of `scores`, told without opening the table."""
    return any('"add"' in entry.read_text() for entry in (tables / "scores" / "_delta_log").glob("*.json"))


def uris(tables: Path) -> dict[str, str]:
    """URI -> object_id."""
    found = DeltaTable(str(tables / "clips")).to_pyarrow_table(columns=["uri", "object_id"]).to_pylist()
    assert len(found) == len({row["object_id"] for row in found}), "an object twice in clips"
    return {row["uri"]: row["object_id"] for row in found}


def assert_complete(tables: Path, undisturbed: list[dict], run: str = "r") -> None:
    """One row per object, each as in the undisturbed run, and one row per object in `clips`."""
    assert not differences(rows_of(tables, run), undisturbed)
    assert len(uris(tables)) == TOTAL
    assert run_state(TableRoot(Storage(str(tables))), run).finished


def test_a_bomb_costs_its_own_row_only(source, bundles, undisturbed, tmp_path):
    assert {row["status"] for row in undisturbed} == {"scored", "rejected"}
    rejected = [(row["reason"], row["size_bytes"]) for row in undisturbed if row["status"] == "rejected"]
    sizes = {name: (source / name).stat().st_size for name in (BOMB, "b/clip_3_notes.dcm", "c/cut.dcm")}
    assert sorted(rejected) == [
        ("geometry_mismatch", sizes[BOMB]),
        ("not_dicom", sizes["b/clip_3_notes.dcm"]),
        ("truncated", sizes["c/cut.dcm"]),
    ]


@pytest.mark.slow  # `test_s3_run` kills a driver so among the fast ones
def test_a_driver_killed_right_after_a_commit(source, bundles, tables, undisturbed, tmp_path):
    with running(tmp_path, source, tables, bundles) as run:
        run.until(lambda: committed(tables), "a commit with rows")
        run.kill()
        before = ids(tables)
        wait_gone(workers_of(run.tree), 60)
    assert 0 < len(before) < TOTAL
    assert any(SCORER in title for title in run.titles), "the check of what is left saw nothing to begin with"
    again = finished(tmp_path, source, tables, bundles)
    assert again.process.returncode == 3, again.text
    assert again.written == TOTAL - len(before)
    assert_complete(tables, undisturbed)
    wait_gone(workers_of(run.tree | again.tree), 60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        pytest.param("manifests/_delta_log", f"{1:020}.json", id="before the first commit"),
        pytest.param("clips/_delta_log", f"{1:020}.json", id="between the commits of clips and scores"),
        pytest.param("scores", "*.parquet", id="during a commit"),
    ],
)
def test_a_driver_killed_at_a_bad_moment(source, bundles, tables, undisturbed, tmp_path, folder, pattern):
    with running(tmp_path, source, tables, bundles) as run:
        place = tables / folder
        run.until(lambda: next(place.glob(pattern), None), f"{folder}/{pattern}")
        run.kill()
        before = ids(tables)
        wait_gone(workers_of(run.tree), 60)
    assert len(before) < TOTAL
    again = finished(tmp_path, source, tables, bundles)
    assert again.process.returncode == 3, again.text
    assert again.written == TOTAL - len(before)
    assert_complete(tables, undisturbed)
    wait_gone(run.tree | again.tree, 180)


@pytest.mark.slow
def test_ctrl_c_commits_what_is_ready_and_leaves_nothing_behind(source, bundles, tables, undisturbed, tmp_path):
    """A terminal sends SIGINT to the whole group of processes, Ray's among them."""
    with running(tmp_path, source, tables, bundles) as run:
        run.until(lambda: committed(tables), "a commit with rows")
        run.look()
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 130, run.text
        wait_gone(workers_of(run.tree), 60)
        assert "Traceback" not in run.text
        assert "Connecting" not in run.text, "a thread of the run joined another Ray cluster"
        assert run.text.splitlines()[-1].startswith("angio-ray: stopped")
    before = ids(tables)
    state = run_state(TableRoot(Storage(str(tables))), "r")
    assert [event["event"] for event in state.events] == ["claimed", "stopped"]
    again = finished(tmp_path, source, tables, bundles)
    assert again.written == TOTAL - len(before)
    assert_complete(tables, undisturbed)


@pytest.mark.slow
def test_a_decoding_child_that_crashes_is_killed_or_hangs(source, bundles, tables, undisturbed, tmp_path):
    """A crash costs the clip in hand; a kill and a time-out are tried again; no neighbour is lost."""
    with running(tmp_path, source, tables, bundles, decode_timeout_s=15) as run:
        worker = run.worker(DECODER)
        crashed = run.decoding_child(worker)
        resume(crashed, signal.SIGSEGV)
        killed = run.decoding_child(worker, but=[crashed])
        resume(killed, signal.SIGKILL)
        hanging = run.decoding_child(worker, but=[crashed, killed])
        run.until(lambda: not hanging.is_running(), "the end of a child that hangs")
        assert worker.is_running()
        assert run.end() == 3, run.text
        wait_gone(workers_of(run.tree), 60)
    rows = rows_of(tables)
    lost = [row for row in rows if row["reason"] == "decoder_crashed"]
    assert [row["detail"] for row in lost] == ["the decoding process was ended by signal 11"]
    assert sorted(row["object_id"] for row in rows) == sorted(row["object_id"] for row in undisturbed)
    assert max(row["attempts"] for row in rows) == 2
    others = [[row for row in table if row["object_id"] != lost[0]["object_id"]] for table in (rows, undisturbed)]
    assert not differences(*others)


@pytest.mark.slow
def test_a_decoding_worker_and_a_scoring_actor_are_killed(source, bundles, tables, undisturbed, tmp_path):
    with running(tmp_path, source, tables, bundles) as run:
        decoder = run.worker(DECODER)
        child = run.decoding_child(decoder)
        decoder.kill()
        run.until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child's end")
        run.worker(DECODER, but=decoder)
        scorer = run.worker(SCORER)
        run.until(lambda: committed(tables), "a commit with rows")
        scorer.kill()
        run.worker(SCORER, but=scorer)
        assert len(ids(tables)) < TOTAL
        assert run.end() == 3, run.text
        wait_gone(workers_of(run.tree), 60)
    assert_complete(tables, undisturbed)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_second_driver_is_refused(source, bundles, tables, undisturbed, tmp_path):
    with running(tmp_path, source, tables, bundles, decode_timeout_s=PATIENT_S) as first:
        child = first.decoding_child(first.worker(DECODER))  # holds the run back; its signs of life go on
        second = finished(tmp_path, source, tables, bundles)
        assert second.process.returncode == 4, second.text
        assert "another driver holds run r" in second.text.splitlines()[-1]
        assert "Traceback" not in second.text
        resume(child)
        assert first.end() == 3, first.text
    assert first.written == TOTAL
    assert_complete(tables, undisturbed)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_driver_that_was_asleep_while_another_finished_writes_nothing(source, bundles, tables, undisturbed, tmp_path):
    with running(tmp_path, source, tables, bundles, decode_timeout_s=PATIENT_S) as asleep:
        child = asleep.decoding_child(asleep.worker(DECODER))
        asleep.process.send_signal(signal.SIGSTOP)
        before = ids(tables)
        second = finished(tmp_path, source, tables, bundles)
        assert second.process.returncode == 3, second.text
        assert second.written == TOTAL - len(before)
        resume(child)
        asleep.process.send_signal(signal.SIGCONT)
        assert asleep.end() == 4, asleep.text
        assert "Traceback" not in asleep.text
    assert_complete(tables, undisturbed)


@pytest.mark.slow
def test_compactions_beside_one_another_and_beside_a_run(source, bundles, tables, undisturbed, tmp_path):
    assert finished(tmp_path, source, tables, bundles, run="one").process.returncode == 3
    root = TableRoot(Storage(str(tables)))
    files = len(root.open("scores").file_uris())
    assert files > 2
    with running(tmp_path, source, tables, bundles, run="two", decode_timeout_s=PATIENT_S) as run:
        child = run.decoding_child(run.worker(DECODER))
        command = [sys.executable, "-m", "angio_ray.cli", "tables", "compact", "--tables", str(tables)]
        at_once = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
        try:
            assert [process.wait(240) for process in at_once] == [0, 0]
        finally:
            for process in at_once:
                process.kill()
        assert len(root.open("scores").file_uris()) < files
        assert not differences(rows_of(tables, "one"), undisturbed)
        resume(child)
        run.until(lambda: compact(root) and run.process.poll(), "its end", may_end=True, every_s=0.3)
        assert run.end() == 3, run.text
    compact(root)
    assert_complete(tables, undisturbed, "one")
    assert_complete(tables, undisturbed, "two")


@contextmanager
def cluster(folder: Path, *, cpus: int, gpus: int) -> Iterator[tuple[str, int]]:
    """Address of a Ray cluster in a process of its own, and that process's pid."""
    program = (
        "import ray, sys; c = ray.init(address='local', include_dashboard=False, log_to_driver=False,"
        f"num_cpus={cpus}, num_gpus={gpus}, object_store_memory=400 << 20);"
        "print(c.address_info['gcs_address'], flush=True); sys.stdin.read()"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_"))}
    with (folder / "cluster.log").open("wb") as log:
        head = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        )
    assert head.stdout is not None
    assert head.stdin is not None
    tree: list[psutil.Process] = []
    try:
        address = head.stdout.readline().strip()
        assert address, (folder / "cluster.log").read_text()
        yield address, head.pid
    finally:
        tree = psutil.Process(head.pid).children(recursive=True)
        head.stdin.close()
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        head.stdout.close()
        for process in tree:
            if process.is_running():
                process.kill()


@pytest.mark.nightly
@pytest.mark.slow
def test_logical_gpus_whole_and_shared_on_a_cluster_that_outlives_its_drivers(
    source, bundles, tables, undisturbed, tmp_path
):
    """Ray is told of two GPUs; the models fall back to the processor where torch sees none."""
    with cluster(tmp_path, cpus=4, gpus=2) as (address, head):

        def options(run: str, share: float) -> dict:
            return {
                "run": run, "gpus_per_scorer": share, "scorers": None, "decoders": None,
                "env": {"RAY_ADDRESS": address}, "below": head,
            }  # fmt: skip

        def scorers(run: Run) -> int:
            return sum(title(process).startswith(SCORER) for process in run.look())

        with running(tmp_path, source, tables, bundles, **options("whole", 1.0)) as whole:
            whole.until(lambda: scorers(whole) == 2, "two scoring actors of a GPU each", every_s=0.5)
            assert whole.end() == 3, whole.text
        assert_complete(tables, undisturbed, "whole")

        with running(tmp_path, source, tables, bundles, **options("half", 0.5)) as killed:
            killed.until(lambda: scorers(killed) == 4, "four scoring actors of half a GPU each", every_s=0.5)
            killed.until(lambda: ids(tables, "half"), "a commit with rows", every_s=0.5)
            # by title, so while they live: a cluster that goes on has workers of its own that stay
            mine = {p for p in killed.tree if any(name in title(p) for name in (DECODER, SCORER, SANDBOX))}
            assert mine
            killed.kill()
            before = ids(tables, "half")
            wait_gone(mine, 60)
        rerun = finished(tmp_path, source, tables, bundles, **options("half", 0.5))
        assert rerun.process.returncode == 3, rerun.text
        assert rerun.written == TOTAL - len(before)
        assert_complete(tables, undisturbed, "half")
        assert psutil.pid_exists(head)
