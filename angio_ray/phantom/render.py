"""From anatomy to pictures: iodine path lengths, Beer-Lambert, a chest behind, noise, blur and a collimator.

Vessels are drawn with OpenCV's anti-aliased polygons as nested ribbons that approximate the chord through a tube,
one additive layer per vessel system, so that a 512x512 frame costs tens of milliseconds on one core. Knows nothing of
DICOM: out come stored values as they would leave a detector's processing, with the truth about the contrast beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from angio_ray.phantom import anatomy
from angio_ray.phantom.anatomy import Floats, Tree, Vessel, View

Image = NDArray[np.float32]
QualityClass = Literal[
    "satisfactory", "no_contrast", "weak_contrast", "catheter_only", "poor_engagement", "ventricle", "aorta"
]

_RIBBONS = ((1.0, 0.45), (0.84, 0.72), (0.58, 0.95))
"""Share of the radius and of the full diameter's path: three steps of a circle's chord."""
_SHIFT = 4
"""Fraction bits of the polygon corners: 1/16 px."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Something metallic in the field, fixed to the chest: polylines in mm with a width in mm and an attenuation."""

    lines: tuple[Floats, ...]
    width_mm: float
    attenuation: float
    beats: bool = False
    """Moves with the heart (a pacemaker's lead), else with the chest."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that one clip shows, and the machine that takes it. Times in s, lengths in mm, attenuation per mm."""

    quality_class: QualityClass
    view: View
    tree: Tree | None
    aorta: Vessel
    ventricle: Vessel
    catheter: Vessel
    catheter_on_heart: bool
    devices: tuple[Device, ...]
    times_s: Floats
    heart_period_s: float
    breath_mm: float
    bolus_start_s: float
    bolus_s: float
    washout_s: float
    flow_mm_s: float
    vessel_iodine: float
    """Attenuation of a filled vessel, per mm."""
    reach_mm: float
    """How far along the vessels the contrast gets (all the way when large)."""
    aorta_iodine: float
    ventricle_iodine: float
    reflux_iodine: float
    """Attenuation of the cloud that spills back from the ostium into the root, per mm."""
    exposure: float
    """Noise: standard deviation of the log signal where nothing attenuates."""
    blur_px: float
    sharpen: float
    gamma: float
    levels: tuple[float, float]
    """Display levels, 0..1, that the darkest and brightest percent of the first frames map to."""
    settling: float
    """Relative brightness error of the first frame, gone after half a second."""
    veil: float
    """Share of scattered radiation."""
    collimator: Literal["none", "octagon", "round", "rectangle"]
    bits: int
    shift_px: tuple[float, float]
    """Table movement per second, px."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A clip's stored values and what is known of it."""

    frames_THW: NDArray[np.uint8] | NDArray[np.uint16]
    filling_T: Floats
    """Mean iodine of the coronary vessels by volume, 1 = all filled with undiluted contrast."""
    vessel_xy: tuple[Floats, ...]
    """Per vessel of the tree, (T, N, 2) pixel positions."""


