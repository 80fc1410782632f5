"""What runs the models: torch or OpenVINO, float32 or bfloat16, processor or CUDA. Chosen by measurement, checked for parity.

A runner takes uint8 frames and returns float32 probabilities; normalisation is inside the compiled graph. Knows no task.
Nothing compiled is ever pickled: a `BackendChoice` travels, with OpenVINO the `Converted` net too, and each actor compiles.

Shapes: B clips, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from angio_ray.models.regions import NUM_PATCHES
from angio_ray.sampling import ClipWindow

if TYPE_CHECKING:
    from angio_ray.models.bundles import Bundle
    from angio_ray.models.classifier import Ensemble
    from angio_ray.models.interface import NetSpec

log = logging.getLogger(__name__)

Backend = Literal["torch", "openvino"]
Precision = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]
Runner = Callable[[np.ndarray], np.ndarray]
"""uint8 (B, T, H, W) -> float32 (B, K), or (B, T, K), or with maps (B, T, K + h * w); any B. One thread at a time."""

MAX_DIFFERENCE = 0.02
"""Largest difference of any probability from float32 torch at which a backend may be used."""

_WORTH = 0.9
"""A less exact or less plain choice must need less than this share of the other's time, so that noise decides nothing."""
_PASS_S = 1.5
"""Rough time of one pass of the reference: the batch shrinks for heavy nets until it fits. Every run waits for this."""
_PARITY_CLIPS = 4
_HOPELESS = 2.0
"""A candidate slower than this multiple of the best so far on two clips is not timed on a whole batch."""
_CPU_CHUNK = 2
"""Clips that torch takes at once on a processor: larger batches fall out of the caches (X3D-S, bfloat16 channels-last, two
Zen 5 cores: 33 ms a clip by twos, 60 by eights). OpenVINO does not care."""
_PIXELS_AT_ONCE: dict[str, int] = {"cpu": 8_000_000, "cuda": 160_000_000}
"""Of the frames that a net is given together: 19 clips of the quality task on a processor, 3 of those that see 200 frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendChoice:
    """How models run in a whole run, on all nodes; part of the run's configuration."""

    backend: Backend = "torch"
    precision: Precision = "float32"
    device: Device = "cpu"
    channels_last: bool = False
    """torch only: kernels and activations with the channels innermost."""

    def __str__(self) -> str:
        place = f" on {self.device}" if self.device != "cpu" else ""
        return f"{self.backend} {self.precision}{' channels-last' if self.channels_last else ''}{place}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One candidate as measured on this machine, all bundles together."""

    choice: BackendChoice
    ms_per_clip: float
    """Best pass; infinite when it could not run."""
    max_difference: float
    """Largest difference of a probability from float32 torch."""
    fault: str | None = None
    """Why it cannot be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """A bundle's nets in OpenVINO's form, for any batch size. It travels: converting takes seconds and all of torch, reading it
    takes neither, so a run converts once and not in each of its actors."""

    xml: bytes
    weights: bytes


def bf16_units() -> tuple[str, ...]:
    """The processor's units for bfloat16, of amx_bf16, avx512_bf16, bf16 (Arm); empty where none is known."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ()
    line = next((li for li in text.splitlines() if li.lower().startswith(("flags", "features"))), "")
    flags = set(line.partition(":")[2].split())
    return tuple(u for u in ("amx_bf16", "avx512_bf16", "bf16") if u in flags)


def unsupported(choice: BackendChoice) -> str | None:
    """Why this machine cannot run `choice`, in one line; None when it can (bfloat16 without units runs, slowly)."""
    if choice.backend == "openvino":
        if choice.device != "cpu":
            return "OpenVINO is used on processors only"
        if importlib.util.find_spec("openvino") is None:
            return "OpenVINO is not installed (pip install 'angio-ray[openvino]')"
    elif choice.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
    return None


def for_net(choice: BackendChoice, net: str) -> BackendChoice:
    """The choice as this net runs it: some are exact whatever the others are, some run with torch alone."""
    from angio_ray.models import NETS

    if NETS[net].varying:
        return BackendChoice(device=choice.device)
    if NETS[net].autocast and choice.backend == "openvino" and choice.precision == "bfloat16":
        return replace(choice, backend="torch", channels_last=True)
    return replace(choice, precision="float32") if NETS[net].exact else choice


