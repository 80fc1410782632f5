"""What ends up in a `ClipHeader`: values that a table can hold, whatever the file says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pytest

from angio_ray.clip import ClipHeader, ClipRejected, Reason
from angio_ray.dicom import facts
from angio_ray.dicom.header import Source, parse_object
from tests.dicom.objects import ENHANCED_XA, element, moving_frames, with_element_before_pixels, xa_bytes

FRAMES = moving_frames(4)
INTEGERS = {
    "rows": (0x0028, 0x0010),
    "columns": (0x0028, 0x0011),
    "bits_stored": (0x0028, 0x0101),
    "num_frames": (0x0028, 0x0008),
    "series_number": (0x0020, 0x0011),
    "instance_number": (0x0020, 0x0013),
}
KEYWORDS = {
    "rows": "Rows",
    "columns": "Columns",
    "bits_stored": "BitsStored",
    "num_frames": "NumberOfFrames",
    "series_number": "SeriesNumber",
    "instance_number": "InstanceNumber",
}
SHUTTER_EDGES = (0x1602, 0x1606, 0x1604, 0x1608)
NUMBERS = [(0x0018, 0x1510), (0x0018, 0x1511), (0x0018, 0x1110), (0x0018, 0x1111), (0x0018, 0x1164)]
ARROW_TYPES = {"int": pa.int32(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}


def header_of(data: bytes) -> ClipHeader:
    parsed = parse_object(Source(data, len(data), len(data)), max_inflated_bytes=1)
    return facts.clip_header(parsed, *facts.functional_groups(parsed.dataset), None)


def assert_fits_arrow(header: ClipHeader) -> None:
    for field in dataclasses.fields(header):
        name = str(field.type).removesuffix(" | None")
        arrow = pa.list_(ARROW_TYPES[name[6:].split(",")[0]]) if name.startswith("tuple[") else ARROW_TYPES[name]
        pa.array([getattr(header, field.name)], arrow)


@pytest.mark.parametrize("value", [b"99999999999 ", b"-99999999999", b"2147483648", b"1e300 "])
def test_integers_beyond_int32_are_absent(value: bytes) -> None:
    data = xa_bytes(FRAMES, **dict.fromkeys(KEYWORDS.values()))
    for group, number in INTEGERS.values():
        data = with_element_before_pixels(data, element(group, number, b"IS", value))
    for number in SHUTTER_EDGES:
        data = with_element_before_pixels(data, element(0x0018, number, b"IS", value))
    header = header_of(data)
    assert_fits_arrow(header)
    assert [getattr(header, name) for name in INTEGERS] == [None] * len(INTEGERS)
    assert header.shutter_box is None
    with pytest.raises(ClipRejected) as rejected:
        facts.pixel_layout(parse_object(Source(data, len(data), len(data)), max_inflated_bytes=1))
    assert rejected.value.reason == Reason.HEADER_INVALID


@pytest.mark.parametrize("value", [b"inf ", b"nan ", b"1e999 ", b"-1e400"])
def test_numbers_that_are_not_finite_are_absent(value: bytes) -> None:
    data = xa_bytes(FRAMES, PositionerPrimaryAngle=None, PositionerSecondaryAngle=None)
    for group, number in NUMBERS:
        data = with_element_before_pixels(data, element(group, number, b"DS", value + b"\\1 "))
    header = header_of(data)
    assert_fits_arrow(header)
    assert header.primary_angle_deg is None
    assert header.distance_source_to_detector_mm is None
    assert header.imager_pixel_spacing_mm is None


def test_an_ordinary_header_is_kept() -> None:
    header = header_of(xa_bytes(FRAMES, SeriesNumber=3, ImagerPixelSpacing=[0.3, 0.4]))
    assert_fits_arrow(header)
    assert (header.rows, header.columns, header.bits_stored, header.series_number) == (64, 48, 8, 3)
    assert header.imager_pixel_spacing_mm == (0.3, 0.4)


@pytest.mark.parametrize(
    ("image_type", "identification", "plane"),
    [
        (["ORIGINAL", "PRIMARY", "BIPLANE A"], None, "a"),
        (["ORIGINAL", "PRIMARY", "SINGLE PLANE"], "PLANE B", "single"),
        (["ORIGINAL", "PRIMARY", "VOLUME"], "MONOPLANE", "single"),
        (["ORIGINAL", "PRIMARY"], "PLANE A", "a"),
        (None, "PLANE B", "b"),
        (["ORIGINAL", "PRIMARY"], "UNDEFINED", None),
        (None, None, None),
    ],
)
def test_plane_is_that_of_the_image_type_else_the_identified_one(
    image_type: list[str] | None, identification: str | None, plane: str | None
) -> None:
    attributes: dict[str, Any] = {"ImageType": image_type, "PlaneIdentification": identification}
    assert header_of(xa_bytes(FRAMES, SOPClassUID=ENHANCED_XA, **attributes)).plane == plane
