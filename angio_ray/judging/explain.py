"""One clip, to look at: what a run said of it, and the frames that the model saw with what it looked at.

    clip_id -> its row of `scores` -> where it lies -> frames, heat -> animated WebP

Knows no net and no file format: rows come from the tables, pictures from `examples`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angio_ray.evaluation.report import Example
from angio_ray.evaluation.report_data import ReportTables, open_tables
from angio_ray.judging.examples import add_pictures, seen_frames, seen_view
from angio_ray.judging.labelled import find_bundle
from angio_ray.models import TASKS
from angio_ray.tables.root import TableRoot, TablesError

_SHOWN_PX = 448
_LEAST = 8
"""Characters of an id that name it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say of a clip."""

    clip_id: str
    lines: tuple[str, ...]
    """What the run said, and what the picture shows."""
    picture: bytes
    """An animated WebP: the frames that the model saw, beside the same under its heat map where its bundle was found."""


def explain(
    root: TableRoot, clip: str, *, run: str | None = None, task: str = "quality", bundles: Sequence[Path] = ()
) -> Explanation:
    """What a run said of a clip, and why, as far as a heat map tells.

    Parameters
    ----------
    clip
        clip_id or object_id, or the first eight or more characters of one.
    run
        Default: the newest finished run that was asked for the task and has the clip.
    task
        Whose model is looked at.
    bundles
        Folders in which its bundle is looked for by digest, at any depth; those that ship always are.

    Raises
    ------
    TablesError
        There is no such clip, it has no score, or it cannot be shown; one line says which.
    BundleError
        A place that holds no bundle, or an altered one.
    """
    if task not in TASKS:
        raise TablesError(f"no task {task!r}; there is {', '.join(TASKS)}")
    if TASKS[task].per_frame:
        raise TablesError(f"{task} has no heat map; what it found stands beside that of the other tasks")
    with open_tables(root) as tables:
        row = _row(tables, clip, run, task)
        places = tables.clip_places([row["clip_id"]])
        config = tables.run_facts(row["run_id"]).config
    example = Example(
        model=task, data=row["run_id"], outcome=None, clip_id=row["clip_id"], patient_id=row["patient_id"],
        bundle=dict(row["bundles"] or ()).get(task), probability=row[f"{task}_probability"], threshold=row[f"{task}_threshold"],
        frames=seen_frames(row, task), view=seen_view(row),
    )  # fmt: skip
    add_pictures(
        [example], places, lambda digest: find_bundle(digest, bundles), assume_fps=config.get("assume_fps"), size_px=_SHOWN_PX
    )
    if example.picture is None:
        raise TablesError(f"clip {row['clip_id'][:12]}: {example.note}")
    return Explanation(row["clip_id"], tuple(_lines(row, task, example)), example.picture)


def _row(tables: ReportTables, clip: str, run: str | None, task: str) -> dict[str, Any]:
    """The clip's scored row. TablesError where there is none."""
    if len(clip) < _LEAST:
        raise TablesError(f"clip {clip!r}: at least {_LEAST} characters of its id")
    newest = f"finished AND has_{task}" if run is None else "run_id = ?"
    asked = f"""
        SELECT scores.* FROM scores JOIN run_summary USING (run_id)
        WHERE (starts_with(clip_id, ?) OR starts_with(object_id, ?)) AND {newest}
        ORDER BY finished_at DESC NULLS FIRST, run_id, scores.status = 'rejected', object_id"""
    rows = tables.rows(asked, clip, clip, *([run] if run else [])).to_pylist()
    if not rows:
        raise TablesError(f"no clip {clip} in {f'run {run}' if run else f'a finished run that was asked for {task}'}")
    if len({row["clip_id"] or row["object_id"] for row in rows}) > 1:
        raise TablesError(f"clip {clip}: several begin so; more characters of its id are needed")
    row: dict[str, Any] = rows[0]
    if row["status"] == "rejected":
        detail = f" ({row['detail']})" if row["detail"] else ""
        raise TablesError(f"run {row['run_id']} rejected the clip: {row['reason']}{detail}")
    if row[f"{task}_status"] != "scored":
        why = "was not asked for it" if row[f"{task}_status"] is None else row[f"{task}_reason"] or "the gate stopped the clip"
        raise TablesError(f"run {row['run_id']} has no {task} of the clip: {why}")
    return row


def _lines(row: dict[str, Any], task: str, example: Example) -> list[str]:
    """What a person should know beside the picture."""
    classes = TASKS[task].classes
    called = classes[-1] if example.probability >= example.threshold else classes[0]
    made = ", synthetic" if row["synthetic"] else ""
    lines = [
        f"clip {row['clip_id']}, run {row['run_id']}{made}: {row['status']}",
        f"{task}: {called} (probability of {classes[-1]} {example.probability:.3f}, threshold {example.threshold:.3f})",
    ]
    if row["artery"] and task != "artery":
        lines.append(f"artery: {row['artery']}")
    if row["view"]:
        lines.append(f"view by the positioner's angles: {row['view']}, {row['view_distance_deg']:.0f} degrees from its middle")
    if row["contrast_begin"] is not None:
        chosen = ", ".join(map(str, row["candidate_frames"]))
        lines.append(f"full contrast: frames {row['contrast_begin']} to {row['contrast_end']}, chosen of them {chosen}")
    elif row["contrast_status"] == "scored":
        lines.append("full contrast: in no frame")
    if example.note:
        lines.append(example.note)
    if TASKS[task].named_frames:
        for one in row["stenosis_frames"]:
            places = "; ".join(f"{b['x0']:.0f},{b['y0']:.0f} to {b['x1']:.0f},{b['y1']:.0f} px" for b in one["boxes"] or ())
            lines.append(f"frame {one['frame']}: {one['class']} ({one['probability']:.3f}){': ' * bool(places)}{places}")
    if TASKS[task].paired_frames:
        (pair,), (region,) = row["calcium_frames"], row["calcium_regions"]
        period, apart = row["calcium_heart_period_s"], row["calcium_phase_difference_frames"]
        of_pair = f"frames {pair['mask_frame']} and {pair['frame']}"
        lines.append(f"pair: {of_pair}, {apart:.1f} frames apart in a beat of {period:.2f} s")
        area = "" if region["area_mm2"] is None else f", {region['area_mm2']:.0f} mm2 at the patient"
        where = f"{region['x0']},{region['y0']} to {region['x1']},{region['y1']} px" if region["area_px"] else "none"
        lines.append(f"region to search (no calcium burden): {where}{area * bool(region['area_px'])}")
    if example.size[0] > _SHOWN_PX and TASKS[task].paired_frames:
        lines.append("right half: where the verdict comes from (block 6), boxes around the region to search (no proof)")
    elif example.size[0] > _SHOWN_PX and TASKS[task].named_frames:
        lines.append("right half: the model's own map of what speaks for a narrowing, boxes around what stands out (no proof)")
    elif example.size[0] > _SHOWN_PX:  # two halves
        lines.append(f"right half: where the model finds what speaks for {called} (Grad-CAM; it is no proof)")
    return lines
