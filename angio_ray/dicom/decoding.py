"""What the child process does with an object's bytes: examine the header, then decode the frames that windows show.

Both are pure functions of a `Task`: bytes are read from shared memory, inputs are written to it. Whatever a hostile file
does in here ends as a reason in an `Answer`, never as an exception. Imports numpy, OpenCV, imagecodecs and pydicom only.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from angio_ray.clip import ClipHeader, ClipRejected, Reason
from angio_ray.dicom import facts, grey, pixel_data
from angio_ray.dicom.codecs import FrameHeader, check_frame, decode_frame
from angio_ray.dicom.header import Buffer, DataSet, NeedMore, ParsedObject, Source, parse_object
from angio_ray.dicom.timing import FrameTimes, frame_times
from angio_ray.sampling import ClipWindow, Selection, resize_frame, select_frames, select_named


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one object may cost."""

    max_object_bytes: int = 2 << 30
    max_pixels_bytes: int = 4 << 30
    """Rows x Columns x samples x NumberOfFrames x bytes, decoded."""
    max_frame_bytes: int = 256 << 20
    """The same of one frame: 4,096 x 4,096 at 16 bits takes 32 MiB."""
    max_frames: int = 5000
    max_header_bytes: int = 16 << 20
    max_inflated_bytes: int = 512 << 20
    timeout_s: float = 60.0
    """For each step in the child; fetching has deadlines of its own."""
    memory_bytes: int = 2 << 30
    """RLIMIT_DATA of the child."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"limit {name} must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One object, as far as it is fetched, and what is wanted of it."""

    path: str
    """Shared memory that holds the object's bytes at their own offsets."""
    size: int
    available: int
    """How many of its first bytes are there."""
    windows: tuple[ClipWindow, ...]
    limits: Limits
    assume_fps: float | None
    require_xa: bool
    header_only: bool = False
    frames: tuple[int, ...] | None = None
    """Show these frames of the file, in this order, whatever the windows would; those that it lacks are left out."""
    whole: bool = False
    """Whether all of the object is there: when decoding, there may be holes between the frames."""
    output_path: str = ""
    """Shared memory for the inputs, window after window."""


@dataclass(kw_only=True, slots=True)
class Answer:
    """What a step came to. At most one of `reason`, `need_first` and `need_spans` is set; none: it is done."""

    header: ClipHeader | None = None
    reason: Reason | None = None
    detail: str | None = None
    need_first: int | None = None
    """Fetch so many of the object's first bytes and ask again."""
    need_spans: tuple[tuple[int, int], ...] = ()
    """Fetch these, then decode."""
    selections: dict[str, Selection] = field(default_factory=dict)
    codec: str | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class _Object:
    """Everything learned of an object, filled step by step so that a rejected one still has its header."""

    source: Source
    whole: bool
    header: ClipHeader | None = None
    parsed: ParsedObject | None = None
    layout: facts.PixelLayout | None = None
    voi: facts.Voi | None = None
    times: FrameTimes | None = None
    table: pixel_data.FrameTable | None = None
    selections: dict[str, Selection] = field(default_factory=dict)


def prepare() -> None:
    """In a new child, before its limits: one thread, and pydicom quiet and imported."""
    import warnings

    import pydicom.config
    import pydicom.pixels

    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE


def examine(task: Task) -> Answer:
    """First step: parse the header, check what can be checked without decoding, say which bytes the decoding needs."""

    def step(thing: _Object, answer: Answer) -> None:
        _examine(thing, task)
        if task.header_only or thing.table is None:
            return
        if thing.table.spans is None or (thing.parsed is not None and thing.parsed.inflated is not None):
            answer.need_spans = ((0, task.size),)
            return
        spans = [thing.table.spans[index] for index in _wanted(thing.selections)]
        if (last := pixel_data.last_item_check(thing.table)) is not None:
            spans.append(last)
        answer.need_spans = tuple(sorted(spans))

    return _guarded(task, step, Reason.HEADER_INVALID)


def decode(task: Task) -> Answer:
    """Second step: decode each wanted frame once, and write the windows' inputs to shared memory."""

    def step(thing: _Object, answer: Answer) -> None:
        _examine(thing, task)
        answer.codec = _write_inputs(thing, task, answer)

    return _guarded(task, step, Reason.DECODE_ERROR)


