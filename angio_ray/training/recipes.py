"""Recipes: how a net is trained, as named, typed defaults. Numbers only: knows no torch, no clips, no Ray.

    paper   the quality paper's (spec section 1): Adam, StepLR(30), rates and batches as stated, over 100 epochs
    short   for two processor cores and a few hundred clips: small inputs, a dozen or so epochs where they are cheap
    smoke   one epoch of tiny inputs: shows that everything runs, teaches nothing

A recipe is changed by `dataclasses.replace` or by RecipeChanges (what the command line offers). What the papers do not
state is ours, and marked so below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

Balance = Literal["weights", "sampler", "none"]
Precision = Literal["auto", "float32", "bfloat16"]
Keep = Literal["best", "last"]
Loss = Literal["cross_entropy", "f1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How far a clip may be changed. Shares are of the clips, the rest are bounds of uniform draws.

    Flip, rotation, perspective and blur are the quality paper's, their strengths are ours; so is all the rest, which
    stands for what differs between one vendor's display and another's.
    """

    flip: float = 0.5
    """Share of clips mirrored left to right. 0 where left and right carry meaning (artery, view)."""
    upside_down: float = 0.0
    """Share of clips mirrored top to bottom, of squares cut from frames: a narrowing is one from any side."""
    turned: float = 0.0
    """The same, rows and columns exchanged."""
    rotation_deg: float = 10.0
    zoom: float = 0.1
    """Natural log of the scale, either way."""
    shift: float = 0.05
    """Of the side."""
    perspective: float = 0.05
    """Movement of a corner, of the side; half of the clips."""
    blur_share: float = 0.2
    blur_px: float = 1.0
    """Largest standard deviation."""
    gamma: float = 0.35
    """Natural log of the exponent, either way; the same for contrast."""
    contrast: float = 0.3
    brightness: float = 0.1
    """Of the full scale, either way."""
    noise_share: float = 0.3
    noise: float = 0.04
    """Standard deviation, of the full scale."""
    halo_share: float = 0.3
    halo: float = 0.8
    """Strength of unsharp masking."""
    cut_share: float = 0.0
    """Share of clips with a border blanked, as a collimator would."""

    def scaled(self, strength: float) -> AugmentConfig:
        """All bounds and shares but those of mirroring and turning times `strength` (0: these alone)."""
        return replace(self, **{f.name: getattr(self, f.name) * strength for f in fields(self) if f.name not in _SAME_SIZE})


    def in_place(self) -> AugmentConfig:
        """Without all that moves something: grey values, grain and edges alone."""
        return replace(self, **dict.fromkeys((*_SAME_SIZE, "rotation_deg", "zoom", "shift", "perspective", "cut_share"), 0.0))


_SAME_SIZE = ("flip", "upside_down", "turned")
"""Changes that have no strength."""

