"""How contrast comes, runs and goes: concentration along every vessel over time, and when a clip counts as filled.

Blood and contrast move through the tree together, faster in diastole than in systole, so the front advances in steps
with the beats; it blurs on its way, and what the beats diluted at the ostium is carried on downstream. Clean blood
follows after the injection: near vessels empty first, distal ones last. Knows nothing of pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from angio_ray.phantom.anatomy import Floats, Vessel
from angio_ray.phantom.scene import Chamber, Injection, Motion, Scene

FIRST_FILLING = 0.02
"""Mean filling, share of its own maximum, at which contrast counts as there (first and last contrast)."""
FULL_FILLING = 0.9
"""The same for full contrast (begin and end)."""
FAINTEST_FILLING = 0.05
"""Vessels whose mean filling never gets here never fill."""
CONTRAST_FRAMES = ("first_contrast", "contrast_begin", "contrast_end", "last_contrast", "best_frame")

_CHAMBER_FLOW_MM_S = 260.0
_GRID_S = 0.02
_REACH_FADE_MM = 8.0


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Concentrations over the frames, 0..1 of what leaves the catheter."""

    vessels: dict[str, Floats]
    """Per vessel of the tree and conduit, (T, N)."""
    chambers: tuple[Floats, ...]
    """Per chamber, (T, N)."""
    catheter_T: Floats
    """How much of the catheter's lumen holds contrast."""
    reflux_T: Floats
    """Of what spills back at the ostium, while it does."""
    blush_T: Floats
    """Of the muscle's stain."""
    filling_T: Floats
    """Mean of the vessels that the injection is meant for (conduits where there are any, else the tree) by volume."""


def curves(scene: Scene) -> Curves:
    """Concentration of contrast everywhere in a scene's frames."""
    injection, motion, times = scene.injection, scene.motion, scene.times_s
    course = _Course(injection, motion, float(times[-1]))
    injected = injection.iodine > 0 and injection.length_s > 0
    dark = () if scene.tree is None else scene.tree.vessels
    vessels = {v.name: np.zeros((len(times), len(v.points_N3))) for v in (*dark, *scene.conduits)}
    filled = scene.conduits or dark
    if injected and filled:
        vessels |= _vessel_curves(filled, course, times)
    shot = _shot(injection, times) if injected else np.zeros(len(times))
    early = any(c.iodine > 0 and c.delay_s < 2.0 for c in scene.chambers)
    return Curves(
        vessels=vessels,
        chambers=tuple(_chamber_curve(c, injection, motion, times) for c in scene.chambers),
        catheter_T=_shot(injection, times) if injected or early else np.zeros(len(times)),
        reflux_T=shot * (1 - 0.5 * _diastole(times, motion)),
        blush_T=_blush(injection, course, times) if injected else np.zeros(len(times)),
        filling_T=mean_by_volume(filled, vessels, len(times)),
    )


def mean_by_volume(vessels: Iterable[Vessel], concentrations: dict[str, Floats], frames: int) -> Floats:
    """Mean concentration per frame over the lumen that contrast gets to straight away, (T,).

    Beyond an occlusion nothing counts: what collaterals bring is late, and would move the fullest frame behind the shot.
    """
    total, volume = np.zeros(frames), 0.0
    for vessel in vessels:
        length = np.linalg.norm(np.gradient(vessel.points_N3, axis=0), axis=1)
        part = vessel.radius_N**2 * length * (1.0 if vessel.supply_N is None else vessel.supply_N > 0)
        part = part * (1.0 if vessel.delay_N is None else vessel.delay_N <= 0)
        total += concentrations[vessel.name] @ part
        volume += float(part.sum())
    return np.minimum(total / max(volume, 1e-9), 1.0)


def contrast_frames(filling_T: Floats) -> dict[str, int | None]:
    """First and last frame with contrast, begin and end of full contrast and the fullest frame; None: never filled."""
    most = float(filling_T.max(initial=0.0))
    if most < FAINTEST_FILLING:
        return dict.fromkeys(CONTRAST_FRAMES)
    there = np.flatnonzero(filling_T >= FIRST_FILLING * most)
    full = np.flatnonzero(filling_T >= FULL_FILLING * most)
    found = (there[0], full[0], full[-1], there[-1], filling_T.argmax())
    return dict(zip(CONTRAST_FRAMES, (int(f) for f in found), strict=True))


