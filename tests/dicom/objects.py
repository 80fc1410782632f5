"""Builds DICOM objects for tests: small XA clips with known frames, whole or damaged on purpose."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID

XA = "1.2.840.10008.5.1.4.1.1.12.1"
ENHANCED_XA = "1.2.840.10008.5.1.4.1.1.12.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


class Bytes:
    """An object in memory that answers range reads and remembers them."""

    def __init__(self, data: bytes, etag: str = "1") -> None:
        self.data = data
        self.info = SimpleNamespace(size_bytes=len(data), etag=etag)
        self.asked: list[tuple[int, int]] = []

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.asked += ranges
        return [self.data[start:stop] for start, stop in ranges]


def moving_frames(num_frames: int, rows: int = 64, columns: int = 48, *, bits: int = 8, seed: int = 0) -> np.ndarray:
    """Noise on a moving gradient: no two frames alike, nothing that a codec can shortcut."""
    noise = np.random.default_rng(seed).integers(0, 2 ** (bits - 2), (num_frames, rows, columns))
    y, x = np.mgrid[:rows, :columns]
    ramp = [(y * 2 + x + 5 * k) % (2**bits - 2 ** (bits - 2)) for k in range(num_frames)]
    return (np.stack(ramp) + noise).astype(np.uint8 if bits <= 8 else np.uint16)


def encode_jpeg_lossless(frame: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(frame, lossless=True, predictor=1, bitspersample=8 * frame.itemsize)


def encode_jpeg(frame: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(frame, level=95)


def encode_jpeg_ls(frame: np.ndarray) -> bytes:
    return imagecodecs.jpegls_encode(frame)


def encode_jpeg_2000(frame: np.ndarray) -> bytes:
    return imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True, level=0)


def encode_htj2k(frame: np.ndarray) -> bytes:
    return imagecodecs.htj2k_encode(frame, reversible=True)


def encode_rle(frame: np.ndarray) -> bytes:
    """PS3.5 annex G, one segment for each byte of a grey value."""
    planes = [frame] if frame.itemsize == 1 else [(frame >> 8).astype(np.uint8), (frame & 255).astype(np.uint8)]
    segments = [b"".join(map(_packbits, plane)) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    offsets = [64 + sum(map(len, segments[:k])) for k in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def _packbits(row: np.ndarray) -> bytes:
    return imagecodecs.packbits_encode(row.tobytes())


SYNTAXES: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.5": encode_rle,
    "1.2.840.10008.1.2.4.57": encode_jpeg_lossless,
    JPEG_LOSSLESS: encode_jpeg_lossless,
    "1.2.840.10008.1.2.4.80": encode_jpeg_ls,
    "1.2.840.10008.1.2.4.90": encode_jpeg_2000,
    "1.2.840.10008.1.2.4.201": encode_htj2k,
}
"""Lossless ways of compression."""


def xa_dataset(frames: np.ndarray, *, syntax: str = EXPLICIT, **attributes: Any) -> FileDataset:
    """A plain XA object at 15 frames/s with native pixel data; `attributes` override, None leaves one out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(XA)
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4.5")
    meta.TransferSyntaxUID = UID(syntax)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    bits = 8 if frames.dtype.itemsize == 1 else 16
    values: dict[str, Any] = {
        "SOPClassUID": XA,
        "SOPInstanceUID": "1.2.3.4.5",
        "StudyInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3.4.1",
        "ImageType": ["ORIGINAL", "PRIMARY", "BIPLANE B"],
        "PatientID": "P1",
        "PatientName": "Test^Phantom",
        "Rows": frames.shape[1],
        "Columns": frames.shape[2],
        "NumberOfFrames": len(frames),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "FrameIncrementPointer": 0x00181063,
        "FrameTime": "66.667",
        "PositionerPrimaryAngle": "-30.5",
        "PositionerSecondaryAngle": "20",
        "PixelData": frames.tobytes(),
    } | attributes
    if attributes.get("BitsStored") and "HighBit" not in attributes:
        values["HighBit"] = attributes["BitsStored"] - 1
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


def written(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def xa_bytes(frames: np.ndarray, **attributes: Any) -> bytes:
    """Bytes of `xa_dataset`."""
    return written(xa_dataset(frames, **attributes))


def xa_compressed(
    encoded: Sequence[bytes],
    frames: np.ndarray,
    *,
    syntax: str = JPEG_LOSSLESS,
    table: str = "basic",
    fragments: int = 1,
    **attributes: Any,
) -> bytes:
    """An XA object whose pixel data holds `encoded`; `table`: basic | extended | none."""
    dataset = xa_dataset(frames, syntax=syntax, **attributes)
    if table == "extended":
        dataset.PixelData, offsets, lengths = encapsulate_extended(list(encoded))
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    else:
        dataset.PixelData = encapsulate(list(encoded), fragments_per_frame=fragments, has_bot=table == "basic")
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def enhanced_xa(frames: np.ndarray, *, interval_ms: float = 40.0, **attributes: Any) -> bytes:
    """An Enhanced XA object: times, angles and window in functional groups only."""
    dataset = xa_dataset(
        frames,
        SOPClassUID=ENHANCED_XA,
        FrameTime=None,
        FrameIncrementPointer=None,
        PositionerPrimaryAngle=None,
        PositionerSecondaryAngle=None,
        **attributes,
    )
    shared, window, geometry = Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = "2048", "1024"
    shared.FrameVOILUTSequence = [window]
    geometry.DistanceSourceToDetector = "1100"
    shared.XRayGeometrySequence = [geometry]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in range(len(frames)):
        group, content, position = Dataset(), Dataset(), Dataset()
        seconds = 10.0 + index * interval_ms / 1000.0
        content.FrameReferenceDateTime = f"202601010101{seconds:09.6f}"
        group.FrameContentSequence = [content]
        position.PositionerPrimaryAngle, position.PositionerSecondaryAngle = 31.5 + index, -20.5
        group.PositionerPositionSequence = [position]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return written(dataset)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """One explicit little endian element, written by hand."""
    long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    header = struct.pack("<HH", group, number) + vr
    return header + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value


def with_element_before_pixels(data: bytes, extra: bytes) -> bytes:
    """Insert bytes just before the pixel data element."""
    place = data.index(b"\xe0\x7f\x10\x00")
    return data[:place] + extra + data[place:]
