"""`jobs/score.py` by `ray job submit` on a real cluster: a head with the Jobs API and a token, and a second node process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from angio_ray.phantom import generate, write_broken
from angio_ray.pseudonyms import generate_key
from tests.scoring.conftest import make_bundles, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
HEAD_START_S = 120


@dataclass
class Cluster:
    """A head and a second node on this machine, as processes of their own. Everything is ended by its process id."""

    folder: Path
    key_file: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gcs_port, self.dashboard_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.dashboard_port}"
        home = self.folder / "home"
        home.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ANGIO_RAY_"))}
        self.without_token = kept | {
            "HOME": str(home),
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.env = self.without_token | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start(self) -> None:
        self._start_node(
            "head",
            "--head",
            "--port",
            str(self.gcs_port),
            "--dashboard-host",
            "127.0.0.1",
            "--dashboard-port",
            str(self.dashboard_port),
        )
        self._wait(1)
        self._start_node("second", "--address", f"127.0.0.1:{self.gcs_port}")
        self._wait(2)

    def _start_node(self, name: str, *how: str) -> None:
        ports = {
            option: str(free_port())
            for option in (
                "--dashboard-agent-listen-port",
                "--dashboard-agent-grpc-port",
                "--metrics-export-port",
                "--runtime-env-agent-port",
            )
        }
        command: list[str | Path] = [
            RAY,
            "start",
            *how,
            "--block",
            "--num-cpus",
            "2",
            "--object-store-memory",
            str(80 << 20),
            "--temp-dir",
            self.folder / name,
            "--disable-usage-stats",
            *(w for pair in ports.items() for w in pair),
        ]
        env = self.env | {"ANGIO_RAY_KEY_FILE": str(self.key_file)} if name == "head" else self.env
        with (self.folder / f"{name}.log").open("wb") as log:
            self.nodes.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))

    def _wait(self, nodes: int) -> None:
        deadline = time.monotonic() + HEAD_START_S
        while time.monotonic() < deadline:
            for node in self.nodes:
                assert node.poll() is None, (self.folder / "head.log").read_text()
            with contextlib.suppress(OSError, KeyError, ValueError):
                if len(self.alive_nodes()) >= nodes:
                    return
            time.sleep(0.5)
        raise AssertionError(f"no {nodes} nodes within {HEAD_START_S} s")

    def get(self, path: str) -> Any:
        return self.request(path, headers={"Authorization": f"Bearer {self.token}"})

    def request(self, path: str, **options: Any) -> Any:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, **options), timeout=10) as answer:
            return json.load(answer)

    def alive_nodes(self) -> dict[str, bool]:
        """{node id: whether it is the head}."""
        rows = self.get("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return {row["node_id"]: row["is_head_node"] for row in rows if row["state"] == "ALIVE"}

    def submit(
        self, *arguments: str, env: dict[str, str] | None = None, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- python jobs/score.py ...`, following the log to the job's end."""
        command: list[str | Path] = [
            RAY,
            "job",
            "submit",
            "--address",
            self.url,
            "--working-dir",
            ".",
            *options,
            "--",
            "python",
            "jobs/score.py",
            *arguments,
        ]
        return subprocess.run(command, cwd=ROOT, env=env or self.env, capture_output=True, text=True, timeout=300)

    def stop(self) -> None:
        """The nodes, whatever they started, and whatever names this cluster's folder."""
        started = []
        for node in self.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                started += psutil.Process(node.pid).children(recursive=True)
        for node in reversed(self.nodes):
            node.send_signal(signal.SIGTERM)
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(5)
        ours = [psutil.Process(node.pid) for node in self.nodes if node.poll() is None]
        for process in (*started, *ours, *self.named()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([*started, *ours], timeout=20)

    def named(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.folder) in word for word in process.cmdline()):
                    found.append(process)
        return found


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    key_file = tmp_path_factory.mktemp("key") / "pseudonym.key"
    generate_key(key_file)
    folder = Path(tempfile.mkdtemp(prefix="ar-", dir="/tmp"))  # short: the path of a socket may have 107 characters
    made = Cluster(folder, key_file)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        left = made.named()
        wrote_token = list((folder / "home").rglob("auth_token"))
        shutil.rmtree(folder, ignore_errors=True)
    assert not left
    assert not wrote_token


CLIPS, COPIES = 12, 13
"""Decoded, all copies are more than the object stores hold: both pools must find room beside one another, on two nodes."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with 13 copies of 12 clips and the broken objects, and {name of broken object: its reason}."""
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, patients=3, clips=(4, 4), seed=5, size=96, frames=(32, 40), workers=1)
    for path in (*folder.glob("*.parquet"), *folder.glob("*.json"), *folder.rglob("*.truth.npz")):
        path.unlink()  # the clips alone
    for clip in sorted(folder.rglob("*.dcm")):
        for copy in range(1, COPIES):
            os.link(clip, clip.with_name(f"{clip.stem}_copy_{copy}.dcm"))
    return folder, write_broken(folder / "broken")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundles(tmp_path_factory.mktemp("bundles"), threshold=0.5)


@dataclass
class Job:
    submitted: subprocess.CompletedProcess[str]
    tables: Path
    pool_nodes: Counter[str]
    """Actors of the two pools by the node that they ran on."""


