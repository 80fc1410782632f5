"""Runs from bucket to bucket over HTTP, by a store that is slow, loses replies and objects, or revokes the credentials.

The command line as a subprocess, moto's server as the store, and a proxy process in front of it for the faults.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from angio_ray.pseudonyms import load_key
from angio_ray.scoring.run import score
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from angio_ray.tables.run_log import run_state
from angio_ray.tables.sql import query
from tests.s3 import S3Proxy, S3Server
from tests.scoring.conftest import config_for, rows_of
from tests.scoring.processes import KEY, Run, differences, finished, running, wait_gone, workers_of

pytest_plugins = ("tests.s3",)
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
    pytest.mark.timeout(1800),
]

TOTAL = 20
LATE = [f"late/clip_{number}.dcm" for number in range(3)]
"""Listed last, so in the last block: a test can hold these back and act meanwhile."""


@pytest.fixture(scope="module")
def key_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "pseudonym.key"
    path.write_text(KEY)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def local_rows(clips, bundles, key_file, tmp_path_factory, ray_here) -> dict[str, dict]:
    """File name -> row, of an undisturbed run over the same files in a folder."""
    folder = tmp_path_factory.mktemp("local")
    source = folder / "clips"
    source.mkdir()
    for number, clip in enumerate(sorted(clips[0].glob("patient_*/*.dcm"))):
        (source / f"clip_{number}.dcm").write_bytes(clip.read_bytes())
    (source / "notes.dcm").write_text("no clip at all\n" * 20)
    score(config_for(source, folder / "tables", bundles, key_file=key_file))
    key = load_key(key_file)
    names = {key.object_id(str(path.resolve())): path for path in source.iterdir()}
    return {str(names[row["object_id"]]): row for row in rows_of(folder / "tables")}


@pytest.fixture(scope="module")
def bucket(s3_server, local_rows) -> str:
    """A bucket with 20 objects below clips/: 8 clips as a/, the same as b/, three as late/, and a text."""
    name = s3_server.bucket()
    client = s3_server.client()
    for path in map(Path, local_rows):
        keys = [f"{folder}/{path.name}" for folder in ("a", "b")] if path.name.startswith("clip") else ["notes.dcm"]
        for key in [*keys, *(late for late in LATE if late.endswith(path.name))]:
            client.put_object(Bucket=name, Key=f"clips/{key}", Body=path.read_bytes())
    return name


@pytest.fixture
def expected(bucket, s3_server, local_rows, key_file) -> list[dict]:
    """The rows of an undisturbed run: those of the same files in a folder, under their names in the bucket."""
    by_name = {Path(path).name: row for path, row in local_rows.items()}
    key = load_key(key_file)
    rows = []
    for entry in s3_server.client().list_objects_v2(Bucket=bucket, Prefix="clips/")["Contents"]:
        row = by_name[entry["Key"].rsplit("/", 1)[1]]
        rows.append({**row, "object_id": key.object_id(f"s3://{bucket}/{entry['Key']}")})
    assert len(rows) == TOTAL
    return sorted(rows, key=lambda row: row["object_id"])


class Place:
    """One test's tables in the bucket, seen past the proxy."""

    def __init__(self, server: S3Server, bucket: str, name: str) -> None:
        self.source = f"s3://{bucket}/clips"
        self.tables = f"s3://{bucket}/{name}"
        self.root = TableRoot(Storage(self.tables, server.options))

    def rows(self) -> list[dict]:
        if not self.root.exists("scores"):
            return []
        return sorted(self.root.open("scores").to_pyarrow_table().to_pylist(), key=lambda row: row["object_id"])

    def events(self) -> list[str]:
        return [event["event"] for event in run_state(self.root, "r").events]


@pytest.fixture
def place(s3_server, bucket, request) -> Place:
    return Place(s3_server, bucket, request.node.name)


def object_id(place: Place, name: str, key_file: Path) -> str:
    return load_key(key_file).object_id(f"{place.source}/{name}")


def false_rows(rows: list[dict], expected: list[dict]) -> list[str]:
    """What differs; etags are the store's own, so that they are there is all that can be expected."""
    assert all(row["etag"] for row in rows)
    return differences(rows, expected, but={"etag"})


def complaint(run: Run) -> str:
    """The one line by which a run says why it ended; nothing but log lines before it."""
    assert "Traceback" not in run.text, run.text
    assert "Connecting" not in run.text, "a thread of the run joined another Ray cluster"
    line = run.text.splitlines()[-1]
    assert line.startswith("angio-ray: "), run.text
    return line


@pytest.mark.slow
def test_a_run_from_bucket_to_bucket_is_killed_and_resumed(place, expected, bundles, s3_server, key_file, tmp_path):
    options = {"env": s3_server.env, "key_file": key_file}
    with running(tmp_path, place.source, place.tables, bundles, **options) as run:
        run.until(place.rows, "a commit with rows", every_s=0.5)
        run.kill()
        before = place.rows()
        wait_gone(workers_of(run.tree), 60)
    assert 0 < len(before) < TOTAL
    again = finished(tmp_path, place.source, place.tables, bundles, **options)
    assert again.process.returncode == 3, again.text
    assert again.written == TOTAL - len(before)
    assert not false_rows(place.rows(), expected)
    assert query(place.root, "SELECT count(*) AS n FROM latest_scores").to_pylist() == [{"n": 9}]


