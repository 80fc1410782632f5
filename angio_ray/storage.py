"""Where objects lie: a folder or an S3 bucket, seen the same way. URI -> bytes.

Lists objects page by page, reads byte ranges of one object under its own deadline and retries, and gives delta-rs the
same options and credentials that s3fs uses. Knows nothing of DICOM, of Ray or of what the bytes mean.

Two kinds of failure: StorageUnavailable for the place (one clear line for whoever started the program), ClipRejected
for one object (a template with numbers only: it ends in a result table).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import re
import secrets
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from angio_ray.clip import GONE, ClipRejected, Reason

if TYPE_CHECKING:
    from s3fs import S3FileSystem

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

PAGE = 1000
"""Objects per page of a listing: what S3 gives in one answer."""

HEAD_BYTES = 256 * 1024
"""An S3 object's first request fetches this much: it holds nearly every header, and tells size and etag."""

MERGE_GAP_BYTES = 64 * 1024
"""Ranges closer than this are fetched in one request: a round trip costs more than these bytes."""

OPTIONS = (
    "endpoint_url",
    "region",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "profile",
    "allow_http",
    "anonymous",
)
"""Options of an S3 storage. What is not given comes from the environment and the AWS files, as botocore does it."""


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
    return _uri_of_real_path(os.path.realpath(path))


def _uri_of_real_path(path: str) -> str:
    # POSIX lets a path begin with exactly two slashes; here they are one.
    path = "/" + path.lstrip("/")
    try:
        path.encode()
    except UnicodeEncodeError:  # a name from another age (Latin-1): tables hold UTF-8 only
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def _local_path(uri: str) -> str:
    """The path of a canonical local URI."""
    return os.fsdecode(unquote_to_bytes(uri[len("file://") :])) if uri.startswith("file://") else uri


