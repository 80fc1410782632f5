"""The models: which nets there are (NETS) and which tasks the pipeline can score (TASKS). Knows no Ray, files or tables.

To add a task:

1. Write `angio_ray/models/<task>.py`: its nets as a dict of `NetSpec`, and a scorer class with `task`, `windows`,
   `__init__(bundle, backend, *, num_threads, converted=None)` and
   `__call__({window name: uint8 (B, T, H, W)}, {window name: [frames shown]}, {column read: values}) -> {column: array of B}`
   (`interface.Scorer`; `quality.QualityScorer` is one). `backends.make_runner` compiles a module for the chosen backend.
2. Add one entry to TASKS below, after quality if the quality gate is to come first, and merge its nets into NETS.

Bundles, the choice of the backend and the pipeline read these two dicts; `schemas/scores.json` declares the columns and
`tables/views.sql` shows them. What can be trained is named in `training.labels.TARGETS`, what `evaluate --task` judges in the
command line. `tests/models/test_registry.py` checks the new entry as it does the others.
"""

from __future__ import annotations

from angio_ray.models import artery, calcium, contrast, oblique, quality, stenosis
from angio_ray.models.interface import NetSpec, PaperFigures, Scorer, TaskSpec

NETS: dict[str, NetSpec] = {**quality.NETS, **artery.NETS, **contrast.NETS, **stenosis.NETS, **calcium.NETS}
"""Architectures by the name that bundles use."""

TASKS: dict[str, TaskSpec] = {
    "quality": TaskSpec(
        name="quality",
        scorer=quality.QualityScorer,
        columns=quality.COLUMNS,
        classes=quality.CLASSES,
        gate_column="quality_satisfactory",
    ),
    "artery": TaskSpec(
        name="artery",
        scorer=artery.ArteryScorer,
        columns=artery.COLUMNS,
        classes=artery.CLASSES,
        mirrors=False,
    ),
    "oblique": TaskSpec(
        name="oblique",
        scorer=oblique.ObliqueScorer,
        columns=oblique.COLUMNS,
        classes=oblique.CLASSES,
        mirrors=False,
    ),
    "contrast": TaskSpec(
        name="contrast",
        scorer=contrast.ContrastScorer,
        columns=contrast.COLUMNS,
        classes=contrast.CLASSES,
        layouts=("BCTHW-frames",),
        per_frame=True,
    ),
    "stenosis": TaskSpec(
        name="stenosis",
        scorer=stenosis.StenosisScorer,
        windows=stenosis.decoded_windows,
        needs=("artery", "oblique", "contrast"),
        reads=stenosis.READS,
        columns=stenosis.COLUMNS,
        classes=stenosis.TWO_CLASSES,
        finer=stenosis.THREE_CLASSES,
        layouts=("BCTHW-maps",),
        named_frames=True,
    ),
    "calcium": TaskSpec(
        name="calcium",
        scorer=calcium.CalciumScorer,
        windows=calcium.decoded_windows,
        needs=("contrast",),
        reads=calcium.READS,
        columns=calcium.COLUMNS,
        classes=calcium.CLASSES,
        layouts=("B2HW-regions",),
        paired_frames=True,
        side_objects=(calcium.MASK,),
    ),
}
"""Tasks in the order in which a clip goes through them."""

__all__ = ["NETS", "TASKS", "NetSpec", "PaperFigures", "Scorer", "TaskSpec"]
