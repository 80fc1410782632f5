"""Figures of regions of interest around calcifications (calcification paper, spec section 4).

    masks of a frame -> compare_regions -> RegionFigures -> summarised by patient or fold -> RegionSummary
    two methods on the same frames -> signed_rank

IoM = |A & B| / min(|A|, |B|) of region A and the undilated calcification B rewards large regions: the whole frame has 1. So
beside it stand the calcified area covered, the region's size against the target region's, and their Dice. Undefined is None,
never NaN, and counted. Knows no nets or files.
Shapes: H x W pixels, N frames (or patches, or clips), G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import directed_hausdorff
from scipy.stats import wilcoxon

from angio_ray.evaluation.bootstrap import number_patients
from angio_ray.evaluation.metrics import Confusion, binary_metrics, ratio

Mask = NDArray[np.bool_]
PixelSize = tuple[float, float]
"""Height and width of a pixel of the masks, mm; of masks resampled to 512 px, not the file's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionFigures:
    """One frame: the final region A, the calcification B, the target region (B dilated)."""

    has_region: bool
    has_calcification: bool
    iom: float | None
    """None where A or B is empty, as the distances."""
    hausdorff_px: float | None
    """Largest distance of a point of one outline to the other outline. Of a perfect region it is how far B was dilated."""
    hausdorff_imager_mm: float | None
    """At the detector, as the header's spacing is; None without it."""
    hausdorff_patient_mm: float | None
    """At the patient; None without the distances of the source."""
    covered: float | None
    """Share of B that lies in A; 0 where A is empty, None where B is."""
    relative_area: float | None
    """|A| over that of the target region; 0 where A is empty, None where B is."""
    dice: float | None
    """Of A and the target region; 0 where A is empty, None where B is."""


FIGURES = ("iom", "hausdorff_px", "hausdorff_imager_mm", "hausdorff_patient_mm", "covered", "relative_area", "dice")


def compare_regions(
    region_HW: Mask,
    calcification_HW: Mask,
    target_HW: Mask,
    *,
    imager_mm: PixelSize | None = None,
    patient_mm: PixelSize | None = None,
) -> RegionFigures:
    """Compare one frame's final region with the truth.

    Parameters
    ----------
    region_HW, calcification_HW, target_HW
        The refined region, the undilated calcification, and what the decoder was to find (the latter dilated).
    imager_mm, patient_mm
        Size of a pixel in the plane of the detector and in that of the patient; None where it is not known.

    Raises
    ------
    ValueError
        Masks of different shapes, or a target that does not hold the calcification.
    """
    a, b, target = (np.asarray(mask, bool) for mask in (region_HW, calcification_HW, target_HW))
    if not a.shape == b.shape == target.shape:
        raise ValueError(f"masks of {a.shape}, {b.shape} and {target.shape} cannot be compared")
    if (b & ~target).any():
        raise ValueError("the target region does not hold the calcification")
    size_a, size_b, both = int(a.sum()), int(b.sum()), int((a & b).sum())
    return RegionFigures(
        has_region=size_a > 0,
        has_calcification=size_b > 0,
        iom=ratio(both, min(size_a, size_b)),
        hausdorff_px=hausdorff(a, b),
        hausdorff_imager_mm=None if imager_mm is None else hausdorff(a, b, imager_mm),
        hausdorff_patient_mm=None if patient_mm is None else hausdorff(a, b, patient_mm),
        covered=ratio(both, size_b),
        relative_area=ratio(size_a, int(target.sum())) if size_b else None,
        dice=ratio(2 * int((a & target).sum()), size_a + int(target.sum())) if size_b else None,
    )