def render(scene: Scene, rng: np.random.Generator) -> Rendered:
    """Draw all frames of a scene.

    Parameters
    ----------
    scene : Scene
        What to draw.
    rng : numpy.random.Generator
        Texture, noise and heart beats; the same state gives the same bytes.
    """
    times, size = scene.times_s, scene.view.size
    squeeze_F = anatomy.contraction(anatomy.beat_phases(times, scene.heart_period_s, rng))
    breath_F = scene.breath_mm * np.sin(2 * np.pi * times / rng.uniform(3.0, 6.0) + rng.uniform(0, 6))
    pan_F2 = np.outer(times, scene.shift_px)
    filling_F, curves = _contrast(scene, times)
    chest, heart = _background(scene, rng)
    parts = _Parts(scene, squeeze_F, breath_F, pan_F2)
    blank = _collimator(scene, rng)

    frames = np.empty((len(times), size, size), np.uint8 if scene.bits == 8 else np.uint16)
    levels: tuple[float, float] | None = None
    heart_centre, _ = anatomy.project(anatomy.HEART_CENTRE, scene.view)
    for f in range(len(times)):
        beat_scale = 1 - 0.035 * squeeze_F[f]
        turn = cv2.getRotationMatrix2D((float(heart_centre[0]), float(heart_centre[1])), 0.8 * squeeze_F[f], beat_scale)
        breath_px = breath_F[f] * scene.view.px_per_mm
        turn[:, 2] += pan_F2[f] + (0.0, -breath_px)
        attenuation = _float(cv2.warpAffine(heart, turn, (size, size), borderMode=cv2.BORDER_REPLICATE))
        shift = np.array([[1, 0, pan_F2[f, 0]], [0, 1, pan_F2[f, 1]]], np.float32)
        if np.any(scene.shift_px):
            attenuation += _float(cv2.warpAffine(chest, shift, (size, size), borderMode=cv2.BORDER_REPLICATE))
        else:
            attenuation += chest
        parts.add(attenuation, f, curves)
        signal = _float(cv2.exp(-attenuation))
        signal += np.float32(scene.veil * float(signal.mean()))
        noise = rng.standard_normal((size, size), dtype=np.float32)
        signal += np.sqrt(signal) * noise * np.float32(scene.exposure)
        signal = _float(cv2.GaussianBlur(signal, (0, 0), scene.blur_px))
        if scene.sharpen:
            signal += np.float32(scene.sharpen) * (signal - _float(cv2.GaussianBlur(signal, (0, 0), 4.0 * size / 512)))
        picture = _float(cv2.pow(np.maximum(signal, 1e-4), scene.gamma))
        if levels is None:
            low, high = np.percentile(picture[:: 4, ::4][blank[::4, ::4] > 0.5], (1, 99))
            gain = (scene.levels[1] - scene.levels[0]) / (high - low)
            levels = (gain, scene.levels[0] - low * gain)
        gain = levels[0] * (1 + scene.settling * np.exp(-times[f] / 0.15))
        picture = (picture * np.float32(gain) + np.float32(levels[1])) * blank
        top = 2**scene.bits - 1
        frames[f] = np.clip(picture * top + 0.5, 0, top).astype(frames.dtype)
    return Rendered(frames_THW=frames, filling_T=filling_F, vessel_xy=parts.vessel_xy)


def _contrast(scene: Scene, times: Floats) -> tuple[Floats, dict[str, Floats]]:
    """Concentration per vessel sample over time, (T, N) by name, and the tree's mean filling by volume, (T,)."""

    def curve(delay_N: Floats, start: float, length: float, washout: float) -> Floats:
        since = times[:, None] - start - delay_N[None, :]
        return np.clip(since / 0.25, 0, 1) * np.exp(-np.maximum(since - length, 0) / washout)

    curves: dict[str, Floats] = {}
    total, weight = np.zeros(len(times)), 0.0
    for vessel in scene.tree.vessels if scene.tree else ():
        reached = np.clip((scene.reach_mm - vessel.distance_N) / 8.0, 0, 1)
        curves[vessel.name] = (
            curve(vessel.distance_N / scene.flow_mm_s, scene.bolus_start_s, scene.bolus_s, scene.washout_s) * reached
        )
        volume = vessel.radius_N**2
        total += curves[vessel.name] @ volume
        weight += float(volume.sum())
    shot = curve(np.zeros(1), scene.bolus_start_s, scene.bolus_s, scene.washout_s)
    curves["reflux"] = shot
    shape = (scene.bolus_start_s, scene.bolus_s, scene.washout_s)
    curves["aorta"] = curve(scene.aorta.distance_N / 260.0, *shape)
    curves["LV"] = curve(np.abs(scene.ventricle.distance_N - 55) / 140.0, *shape)
    return total / max(weight, 1e-9), curves


