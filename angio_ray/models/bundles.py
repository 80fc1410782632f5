"""Bundles: the folder in which a trained model travels, and its check. Knows nothing of clips, tables or Ray.

    bundle.json           what it is: task, net, input, classes, threshold, origin, digests
    weights.safetensors   the net's state dict (weights-0, weights-1 ... for an ensemble)
    MODEL_CARD.md         for people; not read by the program
    RCA/, LAO_cranial/    of bundles with models of views: these, each a bundle

No pickle is ever loaded. A Bundle holds plain values and bytes, so it travels through Ray as it is; torch builds its
nets from it where they run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from angio_ray.models.interface import NetSpec
from angio_ray.sampling import ClipWindow
from angio_ray.views import OWN_MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from angio_ray.models.classifier import Ensemble

SHIPPED = Path(__file__).parents[1] / "bundles"
"""Bundles that come with the package, one folder a task."""

Origin = Literal["synthetic", "patients"]
Triple = tuple[float, float, float]

_FORMAT = "angio_ray bundle 1"
_MANIFEST = "bundle.json"
_CARD = "MODEL_CARD.md"


class BundleError(ValueError):
    """A bundle that cannot be used; the message is one line that names the folder and the fault."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """One trained model of one task. Its digest stands for everything that changes a score."""

    task: str
    net: str
    """Name in `angio_ray.models.NETS`."""
    window: ClipWindow
    classes: tuple[str, ...]
    """Order of the net's outputs; the last is the positive class."""
    threshold: float
    """At or above this probability of the positive class a clip is positive."""
    trained_on: Origin
    mean: Triple
    std: Triple
    """Normalisation of grey values in 0..1, per channel."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """As measured when it was trained, on data of its `trained_on`."""
    training_patients: tuple[str, ...] = ()
    """Keyed hashes of the patients it has seen, sorted: their rows are in-sample in any evaluation."""
    threshold_from: str | None = None
    """The clips that a threshold set after the training is from; None where it is the training's own."""
    views: Mapping[str, Bundle] = field(default_factory=dict, repr=False)
    """Models of the same task for clips of one artery or view (`views.OWN_MODEL`) in place of this one, at this one's threshold;
    `with_views` puts them there."""
    weights: tuple[bytes, ...] = field(repr=False)
    """safetensors files; several make an ensemble (mean of probabilities)."""
    digest: str
    """SHA-256 over the canonical JSON of all the above, with each weight file's SHA-256 in place of its bytes."""

    def check(self, name: str | None = None, *, weights: bool = True) -> None:
        """Raise BundleError unless digest, names, values, and every tensor's name and shape fit the net (`name`: in messages).

        With `weights` False tensors are not looked at: enough for its facts, and it loads no torch.
        """
        name = name or f"{self.task} bundle"
        if _digest(self) != self.digest:
            raise BundleError(f"{name}: its contents do not have the digest that it states")
        spec = _check_facts(self, name)
        for number, data in enumerate(self.weights if weights else ()):
            _check_weights(self, spec, data, f"{name}, weights {number}" if len(self.weights) > 1 else name)
        for view, own in self.views.items():
            own.check(f"{name}, {view}", weights=weights)

    def ensemble(self) -> Ensemble:
        """The nets with their weights, on the CPU in eval mode: uint8 (B, T, H, W) -> probabilities (B, K), or (B, T, K)."""
        import torch

        from angio_ray.models import NETS
        from angio_ray.models.classifier import ClipClassifier, Ensemble

        members = []
        for data in self.weights:
            with torch.device("meta"):  # no time is lost on initial weights
                net = NETS[self.net].build()
            net.load_state_dict(_as_float32(_tensors(data)), assign=True)
            members.append(ClipClassifier(NETS[self.net], mean=self.mean, std=self.std, net=net))
        return Ensemble(members).eval()

    def with_threshold(
        self, threshold: float, *, threshold_from: str | None = None, patients: Collection[str] = ()
    ) -> Bundle:
        """The same model at another operating point, set on own labels: a new digest, so runs tell the two apart.

        `patients` (keyed hashes) are those that the threshold was set on: they count as seen from now on. What the weights
        were trained on stays as it is.
        """
        return self._changed(
            threshold=float(threshold),
            threshold_from=threshold_from,
            training_patients=tuple(sorted({*self.training_patients, *patients})),
        )

    def with_views(self, views: Mapping[str, Bundle]) -> Bundle:
        """This model for most clips, others for those of an artery or view (`views.OWN_MODEL`), as the stenosis paper has them.

        All call a clip positive from this one's threshold on: their probabilities are to be calibrated, as training leaves
        maps. What any of them has seen counts as seen; the figures of one are not those of all, so none stand there.
        BundleError where they do not go together.
        """
        seen = {patient for bundle in (self, *views.values()) for patient in bundle.training_patients}
        return self._changed(views={**self.views, **views}, training_patients=tuple(sorted(seen)), metrics={})

    def _changed(self, **changes: Any) -> Bundle:
        changed = replace(self, **changes)
        changed = replace(changed, digest=_digest(changed))
        changed.check(weights=False)
        return changed


