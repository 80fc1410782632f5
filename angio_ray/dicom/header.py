"""Finds the data elements of a DICOM object in untrusted bytes, up to its pixel data, without decoding any value twice.

Why not pydicom: the object arrives in parts (the parser must say how many more bytes it needs), nesting is walked
without recursion (a file 3,000 sequences deep is refused, not a RecursionError), and elements that nobody asks for are
stepped over. PS3.5 section 7 is the grammar. Knows no attribute's meaning: that is `facts`; and nothing of pixels.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from angio_ray.clip import ClipRejected, Reason

Buffer = bytes | memoryview

UNDEFINED = 0xFFFFFFFF
MAX_DEPTH = 100
"""Sequences within sequences; real objects stay below ten."""
MAX_ELEMENTS = 200_000
"""Elements walked in one object: a header of millions of empty elements costs seconds and means nothing."""
MAX_TEXT = 1024
"""Characters of one text value; VR LO allows 64. What is longer is damage, not a fact."""

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})  # float, double float, and what XA has

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
_KNOWN_VRS = frozenset(vr.decode("ascii") for vr in _LONG_VRS | _SHORT_VRS)
_BINARY_VRS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "AT": "HH"}
_PREAMBLE = 132


class NeedMore(Exception):
    """The bytes at hand end before the answer: fetch the object's first `stop` bytes and ask again."""

    def __init__(self, stop: int) -> None:
        super().__init__(stop)
        self.stop = stop


@dataclass(frozen=True, slots=True)
class Encoding:
    """How elements are written: byte order, and whether each names its VR."""

    little: bool = True
    explicit: bool = True

    @property
    def order(self) -> str:
        """Byte order as `struct` spells it."""
        return "<" if self.little else ">"