def decode_object(data: bytes, indices: Sequence[int] | None, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """Stored values and grey of some frames of a whole object, in this process; see `reader.decode_frames`."""
    thing = _Object(Source(data, len(data), len(data)), whole=True)
    task = Task(
        path="", size=len(data), available=len(data), windows=(), limits=limits, assume_fps=None, require_xa=False
    )
    _examine(thing, task)
    assert thing.layout is not None
    frames = range(thing.layout.num_frames) if indices is None else indices
    if any(not 0 <= index < thing.layout.num_frames for index in frames):
        raise ValueError(f"frames are numbered 0 to {thing.layout.num_frames - 1}")
    table = grey.grey_table(thing.layout, thing.voi)
    stored = [values for _, values, _ in _Decoder(thing, frames)]
    grey_frames = [grey.to_uint8(values, thing.layout, table) for values in stored]
    return np.stack(stored), np.stack(grey_frames)


def _guarded(task: Task, step: Callable[[_Object, Answer], None], unexpected: Reason) -> Answer:
    """Run a step on the task's bytes and turn whatever goes wrong into an answer."""
    started = time.perf_counter()
    answer = Answer()
    file = os.open(task.path, os.O_RDONLY)
    try:
        mapped: Buffer = memoryview(mmap.mmap(file, task.size, prot=mmap.PROT_READ)) if task.size else b""
    finally:
        os.close(file)
    thing = _Object(Source(mapped, task.available, task.size), task.whole)
    try:
        step(thing, answer)
    except NeedMore as need:
        answer.need_first = need.stop
    except pixel_data.TableUnusable:
        answer.need_first = task.size
    except ClipRejected as rejected:
        answer.reason, answer.detail = rejected.reason, rejected.detail
    except MemoryError:
        answer.reason, answer.detail = Reason.OUT_OF_MEMORY, f"not done within {task.limits.memory_bytes >> 20} MiB"
    except cv2.error as error:
        no_memory = error.code == cv2.Error.StsNoMem
        answer.reason = Reason.OUT_OF_MEMORY if no_memory else Reason.DECODE_ERROR
        answer.detail = f"OpenCV error {error.code}"
    # Any exception, StopIteration too: one object's fault may cost no other. The text may quote the file, the class not
    except Exception as error:
        answer.reason, answer.detail = unexpected, f"unexpected {type(error).__name__}"
    answer.header = thing.header
    answer.selections = thing.selections
    answer.seconds = time.perf_counter() - started
    return answer


def _examine(thing: _Object, task: Task) -> None:
    """All checks that need no decoding, in the order that the reasons are documented in."""
    limits = task.limits
    try:
        thing.parsed = parsed = parse_object(thing.source, max_inflated_bytes=limits.max_inflated_bytes)
    except NeedMore as need:
        if need.stop > min(limits.max_header_bytes, task.size) and task.size > limits.max_object_bytes:
            raise ClipRejected(Reason.TOO_LARGE, f"{task.size} bytes, {limits.max_object_bytes} allowed") from None
        raise
    if parsed.inflated is not None:
        thing.source = Source(parsed.inflated, len(parsed.inflated), len(parsed.inflated))
    dataset = parsed.dataset
    shared: DataSet | None = None
    per_frame: list[DataSet] = []
    fault = parsed.fault
    frames = facts.num_frames(dataset)
    try:
        shared, per_frame = facts.functional_groups(dataset)
        # Times are asked for no more frames than will be read, so that a false count allocates nothing
        if frames is not None and frames <= limits.max_frames:
            thing.times = frame_times(dataset, per_frame, frames, assume_fps=task.assume_fps)
    except ClipRejected as rejected:
        fault = fault or rejected
    thing.header = facts.clip_header(parsed, shared, per_frame, thing.times)

    if fault is not None and fault.reason != Reason.TRUNCATED:
        raise fault
    if task.require_xa:
        _require_xa(parsed, fault)
    if fault is not None:
        raise fault
    if parsed.pixels is None or parsed.pixels.stop == parsed.pixels.start:
        raise ClipRejected(Reason.NO_PIXEL_DATA, f"no pixel data in {task.size} bytes")
    if not pixel_data.is_supported(parsed.transfer_syntax):
        raise ClipRejected(Reason.UNSUPPORTED_TRANSFER_SYNTAX, "no codec for the transfer syntax")
    thing.layout = layout = facts.pixel_layout(parsed)
    _check_size(layout, task)
    thing.voi = facts.voi(dataset, shared, per_frame)
    if not task.header_only:
        thing.table = pixel_data.locate_frames(parsed, thing.source, layout)
    if task.windows:
        if task.frames is None:
            thing.selections = _select(thing.times, layout.num_frames, task.windows)
        else:
            thing.selections = {w.name: select_named(task.frames, layout.num_frames, w) for w in task.windows}


def _require_xa(parsed: ParsedObject, fault: ClipRejected | None) -> None:
    sop_class = facts.sop_class(parsed)
    if sop_class is None and fault is None:
        raise ClipRejected(Reason.HEADER_INVALID, "no SOP class")
    if sop_class is not None and sop_class not in facts.XA_CLASSES:
        raise ClipRejected(Reason.NOT_XA, "not of an X-ray angiographic or radiofluoroscopic class")


def _check_size(layout: facts.PixelLayout, task: Task) -> None:
    limits = task.limits
    checks = (
        (task.size, limits.max_object_bytes, "bytes"),
        (layout.num_frames, limits.max_frames, "frames"),
        (layout.frame_bytes, limits.max_frame_bytes, "bytes a frame, decoded"),
        (layout.frame_bytes * layout.num_frames, limits.max_pixels_bytes, "bytes, decoded"),
    )
    for found, allowed, unit in checks:
        if found > allowed:
            raise ClipRejected(Reason.TOO_LARGE, f"{found} {unit}, {allowed} allowed")


def _select(times: FrameTimes | None, num_frames: int, windows: Sequence[ClipWindow]) -> dict[str, Selection]:
    if times is not None:
        return {window.name: select_frames(times.start_ms, window) for window in windows}
    if num_frames == 1:  # a still image has no frame time, and needs none to be too short
        raise ClipRejected(Reason.TOO_SHORT, "1 frame")
    raise ClipRejected(Reason.FRAME_TIME_UNKNOWN, f"no usable frame time for {num_frames} frames")


def _wanted(selections: dict[str, Selection]) -> list[int]:
    return sorted({index for selection in selections.values() for index in selection.indices})


class _Decoder:
    """Iterates over the stored values of some frames: all their own headers are checked before the first is decoded."""

    def __init__(self, thing: _Object, indices: Sequence[int]) -> None:
        assert thing.parsed is not None
        assert thing.layout is not None
        assert thing.table is not None
        self._parsed, self._layout, self._source = thing.parsed, thing.layout, thing.source
        self._indices = indices
        self._syntax = thing.parsed.transfer_syntax or ""
        self._native = self._syntax in pixel_data.NATIVE
        table = thing.table
        self._frames: dict[int, bytes] = {}
        if self._native:
            assert table.spans is not None
            self._frames = {index: self._native_bytes(table.spans[index]) for index in indices}
            return
        if table.spans is not None:
            if (last := pixel_data.last_item_check(table)) is not None:
                pixel_data.check_last_item(self._source, last[0])
            try:
                self._frames = {index: pixel_data.frame_data(self._source, table, index) for index in indices}
            except pixel_data.TableUnusable:
                if not thing.whole:
                    raise
        if not self._frames:
            scanned = pixel_data.scan_frames(self._parsed, self._source, self._layout)
            self._frames = {index: pixel_data.joined(self._source, scanned[index]) for index in indices}
        self._headers: dict[int, FrameHeader] = {
            index: check_frame(data, self._layout, self._syntax) for index, data in self._frames.items()
        }

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, str]]:
        for index in self._indices:
            data = self._frames[index]
            if self._native:
                yield index, grey.masked(grey.native_values(data, self._layout), self._layout), "native"
            else:
                values, codec = decode_frame(data, self._headers[index], self._layout, self._syntax)
                yield index, grey.masked(values, self._layout), codec

    def _native_bytes(self, span: tuple[int, int]) -> bytes:
        start, stop = span
        pixels = self._parsed.pixels
        assert pixels is not None
        if self._layout.little or self._layout.bits_allocated > 8 or pixels.vr == "OB":
            return bytes(self._source.buffer[start:stop])
        # Big-endian words of two 8-bit values: the second comes first (PS3.5 annex D)
        even = pixels.start + (start - pixels.start) // 2 * 2
        words = np.frombuffer(self._source.buffer[even : stop + (stop - even) % 2], dtype=">u2").astype("<u2")
        return words.tobytes()[start - even : stop - even]


