"""Where objects lie: a folder or an S3 bucket, seen the same way. URI -> bytes.

Lists objects page by page, reads byte ranges of one object under its own deadline and retries, and gives delta-rs the
same options and credentials that s3fs uses. Knows nothing of DICOM, of Ray or of what the bytes mean.

Two kinds of failure: StorageUnavailable for the place (one clear line for whoever started the program), ClipRejected
for one object (a template with numbers only: it ends in a result table).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from angio_ray.clip import GONE, ClipRejected
from angio_ray.storage.bucket import HEAD_BYTES, MERGE_GAP_BYTES, OPTIONS, Bucket
from angio_ray.storage.folder import Folder
from angio_ray.storage.place import (
    PAGE,
    ByteSource,
    ObjectInfo,
    RetryPolicy,
    StorageUnavailable,
    canonical_uri,
)

__all__ = [
    "HEAD_BYTES",
    "MERGE_GAP_BYTES",
    "OPTIONS",
    "PAGE",
    "ByteSource",
    "ObjectInfo",
    "RetryPolicy",
    "Storage",
    "StorageUnavailable",
    "canonical_uri",
]


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
        if ("access_key_id" in self._options) != ("secret_access_key" in self._options):
            raise StorageUnavailable("the storage options access_key_id and secret_access_key go together")
        try:
            self.uri = canonical_uri(uri)
        except ValueError as error:
            raise StorageUnavailable(str(error)) from None
        self.is_s3 = self.uri.startswith("s3://")
        self._place: Folder | Bucket
        if self.is_s3:
            self.uri = self.uri.removesuffix("/")
            self._place = Bucket(self.uri, self._options, self._retry)
        else:
            self._place = Folder(self.uri, self._retry)

    def __reduce__(self) -> tuple[Callable[..., Storage], tuple[Any, ...]]:
        return _storage, (self.uri, self._options, self._retry)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"  # options may hold a secret

    def list(self) -> Iterator[list[ObjectInfo]]:
        """All objects below, in pages of up to 1000, sorted within the page; a URI of one object lists that one.

        Left out: S3's keys that stand for folders, hidden files and folders (.DS_Store, ._x), DICOMDIR, Delta tables.
        Links are followed, and no folder is entered twice. Raises StorageUnavailable.
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
        self.delete(name)

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

    def delete(self, uri: str) -> None:
        """Take an object away; one that is not there is no fault. Raises StorageUnavailable."""
        self._place.delete(canonical_uri(uri))

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

    def filesystem(self) -> Any:
        """The bucket (no folder) for a library that takes fsspec. Can be pickled, without keys that came from the environment:
        they are found where it is used, and found anew when they end, which those of `delta_options` cannot be."""
        assert isinstance(self._place, Bucket)
        return self._place.filesystem()


def _storage(uri: str, options: Mapping[str, str], retry: RetryPolicy) -> Storage:
    return Storage(uri, options, retry=retry)
