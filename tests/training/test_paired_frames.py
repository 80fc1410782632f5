from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from angio_ray.models.heart_phase import NO_FULL_CONTRAST, NO_PRECONTRAST_FRAMES
from angio_ray.training.paired_frames import mask_of, paired_frames
from tests.models.test_calcium import PERIOD, beating


def png(mask: np.ndarray) -> bytes:
    return cv2.imencode(".png", 255 * mask.astype(np.uint8))[1].tobytes()


def row(**changes: Any) -> dict[str, Any]:
    masks = [{"frame": frame, "png": png(np.eye(8))} for frame in (5, 20, 31)]
    return {"first_contrast": 45, "contrast_begin": 57, "contrast_end": 85, "calcification_masks": masks} | changes


def test_each_outlined_frame_gets_a_partner_of_its_phase_nearest_first() -> None:
    pairs, why = paired_frames(row(), beating(), np.arange(90))
    assert why is None
    assert sorted(pair.frames[0] for pair in pairs) == [5, 20, 31]
    for pair in pairs:
        assert 57 <= pair.frames[1] <= 85
        apart = (pair.frames[1] - pair.frames[0]) % PERIOD
        assert min(apart, PERIOD - apart) <= 2
    assert [pair.difference_frames for pair in pairs] == sorted(pair.difference_frames for pair in pairs)


def test_frames_are_the_files_own() -> None:
    pairs, _ = paired_frames(
        row(first_contrast=90, contrast_begin=114, contrast_end=170, calcification_masks=[{"frame": 10, "png": png(np.eye(8))}]),
        beating(), 2 * np.arange(90),
    )  # fmt: skip
    assert [pair.frames[0] for pair in pairs] == [10]
    assert 114 <= pairs[0].frames[1] <= 170


def test_why_there_is_no_pair_is_told() -> None:
    assert paired_frames(row(first_contrast=8), beating(), np.arange(90)) == ([], NO_PRECONTRAST_FRAMES)
    assert paired_frames(row(calcification_masks=None), beating(), np.arange(90)) == ([], None)
    late = row(first_contrast=300, contrast_begin=320, contrast_end=350)
    assert paired_frames(late, beating(), np.arange(90)) == ([], NO_FULL_CONTRAST), "beyond what is looked at"
    beyond = row(calcification_masks=[{"frame": 95, "png": png(np.eye(8))}])
    assert paired_frames(beyond, beating(), np.arange(90)) == ([], None)


def test_a_mask_of_another_size_keeps_what_covers_a_quarter_of_a_pixel() -> None:
    mask = np.zeros((64, 64), bool)
    mask[8:10, 8:10], mask[40, 40] = True, True
    small = mask_of(png(mask), 16)
    assert small.sum() == 1
    assert small[2, 2]
    assert mask_of(png(mask), 64).sum() == 5
    with pytest.raises(ValueError, match="no PNG"):
        mask_of(b"\x89PNG\r\n\x1a\n", 16)
