"""`angio-ray report`: one self-contained HTML file about experiments and runs, with animated examples.

    tables -> models on labelled sets, runs     bundles + clips -> pictures     -> evaluation.report -> file

What is not there (labels, bundles, clips that have moved) is said on the page; the rest of it is made all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from angio_ray import __version__
from angio_ray.evaluation.bootstrap import RESAMPLES
from angio_ray.evaluation.paper import NET_NAMES
from angio_ray.evaluation.report import Example, OtherTask, Report, net_of, pick_examples, render
from angio_ray.evaluation.report_data import ModelOnSet, ReportTables, RunFacts, open_tables
from angio_ray.judging.examples import add_pictures, seen_frames, seen_view
from angio_ray.judging.labelled import bundle_folders
from angio_ray.models import NETS, TASKS
from angio_ray.models.bundles import SHIPPED, Bundle, BundleError, load_bundle
from angio_ray.tables.root import TableRoot, TablesError

log = logging.getLogger(__name__)

TITLE = "angio_ray: models on coronary angiograms"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSummary:
    """What was written."""

    path: Path
    size_bytes: int
    num_models: int
    """Models on labelled sets."""
    num_runs: int
    num_pictures: int
    notes: tuple[str, ...]


def write_report(
    root: TableRoot,
    out: Path,
    *,
    experiments: Sequence[str] = (),
    runs: Sequence[str] = (),
    bundles: Sequence[Path] = (),
    examples: int = 3,
    time_clips: int = 0,
    resamples: int = RESAMPLES,
) -> ReportSummary:
    """Write the report of these experiments and runs (default: of all in the tables).

    Parameters
    ----------
    out
        The file; replaced as a whole.
    bundles
        Folders in which the models' bundles are looked for by digest, at any depth; those that ship always are.
    examples
        Clips of each outcome that are shown, of one model. 0: none, and no clip is read.
    time_clips
        Clips that each net is timed on for the table of cost. 0: not timed.

    Raises
    ------
    TablesError
        A name that is not in the tables, or tables that cannot be read.
    OSError
        The file cannot be written.
    """
    places = (SHIPPED, *reversed(bundles))
    found_bundles = {digest: folder for place in places for digest, folder in bundle_folders(place).items()}
    with open_tables(root) as tables:
        experiments, runs = _chosen(tables, experiments, runs)
        models: list[ModelOnSet] = []
        notes: list[str] = []
        sources = list(dict.fromkeys([*experiments, *runs]))
        for source in sources:
            found, said = tables.models(source, resamples=resamples)
            models += found
            notes += [f"{source}: {note}" for note in said]
        facts = [tables.run_facts(run) for run in runs]
        stored = tables.stored_figures(sources)
        shown, why = _examples(tables, models, facts, _finder(found_bundles), examples)
        others = []
        tasks_of = {source: tables.other_tasks(source) for source in sources}
        for task in TASKS:
            with_task = [source for source in sources if task in tasks_of[source]]
            if TASKS[task].per_frame:
                notes += [f"{source}: {task} is left out: its figures are of frames (table metrics)" for source in with_task]
            elif with_task:
                one, said = _other_task(tables, task, with_task, facts, _finder(found_bundles), examples, resamples)
                others.append(one)
                notes += said
    if {one.kind for one in models} == {"folds", "set"} and (away := _digests(models) - found_bundles.keys()):
        notes.append(
            f"{len(away)} bundles are not in the folders searched (--bundles): a set scored by them is not set beside "
            "the folds that they come from"
        )
    report = Report(
        title=TITLE,
        made_at=datetime.now(UTC),
        code_version=__version__,
        models=models,
        notes=notes,
        stored=stored,
        runs=facts,
        examples=shown,
        examples_note=why,
        tasks=others,
        weights=_weights(models, found_bundles),
        costs=_costs(models, time_clips),
    )
    page = render(report).encode()
    _write(out, page)
    return ReportSummary(
        path=out,
        size_bytes=len(page),
        num_models=len(models) + sum(len(one.models) for one in others),
        num_runs=len(facts),
        num_pictures=sum(e.picture is not None for e in (*shown, *(e for one in others for e in one.examples))),
        notes=tuple(notes),
    )


def _chosen(
    tables: ReportTables, experiments: Sequence[str], runs: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """What was named, else all. TablesError for a name that is not there."""
    there = {"experiment": tables.names("predictions"), "run": tables.names("runs")}
    if not experiments and not runs:
        return [name for name in there["experiment"] if name not in there["run"]], there["run"]
    for kind, names in (("experiment", experiments), ("run", runs)):
        if unknown := [name for name in names if name not in there[kind]]:
            raise TablesError(
                f"there is no {kind} {', '.join(unknown)} in these tables; there is {', '.join(there[kind]) or 'none'}"
            )
    return experiments, runs


def _examples(
    tables: ReportTables,
    models: Sequence[ModelOnSet],
    facts: Sequence[RunFacts],
    find_bundle: Callable[[str], Bundle | None],
    each: int,
) -> tuple[list[Example], str | None]:
    """Examples of one model (X3D-S where it is there), with their pictures; and why there are none."""
    if not each:
        return [], "No examples were asked for."
    if not models:
        return [], None
    order = [net for net in ("x3d_s", *NET_NAMES) if any(net_of(one.model) == net for one in models)]
    chosen = min(models, key=lambda one: (one.kind, order.index(net) if (net := net_of(one.model)) in order else 99))
    shown = pick_examples(chosen, each)
    assumed = next((run.config.get("assume_fps") for run in facts if run.run_id == chosen.source), None)
    places = tables.clip_places([example.clip_id for example in shown])
    add_pictures(shown, places, find_bundle, assume_fps=assumed)
    return shown, None


def _other_task(
    tables: ReportTables,
    task: str,
    sources: Sequence[str],
    facts: Sequence[RunFacts],
    find_bundle: Callable[[str], Bundle | None],
    each: int,
    resamples: int,
) -> tuple[OtherTask, list[str]]:
    """The section of a task beside quality, and what could not be judged. Examples are of a run where the model saw frames that
    only the run's rows name."""
    models: list[ModelOnSet] = []
    notes: list[str] = []
    for source in sources:
        found, said = tables.models(source, task=task, resamples=resamples)
        models += found
        notes += [f"{source}, {task}: {note}" for note in said]
    by_frame = TASKS[task].named_frames or TASKS[task].paired_frames
    runs = {run.run_id: run for run in facts}
    showable = [one for one in models if one.source in runs or not by_frame]
    shown: list[Example] = []
    why = None
    if each and showable:
        chosen = showable[0]
        shown = pick_examples(chosen, each)
        if by_frame:
            rows = {row["clip_id"]: row for row in tables.scored(chosen.source, [example.clip_id for example in shown])}
            for example in shown:
                example.frames = seen_frames(rows[example.clip_id], task)
                example.view = seen_view(rows[example.clip_id])
        run = runs.get(chosen.source)
        places = tables.clip_places([example.clip_id for example in shown])
        add_pictures(shown, places, find_bundle, assume_fps=run.config.get("assume_fps") if run else None)
    elif each and models:
        why = "Examples need a run that was scored and evaluated: which frames a model saw stands in its rows."
    return (
        OtherTask(
            name=task,
            classes=(TASKS[task].classes[0], TASKS[task].classes[-1]),
            models=models,
            levels=[row for source in sources for row in tables.levels(source, task)],
            examples=shown,
            examples_note=why,
        ),
        notes,
    )