def load_bundle(path: str | Path, *, weights: bool = True) -> Bundle:
    """Read and check a bundle folder; BundleError with one clear line when it is missing, altered or does not fit its net.

    With `weights` False tensors are checked by their digest alone, as in `Bundle.check`.
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
    except OSError as error:
        raise BundleError(f"no bundle in {folder}: {_MANIFEST} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BundleError(f"bundle {folder}: {_MANIFEST} is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise BundleError(f"bundle {folder}: {_MANIFEST} is not of the format {_FORMAT!r}")
    bundle = _from_manifest(manifest, folder)
    bundle.check(f"bundle {folder}", weights=weights)
    return bundle


def write_bundle(
    path: str | Path,
    *,
    task: str,
    net: str,
    state_dicts: Sequence[Mapping[str, Tensor]],
    threshold: float,
    trained_on: Origin,
    window: ClipWindow | None = None,
    classes: Sequence[str] | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    metrics: Mapping[str, float] | None = None,
    training_patients: Sequence[str] = (),
    card: str | None = None,
    half: bool = False,
) -> Bundle:
    """Write a bundle folder and return the checked bundle.

    Parameters
    ----------
    path
        The folder; made when absent, its older bundle replaced.
    state_dicts
        `ClipClassifier.net.state_dict()` of each member of the ensemble.
    threshold
        On the probability of the last class, 0..1.
    window, classes, mean, std
        Default: the net's window, the task's classes, the normalisation of `classifier`.
    card
        Text of MODEL_CARD.md. Default: the facts alone.
    half
        Store matrices and kernels as float16 (half the size; vectors and statistics stay float32). Scores are those of the
        rounded weights everywhere.

    Raises
    ------
    BundleError
        When it does not fit the net or the task; nothing is written then.
    """
    import torch
    from safetensors.torch import save

    from angio_ray.models import NETS, TASKS
    from angio_ray.models.classifier import KINETICS_MEAN, KINETICS_STD

    if net not in NETS:
        raise BundleError(f"bundle {path}: unknown net {net!r}; there is {', '.join(NETS)}")
    if task not in TASKS:
        raise BundleError(f"bundle {path}: unknown task {task!r}; there is {', '.join(TASKS)}")

    def stored(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().to("cpu")
        return (tensor.to(torch.float16) if half and tensor.ndim > 1 else tensor).contiguous().clone()

    bundle = Bundle(
        task=task, net=net, window=window or NETS[net].window, classes=tuple(classes or TASKS[task].classes),
        threshold=float(threshold), trained_on=trained_on, mean=mean or KINETICS_MEAN, std=std or KINETICS_STD,
        metrics={k: float(v) for k, v in (metrics or {}).items()}, training_patients=tuple(sorted(set(training_patients))),
        weights=tuple(save({k: stored(v) for k, v in s.items()}) for s in state_dicts), digest="",
    )
    bundle = replace(bundle, digest=_digest(bundle))
    bundle.check(f"bundle {path}")
    _write_folder(Path(path), bundle, card or _default_card(bundle))
    return bundle


def save_bundle(path: str | Path, bundle: Bundle, *, card: str | None = None) -> None:
    """Write a bundle that was loaded as a folder, its older bundle replaced. `card`: MODEL_CARD.md; default: the facts alone.

    Raises BundleError where its digest is not its own or the folder cannot be written.
    """
    bundle.check(f"bundle {path}", weights=False)
    try:
        _write_folder(Path(path), bundle, card or _default_card(bundle))
    except OSError as error:
        raise BundleError(f"bundle {path} cannot be written: {error.strerror}") from error


def _facts(bundle: Bundle) -> dict[str, Any]:
    """The manifest but for its digest."""
    facts = asdict(replace(bundle, weights=(), views={}))
    del facts["digest"], facts["views"]
    if bundle.views:  # as for a threshold set later: others keep the digest that they always had
        facts["views"] = {view: own.digest for view, own in sorted(bundle.views.items())}
    if bundle.threshold_from is None:  # a bundle as trained keeps the digest that it always had
        del facts["threshold_from"]
    names = ["weights.safetensors"] if len(bundle.weights) == 1 else [
        f"weights-{i}.safetensors" for i in range(len(bundle.weights))]
    facts["weights"] = [
        {"file": n, "sha256": hashlib.sha256(data).hexdigest()} for n, data in zip(names, bundle.weights, strict=True)]
    return {"format": _FORMAT, **facts}


def _digest(bundle: Bundle) -> str:
    canonical = json.dumps(_facts(bundle), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _from_manifest(manifest: Mapping[str, Any], folder: Path) -> Bundle:
    """The bundle as its files state it, digest not yet checked."""
    try:
        names = [str(entry["file"]) for entry in manifest["weights"]]
        if any(Path(n).name != n for n in names):
            raise BundleError(f"bundle {folder}: a weight file lies outside its folder")
        data = tuple((folder / n).read_bytes() for n in names)
        for entry, weights in zip(manifest["weights"], data, strict=True):
            if hashlib.sha256(weights).hexdigest() != entry["sha256"]:
                raise BundleError(f"bundle {folder}: {entry['file']} does not have the digest that {_MANIFEST} states")
        views = {str(view): load_bundle(folder / _view_folder(view), weights=False) for view in manifest.get("views", {})}
        for view, own in views.items():
            if own.digest != manifest["views"][view]:
                raise BundleError(f"bundle {folder}: the model of {view} does not have the digest that {_MANIFEST} states")
        return Bundle(
            views=views, task=str(manifest["task"]), net=str(manifest["net"]), window=ClipWindow(**manifest["window"]),
            classes=tuple(map(str, manifest["classes"])), threshold=float(manifest["threshold"]),
            trained_on=manifest["trained_on"], mean=_triple(manifest["mean"]), std=_triple(manifest["std"]),
            metrics={str(k): float(v) for k, v in manifest["metrics"].items()},
            training_patients=tuple(map(str, manifest["training_patients"])),
            threshold_from=str(manifest["threshold_from"]) if "threshold_from" in manifest else None,
            weights=data, digest=str(manifest["digest"]),
        )
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"bundle {folder}: {Path(error.filename or '').name} cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise BundleError(f"bundle {folder}: {_MANIFEST} lacks {error.args[0]!r}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"bundle {folder}: a value in {_MANIFEST} is not what it must be ({error})") from error


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _check_facts(bundle: Bundle, name: str) -> NetSpec:
    """What can be wrong without looking into the weights."""
    from angio_ray.models import NETS, TASKS

    if bundle.task not in TASKS:
        raise BundleError(f"{name}: unknown task {bundle.task!r}; there is {', '.join(TASKS)}")
    if bundle.net not in NETS:
        raise BundleError(f"{name}: unknown net {bundle.net!r}; there is {', '.join(NETS)}")
    spec = TASKS[bundle.task]
    if bundle.classes not in (spec.classes, spec.finer):
        raise BundleError(f"{name}: classes {bundle.classes} are not those of {bundle.task}: {spec.classes}")
    if bundle.trained_on not in get_args(Origin):
        raise BundleError(f"{name}: trained_on is {bundle.trained_on!r}, not one of {', '.join(get_args(Origin))}")
    if not 0.0 < bundle.threshold <= 1.0:
        raise BundleError(f"{name}: threshold {bundle.threshold:g} is not in (0, 1]")
    if not all(map(math.isfinite, (*bundle.mean, *bundle.std))) or min(bundle.std) <= 0:
        raise BundleError(f"{name}: normalisation mean {bundle.mean}, std {bundle.std} is not usable")
    if NETS[bundle.net].layout not in spec.layouts:
        kind = "clips" if "BCTHW" in spec.layouts else "frames"
        raise BundleError(f"{name}: {bundle.net} is no net for {bundle.task}, whose classes are those of {kind}")
    if not bundle.weights:
        raise BundleError(f"{name}: has no weights")
    for view, own in bundle.views.items():
        if view not in OWN_MODEL or not spec.named_frames:
            raise BundleError(f"{name}: {bundle.task} has no model of {view}; there is {', '.join(OWN_MODEL)}, of stenosis")
        if (own.task, own.classes, own.window) != (bundle.task, bundle.classes, bundle.window) or own.views:
            raise BundleError(f"{name}: the model of {view} has another task, window or other classes, or models of views itself")
        if own.trained_on != bundle.trained_on:
            raise BundleError(f"{name}: the model of {view} was trained on {own.trained_on}, not on {bundle.trained_on}")
    return NETS[bundle.net]


def _check_weights(bundle: Bundle, spec: NetSpec, data: bytes, name: str) -> None:
    """Names, shapes and kinds of all tensors against the net on the meta device, which then takes the bundle's input."""
    import torch

    from angio_ray.models.classifier import ClipClassifier

    try:
        found = _tensors(data)
    except Exception as error:  # SafetensorError, or whatever torch makes of a forged header
        raise BundleError(f"{name}: the weights are not safetensors") from error
    with torch.device("meta"):
        net = spec.build().eval()
    wanted = net.state_dict()
    if missing := sorted(wanted.keys() - found.keys()):
        raise BundleError(f"{name}: {len(missing)} tensors of {spec.name} are missing, the first is {missing[0]}")
    if unknown := sorted(found.keys() - wanted.keys()):
        raise BundleError(f"{name}: {len(unknown)} tensors are not of {spec.name}, the first is {unknown[0]}")
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            raise BundleError(f"{name}: {key} has shape {tuple(tensor.shape)}, {spec.name} wants {tuple(wanted[key].shape)}")
        if tensor.is_floating_point() != wanted[key].is_floating_point():
            raise BundleError(f"{name}: {key} is {tensor.dtype}, {spec.name} wants {wanted[key].dtype}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BundleError(f"{name}: {key} holds values that are not numbers")
    classifier = ClipClassifier(spec, net=net)
    window = bundle.window
    clip = torch.empty((1, window.num_frames, window.size, window.size), device="meta")
    try:
        with torch.inference_mode():
            num_classes = classifier.to("meta").logits(clip).shape[-1]
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"{name}: {spec.name} cannot take {window.num_frames} frames of {window.size} x {window.size} px") from error
    if num_classes != len(bundle.classes):
        raise BundleError(f"{name}: {spec.name} has {num_classes} outputs for {len(bundle.classes)} classes")


