"""The machine: from attenuation to stored values, as detectors and their processing of several makes leave them.

Beer-Lambert, scatter, blur, quantum noise, then in log signal what vendors do: temporal noise reduction, compression
of the dynamic range, edge enhancement with its bright halos, a display curve; last blanking, bits and, for some
clips, a passage through JPEG. Ranges were set by eye and by measurement against the real clip and the cath-lab
phantom files in ../shared/data (`benchmarks/phantom_realism.py` prints both). Knows nothing of anatomy or of DICOM.

Lengths in px are those of a 512-pixel picture and scale with the picture's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from angio_ray.phantom.carm import Floats, View

if TYPE_CHECKING:
    from angio_ray.phantom.scene import Streams  # which imports Detector from here

Image = NDArray[np.float32]
Stored = NDArray[np.uint8] | NDArray[np.uint16]
Curve = Literal["linear", "root", "log", "film"]
Shutter = Literal["none", "octagon", "rounded octagon", "round", "rectangle", "rounded rectangle", "tilted rectangle"]
Site = Literal["seen", "unseen"]

REFERENCE_SIZE = 512
SCATTER_GRID = 8
"""Scatter and local means are computed on a picture smaller by this factor."""
LEVEL_PERCENTILES = (5.0, 50.0, 95.0)
DARK_MARGIN = 0.6
"""How far, beyond one and a half times the way from the median to the bright end, the dark end may lie below it."""
NARROWEST_SPAN = 0.8
"""Log range that `Detector.levels` spans at least: a flat picture is not stretched into noise."""
_TABLE_STEPS = 1 << 14
_TABLE_RANGE = 9.0
"""Log range of the display table."""
_FAINTEST = 1e-4


@dataclass(frozen=True, kw_only=True)
class Detector:
    """The machine of one clip: exposure, scatter, noise, processing, blanking, bits."""

    style: str
    noise: float
    """Relative standard deviation of the signal, per pixel after `noise_blur_px`, at the field's mean."""
    noise_blur_px: tuple[float, float]
    """Correlation of the noise along rows and down columns (Gaussian sigma)."""
    noise_memory: float
    """Correlation of a pixel's noise from frame to frame, 0..1 (temporal filtering that follows motion)."""
    scatter: float
    """Scattered over primary radiation, at the field's mean."""
    scatter_px: float
    blur_px: float
    sharpen: float
    """Edge enhancement: share of the difference to the local mean that is added."""
    sharpen_px: float
    compression: float
    """Share of the slow brightness changes that is taken out, 0..1."""
    compression_px: float
    curve: Curve
    gamma: float
    """Steepness of the curve; exponent of the signal for "root"."""
    levels: tuple[float, float]
    """Display levels, 0..1, of the 5th and 95th percentile inside the field; the 5th is not let fall too far."""
    shoulder: float
    """Display level from which the highlights are bent; 1: they clip."""
    settling: float
    """Log error of the exposure in the first frame; positive: too bright."""
    settling_s: float
    """When the error is nearly gone."""
    vignette: float
    """Log signal lost at the field's corner."""
    shutter: Shutter
    shutter_half: float
    """Half the width of the open field over the picture's width."""
    shutter_cut: float
    """Where an octagon's corner is cut, share of the half width (also the roundness of a rounded rectangle)."""
    shutter_centre: tuple[float, float]
    """Shift of the open field, shares of the picture's width, column and row."""
    outside: float
    """Display level of the blanked part."""
    blades: tuple[float, float, float, float]
    """How far collimator blades reach in from left, top, right and bottom, shares of the picture; 0: not in sight."""
    blade_corner: float
    """How far blades cut the corners off, share of the picture; 0: they do not."""
    blade_attenuation: float
    wedge: tuple[float, float, float] | None
    """Soft filter: direction it comes from (radians, 0 from the right, pi/2 from below), distance of its middle from
    the picture's centre in shares of the width, and its attenuation."""
    bits: int
    jpeg_quality: int | None
    """JPEG baseline quality that the clip went through before it was stored; 8 bit only."""