NO_AUGMENTATION = AugmentConfig(flip=0.0).scaled(0.0)
"""No change at all."""
PAPER_AUGMENTATION = AugmentConfig(
    zoom=0.0, shift=0.0, gamma=0.0, contrast=0.0, brightness=0.0, noise_share=0.0, halo_share=0.0
)
"""What the quality paper names, and nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Epochs at one input size. Small inputs first: an epoch costs as many times as it has pixels."""

    size: int
    """Height and width, px; at most the net's window."""
    frames: int
    """Every so many of the window's frames that these are left."""
    epochs: int
    cut: bool = False
    """Squares of this size are cut from the whole frames, half of them around what is marked, the others around places where the
    net was wrong and anywhere, and taught by what is marked in them alone; as many of each clip as `frames`, in every pass. Of
    the augmentation's changes of place they are mirrored and turned alone."""
    regions: bool = False
    """The classifier stays as it is, and the decoder of its regions learns."""

    def __post_init__(self) -> None:
        if min(self.size, self.frames, self.epochs) < 1:
            raise ValueError("a stage is size x frames x epochs, all at least 1")

    def __str__(self) -> str:
        return f"{'cut' * self.cut}{'roi' * self.regions}{self.size}x{self.frames}x{self.epochs}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train one net. Rates are those of Adam."""

    stages: tuple[Stage, ...]
    batch_size: int = 16
    """Clips per optimizer step, of all workers together."""
    passes: int = 1
    """Times that an epoch goes through the clips: where they are cut, each time another square is seen."""
    micro_batch: int | None = None
    """Clips per forward pass of a worker; the rest of its share is accumulated. None: 8 on processors, all on GPUs."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    step_epochs: int = 10
    """StepLR: after every so many epochs the rate is multiplied by `gamma`."""
    gamma: float = 0.4
    cosine: bool = False
    """In place of StepLR the rate falls from step to step as half a cosine over the epochs of each stage, after a short rise."""
    dropout: float | None = None
    """Of all dropout layers. None: as the net has it."""
    clip_norm: float = 2.0
    """Longest gradient of a step; 0: any."""
    loss: Loss = "cross_entropy"
    """f1: the stenosis paper's, for nets with a class per frame; over the first and the last class, each as good as the other."""
    box_weight: float = 0.0
    """Of the boxes in the loss, for nets with maps: 0 teaches by the classes of frames alone, as the stenosis paper does. Of
    calcification's outlines in its classifier's loss: what each cell of block 6 says; 0 teaches by patches, as its paper."""
    vessel_weight: float = 0.0
    """Of the vessels in the loss of squares that are cut, where labels have them (`vessel_masks`) and the net can draw them."""
    region_rate: float = 1e-3
    """Of Adam, in stages that teach regions (the calcification paper's decoder has ten times its classifier's)."""
    boundary_weight: float = 0.5
    """Of the boundary loss against soft Dice in these; the calcification paper has 1."""
    dilations: int = 4
    """Of the outlines, to the regions that are learnt: each extends them by 5 px of 512."""
    redundancy: bool = False
    """The stenosis paper's: frames without contrast beside the candidate frames of every training clip, under the clip's class,
    so that no background speaks for one. With a box weight, as frames on which nothing narrows: nothing is seen there."""
    balance: Balance = "weights"
    """Against unequal classes: weights in the loss, or each class drawn as often (with repeats), or nothing."""
    label_smoothing: float = 0.0
    precision: Precision = "auto"
    """Of the forward and backward pass; auto: bfloat16 where GPU or processor (AMX) has units for it, but for ResNet-152 3D on
    a processor, whose gradient held NaN.

    Measured on two cores with AMX, ms per clip and step: X3D-S at 160 px 644 in float32 and 571 in bfloat16 (with one thread
    1,600 and 735 to 885), ResNet-18 3D 2,357 and 1,599, ResNet-152 2D (four frames of 160 px) 1,116 and 379.
    """
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    patience: int | None = None
    """A stage ends after so many epochs without a better validation AUC. None: never early."""
    keep: Keep = "best"
    """Which epoch's weights: the last stage's best by validation AUC (then by validation loss), or the last."""
    settle_clips: int = 96
    """Training clips, whole and not augmented, over which batch normalisation is settled after the last epoch; 0: not, and not
    where the last stage cuts squares: these are what the net has learnt on."""
    max_minutes: float | None = None
    """Of one fold: no epoch is begun that would end later, judged by the ones before. None: no limit."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a recipe needs at least one stage")
        if not self.box_weight and any(stage.cut for stage in self.stages):
            raise ValueError("stages that cut squares from the frames need a box weight: the boxes teach them")
        if self.batch_size < 2:
            raise ValueError("batch size: at least 2 (batch normalisation)")
        if self.passes < 1:
            raise ValueError("passes: at least 1")
        if self.micro_batch is not None and self.micro_batch < 2:
            raise ValueError("micro batch: at least 2 (batch normalisation)")
        if not 0 <= self.boundary_weight <= 1:
            raise ValueError("boundary weight: from 0 to 1")
        for name in ("learning_rate", "gamma", "step_epochs", "region_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name.replace('_', ' ')}: must be above 0")
        for name in ("weight_decay", "clip_norm", "settle_clips", "box_weight", "vessel_weight", "dilations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name.replace('_', ' ')}: must not be below 0")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError("dropout: at least 0, below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError("label smoothing: at least 0, below 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError("patience: at least 1 epoch")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError("max minutes: must be above 0")
        for name, words in (
            ("loss", Loss),
            ("balance", Balance),
            ("precision", Precision),
            ("keep", Keep),
        ):
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name}: one of {', '.join(get_args(words))}")

    @property
    def epochs(self) -> int:
        """Of all stages, at most."""
        return sum(stage.epochs for stage in self.stages)

    def with_epochs(self, epochs: int) -> Recipe:
        """The same stages, so many epochs in all: each its share, the last at least one; a stage left without goes."""
        if epochs < 1:
            raise ValueError("epochs: at least 1")
        shares = [stage.epochs * epochs / self.epochs for stage in self.stages]
        counts = [int(share) for share in shares]
        counts[-1] = max(1, counts[-1])
        while sum(counts) != epochs:
            gaps = [share - count for share, count in zip(shares, counts, strict=True)]
            if sum(counts) < epochs:
                counts[gaps.index(max(gaps))] += 1
            else:
                open_to = [i for i, count in enumerate(counts) if count > (i == len(counts) - 1)]
                counts[min(open_to, key=lambda i: gaps[i])] -= 1
        stages = [replace(stage, epochs=n) for stage, n in zip(self.stages, counts, strict=True) if n]
        return replace(self, stages=tuple(stages))


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Stages as typed: size x frames x epochs, with commas between (`80x4x12,160x16x2`; `cut256x4x8`). ValueError."""
    stages = []
    for word in text.split(","):
        found = re.fullmatch(r"(cut)?(roi)?(\d+)x(\d+)x(\d+)", word.strip())
        if not found:
            raise ValueError(f"stages {text!r}: size x frames x epochs each, such as 80x4x12,160x16x2")
        size, frames, epochs = map(int, found.groups()[2:])
        stages.append(Stage(size=size, frames=frames, epochs=epochs, cut=bool(found[1]), regions=bool(found[2])))
    return tuple(stages)


