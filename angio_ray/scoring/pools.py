"""How many decoding workers and scoring actors, and what share of the cluster each takes. Pure arithmetic, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from angio_ray.scoring.config import RunError, ScoreConfig


@dataclass(frozen=True, slots=True)
class Pools:
    """Sizes of the two actor pools and the share of each member."""

    decoders: int
    cpus_per_decoder: float
    scorers: int
    cpus_per_scorer: float
    gpus_per_scorer: float
    threads_per_scorer: int

    @property
    def cpus(self) -> float:
        """Processors that both pools ask for."""
        return self.decoders * self.cpus_per_decoder + self.scorers * self.cpus_per_scorer


def size_pools(cluster: Mapping[str, float], config: ScoreConfig) -> Pools:
    """Fit the pools to `cluster` ({"CPU": n, "GPU": n}); RunError (2) with the sum when the flags ask for more.

    With GPUs, each scoring actor takes its share of one and a processor, and the other processors decode. Without, decoding
    and scoring cost about the same (26-50 ms a clip each), so both pools span all processors at half a share and the
    operating system balances them: a fixed split would leave one pool waiting for the other.
    """
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    if cpus < 1:
        raise RunError("the Ray cluster has no processor to offer", 2)
    if gpus:
        share = config.gpus_per_scorer
        per_gpu = int(1 / share) if share <= 1 else 0
        room = int(gpus) * per_gpu if per_gpu else int(gpus // share)
        if room < 1 or (config.scorers or 0) > room:
            raise RunError(f"{config.scorers or 1} scoring actors of {share:g} GPU each do not fit in {gpus:g} GPUs", 2)
        scorers = config.scorers or room
        cpus_per_scorer = min(1.0, cpus / 2 / scorers)
        left = cpus - scorers * cpus_per_scorer
        decoders = config.decoders or max(1, int(left))
        pools = Pools(
            decoders,
            min(1.0, left / decoders) if config.decoders is None else 1.0,
            scorers,
            cpus_per_scorer,
            share,
            max(1, int(cpus // scorers)),
        )
    else:
        scorers = config.scorers or max(1, int(cpus // 4))
        decoders = config.decoders or int(cpus)
        pools = Pools(
            decoders,
            0.5,
            scorers,
            cpus / 2 / max(scorers, 1) if config.scorers is None else 0.5,
            0.0,
            max(1, min(4, int(cpus // scorers))),
        )
    if pools.cpus > cpus + 1e-6:
        raise RunError(
            f"{pools.decoders} decoders x {pools.cpus_per_decoder:g} + {pools.scorers} scorers x {pools.cpus_per_scorer:g} "
            f"= {pools.cpus:g} processors, but the cluster has {cpus:g}",
            2,
        )
    return pools