class _Parts:
    """What is drawn anew in each frame (vessels, catheter, devices, aorta, ventricle), projected once for all frames."""

    def __init__(self, scene: Scene, squeeze_F: Floats, breath_F: Floats, pan_F2: Floats) -> None:
        self.scene = scene
        view, rest = scene.view, np.zeros_like(squeeze_F)

        def place(points: Floats, beats: bool, strength: float = 1.0) -> tuple[Floats, Floats]:
            moved = anatomy.beat(points, squeeze_F if beats else rest, breath_F if beats else rest, strength)
            xy, scale = anatomy.project(moved, view)
            return xy + pan_F2[:, None, :], scale

        self.trees = [(v, *place(v.points_N3, True)) for v in (scene.tree.vessels if scene.tree else ())]
        self.vessel_xy = tuple(xy for _, xy, _ in self.trees)
        self.aorta = place(scene.aorta.points_N3, True, 0.25)
        self.ventricle = place(scene.ventricle.points_N3, True)
        self.ventricle_radius = scene.ventricle.radius_N[None, :] * (1 - 0.38 * squeeze_F[:, None])
        self.catheter = self._catheter(place)
        self.devices = [[place(line, d.beats) for line in d.lines] for d in scene.devices]
        self.ostium_xy = place(scene.catheter.points_N3[-1:], True)

    def _catheter(self, place: object) -> tuple[Floats, Floats]:
        assert callable(place)
        points = self.scene.catheter.points_N3
        still, scale = place(points, False)
        if not self.scene.catheter_on_heart:
            return still, scale
        moving, _ = place(points, True)
        along = np.linspace(0, 1, len(points)) ** 3
        return still + (moving - still) * along[None, :, None], scale

    def add(self, attenuation: Image, f: int, curves: dict[str, Floats]) -> None:
        """Add frame f's moving parts to the attenuation picture, in place."""
        scene, size = self.scene, attenuation.shape[0]
        for layer in (0, 1):
            drawn = [
                (xy[f], vessel.radius_N * scale[f], vessel.radius_N * 2 * curves[vessel.name][f])
                for vessel, xy, scale in self.trees
                if vessel.layer == layer
            ]
            _add_tubes(attenuation, drawn, scene.vessel_iodine)
        xy, scale = self.catheter
        radius = scene.catheter.radius_N
        filled = 0.13 * np.ones_like(radius) + scene.vessel_iodine * 0.6 * (curves["reflux"][f, 0] > 0.3)
        _add_tubes(attenuation, [(xy[f], radius * scale[f], 2 * radius * filled)], 1.0)
        for device, lines in zip(scene.devices, self.devices, strict=True):
            width = device.width_mm / 2
            _add_tubes(
                attenuation,
                [(p[f], np.full(len(p[f]), width) * s[f], np.full(len(p[f]), 1.0)) for p, s in lines],
                device.attenuation,
            )
        if scene.aorta_iodine and curves["aorta"][f].max() > 0.01:
            xy, scale = self.aorta
            path = 2 * scene.aorta.radius_N * curves["aorta"][f] * np.exp(-scene.aorta.distance_N / 220)
            tube = (xy[f], scene.aorta.radius_N * scale[f], path)
            _add_tubes(attenuation, [tube], scene.aorta_iodine, soft=size / 90)
        if scene.ventricle_iodine and curves["LV"][f].max() > 0.01:
            xy, scale = self.ventricle
            radius_px = self.ventricle_radius[f] * scale[f]
            path = 2 * self.ventricle_radius[f] * curves["LV"][f]
            _add_tubes(attenuation, [(xy[f], radius_px, path)], scene.ventricle_iodine, soft=size / 100)
        if scene.reflux_iodine and curves["reflux"][f, 0] > 0.02:
            self._add_reflux(attenuation, f, float(curves["reflux"][f, 0]))

    def _add_reflux(self, attenuation: Image, f: int, amount: float) -> None:
        xy, scale = self.ostium_xy
        cloud = np.zeros(attenuation.shape, np.uint8)
        wobble = 1 + 0.25 * np.sin(9.0 * self.scene.times_s[f])
        half = np.maximum(1, (scale[f, 0] * np.array([9.0, 7.0]) * wobble)).astype(int)
        at = np.round(xy[f, 0]).astype(int)
        cv2.ellipse(cloud, (int(at[0]), int(at[1])), (int(half[0]), int(half[1])), 25.0, 0, 360, 255, -1, cv2.LINE_AA)
        soft = cv2.GaussianBlur(cloud, (0, 0), 3.5 * float(scale[f, 0]) * 0.8).astype(np.float32)
        attenuation += soft * np.float32(self.scene.reflux_iodine * 14.0 * amount / 255)


def _add_tubes(
    attenuation: Image, tubes: Sequence[tuple[Floats, Floats, Floats]], per_mm: float, soft: float = 0.0
) -> None:
    """Add tubes (centre (N, 2) px, radius (N,) px, path through the middle (N,) mm) to an attenuation picture."""
    tubes = [t for t in tubes if len(t[0]) > 1 and float(t[2].max()) * per_mm > 0.004]
    if not tubes:
        return
    longest = max(float(t[2].max()) for t in tubes)
    tubes.sort(key=lambda t: float(t[2].max()))  # where two meet the thicker one is painted last and wins
    canvas = np.zeros(attenuation.shape, np.uint8)
    spines, sides, values = _ribbons(tubes, longest)
    for share, height in _RIBBONS:
        corners = np.round((spines + share * sides) * (1 << _SHIFT)).astype(np.int32)
        shade = (values * height).astype(int)
        for quad, value in zip(corners, shade.tolist(), strict=True):
            if value:
                cv2.fillConvexPoly(canvas, quad, value, cv2.LINE_AA, _SHIFT)
    picture = _float(cv2.GaussianBlur(canvas.astype(np.float32), (0, 0), max(soft, 0.8 * attenuation.shape[0] / 512 + 0.25)))
    attenuation += picture * np.float32(longest * per_mm / 255)