def _tensors(data: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(data)


def _as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _view_folder(view: str) -> str:
    """Below a bundle's own, where the model of a view lies. The name is a manifest's, so it may be anything."""
    if view not in OWN_MODEL:
        raise BundleError(f"there is no model of {view[:40]!r}, but of {', '.join(OWN_MODEL)}")
    return view.replace(" ", "_")


def _write_folder(folder: Path, bundle: Bundle, card: str) -> None:
    """Weights first and the manifest last, each by rename: a reader sees the old bundle, a digest error, or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    for view, own in bundle.views.items():
        _write_folder(folder / _view_folder(view), own, _default_card(own, bundle))
    manifest = {**_facts(bundle), "digest": bundle.digest}
    files = [(entry["file"], data) for entry, data in zip(manifest["weights"], bundle.weights, strict=True)]
    for stale in set(folder.glob("weights*.safetensors")) - {folder / n for n, _ in files}:
        stale.unlink()
    files += [(_CARD, card.encode()), (_MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())]
    for name, data in files:
        part = folder / f".{name}.part"
        part.write_bytes(data)
        part.replace(folder / name)


def _default_card(bundle: Bundle, above: Bundle | None = None) -> str:
    """`above`: the bundle that it is a view's model of, whose threshold counts."""
    from angio_ray.models import TASKS

    window, threshold = bundle.window, (above or bundle).threshold
    people = "synthetic clips (the phantom); it has seen no patient" if bundle.trained_on == "synthetic" else "patients' clips"
    lines = [
        f"# {bundle.task}: {bundle.net}",
        "",
        "Research use only. Not a medical device.",
        "",
        f"- Trained on: {people}.",
        f"- Input: {window.num_frames} frames of {window.size} x {window.size} px, "
        + (
            "chosen one by one."
            if TASKS[bundle.task].named_frames
            else f"every {window.stride}. of {window.length} at {window.fps:g}/s from frame {window.start}."
        ),
        f"- Output: probability of {TASKS[bundle.task].classes[-1]}; at or above {threshold:g} the clip is called so.",
        *([f"- Of the bundle {above.digest}; alone its threshold is {bundle.threshold:g}."] if above else []),
        *([f"- Threshold: {bundle.threshold_from}."] if bundle.threshold_from else []),
        f"- Weights: {len(bundle.weights)} file(s), digest {bundle.digest}.",
        *([f"- Models of their own: {', '.join(bundle.views)}."] if bundle.views else []),
        f"- Training patients: {len(bundle.training_patients)}.",
        *(f"- {name}: {value:.4g}" for name, value in sorted(bundle.metrics.items())),
    ]
    return "\n".join(lines) + "\n"
