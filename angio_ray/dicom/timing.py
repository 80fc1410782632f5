"""When each frame of a clip was taken, from the attribute that says so (design 9; PS3.3 C.7.6.5, C.7.6.16.2.2).

Order: what FrameIncrementPointer names, then FrameTime, FrameTimeVector, the frames' own date-times (Enhanced XA),
CineRate, RecommendedDisplayFrameRate, EffectiveDuration, what the run assumes. A value that is not usable (zero, not
finite, a vector of another length) is passed over, never repaired. Knows no pixels and does no resampling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from angio_ray.dicom.header import DataSet

FRAME_INCREMENT_POINTER = 0x00280009
FRAME_TIME, FRAME_TIME_VECTOR = 0x00181063, 0x00181065

_MIN_INTERVAL_MS, _MAX_INTERVAL_MS = 0.5, 10_000.0
"""Between 2,000 and 0.1 frames/s: what lies outside is no frame time of an angiogram."""


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """Start of each frame, ms from the first, shape (N,); and the attribute that says so."""

    start_ms: np.ndarray
    source: str

    @property
    def interval_ms(self) -> float:
        """Mean time between frames, ms."""
        return float(self.start_ms[-1] / (len(self.start_ms) - 1))


def frame_times(
    dataset: DataSet, per_frame: list[DataSet], num_frames: int, *, assume_fps: float | None = None
) -> FrameTimes | None:
    """Frame times of a clip of at least two frames, or None where nothing says them.

    Parameters
    ----------
    dataset
        The object's data set.
    per_frame
        Items of its Per-frame Functional Groups Sequence; empty in plain XA.
    num_frames
        Frames of the object.
    assume_fps
        Frames/s to assume where the header does not say.
    """
    if num_frames < 2:
        return None
    readers = {FRAME_TIME: _from_frame_time, FRAME_TIME_VECTOR: _from_vector}
    named = readers.get(dataset.tag_value(FRAME_INCREMENT_POINTER) or 0)
    order = ([named] if named else []) + [reader for reader in readers.values() if reader is not named]
    for reader in order:
        if (times := reader(dataset, num_frames)) is not None:
            return times
    if (times := _from_date_times(per_frame, num_frames)) is not None:
        return times
    rates = (
        ("cine_rate", dataset.number(0x00180040, "IS")),
        ("recommended_display_frame_rate", dataset.number(0x00082144, "IS")),
        ("recommended_display_frame_rate", dataset.number(0x00089459, "FL")),  # its float form, in Enhanced XA
    )
    for source, rate in rates:
        if rate is not None and rate > 0 and (times := _regular(1000.0 / rate, num_frames, source)) is not None:
            return times
    seconds = dataset.number(0x00180072, "DS")  # EffectiveDuration, s, of all frames
    if seconds is not None and (times := _regular(1000.0 * seconds / num_frames, num_frames, "effective_duration")):
        return times
    return _regular(1000.0 / assume_fps, num_frames, "assumed") if assume_fps else None


def _regular(interval_ms: float, num_frames: int, source: str) -> FrameTimes | None:
    if not _MIN_INTERVAL_MS <= interval_ms <= _MAX_INTERVAL_MS:
        return None
    return FrameTimes(np.arange(num_frames) * interval_ms, source)


def _from_frame_time(dataset: DataSet, num_frames: int) -> FrameTimes | None:
    interval_ms = dataset.number(FRAME_TIME, "DS")
    return None if interval_ms is None else _regular(interval_ms, num_frames, "frame_time")


def _from_vector(dataset: DataSet, num_frames: int) -> FrameTimes | None:
    increments_ms = dataset.numbers(FRAME_TIME_VECTOR, "DS")
    if len(increments_ms) != num_frames:
        return None
    # The first increment is that of the first frame after nothing: 0 by the standard, passed over when it is not
    return _ascending(np.concatenate([[0.0], np.cumsum(increments_ms[1:])]), "frame_time_vector")


def _from_date_times(per_frame: list[DataSet], num_frames: int) -> FrameTimes | None:
    """Enhanced XA: FrameReferenceDateTime, else FrameAcquisitionDateTime, in each frame's Frame Content Sequence."""
    if len(per_frame) != num_frames:
        return None
    for tag in (0x00189151, 0x00189074):
        moments = []
        for group in per_frame:
            content = group.items(0x00209111)
            moment = _parse_date_time(content[0].text(tag)) if content else None
            if moment is None:
                break
            moments.append(moment)
        if len(moments) == num_frames:
            start_ms = np.array([(moment - moments[0]).total_seconds() * 1000.0 for moment in moments])
            if (times := _ascending(start_ms, "frame_date_time")) is not None:
                return times
    return None


def _ascending(start_ms: np.ndarray, source: str) -> FrameTimes | None:
    interval_ms = start_ms[-1] / (len(start_ms) - 1)
    if (np.diff(start_ms) < 0).any() or not _MIN_INTERVAL_MS <= interval_ms <= _MAX_INTERVAL_MS:
        return None
    return FrameTimes(start_ms, source)


def _parse_date_time(text: str | None) -> datetime | None:
    """A DT value down to the second at least (PS3.5 6.2); its zone is left out, since only differences count."""
    match = re.match(r"(\d{14})(?:\.(\d{1,6}))?", text or "", re.ASCII)
    if match is None:
        return None
    try:
        moment = datetime.strptime(match[1], "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return moment.replace(microsecond=int((match[2] or "0").ljust(6, "0")))