def _ribbons(tubes: Sequence[tuple[Floats, Floats, Floats]], longest: float) -> tuple[Floats, Floats, Floats]:
    """Per piece of tube: its corners on the centreline and their way to the wall, (P, 4, 2) px; shade 0..255, (P,)."""
    spines, sides, values = [], [], []
    for xy, radius, path in tubes:
        step = np.diff(xy, axis=0)
        along = step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-6)
        tangent = np.vstack([along[:1], along[1:] + along[:-1], along[-1:]])
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-6)
        side = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * np.maximum(radius, 0.35)[:, None]
        # pieces overlap by a little, else anti-aliasing leaves a light seam at each joint
        start, end = xy[:-1] - 0.6 * along, xy[1:] + 0.6 * along
        spines.append(np.stack([start, end, end, start], axis=1))
        sides.append(np.stack([side[:-1], side[1:], -side[1:], -side[:-1]], axis=1))
        values.append((path[:-1] + path[1:]) / 2 / longest * 255)
    return np.concatenate(spines), np.concatenate(sides), np.concatenate(values)


def _float(picture: object) -> Image:
    """OpenCV's result as the array of float32 that it is."""
    return np.asarray(picture, np.float32)


def _cloud(rng: np.random.Generator, size: int, cells: int) -> Image:
    """Smooth random field of about `cells` blobs across, standard deviation one."""
    field = rng.standard_normal((cells, cells), dtype=np.float32)
    return _float(cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC))