@dataclass(frozen=True, slots=True)
class Element:
    """One data element: where its value lies in the buffer. `vr` is empty where the file does not say."""

    tag: int
    vr: str
    start: int
    stop: int
    undefined_length: bool


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes at hand: `buffer[:available]` of an object of `size` bytes (less while it is still being fetched)."""

    buffer: Buffer
    available: int
    size: int

    def need(self, stop: int) -> None:
        """Make sure that bytes up to `stop` are there: `NeedMore`, or `truncated` where the object has no more."""
        if stop > self.size:
            raise ClipRejected(Reason.TRUNCATED, f"an element ends at byte {stop} of an object of {self.size}")
        if stop > self.available:
            raise NeedMore(stop)


@dataclass(slots=True)
class DataSet:
    """Elements of one data set or sequence item by tag, with values read on demand. Absent or unreadable is None."""

    source: Source
    encoding: Encoding
    elements: dict[int, Element] = field(default_factory=dict)
    charset: tuple[str, ...] = ()

    def __contains__(self, tag: int) -> bool:
        return tag in self.elements

    def raw(self, tag: int) -> bytes | None:
        """Bytes of a value as they are in the file."""
        element = self.elements.get(tag)
        return None if element is None else bytes(self.source.buffer[element.start : element.stop])

    def text(self, tag: int) -> str | None:
        """A text element that has one value, in the object's character set, without its padding.

        A backslash stays: identifiers that differ behind one are not the same.
        """
        return "\\".join(self.texts(tag)) or None

    def texts(self, tag: int) -> list[str]:
        """All values of a text element; without values, an empty list."""
        element = self.elements.get(tag)
        if element is None or element.stop - element.start > 4 * MAX_TEXT:
            return []
        raw = bytes(self.source.buffer[element.start : element.stop])
        if element.vr in _BINARY_VRS:
            return []
        text = _decode_text(raw, self.charset)
        if len(text) > MAX_TEXT:
            return []
        values = [value.strip(" \0\t\r\n") for value in text.split("\\")]
        return values if any(values) else []

    def numbers(self, tag: int, vr: str) -> list[float]:
        """All values of a numeric element (IS, DS or binary); `vr` holds where the file does not say.

        Empty where any value is not a finite number: half a vector is no fact.
        """
        element = self.elements.get(tag)
        if element is None:
            return []
        vr = vr if element.vr in ("", "UN") else element.vr
        raw = bytes(self.source.buffer[element.start : element.stop])
        if (code := _BINARY_VRS.get(vr)) is not None:
            width = struct.calcsize(code)
            if not raw or len(raw) % width:
                return []
            values = [float(value) for value in struct.unpack(f"{self.encoding.order}{len(raw) // width * code}", raw)]
        else:
            try:
                values = [_decimal(value) for value in raw.strip(b" \0").split(b"\\")]
            except ValueError:
                return []
        return values if all(map(math.isfinite, values)) else []

    def number(self, tag: int, vr: str) -> float | None:
        """First value of a numeric element."""
        values = self.numbers(tag, vr)
        return values[0] if values else None

    def integer(self, tag: int, vr: str) -> int | None:
        """First value of a numeric element if it is a whole number of int32, as every attribute read here is."""
        value = self.number(tag, vr)
        return int(value) if value is not None and value.is_integer() and -(2**31) <= value < 2**31 else None

    def tag_value(self, tag: int) -> int | None:
        """First value of an AT element, as group << 16 | element."""
        pair = self.numbers(tag, "AT")[:2]
        return int(pair[0]) << 16 | int(pair[1]) if len(pair) == 2 else None

    def items(self, tag: int) -> list[DataSet]:
        """Items of a sequence; none where it is absent. `header_invalid` where it is not well formed."""
        element = self.elements.get(tag)
        if element is None or element.vr not in ("SQ", "UN", ""):
            return []
        encoding = Encoding(little=True, explicit=False) if element.vr == "UN" else self.encoding
        source = Source(self.source.buffer, element.stop, element.stop)
        found: list[DataSet] = []
        position = element.start
        while position < element.stop:
            item_tag, length = _item_header(source, position, encoding)
            if item_tag == SEQUENCE_END:
                break
            if item_tag != ITEM:
                raise _invalid("a sequence holds something that is no item")
            position += 8
            if length == UNDEFINED:
                end = _skip_undefined(source, position, encoding, in_item=True)
                stop = end - 8
            else:
                end = stop = position + length
            if stop > element.stop:
                raise _invalid("a sequence item is longer than its sequence")
            inner = DataSet(Source(source.buffer, stop, stop), encoding, charset=self.charset)
            for inside in _walk(inner.source, position, encoding):
                inner.elements[inside.tag] = inside
            found.append(inner)
            position = end
        return found


@dataclass(slots=True)
class ParsedObject:
    """What is known of an object before its pixels: file meta, data set, where the pixel data begins.

    `fault` says why the walk ended early; the elements before that are there all the same.
    """

    meta: DataSet
    dataset: DataSet
    transfer_syntax: str | None
    pixels: Element | None = None
    fault: ClipRejected | None = None
    inflated: bytes | None = None


def parse_object(source: Source, *, max_inflated_bytes: int) -> ParsedObject:
    """Walk an object's header up to its pixel data.

    Raises
    ------
    NeedMore
        More of the object's first bytes are needed.
    ClipRejected
        `not_dicom`; everything else that is wrong is in the result's `fault`.
    """
    start, explicit_meta = _find_start(source)
    parsed = ParsedObject(DataSet(source, Encoding()), DataSet(source, Encoding()), None)
    try:
        position = _read_meta(parsed.meta, start) if explicit_meta else start
        _read_dataset(parsed, source, position, max_inflated_bytes)
    except ClipRejected as fault:
        parsed.fault = fault
        if fault.reason == Reason.TRUNCATED and (_has_unknown_vr(parsed.meta) or _has_unknown_vr(parsed.dataset)):
            # Lengths behind a VR that does not exist are anybody's guess: the object is damaged rather than cut
            parsed.fault = _invalid("an element of no known VR, and later ones past the end of the object")
    return parsed


def _has_unknown_vr(dataset: DataSet) -> bool:
    return dataset.encoding.explicit and any(e.vr not in _KNOWN_VRS for e in dataset.elements.values())


def _find_start(source: Source) -> tuple[int, bool]:
    """Where the first element is, and whether it belongs to the file meta group. `not_dicom` if there is none."""
    source_start = bytes(source.buffer[: min(source.available, _PREAMBLE)])
    if source.size >= _PREAMBLE:
        if source.available < _PREAMBLE:
            raise NeedMore(_PREAMBLE)
        if source_start[128:] == b"DICM":
            return _PREAMBLE, True
    # Objects written without preamble (ACR-NEMA's way): believed only if they begin as a data set does.
    head = source_start[:8]
    if len(head) == 8 and head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        group_2 = head[:2] == b"\x02\x00"
        little = head[:2] != b"\x00\x08"
        element = struct.unpack("<H" if little else ">H", head[2:4])[0]
        named_vr = re.fullmatch(rb"[A-Z]{2}", head[4:6]) is not None
        length = struct.unpack("<I" if little else ">I", head[4:8])[0]
        if element <= 0x0100 and (named_vr or (not group_2 and length <= source.size - 8)):
            return 0, group_2
    raise ClipRejected(Reason.NOT_DICOM, f"{source.size} bytes without the DICM mark")


def _read_meta(meta: DataSet, position: int) -> int:
    """Read group 2 (always explicit little endian, PS3.10 7.1) and return where the data set begins.

    Its group length is not trusted: the group ends where the group number changes.
    """
    for element in _walk(meta.source, position, meta.encoding, only_group=2):
        meta.elements[element.tag] = element
        position = element.stop
    return position


def _read_dataset(parsed: ParsedObject, source: Source, position: int, max_inflated_bytes: int) -> None:
    syntax = parsed.meta.text(0x00020010)
    parsed.transfer_syntax = syntax
    if syntax == DEFLATED:
        source.need(source.size)
        parsed.inflated = _inflate(source.buffer[position : source.size], max_inflated_bytes)
        source, position = Source(parsed.inflated, len(parsed.inflated), len(parsed.inflated)), 0
    encoding = {
        IMPLICIT_LITTLE: Encoding(explicit=False),
        EXPLICIT_BIG: Encoding(little=False),
    }.get(syntax or "", Encoding())
    if syntax is None:
        if position >= source.size:
            raise _invalid("no transfer syntax and no data set")
        encoding = _guess_encoding(source, position)
        parsed.transfer_syntax = EXPLICIT_LITTLE if encoding.explicit else IMPLICIT_LITTLE
        if not encoding.little:
            parsed.transfer_syntax = EXPLICIT_BIG
    dataset = parsed.dataset = DataSet(source, encoding)
    for element in _walk(source, position, encoding, until_pixels=True):
        if element.tag in _PIXEL_TAGS:
            parsed.pixels = element if element.tag == PIXEL_DATA else None
            break
        dataset.elements.setdefault(element.tag, element)
        if element.tag == 0x00080005:
            dataset.charset = tuple(dataset.texts(0x00080005))


def _guess_encoding(source: Source, position: int) -> Encoding:
    source.need(min(position + 8, source.size))
    head = bytes(source.buffer[position : position + 8])
    little = head[:1] != b"\0"  # the first group is 0008, seldom another: 08 00 or 00 08
    if len(head) < 8 or max(head[:2]) > 0x28 or min(head[:2]) > 0:
        raise _invalid("no transfer syntax, and nothing that begins as a data set does")
    return Encoding(little=little, explicit=re.fullmatch(rb"[A-Z]{2}", head[4:6]) is not None)


def _inflate(data: Buffer, limit: int) -> bytes:
    """Inflate a deflated data set (PS3.5 A.5), stopping at `limit` bytes."""
    # Raw, as the standard says; with a zlib header, as some write
    for window_bits in (-zlib.MAX_WBITS, zlib.MAX_WBITS):
        inflater = zlib.decompressobj(window_bits)
        try:
            inflated = inflater.decompress(data, limit + 1)
        except zlib.error:
            continue
        if len(inflated) > limit:
            raise ClipRejected(Reason.TOO_LARGE, f"inflates to more than {limit} bytes")
        if not inflater.eof:
            raise ClipRejected(Reason.TRUNCATED, f"the deflated data set ends early, after {len(inflated)} bytes")
        return inflated
    raise _invalid("the deflated data set cannot be inflated")


def _walk(
    source: Source, position: int, encoding: Encoding, *, only_group: int | None = None, until_pixels: bool = False
) -> Iterator[Element]:
    """Elements from `position` to the end of the source; `until_pixels`: to the pixel data, whose value may be absent."""
    for _ in range(MAX_ELEMENTS):
        if position >= source.size:
            return
        if source.size - position < 8 and until_pixels and not any(source.buffer[position : source.available]):
            return  # zero bytes after the last element: padding
        tag, vr, length, start = _element_header(source, position, encoding)
        if only_group is not None and tag >> 16 != only_group:
            return
        if tag >> 16 == 0xFFFE:
            # A stray delimiter at the top level holds nothing; pydicom and others step over it too.
            if length:
                raise _invalid("an item outside of any sequence")
            position = start
            continue
        undefined = length == UNDEFINED
        if until_pixels and tag in _PIXEL_TAGS:
            yield Element(tag, vr, start, source.size if undefined else start + length, undefined)
            return
        if undefined:
            # A UN element of undefined length holds implicit little endian items (PS3.5 6.2.2)
            inner = Encoding(explicit=False) if vr == "UN" else encoding
            stop = _skip_undefined(source, start, inner)
        else:
            stop = start + length
            if stop > source.size and encoding.explicit and vr not in _KNOWN_VRS:
                raise _invalid("an element of no known VR ends past the end of the object")
            source.need(stop)
        yield Element(tag, vr, start, stop, undefined)
        position = stop
    raise _invalid(f"more than {MAX_ELEMENTS} elements")


def _element_header(source: Source, position: int, encoding: Encoding) -> tuple[int, str, int, int]:
    """Tag, VR (or ""), length and where the value begins."""
    source.need(position + 8)
    order = encoding.order
    group, element = struct.unpack_from(f"{order}HH", source.buffer, position)
    tag = group << 16 | element
    if not encoding.explicit or group == 0xFFFE:
        return tag, "", struct.unpack_from(f"{order}I", source.buffer, position + 4)[0], position + 8
    vr = bytes(source.buffer[position + 4 : position + 6])
    if vr in _LONG_VRS:
        source.need(position + 12)
        return tag, vr.decode("ascii"), struct.unpack_from(f"{order}I", source.buffer, position + 8)[0], position + 12
    if not (vr.isalpha() and vr.isupper()):
        # Some writers fall back to implicit VR in the midst of an explicit data set
        return tag, "", struct.unpack_from(f"{order}I", source.buffer, position + 4)[0], position + 8
    return tag, vr.decode("ascii"), struct.unpack_from(f"{order}H", source.buffer, position + 6)[0], position + 8


def _item_header(source: Source, position: int, encoding: Encoding) -> tuple[int, int]:
    source.need(position + 8)
    group, element, length = struct.unpack_from(f"{encoding.order}HHI", source.buffer, position)
    return group << 16 | element, length


def _skip_undefined(source: Source, position: int, encoding: Encoding, *, in_item: bool = False) -> int:
    """End of a sequence (or item) of undefined length, past its delimiter; nested ones on a list, not the call stack."""
    open_items: list[tuple[bool, Encoding]] = [(in_item, encoding)]
    for _ in range(MAX_ELEMENTS):
        inside_item, encoding = open_items[-1]
        if inside_item:
            tag, vr, length, start = _element_header(source, position, encoding)
            if tag == ITEM_END:
                open_items.pop()
            elif tag >> 16 == 0xFFFE:
                raise _invalid("a sequence item is not closed")
            elif length == UNDEFINED:
                open_items.append((False, Encoding(explicit=False) if vr == "UN" else encoding))
            else:
                start += length
        else:
            tag, length = _item_header(source, position, encoding)
            start = position + 8
            if tag == SEQUENCE_END:
                open_items.pop()
            elif tag != ITEM:
                raise _invalid("a sequence holds something that is no item")
            elif length == UNDEFINED:
                open_items.append((True, encoding))
            else:
                start += length
        if start > source.size:
            raise ClipRejected(Reason.TRUNCATED, f"a sequence ends at byte {start} of an object of {source.size}")
        position = start
        if not open_items:
            return position
        if len(open_items) > 2 * MAX_DEPTH:
            raise _invalid(f"sequences nested deeper than {MAX_DEPTH}")
    raise _invalid(f"more than {MAX_ELEMENTS} elements in a sequence")


def _decimal(value: bytes) -> float:
    text = value.strip(b" \0").decode("ascii")
    if "_" in text:  # Python would take it
        raise ValueError(text)
    return float(text)


def _decode_text(raw: bytes, charset: tuple[str, ...]) -> str:
    """Text in DICOM's own character sets (PS3.3 C.12.1.1.2), else as Latin-1; always such that UTF-8 can encode it."""
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    from pydicom.charset import convert_encodings, decode_bytes, python_encoding

    try:
        encodings = convert_encodings(list(charset) or "ISO_IR 6")
        # pydicom lets Python's own codecs pass by name, and some of those (unicode_escape) make lone surrogates
        if set(encodings) <= set(python_encoding.values()):
            text = decode_bytes(raw, encodings, {ord("\\")})
            text.encode()
            return text
    except Exception:  # whatever a hostile character set does, the bytes stay readable
        pass
    return raw.decode("latin-1")


def _invalid(detail: str) -> ClipRejected:
    return ClipRejected(Reason.HEADER_INVALID, detail)
