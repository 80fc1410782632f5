"""What a place to read from is, whichever kind: one spelling of a URI, an object's facts, the two kinds of failure.

Knows neither files nor S3.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from angio_ray.clip import ClipRejected, Reason

PAGE = 1000
"""Objects per page of a listing: what S3 gives in one answer."""


class StorageUnavailable(Exception):
    """The place cannot be used: missing folder or bucket, no or wrong credentials, no answer. One clear line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How long one object may take, and how often it is tried."""

    connect_s: float = 5.0
    read_s: float = 30.0
    """Longest silence of the store within one request."""
    total_s: float = 120.0
    """For all requests of one object together, pauses between tries included (time between reads does not count)."""
    tries: int = 5
    """Per request."""
    first_pause_s: float = 0.25
    longest_pause_s: float = 8.0

    def __post_init__(self) -> None:
        if self.tries < 1 or min(self.connect_s, self.read_s, self.total_s) <= 0:
            raise ValueError("a retry policy needs at least one try and times above zero")

    def pause_s(self, failures: int) -> float:
        """Before the next try, after so many failures: doubled each time, half of it random (workers fall out of
        step, so that a store that sheds load is not hit by all of them at once)."""
        longest = min(self.first_pause_s * 2.0 ** (failures - 1), self.longest_pause_s)
        return longest * random.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as the store lists it."""

    uri: str
    """Canonical."""
    size_bytes: int
    etag: str
    """Changes when the content does. On a folder: time of the last change and size, in hex."""


class ByteSource(Protocol):
    """One object to read from. Holds a file or nothing; a reader needs no more than `info` and `read`."""

    @property
    def info(self) -> ObjectInfo:
        """Size and etag of what `read` gives; they differ from the listing's where the object has changed since."""

    @property
    def changed(self) -> bool:
        """Whether the object is not the one that was listed."""

    @property
    def fetched_bytes(self) -> int:
        """How many bytes came from the store so far."""

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (start, stop), stop excluded; shorter where the object ends before.

        All of them are of one version of the object. Raises ClipRejected(read_error).
        """

    def close(self) -> None:
        """Let go of what is held; reading is over."""


def canonical_uri(uri: str | os.PathLike[str]) -> str:
    """One spelling per object, so that hashes and joins hold.

    A local object is its absolute real path (`..`, `//` and symlinks resolved), and only where that path is not valid
    UTF-8 a percent-escaped file:// URI. An S3 object is `s3://bucket/key` with the key as the store sees it: `a//b`,
    `a/./b` and `a%20b` are names of their own. Escapes are decoded in file: URIs only; s3a and s3n are s3. The result
    is its own canonical form.

    Raises ValueError (one line) for other schemes, no bucket, another host.
    """
    text = os.fspath(uri)
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if colon and scheme in ("s3", "s3a", "s3n") and rest.startswith("//"):
        bucket, slash, key = rest[2:].partition("/")
        if not bucket:
            raise ValueError(f"no bucket in {text!r}")
        return f"s3://{bucket}{slash}{key}" if key else f"s3://{bucket}"
    if colon and scheme == "file" and rest.startswith("/"):
        return _canonical_path(_path_of_file_uri(text, rest))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ValueError(f"{scheme}:// is not supported: give a folder or s3://bucket/prefix")
    if not text:
        raise ValueError("an empty path")
    return _canonical_path(text)


def _path_of_file_uri(text: str, rest: str) -> str:
    path = rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
        if host.lower() not in ("", "localhost") or not slash:
            raise ValueError(f"{text!r} names another machine: file:/// has three slashes")
    return os.fsdecode(unquote_to_bytes(path))


def _canonical_path(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path with a NUL character")
    return uri_of_real_path(os.path.realpath(path))


def uri_of_real_path(path: str) -> str:
    """The canonical URI of a path without links."""
    # POSIX lets a path begin with exactly two slashes; here they are one.
    path = "/" + path.lstrip("/")
    try:
        path.encode()
    except UnicodeEncodeError:  # a name from another age (Latin-1): tables hold UTF-8 only
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def local_path(uri: str) -> str:
    """The path of a canonical local URI."""
    return os.fsdecode(unquote_to_bytes(uri[len("file://") :])) if uri.startswith("file://") else uri


DELTA_LOG = "_delta_log"
"""A folder with this in it is a Delta table: its files are no clips, wherever the tables lie."""


def left_out(name: str, *, folder: bool) -> bool:
    """Whether a file or folder of this name holds no clip: what desktops, file servers, DICOM media and angio_ray leave there.

    Hidden folders (snapshots, waste baskets), macOS's and Windows's own files, DICOMDIR, the phantom's labels.parquet,
    phantom.json and *.truth.npz, pseudonym keys (*.key), and what a killed writer leaves (.*.part, .*.tmp). Other hidden
    files are listed: they may be clips.
    """
    if folder:
        return (name.startswith(".") and name.strip(".") != "") or name.casefold() == "__macosx"
    known = ("dicomdir", "thumbs.db", "desktop.ini", ".ds_store", "labels.parquet", "phantom.json")
    unfinished = name.startswith(".") and name.endswith((".part", ".tmp"))
    return unfinished or name.startswith("._") or name.casefold() in known or name.endswith((".key", ".truth.npz"))


def rejected_read(detail: str) -> ClipRejected:
    """A read_error in words without names."""
    return ClipRejected(Reason.READ_ERROR, detail)


CHANGED_WHILE_READ = "the object changed while it was read"
ACCESS_DENIED = "access denied"


def in_tries(number: int) -> str:
    """A count of tries, in words."""
    return f"{number} tries" if number > 1 else "1 try"


def clipped(ranges: Sequence[tuple[int, int]], info: ObjectInfo) -> list[tuple[int, int]]:
    """The ranges as far as the object goes."""
    if any(start < 0 or stop < start for start, stop in ranges):
        raise ValueError("a byte range is (start, stop) with 0 <= start <= stop")
    size = info.size_bytes
    return [(min(start, size), min(stop, size)) for start, stop in ranges]