def make_runner(ensemble: Ensemble, window: ClipWindow, choice: BackendChoice, *, num_threads: int = 1) -> Runner:
    """Compile `ensemble` for `choice`. ValueError, in one line, when this machine cannot run it.

    `num_threads` bounds the processor threads of one call; with torch it is set for the whole process.
    """
    if why := unsupported(choice):
        raise ValueError(why)
    if choice.backend == "openvino":
        return openvino_runner(convert(ensemble, window), precision=choice.precision, num_threads=num_threads)
    return torch_runner(ensemble, choice, num_threads=num_threads)


class CompiledScorer:
    """What scorers of one net share: its windows, its threshold and the compiled net."""

    task: str

    def __init__(
        self, bundle: Bundle, backend: BackendChoice, *, num_threads: int = 1,
        converted: Mapping[str, Converted] | None = None,
    ) -> None:
        from angio_ray.models import TASKS

        self.windows: tuple[ClipWindow, ...] = TASKS[self.task].windows(bundle)
        self.threshold = np.float32(bundle.threshold)
        backend = for_net(backend, bundle.net)
        form = (converted or {}).get(bundle.digest)
        if form and backend.backend == "openvino":
            self._run = openvino_runner(form, precision=backend.precision, num_threads=num_threads)
        else:
            self._run = make_runner(bundle.ensemble(), bundle.window, backend, num_threads=num_threads)

    def probabilities(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """{window name: uint8 (B, T, H, W)} -> what the net's runner gives. ValueError where one is no number (NaN)."""
        return self.probabilities_of(inputs[self.windows[0].name])

    def probabilities_of(self, x_BTHW: np.ndarray) -> np.ndarray:
        """The same of an input."""
        probability = self._run(x_BTHW)
        if not np.isfinite(probability).all():
            raise ValueError(f"the {self.task} net returned NaN")
        return probability


class TwoClassScorer(CompiledScorer):
    """The scorers of tasks with two classes for a clip."""

    def positive(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probability of the last class: {window name: uint8 (B, T, H, W)} -> float32 (B,). ValueError as above."""
        return np.ascontiguousarray(self.probabilities(inputs)[:, -1])


class NamingScorer(TwoClassScorer):
    """The scorers of tasks whose answer is the name of one of two classes."""

    classes: tuple[str, str]

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[np.ndarray]] | None = None,
        known: Mapping[str, Sequence[Any]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Sort B clips: {window name: uint8 (B, T, H, W)} -> <task>, <task>_probability, <task>_threshold, each of length B.

        The first is the second class's name where its probability reaches the bundle's threshold, else the first's; the second
        is that probability, float32 in 0..1 as the threshold. ValueError when the net returns no number (NaN) for a clip.
        """
        probability = self.positive(inputs)
        return {
            self.task: np.where(probability >= self.threshold, self.classes[1], self.classes[0]),
            f"{self.task}_probability": probability,
            f"{self.task}_threshold": np.full_like(probability, self.threshold),
        }


def torch_runner(ensemble: Ensemble, choice: BackendChoice, *, num_threads: int = 1) -> Runner:
    """Run with torch in inference mode; bfloat16 by autocast. Takes the module over (moves it to the device)."""
    import torch

    torch.set_num_threads(num_threads)
    module = ensemble.eval().to(choice.device)
    if choice.channels_last:
        from angio_ray.models.classifier import kernel_format

        for member in ensemble.members:
            member.net.to(memory_format=kernel_format(member))

    def run(x_BTHW: np.ndarray) -> np.ndarray:
        chunk = _CPU_CHUNK if choice.device == "cpu" else max(1, len(x_BTHW))
        autocast = torch.autocast(choice.device, dtype=torch.bfloat16, enabled=choice.precision == "bfloat16")
        with torch.inference_mode(), autocast, _quiet():
            clips = torch.from_numpy(np.require(x_BTHW, np.uint8, ("C", "W")))
            if choice.device == "cuda":
                clips = clips.pin_memory().to("cuda", non_blocking=True)
            probabilities: np.ndarray = torch.cat([module(part).float() for part in clips.split(chunk)]).cpu().numpy()
        return probabilities

    return _in_parts(run, _PIXELS_AT_ONCE[choice.device])


def convert(ensemble: Ensemble, window: ClipWindow) -> Converted:
    """OpenVINO's form of the module, for any batch size (seconds for X3D-S, most of it in OpenVINO's frontend).

    ValueError, in one line, where that cannot be (a net that it does not know, a full folder for temporary files).
    """
    try:
        return _converted(ensemble, window)
    except (OSError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"the net cannot be converted for OpenVINO: {why}") from error


def _converted(ensemble: Ensemble, window: ClipWindow) -> Converted:
    import openvino
    import torch

    shape = (window.num_frames, window.size, window.size)
    example = torch.zeros((1, *shape), dtype=torch.uint8)
    with torch.inference_mode(), _quiet():
        # Traced here: OpenVINO's own tracing runs the net three more times to check what the parity check does anyway.
        traced = torch.jit.trace(ensemble.eval().cpu(), example, check_trace=False)
        model = openvino.convert_model(traced, example_input=example)
    model.reshape([-1, *shape])
    with tempfile.TemporaryDirectory() as folder:  # it writes to files only
        xml = Path(folder, "net.xml")
        openvino.save_model(model, xml, compress_to_fp16=False)
        return Converted(xml=xml.read_bytes(), weights=xml.with_suffix(".bin").read_bytes())


def openvino_runner(converted: Converted, *, precision: Precision, num_threads: int = 1) -> Runner:
    """Compile a converted model for the processor, any batch size, one stream of `num_threads` threads. Needs no torch."""
    import openvino

    core = openvino.Core()
    model = core.read_model(model=converted.xml, weights=converted.weights)
    compiled = core.compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": num_threads,
        # Pinned threads of several actors on one node would all sit on its first processors.
        "ENABLE_CPU_PINNING": False,
    })
    request = compiled.create_infer_request()

    def run(x_BTHW: np.ndarray) -> np.ndarray:
        result = request.infer([np.require(x_BTHW, np.uint8, "C")], share_inputs=True)
        return np.array(result[0], dtype=np.float32)

    return _in_parts(run, _PIXELS_AT_ONCE["cpu"])


