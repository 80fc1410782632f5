"""`angio-ray evaluate`: the frames of full contrast that a run or an experiment's left-out folds found, against labels.

Of a run, both sides are in the file's own frames; errors count in frames at 15 per second, as the stenosis paper's do (spec
section 2). Figures are made by `evaluation.contrast_frames`; here is only what they are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from angio_ray.evaluation.assess import UNCHECKED
from angio_ray.evaluation.bootstrap import RESAMPLES
from angio_ray.evaluation.contrast_frames import FRAMES_PER_S
from angio_ray.judging.labelled import load_labels, only_writer, prepare, review_note, scored_bundle
from angio_ray.pseudonyms import PseudonymKey
from angio_ray.sampling import ClipWindow
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.training.contrast_results import ContrastSummary, contrast_summary
from angio_ray.training.folds import in_sample
from angio_ray.training.labels import task_clips
from angio_ray.training.predictions import ModelFacts, held_out, write_metrics

_TASK = "contrast"
_SCORES = (
    "object_id",
    "clip_id",
    "contrast_status",
    "contrast_begin",
    "contrast_end",
    "frame_time_ms",
    "bundles",
    "model_domain",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastEvaluation:
    """How a run's frames of full contrast fit the labels."""

    title: str
    summary: ContrastSummary
    notes: tuple[str, ...]
    num_rows: int
    """Rows of `metrics` written."""

    def print(self, console: Console) -> None:
        """Figures and notes, for people."""
        pooled = self.summary.pooled
        console.print(
            f"{self.title}: {pooled.num_clips:,} clips of {self.summary.num_patients:,} patients with full contrast; "
            "frames at 15/s",
            soft_wrap=True,
            markup=False,
        )
        for line in [*self.summary.lines(), *self.notes]:
            console.print(line, soft_wrap=True, markup=False)


def evaluate_contrast(
    root: TableRoot,
    run: str,
    labels: str,
    *,
    key: PseudonymKey | None = None,
    bundles: Sequence[Path] = (),
    experiment: str | None = None,
    data: str | None = None,
    resamples: int = RESAMPLES,
) -> ContrastEvaluation:
    """Judge the frames that a run found on labelled clips; patients that the bundle has seen are left out.

    Parameters as for `evaluate_run`, which see. Raises TablesError where the run has no such frames or no clip is held out.
    """
    prepare(root, key)
    found = load_labels(root, labels, key)
    clips, _ = task_clips(found.clips, _TASK)
    scored = _scored(root, run)
    digests = {digest for row in scored.to_pylist() for task, digest in row["bundles"] or () if task == _TASK}
    if len(digests) != 1:
        raise TablesError(f"run {run} has contrast of {len(digests)} bundles, not of one")
    (digest,) = digests
    bundle = scored_bundle(root, digest, bundles)
    seen = bundle.training_patients
    left = clips.filter(pa.array(~in_sample(clips, seen)))
    by_clip = {row["clip_id"]: row for row in scored.sort_by([("object_id", "descending")]).to_pylist()}
    rows = [
        {
            "group_id": clip["group_id"],
            **_frames("true", clip["contrast_begin"], clip["contrast_end"], row["frame_time_ms"], bundle.window),
            **_frames("contrast", row["contrast_begin"], row["contrast_end"], row["frame_time_ms"], bundle.window),
        }
        for clip in left.to_pylist()
        if (row := by_clip.get(clip["clip_id"]))
    ]
    if not rows:
        raise TablesError(f"run {run} has found frames in none of the {len(left):,} held-out clips labelled in {found.name}")
    names = ("group_id", "true_begin", "true_end", "contrast_begin", "contrast_end")
    types = (pa.string(), *[pa.int32()] * 4)
    table = pa.table({n: pa.array([row[n] for row in rows], t) for n, t in zip(names, types, strict=True)})
    summary = contrast_summary(table, resamples=resamples)
    notes = list(found.report)
    if not seen:
        notes.append(UNCHECKED)
    elif len(left) == len(clips):
        notes.append(
            f"{bundle.net}: none of its {len(seen):,} training patients is among these "
            "(pseudonyms of another key would not show)"
        )
    else:
        notes.append(f"{len(clips) - len(left):,} clips of patients that the model had seen are left out")
    if selected := review_note(found.clips, left["clip_id"].to_pylist()):
        notes.append(selected)
    if len(rows) < len(left):
        missing = len(left) - len(rows)
        notes.append(f"{missing:,} labelled clips have no contrast frames in the run: gated, rejected or not in it")
    facts = ModelFacts(
        experiment=experiment or run,
        model=f"{bundle.net}-{digest[:8]}" if experiment else bundle.net,
        threshold=bundle.threshold,
        model_domain=next(iter(pc.unique(scored["model_domain"]).to_pylist()), None),
        bundle=digest,
    )
    domains = {"synthetic" if synthetic else "patients" for synthetic in left["synthetic"].to_pylist()}
    with only_writer():
        written = write_metrics(
            root,
            facts,
            data or found.name,
            summary.rows(),
            data_domain="mixed" if len(domains) > 1 else next(iter(domains)),
        )
    return ContrastEvaluation(title=f"{run}: {bundle.net}", summary=summary, notes=tuple(notes), num_rows=written)


def contrast_experiment(
    root: TableRoot, experiment: str, *, key: PseudonymKey | None = None, resamples: int = RESAMPLES
) -> ContrastEvaluation | None:
    """The figures of an experiment that finds frames, from its held-out predictions; None where it is of another task.

    They stand in `metrics` since its training: nothing is written.
    """
    prepare(root, key)
    there = (pc.field("experiment") == experiment) & (pc.field("task") == _TASK)
    rows = root.open("predictions").to_pyarrow_dataset().to_table(filter=there)
    if not rows.num_rows:
        return None
    (model,) = set(rows["model"].to_pylist())
    summary = contrast_summary(held_out(rows), resamples=resamples)
    return ContrastEvaluation(title=f"{experiment}: {model}, out of fold", summary=summary, notes=(), num_rows=0)


def _scored(root: TableRoot, run: str) -> pa.Table:
    rows = root.open("scores").to_pyarrow_dataset().to_table(columns=list(_SCORES), filter=pc.field("run_id") == run)
    if not rows.num_rows:
        raise TablesError(f"there is no run {run} in these tables, or it has no rows")
    rows = rows.filter(pc.fill_null(pc.equal(rows["contrast_status"], "scored"), False))
    if not rows.num_rows:
        raise TablesError(f"run {run} has no contrast frames: score with --models contrast")
    return rows


def _frames(
    name: str, begin: int | None, end: int | None, frame_time_ms: float | None, window: ClipWindow
) -> dict[str, int | None]:
    """Two ends in the file's frames, as frames at 15 per second that the model is shown: what comes later is no truth for it.

    By the mean time between frames, where a file gives each its own.
    """
    scale = (frame_time_ms or 1000 / FRAMES_PER_S) * FRAMES_PER_S / 1000
    at = [None if frame is None else int(np.floor(frame * scale + 0.5)) for frame in (begin, end)]
    if at[0] is None or at[1] is None or at[0] >= window.length:
        return {f"{name}_begin": None, f"{name}_end": None}
    return {f"{name}_begin": at[0], f"{name}_end": min(at[1], window.length - 1)}