def draw(rng: np.random.Generator, *, site: Site, bits: int | None = None) -> Detector:
    """Draw a machine of a site: "unseen" has styles (curve, noise texture, blanking) that "seen" never shows.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the numbers come from.
    site : {"seen", "unseen"}
        Training's machines, or those of the independent set.
    bits : int, optional
        8, 10 or 12; drawn where not given.
    """
    styles = _SEEN if site == "seen" else _UNSEEN
    style = styles[int(rng.choice(len(styles), p=np.array([s.share for s in styles])))]
    depth = int(rng.choice([8, 10, 12], p=[0.8, 0.08, 0.12]))
    jpeg = int(rng.integers(60, 91)) if rng.random() < style.jpeg else None
    blades = tuple(float(rng.uniform(*style.blade_inset)) if rng.random() < style.blades else 0.0 for _ in range(4))
    wedge = (float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.22, 0.42)), float(rng.uniform(0.3, 0.9)))
    has_wedge = rng.random() < style.wedge
    settles = rng.random() < 0.6
    settling = float(rng.uniform(0.05, 0.4) * rng.choice([1.0, 1.0, -1.0])) if settles else 0.0
    cell = float(rng.uniform(*style.noise_blur_px))
    bits = depth if bits is None else bits
    return Detector(
        style=style.name,
        noise=float(rng.uniform(*style.noise)),
        noise_blur_px=(cell * style.noise_stretch, cell),
        noise_memory=float(rng.uniform(*style.noise_memory)),
        scatter=float(rng.uniform(*style.scatter)),
        scatter_px=float(rng.uniform(50, 110)),
        blur_px=float(rng.uniform(*style.blur_px)),
        sharpen=float(rng.uniform(*style.sharpen)),
        sharpen_px=float(rng.uniform(*style.sharpen_px)),
        compression=float(rng.uniform(*style.compression)),
        compression_px=float(rng.uniform(*style.compression_px)),
        curve=style.curve,
        gamma=float(rng.uniform(*style.gamma)),
        levels=(float(rng.uniform(*style.low)), float(rng.uniform(*style.high))),
        shoulder=float(rng.uniform(*style.shoulder)),
        settling=settling,
        settling_s=float(rng.uniform(0.05, 0.3)),
        vignette=float(rng.uniform(*style.vignette)),
        shutter=style.shutters[int(rng.integers(len(style.shutters)))],
        shutter_half=float(rng.uniform(*style.half)),
        shutter_cut=float(rng.uniform(0.5, 0.85)),
        shutter_centre=(float(rng.normal(0, 0.008)), float(rng.normal(0, 0.012))),
        outside=float(rng.choice(style.outside)),
        blades=(blades[0], blades[1], blades[2], blades[3]),
        blade_corner=float(rng.uniform(0.05, 0.12)) if rng.random() < style.blade_corner else 0.0,
        blade_attenuation=float(rng.uniform(1.5, 3.5)),
        wedge=wedge if has_wedge else None,
        bits=bits,
        jpeg_quality=jpeg if bits == 8 else None,
    )


Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Style:
    """A make of machine: the ranges that `draw` draws from, fields named as in `Detector`."""

    name: str
    share: float
    """Of the site's clips."""
    noise: Range
    noise_blur_px: Range
    noise_stretch: float = 1.0
    """How much longer the noise's grain is along a row (video chains)."""
    noise_memory: Range = (0.0, 0.4)
    scatter: Range = (0.08, 0.35)
    blur_px: Range = (0.6, 1.0)
    sharpen: Range
    sharpen_px: Range = (1.5, 3.0)
    compression: Range
    compression_px: Range = (40.0, 90.0)
    curve: Curve
    gamma: Range
    low: Range
    high: Range
    shoulder: Range = (0.75, 1.0)
    vignette: Range = (0.0, 0.1)
    shutters: tuple[Shutter, ...]
    half: Range = (0.46, 0.5)
    outside: tuple[float, ...] = (0.0,)
    blades: float
    """How likely each blade is in sight."""
    blade_inset: Range = (0.01, 0.07)
    blade_corner: float = 0.0
    """How likely blades cut the corners."""
    wedge: float
    jpeg: float


