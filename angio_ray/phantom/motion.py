"""How hearts, chests and tables move during a clip: the beat with its irregularities, breath and panning.

The AV groove, and with it the right coronary artery, moves most, 10 to 15 mm from end-diastole to end-systole, the LAD
about half of that; the tricuspid side comes down further than the mitral one (Lang et al., J Am Soc Echocardiogr 2015;
28:1-39). Systole keeps about its length when the heart slows (Weissler et al., Circulation 1968; 37:149-159:
left-ventricular ejection 0.41 s less 1.7 ms per beat a minute). Knows nothing of vessels, pictures or contrast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from angio_ray.phantom.anatomy import APEX, BASE, GROOVE_NORMAL, HEART_CENTRE, RING_CENTRE, TO_THE_LEFT
from angio_ray.phantom.carm import Floats
from angio_ray.phantom.scene import Motion

_AXIS = (APEX - BASE) / np.linalg.norm(APEX - BASE)
_DEPTH_MM = float((APEX - RING_CENTRE) @ GROOVE_NORMAL)
"""From the groove's plane to the apex."""
_NORMAL_BEAT = 0.9
"""How contracted a normal beat gets: what is left is for the strong one after an ectopic."""
_DIASTASIS = 0.12
"""How contracted the heart still is before its atria fill it to the last."""
_LONGEST_MM = 50.0
"""How far the table goes at most; about the way from the ostium to the middle of the artery."""
_TRIES = 16
"""The last goes no farther than 2 mm: next to nothing is lost by it."""
_ASIDE_RAD = 0.6
"""How far off its aim the table goes, standard deviation."""


def beats(
    times_s: Floats, period_s: float, rng: np.random.Generator, *, ectopics: float
) -> tuple[Floats, Floats, Floats]:
    """The heart's rhythm over a clip.

    Parameters
    ----------
    times_s : (T,) array
        When the frames are taken, rising.
    period_s : float
        Mean length of a normal beat, 0.45 to 1.3; single beats differ by up to 10 %.
    rng : numpy.random.Generator
        The rhythm's.
    ectopics : float
        Chance that a beat is followed by a premature one: it comes after 55 to 70 % of the period, squeezes weakly,
        and a compensatory pause follows whose next beat squeezes more.

    Returns
    -------
    phase_T, contraction_T, onsets_s : arrays
        Position in the cycle (0 at the beginning of systole), how contracted the heart is (0..1), and when each beat
        begins: the first before the first frame, the last after the last.
    """
    lengths: list[float] = []
    strengths: list[float] = []
    start = float(times_s[0]) - float(rng.uniform(0, 1)) * period_s * 0.9
    total = start
    premature = False
    while total <= times_s[-1] + 1e-9 or len(lengths) < 2:
        length, strength = period_s * float(rng.uniform(0.9, 1.1)), _NORMAL_BEAT
        if premature:
            # the pause after the premature beat makes the two beats as long as two normal ones
            lengths.append(2 * period_s - lengths[-1])
            strengths.append(float(rng.uniform(0.35, 0.6)))
            total += lengths[-1]
            strength = float(rng.uniform(0.95, 1.0))
        premature = bool(rng.random() < ectopics)
        if premature:
            length = period_s * float(rng.uniform(0.55, 0.7))
        lengths.append(length)
        strengths.append(strength)
        total += length
    onsets = start + np.concatenate([[0.0], np.cumsum(lengths)])
    beat_T = np.clip(np.searchsorted(onsets, times_s, side="right") - 1, 0, len(lengths) - 1)
    since_T = times_s - onsets[beat_T]
    phase_T = np.clip(since_T / np.array(lengths)[beat_T], 0, np.nextafter(1, 0))
    return phase_T, _contraction(since_T, np.array(lengths)[beat_T], np.array(strengths)[beat_T]), onsets


def breath(times_s: Floats, rng: np.random.Generator, *, amplitude_mm: float) -> Floats:
    """Shift of heart and diaphragm by breathing, (T, 3) mm: mostly a held breath that drifts, at times a free one.

    The heart goes towards the feet when the patient breathes in, and a little forwards (about one to five).
    """
    since = times_s - times_s[0]
    if rng.random() < 0.75:
        toward = rng.uniform(-1, 1)
        course = toward * (1 - np.exp(-since / rng.uniform(1.5, 4.0))) + 0.06 * np.sin(2 * np.pi * since / 2.3)
        course -= course[0]
    else:
        phase = rng.uniform(0, 2 * np.pi)
        course = 0.5 * np.sin(2 * np.pi * since / rng.uniform(2.8, 5.0) + phase)
        course += 0.12 * np.sin(4 * np.pi * since / rng.uniform(3.0, 5.0) + phase)
    return amplitude_mm * course[:, None] * np.array([0.0, -0.2, -1.0])


