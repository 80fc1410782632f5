"""Cross-validation on a Ray cluster: one Ray Train run per fold, as many at once as there is room for.

    labels + clips -> folds -> cache -> TorchTrainer per fold -> bundle, out-of-fold rows -> figures, ensemble

Whatever dies (a worker, a node, the driver), the same command again goes on: each fold from its last checkpoint, a fold
that has its rows not at all. Folds and rows are then the same, since every draw is a function of seed and epoch (`loop`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
import ray.train
import torch
from numpy.typing import NDArray
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from angio_ray.evaluation.pooled import FoldsSummary
from angio_ray.evaluation.thresholds import Rule
from angio_ray.models import NETS, TASKS
from angio_ray.models.bundles import BundleError, Origin, load_bundle
from angio_ray.models.calcium import patient_pixel_mm
from angio_ray.models.classifier import KINETICS_MEAN, KINETICS_STD, ClipClassifier
from angio_ray.models.contrast import CLASSES as CONTRAST_CLASSES
from angio_ray.models.contrast import WHOLE_112, frame_classes
from angio_ray.models.interface import UNJUDGED, NetSpec
from angio_ray.models.pretrained import PretrainedError, load_pretrained
from angio_ray.models.stenosis import shown_boxes, taken_apart
from angio_ray.scoring.cluster import check_nodes_see, ray_cluster
from angio_ray.scoring.config import ConfigError, IndexConfig, RunError
from angio_ray.scoring.driver import StopEvent, stop_signals
from angio_ray.scoring.index import index
from angio_ray.scoring.run import load_run_key, open_root, open_source
from angio_ray.storage import Storage, StorageUnavailable
from angio_ray.tables.fence import RunHeld, TableUnwritable
from angio_ray.tables.root import STORE_ERRORS, TableRoot, describe
from angio_ray.tables.row_sets import SetDiffers
from angio_ray.tables.schema import TABLES
from angio_ray.training.cache import CacheSummary, ClipCache
from angio_ray.training.claim import Claim
from angio_ray.training.config import TrainConfig
from angio_ray.training.contrast_results import ContrastSummary, Span
from angio_ray.training.folds import Fold, FoldError, FoldPlan, check_disjoint, check_plan, ensure_folds
from angio_ray.training.labels import (
    FRAME_TARGETS,
    MASKS,
    Finding,
    Kind,
    LabelError,
    LabelFile,
    LabelJoin,
    check_labels,
    join_labels,
    label_sets,
    names_a_file,
    read_label_file,
    store_labels,
    stored_labels,
    task_clips,
)
from angio_ray.training.loop import Epoch, FitError, Part, Place, State, fit, predict, predict_patches, predict_places
from angio_ray.training.named_frames import NamedFrames, frames_without_contrast, marked_frames, named_frames
from angio_ray.training.paired_frames import PairedFrames, mask_of, paired_frames
from angio_ray.training.progress import Progress
from angio_ray.training.region_results import ClipRegions, choose_region_threshold, clip_regions
from angio_ray.training.results import (
    Experiment,
    Outcome,
    fold_is_written,
    study_lines,
    summary_lines,
    write_fold,
    write_summary,
)
from angio_ray.training.stenosis_results import FoundBoxes
from angio_ray.views import own_model

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 8
"""Folds: each Ray Train run keeps a few processes of its own on the driver's node."""
_TICK_S = 1.0
_CLIPS_A_TASK = 16
"""Whose heart phases are found in one Ray task."""
_ABOUT = (
    b"Checkpoints, bundles and decoded inputs of `angio-ray train`. Clips and weights are of the label file's data.\n"
)
_STATE, _WEIGHTS, _SCORES = "state.pt", "weights.safetensors", "outcome.json"


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """How an experiment ended."""

    name: str
    lines: tuple[str, ...]
    """What to tell the user: the figures."""
    figures: FoldsSummary | ContrastSummary
    rejected: Mapping[str, tuple[str, str | None]]
    """object_id -> (reason, detail) of labelled clips that cannot be decoded."""
    bundles: str
    """Where the bundles lie."""
    seconds: float

    @property
    def exit_code(self) -> int:
        """0; 3 where labelled clips could not be decoded."""
        return 3 if self.rejected else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clips:
    """One part of a fold, as a worker reads it from the cache."""

    object_ids: tuple[str, ...]
    etags: tuple[str | None, ...]
    target_N: NDArray[np.int64]
    contrast: tuple[tuple[int | None, ...], ...] = ()
    """Of tasks with a class per frame: first and last frame of any contrast around those of full contrast, in the file's own."""
    named: tuple[NamedFrames, ...] = ()
    """Of tasks that see frames one by one."""
    redundant: tuple[tuple[int, ...], ...] = ()
    """Of these, what is shown beside the candidate frames of each clip: under its class, or, where boxes teach, as frames without
    any."""
    pairs: tuple[tuple[PairedFrames, ...], ...] = ()
    """Of tasks that see pairs of frames."""
    pixel_mm: tuple[tuple[float, float] | None, ...] = ()
    """Of these, the size of a pixel of the net's window in the plane of the patient."""
    located: bool = False
    """Of these, whether boxes teach."""
    marked: tuple[tuple[int, ...], ...] = ()
    """Of these, the frames that found boxes are judged on."""
    views: tuple[str | None, ...] = ()
    """Of nets that see it, which of `views.OWN_MODEL` each clip is for."""

    def part(self, cache: ClipCache) -> tuple[Part, tuple[Span, ...]]:
        """Inputs and targets; of tasks with a class per frame what is known of each clip's frames, too."""
        if self.named:
            return self._named_part(cache)
        if self.pairs:
            return self._paired_part(cache), ()
        clips = cache.open(self.object_ids, self.etags)
        if not self.contrast:
            return Part(clips, self.target_N), ()
        target_NT = np.full((len(clips), cache.window.num_frames), UNJUDGED, np.int64)
        spans = []
        for target_T, shown_T, contrast in zip(target_NT, clips.frames, self.contrast, strict=True):
            target_T[: len(shown_T)] = frame_classes(shown_T, contrast)
            spans.append(Span.of(target_T, len(shown_T), len(CONTRAST_CLASSES) - 1))
        return Part(clips, target_NT), tuple(spans)

    def _named_part(self, cache: ClipCache) -> tuple[Part, tuple[Span, ...]]:
        keys = list(zip(self.object_ids, self.etags, strict=True))
        views = self.views or [None] * len(keys)
        rows: list[tuple[Any, ...]] = [
            (*key, named.frames, named.target, named.boxes_S7, view)
            for key, named, view in zip(keys, self.named, views, strict=True)
        ]
        nothing = np.empty((0, 7), np.float32)
        rows += [
            (*key, frames, 0, nothing, view) if self.located else (*key, frames, named.target, None, view)
            for key, named, frames, view in zip(keys, self.named, self.redundant or [()] * len(keys), views, strict=True)
            if frames
        ]
        if not self.located:
            rows = [row for row, kept in zip(rows, self._balanced(rows), strict=True) if kept]
        object_ids, etags, frames, targets, boxes, views = zip(*rows, strict=True)
        target_NT = np.full((len(rows), cache.window.num_frames), UNJUDGED, np.int64)
        for target_T, shown, target in zip(target_NT, frames, targets, strict=True):
            target_T[: len(shown)] = target
        spans = tuple(Span(len(shown), None) for shown in frames)
        vessels = [named.vessels for named in self.named] + [()] * (len(rows) - len(self.named)) if self.located else []
        part = Part(
            cache.open(object_ids, etags, frames), target_NT, boxes, vessels=tuple(vessels), views=views if self.views else (),
            num_as_scored=len(self.named),
        )  # fmt: skip
        return part, spans

    def _paired_part(self, cache: ClipCache) -> Part:
        rows = [(i, pair) for i, pairs in enumerate(self.pairs) for pair in pairs]
        clips = cache.open(
            [self.object_ids[i] for i, _ in rows], [self.etags[i] for i, _ in rows], [pair.frames for _, pair in rows]
        )
        return Part(clips, self.target_N[[i for i, _ in rows]], outlines=tuple(pair.png for _, pair in rows))

    def found_regions(
        self, part: Part, classifier: ClipClassifier, threshold: float, dilations: int, place: Place
    ) -> tuple[ClipRegions, ...]:
        """What a net of regions makes of each clip's pair, against its outline."""
        if classifier.layout != "B2HW-regions":
            return ()
        size = classifier.window_size
        said_NX = predict_places(classifier, part, place)
        return tuple(
            clip_regions(said_X, mask_of(png, size), threshold, dilations, mm)
            for said_X, png, mm in zip(said_NX, part.outlines, self.pixel_mm, strict=True)
        )

    def _balanced(self, rows: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Which rows are kept, so that each class has the same share of frames without contrast as another."""
        clips = Counter(named.target for named in self.named)
        more = Counter(row[3] for row in rows[len(self.named) :])
        share = min((more[target] / number for target, number in clips.items()), default=0.0)
        room = {target: round(share * number) for target, number in clips.items()}
        kept = [True] * len(self.named)
        for row in rows[len(self.named) :]:
            kept.append(room[row[3]] > 0)
            room[row[3]] -= 1
        return kept

    def found_boxes(self, classifier: ClipClassifier, cache: ClipCache, place: Place) -> tuple[FoundBoxes, ...]:
        """What the maps show on the frames that boxes were marked on."""
        rows = [i for i, frames in enumerate(self.marked) if frames]
        if not rows or classifier.layout != "BCTHW-maps":
            return ()
        frames = [self.marked[i] for i in rows]
        clips = cache.open([self.object_ids[i] for i in rows], [self.etags[i] for i in rows], frames)
        part = Part(clips, self.target_N[rows], views=tuple(self.views[i] for i in rows) if self.views else ())
        said_NTX = predict_places(classifier, part, place)
        found = []
        for clip, shown, said_TX in zip(rows, frames, said_NTX, strict=True):
            for frame, said_X in zip(shown, said_TX[: len(shown)], strict=True):
                _, cells, boxes = taken_apart(said_X, classifier.num_classes, classifier.num_boxes)
                of_map = shown_boxes(cells, None)
                found.append(FoundBoxes(clip, frame, of_map if boxes is None else shown_boxes(cells, boxes), of_map))
        return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What the workers of one fold are given."""

    fold: int
    net: str
    recipe: Any
    seed: int
    cache: ClipCache
    train: _Clips
    validation: _Clips
    test: _Clips
    start: tuple[Storage, str] | None
    """Where the weights to begin from lie."""
    gpu: bool
    threads: int
    checkpoint_s: float
    rule: Rule
    """Of the threshold."""
    at_least: float | None


def train(config: TrainConfig) -> TrainSummary:
    """Train every fold, and write bundles, predictions and figures. RunError carries the exit code where it cannot."""
    try:
        return _train(config)
    except (LabelError, FoldError, BundleError, PretrainedError) as error:
        raise ConfigError(str(error)) from error
    except RunHeld as error:
        raise RunError(str(error), 4) from error
    except (TableUnwritable, StorageUnavailable) as error:
        raise RunError(f"not finished: {error}; run the same command again", 1) from error
    except STORE_ERRORS as error:
        raise RunError(f"not finished: {describe(error)}; run the same command again", 1) from error


def _train(config: TrainConfig) -> TrainSummary:
    started = time.monotonic()
    if config.task not in TASKS:
        raise ConfigError(f"no task {config.task!r}; there is {', '.join(TASKS)}")
    source, root = open_source(config.clips), open_root(config.tables, config.clip_tables)
    key = load_run_key(config.key_file, config.tables, root)
    root.ensure(key.fingerprint, TABLES)
    out = _place(config.out_uri)
    cache = ClipCache(_place(config.cache or out.child("cache")), NETS[config.net].window, assume_fps=config.assume_fps)
    labels, label_set, stored = _labels(root, config)
    with Claim(out, config.name) as claim, ray_cluster() as nodes, stop_signals() as stop:
        for place in (source, out, cache.folder):
            if not place.is_s3:
                check_nodes_see(place.uri)
        indexed = index(
            IndexConfig(
                config.clips,
                tables=config.tables,
                clips=config.clip_tables,
                key_file=config.key_file,
                patient_map=config.patient_map,
            )
        )
        if indexed.postponed:
            # folds without them would be other folds than the next run's
            raise RunError(
                f"not finished: {indexed.postponed.total():,} objects could not be read "
                f"({', '.join(sorted(indexed.postponed))}); run the same command again, or take them out of --clips",
                1,
            )
        join = join_labels(root, key, labels, source=config.clips)
        used = _with_outlines(_with_frames(_only(join, config), config), config)
        _tell(used, out, config)
        clips, target_N = task_clips(used.clips, config.task)
        # all that can be wrong with the arguments comes before the long work
        plan = FoldPlan(
            scheme=config.scheme,
            folds=config.folds,
            shares=config.shares,
            validation=config.validation,
            seed=config.seed,
        )
        check_plan(clips, target_N, plan)
        if not stored:
            with _another_name("label-set"):
                check_labels(root, label_set, join)
        _stop(stop)
        inputs, pairs = _named_inputs(clips, config) if TASKS[config.task].named_frames else clips, {}
        workers = max(1, int(sum(node.get("CPU", 0.0) for node in nodes)))
        rejected: dict[str, tuple[str, str | None]] = {}
        if TASKS[config.task].paired_frames:
            whole = ClipCache(cache.place, WHOLE_112, assume_fps=config.assume_fps)
            small = whole.fill(clips, source, workers=workers)
            rejected.update(small.rejected)
            usable_N = _usable(clips, small)
            clips, target_N = clips.filter(pa.array(usable_N)), target_N[usable_N]
            pairs = _found_pairs(clips, whole)
            there = np.array([clip_id in pairs for clip_id in clips["clip_id"].to_pylist()], np.bool_)
            clips, target_N = clips.filter(pa.array(there)), target_N[there]
            check_plan(clips, target_N, plan)
            inputs = _paired_inputs(clips, pairs)
        filled = cache.fill(inputs, source, workers=workers)
        rejected.update(filled.rejected)
        usable_N = _usable(clips, filled)
        clips, target_N = clips.filter(pa.array(usable_N)), target_N[usable_N]
        with _another_name("fold-set"):
            folds = ensure_folds(root, config.folds_name, clips, target_N, plan, task=config.task, some=bool(config.only))
        initial = _initial(config, clips, folds)
        experiment = Experiment(
            name=config.name,
            task=config.task,
            net=config.net,
            recipe=config.chosen_recipe,
            recipe_name=config.recipe,
            folds=folds,
            label_set=label_set,
            clips=clips,
            rule=config.threshold,
            at_least=config.at_least,
            seen_before=initial.seen,
            began_from=initial.words,
            began_on=initial.trained_on,
            command=config.command,
            resamples=config.resamples,
            out=out,
        )
        binding = _binding(experiment, config, initial)
        if not stored:
            with _another_name("label-set"):
                store_labels(root, label_set, join)
        out.write_bytes(out.child(config.name, "experiment.json"), binding)
        missing = [n for n in range(folds.num_folds) if not fold_is_written(experiment, root, n)]
        if missing:
            rooms = size_rooms(nodes, config, len(missing))
            jobs = _jobs(experiment, config, missing, cache, rooms, initial.stored(experiment), pairs)
            _run_folds(experiment, config, root, jobs, rooms, stop, claim)
        figures = write_summary(experiment, root, trained=bool(missing))
    return TrainSummary(
        name=config.name,
        lines=(*summary_lines(experiment, figures), *study_lines(experiment, root)),
        figures=figures,
        rejected=rejected,
        bundles=out.child(config.name, "bundles"),
        seconds=time.monotonic() - started,
    )


def _only(join: LabelJoin, config: TrainConfig) -> LabelJoin:
    """The clips that are asked for by what their labels say; how many others there are is said."""
    if not config.only:
        return join
    kept = np.ones(len(join.clips), np.bool_)
    for only in config.only:
        column, _, value = only.partition("=")
        kept &= np.array([found == value for found in join.clips[column].to_pylist()], np.bool_)
    if not kept.any():
        raise LabelError(f"no clip has a label with {' and '.join(config.only)}")
    log.info("  %s clips with %s, %s others are not used", f"{kept.sum():,}", " and ".join(config.only), f"{(~kept).sum():,}")
    return replace(join, clips=join.clips.filter(pa.array(kept)))


def _with_frames(join: LabelJoin, config: TrainConfig) -> LabelJoin:
    """Of tasks that see frames one by one: without the clips whose frames or class cannot be told, each of them a finding."""
    if not TASKS[config.task].named_frames:
        return join
    spec, usable, findings = NETS[config.net], [], []
    for row in join.clips.to_pylist():
        if row["stenoses"] is None or row["quality"] == "unsatisfactory":
            continue
        if config.assume_fps and not row["frame_time_ms"]:
            row["frame_time_ms"] = 1000 / config.assume_fps
        if named_frames(row, spec.window.num_frames, spec.classes):
            usable.append(row)
        else:
            findings.append(Finding(Kind.NO_FRAMES, None, row["clip_id"]))
    if not usable:
        raise LabelError(f"no clip with a label for {config.task} has known contrast_begin and contrast_end, and a frame time")
    clips = pa.Table.from_pylist(usable, join.clips.schema)
    return replace(join, clips=clips, findings=(*join.findings, *findings))


def _with_outlines(join: LabelJoin, config: TrainConfig) -> LabelJoin:
    """Of tasks that see pairs of frames: without the clips on which nothing is outlined, or whose contrast is not known."""
    if not TASKS[config.task].paired_frames:
        return join
    needed = ("calcification_masks", "first_contrast", "contrast_begin", "contrast_end", "calcified")
    usable, findings = [], []
    for row in join.clips.to_pylist():
        if row["quality"] == "unsatisfactory":
            continue
        if config.assume_fps and not row["frame_time_ms"]:
            row["frame_time_ms"] = 1000 / config.assume_fps
        if all(row[name] not in (None, []) for name in needed):
            usable.append(row)
        else:
            findings.append(Finding(Kind.NO_FRAMES, None, row["clip_id"]))
    if not usable:
        raise LabelError("no clip has outlined frames without contrast, and known frames of full contrast")
    log.info("  %s clips with outlined frames, %s without", f"{len(usable):,}", f"{len(findings):,}")
    return replace(join, clips=pa.Table.from_pylist(usable, join.clips.schema), findings=(*join.findings, *findings))


def _found_pairs(clips: pa.Table, whole: ClipCache) -> dict[str, list[PairedFrames]]:
    """clip_id -> its pairs of frames of one heart phase; why clips have none is said."""
    rows = clips.to_pylist()
    parts = [rows[begin : begin + _CLIPS_A_TASK] for begin in range(0, len(rows), _CLIPS_A_TASK)]
    pairs, lacking = {}, Counter[str]()
    try:
        answers = ray.get([_pairs_of.remote(part, whole) for part in parts])
    except ray.exceptions.RayError as error:
        raise RunError(f"not finished: the pairs broke ({type(error).__name__}); run the same command again", 1) from error
    for part, found in zip(parts, answers, strict=True):
        for row, (of_clip, why) in zip(part, found, strict=True):
            if of_clip:
                pairs[row["clip_id"]] = of_clip
            else:
                lacking[why or "no_outlined_frame"] += 1
    told = ", ".join(f"{number:,} {why}" for why, number in lacking.most_common())
    log.info("pairs of frames of one heart phase: %s clips%s", f"{len(pairs):,}", f"; without: {told}" if told else "")
    return pairs


@ray.remote(num_cpus=1)
def _pairs_of(rows: list[dict[str, Any]], whole: ClipCache) -> list[tuple[list[PairedFrames], str | None]]:
    clips = whole.open([row["object_id"] for row in rows], [row["etag"] for row in rows])
    return [
        paired_frames(row, clips.read(np.array([i]))[0], np.asarray(clips.frames[i])) for i, row in enumerate(rows)
    ]


def _paired_inputs(clips: pa.Table, pairs: Mapping[str, Sequence[PairedFrames]]) -> pa.Table:
    """The clips once for each of their pairs."""
    rows = [{**row, "frames": pair.frames} for row in clips.to_pylist() for pair in pairs[row["clip_id"]]]
    return pa.Table.from_pylist(rows, clips.schema.append(pa.field("frames", pa.list_(pa.int32()))))


def _named_inputs(clips: pa.Table, config: TrainConfig) -> pa.Table:
    """The clips once for their candidate frames, again with frames that have boxes, for these alone, and for frames without
    contrast where the recipe asks for them."""
    spec = NETS[config.net]
    rows = []
    for row in clips.to_pylist():
        lists = [_named(row, spec, taught=taught).frames for taught in (False, bool(config.chosen_recipe.box_weight))]
        if marked := marked_frames(row, spec.window.num_frames):
            lists.append(marked)
        if config.chosen_recipe.redundancy and (without := frames_without_contrast(row, spec.window.num_frames)):
            lists.append(without)
        rows += [{**row, "frames": frames} for frames in dict.fromkeys(lists)]
    inputs = pa.Table.from_pylist(rows, clips.schema.append(pa.field("frames", pa.list_(pa.int32()))))
    return inputs.drop_columns(MASKS)  # pictures are much to carry


def _pixel_mm(row: Mapping[str, Any], size: int) -> tuple[float, float] | None:
    """At the patient, of a frame at the net's size."""
    mm = patient_pixel_mm(row)
    if mm is None or not row["rows"] or not row["columns"]:
        return None
    return mm[0] * row["rows"] / size, mm[1] * row["columns"] / size


def _named(row: Mapping[str, Any], spec: NetSpec, *, taught: bool = False) -> NamedFrames:
    found = named_frames(row, spec.window.num_frames, spec.classes, taught=taught)
    assert found is not None, "`_with_frames` leaves out what has none"
    return found


def _place(uri: str) -> Storage:
    """A place to write to, made if need be. RunError (2) where that cannot be."""
    try:
        place = Storage(uri)
        # not an empty folder: that is what a lost mount looks like
        place.write_bytes(place.child("ABOUT.txt"), _ABOUT)
    except StorageUnavailable as error:
        raise RunError(str(error), 2) from error
    return place


def _labels(root: TableRoot, config: TrainConfig) -> tuple[LabelFile, str, bool]:
    """The labels, the name of their set in the tables, and whether they are there already."""
    sets = label_sets(root)
    if config.labels in sets:
        if config.label_set not in (None, config.labels):
            raise ConfigError(f"--labels {config.labels} is a set of the tables already: --label-set goes with a file")
        return stored_labels(root, config.labels), config.labels, True
    if not names_a_file(config.labels):
        there = ", ".join(sorted(sets)) or "none"
        raise ConfigError(f"--labels {config.labels}: no such set of labels (there is {there}), and no such file")
    return read_label_file(config.labels), config.labels_name, False


@contextmanager
def _another_name(flag: str) -> Iterator[None]:
    """What to do where a name stands for other rows."""
    try:
        yield
    except SetDiffers as error:
        raise ConfigError(f"{error} with --{flag}") from error


def _tell(join: LabelJoin, out: Storage, config: TrainConfig) -> None:
    """What the join found: the first of each kind, and all of it in a file."""
    for line in join.report():
        log.info("%s", line)
    uri = out.child(config.name, "label_findings.csv")
    out.write_bytes(uri, join.findings_csv().encode())
    if join.findings:
        log.info("  all %s findings: %s", f"{len(join.findings):,}", uri)


def _stop(stop: StopEvent) -> None:
    if stop.is_set():
        raise RunError("stopped: checkpoints are kept; run the same command again", 128 + stop.signum)


def _usable(clips: pa.Table, filled: CacheSummary) -> NDArray[np.bool_]:
    """Which clips have an input, (N,); the others are said. RunError where another try may have more of them."""
    log.info(
        "inputs: %s decoded now, %s from the cache, %s cannot be decoded",
        *(f"{n:,}" for n in (filled.decoded, filled.reused, len(filled.rejected))),
    )
    named = dict(zip(clips["object_id"].to_pylist(), clips["clip_id"].to_pylist(), strict=True))
    for object_id, (reason, detail) in {**filled.rejected, **filled.postponed}.items():
        log.info("  clip %s: %s%s", named[object_id], reason, f" ({detail})" if detail else "")
    if filled.postponed:
        # folds without them would be other folds than the next run's
        raise RunError(f"not finished: {len(filled.postponed)} clips could not be read; run the same command again", 1)
    return np.array([object_id not in filled.rejected for object_id in named], np.bool_)


# -- what a training begins from -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Initial:
    """Weights to begin from."""

    words: str = "random weights"
    data: bytes | None = None
    """safetensors; None: the net's own random ones."""
    seen: tuple[str, ...] = ()
    trained_on: Origin | None = None

    @property
    def digest(self) -> str | None:
        return hashlib.sha256(self.data).hexdigest() if self.data else None

    def stored(self, experiment: Experiment) -> tuple[Storage, str] | None:
        """Where workers find them."""
        if self.data is None:
            return None
        uri = experiment.out.child(experiment.name, "start.safetensors")
        experiment.out.write_bytes(uri, self.data)
        return experiment.out, uri


def _initial(config: TrainConfig, clips: pa.Table, folds: Iterable[Fold]) -> _Initial:
    from safetensors.torch import save

    if config.weights:
        # what the file lacks keeps a random value: the same one for each driver of the experiment
        torch.manual_seed(config.seed)
        net = NETS[config.net].build()
        missing = load_pretrained(config.net, net, config.weights)
        log.info("%s: no value for %s", config.weights.name, ", ".join(missing) or "nothing")
        tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
        return _Initial(words=f"pretrained weights {config.weights.name}", data=save(tensors))
    if config.start:
        bundle = load_bundle(config.start)
        of_part = NETS[config.net].part
        if bundle.net not in (config.net, of_part) or len(bundle.weights) != 1:
            fit = " or ".join(filter(None, (config.net, of_part)))
            raise ConfigError(f"--start {config.start}: not one {fit}, but {len(bundle.weights)} {bundle.net}")
        if (bundle.window, bundle.mean, bundle.std) != (NETS[config.net].window, KINETICS_MEAN, KINETICS_STD):
            raise ConfigError(f"--start {config.start}: its window or normalisation is not the one that is trained with")
        # a detector leaves its classifier as it is, so who taught that may teach the detector, but not judge it
        judged = [fold.test for fold in folds] if NETS[config.net].num_boxes and bundle.net == of_part else [clips]
        here = {patient for part in judged for name in ("patient_id", "group_id") for patient in part[name].to_pylist()}
        if known := here & set(bundle.training_patients):
            raise ConfigError(
                f"--start {config.start} has seen {len(known)} of these patients: no figure on them would be out of fold"
            )
        if bundle.training_patients:
            log.info("--start: patients whom it has seen would be known only under the key that it was trained with")
        return _Initial(
            words=f"bundle {bundle.digest[:12]}",
            data=bundle.weights[0],
            seen=tuple(bundle.training_patients),
            trained_on=bundle.trained_on,
        )
    return _Initial()


def _binding(experiment: Experiment, config: TrainConfig, initial: _Initial) -> bytes:
    """What an experiment's name stands for: one recipe on one set of folds. ConfigError names what differs from before."""
    facts = {
        "task": experiment.task,
        "net": experiment.net,
        "recipe": asdict(experiment.recipe),
        "folds": experiment.folds.digest,
        "labels": experiment.label_set,
        "seed": config.seed,
        "threshold": [config.threshold, config.at_least],
        "begins_from": initial.digest,
        "assume_fps": config.assume_fps,
        "only": list(config.only) or None,
    }
    facts = json.loads(json.dumps(facts))
    uri = experiment.out.child(experiment.name, "experiment.json")
    with suppress(FileNotFoundError):
        stored = json.loads(experiment.out.read_bytes(uri))
        before = {"loss": "cross_entropy", "box_weight": 0.0, "vessel_weight": 0.0, "redundancy": False, "passes": 1}
        stored["recipe"] = before | {"cosine": False} | stored.get("recipe", {})  # of experiments before there was another
        before_regions = {name: getattr(experiment.recipe, name) for name in ("region_rate", "boundary_weight", "dilations")}
        stored["recipe"] = before_regions | stored["recipe"]
        stored["recipe"]["augment"] = {"upside_down": 0.0, "turned": 0.0} | stored["recipe"].get("augment", {})
        stored["recipe"]["stages"] = [{"cut": False, "regions": False} | stage for stage in stored["recipe"].get("stages", ())]
        if differ := [name for name in facts if stored.get(name) != facts[name]]:
            raise ConfigError(
                f"experiment {experiment.name} was begun with another {', '.join(differ)}: take another --experiment"
            )
    return json.dumps(facts, indent=1, sort_keys=True).encode()


# -- the cluster -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rooms:
    """How folds share the cluster."""

    parallel: int
    """Folds at once."""
    cpus_per_worker: int
    gpu: bool


def size_rooms(nodes: Sequence[Mapping[str, float]], config: TrainConfig, folds: int) -> Rooms:
    """Fit the folds to the nodes ({"CPU": n, "GPU": n} each). RunError (2) where not even one fits.

    On processors folds side by side come before threads within a fold: nothing is lost in between. With GPUs each worker
    has one.
    """
    cpus, gpus = ([int(node.get(kind, 0.0)) for node in nodes] for kind in ("CPU", "GPU"))
    most = min(config.parallel or _MOST_AT_ONCE, folds)
    gpu = sum(gpus) > 0
    room = sum(gpus) if gpu else sum(cpus)
    parallel = min(most, room // config.workers)
    if parallel < 1:
        raise RunError(f"{config.workers} workers do not fit in {room} {'GPUs' if gpu else 'processors'}", 2)
    per_worker = max(1, sum(cpus) // (parallel * config.workers))
    if gpu:
        # never more than the node with the fewest processors to a GPU has for each of its own
        per_worker = max(1, min([per_worker, *(c // g for c, g in zip(cpus, gpus, strict=True) if g)]))
    else:
        while per_worker > 1 and sum(c // per_worker for c in cpus) < parallel * config.workers:
            per_worker -= 1
    return Rooms(parallel, per_worker, gpu)


def _jobs(
    experiment: Experiment,
    config: TrainConfig,
    numbers: Sequence[int],
    cache: ClipCache,
    rooms: Rooms,
    start: tuple[Storage, str] | None,
    pairs: Mapping[str, Sequence[PairedFrames]],
) -> list[_Job]:
    objects = dict(
        zip(
            experiment.clips["clip_id"].to_pylist(),
            zip(*(experiment.clips[c].to_pylist() for c in ("object_id", "etag")), strict=True),
            strict=True,
        )
    )

    contrast: dict[str, tuple[int | None, ...]] = {}
    if TASKS[experiment.task].per_frame:
        columns = [experiment.clips[c].to_pylist() for c in ("clip_id", *FRAME_TARGETS[experiment.task])]
        contrast = {clip_id: tuple(frames) for clip_id, *frames in zip(*columns, strict=True)}

    spec, recipe, rows = NETS[experiment.net], experiment.recipe, {}
    if TASKS[experiment.task].named_frames:
        rows = {row["clip_id"]: row for row in experiment.clips.to_pylist()}

    mm = {row["clip_id"]: _pixel_mm(row, spec.window.size) for row in experiment.clips.to_pylist()} if pairs else {}

    def clips(part: pa.Table, *, taught: bool = False, boxes: bool = False) -> _Clips:
        ids = part["clip_id"].to_pylist()
        of = [rows[clip_id] for clip_id in ids] if rows else []
        count = spec.window.num_frames
        return _Clips(
            object_ids=tuple(objects[clip_id][0] for clip_id in ids),
            etags=tuple(objects[clip_id][1] for clip_id in ids),
            target_N=np.asarray(part["target"].to_pylist(), np.int64),
            contrast=tuple(contrast[clip_id] for clip_id in ids) if contrast else (),
            named=tuple(_named(row, spec, taught=taught and recipe.box_weight > 0) for row in of),
            redundant=tuple(frames_without_contrast(row, count) for row in of) if taught and recipe.redundancy else (),
            located=recipe.box_weight > 0,
            marked=tuple(marked_frames(row, count) for row in of) if boxes else (),
            views=tuple(own_model(row["artery"], row["view"]) for row in of) if NETS[experiment.net].sees_view else (),
            pairs=tuple(tuple(pairs[clip_id]) if taught else (pairs[clip_id][0],) for clip_id in ids) if pairs else (),
            pixel_mm=tuple(mm[clip_id] for clip_id in ids) if pairs else (),
        )

    jobs = []
    for number in numbers:
        fold = experiment.folds.fold(number)
        check_disjoint(fold.train, fold.validation, fold.test)
        jobs.append(
            _Job(
                fold=number,
                net=experiment.net,
                recipe=experiment.recipe,
                seed=config.seed * 1000 + number,
                cache=cache,
                train=clips(fold.train, taught=True),
                validation=clips(fold.validation),
                test=clips(fold.test, boxes=True),
                start=start,
                gpu=rooms.gpu,
                threads=rooms.cpus_per_worker,
                checkpoint_s=config.checkpoint_s,
                rule=config.threshold,
                at_least=config.at_least,
            )
        )
    return jobs


def _run_folds(
    experiment: Experiment,
    config: TrainConfig,
    root: TableRoot,
    jobs: Sequence[_Job],
    rooms: Rooms,
    stop: StopEvent,
    claim: Claim,
) -> None:
    """Train the folds, as many at once as there is room for, and write each as it ends."""
    board = _start_board()
    log.info(
        "%s: %d folds, %d at once, %d x %d processors%s each",
        experiment.name, len(jobs), rooms.parallel, config.workers, rooms.cpus_per_worker,
        " and a GPU" if rooms.gpu else "",
    )  # fmt: skip
    failed: dict[int, str] = {}
    threads = ThreadPoolExecutor(rooms.parallel)
    progress = Progress(experiment, [job.fold for job in jobs], rooms.parallel)
    try:
        waiting: dict[Future[Outcome], int] = {
            threads.submit(_fit_fold, experiment, config, rooms, job, board): job.fold for job in jobs
        }
        while waiting:
            done, _ = wait(waiting, timeout=_TICK_S, return_when=FIRST_COMPLETED)
            for number, said in ray.get(board.take.remote()):
                if isinstance(said, str):
                    raise ConfigError(f"{experiment.name}, fold {number}, {said}")
                progress.epoch(number, said)
            _stop(stop)
            claim.check()
            for future in done:
                number = waiting.pop(future)
                fault = future.exception()
                if fault is None:
                    try:
                        write_fold(experiment, root, experiment.folds.fold(number), future.result())
                    except ValueError as error:  # no threshold that reaches what was asked for
                        raise ConfigError(f"{experiment.name}, fold {number}: {error}") from error
                    progress.done(number)
                elif isinstance(fault, (ray.train.TrainingFailedError, ray.exceptions.RayError)):
                    failed[number] = _why(fault)
                    log.error("fold %d: %s", number, failed[number])
                else:
                    raise fault
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        progress.close()
        if ray.is_initialized():
            ray.kill(board)
    if failed:
        number, why = min(failed.items())
        raise RunError(f"not finished: {len(failed)} folds failed, fold {number}: {why}; run the same command again", 1)


def _why(fault: BaseException) -> str:
    """The cause of a failed training in one line."""
    causes = list(getattr(fault, "worker_failures", {}).values()) or [fault]
    if isinstance(causes[0], ray.exceptions.OutOfMemoryError) or "out of memory" in str(causes[0]).lower():
        return "a worker was killed since memory ran short; take a smaller --micro-batch, or fewer folds at once (--parallel)"
    text = str(causes[0]).strip().splitlines() or [type(causes[0]).__name__]
    return text[-1][:300]


def _fit_fold(experiment: Experiment, config: TrainConfig, rooms: Rooms, job: _Job, board: Any) -> Outcome:
    """Run one fold's trainer to its end (in a thread of the driver)."""
    place = experiment.out.child(experiment.name, "checkpoints")
    filesystem, path = _filesystem(experiment.out, place)
    resources = {"CPU": float(rooms.cpus_per_worker)} | ({"GPU": 1.0} if rooms.gpu else {})
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers, use_gpu=rooms.gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # the checker sees the class of Ray Train V1
            name=f"fold-{job.fold}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.tries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise RunError(f"not finished: fold {job.fold} left no checkpoint; run the same command again", 1)
    with result.checkpoint.as_directory() as folder:
        outcome = _read_outcome(Path(folder))
    if outcome is None:
        raise RunError(f"not finished: fold {job.fold} ended early; run the same command again", 1)
    return outcome


def _filesystem(out: Storage, uri: str) -> tuple[pa.fs.FileSystem | None, str]:
    """Ray Train's storage: a local path, or the bucket as our own storage reaches it."""
    if not out.is_s3:
        return None, uri
    options = out.delta_options()
    if "AWS_SESSION_TOKEN" in options:
        # temporary keys end before a long training does, and pyarrow would keep those that it is given
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(out.filesystem())), uri.removeprefix("s3://")
    endpoint = options.get("AWS_ENDPOINT_URL", "")
    scheme, _, host = endpoint.rpartition("://")
    filesystem = pa.fs.S3FileSystem(
        access_key=options.get("AWS_ACCESS_KEY_ID"),
        secret_key=options.get("AWS_SECRET_ACCESS_KEY"),
        session_token=options.get("AWS_SESSION_TOKEN"),
        anonymous="AWS_SKIP_SIGNATURE" in options,
        region=options.get("AWS_REGION"),
        scheme=scheme or None,
        endpoint_override=host or None,
    )
    return filesystem, uri.removeprefix("s3://")


# -- in the workers --------------------------------------------------------------------------------------------------


class _Board:
    """Where workers say how far they are."""

    def __init__(self) -> None:
        self.said: list[tuple[int, Epoch | str]] = []

    def say(self, fold: int, what: Epoch | str) -> None:
        """An epoch, or why the fold cannot be trained."""
        self.said.append((fold, what))

    def take(self) -> list[tuple[int, Epoch | str]]:
        """What was said since the last time."""
        said, self.said = self.said, []
        return said


def _start_board() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()


def _train_worker(given: dict[str, Any]) -> None:
    """One worker of one fold: from its last checkpoint, if there is one, to the outcome."""
    from ray.train.torch import get_device

    job: _Job = given["job"]
    context = ray.train.get_context()
    place = Place(
        device=str(get_device()) if job.gpu else "cpu",
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        threads=job.threads,
    )
    state = None
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            if Path(folder, _SCORES).exists():
                return  # all is done but the driver's part
            state = _read_state(Path(folder))
    saved = time.monotonic()

    def after_epoch(epoch: Epoch, now: State) -> None:
        nonlocal saved
        metrics = {name: value for name, value in asdict(epoch).items() if value is not None}
        if place.rank == 0:
            given["board"].say.remote(job.fold, epoch)
        if place.rank != 0 or not (now.done or time.monotonic() - saved >= job.checkpoint_s):
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            _write_state(Path(folder), now)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        saved = time.monotonic()

    validation, validation_spans = job.validation.part(job.cache)
    try:
        fitted = fit(
            job.net,
            job.train.part(job.cache)[0],
            validation,
            job.recipe,
            seed=job.seed,
            place=place,
            start=_start_weights(job.start),
            state=state,
            after_epoch=after_epoch,
        )
    except FitError as error:
        # raised here it would be tried again, to the same end; said before the fold ends, so that the driver knows why
        if place.rank == 0:
            ray.get(given["board"].say.remote(job.fold, str(error)))
        return
    test, test_spans = job.test.part(job.cache)
    threshold = None
    if job.validation.pairs:
        patches_N5 = predict_patches(fitted.classifier, validation, place)
        validation_N = patches_N5.max(axis=1)
        with suppress(ValueError):  # the driver will say why not
            threshold = choose_region_threshold(
                patches_N5, validation.outlines, size=job.cache.window.size, rule=job.rule, at_least=job.at_least
            )
    else:
        validation_N = predict(fitted.classifier, validation, place)
    outcome = Outcome(
        state_dict=fitted.state_dict,
        validation_N=validation_N,
        test_N=predict(fitted.classifier, test, place),
        validation_spans=validation_spans,
        test_spans=test_spans,
        test_boxes=job.test.found_boxes(fitted.classifier, job.cache, place),
        test_regions=job.test.found_regions(
            test, fitted.classifier, threshold[0] if threshold else 0.5, job.recipe.dilations, place
        ),
        region_threshold=threshold,
        epochs=fitted.epochs,
        best_epoch=fitted.best_epoch,
    )
    if place.rank != 0:
        ray.train.report({"done": 1})
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_outcome(Path(folder), outcome)
        ray.train.report({"done": 1}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _start_weights(start: tuple[Storage, str] | None) -> dict[str, Tensor] | None:
    from safetensors.torch import load

    if start is None:
        return None
    storage, uri = start
    return {name: t.float() if t.is_floating_point() else t for name, t in load(storage.read_bytes(uri)).items()}


def _write_state(folder: Path, state: State) -> None:
    torch.save(state.as_dict(), folder / _STATE)


def _read_state(folder: Path) -> State:
    return State.from_dict(torch.load(folder / _STATE, map_location="cpu", weights_only=True))


def _write_outcome(folder: Path, outcome: Outcome) -> None:
    from safetensors.torch import save_file

    save_file(dict(outcome.state_dict), folder / _WEIGHTS)
    scores = {
        "validation": outcome.validation_N.tolist(),
        "test": outcome.test_N.tolist(),
        "validation_spans": [asdict(span) for span in outcome.validation_spans],
        "test_spans": [asdict(span) for span in outcome.test_spans],
        "test_boxes": [
            [found.clip, found.frame, found.boxes_D5.tolist(), found.of_map_D5.tolist()] for found in outcome.test_boxes
        ],
        "test_regions": [asdict(found) for found in outcome.test_regions],
        "region_threshold": outcome.region_threshold,
        "epochs": [asdict(epoch) for epoch in outcome.epochs],
        "best_epoch": outcome.best_epoch,
    }
    (folder / _SCORES).write_text(json.dumps(scores))


def _read_outcome(folder: Path) -> Outcome | None:
    from safetensors.torch import load_file

    if not (folder / _SCORES).exists():
        return None
    scores = json.loads((folder / _SCORES).read_text())
    return Outcome(
        state_dict=load_file(folder / _WEIGHTS),
        validation_N=np.asarray(scores["validation"], np.float32),
        test_N=np.asarray(scores["test"], np.float32),
        validation_spans=_spans(scores.get("validation_spans", ())),
        test_spans=_spans(scores.get("test_spans", ())),
        test_boxes=tuple(
            FoundBoxes(clip, frame, *(np.array(boxes, np.float64).reshape(-1, 5) for boxes in both))
            for clip, frame, *both in scores.get("test_boxes", ())
        ),
        test_regions=tuple(ClipRegions.from_dict(found) for found in scores.get("test_regions", ())),
        region_threshold=tuple(scores["region_threshold"]) if scores.get("region_threshold") else None,
        epochs=tuple(Epoch(**epoch) for epoch in scores["epochs"]),
        best_epoch=scores["best_epoch"],
    )


def _spans(stored: Sequence[Mapping[str, Any]]) -> tuple[Span, ...]:
    return tuple(Span(span["num_shown"], tuple(span["full"]) if span["full"] else None) for span in stored)