def _pairs(_type: Any, tokens: Sequence[Any]) -> tuple[tuple[str, float], ...]:
    pairs = []
    for word in (word for token in tokens for word in token.value.split(",") if word):
        name, _, value = word.partition("=")
        pairs.append((name.strip(), float(value)))
    return tuple(pairs)


Pairs = Annotated[
    tuple[tuple[str, float], ...],
    Parameter(converter=_pairs, n_tokens=1, negative="", show_default=False),
]
"""name=value with commas between on the command line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeChanges:
    """What to change in a recipe; None leaves it."""

    stages: str | None = None
    """Size x frames x epochs of each stage, with commas between: 80x4x12,160x16x2. cut80x2x8: squares cut from the frames around
    what is marked."""
    epochs: int | None = None
    """Of all stages together, divided as the recipe divides them."""
    batch_size: int | None = None
    """Clips per optimizer step, of all workers together."""
    micro_batch: int | None = None
    """Clips per forward pass of a worker; the rest of its share is accumulated."""
    passes: int | None = None
    """Times that an epoch goes through the clips."""
    learning_rate: float | None = None
    """Of Adam."""
    weight_decay: float | None = None
    """Of Adam."""
    step_epochs: int | None = None
    """StepLR: epochs between two steps of the rate."""
    gamma: float | None = None
    """StepLR: factor of each step."""
    cosine: bool | None = None
    """In place of StepLR, half a cosine over the epochs of each stage."""
    dropout: float | None = None
    """Of all dropout layers."""
    clip_norm: float | None = None
    """Longest gradient of a step; 0: any."""
    loss: Loss | None = None
    """Of nets with a class per frame: f1 is the paper's."""
    region_rate: float | None = None
    """Of Adam, in stages that teach regions (roi512x2x10)."""
    boundary_weight: float | None = None
    """Of the boundary loss against soft Dice in these."""
    dilations: int | None = None
    """Of the outlines of calcification, to the regions that are learnt."""
    box_weight: float | None = None
    """Of the boxes in the loss, for nets with maps; 0: by the classes of frames alone, as the paper does."""
    vessel_weight: float | None = None
    """Of drawn vessels in the loss, where squares are cut; 0: not taught."""
    redundancy: bool | None = None
    """Frames without contrast beside the candidate frames in training (the stenosis paper's)."""
    balance: Balance | None = None
    """Against unequal classes: weights in the loss, each class drawn as often, or nothing."""
    label_smoothing: float | None = None
    """Of the targets."""
    precision: Precision | None = None
    """Of the forward and backward pass."""
    strength: float | None = None
    """Factor for all of the augmentation but flips."""
    augment: Pairs = ()
    """Single bounds of the augmentation: rotation_deg=5,noise=0.02."""
    patience: int | None = None
    """A stage ends after so many epochs without a better validation AUC; 0: never early."""
    keep: Keep | None = None
    """Which epoch's weights."""
    settle_clips: int | None = None
    """Training clips over which batch normalisation is settled at the end."""
    max_minutes: float | None = None
    """Of one fold: no epoch is begun that would end later."""

    def applied(self, recipe: Recipe) -> Recipe:
        """The changed recipe. ValueError where it makes no sense."""
        plain = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("stages", "epochs", "strength", "augment", "patience")
            and getattr(self, f.name) is not None
        }
        if self.stages is not None:
            plain["stages"] = parse_stages(self.stages)
        if self.patience is not None:
            plain["patience"] = self.patience or None
        augment = recipe.augment if self.strength is None else recipe.augment.scaled(self.strength)
        known = {f.name for f in fields(AugmentConfig)}
        if unknown := sorted({name for name, _ in self.augment} - known):
            raise ValueError(f"augment {', '.join(unknown)}: no such bound; there are {', '.join(sorted(known))}")
        changed = replace(recipe, **plain, augment=replace(augment, **dict(self.augment)))
        return changed if self.epochs is None else changed.with_epochs(self.epochs)


