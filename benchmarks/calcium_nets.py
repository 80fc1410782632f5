"""The calcification paper's comparison: several nets' regions on the same held-out clips, with Wilcoxon's test over patients.

    angio-ray train calcium --net NET --fold-set FOLDS --experiment NAME ...       once for each net, on the same folds
    python benchmarks/calcium_nets.py tables.training NAME NAME ...                the first is what the others are set against

Figures are medians and quartiles of patients, at the paper's sigma of 3; the paper's own comparison is not in hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from angio_ray.evaluation.regions import Spread, presence, signed_rank, summarised
from angio_ray.training.region_results import ClipRegions

SIGMA = 3
SHOWN = ("iom", "covered", "relative_area", "dice", "hausdorff_px", "hausdorff_patient_mm")
TESTED = ("iom", "covered", "dice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path, help="where the experiments' bundles lie")
    parser.add_argument("experiments", nargs="+")
    options = parser.parse_args()
    first: dict[str, dict[str, Any]] | None = None
    for name in options.experiments:
        rows = {
            row["clip_id"]: row
            for path in sorted((options.place / name / "regions").glob("fold-*.json"))
            for row in json.loads(path.read_text())
        }
        first = first or rows
        show(name, rows, first)


def show(name: str, rows: dict[str, dict[str, Any]], first: dict[str, dict[str, Any]]) -> None:
    clips = [ClipRegions.from_dict(row) for row in rows.values()]
    patients = [row["group_id"] for row in rows.values()]
    regions = summarised([clip.by_sigma[SIGMA] for clip in clips], patients)
    each = [patient for patient in patients for _ in range(5)]
    patches = presence(
        [holds for clip in clips for holds in clip.target_5], [called for clip in clips for called in clip.called_5], each
    )
    print(f"{name}: {len(clips)} clips of {len(set(patients))} patients")
    print(f"  patches: precision {said(patches.precision)}, recall {said(patches.recall)}, F1 {said(patches.f1)}")
    print(f"  {', '.join(f'{figure} {said(regions.figures[figure])}' for figure in SHOWN)}")
    print(f"  {regions.num_both} with both, {regions.num_missed} missed, {regions.num_false} false, {regions.num_neither} empty")
    if rows is first:
        return
    shared = sorted(rows.keys() & first.keys())
    for figure in TESTED:
        a, b = (
            [getattr(ClipRegions.from_dict(of[clip_id]).by_sigma[SIGMA], figure) for clip_id in shared] for of in (first, rows)
        )
        test = signed_rank(a, b, [rows[clip_id]["group_id"] for clip_id in shared])
        p = "not defined" if test.p_value is None else f"{test.p_value:.3g}"
        difference = "not defined" if test.median_difference is None else f"{test.median_difference:+.3f}"
        print(f"  {figure} against the first: {difference}, p {p} ({test.num_patients} patients, {test.num_ties} alike)")


def said(spread: Spread) -> str:
    values = (spread.median, spread.lower_quartile, spread.upper_quartile)
    middle, low, high = ("-" if value is None else f"{value:.2f}" for value in values)
    return f"{middle} ({low}-{high})"


if __name__ == "__main__":
    main()
