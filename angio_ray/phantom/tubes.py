"""Tubes in projection: how much contrast (or metal) the beam meets behind each pixel, anti-aliased and additive.

A tube is cut into small pieces that carry their share of its volume; each piece falls onto the four pixels around its
shadow, weighted as in bilinear interpolation. So the chord through a round lumen, its calibre to a fraction of a pixel,
lumens thinner than a pixel, foreshortening and crossing vessels come out as they do in Beer-Lambert's law, without
joints to hide. The pieces are laid out once per clip; a frame is two sparse products and four histograms.

Knows nothing of hearts, iodine or machines: positions in px, lengths in mm, any amount per mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from angio_ray.phantom.carm import Floats

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

PIECE_PX = 0.55
"""Pieces lie at most this far apart, along and across: below the pixel, so that no ripple is left."""
END_ON = 0.5
"""Foreshortening (shown over true length) below which a tube's ends count as round."""
_GOLDEN = 0.6180339887498949
_FINE = 4
"""Outlines are filled on pixels this many times smaller."""
_SHIFT = 4
"""Fraction bits of their corners."""


@dataclass(frozen=True, kw_only=True)
class Tube:
    """One tube's shadow over the frames of a clip."""

    xy_TN2: Floats
    """Column and row, px."""
    step_px_TN: Floats
    """True length between sample n and n + 1 (N - 1 of them) as if it lay flat in the picture, px."""
    radius_px_TN: Floats
    radius_mm_TN: Floats


class Tubes:
    """Tubes that are drawn together, laid out once for all frames of a clip.

    Parameters
    ----------
    tubes : sequence of Tube
        All with the same number of frames.
    size : int
        Rows and columns of the picture, px.
    coarse : int, optional
        Draw on pixels this many times larger (for wide, soft things); the picture then has
        `size / coarse` rows, rounded up.

    Attributes
    ----------
    at : (P,) array
        Per piece, where it lies along: the number of the sample before it, counted over all tubes, and the rest.
    u : (P,) array
        Per piece, where it lies across, -1 to 1.
    """

    def __init__(self, tubes: Sequence[Tube], size: int, coarse: int = 1) -> None:
        tubes = [t for t in tubes if t.xy_TN2.shape[1] > 1]
        self.size = -(-size // coarse)
        self._empty = not tubes
        self.at, self.u = np.zeros(0), np.zeros(0, np.float32)
        if self._empty:
            return
        self._lengths = [t.xy_TN2.shape[1] for t in tubes]
        xy = np.concatenate([t.xy_TN2 for t in tubes], axis=1)
        xy = (xy + 0.5) / coarse - 0.5  # a pixel's middle has whole coordinates
        radius = np.concatenate([t.radius_px_TN for t in tubes], axis=1) / coarse
        self._radius_mm = np.concatenate([t.radius_mm_TN for t in tubes], axis=1)
        ends = np.cumsum(self._lengths)
        first = np.setdiff1d(np.arange(ends[-1]), ends - 1)
        """Samples at which a segment begins."""
        flat = np.diff(xy, axis=1)[:, first]
        step = np.concatenate([t.step_px_TN for t in tubes], axis=1) / coarse
        flat_px = np.linalg.norm(flat, axis=-1)
        inside = _in_view(xy, radius, self.size)
        seen = inside[first] | inside[first + 1]
        self._first = first[seen]
        self._xy, self._radius = xy.astype(np.float32), radius
        self._step = step[:, seen]
        self._side, self._spread = _frames_of_tubes(xy, radius, step, first, ends)
        end_on = self._spread.max(axis=(0, 2), initial=0) - self._spread.min(axis=(0, 2), initial=0) > 0
        steep = end_on[self._first] | end_on[self._first + 1]
        needed_px = np.where(steep, self._step, flat_px[:, seen]).max(axis=0, initial=0)
        self._lay_out(needed_px, radius.max(axis=0))

    def _lay_out(self, length_px: Floats, radius: Floats) -> None:
        """Place the pieces: where along its segment and across its tube each lies, and its share of the segment."""
        along = np.maximum(1, np.ceil(length_px / PIECE_PX)).astype(np.int64)
        across = np.ceil(2 * np.maximum(radius[self._first], radius[self._first + 1]) / PIECE_PX).astype(np.int64)
        across = np.maximum(1, across)
        count = along * across
        segment = np.repeat(np.arange(len(count)), count)
        nth = np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count)
        row, column = nth // across[segment], nth % across[segment]
        a = ((row + 0.5) / along[segment]).astype(np.float32)
        k = across[segment]
        u = ((2 * column + 1) / k - 1).astype(np.float32)
        # the chord's exact share between two lines across the circle
        share = (_circle_share((2 * column + 2) / k - 1) - _circle_share(2 * column / k - 1)) / along[segment]
        # pieces of a tube seen end-on fill its disc, evenly
        rows_before = np.cumsum(along) - along
        v = ((rows_before[segment] + row) * _GOLDEN + column * _GOLDEN**2) % 1
        v = np.sqrt(1 - u**2) * (2 * v - 1).astype(np.float32)
        begin = self._first[segment]
        samples = self._xy.shape[1]
        columns = np.stack([begin, begin + 1], axis=1)
        columns = np.concatenate([columns, columns + samples, columns + 2 * samples], axis=1)
        data = np.stack([1 - a, a, u * (1 - a), u * a, v * (1 - a), v * a], axis=1)
        self._place = _rows(data, columns, 3 * samples)
        both = np.stack([segment, segment + len(count)], axis=1)
        self._carry = _rows(np.stack([share * (1 - a), share * a], axis=1), both, 2 * len(count))
        self.at, self.u = begin + a, u

    def amounts(self, f: int, per_mm: Sequence[Floats]) -> Floats:
        """Volume times `per_mm` of each piece of frame f, in mm px²; `per_mm` one (N,) per tube."""
        area = np.pi * self._radius_mm[f] * self._radius[f] * np.concatenate(per_mm)
        step = self._step[f]
        return np.asarray(self._carry @ np.concatenate([area[self._first] * step, area[self._first + 1] * step]))

    def draw(self, f: int, per_mm: Sequence[Floats], factor: Floats | None = None) -> Image:
        """The picture of frame f, (size, size): the sum of `per_mm` along each pixel's beam.

        Parameters
        ----------
        f : int
            Frame.
        per_mm : sequence of array
            Per tube, at each of its samples, (N,).
        factor : array, optional
            Per piece, further; see `at` and `u` for where each lies.
        """
        if self._empty or not any(p.any() for p in per_mm):
            return np.zeros((self.size, self.size), np.float32)
        amount = self.amounts(f, per_mm)
        if factor is not None:
            amount = amount * factor
        xy = self._place @ np.concatenate([self._xy[f], self._side[f], self._spread[f]])
        return _splat(xy, amount, self.size)


