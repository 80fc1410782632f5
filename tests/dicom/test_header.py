"""The walker against pydicom on every real file, and the grammar's corners: VRs, nesting, deflate, partial bytes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from angio_ray.clip import ClipRejected, Reason
from angio_ray.dicom.header import NeedMore, ParsedObject, Source, parse_object
from tests.dicom.objects import Bytes, element, moving_frames, with_element_before_pixels, written, xa_bytes, xa_dataset

FRAMES = moving_frames(4)
TEXTS = {
    "SOPInstanceUID": 0x00080018,
    "PatientID": 0x00100020,
    "Manufacturer": 0x00080070,
    "InstitutionName": 0x00080080,
    "StudyDate": 0x00080020,
    "PhotometricInterpretation": 0x00280004,
}
NUMBERS = {"Rows": 0x00280010, "Columns": 0x00280011, "BitsStored": 0x00280101, "HighBit": 0x00280102}


def parsed(data: bytes, limit: int = 1 << 29) -> ParsedObject:
    return parse_object(Source(data, len(data), len(data)), max_inflated_bytes=limit)


def test_values_equal_those_of_pydicom_on_every_file(shared_data: Path) -> None:
    compared = 0
    for path in sorted(shared_data.glob("**/*")):
        if not path.is_file() or path.suffix in (".md", ".dat", ".json", ".yaml"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = pydicom.dcmread(path, stop_before_pixels=True)
                found = parsed(path.read_bytes())
                expected.file_meta.get("TransferSyntaxUID")
            except (pydicom.errors.InvalidDicomError, ClipRejected, OSError, NotImplementedError):
                continue
            if found.fault is not None or "SOPClassUID" not in expected:
                continue
            for keyword, tag in TEXTS.items():
                value = expected.get(keyword)
                if value is None or len(str(value)) > 1024:
                    continue
                if isinstance(value, pydicom.multival.MultiValue):
                    value = "\\".join(map(str, value))
                assert (found.dataset.text(tag) or "") == str(value).strip(" \0\r\n\t"), (path.name, keyword)
            for keyword, tag in NUMBERS.items():
                assert found.dataset.integer(tag, "US") == expected.get(keyword), (path.name, keyword)
        compared += 1
    assert compared > 150


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_each_prefix_asks_for_more_and_the_whole_is_understood(syntax: str) -> None:
    data = xa_bytes(FRAMES, syntax=syntax)
    pixels = data.index(b"\xe0\x7f\x10\x00")
    for available in range(0, pixels + 8, 7):
        with pytest.raises(NeedMore) as need:
            parse_object(Source(data[:available], available, len(data)), max_inflated_bytes=1)
        assert available < need.value.stop <= pixels + 12
    available = pixels + 12
    result = parse_object(Source(data[:available], available, len(data)), max_inflated_bytes=1)
    assert result.pixels is not None
    assert data[result.pixels.start : result.pixels.stop] == FRAMES.tobytes()


def test_every_cut_of_the_header_is_a_fault_or_lacks_pixels() -> None:
    data = xa_bytes(FRAMES)
    for size in range(133, data.index(b"\xe0\x7f\x10\x00"), 5):
        result = parsed(data[:size])
        assert result.pixels is None
        assert result.fault is None or result.fault.reason in (Reason.TRUNCATED, Reason.HEADER_INVALID)


def test_sequences_of_undefined_and_defined_length_are_stepped_over_and_read() -> None:
    for undefined in (True, False):
        dataset = xa_dataset(FRAMES)
        inner, deepest = Dataset(), Dataset()
        deepest.CodeValue = "X"
        inner.ConceptNameCodeSequence = [deepest]
        inner.ReferencedFrameNumber = [1, 2]
        dataset.ReferencedImageSequence = [inner, inner]
        dataset["ReferencedImageSequence"].is_undefined_length = undefined
        inner.is_undefined_length_sequence_item = undefined
        found = parsed(written(dataset))
        assert found.fault is None
        items = found.dataset.items(0x00081140)
        assert [item.numbers(0x00081160, "IS") for item in items] == [[1, 2], [1, 2]]
        assert items[0].items(0x0040A043)[0].text(0x00080100) == "X"
        assert found.dataset.items(0x00081199) == []


def test_values_of_the_wrong_kind_are_absent() -> None:
    data = with_element_before_pixels(
        xa_bytes(FRAMES),
        element(0x0029, 0x1001, b"DS", b"nan ")
        + element(0x0029, 0x1002, b"DS", b"1.5\\inf ")
        + element(0x0029, 0x1003, b"IS", b"1_000 ")
        + element(0x0029, 0x1004, b"US", b"\1\2\3")
        + element(0x0029, 0x1005, b"LO", b"x" * 5000)
        + element(0x0029, 0x1006, b"DS", b" 2.5 \\3e1")
        + element(0x0029, 0x1007, b"UL", b"\x00\x02\0\0")
        + element(0x0029, 0x1008, b"LO", b"\xff\xfe\\b "),
    )
    dataset = parsed(data).dataset
    for number in range(0x00291001, 0x00291006):
        assert dataset.number(number, "DS") is None
        assert dataset.integer(number, "IS") is None
    assert dataset.text(0x00291005) is None
    assert dataset.numbers(0x00291006, "DS") == [2.5, 30.0]
    assert dataset.integer(0x00291007, "US") == 512
    assert dataset.text(0x00291008)
    assert dataset.text(0x00291099) is None


def test_text_follows_the_character_set() -> None:
    data = xa_bytes(FRAMES, SpecificCharacterSet="ISO_IR 192", InstitutionName="Univerzitní nemocnice")
    assert parsed(data).dataset.text(0x00080080) == "Univerzitní nemocnice"
    data = xa_bytes(FRAMES, SpecificCharacterSet="ISO_IR 100", InstitutionName="Clínica")
    assert parsed(data).dataset.text(0x00080080) == "Clínica"
    assert parsed(data.replace(b"ISO_IR 100", b"NONSENSE  ")).dataset.text(0x00080080)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of the names that it corrects
@pytest.mark.parametrize("name", ["unicode_escape", "raw_unicode_escape", "utf_7", "utf_16_le", "idna", "rot13"])
def test_text_can_be_encoded_whatever_character_set_is_named(name: str) -> None:
    """Python's own codecs are no character sets of DICOM's; some of them make lone surrogates, which Arrow refuses."""
    text = b"\\ud800 \xe9 +2AA- \x00\xd8 "
    for charset in (name, f"ISO_IR 192\\{name}"):
        data = xa_bytes(FRAMES).replace(
            b"\x08\x00\x08\x00CS", element(8, 5, b"CS", charset.encode()) + b"\x08\0\x08\0CS", 1
        )
        found = parsed(with_element_before_pixels(data, element(0x0029, 0x1001, b"LO", text))).dataset.text(0x00291001)
        assert found is not None
        assert found.encode()
        assert "\\ud800" in found


def test_deflated_and_its_limit() -> None:
    data = xa_bytes(FRAMES, syntax="1.2.840.10008.1.2.1.99")
    assert parsed(data).dataset.integer(0x00280010, "US") == 64
    bounded = parsed(data, limit=1000).fault
    assert bounded is not None
    assert bounded.reason == Reason.TOO_LARGE
    cut = parsed(data[:-40]).fault
    assert cut is not None
    assert cut.reason == Reason.TRUNCATED


def test_without_preamble_a_data_set_is_recognised_by_its_beginning() -> None:
    data = xa_bytes(FRAMES)
    assert parsed(data[132:]).dataset.text(0x00100020) == "P1"
    bare = data[data.index(b"\x08\x00\x08\x00CS") :]
    assert parsed(bare).dataset.text(0x00100020) == "P1"
    with pytest.raises(ClipRejected):
        parsed(data[140:])


def test_too_many_elements_are_refused() -> None:
    data = with_element_before_pixels(xa_bytes(FRAMES), element(0x0029, 0x1001, b"LO", b"") * 250_000)
    fault = parsed(data).fault
    assert fault is not None
    assert fault.reason == Reason.HEADER_INVALID


def test_bytes_helper_answers_ranges() -> None:
    assert Bytes(b"abcdef").read([(1, 3), (4, 6)]) == [b"bc", b"ef"]
