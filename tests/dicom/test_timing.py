"""Frame times: the attribute that is named comes first, what is not usable is passed over, nothing is invented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from angio_ray.dicom.header import Source, parse_object
from angio_ray.dicom.timing import FrameTimes, frame_times
from tests.dicom.objects import moving_frames, xa_bytes

FRAMES = moving_frames(5, 8, 8)
VECTOR, TIME = 0x00181065, 0x00181063


def read(assume_fps: float | None = None, **attributes: Any) -> FrameTimes | None:
    data = xa_bytes(FRAMES, **({"FrameTime": None, "FrameIncrementPointer": None} | attributes))
    dataset = parse_object(Source(data, len(data), len(data)), max_inflated_bytes=1).dataset
    return frame_times(dataset, [], len(FRAMES), assume_fps=assume_fps)


UNEVEN = ["0", "30", "40", "30", "40"]


@pytest.mark.parametrize(
    ("attributes", "source", "start_ms"),
    [
        ({"FrameTime": "40", "FrameIncrementPointer": TIME}, "frame_time", [0, 40, 80, 120, 160]),
        ({"FrameTimeVector": UNEVEN, "FrameIncrementPointer": VECTOR}, "frame_time_vector", [0, 30, 70, 100, 140]),
        (
            {"FrameTimeVector": UNEVEN, "FrameTime": "40", "FrameIncrementPointer": VECTOR},
            "frame_time_vector",
            [0, 30, 70, 100, 140],
        ),
        ({"FrameTimeVector": UNEVEN, "FrameTime": "40"}, "frame_time", [0, 40, 80, 120, 160]),
        ({"FrameTimeVector": UNEVEN, "FrameTime": "0"}, "frame_time_vector", [0, 30, 70, 100, 140]),
        ({"FrameTimeVector": UNEVEN[:3], "CineRate": 10}, "cine_rate", [0, 100, 200, 300, 400]),
        ({"CineRate": 20, "RecommendedDisplayFrameRate": 10}, "cine_rate", [0, 50, 100, 150, 200]),
        ({"CineRate": 0, "RecommendedDisplayFrameRate": 10}, "recommended_display_frame_rate", [0, 100, 200, 300, 400]),
        ({"EffectiveDuration": "0.5"}, "effective_duration", [0, 100, 200, 300, 400]),
        ({"FrameTime": "100000", "CineRate": 10}, "cine_rate", [0, 100, 200, 300, 400]),
        ({"assume_fps": 10.0}, "assumed", [0, 100, 200, 300, 400]),
    ],
)
def test_source_and_times(attributes: dict, source: str, start_ms: list[float]) -> None:
    times = read(**attributes)
    assert times is not None
    assert times.source == source
    assert np.allclose(times.start_ms, start_ms)
    assert times.interval_ms == pytest.approx(start_ms[-1] / 4)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"FrameTime": "0"},
        {"FrameTime": "-40"},
        {"CineRate": -3},
        {"FrameTimeVector": ["0", "40", "-90", "40", "40"]},
    ],
)
def test_without_a_usable_attribute_there_is_no_time(attributes: dict) -> None:
    assert read(**attributes) is None
