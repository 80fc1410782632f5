"""The report: one HTML page that needs nothing else, from what `report_data` read and the pictures that were made for it.

    Report -> render -> HTML text     ModelOnSet -> pick_examples -> Examples, whose pictures somebody else makes

Every figure stands with the data it is of, the paper's beside ours. Pseudonyms are shortened; no path, name or original
identifier enters the page, and it loads nothing. Knows no models and no pixels: pictures come as bytes.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from angio_ray.evaluation import figures, paper
from angio_ray.evaluation.assess import PAPER_FIGURES, Assessment, bins_words, counted
from angio_ray.evaluation.intervals import Interval
from angio_ray.evaluation.metrics import Confusion, calibration, called_positive
from angio_ray.evaluation.report_data import ModelOnSet, RunFacts

Outcome = Literal["found", "missed", "kept", "wrongly excluded"]
OUTCOMES: Mapping[Outcome, tuple[bool, bool]] = {
    "found": (True, True),
    "missed": (True, False),
    "kept": (False, False),
    "wrongly excluded": (False, True),
}
"""Outcome -> (unsatisfactory in truth, excluded by the model)."""

_OUTCOME_WORDS: Mapping[Outcome, str] = {
    "found": "unsatisfactory, excluded (right)",
    "missed": "unsatisfactory, kept (wrong)",
    "kept": "satisfactory, kept (right)",
    "wrongly excluded": "satisfactory, excluded (wrong)",
}
_COST = {
    "epochs": "epochs", "steps": "steps", "clips_seen": "clips seen", "train_seconds": "seconds", "core_hours": "core-hours",
}  # fmt: skip
_HEADS = {
    "auc": "AUC", "accuracy": "accuracy", "precision": "precision", "sensitivity": "sensitivity",
    "specificity": "specificity", "f1": "F1", "average_precision": "average precision", "npv": "NPV", "brier": "Brier",
}  # fmt: skip
_METHODS = {
    "delong": "DeLong (each patient has one clip)",
    "wilson": "Wilson (each patient has one clip)",
    "wilson_patients": "Wilson over patients",
    "clustered_bootstrap": "bootstrap that resamples patients: its standard error on the logit scale, Student's t",
    "clustered_sandwich": "sandwich estimate clustered by patient",
}


@dataclass(kw_only=True, slots=True)
class Example:
    """A clip to look at, with what the model said. The picture is added by whoever can decode it."""

    model: str
    data: str
    outcome: Outcome | None
    """None: no label says."""
    clip_id: str
    patient_id: str
    bundle: str | None
    """Digest of the bundle that scored it."""
    probability: float
    """Of the positive class, as stored."""
    threshold: float
    frames: tuple[int, ...] | None = None
    """The file's frames that the model saw, where they were named one by one."""
    view: str | None = None
    """Which of `views.OWN_MODEL` the clip is for."""
    picture: bytes | None = None
    """An animated WebP: frames as the model saw them, beside the same with the heat map."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the picture, px."""
    note: str | None = None
    """Why there is no picture, or what to know of it."""


@dataclass(frozen=True, kw_only=True)
class OtherTask:
    """What is said of a task beside quality."""

    name: str
    classes: tuple[str, str]
    """What a clip is called below the threshold, and from there on."""
    models: Sequence[ModelOnSet]
    levels: Sequence[Mapping[str, Any]] = ()
    """Rows of `metrics` about frames, arteries, studies, boxes and regions."""
    examples: Sequence[Example] = ()
    examples_note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page says."""

    title: str
    made_at: datetime
    code_version: str
    models: Sequence[ModelOnSet]
    notes: Sequence[str] = ()
    """What could not be judged, and why."""
    stored: Sequence[Mapping[str, Any]] = ()
    """Rows of `metrics`: subgroups, comparisons, cost of training."""
    runs: Sequence[RunFacts] = ()
    examples: Sequence[Example] = ()
    examples_note: str | None = None
    """Why there are no examples."""
    weights: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Digest of a bundle -> SHA-256 of its weight files, of the bundles that could be found."""
    tasks: Sequence[OtherTask] = ()
    costs: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Of each net: net, params_m, gmac, ms_per_clip, frames_per_s, backend, and the paper's (paper_...)."""


