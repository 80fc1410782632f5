"""A short plain training loop for the first quality bundle: phantom clips and their labels in, a bundle folder out.

    angio-ray phantom CLIPS --patients 120 --seed 20 --size 256
    python -m angio_ray.training.plain CLIPS angio_ray/bundles/quality

One process, one split by patient (70/15/15), no cross-validation: the training system proper will replace it. The
protocol is the paper's (spec section 1) where a processor's minutes allow; what is ours is said in the model card: the
learning rate, the progressive input size, the loss, the augmentation's strengths. Knows nothing of Ray or tables.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve
from torch import Tensor, nn
from torchvision.transforms import v2

from angio_ray.dicom.reader import ClipReader
from angio_ray.models import NETS, TASKS
from angio_ray.models.bundles import Bundle, load_bundle, write_bundle
from angio_ray.models.classifier import ClipClassifier
from angio_ray.storage import Storage

log = logging.getLogger(__name__)

POSITIVE = "unsatisfactory"
SPLIT = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainConfig:
    """How to train. Rates are those of Adam; sizes are px."""

    net: str = "x3d_s"
    seed: int = 0
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Of the patients: train, validation, test."""
    stages: tuple[tuple[int, int, int], ...] = ((80, 4, 16), (160, 4, 4), (160, 16, 1))
    """(input size, frames, epochs) in turn: few small frames first, since an epoch of all costs 16 times one of those."""
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    dropout: float = 0.0
    """Before the last layer; X3D's own 0.5 is for hundreds of epochs."""
    strength: float = 0.15
    """Of the augmentation, 0 (flip alone) to 1."""
    step_epochs: int = 10
    """StepLR: every so many epochs the rate is multiplied by `gamma`."""
    gamma: float = 0.4
    settle_clips: int = 96
    """Training clips, whole and not augmented, over which batch normalisation is settled after the last epoch."""
    threads: int = 2
    max_minutes: float = 15.0
    """No epoch is begun that would end later than this, judged by the one before it."""

    def __post_init__(self) -> None:
        if self.net not in NETS:
            raise ValueError(f"unknown net {self.net!r}; there is {', '.join(NETS)}")
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) <= 0:
            raise ValueError("shares must be positive and add up to 1")
        if self.batch < 2:
            raise ValueError("batch must be at least 2 (batch normalisation)")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Model inputs of a set of clips, in the order of the labels."""

    clips_NTHW: NDArray[np.uint8]
    unsatisfactory_N: NDArray[np.int64]
    patients_N: NDArray[np.str_]
    classes_N: NDArray[np.str_]


def read_inputs(folder: str | Path, net: str, cache: Path | None = None) -> Inputs:
    """Read every labelled clip of a folder as the scorer would, through `ClipReader` and the net's window.

    Parameters
    ----------
    folder : str or Path
        Clips with a `labels.parquet` as the phantom writes it.
    net : str
        Name in `NETS`; its window says which frames at which size.
    cache : Path, optional
        An .npz of uint8 inputs, used when it holds the same clips, written when not.

    Raises
    ------
    ValueError
        When a labelled clip is missing or cannot be read, or the labels lack one of the classes.
    """
    labels = pq.read_table(Path(folder) / "labels.parquet").sort_by("path").to_pydict()
    target = np.array([q == POSITIVE for q in labels["quality"]], np.int64)
    if len(set(target.tolist())) < 2:
        raise ValueError("the labels hold one class only")
    uids = np.array(labels["sop_instance_uid"])
    clips: NDArray[np.uint8] | None = None
    if cache and cache.exists():
        with np.load(cache) as stored:
            if np.array_equal(stored["uids"], uids):
                clips = stored["clips"]
    if clips is None:
        clips = np.stack(list(_read_clips(folder, labels, net)))
        if cache:
            np.savez(cache, clips=clips, uids=uids)
    return Inputs(
        clips_NTHW=clips,
        unsatisfactory_N=target,
        patients_N=np.array(labels["patient_id"]),
        classes_N=np.array(labels["quality_class"]),
    )


def _read_clips(folder: str | Path, labels: dict[str, list[Any]], net: str) -> Iterator[NDArray[np.uint8]]:
    window = NETS[net].window
    storage = Storage(str(folder))
    reader = ClipReader([window])
    try:
        infos = {Path(info.uri).as_posix(): info for page in storage.list() for info in page}
        for path, uid in zip(labels["path"], labels["sop_instance_uid"], strict=True):
            info = next((i for uri, i in infos.items() if uri.endswith("/" + path)), None)
            if info is None:
                raise ValueError(f"labelled clip {path} is not in the folder")
            outcome = reader.read(storage.open(info))
            if outcome.reason is not None or outcome.header is None:
                raise ValueError(f"labelled clip {path} cannot be used: {outcome.reason} ({outcome.detail})")
            if outcome.header.sop_instance_uid != uid:
                raise ValueError(f"{path} is another clip than the one labelled")
            yield outcome.inputs[window.name]
    finally:
        reader.close()


def split_by_patient(patients_N: NDArray[np.str_], shares: tuple[float, float, float], seed: int) -> NDArray[np.int64]:
    """Which of `SPLIT` each clip belongs to, (N,): no patient is in two of them.

    ValueError when there are too few patients for one in each.
    """
    patients = np.unique(patients_N)
    if len(patients) < 3:
        raise ValueError("a split by patient needs at least three patients")
    order = np.random.default_rng(seed).permutation(patients)
    first = min(max(1, round(len(order) * shares[0])), len(order) - 2)
    second = min(max(first + 1, round(len(order) * (shares[0] + shares[1]))), len(order) - 1)
    part = {patient: int(i >= first) + int(i >= second) for i, patient in enumerate(order)}
    return np.array([part[p] for p in patients_N], np.int64)


def augment(clip_THW: Tensor, generator: np.random.Generator, strength: float = 1.0) -> Tensor:
    """One clip, float 0..255, changed alike in all frames: the paper's augmentation and the display's own variety.

    Flip, rotation, perspective and blur are the paper's; brightness, contrast, gamma, noise and edge enhancement
    are ours, against the difference between the phantom's display and a real one.
    """
    height, width = clip_THW.shape[-2:]
    if generator.random() < 0.5:
        clip_THW = v2.functional.horizontal_flip(clip_THW)
    angle, scale = float(generator.uniform(-15, 15)) * strength, float(np.exp(strength * generator.uniform(-0.16, 0.22)))
    shift = [int(generator.uniform(-0.08, 0.08) * strength * side) for side in (width, height)]
    fill = [float(generator.uniform(0, 60))]
    clip_THW = v2.functional.affine(
        clip_THW, angle, shift, scale, [0.0, 0.0], interpolation=v2.InterpolationMode.BILINEAR, fill=fill
    )
    if generator.random() < 0.3 * strength:
        corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
        moved = (np.array(corners) + generator.uniform(-0.08, 0.08, (4, 2)) * width).astype(int).tolist()
        clip_THW = v2.functional.perspective(clip_THW, corners, moved, fill=fill)
    if generator.random() < 0.3 * strength:
        clip_THW = v2.functional.gaussian_blur(clip_THW, [5, 5], [float(generator.uniform(0.3, 1.2))])
    grey = (clip_THW / 255).clamp(0, 1) ** float(np.exp(strength * generator.uniform(-0.6, 0.6)))
    mean = grey.mean()
    grey = (grey - mean) * float(np.exp(strength * generator.uniform(-0.5, 0.35))) + mean
    grey = grey + strength * float(generator.uniform(-0.2, 0.2))
    if generator.random() < 0.3 * strength:
        grey = grey + float(generator.uniform(0, 0.06)) * torch.from_numpy(
            generator.standard_normal(tuple(grey.shape), dtype=np.float32)
        )
    if generator.random() < 0.3 * strength:  # some scanners take the edges' halo far
        soft = v2.functional.gaussian_blur(grey, [9, 9], [3.0])
        grey = grey + float(generator.uniform(0.2, 1.0)) * (grey - soft)
    return grey.clamp(0, 1) * 255


def train(inputs: Inputs, config: PlainConfig, start: Bundle | None = None) -> tuple[ClipClassifier, dict[str, Any]]:
    """Train on the training patients, from random weights or a bundle's.

    Returns the net after the last epoch and what happened: loss and validation AUC of each epoch, seconds.
    The validation patients are watched and choose the threshold (`evaluate`); they do not choose the epoch.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    part = split_by_patient(inputs.patients_N, config.shares, config.seed)
    rows = np.flatnonzero(part == 0)
    target = torch.from_numpy(inputs.unsatisfactory_N)
    share = float(inputs.unsatisfactory_N[rows].mean())
    if share in (0.0, 1.0):
        raise ValueError("the training patients have one class only")
    weight = torch.tensor([0.5 / (1 - share), 0.5 / share])
    classifier = ClipClassifier(NETS[config.net])
    if start is not None:
        if start.net != config.net:
            raise ValueError(f"the bundle to start from holds {start.net}, not {config.net}")
        (member,) = start.ensemble().members
        classifier.load_state_dict(member.state_dict())
    _any_input_size(classifier)
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    classifier.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.Adam(classifier.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.step_epochs, config.gamma)
    history: list[dict[str, float]] = []
    started = time.monotonic()
    seconds_per_value = 0.0
    for size, frames, epochs in config.stages:
        for _ in range(epochs):
            begun = time.monotonic()
            values = size * size * frames
            if begun - started + seconds_per_value * values > config.max_minutes * 60:
                log.warning("the time is up: no further epoch at %d px", size)
                break
            classifier.train()
            losses = []
            order = rng.permutation(rows)
            for batch in np.array_split(order, max(1, len(order) // config.batch)):
                x = torch.stack([augment(_thinned(_clip(inputs, i), size, frames), rng, config.strength) for i in batch])
                loss = F.cross_entropy(classifier.logits(x), target[batch], weight)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(classifier.parameters(), 2.0)
                optimizer.step()
                losses.append(float(loss.detach()))
            schedule.step()
            watched = np.flatnonzero(part == 1)
            auc = _auc(inputs.unsatisfactory_N[watched], predict(classifier, inputs.clips_NTHW[watched], size, frames))
            seconds_per_value = (time.monotonic() - begun) / values
            history.append(
                {
                    "size": size,
                    "frames": frames,
                    "loss": float(np.mean(losses)),
                    "validation_auc": auc,
                    "seconds": round(time.monotonic() - begun, 1),
                }
            )
            log.info("epoch %d: %s", len(history), json.dumps(history[-1]))
    _settle_statistics(classifier, inputs.clips_NTHW[rng.permutation(rows)[: config.settle_clips]])
    return classifier, {"epochs": history, "seconds": round(time.monotonic() - started, 1)}


@torch.no_grad()
def predict(
    classifier: ClipClassifier, clips_NTHW: NDArray[np.uint8], size: int | None = None, frames: int | None = None
) -> NDArray[np.float32]:
    """Probability of being unsatisfactory, (N,), float32 arithmetic, at `size` px and of `frames` (None: as they are)."""
    classifier.eval()
    size, frames = size or clips_NTHW.shape[-1], frames or clips_NTHW.shape[1]
    found = [
        classifier(_thinned(torch.from_numpy(chunk.astype(np.float32)), size, frames))[:, 1].numpy()
        for chunk in np.array_split(clips_NTHW, max(1, len(clips_NTHW) // 8))
    ]
    return np.concatenate(found)


def youden_threshold(target_N: NDArray[np.int64], probability_N: NDArray[np.float32]) -> float:
    """The threshold with the largest sensitivity + specificity - 1, halfway to the next lower score.

    With several as good, the highest sensitivity.
    """
    false_positive, true_positive, thresholds = roc_curve(target_N, probability_N, drop_intermediate=False)
    gain = true_positive - false_positive
    at = int(np.flatnonzero(gain >= gain.max() - 1e-12)[-1])
    upper = float(min(thresholds[at], 1.0))
    below = probability_N[probability_N < upper]
    return float((upper + below.max()) / 2) if len(below) else upper / 2


def metrics(target_N: NDArray[np.int64], probability_N: NDArray[np.float32], threshold: float) -> dict[str, float]:
    """The paper's figures at a threshold; the positive class is unsatisfactory. A figure without a denominator is NaN."""
    predicted = (probability_N >= threshold).astype(int)
    (tn, fp), (fn, tp) = confusion_matrix(target_N, predicted, labels=[0, 1]).astype(float)

    def ratio(a: float, b: float) -> float:
        return a / b if b else float("nan")

    return {
        "auc": _auc(target_N, probability_N),
        "accuracy": ratio(tp + tn, tp + tn + fp + fn),
        "precision": ratio(tp, tp + fp),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "clips": tp + tn + fp + fn,
        "true_positive": tp,
        "false_positive": fp,
        "false_negative": fn,
        "true_negative": tn,
    }


def train_bundle(
    folder: Path,
    out: Path,
    config: PlainConfig,
    *,
    cache: Path | None = None,
    start: Bundle | None = None,
    command: str = "",
) -> Bundle:
    """Read, train, choose the threshold on validation patients, measure on test patients, write the bundle."""
    inputs = read_inputs(folder, config.net, cache)
    part = split_by_patient(inputs.patients_N, config.shares, config.seed)
    classifier, history = train(inputs, config, start)
    _as_scored(classifier)
    scores = {name: predict(classifier, inputs.clips_NTHW[part == i]) for i, name in enumerate(SPLIT) if i > 0}
    targets = {name: inputs.unsatisfactory_N[part == i] for i, name in enumerate(SPLIT)}
    threshold = round(youden_threshold(targets["validation"], scores["validation"]), 4)
    tested = metrics(targets["test"], scores["test"], threshold)
    watched = metrics(targets["validation"], scores["validation"], threshold)
    log.info("held-out test patients: %s", json.dumps(tested))
    by_class = {
        str(name): (int(hits.sum()), len(hits))
        for name in np.unique(inputs.classes_N)
        if len(hits := (scores["test"] >= threshold)[inputs.classes_N[part == 2] == name])
    }
    card = _card(inputs, part, config, history, threshold, tested, watched, by_class, command)
    return write_bundle(
        out,
        task="quality",
        net=config.net,
        state_dicts=[classifier.net.state_dict()],
        threshold=threshold,
        trained_on="synthetic",
        classes=TASKS["quality"].classes,
        metrics={f"test_{k}": round(v, 4) for k, v in tested.items() if v == v},
        card=card,
        half=True,
    )


def _clip(inputs: Inputs, i: int) -> Tensor:
    return torch.from_numpy(inputs.clips_NTHW[i].astype(np.float32))


def _thinned(x: Tensor, size: int, frames: int) -> Tensor:
    """Frames (..., T, H, W) at size x size by area averaging, and so many of them, evenly."""
    x = x[..., :: x.shape[-3] // frames, :, :]
    if x.shape[-1] == size:
        return x
    flat = x.reshape(-1, 1, *x.shape[-2:])
    return F.interpolate(flat, (size, size), mode="area").reshape(*x.shape[:-2], size, size)


def _auc(target_N: NDArray[np.int64], probability_N: NDArray[np.float32]) -> float:
    return float(roc_auc_score(target_N, probability_N)) if len(set(target_N.tolist())) > 1 else float("nan")


def _any_input_size(module: nn.Module) -> None:
    """Make the net take any input size, and train quickly on a CPU; neither changes its weights or its function.

    X3D's head pools with a kernel fixed at 16 x 5 x 5, all of a 160 px input's last map: a global mean is the same
    there. Its depthwise 3D convolutions, whose gradient PyTorch computes slowly on CPUs, become sums of 2D ones over
    the frames before, at and after (measured: 1550 -> 485 ms per clip and step at 160 px on two cores).
    """
    for child in module.modules():
        if isinstance(child, nn.Conv3d) and child.groups > 1 and child.groups == child.in_channels:
            child.forward = MethodType(_depthwise, child)  # type: ignore[method-assign]
        if isinstance(getattr(child, "pool", None), nn.AvgPool3d):
            child.pool = nn.AdaptiveAvgPool3d(1)


@torch.no_grad()
def _settle_statistics(classifier: ClipClassifier, clips_NTHW: NDArray[np.uint8]) -> None:
    """Take batch normalisation's mean and variance anew from whole inputs, as the scorer sees them.

    Those of the epochs come from fewer, smaller and augmented frames; the weights do not change.
    """
    layers = [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches
    classifier.train()
    for chunk in np.array_split(clips_NTHW, max(1, len(clips_NTHW) // 16)):
        classifier.logits(torch.from_numpy(chunk))
    for layer, momentum in zip(layers, kept, strict=True):
        layer.momentum = momentum
    classifier.eval()


def _as_scored(classifier: ClipClassifier) -> None:
    """Round the weights as the bundle stores them, so that the metrics are of what is shipped."""
    with torch.no_grad():
        for tensor in classifier.net.state_dict().values():
            if tensor.ndim > 1:
                tensor.copy_(tensor.half().float())


def _depthwise(self: nn.Conv3d, x_BCTHW: Tensor) -> Tensor:
    """`nn.Conv3d.forward` for one filter per channel, odd kernel, stride 1 over time."""
    batch, channels, frames, _, _ = x_BCTHW.shape
    taps = self.kernel_size[0]
    if taps % 2 == 0 or self.stride[0] != 1 or self.padding[0] != taps // 2 or self.bias is not None:
        return nn.Conv3d.forward(self, x_BCTHW)
    if self.kernel_size[1:] == (1, 1):
        padded = F.pad(x_BCTHW, (0, 0, 0, 0, taps // 2, taps // 2))
        moved = [padded[:, :, i : i + frames] * self.weight[:, 0, i].view(1, channels, 1, 1, 1) for i in range(taps)]
        return torch.stack(moved).sum(0)
    flat = x_BCTHW.transpose(1, 2).reshape(batch * frames, channels, *x_BCTHW.shape[3:])
    flat = flat.contiguous(memory_format=torch.channels_last)
    parts = [
        F.conv2d(flat, self.weight[:, :, i], None, self.stride[1:], self.padding[1:], 1, channels).unflatten(
            0, (batch, frames)
        )
        for i in range(taps)
    ]
    total = parts[taps // 2].clone()
    for i, part in enumerate(parts):
        back = taps // 2 - i  # this tap sees the frame `back` before
        if back > 0:
            total[:, back:] += part[:, :-back]
        elif back < 0:
            total[:, :back] += part[:, -back:]
    return total.transpose(1, 2)


def _card(
    inputs: Inputs,
    part: NDArray[np.int64],
    config: PlainConfig,
    history: dict[str, Any],
    threshold: float,
    tested: dict[str, float],
    watched: dict[str, float],
    by_class: dict[str, tuple[int, int]],
    command: str,
) -> str:
    """MODEL_CARD.md of a bundle trained here."""
    counts = [
        f"| {name} | {len(np.unique(inputs.patients_N[part == i]))} | {int((part == i).sum())} | "
        f"{int(inputs.unsatisfactory_N[part == i].sum())} |"
        for i, name in enumerate(SPLIT)
    ]
    shown = ("auc", "accuracy", "precision", "sensitivity", "specificity", "f1")
    figures = [f"| {name} | {watched[name]:.3f} | {tested[name]:.3f} |" for name in shown]
    classes = [f"| {name} | {total} | {flagged} |" for name, (flagged, total) in by_class.items()]
    epochs = [
        f"{e['frames']:.0f} frames of {e['size']:.0f} px: loss {e['loss']:.3f}, validation AUC {e['validation_auc']:.3f}"
        for e in history["epochs"]
    ]
    settings = ", ".join(f"{k} {v}" for k, v in asdict(config).items() if k != "max_minutes")
    return f"""# {config.net}, quality selection

**Trained on synthetic clips only. Research use only, not for clinical use.** It gives the probability that a coronary
angiogram is unsatisfactory for further analysis. Its figures below say how well it does on the phantom's own patients,
nothing about patients.

## Data
Clips of the angio_ray phantom (docs/phantom.md): no recording of a person. Both classes in the same study of every
patient, with the same machines, devices, lengths and header facts. Unsatisfactory, each in several ways:
{", ".join(sorted(set(inputs.classes_N.tolist()) - {"satisfactory"}))}.

| split by patient | patients | clips | unsatisfactory |
|---|---|---|---|
{chr(10).join(counts)}

## Protocol
Window and net of the quality-selection paper (16 of 32 frames at 15/s from the 16th, 160x160). Adam, StepLR, flip,
rotation, perspective, blur as there. Ours: initial weights random, class-weighted cross entropy, input size and frames
raised in stages, brightness, contrast, gamma, noise and edge enhancement as augmentation, last epoch taken, batch
normalisation settled on whole training clips, threshold {threshold} by Youden's index on the validation patients only.
Far fewer epochs and clips than the paper's.
Settings: {settings}.
Trained in {history["seconds"] / 60:.1f} min on {config.threads} CPU threads.

{chr(10).join(f"{i + 1}. {line}" for i, line in enumerate(epochs))}

## Figures (phantom patients; positive = unsatisfactory; weights as stored, float16)
| | validation | held-out test |
|---|---|---|
{chr(10).join(figures)}

Test confusion: {tested["true_positive"]:.0f} unsatisfactory found, {tested["false_negative"]:.0f} missed,
{tested["true_negative"]:.0f} satisfactory kept, {tested["false_positive"]:.0f} wrongly excluded.

| class in the test patients | clips | called unsatisfactory |
|---|---|---|
{chr(10).join(classes)}

## Made by
```
{command}
```
"""


def main(argv: list[str] | None = None) -> int:
    """Command line: CLIPS BUNDLE [--seed ...]; exit 2 for bad arguments or data."""
    parser = argparse.ArgumentParser(prog="python -m angio_ray.training.plain", description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=Path, help="folder with clips and labels.parquet")
    parser.add_argument("bundle", type=Path, help="folder to write")
    parser.add_argument("--cache", type=Path, help=".npz of the model inputs, to train again without reading")
    parser.add_argument("--start", type=Path, help="bundle whose weights to start from (of the same split and seed)")
    parser.add_argument("--made-by", default="", help="the command that made the clips, for the card")
    defaults = PlainConfig()
    parser.add_argument("--seed", type=int, default=defaults.seed)
    stages_text = ",".join("x".join(map(str, stage)) for stage in defaults.stages)
    parser.add_argument("--stages", default=stages_text, help="SIZExFRAMESxEPOCHS,...")
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--strength", type=float, default=defaults.strength, help="of the augmentation, 0 to 1")
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--max-minutes", type=float, default=defaults.max_minutes)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        stages = tuple((int(s), int(f), int(e)) for s, f, e in (part.split("x") for part in args.stages.split(",")))
        config = PlainConfig(
            seed=args.seed,
            stages=stages,
            batch=args.batch,
            learning_rate=args.learning_rate,
            strength=args.strength,
            threads=args.threads,
            max_minutes=args.max_minutes,
        )
        command = f"{args.made_by}\npython -m angio_ray.training.plain CLIPS {args.bundle.as_posix()} --stages {args.stages}"
        command += f" --seed {args.seed} --batch {args.batch} --learning-rate {args.learning_rate:g} --strength {args.strength:g}"
        start = load_bundle(args.start) if args.start else None
        command += " --start FIRST" if start else ""
        train_bundle(args.clips, args.bundle, config, cache=args.cache, start=start, command=command.strip())
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