def _write_inputs(thing: _Object, task: Task, answer: Answer) -> str:
    """Decode, make grey, resize and write; returns the codec ("a, b" if it changed in mid-clip)."""
    assert thing.layout is not None
    table = grey.grey_table(thing.layout, thing.voi)
    wanted = _wanted(thing.selections)
    total = sum(window.num_frames * window.size**2 for window in task.windows)
    codecs: dict[str, None] = {}
    file = os.open(task.output_path, os.O_RDWR)
    try:
        output = np.frombuffer(mmap.mmap(file, total), dtype=np.uint8)
    finally:
        os.close(file)
    inputs: dict[str, np.ndarray] = {}
    offset = 0
    for window in task.windows:
        length = window.num_frames * window.size**2
        inputs[window.name] = output[offset : offset + length].reshape(window.num_frames, window.size, window.size)
        offset += length
    places: dict[int, list[tuple[ClipWindow, int]]] = {}
    for window in task.windows:
        for place, shown in enumerate(thing.selections[window.name].indices):
            places.setdefault(shown, []).append((window, place))
    for index, values, codec in _Decoder(thing, wanted):
        codecs[codec] = None
        frame = grey.to_uint8(values, thing.layout, table)
        resized = {size: resize_frame(frame, size) for size in {window.size for window, _ in places[index]}}
        for window, place in places[index]:
            inputs[window.name][place] = resized[window.size]
    return ", ".join(codecs)
