"""What one deadly clip can cost, with real Ray actors that really die."""

import os
import signal
import sys

import pytest

from angio_ray.scoring.crash_ledger import run_guarded, start_ledger


class Worker:
    """A stage whose items named `kill...` end its process."""

    def __init__(self, ledger):
        self.ledger = ledger

    def work(self, ids):
        def run(positions):
            for p in positions:
                if ids[p].startswith("kill"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if ids[p].startswith("raise"):
                    raise RuntimeError("the machine's fault")
            return [f"{ids[p]} done in {len(positions)}" for p in positions]

        return run_guarded(self.ledger, "stage", ids, run, lambda p: f"{ids[p]} given up")


@pytest.fixture
def worker(ray_here):
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not import tests
    ledger = start_ledger()
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=8)(Worker).remote(ledger), ledger


def test_a_quiet_batch_runs_as_one(worker):
    import ray

    actor, ledger = worker
    assert ray.get(actor.work.remote(["a", "b"])) == ["a done in 2", "b done in 2"]
    assert ray.get(ledger.total_deaths.remote()) == 0


def test_a_deadly_clip_is_given_up_and_its_neighbours_come_through(worker):
    import ray

    actor, _ledger = worker
    results = ray.get(actor.work.remote(["a", "kill", "b"]), timeout=120)
    assert results == ["a done in 1", "kill given up", "b done in 1"]


def test_two_deadly_clips_in_a_batch(worker):
    import ray

    actor, _ = worker
    results = ray.get(actor.work.remote(["kill 1", "a", "kill 2"]), timeout=120)
    assert results == ["kill 1 given up", "a done in 1", "kill 2 given up"]


def test_forgiveness_allows_one_more_death_and_no_endless_loop(worker):
    import ray

    actor, ledger = worker
    assert ray.get(actor.work.remote(["kill"]), timeout=120) == ["kill given up"]
    before = ray.get(ledger.total_deaths.remote())
    ray.get(ledger.forgive.remote())
    assert ray.get(actor.work.remote(["kill"]), timeout=120) == ["kill given up"]
    assert ray.get(ledger.total_deaths.remote()) <= before


def test_an_exception_is_no_death(worker):
    import ray

    actor, ledger = worker
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the machine's fault"):
            ray.get(actor.work.remote(["a", "raise"]), timeout=120)
    assert ray.get(ledger.total_deaths.remote()) == 0
    assert ray.get(actor.work.remote(["a"])) == ["a done in 1"]