class Storage:
    """A source of objects or a root of tables: a folder, or a prefix in a bucket.

    Nothing is contacted before the first use. Can be pickled (connections are made anew on the other side, and so are
    credentials that came from the environment there). Thread-safe.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        options: Mapping[str, str] | None = None,
        *,
        retry: RetryPolicy | None = None,
    ) -> None:
        """`options`: see OPTIONS; ignored for folders. Raises StorageUnavailable where URI or options make no sense."""
        self._options = dict(options or {})
        self._retry = retry or RetryPolicy()
        unknown = sorted(set(self._options) - set(OPTIONS))
        if unknown:
            raise StorageUnavailable(f"unknown storage option {', '.join(unknown)} (known: {', '.join(OPTIONS)})")
        try:
            self.uri = canonical_uri(uri)
        except ValueError as error:
            raise StorageUnavailable(str(error)) from None
        self.is_s3 = self.uri.startswith("s3://")
        self._place: _Folder | _Bucket
        if self.is_s3:
            self.uri = self.uri.removesuffix("/")
            self._place = _Bucket(self.uri, self._options, self._retry)
        else:
            self._place = _Folder(self.uri, self._retry)

    def __reduce__(self) -> tuple[Callable[..., Storage], tuple[Any, ...]]:
        return _storage, (self.uri, self._options, self._retry)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"  # options may hold a secret

    def list(self) -> Iterator[list[ObjectInfo]]:
        """All objects below, in pages of up to 1000, sorted within the page; a URI of one object lists that one.

        Left out: S3's keys that stand for folders, hidden files and folders (.DS_Store, ._x), DICOMDIR. Links to
        folders are followed once. Raises StorageUnavailable.
        """
        return self._place.list()

    def open(self, info: ObjectInfo | str) -> ByteSource:
        """A source for one object's bytes. Never raises: what is wrong with the object is said by the first `read`.

        Given an ObjectInfo, a change since then is noticed: `source.info` has the new size and etag and
        `source.changed` is true. On S3 this fetches the first 256 KiB.
        """
        return self._place.open(info)

    def probe(self) -> None:
        """Raises StorageUnavailable, with one clear line, where the place cannot be read."""
        self._place.probe()

    def probe_write(self) -> None:
        """Raises StorageUnavailable where the place cannot be written (a folder is made if need be)."""
        name = self.child(f".angio_ray_probe_{secrets.token_hex(8)}")
        self._place.write_bytes(name, b"")
        self._place.delete(name)

    def child(self, *parts: str) -> str:
        """The URI of something below the root."""
        return "/".join((self.uri.rstrip("/"), *parts))

    def read_bytes(self, uri: str) -> bytes:
        """A small object as a whole. Raises FileNotFoundError or StorageUnavailable."""
        source = self.open(canonical_uri(uri))
        try:
            return source.read([(0, source.info.size_bytes)])[0]
        except ClipRejected as rejected:
            if rejected.detail == GONE:
                raise FileNotFoundError(f"there is no {uri}") from None
            raise StorageUnavailable(f"{uri} cannot be read: {rejected.detail}") from None
        finally:
            source.close()

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Write a small object: whole or not at all, replacing what was there. Raises StorageUnavailable."""
        self._place.write_bytes(canonical_uri(uri), data)

    def delta_uri(self, *parts: str) -> str:
        """The root, or what lies below it, as delta-rs takes it.

        Raises StorageUnavailable for a folder with an escape in its name: delta-rs writes to one and reads another.
        """
        uri = self.child(*parts)
        if not self.is_s3 and re.search("%[0-9A-Fa-f]{2}", uri):
            raise StorageUnavailable(f"tables cannot lie in {uri!r}: a % with two digits, or a name that is no UTF-8")
        return uri

    def delta_options(self) -> dict[str, str]:
        """`storage_options` for delta-rs: the same endpoint, region and credentials that the listing uses.

        Credentials are resolved (profile, web identity, instance) and refreshed by botocore at each call; delta-rs
        cannot refresh those that it is given. So a long-lived table handle compares with what it was opened with,
        and opens anew when the answer has changed: botocore changes it some 10 to 15 minutes before the old ones end.
        """
        return self._place.delta_options()


def _storage(uri: str, options: Mapping[str, str], retry: RetryPolicy) -> Storage:
    return Storage(uri, options, retry=retry)


def _left_out(name: str) -> bool:
    """Whether a file or folder of this name is no clip: what desktops and DICOM media leave beside clips."""
    return (name.startswith(".") and name.strip(".") != "") or name.casefold() in (
        "dicomdir",
        "thumbs.db",
        "desktop.ini",
        "__macosx",
    )


def _rejected(detail: str) -> ClipRejected:
    return ClipRejected(Reason.READ_ERROR, detail)


_CHANGED_WHILE_READ = "the object changed while it was read"
_ACCESS_DENIED = "access denied"


# --- a folder ---------------------------------------------------------------------------------------------------------


