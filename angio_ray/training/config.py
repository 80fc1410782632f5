"""What a training is asked to do: one typed object behind the command line, `jobs/train.py` and the Python API."""

from __future__ import annotations

import re
import shlex
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from angio_ray.scoring.config import ConfigError, Flag
from angio_ray.training.recipes import Recipe, RecipeChanges, find_recipe

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_SPLIT_TEST = 0.15
"""Share of all clips that a split tests on."""
_TASK_NAMES = {"stenosis-frames": "contrast", "stenosis-class": "stenosis", "stenosis-detect": "stenosis"}
"""Other names of tasks."""
_DETECTOR = "stenosis_fpn"
"""Default net of stenosis-detect."""
_NETS = {"oblique": "projection_2d", "contrast": "frames_lstm", "stenosis": "stenosis_s", "calcium": "resunet_s"}
"""Default net of tasks that need another than the quality task."""
_SCHEMES = {"kfold": "k{folds}", "split": "split", "leave_one_patient_out": "lopo", "leave_one_acquisition_out": "loao"}


@dataclass(frozen=True)
class TrainConfig:
    """One experiment: which net on which clips and labels, by which folds and recipe."""

    task: str
    """What is learnt: quality, artery (LCA or RCA; never mirrored), oblique (the side that a clip is filmed from; likewise),
    contrast, which is stenosis-frames too (the frames of full contrast), or stenosis, which is stenosis-class too (the worst
    narrowing of those frames), or stenosis-detect (a detector of boxes on the features of such a model, which --start names), or
    calcium (whether the arteries are calcified, and where)."""
    _: KW_ONLY
    labels: str
    """CSV or Parquet file of labels, local or s3:// (columns: see the module `training.labels`), or the name of a set of
    the table `labels`, such as `review` stores."""
    clips: str
    """Folder or s3:// prefix with the labelled clips."""
    tables: str
    """Folder or s3:// prefix of the Delta tables."""
    clip_tables: str | None = None
    """Another root for the tables `clips` and `manifests`. Default: `tables`."""
    out: str | None = None
    """Folder or s3:// prefix for checkpoints and bundles. Default: `tables` with .training after it (for a whole bucket:
    tables.training in it)."""
    cache: str | None = None
    """Folder or s3:// prefix for decoded inputs (pixels of patients). Default: cache in `out`."""
    only: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """Clips whose label says so and no others: artery=RCA, or with another --only view="LAO cranial". So a model is taught one
    artery or view, as the stenosis paper does. Folds of all clips (--fold-set) divide them as they divide the others, too."""
    experiment: str | None = None
    """Name of the experiment. The same name again goes on where it stopped. Default: task, net and folds."""
    net: str = ""
    """Architecture: r18_2d, r152_2d, r18_3d, r152_3d, x3d_s; for contrast frames_lstm, inception_lstm; for stenosis stenosis_s,
    stenosis_fpn (a detector), inception_v3, or with _3cat after it for three classes. Default: x3d_s, frames_lstm, stenosis_s,
    and stenosis_fpn for stenosis-detect."""
    recipe: str = "short"
    """Named defaults of the training: paper, short, smoke."""
    changes: Annotated[RecipeChanges, Parameter(name="*")] = field(default_factory=RecipeChanges)
    """What to change in the recipe."""
    scheme: Literal["kfold", "split", "leave_one_patient_out", "leave_one_acquisition_out"] = "kfold"
    """How clips are divided, always by patient."""
    folds: int = 5
    """Of kfold."""
    validation: float = 0.15
    """Share of each training part held back for threshold and epoch. Of split: of all clips, beside 15 % for the test."""
    fold_set: str | None = None
    """Name of the folds: nets that are compared share them. Default: task, scheme and seed."""
    label_set: str | None = None
    """Name under which a label file is kept in the table `labels`. Default: the task."""
    seed: int = 0
    """Of folds, initial weights, order and augmentation."""
    threshold: Literal["youden", "sensitivity", "specificity"] = "youden"
    """Rule of the operating threshold, on validation only: of stenosis by studies, of calcium by patches, else by clips."""
    at_least: float | None = None
    """Sensitivity or specificity that the rule asks for."""
    weights: Path | None = None
    """Local file of pretrained weights to begin from (Kinetics X3D-S, torchvision's or MedicalNet's ResNets)."""
    start: Path | None = None
    """Bundle folder to begin from, of the same net or of one that is a part of it (a detector's classifier; stenosis_s for one of
    three classes or one that sees the view); the patients it has seen count as in-sample."""
    assume_fps: float | None = None
    """Frame rate of clips whose header names none (frames/s). Default: such clips are left out."""
    workers: int = 1
    """Workers that share a fold (DDP): a GPU each where the cluster has GPUs."""
    parallel: int | None = None
    """Folds at once. Default: as the cluster has room, at most 8."""
    tries: int = 3
    """Times that a fold is begun again from its checkpoint after a worker was lost."""
    checkpoint_s: float = 60.0
    """Seconds between two checkpoints of a fold at least, taken after an epoch."""
    resamples: int = 2000
    """Of the bootstrap by patients."""
    key_file: Path | None = None
    """File with the pseudonym key, as for `score`."""
    patient_map: Path | None = None
    """CSV (issuer, patient_id, person), as for `score`."""
    strict: Flag = False
    """In jobs: end with 3, not 0, when labelled clips could not be decoded."""

    def __post_init__(self) -> None:
        # a frozen object's own completion: what is not given follows from the task
        net = _DETECTOR if self.task == "stenosis-detect" else _NETS.get(_TASK_NAMES.get(self.task, self.task), "x3d_s")
        object.__setattr__(self, "task", _TASK_NAMES.get(self.task, self.task))
        object.__setattr__(self, "net", self.net or net)
        for flag in ("experiment", "fold_set", "label_set"):
            value = getattr(self, flag)
            if value is not None and not _NAME.fullmatch(value):
                raise ConfigError(
                    f"--{flag.replace('_', '-')} {value!r}: letters, digits, '.', '_', '+' and '-', at most 100"
                )
        for only in self.only:
            if not re.fullmatch(r"(artery|view|quality_class)=.+", only):
                raise ConfigError(f"--only {only}: artery=, view= or quality_class= and a value")
        if (self.threshold == "youden") != (self.at_least is None):
            raise ConfigError("--at-least goes with --threshold sensitivity or specificity, and only with them")
        if self.at_least is not None and not 0 < self.at_least <= 1:
            raise ConfigError(f"--at-least {self.at_least:g}: a share, above 0 and up to 1")
        if net == _DETECTOR and not self.net.startswith(_DETECTOR):
            raise ConfigError(f"--net {self.net} is no detector; there is {_DETECTOR}, {_DETECTOR}_3cat")
        if self.net.startswith(_DETECTOR) and not self.start:
            raise ConfigError("--start: a detector needs the bundle of a classifier, whose features it looks at")
        if self.weights and self.start:
            raise ConfigError("--weights and --start: only one can be begun from")
        for flag, least in (
            ("workers", 1),
            ("parallel", 1),
            ("tries", 0),
            ("resamples", 100),
            ("seed", 0),
            ("folds", 2),
        ):
            value = getattr(self, flag)
            if value is not None and value < least:
                raise ConfigError(f"--{flag} {value}: at least {least}")
        if not 0 < self.validation < 1:
            raise ConfigError(f"--validation {self.validation:g}: a share, above 0 and below 1")
        if self.scheme == "split" and self.validation + _SPLIT_TEST >= 1:
            raise ConfigError(f"--validation {self.validation:g}: nothing of the split is left to train on")
        if self.assume_fps is not None and not 1 <= self.assume_fps <= 240:
            raise ConfigError(f"--assume-fps {self.assume_fps:g}: not between 1 and 240 frames/s")
        _ = self.chosen_recipe

    @property
    def chosen_recipe(self) -> Recipe:
        """The recipe with its changes. ConfigError where there is none."""
        try:
            recipe = self.changes.applied(find_recipe(self.recipe, self.net))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        from angio_ray.models import NETS, TASKS  # numpy and OpenCV come with them: not for --help

        if self.task in TASKS and NETS[self.net].layout not in TASKS[self.task].layouts:
            fit = ", ".join(name for name, spec in NETS.items() if spec.layout in TASKS[self.task].layouts)
            raise ConfigError(f"--net {self.net} is not for {self.task}; there is {fit}")
        if self.task in TASKS and TASKS[self.task].per_frame:
            if self.threshold != "youden":
                raise ConfigError(f"--threshold: that of {self.task} is the one with the least error of both ends")
        elif recipe.loss != "cross_entropy":
            raise ConfigError(f"--loss {recipe.loss}: for nets with a class per frame")
        if recipe.balance == "sampler" and NETS[self.net].per_frame:
            raise ConfigError(f"--balance sampler: {self.net} gives each frame a class; take weights")
        spec = TASKS.get(self.task)
        if recipe.redundancy and not (spec and spec.named_frames):
            raise ConfigError("--redundancy: for stenosis-class")
        if recipe.box_weight and not (spec and (spec.named_frames or spec.paired_frames)):
            raise ConfigError("--box-weight: for stenosis-class and calcium")
        window = NETS[self.net].window
        if any(stage.regions for stage in recipe.stages) != (NETS[self.net].layout == "B2HW-regions"):
            raise ConfigError(f"stages {','.join(map(str, recipe.stages))}: roi stages are for calcium, which needs one")
        parts = NETS[self.net].layout == "B2HW-regions" or NETS[self.net].num_boxes > 0
        if parts and self.workers > 1:
            raise ConfigError(f"--workers {self.workers}: {self.net} learns part by part, in one worker")
        if parts and (recipe.keep == "best" or recipe.patience):
            raise ConfigError(f"--keep and --patience: while {self.net}'s last part learns its classes stay, take --keep last")
        if NETS[self.net].num_boxes and not recipe.box_weight:
            raise ConfigError(f"--box-weight 0: the boxes are all that teaches {self.net}")
        for stage in recipe.stages:
            if NETS[self.net].layout == "B2HW-regions" and (stage.frames != 2 or stage.size % 64):
                raise ConfigError(f"stage {stage}: {self.net} sees 2 frames, of a multiple of 64 px")
            if self.net.startswith("stenosis_") and stage.size % 8:
                raise ConfigError(f"stage {stage}: {self.net} sees frames of a multiple of 8 px")
            if stage.size > window.size or stage.frames > window.num_frames:
                raise ConfigError(f"stage {stage}: {self.net} sees {window.num_frames} frames of {window.size} px at most")
        if self.task in TASKS and not TASKS[self.task].mirrors:
            if dict(self.changes.augment).get("flip"):
                raise ConfigError(f"--augment flip: left and right carry meaning for {self.task}")
            recipe = replace(recipe, augment=replace(recipe.augment, flip=0.0))
        return recipe

    @property
    def folds_name(self) -> str:
        """Of the folds."""
        return self.fold_set or f"{self.task}-{_SCHEMES[self.scheme].format(folds=self.folds)}-s{self.seed}"

    @property
    def labels_name(self) -> str:
        """Of the labels."""
        return self.label_set or self.task

    @property
    def name(self) -> str:
        """Of the experiment."""
        return self.experiment or f"{self.task}-{self.net}-{_SCHEMES[self.scheme].format(folds=self.folds)}"

    @property
    def out_uri(self) -> str:
        """Where checkpoints and bundles go."""
        return self.out or training_place(self.tables)

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of split: training, validation and test."""
        return round(1 - self.validation - _SPLIT_TEST, 6), self.validation, _SPLIT_TEST

    @property
    def command(self) -> str:
        """The command line that asks for this."""
        words = ["angio-ray", "train", self.task]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("task", "changes", "_") and value != f.default:
                words += [word for one in (value if f.name == "only" else [value]) for word in _typed(f.name, one)]
        for name, value in asdict(self.changes).items():
            if value not in (None, ()):
                words += _typed(name, ",".join(f"{k}={v!r}" for k, v in value) if name == "augment" else value)
        return shlex.join(words)


def training_place(tables: str) -> str:
    """Where checkpoints and bundles go unless told otherwise: beside the tables."""
    tables = tables.rstrip("/")
    # a name after a bucket's would be another bucket
    bucket = re.fullmatch(r"s3[an]?://[^/]+", tables, re.IGNORECASE)
    return f"{tables}/tables.training" if bucket else f"{tables}.training"


def _typed(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    return [flag, repr(value) if isinstance(value, float) else str(value)]