def _in_parts(run: Runner, pixels: int) -> Runner:
    """The same for any batch, so many pixels at a time: memory grows with what is between the layers."""

    def parts(x_BTHW: np.ndarray) -> np.ndarray:
        at_once = max(1, pixels // max(1, x_BTHW[0].size)) if len(x_BTHW) else 1
        if len(x_BTHW) <= at_once:
            return run(x_BTHW)
        return np.concatenate([run(x_BTHW[begin : begin + at_once]) for begin in range(0, len(x_BTHW), at_once)])

    return parts


def measure_backends(
    bundles: Sequence[Bundle],
    choices: Sequence[BackendChoice],
    *,
    num_threads: int = 1,
    batch_size: int = 8,
    clips: np.ndarray | None = None,
    converted: MutableMapping[str, Converted] | None = None,
) -> list[Measurement]:
    """Compare each choice with float32 torch on the processor, and time it, on the same clips.

    What is several times slower than the best so far is timed on two clips only.

    Parameters
    ----------
    bundles
        All that the run will use; times are summed, the largest difference counts.
    batch_size
        As in the run. Heavy nets are measured with fewer clips, so that a pass of the reference takes a second or two.
    clips
        uint8 (B, T, H, W) of the bundles' common window. Default: made up, half noise and half moving dark lines.
    converted
        Bundles in OpenVINO's form by their digests: what is not there and is needed is added.
    """
    converted = {} if converted is None else converted
    totals = dict.fromkeys(choices, 0.0)
    differences = dict.fromkeys(choices, 0.0)
    faults: dict[BackendChoice, str] = {}
    for bundle in bundles:
        probe = probe_clips(bundle.window, min(batch_size, _PARITY_CLIPS)) if clips is None else clips
        plain = torch_runner(bundle.ensemble(), BackendChoice())  # on one thread: a busy machine delays teams of threads
        started = time.perf_counter()
        expected = plain(probe[:_PARITY_CLIPS])
        reference_s = (time.perf_counter() - started) / len(expected)
        count = min(batch_size if clips is None else len(clips), max(len(expected), int(_PASS_S / reference_s)))
        probe = probe[np.arange(count) % len(probe)]  # again and again: to make up whole runs takes longer than to judge them
        best_s = float("inf")
        for choice in reversed(choices):  # the likely fastest first, so that the slow ones are soon seen to be slow
            if choice in faults:
                continue
            as_run = for_net(choice, bundle.net)
            try:
                if as_run.backend == "openvino" and unsupported(choice) is None:
                    if bundle.digest not in converted:
                        converted[bundle.digest] = convert(bundle.ensemble(), bundle.window)
                    run = openvino_runner(converted[bundle.digest], precision=as_run.precision, num_threads=num_threads)
                else:
                    run = make_runner(bundle.ensemble(), bundle.window, as_run, num_threads=num_threads)
                difference = _difference(run(probe[:2]), expected[:2], bundle)
                clip_s = _seconds(run, probe[:2])
                if clip_s < _HOPELESS * best_s and len(probe) > 2:
                    difference = _difference(run(probe)[: len(expected)], expected, bundle)
                    clip_s = _seconds(run, probe)
            except (ValueError, RuntimeError, ImportError) as error:
                log.debug("%s cannot run", choice, exc_info=True)
                faults[choice] = str(error).partition("\n")[0][:200] or type(error).__name__
                continue
            totals[choice] += clip_s * 1000
            best_s = min(best_s, clip_s)
            differences[choice] = max(differences[choice], difference)
            if not difference <= MAX_DIFFERENCE:  # NaN fails too
                faults[choice] = f"its probabilities differ from float32 by up to {difference:.3g} ({bundle.task})"
    return [
        Measurement(choice=c, ms_per_clip=float("inf") if c in faults else totals[c], max_difference=differences[c],
                    fault=faults.get(c))
        for c in choices
    ]


def choose_backend(
    bundles: Sequence[Bundle],
    device: Device = "cpu",
    requested: Literal["auto", "torch", "openvino"] = "auto",
    *,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    channels_last: bool | None = None,
    num_threads: int = 1,
    batch_size: int = 8,
    clips: np.ndarray | None = None,
    converted: MutableMapping[str, Converted] | None = None,
) -> BackendChoice:
    """Decide how a run's models are run: the fastest that passes the parity check, as measured where this is called.

    Call it once per run, on a machine of the kind that will score (a Ray task with a GPU for `device="cuda"`), with the
    threads and the batch of the run. What it chose and why is logged, and so is everything that was asked for and is not
    used. A resumed run passes what it ran with before as `requested`, `precision` and `channels_last`. `converted`: as for
    `measure_backends`.

    ValueError, in one line, when what was requested cannot run here.
    """
    if device == "cuda" and (why := unsupported(BackendChoice(device="cuda"))):
        raise ValueError(why)
    if requested == "openvino" and (why := unsupported(BackendChoice(backend="openvino", device=device))):
        raise ValueError(why)
    wanted = [
        c for c in _candidates(device)
        if requested in ("auto", c.backend) and precision in ("auto", c.precision)
        and (channels_last is None or c.channels_last == channels_last)
    ]
    if not wanted and precision == "bfloat16":  # asked for on a processor without units: slow, but it is asked for
        wanted = [BackendChoice(backend="torch" if requested == "auto" else requested, precision="bfloat16", device=device,
                                channels_last=bool(channels_last))]
    if not wanted:
        raise ValueError(f"no backend is {requested}, {precision} and channels_last={channels_last} on {device}")
    converted = {} if converted is None else converted

    def measure(choices: Sequence[BackendChoice]) -> list[Measurement]:
        return measure_backends(
            bundles, choices, num_threads=num_threads, batch_size=batch_size, clips=clips, converted=converted
        )

    measured = measure(wanted)
    for m in measured:
        if m.fault:
            log.warning("%s is not used: %s", m.choice, m.fault)
        else:
            log.info("%s: %.1f ms a clip, differs from float32 by %.1g", m.choice, m.ms_per_clip, m.max_difference)
    best = _fastest(measured)
    if best is None:
        backend: Backend = "openvino" if requested == "openvino" else "torch"
        fallback = [c for c in _candidates(device) if c.precision == "float32" and c.backend == backend and c not in wanted]
        usable = _fastest(measure(fallback))
        if usable is None and backend == "openvino":
            usable = Measurement(choice=BackendChoice(device=device), ms_per_clip=float("inf"), max_difference=0.0)
        if usable is None:
            raise ValueError(f"the models do not run with {backend} float32 on {device}")
        log.warning("nothing that was asked for passes the parity check: %s is used instead", usable.choice)
        best = usable
    log.info("models run with %s", best.choice)
    return best.choice


def probe_clips(window: ClipWindow, count: int, *, seed: int = 0) -> np.ndarray:
    """Clips that parity is checked on: uint8 (count, T, H, W), every second noise, the others dark lines that move on a shading.

    They are no angiograms; they cover the grey range and the two extremes of texture.
    """
    rng = np.random.default_rng(seed)
    size, num_frames = window.size, window.num_frames
    clips = rng.integers(0, 256, (count, num_frames, size, size), dtype=np.uint8)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    for clip in clips[1::2]:
        phase, bend, level = rng.uniform(0, 6.28, 4), rng.uniform(1, 4, 4), rng.uniform(90, 200)
        for t in range(num_frames):
            image = level + 50 * (x - 0.5) + 30 * np.cos(3 * y + phase[0])
            filled = np.clip(2 * t / num_frames, 0, 1)
            for p, b in zip(phase, bend, strict=True):
                distance = np.abs(y - 0.5 - 0.35 * np.sin(b * x + p + 0.3 * np.sin(0.4 * t)))
                image = image - 90 * filled * np.exp(-((distance * size / 2.5) ** 2))
            clip[t] = np.clip(image + rng.normal(0, 4, image.shape), 0, 255)
    return clips


def likely_fastest(device: Device = "cpu") -> BackendChoice:
    """What `choose_backend` finds fastest as a rule, without measuring: for tables of cost, not for runs."""
    return _candidates(device)[-1]


def _candidates(device: Device) -> list[BackendChoice]:
    """What is worth measuring here, the plainest first and the likely fastest last."""
    if device == "cuda":
        choices = [BackendChoice(device="cuda"), BackendChoice(device="cuda", channels_last=True)]
        return choices + [replace(c, precision="bfloat16") for c in choices]
    plain, last = BackendChoice(), BackendChoice(channels_last=True)
    native = BackendChoice(backend="openvino")
    choices = [plain, last] if unsupported(native) else [plain, last, native]
    if bf16_units():
        # Without channels-last, bfloat16 was slower than with it on every processor tried.
        choices += [replace(c, precision="bfloat16") for c in choices if c is not plain]
    return choices


def _fastest(measured: Sequence[Measurement]) -> Measurement | None:
    """The fastest usable one; a later (less plain) candidate must beat the best so far by a margin."""
    best: Measurement | None = None
    for m in measured:
        if m.fault is None and (best is None or m.ms_per_clip < _WORTH * best.ms_per_clip):
            best = m
    return best


def _difference(found: np.ndarray, expected: np.ndarray, bundle: Bundle) -> float:
    """The largest of any class's probability; that of a cell of a map, or of a region's pixel, counts a fifth, since a box or a
    region follows from many of them.

    A detector's boxes do not count: the order of those that are as good as others changes with the last digits.
    """
    apart = np.abs(found - expected)
    if _spec(bundle).layout == "B2HW-regions":
        num_classes = len(bundle.classes) + NUM_PATCHES
    else:
        num_classes = len(bundle.classes) if apart.ndim > 2 else apart.shape[-1]
    boxes = 5 * _spec(bundle).num_boxes * len(bundle.weights)
    cells = apart[..., num_classes : apart.shape[-1] - boxes]
    return float(max(apart[..., :num_classes].max(), 0.2 * cells.max(initial=0.0)))


def _spec(bundle: Bundle) -> NetSpec:
    from angio_ray.models import NETS

    return NETS[bundle.net]


def _seconds(run: Runner, clips: np.ndarray) -> float:
    """Seconds a clip of one pass."""
    started = time.perf_counter()
    run(clips)
    return (time.perf_counter() - started) / len(clips)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracers' and autocast's warnings, which no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
