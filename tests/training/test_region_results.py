"""A fold's regions: thresholds by patches, figures of clips and patients, and what is stored of them."""

from __future__ import annotations

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest

from angio_ray.training.region_results import (
    ClipRegions,
    choose_region_threshold,
    clip_regions,
    region_figures,
    region_lines,
    regions_json,
)
from angio_ray.training.regions import kernel_at, target_region

SIZE = 128
PATCH = SIZE // 2
CORNERS = ((0, 0), (0, PATCH), (PATCH, 0), (PATCH, PATCH), (PATCH // 2, PATCH // 2))


def outline(y: int | None = 20, x: int = 20) -> np.ndarray:
    """A calcification of 6 x 10 px; `y` None: none."""
    found = np.zeros((SIZE, SIZE), np.bool_)
    if y is not None:
        found[y : y + 6, x : x + 10] = True
    return found


def said(verdict_5: list[float], region_HW: np.ndarray) -> np.ndarray:
    """What a net says that calls these patches and this region."""
    pixels = [region_HW[y : y + PATCH, x : x + PATCH].astype(np.float32).ravel() for y, x in CORNERS]
    best = max(verdict_5)
    return np.concatenate([[1 - best, best], verdict_5, *pixels]).astype(np.float32)


def png(mask_HW: np.ndarray) -> bytes:
    return cv2.imencode(".png", 255 * mask_HW.astype(np.uint8))[1].tobytes()


def test_the_threshold_is_chosen_by_patches_else_by_clips() -> None:
    outlines = [png(outline()), png(outline(100, 100))]  # in the first patch, in the fourth
    verdicts = np.array([[0.7, 0.2, 0.1, 0.3, 0.3], [0.4, 0.1, 0.2, 0.6, 0.45]], np.float32)
    threshold, level = choose_region_threshold(verdicts, outlines, size=SIZE, rule="youden", at_least=None)
    assert 0.45 < threshold <= 0.6
    assert level == "patches"
    # a patch of each clip says 1, so that none but that of the calcified clip can be told from the others
    sure = np.array([[1.0, 1.0, 0.1, 0.1, 0.1], [0.5, 0.1, 0.1, 0.1, 0.1]], np.float32)
    both = [png(outline()), png(outline(None))]
    assert choose_region_threshold(sure, both, size=SIZE, rule="specificity", at_least=1.0)[1] == "clips"
    with pytest.raises(ValueError, match="without a positive one"):
        choose_region_threshold(verdicts[:1], [png(outline(None))], size=SIZE, rule="youden", at_least=None)


def test_a_region_is_judged_by_its_outline_and_a_patch_that_is_not_called_has_none() -> None:
    target = target_region(outline(), iterations=2, kernel=kernel_at(SIZE))
    found = clip_regions(said([0.9, 0.1, 0.1, 0.1, 0.1], target), outline(), 0.5, 2, (0.3, 0.2))
    assert found.called_5 == found.target_5 == (True, False, False, False, False)
    assert found.target_mm2 == pytest.approx(target.sum() * 0.06)
    assert found.by_sigma[3].covered == 1.0
    assert found.by_sigma[3].dice is not None
    assert found.by_sigma[3].dice > 0.8
    missed = clip_regions(said([0.4, 0.1, 0.1, 0.1, 0.1], target), outline(), 0.5, 2, None)
    assert (missed.by_sigma[3].has_region, missed.by_sigma[3].covered, missed.region_mm2) == (False, 0.0, None)


def test_figures_are_of_patients_and_come_back_from_what_is_stored() -> None:
    target = target_region(outline(), iterations=2, kernel=kernel_at(SIZE))
    nothing = np.zeros_like(target)
    clips = [
        clip_regions(said([0.9, 0.1, 0.1, 0.1, 0.1], target), outline(), 0.5, 2, None),
        clip_regions(said([0.4, 0.6, 0.1, 0.1, 0.1], nothing), outline(), 0.5, 2, None),
        clip_regions(said([0.1] * 5, nothing), outline(None), 0.5, 2, None),
    ]
    figures = region_figures(clips, ["a", "b", "c"])
    counts = {name: figures[f"region_num_{name}"] for name in ("both", "missed", "false", "neither")}
    assert counts == {"both": 1, "missed": 1, "false": 0, "neither": 1}
    assert (figures["patch_precision"], figures["patch_recall"], figures["patch_f1"]) == (0.5, 0.5, 0.5)
    stored = regions_json(clips, ["1", "2", "3"], ["a", "b", "c"])
    assert [ClipRegions.from_dict(row) for row in json.loads(stored)] == clips
    assert json.loads(stored)[0]["called_5"] == list(asdict(clips[0])["called_5"])
    assert "all together F1 0.500" in region_lines([stored])[0]
