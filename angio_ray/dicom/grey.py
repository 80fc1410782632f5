"""Stored values to the 8-bit grey that models see.

MONOCHROME1 is inverted, bits above BitsStored are masked, the sign is honoured. No Modality LUT: XA's maps LOG data back
to X-ray intensity and is not meant for display (design 10; PS3.3 C.8.7). 8-bit values stay as they are; deeper ones go
through the header's first usable VOI LUT or window, else BitsStored is scaled to 0..255. Colour becomes luma.
"""

from __future__ import annotations

import cv2
import numpy as np

from angio_ray.dicom.facts import PixelLayout, Voi
from angio_ray.dicom.header import Buffer

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as YBR_FULL has it (PS3.3 C.7.6.3.1.2)
_MIN_CONTRAST = 16
"""Grey levels that a window must spread the stored range over to be usable: a nonsense window makes a flat image."""


def native_values(data: Buffer, layout: PixelLayout) -> np.ndarray:
    """Bytes of one native frame as an array of `layout.frame_shape`, dtype `layout.dtype`."""
    order = layout.dtype.newbyteorder("<" if layout.little else ">")
    flat = np.frombuffer(data, dtype=order).astype(layout.dtype)
    if layout.photometric == "YBR_FULL_422":
        quads = flat.reshape(-1, 4)  # Y1 Y2 Cb Cr of two pixels
        pixels = np.stack([quads[:, :2], quads[:, [2, 2]], quads[:, [3, 3]]], axis=-1)
        return pixels.reshape(layout.frame_shape)
    if layout.planar:
        return np.ascontiguousarray(flat.reshape(layout.samples, layout.rows, layout.columns).transpose(1, 2, 0))
    return flat.reshape(layout.frame_shape)


def masked(values: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """Stored values without the bits that are no part of them (overlays sit there in old files)."""
    if layout.bits_stored == layout.bits_allocated:
        return values
    # Up to the top and down again: the second shift copies the sign bit, or zeros where there is no sign
    up = layout.bits_allocated - 1 - layout.high_bit
    return np.right_shift(np.left_shift(values, up), layout.bits_allocated - layout.bits_stored)


def grey_table(layout: PixelLayout, voi: Voi | None) -> np.ndarray:
    """Grey of every bit pattern of a stored value, shape (2 ** bits_allocated,) uint8."""
    patterns = np.arange(2**layout.bits_allocated).astype(f"u{layout.bits_allocated // 8}").view(layout.dtype)
    stored = masked(patterns, layout).astype(np.float64)
    low = -(2.0 ** (layout.bits_stored - 1)) if layout.signed else 0.0
    grey = None
    if voi is not None and layout.bits_stored > 8:
        grey = _through_voi(stored, voi)
        ends = _through_voi(np.linspace(low, low + 2.0**layout.bits_stored - 1, 1024), voi)
        if ends.max() - ends.min() < _MIN_CONTRAST:
            grey = None
    if grey is None:
        grey = (stored - low) * (255.0 / (2.0**layout.bits_stored - 1))
    table = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return 255 - table if layout.photometric == "MONOCHROME1" else table


def to_uint8(values: np.ndarray, layout: PixelLayout, table: np.ndarray) -> np.ndarray:
    """One frame of stored values as grey, shape (rows, columns) uint8; `table` is the clip's `grey_table`."""
    if layout.samples == 3:
        # YBR_RCT and YBR_ICT are RGB by now: JPEG 2000 decoders undo their own transform
        is_luma = layout.photometric.startswith("YBR_FULL")
        values = values[..., 0] if is_luma else np.rint(values @ _LUMA).astype(layout.dtype)
    patterns = np.ascontiguousarray(values).view(f"u{layout.bits_allocated // 8}")
    # cv2.LUT is ten times as fast as indexing, where there is one for the type
    return cv2.LUT(patterns, table) if patterns.dtype == np.uint8 else table[patterns]


def _through_voi(stored: np.ndarray, voi: Voi) -> np.ndarray:
    """Grey 0..255 as float64 (PS3.3 C.11.2.1)."""
    if voi.lut is not None:
        return voi.lut[np.clip(stored - voi.first_mapped, 0, len(voi.lut) - 1).astype(np.int64)].astype(np.float64)
    if voi.function == "SIGMOID":
        return 255.0 / (1.0 + np.exp(np.clip(-4.0 * (stored - voi.center) / voi.width, -60.0, 60.0)))
    if voi.function == "LINEAR_EXACT":
        share = (stored - voi.center) / voi.width + 0.5
    elif voi.width <= 1:
        share = (stored > voi.center - 0.5).astype(np.float64)
    else:
        share = (stored - (voi.center - 0.5)) / (voi.width - 1.0) + 0.5
    return np.clip(share, 0.0, 1.0) * 255.0