def pick_examples(one: ModelOnSet, each: int) -> list[Example]:
    """Up to `each` clips of every outcome, each of another patient: wrong ones farthest from the threshold, right ones typical.

    Typical: nearest to the median probability of their outcome. Ties go by clip_id, so the choice is the same each time.
    """
    columns = ("clip_id", "patient_id", "bundle", "target", "probability", "threshold")
    rows = one.assessment.rows
    clip, patient, bundle, target, probability, threshold = (rows[name].to_pylist() for name in columns)
    called = called_positive(probability, threshold)
    picked: list[Example] = []
    for outcome, (truth, excluded) in OUTCOMES.items():
        mine = [i for i in range(len(clip)) if (target[i], bool(called[i])) == (truth, excluded)]
        if not mine:
            continue
        middle = float(np.median([probability[i] for i in mine]))
        if truth == excluded:
            mine.sort(key=lambda i: (abs(probability[i] - middle), clip[i]))
        else:
            mine.sort(key=lambda i: (-abs(probability[i] - threshold[i]), clip[i]))
        seen: set[str] = set()
        for i in mine:
            if patient[i] in seen or len(seen) == each:
                continue
            seen.add(patient[i])
            picked.append(
                Example(
                    model=one.model, data=one.data, outcome=outcome, clip_id=clip[i], patient_id=patient[i],
                    bundle=bundle[i], probability=float(probability[i]), threshold=float(threshold[i]),
                )
            )  # fmt: skip
    return picked


def net_of(model: str) -> str:
    """The net in a model's name (`x3d_s`, `x3d_s-1a2b3c4d`)."""
    return model.partition("-")[0]


