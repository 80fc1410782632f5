"""From a scene to a clip: what the beam meets in each frame, and what the machine stores of it.

Everything that moves is moved and projected once for all frames; each frame then adds up logarithmic attenuation
(background, cavities, muscle, vessels, calcium, catheter, devices) and hands it to the detector. Knows nothing of how
scenes are drawn, nor of DICOM: out come stored values, with the truth about vessels and calcium beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from angio_ray.phantom import background, contrast, devices, joints, motion
from angio_ray.phantom.anatomy import Floats, Vessel
from angio_ray.phantom.carm import project
from angio_ray.phantom.contrast import Curves
from angio_ray.phantom.detector import Exposure
from angio_ray.phantom.scene import Chamber, Device, Rendered, Scene
from angio_ray.phantom.tubes import Image, Mask, Tube, Tubes, add_plate

SEEN_MM = 0.15
"""Undiluted contrast in the beam, mm, from which a pixel belongs to the vessel mask."""
SEEN_CALCIUM = 0.25
"""The same for calcium, share of what the middle of a line attenuates."""

_COARSE = 4
"""Wide, soft things are drawn on pixels this many times larger."""
_CATHETER_WALL = 0.16
"""Attenuation per mm of a catheter's braided wall."""
_CATHETER_LUMEN = 0.74
"""Of the outer radius (5 to 6 French diagnostic catheters: 1.2 to 1.5 mm within 1.7 to 2 mm)."""
_BLUSH_MM = 6.0
"""Blur from the small vessels to the muscle that they feed."""
_STREAM_MM = 35.0
"""How far from the ostium blood and contrast run side by side."""
_PUFFS = 7
"""Clouds that a reflux is made of."""


def render(scene: Scene) -> Rendered:
    """Draw all frames of a scene; the same scene gives the same bytes."""
    curves = contrast.curves(scene)
    view, size, count = scene.view, scene.view.size, len(scene.times_s)
    move = scene.motion
    shifts = np.concatenate([move.pan_T3, move.pan_T3 + move.breath_T3])
    backdrop = background.build(view, scene.region, scene.streams.of("background"), shifts_N3=shifts)
    exposure = Exposure(scene.detector, view, scene.streams)
    vessels, calcium = _Vessels(scene, curves), _Calcium(scene)
    soft, hardware = _Soft(scene, curves, vessels), _Hardware(scene, curves)

    frames = np.empty((count, size, size), np.uint8 if scene.detector.bits == 8 else np.uint16)
    vessel_mask = np.zeros(frames.shape, bool)
    calcium_mask = np.zeros(frames.shape, bool) if calcium.any else None
    for f in range(count):
        attenuation = backdrop.frame(float(move.contraction_T[f]), move.breath_T3[f], move.pan_T3[f])
        soft.add(attenuation, f)
        vessels.add(attenuation, f, vessel_mask[f])
        if calcium_mask is not None:
            calcium.add(attenuation, f, calcium_mask[f])
        hardware.add(attenuation, f)
        frames[f] = exposure.stored(attenuation, f, float(scene.times_s[f]))
    return Rendered(
        frames_THW=frames,
        filling_T=curves.filling_T,
        vessel_xy={name: tube.xy_TN2 for name, tube in vessels.tubes.items()},
        vessel_radius_px={name: tube.radius_px_TN for name, tube in vessels.tubes.items()},
        vessel_mask_THW=vessel_mask,
        calcium_mask_THW=calcium_mask,
        covered_share=devices.covered_share(scene.devices, scene.tree, view) if scene.tree else 0.0,
    )


def shadow(scene: Scene, points_N3: Floats, radius_mm: Floats, moves_N: Floats | None = None) -> Tube:
    """Move points through the clip and project them; `radius_mm` is (N,) or (T, N)."""
    return _projected(scene, motion.displace(points_N3, scene.motion, moves_N), radius_mm)


def _projected(scene: Scene, moved_TN3: Floats, radius_mm: Floats) -> Tube:
    xy, scale = project(moved_TN3, scene.view)
    radius = np.broadcast_to(radius_mm, scale.shape)
    step = np.linalg.norm(np.diff(moved_TN3, axis=1), axis=-1) * (scale[:, 1:] + scale[:, :-1]) / 2
    return Tube(xy_TN2=xy, step_px_TN=step, radius_px_TN=radius * scale, radius_mm_TN=radius)


