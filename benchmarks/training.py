"""Training throughput: the loop on cached clips, with augmentation and validation, against bare steps on tensors in memory.

    python benchmarks/training.py --clips 24 48 --threads 2

Prints clips/s of both, their ratio, and seconds a clip for each number of clips (flat: no cost grows with the set). Two
clips are validated, so that validation does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from angio_ray.models import NETS
from angio_ray.models.classifier import ClipClassifier
from angio_ray.storage import Storage
from angio_ray.training.cache import CachedClips, ClipCache, entry_name
from angio_ray.training.loop import Part, Place, fit, quickest_precision
from angio_ray.training.quick_nets import fit_for_training
from angio_ray.training.recipes import Stage, find_recipe

BATCH = 8


def cached_clips(folder: Path, net: str, count: int) -> CachedClips:
    """A cache of random frames."""
    window = NETS[net].window
    cache = ClipCache(Storage(str(folder)), window)
    frames = np.random.default_rng(0).integers(0, 256, (count, window.num_frames, window.size, window.size), np.uint8)
    shown = list(range(window.num_frames))
    rows = [
        {"entry": entry_name(str(i), "e"), "input": frames[i].tobytes(), "frames": shown, "reason": None, "detail": None}
        for i in range(count)
    ]
    cache._write(rows)
    return cache.open([str(i) for i in range(count)], ["e"] * count)


def bare_rate(net: str, count: int, device: str) -> float:
    """Clips/s of forward, backward and step on one batch that lies in memory, in the precision of the loop."""
    window = NETS[net].window
    classifier = ClipClassifier(NETS[net])
    fit_for_training(classifier, torch.device(device))
    classifier.train()
    optimizer = torch.optim.Adam(classifier.parameters())
    x = torch.rand(BATCH, window.num_frames, window.size, window.size, device=device) * 255
    target = torch.arange(BATCH, device=device) % 2
    half = quickest_precision(torch.device(device), net) == "bfloat16"

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(classifier.logits(x).float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 2.0)
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    step()
    begun = time.perf_counter()
    for _ in range(count // BATCH):
        step()
    return count // BATCH * BATCH / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", default="x3d_s")
    parser.add_argument("--clips", type=int, nargs="+", default=[24, 48])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    window = NETS[options.net].window
    # the first epoch warms up
    stage = Stage(size=window.size, frames=window.num_frames, epochs=2)
    recipe = replace(
        find_recipe("short", options.net),
        stages=(stage,),
        batch_size=BATCH,
        micro_batch=BATCH,
        settle_clips=0,
        keep="last",
    )
    for count in options.clips:
        with tempfile.TemporaryDirectory() as folder:
            clips = cached_clips(Path(folder), options.net, count)
            train = Part(clips, np.arange(count) % 2)
            before = bare_rate(options.net, count, options.device)
            epochs = fit(
                options.net, train, Part(clips, np.arange(2)), recipe,
                place=Place(device=options.device, threads=options.threads),
            ).epochs  # fmt: skip
            after = bare_rate(options.net, count, options.device)
        bare, loop = (before + after) / 2, epochs[-1].clips_per_s
        print(
            f"{options.net}, {count} clips, {options.device}, {options.threads} threads: loop {loop:.2f} clips/s, "
            f"bare {bare:.2f} ({before:.2f} before, {after:.2f} after): ratio {loop / bare:.2f}; {1 / loop:.3f} s a clip"
        )


if __name__ == "__main__":
    main()
