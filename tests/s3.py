"""An S3 endpoint for tests: moto's server as a process of its own, and a process in front of it that makes faults.

    s3_server   (session)   S3Server: an endpoint, and `.bucket()` for a fresh bucket
    s3_bucket   (function)  a fresh bucket's name
    s3_proxy    (function)  S3Proxy: the same endpoint through faults that the test asks for

A test module gets them by `pytest_plugins = ("tests.s3",)`.

Both processes listen on a free loopback port, say which on stdout, and end when their stdin closes: also when the test
run is killed. Run as a program, this file is those processes: `python s3.py moto`, `python s3.py proxy UPSTREAM_PORT`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CREDENTIALS = {"access_key_id": "angio", "secret_access_key": "not-a-secret", "region": "us-east-1"}


@dataclass(frozen=True)
class S3Server:
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, str]:
        """For `Storage(uri, options)`."""
        return {"endpoint_url": self.endpoint, **CREDENTIALS}

    @property
    def env(self) -> dict[str, str]:
        """The same for a program's environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": CREDENTIALS["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS["secret_access_key"],
            "AWS_REGION": CREDENTIALS["region"],
            "AWS_DEFAULT_REGION": CREDENTIALS["region"],
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client: the test's own hand in the store, beside the code under test."""
        return _client(self.endpoint)

    def bucket(self) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name


@functools.cache  # a client takes a second to make
def _client(endpoint: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["access_key_id"],
        aws_secret_access_key=CREDENTIALS["secret_access_key"],
        region_name=CREDENTIALS["region"],
    )