def _in_view(xy: Floats, radius: Floats, size: int) -> Mask:
    """Which samples come into the picture in some frame, or near enough."""
    margin = float(radius.max()) + 2
    low, high = xy.min(axis=-1), xy.max(axis=-1)
    return np.asarray(((low > -margin) & (high < size + margin)).any(axis=0))


def _frames_of_tubes(
    xy: Floats, radius: Floats, step: Floats, first: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[Image, Image]:
    """Per sample: the way from the middle to the wall in the picture, and along it for a lumen seen from its end."""
    flat = np.zeros_like(xy)
    flat[:, first] = np.diff(xy, axis=1)[:, first]
    true = np.zeros(xy.shape[:2])
    true[:, first] = step
    starts = np.concatenate([[0], ends[:-1]])
    before, length = np.roll(flat, 1, axis=1), np.roll(true, 1, axis=1)
    before[:, starts], length[:, starts] = 0, 0
    tangent, length = flat + before, true + length
    norm = np.linalg.norm(tangent, axis=-1)
    shortening = np.clip(norm / np.maximum(length, 1e-9), 0, 1)
    tangent = tangent / np.maximum(norm, 1e-9)[..., None]
    side = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1) * radius[..., None]
    # a lumen's own depth shows only where the tube is seen nearly from its end
    steepness = np.clip((END_ON - shortening) / (0.5 * END_ON), 0, 1)
    spread = tangent * (radius * np.sqrt(1 - shortening**2) * steepness)[..., None]
    return side.astype(np.float32), spread.astype(np.float32)


def _circle_share(u: Floats) -> Floats:
    """Share of a unit circle's area left of u, -1..1."""
    u = np.clip(u, -1, 1)
    return np.asarray(0.5 + (u * np.sqrt(1 - u**2) + np.arcsin(u)) / np.pi)


def _rows(data: NDArray[np.floating], columns: NDArray[np.int64], width: int) -> csr_array:
    """A sparse matrix with as many entries in each row."""
    pointers = np.arange(0, data.size + 1, data.shape[1], dtype=np.int32)
    return csr_array(
        (data.astype(np.float32).ravel(), columns.astype(np.int32).ravel(), pointers), shape=(len(data), width)
    )


def _splat(xy: Image, amount: Floats, size: int) -> Image:
    """Sum of the amounts that fall onto each pixel; what misses the picture lands on a rim that is cut off."""
    picture = np.zeros((size, size), np.float32)
    x, y = np.clip(xy[:, 0], -1, size), np.clip(xy[:, 1], -1, size)
    if not len(x):
        return picture
    left, top = int(np.floor(x.min())), int(np.floor(y.min()))
    wide, high = int(x.max()) - left + 2, int(y.max()) - top + 2  # no more than what is drawn on
    x -= left
    y -= top
    column, row = x.astype(np.int32), y.astype(np.int32)
    x -= column
    y -= row
    at = (row * wide + column).astype(np.int64)
    upper, lower = amount * (1 - y), amount * y
    cells = wide * high
    right = upper * x
    total = np.bincount(at, upper - right, cells)
    total += np.bincount(at + 1, right, cells)
    right = lower * x
    total += np.bincount(at + wide, lower - right, cells)
    total += np.bincount(at + wide + 1, right, cells)
    rows, columns = slice(max(top, 0), min(top + high, size)), slice(max(left, 0), min(left + wide, size))
    picture[rows, columns] = total.reshape(high, wide)[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    return picture


def add_plate(picture: Image, outline_N2: Floats, amount: float) -> None:
    """Add `amount` inside a flat outline in px, smooth at its edge, in place."""
    size = picture.shape[0]
    low = np.clip(np.floor(outline_N2.min(axis=0)).astype(int), 0, size)
    high = np.clip(np.ceil(outline_N2.max(axis=0)).astype(int) + 1, 0, size)
    wide, tall = (int(n) for n in high - low)
    if wide <= 0 or tall <= 0:
        return
    # OpenCV's own smooth edges lie more than half a pixel too far out
    fine = np.zeros((tall * _FINE, wide * _FINE), np.uint8)
    corners = (np.clip(outline_N2, -8 * size, 9 * size) - low + 0.5) * _FINE - 0.5
    cv2.fillPoly(fine, [np.round(corners * (1 << _SHIFT)).astype(np.int32)], 255, cv2.LINE_8, _SHIFT)
    part = cv2.resize(fine, (wide, tall), interpolation=cv2.INTER_AREA)
    picture[low[1] : high[1], low[0] : high[0]] += part * np.float32(amount / 255)