def _shadows(scene: Scene, vessels: Sequence[Vessel]) -> dict[str, Tube]:
    """All vessels' shadows, moved in one go."""
    if not vessels:
        return {}
    moves = [np.ones(len(v.points_N3)) if v.moves_N is None else v.moves_N for v in vessels]
    moved = motion.displace(np.concatenate([v.points_N3 for v in vessels]), scene.motion, np.concatenate(moves))
    whole = _projected(scene, moved, np.concatenate([v.radius_N for v in vessels]))
    found, begin = {}, 0
    for vessel in vessels:
        here = slice(begin, begin + len(vessel.points_N3))
        found[vessel.name] = Tube(
            xy_TN2=whole.xy_TN2[:, here],
            step_px_TN=whole.step_px_TN[:, here.start : here.stop - 1],
            radius_px_TN=whole.radius_px_TN[:, here],
            radius_mm_TN=whole.radius_mm_TN[:, here],
        )
        begin = here.stop
    return found


class _Vessels:
    """The coronary tree and the conduits, with contrast in them."""

    def __init__(self, scene: Scene, curves: Curves) -> None:
        self._iodine = scene.injection.iodine
        self.all = (*(scene.tree.vessels if scene.tree else ()), *scene.conduits)
        self.tubes = _shadows(scene, self.all)
        caps = joints.ends(self.all)
        whole = (*self.all, *caps.values())
        self._filled = [curves.vessels[v.name] for v in self.all]
        self._filled += [curves.vessels[name][:, -1:].repeat(len(v.points_N3), axis=1) for name, v in caps.items()]
        self._drawn = Tubes([*self.tubes.values(), *_shadows(scene, tuple(caps.values())).values()], scene.view.size)
        self._lumen = _Lumen(scene, whole, self._drawn)
        self._own = joints.outside(self.all, caps, self._drawn, scene.view)

    def add(self, attenuation: Image, f: int, mask: Mask) -> None:
        """Add frame f, in place, and say where vessels with contrast are."""
        filled = [c[f] for c in self._filled]
        if self._iodine <= 0 or not any(c.any() for c in filled):
            return
        path_mm = self._drawn.draw(f, filled, self._own * self._lumen.factor(f))
        np.greater(path_mm, SEEN_MM, out=mask)
        path_mm *= np.float32(self._iodine)
        attenuation += path_mm


class _Lumen:
    """What is left of the contrast across the lumen: round where a vessel begins, streaky near the ostium.

    Contrast and blood run side by side there: lighter threads wander across the lumen.
    """

    def __init__(self, scene: Scene, vessels: Sequence[Vessel], drawn: Tubes) -> None:
        self._times, self._strength = scene.times_s, scene.injection.streaming
        distance = _at(drawn, [v.distance_N for v in vessels])
        self._round = np.ones(len(distance))
        if not len(distance):
            return
        # a lumen that leaves no other begins as a ball's half
        inward = _at(drawn, [_within(v) for v in vessels])
        cap = np.flatnonzero(inward < 1)
        w, u = 1 - inward[cap], drawn.u[cap]
        self._round[cap] = np.sqrt(np.maximum(1 - w**2 / np.maximum(1 - u**2, 1e-6), 0))
        self._near = np.flatnonzero(distance < _STREAM_MM)
        near, u = distance[self._near], drawn.u[self._near]
        turn = scene.streams.of("streaming").uniform(0, 2 * np.pi)
        self._wave = turn + near / 6.0 + 2.6 * u
        self._fade = self._strength * np.clip(1 - near / _STREAM_MM, 0, 1)

    def factor(self, f: int) -> Floats:
        """Per piece of the drawn tubes in frame f."""
        if self._strength <= 0 or not len(self._round):
            return self._round
        factor = self._round.copy()
        factor[self._near] *= 1 - self._fade * (0.5 + 0.5 * np.sin(self._wave - 14.0 * self._times[f]))
        return factor


