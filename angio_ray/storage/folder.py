"""Objects in a folder of a file system, network mounts included. Knows no S3."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from angio_ray.clip import GONE, ClipRejected
from angio_ray.storage.place import (
    ACCESS_DENIED,
    CHANGED_WHILE_READ,
    DELTA_LOG,
    PAGE,
    ObjectInfo,
    RetryPolicy,
    StorageUnavailable,
    canonical_uri,
    clipped,
    in_tries,
    left_out,
    local_path,
    rejected_read,
    uri_of_real_path,
)

_T = TypeVar("_T")


class Folder:
    """A folder, or one file."""

    def __init__(self, uri: str, retry: RetryPolicy) -> None:
        self._root = local_path(uri)
        self._retry = retry

    def probe(self) -> None:
        """Raises StorageUnavailable where nothing can be read."""
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
        """Pages of objects, sorted within; StorageUnavailable."""
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
                    kept = (entry for entry in scan if not left_out(entry.name, folder=entry.is_dir()))
                    entries = sorted(kept, key=lambda entry: entry.name)
                status = os.stat(folder)
            except OSError as error:
                # the folder's own name is not said: below the root it is often a patient's
                where = folder if folder == root else f"a folder below {root}"
                raise StorageUnavailable(f"cannot list {where}: {error.strerror}") from None
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            if any(entry.name == DELTA_LOG for entry in entries):
                continue
            folders = []
            for entry in entries:
                path = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if entry.is_dir():
                    folders.append(path)
                else:
                    yield path
            pending.extend(reversed(folders))

    def open(self, info: ObjectInfo | str) -> _FileSource:
        """Never raises; the first read does."""
        listed = ObjectInfo(canonical_uri(info), 0, "") if isinstance(info, str) else info
        mount = os.path.dirname(self._root) if local_path(listed.uri) == self._root else self._root
        return _FileSource(listed, mount, self._retry)

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Whole or not at all."""
        path = local_path(uri)
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
        """Take an object away, if it is there."""
        path = local_path(uri)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageUnavailable(f"cannot delete {path}: {error.strerror}") from None

    def delta_options(self) -> dict[str, str]:
        """None are needed."""
        return {}


def _local_info(path: str) -> ObjectInfo | None:
    """None for what cannot be read as a file (pipe, socket, device). A dangling link is an object that is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return ObjectInfo(uri_of_real_path(path), 0, "")
    return _info_of_status(uri_of_real_path(path), status) if stat.S_ISREG(status.st_mode) else None


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
        wanted = clipped(ranges, self.info)
        parts = self._persistently(lambda: [self._pread(start, stop) for start, stop in wanted])
        if _info_of_status(self.info.uri, os.fstat(self._file)).etag != self.info.etag:
            raise rejected_read(CHANGED_WHILE_READ)
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
                    raise rejected_read("the folder is not reachable" if _is_lost(self._mount) else GONE) from None
                if error.errno in (errno.EACCES, errno.EPERM):
                    raise rejected_read(ACCESS_DENIED) from None
                if error.errno not in _PASSING_ERRORS or failures >= self._retry.tries:
                    raise rejected_read(f"system error {error.errno} after {in_tries(failures)}") from None
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
    file = os.open(local_path(uri), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        os.close(file)
        raise rejected_read("not a regular file")
    return file, _info_of_status(uri, status)


def _is_lost(folder: str) -> bool:
    """Whether the whole folder went away, or stands empty (a mount that was lost leaves an empty folder)."""
    try:
        with os.scandir(folder) as scan:
            return next(scan, None) is None
    except OSError:
        return True
