"""What README's speed figures come from: model, decode, pipeline and the naive loop, measured in one run on one machine.

    python benchmarks/pipeline.py [--clips 5000] [--also 1000]

Clips: 96 frames of 512 x 512, 8 bit, JPEG Lossless SV1, from the phantom (a few distinct ones under many names).
The naive loop reads the whole clip with pydicom's `pixel_array` and runs torch float32, clip by clip.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

DISTINCT, FRAMES, SIZE = 12, 96, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=5000, help="clips of the timed run (rows come in bursts: thousands)")
    parser.add_argument("--also", type=int, default=1000, help="clips of a smaller run for its peak memory; 0: none")
    parser.add_argument("--naive", type=int, default=8, help="clips of the naive loop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.clips, options.also, options.naive)


def measure(folder: Path, clips: int, also: int, naive: int) -> None:
    from angio_ray.models.bundles import SHIPPED, load_bundle

    cores = len(os.sched_getaffinity(0))
    originals = make_clips(folder / "originals")
    bundle = load_bundle(SHIPPED / "quality")

    decode_ms, inputs = decode_cost(originals, bundle.window)
    backend, model_ms = model_cost(bundle, inputs, cores)
    naive_s = naive_cost(originals[:naive], bundle)
    smaller = pipeline(folder, originals, also)[2] if also else None
    rate, first_row_s, peaks = pipeline(folder, originals, clips)
    bound = 1000 / ((decode_ms + model_ms) / cores)
    frames = f"{bundle.window.num_frames} of {FRAMES} frames"
    times = rate * naive_s
    print(f"machine: {cores} cores, {os.uname().machine}; models on {backend}")
    print(
        f"bare model, batch 16, {cores} threads: {1000 * cores / model_ms:.1f} clips/s ({model_ms:.1f} core-ms a clip)"
    )
    print(f"decode of {frames}, one core: {1000 / decode_ms:.1f} clips/s ({decode_ms:.1f} core-ms a clip)")
    print(f"bound, all cores on both: {bound:.1f} clips/s")
    print(
        f"pipeline, {clips:,} clips: {rate:.1f} clips/s = {rate / bound:.2f} of the bound; first row after {first_row_s:.0f} s"
    )
    print(f"naive loop: {1 / naive_s:.2f} clips/s; the pipeline is {times:.1f} times as fast")
    if smaller:
        print(f"peak memory at {also:,} clips: {show(smaller)}")
    print(f"peak memory at {clips:,} clips: {show(peaks)}")


def make_clips(folder: Path, **more) -> list[Path]:
    from angio_ray.phantom import generate

    generate(
        folder,
        patients=2,
        clips=(DISTINCT // 2, DISTINCT // 2),
        seed=1,
        size=SIZE,
        frames=(FRAMES, FRAMES),
        fps=15,
        syntax="jpeg-lossless",
        **more,
    )
    return sorted(folder.glob("*/*.dcm"))


def decode_cost(paths: list[Path], window) -> tuple[float, np.ndarray]:
    """Core-milliseconds a clip (worker and child together) through the sandboxed reader; and the inputs."""
    from angio_ray.dicom.reader import ClipReader
    from angio_ray.storage import Storage

    storage, reader = Storage(str(paths[0].parents[1])), ClipReader([window])
    inputs = [reader.read(storage.open(str(p))).inputs[window.name] for p in paths]  # warms up the child, too
    before = cpu_s()
    for _ in range(4):
        for path in paths:
            reader.read(storage.open(str(path)))
    spent = cpu_s() - before
    reader.close()
    return 1000 * spent / (4 * len(paths)), np.stack(inputs)


def cpu_s() -> float:
    """User and system seconds of this process and its live children."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [me, *me.children(recursive=True)])


def model_cost(bundle, inputs: np.ndarray, cores: int) -> tuple[str, float]:
    """The backend that a run would choose, and its core-milliseconds a clip at batch 16 on all cores."""
    from angio_ray.models import TASKS
    from angio_ray.models.backends import choose_backend

    backend = choose_backend([bundle], num_threads=cores, batch_size=16)
    scorer = TASKS["quality"].scorer(bundle, backend, num_threads=cores)
    batch = {bundle.window.name: np.resize(inputs, (16, *inputs.shape[1:]))}
    scorer(batch)
    best = min(timed(lambda: scorer(batch)) for _ in range(10))
    return str(backend), 1000 * best * cores / 16


def timed(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def naive_cost(paths: list[Path], bundle) -> float:
    """Seconds a clip of the loop that one would write first."""
    import pydicom
    import torch

    net = bundle.ensemble().members[0].net.eval()
    index = np.arange(15, 15 + bundle.window.length, bundle.window.stride)

    def one(path: Path) -> None:
        frames = pydicom.dcmread(path).pixel_array[index]
        x = torch.from_numpy(frames).float()[:, None]
        x = torch.nn.functional.interpolate(x, size=(bundle.window.size,) * 2, mode="bilinear", antialias=True) / 255
        x = ((x - bundle.mean[0]) / bundle.std[0]).expand(-1, 3, -1, -1).transpose(0, 1)[None]
        with torch.inference_mode():
            torch.softmax(net(x), -1)

    one(paths[0])
    return timed(lambda: [one(p) for p in paths]) / len(paths)


def pipeline(folder: Path, originals: list[Path], clips: int) -> tuple[float, float, dict[str, float]]:
    """Clips/s between the 20th and the 95th percentile of rows, seconds to the first row, peak memory by kind of process."""
    from deltalake import DeltaTable

    from angio_ray.scoring.config import ScoreConfig
    from angio_ray.scoring.run import score

    source = folder / f"clips{clips}"
    source.mkdir()
    for number in range(clips):
        os.link(originals[number % len(originals)], source / f"{number:06d}.dcm")
    tables = folder / f"tables{clips}"
    started = time.time()
    with PeakMemory() as memory:
        score(ScoreConfig(str(source), tables=str(tables), run="bench", commit_interval_s=5.0))
    rows = DeltaTable(str(tables / "scores")).to_pyarrow_table(columns=["scored_at"])
    at = np.sort(np.array([t.timestamp() for t in rows["scored_at"].to_pylist()]))
    low, high = int(0.2 * len(at)), int(0.95 * len(at)) - 1
    return (high - low) / (at[high] - at[low]), at[0] - started, memory.peaks


class PeakMemory:
    """Peak resident MB (shared pages counted once with their owner: USS) of the driver and of each kind of Ray worker."""

    def __enter__(self):
        self.peaks: dict[str, float] = {}
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.thread.join()

    def watch(self):
        """Sample every 5 s (reading the maps of a torch process takes its time) until the run is over."""
        me = psutil.Process()
        while not self.stop.wait(5.0):
            for process in [me, *me.children(recursive=True)]:
                try:
                    title = " ".join(process.cmdline())
                    kind = next(
                        (
                            k
                            for word, k in (
                                ("DecodeStage", "decoder"),
                                ("ClipScorer", "scorer"),
                                ("spawn_main", "child"),
                            )
                            if word in title
                        ),
                        "driver" if process == me else None,
                    )
                    if kind:
                        self.peaks[kind] = max(self.peaks.get(kind, 0.0), process.memory_full_info().uss / 1e6)
                except psutil.Error:
                    continue


def show(peaks: dict[str, float]) -> str:
    return ", ".join(f"{kind} {mb:,.0f} MB" for kind, mb in sorted(peaks.items()))


if __name__ == "__main__":
    main()
