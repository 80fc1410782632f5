"""The heart's cycle from pixels, without ECG, and a frame without contrast and one of full contrast of the same phase.

The calcification paper (spec section 4) takes the distance of each frame from the first, and the Fourier transform's peak as
the heart's frequency: `distance_signal` and `fourier_period`. One reference frame sees breath, table, exposure and contrast
before it sees the heart, so `heart_phase` looks for what comes back after a beat instead: periodic component analysis
(Sameni, Jutten and Shamsollahi, IEEE Trans Biomed Eng 2008; 55:1935-1940). Of all weighted sums of the frames' principal
components it takes the one that is most alike after one period and most unlike after half of it; the period is where that
difference of autocorrelations, the Fourier pair of the power spectrum, is greatest. Slow change is alike after half a period
too, twice the true period is alike after its half, and half of it is unlike after its whole: the harmonics rule themselves
out (a threshold at half and double the lag changed nothing or did harm). The component's analytic signal gives the phase beat
by beat. benchmarks/heart_phase.py measures both forms against the phantom's truth.

Knows nothing of DICOM, nets, tables or Ray.

Shapes: T frames, H x W pixels, N cells of a coarse picture, K components, Q harmonics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter1d
from scipy.signal import butter, hilbert, sosfiltfilt

Floats = NDArray[np.float64]

SLOWEST_HZ, FASTEST_HZ = 0.6, 3.0
"""Heart rates looked for: 36 to 180 beats a minute (spec section 4)."""

NO_PRECONTRAST_FRAMES = "no_precontrast_frames"
"""Why there is no pair: less than one beat before contrast, or none of its frames permitted."""
NO_FULL_CONTRAST = "no_full_contrast"
"""Why there is no pair: no frame of full contrast."""
NO_HEART_MOTION = "no_heart_motion"
"""Why there is no pair: the clip shows no cycle that could be told from chance."""

LEAST_QUALITY = 0.2
"""Below it there is no pair. Noise got 0.18 at most, whatever its memory; of twelve calcium clips rendered with a still heart one
that breathed lay above (0.36), and beating ones lie below where noise is heavy or many beats are premature."""
SAME_PHASE = 0.25
"""Differences of phase that the tracking cannot tell apart, frames."""

_DARK = 16
"""Median grey level below which a pixel counts as shutter or border."""
_SETTLED = 0.03
"""Relative brightness from which on an exposure still settles."""
_CELLS = 28
"""Edge of the coarse picture: cells of about 4 mm, which average noise away and keep borders that move by a cell."""
_TREND_S = 0.33
"""Standard deviation of the running mean that is taken out. With 0.53 the arrival of contrast
passed for a slow beat in short clips."""
_COMPONENTS = 4
"""With more of them the component agrees less often between the two parts of a clip: pairs over a frame off rise with 6 and 8."""
_UNMOVED = 1e-4
"""Size of a whole frame's change below which it is rounding: a single pixel's step of one grey level is more
than twice as much."""
_HARMONICS = np.arange(1, 3)
_TURNS = np.arange(-0.5, 0.5, 0.01)


@dataclass(frozen=True, kw_only=True)
class HeartPhase:
    """The heart's cycle over a clip."""

    step_s: float
    """From one frame to the next."""
    first_contrast: int | None
    """Index of the first frame with contrast; None: not known, or contrast never comes."""
    period_s: float | None
    """Median beat of the whole clip (the beats before contrast alone erred more); None where nothing comes back more
    than by chance."""
    quality: float
    """0 to 1: the share of the component's variance that comes back after one beat, above what chance gives for so many frames,
    in the worse of the parts before and with contrast (of the clip's halves where no contrast is known); times the share of its
    power in which the two interleaved halves of the pixels agree (noise does not); less where there are under two beats before
    contrast, down to a half. A short clip of a still heart, in which contrast comes and goes, is not told from a beating one."""
    phase_T: Floats | None
    """In beats, never falling but where contrast arrives; whole numbers are where the heart is stillest, about end-diastole.
    None without a period."""
    irregularity_T: Floats | None
    """|log(beat around this frame / median beat)|; NaN within half a beat of the ends and of contrast's arrival."""

    @property
    def period_frames(self) -> float | None:
        """Median beat in frames."""
        return None if self.period_s is None else self.period_s / self.step_s


@dataclass(frozen=True, kw_only=True)
class FramePair:
    """Two frames of one heart phase, or why there are none."""

    precontrast: int | None = None
    contrast: int | None = None
    difference_frames: float | None = None
    """By how much of a beat their phases differ, in frames; not negative."""
    reason: str | None = None


def distance_signal(frames_THW: NDArray[np.uint8]) -> Floats:
    """The paper's S_k = ||f_0 - f_k|| / (||f_0|| + ||f_k||) of all T frames, by Frobenius norms; 0 between two black frames."""
    frames_TN = frames_THW.reshape(len(frames_THW), -1).astype(np.float64)
    norm_T = np.linalg.norm(frames_TN, axis=1)
    apart_T = np.linalg.norm(frames_TN - frames_TN[0], axis=1)
    return np.divide(apart_T, norm_T[0] + norm_T, out=np.zeros(len(norm_T)), where=norm_T[0] + norm_T > 0)


def fourier_period(signal_T: Floats, *, shortest: float = 2.0, longest: float = np.inf) -> float | None:
    """The paper's period, in frames: that of the largest bin of the Fourier transform, the mean's aside.

    The paper names no bounds of the period; `shortest` and `longest` give it some. None where no bin between them has power.
    """
    power = np.square(np.abs(np.fft.rfft(signal_T - signal_T.mean())))[1:]
    period = len(signal_T) / np.arange(1, len(power) + 1)
    power = np.where((period >= shortest) & (period <= longest), power, 0)
    return float(period[power.argmax()]) if power.any() else None