def render(report: Report) -> str:
    """The page as text; write it as UTF-8."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_text("report_page.html"))
    models = sorted(report.models, key=_rank)
    names = _names(models)
    sets: dict[tuple[str, str], list[ModelOnSet]] = {}
    for one in models:
        sets.setdefault((one.kind, one.data), []).append(one)
    everything = [*models, *(one for task in report.tasks for one in task.models)]
    domains = sorted({one.assessment.data_domain for one in everything})
    return template.render(
        title=report.title,
        made_at=f"{report.made_at:%Y-%m-%d %H:%M} UTC",
        code_version=report.code_version,
        style=Markup(_text("report_page.css")),
        domains=[_domain_words(domain) for domain in domains],
        glance=[_glance(one, names[id(one)]) for one in models],
        overview=_overview(models, names),
        sets=[_set_section(kind, data, mine, names) for (kind, data), mine in sets.items()],
        drop=_drop(models, names, report.weights),
        comparisons=_comparisons(report.stored),
        subgroups=_subgroups(report.stored),
        training=_training(report.stored),
        unscored=_unscored(report.stored),
        tasks=[_task(task) for task in report.tasks],
        examples=_examples(report.examples),
        examples_note=report.examples_note,
        runs=[_run(run, report.code_version) for run in report.runs],
        costs=_costs(report.costs),
        notes=list(report.notes),
        methods=_methods(everything),
    )


# -- sections --------------------------------------------------------------------------------------------------------

Cell = tuple[str, str]
"""What is said, and what is said below it in small."""


def _glance(one: ModelOnSet, name: str) -> dict[str, Any]:
    found = one.assessment
    return {
        "name": name,
        "value": _number(found.metrics.auc),
        "limits": _limits(found.intervals.get("auc")),
        "data": _data_words(one),
        "clips": f"{counted(found.metrics.num_rows, 'clip')} of {counted(found.num_patients, 'patient')}, "
        + _domain_words(found.data_domain),
    }


def _overview(models: Sequence[ModelOnSet], names: Mapping[int, str]) -> dict[str, Any] | None:
    """The ROC of every model on the clips that its own folds left out, in one figure; None where there are not two."""
    mine = [one for one in models if one.kind == "folds"]
    if len(mine) < 2:
        return None
    said = [f"folds {one.data}, {counted(one.assessment.metrics.num_rows, 'clip')}" for one in mine]
    curves = [_curve(one.assessment, f"{names[id(one)]}: {said[i]}", i) for i, one in enumerate(mine)]
    svg = figures.roc(curves)
    return {"key": _key(curves), "svg": Markup(svg) if svg else None}


def _key(curves: Sequence[figures.Curve]) -> list[dict[str, str]]:
    return [{"name": c.name, "colour": c.colour, "dash": " ".join(map(str, c.dash))} for c in curves]


def _set_section(kind: str, data: str, models: Sequence[ModelOnSet], names: Mapping[int, str]) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names.values()))}
    curves = [_curve(one.assessment, names[id(one)], numbers[names[id(one)]]) for one in models]
    beside = paper.TEST if kind == "folds" else paper.INDEPENDENT
    drawn = {
        "ROC: all models": figures.roc(curves),
        "Precision and recall": figures.precision_recall(curves),
        "Calibration": figures.calibrated(curves),
        "Decision curve": figures.decisions(curves),
    }
    captions = {
        "ROC: all models": "Dots: at the operating threshold, which was chosen on validation clips only.",
        "Precision and recall": "Grey line: share of unsatisfactory clips, the precision of chance.",
        "Calibration": "Bins of as many clips each; on the grey line a probability means what it says.",
        "Decision curve": "Grey: excluding every clip (falling line) or none (0).",
    }
    matrices = [_matrix(names[id(one)], "", one.assessment.metrics.confusion) for one in models]
    if kind == "set":
        matrices.append(_matrix("X3D-S", f"paper: {beside.words}", paper.INDEPENDENT_X3D_S, ours=False))
    return {
        "id": f"set-{kind}-{data}",
        "title": f"Left-out clips of the folds {data}" if kind == "folds" else f"Set {data}",
        "facts": [_set_facts(one, names[id(one)]) for one in models],
        "key": _key(curves),
        "figures": [
            {"title": title, "svg": Markup(svg) if svg else None, "caption": captions[title]}
            for title, svg in drawn.items()
        ],
        "paper_words": beside.words,
        "table": _paper_table(models, names, beside),
        "folds": _folds_table(models, names),
        "each_fold": _each_fold_table(models, names),
        "exclusion": _exclusion_table(models, names, kind),
        "matrices": matrices,
        "calibration": _calibration_table(models, names),
    }


def _set_facts(one: ModelOnSet, name: str) -> str:
    found = one.assessment
    m = found.metrics
    parts = [
        f"{name} ({one.source}): {m.num_rows:,} {_domain_words(found.data_domain)} of {counted(found.num_patients, 'patient')}, "
        f"{m.num_positive:,} unsatisfactory ({_percent(m.confusion.prevalence)})",
        f"trained on {_domain_words(found.model_domain)}" if found.model_domain else "",
        f"operating threshold {_thresholds(found)}",
        f"{found.num_in_sample:,} rows left out (patients that the model or its threshold has seen)"
        if found.num_in_sample
        else "",
    ]
    if found.folds is not None and found.folds.num_patients_in_several_folds:
        parts.append(
            f"{found.folds.num_patients_in_several_folds:,} patients in several folds: no estimate for new patients"
        )
    noted: dict[str, list[str]] = {}
    for figure, interval in found.intervals.items():
        if interval.note:
            noted.setdefault(interval.note, []).append(_HEADS.get(figure, figure.replace("_", " ")))
    parts += found.notes
    parts += [note if len(of) == len(found.intervals) else f"{', '.join(of)}: {note}" for note, of in noted.items()]
    return "; ".join(part for part in parts if part) + "."


def _paper_table(models: Sequence[ModelOnSet], names: Mapping[int, str], beside: paper.PaperSet) -> dict[str, Any]:
    rows = []
    for one in models:
        found = one.assessment
        values = found.metrics.figures()
        cells = [(_number(values[f]), _limits(found.intervals.get(f))) for f in PAPER_FIGURES]
        rows.append(_row(names[id(one)], "here", cells))
        theirs = beside.rows.get(net_of(one.model))
        if theirs is not None:
            shown = asdict(theirs)
            rows.append(_row(names[id(one)], "paper", [(f"{shown[f]:.2f}", "") for f in PAPER_FIGURES], kind="paper"))
    return _table([_HEADS[f] for f in PAPER_FIGURES], rows)


def _folds_table(models: Sequence[ModelOnSet], names: Mapping[int, str]) -> dict[str, Any] | None:
    rows = []
    for one in models:
        folds = one.assessment.folds
        if folds is None or len(folds.folds) < 2:
            continue
        name = names[id(one)]
        pooled, means = folds.pooled.figures(), folds.mean_of_folds
        rows.append(_row(name, "all folds pooled", [(_number(pooled[f]), "") for f in PAPER_FIGURES]))
        spread = [("±" + _number(m.sd) if m.sd is not None else "") for m in (means[f] for f in PAPER_FIGURES)]
        cells = [(_number(means[f].mean), sd) for f, sd in zip(PAPER_FIGURES, spread, strict=True)]
        rows.append(_row(name, f"mean ± sd of {len(folds.folds)} folds", cells))
    return _table([_HEADS[f] for f in PAPER_FIGURES], rows) if rows else None


def _each_fold_table(models: Sequence[ModelOnSet], names: Mapping[int, str]) -> dict[str, Any]:
    rows = []
    for one in models:
        folds, of = one.assessment.folds, one.assessment.rows
        for number, m in sorted(folds.folds.items()) if folds else ():
            values = m.figures()
            about = f"fold {number}: {counted(m.num_rows, 'clip')}, {m.num_positive:,} unsatisfactory"
            mine = of.filter(pc.equal(of["fold"], number))
            error = calibration(mine["target"].to_pylist(), mine["probability"].to_pylist())
            cells = [*((_number(values[f]), "") for f in PAPER_FIGURES), (_number(error.ece), bins_words(error))]
            rows.append(_row(names[id(one)], about, cells, kind="minor"))
    return _table([*(_HEADS[f] for f in PAPER_FIGURES), "ECE"], rows)


def _exclusion_table(models: Sequence[ModelOnSet], names: Mapping[int, str], kind: str) -> dict[str, Any]:
    heads = ["excluded by the model", "excluded by the labels", "satisfactory among those kept"]
    wanted = ("positive_rate", "prevalence", "npv")
    rows = []
    for one in models:
        values, limits = one.assessment.metrics.figures(), one.assessment.intervals
        cells = [(_percent(values[f]), _limits(limits.get(f), percent=True)) for f in wanted]
        rows.append(_row(names[id(one)], "here", cells))
    if kind == "set":
        theirs = paper.INDEPENDENT_X3D_S
        cells = [(_percent(getattr(theirs, f)), "") for f in wanted]
        rows.append(_row("X3D-S", "paper", cells, kind="paper"))
    return _table(heads, rows)


def _calibration_table(models: Sequence[ModelOnSet], names: Mapping[int, str]) -> dict[str, Any]:
    rows = []
    for one in models:
        found, limits = one.assessment, one.assessment.calibration_intervals
        c = found.calibration
        cells = [
            (_number(found.metrics.average_precision), _limits(found.intervals.get("average_precision"))),
            (_number(found.metrics.brier), _limits(found.intervals.get("brier"))),
            (_number(c.ece), bins_words(c)),
            (_number(c.slope, 2), _limits(limits.get("calibration_slope"), digits=2)),
            (_number(c.intercept, 2), _limits(limits.get("calibration_intercept"), digits=2)),
        ]
        rows.append(_row(names[id(one)], "", cells))
    return _table(["average precision", "Brier", "calibration error (ECE)", "slope", "intercept"], rows)


def _drop(
    models: Sequence[ModelOnSet], names: Mapping[int, str], weights: Mapping[str, frozenset[str]]
) -> dict[str, Any] | None:
    """From left-out folds to other sets that the same weights scored, the paper's drop below."""
    rows = []
    for inside in models:
        for outside in models:
            if inside.kind != "folds" or outside.kind != "set" or not _same_model(inside, outside, weights):
                continue
            a, b = inside.assessment.metrics.auc, outside.assessment.metrics.auc
            cells = [(_number(a), ""), (_number(b), ""), (_signed(a, b), "")]
            rows.append(_row(names[id(inside)], f"{inside.data} to {outside.data}", cells))
            net = net_of(inside.model)
            if net in paper.TEST.rows and net in paper.INDEPENDENT.rows:
                a, b = paper.TEST.rows[net].auc, paper.INDEPENDENT.rows[net].auc
                cells = [(f"{a:.2f}", ""), (f"{b:.2f}", ""), (f"{b - a:+.2f}", "")]
                rows.append(_row(names[id(inside)], "paper: test set to independent set", cells, kind="paper"))
    return _table(["AUC, left-out folds", "AUC, other set", "difference"], rows) if rows else None