def test_no_key_and_no_bucket_are_said_before_anything_starts(place, bundles, bucket, s3_server, key_file, tmp_path):
    keyless = finished(tmp_path, place.source, place.tables, bundles, env=s3_server.env, key_file=None)
    assert keyless.process.returncode == 2
    assert "ANGIO_RAY_KEY_FILE" in complaint(keyless)
    nowhere = finished(tmp_path, f"s3://no-{bucket}/clips", place.tables, bundles, env=s3_server.env, key_file=key_file)
    assert nowhere.process.returncode == 2
    assert "there is no such bucket" in complaint(nowhere)
    assert not place.root.exists("scores")


@pytest.mark.nightly
@pytest.mark.slow
def test_a_store_with_moods(place, expected, bundles, s3_proxy: S3Proxy, key_file, tmp_path):
    """Bursts of 503, slow answers, commits whose reply is lost: nothing is missing, nothing is there twice.

    The one object that is gone for good is a read_error, and its row is replaced when it is back.
    """
    options = {"env": s3_proxy.env, "key_file": key_file}
    s3_proxy.lose(f"/clips/{LATE[0]}")
    s3_proxy.unavailable(times=12, match="/clips/a/")
    s3_proxy.delay(4, times=4, match="/clips/b/")
    s3_proxy.drop_reply(times=2, match=r"/scores/_delta_log/0+[2-9]\.json")
    s3_proxy.spoil_reply(times=2, match=r"/clips/_delta_log/0+[1-9]\.json")
    s3_proxy.unavailable(times=3, match=r"/scores/.*\.parquet")
    run = finished(tmp_path, place.source, place.tables, bundles, **options)
    done = [(entry["fault"], entry["status"]) for entry in s3_proxy.log()]
    assert done.count(("drop_reply", 200)) == 2
    assert ("delay", 206) in done
    assert done.count(("answer", None)) >= 15
    assert run.process.returncode == 3, run.text
    assert run.written == TOTAL
    lost = object_id(place, LATE[0], key_file)
    rows = place.rows()
    gone = [row for row in rows if row["object_id"] == lost]
    assert [(row["reason"], row["detail"]) for row in gone] == [("read_error", "the object is gone")]
    assert not false_rows(
        [row for row in rows if row["object_id"] != lost], [row for row in expected if row["object_id"] != lost]
    )
    s3_proxy.clear()
    retried = finished(tmp_path, place.source, place.tables, bundles, retry="read_error", **options)
    assert retried.process.returncode == 3, retried.text
    assert retried.written == 1
    assert not false_rows(place.rows(), expected)


@pytest.mark.nightly
@pytest.mark.slow
def test_credentials_revoked_in_mid_run(place, expected, bundles, s3_proxy: S3Proxy, key_file, tmp_path):
    options = {"env": s3_proxy.env, "key_file": key_file}
    known = {row["object_id"]: row for row in expected}

    s3_proxy.delay(20, match="/clips/late/")
    with running(tmp_path, place.source, place.tables, bundles, **options) as run:
        run.until(place.rows, "a commit with rows", every_s=0.5)
        s3_proxy.clear()
        s3_proxy.deny()
        assert run.end() == 1, run.text
        wait_gone(workers_of(run.tree), 60)
    assert complaint(run).startswith("angio-ray: not finished: ")
    before = place.rows()
    assert 0 < len(before) < TOTAL
    assert not false_rows(before, [known[row["object_id"]] for row in before])

    # again, and now only what the end of the run reads is refused
    s3_proxy.clear()
    s3_proxy.delay(20, match="/clips/late/")
    with running(tmp_path, place.source, place.tables, bundles, **options) as run:
        run.until(lambda: len(place.rows()) > len(before), "a commit with rows", every_s=0.5)
        s3_proxy.deny(match="/manifests/")
        assert run.end() == 1, run.text
    assert complaint(run).startswith("angio-ray: not finished: ")
    assert not false_rows(place.rows(), expected)
    assert not run_state(place.root, "r").finished

    s3_proxy.clear()
    again = finished(tmp_path, place.source, place.tables, bundles, **options)
    assert again.process.returncode == 3, again.text
    assert again.written == 0
    assert not false_rows(place.rows(), expected)
    assert place.events()[-1] == "finished"


@pytest.mark.slow
def test_sigterm_commits_what_is_ready(place, expected, bundles, s3_proxy: S3Proxy, key_file, tmp_path):
    """As Kubernetes and `ray job stop` end a driver. The late objects keep the run from its end until then."""
    options = {"env": s3_proxy.env, "key_file": key_file, "commit_rows": 1000, "commit_interval_s": 600.0}
    s3_proxy.delay(300, match="/clips/late/")
    with running(tmp_path, place.source, place.tables, bundles, **options) as run:
        run.until(lambda: f"16 of {TOTAL} clips" in run.text, "16 clips that are ready")
        assert place.rows() == []
        run.look()
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 143, run.text
        wait_gone(workers_of(run.tree), 60)
    assert complaint(run).startswith("angio-ray: stopped")
    assert len(place.rows()) == 16
    assert place.events() == ["claimed", "stopped"]
    s3_proxy.clear()
    again = finished(tmp_path, place.source, place.tables, bundles, **options)
    assert again.process.returncode == 3, again.text
    assert again.written == TOTAL - 16
    assert not false_rows(place.rows(), expected)