def _background(scene: Scene, rng: np.random.Generator) -> tuple[Image, Image]:
    """Attenuation of what stays with the chest (lungs, ribs, spine) and of what moves with heart and breath."""
    view, size = scene.view, scene.view.size
    per_mm = view.px_per_mm
    columns, rows = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))

    chest = 0.12 * _cloud(rng, size, 3) + 0.05 * _cloud(rng, size, 7) + 0.02 * _cloud(rng, size, 24)
    chest += 0.012 * _cloud(rng, size, max(8, size // 8)) + rng.uniform(-0.3, 0.3) * (columns / size - 0.5)
    chest += rng.uniform(-0.3, 0.3) * (rows / size - 0.5)

    top, _ = anatomy.project(np.array([4.0, 62.0, 110.0]), view)
    bottom, _ = anatomy.project(np.array([4.0, 62.0, -110.0]), view)
    lean = (bottom[0] - top[0]) / max(bottom[1] - top[1], 1.0)
    from_spine = (columns - (top[0] + (rows - top[1]) * lean)) / per_mm
    half = rng.uniform(19, 25)
    spine = 1 / (1 + np.exp((np.abs(from_spine) - half) / 2.0))
    vertebra_mm = rng.uniform(24, 29)
    disc = np.cos(2 * np.pi * (rows / per_mm + rng.uniform(0, 30)) / vertebra_mm)
    chest += rng.uniform(0.25, 0.7) * spine * (1 + 0.12 * disc + 0.06 * _cloud(rng, size, 14))
    to_the_left = rng.uniform(0.0, 0.45) / (1 + np.exp(-from_spine / 12)) * np.sign(view.primary_deg + 1e-3)
    chest += to_the_left.astype(np.float32)

    chest += _ribs(scene, rng)
    chest += _lung_vessels(scene, rng)

    (cx, cy), _ = anatomy.project(anatomy.HEART_CENTRE, view)
    shadow = np.zeros((size, size), np.uint8)
    axes = (int(rng.uniform(54, 66) * per_mm), int(rng.uniform(42, 52) * per_mm))
    cv2.ellipse(shadow, (int(cx), int(cy)), axes, float(rng.uniform(20, 45)), 0, 360, 255, -1, cv2.LINE_AA)
    heart = cv2.GaussianBlur(shadow, (0, 0), 5.0 * per_mm).astype(np.float32) * np.float32(rng.uniform(0.2, 0.5) / 255)
    dome = np.zeros((size, size), np.uint8)
    side = rng.choice([-1.0, 1.0])
    (dx, dy), _ = anatomy.project(np.array([side * 45.0, 0.0, rng.uniform(-125, -95)]), view)
    axes = (int(rng.uniform(70, 110) * per_mm), int(rng.uniform(38, 60) * per_mm))
    cv2.ellipse(dome, (int(dx), int(dy)), axes, float(rng.uniform(-8, 8)), 0, 360, 255, -1, cv2.LINE_AA)
    heart += cv2.GaussianBlur(dome, (0, 0), 1.6 * per_mm).astype(np.float32) * np.float32(rng.uniform(0.3, 0.8) / 255)
    heart += 0.015 * _cloud(rng, size, 40)
    chest -= chest.min()
    return chest.astype(np.float32), heart


def _ribs(scene: Scene, rng: np.random.Generator) -> Image:
    """Ribs as slanting bands with dense edges."""
    size, per_mm = scene.view.size, scene.view.px_per_mm
    picture = np.zeros((size, size), np.float32)
    slant, bow = rng.uniform(0.1, 0.5) * rng.choice([-1, 1]), rng.uniform(-0.15, 0.15)
    across = np.linspace(-0.1, 1.1, 24)
    for offset in np.arange(-0.5, 1.6, rng.uniform(22, 30) * per_mm / size):
        y = offset + slant * across + bow * np.sin(np.pi * across) + rng.normal(0, 0.01)
        course = np.round(np.stack([across, y], axis=1) * size * 16).astype(np.int32)[:, None]
        band = np.zeros((size, size), np.uint8)
        width = max(2, int(rng.uniform(7, 11) * per_mm))
        cv2.polylines(band, [course], False, 255, width, cv2.LINE_AA, 4)
        cv2.polylines(band, [course], False, 150, max(1, int(width * 0.7)), cv2.LINE_AA, 4)
        picture += band
    return cv2.GaussianBlur(picture, (0, 0), 1.1 * per_mm) * np.float32(rng.uniform(0.03, 0.12) / 255)


def _lung_vessels(scene: Scene, rng: np.random.Generator) -> Image:
    """Faint branching lines: the lungs' own vessels, which no contrast has reached."""
    size, per_mm = scene.view.size, scene.view.px_per_mm
    canvas = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(15, 50))):
        heading, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.12)
        turns = heading + bend * np.arange(10) + rng.normal(0, 0.1, 10)
        steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(2, 6) * per_mm
        course = rng.uniform(0, size, 2) + np.cumsum(steps, axis=0)
        corners = np.round(course * 16).astype(np.int32)[:, None]
        thickness = max(1, int(rng.uniform(0.8, 3.0) * per_mm))
        cv2.polylines(canvas, [corners], False, int(rng.integers(80, 255)), thickness, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), 0.8 * per_mm).astype(np.float32) * np.float32(rng.uniform(0.03, 0.1) / 255)


def _collimator(scene: Scene, rng: np.random.Generator) -> Image:
    """What lets light through, 0..1 per pixel: blades, an octagon or a round image intensifier."""
    size = scene.view.size
    mask = np.zeros((size, size), np.uint8)
    middle, half = size / 2 + rng.normal(0, 0.01 * size, 2), size * rng.uniform(0.46, 0.53)
    if scene.collimator == "none":
        mask[:] = 255
    elif scene.collimator == "round":
        cv2.circle(mask, (int(middle[0]), int(middle[1])), int(half * 1.05), 255, -1, cv2.LINE_AA)
    elif scene.collimator == "octagon":
        cut = half * rng.uniform(0.5, 0.8)
        eighth = np.array([[half, -cut], [half, cut], [cut, half], [-cut, half]])
        corners = middle + np.vstack([eighth, -eighth])
        cv2.fillConvexPoly(mask, corners.astype(np.int32), 255, cv2.LINE_AA)
    else:
        left, upper, right, lower = (rng.uniform(0.005, 0.09, 4) * size).astype(int)
        mask[upper : size - lower, left : size - right] = 255
    soft = cv2.GaussianBlur(mask, (0, 0), 1.2 * size / 512 + 0.2).astype(np.float32) / 255
    dark = float(rng.choice([0.0, 0.03, 0.1]) if scene.collimator in ("rectangle", "none") else 0.0)
    return _float(soft * (1 - dark) + dark)
