"""Objects in an S3 bucket: s3fs for listings and ranges, botocore for credentials; delta-rs is told the same.

Every request has a deadline and retries of ours: those of botocore and s3fs are off, since together they would take
minutes and know nothing of an object's time. Knows no file system.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

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
    rejected_read,
)

if TYPE_CHECKING:
    from s3fs import S3FileSystem

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_S3FS_OPTIONS = {"access_key_id": "key", "secret_access_key": "secret", "session_token": "token", "profile": "profile"}
"""Our options and s3fs's names for them."""

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


class _Failed(Exception):
    """A request that failed, in words without names."""

    def __init__(self, detail: str, *, again: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.again = again


class _Changed(Exception):
    """The object is not the version asked for."""


class Bucket:
    """A prefix in a bucket, or one object."""

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
        """Raises StorageUnavailable where nothing can be read."""
        self._ask("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def list(self) -> Iterator[list[ObjectInfo]]:
        """Pages of objects, sorted within; StorageUnavailable."""
        # An exact key comes first in its own listing, so this finds it without the right to read it.
        if self._prefix and not self._prefix.endswith("/"):
            first = self._ask("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            exact = [entry for entry in first.get("Contents", []) if entry["Key"] == self._prefix and entry["Size"]]
            if exact:
                yield [self._info(entry) for entry in exact]
        below = self._prefix if not self._prefix or self._prefix.endswith("/") else self._prefix + "/"
        token: dict[str, str] = {}
        tables: set[str] = set()
        while True:
            answer = self._ask("list_objects_v2", Bucket=self._bucket, Prefix=below, MaxKeys=PAGE, **token)
            page = []
            for entry in answer.get("Contents", []):
                if log := re.match(rf"((?:.*/)?){DELTA_LOG}/", entry["Key"]):
                    tables.add(log[1])  # comes before the table's data: `_` sorts before `part-`
                elif _is_object(entry, below) and not entry["Key"].startswith(tuple(tables)):
                    page.append(self._info(entry))
            if page:
                yield sorted(page, key=lambda info: info.uri)
            if not answer.get("IsTruncated"):
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def open(self, info: ObjectInfo | str) -> _ObjectSource:
        """Never raises; the first read does."""
        return _ObjectSource(info, self, self._retry)

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Whole or not at all."""
        bucket, key = _bucket_and_key(uri)
        self._ask("put_object", Bucket=bucket, Key=key, Body=data)

    def delete(self, uri: str) -> None:
        """Take an object away, if it is there."""
        bucket, key = _bucket_and_key(uri)
        self._ask("delete_object", Bucket=bucket, Key=key)

    def delta_options(self) -> dict[str, str]:
        """Endpoint, region and the credentials of this moment; StorageUnavailable where there are none."""
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
                head = self._ask("head_bucket", Bucket=self._bucket)
                region = head.get("BucketRegion") or head["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
            self._region = region or "us-east-1"
        return self._region

    def _s3fs(self) -> S3FileSystem:
        if self._connected is not None:
            return self._connected
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

    def filesystem(self) -> S3FileSystem:
        """The bucket for a library that takes fsspec, with s3fs's own retries."""
        import s3fs

        given = {name: self._options[key] for key, name in _S3FS_OPTIONS.items() if key in self._options}
        return s3fs.S3FileSystem(
            anon=self._is_anonymous(),
            endpoint_url=self._endpoint(),
            client_kwargs={"region_name": self._resolved_region()},
            use_listings_cache=False,
            **given,
        )

    # requests

    def _ask(self, method: str, **arguments: Any) -> Any:
        """A request that concerns the place: what fails is the place's fault."""
        try:
            return self.run(lambda: self.persistently(lambda: self._call(method, **arguments)), self._retry.total_s)
        except _Failed as failed:
            detail = "there is no such bucket" if failed.detail == GONE else failed.detail
            raise StorageUnavailable(f"cannot use {self._uri}: {detail}") from None
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
                    raise _Failed(f"{failed.detail} after {in_tries(failures)}", again=True) from None
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
                return b"", 0, etag or _EMPTY_ETAG
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
"""Of an object without bytes (their MD5): no range of it can be asked for, and the refusal tells no etag."""

_NO_CREDENTIALS = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run under a role"


class _ObjectSource:
    """An S3 object. Every request asks for one version of it, by etag."""

    def __init__(self, info: ObjectInfo | str, bucket: Bucket, retry: RetryPolicy) -> None:
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
        self.changed = listed.etag != "" and (listed.etag, listed.size_bytes) != (self.info.etag, self.info.size_bytes)

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
        wanted = clipped(ranges, self.info)
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
            raise rejected_read(failed.detail) from None
        except _Changed:
            raise rejected_read(CHANGED_WHILE_READ) from None
        except TimeoutError:
            raise rejected_read(f"not read within {self._total_s:g} s") from None
        except StorageUnavailable:
            raise rejected_read("the storage cannot be used") from None
        finally:
            self._left_s -= time.monotonic() - begin

    def close(self) -> None:
        self._head = b""
        self._failure = self._failure or rejected_read("the source is closed")


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _is_object(entry: Mapping[str, Any], below: str) -> bool:
    key: str = entry["Key"]
    if entry["Size"] == 0 and (key.endswith("/") or key.endswith("_$folder$")):
        return False  # how consoles and Hadoop mark an empty folder
    *folders, name = key[len(below) :].split("/")
    return not left_out(name, folder=False) and not any(left_out(part, folder=True) for part in folders)


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
        return _Failed(ACCESS_DENIED, again=False)
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


def _truth(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true", "yes", "on")


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fewest requests: overlapping spans and near neighbours become one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if merged and start - merged[-1][1] <= MERGE_GAP_BYTES:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged
