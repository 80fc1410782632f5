"""Which frames of a clip a model sees, and at which size: the window of the quality paper, by time and not by index.

Source of the window: spec section 1 (32 frames at 15/s from the 16th, every second one; the 2D nets every eighth).
Knows nothing of DICOM, files or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from angio_ray.clip import ClipRejected, Reason

MIN_FRAMES = 4
"""Below so many frames at the window's rate a clip shows no motion to judge: `too_short`."""

_SAME_RATE = 0.02
"""A recorded rate this close to the window's (15/s is written as 66, 66.67 or 67 ms) is that rate: frames stay as they are."""

_MAX_RESAMPLED = 100_000
"""Bound on the frames a resampled clip may count (111 minutes at 15/s), against absurd recorded times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipWindow:
    """The part of a clip that one model looks at, in frames at `fps`, as squares of `size` px."""

    name: str
    size: int
    """Height and width of the input, px."""
    fps: float = 15.0
    """Rate the clip is resampled to, frames/s."""
    start: int = 15
    """First frame, counted from 0: the paper's "16th frame"."""
    length: int = 32
    stride: int = 2

    def __post_init__(self) -> None:
        if min(self.size, self.length, self.stride) < 1 or self.start < 0 or not 0 < self.fps < float("inf"):
            raise ValueError(f"window {self.name!r}: size, length, stride and fps must be positive, start not negative")
        if self.stride > self.length:
            raise ValueError(f"window {self.name!r}: stride {self.stride} exceeds length {self.length}")

    @property
    def num_frames(self) -> int:
        """Frames the model gets, T."""
        return self.length // self.stride


@dataclass(frozen=True, slots=True)
class Selection:
    """The frames of a file that one window shows."""

    indices: tuple[int, ...]
    """Frames of the file, counted from 0, in the order shown; `window.num_frames` of them."""
    num_repeated: int
    """How many of them show a file frame already shown (padding of a short clip, or a rate below the window's)."""
    num_resampled: int
    """Frames the whole clip has at the window's rate."""
    num_shown: int
    """Frames of the input that are samples of the clip; the rest repeats the last of them (padding of a short clip)."""


def select_frames(frame_times_ms: Sequence[float] | np.ndarray, window: ClipWindow) -> Selection:
    """Choose the frames of a clip that a window shows.

    Sample k of the clip at the window's rate is the file frame nearest to k / fps (the earlier of two as near). With
    `length` samples or more the window starts at `start`, or earlier where the clip ends before the window does. With
    fewer, every `stride`-th of what there is, then the last of these again and again.

    Parameters
    ----------
    frame_times_ms
        Start time of each frame of the file, ms, ascending, shape (N,).
    window
        What to select.

    Raises
    ------
    ClipRejected
        `too_short`: fewer than 4 frames at the window's rate.
    ValueError
        Times that are not finite or not ascending.
    """
    resampled = _resample(np.asarray(frame_times_ms, dtype=np.float64), window.fps)
    if len(resampled) < MIN_FRAMES:
        raise ClipRejected(Reason.TOO_SHORT, f"{len(resampled)} frames at {window.fps:g}/s, {MIN_FRAMES} needed")
    if len(resampled) >= window.length:
        start = min(window.start, len(resampled) - window.length)
        picked = resampled[start : start + window.length : window.stride][: window.num_frames]
    else:
        picked = resampled[:: window.stride][: window.num_frames]
    num_shown = len(picked)
    picked = np.pad(picked, (0, window.num_frames - num_shown), mode="edge")
    indices = tuple(int(i) for i in picked)
    return Selection(
        indices,
        num_repeated=len(indices) - len(set(indices)),
        num_resampled=len(resampled),
        num_shown=num_shown,
    )


def select_named(frames: Sequence[int], num_frames: int, window: ClipWindow) -> Selection:
    """Show frames that are named one by one, in their order, as many as the window has room for.

    Those beyond the file's `num_frames` are left out; where there are fewer than the window shows, the last stands again.
    ClipRejected (`too_short`) where the file has none of them.
    """
    there = [frame for frame in frames if 0 <= frame < num_frames][: window.num_frames]
    if not there:
        raise ClipRejected(Reason.TOO_SHORT, f"{num_frames} frames, and none of the {len(frames)} asked for")
    indices = (*there, *[there[-1]] * (window.num_frames - len(there)))
    return Selection(
        indices,
        num_repeated=len(indices) - len(set(indices)),
        num_resampled=num_frames,
        num_shown=len(there),
    )


def _resample(times_ms: np.ndarray, fps: float) -> np.ndarray:
    """File frame of each sample at `fps`, shape (number of samples,)."""
    if times_ms.ndim != 1 or not np.isfinite(times_ms).all() or (np.diff(times_ms) < 0).any():
        raise ValueError("frame times must be one ascending row of finite numbers")
    if len(times_ms) < 2:
        return np.arange(len(times_ms))
    period_ms = 1000.0 / fps
    if (np.abs(np.diff(times_ms) / period_ms - 1.0) <= _SAME_RATE).all():
        return np.arange(len(times_ms))
    times_ms = times_ms - times_ms[0]
    num_samples = min(int(times_ms[-1] / period_ms + 1e-6) + 1, _MAX_RESAMPLED)
    sample_ms = np.arange(num_samples) * period_ms
    right = np.clip(np.searchsorted(times_ms, sample_ms), 1, len(times_ms) - 1)
    # 1e-6 ms: at 30/s a sample lies exactly on a frame, and rounding must not choose its neighbour
    nearer_left = sample_ms - times_ms[right - 1] <= times_ms[right] - sample_ms + 1e-6
    return right - nearer_left


def resize_frame(frame_HW: np.ndarray, size: int) -> np.ndarray:
    """One uint8 frame as a square of `size` px: area averaging where it shrinks, bilinear where it grows.

    A frame that is not square is stretched, as the nets' square inputs ask.
    """
    if frame_HW.shape == (size, size):
        return frame_HW
    shrinks = frame_HW.shape[0] >= size and frame_HW.shape[1] >= size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(frame_HW, (size, size), interpolation=interpolation)


def resize_frames(frames_THW: np.ndarray, size: int) -> np.ndarray:
    """Frames as squares of `size` px, shape (T, size, size) uint8; see `resize_frame`."""
    resized = np.empty((len(frames_THW), size, size), dtype=np.uint8)
    for index, frame_HW in enumerate(frames_THW):
        resized[index] = resize_frame(frame_HW, size)
    return resized