def _at(drawn: Tubes, values: Sequence[Floats]) -> Floats:
    """Values per sample of each tube, at each piece."""
    if not values:
        return np.zeros(0)
    whole = np.concatenate(values)
    return np.asarray(np.interp(drawn.at, np.arange(len(whole)), whole))


def _within(vessel: Vessel) -> Floats:
    """Path from the beginning in lumen radii, for a vessel that leaves no other; else as if far from it."""
    if vessel.parent is not None:
        return np.full(len(vessel.points_N3), 9.0)
    steps = np.linalg.norm(np.diff(vessel.points_N3, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)]) / np.maximum(vessel.radius_N, 0.1)


class _Calcium:
    """Calcifications of the tree: there in every frame, contrast or not."""

    def __init__(self, scene: Scene) -> None:
        found = scene.tree.calcifications if scene.tree else ()
        lines = [(c, line) for c in found for line in c.lines]
        self.any = bool(lines)
        tubes = [shadow(scene, line, np.full(len(line), c.width_mm / 2)) for c, line in lines]
        self._drawn = Tubes(tubes, scene.view.size)
        self._share = [np.full(len(line), 1 / c.width_mm) for c, line in lines]
        self._attenuation = [np.full(len(line), c.attenuation / c.width_mm) for c, line in lines]

    def add(self, attenuation: Image, f: int, mask: Mask) -> None:
        """Add frame f, in place, and say where calcium is."""
        np.greater(self._drawn.draw(f, self._share), SEEN_CALCIUM, out=mask)
        attenuation += self._drawn.draw(f, self._attenuation)


class _Hardware:
    """Catheter and devices. What stays with the chest is drawn anew only when the table has moved."""

    def __init__(self, scene: Scene, curves: Curves) -> None:
        moving = [d for d in scene.devices if _moves(d, scene)]
        self._chest = _Devices(scene, [d for d in scene.devices if not _moves(d, scene)])
        self._moving = _Devices(scene, moving)
        self._pan_T3 = scene.motion.pan_T3
        self._drawn: Image | None = None
        self._catheter = _Catheter(scene, curves) if scene.catheter else None

    def add(self, attenuation: Image, f: int) -> None:
        """Add frame f, in place; frames come in order."""
        if self._drawn is None or (self._pan_T3[f] != self._pan_T3[f - 1]).any():
            self._drawn = np.zeros_like(attenuation)
            self._chest.add(self._drawn, f)
        if self._chest.any:
            attenuation += self._drawn
        self._moving.add(attenuation, f)
        if self._catheter:
            attenuation += self._catheter.picture(f)


class _Devices:
    """Dense lines and plates."""

    def __init__(self, scene: Scene, found: Sequence[Device]) -> None:
        tubes, self._per_mm = [], []
        self._plates: list[tuple[Floats, float]] = []
        for device in found:
            for line in device.lines:
                tubes.append(_projected(scene, _follow(line, device, scene), np.full(len(line), device.width_mm / 2)))
                self._per_mm.append(np.full(len(line), device.attenuation / device.width_mm))
            for outline in device.plates:
                xy, _ = project(_follow(outline, device, scene), scene.view)
                self._plates.append((xy, device.attenuation))
        self._lines = Tubes(tubes, scene.view.size)
        self.any = bool(found)

    def add(self, attenuation: Image, f: int) -> None:
        """Add frame f, in place."""
        if self._per_mm:
            attenuation += self._lines.draw(f, self._per_mm)
        for outline_TN2, dense in self._plates:
            add_plate(attenuation, outline_TN2[f], dense)


def _moves(device: Device, scene: Scene) -> bool:
    """Whether it moves against the chest."""
    return device.moves > 0 or (device.breathes and bool(scene.motion.breath_T3.any()))


def _follow(points: Floats, device: Device, scene: Scene) -> Floats:
    """A device's points over the clip, (T, N, 3)."""
    moved = motion.displace(points, scene.motion, np.full(len(points), device.moves))
    if device.breathes and device.moves == 0:
        moved = moved + scene.motion.breath_T3[:, None, :]
    return moved


