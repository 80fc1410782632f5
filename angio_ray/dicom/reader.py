"""Reads a clip: header facts, checks, and each window's frames as uint8, from anything that can answer range reads.

The worker (this side) fetches and times; parsing and decoding happen in the child (`decoding`, `sandbox`). Knows nothing
of where objects lie, of models or of tables.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from angio_ray.clip import ClipHeader, ClipRejected, Reason
from angio_ray.dicom import decoding
from angio_ray.dicom.decoding import Answer, Limits, Task
from angio_ray.dicom.sandbox import Sandbox, SharedBytes
from angio_ray.sampling import ClipWindow, Selection

__all__ = ["ByteSource", "ClipOutcome", "ClipReader", "Limits", "decode_frames", "to_uint8"]

WHOLE_BYTES = 1 << 20
"""Objects up to this size are read at once: a second request costs more than the bytes."""
HEAD_BYTES = 128 << 10
"""What is read of larger ones to begin with; XA headers are a few KB, an offset table 4 bytes a frame."""
_CHUNK_BYTES = 16 << 20
"""Most bytes held on this side at once on their way to shared memory."""
_MAX_STEPS = 12
"""Times the header may ask for more bytes; each time at least doubles them."""


class ObjectFacts(Protocol):
    """What is known of an object before it is read."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def etag(self) -> str: ...


