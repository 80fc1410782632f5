"""The command line: what it offers, and that what a user can mend is one clear line and the right exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import KW_ONLY, fields
from pathlib import Path

import pytest

from angio_ray.cli import app, job, main, tables_app
from angio_ray.clip import Reason
from angio_ray.models.bundles import SHIPPED, load_bundle
from angio_ray.scoring.config import IndexConfig, ScoreConfig
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from tests.scoring.conftest import make_bundles

COMMANDS = [(name,) for name in app if not name.startswith("-") and name != "tables"]
COMMANDS += [("tables", name) for name in tables_app if not name.startswith("-")]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of its own, a wide screen, and no settings of whoever runs the tests."""
    for name in ("RAY_ADDRESS", "ANGIO_RAY_KEY_FILE", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundles(tmp_path_factory.mktemp("bundles"), threshold=0.5)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    made = tmp_path / "tables"
    TableRoot(Storage(made)).ensure("0123456789abcdef")
    return made


def complaint(argv: Sequence[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """What a command says when it ends with `code`: one line on standard error, nothing on standard output."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("angio-ray: ")
    return lines[0]


def made(folder: Path) -> list[str]:
    """Tables, clips and keys that a command left behind on its way to a complaint (an empty folder is none)."""
    return [str(path.relative_to(folder)) for path in (folder / "new.key", *(folder / "new").rglob("*")) if path.exists()]


def help_of(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*command, "--help"]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_the_commands_are_those_of_the_contract() -> None:
    assert {" ".join(command) for command in COMMANDS} >= {
        "score", "index", "sql", "phantom", "phantom-ct", "demo", "models", "doctor", "compare",
        "tables compact", "tables vacuum", "tables upgrade",
    }  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_each_of_its_parameters(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Usage: angio-ray {' '.join(command)}")
    assert len(lines[2].split()) > 3
    options = [line.strip("│ *") for line in lines if line.strip("│ *").startswith("--") or " --" in line[:40]]
    parameters = [line for line in options if not line.startswith(("--help", "--version"))]
    assert parameters
    for line in parameters:
        words = [word for word in line.split() if not word.startswith(("-", "[")) and not word.isupper()]
        assert len(words) > 1, f"no help: {line}"


@pytest.mark.parametrize(("command", "config"), [("score", ScoreConfig), ("index", IndexConfig)])
def test_help_has_every_field_of_the_config_with_its_meaning(
    command: str, config: type, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of([command], capsys).split("Parameters", 1)[1]
    names = [field.name for field in fields(config) if field.type is not KW_ONLY]
    assert len(names) > 4
    for name in names:
        option = f"--{name.replace('_', '-')} "
        assert option in text, option
        after = text.split(option, 1)[1].split(" --", 1)[0]
        assert len(after.split()) > 4, f"{option}: {after}"


def test_version_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    from angio_ray import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert main([]) == 0
    assert "Usage: angio-ray COMMAND" in capsys.readouterr().out


SCORE = ["score", "clips", "--tables", "new", "--run", "r"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nonsense"], 'Unknown command "nonsense"'),
        (["tables", "nonsense"], 'Unknown command "nonsense"'),
        (["score"], "--source requires an argument"),
        (["score", "clips"], "--tables requires an argument"),
        (["score", "clips", "--tables", "new"], "--run requires an argument"),
        ([*SCORE, "--nope", "1"], "Unknown option: --nope"),
        ([*SCORE, "more"], "more"),
        ([*SCORE, "--batch-size", "many"], 'unable to convert "many" into int'),
        ([*SCORE, "--batch-size", "0"], "--batch-size 0: at least 1"),
        ([*SCORE, "--gate", "maybe"], 'Invalid value "maybe" for --gate'),
        ([*SCORE, "--assume-fps", "0"], "--assume-fps 0: not between 1 and 240"),
        ([*SCORE, "--gpus-per-scorer", "1.5"], "--gpus-per-scorer 1.5"),
        ([*SCORE, "--models", ""], "--models names no task"),
        ([*SCORE, "--models", "quality,nonsense"], "--models nonsense: no such task; there is quality"),
        ([*SCORE, "--retry", "read_error,nonsense"], "--retry nonsense: no such reason; there are not_dicom, "),
        ([*SCORE, "--bundles", "absent"], "no bundle in absent/quality: bundle.json cannot be read"),
        (["score", "clips", "--tables", "new", "--run", "a/b"], "--run 'a/b': use letters"),
        (["score", "absent", "--tables", "new", "--run", "r"], "absent: No such file or directory"),
        (["score", "gs://bucket/x", "--tables", "new", "--run", "r"], "gs:// is not supported"),
        (["index", "absent", "--tables", "new"], "absent: No such file or directory"),
        (["sql", "SELECT 1", "--tables", "absent"], "there is no table scores"),
        (["sql", "SELEC 1", "--tables", "tables"], "Parser Error"),
        (["sql", "SELECT nothing FROM scores", "--tables", "tables"], "Binder Error"),
        (["sql", "COPY scores TO 'x.csv'", "--tables", "tables"], "Permission Error"),
        (["sql", "SELECT 1", "--tables", "tables", "--format", "xml"], 'Invalid value "xml" for --format'),
        (["sql", "SELECT 1", "--tables", "tables", "--out", "absent/x"], "absent/x: No such file or directory"),
        (["compare", "a", "b", "--tables", "tables"], "there is no run a in these tables; there is none"),
        (["compare", "a", "b", "--tables", "absent"], "there is no table runs"),
        (["compare", "a", "b", "--tables", "tables", "--task", "x"], "no task 'x' to compare"),
        (["models", "--nets", "nonsense"], "unknown net nonsense; there is r18_2d"),
        (["phantom", "new", "--patients", "0"], "patients must be at least 1"),
        (["phantom", "new", "--frames", "9", "3"], "frames must be (fewest, most)"),
        (["phantom", "new", "--frames", "9-3"], "frames must be (fewest, most)"),
        (["phantom", "new", "--frames", "3"], "frames must be (fewest, most)"),
        (["phantom", "new", "--clips=3-2"], "clips (fewest, most)"),
        (["phantom", "new", "--protocol", "x"], "protocol must be default or calcium"),
        (["phantom", "new", "--site", "x"], "site must be seen or unseen"),
        (["phantom", "new", "--twins", "no_contrast,nonsense"], "twins: unknown nonsense; there is "),
        (["phantom", "new", "--workers", "0"], "workers must be at least 1"),
        (["phantom", "gs://bucket/new"], "gs:// is not supported"),
        (["phantom", ""], "an empty path"),
        (["phantom", "clips"], "clips holds patients of another set"),
        (["phantom-ct", "new", "--rotations", "0"], "rotations must be 1 to 100"),
        (["join-views", "--bundle", "absent", "--view", "RCA=x", "--out", "new"], "no bundle in absent: bundle.json"),
        (["join-views", "--bundle", "absent", "--view", "RCA", "--out", "new"], "--view RCA: a view, = and a folder"),
        (["tables", "compact", "--tables", "absent"], "there is no table runs"),
        (["tables", "compact", "--tables", "tables", "--run", "x"], "there is no run x"),
        (["tables", "vacuum", "--tables", "tables", "--hours", "1"], "vacuum keeps at least 168 hours"),
        (["tables", "upgrade", "--tables", "absent"], "there is no table"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line(
    argv: list[str], says: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips" / "patient_0000").mkdir(parents=True)
    (tmp_path / "clips" / "patient_0000" / "a.dcm").write_bytes(b"x")
    assert says in complaint(argv, capsys)
    assert made(tmp_path) == []


def test_every_reason_may_be_retried() -> None:
    config = ScoreConfig("clips", tables="t", run="r", retry=tuple(Reason))
    assert len(config.retry) == len(Reason)


def test_phantom_says_what_it_made_and_how_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", "64", "--frames", "24", "--clips=2", "--patients", "1", "--fps", "15"]
    assert main(["phantom", "new", *size, "--twins", "no_contrast, poor_engagement", "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"4 synthetic clips of 1 patients in new \(96 frames, \d+ frames/s, \d+ s\)\n", err)
    assert len(list(tmp_path.glob("new/*/clip_0[01]*.dcm"))) == 4
    assert len(list(tmp_path.glob("new/*/clip_0?.poor_engagement.*"))) == 2
    assert (tmp_path / "new" / "labels.parquet").is_file()


def test_a_set_that_a_full_disk_stops_is_unfinished_and_the_file_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    line = complaint(["phantom", "new", "--size", "32", "--frames", "8", "--clips", "1", "--workers", "1"], capsys, 1)
    assert "not finished" in line
    assert "new/patient_0000/clip_00" in line


@pytest.mark.parametrize("command", ["phantom", "phantom-ct"])
def test_a_set_that_loses_a_worker_is_unfinished(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(ProcessPoolExecutor, "submit", killed)
    line = complaint([command, "new", "--workers", "2"], capsys, 1)
    assert "a worker process ended" in line
    assert "fewer workers need less" in line


def test_an_empty_folder(bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / ".DS_Store").write_bytes(b"x")
    line = complaint([*SCORE, "--bundles", str(bundles)], capsys)
    assert line == "angio-ray: no objects under clips"
    assert made(tmp_path) == []


@pytest.mark.parametrize("what", ["weights", "threshold", "shape"])
def test_a_bundle_that_was_altered(
    what: str, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = Path(shutil.copytree(bundles, tmp_path / "bundles"))
    manifest_file = altered / "quality" / "bundle.json"
    manifest = json.loads(manifest_file.read_text())
    if what == "weights":
        weights = altered / "quality" / "weights.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        says = "weights.safetensors does not have the digest that bundle.json states"
    elif what == "threshold":
        manifest["threshold"] = 0.9
        says = "its contents do not have the digest that it states"
    else:
        manifest["net"] = "r18_2d"
        says = "its contents do not have the digest"
    if what != "weights":
        manifest_file.write_text(json.dumps(manifest))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.dcm").write_bytes(b"x")
    assert says in complaint([*SCORE, "--bundles", str(altered)], capsys)
    assert made(tmp_path) == []


@pytest.mark.parametrize("text", [None, "no key at all"])
def test_a_key_that_is_none(
    text: str | None, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.dcm").write_bytes(b"x")
    if text is not None:
        (tmp_path / "key").write_text(text)
    line = complaint([*SCORE, "--bundles", str(bundles), "--key-file", "key"], capsys)
    assert "pseudonym key" in line
    assert "no key at all" not in line


@pytest.fixture
def nobody_listens(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment names an S3 endpoint at a port that is taken but refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{taken.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "angio",
            "AWS_SECRET_ACCESS_KEY": "very-much-a-secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.parametrize(
    "argv",
    [
        ["score", "s3://bucket/clips", "--tables", "new", "--run", "r"],
        ["score", "clips", "--tables", "s3://bucket/tables", "--run", "r", "--key-file", "key", "--bundles", "bundles"],
        ["index", "s3://bucket/clips", "--tables", "new"],
        ["phantom", "s3://bucket/new", "--patients", "1"],
        ["sql", "SELECT 1", "--tables", "s3://bucket/tables"],
        ["compare", "a", "b", "--tables", "s3://bucket/tables"],
        ["tables", "compact", "--tables", "s3://bucket/tables"],
        ["tables", "vacuum", "--tables", "s3://bucket/tables"],
        ["tables", "upgrade", "--tables", "s3://bucket/tables"],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
@pytest.mark.timeout(120)  # seconds on a free machine; delta-rs alone would try for three minutes
def test_an_unreachable_bucket_is_said_in_seconds(
    argv: list[str], bundles: Path, nobody_listens: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.dcm").write_bytes(b"x")
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "bundles").symlink_to(bundles)
    line = complaint(argv, capsys)
    assert "s3://bucket/" in line
    assert "no connection" in line
    assert "secret" not in line
    assert made(tmp_path) == []


def test_models_of_views_are_joined_and_read_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, out = str(SHIPPED / "stenosis"), tmp_path / "joined" / "stenosis"
    assert main(["join-views", "--bundle", one, "--view", f"RCA={one}", "--view", f"LAO cranial={one}", "--out", str(out)]) == 0
    assert "with models of RCA, LAO cranial" in capsys.readouterr().out
    again = ["join-views", "--bundle", one, "--view", f"RCA={one}", "--view", f"RCA={one}", "--out", str(tmp_path / "new")]
    assert "--view RCA: named twice" in complaint(again, capsys)
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["LAO_cranial", "RCA"]
    assert list(load_bundle(out).views) == ["LAO cranial", "RCA"]
    assert "name a new folder" in complaint(["join-views", "--bundle", one, "--view", f"RCA={one}", "--out", str(out)], capsys)
    again = ["join-views", "--bundle", one, "--view", f"LCA={one}", "--out", str(tmp_path / "new")]
    assert "no model of LCA; there is RCA, LAO cranial" in complaint(again, capsys)


def test_doctor_takes_several_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path), "absent"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert f"{tmp_path}: reachable" in out
    assert f"cannot read {tmp_path}/absent: No such file or directory" in out


def test_sql_from_a_shell(tables: Path, tmp_path: Path) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "angio_ray.cli", "sql", *argv, "--tables", str(tables)]
        return subprocess.run(command, capture_output=True, timeout=120, check=False)

    done = run("SELECT 'a' AS x, 1 AS n", "--format", "csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x,n\na,1\n", b"")
    done = run("SELECT * FROM scores", "--format", "parquet")
    assert (done.returncode, done.stdout[:4], done.stderr) == (0, b"PAR1", b"")
    done = run("SELEC 1")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


def test_a_reader_that_has_enough_is_no_fault(tables: Path) -> None:
    command = [sys.executable, "-m", "angio_ray.cli", "sql", "SELECT * FROM range(300000)", "--format", "csv"]
    command += ["--tables", str(tables)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"range\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_a_job_ends_as_the_command_does_where_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert job(["score", "absent", "--tables", "new", "--run", "r"]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["score", "index"])
def test_the_job_files_start_the_command(name: str, tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "jobs" / f"{name}.py"
    command = [sys.executable, str(file), "absent", "--tables", "new", *(["--run", "r"] if name == "score" else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))
    assert done.returncode == 2
    assert done.stderr.startswith("angio-ray: cannot read ")
    assert done.stderr.count("\n") == 1