class _Catheter:
    """A braided wall around a lumen that holds saline, or contrast."""

    def __init__(self, scene: Scene, curves: Curves) -> None:
        assert scene.catheter is not None
        vessel = scene.catheter
        moves = vessel.moves_N
        if moves is None:  # only the tip goes with the heart, the shaft stays with the aorta
            along = np.linspace(0, 1, len(vessel.points_N3)) ** 3
            moves = along * float(scene.catheter_on_heart)
        tube = shadow(scene, vessel.points_N3, vessel.radius_N, moves)
        self._drawn, self._ones = Tubes([tube], scene.view.size), [np.ones(len(moves))]
        u = self._drawn.u
        whole = np.sqrt(np.maximum(1 - u**2, 1e-3))
        lumen = np.sqrt(np.maximum(_CATHETER_LUMEN**2 - u**2, 0)) / whole
        rng = scene.streams.of("catheter lumen")
        # some laboratories leave contrast in the line all the time
        rest = float(rng.choice([0.02, 0.05, 0.12])) * float(rng.uniform(0.5, 1.2))
        full = max(scene.injection.iodine, 0.1 if curves.catheter_T.any() else 0.0)
        self._lumen, self._wall = lumen, _CATHETER_WALL * (1 - lumen)
        self._iodine_T = rest + np.maximum(full - rest, 0) * curves.catheter_T

    def picture(self, f: int) -> Image:
        """Attenuation of frame f."""
        return self._drawn.draw(f, self._ones, self._wall + self._iodine_T[f] * self._lumen)


class _Soft:
    """Wide things with soft borders, on large pixels: cavities with contrast, reflux, the muscle's stain."""

    def __init__(self, scene: Scene, curves: Curves, vessels: _Vessels) -> None:
        self._size, self._cells = scene.view.size, -(-scene.view.size // _COARSE)
        parts: list[_Cavity | _Reflux | _Blush] = [
            _Cavity(scene, chamber, curve)
            for chamber, curve in zip(scene.chambers, curves.chambers, strict=True)
            if chamber.iodine > 0
        ]
        if scene.injection.reflux_iodine > 0 and curves.reflux_T.any():
            parts.append(_Reflux(scene, curves, self._cells))
        if scene.injection.blush_iodine > 0 and curves.blush_T.any() and vessels.all:
            parts.append(_Blush(scene, curves, vessels))
        self._parts = parts

    def add(self, attenuation: Image, f: int) -> None:
        """Add frame f, in place."""
        pictures = [picture for part in self._parts if (picture := part.picture(f)) is not None]
        if not pictures:
            return
        side = self._cells * _COARSE
        large = cv2.resize(np.sum(pictures, axis=0), (side, side), interpolation=cv2.INTER_LINEAR)
        attenuation += large[: self._size, : self._size]


class _Cavity:
    """Contrast in the aorta, the ventricle or the coronary sinus: streaky while it mixes, soft at the border."""

    def __init__(self, scene: Scene, chamber: Chamber, curve_TN: Floats) -> None:
        self._times, self._curve, self._iodine = scene.times_s, curve_TN, chamber.iodine
        squeeze = 1 - chamber.contracts * scene.motion.contraction_T[:, None]
        tube = shadow(scene, chamber.tube.points_N3, chamber.tube.radius_N * squeeze, chamber.tube.moves_N)
        self._drawn = Tubes([tube], scene.view.size, _COARSE)
        turns = scene.streams.of(f"mixing/{chamber.tube.name}").uniform(0, 2 * np.pi, 3)
        along = _at(self._drawn, [chamber.tube.distance_N])
        u = self._drawn.u
        self._waves = (turns[0] + along / 9 + 4.1 * u, turns[1] - along / 14 + 6.3 * u, turns[2] + along / 5 - 2.2 * u)
        self._blur_px = max(0.6, 1.6 * scene.view.px_per_mm / _COARSE)

    def picture(self, f: int) -> Image | None:
        """Attenuation of frame f on large pixels."""
        level = self._curve[f]
        if float(level.max()) < 0.01:
            return None
        t = self._times[f]
        a, b, c = self._waves
        mixing = 1 + 0.12 * (np.sin(a - 7 * t) + np.sin(b + 5 * t) + np.sin(c - 11 * t))
        picture = self._drawn.draw(f, [level * self._iodine], mixing)
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), self._blur_px), np.float32)


