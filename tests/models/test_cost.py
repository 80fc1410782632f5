"""Parameters and GMAC are those of the paper's table (spec section 1)."""

from __future__ import annotations

import pytest

from angio_ray.models import NETS
from angio_ray.models.backends import BackendChoice, for_net
from angio_ray.models.cost import cost_table, count, render

TABLE = {  # as the paper prints them; ResNet-152 3D counts 136.12 where it prints 136.11
    "r18_2d": (11.18, 3.41),
    "r152_2d": (58.15, 21.46),
    "r18_3d": (33.21, 59.79),  # printed as 33.2
    "r152_3d": (117.41, 136.12),
    "x3d_s": (2.98, 2.56),
}


@pytest.mark.parametrize("net", TABLE)
def test_parameters_and_gmac_are_the_papers(net: str) -> None:
    params, macs = count(NETS[net])
    assert (round(params / 1e6, 2), round(macs / 1e9, 2)) == TABLE[net]


def test_the_table_has_a_row_a_net_and_times_only_when_asked_for() -> None:
    rows = cost_table()
    assert [row.net for row in rows] == list(NETS)
    assert all(row.ms_per_clip is None and row.frames_per_s is None for row in rows)
    assert [row.paper_gmac for row in rows if row.net in TABLE] == [3.41, 21.46, 59.79, 136.11, 2.56]
    assert {row.paper_gmac for row in rows if row.net not in TABLE} == {None}, "nets of another paper"
    (timed,) = cost_table(["x3d_s"], clips=1, choice=BackendChoice(channels_last=True), num_threads=1)
    assert timed.backend == "torch float32 channels-last, 1 threads"
    assert timed.ms_per_clip is not None
    assert timed.ms_per_clip > 0
    assert timed.frames_per_s == pytest.approx(16_000 / timed.ms_per_clip)


def test_passes_that_depend_on_what_is_found_are_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    params, macs = count(NETS["fcos"])
    assert (round(params / 1e6, 1), macs) == (19.1, None)
    render(cost_table(["fcos"]))
    assert "- | -" in capsys.readouterr().out
    assert for_net(BackendChoice(backend="openvino", precision="bfloat16"), "fcos") == BackendChoice()


def test_the_printed_table_shows_ours_beside_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    render(cost_table(["r152_3d"]))
    shown = capsys.readouterr().out
    assert "136.12 | 136.11" in shown
    assert "- | 66.9" in shown


def test_an_unknown_net_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="unknown net resnet9000; there is r18_2d"):
        cost_table(["resnet9000"])
