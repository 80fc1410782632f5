"""Every compressed syntax against pydicom on real files, bit for bit where it is lossless; and what a frame says of itself."""

from __future__ import annotations

import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames

from angio_ray.clip import ClipRejected, Reason
from angio_ray.dicom import codecs
from angio_ray.dicom.facts import PixelLayout
from angio_ray.dicom.reader import decode_frames
from tests.dicom.objects import (
    JPEG_LOSSLESS,
    SYNTAXES,
    encode_jpeg,
    encode_jpeg_ls,
    moving_frames,
    xa_bytes,
    xa_compressed,
)

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
LOSSY = {f"1.2.840.10008.1.2.4.{n}" for n in ("50", "51", "53", "55")}
BY_LIBJPEG = {"1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", JPEG_LOSSLESS}


def reference(path: Path) -> np.ndarray | None:
    """pydicom's stored values; JPEG Lossless and Extended straight from libjpeg, since its plugin needs one more package."""
    dataset = pydicom.dcmread(path, force=True)
    try:
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if "PixelData" not in dataset or syntax is None:
            return None
        if syntax in BY_LIBJPEG:
            libjpeg = pytest.importorskip("libjpeg", reason="the reference decoder is not installed")
            num_frames = int(dataset.get("NumberOfFrames", 1))
            frames = [libjpeg.decode(f) for f in generate_frames(dataset.PixelData, number_of_frames=num_frames)]
            values = np.stack(frames)  # of the bits alone: libjpeg does not know of signs
            return values.view(np.int16) if dataset.PixelRepresentation == 1 else values
        return pydicom.pixels.pixel_array(dataset, raw=True)
    except (RuntimeError, NotImplementedError, ValueError, AttributeError):
        return None  # what pydicom cannot read here is no reference


