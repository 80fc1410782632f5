"""The training loop of one fold: clips and targets in, weights and held-out probabilities out.

    Part (train), Part (validation) -> fit -> Fitted     one process, or one of several (torch.distributed)

Every draw (initial weights, order, augmentation, dropout) is a function of the seed and the epoch, so a loop that goes on
from a state ends as one that was never stopped. Knows nothing of Ray, tables, files or patients.

Shapes: N clips of a part, B of a batch, T frames, H x W pixels, K classes. Targets and probabilities of nets with a class per
frame have T beside N.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from angio_ray.models import NETS
from angio_ray.models.backends import bf16_units
from angio_ray.models.classifier import ClipClassifier, cell_probability, pooled, pooled_cells
from angio_ray.models.interface import NOT_LAST, UNJUDGED
from angio_ray.models.regions import patches
from angio_ray.models.stenosis import SMALLEST, with_view
from angio_ray.training.augment import augment, augment_located, changed_masks
from angio_ray.training.calibration import calibrate, with_calibration
from angio_ray.training.losses import MOTION, box_loss, boxes_of_frames, detection_loss, soft_convolutional_f1
from angio_ray.training.quick_nets import fit_for_training, settle_statistics
from angio_ray.training.recipes import Recipe, Stage
from angio_ray.training.regions import LEAST_PX, Outlines, cell_loss, holds_calcification, region_loss, region_targets
from angio_ray.training.squares import PairSquares, Squares, wrong_places
from angio_ray.training.vessels import vessel_loss

_PREDICTED_AT_ONCE = 8
_SETTLED_AT_ONCE = 16
_WHOLE_CLIPS_AT_ONCE = 2
"""Of nets that look at all frames: 200 take the memory of a dozen quality inputs."""
_CPU_MICRO_BATCH = 8
_LOOKED_AT = 0.25
"""Share of the training clips of which a frame is looked at for mistakes before an epoch of squares."""
_CALIBRATED_BY = 512
"""Validation clips, at most, by whose frames maps are calibrated."""
_UNTOLD = 0.2
"""Share of what a net that sees the view is taught without it."""
_WARM_UP = 0.1
"""Epochs in which the rate rises, where it falls as a cosine."""
_LEAST_RATE = 0.02
"""Share of the rate that is left at the cosine's end."""
_WRONG_IN_BFLOAT16 = frozenset({"r152_3d"})
"""Nets whose gradient held NaN in bfloat16 on a processor with AMX (PyTorch 2.15: the first strided shortcut's), and none in
float32."""


class FitError(ValueError):
    """This data, or this recipe on it, cannot be trained with: one clear line. Another try ends the same."""


class Readable(Protocol):
    """Model inputs that can be read in any order, also from another thread."""

    @property
    def num_frames(self) -> int:
        """T."""

    def num_shown(self, rows_B: NDArray[np.intp]) -> int:
        """Of their frames the first so many show these clips; the rest, if there is one, repeats the last."""

    def read(self, rows_B: NDArray[np.intp], places_BT: NDArray[np.integer] | None = None) -> NDArray[np.uint8]:
        """The inputs of these rows, (B, T, H, W): all of their frames, or of each those at its places."""


class Clips(Readable, Protocol):
    """The same, frame by frame too."""

    def frame(self, row: int, place: int) -> NDArray[np.uint8]:
        """One of them, (H, W)."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """Inputs held as one array."""

    clips_NTHW: NDArray[np.uint8]

    @property
    def num_frames(self) -> int:
        """T."""
        return self.clips_NTHW.shape[1]

    def num_shown(self, rows_B: NDArray[np.intp]) -> int:
        """All of them, for all that is known."""
        return self.num_frames

    def read(self, rows_B: NDArray[np.intp], places_BT: NDArray[np.integer] | None = None) -> NDArray[np.uint8]:
        """The inputs of these rows, (B, T, H, W)."""
        return self.clips_NTHW[rows_B] if places_BT is None else self.clips_NTHW[rows_B[:, None], places_BT]

    def frame(self, row: int, place: int) -> NDArray[np.uint8]:
        """One of their frames, (H, W)."""
        return self.clips_NTHW[row, place]


@dataclass(frozen=True, slots=True)
class Part:
    """The clips of one part of a fold and their targets."""

    clips: Clips
    target_N: NDArray[np.int64]
    """1: the positive class. For nets with a class per frame (N, T): the frame's class, or UNJUDGED."""
    boxes: tuple[NDArray[np.float32] | None, ...] = ()
    """Of each clip what was marked on its frames, (S, 7) as `losses.boxes_of_frames` takes them; None: nothing is known."""
    outlines: tuple[bytes, ...] = ()
    """Of each pair of frames the calcification in the first, as PNG."""
    vessels: tuple[tuple[bytes | None, ...], ...] = ()
    """Of each clip's frames the filled vessels, as PNG; None, or no frames at all, where nobody drew them."""
    views: tuple[str | None, ...] = ()
    """Of each clip which of `views.OWN_MODEL` it is for, of nets that see it."""
    num_as_scored: int | None = None
    """So many of the first clips are such as are scored; the others are there to teach. None: all."""

    def __len__(self) -> int:
        return len(self.target_N)

    def told(self, x_BTHW: Tensor, rows: Sequence[int], rng: np.random.Generator | None = None) -> Tensor:
        """Frames of these clips as a net takes them that sees the view (`stenosis.with_view`); as they are for other nets.

        With `rng` some are not told (_UNTOLD), so that the net can do without."""
        if not self.views:
            return x_BTHW
        views = [None if rng is not None and rng.random() < _UNTOLD else self.views[row] for row in rows]
        return torch.from_numpy(with_view(x_BTHW.round().to(torch.uint8).cpu().numpy(), views)).to(x_BTHW.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where this process computes, and which of how many it is."""

    device: str = "cpu"
    rank: int = 0
    world: int = 1
    threads: int | None = None
    """Of this process on processors. None: as torch has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What one epoch came to."""

    number: int
    """From 1."""
    of: int
    """Epochs of the recipe, at most."""
    size: int
    frames: int
    learning_rate: float
    precision: str = "not recorded"
    """Of the forward and backward pass: float32 or bfloat16."""
    loss: float
    validation_loss: float
    validation_auc: float | None
    """None where validation has one class only."""
    clips: int
    """Seen in this epoch, by all workers."""
    steps: int
    """Of the optimizer."""
    seconds: float
    """With validation."""
    clips_per_s: float
    """Of training alone."""
    core_seconds: float
    """Processor time of all workers."""
    seconds_left: float
    """Of the epochs to come, judged by those before."""
    patch_f1: float | None = None
    """Of nets of regions, the verdicts on the patches of validation, at one half."""
    heat_inside: float | None = None
    """Of these, the share of block 6's heat that lies in the regions around calcification, of patches that hold any."""


@dataclass(slots=True)
class State:
    """All that the loop needs to go on: plain values and tensors, for torch.save."""

    epoch: int = 0
    """Epochs done."""
    stage: int = 0
    stage_epoch: int = 0
    stale: int = 0
    """Epochs of this stage without a better validation AUC."""
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, float] | None = None
    """(validation AUC, -validation loss) of this stage's best epoch."""
    best_epoch: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best_model: dict[str, Tensor] = field(default_factory=dict)
    """Weights of that epoch, kept in the last stage."""
    mistakes: dict[int, list[list[float]]] = field(default_factory=dict)
    """Training clip -> place of a frame (not of pairs), then x and y as shares of its sides, where its map showed most outside
    what is marked when last looked at. Squares are cut there."""

    def as_dict(self) -> dict[str, Any]:
        """For torch.save; read it with `weights_only=True`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> State:
        """What `as_dict` gave."""
        values = dict(values)
        values["best"] = None if values["best"] is None else tuple(values["best"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A trained net."""

    state_dict: dict[str, Tensor]
    """Of `ClipClassifier.net`, on the CPU, rounded as a bundle stores it."""
    epochs: tuple[Epoch, ...]
    best_epoch: int
    """Whose weights these are, from 1."""
    classifier: ClipClassifier
    """Ready to predict."""


