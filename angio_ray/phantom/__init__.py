"""The phantom: synthetic coronary angiograms with known truth, written as real XA DICOM. A first cut.

`generate` makes patients, each with one study of several clips, satisfactory and unsatisfactory ones in the same
study; `write_broken` makes objects that must be rejected, each for a known reason. Nothing here can be taken for a
patient: every header says so. Knows nothing of models, Ray or tables.

    python -c "from angio_ray.phantom import generate; generate('clips', patients=6, seed=1, size=256)"
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from angio_ray.phantom.broken import write_broken
from angio_ray.phantom.dicom_writer import SYNTAXES, Syntax, sop_instance_uid, write_xa
from angio_ray.phantom.render import Rendered, Scene, render
from angio_ray.phantom.scenes import PatientPlan, clip_facts, plan_patient, plan_scene

__all__ = ["LABELS", "PhantomConfig", "generate", "render_clip", "write_broken"]

FIRST_FILLING = 0.02
"""Mean filling of the tree, share of its own maximum, at which contrast counts as there (first and last contrast)."""
FULL_FILLING = 0.9
"""The same for full contrast (begin and end)."""

_BOX = pa.struct(
    [
        ("segment", pa.string()),
        ("percent", pa.float32()),
        ("length_mm", pa.float32()),
        ("frame", pa.int32()),
        *((name, pa.float32()) for name in ("x0", "y0", "x1", "y1")),
    ]
)
LABELS = pa.schema(
    [
        pa.field("sop_instance_uid", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("quality", pa.string(), nullable=False),
        pa.field("quality_class", pa.string(), nullable=False),
        pa.field("artery", pa.string()),
        pa.field("view", pa.string()),
        *(pa.field(n, pa.int32()) for n in ("first_contrast", "contrast_begin", "contrast_end", "last_contrast")),
        pa.field("best_frame", pa.int32()),
        pa.field("heart_period_frames", pa.float32()),
        pa.field("stenoses", pa.list_(_BOX)),
        pa.field("calcified", pa.bool_()),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
    ]
)
"""`labels.parquet`: the truth per clip. Frames count from 0 in the file's own frames; boxes in px; null where none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomConfig:
    """What to generate."""

    patients: int = 6
    seed: int = 0
    clips: tuple[int, int] = (5, 7)
    """Fewest and most clips per patient; both classes are among them when there are two or more."""
    size: int = 512
    """Rows and columns, px. The field of view stays, so 256 is the same picture on coarser pixels."""
    frames: tuple[int, int] = (40, 120)
    """Fewest and most frames per clip."""
    fps: float | None = None
    """Frames per second; None draws 15 mostly, 7.5, 10, 12.5 and 30 at times."""
    syntax: Syntax | None = None
    """Transfer syntax; None draws one per clip."""
    unsatisfactory: float = 0.4
    """Expected share of unsatisfactory clips."""

    def __post_init__(self) -> None:
        if self.patients < 1 or not 1 <= self.clips[0] <= self.clips[1]:
            raise ValueError("patients and clips must be at least 1, and clips (fewest, most)")
        if not 4 <= self.frames[0] <= self.frames[1]:
            raise ValueError("frames must be (fewest, most) and at least 4")
        if not 32 <= self.size <= 2048:
            raise ValueError("size must be 32 to 2048 px")
        if not 0 <= self.unsatisfactory <= 1:
            raise ValueError("unsatisfactory is a share, 0 to 1")
        if self.fps is not None and not 1 <= self.fps <= 120:
            raise ValueError("fps must be 1 to 120")
        if self.syntax is not None and self.syntax not in SYNTAXES:
            raise ValueError(f"syntax must be one of {', '.join(SYNTAXES)}")