def test_every_file_that_pydicom_decodes_has_the_same_stored_values(shared_data: Path) -> None:
    compared: dict[str, int] = {}
    for path in sorted(shared_data.glob("codecs/**/*")):
        if not path.is_file() or path.suffix in (".md", ".dat"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = reference(path)
            dataset = pydicom.dcmread(path, force=True)
        if expected is None or dataset.BitsAllocated not in (8, 16) or "PALETTE" in dataset.PhotometricInterpretation:
            continue
        found = decode_frames(path.read_bytes())
        syntax = dataset.file_meta.TransferSyntaxUID
        difference = int(np.abs(found.astype(int) - expected.reshape(found.shape).astype(int)).max())
        assert difference <= (1 if syntax in LOSSY else 0), path.name
        if dataset.PixelRepresentation == 1:
            assert found.dtype.kind == "i", path.name
        compared[syntax] = compared.get(syntax, 0) + 1
    assert sum(compared.values()) >= 60
    expected_syntaxes = {"1.2", "1.2.1", "1.2.2", "1.2.1.99", "1.2.5", "1.2.4.50", "1.2.4.51", "1.2.4.57", "1.2.4.70"}
    expected_syntaxes |= {"1.2.4.80", "1.2.4.81"}
    assert {f"1.2.840.10008.{short}" for short in expected_syntaxes} <= set(compared)


def test_cath_lab_clips_are_bit_exact(shared_data: Path) -> None:
    paths = sorted((shared_data / "xa_phantom_cathlab").glob("*.dcm"))
    assert len(paths) == 8
    for path in paths:
        expected = reference(path)
        assert expected is not None
        assert (decode_frames(path.read_bytes()) == expected).all(), path.name


def test_real_clip_differs_from_another_jpeg_decoder_by_one_at_most(shared_data: Path) -> None:
    path = shared_data / "xa_real" / "0002.DCM"
    expected = pydicom.pixels.pixel_array(pydicom.dcmread(path), raw=True)
    found = decode_frames(path.read_bytes())
    assert found.shape == (96, 512, 512)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    some = decode_frames(path.read_bytes(), [95, 3])
    assert (some == found[[95, 3]]).all()


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("bits", [8, 10, 16])
def test_round_trip(syntax: str, bits: int) -> None:
    frames = moving_frames(5, bits=bits)
    encoded = [SYNTAXES[syntax](frame) for frame in frames]
    data = xa_compressed(encoded, frames, syntax=syntax, BitsStored=bits)
    assert (decode_frames(data) == frames).all()


def layout(frame: np.ndarray, **changes: object) -> PixelLayout:
    bits = 8 * frame.itemsize
    values = {
        "rows": frame.shape[0],
        "columns": frame.shape[1],
        "num_frames": 1,
        "samples": 1,
        "planar": False,
        "bits_allocated": bits,
        "bits_stored": bits,
        "high_bit": bits - 1,
        "signed": False,
        "photometric": "MONOCHROME2",
        "little": True,
    } | changes
    return PixelLayout(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("syntax", [s for s in SYNTAXES if s != codecs.RLE])
def test_a_frame_of_another_size_or_depth_is_found_by_its_own_header(syntax: str) -> None:
    frame = moving_frames(1, 40, 56)[0]
    data = SYNTAXES[syntax](frame)
    assert codecs.check_frame(data, layout(frame), syntax).bits == 8
    for wrong in (layout(frame, rows=41), layout(frame, columns=8), layout(frame, samples=3)):
        with pytest.raises(ClipRejected) as rejected:
            codecs.check_frame(data, wrong, syntax)
        assert rejected.value.reason == Reason.GEOMETRY_MISMATCH
    for allocated, stored in ((16, 12), (16, 16)):
        with pytest.raises(ClipRejected, match="8 bits"):
            codecs.check_frame(data, layout(frame, bits_allocated=allocated, bits_stored=stored), syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_half_a_frame_is_never_decoded_as_if_whole(syntax: str) -> None:
    frame = moving_frames(1, 64, 64)[0]
    half = SYNTAXES[syntax](frame)
    half = half[: len(half) // 2]
    data = xa_compressed([half], frame[None], syntax=syntax)
    with pytest.raises(ClipRejected) as rejected:
        decode_frames(data)
    assert rejected.value.reason in (Reason.TRUNCATED, Reason.DECODE_ERROR)


def damaged(data: bytes, kind: str, share: float) -> bytes:
    """A frame that ends as it should but lacks the rest: cut off, or overwritten with zeros."""
    kept = data[: int(len(data) * share)]
    return kept + (b"\0" * (len(data) - len(kept) - 2) if kind == "zeroed" else b"") + b"\xff\xd9"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["cut", "zeroed"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", [*SYNTAXES, JPEG_BASELINE])
def test_half_a_frame_with_an_end_marker_is_never_decoded_as_if_whole(
    syntax: str, bits: int, kind: str, share: float
) -> None:
    frame = moving_frames(1, 128, 128, bits=8 if syntax == JPEG_BASELINE else bits)[0]
    data = damaged((SYNTAXES | {JPEG_BASELINE: encode_jpeg})[syntax](frame), kind, share)
    with pytest.raises(ClipRejected) as rejected:
        decode_frames(xa_compressed([data], frame[None], syntax=syntax))
    assert rejected.value.reason in (Reason.TRUNCATED, Reason.DECODE_ERROR)


def test_damage_inside_real_frames_is_found_and_padding_after_them_is_none(shared_data: Path) -> None:
    for path in ("xa_real/0002.DCM", "xa_phantom_cathlab/IM1.dcm"):
        dataset = pydicom.dcmread(shared_data / path)
        syntax = dataset.file_meta.TransferSyntaxUID
        data = next(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
        frame = decode_frames((shared_data / path).read_bytes(), [0])[0]
        declared = layout(frame, bits_stored=dataset.BitsStored)
        padded = data + b"\0" * 1000
        header = codecs.check_frame(padded, declared, syntax)
        assert (codecs.decode_frame(padded, header, declared, syntax)[0] == frame).all()
        for kind in ("cut", "zeroed"):
            for share in (0.2, 0.5, 0.8):
                with pytest.raises(ClipRejected) as rejected:
                    codecs.decode_frame(damaged(data, kind, share), header, declared, syntax)
                assert rejected.value.reason == Reason.TRUNCATED


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("flat_rows", [1, 60, 128])
def test_flat_borders_are_no_damage(value: int, flat_rows: int) -> None:
    """Mid-grey is what libjpeg puts in place of lost data, and black may be coded as nothing but zeros."""
    frame = moving_frames(1, 128, 128)[0]
    frame[-flat_rows:] = value
    smooth = (np.mgrid[:128, :128].sum(axis=0) // 8 + 100).astype(np.uint8)
    smooth[-flat_rows:] = value
    streams = [imagecodecs.jpeg8_encode(frame, lossless=True, predictor=n, bitspersample=8) for n in range(1, 8)]
    streams += [imagecodecs.jpeg8_encode(smooth, lossless=True, predictor=n, bitspersample=8) for n in range(1, 8)]
    assert flat_rows < 60 or any(data[-50:-8] == b"\0" * 42 for data in streams)
    for data, expected in zip(streams, [frame] * 7 + [smooth] * 7, strict=True):
        assert (decode_frames(xa_compressed([data], expected[None]))[0] == expected).all()
    for data in (imagecodecs.jpeg8_encode(frame), imagecodecs.jpeg8_encode(smooth, optimize=True)):
        assert (decode_frames(xa_compressed([data], frame[None]))[0] == imagecodecs.jpeg8_decode(data)).all()
    for syntax in SYNTAXES:
        data = xa_compressed([SYNTAXES[syntax](smooth)], smooth[None], syntax=syntax)
        assert (decode_frames(data)[0] == smooth).all()


def test_a_failure_that_imagecodecs_lets_go_by_is_no_black_frame() -> None:
    frame = moving_frames(1, 128, 128)[0]
    syntax = "1.2.840.10008.1.2.4.201"
    data = SYNTAXES[syntax](frame)
    middle = len(data) // 2
    data = data[:middle] + b"\0" * (len(data) - middle - 40) + data[-40:]
    header = codecs.check_frame(data, layout(frame), syntax)
    with pytest.raises(ClipRejected) as rejected:
        codecs.decode_frame(data, header, layout(frame), syntax)
    assert rejected.value.reason == Reason.DECODE_ERROR


def test_no_lenient_codec_is_asked_after_one_that_refuses_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = moving_frames(1, 64, 64)[0]
    syntax = "1.2.840.10008.1.2.4.80"
    data = encode_jpeg_ls(frame)
    header = codecs.check_frame(data, layout(frame), syntax)
    half = damaged(data, "cut", 0.5)
    assert codecs._decode_by_pydicom(half, layout(frame), syntax).shape == frame.shape
    with pytest.raises(ClipRejected) as rejected:
        codecs.decode_frame(half, header, layout(frame), syntax)
    assert rejected.value.reason == Reason.DECODE_ERROR

    def absent(data: bytes, layout: PixelLayout, transfer_syntax: str) -> np.ndarray:
        return imagecodecs.mozjpeg_decode(data)  # a codec that no public build has

    monkeypatch.setitem(codecs._DECODERS, "jpeg_ls", (("imagecodecs:absent", absent),))
    values, codec = codecs.decode_frame(data, header, layout(frame), syntax)
    assert codec == "pydicom"
    assert (values == frame).all()


def test_trailing_bytes_after_the_end_marker_are_tolerated() -> None:
    frame = moving_frames(1)[0]
    data = SYNTAXES[JPEG_LOSSLESS](frame) + b"\0" + bytes(range(1, 6))
    header = codecs.check_frame(data, layout(frame), JPEG_LOSSLESS)
    assert (codecs.decode_frame(data, header, layout(frame), JPEG_LOSSLESS)[0] == frame).all()


def test_a_baseline_stream_under_a_lossless_syntax_is_read() -> None:
    frames = moving_frames(4, 64, 64)
    data = xa_compressed([encode_jpeg(frame) for frame in frames], frames)
    assert np.abs(decode_frames(data).astype(int) - frames).mean() < 3


def test_a_stream_of_another_family_than_the_syntax_is_refused() -> None:
    frames = moving_frames(4)
    data = xa_compressed([SYNTAXES["1.2.840.10008.1.2.4.80"](frame) for frame in frames], frames)
    with pytest.raises(ClipRejected) as rejected:
        decode_frames(data)
    assert rejected.value.reason == Reason.DECODE_ERROR


def test_pydicom_decodes_what_the_first_codec_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """With imagecodecs out of the way (as where a build lacks a codec), the fall-back gives the same bits."""
    frame = moving_frames(1)[0]
    monkeypatch.setattr(codecs, "_DECODERS", dict.fromkeys(codecs._DECODERS, ()))
    for syntax in ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"):
        data = SYNTAXES[syntax](frame)
        header = codecs.check_frame(data, layout(frame), syntax)
        values, codec = codecs.decode_frame(data, header, layout(frame), syntax)
        assert codec == "pydicom"
        assert (values == frame).all()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0", b"\xff\xd8" + b"\xff" * 500, b"\xff\xd8\xff\xda"),
        *(b"\0" * 100, b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x51" + b"\0" * 60, b"\xff\xd8\xff\xe0\0\0"),
        b"\xff\xd8\xff\xe0\0\x10" * 9,
    ],
)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_scraps_are_refused_with_a_reason(data: bytes, syntax: str) -> None:
    with pytest.raises(ClipRejected) as rejected:
        codecs.check_frame(data, layout(np.zeros((8, 8), np.uint8)), syntax)
    assert rejected.value.reason in (Reason.TRUNCATED, Reason.DECODE_ERROR, Reason.GEOMETRY_MISMATCH)


def test_native_and_deflated_data() -> None:
    frames = moving_frames(4, bits=12)
    assert (decode_frames(xa_bytes(frames, BitsStored=12)) == frames).all()
    assert (decode_frames(xa_bytes(frames, syntax="1.2.840.10008.1.2.1.99")) == frames).all()
    assert (decode_frames(xa_bytes(frames, syntax="1.2.840.10008.1.2")) == frames).all()
    with pytest.raises(ValueError, match="0 to 3"):
        decode_frames(xa_bytes(frames), [4])
