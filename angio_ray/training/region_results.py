"""What a fold of nets of regions comes to: each clip's region against its outline, and figures over patients (spec section 4).

    what the net says of a pair, outline -> clip_regions -> ClipRegions -> region_figures (a fold), region_lines (all folds)

Knows nothing of Ray, pixels of clips, or folders.

Shapes: H x W pixels, P px a patch's side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from angio_ray.evaluation.regions import FIGURES, RegionFigures, compare_regions, presence, summarised
from angio_ray.evaluation.thresholds import Rule, choose_threshold
from angio_ray.models.calcium import final_region, taken_apart
from angio_ray.training.paired_frames import mask_of
from angio_ray.training.regions import holds_calcification, kernel_at, target_region
from angio_ray.training.stenosis_results import stated_rows

SIGMAS = (1, 3, 5)
"""Of the Gaussian filter that refines a region, px: those of the paper, which reports the second."""
_REPORTED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRegions:
    """One clip's pair."""

    by_sigma: Mapping[int, RegionFigures]
    called_5: tuple[bool, ...]
    """Patches at or above the threshold, ..."""
    target_5: tuple[bool, ...]
    """... and those that hold calcification."""
    region_mm2: float | None
    target_mm2: float | None
    """Areas of the refined region, at the reported sigma, and of the region to be found; None without the size of a pixel."""

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ClipRegions:
        """What `asdict` and JSON made of one."""
        by_sigma = {int(sigma): RegionFigures(**figures) for sigma, figures in stored["by_sigma"].items()}
        lists = {name: tuple(stored[name]) for name in ("called_5", "target_5")}
        return cls(by_sigma=by_sigma, **lists, region_mm2=stored["region_mm2"], target_mm2=stored["target_mm2"])


def clip_regions(
    said_X: NDArray[np.float32],
    outline_HW: NDArray[np.bool_],
    threshold: float,
    dilations: int,
    pixel_mm: tuple[float, float] | None,
) -> ClipRegions:
    """Compare what a net says of a pair with the outline of its first frame, both squares at the net's size."""
    size = len(outline_HW)
    _, verdict_5, region_5PP = taken_apart(said_X, size)
    target = target_region(outline_HW, iterations=dilations, kernel=kernel_at(size))
    regions = {sigma: final_region(verdict_5, region_5PP, threshold, size, sigma=sigma) for sigma in SIGMAS}
    return ClipRegions(
        by_sigma={
            sigma: compare_regions(region, outline_HW, target, patient_mm=pixel_mm) for sigma, region in regions.items()
        },
        called_5=tuple((verdict_5 >= np.float32(threshold)).tolist()),
        target_5=tuple(holds_calcification(torch.from_numpy(outline_HW)[None], size).tolist()),
        region_mm2=None if pixel_mm is None else float(regions[_REPORTED].sum() * pixel_mm[0] * pixel_mm[1]),
        target_mm2=None if pixel_mm is None else float(target.sum() * pixel_mm[0] * pixel_mm[1]),
    )


def choose_region_threshold(
    verdict_N5: NDArray[np.float32], outlines: Sequence[bytes], *, size: int, rule: Rule, at_least: float | None
) -> tuple[float, str]:
    """The operating threshold of these (validation) pairs, and at which level it was chosen: of their patches, since each is
    called, or cleared, by itself; where these do not allow it, of the pairs, each as its worst patch.

    outlines: calcification in the first frames, as PNG; size: of the net's frames, px. ValueError as `choose_threshold`.
    """
    outlined = [mask_of(png, size) for png in outlines]
    holds_N5 = np.stack([holds_calcification(torch.from_numpy(mask_HW)[None], size).numpy() for mask_HW in outlined])
    try:
        return choose_threshold(holds_N5.flatten(), verdict_N5.flatten(), rule=rule, at_least=at_least).threshold, "patches"
    except ValueError:
        calcified_N = [mask_HW.any() for mask_HW in outlined]
        return choose_threshold(calcified_N, verdict_N5.max(axis=1), rule=rule, at_least=at_least).threshold, "clips"


def region_figures(clips: Sequence[ClipRegions], patients: Sequence[str]) -> dict[str, float | None]:
    """Medians over patients of the regions' figures, at each sigma; precision, recall and F1 of all patches together."""
    figures: dict[str, float | None] = {}
    for sigma in SIGMAS:
        summary = summarised([clip.by_sigma[sigma] for clip in clips], patients)
        for name in FIGURES:
            figures[f"region_{name}_sigma{sigma}"] = summary.figures[name].median
        if sigma == _REPORTED:
            counts = ("num_both", "num_missed", "num_false", "num_neither")
            figures |= {f"region_{name}": float(getattr(summary, name)) for name in counts}
    pooled = _patches(clips, patients).pooled
    return figures | {"patch_precision": pooled.precision, "patch_recall": pooled.sensitivity, "patch_f1": pooled.f1}


def region_rows(metrics: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Rows of `metrics` of regions and patches, by fold and over them, from what each fold's bundle states."""
    return [
        *stated_rows(metrics, "test_region_", "", {"subgroup": "regions", "subgroup_value": "median of the patients"}),
        *stated_rows(metrics, "test_patch_", "", {"subgroup": "level", "subgroup_value": "patch"}),
    ]


def regions_json(clips: Sequence[ClipRegions], clip_ids: Sequence[str], patients: Sequence[str]) -> bytes:
    """A fold's regions, for comparisons between nets on the same clips."""
    rows = [
        {"clip_id": clip_id, "group_id": patient, **asdict(clip)}
        for clip, clip_id, patient in zip(clips, clip_ids, patients, strict=True)
    ]
    return json.dumps(rows).encode()


def region_lines(folds: Sequence[bytes]) -> list[str]:
    """What to tell the user of the regions of all folds, each a `regions_json`."""
    rows = [row for fold in folds for row in json.loads(fold)]
    clips, patients = [ClipRegions.from_dict(row) for row in rows], [row["group_id"] for row in rows]
    patches = _patches(clips, patients)
    lines = [
        f"  patches: precision {_three(patches.precision)}, recall {_three(patches.recall)}, F1 {_three(patches.f1)} "
        f"(median and quartiles of patients); all together F1 {_said(patches.pooled.f1)}"
    ]
    for sigma in SIGMAS:
        found = summarised([clip.by_sigma[sigma] for clip in clips], patients)
        defined = [name for name in FIGURES if found.figures[name].num]
        shown = ", ".join(f"{name.replace('_', ' ')} {_three(found.figures[name])}" for name in defined)
        lines.append(
            f"  regions, sigma {sigma}: {shown}; {found.num_both:,} frames with both, {found.num_missed:,} missed, "
            f"{found.num_false:,} false, {found.num_neither:,} with neither"
        )
    return lines


def _patches(clips: Sequence[ClipRegions], patients: Sequence[str]) -> Any:
    target = [holds for clip in clips for holds in clip.target_5]
    called = [verdict for clip in clips for verdict in clip.called_5]
    return presence(target, called, np.repeat(np.asarray(patients, object), 5).tolist())


def _three(spread: Any) -> str:
    return f"{_said(spread.median)} ({_said(spread.lower_quartile)}-{_said(spread.upper_quartile)})"


def _said(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
