"""How many decoding workers and scoring actors, and what share of the cluster each takes. Pure arithmetic, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def size_pools(nodes: Sequence[Mapping[str, float]], config: ScoreConfig) -> Pools:
    """Fit the pools to the cluster's nodes ({"CPU": n, "GPU": n} each); RunError (2) with the sum when the flags ask for more.

    Ray places an actor where one node has its whole share free, and the other pool may have filled every node by then. So
    with GPUs the GPU alone places a scoring actor (a processor each is left to them by asking for fewer decoders). Without,
    every actor asks for half a processor, so any placement fits; decoding and scoring cost about the same there, both
    pools span all processors and the operating system balances them: a fixed split would leave one waiting for the other.
    """
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if cpus < 1:
        raise RunError("the Ray cluster has no processor to offer", 2)
    if gpus:
        share = config.gpus_per_scorer
        room = sum(_actors_with_gpu(node.get("GPU", 0.0), share) for node in nodes)
        if room < max(1, config.scorers or 0):
            raise RunError(f"{config.scorers or 1} scoring actors of {share:g} GPU each do not fit in {gpus:g} GPUs", 2)
        scorers = config.scorers or room
        decoders = config.decoders or max(1, int(cpus) - scorers)
        pools = Pools(decoders, 1.0, scorers, 0.0, share, max(1, int(cpus // scorers)))
    else:
        scorers = config.scorers or max(1, int(cpus // 4))
        decoders = config.decoders or int(cpus)
        pools = Pools(decoders, 0.5, scorers, 0.5, 0.0, max(1, min(4, int(cpus // scorers))))
    if pools.cpus > cpus:
        raise RunError(
            f"{pools.decoders} decoders x {pools.cpus_per_decoder:g} + {pools.scorers} scorers x {pools.cpus_per_scorer:g} "
            f"= {pools.cpus:g} processors, but the cluster has {cpus:g}",
            2,
        )
    return pools


def _actors_with_gpu(gpus: float, share: float) -> int:
    """How many actors with this share of a GPU, or this many whole GPUs, fit on one node."""
    return int(gpus) * int(1 / share) if share <= 1 else int(gpus // share)
