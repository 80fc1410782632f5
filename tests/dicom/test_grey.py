"""Stored values to grey: masked bits, signs, inversion, windows that are usable and windows that are not, colour."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from angio_ray.dicom.reader import decode_frames, to_uint8
from tests.dicom.objects import encode_jpeg_ls, moving_frames, written, xa_bytes, xa_compressed, xa_dataset

EIGHT = moving_frames(4)
TWELVE = moving_frames(4, bits=12)


def full_range(values: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(values * 255.0 / (2**bits - 1)).astype(np.uint8)


def test_eight_bits_stay_as_they_are_window_or_not() -> None:
    assert (to_uint8(xa_bytes(EIGHT)) == EIGHT).all()
    assert (to_uint8(xa_bytes(EIGHT, WindowCenter="100", WindowWidth="20")) == EIGHT).all()


def test_monochrome1_is_inverted() -> None:
    assert (to_uint8(xa_bytes(EIGHT, PhotometricInterpretation="MONOCHROME1")) == 255 - EIGHT).all()


def test_signed_values_keep_their_order() -> None:
    signed = EIGHT.astype(np.int16) - 128
    data = xa_bytes(signed.astype(np.int8).view(np.uint8), PixelRepresentation=1)
    assert (decode_frames(data) == signed).all()
    assert (to_uint8(data) == EIGHT).all()


def test_bits_above_those_stored_are_masked() -> None:
    with_overlay = TWELVE | np.uint16(0x9000)
    for data in (
        xa_bytes(with_overlay, BitsStored=12),
        xa_compressed(
            [encode_jpeg_ls(f) for f in with_overlay], TWELVE, syntax="1.2.840.10008.1.2.4.80", BitsStored=12
        ),
    ):
        assert (decode_frames(data) == TWELVE).all()
        assert (to_uint8(data) == full_range(TWELVE, 12)).all()


def test_values_may_sit_in_the_high_bits() -> None:
    assert (decode_frames(xa_bytes(TWELVE << 4, BitsStored=12, HighBit=15)) == TWELVE).all()


def test_the_first_window_is_used_for_deeper_data() -> None:
    shown = to_uint8(xa_bytes(TWELVE, BitsStored=12, WindowCenter=["2048", "1"], WindowWidth=["1000", "1"]))
    expected = np.clip((TWELVE - 2047.5) / 999 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
    assert (shown == np.rint(expected).astype(np.uint8)).all()


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": "2048", "WindowWidth": "0"},
        {"WindowCenter": "2048", "WindowWidth": "-5"},
        {"WindowCenter": "2048"},
        {"WindowCenter": "2147483647", "WindowWidth": "2147483647"},
        {"WindowCenter": "99999", "WindowWidth": "100"},
    ],
)
def test_a_useless_window_is_passed_over(window: dict[str, Any]) -> None:
    assert (to_uint8(xa_bytes(TWELVE, BitsStored=12, **window)) == full_range(TWELVE, 12)).all()


def test_a_window_of_nan_is_passed_over() -> None:
    data = xa_bytes(TWELVE, BitsStored=12, WindowCenter="2048", WindowWidth="1000")
    assert (to_uint8(data.replace(b"2048", b"nan ")) == full_range(TWELVE, 12)).all()


def test_a_voi_table_comes_before_a_window() -> None:
    dataset = xa_dataset(TWELVE, BitsStored=12, WindowCenter="1", WindowWidth="2")
    item = Dataset()
    table = np.linspace(65535, 0, 4096).astype("<u2")  # upside down, so that it cannot be mistaken
    item.add_new(0x00283002, "US", [4096, 0, 16])
    item.add_new(0x00283006, "OW", table.tobytes())
    dataset.VOILUTSequence = [item]
    expected = np.rint(table[TWELVE] * (255.0 / 65535)).astype(np.uint8)
    assert (to_uint8(written(dataset)) == expected).all()


def test_a_modality_table_is_not_applied() -> None:
    dataset = xa_dataset(EIGHT, PixelIntensityRelationship="LOG")
    item = Dataset()
    item.add_new(0x00283002, "US", [256, 0, 8])
    item.add_new(0x00283006, "OW", b"\0" * 256)
    item.ModalityLUTType = "US"
    dataset.ModalityLUTSequence = [item]
    assert (to_uint8(written(dataset)) == EIGHT).all()


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_becomes_luma(planar: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 16, 12, 3), dtype=np.uint8)
    stored = rgb.transpose(0, 3, 1, 2) if planar else rgb
    colour = {
        "SamplesPerPixel": 3,
        "PlanarConfiguration": planar,
        "PixelData": stored.tobytes(),
        "Rows": 16,
        "Columns": 12,
    }
    data = xa_bytes(rgb[..., 0], PhotometricInterpretation="RGB", **colour)
    assert (decode_frames(data) == rgb).all()
    assert (to_uint8(data) == np.rint(rgb @ [0.299, 0.587, 0.114])).all()
    assert (to_uint8(xa_bytes(rgb[..., 0], PhotometricInterpretation="YBR_FULL", **colour)) == rgb[..., 0]).all()
