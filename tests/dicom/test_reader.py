"""The whole way of one object: its inputs when it is good, its reason when it is not, and never an exception."""

from __future__ import annotations

import dataclasses
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from angio_ray.clip import ClipRejected, Reason
from angio_ray.dicom.reader import ClipReader, Limits
from angio_ray.sampling import ClipWindow, resize_frames
from tests.dicom.objects import (
    Bytes,
    element,
    encode_jpeg,
    encode_jpeg_lossless,
    enhanced_xa,
    moving_frames,
    with_element_before_pixels,
    xa_bytes,
    xa_compressed,
)

FRAMES = moving_frames(48)
GOOD = xa_bytes(FRAMES)
LOSSLESS = [encode_jpeg_lossless(frame) for frame in FRAMES]


def renamed(data: bytes, old: str, new: str) -> bytes:
    """Another UID of the same length."""
    assert len(old) == len(new)
    assert old.encode() in data
    return data.replace(old.encode(), new.encode())


def huge_frame_header(frame: bytes) -> bytes:
    """A JPEG frame that claims 65,500 x 65,500 px."""
    start = frame.index(b"\xff\xc3") + 5
    return frame[:start] + struct.pack(">HH", 65500, 65500) + frame[start + 4 :]


def nested(depth: int) -> bytes:
    opening = element(0x0009, 0x1001, b"SQ", b"")[:-4] + b"\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return opening * depth + closing * depth