class _Folder:
    def __init__(self, uri: str, retry: RetryPolicy) -> None:
        self._root = _local_path(uri)
        self._retry = retry

    def probe(self) -> None:
        try:
            if os.path.isdir(self._root):
                with os.scandir(self._root):
                    pass
            else:
                with open(self._root, "rb"):
                    pass
        except OSError as error:
            raise StorageUnavailable(f"cannot read {self._root}: {error.strerror}") from None

    def list(self) -> Iterator[list[ObjectInfo]]:
        self.probe()
        page: list[ObjectInfo] = []
        files = self._walk(self._root) if os.path.isdir(self._root) else iter([self._root])
        for path in files:
            info = _local_info(path)
            if info is not None:
                page.append(info)
            if len(page) == PAGE:
                yield sorted(page, key=lambda info: info.uri)
                page = []
        if page:
            yield sorted(page, key=lambda info: info.uri)

    def _walk(self, root: str) -> Iterator[str]:
        """Real paths of what is no folder, folder by folder. Links are followed; no folder is entered twice."""
        pending, entered = [root], set()
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(folder) as scan:
                    entries = sorted((entry for entry in scan if not _left_out(entry.name)), key=lambda e: e.name)
                status = os.stat(folder)
            except OSError as error:
                # the folder's own name is not said: below the root it is often a patient's
                where = folder if folder == root else f"a folder below {root}"
                raise StorageUnavailable(f"cannot list {where}: {error.strerror}") from None
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            folders = []
            for entry in entries:
                path = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if entry.is_dir():
                    folders.append(path)
                else:
                    yield path
            pending.extend(reversed(folders))

    def open(self, info: ObjectInfo | str) -> _FileSource:
        listed = ObjectInfo(canonical_uri(info), 0, "") if isinstance(info, str) else info
        mount = os.path.dirname(self._root) if _local_path(listed.uri) == self._root else self._root
        return _FileSource(listed, mount, self._retry)

    def write_bytes(self, uri: str, data: bytes) -> None:
        path = _local_path(uri)
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
        try:
            os.makedirs(folder, exist_ok=True)
            try:
                with open(temporary, "xb") as opened:
                    opened.write(data)
                    opened.flush()
                    os.fsync(opened.fileno())
                os.replace(temporary, path)
            except BaseException:
                if os.path.exists(temporary):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise StorageUnavailable(f"cannot write {path}: {error.strerror}") from None

    def delete(self, uri: str) -> None:
        os.unlink(_local_path(uri))

    def delta_options(self) -> dict[str, str]:
        return {}