def hausdorff(a_HW: Mask, b_HW: Mask, pixel: PixelSize = (1.0, 1.0)) -> float | None:
    """Hausdorff distance between the outlines of two masks, in the unit of `pixel` (height, width); None where one is empty.

    An outline is the pixels of a mask that have one beside them outside it or lie at the picture's edge, as MONAI takes it.
    """
    if not a_HW.any() or not b_HW.any():
        return None
    a, b = (np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(pixel) for mask in (a_HW, b_HW))
    return float(max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A figure over groups."""

    median: float | None
    """None where no group has the figure, as the quartiles."""
    lower_quartile: float | None
    upper_quartile: float | None
    num: int
    num_undefined: int
    """Groups without it, which do not enter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionSummary:
    """Frames by what they have, and figures over groups (patients, or folds), each with the median of its frames."""

    num_frames: int
    num_both: int
    """Calcification and a region: the frames of IoM and distances."""
    num_missed: int
    """Calcification and no region: no IoM, no distance, but nothing covered and a Dice of 0."""
    num_false: int
    """A region without any calcification: in no figure."""
    num_neither: int
    figures: Mapping[str, Spread]
    """Of FIGURES."""


def summarised(frames: Sequence[RegionFigures], groups_N: ArrayLike) -> RegionSummary:
    """Median and quartiles over the groups (patients or folds) that the frames belong to, so that long clips count no more.

    Raises ValueError for frames without a group, or lists of unequal length.
    """
    number, num_groups = _grouped(len(frames), groups_N)

    def over_groups(name: str) -> Spread:
        return spread(_medians([getattr(frame, name) for frame in frames], number, num_groups))

    truth_and_call = [(frame.has_calcification, frame.has_region) for frame in frames]
    return RegionSummary(
        num_frames=len(frames),
        num_both=truth_and_call.count((True, True)),
        num_missed=truth_and_call.count((True, False)),
        num_false=truth_and_call.count((False, True)),
        num_neither=truth_and_call.count((False, False)),
        figures={name: over_groups(name) for name in FIGURES},
    )


def spread(values: Sequence[float | None]) -> Spread:
    """Median and quartiles (interpolated linearly) of what is defined."""
    defined = [value for value in values if value is not None]
    low, middle, high = np.quantile(defined, (0.25, 0.5, 0.75)).tolist() if defined else (None, None, None)
    return Spread(
        median=middle,
        lower_quartile=low,
        upper_quartile=high,
        num=len(defined),
        num_undefined=len(values) - len(defined),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PresenceSummary:
    """Verdicts of patches, or of clips: is there calcification."""

    pooled: Confusion
    """Of all rows together."""
    precision: Spread
    """Over groups, as the next; undefined in a group where nothing is called."""
    recall: Spread
    """Undefined in a group without calcification."""
    f1: Spread
    """Undefined in a group where nothing is there and nothing is called."""


def presence(target_N: ArrayLike, called_N: ArrayLike, groups_N: ArrayLike) -> PresenceSummary:
    """Precision, recall and F1 over the groups (patients or folds) of N patches or clips; targets and calls are booleans.

    Raises ValueError as `summarised` and `binary_metrics`.
    """
    target, called = np.asarray(target_N, bool), np.asarray(called_N, bool)
    number, num_groups = _grouped(len(target), groups_N)

    def confusion(rows: NDArray[np.intp] | slice) -> Confusion:
        return binary_metrics(target[rows], called[rows].astype(float), 0.5).confusion

    each = [confusion(np.flatnonzero(number == group)) for group in range(num_groups)]
    return PresenceSummary(
        pooled=confusion(slice(None)),
        precision=spread([found.precision for found in each]),
        recall=spread([found.sensitivity for found in each]),
        f1=spread([found.f1 for found in each]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedRank:
    """Wilcoxon's signed-rank test of two methods over patients."""

    num_patients: int
    """With the figure under both methods."""
    num_ties: int
    """Of these, with the same value under both: they do not enter the test."""
    num_left_out: int
    """Patients without a frame in which both methods have the figure."""
    median_difference: float | None
    """B less A; None without patients."""
    p_value: float | None
    """Two-sided; None where no patient differs. Below 6 patients that differ it cannot reach 0.05."""


def signed_rank(a_N: Sequence[float | None], b_N: Sequence[float | None], patients_N: ArrayLike) -> SignedRank:
    """Compare a figure of two methods on the same N frames; a patient has one value, the median of the frames' differences B - A.

    A frame where either method lacks the figure does not enter; so beside IoM and distances, which flatter a method that misses
    the hard frames, compare `covered` or `dice`, which missed regions have too. Raises ValueError as `summarised`.
    """
    if len(a_N) != len(b_N):
        raise ValueError(f"{len(a_N)} and {len(b_N)} frames cannot be paired")
    number, num_patients = _grouped(len(a_N), patients_N)
    differences = [None if a is None or b is None else b - a for a, b in zip(a_N, b_N, strict=True)]
    by_patient = _medians(differences, number, num_patients)
    d = np.array([value for value in by_patient if value is not None])
    ties = int((d == 0).sum())
    return SignedRank(
        num_patients=len(d),
        num_ties=ties,
        num_left_out=num_patients - len(d),
        median_difference=float(np.median(d)) if len(d) else None,
        p_value=float(wilcoxon(d[d != 0]).pvalue) if len(d) > ties else None,
    )


def _grouped(num_rows: int, groups_N: ArrayLike) -> tuple[NDArray[np.int64], int]:
    number, num_groups = number_patients(groups_N)
    if len(number) != num_rows:
        raise ValueError(f"{len(number)} groups for {num_rows} rows")
    return number, num_groups


def _medians(values: Sequence[float | None], number: NDArray[np.int64], num_groups: int) -> list[float | None]:
    """Of each group, over its rows that have a value."""
    rows: list[list[float]] = [[] for _ in range(num_groups)]
    for value, group in zip(values, number, strict=True):
        if value is not None:
            rows[group].append(value)
    return [float(np.median(found)) if found else None for found in rows]