def deflate_bomb() -> bytes:
    start = xa_bytes(FRAMES, syntax="1.2.840.10008.1.2.1.99")
    meta = start[: start.index(b"1.2.840.10008.1.2.1.99") + 22]
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    mebibyte = packer.compress(b"\0" * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return meta + mebibyte * 600


BAD: dict[str, tuple[Any, Reason]] = {
    "empty": (b"", Reason.NOT_DICOM),
    "text": (b"these are not the bytes you are looking for" * 10, Reason.NOT_DICOM),
    "noise": (np.random.default_rng(1).bytes(5000), Reason.NOT_DICOM),
    "no DICM mark": (GOOD[:128] + b"MCID" + GOOD[132:], Reason.NOT_DICOM),
    "nothing after the mark": (b"\0" * 128 + b"DICM", Reason.HEADER_INVALID),
    "a CT": (xa_bytes(FRAMES, SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), Reason.NOT_XA),
    "no pixel data": (xa_bytes(FRAMES, PixelData=None), Reason.NO_PIXEL_DATA),
    "empty pixel data": (xa_bytes(FRAMES, PixelData=b""), Reason.NO_PIXEL_DATA),
    "float pixel data": (
        xa_bytes(FRAMES).replace(b"\xe0\x7f\x10\x00OB", b"\xe0\x7f\x08\x00OF"),
        Reason.NO_PIXEL_DATA,
    ),
    "pixel data of undefined length": (
        xa_bytes(FRAMES).replace(
            b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<I", FRAMES.nbytes), b"\xe0\x7f\x10\x00OB\0\0" + b"\xff" * 4
        ),
        Reason.HEADER_INVALID,
    ),
    "MPEG-4": (renamed(GOOD, "1.2.840.10008.1.2.1\0", "1.2.840.10008.1.9.9\0"), Reason.UNSUPPORTED_TRANSFER_SYNTAX),
    "no rows": (xa_bytes(FRAMES, Rows=None), Reason.HEADER_INVALID),
    "zero rows": (xa_bytes(FRAMES, Rows=0), Reason.HEADER_INVALID),
    "zero frames": (xa_bytes(FRAMES, NumberOfFrames="0"), Reason.HEADER_INVALID),
    "negative frames": (xa_bytes(FRAMES, NumberOfFrames="-5"), Reason.HEADER_INVALID),
    "bits allocated 1": (xa_bytes(FRAMES, BitsAllocated=1, BitsStored=1), Reason.HEADER_INVALID),
    "bits allocated 32": (xa_bytes(FRAMES, BitsAllocated=32, BitsStored=32), Reason.HEADER_INVALID),
    "bits stored beyond": (xa_bytes(FRAMES, BitsStored=9), Reason.HEADER_INVALID),
    "palette colour": (xa_bytes(FRAMES, PhotometricInterpretation="PALETTE COLOR"), Reason.HEADER_INVALID),
    "sequences 3000 deep": (with_element_before_pixels(GOOD, nested(3000)), Reason.HEADER_INVALID),
    "a million frames": (xa_bytes(FRAMES, NumberOfFrames="1000000"), Reason.TOO_LARGE),
    "65535 x 65535": (xa_bytes(FRAMES, Rows=65535, Columns=65535), Reason.TOO_LARGE),
    "a deflate bomb": (deflate_bomb, Reason.TOO_LARGE),
    "more frames than there are": (xa_bytes(FRAMES, NumberOfFrames="50"), Reason.FRAME_COUNT_MISMATCH),
    "fewer frames than there are": (xa_bytes(FRAMES, NumberOfFrames="40"), Reason.FRAME_COUNT_MISMATCH),
    "frame count absent": (xa_bytes(FRAMES, NumberOfFrames=None), Reason.FRAME_COUNT_MISMATCH),
    "cut in the pixels": (GOOD[:-5000], Reason.TRUNCATED),
    "cut in the header": (GOOD[:585], Reason.TRUNCATED),
    "other columns": (xa_bytes(FRAMES, Columns=47), Reason.GEOMETRY_MISMATCH),
    "no frame time": (xa_bytes(FRAMES, FrameTime=None, FrameIncrementPointer=None), Reason.FRAME_TIME_UNKNOWN),
    "frame time 0": (xa_bytes(FRAMES, FrameTime="0"), Reason.FRAME_TIME_UNKNOWN),
    "three frames": (xa_bytes(FRAMES[:3]), Reason.TOO_SHORT),
    "one frame": (xa_bytes(FRAMES[:1], FrameTime=None, FrameIncrementPointer=None), Reason.TOO_SHORT),
    "frames of another size": (xa_compressed(LOSSLESS, FRAMES, Rows=32), Reason.GEOMETRY_MISMATCH),
    "65500 x 65500 in 64 x 48": (
        xa_compressed([huge_frame_header(frame) for frame in LOSSLESS], FRAMES),
        Reason.GEOMETRY_MISMATCH,
    ),
    "frames without an end": (
        xa_compressed([frame[: len(frame) // 2] for frame in LOSSLESS], FRAMES),
        Reason.TRUNCATED,
    ),
    "frames of noise": (xa_compressed([b"\1\2\3\4" * 99] * 48, FRAMES), Reason.DECODE_ERROR),
    "a scan of noise": (
        xa_compressed([frame[:60] + b"\xff\x01" * 200 + b"\xff\xd9" for frame in LOSSLESS], FRAMES),
        Reason.DECODE_ERROR,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_each_fault_has_its_reason(reader: ClipReader, name: str) -> None:
    data, reason = BAD[name]
    outcome = reader.read(Bytes(data() if callable(data) else data))
    assert outcome.reason == reason, outcome.detail
    assert outcome.inputs == {}
    assert outcome.detail
    assert "Phantom" not in outcome.detail


def test_a_rejected_clip_keeps_its_header(reader: ClipReader) -> None:
    for name in ("cut in the pixels", "no frame time", "a million frames", "frames of another size", "a CT"):
        outcome = reader.read(Bytes(BAD[name][0]))
        assert outcome.header is not None
        assert outcome.header.dicom_patient_id == "P1"


def test_a_good_clip(reader: ClipReader) -> None:
    outcome = reader.read(Bytes(GOOD))
    assert outcome.reason is None
    assert outcome.detail is None
    assert outcome.codec == "native"
    assert outcome.selections["quality"].indices == tuple(range(15, 47, 2))
    assert (outcome.inputs["quality"] == resize_frames(FRAMES[15:47:2], 32)).all()
    header = outcome.header
    assert header is not None
    assert (header.primary_angle_deg, header.secondary_angle_deg, header.plane) == (-30.5, 20.0, "b")
    assert (header.frame_time_ms, header.frame_time_source) == (pytest.approx(66.667), "frame_time")


def test_several_windows_come_from_one_decoding(reader: ClipReader) -> None:
    windows = [
        ClipWindow(name="3d", size=40),
        ClipWindow(name="2d", size=52, stride=8),
        ClipWindow(name="all", size=40, start=0, length=48, stride=1),
    ]
    with ClipReader(windows) as several:
        outcome = several.read(Bytes(xa_compressed(LOSSLESS, FRAMES)))
    assert outcome.codec == "imagecodecs:jpeg8"
    assert (outcome.inputs["3d"] == resize_frames(FRAMES[15:47:2], 40)).all()
    assert (outcome.inputs["2d"] == resize_frames(FRAMES[15:47:8], 52)).all()
    assert (outcome.inputs["all"] == resize_frames(FRAMES, 40)).all()


def test_an_assumed_rate_is_used_and_named() -> None:
    data = xa_bytes(FRAMES, FrameTime=None, FrameIncrementPointer=None)
    with ClipReader([ClipWindow(name="quality", size=32)], assume_fps=15) as assuming:
        outcome = assuming.read(Bytes(data))
    assert outcome.reason is None
    assert outcome.header is not None
    assert outcome.header.frame_time_source == "assumed"


def test_enhanced_xa_is_read_through_its_functional_groups(reader: ClipReader) -> None:
    frames = moving_frames(90, bits=12)
    outcome = reader.read(Bytes(enhanced_xa(frames, interval_ms=40.0, BitsStored=12)))
    assert outcome.reason is None
    header = outcome.header
    assert header is not None
    assert (header.primary_angle_deg, header.secondary_angle_deg) == (31.5, -20.5)
    assert (header.frame_time_ms, header.frame_time_source) == (pytest.approx(40.0), "frame_date_time")
    assert header.distance_source_to_detector_mm == 1100
    windowed = np.clip((frames.astype(float) - 2047.5) / 1023 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
    shown = np.rint(windowed).astype(np.uint8)[list(outcome.selections["quality"].indices)]
    assert (outcome.inputs["quality"] == resize_frames(shown, 32)).all()


def test_real_clip(shared_data: Path, reader: ClipReader) -> None:
    source = Bytes((shared_data / "xa_real" / "0002.DCM").read_bytes())
    outcome = reader.read(source)
    assert outcome.reason is None
    assert outcome.inputs["quality"].shape == (16, 32, 32)
    assert outcome.fetched_bytes < len(source.data) / 3
    assert outcome.selections["quality"].num_resampled == 48
    assert outcome.header is not None
    assert outcome.header.primary_angle_deg == -32


def test_every_real_and_hostile_file_comes_to_an_outcome(
    shared_data: Path, reader: ClipReader, any_class_reader: ClipReader
) -> None:
    seen: dict[str | None, int] = {}
    for path in sorted(shared_data.glob("**/*")):
        if not path.is_file() or "crds" in path.parts:
            continue
        outcome = reader.read(Bytes(path.read_bytes()))
        seen[outcome.reason] = seen.get(outcome.reason, 0) + 1
        looser = any_class_reader.read(Bytes(path.read_bytes()))
        assert (looser.reason is None) == bool(looser.inputs)
        assert looser.reason not in (Reason.DECODER_CRASHED, Reason.DECODE_TIMEOUT, Reason.OUT_OF_MEMORY), path.name
        assert "unexpected" not in (looser.detail or ""), path.name
        assert reader.index(Bytes(path.read_bytes())).inputs == {}
    assert seen[None] == 9  # the real clip and eight from the cath lab
    assert seen.keys() == {None, Reason.NOT_DICOM, Reason.NOT_XA, Reason.HEADER_INVALID}


@pytest.mark.parametrize("name", ["native", "lossless", "enhanced", "baseline"])
def test_mutated_objects_come_to_an_outcome(reader: ClipReader, name: str) -> None:
    frames = FRAMES[:8]
    original = {
        "native": lambda: xa_bytes(frames),
        "lossless": lambda: xa_compressed(LOSSLESS[:8], frames, fragments=2),
        "enhanced": lambda: enhanced_xa(frames),
        "baseline": lambda: xa_compressed([encode_jpeg(f) for f in frames], frames, syntax="1.2.840.10008.1.2.4.50"),
    }[name]()
    random = np.random.default_rng(7)
    pixels = original.index(b"\xe0\x7f\x10\x00")
    for _ in range(120):
        data = bytearray(original)
        for _ in range(random.integers(1, 8)):
            # The header takes a tenth of the bytes and half of the blows
            place = random.integers(132, pixels + 20) if random.random() < 0.5 else random.integers(132, len(data))
            data[place] = random.integers(256)
        if random.random() < 0.2:
            data = data[: random.integers(100, len(data))]
        outcome = reader.read(Bytes(bytes(data)))
        assert (outcome.reason is None) == bool(outcome.inputs)
        assert "unexpected" not in (outcome.detail or ""), outcome.detail


def test_index_reads_the_header_alone(reader: ClipReader) -> None:
    frames = moving_frames(60, 256, 256)
    source = Bytes(xa_bytes(frames))
    outcome = reader.index(source)
    assert outcome.reason is None
    assert outcome.header is not None
    assert outcome.header.num_frames == 60
    assert outcome.fetched_bytes <= 128 << 10
    assert outcome.inputs == {}


def test_a_long_header_is_fetched_piece_by_piece_up_to_a_limit(reader: ClipReader) -> None:
    bulk = element(0x0009, 0x1001, b"OB", b"\0" * (3 << 20))
    data = with_element_before_pixels(xa_bytes(moving_frames(48, 256, 256)), bulk)
    assert reader.read(Bytes(data)).reason is None
    with ClipReader([ClipWindow(name="quality", size=32)], limits=Limits(max_header_bytes=1 << 20)) as strict:
        assert strict.read(Bytes(data)).reason == Reason.TOO_LARGE


class Unreliable(Bytes):
    """A store that fails, or whose object is replaced, at the second read."""

    def __init__(self, data: bytes, *, error: ClipRejected | None = None, always: bool = False) -> None:
        super().__init__(data)
        self._error = error
        self._always = always
        self._reads = 0

    def read(self, ranges: Any) -> list[bytes]:
        self._reads += 1
        if self._reads == 2 and self._error is not None:
            raise self._error
        if self._reads == 2 or self._always:
            self.info = type(self.info)(size_bytes=self.info.size_bytes, etag=str(self._reads + 1))
        return super().read(ranges)


def test_what_the_store_says_is_the_reason(reader: ClipReader) -> None:
    data = xa_bytes(moving_frames(48, 256, 256))
    failing = reader.read(Unreliable(data, error=ClipRejected(Reason.READ_ERROR, "HTTP status 503 after 4 tries")))
    assert (failing.reason, failing.detail) == (Reason.READ_ERROR, "HTTP status 503 after 4 tries")
    assert failing.header is not None


def test_an_object_replaced_while_it_is_read_is_read_anew(reader: ClipReader) -> None:
    data = xa_bytes(moving_frames(48, 256, 256))
    once = reader.read(Unreliable(data))
    assert once.reason is None
    assert once.info.etag == "3"
    assert reader.read(Unreliable(data, always=True)).reason == Reason.READ_ERROR


def test_threads_fetch_at_once_and_get_their_own_clips(reader: ClipReader) -> None:
    clips = [moving_frames(48, seed=seed) for seed in range(4)]
    outcomes: dict[int, Any] = {}

    def read(number: int) -> None:
        for _ in range(5):
            outcomes[number] = reader.read(Bytes(xa_bytes(clips[number])))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, frames in enumerate(clips):
        assert (outcomes[number].inputs["quality"] == resize_frames(frames[15:47:2], 32)).all()


def test_a_clip_that_hangs_or_hungers_costs_no_other() -> None:
    window = ClipWindow(name="quality", size=32)
    big = xa_bytes(moving_frames(4, 16, 16), Rows=9000, Columns=9000, NumberOfFrames="4", PixelData=bytes(4 * 81000000))
    # So little that one frame of 81 million pixels is too much, while small clips pass
    with ClipReader([window], limits=Limits(memory_bytes=160 << 20)) as hungry:
        assert hungry.read(Bytes(big)).reason == Reason.OUT_OF_MEMORY
        assert hungry.read(Bytes(GOOD)).reason is None
    with ClipReader([window], limits=Limits(timeout_s=0.05)) as hasty:
        assert hasty.read(Bytes(big)).reason == Reason.DECODE_TIMEOUT
        assert hasty.read(Bytes(GOOD)).reason is None


def test_arguments_that_make_no_sense_are_errors() -> None:
    window = ClipWindow(name="a", size=32)
    with pytest.raises(ValueError, match="same name"):
        ClipReader([window, window])
    with pytest.raises(ValueError, match="assume_fps"):
        ClipReader([window], assume_fps=0)
    with pytest.raises(ValueError, match="max_frames"):
        dataclasses.replace(Limits(), max_frames=0)