_SEEN = (
    _Style(  # flat panels of the last fifteen years
        name="flat panel",
        share=0.4,
        noise=(0.012, 0.035),
        noise_blur_px=(0.45, 0.8),
        sharpen=(0.4, 1.3),
        compression=(0.3, 0.65),
        curve="log",
        gamma=(1.0, 1.0),
        low=(0.15, 0.3),
        high=(0.65, 0.85),
        shutters=("none", "rectangle", "rounded octagon", "rectangle"),
        outside=(0.0, 0.0, 0.05, 0.1),
        blades=0.25,
        wedge=0.25,
        jpeg=0.1,
    ),
    _Style(  # like 0002.DCM: linear, smooth, an octagon with round corners, settles, JPEG
        name="smooth linear",
        share=0.2,
        noise=(0.006, 0.018),
        noise_blur_px=(0.75, 1.15),
        noise_memory=(0.0, 0.4),
        scatter=(0.05, 0.25),
        blur_px=(0.8, 1.3),
        sharpen=(0.0, 0.3),
        compression=(0.0, 0.15),
        curve="root",
        gamma=(0.55, 0.9),
        low=(0.1, 0.17),
        high=(0.78, 0.96),
        shutters=("octagon", "rounded octagon", "rounded octagon"),
        half=(0.44, 0.48),
        blades=0.4,
        wedge=0.1,
        jpeg=0.5,
    ),
    _Style(  # like the cath-lab phantom files: slow changes taken out, broad bright halos, coarse noise
        name="harmonised",
        share=0.2,
        noise=(0.022, 0.045),
        noise_blur_px=(0.42, 0.58),
        noise_memory=(0.0, 0.2),
        blur_px=(0.5, 0.8),
        sharpen=(0.8, 1.8),
        sharpen_px=(3.0, 8.0),
        compression=(0.7, 0.9),
        compression_px=(25.0, 50.0),
        curve="log",
        gamma=(1.0, 1.0),
        low=(0.22, 0.3),
        high=(0.52, 0.62),
        shutters=("none",),
        blades=1.0,
        blade_inset=(0.008, 0.03),
        blade_corner=0.5,
        wedge=0.15,
        jpeg=0.05,
    ),
    _Style(  # image intensifiers with a camera behind
        name="intensifier",
        share=0.2,
        noise=(0.012, 0.035),
        noise_blur_px=(0.6, 1.0),
        scatter=(0.2, 0.5),
        blur_px=(0.8, 1.2),
        sharpen=(0.0, 0.7),
        compression=(0.0, 0.3),
        curve="root",
        gamma=(0.3, 0.6),
        low=(0.12, 0.25),
        high=(0.7, 0.9),
        vignette=(0.15, 0.5),
        shutters=("round", "round", "octagon"),
        half=(0.48, 0.53),
        blades=0.2,
        wedge=0.15,
        jpeg=0.3,
    ),
)
_UNSEEN = (
    _Style(
        name="film curve",
        share=0.5,
        noise=(0.012, 0.035),
        noise_blur_px=(0.5, 0.9),
        noise_memory=(0.0, 0.7),
        sharpen=(0.2, 1.1),
        sharpen_px=(1.2, 4.0),
        compression=(0.1, 0.75),
        curve="film",
        gamma=(1.0, 1.6),
        low=(0.12, 0.25),
        high=(0.7, 0.88),
        shutters=("tilted rectangle", "rounded rectangle"),
        half=(0.44, 0.49),
        outside=(0.0, 0.16, 0.22),
        blades=0.15,
        wedge=0.3,
        jpeg=0.2,
    ),
    _Style(
        name="video chain",
        share=0.5,
        noise=(0.012, 0.035),
        noise_blur_px=(0.4, 0.6),
        noise_stretch=2.6,
        scatter=(0.2, 0.5),
        blur_px=(0.8, 1.3),
        sharpen=(0.3, 1.0),
        compression=(0.0, 0.3),
        curve="film",
        gamma=(0.8, 1.3),
        low=(0.12, 0.24),
        high=(0.68, 0.85),
        vignette=(0.1, 0.4),
        shutters=("rounded rectangle",),
        half=(0.47, 0.5),
        outside=(0.0, 0.08),
        blades=0.1,
        wedge=0.2,
        jpeg=0.3,
    ),
)