def pan(
    times_s: Floats,
    rng: np.random.Generator,
    *,
    speed_mm_s: float,
    along: Floats,
    held_T: NDArray[np.bool_],
    kept: Callable[[Floats], bool],
) -> Floats:
    """Shift of the patient under the C-arm, (T, 3) mm: the table starts and stops within the clip, once or twice.

    The table moves level: along the patient and across, never up. The operator follows what runs through the field, and
    does not lose sight of it: of several such pans, each shorter than the one before, it is the first that is `kept`.

    Parameters
    ----------
    times_s : (T,) array
        When the frames are taken, rising.
    rng : numpy.random.Generator
        The table's.
    speed_mm_s : float
        Top speed of one move, of which two may overlap; less where the way would be too long.
    along : (3,) array
        About where the patient goes, of any length.
    held_T : (T,) array
        Frames whose mean shift is none: the field is right for them, and they are panned to or from.
    kept : callable
        Whether a shift, (T, 3) mm, leaves in the field what has to be there.
    """
    length = float(times_s[-1] - times_s[0])
    ahead = np.arctan2(along[2], along[0])
    for way_mm in _LONGEST_MM * 0.8 ** np.arange(_TRIES):
        shift = np.zeros((len(times_s), 3))
        for _ in range(int(rng.integers(1, 3))):
            start = float(times_s[0]) + rng.uniform(0.1, 0.6) * length
            lasts = max(0.2, rng.uniform(0.15, 0.4) * length)
            angle = ahead + rng.normal(0, _ASIDE_RAD)
            x = np.clip((times_s - start) / lasts, 0, 1)
            eased = x**3 * (10 - 15 * x + 6 * x * x)
            # minimum jerk: the top speed is 1.875 times the mean
            shift += (speed_mm_s * lasts / 1.875 * eased)[:, None] * np.array([np.cos(angle), 0.0, np.sin(angle)])
        shift *= min(1.0, way_mm / max(float(np.linalg.norm(shift[-1])), 1e-9))
        shift -= shift[held_T].mean(axis=0)
        if kept(shift):
            break
    return shift


def displace(points_N3: Floats, motion: Motion, moves_N: Floats | None = None) -> Floats:
    """Where points are in each frame, (T, N, 3) mm.

    Parameters
    ----------
    points_N3 : (N, 3) array
        At end-diastole, mm.
    motion : Motion
        The clip's.
    moves_N : (N,) array or None
        How much of beat and breath each point follows: 0 the chest's, 1 (None) the heart's. All follow the table.
    """
    modes_K3N = _modes(points_N3)
    if moves_N is not None:
        modes_K3N = modes_K3N * moves_N
    amounts_TK = _amounts(motion)
    moved = points_N3[None] + (amounts_TK @ modes_K3N.reshape(len(modes_K3N), -1)).reshape(
        len(amounts_TK), 3, -1
    ).transpose(0, 2, 1)
    weights = 1.0 if moves_N is None else moves_N[None, :, None]
    return moved + weights * motion.breath_T3[:, None, :] + motion.pan_T3[:, None, :]


def _contraction(since_T: Floats, length_T: Floats, strength_T: Floats) -> Floats:
    """0 at the beat's start, most at the end of systole; then relaxation, stillness, and the atria's last filling."""
    systole = np.minimum(0.23 + 0.13 * length_T, 0.55 * length_T)
    relaxing = np.minimum(0.15 + 0.08 * length_T, 0.9 * (length_T - systole))
    squeeze = _ease(since_T / systole) * (1 - (1 - _DIASTASIS) * _ease((since_T - systole) / relaxing))
    return strength_T * squeeze * _ease((length_T - 0.02 - since_T) / 0.1)


def _modes(points_N3: Floats) -> Floats:
    """How each point moves per unit of each amount that `_amounts` gives: (2, 3, N) mm.

    The groove comes down towards the apex, more on the right; the walls come in; base and apex turn against each other.
    The atria's roof stays. The second mode bends each point's way out and back into a narrow loop.
    """
    below = (points_N3 - RING_CENTRE) @ GROOVE_NORMAL
    height = np.where(below >= 0, np.clip(1 - below / _DEPTH_MM, 0, 1), np.clip(1 + below / 26.0, 0, 1))
    right = np.clip(-((points_N3 - RING_CENTRE) @ TO_THE_LEFT) / 51.0, -1, 1)
    offset = points_N3 - HEART_CENTRE
    radial = offset - (offset @ _AXIS)[:, None] * _AXIS
    radial = radial * np.clip(1 + below / 26.0, 0, 1)[:, None]
    turn = np.deg2rad(8.0 - 11.0 * height)
    squeeze = ((11.5 + 3.0 * right) * height)[:, None] * GROOVE_NORMAL
    squeeze = squeeze - (0.085 * np.clip(1.4 - 0.5 * height, 0, 1))[:, None] * radial
    squeeze = squeeze + turn[:, None] * np.cross(_AXIS, radial)
    loop = 1.8 * np.cross(_AXIS, radial) / 40.0 + (1.5 * height)[:, None] * TO_THE_LEFT
    return np.stack([squeeze.T, loop.T])


def _amounts(motion: Motion) -> Floats:
    """How far each mode is on in each frame, (T, 2)."""
    return np.stack([motion.contraction_T, motion.contraction_T * np.sin(2 * np.pi * motion.phase_T)], axis=1)


def _ease(x_T: Floats) -> Floats:
    x = np.clip(x_T, 0, 1)
    return x * x * (3 - 2 * x)