def _stages(*stages: tuple[int, int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(size=size, frames=frames, epochs=epochs) for size, frames, epochs in stages)


def _paper(size: int, frames: int, rate: float, decay: float, batch: int) -> Recipe:
    """Stated: Adam, StepLR(step 30), over 100 epochs, rate, decay, batch, which augmentation. The rest is ours."""
    return Recipe(
        stages=_stages((size, frames, 101)),
        batch_size=batch,
        learning_rate=rate,
        weight_decay=decay,
        step_epochs=30,
        gamma=0.1,
        clip_norm=0.0,
        augment=PAPER_AUGMENTATION,
    )


def _stenosis_paper(size: int, frames: int, rate: float) -> Recipe:
    """Stated of the LSTM: 100 epochs, rate 4e-5, a convolutional F1 score as loss, trained behind an Inception-v3 that had 200
    epochs at 1e-4 on single frames. Here one net learns both at once; batch and augmentation are ours."""
    return Recipe(
        stages=_stages((size, frames, 100)),
        batch_size=4,
        micro_batch=2,
        learning_rate=rate,
        weight_decay=0.0,
        step_epochs=100,
        clip_norm=0.0,
        loss="f1",
        balance="none",
        augment=AugmentConfig().scaled(0.5),
        settle_clips=0,
    )


def _short(*stages: tuple[int, int, int], **changes: Any) -> Recipe:
    options: dict[str, Any] = {"dropout": 0.0, "step_epochs": 8, "gamma": 0.4, **changes}
    return Recipe(stages=_stages(*stages), **options)


def _frames_paper(size: int) -> Recipe:
    """Nothing is stated of the stenosis classifier's training: rate as the candidate frames' classifier, the rest ours."""
    return Recipe(
        stages=_stages((size, 8, 100)),
        batch_size=8,
        learning_rate=1e-4,
        weight_decay=0.0,
        step_epochs=100,
        clip_norm=0.0,
        augment=AugmentConfig().scaled(0.5),
    )


def _detector_paper(size: int) -> Recipe:
    """Stated: 500 epochs at 1e-4, on the classifier's features; the rest is ours. Since these do not learn, any epoch's classes
    are as good as another's: the last one's boxes are taken."""
    return replace(
        _frames_paper(size), stages=_stages((size, 8, 500)), step_epochs=500, box_weight=1.0, settle_clips=0, keep="last"
    )


def _frames(*stages: tuple[int, int, int], **changes: Any) -> Recipe:
    """Single frames: some of each clip in an epoch, others in the next."""
    options: dict[str, Any] = {"batch_size": 8, "micro_batch": 4, "dropout": None, "step_epochs": 4, "settle_clips": 24}
    return _short(*stages, **(options | changes))


_ANY_WAY = replace(
    NO_AUGMENTATION, flip=0.5, upside_down=0.5, turned=0.5, gamma=0.2, contrast=0.15, brightness=0.05,
    noise_share=0.5, noise=0.012,
)  # fmt: skip
"""Of squares: what is sought in them looks the same from any side."""


def _squares(size_frames_epochs: tuple[int, int, int]) -> Recipe:
    """Squares cut from the frames: most of a frame holds nothing to learn from."""
    size, frames, epochs = size_frames_epochs
    options: dict[str, Any] = {"batch_size": 128, "micro_batch": 64, "passes": 16, "learning_rate": 2e-3, "weight_decay": 1e-5}
    return replace(
        _frames(size_frames_epochs, box_weight=1.0, vessel_weight=1.0, cosine=True, **options),
        stages=(Stage(size=size, frames=frames, epochs=epochs, cut=True),),
        augment=_ANY_WAY,
    )


def _short_resnet(*stages: tuple[int, int, int], **changes: Any) -> Recipe:
    """Small inputs for one processor core and some 260 clips; what they gave, and that it is too little: docs/experiments.md."""
    return _short(*stages, batch_size=8, step_epochs=10, augment=AugmentConfig().scaled(0.3), **changes)


def _whole_clips(*stages: tuple[int, int, int], **changes: Any) -> Recipe:
    """Nets that read all frames in order: few clips at a time, since each is many frames; all of the frames, since an error
    counts in frames."""
    options: dict[str, Any] = {"batch_size": 8, "micro_batch": 2, "step_epochs": 5, "dropout": None, "settle_clips": 48}
    return _short(*stages, **(options | changes))


def _regions_paper(*, classifier: bool) -> Recipe:
    """Stated: 100 epochs of the classifier at 1e-4, then 100 of the decoder at 1e-3, batches of 32, boundary loss alone; which of
    them are patches and which frames is not. The nets that it is compared with learn regions alone."""
    first = (Stage(size=512, frames=2, epochs=100),) if classifier else ()
    return Recipe(
        stages=(*first, Stage(size=512, frames=2, epochs=100, regions=True)),
        batch_size=32, micro_batch=8, learning_rate=1e-4, region_rate=1e-3, boundary_weight=1.0, weight_decay=0.0,
        step_epochs=200, clip_norm=0.0, settle_clips=0, keep="last", augment=AugmentConfig().scaled(0.5),
    )  # fmt: skip


def _regions(size: int, epochs: int, region_epochs: int, **changes: Any) -> Recipe:
    """A classifier for some epochs, 0: none, and then regions."""
    first = (Stage(size=size, frames=2, epochs=epochs),) if epochs else ()
    options: dict[str, Any] = {"batch_size": 8, "micro_batch": 4, "step_epochs": 4, "settle_clips": 0, "keep": "last"}
    return Recipe(
        stages=(*first, Stage(size=size, frames=2, epochs=region_epochs, regions=True)),
        augment=AugmentConfig().scaled(0.5), **(options | changes),
    )  # fmt: skip


def _pair_squares(epochs: int, region_epochs: int, size: int = 128, **changes: Any) -> Recipe:
    """Squares cut from pairs of frames, for the classifier first, where there is one, and then for regions."""
    first = (Stage(size=size, frames=2, epochs=epochs, cut=True),) if epochs else ()
    options: dict[str, Any] = {"batch_size": 64, "micro_batch": 64, "passes": 8, "box_weight": 1.0}
    return Recipe(
        stages=(*first, Stage(size=size, frames=2, epochs=region_epochs, cut=True, regions=True)),
        cosine=True, settle_clips=0, keep="last", augment=_ANY_WAY, **(options | changes),
    )  # fmt: skip


_DOUBLE_HEADS = ("resunet_18", "resunet_18_one_head", "resunet_s", "resunet_s_one_head")
_SEGMENTERS, _DETECTORS = ("unet", "transunet"), ("mask_rcnn", "fcos")
_REGION_NETS = (*_SEGMENTERS, *_DETECTORS)
_ALL_CELLS = ("stenosis_s", "stenosis_s_view")
"""Nets in whose frames each cell has a say."""
_CATEGORIES = ("", "_3cat")
"""Suffixes of nets with the paper's two and three classes of stenosis."""

RECIPES: dict[str, dict[str, Recipe]] = {
    "paper": {
        "r18_2d": _paper(299, 4, 5e-5, 1e-3, 32),
        "r152_2d": _paper(299, 4, 5e-5, 1e-3, 32),
        "r18_3d": _paper(160, 16, 1e-4, 1e-3, 32),
        "r152_3d": _paper(160, 16, 1e-4, 1e-3, 32),
        "x3d_s": _paper(160, 16, 1e-4, 1e-4, 64),
        "projection_2d": _paper(112, 200, 1e-4, 1e-4, 64),
        "frames_lstm": _stenosis_paper(112, 200, 4e-5),
        "inception_lstm": _stenosis_paper(299, 200, 4e-5),
    }
    | {f"{net}{suffix}": _frames_paper(512) for net in _ALL_CELLS for suffix in _CATEGORIES}
    | {f"stenosis_fpn{suffix}": _detector_paper(512) for suffix in _CATEGORIES}
    | {f"inception_v3{suffix}": _frames_paper(299) for suffix in _CATEGORIES}
    | {net: _regions_paper(classifier=net in _DOUBLE_HEADS) for net in (*_DOUBLE_HEADS, *_REGION_NETS)},
    "short": {
        "r18_2d": _short_resnet((96, 4, 16), learning_rate=5e-4),
        "r152_2d": _short_resnet((64, 4, 6), learning_rate=3e-4),
        "r18_3d": _short_resnet((64, 8, 18), learning_rate=1e-3),
        "r152_3d": _short_resnet((48, 4, 6), learning_rate=3e-4),
        "x3d_s": _short((80, 4, 12), (112, 8, 6), (160, 16, 2)),
        "projection_2d": _short(
            (112, 50, 24), batch_size=32, micro_batch=32, learning_rate=2e-3, cosine=True, dropout=None, settle_clips=0,
            augment=AugmentConfig().scaled(0.7),
        ),
        "frames_lstm": _whole_clips(
            (56, 200, 3), (112, 200, 9), batch_size=16, micro_batch=4, learning_rate=5e-3, step_epochs=4, settle_clips=0,
            augment=AugmentConfig().scaled(0.5),
        ),
        "inception_lstm": _whole_clips((96, 200, 4), batch_size=4, learning_rate=3e-4),
    }
    | {f"{net}{suffix}": _squares((80, 2, 16)) for net in _ALL_CELLS for suffix in _CATEGORIES}
    | {
        f"stenosis_fpn{suffix}": replace(
            _squares((192, 2, 6)), passes=4, batch_size=32, micro_batch=16, learning_rate=1e-3, keep="last"
        )
        for suffix in _CATEGORIES
    }
    | {f"inception_v3{suffix}": _frames((299, 2, 8), learning_rate=3e-4) for suffix in _CATEGORIES}
    | {net: _pair_squares(8, 6) for net in _DOUBLE_HEADS}
    | {net: _pair_squares(0, 14) for net in _SEGMENTERS}
    | {net: _pair_squares(0, 14, 256, batch_size=16, micro_batch=8, passes=2, region_rate=3e-4) for net in _DETECTORS},
    "smoke": {
        net: _short((32, 4, 1), batch_size=4, settle_clips=8)
        for net in ("r18_2d", "r152_2d", "r18_3d", "r152_3d", "x3d_s", "projection_2d")
    }
    | {
        "frames_lstm": _whole_clips((32, 200, 1), settle_clips=4),
        "inception_lstm": _whole_clips((96, 8, 1), batch_size=2, settle_clips=2),
    }
    | {f"{net}{suffix}": _frames((128, 2, 1), settle_clips=4, box_weight=1.0) for net in _ALL_CELLS for suffix in _CATEGORIES}
    | {f"stenosis_fpn{suffix}": _frames((128, 2, 1), settle_clips=0, box_weight=1.0, keep="last") for suffix in _CATEGORIES}
    | {f"inception_v3{suffix}": _frames((96, 2, 1), settle_clips=4) for suffix in _CATEGORIES}
    | {net: _regions(128, 1, 1, box_weight=1.0) for net in _DOUBLE_HEADS}
    | {net: _regions(128 if net in _SEGMENTERS else 512, 0, 1) for net in _REGION_NETS},
}
"""Recipe name -> net -> recipe."""


def find_recipe(name: str, net: str) -> Recipe:
    """The recipe of that name for a net. ValueError names what there is."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    if net not in RECIPES[name]:
        raise ValueError(f"recipe {name} is not for net {net!r}; it is for {', '.join(RECIPES[name])}")
    return RECIPES[name][net]