@pytest.fixture(scope="module")
def job(
    cluster: Cluster, clips: tuple[Path, dict[str, str]], bundles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Job:
    tables = tmp_path_factory.mktemp("job") / "tables"
    submitted = cluster.submit(
        str(clips[0]),
        "--tables",
        str(tables),
        "--run",
        "r",
        "--models",
        "quality",
        "--bundles",
        str(bundles),
        "--gate",
        "off",
    )
    actors = cluster.get("/api/v0/actors?detail=1&limit=1000")["data"]["result"]["result"]
    nodes = Counter(actor["node_id"] for actor in actors if actor["class_name"].startswith("MapWorker"))
    return Job(submitted, tables, nodes)


def test_job_ends_well_though_clips_were_rejected_and_its_log_is_followed(
    job: Job, clips: tuple[Path, dict[str, str]]
) -> None:
    objects = CLIPS * COPIES + len(clips[1])
    assert job.submitted.returncode == 0, job.submitted.stdout[-4000:] + job.submitted.stderr[-2000:]
    assert f"{objects} of {objects} clips (100 %)" in job.submitted.stdout
    assert re.search(rf"run r: .*\b{CLIPS * COPIES} scored", job.submitted.stdout)


def test_job_writes_a_row_per_object(job: Job, clips: tuple[Path, dict[str, str]]) -> None:
    rows = rows_of(job.tables)
    assert len({row["object_id"] for row in rows}) == len(rows) == CLIPS * COPIES + len(clips[1])
    assert Counter(row["status"] for row in rows)["scored"] == CLIPS * COPIES
    assert Counter(row["reason"] for row in rows if row["reason"]) == Counter(clips[1].values())


def test_copies_of_a_clip_have_one_score_wherever_it_was_decoded(job: Job) -> None:
    scores = defaultdict(list)
    for row in rows_of(job.tables):
        if row["status"] == "scored":
            scores[row["clip_id"]].append(row["quality_probability"])
    assert [len(copies) for copies in scores.values()] == [COPIES] * CLIPS
    assert max(max(copies) - min(copies) for copies in scores.values()) < 1e-3


def test_slots_of_both_nodes_were_used(job: Job, cluster: Cluster) -> None:
    nodes = cluster.alive_nodes()
    assert sorted(nodes.values()) == [False, True]
    assert nodes.keys() == job.pool_nodes.keys(), job.pool_nodes


@pytest.mark.usefixtures("job")
def test_both_nodes_run_the_submitted_code_with_its_schemas_and_without_the_environment(cluster: Cluster) -> None:
    for node in ("head", "second"):
        packages = cluster.folder / node / "session_latest" / "runtime_resources" / "working_dir_files"
        (package,) = [p for p in packages.iterdir() if p.is_dir()]
        schema = package / "angio_ray" / "schemas" / "scores.json"  # a symlink in the repository
        assert schema.read_bytes() == (ROOT / "schemas" / "scores.json").read_bytes()
        assert not (package / ".git").exists()
        assert not (package / ".venv").exists()


def test_no_log_holds_the_key_or_the_token(job: Job, cluster: Cluster) -> None:
    secret = {cluster.token, cluster.key_file.read_text().strip()}
    texts = {
        path: path.read_text(errors="replace")
        for path in cluster.folder.rglob("*.*")
        if path.suffix in (".log", ".out", ".err") and path.is_file()
    }
    assert len(texts) > 10
    texts[Path("job")] = job.submitted.stdout + job.submitted.stderr
    assert not [path for path, text in texts.items() if any(word in text for word in secret)]


@pytest.mark.usefixtures("job")
def test_without_a_key_a_job_stops_with_one_line_and_makes_neither_key_nor_table(
    cluster: Cluster, clips: tuple[Path, dict[str, str]], bundles: Path, tmp_path: Path
) -> None:
    submitted = cluster.submit(
        str(clips[0]),
        "--tables",
        str(tmp_path / "tables"),
        "--run",
        "r",
        "--bundles",
        str(bundles),
        options=("--runtime-env-json", '{"env_vars": {"ANGIO_RAY_KEY_FILE": ""}}'),
    )
    assert submitted.returncode == 1
    assert "angio-ray: no pseudonym key" in submitted.stdout
    assert "exit code 2" in submitted.stdout
    assert "Traceback" not in submitted.stdout
    assert not list(tmp_path.rglob("*.key"))
    assert not (tmp_path / "tables" / "scores").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no authentication token was found"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, "invalid or incorrect"),
    ],
    ids=["no token", "wrong token"],
)
def test_without_the_token_no_job_starts(
    changes: dict[str, str],
    message: str,
    cluster: Cluster,
    clips: tuple[Path, dict[str, str]],
    bundles: Path,
    tmp_path: Path,
) -> None:
    before = cluster.get("/api/jobs/")
    submitted = cluster.submit(
        str(clips[0]),
        "--tables",
        str(tmp_path / "tables"),
        "--run",
        "r",
        "--bundles",
        str(bundles),
        env=cluster.without_token | changes,
    )
    assert submitted.returncode == 1
    assert "AuthenticationError" in submitted.stderr
    assert message in submitted.stderr
    assert cluster.get("/api/jobs/") == before
    assert not (tmp_path / "tables").exists()


def test_without_the_token_the_jobs_api_answers_401(cluster: Cluster) -> None:
    body = json.dumps({"entrypoint": "true"}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        cluster.request("/api/jobs/", data=body, headers={"Content-Type": "application/json"})
    assert refused.value.code == 401


def test_without_the_token_no_driver_joins(cluster: Cluster) -> None:
    code = f"import ray; ray.init('127.0.0.1:{cluster.gcs_port}'); print(ray.get(ray.remote(lambda: 'ran').remote()))"
    env = cluster.without_token | {"RAY_AUTH_MODE": "disabled"}
    driver = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert driver.returncode != 0
    assert "ran" not in driver.stdout.split()
    assert re.search("[Aa]uthenticat|UNAUTHENTICATED|Unauthenticated", driver.stderr)
