"""The command line. Each command parses, calls one library function and turns its outcome into an exit code.

Generated from the same typed configs that the Python API takes. Heavy packages are imported by the command that needs them.
Exit codes: 0 done; 1 not finished, rerun; 2 bad arguments, key, bundle or config; 3 done, with rejects; 4 another driver
holds the run; 143 stopped by SIGTERM after committing what it had.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from angio_ray import __version__
from angio_ray.scoring.config import IndexConfig, ScoreConfig, Words
from angio_ray.training.config import TrainConfig

app = App(
    name="angio-ray",
    version=__version__,
    help="Batch scoring of coronary angiograms: DICOM -> Ray -> Delta -> SQL. Research use only.",
    help_format="plaintext",
)
tables_app = App(name="tables", help="Maintain the tables: compact, vacuum, upgrade.")
app.command(tables_app)

Config = Parameter(name="*")
Tables = Annotated[str, Parameter(help="Folder or s3:// prefix of the Delta tables.")]
Range = Annotated[tuple[int, int], Parameter(negative="")]
Clips = Annotated[str | None, Parameter(help="Root of `clips` and `manifests`, when it is another one.")]


@app.command
def score(config: Annotated[ScoreConfig, Config]) -> int:
    """Score every clip of a folder or bucket; the same command again resumes."""
    from angio_ray.scoring.run import score as run_score

    summary = run_score(config)
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in summary.notes:
        say.print(note)
    counts = ", ".join(f"{n:,} {status}" for status, n in sorted(summary.statuses.items())) or "no rows"
    say.print(f"run {summary.run_id}: {counts} ({summary.written:,} rows written now, {summary.seconds:.0f} s)")
    for reason, n in summary.reasons.most_common():
        say.print(f"  rejected {n:,}: {reason}")
    return summary.exit_code


@app.command
def index(config: Annotated[IndexConfig, Config]) -> int:
    """Put the header facts of every object into `clips`, reading header bytes only."""
    from angio_ray.scoring.index import index as run_index

    summary = run_index(config)
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"{summary.written:,} objects indexed, {summary.known:,} known before, "
        f"{summary.rejected:,} with a reason in place of header facts ({summary.seconds:.0f} s)"
    )
    return 3 if summary.rejected else 0


@app.command
def train(config: Annotated[TrainConfig, Config]) -> int:
    """Train a net by patient-grouped cross-validation: bundles, out-of-fold rows, figures; the same command again resumes."""
    from angio_ray.training.cross_validation import train as run_train

    summary = run_train(config)
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in summary.lines:
        say.print(line)
    if summary.rejected:
        say.print(f"  {len(summary.rejected):,} labelled clips could not be decoded and are in no fold")
    say.print(f"bundles: {summary.bundles} ({summary.seconds:.0f} s)")
    return summary.exit_code


@app.command
def sql(
    query: str,
    *,
    tables: Tables,
    clips: Clips = None,
    format: Literal["table", "csv", "json", "parquet"] = "table",
    out: Path | None = None,
) -> int:
    """Query the tables and the ready-made views.

    Parameters
    ----------
    query:
        SQL of DuckDB. `SHOW TABLES` lists tables and views.
    format:
        How the result is written.
    out:
        File for the result. Default: standard output (parquet needs a file).
    """
    from angio_ray.tables import sql as engine

    result = engine.query(_root(tables, clips), query)
    with _argument_errors():
        engine.write_result(result, format, out)
    return 0


@app.command
def phantom(
    out: str,
    *,
    patients: int = 6,
    seed: int = 0,
    size: int = 512,
    frames: Annotated[tuple[int, int] | None, Parameter(negative="")] = None,
    clips: Range = (5, 7),
    fps: float | None = None,
    syntax: str | None = None,
    unsatisfactory: float | None = None,
    diseased: float = 0.5,
    calcified: float | None = None,
    protocol: str = "default",
    site: str = "seen",
    twins: str = "",
    workers: int | None = None,
) -> int:
    """Make synthetic clips with known truth: DICOM files, side files and labels.parquet.

    Parameters
    ----------
    out:
        Folder or s3:// prefix for the clips.
    patients:
        How many patients, each with a study of several clips of both classes; some have a second study.
    seed:
        The same seed gives the same bytes.
    size:
        Rows and columns, px.
    frames:
        Fewest and most frames of a clip, as 60-120 or as 60 120; 60 is 60-60. Default: 60-120 and some runs shorter,
        for calcium 180-220.
    clips:
        Fewest and most clips of a patient, in the same ways.
    fps:
        Frames per second. Default: 15 mostly, others at times.
    syntax:
        Transfer syntax: native, rle, jpeg-baseline, jpeg-lossless, jpeg-ls, jpeg-2000. Default: one drawn per clip.
    unsatisfactory:
        Expected share of unsatisfactory clips. Default: 0.4, for calcium 0.
    diseased:
        Expected share of patients with narrowings.
    calcified:
        Expected share of patients with calcification. Default: 0.35, for calcium 0.55.
    protocol:
        default, or calcium: about 200 frames, the first half without contrast.
    site:
        seen, or unseen: machines, devices and runs that the other site never shows, for an independent set.
    twins:
        Classes with commas between (no_contrast,poor_engagement ...): for each satisfactory clip also the same with
        that fault.
    workers:
        Processes; the bytes do not depend on it. Default: one per processor.
    """
    from angio_ray.phantom import generate

    begun = time.monotonic()
    with _argument_errors(), _unfinished_sets():
        labels = generate(
            out, patients=patients, seed=seed, size=size, frames=frames, clips=clips, fps=fps, syntax=syntax,
            unsatisfactory=unsatisfactory, diseased=diseased, calcified=calcified, protocol=protocol, site=site, workers=workers,
            twins=tuple(name.strip() for name in twins.split(",") if name.strip()),
        )  # fmt: skip
    seconds, shown = time.monotonic() - begun, sum(labels["num_frames"].to_pylist())
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"{len(labels):,} synthetic clips of {patients:,} patients in {out} "
        f"({shown:,} frames, {shown / seconds:.0f} frames/s, {seconds:.0f} s)"
    )
    return 0


@app.command
def phantom_ct(
    out: str,
    *,
    patients: int = 6,
    seed: int = 0,
    size: int = 256,
    rotations: int = 50,
    kind: Literal["curved", "straightened"] = "curved",
    workers: int | None = None,
) -> int:
    """Make synthetic curved reformations of coronary CT with report texts, and truth.parquet.

    Parameters
    ----------
    out:
        Folder or s3:// prefix for the pictures.
    patients:
        How many patients, each with a few branches and one report.
    seed:
        The same seed gives the same bytes.
    size:
        Rows and columns of a picture, px.
    rotations:
        Pictures of a branch over 180 degrees.
    kind:
        curved, or straightened.
    workers:
        Processes; the bytes do not depend on it. Default: one per processor.
    """
    from angio_ray.phantom.reformations import generate_reformations

    begun = time.monotonic()
    with _argument_errors(), _unfinished_sets():
        truth = generate_reformations(
            out, patients=patients, seed=seed, size=size, rotations=rotations, kind=kind, workers=workers
        )
    seconds, pictures = time.monotonic() - begun, sum(truth["rotations"].to_pylist())
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"{pictures:,} synthetic reformations of {len(truth):,} branches of {patients:,} patients in {out} "
        f"({pictures / seconds:.0f} pictures/s, {seconds:.0f} s)"
    )
    return 0


@app.command
def demo(*, out: Path = Path("demo")) -> int:
    """Make a few dozen synthetic clips, score them, and ask the tables by SQL.

    Parameters
    ----------
    out:
        Folder for clips and tables. It may hold an earlier demo, which is then resumed.
    """
    from angio_ray.demo import demo as run_demo

    with _unfinished_sets():
        return run_demo(out)


@app.command
def models(*, clips: int = 8, nets: str = "all") -> int:
    """Cost of the nets here, beside the quality paper's table: parameters, GMAC, ms per clip, frames/s.

    Parameters
    ----------
    clips:
        Clips that each net is timed on.
    nets:
        Names with commas between, or all.
    """
    from angio_ray.models.cost import cost_table, render

    with _argument_errors():
        rows = cost_table(None if nets == "all" else nets.split(","), clips=clips)
    render(rows)
    return 0


@app.command
def doctor(uri: Annotated[list[str] | None, Parameter(negative="")] = None) -> int:
    """What is installed and what it can do here: processors, GPUs, codecs with their speed, storage, Ray.

    Parameters
    ----------
    uri:
        Folders or s3:// prefixes to reach.
    """
    from angio_ray.doctor import doctor as run_doctor

    return run_doctor(uri)


@app.command
def compare(run_a: str, run_b: str, *, tables: Tables, task: str = "quality", plot: Path | None = None) -> int:
    """The same clips under two runs: flips, differences of the scores, a plot.

    Parameters
    ----------
    run_a:
        The first run.
    run_b:
        The second run: differences are its scores less those of the first.
    task:
        Whose scores.
    plot:
        PNG file for a scatter of the scores and a histogram of their differences.
    """
    from angio_ray.evaluation.compare import compare as run_compare

    return run_compare(_root(tables, None), run_a, run_b, task=task, plot=plot)


@app.command
def evaluate(
    *,
    tables: Tables,
    experiment: str | None = None,
    run: str | None = None,
    labels: str | None = None,
    task: Literal["quality", "artery", "oblique", "contrast", "stenosis", "calcium"] | None = None,
    against: str | None = None,
    bundle: Annotated[list[Path] | None, Parameter(negative="")] = None,
    data: str | None = None,
    clips: Clips = None,
    key_file: Path | None = None,
    resamples: int = 2000,
) -> int:
    """Figures with intervals into `metrics`: of an experiment's held-out predictions, or of a scored run against labels.

    Parameters
    ----------
    experiment:
        The experiment whose predictions are judged; with --run the name that the run's rows are filed under (default: the run).
    run:
        A scored run to judge; needs --labels.
    labels:
        A set of labels in the tables, or a CSV or Parquet file.
    task:
        Which of the run's scores are judged: quality, artery, oblique, contrast (the frames of full contrast), or stenosis (25 %
        and more; clips, and arteries and studies by their worst clip). Default: quality.
    against:
        With --run another run on the same labels, else another experiment: differences are --run (--experiment) less this
        one, on the clips that both held out.
    bundle:
        Folder in which the bundle that scored is looked for, at any depth, where it neither ships nor lies in
        TABLES.training: it names the patients that the model has seen. May be given several times.
    data:
        Name of these clips in `predictions` and `metrics`. Default: that of the labels (of a file called labels: its folder).
    key_file:
        File with the pseudonym key: for label files and sites. Default: $ANGIO_RAY_KEY_FILE, else beside the tables.
    resamples:
        Draws of patients for each interval.
    """
    from angio_ray.judging.contrast import contrast_experiment, evaluate_contrast
    from angio_ray.judging.evaluate import evaluate_experiment, evaluate_run
    from angio_ray.judging.labelled import optional_key
    from angio_ray.scoring.config import ConfigError

    if (run is None) != (labels is None) or (run is None and experiment is None):
        raise ConfigError("evaluate takes --experiment E, or --run R with --labels L")
    if run is None and (bundle or data or task):
        raise ConfigError("--bundle, --data and --task go with --run")
    if resamples < 100:
        raise ConfigError(f"--resamples {resamples}: at least 100")
    if task == "contrast" and against:
        raise ConfigError("--against goes with quality, artery and stenosis")
    root = _root(tables, clips)
    with _argument_errors():
        key = optional_key(tables, key_file)
        if task == "contrast" and run is not None and labels is not None:
            evaluate_contrast(
                root, run, labels, key=key, bundles=bundle or (), experiment=experiment, data=data, resamples=resamples
            ).print(Console(highlight=False))
            return 0
        if run is None and against is None and (
            frames := contrast_experiment(root, str(experiment), key=key, resamples=resamples)
        ):
            frames.print(Console(highlight=False))
            return 0
        if run is not None and labels is not None:
            found = evaluate_run(
                root,
                run,
                labels,
                task=task or "quality",
                key=key,
                against=against,
                bundles=bundle or (),
                experiment=experiment,
                data=data,
                resamples=resamples,
            )
        else:
            found = evaluate_experiment(root, str(experiment), against=against, key=key, resamples=resamples)
    found.print(Console(highlight=False))
    return 0


@app.command
def calibrate(
    *,
    bundle: Path,
    run: str,
    labels: str,
    tables: Tables,
    out: Path,
    rule: Literal["youden", "sensitivity", "specificity"] = "youden",
    at_least: float | None = None,
    clips: Clips = None,
    key_file: Path | None = None,
) -> int:
    """Set a bundle's threshold on your own labelled patients, without retraining: a new bundle with a new digest.

    Parameters
    ----------
    bundle:
        Folder of the bundle that scored the run.
    run:
        A scored run on the labelled clips.
    labels:
        A set of labels in the tables, or a CSV or Parquet file.
    out:
        New folder for the bundle; `score --bundles DIR` finds it as DIR/quality.
    rule:
        youden, or the best threshold at a fixed sensitivity or specificity (positive: unsatisfactory).
    at_least:
        That sensitivity or specificity, 0 to 1.
    key_file:
        File with the pseudonym key, for label files. Default: $ANGIO_RAY_KEY_FILE, else beside the tables.
    """
    from angio_ray.judging.calibrate import calibrate as run_calibrate
    from angio_ray.judging.labelled import optional_key
    from angio_ray.scoring.config import ConfigError

    if (rule == "youden") != (at_least is None):
        raise ConfigError("--rule sensitivity and --rule specificity need --at-least, --rule youden takes none")
    if at_least is not None and not 0 <= at_least <= 1:
        raise ConfigError(f"--at-least {at_least:g}: a share from 0 to 1")
    root = _root(tables, clips)
    with _argument_errors():
        key = optional_key(tables, key_file)
        found = run_calibrate(root, bundle, run, labels, out, key=key, rule=rule, at_least=at_least)
    console = Console(highlight=False)
    found.print(console)
    console.print(f"bundle: {out}", soft_wrap=True)
    return 0


@app.command
def join_views(*, bundle: Path, view: Annotated[list[str], Parameter(negative="")], out: Path) -> int:
    """Put models of single views into a stenosis bundle: clips of these are given to them, others to the bundle's own.

    Parameters
    ----------
    bundle:
        Folder of the bundle for all other clips; its threshold is that of all.
    view:
        RCA=FOLDER, or "LAO cranial=FOLDER" and the other three views of the LCA; may be given several times. Such models are
        trained by `train stenosis-class --only artery=RCA`, or --only artery=LCA --only view="LAO cranial".
    out:
        New folder; `score --bundles DIR` finds it as DIR/stenosis.
    """
    from angio_ray.models.bundles import load_bundle, save_bundle
    from angio_ray.scoring.config import ConfigError

    pairs = [entry.partition("=") for entry in view]
    if (out / "bundle.json").exists():
        raise ConfigError(f"--out {out}: holds a bundle already, name a new folder")
    if bad := [name for name, _, folder in pairs if not folder]:
        raise ConfigError(f"--view {bad[0]}: a view, = and a folder")
    names = [name for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--view {twice[0]}: named twice")
    with _argument_errors():
        joined = load_bundle(bundle).with_views({name: load_bundle(folder) for name, _, folder in pairs})
        save_bundle(out, joined)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"bundle: {out}, with models of {', '.join(joined.views)}")
    alone = ", ".join(f"{name} {own.threshold:.3g}" for name, own in joined.views.items())
    console.print(f"one threshold for all: {joined.threshold:.3g} (alone: {alone}); `calibrate` sets another on your labels")
    return 0


@app.command
def review(
    *,
    tables: Tables,
    run: str | None = None,
    out: Path | None = None,
    per_kind: int = 40,
    again: Annotated[bool, Parameter(negative="")] = False,
    read: Annotated[tuple[Path, Path] | None, Parameter(negative="")] = None,
    labels: str | None = None,
    consensus: Path | None = None,
    conflicts: Path | None = None,
    replace: Annotated[bool, Parameter(negative="")] = False,
    clips: Clips = None,
    key_file: Path | None = None,
) -> int:
    """Have clips read by two people: contact sheets and forms of a run, and what comes back as labels.

    Parameters
    ----------
    run:
        A scored run: makes sheets of clips called unsatisfactory, rejected, or near the threshold.
    out:
        New folder for sheets and forms.
    per_kind:
        Most clips of each kind.
    again:
        Also clips whose quality is labelled in these tables already.
    read:
        The two readers' forms: prints agreement (kappa) and conflicts.
    labels:
        Name for the labels that both readers agree on; without it nothing is stored.
    consensus:
        A form on which the readers settled their conflicts together.
    conflicts:
        CSV file to write the conflicting clips to, to be filled in and given as --consensus.
    replace:
        Replace another set of labels of that name.
    key_file:
        File with the pseudonym key. Default: $ANGIO_RAY_KEY_FILE, else beside the tables.
    """
    from angio_ray.scoring.config import ConfigError

    if (run is None) == (read is None) or (run is not None) != (out is not None):
        raise ConfigError("review takes --run R --out DIR, or --read A.csv B.csv")
    if per_kind < 1:
        raise ConfigError(f"--per-kind {per_kind}: at least 1")
    root = _root(tables, clips)
    console = Console(highlight=False)
    with _argument_errors():
        if run is not None and out is not None:
            from angio_ray.judging.sheets import make_sheets

            for line in make_sheets(root, run, out, per_kind=per_kind, again=again).lines():
                console.print(line, soft_wrap=True)
        elif read is not None:
            from angio_ray.judging.labelled import tables_key
            from angio_ray.judging.readers import read_forms

            reading = read_forms(
                root,
                tables_key(tables, key_file),
                read,
                labels=labels,
                consensus=consensus,
                conflicts=conflicts,
                replace_labels=replace,
            )
            reading.print(console)
    return 0


@app.command
def report(
    *,
    tables: Tables,
    out: Path = Path("report.html"),
    experiment: Words = (),
    run: Words = (),
    bundles: Path | None = None,
    clips: Clips = None,
    examples: int = 3,
    time_clips: int = 0,
) -> int:
    """Write one self-contained HTML file: curves, tables beside the paper's, runs, examples with heat maps.

    Parameters
    ----------
    out:
        The file.
    experiment:
        Experiments to report, with commas between. Default, when no run is named either: all, and all runs.
    run:
        Runs to report, with commas between; their figures come from `evaluate --run`.
    bundles:
        Folder in which the models' bundles are looked for, for the heat maps. Default: TABLES.training.
    examples:
        Clips shown of each outcome; 0 reads no clip.
    time_clips:
        Clips that each net is timed on for the table of cost; 0: not timed.
    """
    from angio_ray.judging.labelled import training_folder
    from angio_ray.judging.report import write_report
    from angio_ray.scoring.config import ConfigError

    for name, number in (("examples", examples), ("time-clips", time_clips)):
        if number < 0:
            raise ConfigError(f"--{name} {number}: 0 or more")
    if bundles is not None and not bundles.is_dir():
        raise ConfigError(f"--bundles {bundles}: there is no such folder")
    with _argument_errors():
        done = write_report(
            _root(tables, clips), out, experiments=experiment, runs=run, bundles=[bundles or training_folder(tables)],
            examples=examples, time_clips=time_clips,
        )  # fmt: skip
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in done.notes:
        say.print(note, markup=False)
    say.print(
        f"{done.num_models} models on labelled sets, {done.num_runs} runs, {done.num_pictures} pictures "
        f"({done.size_bytes / 1e6:.1f} MB)"
    )
    print(done.path)
    return 0


@app.command
def explain(
    *,
    clip: str,
    tables: Tables,
    out: Path | None = None,
    run: str | None = None,
    task: str = "quality",
    bundles: Path | None = None,
    clips: Clips = None,
) -> int:
    """Write an animated picture of one clip: the frames that a model saw, and where in them it found what it says.

    Parameters
    ----------
    clip:
        Its clip_id or object_id, or the first eight or more characters.
    out:
        The file, an animated WebP (it holds a patient's pixels). Default: the id and the task, here.
    run:
        Whose score. Default: the newest finished run that was asked for the task and has the clip.
    task:
        quality, artery, oblique, stenosis (the candidate frames, with the model's map and boxes) or calcium (the pair of
        frames, with the heat of the verdict and the region).
    bundles:
        Folder in which the bundle that scored is looked for. Default: TABLES.training.
    """
    from angio_ray.judging.explain import explain as explain_clip
    from angio_ray.judging.labelled import bundle_folders, training_folder
    from angio_ray.scoring.config import ConfigError

    if bundles is not None and not bundles.is_dir():
        raise ConfigError(f"--bundles {bundles}: there is no such folder")
    trained = training_folder(tables)
    places = [bundles] if bundles else [trained] if bundle_folders(trained) else []
    with _argument_errors():
        found = explain_clip(_root(tables, clips), clip, run=run, task=task, bundles=places)
        out = out or Path(f"{found.clip_id[:12]}-{task}.webp")
        out.write_bytes(found.picture)
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in found.lines:
        say.print(line, markup=False)
    print(out)
    return 0


@tables_app.command
def compact(*, tables: Tables, clips: Clips = None, run: str | None = None) -> int:
    """Rewrite finished runs into few files, each in one commit that changes no row.

    Parameters
    ----------
    run:
        Only this run. Default: all finished ones.
    """
    from angio_ray.tables.maintenance import compact as run_compact

    for done in run_compact(_root(tables, clips), run):
        said = done.skipped or f"{done.num_rows:,} rows, {done.files_before:,} files -> {done.files_after:,}"
        print(f"{done.name}: {said}")
    return 0


@tables_app.command
def vacuum(*, tables: Tables, clips: Clips = None, hours: int = 168) -> int:
    """Delete files that no version of the last hours refers to.

    Parameters
    ----------
    hours:
        Age below which nothing is deleted; at least 168.
    """
    from angio_ray.tables.maintenance import vacuum as run_vacuum

    for table, number in run_vacuum(_root(tables, clips), hours).items():
        print(f"{table}: {number:,} files deleted")
    return 0


@tables_app.command
def upgrade(*, tables: Tables, clips: Clips = None) -> int:
    """Bring the tables to this version's schemas: adds columns, changes none."""
    from angio_ray.tables.maintenance import upgrade as run_upgrade

    for line in run_upgrade(_root(tables, clips)) or ["the tables are up to date"]:
        print(line)
    return 0


def _root(tables: str, clips: str | None):  # type: ignore[no-untyped-def]
    from angio_ray.storage import Storage
    from angio_ray.tables.root import TableRoot

    place = Storage(tables)
    if place.is_s3:
        place.probe()  # says in a line, after seconds, what delta-rs says in a traceback
    return TableRoot(place, Storage(clips) if clips else None)


@contextmanager
def _argument_errors() -> Iterator[None]:
    """A ValueError or OSError in here is about an argument: ConfigError, one line."""
    from angio_ray.scoring.config import ConfigError

    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextmanager
def _unfinished_sets() -> Iterator[None]:
    """A phantom's set that was begun and not finished: exit code 1."""
    from angio_ray.phantom.workers import Unfinished
    from angio_ray.scoring.config import RunError

    try:
        yield
    except Unfinished as error:
        raise RunError(str(error), 1) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. What the user can mend is one line on standard error, never a traceback."""
    # read when Ray is imported: a thread of Ray Data that outlives the run's own cluster must not join (or start) another
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("angio_ray").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the packages below; nothing a user can mend
    try:
        return int(
            app(
                _with_ranges(sys.argv[1:] if argv is None else argv),
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
            or 0
        )
    except CycloptsError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:  # the reader of a pipe (head, less) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _user_errors() as error:
        return _complain(str(error), getattr(error, "exit_code", 2))
    except _store_errors() as error:  # a full disk, a store that went away meanwhile
        from angio_ray.tables.fence import describe

        return _complain(describe(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def job(argv: Sequence[str]) -> int:
    """As `main`, for `ray job submit`: 0 where the run is done, rejects or not, since a job counts any other code as failed."""
    code = main(argv)
    return 0 if code == 3 and "--strict" not in argv else code


def leave(code: int) -> NoReturn:
    """End the process with this code now that all is done and said.

    Not by way of the interpreter's own end: threads of Ray's core that are still there then can abort the process, and a
    finished run would end with -6 for 3.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or 141
        except OSError:  # a full disk: what was said is not all there
            code = code or 1
    os._exit(code)


def command_line() -> NoReturn:
    """What the installed command `angio-ray` starts."""
    leave(main())


def _with_ranges(argv: Sequence[str]) -> list[str]:
    """The arguments with each range of the phantom's as two: --frames 60-120 is --frames 60 120, and --frames 60 is 60 60."""
    if not argv or argv[0] != "phantom":
        return list(argv)
    given: list[str] = []
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        option, _, value = word.partition("=") if word.startswith(("--frames=", "--clips=")) else ("", "", word)
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
        if bounds and (option or given[-1] in ("--frames", "--clips")) and (bounds[2] or not after.isdigit()):
            given += [option] if option else []
            given += [bounds[1], bounds[2] or bounds[1]]
        else:
            given.append(word)
    return given


def _complain(message: str, code: int) -> int:
    print(f"angio-ray: {' '.join(message.split())}", file=sys.stderr)
    return code


def _user_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose text is meant for the user."""
    from angio_ray.pseudonyms import PatientMapError, PseudonymKeyError
    from angio_ray.scoring.config import ConfigError, RunError
    from angio_ray.storage import StorageUnavailable
    from angio_ray.tables.root import TablesError

    return RunError, ConfigError, StorageUnavailable, PseudonymKeyError, PatientMapError, TablesError


def _store_errors() -> tuple[type[Exception], ...]:
    """What delta-rs, the file system and a lost commit raise."""
    from angio_ray.tables.fence import STORE_ERRORS, TableUnwritable

    return *STORE_ERRORS, TableUnwritable


if __name__ == "__main__":
    command_line()