class ByteSource(Protocol):
    """An object whose bytes can be read; `angio_ray.storage` has the real ones."""

    @property
    def info(self) -> Any:
        """`ObjectFacts` of what is being read; another etag after a read means that the object was replaced."""

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of each (start, stop); `ClipRejected(read_error)` where that fails for good."""


@dataclass(kw_only=True, slots=True)
class ClipOutcome:
    """What became of one object. `reason` is None exactly when it was read; then `inputs` has every window."""

    info: Any
    """Size and etag of what was read."""
    header: ClipHeader | None = None
    reason: Reason | None = None
    detail: str | None = None
    codec: str | None = None
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    """Per window: uint8, shape (num_frames, size, size)."""
    selections: dict[str, Selection] = field(default_factory=dict)
    fetched_bytes: int = 0
    content_sha256: str | None = None
    """Of the whole object, where all of it was read anyway."""
    fetch_s: float = 0.0
    decode_s: float = 0.0
    """Time in the child, parsing included."""


class _Changed(Exception):
    """The object was replaced while it was read."""


class ClipReader:
    """Reads clips through one child process of its own.

    Thread-safe: several threads may fetch while the child decodes for one of them.

    Parameters
    ----------
    windows
        What the models look at; each name is a key of `ClipOutcome.inputs`.
    limits
        What one object may cost.
    assume_fps
        Frames/s of clips whose header does not say; None rejects them (`frame_time_unknown`).
    require_xa
        Reject what is not XA, XRF or their enhanced forms (`not_xa`).
    """

    def __init__(
        self,
        windows: Sequence[ClipWindow],
        *,
        limits: Limits | None = None,
        assume_fps: float | None = None,
        require_xa: bool = True,
    ) -> None:
        if len({window.name for window in windows}) != len(windows):
            raise ValueError("two windows have the same name")
        if assume_fps is not None and not 0.1 <= assume_fps <= 2000:
            raise ValueError(f"assume_fps must be 0.1 to 2000 frames/s, not {assume_fps}")
        self._windows = tuple(windows)
        self._limits = limits or Limits()
        self._assume_fps = assume_fps
        self._require_xa = require_xa
        self._sandbox = Sandbox(
            memory_bytes=self._limits.memory_bytes, timeout_s=self._limits.timeout_s, prepare=decoding.prepare
        )

    def read(self, source: ByteSource, frames: Sequence[int] | None = None) -> ClipOutcome:
        """Header, checks and inputs of one object. Bad data is a reason in the outcome, never an exception.

        `frames`: show these of the file (as `sampling.select_named`), not those that the windows' rates ask for.
        """
        return self._outcome(source, frames=None if frames is None else tuple(frames))

    def index(self, source: ByteSource) -> ClipOutcome:
        """Header facts of one object, from its header bytes alone; only what the header shows is checked."""
        return self._outcome(source, header_only=True)

    def close(self) -> None:
        """End the child process."""
        self._sandbox.close()

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _outcome(
        self, source: ByteSource, *, header_only: bool = False, frames: tuple[int, ...] | None = None
    ) -> ClipOutcome:
        for _ in range(2):
            outcome = ClipOutcome(info=source.info)
            try:
                self._read(source, outcome, header_only, frames)
            except _Changed:
                continue
            except ClipRejected as rejected:
                outcome.reason, outcome.detail = rejected.reason, rejected.detail
                outcome.inputs = {}
            return outcome
        outcome.info = source.info
        outcome.reason, outcome.detail = Reason.READ_ERROR, "the object changed twice while it was read"
        return outcome

    def _read(
        self, source: ByteSource, outcome: ClipOutcome, header_only: bool, frames: tuple[int, ...] | None
    ) -> None:
        size = outcome.info.size_bytes
        with SharedBytes(size) as memory:
            fetched = _Fetched(source, memory, outcome)
            fetched.first(size if size <= WHOLE_BYTES else HEAD_BYTES)
            answer = self._examine(fetched, outcome, header_only=header_only, frames=frames)
            if header_only or not self._windows:
                return
            fetched.spans(answer.need_spans)
            with SharedBytes(max(1, sum(window.num_frames * window.size**2 for window in self._windows))) as output:
                answer = self._step(decoding.decode, fetched, outcome, output_path=output.path, frames=frames)
                if answer.need_first is not None:  # the offset table is wrong: count fragments in the whole object
                    fetched.first(size)
                    answer = self._step(decoding.decode, fetched, outcome, output_path=output.path, frames=frames)
                if answer.need_first is not None:
                    raise ClipRejected(Reason.DECODE_ERROR, "no frame where the offset table says")
                self._take_inputs(output, outcome)
            outcome.codec = answer.codec

    def _examine(self, fetched: _Fetched, outcome: ClipOutcome, **options: Any) -> Answer:
        size = outcome.info.size_bytes
        for _ in range(_MAX_STEPS):
            answer = self._step(decoding.examine, fetched, outcome, **options)
            if answer.need_first is None:
                return answer
            # A header is read piece by piece; a deflated one must be there as a whole, and says so at once
            if answer.need_first < size and answer.need_first > self._limits.max_header_bytes:
                allowed = self._limits.max_header_bytes
                raise ClipRejected(Reason.TOO_LARGE, f"a header of over {answer.need_first} bytes, {allowed} allowed")
            if size > self._limits.max_object_bytes and answer.need_first == size:
                raise ClipRejected(Reason.TOO_LARGE, f"{size} bytes, {self._limits.max_object_bytes} allowed")
            fetched.first(max(answer.need_first, 4 * fetched.available))
        raise ClipRejected(Reason.HEADER_INVALID, f"no end of the header in {fetched.available} bytes")

    def _step(self, function: Any, fetched: _Fetched, outcome: ClipOutcome, **options: Any) -> Answer:
        task = Task(
            path=fetched.memory.path,
            size=fetched.memory.size,
            # When decoding, all that it needs is there, with holes between
            available=fetched.memory.size if function is decoding.decode else fetched.available,
            whole=fetched.available == fetched.memory.size,
            windows=self._windows,
            limits=self._limits,
            assume_fps=self._assume_fps,
            require_xa=self._require_xa,
            **options,
        )
        answer: Answer = self._sandbox.run(function, task)
        outcome.decode_s += answer.seconds
        outcome.header = answer.header or outcome.header
        outcome.selections = answer.selections
        if answer.reason is not None:
            raise ClipRejected(answer.reason, answer.detail or "")
        return answer

    def _take_inputs(self, output: SharedBytes, outcome: ClipOutcome) -> None:
        offset = 0
        for window in self._windows:
            length = window.num_frames * window.size**2
            flat = np.frombuffer(output.read(length, offset), dtype=np.uint8)
            outcome.inputs[window.name] = flat.reshape(window.num_frames, window.size, window.size)
            offset += length


class _Fetched:
    """The part of an object that is in shared memory, at its own offsets."""

    def __init__(self, source: ByteSource, memory: SharedBytes, outcome: ClipOutcome) -> None:
        self.memory = memory
        self.available = 0
        self._source = source
        self._outcome = outcome
        self._info = outcome.info
        self._hash = hashlib.sha256()

    def first(self, stop: int) -> None:
        """Have the object's first `stop` bytes."""
        stop = min(stop, self.memory.size)
        while self.available < stop:
            span = (self.available, min(stop, self.available + _CHUNK_BYTES))
            self._hash.update(self._fetch([span])[0])
            self.available = span[1]
        if self.available == self.memory.size:
            self._outcome.content_sha256 = self._hash.hexdigest()

    def spans(self, spans: Sequence[tuple[int, int]]) -> None:
        """Have these bytes too."""
        missing = [(max(start, self.available), stop) for start, stop in spans if stop > self.available]
        missing = _merged(missing)
        if missing and sum(stop - start for start, stop in missing) >= self.memory.size - self.available:
            self.first(self.memory.size)
            return
        batch: list[tuple[int, int]] = []
        for span in missing:
            batch.append(span)
            if sum(stop - start for start, stop in batch) >= _CHUNK_BYTES:
                self._fetch(batch)
                batch = []
        if batch:
            self._fetch(batch)

    def _fetch(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        started = time.perf_counter()
        parts = self._source.read(spans)
        self._outcome.fetch_s += time.perf_counter() - started
        info = self._source.info
        if (info.size_bytes, info.etag) != (self._info.size_bytes, self._info.etag):
            raise _Changed
        for (start, stop), part in zip(spans, parts, strict=True):
            if len(part) != stop - start:
                raise ClipRejected(Reason.READ_ERROR, f"{len(part)} bytes came where {stop - start} were asked for")
            self.memory.write(part, start)
            self._outcome.fetched_bytes += len(part)
        return parts


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without overlaps, in order."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def decode_frames(data: bytes, indices: Sequence[int] | None = None, *, limits: Limits | None = None) -> np.ndarray:
    """Stored values of frames of a whole object, decoded in this process: for bytes you trust, in tests and tools.

    Returns
    -------
    array
        Shape (frames, rows, columns[, samples]), as pydicom's `pixel_array(..., raw=True)` has them.

    Raises
    ------
    ClipRejected
        The reason that `ClipReader` would give, but for class and frame time, which are not asked for.
    """
    return decoding.decode_object(data, indices, limits or Limits())[0]


def to_uint8(data: bytes, indices: Sequence[int] | None = None, *, limits: Limits | None = None) -> np.ndarray:
    """The same frames as models see them before resizing, shape (frames, rows, columns) uint8."""
    return decoding.decode_object(data, indices, limits or Limits())[1]
