"""How the driver reads the pipeline: beside its own work, and leaving nothing at work behind."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing

import pyarrow as pa
import pytest

from angio_ray.scoring.driver import _in_background, _PipelineBroken


class Pipeline:
    """Blocks of one row each, as long as somebody reads them."""

    def __init__(self, count: int, fault: Exception | None = None) -> None:
        self.count, self.fault = count, fault
        self.closed_by: threading.Thread | None = None

    def blocks(self) -> Generator[pa.Table, None, None]:
        try:
            for number in range(self.count):
                yield pa.table({"number": [number]})
            if self.fault:
                raise self.fault
        finally:
            self.closed_by = threading.current_thread()


def numbers(tables: list[pa.Table | None]) -> list[int]:
    return [table["number"][0].as_py() for table in tables if table is not None]


def test_every_block_arrives_in_order():
    pipeline = Pipeline(50)
    assert numbers(list(_in_background(pipeline.blocks()))) == list(range(50))


def test_a_driver_that_leaves_early_waits_until_the_pipeline_is_closed_in_its_own_thread():
    pipeline = Pipeline(1000)  # more than are ever read ahead
    with closing(_in_background(pipeline.blocks())) as blocks:
        assert numbers([next(blocks)]) in ([], [0])
    assert pipeline.closed_by is not None
    assert pipeline.closed_by is not threading.current_thread()
    assert not pipeline.closed_by.is_alive()


def test_a_pipeline_that_breaks_is_said_after_its_blocks():
    blocks = _in_background(Pipeline(3, OSError("gone")).blocks())
    read: list[pa.Table | None] = []
    with pytest.raises(_PipelineBroken) as broken:
        read.extend(blocks)
    assert isinstance(broken.value.__cause__, OSError)
    assert numbers(read) == [0, 1, 2]
