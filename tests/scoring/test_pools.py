"""Pool sizes fit the cluster, or the sum is named."""

import dataclasses

import pytest

from angio_ray.scoring.config import ConfigError, RunError, ScoreConfig
from angio_ray.scoring.pools import size_pools

CONFIG = ScoreConfig("clips", tables="tables", run="r")


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 7, 16, 64, 250])
@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_default_pools_fit_any_cluster(cpus, gpus):
    pools = size_pools([{"CPU": cpus, "GPU": gpus}], CONFIG)
    assert pools.decoders >= 1
    assert pools.scorers >= 1
    assert pools.cpus <= cpus + 1e-6
    assert pools.scorers * pools.gpus_per_scorer <= gpus
    assert (pools.gpus_per_scorer > 0) == (gpus > 0)


def test_every_gpu_has_its_scorer_and_fractions_share_one():
    assert size_pools([{"CPU": 16, "GPU": 2}], CONFIG).scorers == 2
    half = size_pools([{"CPU": 16, "GPU": 2}], dataclasses.replace(CONFIG, gpus_per_scorer=0.5))
    assert (half.scorers, half.gpus_per_scorer) == (4, 0.5)
    double = size_pools([{"CPU": 16, "GPU": 5}], dataclasses.replace(CONFIG, gpus_per_scorer=2))
    assert (double.scorers, double.gpus_per_scorer) == (2, 2)


def test_actors_fit_the_nodes_and_not_only_their_sum():
    """A pool that fills every node first must leave room for each actor of the other."""
    small = [{"CPU": 2.0}] * 4
    pools = size_pools(small, CONFIG)
    assert pools.cpus_per_scorer <= 0.5  # two slots of every node's two processors, wherever the decoders went
    assert pools.decoders + pools.scorers <= sum(2 * node["CPU"] for node in small)
    gpu = size_pools([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 32.0}], CONFIG)
    assert (gpu.scorers, gpu.cpus_per_scorer) == (2, 0.0)  # decoders may take every processor of the GPU's node
    with pytest.raises(RunError, match="1 scoring actors of 2 GPU each do not fit in 3 GPUs"):
        size_pools([{"CPU": 8.0, "GPU": 1.0}] * 3, dataclasses.replace(CONFIG, gpus_per_scorer=2))


def test_too_many_actors_are_refused_with_the_sum():
    with pytest.raises(RunError, match=r"8 decoders x 0.5 .* = 4.5 processors, but the cluster has 2") as refused:
        size_pools([{"CPU": 2}], dataclasses.replace(CONFIG, decoders=8))
    assert refused.value.exit_code == 2
    with pytest.raises(RunError, match="3 scoring actors of 1 GPU each do not fit in 2 GPUs"):
        size_pools([{"CPU": 8, "GPU": 2}], dataclasses.replace(CONFIG, scorers=3))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("run", "a b", "--run"),
        ("models", (), "names no task"),
        ("retry", ("no_such",), "no such reason"),
        ("assume_fps", 0.0, "--assume-fps"),
        ("batch_size", 0, "--batch-size"),
        ("gpus_per_scorer", 1.5, "--gpus-per-scorer"),
        ("commit_interval_s", 0.0, "--commit-interval-s"),
    ],
)
def test_arguments_that_cannot_be_are_named(field, value, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CONFIG, **{field: value})