def _same_model(inside: ModelOnSet, outside: ModelOnSet, weights: Mapping[str, frozenset[str]]) -> bool:
    """Whether the set was scored by bundles of the folds, by their ensemble, or by one of these at another threshold."""
    folds, scored = (set(one.assessment.rows["bundle"].to_pylist()) - {None} for one in (inside, outside))
    of_folds = {file for digest in folds for file in weights.get(digest, ())}
    return bool(scored) and all(d in folds or (weights.get(d) and weights[d] <= of_folds) for d in scored)


def _comparisons(stored: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One line per pair of models: each figure's difference with interval and p."""
    pairs: dict[tuple[str, str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in stored:
        if row["compared_with"] is not None and row["subgroup"] is None:
            key = (row["experiment"], row["model"], row["compared_with"], row["data"])
            pairs.setdefault(key, {})[row["metric"]] = row
    rows = []
    for (source, model, compared_with, data), found in pairs.items():
        clips = next(iter(found.values()))["num_clips"] or 0
        cells = [_difference_cell(found.get(name)) for name in (*PAPER_FIGURES, "mcnemar")]
        of, _, other = compared_with.rpartition("/")
        b, a = (f"{_net_name(net)} ({whose})" if of else _net_name(net) for net, whose in ((model, source), (other, of)))
        on = "clips that both left out" if of and data == "out_of_fold" else _stored_data(data)
        rows.append(_row(f"{b} less {a}", f"{on}: {counted(clips, 'clip')}", cells))
    heads = [*(_HEADS[f] for f in PAPER_FIGURES), "clips right in one only"]
    return _table(heads, rows) if rows else None


def _difference_cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None or row["value"] is None:
        return "-", ""
    value, p = row["value"], row["p_value"]
    below = [] if row["low"] is None else [f"{row['low']:+.3f} to {row['high']:+.3f}"]
    below += [] if p is None else ["p < 0.001" if p < 0.001 else f"p {p:.3f}"]
    return f"{value:+,.0f}" if row["metric"] == "mcnemar" else f"{value:+.3f}", ", ".join(below)


def _subgroups(stored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One table per model and set, a line for each value of a header fact."""
    wanted = ("auc", "sensitivity", "specificity", "positive_rate")
    groups: dict[tuple[str, str, str], dict[tuple[str, str | None], dict[str, Mapping[str, Any]]]] = {}
    for row in stored:
        if row["subgroup"] in (None, "outcome") or row["compared_with"] is not None:
            continue
        key = (row["experiment"], row["model"], row["data"])
        groups.setdefault(key, {}).setdefault((row["subgroup"], row["subgroup_value"]), {})[row["metric"]] = row
    made = []
    for (source, model, data), values in groups.items():
        rows = []
        alone = {fact for fact, n in Counter(fact for fact, _ in values).items() if n == 1}
        one_value = [f"{fact.replace('_', ' ')} ({value or 'not known'})" for fact, value in values if fact in alone]
        for (fact, value), found in values.items():
            if fact in alone:
                continue
            any_row = next(iter(found.values()))
            cells = [(f"{any_row['num_clips'] or 0:,}", counted(any_row["num_patients"] or 0, "patient"))]
            cells += [_stored_cell(found.get(name), percent=name == "positive_rate") for name in wanted]
            rows.append(_row(value or "not known", fact.replace("_", " "), cells))
        title = f"{_net_name(model)}, {_stored_data(data)} ({source})"
        table = _table(["clips", "AUC", "sensitivity", "specificity", "excluded"], rows) if rows else None
        made.append({"title": title, "table": table, "one_value": ", ".join(one_value)})
    return made


def _training(stored: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Cost of each training: epochs, clips, core-hours. The pooled row is the sum over folds."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in stored:
        if row["metric"] in _COST and row["value"] is not None and row["subgroup"] is None:
            about = "all folds" if row["scope"] != "fold" else f"fold {row['fold']}"
            found.setdefault((row["experiment"], row["model"], about), {})[row["metric"]] = row["value"]
    heads = [name for name in _COST if any(name in values for values in found.values())]
    rows = [
        _row(
            f"{_net_name(model)} ({experiment})",
            about,
            [(f"{values[n]:,.4g}" if n in values else "-", "") for n in heads],
            kind="minor" if about != "all folds" else "here",
        )
        for (experiment, model, about), values in found.items()
    ]
    return _table([_COST[n] for n in heads], rows) if rows else None


_LEVEL_HEADS = {
    "auc": "AUC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity",
    "f1": "F1", "weighted_f1": "weighted F1", "kappa": "kappa",
}  # fmt: skip
_BOX_HEADS = {
    "global_sensitivity": "narrowings found", "stenosis_sensitivity": "frames whose worst is found", "precision": "precision",
    "frame_specificity": "frames without any, right", "average_precision": "average precision",
}  # fmt: skip
_REGION_HEADS = {
    "iom_sigma3": "IoM", "covered_sigma3": "calcification covered", "relative_area_sigma3": "area, in target areas",
    "dice_sigma3": "Dice", "hausdorff_patient_mm_sigma3": "Hausdorff, mm",
}  # fmt: skip


def _task(task: OtherTask) -> dict[str, Any]:
    """The section of a task beside quality: clips, then levels, boxes and regions as they are stored, then examples."""
    rows, facts = [], []
    for one in task.models:
        found = one.assessment
        values = found.metrics.figures()
        cells = [(_number(values[f]), _limits(found.intervals.get(f))) for f in PAPER_FIGURES]
        name = _net_name(one.model.removesuffix(f"-{task.name}"))
        rows.append(_row(name, f"{_data_words(one)} ({one.source})", cells))
        facts.append(
            f"{name} ({one.source}): {found.metrics.num_rows:,} {_domain_words(found.data_domain)} of "
            f"{counted(found.num_patients, 'patient')}, {found.metrics.num_positive:,} {task.classes[1]}; operating threshold "
            f"{_thresholds(found)}"
        )
    no, yes = task.classes
    words: dict[Outcome, str] = {
        "found": f"{yes}, called so (right)", "missed": f"{yes}, called {no} (wrong)",
        "kept": f"{no}, called so (right)", "wrongly excluded": f"{no}, called {yes} (wrong)",
    }  # fmt: skip
    return {
        "id": f"task-{task.name}",
        "title": task.name.capitalize(),
        "positive": yes,
        "facts": facts,
        "table": _table([_HEADS[f] for f in PAPER_FIGURES], rows),
        "levels": _stored_table([row for row in task.levels if row["subgroup"] == "level"], _LEVEL_HEADS),
        "boxes": _stored_table([row for row in task.levels if "boxes" in row["subgroup"]], _BOX_HEADS),
        "regions": _stored_table([row for row in task.levels if row["subgroup"] == "regions"], _REGION_HEADS),
        "examples": _examples(task.examples, words),
        "examples_note": task.examples_note,
    }


def _stored_table(stored: Sequence[Mapping[str, Any]], heads: Mapping[str, str]) -> dict[str, Any] | None:
    """A line for each model, set and subgroup: all folds together where that is stored, else their mean."""
    found: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in sorted(stored, key=lambda row: row["scope"] != "mean_of_folds"):  # what comes later stands
        if row["metric"] in heads:
            key = (row["experiment"], row["model"], row["data"], row["subgroup"], row["subgroup_value"])
            found.setdefault(key, {})[row["metric"]] = row
    rows = [
        _row(
            f"{value}" if subgroup == "level" else f"{subgroup}, {value}",
            f"{_net_name(model)}, {_stored_data(data)} ({source})",
            [_stored_cell(values.get(name), percent=False) for name in heads],
        )
        for (source, model, data, subgroup, value), values in found.items()
    ]
    return _table(list(heads.values()), rows) if rows else None


def _unscored(stored: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{_net_name(row['model'])}, {_stored_data(row['data'])}: labelled clips without a score, in no figure: "
        f"{row['value']:,.0f} ({row['subgroup_value']})"
        for row in stored
        if row["metric"] == "unscored_clips"
    ]


def _examples(
    examples: Sequence[Example], outcomes: Mapping[Outcome, str] = _OUTCOME_WORDS
) -> list[dict[str, Any]]:
    shown = []
    for outcome, words in outcomes.items():
        mine = [e for e in examples if e.outcome == outcome]
        if mine:
            shown.append({"title": words, "right": "right" in words, "examples": [_example(e) for e in mine]})
    return shown


def _example(example: Example) -> dict[str, Any]:
    picture = None
    if example.picture is not None:
        picture = Markup("data:image/webp;base64," + base64.b64encode(example.picture).decode("ascii"))
    return {
        "picture": picture,
        "width": example.size[0],
        "height": example.size[1],
        "clip": _short(example.clip_id),
        "patient": _short(example.patient_id),
        "probability": f"{example.probability:.3f}",
        "threshold": f"{example.threshold:.3f}",
        "model": f"{_net_name(example.model)} on {example.data}",
        "note": example.note,
    }


def _run(run: RunFacts, code_version: str) -> dict[str, Any]:
    seconds = None
    if run.started_at and run.finished_at:
        seconds = (run.finished_at - run.started_at).total_seconds()
    total = sum(run.statuses.values())
    backend = run.config.get("backend") or {}
    excluded = run.num_unsatisfactory / run.num_evaluated if run.num_evaluated else None
    clips = f"{run.num_synthetic:,} of {total:,} objects are marked synthetic"
    facts = {
        "state": run.state + (f", taken {run.num_claims} times (resumed)" if run.num_claims > 1 else ""),
        "objects": f"{total:,}"
        + (f" of {run.num_listed:,} listed" if run.num_listed is not None else "")
        + f", {counted(run.num_patients, 'patient')}, {counted(run.num_studies, 'study', 'studies')}; {clips}",
        "what became of them": ", ".join(f"{status} {n:,}" for status, n in run.statuses.items()) or "-",
        "excluded": f"{_percent(excluded)} of {run.num_evaluated:,} with a verdict (paper's X3D-S: 19.1 %, its readers: 12.0 %)",
        "time": "-"
        if not seconds
        else f"{seconds:,.0f} s"
        + (f", {total / seconds:.1f} objects/s with starting up" if run.num_claims == 1 else " over all its drivers"),
        "a clip costs": f"decoding {_ms(run.decode_ms)}, models {_ms(run.model_ms)} of a worker's time",
        "computed by": (run.computed_by or "-") + (f" on {backend['device']}" if backend.get("device") else ""),
        "operating threshold": ", ".join(f"{t:.4g}" for t in run.thresholds) or "-",
        "models trained on": _domain_words(run.model_domain) if run.model_domain else "-",
        "bundles": ", ".join(f"{task} {digest[:16]}" for task, digest in run.bundles.items()) or "-",
        "gate": str(run.config.get("gate", "-")),
        "assumed frame rate": "none" if run.config.get("assume_fps") is None else f"{run.config['assume_fps']:g}/s",
        "code": ", ".join(
            f"{what} {version}"
            for what, version, usual in (
                ("angio_ray", run.code_version, code_version),
                ("scoring version", run.config.get("scoring_version"), None),
            )
            if version not in (None, usual)
        ),
        "configuration": (run.config_digest or "-")[:16],
    }
    facts = {name: fact for name, fact in facts.items() if fact}
    rows = [_row(reason, "", [(f"{n:,}", ""), (_percent(n / total), "")]) for reason, n in run.reasons.items()]
    return {
        "name": run.run_id,
        "facts": facts,
        "rejects": _table(["objects", "share of the run"], rows) if rows else None,
    }


def _costs(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    rows = []
    for cost in costs:
        name = _net_name(cost["net"])
        timed = cost["ms_per_clip"] is not None
        here = [
            (f"{cost['params_m']:.2f}", ""),
            ("-" if cost["gmac"] is None else f"{cost['gmac']:.2f}", ""),
            (f"{cost['ms_per_clip']:.1f}" if timed else "not timed", ""),
            (f"{cost['frames_per_s']:.1f}" if timed else "not timed", ""),
        ]
        theirs = [(f"{cost[f'paper_{n}']:g}", "") for n in ("params_m", "gmac", "ms_per_clip", "frames_per_s")]
        rows.append(_row(name, f"here, {cost['backend']}" if timed else "here", here))
        rows.append(_row(name, "paper, NVIDIA V100", theirs, kind="paper"))
    return _table(["parameters, M", "GMAC", "ms a clip", "frames/s"], rows) if rows else None


def _methods(models: Sequence[ModelOnSet]) -> list[str]:
    used: dict[str, set[str]] = {}
    for one in models:
        for name, interval in {**one.assessment.intervals, **one.assessment.calibration_intervals}.items():
            if interval.method:
                used.setdefault(interval.method, set()).add(_HEADS.get(name, name.replace("_", " ")))
    return [f"{_METHODS.get(method, method)}: {', '.join(sorted(names))}" for method, names in sorted(used.items())]


# -- pieces ----------------------------------------------------------------------------------------------------------


def _rank(one: ModelOnSet) -> tuple[Any, ...]:
    """Folds first, then sets; nets in the paper's order."""
    order, net = list(paper.NET_NAMES), net_of(one.model)
    return (one.kind, one.data, order.index(net) if net in order else len(order), one.model, one.source)


def _names(models: Sequence[ModelOnSet]) -> dict[int, str]:
    """id of a model on a set -> how it is called there: its net, and its source where the net alone would be two."""
    names = {}
    for one in models:
        twins = [m for m in models if (m.kind, m.data, m.model) == (one.kind, one.data, one.model)]
        names[id(one)] = _net_name(one.model) + (f" ({one.source})" if len(twins) > 1 else "")
    return names


def _net_name(model: str) -> str:
    net = net_of(model)
    return model.replace(net, paper.NET_NAMES[net], 1) if net in paper.NET_NAMES else model


def _curve(found: Assessment, name: str, number: int) -> figures.Curve:
    target = np.asarray(found.rows["target"].to_pylist(), bool)
    probability = np.asarray(found.rows["probability"].to_pylist(), float)
    return figures.Curve(name, target, probability, found.metrics.confusion, number)


def _matrix(name: str, words: str, counts: Confusion, *, ours: bool = True) -> dict[str, Any]:
    rows = [
        ("unsatisfactory", counts.true_positive, counts.false_negative, "right", "wrong"),
        ("satisfactory", counts.false_positive, counts.true_negative, "wrong", "right"),
    ]
    return {
        "name": name,
        "words": words,
        "ours": ours,
        "rows": [
            {
                "truth": truth,
                "cells": [
                    {"n": f"{n:,}", "share": _percent(n / (excluded + kept) if excluded + kept else None), "is": kind}
                    for n, kind in ((excluded, left), (kept, right))
                ],
            }
            for truth, excluded, kept, left, right in rows
        ],
    }


def _row(head: str, about: str, cells: Iterable[Cell], *, kind: str = "here") -> dict[str, Any]:
    return {"head": head, "about": about, "cells": list(cells), "kind": kind}


def _table(heads: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"heads": list(heads), "rows": list(rows)}


def _stored_cell(row: Mapping[str, Any] | None, *, percent: bool) -> Cell:
    if row is None:
        return "-", ""
    value = _percent(row["value"]) if percent else _number(row["value"])
    return value, _span(row["low"], row["high"], percent=percent)


def _stored_data(data: str) -> str:
    return "left-out clips of its folds" if data == "out_of_fold" else f"set {data}"


def _thresholds(found: Assessment) -> str:
    values = sorted(set(found.rows["threshold"].to_pylist()))
    return f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g} to {values[-1]:.3g}, each fold's own"


def _data_words(one: ModelOnSet) -> str:
    return f"left-out clips, folds {one.data}" if one.kind == "folds" else f"set {one.data}"


def _domain_words(domain: str | None) -> str:
    words = {"synthetic": "synthetic clips (phantom)", "patients": "clips of patients", None: "clips of unknown origin"}
    return words.get(domain, "clips, some synthetic and some of patients")


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _limits(found: Interval | None, *, percent: bool = False, digits: int = 3) -> str:
    return "" if found is None else _span(found.low, found.high, percent=percent, digits=digits)


def _span(low: float | None, high: float | None, *, percent: bool = False, digits: int = 3) -> str:
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f} to {_percent(high)}" if percent else f"{low:.{digits}f} to {high:.{digits}f}"


def _signed(a: float | None, b: float | None) -> str:
    return "-" if a is None or b is None else f"{b - a:+.3f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def _short(pseudonym: str) -> str:
    return pseudonym[:8]


def _text(name: str) -> str:
    return files("angio_ray.evaluation").joinpath(name).read_text("utf-8")
