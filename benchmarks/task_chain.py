"""What the stenosis or the calcification system costs: each of its nets bare, the chain of its scorers, and a whole run, on one
machine in one go.

    python benchmarks/task_chain.py stenosis|calcium [--bundles DIR] [--clips 400]

Clips: 96 frames of 512 x 512 from the phantom, as in `pipeline.py`; for calcium of its calcium protocol, with heartbeats before
contrast. Bare: the compiled net on inputs in memory. Chain: scorers as a scoring actor calls them, with the choice of the frames,
boxes or regions, and the columns; its ratio says how much of its time is the nets' own. Run: `score --models quality,TASK`,
against what all cores would do in decoding and the chain alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from pipeline import FRAMES, SIZE, cpu_s, make_clips, timed

BATCH = 8
PASSES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("stenosis", "calcium"))
    parser.add_argument("--bundles", type=Path, help="folder above the tasks' bundles; what it lacks ships")
    parser.add_argument("--clips", type=int, default=400, help="clips of the run; 0: no run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.task, options.bundles, options.clips)


def measure(folder: Path, last: str, bundles_folder: Path | None, clips: int) -> None:
    from angio_ray.models import TASKS
    from angio_ray.models.backends import choose_backend
    from angio_ray.models.bundles import SHIPPED, load_bundle

    cores = len(os.sched_getaffinity(0))
    originals = make_clips(folder / "originals", **({"protocol": "calcium", "calcified": 1.0} if last == "calcium" else {}))
    bundles = {}
    for task in ("quality", *TASKS[last].needs, last):
        own = bundles_folder / task if bundles_folder else SHIPPED / task
        bundles[task] = load_bundle(own if own.exists() else SHIPPED / task)
    backend = choose_backend(list(bundles.values()), num_threads=cores, batch_size=BATCH)
    scorers = {task: TASKS[task].scorer(b, backend, num_threads=cores) for task, b in bundles.items()}
    inputs, frames, headers, decode_ms = decoded(originals, [w for s in scorers.values() for w in s.windows])

    print(f"machine: {cores} cores, {os.uname().machine}; models on {backend}; batches of {BATCH} clips")
    spent = dict.fromkeys(scorers, 0.0)
    for task, scorer in scorers.items():
        run, scorer._run = scorer._run, watched(scorer._run, task, spent)
        # of what the last window offers a task that chooses, as many frames as it looks at
        x = np.ascontiguousarray(inputs[scorer.windows[-1].name][:, : bundles[task].window.num_frames])
        run(x)
        bare_ms = 1000 * min(timed(lambda run=run, x=x: run(x)) for _ in range(PASSES)) / len(x)
        per_frame = f" ({bare_ms / x.shape[1]:.1f} ms a frame)" if TASKS[task].named_frames else ""
        print(f"  {task}, bare: {bare_ms:.1f} ms a clip{per_frame}, {x.shape[1]} frames of {x.shape[2]} px")
    chain(scorers, inputs, frames, headers)
    spent.update(dict.fromkeys(spent, 0.0))
    started = time.perf_counter()
    scored = 0
    for _ in range(PASSES):
        scored = chain(scorers, inputs, frames, headers)
    whole = time.perf_counter() - started
    chain_ms = 1000 * whole / (PASSES * len(headers))
    print(f"chain: {chain_ms:.1f} ms a clip; {sum(spent.values()) / whole:.2f} of it in the nets")
    print(f"  {last} scored in {scored} of {len(headers)} clips")
    print(f"decode of all that they need, one core: {decode_ms:.1f} ms a clip of {FRAMES} frames of {SIZE} px")
    if clips:
        rate = run_rate(folder, last, originals, clips, bundles_folder)
        bound = 1000 * cores / (decode_ms + chain_ms * cores)
        print(f"run of {clips} clips: {rate:.1f} clips/s = {rate / bound:.2f} of the cores' {bound:.1f}")


def watched(run, task: str, spent: dict[str, float]):
    """The same runner, whose seconds are counted."""

    def timed_run(x):
        started = time.perf_counter()
        try:
            return run(x)
        finally:
            spent[task] += time.perf_counter() - started

    return timed_run


def decoded(paths: list[Path], windows) -> tuple[dict, dict, list[dict], float]:
    """Inputs and frames of a batch by window, facts of the headers, and core-milliseconds of decoding a clip."""
    from angio_ray.dicom.reader import ClipReader
    from angio_ray.storage import Storage

    unique = list({w.name: w for w in windows}.values())
    storage, reader = Storage(str(paths[0].parents[1])), ClipReader(unique)
    reader.read(storage.open(str(paths[0])))
    before = cpu_s()
    clips = [reader.read(storage.open(str(path))) for path in paths]
    spent = cpu_s() - before
    reader.close()
    batch = [clips[i % len(clips)] for i in range(BATCH)]
    inputs = {w.name: np.stack([clip.inputs[w.name] for clip in batch]) for w in unique}
    chosen = {w.name: [clip.selections[w.name] for clip in batch] for w in unique}
    frames = {name: [np.asarray(s.indices[: s.num_shown]) for s in found] for name, found in chosen.items()}
    headers = [{"rows": SIZE, "columns": SIZE} for _ in batch]
    return inputs, frames, headers, 1000 * spent / len(paths)


def chain(scorers: dict, inputs: dict, frames: dict, headers: list[dict]) -> int:
    """All scorers one after the other; how many clips the last one scored."""
    from angio_ray.models import TASKS

    known: list[dict] = [dict(header) for header in headers]
    columns = {}
    for task, scorer in scorers.items():
        columns = scorer(
            {w.name: inputs[w.name] for w in scorer.windows},
            {w.name: frames[w.name] for w in scorer.windows},
            {name: [row.get(name) for row in known] for name in TASKS[task].reads},
        )
        for i, row in enumerate(known):
            row.update({name: values[i] for name, values in columns.items()}, **{f"{task}_status": "scored"})
    return sum(reason is None for reason in columns[f"{list(scorers)[-1]}_reason"])


def run_rate(folder: Path, task: str, originals: list[Path], clips: int, bundles_folder: Path | None) -> float:
    """Clips/s between the 20th and the 95th percentile of rows."""
    from deltalake import DeltaTable

    from angio_ray.scoring.config import ScoreConfig
    from angio_ray.scoring.run import score

    source, tables = folder / "clips", folder / "tables"
    source.mkdir()
    for number in range(clips):
        os.link(originals[number % len(originals)], source / f"{number:06d}.dcm")
    score(ScoreConfig(str(source), tables=str(tables), run="bench", models=("quality", task), gate="off",
                      bundles=bundles_folder, commit_interval_s=5.0))  # fmt: skip
    rows = DeltaTable(str(tables / "scores")).to_pyarrow_table(columns=["scored_at"])
    at = np.sort(np.array([t.timestamp() for t in rows["scored_at"].to_pylist()]))
    low, high = int(0.2 * len(at)), int(0.95 * len(at)) - 1
    return (high - low) / (at[high] - at[low])


if __name__ == "__main__":
    main()
