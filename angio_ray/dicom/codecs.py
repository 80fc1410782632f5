"""Decodes one compressed frame: imagecodecs first, pydicom's plugins as the fall-back, the same bits from either.

A frame's own header says what it is: its geometry is compared with the object's before any decoder allocates for it
(a 600-byte JPEG that claims 65,500 x 65,500 px costs 6 GB and 18 s in a decoder), and the decoder is chosen by it, since
streams and transfer syntaxes disagree in real files. Knows nothing of fragments, offset tables or grey scales.

Damage inside a frame that still has its end marker, such as a frame cut or zeroed from somewhere on:

- RLE and JPEG-LS: found, their decoders refuse what does not fill the frame or does not end with it.
- JPEG, baseline, extended and lossless (Huffman): found where at least the last row is lost, or where 32 bytes or more
  of zeros stand before the end marker without being needed. libjpeg decodes both and imagecodecs hides its warnings, so
  the signs of it are looked for, and only where there is one, a second decode with other bytes there decides: black
  borders and flat frames are no damage.
- JPEG 2000 and HTJ2K: found where a tile-part is longer than the frame, or where zeros stand before the end marker, 64
  bytes and more than empty packets could fill. A tile-part that says no length (Psot 0) is left to the decoder.

Not found: bytes changed to others that are decodable, less than a row lost, a progressive JPEG without its last
scans, and loss between restart markers, after which a JPEG goes on. Lossless codes have no checksum.
"""

from __future__ import annotations

import itertools
import re
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import imagecodecs
import numpy as np

from angio_ray.clip import ClipRejected, Reason
from angio_ray.dicom.facts import PixelLayout

Stream = Literal["jpeg", "jpeg_lossless", "jpeg_ls", "jpeg_2000", "htj2k", "rle"]

RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
ENCAPSULATED: dict[str, frozenset[Stream]] = {
    # transfer syntax -> the streams that may stand in it (the JPEG processes are mistaken for one another in practice)
    **dict.fromkeys((f"{_JPEG}50", f"{_JPEG}51", f"{_JPEG}53", f"{_JPEG}55"), frozenset(("jpeg", "jpeg_lossless"))),
    **dict.fromkeys((f"{_JPEG}57", f"{_JPEG}70"), frozenset(("jpeg", "jpeg_lossless"))),
    **dict.fromkeys((f"{_JPEG}80", f"{_JPEG}81"), frozenset(("jpeg_ls",))),
    **dict.fromkeys((f"{_JPEG}90", f"{_JPEG}91"), frozenset(("jpeg_2000", "htj2k"))),
    **dict.fromkeys((f"{_JPEG}201", f"{_JPEG}202", f"{_JPEG}203"), frozenset(("htj2k", "jpeg_2000"))),
    RLE: frozenset(("rle",)),
}

