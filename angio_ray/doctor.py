"""What `angio-ray doctor` says on one screen: what is installed here, what it can do, and what cannot be reached.

Looks and measures, changes nothing: no cluster is started, nothing is written, no secret is shown. Knows no clip and no table.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from angio_ray import __version__

if TYPE_CHECKING:
    import numpy as np

_GIB = 1 << 30
_CODEC_S = 0.12
"""Time that a decoder is measured for: the frames that fit in it, at least two."""
_RAY_S = 30.0
"""Longest wait for a cluster; joining one takes 3-5 s."""
_OPTIONAL = ("openvino",)
"""Packages of an extra that change what a run does."""


@dataclass(frozen=True, slots=True)
class CodecSpeed:
    """How frames of one family of transfer syntaxes are decoded here."""

    family: str
    transfer_syntax: str
    """The UID that was tried."""
    decoder: str | None
    """None: no decoder works."""
    frames_per_s: float | None
    """Of one core, 512 x 512 px of 8 bits; None: no encoder to make a frame with."""


@dataclass
class _Report:
    """What is printed: titled sections of lines, and what is wrong."""

    sections: list[tuple[str, list[Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Titles of the sections where something is wrong."""

    def begin(self, title: str) -> list[Any]:
        """The lines of a new section."""
        self.sections.append((title, []))
        return self.sections[-1][1]

    def problem(self, line: str) -> Text:
        """A line of what is wrong in the section that was begun last."""
        title = self.sections[-1][0]
        if title not in self.problems:
            self.problems.append(title)
        return Text(line, style="bold red")


def doctor(uri: str | Sequence[str] | None = None) -> int:
    """Print the state of this installation and machine, and whether the places named by `uri` can be reached.

    Returns 0, or 1 when something that was asked for (a URI, RAY_ADDRESS, ANGIO_RAY_KEY_FILE) cannot be used, a required package
    is missing, or a shipped bundle is damaged.
    """
    uris = [uri] if isinstance(uri, str) else list(uri or ())
    report = _Report()
    parts: tuple[tuple[str, Callable[[_Report], Iterator[Any]]], ...] = (
        ("installed", _installed),
        ("processors", _processors),
        ("memory", _memory),
        ("GPUs", _gpus),
        ("models run with", _backend),
        ("decoders", _codecs),
        ("bundles", _bundles),
        ("pseudonym key", _key),
        ("storage", lambda report: _storage(report, uris)),
        ("Ray", _ray),
    )
    console = Console(highlight=False)
    with Console(stderr=True).status("looking ...") as status:
        for title, look in parts:
            status.update(f"looking at: {title} ...")
            lines = report.begin(title)
            try:
                lines.extend(look(report))
            except Exception as error:  # a broken package fails in its own way, and the rest is still worth knowing
                lines.append(report.problem(f"cannot be told ({_one_line(error)})"))
    _print(console, report)
    return 1 if report.problems else 0


def _print(console: Console, report: _Report) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for title, lines in report.sections:
        grid.add_row(title, Group(*lines))
    console.print(grid)
    if report.problems:
        console.print(Text(f"\nNot as it should be: {', '.join(report.problems)}.", style="bold red"))
    else:
        console.print(Text("\nAll that was looked at is as it should be.", style="bold"))


def _installed(report: _Report) -> Iterator[Any]:
    system = f"{platform.system()} {platform.machine()}"
    yield Text(f"angio_ray {__version__}, Python {platform.python_version()}, {system}")
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in metadata.requires("angio-ray") or ()]
    except metadata.PackageNotFoundError:
        yield Text("angio_ray runs from a folder, not from an installed package: its requirements are not checked")
        required = []
    found, faults = [], []
    for requirement in required:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            faults.append(f"{requirement.name} is not installed: pip install '{requirement}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version}, but {requirement.specifier} is required")
        found.append(f"{requirement.name}=={version}" if version else f"{requirement.name} missing")
    for name in _OPTIONAL:
        found.append(f"{name}=={_version(name)}" if _version(name) else f"{name} not installed (optional)")
    yield Text(", ".join(found))
    yield from map(report.problem, faults)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processors(report: _Report) -> Iterator[Any]:
    from angio_ray.models.backends import bf16_units

    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    text = f"{usable}" if usable == present else f"{usable} of {present} (the others are kept from this process)"
    quota = _cpu_quota()
    if quota is not None and quota < usable:
        text += f", but time for {quota:g} only (the container's limit)"
    units = ", ".join(bf16_units()) or "none: models run in float32"
    yield Text(f"{text}: {_cpu_model()}; bfloat16 units: {units}")


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or "unknown model"