class Exposure:
    """One clip's run through a detector; call `stored` once per frame, in order."""

    def __init__(self, detector: Detector, view: View, streams: Streams) -> None:
        self._detector, self._streams, self._size = detector, streams, view.size
        self._px = view.size / REFERENCE_SIZE
        open_field = shutter_mask(detector, view.size)
        self._blanked = np.flatnonzero(~open_field)
        blades = _blades(detector, view.size)
        self._filters = blades + _wedge_and_vignette(detector, view.size)
        self._lit = (open_field & (blades < 0.3))[::4, ::4]
        self._noise: Image | None = None
        self._settled: _Settled | None = None

    def stored(self, attenuation_HW: Image, f: int, time_s: float) -> Stored:
        """One frame's stored values; the first call's frame sets exposure and levels for the whole clip.

        Parameters
        ----------
        attenuation_HW : (H, W) float32
            Log attenuation of all that is in the beam. Left as it is.
        f : int
            The frame's number; the noise's random numbers depend on it, never on the attenuation.
        time_s : float
            The frame's time on the clip's clock.
        """
        detector = self._detector
        signal = self._signal(attenuation_HW)
        if self._settled is None:
            reference = float(signal[::4, ::4][self._lit].mean())
            self._settled = self._settle(signal / np.float32(reference), reference, time_s)
        settled = self._settled
        gain = np.exp(settling_error(detector, time_s - settled.start_s)) / settled.reference
        signal *= np.float32(gain)
        signal += self._next_noise(f) * _float(cv2.sqrt(signal))
        shown = self._display(settled, self._process(signal))
        shown.ravel()[self._blanked] = round(detector.outside * ((1 << detector.bits) - 1))
        return shown if detector.jpeg_quality is None else _through_jpeg(shown, detector.jpeg_quality)

    def _signal(self, attenuation: Image) -> Image:
        """Radiation at the detector: primary and scatter, blurred."""
        detector, size = self._detector, self._size
        signal = _float(cv2.exp(-(attenuation + self._filters)))
        if detector.scatter:
            small = _smaller(signal)
            veil = _float(cv2.GaussianBlur(small, (0, 0), detector.scatter_px * self._px / SCATTER_GRID))
            veil *= np.float32(detector.scatter)
            signal += _float(cv2.resize(veil, (size, size), interpolation=cv2.INTER_LINEAR))
        return _float(cv2.GaussianBlur(signal, (0, 0), max(0.3, detector.blur_px * self._px)))

    def _next_noise(self, f: int) -> Image:
        """Noise of frame f, which remembers some of the frame before."""
        detector = self._detector
        white = self._streams.of(f"noise/{f}").standard_normal((self._size, self._size), dtype=np.float32)
        across, down = (max(0.25, sigma * self._px) for sigma in detector.noise_blur_px)
        fresh = _float(cv2.GaussianBlur(white, (0, 0), across, sigmaY=down))
        fresh *= np.float32(detector.noise / _noise_left(across, down))
        if self._noise is not None and detector.noise_memory:
            fresh *= np.float32(np.sqrt(1 - detector.noise_memory**2))
            fresh += self._noise * np.float32(detector.noise_memory)
        self._noise = fresh
        return fresh

    def _process(self, signal: Image) -> Image:
        """Log signal after dynamic-range compression and edge enhancement."""
        detector, size = self._detector, self._size
        log = _float(cv2.log(np.maximum(signal, np.float32(_FAINTEST))))
        result = log
        if detector.sharpen:
            near = _float(cv2.GaussianBlur(log, (0, 0), max(0.5, detector.sharpen_px * self._px)))
            result = _float(cv2.addWeighted(log, 1 + detector.sharpen, near, -detector.sharpen, 0))
        if detector.compression:
            small = _float(cv2.GaussianBlur(_smaller(log), (0, 0), detector.compression_px * self._px / SCATTER_GRID))
            small *= np.float32(detector.compression)
            result = result - _float(cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR))
        return result

    def _settle(self, signal: Image, reference: float, time_s: float) -> _Settled:
        """Exposure and display table from the first frame's statistics inside the field."""
        log = self._process(signal)
        low, middle, high = np.percentile(log[::4, ::4][self._lit], LEVEL_PERCENTILES)
        # something as dense as a pacemaker's can does not decide how bright the rest is shown
        low = max(low, middle - DARK_MARGIN - 1.5 * (high - middle))
        table = display_table(self._detector, float(low), float(high))
        return _Settled(reference, time_s, float((low + high) / 2 - _TABLE_RANGE / 2), table)

    def _display(self, settled: _Settled, log: Image) -> Stored:
        per_log = (_TABLE_STEPS - 1) / _TABLE_RANGE
        steps = log * np.float32(per_log)
        steps -= np.float32(settled.table_begin * per_log)
        return settled.table.take(np.clip(steps, 0, _TABLE_STEPS - 1, out=steps).astype(np.uint16))


