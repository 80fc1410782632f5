"""Where each frame lies in an object's bytes: native data, basic or extended offset table, fragments, no table at all.

Answers in byte ranges of the object, so that a store need send no more than the frames asked for (PS3.5 A.4,
PS3.3 C.7.6.3.1.8). Knows nothing of what the bytes of a frame mean, but for how a compressed frame begins.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from angio_ray.clip import ClipRejected, Reason
from angio_ray.dicom.codecs import ENCAPSULATED, RLE, starts_frame
from angio_ray.dicom.facts import PixelLayout
from angio_ray.dicom.header import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    ITEM,
    SEQUENCE_END,
    UNDEFINED,
    Element,
    ParsedObject,
    Source,
)

NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
_ITEM_HEADER = 8

Span = tuple[int, int]
"""Start and stop of bytes in the object."""


class TableUnusable(Exception):
    """An offset table points at something that is no frame: read the whole object and count fragments instead."""


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Where the frames are. `spans` is None where only a look at the whole pixel data can say."""

    spans: tuple[Span, ...] | None
    """Of each frame: its bytes (native, extended table), or its fragments with their item headers (basic table)."""
    fragmented: bool = False
    """Whether `spans` hold item headers."""


def is_supported(transfer_syntax: str | None) -> bool:
    """Whether there is a codec for it."""
    return transfer_syntax in NATIVE or transfer_syntax in ENCAPSULATED


def locate_frames(parsed: ParsedObject, source: Source, layout: PixelLayout) -> FrameTable:
    """Frame table of an object, from its header and offset table.

    Raises
    ------
    NeedMore
        The offset table is not yet there.
    ClipRejected
        `truncated`, `frame_count_mismatch`, `geometry_mismatch`, `header_invalid`.
    """
    assert parsed.pixels is not None
    if parsed.transfer_syntax in NATIVE:
        return _native(parsed.pixels, source, layout)
    if not parsed.pixels.undefined_length:
        raise ClipRejected(Reason.HEADER_INVALID, "compressed pixel data of defined length")
    if (table := _extended_table(parsed, source, layout)) is not None:
        return table
    return _basic_table(parsed.pixels, source, layout)


def native_frame_bytes(layout: PixelLayout) -> int:
    """Bytes of one frame in native data; YBR_FULL_422 stores two samples for each pixel (PS3.3 C.7.6.3.1.2)."""
    return layout.frame_bytes // 3 * 2 if layout.photometric == "YBR_FULL_422" else layout.frame_bytes


def _native(pixels: Element, source: Source, layout: PixelLayout) -> FrameTable:
    if pixels.undefined_length:
        raise ClipRejected(Reason.HEADER_INVALID, "native pixel data of undefined length")
    frame_bytes = native_frame_bytes(layout)
    length, expected = pixels.stop - pixels.start, frame_bytes * layout.num_frames
    if pixels.stop > source.size and source.size - pixels.start < expected:
        raise ClipRejected(Reason.TRUNCATED, f"pixel data has {source.size - pixels.start} of {length} bytes")
    # Less than a frame too much is padding (an even length needs one byte, some writers add more)
    if not expected <= length < expected + max(frame_bytes, 2):
        if length % frame_bytes <= 1:
            found = f"{length // frame_bytes} frames, the header says {layout.num_frames}"
            raise ClipRejected(Reason.FRAME_COUNT_MISMATCH, f"pixel data has {found}")
        raise ClipRejected(Reason.GEOMETRY_MISMATCH, f"pixel data has {length} bytes, the header says {expected}")
    starts = range(pixels.start, pixels.start + expected, frame_bytes)
    return FrameTable(tuple((start, start + frame_bytes) for start in starts))


def _extended_table(parsed: ParsedObject, source: Source, layout: PixelLayout) -> FrameTable | None:
    """ExtendedOffsetTable and its lengths: one fragment to a frame, 64-bit offsets (PS3.3 C.7.6.3.1.8)."""
    offsets_raw, lengths_raw = parsed.dataset.raw(0x7FE00001), parsed.dataset.raw(0x7FE00002)
    if not offsets_raw or not lengths_raw or len(offsets_raw) % 8 or len(offsets_raw) != len(lengths_raw):
        return None
    count = len(offsets_raw) // 8
    _check_count(count, layout)
    assert parsed.pixels is not None
    first_frame = _after_table(parsed.pixels, source)[0]
    offsets, lengths = struct.unpack(f"<{count}Q", offsets_raw), struct.unpack(f"<{count}Q", lengths_raw)
    spans = []
    for offset, length in zip(offsets, lengths, strict=True):
        start = first_frame + offset + _ITEM_HEADER
        if start + length > source.size:
            raise ClipRejected(Reason.TRUNCATED, f"a frame ends at byte {start + length} of an object of {source.size}")
        spans.append((start - _ITEM_HEADER, start + length + length % 2))
    return FrameTable(tuple(spans), fragmented=True)