def heart_phase(frames_THW: NDArray[np.uint8], *, step_s: float, first_contrast: int | None = None) -> HeartPhase:
    """Period, phase in every frame, and how far to trust them.

    Parameters
    ----------
    frames_THW : (T, H, W) uint8 array
        All frames of a clip at an even rate, about 112 px.
    step_s : float
        From one frame to the next; 1/15 as `sampling` resamples.
    first_contrast : int or None
        Index of the first frame with contrast in the arteries. Contrast's own pattern is no part of the cycle; the two parts'
        phases are joined by what both show (`_turn`).

    ValueError for a step that is not positive, or an index outside the clip.
    """
    T = len(frames_THW)
    if not 0 < step_s < float("inf") or (first_contrast is not None and not 0 <= first_contrast <= T):
        raise ValueError(f"step {step_s} s must be positive, first_contrast {first_contrast} within {T} frames")
    cells = _cells(frames_THW, step_s) if T else None
    found = None if cells is None else _periodic_component(cells[0] + cells[1], step_s)
    if cells is None or found is None:
        return HeartPhase(
            step_s=step_s, first_contrast=first_contrast, period_s=None, quality=0.0, phase_T=None, irregularity_T=None
        )
    one_TN, other_TN, settled = cells
    lag, share, component_T = found
    arrival = T - settled if first_contrast is None else max(first_contrast - settled, 0)
    parts = [part for part in (slice(0, arrival), slice(arrival, T - settled)) if part.start < part.stop]
    phase_T = _analytic_phase(component_T, lag)
    if len(parts) == 2 and parts[0].stop >= 2 * lag:
        phase_T[parts[1]] += _turn(one_TN + other_TN, phase_T, parts)
    phase_T -= _stillest(one_TN + other_TN, phase_T, parts)
    period = _median_beat(phase_T, parts) or lag
    agreement = min(_agreement(one_TN[part], other_TN[part], component_T[part]) for part in parts)
    spans = parts if first_contrast is not None else [slice(0, arrival // 2), slice(arrival // 2, arrival)]
    shares = [_returning(component_T[span], lag) for span in spans if span.stop - span.start >= 1.5 * lag]
    before = 1.0 if first_contrast is None else min(1.0, first_contrast / (2 * period))
    irregular_T = np.concatenate([_irregularity(phase_T[part], period) for part in parts])
    lead = np.arange(-settled, 0) / period  # before the exposure settled the heart went on
    return HeartPhase(
        step_s=step_s,
        first_contrast=first_contrast,
        period_s=period * step_s,
        quality=float(np.clip(min(share, *shares, 1.0) * agreement * (0.5 + 0.5 * before), 0, 1)),
        phase_T=np.concatenate([phase_T[0] + lead, phase_T]),
        irregularity_T=np.concatenate([np.full(settled, np.nan), irregular_T]),
    )


def frame_pair(heart: HeartPhase, precontrast: Sequence[int], contrast: Sequence[int]) -> FramePair:
    """The pair, of the permitted frames without contrast and of full contrast, with the least difference of phase.

    Of those that differ by no more than tracking can tell (SAME_PHASE), the pair in the most regular beats, and then with the
    frame of full contrast near the middle of these, and still, as the heart is about end-diastole: the phase of a premature
    beat, or of one cut by the clip's end or by contrast's arrival, is the least certain.

    Parameters
    ----------
    heart : HeartPhase
        The clip's.
    precontrast, contrast : sequences of int
        Permitted indices of frames; of the first those before `heart.first_contrast` count.
    """
    if heart.first_contrast is None or not len(contrast):
        return FramePair(reason=NO_FULL_CONTRAST)
    early = [frame for frame in precontrast if frame < heart.first_contrast]
    period, phase_T = heart.period_frames, heart.phase_T
    if not early or (period is not None and heart.first_contrast < period):
        return FramePair(reason=NO_PRECONTRAST_FRAMES)
    if period is None or phase_T is None or heart.irregularity_T is None or heart.quality < LEAST_QUALITY:
        return FramePair(reason=NO_HEART_MOTION)
    a, b = np.asarray(early), np.asarray(contrast)
    apart_AB = np.abs(_wrapped(phase_T[a][:, None] - phase_T[b])) * period
    irregular_T = np.nan_to_num(heart.irregularity_T, nan=1.0)
    off_middle_B = np.abs(b - b.mean()) / max(float(np.ptp(b)) / 2, 1.0)
    cost_AB = 2 * np.maximum(irregular_T[a][:, None], irregular_T[b]) + 0.3 * off_middle_B
    cost_AB = cost_AB + 0.3 * np.abs(_wrapped(phase_T[b]))
    least = max(SAME_PHASE, float(apart_AB.min()))
    i, j = np.unravel_index(np.where(apart_AB <= least, cost_AB, np.inf).argmin(), apart_AB.shape)
    return FramePair(precontrast=int(a[i]), contrast=int(b[j]), difference_frames=float(apart_AB[i, j]))


def _cells(frames_THW: NDArray[np.uint8], step_s: float) -> tuple[Floats, Floats, int] | None:
    """Coarse pictures of the interleaved halves of the pixels, twice (T - settled, N), and the first frame that has settled.

    Logarithms, since X-rays are absorbed by a share; each frame less its mean over the field, so that brightness does not
    count; slow change taken out; each frame brought to one size, so that vessels do not drown what shows before them. None
    where there is no field, or nothing ever changes.
    """
    median_HW = np.median(frames_THW, axis=0)
    field_HW = binary_erosion(median_HW >= _DARK, iterations=2)
    if not field_HW.any():
        return None
    log_THW = np.log(frames_THW.astype(np.float32) + 8)
    level_T = log_THW[:, field_HW].mean(axis=1)
    early_T = level_T[: max(1, round(1 / step_s))]
    settled = int(np.argmax(np.abs(early_T - np.median(early_T)) <= _SETTLED))
    log_THW = np.where(field_HW, log_THW - level_T[:, None, None], 0)[settled:]
    chequers_HW = (np.indices(field_HW.shape).sum(axis=0) % 2).astype(np.float32)
    edge = (_CELLS, _CELLS)
    halves = [
        np.stack([cv2.resize(log_HW * half_HW, edge, interpolation=cv2.INTER_AREA).ravel() for log_HW in log_THW])
        for half_HW in (chequers_HW, 1 - chequers_HW)
    ]
    one_TN, other_TN = (half - gaussian_filter1d(half, _TREND_S / step_s, axis=0, mode="nearest") for half in halves)
    size_T1 = np.linalg.norm(one_TN + other_TN, axis=1, keepdims=True)
    unmoved_T1 = size_T1 < _UNMOVED
    if unmoved_T1.all():
        return None
    size_T1[unmoved_T1] = 1
    return (one_TN / size_T1).astype(np.float64), (other_TN / size_T1).astype(np.float64), settled


def _periodic_component(cells_TN: Floats, step_s: float) -> tuple[float, float, Floats] | None:
    """Lag in whole frames, share of the variance that returns after it (above chance), and the component, (T,), variance 1.

    The lag is no finer, since the period is then that of the tracked beats; a parabola through the peak changed nothing. None
    where nothing returns.
    """
    T = len(cells_TN)
    shortest, longest = 1 / FASTEST_HZ / step_s - 1e-6, min(1 / SLOWEST_HZ / step_s + 1e-6, T / 2)
    lags = np.arange(max(3.0, np.ceil(shortest)), np.floor(longest) + 1)
    if not len(lags):
        return None
    centred_TN = cells_TN - cells_TN.mean(axis=0)
    _, vectors_TT = np.linalg.eigh(centred_TN @ centred_TN.T)
    course_TK = vectors_TT[:, : -_COMPONENTS - 1 : -1] * np.sqrt(T)
    shares, weights = [], []
    for lag in lags:
        values_K, vectors_KK = np.linalg.eigh((_lagged(course_TK, lag) - _lagged(course_TK, lag / 2)) / 2)
        # about the largest eigenvalue of so many random numbers (Wigner's semicircle)
        chance = np.sqrt(_COMPONENTS / (T - lag))
        shares.append((values_K[-1] - chance) / (1 - chance) if chance < 1 else -1.0)
        weights.append(vectors_KK[:, -1])
    best = int(np.argmax(shares))
    if shares[best] <= 0:
        return None
    return float(lags[best]), float(shares[best]), course_TK @ weights[best]


def _lagged(course_TK: Floats, lag: float) -> Floats:
    """Symmetric covariance of the courses with themselves `lag` frames later, (K, K); between whole lags, in proportion."""
    below = int(lag)
    if lag > below:
        return (1 - lag + below) * _lagged(course_TK, below) + (lag - below) * _lagged(course_TK, below + 1)
    product_KK = course_TK[: len(course_TK) - below].T @ course_TK[below:] / (len(course_TK) - below)
    return (product_KK + product_KK.T) / 2


def _returning(component_T: Floats, lag: float) -> float:
    """Share of a course's variance that is alike after `lag` and unlike after half of it, at most about 1."""
    centred_T1 = (component_T - component_T.mean())[:, None]
    variance = float(np.square(centred_T1).mean())
    alike_11 = _lagged(centred_T1, lag) - _lagged(centred_T1, lag / 2)
    return alike_11.item() / (2 * variance) if variance else 0.0


def _agreement(one_TN: Floats, other_TN: Floats, component_T: Floats) -> float:
    """Share of the component's picture that both halves of the pixels show, 0 to 1.

    Noise that a detector's temporal filter coloured has sine waves for principal components, which return after their period:
    only this tells them from a heart.
    """
    one_N, other_N = component_T @ one_TN, component_T @ other_TN
    power = float(one_N @ one_N + other_N @ other_N)
    return max(0.0, 2 * float(one_N @ other_N) / power) if power else 0.0


def _analytic_phase(component_T: Floats, lag: float) -> Floats:
    """Phase in beats, never falling: that of the analytic signal from half the heart's frequency to 1.7 times it.

    The first and the last beat are repeated beyond the ends; mirrored there, as filters do by default, they turn back.
    """
    band = butter(2, [0.5 * 2 / lag, min(1.7 * 2 / lag, 0.95)], "bandpass", output="sos")
    beat = round(lag)
    longer_T = np.concatenate([np.tile(component_T[:beat], 3), component_T, np.tile(component_T[-beat:], 3)])
    signal_T = hilbert(sosfiltfilt(band, longer_T, padlen=beat))[3 * beat : -3 * beat]
    return np.maximum.accumulate(np.unwrap(np.angle(signal_T)) / (2 * np.pi))


def _turn(cells_TN: Floats, phase_T: Floats, parts: Sequence[slice]) -> float:
    """By how much the phase of the part with contrast must be turned to go on from the part before, beats.

    The component is one for both parts, but may have either sign in each. Both show the chest's and the heart's borders,
    and the heart moves and rests at the same phases: the turn at which the harmonics of the pictures over the beat, and
    those of their speed, agree best. A small one is left alone, since the tracked phase is the more exact; under two
    beats before contrast the harmonics are not found well enough to turn anything.
    """
    agreement = np.zeros(len(_TURNS))
    for curves in ([cells_TN[part] for part in parts], [_log_speed(cells_TN[part]) for part in parts]):
        one_QN, other_QN = (_harmonics(curve, phase_T[part]) for curve, part in zip(curves, parts, strict=True))
        size = np.linalg.norm(one_QN) * np.linalg.norm(other_QN)
        product_Q = (one_QN * other_QN.conj()).sum(axis=1) / max(float(size), 1e-12)
        agreement += np.real(np.exp(2j * np.pi * np.outer(_TURNS, _HARMONICS)) @ product_Q)
    turn = float(_TURNS[agreement.argmax()])
    return turn if abs(turn) >= 0.2 else 0.0


def _stillest(cells_TN: Floats, phase_T: Floats, parts: Sequence[slice]) -> float:
    """Phase at which the pictures change least, by the first harmonics of their speed over the beat."""
    found_Q = sum(_harmonics(_log_speed(cells_TN[part]), phase_T[part])[:, 0] for part in parts)
    speed = np.real(np.exp(2j * np.pi * np.outer(_TURNS, _HARMONICS)) @ found_Q)
    return float(_TURNS[speed.argmin()])


def _log_speed(cells_TN: Floats) -> Floats:
    """Logarithm of how fast the leading components change, less its mean, (T, 1); zeros where nothing does."""
    if len(cells_TN) < 2:
        return np.zeros((len(cells_TN), 1))
    left_TR, values_R, _ = np.linalg.svd(cells_TN - cells_TN.mean(axis=0), full_matrices=False)
    course_TK = (left_TR * values_R)[:, :_COMPONENTS]
    speed_T1 = np.linalg.norm(np.gradient(course_TK, axis=0), axis=1, keepdims=True)
    logarithm_T1 = np.log(np.maximum(speed_T1, 1e-9))
    return logarithm_T1 - logarithm_T1.mean()


def _harmonics(curves_TN: Floats, phase_T: Floats) -> NDArray[np.complex128]:
    """First Fourier coefficients of courses over the beat, (Q, N)."""
    return np.exp(-2j * np.pi * np.outer(_HARMONICS, phase_T)) @ curves_TN / max(len(phase_T), 1)


def _median_beat(phase_T: Floats, parts: Sequence[slice]) -> float | None:
    """Median length of the whole beats in the parts, frames; None where there is none."""
    lengths = []
    for part in parts:
        whole = np.arange(np.ceil(phase_T[part][0]), np.floor(phase_T[part][-1]) + 1)
        lengths += np.diff(np.interp(whole, phase_T[part], np.arange(len(phase_T[part])))).tolist()
    return float(np.median(lengths)) if lengths else None


def _irregularity(phase_T: Floats, period: float) -> Floats:
    """|log(length of the beat around each frame / period)|, (T,); NaN where half a beat to either side is not there."""
    when_T = np.arange(len(phase_T))
    after_T, before_T = (np.interp(phase_T + half, phase_T, when_T, left=np.nan, right=np.nan) for half in (0.5, -0.5))
    return np.abs(np.log(np.maximum(after_T - before_T, 0.1) / period))


def _wrapped(beats: Floats) -> Floats:
    """Differences of phase from -0.5 to 0.5."""
    return (beats + 0.5) % 1 - 0.5