class _Settled(NamedTuple):
    """What the first frame fixes for the clip."""

    reference: float
    """Mean signal inside the field."""
    start_s: float
    table_begin: float
    """Log signal of the display table's first entry."""
    table: Stored


def settling_error(detector: Detector, since_start_s: float) -> float:
    """Log error of the exposure some time into the run: `settling` at first, a small undershoot, then none."""
    x = since_start_s / detector.settling_s
    return float(detector.settling * np.exp(-1.8 * x * x) * np.cos(0.75 * np.pi * x))


def display_table(detector: Detector, low: float, high: float) -> Stored:
    """Stored value for each step of log signal around (low + high) / 2; low and high get the detector's levels."""
    half = max(high - low, NARROWEST_SPAN) / 2
    log = np.linspace(-_TABLE_RANGE / 2, _TABLE_RANGE / 2, _TABLE_STEPS)
    ends = np.array([-half, half])
    dark, bright = _curve(detector, ends, half)
    at_low, at_high = detector.levels
    level = at_low + (at_high - at_low) * (_curve(detector, log, half) - dark) / (bright - dark)
    knee = detector.shoulder
    if knee < 1:
        level = np.where(level > knee, knee + (1 - knee) * np.tanh((level - knee) / (1 - knee)), level)
    values: Floats = np.round(np.clip(level, 0, 1) * ((1 << detector.bits) - 1))
    return values.astype(np.uint8) if detector.bits == 8 else values.astype(np.uint16)


def _curve(detector: Detector, log: Floats, half: float) -> Floats:
    """The display curve's shape, up to offset and scale."""
    if detector.curve == "log":
        return log
    if detector.curve == "film":
        return np.tanh(detector.gamma * log / (half + 0.4))
    return np.exp((1.0 if detector.curve == "linear" else detector.gamma) * log)