def _cpu_quota() -> float | None:
    """Processors' worth of time that a container may use; None without a limit (cgroup v2)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory(report: _Report) -> Iterator[Any]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} free"
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        limit = memory.total
    if limit < memory.total:
        text += f"; the container may use {limit / _GIB:.1f}"
    if Path("/dev/shm").is_dir():
        shm = shutil.disk_usage("/dev/shm")
        text += f"; /dev/shm {shm.total / _GIB:.1f} GiB, {shm.free / _GIB:.1f} free"
        if shm.total < _GIB:
            text += " (little: Ray's object store lies there; give the container --shm-size)"
    else:
        text += "; no /dev/shm: Ray keeps its object store on disk"
    yield Text(text)


def _gpus(report: _Report) -> Iterator[Any]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        properties = torch.cuda.get_device_properties(number)
        bf16 = "bfloat16" if properties.major >= 8 else "no bfloat16"
        yield Text(f"{number}: {properties.name}, {properties.total_memory / _GIB:.0f} GiB, {bf16}")
    if not count:
        yield Text("none: models run on processors")


def _backend(report: _Report) -> Iterator[Any]:
    import torch

    from angio_ray.models.backends import likely_fastest

    choice = likely_fastest("cuda" if torch.cuda.is_available() else "cpu")
    yield Text(f"{choice}, as a rule; a run measures and checks the others too before it decides")


def _codecs(report: _Report) -> Iterator[Any]:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    table.add_column("syntax")
    table.add_column("decoder", no_wrap=True)
    table.add_column("frames/s", justify="right", no_wrap=True)
    for codec in codec_speeds():
        decoder = Text("not available", style="bold red") if codec.decoder is None else Text(codec.decoder)
        speed = "-" if codec.decoder is None else "not measured" if codec.frames_per_s is None else f"{codec.frames_per_s:,.0f}"
        table.add_row(codec.family, decoder, speed)
    yield table
    yield Text("frames of 512 x 512 px, 8 bits, on one core", style="dim")


def codec_speeds() -> list[CodecSpeed]:
    """Each family's decoder, by decoding a frame encoded here by imagecodecs: smooth shading, dark lines and noise."""
    import imagecodecs

    from angio_ray.dicom.facts import PixelLayout
    from angio_ray.models.backends import probe_clips
    from angio_ray.sampling import ClipWindow

    frame = probe_clips(ClipWindow(name="probe", size=512, start=0, length=1, stride=1), 2)[1, 0]
    layout = PixelLayout(
        rows=512, columns=512, num_frames=1, samples=1, planar=False, bits_allocated=8, bits_stored=8, high_bit=7,
        signed=False, photometric="MONOCHROME2", little=True,
    )
    jpeg = "1.2.840.10008.1.2.4."
    families: tuple[tuple[str, str, Callable[[np.ndarray], bytes | bytearray]], ...] = (
        ("native", "1.2.840.10008.1.2.1", lambda image: image.tobytes()),
        ("RLE", "1.2.840.10008.1.2.5", _rle),
        ("JPEG baseline", f"{jpeg}50", lambda image: imagecodecs.jpeg8_encode(image, level=90)),
        ("JPEG Lossless", f"{jpeg}70", lambda image: imagecodecs.ljpeg_encode(image)),
        ("JPEG-LS", f"{jpeg}80", lambda image: imagecodecs.jpegls_encode(image)),
        ("JPEG 2000", f"{jpeg}90", lambda image: imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k")),
        ("HTJ2K", f"{jpeg}201", lambda image: imagecodecs.htj2k_encode(image)),
    )
    return [_codec_speed(family, uid, encode, frame, layout) for family, uid, encode in families]


def _codec_speed(
    family: str, uid: str, encode: Callable[[np.ndarray], bytes | bytearray], frame: np.ndarray, layout: Any
) -> CodecSpeed:
    from angio_ray.clip import ClipRejected
    from angio_ray.dicom import codecs, grey

    try:
        data = bytes(encode(frame))
    except Exception:  # imagecodecs raises its own for each codec, and DelayedImportError where one is not built in
        return CodecSpeed(family, uid, "not known: imagecodecs cannot encode it here", None)

    def decode() -> str:
        if uid not in codecs.ENCAPSULATED:
            grey.masked(grey.native_values(data, layout), layout)
            return "native"
        header = codecs.check_frame(data, layout, uid)
        return codecs.decode_frame(data, header, layout, uid)[1]

    try:
        decoder = decode()
        times: list[float] = []
        while len(times) < 2 or sum(times) < _CODEC_S:
            started = time.perf_counter()
            decode()
            times.append(time.perf_counter() - started)
        return CodecSpeed(family, uid, decoder, 1 / min(times))  # the best: a busy machine delays the others
    except ClipRejected:
        return CodecSpeed(family, uid, None, None)


def _rle(image: np.ndarray) -> bytes:
    """One segment, rows packed one by one (PS3.5 annex G)."""
    import imagecodecs

    segment = b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in image)
    header = b"".join(value.to_bytes(4, "little") for value in (1, 64, *[0] * 14))
    return header + segment + b"\0" * (len(segment) % 2)