class _Course:
    """How far the stream has run at each moment since the injection began, and so when it gets where."""

    def __init__(self, injection: Injection, motion: Motion, end_s: float) -> None:
        self.injection, self.motion = injection, motion
        self._times = np.arange(injection.start_s, max(end_s, injection.start_s) + 30.0, _GRID_S)
        speed = injection.flow_mm_s * (0.72 + 0.5 * _diastole(self._times, motion))
        self._run_mm = np.concatenate([[0.0], np.cumsum(speed[:-1]) * _GRID_S])

    def arrival(self, left_s: float, distance_N: Floats) -> Floats:
        """When what leaves the catheter at `left_s` has run `distance_N`, s."""
        begun = np.interp(left_s, self._times, self._run_mm)
        return np.asarray(np.interp(begun + distance_N, self._run_mm, self._times))


def _vessel_curves(vessels: Sequence[Vessel], course: _Course, times: Floats) -> dict[str, Floats]:
    """Per vessel, (T, N). All samples at once: a tree has a hundred vessels and more."""
    injection = course.injection
    none = [np.zeros(len(v.distance_N)) for v in vessels]
    distance = np.concatenate([v.distance_N for v in vessels])
    late = np.concatenate([n if v.delay_N is None else v.delay_N for v, n in zip(vessels, none, strict=True)])
    supply = np.concatenate([n + 1 if v.supply_N is None else v.supply_N for v, n in zip(vessels, none, strict=True)])
    first = course.arrival(injection.start_s, distance)
    last = course.arrival(injection.start_s + injection.length_s, distance)
    # collaterals fill no sooner than the arteries that feed them are full, and the shot is over
    fed = late > 0
    ended = injection.start_s + injection.length_s
    first[fed] = np.maximum(first + late, first[~fed & (supply > 0)].max(initial=ended))[fed]
    last[fed] = first[fed] + injection.length_s
    under_way = first - injection.start_s
    level = _front((times[:, None] - first) / (0.1 + 0.3 * under_way + 0.4 * late))
    emptying = injection.washout_s * (0.7 + 0.5 * np.clip(distance / 150, 0, 1)) + 0.6 * late
    level *= np.exp(-np.maximum(times[:, None] - last, 0) / emptying)
    if injection.pulsation:
        # what the beats diluted at the ostium runs on downstream and blurs
        left = times[:, None] - under_way
        level *= 1 - injection.pulsation * np.exp(-under_way / 0.8) * _diastole(left, course.motion)
    level *= supply * np.clip((injection.reach_mm - distance) / _REACH_FADE_MM, 0, 1)
    parts = np.split(level, np.cumsum([len(n) for n in none])[:-1], axis=1)
    return {v.name: part for v, part in zip(vessels, parts, strict=True)}


def _chamber_curve(chamber: Chamber, injection: Injection, motion: Motion, times: Floats) -> Floats:
    """Contrast in a wide cavity: mixed in as it streams by, washed out beat by beat."""
    path = np.abs(chamber.tube.distance_N - chamber.tube.distance_N[0])
    begin = injection.start_s + chamber.delay_s + path / _CHAMBER_FLOW_MM_S
    since = times[:, None] - begin
    rise = 0.2 + 0.3 * chamber.delay_s
    level = _front(since / rise)
    gone = np.maximum(since - max(injection.length_s, 0.5) - 0.3 * chamber.delay_s, 0)
    # each systole throws out more than the diastole before it
    beating = 0.6 + 0.8 * (1 - _diastole(times, motion))[:, None]
    return level * np.exp(-gone * beating / (0.5 + 0.5 * injection.washout_s + 0.5 * chamber.delay_s))


def _blush(injection: Injection, course: _Course, times: Floats) -> Floats:
    """The muscle stains when the distal vessels have been full for a while, and pales slowly."""
    begin = float(course.arrival(injection.start_s, np.array([110.0]))[0])
    since = times - begin
    stained = np.clip(since / (0.8 * injection.length_s + 0.6), 0, 1)
    return stained**1.5 * np.exp(-np.maximum(since - injection.length_s - 1.0, 0) / (2.5 * injection.washout_s + 1.0))


def _shot(injection: Injection, times: Floats) -> Floats:
    """1 while contrast leaves the catheter, with short ramps."""
    since = times - injection.start_s
    return np.clip((since + 0.12) / 0.15, 0, 1) * np.exp(-np.maximum(since - injection.length_s, 0) / 0.2)


def _diastole(times: Floats, motion: Motion) -> Floats:
    """How far the heart is in diastole at any time, 0..1, smooth: blood runs through the muscle then."""
    beats = np.interp(times, motion.onsets_s, np.arange(len(motion.onsets_s)), left=np.nan, right=np.nan)
    outside = np.isnan(beats)
    if outside.any():
        beats = np.where(outside, (times - motion.onsets_s[0]) / motion.period_s, beats)
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.clip((beats % 1.0) - 0.12, 0, 1) / 0.88)


def _front(x: Floats) -> Floats:
    """A smooth rise from 0 at 0 to 1 at 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
