"""Who was being worked on when a worker died: bounds what one deadly clip can cost.

Ray restarts a dead actor and gives it the same batch again, for ever. Each stage therefore writes down what it begins and
what it has ended in one small actor that outlives it. A batch found begun and not ended is run clip by clip; a clip that
was alone when its worker died, and had been there at an earlier death, is given up, and no neighbour with it.
Knows nothing of clips or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")
DEATHS_ALLOWED = 2


class _Ledger:
    def __init__(self) -> None:
        self.open: set[tuple[str, str]] = set()
        self.deaths: Counter[tuple[str, str]] = Counter()

    def begin(self, stage: str, ids: Sequence[str]) -> list[int]:
        """Open these; return how many worker deaths each has been part of."""
        entries = [(stage, i) for i in ids]
        self.deaths.update(e for e in entries if e in self.open)
        self.open.update(entries)
        return [self.deaths[e] for e in entries]

    def end(self, stage: str, ids: Sequence[str]) -> None:
        """These came through, or were given up."""
        self.open.difference_update((stage, i) for i in ids)

    def forgive(self) -> None:
        """Before another pass: each clip may be there at one more death."""
        self.open.clear()
        for entry in self.deaths:
            self.deaths[entry] = min(self.deaths[entry], DEATHS_ALLOWED - 1)

    def total_deaths(self) -> int:
        """Sum over all clips, for the log."""
        return sum(self.deaths.values())


def start_ledger() -> Any:
    """Start the ledger's actor (no CPU of its own) on the driver's node, so that it is lost only with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=0)(_Ledger)
    return actor.options(scheduling_strategy=here).remote()


def run_guarded(
    ledger: Any, stage: str, ids: Sequence[str], run: Callable[[Sequence[int]], list[T]], give_up: Callable[[int], T]
) -> list[T]:
    """`run(positions)` for a batch, surviving clips that kill the worker. One result per id, in order.

    Parameters
    ----------
    run: works on the given positions of `ids` and returns a result for each.
    give_up: makes the result of a position that killed its worker `DEATHS_ALLOWED` times.
    """
    deaths: list[int] = ray.get(ledger.begin.remote(stage, list(ids)))
    if not any(deaths):
        return _noted(ledger, stage, ids, lambda: run(range(len(ids))))
    ledger.end.remote(stage, list(ids))
    results = []
    for position, (key, count) in enumerate(zip(ids, deaths, strict=True)):
        if count >= DEATHS_ALLOWED:
            results.append(give_up(position))
            continue
        ray.get(ledger.begin.remote(stage, [key]))
        results.extend(_noted(ledger, stage, [key], partial(run, [position])))
    return results


def _noted(ledger: Any, stage: str, ids: Sequence[str], work: Callable[[], list[T]]) -> list[T]:
    """Do it and note its end: by an exception too, which is no death."""
    try:
        return work()
    finally:
        ledger.end.remote(stage, list(ids))
