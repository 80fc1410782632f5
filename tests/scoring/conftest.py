"""One small Ray cluster for the tests that score in this process; each test module that kills things starts its own."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def ray_here():
    """A local cluster of two processors; runs in this process join it."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=400 << 20, log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