def _local_info(path: str) -> ObjectInfo | None:
    """None for what cannot be read as a file (pipe, socket, device). A dangling link is an object that is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return ObjectInfo(_uri_of_real_path(path), 0, "")
    return _info_of_status(_uri_of_real_path(path), status) if stat.S_ISREG(status.st_mode) else None


def _info_of_status(uri: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(uri, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


class _FileSource:
    """An open file: what is read is of one version, even when another file takes its name meanwhile."""

    def __init__(self, listed: ObjectInfo, mount: str, retry: RetryPolicy) -> None:
        self.info = listed
        self.fetched_bytes = 0
        self._file = -1
        self._mount = mount
        self._retry = retry
        self._failure: ClipRejected | None = None
        try:
            self._file, self.info = self._persistently(lambda: _open_file(listed.uri))
        except ClipRejected as rejected:
            self._failure = rejected
        self.changed = listed.etag not in ("", self.info.etag)

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._file < 0:
            raise ValueError("the source is closed")
        wanted = _clipped(ranges, self.info)
        parts = self._persistently(lambda: [self._pread(start, stop) for start, stop in wanted])
        if _info_of_status(self.info.uri, os.fstat(self._file)).etag != self.info.etag:
            raise _rejected(_CHANGED_WHILE_READ)
        self.fetched_bytes += sum(map(len, parts))
        return parts

    def _pread(self, start: int, stop: int) -> bytes:
        pieces = []
        while start < stop:
            piece = os.pread(self._file, min(stop - start, 1 << 30), start)  # Linux reads at most 2 GiB at once
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _persistently(self, action: Callable[[], _T]) -> _T:
        """Network folders fail for a moment too: EIO and a stale handle are tried again."""
        failures = 0
        while True:
            try:
                return action()
            except OSError as error:
                failures += 1
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    raise _rejected("the folder is not reachable" if _is_lost(self._mount) else GONE) from None
                if error.errno in (errno.EACCES, errno.EPERM):
                    raise _rejected(_ACCESS_DENIED) from None
                if error.errno not in _PASSING_ERRORS or failures >= self._retry.tries:
                    raise _rejected(f"system error {error.errno} after {_tries(failures)}") from None
            time.sleep(self._retry.pause_s(failures))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


_PASSING_ERRORS = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENETUNREACH)


def _open_file(uri: str) -> tuple[int, ObjectInfo]:
    # O_NONBLOCK: opening a pipe that took the file's place would wait for ever
    file = os.open(_local_path(uri), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        os.close(file)
        raise _rejected("not a regular file")
    return file, _info_of_status(uri, status)


def _is_lost(folder: str) -> bool:
    """Whether the whole folder went away, or stands empty (a mount that was lost leaves an empty folder)."""
    try:
        with os.scandir(folder) as scan:
            return next(scan, None) is None
    except OSError:
        return True


# --- a bucket ---------------------------------------------------------------------------------------------------------


class _Failed(Exception):
    """A request that failed, in words without names."""

    def __init__(self, detail: str, *, again: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.again = again


class _Changed(Exception):
    """The object is not the version asked for."""


class _Bucket:
    def __init__(self, uri: str, options: Mapping[str, str], retry: RetryPolicy) -> None:
        self._uri = uri
        self._bucket, self._prefix = _bucket_and_key(uri)
        self._options = options
        self._retry = retry
        self._lock = threading.Lock()
        self._connected: S3FileSystem | None = None
        self._session: Any = None
        self._region: str | None = None

    def probe(self) -> None:
        self._for_place(lambda: self._call("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1))

    def list(self) -> Iterator[list[ObjectInfo]]:
        # An exact key comes first in its own listing, so this finds it without the right to read it.
        if self._prefix and not self._prefix.endswith("/"):
            first = self._for_place(
                lambda: self._call("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            )
            exact = [entry for entry in first.get("Contents", []) if entry["Key"] == self._prefix and entry["Size"]]
            if exact:
                yield [self._info(entry) for entry in exact]
        below = self._prefix if not self._prefix or self._prefix.endswith("/") else self._prefix + "/"
        token: dict[str, str] = {}
        while True:
            asked = {"Bucket": self._bucket, "Prefix": below, "MaxKeys": PAGE, **token}
            answer = self._for_place(lambda asked=asked: self._call("list_objects_v2", **asked))  # type: ignore[misc]
            page = [self._info(entry) for entry in answer.get("Contents", []) if _is_object(entry, below)]
            if page:
                yield sorted(page, key=lambda info: info.uri)
            if not answer.get("IsTruncated"):
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def open(self, info: ObjectInfo | str) -> _ObjectSource:
        return _ObjectSource(info, self, self._retry)

    def write_bytes(self, uri: str, data: bytes) -> None:
        bucket, key = _bucket_and_key(uri)
        self._for_place(lambda: self._call("put_object", Bucket=bucket, Key=key, Body=data))

    def delete(self, uri: str) -> None:
        bucket, key = _bucket_and_key(uri)
        self._for_place(lambda: self._call("delete_object", Bucket=bucket, Key=key))

    def delta_options(self) -> dict[str, str]:
        import botocore.exceptions

        try:
            chosen = {"AWS_REGION": self._resolved_region()}
            endpoint = self._endpoint()
            if endpoint:
                chosen |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
            if self._is_anonymous():
                return chosen | {"AWS_SKIP_SIGNATURE": "true"}
            with self._lock:  # a refresh asks the network: once for all threads
                credentials = self._botocore_session().get_credentials()
                frozen = credentials.get_frozen_credentials() if credentials is not None else None
        except botocore.exceptions.BotoCoreError as error:
            raise StorageUnavailable(f"cannot use {self._uri}: {_one_line(error)}") from None
        if frozen is None:
            raise StorageUnavailable(f"cannot use {self._uri}: {_NO_CREDENTIALS}")
        chosen |= {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
        if frozen.token:
            chosen["AWS_SESSION_TOKEN"] = frozen.token
        elif os.environ.get("AWS_SESSION_TOKEN"):
            # delta-rs would add it to the other keys, and every request would be refused
            raise StorageUnavailable("AWS_SESSION_TOKEN is set, but not by those who gave the access key: unset it")
        return chosen

    # what s3fs and delta-rs share

    def _is_anonymous(self) -> bool:
        return _truth(self._options.get("anonymous"))

    def _botocore_session(self) -> Any:
        if self._session is None:
            import botocore.session

            self._session = botocore.session.Session(profile=self._options.get("profile"))
            if "access_key_id" in self._options:
                self._session.set_credentials(
                    self._options["access_key_id"],
                    self._options.get("secret_access_key", ""),
                    self._options.get("session_token"),
                )
        return self._session

    def _endpoint(self) -> str | None:
        endpoint = self._options.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint is None:  # the profile's own, from the AWS files
            endpoint = self._botocore_session().get_scoped_config().get("endpoint_url")
        if endpoint and not re.match(r"https?://[^/]", endpoint):
            raise StorageUnavailable(f"the endpoint {endpoint!r} is no http:// or https:// address")
        allowed = self._options.get("allow_http") or os.environ.get("AWS_ALLOW_HTTP")
        if endpoint and endpoint.startswith("http://") and allowed is not None and not _truth(allowed):
            raise StorageUnavailable(f"the endpoint {endpoint} is not encrypted and allow_http is off")
        return endpoint

    def _configured_region(self) -> str | None:
        region = self._options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return region or self._botocore_session().get_config_variable("region")

    def _resolved_region(self) -> str:
        """AWS answers in a bucket's own region only; botocore follows its redirection, delta-rs does not."""
        if self._region is None:
            region = self._configured_region()
            if region is None and self._endpoint() is None:
                head = self._for_place(lambda: self._call("head_bucket", Bucket=self._bucket))
                region = head.get("BucketRegion") or head["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
            self._region = region or "us-east-1"
        return self._region

    def _s3fs(self) -> S3FileSystem:
        with self._lock:
            if self._connected is None:
                import botocore.exceptions
                import s3fs

                given = {key: self._options.get(key) for key in ("access_key_id", "secret_access_key", "session_token")}
                try:
                    self._connected = s3fs.S3FileSystem(
                        anon=self._is_anonymous(),
                        key=given["access_key_id"],
                        secret=given["secret_access_key"],
                        token=given["session_token"],
                        endpoint_url=self._endpoint(),
                        client_kwargs={"region_name": self._configured_region() or "us-east-1"},
                        config_kwargs={
                            "connect_timeout": self._retry.connect_s,
                            "read_timeout": self._retry.read_s,
                            "retries": {"total_max_attempts": 1},  # ours count, with a deadline
                            "max_pool_connections": 32,
                        },
                        skip_instance_cache=True,
                        use_listings_cache=False,
                        **({"profile": self._options["profile"]} if "profile" in self._options else {}),
                    )
                    self._connected.retries = 1
                except botocore.exceptions.BotoCoreError as error:
                    raise StorageUnavailable(f"cannot use {self._uri}: {_one_line(error)}") from None
            return self._connected

    # requests

    def _for_place(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Run a request that concerns the place; what fails is the place's fault."""
        try:
            return self.run(lambda: self.persistently(request), self._retry.total_s)
        except _Failed as failed:
            raise StorageUnavailable(f"cannot use {self._uri}: {failed.detail}") from None
        except TimeoutError:
            raise StorageUnavailable(f"cannot use {self._uri}: no end within {self._retry.total_s:g} s") from None

    def run(self, request: Callable[[], Awaitable[_T]], timeout_s: float) -> _T:
        """Run a coroutine on the loop that s3fs keeps in a thread. Raises TimeoutError."""
        from fsspec.asyn import FSTimeoutError, sync

        loop = self._s3fs().loop
        try:
            return sync(loop, lambda: asyncio.wait_for(request(), timeout_s))
        except FSTimeoutError:
            raise TimeoutError from None

    async def persistently(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Try again, with growing pauses, what may pass. Raises _Failed with the number of tries, or _Changed."""
        failures = 0
        while True:
            try:
                return await request()
            except _Failed as failed:
                failures += 1
                if not failed.again:
                    raise
                if failures >= self._retry.tries:
                    raise _Failed(f"{failed.detail} after {_tries(failures)}", again=True) from None
            await asyncio.sleep(self._retry.pause_s(failures))

    async def _call(self, method: str, **arguments: Any) -> Any:
        try:
            return await self._s3fs()._call_s3(method, **arguments)
        except Exception as error:
            raise _classified(error) from None

    async def get(self, bucket: str, key: str, start: int, stop: int, etag: str) -> tuple[bytes, int, str]:
        """One request for the bytes [start, stop). Returns them with the object's size and etag.

        Raises _Changed where the object is no more the one of `etag` ("" takes any), _Failed for all else.
        """
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        try:
            answer = await self._s3fs()._call_s3(
                "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **condition
            )
            async with answer["Body"] as stream:
                body = await stream.read()
        except Exception as error:
            if _status(error) == 412:
                raise _Changed from None
            if _status(error) == 416 and start == 0:  # not even a first byte: the object is empty
                if etag and etag != _EMPTY_ETAG:
                    raise _Changed from None
                return b"", 0, _EMPTY_ETAG
            if _status(error) == 416:
                raise _Changed from None
            raise _classified(error) from None
        found = (answer.get("ETag") or "").strip('"')
        if etag and found and found != etag:  # a store that does not know If-Match
            raise _Changed
        whole = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.get("ContentRange") or "")
        size = int(whole[2]) if whole else len(body)
        if not whole:  # a store that does not know ranges sends all
            body = body[start:stop]
        if len(body) != max(min(stop, size) - start, 0):
            raise _Failed("the answer was cut off", again=True)
        return body, size, found

    def _info(self, entry: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(f"s3://{self._bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))


_EMPTY_ETAG = "d41d8cd98f00b204e9800998ecf8427e"
"""Of an object without bytes (their MD5): a range request cannot ask for it."""

_NO_CREDENTIALS = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run under a role"


class _ObjectSource:
    """An S3 object. Every request asks for one version of it, by etag."""

    def __init__(self, info: ObjectInfo | str, bucket: _Bucket, retry: RetryPolicy) -> None:
        listed = ObjectInfo(canonical_uri(info), 0, "") if isinstance(info, str) else info
        self.info = listed
        self.fetched_bytes = 0
        self._place = bucket
        self._bucket, self._key = _bucket_and_key(listed.uri)
        self._left_s = retry.total_s
        self._total_s = retry.total_s
        self._head = b""
        self._failure: ClipRejected | None = None
        try:
            self._head, size, etag = self._timed(self._first)
        except ClipRejected as rejected:
            self._failure = rejected
        else:
            self.info = replace(listed, size_bytes=size, etag=etag or listed.etag)
            self.fetched_bytes = len(self._head)
        self.changed = listed.etag not in ("", self.info.etag)

    async def _first(self) -> tuple[bytes, int, str]:
        def request(etag: str) -> Awaitable[tuple[bytes, int, str]]:
            return self._place.persistently(lambda: self._place.get(self._bucket, self._key, 0, HEAD_BYTES, etag))

        try:
            return await request(self.info.etag)
        except _Changed:
            return await request("")

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        wanted = _clipped(ranges, self.info)
        spans = _merged([(max(start, len(self._head)), stop) for start, stop in wanted if stop > len(self._head)])
        fetched = self._timed(lambda: self._fetch(spans)) if spans else []
        self.fetched_bytes += sum(map(len, fetched))
        return [self._cut(start, stop, spans, fetched) for start, stop in wanted]

    async def _fetch(self, spans: list[tuple[int, int]]) -> list[bytes]:
        at_once = asyncio.Semaphore(8)

        async def one(start: int, stop: int) -> bytes:
            async with at_once:
                answer = await self._place.persistently(
                    lambda: self._place.get(self._bucket, self._key, start, stop, self.info.etag)
                )
            return answer[0]

        tasks = [asyncio.ensure_future(one(start, stop)) for start, stop in spans]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # the first failure is enough
                task.cancel()

    def _cut(self, start: int, stop: int, spans: list[tuple[int, int]], fetched: list[bytes]) -> bytes:
        parts = [self._head[start:stop]]
        for (first, last), body in zip(spans, fetched, strict=True):
            if first < stop and start < last:
                parts.append(body[max(start - first, 0) : stop - first])
        return b"".join(parts)

    def _timed(self, action: Callable[[], Awaitable[_T]]) -> _T:
        """Run under what is left of the object's time."""
        begin = time.monotonic()
        try:
            return self._place.run(action, max(self._left_s, 0.001))
        except _Failed as failed:
            raise _rejected(failed.detail) from None
        except _Changed:
            raise _rejected(_CHANGED_WHILE_READ) from None
        except TimeoutError:
            raise _rejected(f"not read within {self._total_s:g} s") from None
        except StorageUnavailable:
            raise _rejected("the storage cannot be used") from None
        finally:
            self._left_s -= time.monotonic() - begin

    def close(self) -> None:
        self._head = b""
        self._failure = self._failure or _rejected("the source is closed")


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _is_object(entry: Mapping[str, Any], below: str) -> bool:
    key: str = entry["Key"]
    if entry["Size"] == 0 and (key.endswith("/") or key.endswith("_$folder$")):
        return False  # how consoles and Hadoop mark an empty folder
    return not any(_left_out(part) for part in key[len(below) :].split("/"))


def _status(error: BaseException) -> int | None:
    """HTTP status of an answer; s3fs translates botocore's error and keeps it as the cause."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def _code(error: BaseException) -> str:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _classified(error: Exception) -> _Failed:
    """What a failed request means, in words that carry no name (S3's own texts hold bucket and key)."""
    import botocore.exceptions as boto

    status, code = _status(error), _code(error)
    if code == "NoSuchBucket":
        return _Failed("there is no such bucket", again=False)
    if status == 404:
        return _Failed(GONE, again=False)
    if code == "InvalidObjectState":
        return _Failed("the object is archived", again=False)
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return _Failed(_ACCESS_DENIED, again=False)
    if status is not None:
        again = status >= 500 or status in (408, 409, 429) or code in ("SlowDown", "RequestTimeout", "InternalError")
        return _Failed(f"HTTP status {status}", again=again)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return _Failed(_NO_CREDENTIALS, again=False)
    if isinstance(error, boto.ConnectTimeoutError | boto.ReadTimeoutError | TimeoutError):
        return _Failed("no answer in time", again=True)
    if isinstance(error, boto.EndpointConnectionError | boto.ProxyConnectionError | boto.SSLError):
        return _Failed("no connection", again=True)
    if isinstance(error, boto.ParamValidationError | boto.ProfileNotFound | boto.TokenRetrievalError):
        return _Failed(_one_line(error), again=False)
    _LOG.debug("request failed: %s", type(error).__name__)
    return _Failed("the connection broke", again=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _tries(number: int) -> str:
    return f"{number} tries" if number > 1 else "1 try"


def _truth(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true", "yes", "on")


def _clipped(ranges: Sequence[tuple[int, int]], info: ObjectInfo) -> list[tuple[int, int]]:
    if any(start < 0 or stop < start for start, stop in ranges):
        raise ValueError("a byte range is (start, stop) with 0 <= start <= stop")
    size = info.size_bytes
    return [(min(start, size), min(stop, size)) for start, stop in ranges]


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fewest requests: overlapping spans and near neighbours become one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if merged and start - merged[-1][1] <= MERGE_GAP_BYTES:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged
