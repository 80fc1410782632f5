"""The same clips under two runs: what became of them, verdicts that flip, differences of the probability, a plot.

    read_run, compare_rows -> Comparison     compare: reads, prints, plots

Clips are joined by clip_id, so the runs may have read them from different places; an object whose clip_id is null in a run (it
could not be read) is joined by its object_id. Knows no model: what a run used is read from its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.schema import arrow_schema

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LARGEST = 10

_OUTCOME = "outcome"
"""Status, and the reason behind a colon where rejected."""
_NEGATIVE = {"quality": "satisfactory", "artery": "LCA", "oblique": "RAO", "stenosis": "<25%"}
"""Task -> name of its negative class."""


@dataclass(frozen=True, kw_only=True)
class RunSide:
    """One of the two runs, as its rows state it."""

    run_id: str
    num_objects: int
    num_clips: int
    """Different clips: the same clip under two URIs counts once."""
    finished: bool
    bundle: str | None
    """Digest of the task's bundle; None where no row was scored."""
    model_domain: str | None
    computed_by: str | None
    """Backend and precision, such as "openvino bfloat16"."""
    thresholds: tuple[float, ...]
    """Operating thresholds of its rows, one as a rule; none for a task without verdict."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Probability of B less that of A, over the clips scored in both."""

    mean: float
    mean_absolute: float
    max_absolute: float
    quantiles: Mapping[float, float]
    """Of the signed difference."""
    pearson: float | None
    """None for fewer than three clips, or where a run gives all of them one probability."""
    spearman: float | None


@dataclass(frozen=True, kw_only=True)
class ClipDifference:
    """One clip's two probabilities."""

    clip_id: str
    """The object_id where the clip has none."""
    probability_a: float
    probability_b: float
    flipped: bool

    @property
    def difference(self) -> float:
        """B less A."""
        return self.probability_b - self.probability_a


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs on the same clips."""

    task: str
    a: RunSide
    b: RunSide
    num_both: int
    num_only_a: int
    num_only_b: int
    num_scored_both: int
    """Clips with a probability in both runs."""
    outcomes: Mapping[tuple[str, str], int]
    """(in A, in B) -> clips in both runs; an outcome is the status, for rejected ones "rejected: reason"."""
    flips_to_positive: int | None
    """Clips whose verdict was negative (for quality, satisfactory) in A and is not in B; None for a task without verdict."""
    flips_to_negative: int | None
    """The other way."""
    num_verdicts_both: int
    """Clips with a verdict in both runs: what the flips are of."""
    differences: Differences | None
    """None where no clip is scored in both."""
    largest: tuple[ClipDifference, ...]
    """The largest absolute differences, at most ten, largest first."""
    pairs: pa.Table
    """One row for each clip scored in both: clip_id, probability_a, probability_b, positive_a, positive_b (null: no verdict)."""


def compare(root: TableRoot, run_a: str, run_b: str, *, task: str = "quality", plot: Path | None = None) -> int:
    """Print how two runs of the same tables differ; with `plot` also draw it as a PNG. Returns 0.

    Raises TablesError, one clear line, for a run or task that is not there or a plot that cannot be written.
    """
    found = compare_runs(root, run_a, run_b, task=task)
    console = Console(highlight=False)
    _print(found, console)
    if plot is not None:
        if found.differences is None:
            console.print("no plot: no clip is scored in both runs")
        else:
            draw(found, plot)
            console.print(f"plot: {plot}", soft_wrap=True)
    return 0


def compare_runs(root: TableRoot, run_a: str, run_b: str, *, task: str = "quality") -> Comparison:
    """Read both runs and compare them. Raises TablesError as `compare`."""
    columns = task_columns(task)
    known = _runs(root)
    for run in (run_a, run_b):
        if run not in known:
            raise TablesError(f"there is no run {run} in these tables; there is {', '.join(sorted(known)) or 'none'}")
    rows = {run: read_run(root, run, task) for run in (run_a, run_b)}
    for run, table in rows.items():
        asked = table.column(columns.status)
        if table.num_rows and asked.null_count == table.num_rows and _any(pc.not_equal(table["status"], "rejected")):
            raise TablesError(f"run {run} was not asked for {task}: it has no {columns.probability}")
    return compare_rows(
        rows[run_a], rows[run_b], run_a=run_a, run_b=run_b, task=task, finished=(known[run_a], known[run_b])
    )


@dataclass(frozen=True, slots=True)
class TaskColumns:
    """A task's columns in `scores`; None for what it has not."""

    status: str
    probability: str
    threshold: str | None
    satisfactory: str | None


def task_columns(task: str) -> TaskColumns:
    """The columns by their names in the schema. Raises TablesError for a task that has no probability there."""
    names = arrow_schema("scores").names
    suffix = "_probability"
    if f"{task}{suffix}" not in names:
        tasks = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
        raise TablesError(f"no task {task!r} to compare: one of {', '.join(tasks)}")
    optional = (f"{task}_{part}" if f"{task}_{part}" in names else None for part in ("threshold", "satisfactory"))
    return TaskColumns(f"{task}_status", f"{task}{suffix}", *optional)


def read_run(root: TableRoot, run: str, task: str = "quality") -> pa.Table:
    """All rows of the run with the columns that a comparison needs; `bundle` is the digest of the task's bundle."""
    columns = task_columns(task)
    wanted = ["object_id", "clip_id", "status", "reason", f"{task}_reason", "backend", "precision", "model_domain", "bundles"]
    wanted += [name for name in (columns.status, columns.probability, columns.threshold, columns.satisfactory) if name]
    batches = root.open("scores").to_pyarrow_dataset().to_batches(columns=wanted, filter=pc.field("run_id") == run)
    parts = []
    for batch in batches:
        if batch.num_rows:
            digests = pc.map_lookup(batch.column("bundles"), query_key=task, occurrence="first")
            table = pa.Table.from_batches([batch]).drop_columns(["bundles"])
            parts.append(table.append_column("bundle", digests))
    schema = arrow_schema("scores")
    empty = pa.schema([schema.field(name) for name in wanted if name != "bundles"]).append(pa.field("bundle", pa.string()))
    return pa.concat_tables(parts) if parts else empty.empty_table()


def compare_rows(
    rows_a: pa.Table,
    rows_b: pa.Table,
    *,
    run_a: str = "a",
    run_b: str = "b",
    task: str = "quality",
    finished: tuple[bool, bool] = (True, True),
) -> Comparison:
    """Compare the rows of two runs, each as `read_run` gives them. Reads nothing."""
    columns = task_columns(task)
    sides = []
    for run, rows, is_finished in ((run_a, rows_a, finished[0]), (run_b, rows_b, finished[1])):
        sides.append(_side(run, rows, columns, is_finished))
    keyed_a, keyed_b = _keyed(rows_a, rows_b, columns), _keyed(rows_b, rows_a, columns)
    both = keyed_a.join(keyed_b, "key", join_type="inner", left_suffix="_a", right_suffix="_b").combine_chunks()
    outcomes = Counter(zip(both[f"{_OUTCOME}_a"].to_pylist(), both[f"{_OUTCOME}_b"].to_pylist(), strict=True))
    judged = both.filter(pc.and_(pc.is_valid(both["positive_a"]), pc.is_valid(both["positive_b"])))
    scored = both.filter(pc.and_(pc.is_valid(both["probability_a"]), pc.is_valid(both["probability_b"])))
    pairs = scored.select(["key", "probability_a", "probability_b", "positive_a", "positive_b"])
    pairs = pairs.rename_columns(["clip_id", *pairs.column_names[1:]]).sort_by("clip_id")
    has_verdict = columns.satisfactory is not None or any(side.thresholds for side in sides)
    return Comparison(
        task=task,
        a=sides[0],
        b=sides[1],
        num_both=both.num_rows,
        num_only_a=keyed_a.num_rows - both.num_rows,
        num_only_b=keyed_b.num_rows - both.num_rows,
        num_scored_both=pairs.num_rows,
        outcomes=dict(outcomes),
        flips_to_positive=_count(pc.and_not(judged["positive_b"], judged["positive_a"])) if has_verdict else None,
        flips_to_negative=_count(pc.and_not(judged["positive_a"], judged["positive_b"])) if has_verdict else None,
        num_verdicts_both=judged.num_rows,
        differences=_differences(pairs),
        largest=_largest(pairs),
        pairs=pairs,
    )


def draw(found: Comparison, path: Path) -> None:
    """A PNG: scatter of A against B with thresholds and flips, and the histogram of the differences.

    Raises TablesError where the file cannot be written, ValueError where no clip is scored in both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    if found.differences is None:
        raise ValueError("no clip is scored in both runs")
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    scatter, histogram = figure.subplots(1, 2, width_ratios=(1, 1.05))
    a, b = (found.pairs[f"probability_{side}"].to_numpy() for side in "ab")
    _draw_scatter(scatter, found, a, b)
    difference = b - a
    limit = max(float(np.abs(difference).max()), 1e-3) * 1.05
    histogram.hist(difference, bins=np.linspace(-limit, limit, 42).tolist(), color="#4c78a8")
    histogram.axvline(0, color="0.3", lw=1)
    mean = found.differences.mean
    histogram.axvline(mean, color="#d62728", lw=1.2, ls="--", label=f"mean {mean:+.4f}")
    histogram.set(
        xlabel=f"{found.task} probability, B - A", ylabel="clips (logarithmic)", xlim=(-limit, limit), yscale="symlog",
        title=f"largest difference {found.differences.max_absolute:.4f}",
    )
    histogram.yaxis.set_major_formatter(ScalarFormatter())
    histogram.xaxis.set_major_locator(MaxNLocator(5))  # small differences have long numbers
    histogram.legend(loc="upper right")
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise TablesError(f"the plot {path} cannot be written: {error.strerror or error}") from None


def _draw_scatter(axes: Axes, found: Comparison, a: np.ndarray, b: np.ndarray) -> None:
    positive = [found.pairs[f"positive_{side}"].to_pylist() for side in "ab"]
    negative = _NEGATIVE.get(found.task, "negative")
    kinds = np.array([_kind(before, after, negative) for before, after in zip(*positive, strict=True)])
    styles = {
        "same verdict": ("#8a8f98", 14),
        "no verdict": ("#8a8f98", 14),
        f"{negative} in A, not in B": ("#d62728", 26),
        f"{negative} in B, not in A": ("#1f77b4", 26),
    }
    axes.plot((0, 1), (0, 1), color="0.75", lw=1, zorder=0)
    for kind, (colour, size) in styles.items():
        chosen = kinds == kind
        if chosen.any():
            label = f"{kind}: {int(chosen.sum()):,}"
            axes.scatter(a[chosen], b[chosen], s=size, c=colour, alpha=0.75, linewidths=0, label=label, rasterized=True)
    for threshold in found.a.thresholds:
        axes.axvline(threshold, color="0.4", lw=1, ls=":")
    for threshold in found.b.thresholds:
        axes.axhline(threshold, color="0.4", lw=1, ls=":")
    axes.set(
        xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=f"{found.task} probability, A: {found.a.run_id}",
        ylabel=f"{found.task} probability, B: {found.b.run_id}",
        title=f"{found.num_scored_both:,} clips scored in both" + (" (dotted: thresholds)" if found.a.thresholds else ""),
    )
    axes.legend(loc="upper left", fontsize="small")


def _kind(before: bool | None, after: bool | None, negative: str) -> str:
    if before is None or after is None:
        return "no verdict"
    if before == after:
        return "same verdict"
    return f"{negative} in A, not in B" if after else f"{negative} in B, not in A"


def _runs(root: TableRoot) -> dict[str, bool]:
    """Every run of the tables, and whether it is finished."""
    runs: dict[str, bool] = {}
    for batch in root.open("runs").to_pyarrow_dataset().to_batches(columns=["run_id", "event"]):
        for run, event in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            runs[run] = runs.get(run, False) or event == "finished"
    return runs


def _side(run: str, rows: pa.Table, columns: TaskColumns, finished: bool) -> RunSide:
    def values(name: str) -> list[Any]:
        return sorted(value for value in pc.unique(rows[name]).to_pylist() if value is not None)

    def joined(name: str) -> str | None:
        return ", ".join(map(str, values(name))) or None

    clips = len(set(_first_known(rows).to_pylist()))
    by = [part for part in (joined("backend"), joined("precision")) if part]
    return RunSide(
        run_id=run,
        num_objects=rows.num_rows,
        num_clips=clips,
        finished=finished,
        bundle=joined("bundle"),
        model_domain=joined("model_domain"),
        computed_by=" ".join(by) or None,
        thresholds=tuple(values(columns.threshold)) if columns.threshold else (),
    )


def _first_known(rows: pa.Table) -> pa.ChunkedArray:
    return pc.coalesce(rows["clip_id"], rows["object_id"])


def _keyed(rows: pa.Table, others: pa.Table, columns: TaskColumns) -> pa.Table:
    """One row a clip: key, outcome, probability (float64), positive. Of a clip under several URIs the one that `latest_scores`
    shows: not rejected before rejected, then the smallest object_id."""
    # The clip of an object that only the other run could read
    elsewhere = others.select(["object_id", "clip_id"]).filter(pc.is_valid(others["clip_id"]))
    clip_of = dict(zip(elsewhere["object_id"].to_pylist(), elsewhere["clip_id"].to_pylist(), strict=True))
    keys = [
        clip or clip_of.get(object_id, object_id)
        for object_id, clip in zip(rows["object_id"].to_pylist(), rows["clip_id"].to_pylist(), strict=True)
    ]
    rejected = pc.fill_null(pc.equal(rows["status"], "rejected"), True)
    order = pc.sort_indices(
        pa.table({"rejected": rejected, "object_id": rows["object_id"]}),
        sort_keys=[("rejected", "ascending"), ("object_id", "ascending")],
    ).to_pylist()
    chosen: dict[str, int] = {}
    for position in order:
        chosen.setdefault(keys[position], position)
    outcome = pc.if_else(
        rejected, pc.binary_join_element_wise(rows["status"], pc.fill_null(rows["reason"], "?"), ": "), rows["status"]
    )
    count = rows.num_rows
    positive = pa.nulls(count, pa.bool_())
    if columns.satisfactory:
        positive = pc.invert(rows[columns.satisfactory])
    elif columns.threshold:
        positive = pc.greater_equal(rows[columns.probability], rows[columns.threshold])
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            _OUTCOME: outcome,
            "probability": rows[columns.probability].cast(pa.float64()),
            "positive": positive,
        }
    )
    return table.take(pa.array(chosen.values(), pa.int64()))


def _differences(pairs: pa.Table) -> Differences | None:
    if not pairs.num_rows:
        return None
    from scipy import stats

    a, b = (pairs[f"probability_{side}"].to_numpy() for side in "ab")
    difference = b - a
    varies = len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
    return Differences(
        mean=float(difference.mean()),
        mean_absolute=float(np.abs(difference).mean()),
        max_absolute=float(np.abs(difference).max()),
        quantiles={q: float(value) for q, value in zip(QUANTILES, np.quantile(difference, QUANTILES), strict=True)},
        pearson=float(stats.pearsonr(a, b).statistic) if varies else None,
        spearman=float(stats.spearmanr(a, b).statistic) if varies else None,
    )


def _largest(pairs: pa.Table) -> tuple[ClipDifference, ...]:
    size = np.abs(pairs["probability_b"].to_numpy() - pairs["probability_a"].to_numpy())
    order = np.argsort(-size, kind="stable")[:LARGEST]  # ties stay in the order of clip_id
    return tuple(
        ClipDifference(
            clip_id=row["clip_id"],
            probability_a=row["probability_a"],
            probability_b=row["probability_b"],
            flipped=None not in (row["positive_a"], row["positive_b"]) and row["positive_a"] != row["positive_b"],
        )
        for row in pairs.take(pa.array(order)).to_pylist()
    )


def _count(flags: Any) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _any(flags: Any) -> bool:
    return bool(pc.any(flags).as_py())


def _print(found: Comparison, console: Console) -> None:
    console.print(Text(f"{found.task}: A = {found.a.run_id}, B = {found.b.run_id}", style="bold"))
    _print_table(
        console,
        ("", "A", "B"),
        [
            ("objects (different clips)", *(f"{s.num_objects:,} ({s.num_clips:,})" for s in (found.a, found.b))),
            ("finished", *("yes" if s.finished else "no" for s in (found.a, found.b))),
            ("bundle", *((s.bundle or "-")[:12] for s in (found.a, found.b))),
            ("trained on", *(s.model_domain or "-" for s in (found.a, found.b))),
            ("computed by", *(s.computed_by or "-" for s in (found.a, found.b))),
            ("threshold", *(", ".join(f"{t:.4g}" for t in s.thresholds) or "-" for s in (found.a, found.b))),
        ],
    )
    console.print(
        f"\nclips in both: {found.num_both:,} (scored in both: {found.num_scored_both:,}); "
        f"only in A: {found.num_only_a:,}; only in B: {found.num_only_b:,}"
    )
    if found.outcomes:
        console.print("\nWhat became of the clips that are in both")
        rows = sorted(found.outcomes.items(), key=lambda item: (item[0][0] == item[0][1], -item[1], item[0]))
        changes = [(before, after, f"{n:,}", "" if before == after else "changed") for (before, after), n in rows]
        _print_table(console, ("in A", "in B", "clips", ""), changes, numbers=(2,))
    if found.flips_to_positive is not None and found.num_verdicts_both:
        flips, negative = found.flips_to_positive + (found.flips_to_negative or 0), _NEGATIVE.get(found.task, "negative")
        console.print(
            f"\nFlips of the verdict: {flips:,} of {found.num_verdicts_both:,} ({flips / found.num_verdicts_both:.1%}): "
            f"{found.flips_to_positive:,} {negative} in A but not in B, "
            f"{found.flips_to_negative:,} in B but not in A"
        )
    if found.differences is None:
        return
    d = found.differences
    console.print("\nDifference of the probability, B - A")
    quantiles = ", ".join(f"{q:.0%} {value:+.4f}" for q, value in d.quantiles.items())
    _print_table(
        console,
        ("", ""),
        [
            ("mean", f"{d.mean:+.5f}"),
            ("mean absolute", f"{d.mean_absolute:.5f}"),
            ("largest", f"{d.max_absolute:.5f}"),
            ("quantiles", quantiles),
            ("Pearson r", "-" if d.pearson is None else f"{d.pearson:.5f}"),
            ("Spearman rho", "-" if d.spearman is None else f"{d.spearman:.5f}"),
        ],
        header=False,
    )
    if d.max_absolute > 0:
        console.print(f"\nThe largest {len(found.largest)}")
        cells = [
            (c.clip_id, f"{c.probability_a:.4f}", f"{c.probability_b:.4f}", f"{c.difference:+.4f}", "flip" if c.flipped else "")
            for c in found.largest
        ]
        _print_table(console, ("clip", "A", "B", "B - A", ""), cells, numbers=(1, 2, 3))


def _print_table(
    console: Console,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    header: bool = True,
) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=header, header_style="bold")
    for position, name in enumerate(names):
        table.add_column(name, justify="right" if position in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
