"""Figures of regions against values found by hand, distances against MONAI's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from angio_ray.evaluation.regions import (
    RegionFigures,
    compare_regions,
    hausdorff,
    presence,
    signed_rank,
    spread,
    summarised,
)

EMPTY = np.zeros((100, 100), bool)


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[top:bottom, left:right] = True
    return mask


CALCIFICATION = box(40, 50, 40, 50)
TARGET = box(35, 55, 35, 55)


def test_figures_are_those_counted_by_hand() -> None:
    got = compare_regions(box(40, 60, 45, 65), CALCIFICATION, TARGET, imager_mm=(0.3, 0.3), patient_mm=(0.2, 0.2))
    assert got.iom == pytest.approx(50 / 100)
    assert got.covered == pytest.approx(50 / 100)
    assert got.relative_area == pytest.approx(400 / 400)
    assert got.dice == pytest.approx(2 * 15 * 10 / 800)
    corner = 15**2 + 10**2  # from the region's far corner (59, 64) to (49, 49)
    assert got.hausdorff_px == pytest.approx((corner) ** 0.5)
    assert got.hausdorff_imager_mm == pytest.approx(0.3 * corner**0.5)
    assert got.hausdorff_patient_mm == pytest.approx(0.2 * corner**0.5)


def test_the_whole_frame_has_the_best_iom_and_the_other_figures_tell() -> None:
    got = compare_regions(~EMPTY, CALCIFICATION, TARGET)
    assert (got.iom, got.covered, got.relative_area) == (1.0, 1.0, 25.0)
    assert got.dice == pytest.approx(800 / 10_400)
    assert got.hausdorff_px == pytest.approx(50 * 2**0.5)
    assert got.hausdorff_imager_mm is None
    assert got.hausdorff_patient_mm is None


def test_the_target_itself_is_as_far_away_as_it_was_dilated() -> None:
    got = compare_regions(TARGET, CALCIFICATION, TARGET)
    assert (got.iom, got.dice, got.relative_area) == (1.0, 1.0, 1.0)
    assert got.hausdorff_px == pytest.approx(5 * 2**0.5)


def test_a_missed_calcification_has_no_iom_but_covers_nothing() -> None:
    got = compare_regions(EMPTY, CALCIFICATION, TARGET, imager_mm=(0.3, 0.3))
    assert (got.has_region, got.has_calcification) == (False, True)
    assert (got.iom, got.hausdorff_px, got.hausdorff_imager_mm) == (None, None, None)
    assert (got.covered, got.relative_area, got.dice) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("region", [EMPTY, TARGET], ids=["neither", "false region"])
def test_without_calcification_nothing_is_defined(region: np.ndarray) -> None:
    got = compare_regions(region, EMPTY, EMPTY)
    assert (got.has_region, got.has_calcification) == (bool(region.any()), False)
    assert (got.iom, got.hausdorff_px, got.covered, got.relative_area, got.dice) == (None,) * 5


def test_masks_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_regions(EMPTY[:50], CALCIFICATION, TARGET)
    with pytest.raises(ValueError, match="does not hold"):
        compare_regions(TARGET, TARGET, CALCIFICATION)


@pytest.mark.parametrize("pixel", [(1.0, 1.0), (0.25, 0.4)])
def test_the_distance_is_monais(pixel: tuple[float, float]) -> None:
    from monai.metrics import compute_hausdorff_distance

    rng = np.random.default_rng(0)
    blobs = rng.random((6, 100, 100)) > 0.997
    masks = [np.asarray(np.kron(m[:20, :20], np.ones((5, 5))) > 0) for m in rng.random((4, 100, 100)) > 0.97]
    masks += [*blobs[:2], TARGET, ~EMPTY, box(0, 3, 90, 100)]
    compared = 0
    for a in masks:
        for b in masks:
            theirs = compute_hausdorff_distance(
                torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None], include_background=True, spacing=list(pixel)
            )
            assert hausdorff(a, b, pixel) == pytest.approx(float(theirs), rel=1e-5)
            compared += 1
    assert compared == 81


def figures(iom: float | None, **others: Any) -> RegionFigures:
    values: dict[str, Any] = dict.fromkeys(
        ("hausdorff_px", "hausdorff_imager_mm", "hausdorff_patient_mm", "covered", "relative_area", "dice")
    )
    return RegionFigures(**({"has_region": True, "has_calcification": True, "iom": iom} | values | others))


def test_each_patient_counts_once_and_frames_with_an_empty_side_apart() -> None:
    frames = [
        *(figures(0.9, covered=1.0) for _ in range(50)),
        figures(0.5, covered=0.4),
        figures(None, has_region=False, covered=0.0),
        figures(0.1, covered=0.1),
        figures(None, has_calcification=False),
        figures(None, has_calcification=False, has_region=False),
    ]
    got = summarised(frames, ["a"] * 50 + ["b", "b", "c", "d", "d"])
    assert (got.num_frames, got.num_both, got.num_missed, got.num_false, got.num_neither) == (55, 52, 1, 1, 1)
    iom, covered = got.figures["iom"], got.figures["covered"]
    assert (iom.num, iom.num_undefined) == (3, 1)
    assert (iom.lower_quartile, iom.median, iom.upper_quartile) == pytest.approx((0.3, 0.5, 0.7))
    assert covered.median == pytest.approx(0.2), "of patients with 1, 0.2 and 0.1"
    assert (got.figures["dice"].median, got.figures["dice"].num) == (None, 0)
    with pytest.raises(ValueError, match="2 groups for 1 rows"):
        summarised(frames[:1], ["a", "b"])


def test_nothing_has_no_median() -> None:
    got = spread([None, None])
    assert (got.median, got.lower_quartile, got.upper_quartile, got.num, got.num_undefined) == (None, None, None, 0, 2)
    assert summarised([], []).num_frames == 0


def test_verdicts_are_counted_by_patient_and_together() -> None:
    target = np.array([1, 1, 0, 0, 1, 0, 0, 0], bool)
    called = np.array([1, 0, 1, 0, 1, 0, 0, 0], bool)
    got = presence(target, called, list("aaaabbcc"))
    assert (got.pooled.true_positive, got.pooled.false_positive, got.pooled.false_negative) == (2, 1, 1)
    assert (got.pooled.true_negative, got.pooled.f1) == (4, pytest.approx(2 / 3))
    for found in (got.precision, got.recall, got.f1):
        assert (found.median, found.num, found.num_undefined) == (0.75, 2, 1)


def test_two_methods_are_compared_by_patient() -> None:
    rng = np.random.default_rng(2)
    a = rng.random(24)
    better = np.repeat(rng.normal(0.1, 0.1, 8), 3)
    got = signed_rank(a.tolist(), (a + better).tolist(), np.repeat(np.arange(8), 3))
    assert (got.num_patients, got.num_ties, got.num_left_out) == (8, 0, 0)
    assert got.median_difference == pytest.approx(np.median(better[::3]))
    assert got.p_value == pytest.approx(wilcoxon(better[::3]).pvalue)


def test_ties_and_patients_without_a_pair_are_counted() -> None:
    a = [0.5, 0.5, 0.5, None, 0.5, 0.25]
    b = [0.5, 0.75, None, 0.5, 0.25, 0.75]
    got = signed_rank(a, b, ["tie", "up", "out", "out", "down", "more"])
    assert (got.num_patients, got.num_ties, got.num_left_out) == (4, 1, 1)
    assert got.median_difference == pytest.approx(0.125)
    assert got.p_value == pytest.approx(wilcoxon([0.25, -0.25, 0.5]).pvalue)
    same = signed_rank([0.5, 0.6], [0.5, 0.6], ["a", "b"])
    assert (same.num_ties, same.p_value, same.median_difference) == (2, None, 0.0)
    none = signed_rank([None], [0.5], ["a"])
    assert (none.num_patients, none.num_left_out, none.p_value, none.median_difference) == (0, 1, None, None)
