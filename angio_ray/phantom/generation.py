"""Makes a set of synthetic clips: plans patients, renders their clips in worker processes, writes files and labels.

Each clip is a function of the configuration, the patient's number and the clip's: workers plan for themselves, and the
bytes do not depend on how many there are. Memory does not grow with the set, but for the labels' rows. `labels.parquet`
is written last: a folder without one holds an interrupted set, and the same call makes it anew. `phantom.json` says
what the set is made with: a call for another set refuses the folder as long as patients of this one are in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa

from angio_ray.phantom import contrast, truth
from angio_ray.phantom.dicom_writer import sop_instance_uid, write_xa
from angio_ray.phantom.planning import PatientPlan, PhantomConfig, clip_facts, plan_patient, plan_scene
from angio_ray.phantom.render import render
from angio_ray.phantom.scene import QualityClass, Rendered, Scene
from angio_ray.phantom.workers import make_set, put

LABELS_NAME = "labels.parquet"
_Job = tuple[int, tuple[int, ...]]
"""A patient, and which of the clips (some may not exist: how many there are shows when the patient is planned)."""


def generate(out: str | Path, *, workers: int | None = None, **config: Any) -> pa.Table:
    """Write clips as `patient_XXXX/clip_XX.dcm` with `.truth.npz` beside, and `labels.parquet`, into a folder or bucket.

    A counterfactual (`twins`) is `clip_XX.CLASS.dcm`. What the same call made there before is replaced.

    Parameters
    ----------
    out : str or Path
        A folder, made when absent, or an s3:// prefix.
    workers : int, optional
        Processes; the bytes do not depend on it. Default: one per processor, none beside this one for up to 8 clips.
    **config
        Fields of `PhantomConfig`: patients, seed, clips, size, frames, fps, syntax, unsatisfactory, diseased, calcified,
        protocol, site, twins.

    Returns
    -------
    pa.Table
        The labels, one row per clip, schema `truth.LABELS`.

    Raises
    ------
    ValueError
        A field out of its range.
    angio_ray.storage.StorageUnavailable
        A place that cannot be written, or holds patients of another set.
    angio_ray.phantom.workers.Unfinished
        A full disk, a store that went away, a killed worker: the same call makes the set anew.
    """
    cfg = PhantomConfig(**config)
    if workers is None:
        workers = 1 if cfg.patients * cfg.clips[1] <= 8 else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ValueError("workers must be at least 1")
    make = partial(write_patient, str(out), cfg)
    return make_set(str(out), LABELS_NAME, truth.LABELS, asdict(cfg), make, _jobs(cfg, workers), workers)


def render_clip(plan: PatientPlan, clip: int, quality: QualityClass | None = None) -> tuple[Scene, Rendered]:
    """Plan and draw one clip, or its counterfactual of another class."""
    scene = plan_scene(plan, clip, quality)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one thread per worker, and the same arithmetic whatever the machine
    try:
        return scene, render(scene)
    finally:
        cv2.setNumThreads(threads)


def write_patient(out: str, cfg: PhantomConfig, job: _Job) -> list[dict[str, Any]]:
    """Write some of one patient's clips and their side files; returns their rows of labels.

    What a worker process runs; any scheduler of Python functions can run it.
    """
    patient, clips = job
    plan = _plan(cfg, patient)
    rows = []
    for clip in clips:
        if clip >= len(plan.clips):
            continue
        row = _write_clip(out, plan, clip, None, None)
        rows.append(row)
        if row["quality"] == "satisfactory":
            rows += [_write_clip(out, plan, clip, quality, row["sop_instance_uid"]) for quality in cfg.twins]
    return rows


@lru_cache(maxsize=2)
def _plan(cfg: PhantomConfig, patient: int) -> PatientPlan:
    return plan_patient(cfg, patient)


def _write_clip(
    out: str, plan: PatientPlan, clip: int, quality: QualityClass | None, twin_of: str | None
) -> dict[str, Any]:
    scene, rendered = render_clip(plan, clip, quality)
    facts = replace(
        clip_facts(plan, clip, scene),
        twin=quality or "",
        jpeg_quality=scene.detector.jpeg_quality,
        field_shape="ROUND" if scene.detector.shutter == "round" else "RECTANGLE",
    )
    found = truth.lesions(scene, rendered, contrast.curves(scene).vessels)
    stem = f"patient_{plan.patient:04d}/clip_{clip:02d}" + (f".{quality}" if quality else "")
    row = truth.row(
        scene,
        rendered,
        facts,
        found,
        path=f"{stem}.dcm",
        truth_path=f"{stem}{truth.SUFFIX}",
        protocol=plan.config.protocol,
        site=plan.config.site,
        twin_of=twin_of,
    )
    assert row["sop_instance_uid"] == sop_instance_uid(facts)
    put(out, row["truth_path"], truth.side_file(scene, rendered, found))
    put(out, row["path"], write_xa(rendered.frames_THW, facts))
    return row


def _jobs(cfg: PhantomConfig, workers: int) -> Iterator[_Job]:
    """In the order of the labels: whole patients, planned once each, where there are enough to share out; else clips."""
    clips = range(cfg.clips[1])
    for patient in range(cfg.patients):
        if cfg.patients >= 8 * workers or workers == 1:
            yield patient, tuple(clips)
        else:
            yield from ((patient, (clip,)) for clip in clips)