class S3Proxy(S3Server):
    """Passes requests on to the server, but for the faults asked for.

    `match` is a regular expression searched in the raw path with its query ("/bucket/key?list-type=2"), `method` an
    HTTP method; None is any. A fault holds for `times` matching requests, None is until `clear`. Where several match,
    the first asked for counts.
    """

    def answer(
        self,
        status: int,
        *,
        code: str = "",
        times: int | None = None,
        method: str | None = None,
        match: str | None = None,
    ) -> None:
        """Answer so, and do not ask the server. `code` is S3's own error code (SlowDown, ExpiredToken ...)."""
        self._add(action="answer", status=status, code=code, times=times, method=method, match=match)

    def unavailable(self, times: int | None = None, **where: Any) -> None:
        """503 SlowDown."""
        self.answer(503, code="SlowDown", times=times, **where)

    def deny(self, **where: Any) -> None:
        """403 for everything from now on: revoked credentials."""
        self.answer(403, code="InvalidAccessKeyId", **where)

    def lose(self, key: str) -> None:
        """404 for a key."""
        self.answer(404, code="NoSuchKey", match=re.escape(key))

    def delay(
        self, seconds: float, *, times: int | None = None, method: str | None = None, match: str | None = None
    ) -> None:
        """Pass on, and hold the reply back for so long."""
        self._add(action="delay", seconds=seconds, times=times, method=method, match=match)

    def drop_reply(
        self, *, times: int | None = 1, method: str | None = "PUT", match: str | None = None, seconds: float = 0.0
    ) -> None:
        """The request reaches the server and is done there; the client sees a broken connection and no answer.

        By default the first PUT that matches: the commit whose reply is lost (match="_delta_log/.*json").
        """
        self._add(action="drop_reply", times=times, method=method, match=match, seconds=seconds)

    def spoil_reply(
        self, status: int = 500, *, times: int | None = 1, method: str | None = "PUT", match: str | None = None
    ) -> None:
        """The request is done at the server, and the client is told that it failed (S3 does that with a 500 or 503)."""
        self._add(action="spoil_reply", status=status, code="InternalError", times=times, method=method, match=match)

    def reset(self, *, times: int | None = None, method: str | None = None, match: str | None = None) -> None:
        """Reset the connection before anything reaches the server."""
        self._add(action="reset", times=times, method=method, match=match)

    def cut(self, *, times: int | None = None, method: str | None = "GET", match: str | None = None) -> None:
        """Break the connection in the middle of the reply's body."""
        self._add(action="cut", times=times, method=method, match=match)

    def clear(self) -> None:
        """No faults from now on."""
        self._control("clear", {})

    def log(self) -> list[dict[str, Any]]:
        """The requests so far: method, path, fault (or None), status (of the server, None where not asked), headers."""
        return self._control("log", {})

    def _add(self, **rule: Any) -> None:
        self._control("rules", rule)

    def _control(self, what: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/{_CONTROL}/{what}", json.dumps(body).encode(), method="POST")
        # no proxy of the environment between us and the loopback
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as reply:
            return json.load(reply)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with _process("moto") as port:
        yield S3Server(port)


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    return s3_server.bucket()


@pytest.fixture(scope="session")
def _s3_proxy_process(s3_server: S3Server) -> Iterator[S3Proxy]:
    with _process("proxy", str(s3_server.port)) as port:
        yield S3Proxy(port)


@pytest.fixture
def s3_proxy(_s3_proxy_process: S3Proxy) -> Iterator[S3Proxy]:
    _s3_proxy_process.clear()
    yield _s3_proxy_process
    _s3_proxy_process.clear()


@contextmanager
def _process(*arguments: str) -> Iterator[int]:
    """Start this file as a program; yields its port; stops it by its pid."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.strip():
            raise RuntimeError(f"the test's {arguments[0]} process did not start (exit {process.wait(10)})")
        yield int(line)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# --- the processes ----------------------------------------------------------------------------------------------------

_CONTROL = "__faults__"


def _end_with_parent() -> None:
    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _serve_moto() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    while True:
        time.sleep(3600)


class _Proxy:
    """One connection per request (`Connection: close`): the simplest thing that can be dropped, cut and reset."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.rules: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head, body = await _read_request(reader, writer)
            method, path = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
            if path.startswith(f"/{_CONTROL}/"):
                writer.write(_reply(200, json.dumps(self.control(path, json.loads(body))).encode(), "application/json"))
            else:
                await self.relay(method, path, head, body, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def control(self, path: str, body: dict[str, Any]) -> Any:
        what = path.rsplit("/", 1)[1]
        if what == "rules":
            self.rules.append(body)
        elif what == "clear":
            self.rules.clear()
            self.requests.clear()
        return self.requests if what == "log" else {}

    def fault(self, method: str, path: str) -> dict[str, Any]:
        for rule in self.rules:
            if rule.get("times") == 0 or rule["method"] not in (None, method):
                continue
            if rule["match"] is None or re.search(rule["match"], path):
                if rule.get("times") is not None:
                    rule["times"] -= 1
                return rule
        return {"action": None}

    async def relay(self, method: str, path: str, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        rule = self.fault(method, path)
        action = rule["action"]
        headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:] if ": " in line)
        entry: dict[str, Any] = {"method": method, "path": path, "fault": action, "status": None, "headers": headers}
        self.requests.append(entry)
        if action == "answer":
            writer.write(_error_reply(method, rule))
            return
        if action == "reset":
            _reset(writer)
            return
        reply = await self.ask(head, body)
        entry["status"] = int(reply.split(b" ", 2)[1])
        if action in ("delay", "drop_reply"):
            await asyncio.sleep(rule["seconds"])
        if action == "drop_reply":
            _reset(writer)
        elif action == "spoil_reply":
            writer.write(_error_reply(method, rule))
        elif action == "cut":
            start = reply.index(b"\r\n\r\n") + 4
            writer.write(reply[: start + (len(reply) - start) // 2])
            await writer.drain()
            _reset(writer)
        else:
            writer.write(reply)

    async def ask(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        lines = [line for line in head.split(b"\r\n") if line.split(b":", 1)[0].lower() not in _PER_CONNECTION]
        writer.write(b"\r\n".join([*lines, b"Connection: close", b"Content-Length: %d" % len(body), b"", b""]) + body)
        await writer.drain()
        reply = await reader.read(-1)
        writer.close()
        return reply


_PER_CONNECTION = (b"", b"connection", b"expect", b"content-length", b"transfer-encoding")


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    if re.search(rb"\r\nexpect: *100-continue", head, re.IGNORECASE):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return head, body
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return head, await reader.readexactly(int(length[1])) if length else b""


def _reply(status: int, body: bytes, kind: str) -> bytes:
    head = (
        f"HTTP/1.1 {status} Fault\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _error_reply(method: str, rule: dict[str, Any]) -> bytes:
    text = f"<Error><Code>{rule['code']}</Code><Message>asked for by the test</Message></Error>"
    return _reply(rule["status"], b"" if method == "HEAD" else text.encode(), "application/xml")


def _reset(writer: asyncio.StreamWriter) -> None:
    # linger of zero: the peer gets RST and not a tidy end
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _serve_proxy(upstream: int) -> None:
    proxy = _Proxy(upstream)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    _end_with_parent()
    if sys.argv[1] == "moto":
        _serve_moto()
    else:
        asyncio.run(_serve_proxy(int(sys.argv[2])))
