"""What lies around the vessels: log attenuation of chest, abdomen, pelvis, forearm or neck behind a coronary run.

Organs are ellipsoids and elliptical cylinders in the patient's millimetres, and their attenuation the length that
each ray runs inside them, so that spine, lungs and diaphragm lie where the C-arm's angles put them; bones and the
lungs' own vessels are drawn along 3D courses. Three pictures are made once per clip (what rests, the heart's edge,
what breathes), as far around the field as table and breath will move them into it, and a frame is two warps and a sum.
Knows nothing of iodine, of devices, or of the detector.

Attenuation of soft tissue for 70-90 kVp behind 20 cm of water: 0.015 to 0.02/mm; inflated lung a third of
water's density. Sizes are an adult's, rounded, and vary per patient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from angio_ray.phantom import anatomy
from angio_ray.phantom.carm import Floats, View, axes, project
from angio_ray.phantom.scene import Region

Image = NDArray[np.float32]

LUNG_DENSITY = (0.3, 0.5)
"""Of soft tissue's, for lungs of a lying patient in held inspiration to resting."""
HEART_SQUEEZE = 0.035
"""Share of its width that the heart's shadow loses in systole; little of the motion inside shows at its edge."""
HEART_TURN_DEG = 0.8
_SHIFT = 4
"""Fraction bits of drawn corners: 1/16 px."""
_STILL_PX = 0.02
"""Shifts below this are none."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """One clip's surroundings; `frame` gives them at a moment. Pictures are log attenuation, the field with a margin."""

    still: Image
    """Fixed to the table: wall, spine, ribs, lungs."""
    heart: Image
    """What the heart adds against the lungs; beats, breathes."""
    breathing: Image
    """What breathes without beating: diaphragm with liver and stomach, or the bowel's gas."""
    view: View
    margin_px: int
    """How far the pictures go beyond the view's field, on all sides."""
    heart_px: tuple[float, float]
    """What the heart's shadow shrinks towards, column and row of the pictures."""

    def frame(self, contraction: float, breath_mm: Floats, pan_mm: Floats) -> Image:
        """The surroundings at one moment, (size, size), a new array.

        Parameters
        ----------
        contraction : float
            How contracted the heart is, 0..1.
        breath_mm, pan_mm : (3,) mm
            Shift of heart and diaphragm, and of the whole patient, in patient axes.
        """
        pan = _pixels(self.view, pan_mm)
        organs = _pixels(self.view, np.asarray(breath_mm) + np.asarray(pan_mm))
        result = _float(self._shifted(self.still, pan) + self._shifted(self.breathing, organs))
        if self.heart.any():
            beat = cv2.getRotationMatrix2D(self.heart_px, HEART_TURN_DEG * contraction, 1 - HEART_SQUEEZE * contraction)
            result += self._warped(self.heart, np.asarray(beat, float) + np.pad(organs[:, None], ((0, 0), (2, 0))))
        return result

    def _shifted(self, picture: Image, shift_px: Floats) -> Image:
        """What of a picture moved by some pixels lies in the field."""
        if np.abs(shift_px).max() < _STILL_PX:
            inside = slice(self.margin_px, self.margin_px + self.view.size)
            return picture[inside, inside]
        return self._warped(picture, np.array([[1, 0, shift_px[0]], [0, 1, shift_px[1]]]))

    def _warped(self, picture: Image, matrix: Floats) -> Image:
        into_field = matrix - np.array([[0, 0, self.margin_px], [0, 0, self.margin_px]])
        field = (self.view.size, self.view.size)
        return _float(cv2.warpAffine(picture, into_field, field, borderMode=cv2.BORDER_REPLICATE))