_MAX_TRAILING = 64
"""Bytes tolerated after a frame's end marker besides zeros, such as what real files leave behind it."""
_ZEROS_SUSPICIOUS, _ZEROS_SUSPICIOUS_JPEG_2000 = 32, 64
"""Zero bytes before an end marker that call for a look; real JPEG 2000 frames end in 12 at most, JPEG in hundreds."""
_FILLER = bytes.fromhex("5ac3962d") * 4
"""Bytes that no decoder takes for zeros, for a marker or for nothing."""
_UNSUPPORTED = re.compile("unsupported|not supported|not implemented|omitted at compile time", re.IGNORECASE)
_JP2_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a compressed frame says of itself."""

    stream: Stream
    rows: int
    columns: int
    samples: int
    bits: int


def starts_frame(data: bytes) -> bool:
    """Whether bytes begin as a JPEG, JPEG-LS or JPEG 2000 frame does (a fragment that goes on does not)."""
    head = data[:12]
    return head[:3] == b"\xff\xd8\xff" or head[:4] == b"\xff\x4f\xff\x51" or head == _JP2_SIGNATURE


def check_frame(data: bytes, layout: PixelLayout, transfer_syntax: str) -> FrameHeader:
    """Compare a frame's own header with the object's, and look for its end.

    Raises
    ------
    ClipRejected
        `decode_error`: no such frame; `geometry_mismatch`: another size, depth or number of samples than the object
        says; `truncated`: no end marker, or a JPEG 2000 frame without part of its data (see the module's page).
    """
    header = _read_header(data, layout, transfer_syntax)
    if header.stream not in ENCAPSULATED[transfer_syntax]:
        raise ClipRejected(Reason.DECODE_ERROR, "a frame is not of the kind that the transfer syntax says")
    found = (header.rows, header.columns, header.samples)
    declared = (layout.rows, layout.columns, layout.samples)
    if found != declared:
        shapes = "x".join(map(str, found)), "x".join(map(str, declared))
        raise ClipRejected(Reason.GEOMETRY_MISMATCH, f"a frame is {shapes[0]}, the header says {shapes[1]}")
    if not layout.bits_stored <= header.bits <= layout.bits_allocated:
        stored = f"{layout.bits_stored} of {layout.bits_allocated}"
        raise ClipRejected(Reason.GEOMETRY_MISMATCH, f"a frame has {header.bits} bits, the header says {stored}")
    if header.stream != "rle" and _end_marker(data) < 0:
        raise ClipRejected(Reason.TRUNCATED, f"a frame of {len(data)} bytes has no end marker")
    if header.stream in ("jpeg_2000", "htj2k"):
        _check_jpeg2k_data(data, header)
    return header


def decode_frame(data: bytes, header: FrameHeader, layout: PixelLayout, transfer_syntax: str) -> tuple[np.ndarray, str]:
    """Stored values of one checked frame, and the codec that decoded it.

    The next codec is asked only where one is absent, says that it does not support the stream's features, or gives an
    array of another layout. Where it refuses damaged data the next, more lenient one is not asked.

    Returns
    -------
    array
        Shape `layout.frame_shape`, dtype `layout.dtype`; colour in the space it is stored in, but for JPEG 2000, whose
        own transform is undone.
    codec
        Such as "imagecodecs:jpeg8".

    Raises
    ------
    ClipRejected
        `decode_error` where no codec can decode it, `truncated` where part of its data is missing (see the module's
        page).
    MemoryError
        Where the process may not have the memory.
    """
    failures = 0
    for name, decode in (*_DECODERS[header.stream], ("pydicom", _decode_by_pydicom)):
        try:
            array = decode(data, layout, transfer_syntax)
        except (MemoryError, ClipRejected):
            raise
        # Any exception: codecs raise their own, and pydicom even StopIteration, which map() would take for an end
        except Exception as error:
            failures += 1
            if _means_unsupported(error):
                continue
            break
        if array.shape != layout.frame_shape or array.dtype.kind not in "ui":
            failures += 1
            continue
        return _as_stored(array, layout), name
    raise ClipRejected(Reason.DECODE_ERROR, f"none of {failures} codecs could decode a frame of {len(data)} bytes")


def _means_unsupported(error: Exception) -> bool:
    """Whether a codec is absent (imagecodecs' DelayedImportError) or lacks a feature, by the libraries' own messages."""
    return isinstance(error, (ImportError, NotImplementedError)) or _UNSUPPORTED.search(str(error)) is not None


def _as_stored(array: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """The decoder's array in the object's own type: a 12-bit stream may come as int16 or uint16."""
    if array.dtype.itemsize * 8 != layout.bits_allocated:
        array = array.astype(np.dtype(f"{array.dtype.kind}{layout.bits_allocated // 8}"))
    return np.ascontiguousarray(array).view(layout.dtype)


def _decode_jpeg8(data: bytes, layout: PixelLayout, transfer_syntax: str) -> np.ndarray:
    def decoded(stream: bytes) -> np.ndarray:
        if layout.samples == 1:
            return imagecodecs.jpeg8_decode(stream)
        # The same space in and out: stored values, no conversion by the decoder
        return imagecodecs.jpeg8_decode(stream, colorspace="rgb", outcolorspace="rgb")

    def same_with_filler_from(start: int) -> bool:
        return np.array_equal(decoded(data[:start] + _FILLER + data[end:]), array)

    array, end = decoded(data), _end_marker(data)
    # libjpeg goes on after the end of the data with mid-grey, which is a power of two, at the stream's own depth
    last = int(array[-1].flat[0])
    is_mid_grey = last >= 1 << (layout.bits_stored - 1) and last & (last - 1) == 0
    if is_mid_grey and (array[-1] == last).all() and not same_with_filler_from(end):
        raise ClipRejected(Reason.TRUNCATED, f"a frame of {len(data)} bytes lacks part of its data")
    zeros = _zeros_before(data, end)
    if (
        zeros >= _ZEROS_SUSPICIOUS
        and not _is_flat_border(data, array, zeros)
        and same_with_filler_from(end - len(_FILLER))
    ):
        raise ClipRejected(Reason.TRUNCATED, f"a frame of {len(data)} bytes has {zeros} zeros that code nothing")
    return array


def _decode_jpegsof3(data: bytes, layout: PixelLayout, transfer_syntax: str) -> np.ndarray:
    return imagecodecs.jpegsof3_decode(data)


def _decode_jpegls(data: bytes, layout: PixelLayout, transfer_syntax: str) -> np.ndarray:
    return imagecodecs.jpegls_decode(data)


def _decode_jpeg2k(data: bytes, layout: PixelLayout, transfer_syntax: str) -> np.ndarray:
    return imagecodecs.jpeg2k_decode(data, planar=False, numthreads=1)


def _decode_htj2k(data: bytes, layout: PixelLayout, transfer_syntax: str) -> np.ndarray:
    # imagecodecs lets what OpenJPH throws while decoding go by as "unraisable" and returns zeros
    ignored: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: ignored.append(unraisable.exc_type)
    try:
        array = imagecodecs.htj2k_decode(data, planar=False)
    finally:
        sys.unraisablehook = hook
    if ignored:
        raise ValueError("OpenJPH could not decode the frame")
    return array


def _decode_rle(data: bytes, layout: PixelLayout, transfer_syntax: str) -> np.ndarray:
    """PS3.5 annex G: one PackBits segment for each byte of each sample, most significant byte first."""
    count, offsets = _rle_segments(data)
    size = layout.rows * layout.columns
    planes = np.empty((count, size), dtype=np.uint8)
    for index in range(count):
        plane = imagecodecs.packbits_decode(data[offsets[index] : offsets[index + 1]])
        if len(plane) < size:
            raise ValueError(f"segment {index} has {len(plane)} of {size} bytes")
        planes[index] = np.frombuffer(plane, dtype=np.uint8, count=size)
    width = layout.bits_allocated // 8
    stored = planes.reshape(layout.samples, width, size).transpose(2, 0, 1)  # pixel, sample, byte
    values = np.ascontiguousarray(stored).view(f">u{width}").astype(f"u{width}")
    return values.reshape(layout.frame_shape)


Decode = Callable[[bytes, PixelLayout, str], np.ndarray]
_DECODERS: dict[Stream, tuple[tuple[str, Decode], ...]] = {
    "jpeg": (("imagecodecs:jpeg8", _decode_jpeg8),),
    "jpeg_lossless": (("imagecodecs:jpeg8", _decode_jpeg8), ("imagecodecs:jpegsof3", _decode_jpegsof3)),
    "jpeg_ls": (("imagecodecs:jpegls", _decode_jpegls),),
    "jpeg_2000": (("imagecodecs:jpeg2k", _decode_jpeg2k),),
    "htj2k": (("imagecodecs:htj2k", _decode_htj2k), ("imagecodecs:jpeg2k", _decode_jpeg2k)),
    "rle": (("imagecodecs:packbits", _decode_rle),),
}


def _decode_by_pydicom(data: bytes, layout: PixelLayout, transfer_syntax: str) -> np.ndarray:
    """Whatever plugin pydicom finds, given this frame as an object of its own."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = layout.rows, layout.columns, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = layout.samples, layout.photometric
    dataset.BitsAllocated, dataset.BitsStored = layout.bits_allocated, layout.bits_stored
    dataset.HighBit = layout.high_bit
    dataset.PixelRepresentation = int(layout.signed)
    if layout.samples > 1:
        dataset.PlanarConfiguration = int(layout.planar)
    dataset.PixelData = encapsulate([data])
    dataset["PixelData"].VR = "OB"
    array, _ = get_decoder(transfer_syntax).as_array(dataset, index=0, raw=True)
    return array


def _read_header(data: bytes, layout: PixelLayout, transfer_syntax: str) -> FrameHeader:
    if transfer_syntax == RLE:
        count, _ = _rle_segments(data)
        width = layout.bits_allocated // 8
        if count != layout.samples * width:
            found = f"{count} byte planes, the header says {layout.samples * width}"
            raise ClipRejected(Reason.GEOMETRY_MISMATCH, f"a frame has {found}")
        return FrameHeader("rle", layout.rows, layout.columns, layout.samples, layout.bits_allocated)
    head = data[:4]
    try:
        if head[:2] == b"\xff\xd8":
            return _jpeg_header(data)
        if head == b"\xff\x4f\xff\x51":
            return _jpeg2k_header(data, 0)
        if data[:12] == _JP2_SIGNATURE:
            codestream = data[:65536].find(b"\xff\x4f\xff\x51")
            if codestream > 0:
                return _jpeg2k_header(data, codestream)
    except (struct.error, IndexError):
        raise ClipRejected(Reason.TRUNCATED, f"a frame of {len(data)} bytes ends inside its header") from None
    raise ClipRejected(Reason.DECODE_ERROR, f"a frame of {len(data)} bytes is no JPEG, JPEG-LS or JPEG 2000 stream")


def _jpeg_header(data: bytes) -> FrameHeader:
    """Frame header of a JPEG or JPEG-LS stream (ITU T.81 B.2.2, T.87 C.2.2)."""
    for marker, start in _jpeg_segments(data):
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, start)
            stream: Stream = "jpeg_ls" if marker == 0xF7 else "jpeg_lossless" if marker == 0xC3 else "jpeg"
            return FrameHeader(stream, rows, columns, samples, bits)
    raise ClipRejected(Reason.DECODE_ERROR, "a frame has no header before its scan")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers before the first scan, and where each one's parameters begin, past their length."""
    position = 2
    while True:
        if data[position] != 0xFF:
            raise ClipRejected(Reason.DECODE_ERROR, f"no marker at byte {position} of a frame")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in (0x01, *range(0xD0, 0xD9)):  # markers without a segment
            position += 2
            continue
        if marker in (0xD9, 0xDA):
            return
        yield marker, position + 4
        length = struct.unpack_from(">H", data, position + 2)[0]
        if length < 2:
            raise ClipRejected(Reason.DECODE_ERROR, f"a segment of {length} bytes at byte {position} of a frame")
        position += 2 + length


def _end_marker(data: bytes) -> int:
    """Where a frame's end marker (EOI, EOC) is, -1 without one. Coded data never looks like it."""
    return data.find(b"\xff\xd9", max(len(data.rstrip(b"\0")) - _MAX_TRAILING, 0))


def _zeros_before(data: bytes, end: int) -> int:
    """Length of the run of zero bytes that ends at `end`, as 0 where it is of no interest."""
    if any(data[max(end - _ZEROS_SUSPICIOUS, 0) : end]):
        return 0
    return end - len(data[:end].rstrip(b"\0"))


def _is_flat_border(data: bytes, array: np.ndarray, zeros: int) -> bool:
    """Whether a grey frame ends in flat rows enough to need `zeros` zero bytes: cheaper than a second decode.

    The code of zeros alone is the first of a Huffman table (ITU T.81 annex C). A flat area repeats one code for each
    value (lossless), or one of each of two tables for each block of 8 x 8.
    """
    bits, values = 0, 64
    for marker, start in _jpeg_segments(data):
        values = 1 if marker == 0xC3 else values
        table, stop = start, start - 2 + struct.unpack_from(">H", data, start - 2)[0]
        while marker == 0xC4 and table < stop:
            counts = data[table + 1 : table + 17]
            bits += 1 + next(length for length, count in enumerate(counts) if count)
            table += 17 + sum(counts)
    # Whole rows: the run may begin in the flat end of the one before. A frame that is flat all over has lost nothing.
    rows = 8 * zeros * values // (max(bits, 1) * array.shape[1])
    return array.ndim == 2 and rows > 0 and bool((array[-rows:] == array[-1, 0]).all())


def _jpeg2k_header(data: bytes, codestream: int) -> FrameHeader:
    """SIZ of a JPEG 2000 codestream (ITU T.800 A.5.1); Rsiz bit 14 is High-Throughput (T.814)."""
    capabilities, x1, y1, x0, y0 = struct.unpack_from(">HIIII", data, codestream + 6)
    samples, depth = struct.unpack_from(">HB", data, codestream + 40)
    stream: Stream = "htj2k" if capabilities & 0x4000 else "jpeg_2000"
    return FrameHeader(stream, y1 - y0, x1 - x0, samples, (depth & 0x7F) + 1)


def _check_jpeg2k_data(data: bytes, header: FrameHeader) -> None:
    """`truncated` where tile-parts are not all there (ITU T.800 A.4.2), or end in zeros that no packet needs."""
    position, end = data.find(b"\xff\x4f\xff\x51") + 2, _end_marker(data)
    while position + 1 < end and data[position] == 0xFF and data[position + 1] != 0x90:
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    while data[position : position + 2] == b"\xff\x90" and (
        length := int.from_bytes(data[position + 6 : position + 10])
    ):
        position += length
        if position > end + 2:  # some writers count the end marker in
            raise ClipRejected(Reason.TRUNCATED, f"a tile-part ends at byte {position} of a frame of {len(data)} bytes")
    # An empty packet takes a byte: this would be precincts of 16 x 16 px, all empty
    allowed = _ZEROS_SUSPICIOUS_JPEG_2000 + header.rows * header.columns * header.samples // 256
    if (zeros := _zeros_before(data, end)) > allowed:
        raise ClipRejected(Reason.TRUNCATED, f"a frame of {len(data)} bytes has {zeros} zeros that code nothing")


def _rle_segments(data: bytes) -> tuple[int, list[int]]:
    """Number of RLE segments and their bounds (PS3.5 G.5)."""
    if len(data) < 64:
        raise ClipRejected(Reason.TRUNCATED, f"an RLE frame of {len(data)} bytes")
    count, *offsets = struct.unpack_from("<16I", data)
    bounds = [*offsets[:count], len(data)]
    if not 1 <= count <= 15 or bounds[0] < 64 or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ClipRejected(Reason.DECODE_ERROR, f"an RLE frame of {len(data)} bytes has {count} unordered segments")
    return count, bounds