def shutter_mask(detector: Detector, size: int) -> NDArray[np.bool_]:
    """Where the picture is not blanked, (H, W)."""
    mask = np.zeros((size, size), np.uint8)
    middle = size * (0.5 + np.array(detector.shutter_centre))
    half, cut = size * detector.shutter_half, detector.shutter_cut
    if detector.shutter == "none":
        mask[:] = 1
    elif detector.shutter == "round":
        cv2.circle(mask, np.round(middle * 16).astype(int).tolist(), round(half * 16), 1, -1, shift=4)
    else:
        outline = middle + half * _outline(detector.shutter, cut)
        cv2.fillConvexPoly(mask, np.round(outline * 16).astype(np.int32), 1, shift=4)
    if detector.shutter == "rounded octagon":
        disc = np.zeros_like(mask)
        cv2.circle(
            disc, np.round(middle * 16).astype(int).tolist(), round(half * (0.8 + 0.6 * cut) * 16), 1, -1, shift=4
        )
        mask &= disc
    return mask > 0


def _outline(shutter: Shutter, cut: float) -> Floats:
    """Corners of an open field of half width one, (N, 2)."""
    if shutter == "octagon":
        eighth = np.array([[1, -cut], [1, cut], [cut, 1], [-cut, 1]])
        return np.vstack([eighth, -eighth])
    box = np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    if shutter == "tilted rectangle":
        turn = np.deg2rad(20 * (cut - 0.675))
        tilted: Floats = box @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        return tilted
    if shutter == "rounded rectangle":
        radius = 0.15 + 0.6 * (cut - 0.5)
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        arc = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        rounded: Floats = np.sign(arc) * (1 - radius) + radius * arc
        return rounded
    return box


def _blades(detector: Detector, size: int) -> Image:
    """Attenuation of the collimator's blades with their penumbra, (H, W)."""
    if not any(detector.blades):
        return np.zeros((size, size), np.float32)
    left, top, right, bottom = (share * size for share in detector.blades)
    rows, columns = np.ogrid[:size, :size]
    inside = [columns - left, rows - top, size - 1 - right - columns, size - 1 - bottom - rows]
    reached = [edge if share else np.full_like(edge, size) for edge, share in zip(inside, detector.blades, strict=True)]
    depth = np.minimum(np.minimum(reached[0], reached[2]), np.minimum(reached[1], reached[3]))
    if detector.blade_corner:
        cut = detector.blade_corner * size
        for one in (inside[0], inside[2]):
            for other in (inside[1], inside[3]):
                depth = np.minimum(depth, (one + other - cut) / np.sqrt(2))
    penumbra = 0.8 * size / REFERENCE_SIZE
    return _float(detector.blade_attenuation / (1 + np.exp(np.clip(depth / penumbra, -30, 30))))


def _wedge_and_vignette(detector: Detector, size: int) -> Image:
    """Attenuation of the soft filter and the loss of light towards the corners, (H, W)."""
    rows, columns = (axis.astype(np.float32) / size - np.float32(0.5) for axis in np.ogrid[:size, :size])
    result = (rows**2 + columns**2) * np.float32(2 * detector.vignette)
    if detector.wedge is not None:
        direction, distance, attenuation = detector.wedge
        depth = columns * np.float32(np.cos(direction)) + rows * np.float32(np.sin(direction)) - np.float32(distance)
        result = result + np.float32(attenuation) / (1 + np.exp(-depth / np.float32(0.03)))
    return _float(result)


def _noise_left(across: float, down: float) -> float:
    """Standard deviation of white noise of one after the Gaussian blur."""
    spike = np.zeros((1, 65), np.float32)
    spike[0, 32] = 1
    left = [float(np.sum(np.square(cv2.GaussianBlur(spike, (0, 0), sigma, sigmaY=0.1)))) for sigma in (across, down)]
    return float(np.sqrt(left[0] * left[1]))


def _through_jpeg(frame: Stored, quality: int) -> Stored:
    encoded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.uint8)


def _smaller(picture: Image) -> Image:
    side = max(8, picture.shape[0] // SCATTER_GRID)
    return _float(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA))


def _float(picture: object) -> Image:
    """OpenCV's result as the array of float32 that it is."""
    return np.asarray(picture, np.float32)