def _finder(folders: Mapping[str, Path], *, weights: bool = True) -> Callable[[str], Bundle | None]:
    """digest -> bundle, of these folders; None for one that cannot be used."""

    def find(digest: str) -> Bundle | None:
        if digest not in folders:
            return None
        try:
            return load_bundle(folders[digest], weights=weights)
        except BundleError as error:
            log.warning("%s", error)
            return None

    return find


def _weights(models: Sequence[ModelOnSet], folders: Mapping[str, Path]) -> dict[str, frozenset[str]]:
    """Digest -> SHA-256 of its weight files, of the models' bundles that are there."""
    found = {digest: _finder(folders, weights=False)(digest) for digest in _digests(models) & folders.keys()}
    return {
        digest: frozenset(sha256(data).hexdigest() for one in (bundle, *bundle.views.values()) for data in one.weights)
        for digest, bundle in found.items()
        if bundle is not None
    }


def _digests(models: Sequence[ModelOnSet]) -> set[str]:
    """Of the bundles that scored."""
    return {digest for one in models for digest in one.assessment.rows["bundle"].to_pylist()} - {None}


def _costs(models: Sequence[ModelOnSet], time_clips: int) -> list[dict[str, Any]]:
    from angio_ray.models.cost import cost_table

    used = {net_of(one.model) for one in models}
    names = [net for net in NETS if net in used]
    return [asdict(row) for row in cost_table(names, clips=time_clips)] if names else []


def _write(out: Path, page: bytes) -> None:
    """By rename: a reader sees the old page or the new one."""
    part = out.with_name(f".{out.name}.part")
    part.write_bytes(page)
    part.replace(out)