def fit(
    net: str,
    train: Part,
    validation: Part,
    recipe: Recipe,
    *,
    seed: int = 0,
    place: Place | None = None,
    start: Mapping[str, Tensor] | None = None,
    state: State | None = None,
    after_epoch: Callable[[Epoch, State], None] | None = None,
) -> Fitted:
    """Train a net on one part while another is watched.

    Parameters
    ----------
    net
        Name in NETS.
    train, validation
        Both classes in the first. Validation chooses the epoch and the end of a stage, and maps learnt from squares are
        calibrated by it.
    recipe
        How.
    seed
        The same seed, data, number of workers and machine give the same weights.
    place
        With `world` above 1, torch.distributed must be initialised; every process calls this with the same arguments.
    start
        State dict of `ClipClassifier.net` to begin from. Default: the net's random one.
    state
        What `after_epoch` was given after some epoch: the loop goes on from there.
    after_epoch
        Called on every process after each epoch, with a state that holds tensors of the running net: save or copy them.

    Raises
    ------
    FitError
        A part that lacks clips or a class, an unknown net, a loss that is no number any more (the line names the epoch).
    """
    place = place or Place()
    if place.threads:
        torch.set_num_threads(place.threads)
    loop = _Loop(net, train, validation, recipe, seed, place, start)
    if state is not None:
        loop.resume(state)
    loop.run(after_epoch)
    return loop.finish()


@torch.no_grad()
def predict(classifier: ClipClassifier, part: Part, place: Place | None = None) -> NDArray[np.float32]:
    """Probability of the positive class of each clip, (N,), or of each class of each frame, (N, T, K); float32.

    The processes share the work, all get the whole.
    """

    def probability(x_BTHW: Tensor) -> Tensor:
        p = torch.softmax(classifier.logits(x_BTHW).float(), dim=-1)
        return p if _per_frame(classifier) else p[:, -1]

    return _said(classifier, part, _all(part), place or Place(), _at_once(classifier, _PREDICTED_AT_ONCE), probability)


@torch.no_grad()
def predict_places(classifier: ClipClassifier, part: Part, place: Place | None = None) -> NDArray[np.float32]:
    """All that nets with maps, or of regions, say, (N, T, K + h * w + D * 5), or (N, K + 5 + 5 * P * P), for `taken_apart` of the
    modules `stenosis` or `calcium`."""
    return _said(classifier, part, _all(part), place or Place(), _WHOLE_CLIPS_AT_ONCE, classifier)


@torch.no_grad()
def predict_patches(classifier: ClipClassifier, part: Part, place: Place | None = None) -> NDArray[np.float32]:
    """Of nets of regions, the probability that each patch of a pair holds calcification, (N, 5)."""

    def probability(x_B2HW: Tensor) -> Tensor:
        return torch.sigmoid(classifier.verdicts(x_B2HW).float())

    return _said(classifier, part, _all(part), place or Place(), _WHOLE_CLIPS_AT_ONCE, probability)


def _all(part: Part) -> NDArray[np.intp]:
    return np.arange(len(part))


def _said(
    classifier: ClipClassifier,
    part: Part,
    rows_N: NDArray[np.intp],
    place: Place,
    at_once: int,
    answer: Callable[[Tensor], Tensor],
) -> NDArray[np.float32]:
    """The answers to these clips, (N, ...), on every process. Nets that see each frame by itself are asked once for each."""
    classifier.eval()
    clips, batches = part.clips, _batches_of(_share(rows_N, place), at_once)
    alone = classifier.layout == "BCTHW-maps"
    places = [np.tile(np.arange(clips.num_shown(rows)), (len(rows), 1)) if alone else None for rows in batches]
    found = []
    for rows, x in zip(batches, _read_ahead(clips, batches, places=places), strict=True):
        said = answer(part.told(x, rows.tolist()).to(place.device)).float().cpu().numpy()
        if alone:
            missing = clips.num_frames - said.shape[1]
            said = np.pad(said, [(0, 0), (0, missing), *[(0, 0)] * (said.ndim - 2)], mode="edge")
        found.append(said)
    return np.asarray(_gathered(found, place), np.float32)


