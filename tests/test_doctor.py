"""`angio-ray doctor`: what it says here, and that it says what is wrong in a line and by its exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from packaging.requirements import Requirement

from angio_ray import __version__
from angio_ray.doctor import codec_speeds, doctor
from angio_ray.models.bundles import SHIPPED

DECODERS = {
    "native": "native",
    "RLE": "imagecodecs:packbits",
    "JPEG baseline": "imagecodecs:jpeg8",
    "JPEG Lossless": "imagecodecs:jpeg8",
    "JPEG-LS": "imagecodecs:jpegls",
    "JPEG 2000": "imagecodecs:jpeg2k",
    "HTJ2K": "imagecodecs:htj2k",
}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests, and a screen of 120 columns."""
    for name in ("RAY_ADDRESS", "ANGIO_RAY_KEY_FILE", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    # what the project asks for, also where it was installed before its list was last changed
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    monkeypatch.setattr(metadata, "requires", lambda _name: project["dependencies"])


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A loopback port that is taken, so that nobody else gets it, but refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return " ".join(out.split())


def test_all_is_well_here_and_every_section_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.dcm").write_bytes(b"x")
    assert doctor(str(tmp_path)) == 0
    out = said(capsys)
    for requirement in map(Requirement, metadata.requires("angio-ray") or ()):
        assert f"{requirement.name}=={metadata.version(requirement.name)}" in out
    for text in (
        f"angio_ray {__version__}, Python {sys.version_info.major}.",
        f"processors {len(os.sched_getaffinity(0))}",
        "bfloat16 units: ",
        "/dev/shm ",
        "models run with ",
        "not named by ANGIO_RAY_KEY_FILE",
        f"{tmp_path}: reachable, 1 object",
        "RAY_ADDRESS not set",
        "RAY_AUTH_MODE disabled",
        "All that was looked at is as it should be.",
    ):
        assert text in out
    for family, decoder in DECODERS.items():
        assert f"{family} {decoder} " in out


def test_a_screen_of_80_columns_holds_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    doctor(None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 50
    assert not any("…" in line for line in lines)


def test_each_family_is_decoded_by_the_decoder_that_runs_use() -> None:
    found = codec_speeds()
    assert {codec.family: codec.decoder for codec in found} == DECODERS
    assert all(codec.frames_per_s is not None and codec.frames_per_s > 0.5 for codec in found)


def test_a_family_that_nothing_decodes_is_not_available(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = imagecodecs.jpegls_encode(np.zeros((512, 512), np.uint8))[:40] + b"\xff\xd9"
    monkeypatch.setattr(imagecodecs, "jpegls_encode", lambda image: broken)

    def no_encoder(image: np.ndarray) -> bytes:
        raise imagecodecs.DelayedImportError("htj2k")

    monkeypatch.setattr(imagecodecs, "htj2k_encode", no_encoder)
    assert doctor(None) == 0
    out = said(capsys)
    assert "JPEG-LS not available -" in out
    assert "HTJ2K not known: imagecodecs cannot encode it here not measured" in out


def test_several_places_each_get_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert doctor([str(tmp_path / "empty"), str(tmp_path / "absent"), "gs://bucket/x"]) == 1
    out = said(capsys)
    assert f"{tmp_path}/empty: reachable, no objects" in out
    assert f"cannot read {tmp_path}/absent: No such file or directory" in out
    assert "gs://bucket/x: gs:// is not supported" in out
    assert out.endswith("Not as it should be: storage.")


def test_a_bucket_behind_a_closed_port_is_unreachable(
    closed_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "very-much-a-secret"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "angio")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    assert doctor("s3://bucket/clips") == 1
    out = said(capsys)
    assert "cannot use s3://bucket/clips: no connection after 2 tries" in out
    assert secret not in out


def test_a_package_that_is_missing_or_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["no-such-package-anywhere>=2", "rich>=1000", "cyclopts>=4", 'tomli>=1; python_version < "3.0"']
    monkeypatch.setattr(metadata, "requires", lambda _name: wanted)
    assert doctor(None) == 1
    out = said(capsys)
    assert "no-such-package-anywhere is not installed: pip install 'no-such-package-anywhere>=2'" in out
    assert f"rich is {metadata.version('rich')}, but >=1000 is required" in out
    assert "tomli" not in out


def test_the_key_is_told_by_its_fingerprint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from angio_ray.pseudonyms import generate_key

    file = tmp_path / "key"
    fingerprint = generate_key(file).fingerprint
    monkeypatch.setenv("ANGIO_RAY_KEY_FILE", str(file))
    assert doctor(None) == 0
    out = capsys.readouterr().out
    assert fingerprint in out
    assert file.read_text().strip() not in out
    file.write_text("no key")
    assert doctor(None) == 1
    assert "holds no pseudonym key" in said(capsys)


def test_a_damaged_bundle_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "bundle.json").write_text("{}")
    monkeypatch.setattr("angio_ray.models.bundles.SHIPPED", tmp_path)
    assert doctor(None) == 1
    assert "bundle.json is not of the format" in said(capsys)


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="no bundles are shipped")
def test_shipped_bundles_are_told_with_digest_and_origin(capsys: pytest.CaptureFixture[str]) -> None:
    from angio_ray.models.bundles import load_bundle

    bundle = load_bundle(SHIPPED / "quality")
    doctor(None)
    out = said(capsys)
    assert f"quality: {bundle.net}, trained on {bundle.trained_on}, threshold " in out
    assert f"digest {bundle.digest[:12]}" in out


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "http://127.0.0.1:{port}"])
def test_a_cluster_that_does_not_answer(
    address: str, closed_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address.format(port=closed_port))
    assert doctor(None) == 1
    assert "does not answer (Connection refused)" in said(capsys)


_WITH_CLUSTER = """
import os, sys, ray
ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
from angio_ray.doctor import doctor
sys.exit(doctor(None))
"""


@pytest.mark.nightly
@pytest.mark.slow
def test_a_cluster_that_answers_is_told_with_what_it_has() -> None:
    done = subprocess.run([sys.executable, "-c", _WITH_CLUSTER], capture_output=True, text=True, timeout=200, check=False)
    assert "answers (CPU 3, GPU 0)" in " ".join(done.stdout.split()), done.stdout + done.stderr
