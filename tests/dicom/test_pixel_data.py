"""Where frames lie: offset tables of both kinds, fragments, no table, and tables that lie."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from angio_ray.clip import ClipRejected, Reason
from angio_ray.dicom.reader import ClipReader, decode_frames
from angio_ray.sampling import resize_frames
from tests.dicom.objects import (
    JPEG_LOSSLESS,
    SYNTAXES,
    Bytes,
    encode_jpeg_lossless,
    encode_rle,
    moving_frames,
    xa_bytes,
    xa_compressed,
)


def items_of(data: bytes) -> list[int]:
    """Positions of the items of the pixel data."""
    start = data.index(b"\xe0\x7f\x10\x00OB") + 12
    found = []
    while data[start : start + 4] == b"\xfe\xff\x00\xe0":
        found.append(start)
        start += 8 + struct.unpack_from("<I", data, start + 4)[0]
    return found


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"])
def test_every_way_of_saying_where_frames_are(table: str, fragments: int, syntax: str) -> None:
    if table == "extended" and fragments > 1:
        pytest.skip("an extended table has one fragment to a frame")
    frames = moving_frames(6)
    encoded = [SYNTAXES[syntax](frame) for frame in frames]
    data = xa_compressed(encoded, frames, syntax=syntax, table=table, fragments=fragments)
    assert (decode_frames(data) == frames).all()
    assert (decode_frames(data, [4, 1]) == frames[[4, 1]]).all()


def test_only_the_bytes_of_the_shown_frames_are_fetched(reader: ClipReader) -> None:
    frames = moving_frames(96, 256, 256)
    encoded = [encode_jpeg_lossless(frame) for frame in frames]
    for table in ("basic", "extended"):
        source = Bytes(xa_compressed(encoded, frames, table=table))
        outcome = reader.read(source)
        assert outcome.reason is None
        shown = sum(len(encoded[index]) for index in outcome.selections["quality"].indices)
        assert outcome.fetched_bytes < shown + (200 << 10) < len(source.data) / 3
        assert outcome.fetched_bytes == sum(stop - start for start, stop in source.asked)
        assert outcome.content_sha256 is None
        expected = resize_frames(frames[list(outcome.selections["quality"].indices)], 32)
        assert (outcome.inputs["quality"] == expected).all()


def test_native_frames_are_fetched_by_range(reader: ClipReader) -> None:
    frames = moving_frames(60, 256, 256)
    source = Bytes(xa_bytes(frames))
    outcome = reader.read(source)
    assert outcome.codec == "native"
    assert outcome.fetched_bytes <= 16 * 256 * 256 + (128 << 10)
    assert (outcome.inputs["quality"] == resize_frames(frames[15:47:2], 32)).all()


def test_without_a_table_the_whole_object_is_read_and_hashed(reader: ClipReader) -> None:
    import hashlib

    frames = moving_frames(48, 256, 256)
    source = Bytes(xa_compressed([encode_jpeg_lossless(frame) for frame in frames], frames, table="none"))
    assert len(source.data) > 2 << 20
    outcome = reader.read(source)
    assert (outcome.inputs["quality"] == resize_frames(frames[15:47:2], 32)).all()
    assert outcome.content_sha256 == hashlib.sha256(source.data).hexdigest()
    assert outcome.fetched_bytes == len(source.data)


def test_a_table_that_points_between_frames_gives_way_to_the_fragments(reader: ClipReader) -> None:
    frames = moving_frames(48, 256, 256)
    data = bytearray(xa_compressed([encode_jpeg_lossless(frame) for frame in frames], frames))
    table = items_of(bytes(data))[0] + 8
    for index in range(1, 48):
        offset = struct.unpack_from("<I", data, table + 4 * index)[0]
        struct.pack_into("<I", data, table + 4 * index, offset + 6)
    outcome = reader.read(Bytes(bytes(data)))
    assert outcome.reason is None
    assert (outcome.inputs["quality"] == resize_frames(frames[15:47:2], 32)).all()


@pytest.mark.parametrize("table", ["basic", "none", "extended"])
@pytest.mark.parametrize("claimed", [4, 6])
def test_another_number_of_frames_than_the_header_says(table: str, claimed: int) -> None:
    frames = moving_frames(5)
    data = xa_compressed([encode_jpeg_lossless(f) for f in frames], frames, table=table, NumberOfFrames=claimed)
    with pytest.raises(ClipRejected, match=f"5 frames, the header says {claimed}") as rejected:
        decode_frames(data)
    assert rejected.value.reason == Reason.FRAME_COUNT_MISMATCH


def test_a_single_frame_object_with_several_frames_is_a_mismatch() -> None:
    frames = moving_frames(5)
    encoded = [encode_jpeg_lossless(frame) for frame in frames]
    for claimed in (1, None):
        with pytest.raises(ClipRejected) as rejected:
            decode_frames(xa_compressed(encoded, frames, table="none", NumberOfFrames=claimed))
        assert rejected.value.reason == Reason.FRAME_COUNT_MISMATCH


@pytest.mark.parametrize("table", ["basic", "none", "extended"])
@pytest.mark.parametrize("where", ["in a frame", "between frames", "in the last frame"])
def test_a_cut_object_is_truncated(table: str, where: str) -> None:
    frames = moving_frames(5)
    data = xa_compressed([encode_jpeg_lossless(frame) for frame in frames], frames, table=table)
    items = items_of(data)
    cut = {"in a frame": items[3] + 30, "between frames": items[4], "in the last frame": items[5] + 40}[where]
    with pytest.raises(ClipRejected) as rejected:
        decode_frames(data[:cut])
    assert rejected.value.reason == Reason.TRUNCATED


def test_pixel_data_never_closed_is_read_when_every_frame_is_there() -> None:
    frames = moving_frames(5)
    for table in ("basic", "none"):
        data = xa_compressed([encode_jpeg_lossless(frame) for frame in frames], frames, table=table)
        assert data.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
        assert (decode_frames(data[:-8]) == frames).all()


@pytest.mark.parametrize(
    ("num_bytes", "reason"),
    [
        (3 * 3072, Reason.FRAME_COUNT_MISMATCH),
        (5 * 3072, Reason.FRAME_COUNT_MISMATCH),
        (4 * 3072 - 700, Reason.GEOMETRY_MISMATCH),
        (4 * 3072 + 5000, Reason.GEOMETRY_MISMATCH),
    ],
)
def test_native_data_of_another_length(num_bytes: int, reason: Reason) -> None:
    frames = moving_frames(4)
    with pytest.raises(ClipRejected) as rejected:
        decode_frames(xa_bytes(frames, PixelData=b"\x07" * num_bytes))
    assert rejected.value.reason == reason


def test_native_data_cut_and_padded() -> None:
    frames = moving_frames(4)
    data = xa_bytes(frames)
    with pytest.raises(ClipRejected) as rejected:
        decode_frames(data[:-100])
    assert rejected.value.reason == Reason.TRUNCATED
    padded = xa_bytes(frames, PixelData=frames.tobytes() + b"\0" * 10)
    assert (decode_frames(padded) == frames).all()


def test_rle_has_one_fragment_to_a_frame() -> None:
    frames = moving_frames(4, bits=16)
    encoded = [encode_rle(frame) for frame in frames]
    syntax = "1.2.840.10008.1.2.5"
    for table in ("basic", "none"):
        assert (decode_frames(xa_compressed(encoded, frames, syntax=syntax, table=table)) == frames).all()
    swapped = np.frombuffer(frames.tobytes(), np.uint8).reshape(4, 64, 48, 2)
    assert not (swapped[..., 0] == swapped[..., 1]).all()  # byte order was put to the test


def test_compressed_data_of_defined_length_is_invalid() -> None:
    with pytest.raises(ClipRejected) as rejected:
        decode_frames(xa_bytes(moving_frames(4)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    assert rejected.value.reason == Reason.HEADER_INVALID