def build(view: View, region: Region, rng: np.random.Generator, *, shifts_N3: Floats | None = None) -> Background:
    """Draw one patient's surroundings for one view.

    Parameters
    ----------
    view : View
        Where the C-arm stands.
    region : Region
        Part of the body.
    rng : numpy.random.Generator
        The patient's sizes, densities and texture.
    shifts_N3 : (N, 3) array, optional
        How far table and breath will move the patient or the organs at most, mm in patient axes: what that brings into
        the field is drawn. Beyond it the pictures' edges repeat. None: nothing moves.
    """
    drawing = _Drawing(view, rng, 0.0 if shifts_N3 is None else float(np.abs(_pixels(view, shifts_N3)).max(initial=0)))
    _REGIONS[region](drawing)
    return drawing.finished()


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """Centre and half axes along the patient's x, y, z, mm; an infinite half axis makes a cylinder of it."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]


Interval = tuple[Image, Image]
"""Where each ray enters and leaves a convex body, mm from the source."""


class Rays:
    """The ray to each pixel's centre of a view, on a picture `coarse` times smaller."""

    def __init__(self, view: View, coarse: int = 1) -> None:
        right, down, towards = axes(view.primary_deg, view.secondary_deg)
        side = view.size // coarse
        at = (np.arange(side) + 0.5) * (view.size / side) - 0.5
        columns = (at - view.centre_px[0]) * view.pitch_mm
        rows = (at - view.centre_px[1]) * view.pitch_mm
        way = columns[None, :, None] * right + rows[:, None, None] * down + view.source_to_detector_mm * towards
        way /= np.linalg.norm(way, axis=-1, keepdims=True)
        self.source: Floats = -view.source_to_patient_mm * towards
        self.way_3HW = np.ascontiguousarray(np.moveaxis(way, -1, 0), dtype=np.float32)

    def through(self, body: Ellipsoid) -> Interval:
        """Where the rays enter and leave a body; leaving before entering where they miss it."""
        half = np.asarray(body.half)
        start = (self.source - np.asarray(body.centre)) / half
        step_3HW = self.way_3HW * (1 / half).astype(np.float32)[:, None, None]
        a = np.einsum("ihw,ihw->hw", step_3HW, step_3HW)
        b = np.einsum("ihw,i->hw", step_3HW, start.astype(np.float32))
        a = np.maximum(a, np.float32(1e-9))
        inside = b * b - a * np.float32(start @ start - 1)
        root = np.sqrt(np.maximum(inside, 0))
        missed = np.where(inside > 0, np.float32(0), np.float32(1))
        return _float((-b - root) / a + missed), _float((-b + root) / a - missed)

    def height(self, at_mm: Image) -> Image:
        """z of the point on each ray at a distance from the source."""
        return _float(np.float32(self.source[2]) + at_mm * self.way_3HW[2])

    def depth(self, at_mm: Image) -> Image:
        """y of the point on each ray at a distance from the source."""
        return _float(np.float32(self.source[1]) + at_mm * self.way_3HW[1])


def length(*intervals: Interval) -> Image:
    """How far each ray runs inside all of the bodies at once, mm."""
    enter, leave = intervals[0]
    for other_enter, other_leave in intervals[1:]:
        enter, leave = np.maximum(enter, other_enter), np.minimum(leave, other_leave)
    return _float(np.maximum(leave - enter, 0))