class _Reflux:
    """Contrast that spills back into the root: clouds that leave the ostium, drift with the stream and thin out."""

    def __init__(self, scene: Scene, curves: Curves, cells: int) -> None:
        rng = scene.streams.of("reflux")
        origin = scene.catheter.points_N3[-1] if scene.catheter is not None else np.zeros(3)
        self._amount_T = scene.injection.reflux_iodine * curves.reflux_T
        self._cells, self._scale = cells, scene.view.px_per_mm / _COARSE
        self._life_s = rng.uniform(0.45, 0.9, _PUFFS)
        self._offset_s = rng.uniform(0, 1, _PUFFS)
        self._drift = rng.normal([0.0, 0.0, 10.0], 5.0, (_PUFFS, 3))  # mm over a life, up the aorta
        self._radius_mm = rng.uniform(3.0, 5.5, _PUFFS)
        self._times = scene.times_s
        moved = motion.displace(origin[None] + np.zeros((1, 3)), scene.motion, np.full(1, 0.5))[:, 0]
        self._origin_T3, self._view = moved, scene.view

    def picture(self, f: int) -> Image | None:
        """Attenuation of frame f on large pixels."""
        amount = float(self._amount_T[f])
        if amount < 1e-4:
            return None
        age = (self._times[f] / self._life_s + self._offset_s) % 1.0
        at, _ = project(self._origin_T3[f] + age[:, None] * self._drift, self._view)
        at = (at + 0.5) / _COARSE - 0.5
        sigma = self._radius_mm * (0.7 + 0.9 * age) * self._scale
        # what spreads thins out, and no cloud appears or vanishes at once
        depth = 2 * self._radius_mm * np.sin(np.pi * age) ** 0.7 / (0.7 + 0.9 * age) * amount
        grid = np.arange(self._cells)
        columns = np.exp(-0.5 * ((grid - at[:, :1]) / sigma[:, None]) ** 2)
        rows = np.exp(-0.5 * ((grid - at[:, 1:]) / sigma[:, None]) ** 2)
        return np.asarray((rows * depth[:, None]).T @ columns, np.float32)


class _Blush:
    """The muscle's stain: where the small vessels end, blurred, moving along with them."""

    def __init__(self, scene: Scene, curves: Curves, vessels: _Vessels) -> None:
        self._amount_T = scene.injection.blush_iodine * curves.blush_T
        full = int(curves.filling_T.argmax())
        tubes = list(vessels.tubes.values())
        centre_T2 = np.concatenate([t.xy_TN2 for t in tubes], axis=1).mean(axis=1)
        self._shift_T2 = (centre_T2 - centre_T2[full]) / _COARSE
        # drawn as far around the field as the table will move it in
        self._cells, self._margin = -(-scene.view.size // _COARSE), int(np.ceil(np.abs(self._shift_T2).max())) + 1
        aside = self._margin * _COARSE
        wide = [replace(t, xy_TN2=t.xy_TN2 + aside) for t in tubes]
        drawn = Tubes(wide, scene.view.size + 2 * aside, _COARSE)
        fed = [
            curves.vessels[v.name][full] * np.clip((1.3 - v.radius_N) / 0.8, 0, 1) / np.maximum(v.radius_N, 0.1) ** 2
            for v in vessels.all
        ]
        stain = cv2.GaussianBlur(drawn.draw(full, fed), (0, 0), _BLUSH_MM * scene.view.px_per_mm / _COARSE)
        field = slice(self._margin, self._margin + self._cells)
        most = max(float(np.percentile(stain[field, field], 98)), 1e-6)
        self._stain: Image = np.clip(stain / most, 0, 1.3).astype(np.float32)

    def picture(self, f: int) -> Image | None:
        """Attenuation of frame f on large pixels."""
        amount = float(self._amount_T[f])
        if amount < 1e-3:
            return None
        x, y = self._shift_T2[f] - self._margin
        move = np.array([[1, 0, x], [0, 1, y]])
        moved = cv2.warpAffine(self._stain, move, (self._cells, self._cells), borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(moved * np.float32(amount), np.float32)
