"""What each net costs: parameters, GMAC and time a clip on this machine, beside the paper's figures.

GMAC are counted by ptflops 0.7.5 with `backend="pytorch"`, the way that gives the paper's table; the aten backend does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from angio_ray.models import NETS, NetSpec
from angio_ray.models.backends import BackendChoice, for_net, likely_fastest, make_runner, probe_clips
from angio_ray.models.classifier import ClipClassifier, Ensemble


@dataclass(frozen=True, kw_only=True, slots=True)
class CostRow:
    """One net: counted, measured here (None when not asked for), and as the paper states (None where it does not)."""

    net: str
    params_m: float
    gmac: float | None
    """None of nets whose passes depend on what they find."""
    ms_per_clip: float | None
    frames_per_s: float | None
    """Frames that the net sees (16, 4 or 200 a clip), by the time above."""
    backend: str | None
    """What ran it, when it was timed."""
    paper_params_m: float | None = None
    paper_gmac: float | None = None
    paper_ms_per_clip: float | None = None
    paper_frames_per_s: float | None = None


def count(spec: NetSpec) -> tuple[int, float | None]:
    """Parameters and multiply-accumulates of one forward pass at `spec.cost_input`, None where passes differ.

    A clip of a 2D net costs one such pass for each frame.
    """
    import torch
    from ptflops import get_model_complexity_info

    with torch.device("meta"):  # shapes suffice: no weights are made, no pass is computed
        net = spec.build().eval()
    if spec.varying:
        return sum(p.numel() for p in net.parameters()), None
    macs, params = get_model_complexity_info(
        net, spec.cost_input, as_strings=False, print_per_layer_stat=False, verbose=False, backend="pytorch"
    )
    if macs is None or params is None:
        raise RuntimeError(f"ptflops could not count {spec.name}")
    return int(params), float(macs)


def cost_table(
    names: Sequence[str] | None = None,
    *,
    clips: int = 0,
    choice: BackendChoice | None = None,
    num_threads: int | None = None,
) -> list[CostRow]:
    """One row a net (default: all). ValueError for an unknown name.

    With `clips` above nought each net also runs on a batch of so many made-up clips at its own window, with initial weights:
    once to warm up, then up to three times within about two seconds; the best pass counts. It runs on `choice` (default: the
    likely fastest of this machine, on all its processors).
    """
    if unknown := [name for name in names or () if name not in NETS]:
        raise ValueError(f"unknown net {', '.join(unknown)}; there is {', '.join(NETS)}")
    choice = choice or likely_fastest()
    threads = num_threads or len(os.sched_getaffinity(0))
    rows = []
    for name in names or NETS:
        spec = NETS[name]
        params, macs = count(spec)
        seconds = _seconds_per_clip(spec, for_net(choice, name), threads, clips) if clips else None
        rows.append(CostRow(
            net=name, params_m=params / 1e6, gmac=None if macs is None else macs / 1e9,
            ms_per_clip=None if seconds is None else seconds * 1000,
            frames_per_s=None if seconds is None else spec.window.num_frames / seconds,
            backend=None if seconds is None else f"{choice}, {threads} threads",
            **{f"paper_{name}": value for name, value in asdict(spec.paper).items()} if spec.paper else {},
        ))
    return rows


def render(rows: Sequence[CostRow]) -> None:
    """Print the rows as a table, the paper's figures beside ours."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Nets: cost here | the quality paper's (times on a V100; what they include is not stated)")
    table.add_column("net")
    for column in ("params M", "GMAC", "ms/clip", "frames/s"):
        table.add_column(f"{column}\nhere | paper", justify="right")
    for row in rows:
        table.add_row(
            row.net, f"{row.params_m:.2f} | {_number(row.paper_params_m)}", f"{_number(row.gmac, 2)} | {_number(row.paper_gmac)}",
            f"{_number(row.ms_per_clip, 1)} | {_number(row.paper_ms_per_clip)}",
            f"{_number(row.frames_per_s, 1)} | {_number(row.paper_frames_per_s)}",
        )
    console = Console()
    console.print(table)
    if backend := next((row.backend for row in rows if row.backend), None):
        console.print(f"Here: {backend}. GMAC of r18_2d and r152_2d are one frame's (a clip has four), so are those of nets for "
                      "stenosis (eight), those of nets for calcium one patch's (a pair has five), else the clip's.")


def _number(value: float | None, places: int | None = None) -> str:
    return "-" if value is None else f"{value:g}" if places is None else f"{value:.{places}f}"


def _seconds_per_clip(spec: NetSpec, choice: BackendChoice, num_threads: int, batch_size: int) -> float:
    batch_size = 1 if spec.per_frame else batch_size  # 200 frames are a batch
    run = make_runner(Ensemble([ClipClassifier(spec)]), spec.window, choice, num_threads=num_threads)
    clips = probe_clips(spec.window, batch_size)
    run(clips)
    times: list[float] = []
    while not times or (len(times) < 3 and sum(times) < 2.0):
        started = time.perf_counter()
        run(clips)
        times.append(time.perf_counter() - started)
    return min(times) / batch_size