def _bundles(report: _Report) -> Iterator[Any]:
    from angio_ray.models import TASKS
    from angio_ray.models.bundles import SHIPPED, BundleError, load_bundle

    folders = sorted(path.parent for path in SHIPPED.glob("*/bundle.json"))
    for folder in folders:
        try:
            bundle = load_bundle(folder)
        except BundleError as error:
            yield report.problem(str(error))
            continue
        members = f" x {len(bundle.weights)}" if len(bundle.weights) > 1 else ""
        yield Text(
            f"{bundle.task}: {bundle.net}{members}, trained on {bundle.trained_on}, threshold {bundle.threshold:.3g}, "
            f"digest {bundle.digest[:12]}"
        )
    if missing := [task for task in TASKS if task not in {folder.name for folder in folders}]:
        yield Text(f"none for {', '.join(missing)}: `score` needs --bundles", style="yellow")


def _key(report: _Report) -> Iterator[Any]:
    from angio_ray.pseudonyms import KEY_FILE_VARIABLE, PseudonymKeyError, load_key

    named = os.environ.get(KEY_FILE_VARIABLE)
    if not named:
        yield Text(f"not named by {KEY_FILE_VARIABLE}: a new local table root gets one of its own, s3:// tables need one")
        return
    try:
        yield Text(f"{KEY_FILE_VARIABLE} names {named}, fingerprint {load_key(named).fingerprint}")
    except PseudonymKeyError as error:
        yield report.problem(f"{KEY_FILE_VARIABLE}: {error}")


def _storage(report: _Report, uris: Sequence[str]) -> Iterator[Any]:
    from angio_ray.storage import RetryPolicy, Storage, StorageUnavailable

    if not uris:
        yield Text("not asked; angio-ray doctor FOLDER or s3://BUCKET/PREFIX tries it")
    for uri in uris:
        try:
            storage = Storage(uri, retry=RetryPolicy(connect_s=3.0, read_s=8.0, total_s=12.0, tries=2))
            storage.probe()
            if storage.is_s3:
                storage.delta_options()  # credentials for the tables, which delta-rs is handed
            page = next(storage.list(), [])
        except StorageUnavailable as error:
            yield report.problem(str(error) if uri in str(error) else f"{uri}: {error}")
            continue
        many = f"{len(page):,}{' or more' if len(page) >= 1000 else ''} object{'s' if len(page) != 1 else ''}"
        yield Text(f"{uri}: reachable, {many if page else 'no objects but tables, if any'}")


def _ray(report: _Report) -> Iterator[Any]:
    if mode := os.environ.get("RAY_AUTH_MODE"):
        auth = f"RAY_AUTH_MODE {mode}"
    else:
        auth = "RAY_AUTH_MODE not set: token, Ray's own choice"
    held = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    if mode != "disabled":
        auth += f" ({' and '.join(held)} set)" if held else " (a private cluster gets one of its own)"
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        yield Text(f"RAY_ADDRESS {'local' if address else 'not set'}: each run starts Ray on this machine and stops it after")
    else:
        fault, resources = _cluster(address)
        if fault:
            yield report.problem(f"RAY_ADDRESS {address}: {fault}")
        else:
            yield Text(f"RAY_ADDRESS {address} answers{resources}")
    yield Text(auth)


def _cluster(address: str) -> tuple[str | None, str]:
    """(what is wrong, what the cluster has): one that listens is joined by a process of its own, as a run would do it."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if parts.hostname and parts.port:
        try:
            socket.create_connection((parts.hostname, parts.port), timeout=5).close()
        except OSError as error:
            return f"does not answer ({error.strerror or error})", ""
    if parts.scheme in ("http", "https"):
        return None, " (the Jobs API: `ray job submit` uses it, a run on this machine cannot)"
    join = (
        "import json\n"
        "from angio_ray.scoring.cluster import ray_cluster\n"
        "from angio_ray.scoring.config import RunError\n"
        "try:\n"
        "    with ray_cluster() as nodes: print(json.dumps({k: sum(n.get(k, 0) for n in nodes) for k in ('CPU', 'GPU')}))\n"
        "except RunError as error: print(json.dumps(str(error)))\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", join], capture_output=True, text=True, timeout=_RAY_S, stdin=subprocess.DEVNULL
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"cannot be joined within {_RAY_S:g} s (no cluster there, another Ray version, or no token?)", ""
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return f"cannot be joined: {lines[-1][:200]}", ""
    if isinstance(answer, str):
        return answer, ""
    return None, f" (CPU {answer.get('CPU', 0):g}, GPU {answer.get('GPU', 0):g})"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