def _basic_table(pixels: Element, source: Source, layout: PixelLayout) -> FrameTable:
    first_frame, table = _after_table(pixels, source)
    if not table or len(table) % 4:
        return FrameTable(None)
    _check_count(len(table) // 4, layout)
    offsets = struct.unpack(f"<{len(table) // 4}I", table)
    if offsets[0] != 0 or any(a >= b for a, b in itertools.pairwise(offsets)):
        return FrameTable(None)
    if first_frame + offsets[-1] + _ITEM_HEADER > source.size:
        last = first_frame + offsets[-1]
        raise ClipRejected(Reason.TRUNCATED, f"the last frame begins at byte {last} of an object of {source.size}")
    bounds = [*(first_frame + offset for offset in offsets), source.size]
    return FrameTable(tuple(itertools.pairwise(bounds)), fragmented=True)


def _after_table(pixels: Element, source: Source) -> tuple[int, bytes]:
    """Where the first frame's item begins, and the basic offset table before it (maybe empty)."""
    tag, length = _item(source, pixels.start)
    if tag != ITEM or length == UNDEFINED:
        raise ClipRejected(Reason.HEADER_INVALID, "compressed pixel data does not begin with an offset table")
    start, stop = pixels.start + _ITEM_HEADER, pixels.start + _ITEM_HEADER + length
    # A first item that is a frame: the table was left out altogether, against PS3.5 A.4
    source.need(min(start + 16, source.size))
    if length > 12 and starts_frame(bytes(source.buffer[start : start + 12])):
        return pixels.start, b""
    source.need(stop)
    return stop, bytes(source.buffer[start:stop])


def last_item_check(table: FrameTable) -> Span | None:
    """Bytes that show whether the last frame is all there: the header of its first item."""
    if table.spans is None or not table.fragmented:
        return None
    start, _ = table.spans[-1]
    return start, start + _ITEM_HEADER


def check_last_item(source: Source, start: int) -> None:
    """`truncated` where the object ends inside the item at `start`."""
    tag, length = _item(source, start)
    if tag == ITEM and start + _ITEM_HEADER + length > source.size:
        stop = start + _ITEM_HEADER + length
        raise ClipRejected(Reason.TRUNCATED, f"the last frame ends at byte {stop} of an object of {source.size}")


def frame_data(source: Source, table: FrameTable, index: int) -> bytes:
    """Bytes of one frame, its fragments joined.

    Raises
    ------
    TableUnusable
        The offset table does not point at an item.
    ClipRejected
        `truncated`.
    """
    assert table.spans is not None
    start, stop = table.spans[index]
    if not table.fragmented:
        return bytes(source.buffer[start:stop])
    fragments, _ = _fragments(source, start, stop)
    if not fragments:
        raise TableUnusable
    return joined(source, fragments)


def scan_frames(parsed: ParsedObject, source: Source, layout: PixelLayout) -> list[list[Span]]:
    """Fragments of every frame of compressed pixel data, found by its fragments alone; the whole object must be there.

    Raises
    ------
    ClipRejected
        `truncated`, `frame_count_mismatch`.
    """
    assert parsed.pixels is not None
    first_frame, _ = _after_table(parsed.pixels, source)
    fragments, closed = _fragments(source, first_frame, source.size)
    frames = _group(source, fragments, layout, rle=parsed.transfer_syntax == RLE)
    if len(frames) != layout.num_frames:
        if not closed and len(frames) < layout.num_frames:
            raise ClipRejected(Reason.TRUNCATED, f"pixel data ends after {len(frames)} of {layout.num_frames} frames")
        _check_count(len(frames), layout)
    return frames


def _group(source: Source, fragments: Sequence[Span], layout: PixelLayout, *, rle: bool) -> list[list[Span]]:
    """Fragments of each frame. A frame begins where a fragment begins as one does; RLE has one fragment to a frame."""
    if rle:
        return [[span] for span in fragments]
    starts = [starts_frame(bytes(source.buffer[start : min(stop, start + 12)])) for start, stop in fragments]
    if not any(starts):
        # Nothing is recognised: either one frame in pieces, or one piece to a frame; decoding will tell
        return [list(fragments)] if layout.num_frames == 1 and fragments else [[span] for span in fragments]
    frames: list[list[Span]] = []
    for span, is_start in zip(fragments, starts, strict=True):
        if is_start or not frames:
            frames.append([])
        frames[-1].append(span)
    return frames


def _fragments(source: Source, position: int, stop: int) -> tuple[list[Span], bool]:
    """Values of the items in `position:stop`, and whether the delimiter of the sequence was seen."""
    fragments: list[Span] = []
    while position + _ITEM_HEADER <= stop:
        tag, length = _item(source, position)
        if tag == SEQUENCE_END:
            return fragments, True
        if tag != ITEM or length == UNDEFINED:
            return fragments, False
        start = position + _ITEM_HEADER
        position = start + length
        if position > source.size:
            raise ClipRejected(Reason.TRUNCATED, f"a fragment ends at byte {position} of an object of {source.size}")
        if position > stop:
            raise TableUnusable
        if length:
            fragments.append((start, position))
    return fragments, False


def joined(source: Source, fragments: Sequence[Span]) -> bytes:
    """Bytes of a frame from its fragments."""
    return b"".join(source.buffer[start:stop] for start, stop in fragments)


def _item(source: Source, position: int) -> tuple[int, int]:
    """Tag and length of an item; compressed data is always little endian."""
    source.need(position + _ITEM_HEADER)
    group, element, length = struct.unpack_from("<HHI", source.buffer, position)
    return group << 16 | element, length


def _check_count(count: int, layout: PixelLayout) -> None:
    if count != layout.num_frames:
        detail = f"pixel data has {count} frames, the header says {layout.num_frames}"
        raise ClipRejected(Reason.FRAME_COUNT_MISMATCH, detail)