def generate(out: str | Path, *, workers: int | None = None, **config: Any) -> pa.Table:
    """Write clips as `patient_XXXX/clip_XX.dcm` and `labels.parquet` into a folder (or an s3:// place).

    Parameters
    ----------
    out : str or Path
        A folder, made when absent, or a URI that `angio_ray.storage` can write to.
    workers : int, optional
        Processes; the bytes do not depend on it. Default: one per processor, none beside this one for up to 8 clips.
    **config
        Fields of `PhantomConfig`: patients, seed, clips, size, frames, fps, syntax, unsatisfactory.

    Returns
    -------
    pa.Table
        The labels, one row per clip, schema `LABELS`.

    Raises
    ------
    ValueError
        A field out of its range.
    """
    cfg = PhantomConfig(**config)
    plans = [plan_patient(cfg.seed, p, cfg.clips, cfg.unsatisfactory) for p in range(cfg.patients)]
    jobs = [(plan, clip) for plan in plans for clip in range(len(plan.clips))]
    if workers is None:
        workers = 1 if len(jobs) <= 8 else len(os.sched_getaffinity(0))
    make = partial(_write_clip, str(out), cfg)
    if workers <= 1:
        rows = [make(job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
            with _hidden_main():
                futures = [pool.submit(make, job) for job in jobs]
            rows = [future.result() for future in futures]
    labels = pa.Table.from_pylist(rows, LABELS)
    sink = pa.BufferOutputStream()
    pq.write_table(labels, sink, compression="zstd")
    _put(str(out), "labels.parquet", sink.getvalue().to_pybytes())
    return labels


def render_clip(plan: PatientPlan, clip: int, cfg: PhantomConfig) -> tuple[Scene, Rendered]:
    """One clip of a planned patient, in memory."""
    rng = plan.clip_rng(clip)
    scene = plan_scene(plan, clip, cfg.size, cfg.frames, cfg.fps, rng)
    return scene, render(scene, rng)


def _write_clip(out: str, cfg: PhantomConfig, job: tuple[PatientPlan, int]) -> dict[str, Any]:
    plan, clip = job
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one thread per worker, and the same arithmetic whatever the machine
    try:
        scene, rendered = render_clip(plan, clip, cfg)
    finally:
        cv2.setNumThreads(threads)
    facts = clip_facts(plan, clip, scene, cfg.syntax)
    name = f"patient_{plan.patient:04d}/clip_{clip:02d}.dcm"
    _put(out, name, write_xa(rendered.frames_THW, facts))
    satisfactory = scene.quality_class == "satisfactory"
    coronary = scene.tree is not None
    return {
        "sop_instance_uid": sop_instance_uid(facts),
        "patient_id": plan.patient_id,
        "quality": "satisfactory" if satisfactory else "unsatisfactory",
        "quality_class": scene.quality_class,
        "artery": scene.tree.artery if scene.tree else None,
        "view": scene.view.name,
        **_contrast_frames(scene, rendered),
        "heart_period_frames": scene.heart_period_s / float(np.diff(scene.times_s).mean()),
        "stenoses": _stenosis_boxes(scene, rendered) if satisfactory else [],
        "calcified": False if coronary else None,
        "synthetic": True,
        "path": name,
    }


def _contrast_frames(scene: Scene, rendered: Rendered) -> dict[str, int | None]:
    """First, full-begin, full-end, last contrast and the fullest frame, by thresholds on the tree's true filling."""
    names = ("first_contrast", "contrast_begin", "contrast_end", "last_contrast", "best_frame")
    filling = rendered.filling_T
    if scene.quality_class != "satisfactory" or filling.max() <= 0:
        return dict.fromkeys(names)
    there = np.flatnonzero(filling >= FIRST_FILLING * filling.max())
    full = np.flatnonzero(filling >= FULL_FILLING * filling.max())
    return dict(
        zip(names, (int(there[0]), int(full[0]), int(full[-1]), int(there[-1]), int(filling.argmax())), strict=True)
    )


def _stenosis_boxes(scene: Scene, rendered: Rendered) -> list[dict[str, Any]]:
    """Where each narrowing lies in the fullest frame."""
    assert scene.tree is not None
    frame = int(rendered.filling_T.argmax())
    boxes = []
    for stenosis in scene.tree.stenoses:
        i = next(i for i, v in enumerate(scene.tree.vessels) if v.name == stenosis.segment)
        vessel = scene.tree.vessels[i]
        near = np.abs(vessel.distance_N - vessel.distance_N[stenosis.index]) <= stenosis.length_mm / 2 + 1
        xy, margin = rendered.vessel_xy[i][frame][near], 2.0 * scene.view.px_per_mm
        (x0, y0), (x1, y1) = xy.min(axis=0) - margin, xy.max(axis=0) + margin
        boxes.append(
            {
                "segment": stenosis.segment,
                "percent": stenosis.percent,
                "length_mm": stenosis.length_mm,
                "frame": frame,
                **{"x0": float(x0), "y0": float(y0), "x1": float(x1), "y1": float(y1)},
            }
        )
    return boxes


def _put(out: str, name: str, data: bytes) -> None:
    if "://" in out:
        from angio_ray.storage import Storage  # s3fs takes a second to import, a folder needs none of it

        Storage(out).write_bytes(f"{out.rstrip('/')}/{name}", data)
        return
    path = Path(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _start_worker() -> None:
    """One thread per worker, and no worker that outlives a killed parent (it would write on for minutes)."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Spawned children re-import `__main__`: a caller's script without a guard would run again in each of them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