class _Loop:
    def __init__(
        self,
        net: str,
        train: Part,
        validation: Part,
        recipe: Recipe,
        seed: int,
        place: Place,
        start: Mapping[str, Tensor] | None,
    ) -> None:
        if net not in NETS:
            raise FitError(f"unknown net {net!r}; there is {', '.join(NETS)}")
        if not len(validation):
            raise FitError("there is no validation clip")
        if len(train) < 2 * place.world:
            raise FitError(f"{len(train)} training clips are too few for {place.world} workers")
        judged = train.target_N[train.target_N != UNJUDGED]
        counts_K = np.bincount(judged[judged != NOT_LAST], minlength=NETS[net].classes).astype(float)
        counts_K[:-1] += (judged == NOT_LAST).sum() / (len(counts_K) - 1)  # of which of them is not known
        if (counts_K > 0).sum() < 2:
            raise FitError("the training clips have one class only")
        self.train, self.validation, self.recipe, self.place, self.seed = train, validation, recipe, place, seed
        self.device = torch.device(place.device)
        torch.manual_seed(seed)
        self.classifier = ClipClassifier(NETS[net])
        if start is not None:
            whole = NETS[net].part is None  # of others another net's weights are a part
            left = self.classifier.net.load_state_dict(_for_classes(start, self.classifier), strict=whole)
            lacking = set(left.missing_keys) - {"features.view.weight"}
            if left.unexpected_keys or any(name.startswith(("features.", "cells.")) for name in lacking):
                raise FitError(f"the weights to begin from are not those of a classifier that {net} can look at")
        else:
            close_branches(self.classifier.net)
        fit_for_training(self.classifier, self.device)
        for module in self.classifier.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) and recipe.dropout is not None:
                module.p = recipe.dropout
        self.model: nn.Module = _Trained(self.classifier)
        drawing = getattr(self.classifier.net, "vessels", None)
        if drawing is not None and not (recipe.vessel_weight and any(train.vessels)):
            drawing.requires_grad_(False)  # nothing teaches it, and several workers would wait for its gradient
        if place.world > 1:
            self.model = DistributedDataParallel(
                self.model, device_ids=None if self.device.type == "cpu" else [self.device]
            )
        self.net = net
        self.precision = _chosen_precision(net, recipe, self.device, place)
        self.optimizer = torch.optim.Adam(
            self.classifier.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        shares_K = len(judged) / (len(counts_K) * np.maximum(counts_K, 1))  # each class weighs as much as another
        weights_K = shares_K if recipe.balance == "weights" else np.ones(len(counts_K))
        # by target: the classes, then NOT_LAST and UNJUDGED from the end
        self.class_weight = torch.tensor([*weights_K, weights_K[:-1].mean(), 0.0]).float()
        self.target_N = torch.from_numpy(np.asarray(train.target_N, np.int64))
        self.regions = NETS[net].layout == "B2HW-regions"
        if self.regions and not hasattr(self.classifier.net, "cells") and not all(stage.regions for stage in recipe.stages):
            raise FitError(f"{net} has no classifier: all of its stages are roi stages")
        if self.regions:
            size = NETS[net].window.size
            self.outlines, self.watched = (Outlines(part.outlines, size) for part in (train, validation))
            whole = any(not stage.cut and not stage.regions for stage in recipe.stages)
            self.patch_weight = self.outlines.rarity() if whole else 1.0
        self.squares: Squares | None = None
        self.pair_squares: PairSquares | None = None
        if any(stage.cut for stage in recipe.stages):
            self._cut()
        self._layers: dict[int, NDArray[np.generic]] = {}
        self.state = State()

    def _cut(self) -> None:
        """What the stages with `cut` learn from."""
        drawn = getattr(self.classifier.net, "vessels", None) is not None and not self.classifier.num_boxes
        try:
            if self.regions:
                self.pair_squares = PairSquares(self.train.clips, self.outlines, self.recipe.augment)
                return
            self.squares = Squares(
                self.train.clips,
                self.train.boxes,
                self.train.target_N != UNJUDGED,
                augment=self.recipe.augment,
                vessels=self.train.vessels if drawn and self.recipe.vessel_weight else (),
                guesses=not self.classifier.num_boxes,
            )
        except ValueError as error:
            raise FitError(f"squares cannot be cut: {error}") from None

    # -- epochs --

    def resume(self, state: State) -> None:
        self.state = state
        before = state.history[-1].get("precision") if state.history else None
        if self.recipe.precision == "auto" and before in ("float32", "bfloat16") and _fits(before, self.device, self.net):
            self.precision = before  # as it began, on whatever machine it goes on
        if state.model:
            self.classifier.net.load_state_dict(state.model)
            self.optimizer.load_state_dict(state.optimizer)

    def run(self, after_epoch: Callable[[Epoch, State], None] | None) -> None:
        state, stages = self.state, self.recipe.stages
        while not state.done:
            stage = stages[state.stage]
            if self._time_is_up(stage):
                break
            epoch = self._epoch(stage)
            state.history.append(asdict(epoch))
            last = state.stage == len(stages) - 1
            self._judge(epoch, last)
            state.epoch += 1
            state.stage_epoch += 1
            tired = self.recipe.patience is not None and state.stale >= self.recipe.patience
            if tired or state.stage_epoch >= stage.epochs:
                state.done = last
                if not last:
                    state.stage, state.stage_epoch, state.stale, state.best = state.stage + 1, 0, 0, None
            state.model, state.optimizer = self.classifier.net.state_dict(), self.optimizer.state_dict()
            if after_epoch:
                after_epoch(epoch, state)
        state.done = True

    def _judge(self, epoch: Epoch, last_stage: bool) -> None:
        """Whether this epoch is the best of its stage; in the last stage its weights are kept."""
        state = self.state
        score = (epoch.validation_auc if epoch.validation_auc is not None else 0.0, -epoch.validation_loss)
        better = state.best is None or score > state.best
        state.stale = 0 if state.best is None or score[0] > state.best[0] else state.stale + 1
        if better:
            state.best, state.best_epoch = score, epoch.number
            if last_stage and self.recipe.keep == "best":
                state.best_model = _on_cpu(self.classifier.net.state_dict())

    def _time_is_up(self, stage: Stage) -> bool:
        if self.recipe.max_minutes is None or not self.state.history:
            return False
        spent = sum(epoch["seconds"] for epoch in self.state.history)
        return spent + self._seconds_per_value() * _values(stage) > self.recipe.max_minutes * 60

    def _seconds_per_value(self) -> float:
        """Of the newest epoch: seconds per pixel of a clip."""
        newest = self.state.history[-1]
        return float(newest["seconds"]) / (newest["size"] ** 2 * newest["frames"])

    def _epoch(self, stage: Stage) -> Epoch:
        number, recipe, place = self.state.epoch, self.recipe, self.place
        if stage.regions:
            self.classifier.net.freeze_classifier()  # type: ignore[operator]
        torch.manual_seed(_mixed(self.seed, number, place.rank, 1))  # dropout
        begun, processor = time.monotonic(), time.process_time()
        if stage.cut:
            if number and self.squares is not None:
                self._look_for_mistakes(self.squares, number)
            elif number and not stage.regions:
                self._look_for_mistaken_pairs(number)
            losses, clips, steps = self._square_steps(stage, number)
        else:
            batches = self._order(number)
            losses, clips = self._steps(stage, number, batches)
            steps = len(batches)
        trained_s = time.monotonic() - begun
        loss_sum = float(sum(_gathered([np.array([losses])], place)))
        probability_N = self._watch(stage)
        # both are the same on every process, so that all of them stop here
        if not (math.isfinite(loss_sum) and np.isfinite(probability_N).all()):
            raise FitError(
                f"epoch {number + 1}: the loss is no finite number any more; "
                f"take a lower --learning-rate than {recipe.learning_rate:g}"
            )
        worst = self.classifier.layout == "BCTHW-maps"
        loss, auc = _judged(thinned_targets(self.validation.target_N, stage.frames), probability_N, any_but_first=worst)
        # the same numbers on every process: they decide what comes next
        values = _agreed(
            [
                loss_sum / clips,
                trained_s,
                time.monotonic() - begun,
                sum(_gathered([np.array([time.process_time() - processor])], place)),
            ],
            place,
        )
        mean_loss, trained_s, seconds, core_seconds = map(float, values)
        per_value = seconds / _values(stage)
        state = self.state
        left = [
            (stage, stage.epochs - state.stage_epoch - 1),
            *((s, s.epochs) for s in recipe.stages[state.stage + 1 :]),
        ]
        return Epoch(
            number=number + 1,
            of=number + sum(n for _, n in left) + 1,
            size=stage.size,
            frames=stage.frames,
            learning_rate=self._rate(stage, number),
            precision=self.precision,
            loss=mean_loss,
            validation_loss=loss,
            validation_auc=auc,
            clips=clips,
            steps=steps,
            seconds=seconds,
            clips_per_s=clips / max(trained_s, 1e-9),
            core_seconds=core_seconds,
            seconds_left=per_value * sum(_values(s) * n for s, n in left),
            **(self._patch_figures(stage) if self.regions else {}),
        )

    def _order(self, number: int) -> list[NDArray[np.intp]]:
        """Rows of each optimizer step of an epoch, of all workers together."""
        rng = np.random.default_rng((self.seed, number))
        rows = np.tile(np.arange(len(self.train)), self.recipe.passes)
        if self.recipe.balance == "sampler":
            target = self.train.target_N
            chance = np.where(target == 1, 0.5 / (target == 1).sum(), 0.5 / (target == 0).sum())[rows] / self.recipe.passes
            order = rng.choice(rows, len(rows), p=chance)
        else:
            order = rng.permutation(rows)
        # equal shares: no small rest, whose batch statistics would be noise
        steps = max(1, min(round(len(order) / self.recipe.batch_size), len(order) // (2 * self.place.world)))
        return np.array_split(order, steps)

    def _steps(self, stage: Stage, number: int, batches: Sequence[NDArray[np.intp]]) -> tuple[float, int]:
        """One pass over the batches; (sum of the losses of this worker's clips, clips of all workers)."""
        recipe, place = self.recipe, self.place
        self.model.train()
        micro = recipe.micro_batch or (_CPU_MICRO_BATCH if self.device.type == "cpu" else recipe.batch_size)
        shares = [_batches_of(_share(batch, place), micro) for batch in batches]
        shown_of = [self._shown(stage, number, step, batch) for step, batch in enumerate(batches)]
        places_of = [
            [None] * len(share) if shown is None else _batches_of(_share(shown, place), micro)
            for share, shown in zip(shares, shown_of, strict=True)
        ]
        reading = _read_ahead(
            self.train.clips, [rows for share in shares for rows in share], self.device,
            [places for of_share in places_of for places in of_share],
        )  # fmt: skip
        total = torch.zeros((), device=self.device)
        for step, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            target_B = thinned_targets(self.target_N[batch], stage.frames, shown_of[step])
            whole = self._weight(target_B).sum().clamp(min=1e-9)
            self._begin_step(stage, number + step / len(batches))
            for i, (rows, shown) in enumerate(zip(share, places_of[step], strict=True)):
                generator = torch.Generator().manual_seed(_mixed(self.seed, number, step, i * place.world + place.rank))
                x = next(reading)
                x = thinned(x.to(self.device), stage.size, stage.frames)
                x, homography_B33 = augment_located(x, recipe.augment, generator)
                x = self.train.told(x, rows.tolist(), np.random.default_rng((self.seed, number, step, i, place.rank)))
                if self.regions:
                    masks = changed_masks(self.outlines.read(rows, stage.size).to(self.device)[:, None], homography_B33)[:, 0]
                    loss = self._region_loss(x, masks, stage) * (len(rows) / len(batch))
                    (loss * place.world).backward()
                    total += loss.detach() * len(batch)
                    continue
                target = thinned_targets(self.target_N[rows], stage.frames, shown).flatten()
                detector = bool(self.classifier.num_boxes)
                of_frames: list[Tensor | None] = []
                if self.train.boxes and recipe.box_weight:
                    marked = [self.train.boxes[row] for row in rows]
                    motion = None if detector else MOTION  # a detector learns the boxes themselves, so nothing is guessed
                    of_frames = self._boxes(marked, homography_B33, shown, motion)
                    of_frames = [None if t == UNJUDGED else b for b, t in zip(of_frames, target.tolist(), strict=True)]
                with self._local(last=i == len(share) - 1):
                    with self._autocast():
                        out = self.model(x)
                    if detector:
                        size = x.shape[-1]
                        taught = self._detection_loss(out, of_frames, size, SMALLEST * size)
                        loss = recipe.box_weight * taught / target_B.numel()
                    else:
                        loss = self._class_loss(out, target, whole, len(batch))
                        if of_frames and self.classifier.layout == "BCTHW-maps":
                            taught = box_loss(out.float().flatten(0, 1), of_frames)
                            loss = loss + recipe.box_weight * taught / target_B.numel()
                    # DistributedDataParallel takes the mean over the workers; the sum is meant
                    (loss * place.world).backward()
                total += loss.detach() * len(batch)
            self._end_step()
        self._share_statistics()
        return float(total), sum(map(len, batches))

    def _square_steps(self, stage: Stage, number: int) -> tuple[float, int, int]:
        """An epoch of squares, taught by what is marked in them: (sum of this worker's losses, squares of all, steps)."""
        recipe, place = self.recipe, self.place
        taught = self._taught_squares if self.squares is not None else self._taught_pairs
        self.model.train()
        steps = max(1, round(len(self.train) * recipe.passes * stage.frames / recipe.batch_size))
        mine = len(_share(np.arange(recipe.batch_size), place))
        counts = [len(part) for part in _batches_of(np.arange(mine), recipe.micro_batch or recipe.batch_size)]
        total = torch.zeros((), device=self.device)
        for step in range(steps):
            self._begin_step(stage, number + step / steps)
            for i, count in enumerate(counts):
                seed = (self.seed, number, step, i * place.world + place.rank)
                with self._local(last=i == len(counts) - 1):
                    loss = taught(stage, count, seed) / recipe.batch_size
                    (loss * place.world).backward()  # see `_steps`
                total += loss.detach() * recipe.batch_size
            self._end_step()
        self._share_statistics()
        return float(total), steps * recipe.batch_size, steps

    def _taught_squares(self, stage: Stage, count: int, seed: tuple[int, ...]) -> Tensor:
        """Sum of the losses of so many squares of frames with boxes."""
        recipe, squares = self.recipe, self.squares
        assert squares is not None
        drawn = squares.draw(stage.size, count, np.random.default_rng(seed), self.state.mistakes)
        x = self._augmented(torch.from_numpy(drawn.squares_NSS)[:, None], seed)
        x = self.train.told(x, drawn.rows_N, np.random.default_rng((*seed, 1)))
        with self._autocast():
            out = self.model(x, vessels=drawn.vessels_NSS is not None)
        if self.classifier.num_boxes:
            smallest = SMALLEST * self.train.clips.frame(*squares.frames[0]).shape[-1]
            return recipe.box_weight * self._detection_loss(out, drawn.boxes_N, stage.size, smallest)
        maps = out if drawn.vessels_NSS is None else out[0]
        loss = recipe.box_weight * box_loss(maps.float().flatten(0, 1), drawn.boxes_N)
        if drawn.vessels_NSS is not None:
            _, drawn_N1HW, log_radius_N1hw = out
            vessels = vessel_loss(drawn_N1HW.float(), log_radius_N1hw.float(), drawn.vessels_NSS, drawn.known_N)
            loss = loss + recipe.vessel_weight * vessels
        return loss

    def _taught_pairs(self, stage: Stage, count: int, seed: tuple[int, ...]) -> Tensor:
        """Sum of the losses of so many squares of pairs with outlines."""
        recipe, rng = self.recipe, np.random.default_rng(seed)
        assert self.pair_squares is not None
        layers = self._region_layers if stage.regions else self._outline_layer
        pairs, of_pairs = self.pair_squares.draw(stage.size, count, rng, self.state.mistakes, layers)
        x, layers_NLSS = self._augmented(torch.from_numpy(pairs), seed), torch.from_numpy(of_pairs).to(self.device)
        own = getattr(getattr(self.classifier.net, "net", None), "losses", None)
        if own is not None:  # a detector's
            found: Tensor = own(x, layers_NLSS[:, :1])
            return count * found
        with self._autocast():
            out = self.model(x, squares=True, regions=stage.regions)
        if stage.regions:
            target_N1SS, distance_N1SS = layers_NLSS.chunk(2, dim=1)
            return count * region_loss(out.float(), target_N1SS, distance_N1SS, boundary_weight=recipe.boundary_weight)
        net: Any = self.classifier.net
        cells_Nhw = out.float()
        holds = layers_NLSS.flatten(1).sum(dim=1) >= LEAST_PX
        loss = F.binary_cross_entropy_with_logits(net.verdict_of(cells_Nhw), holds.float())
        return count * (loss + recipe.box_weight * cell_loss(cells_Nhw, layers_NLSS))

    def _augmented(self, x: Tensor, seed: tuple[int, ...]) -> Tensor:
        """Squares, which are mirrored and turned already, with their grey values changed."""
        return augment(x.to(self.device), self.recipe.augment.in_place(), torch.Generator().manual_seed(_mixed(*seed)))

    def _outline_layer(self, row: int) -> NDArray[np.generic]:
        return self.outlines[row][None]

    def _region_layers(self, row: int) -> NDArray[np.generic]:
        """Region to learn and signed distance to its boundary, (2, H, W), of whole frames: made once."""
        if row not in self._layers:
            target_11HW, distance_11HW = region_targets(self.outlines[row][None], self.recipe.dilations)
            self._layers[row] = torch.cat([target_11HW[0], distance_11HW[0]]).half().numpy()
        return self._layers[row]

    def _class_loss(self, out: Tensor, target: Tensor, whole: Tensor, clips: int) -> Tensor:
        """Of a part of a step whose classes weigh `whole`, of so many clips; `out`: logits, or the maps that they come from."""
        logits = (pooled(out.float(), self.classifier.pool) if self.classifier.layout == "BCTHW-maps" else out).float()
        if self.recipe.loss == "f1":
            return _f1_loss(logits, target.to(self.device)) / clips
        each = _cross_entropy(logits.flatten(0, -2), target.to(self.device), self.recipe.label_smoothing)
        return (each * self._weight(target).to(self.device)).sum() / whole

    def _detection_loss(self, out: Any, boxes_N: Sequence[Tensor | None], size_px: int, smallest_px: float) -> Tensor:
        """Of a detector's boxes, summed over the frames, whose sides are `size_px`."""
        head: Any = self.classifier.net.head
        _, logits, coded, anchors = out
        return detection_loss(head, logits, coded, anchors, boxes_N, size=size_px, smallest=smallest_px)

    def _begin_step(self, stage: Stage, epochs_done: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(stage, epochs_done)
        self.optimizer.zero_grad(set_to_none=True)

    def _end_step(self) -> None:
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.classifier.parameters(), self.recipe.clip_norm)
        self.optimizer.step()

    def _share_statistics(self) -> None:
        """Running statistics are each process's own until the next pass: predictions are to be of one net."""
        if self.place.world > 1:
            for buffer in self.classifier.net.buffers():
                dist.broadcast(buffer, 0)

    def _rate(self, stage: Stage, epochs_done: float) -> float:
        """Of Adam, after so many epochs and parts of one."""
        recipe = self.recipe
        begun_at = recipe.region_rate if stage.regions else recipe.learning_rate
        of_stage = epochs_done - (self.state.epoch - self.state.stage_epoch)
        if recipe.cosine:
            warm = min(1.0, (of_stage + 1e-3) / _WARM_UP)
            falling = 0.5 + 0.5 * math.cos(math.pi * of_stage / stage.epochs)
            return begun_at * warm * (_LEAST_RATE + (1 - _LEAST_RATE) * falling)
        return begun_at * recipe.gamma ** (int(of_stage if stage.regions else epochs_done) // recipe.step_epochs)  # StepLR

    def _region_loss(self, x_B2HW: Tensor, masks_BHW: Tensor, stage: Stage) -> Tensor:
        """Mean over the patches: cross entropy of their verdicts, or the loss of their regions."""
        size, recipe = stage.size, self.recipe
        if not stage.regions:
            with self._autocast():
                cells_Nhw = self.model(x_B2HW).float()
            net: Any = self.classifier.net
            target = holds_calcification(masks_BHW, size)
            weight = torch.tensor(self.patch_weight, device=self.device)
            loss = F.binary_cross_entropy_with_logits(net.verdict_of(cells_Nhw), target.float(), pos_weight=weight)
            return loss + recipe.box_weight * cell_loss(cells_Nhw, patches(masks_BHW[:, None].float(), size // 2))
        target_B1HW, distance_B1HW = region_targets(masks_BHW.cpu().numpy(), recipe.dilations)
        target_N1PP, distance_N1PP = (
            patches(one, size // 2).to(self.device) for one in (target_B1HW, distance_B1HW)
        )
        own = getattr(getattr(self.classifier.net, "net", None), "losses", None)
        if own is not None:  # a detector's
            found: Tensor = own(patches(x_B2HW, size // 2), target_N1PP)
            return found
        with self._autocast():
            roi_N1PP = self.model(x_B2HW, regions=True)
        return region_loss(roi_N1PP.float(), target_N1PP, distance_N1PP, boundary_weight=recipe.boundary_weight)

    @torch.no_grad()
    def _patch_figures(self, stage: Stage) -> dict[str, float | None]:
        """F1 of the verdicts on validation patches, and how much of the heat lies in the regions."""
        self.classifier.eval()
        called, truth, inside, whole = [], [], 0.0, 0.0
        thinned_clips, size = _Thinned(self.validation.clips, stage), self.watched.size if stage.cut else stage.size
        parts = _batches_of(np.arange(len(self.validation)), _WHOLE_CLIPS_AT_ONCE)
        for rows, x in zip(parts, _read_ahead(thinned_clips, parts), strict=True):
            x = x.to(self.device)
            masks = self.watched.read(rows, size)
            holds = holds_calcification(masks, size)
            called.append(self.classifier.verdicts(x).flatten().cpu() > 0)
            truth.append(holds)
            if hasattr(self.classifier.net, "heat"):
                heat: Tensor = self.classifier.net.heat(patches(x.float(), size // 2))  # type: ignore[operator]
                target = patches(region_targets(masks.numpy(), self.recipe.dilations)[0], size // 2)[holds]
                part = F.adaptive_avg_pool2d(target, heat.shape[-1])[:, 0]
                inside += float((heat.cpu()[holds] * part).sum())
                whole += float(heat.cpu()[holds].sum())
        said, holds = torch.cat(called), torch.cat(truth)
        positives = int(said.sum() + holds.sum())
        return {
            "patch_f1": 2 * int((said & holds).sum()) / positives if positives else None,
            "heat_inside": inside / whole if whole else None,
        }

    def _looked_at(self, rng: np.random.Generator) -> list[int]:
        """Training clips that are looked at for mistakes this time."""
        return rng.permutation(len(self.train))[: max(1, round(_LOOKED_AT * len(self.train)))].tolist()

    @torch.no_grad()
    def _look_for_mistakes(self, squares: Squares, number: int) -> None:
        """Of a share of the clips a frame that squares are cut from: where its map shows most outside the boxes. The processes
        share the work."""
        rng = np.random.default_rng((self.seed, number, 1))
        rows = self._looked_at(rng)
        by_row: dict[int, list[int]] = {}
        for row, place in squares.frames:
            by_row.setdefault(row, []).append(place)
        keys = [(row, int(rng.choice(by_row[row]))) for row in rows if row in by_row]
        mine = [keys[i] for i in _share(np.arange(len(keys)), self.place)]
        self.classifier.eval()
        found: dict[int, list[list[float]]] = {}
        for part in _batches_of(np.arange(len(mine)), _PREDICTED_AT_ONCE):
            of_part = [mine[i] for i in part]
            frames = torch.from_numpy(np.stack([self.train.clips.frame(*key) for key in of_part])[:, None])
            with self._autocast():
                log_odds = self.classifier.maps(self.train.told(frames, [row for row, _ in of_part]).to(self.device))
            for key, cells in zip(of_part, cell_probability(log_odds.float())[:, 0].cpu().numpy(), strict=True):
                found[key[0]] = squares.mistakes(key, cells)
        everyones: list[Any] = [found]
        if self.place.world > 1:
            everyones = [None] * self.place.world
            dist.all_gather_object(everyones, found)
        for theirs in everyones:
            self.state.mistakes |= theirs

    @torch.no_grad()
    def _look_for_mistaken_pairs(self, number: int) -> None:
        """Of a share of the pairs: which cells outside calcification say most."""
        rng = np.random.default_rng((self.seed, number, 1))
        rows = self._looked_at(rng)
        self.classifier.eval()
        net: Any = self.classifier.net
        for row in rows:
            pair = torch.from_numpy(np.stack([self.train.clips.frame(row, place) for place in (0, 1)]))[None]
            with self._autocast():
                cells_hw = torch.sigmoid(net.cells(pair.to(self.device)).float())[0].cpu().numpy()
            marked = F.adaptive_max_pool2d(torch.from_numpy(self.outlines[row][None]).float(), cells_hw.shape)[0].numpy() > 0
            self.state.mistakes[row] = wrong_places(np.where(marked, -1.0, cells_hw), np.empty((0, 4)))

    def _shown(self, stage: Stage, number: int, step: int, batch: NDArray[np.intp]) -> NDArray[np.int64] | None:
        """Places of the frames that a step shows of each of its clips, (B, T), of nets that see each frame by itself: now these,
        now others, and none that only fills a clip up, or a clip of few frames would teach as few. None: evenly."""
        if self.classifier.layout != "BCTHW-maps" or stage.frames >= self.target_N.shape[-1]:
            return None
        rng = np.random.default_rng((self.seed, number, step))
        judged_B = (self.target_N[batch] != UNJUDGED).sum(dim=1).clamp(min=1).tolist()
        return np.stack([np.sort(np.resize(rng.permutation(n), stage.frames)) for n in judged_B])

    def _boxes(
        self,
        marked_B: Sequence[NDArray[np.float32] | None],
        homography_B33: Tensor,
        shown_BT: NDArray[np.int64] | None,
        motion: float | None,
    ) -> list[Tensor | None]:
        """Of each frame of the clips that were changed so, one after the other. `motion` None: nothing of frames on which a box
        that counts, or may, was not marked."""
        evenly = range(self.target_N.shape[-1])
        found: list[Tensor | None] = []
        for i, (marked, homography_33) in enumerate(zip(marked_B, homography_B33, strict=True)):
            places = evenly if shown_BT is None else shown_BT[i].tolist()
            if marked is None:
                found += [None] * len(places)
                continue
            known = boxes_of_frames(marked, places, homography_33, motion=motion or 0.0)
            guessed = {place for place, elsewhere, of in marked[:, :3].tolist() if elsewhere and of != 0}
            found += [None if motion is None and place in guessed else b for place, b in zip(places, known, strict=True)]
        return found

    def _weight(self, target: Tensor) -> Tensor:
        """Of each target in the loss."""
        return self.class_weight[target]

    def _local(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged with the last part of a step only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @torch.no_grad()
    def _watch(self, stage: Stage) -> NDArray[np.float32]:
        """Probabilities of the validation clips at the stage's size."""
        return predict(self.classifier, replace(self.validation, clips=_Thinned(self.validation.clips, stage)), self.place)

    # -- the end --

    def finish(self) -> Fitted:
        state = self.state
        best_epoch = state.epoch
        if state.best_model:
            self.classifier.net.load_state_dict(state.best_model)
            best_epoch = state.best_epoch
        # not where parts stay as they are: what is reset there would never be measured anew
        frozen = self.regions or bool(self.classifier.num_boxes)
        if self.recipe.settle_clips and not self.recipe.stages[-1].cut and not frozen:
            as_scored = self.train.num_as_scored or len(self.train)
            rows = np.random.default_rng((self.seed, 0, 0)).permutation(as_scored)[: self.recipe.settle_clips]
            batches = _batches_of(rows, _at_once(self.classifier, _SETTLED_AT_ONCE))
            read = zip(batches, _read_ahead(self.train.clips, batches), strict=True)
            settle_statistics(self.classifier, (self.train.told(x, of.tolist()).to(self.device) for of, x in read))
        if self.squares is not None and not frozen:
            self._calibrate()
        as_stored(self.classifier)
        self.classifier.eval()
        return Fitted(
            state_dict=_on_cpu(self.classifier.net.state_dict()),
            epochs=tuple(Epoch(**epoch) for epoch in state.history),
            best_epoch=best_epoch,
            classifier=self.classifier,
        )

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Of nets that learnt from squares: let a frame's probability be one, judged by validation frames."""
        target_NT = torch.from_numpy(self.validation.target_N)
        rows = np.random.default_rng((self.seed, 0, 2)).permutation(len(target_NT))[:_CALIBRATED_BY]
        maps = _said(self.classifier, self.validation, rows, self.place, _WHOLE_CLIPS_AT_ONCE, self.classifier.maps)
        cells_NKC = torch.from_numpy(maps).flatten(0, 1).flatten(2)
        target_N = target_NT[rows].flatten()
        judged_N = target_N >= 0
        pool = self.classifier.pool
        with suppress(ValueError):  # validation lacks a class: nothing to judge by
            found = calibrate(cells_NKC[judged_N], target_N[judged_N], lambda cells: pooled_cells(cells, pool))
            with_calibration(self.classifier.net.cells, found)  # type: ignore[arg-type]


def _for_classes(start: Mapping[str, Tensor], classifier: ClipClassifier) -> dict[str, Tensor]:
    """Weights to begin from. Where those of a map's cells know one class beside the first and the net more, each of its classes
    begins with an equal part of that one's odds."""
    state, cells = dict(start), getattr(classifier.net, "cells", None)
    more = classifier.num_classes - 1
    if isinstance(cells, nn.Conv2d) and more > 1 and "cells.bias" in state and len(state["cells.bias"]) == 1:
        state["cells.weight"] = state["cells.weight"].repeat(more, 1, 1, 1)
        state["cells.bias"] = state["cells.bias"].repeat(more) - math.log(more)
    return state


def close_branches(net: nn.Module) -> int:
    """Let each residual block of a fresh ResNet begin as its shortcut: the scale of its last normalisation at zero.

    Goyal et al., Accurate, large minibatch SGD (arXiv 1706.02677), section 5.1. The first gradient of ResNet-152 has a norm
    of some 6,500 (2D) and 24,000 (3D) without it and of 3 and 10 with it: clipped to 2, the former teach nothing. Returns the
    number of blocks; other nets have none.
    """
    blocks: list[Any] = [m for m in net.modules() if hasattr(m, "downsample") and hasattr(m, "bn2")]
    for block in blocks:  # of torchvision and of MONAI alike
        nn.init.zeros_(getattr(block, "bn3", block.bn2).weight)
    return len(blocks)


def _cross_entropy(logits_NK: Tensor, target_N: Tensor, label_smoothing: float) -> Tensor:
    """Of each row, (N,); 0 where the target is UNJUDGED."""
    each = F.cross_entropy(
        logits_NK, target_N.clamp(min=UNJUDGED), reduction="none", ignore_index=UNJUDGED, label_smoothing=label_smoothing
    )
    if bool((target_N == NOT_LAST).any()):
        others = torch.logsumexp(logits_NK, dim=-1) - torch.logsumexp(logits_NK[:, :-1], dim=-1)
        each = torch.where(target_N == NOT_LAST, others, each)
    return each


def _f1_loss(logits_BTK: Tensor, target_N: Tensor) -> Tensor:
    """What is missing from an F1 of 1, of the first and the last class, summed over the clips."""
    probability_BTK = torch.softmax(logits_BTK, dim=-1)
    target_BT = target_N.view(logits_BTK.shape[:2])
    last = logits_BTK.shape[-1] - 1
    scores = [
        soft_convolutional_f1(probability_BTK[..., k], target_BT == k, judged_BT.float())
        for k, judged_BT in ((0, target_BT >= 0), (last, target_BT != UNJUDGED))
    ]
    return (1 - torch.stack(scores).mean(dim=0)).sum()


class _Trained(nn.Module):
    """DistributedDataParallel wraps `forward`; training wants logits, or the maps that they come from."""

    def __init__(self, classifier: ClipClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x_BTHW: Tensor, *, regions: bool = False, vessels: bool = False, squares: bool = False) -> Any:
        classifier = self.classifier
        if classifier.layout == "B2HW-regions":
            net: Any = classifier.net
            parts = x_BTHW if squares else patches(x_BTHW, x_BTHW.shape[-1] // 2)
            return net.regions(parts)[1] if regions else net.cells(parts)
        if vessels:
            return classifier.with_vessels(x_BTHW)
        if classifier.num_boxes:
            return classifier.raw(x_BTHW)
        return classifier.maps(x_BTHW) if classifier.layout == "BCTHW-maps" else classifier.logits(x_BTHW)


@dataclass(frozen=True, slots=True)
class _Thinned:
    """Clips at a stage's size."""

    clips: Clips
    stage: Stage

    @property
    def num_frames(self) -> int:
        """Of the stage."""
        return min(self.stage.frames, self.clips.num_frames)

    def num_shown(self, rows_B: NDArray[np.intp]) -> int:
        """All of them: which ones only fill a clip up is not told."""
        return self.num_frames

    def read(self, rows_B: NDArray[np.intp], places_BT: NDArray[np.integer] | None = None) -> Any:
        evenly_T = _evenly(self.clips.num_frames, self.num_frames)
        of_clips_BT = np.tile(evenly_T, (len(rows_B), 1)) if places_BT is None else evenly_T[places_BT]
        clips = torch.from_numpy(self.clips.read(rows_B, of_clips_BT))
        return thinned(clips, clips.shape[-1] if self.stage.cut else self.stage.size, self.stage.frames).numpy()

    def frame(self, row: int, place: int) -> Any:
        return self.read(np.array([row]), np.array([[place]]))[0, 0]


def thinned(x_BTHW: Tensor, size: int, frames: int) -> Tensor:
    """Clips at size x size px by area averaging, and so many of their frames, evenly; float32 where the size changes."""
    there = x_BTHW.shape[1]
    if frames < there:
        x_BTHW = x_BTHW[:, torch.from_numpy(_evenly(there, frames))]
    if x_BTHW.shape[-1] <= size:
        return x_BTHW
    return F.interpolate(x_BTHW.float(), (size, size), mode="area")


def thinned_targets(target_N: Any, frames: int, shown_NT: NDArray[np.int64] | None = None) -> Any:
    """Targets per frame, (N, T), of those frames that `thinned` leaves, or of each clip's shown ones; targets per clip as they
    are."""
    if target_N.ndim == 1 or frames >= target_N.shape[1]:
        return target_N
    if shown_NT is None:
        return target_N[:, _evenly(target_N.shape[1], frames)]
    return target_N[np.arange(len(target_N))[:, None], shown_NT]


def _evenly(there: int, frames: int) -> NDArray[np.int64]:
    return np.arange(frames) * there // frames


def _per_frame(classifier: ClipClassifier) -> bool:
    return classifier.layout in ("BCTHW-frames", "BCTHW-maps")


def _at_once(classifier: ClipClassifier, clips: int) -> int:
    """Clips that fit in memory together."""
    return _WHOLE_CLIPS_AT_ONCE if _per_frame(classifier) else clips


@torch.no_grad()
def as_stored(classifier: ClipClassifier) -> None:
    """Round the weights as a bundle stores them (`write_bundle(half=True)`): figures are of what is shipped."""
    for tensor in classifier.net.state_dict().values():
        if tensor.ndim > 1:
            tensor.copy_(tensor.half().float())


def _chosen_precision(net: str, recipe: Recipe, device: torch.device, place: Place) -> str:
    """Of all workers alike: bfloat16 on its own only where each of them has units for it."""
    if recipe.precision != "auto":
        return recipe.precision
    mine = quickest_precision(device, net)
    if place.world == 1:
        return mine
    found: list[Any] = [None] * place.world
    dist.all_gather_object(found, mine)
    return "bfloat16" if set(found) == {"bfloat16"} else "float32"


def quickest_precision(device: torch.device, net: str) -> str:
    """bfloat16 where the device has units for it (a processor: AMX) and computes the net right, else float32."""
    gpu = device.type == "cuda"
    units = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else "amx_bf16" in bf16_units()
    return "bfloat16" if units and _fits("bfloat16", device, net) else "float32"


def _fits(precision: str, device: torch.device, net: str) -> bool:
    """Whether the net's gradient is right in this precision."""
    return precision == "float32" or device.type != "cpu" or net not in _WRONG_IN_BFLOAT16


def _values(stage: Stage) -> int:
    return stage.size**2 * stage.frames


def _judged(
    target_N: NDArray[np.int64], probability_N: NDArray[np.float32], *, any_but_first: bool = False
) -> tuple[float, float | None]:
    """Mean cross entropy, and the AUC of the positive class (over all frames; the last one, or any but the first) where both are
    there."""
    if probability_N.ndim > 1:
        judged = target_N != UNJUDGED
        target_N, probability_NK = target_N[judged], probability_N[judged]
    else:
        probability_NK = np.stack([1 - probability_N, probability_N], axis=-1)
    of_target_N = np.take_along_axis(probability_NK, np.maximum(target_N, 0)[:, None], axis=-1)[:, 0]
    p = np.clip(np.where(target_N == NOT_LAST, 1 - probability_NK[:, -1], of_target_N), 1e-7, 1.0)
    positive_N = target_N > 0 if any_but_first else target_N == probability_NK.shape[-1] - 1
    score_N = 1 - probability_NK[:, 0] if any_but_first else probability_NK[:, -1]
    auc = float(roc_auc_score(positive_N, score_N)) if 0 < positive_N.sum() < len(positive_N) else None
    return float(-np.log(p).mean()), auc


def _on_cpu(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state_dict.items()}


def _mixed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _batches_of(rows: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    """The rows in nearly equal batches of `size` at most."""
    return np.array_split(rows, -(-len(rows) // size)) if len(rows) else []


def _read_ahead(
    clips: Readable,
    batches: Sequence[NDArray[np.intp]],
    device: torch.device | None = None,
    places: Sequence[NDArray[np.int64] | None] | None = None,
) -> Iterator[Tensor]:
    """The inputs of each batch in turn, all frames or those at their places, the next one being read meanwhile."""

    def read(number: int) -> Tensor:
        x = torch.from_numpy(clips.read(batches[number], None if places is None else places[number]))
        return x.pin_memory() if device is not None and device.type == "cuda" else x

    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(read, 0)] if batches else []
        for number in range(1, len(batches) + 1):
            current = ahead.pop()
            if number < len(batches):
                ahead.append(reader.submit(read, number))
            yield current.result()


# -- several processes --


def _share(rows: NDArray[np.intp], place: Place) -> NDArray[np.intp]:
    return np.array_split(rows, place.world)[place.rank]


def _gathered(parts: Sequence[NDArray[Any]], place: Place) -> NDArray[Any]:
    """What all processes have, in the order of their ranks, on each of them."""
    mine = np.concatenate(parts) if len(parts) else np.empty(0, np.float32)
    if place.world == 1:
        return mine
    found: list[Any] = [None] * place.world
    dist.all_gather_object(found, mine)
    return np.concatenate([part for part in found if len(part)] or [mine])  # a process without clips has no shape to add


def _agreed(values: list[float], place: Place) -> list[float]:
    """The first process's values, on each of them."""
    if place.world > 1:
        dist.broadcast_object_list(values, src=0)
    return values