class _Drawing:
    """The pictures of one background while they are made, at half the view's resolution.

    They are drawn as for a detector that is larger on all sides.
    """

    def __init__(self, field: View, rng: np.random.Generator, reach_px: float) -> None:
        self.field, self.rng = field, rng
        self.coarse = 2 if field.size >= 256 else 1
        # one more for the pixel that a shift by part of one blends in
        self.margin = self.coarse * (math.ceil(reach_px / self.coarse) + 1) if reach_px >= _STILL_PX else 0
        x, y = field.centre_px
        view = replace(field, size=field.size + 2 * self.margin, centre_px=(x + self.margin, y + self.margin))
        self.view = view
        self.side = view.size // self.coarse
        self.per_mm = view.px_per_mm / self.coarse
        self.rays = Rays(view, self.coarse)
        self.tissue = float(rng.uniform(0.014, 0.019))
        """Attenuation of soft tissue per mm."""
        self.still = self.blank()
        self.heart = self.blank()
        self.breathing = self.blank()

    def blank(self) -> Image:
        return np.zeros((self.side, self.side), np.float32)

    def finished(self) -> Background:
        heart_xy, _ = project(anatomy.HEART_CENTRE, self.view)
        size = (self.view.size, self.view.size)
        still, heart, breathing = (
            _float(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC))
            if picture.any()
            else np.zeros(size, np.float32)
            for picture in (self.still, self.heart, self.breathing)
        )
        still += np.float32(0.006) * _cloud(self.rng, self.field.size, 100, self.margin)
        return Background(
            still=still - np.float32(still.min()),
            heart=heart,
            breathing=breathing,
            view=self.field,
            margin_px=self.margin,
            heart_px=(float(heart_xy[0]), float(heart_xy[1])),
        )

    def soften(self, picture: Image, mm: float) -> Image:
        """Blurred by what moves, overlaps and is not as even as an ellipsoid."""
        return _float(cv2.GaussianBlur(picture, (0, 0), max(0.3, mm * self.per_mm)))

    def cloud(self, cells: int) -> Image:
        """Smooth random field of about `cells` blobs across the field, standard deviation near one."""
        return _cloud(self.rng, self.field.size // self.coarse, cells, self.margin // self.coarse)

    def clouds(self, strength: float) -> Image:
        """Unevenness of soft tissue: smooth blobs of several sizes."""
        amounts = ((3, 1.0), (6, 0.5), (13, 0.25), (30, 0.1))
        return _float(sum(np.float32(strength * part) * self.cloud(n) for n, part in amounts))

    def paths(self) -> NDArray[np.uint8]:
        return np.zeros((self.side, self.side), np.uint8)

    def trace(self, canvas: NDArray[np.uint8], course_N3: Floats, radius_mm: float | Floats, value: int) -> None:
        """Draw a 3D course as a band into a canvas; the radius may change along it, (N,)."""
        xy, scale = project(course_N3, self.view)
        corners = np.round((xy + 0.5) / self.coarse * (1 << _SHIFT)).astype(np.int32)
        if isinstance(radius_mm, float):
            width = max(1, round(2 * radius_mm * float(scale.mean()) / self.coarse))
            cv2.polylines(canvas, [corners[:, None]], False, value, width, cv2.LINE_AA, _SHIFT)
            return
        widths = np.maximum(1, np.round(2 * radius_mm * scale / self.coarse)).astype(int).tolist()
        for start, end, width in zip(corners[:-1], corners[1:], widths, strict=False):
            cv2.line(canvas, start.tolist(), end.tolist(), value, width, cv2.LINE_AA, _SHIFT)

    def bones(self, courses: Sequence[tuple[Floats, float | Floats]], attenuation: float) -> Image:
        """Long bones that are one where they meet: dense rims, looser and uneven inside. Courses with radii in mm."""
        canvas = self.paths()
        for share, value in ((1.0, 255), (0.7, 170)):
            for course, radius in courses:
                self.trace(canvas, course, radius * share, value)
        uneven = 1 + np.float32(0.12) * self.cloud(20)
        return self.soften(canvas.astype(np.float32), 1.2) * uneven * np.float32(attenuation / 255)


def _chest(drawing: _Drawing) -> None:
    rng, rays, tissue = drawing.rng, drawing.rays, drawing.tissue
    broad = rng.uniform(0.9, 1.1)
    wall = Ellipsoid(centre=(0, 25, 0), half=(rng.uniform(155, 190), rng.uniform(100, 122), np.inf))
    lungs = [
        Ellipsoid(centre=(-80 * broad, rng.uniform(14, 26), 20), half=(58, rng.uniform(74, 88), 130)),
        Ellipsoid(centre=(93 * broad, rng.uniform(20, 32), 20), half=(51, rng.uniform(72, 86), 130)),
    ]
    domes = _domes(rng)
    lung_intervals = [rays.through(lung) for lung in lungs]
    dome_intervals = [rays.through(dome) for dome in domes]
    heart_intervals = [rays.through(body) for body in _heart(rng)]
    solid = [rays.through(body) for body in _mediastinum(rng)]
    missing = tissue * (1 - rng.uniform(*LUNG_DENSITY))

    air = drawing.blank()
    dome, heart = drawing.blank(), drawing.blank()
    for lung in lung_intervals:
        filled = np.max([length(lung, body) for body in solid], axis=0)
        air += np.maximum(length(lung) - filled, 0)
        dome += np.max([length(lung, body) for body in dome_intervals], axis=0)
        both = [length(lung, body) - length(lung, body, dome_intervals[1]) for body in heart_intervals]
        heart += np.max(both, axis=0)
    still = tissue * length(rays.through(wall)) - missing * drawing.soften(air, rng.uniform(1.5, 5.0))
    still += tissue * _breasts(drawing, wall)
    still *= 1 + drawing.clouds(rng.uniform(0.008, 0.02))
    lung_share = np.clip(air / 120, 0, 1.2)
    still += lung_share * drawing.clouds(rng.uniform(0.03, 0.08))
    still += lung_share * (0.03 * drawing.cloud(28) + 0.015 * drawing.cloud(64))
    still += _lung_vessels(drawing) * np.clip(lung_share * 2, 0, 1)
    still += _spine(drawing, centre=(rng.uniform(-3, 5), 66.0), half=(rng.uniform(17, 21), 16.0), pitch_mm=24.0)
    still += _ribs(drawing, wall)
    drawing.still = _float(still)
    drawing.heart = drawing.soften(_float(missing * heart), rng.uniform(2.0, 4.0))
    drawing.breathing = drawing.soften(_float(missing * dome), rng.uniform(0.7, 1.6))
    drawing.breathing -= _stomach(drawing)


def _breasts(drawing: _Drawing, wall: Ellipsoid) -> Image:
    """Fatty tissue in front of the chest, mm of it: its lower edge crosses many pictures of women."""
    rng = drawing.rng
    wide, forward, down = rng.uniform(50, 75), rng.uniform(25, 50), rng.uniform(-40, 20)
    if rng.random() < 0.6:
        return drawing.blank()
    chest = drawing.rays.through(wall)
    breast = drawing.blank()
    for side in (-1, 1):
        body = drawing.rays.through(Ellipsoid(centre=(side * 75, -70, down), half=(wide, forward, wide)))
        breast += length(body) - length(body, chest)
    return drawing.soften(_float(0.8 * breast), 2.0)


def _domes(rng: np.random.Generator) -> list[Ellipsoid]:
    """The diaphragm's right and left dome; how high depends on the breath that is held."""
    top = rng.uniform(-92, -48)
    right_half, left_half = rng.uniform(55, 75), rng.uniform(50, 68)
    return [
        Ellipsoid(centre=(-72, 18, top - right_half), half=(82, 105, right_half)),
        Ellipsoid(centre=(70, 18, top - rng.uniform(4, 18) - left_half), half=(80, 105, left_half)),
    ]


def _heart(rng: np.random.Generator) -> list[Ellipsoid]:
    """Left and right heart."""
    grown = rng.uniform(0.95, 1.15)
    x, y, z = anatomy.HEART_CENTRE
    return [
        Ellipsoid(centre=(x + 14, y - 4, z - 8), half=(50 * grown, 46 * grown, 52 * grown)),
        Ellipsoid(centre=(x - 34, y - 2, z + 4), half=(38 * grown, 40 * grown, 50 * grown)),
    ]


def _mediastinum(rng: np.random.Generator) -> list[Ellipsoid]:
    """What lies between the lungs above and behind the heart: great vessels, hila, descending aorta."""
    return [
        Ellipsoid(centre=(0, 12, 90), half=(rng.uniform(32, 42), 45, 85)),
        Ellipsoid(centre=(-38, 26, 30), half=(16, 18, 26)),
        Ellipsoid(centre=(46, 30, 34), half=(15, 18, 22)),
        Ellipsoid(centre=(rng.uniform(20, 28), 54, 0), half=(13, 13, np.inf)),
        Ellipsoid(
            centre=(rng.uniform(-4, 6), 75, rng.uniform(-60, 60)), half=(rng.uniform(32, 44), 34, rng.uniform(150, 260))
        ),
    ]


def _stomach(drawing: _Drawing) -> Image:
    """The gas under the left dome; most often out of sight."""
    rng = drawing.rng
    if rng.random() < 0.5:
        return drawing.blank()
    bubble = Ellipsoid(
        centre=(rng.uniform(40, 75), -5, rng.uniform(-120, -95)), half=(rng.uniform(18, 36), 25, rng.uniform(10, 20))
    )
    return drawing.soften(_float(drawing.tissue * 0.8 * length(drawing.rays.through(bubble))), 1.5)


def _spine(drawing: _Drawing, *, centre: tuple[float, float], half: tuple[float, float], pitch_mm: float) -> Image:
    """Vertebral bodies with the discs between them, pedicles and the arches behind, by their extra density."""
    rng, rays = drawing.rng, drawing.rays
    column = rays.through(Ellipsoid(centre=(*centre, 0), half=(*half, np.inf)))
    arches = rays.through(Ellipsoid(centre=(centre[0], centre[1] + 1.6 * half[1], 0), half=(half[0] * 0.7, 12, np.inf)))
    middle = _float((column[0] + column[1]) / 2)
    tilt, first = rng.uniform(-0.25, 0.1), rng.uniform(0, pitch_mm)
    along = rays.height(middle) + tilt * (rays.depth(middle) - centre[1]) - first
    from_disc = np.abs((along + 0.5 * pitch_mm) % pitch_mm - 0.5 * pitch_mm)
    disc = 1 / (1 + np.exp((from_disc - 0.1 * pitch_mm) / 0.9))
    plate = np.exp(-(((from_disc - 0.15 * pitch_mm) / 1.4) ** 2))
    loose = float(rng.uniform(0.005, 0.012))  # beyond soft tissue, per mm; less in the old
    bodies = length(column) * (1 - rng.uniform(0.25, 0.55) * disc + rng.uniform(0.05, 0.22) * plate)
    bodies *= 1 + 0.08 * drawing.cloud(24)
    result = loose * bodies + 0.6 * loose * length(arches) * (0.8 + 0.3 * np.cos(2 * np.pi * along / pitch_mm))
    canvas = drawing.paths()
    behind = 0.9 * half[1]
    for level in np.arange(-9, 10) * pitch_mm + first - tilt * behind + 0.62 * pitch_mm:
        for side in (-0.55, 0.55):
            root = np.array([centre[0] + side * half[0], centre[1] + behind, level])
            drawing.trace(canvas, np.stack([root, root + np.array([0, 4, 2.5])]), 2.8, 255)
    result += drawing.soften(canvas.astype(np.float32), 0.9) * np.float32(rng.uniform(0.03, 0.1) / 255)
    return drawing.soften(_bent(drawing, _float(result), centre, _float(along / pitch_mm)), rng.uniform(0.8, 1.4))


def _bent(drawing: _Drawing, spine: Image, centre: tuple[float, float], level: Image) -> Image:
    """A straight spine bent to one side, with a waist to each vertebra; `level` counts the discs."""
    rng, side = drawing.rng, drawing.side
    ends, _ = project(np.array([[*centre, 150.0], [*centre, -150.0]]), drawing.view)
    ends = (ends + 0.5) / drawing.coarse - 0.5
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    lean = (ends[1, 0] - ends[0, 0]) / (ends[1, 1] - ends[0, 1])
    aside = columns - _float(ends[0, 0] + (rows - ends[0, 1]) * lean)
    waist = 1 + rng.uniform(0.03, 0.09) * np.cos(2 * np.pi * (level - 0.5))
    bend = rng.uniform(1, 5) * drawing.per_mm * np.sin(level * rng.uniform(0.3, 0.9) + rng.uniform(0, 2 * np.pi))
    source = _float(columns + aside * (waist - 1) + bend)
    return _float(cv2.remap(spine, source, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _ribs(drawing: _Drawing, wall: Ellipsoid) -> Image:
    """Ribs along the chest wall, each from the spine round to its cartilage, going down on the way."""
    rng = drawing.rng
    around = np.linspace(0.07, 0.78, 26)
    picture = drawing.blank()
    drop, first, pitch = rng.uniform(75, 120), rng.uniform(0, 24), rng.uniform(21, 26)
    across, deep = wall.half[0] - 16, wall.half[1] - 14
    strength = rng.uniform(0.015, 0.12)
    for side in (-1, 1):
        for half in (around[:14], around[13:]):  # the back and the front half add up where they cross
            canvas = drawing.paths()
            for level in np.arange(-3, 12) * pitch + first - 20:
                x = side * across * np.sin(np.pi * half) ** 0.8
                y = wall.centre[1] + deep * np.cos(np.pi * half)
                z = level - drop * half**1.3 + 12 * np.sin(np.pi * half * 2) + rng.normal(0, 1.5)
                course = np.stack([x, y, z], axis=1)
                radius = float(rng.uniform(5.0, 7.0))
                drawing.trace(canvas, course, radius, 255)
                drawing.trace(canvas, course, radius * 0.66, 150)
            picture += canvas
    return drawing.soften(picture, rng.uniform(0.8, 1.6)) * np.float32(strength / 255)


def _lung_vessels(drawing: _Drawing) -> Image:
    """The lungs' own arteries and veins, which no contrast has reached: they branch from the hila, faintly."""
    rng = drawing.rng
    canvas = drawing.paths()
    for hilum, outward in (((-36.0, 28.0, 22.0), -1.0), ((44.0, 30.0, 26.0), 1.0)):
        for _ in range(int(rng.integers(12, 20))):
            way = rng.normal(0, 1, 3) * (0.5, 0.9, 1.0) + (0.8 * outward, -0.1, -0.2)
            _grow(drawing, canvas, np.array(hilum), way / np.linalg.norm(way), rng.uniform(2.0, 4.5))
    return drawing.soften(canvas.astype(np.float32), 0.7) * np.float32(drawing.tissue * 11 / 255)


def _grow(drawing: _Drawing, canvas: NDArray[np.uint8], start: Floats, way: Floats, radius_mm: float) -> None:
    """One lung vessel and, thinner, those that leave it."""
    rng = drawing.rng
    steps = way + np.cumsum(rng.normal(0, 0.12, (8, 3)), axis=0)
    course = start + np.vstack([np.zeros(3), np.cumsum(steps, axis=0)]) * (2.2 + 1.2 * radius_mm)
    drawing.trace(canvas, course, float(radius_mm), int(min(255, 255 * radius_mm / 4.5)))
    if radius_mm < 0.9:
        return
    for leaves in rng.integers(2, 9, 2):
        aside = steps[-1] / np.linalg.norm(steps[-1]) + rng.normal(0, 0.5, 3)
        _grow(drawing, canvas, course[leaves], aside / np.linalg.norm(aside), radius_mm * rng.uniform(0.5, 0.72))


def _abdomen(drawing: _Drawing) -> None:
    rng, tissue = drawing.rng, drawing.tissue
    wall = Ellipsoid(centre=(0, 5, 0), half=(rng.uniform(150, 185), rng.uniform(90, 120), np.inf))
    still = tissue * length(drawing.rays.through(wall)) * (1 + drawing.clouds(rng.uniform(0.01, 0.025)))
    for side in (-1, 1):
        psoas = Ellipsoid(centre=(side * 40, 42, 0), half=(18, 20, np.inf))
        still += drawing.soften(_float(0.08 * tissue * length(drawing.rays.through(psoas))), 2.5)
    still += _spine(drawing, centre=(rng.uniform(-4, 4), 42.0), half=(24.0, 17.0), pitch_mm=36.0)
    drawing.still = _float(still)
    drawing.breathing = -_bowel_gas(drawing)


def _bowel_gas(drawing: _Drawing) -> Image:
    """Bright loops where gas has taken the place of tissue."""
    rng = drawing.rng
    gas = drawing.blank()
    for _ in range(int(rng.integers(2, 9))):
        x, z = rng.uniform(-95, 95, 2)
        for _ in range(int(rng.integers(2, 6))):  # a loop is a chain of bubbles
            x, z = x + rng.normal(0, 14), z + rng.normal(0, 9)
            bubble = Ellipsoid(centre=(x, rng.uniform(-50, -20), z), half=(*rng.uniform(8, 20, 2), rng.uniform(7, 16)))
            gas = np.maximum(gas, length(drawing.rays.through(bubble)))
    return drawing.soften(_float(gas * drawing.tissue * rng.uniform(0.5, 0.9)), 1.8)


def _pelvis(drawing: _Drawing) -> None:
    """One groin: femoral head in its socket, neck and shaft, pubic bone, the wing of the ilium above."""
    rng, rays, tissue = drawing.rng, drawing.rays, drawing.tissue
    outward = float(rng.choice([-1.0, 1.0]))
    wall = Ellipsoid(centre=(-75 * outward, 15, 0), half=(rng.uniform(165, 195), rng.uniform(85, 115), np.inf))
    still = tissue * length(rays.through(wall)) * (1 + drawing.clouds(rng.uniform(0.01, 0.025)))
    head = np.array([outward * rng.uniform(5, 18), 32.0, rng.uniform(5, 35)])
    dense = rng.uniform(0.008, 0.014)
    still += dense * drawing.soften(length(rays.through(_ball(head, 23))), 1.2)
    middle = head + np.array([-4 * outward, 2, 3])
    socket = length(rays.through(_ball(middle, 32))) - length(rays.through(_ball(head, 25)))
    still += 0.6 * dense * drawing.soften(_float(socket), 2.0) * _above(drawing, head[2] - 8)

    def around(*corners: tuple[float, float, float]) -> Floats:
        """Points about the femoral head, x outward."""
        course = anatomy.spline(np.array(corners), 8.0)
        return head + course * (outward, 1, 1)

    neck = around((14, 2, -12), (28, 4, -22), (44, 6, -36))
    shaft = around((50, 6, -16), (48, 6, -45), (44, 4, -90), (40, 0, -190))
    femur = [(neck, np.linspace(15, 19, len(neck))), (shaft, np.interp(np.arange(len(shaft)), [0, 4, 8], [11, 17, 14]))]
    still += drawing.bones(femur, rng.uniform(0.25, 0.4))
    upper = around((-22, -2, 2), (-45, -12, -2), (-72, -20, -14), (-84, -20, -26))
    lower = around((-80, -18, -24), (-66, -10, -46), (-46, 6, -58), (-30, 12, -40), (-24, 12, -14))
    rami = [(upper, np.linspace(11, 8, len(upper))), (lower, np.linspace(8, 11, len(lower)))]
    still += drawing.bones(rami, rng.uniform(0.15, 0.28))
    wing = Ellipsoid(centre=(10 * outward, 45, head[2] + 95), half=(55, 14, 72))
    still += 0.6 * dense * drawing.soften(length(rays.through(wing)), 1.5)
    drawing.still = _float(still)
    if rng.random() < 0.4:
        drawing.breathing = -0.6 * _bowel_gas(drawing) * _above(drawing, head[2] + 30)


def _forearm(drawing: _Drawing) -> None:
    """Radius and ulna in an arm with air, far brighter, on both sides."""
    rng, rays = drawing.rng, drawing.rays
    arm = Ellipsoid(centre=(rng.uniform(-6, 6), 6, 0), half=(rng.uniform(36, 50), rng.uniform(28, 36), np.inf))
    still = drawing.tissue * length(rays.through(arm)) * (1 + drawing.clouds(rng.uniform(0.01, 0.03)))
    z = np.linspace(-200, 200, 41)  # beyond what a pan may bring into view
    end = np.clip(z / 130, -1, 1)
    for side, radius in ((-1, rng.uniform(6.5, 8.0)), (1, rng.uniform(6.0, 7.5))):
        bow = side * (14 + rng.uniform(3, 7) * np.cos(z / 75))
        thick = radius * (1 + 0.25 * end**2 - 0.3 * side * end)
        still += drawing.bones([(np.stack([bow, np.full_like(z, 12.0), z], axis=1), thick)], rng.uniform(0.35, 0.6))
    drawing.still = drawing.soften(_float(still), 0.6)


def _neck(drawing: _Drawing) -> None:
    """Neck below, skull above, cervical spine, jaw, and the airway in front."""
    rng, rays, tissue = drawing.rng, drawing.rays, drawing.tissue
    neck = length(rays.through(Ellipsoid(centre=(0, 10, 0), half=(rng.uniform(58, 70), rng.uniform(56, 66), np.inf))))
    centre = (0.0, 8.0, rng.uniform(85, 115))
    skull = rays.through(Ellipsoid(centre=centre, half=(76, 95, 86)))
    brain = rays.through(Ellipsoid(centre=centre, half=(70, 88, 80)))
    still = tissue * np.maximum(neck, length(skull)) * (1 + drawing.clouds(rng.uniform(0.01, 0.025)))
    still += rng.uniform(0.012, 0.02) * drawing.soften(_float(length(skull) - length(brain)), 2.5)
    base = Ellipsoid(centre=(0, 15, centre[2] - 62), half=(48, 55, 9))
    still += 0.008 * drawing.soften(length(rays.through(base)), 4.0) * (1 + drawing.clouds(0.25))
    still += _spine(drawing, centre=(0.0, 30.0), half=(13.0, 11.0), pitch_mm=18.0) * (
        1 - _above(drawing, centre[2] - 60)
    )
    airway = Ellipsoid(centre=(0, -12, centre[2] - 130), half=(8, 9, 75))
    still -= tissue * drawing.soften(length(rays.through(airway)), 1.2)
    angle = np.linspace(-1.5, 1.5, 15)
    jaw = np.stack([46 * np.sin(angle), -8 - 52 * np.cos(angle), centre[2] - 92 + 14 * np.abs(angle)], axis=1)
    still += drawing.bones([(jaw, np.full(len(jaw), 10.0))], 0.3)
    drawing.still = _float(still)


def _ball(centre: Floats, radius_mm: float) -> Ellipsoid:
    return Ellipsoid(centre=(float(centre[0]), float(centre[1]), float(centre[2])), half=(radius_mm,) * 3)


def _above(drawing: _Drawing, z_mm: float) -> Image:
    """1 above a height in the patient, 0 below, for what stops there; at the isocentre's depth."""
    heights = drawing.rays.height(np.full((drawing.side, drawing.side), drawing.view.source_to_patient_mm, np.float32))
    return _float(1 / (1 + np.exp(np.clip((z_mm - heights) / 3.0, -30, 30))))


_REGIONS = {"chest": _chest, "abdomen": _abdomen, "pelvis": _pelvis, "forearm": _forearm, "neck": _neck}


def _pixels(view: View, shifts_mm: Floats) -> Floats:
    """Shifts (..., 3) in patient axes as columns and rows (..., 2) at the isocentre."""
    right, down, _ = axes(view.primary_deg, view.secondary_deg)
    return view.px_per_mm * np.stack([shifts_mm @ right, shifts_mm @ down], axis=-1)


def _cloud(rng: np.random.Generator, side: int, cells: int, margin: int) -> Image:
    """Smooth random field of about `cells` blobs across a side, standard deviation near one; repeated in the margin.

    So what is drawn at random is the same for any margin.
    """
    tile = rng.standard_normal((cells, cells), dtype=np.float32)
    around = -(-margin // side)
    times = 2 * around + 1
    whole = cv2.resize(np.tile(tile, (times, times)), (times * side, times * side), interpolation=cv2.INTER_CUBIC)
    inside = slice(around * side - margin, (around + 1) * side + margin)
    return _float(whole[inside, inside])


def _float(picture: object) -> Image:
    """The array of float32 that it is, or becomes."""
    return np.asarray(picture, np.float32)
