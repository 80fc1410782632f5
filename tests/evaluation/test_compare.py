from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from angio_ray.evaluation.compare import Comparison, compare, compare_rows, compare_runs, draw, read_run
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.run_log import RunLog
from angio_ray.tables.schema import arrow_schema

KEY = "0123456789abcdef"


def scored(number: int, probability: float, **changes: Any) -> dict[str, Any]:
    threshold = changes.pop("threshold", 0.5)
    return {
        "object_id": f"object{number:02}",
        "clip_id": f"clip{number:02}",
        "status": "scored",
        "reason": None,
        "backend": "torch",
        "precision": "float32",
        "model_domain": "synthetic",
        "bundles": [("quality", "d" * 64)],
        "quality_status": "scored",
        "quality_probability": probability,
        "quality_threshold": threshold,
        "quality_satisfactory": probability < threshold,
    } | changes


def rejected(number: int, reason: str, **changes: Any) -> dict[str, Any]:
    return {
        "object_id": f"object{number:02}",
        "clip_id": None if reason in ("read_error", "not_dicom") else f"clip{number:02}",
        "status": "rejected",
        "reason": reason,
    } | changes


def scores(run: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    facts = {"run_id": run, "scored_at": datetime.now(UTC), "attempts": 1}
    return pa.Table.from_pylist([facts | row for row in rows], arrow_schema("scores"))


@pytest.fixture
def root(tmp_path: Path) -> TableRoot:
    made = TableRoot(Storage(str(tmp_path / "tables")))
    made.ensure(KEY)
    return made


def write(root: TableRoot, run: str, rows: Sequence[dict[str, Any]], *, finish: bool = True) -> None:
    log = RunLog.open(root, run, {"run": run}, interval_s=1)
    ids = [row["object_id"] for row in rows]
    log.write_manifest([pa.table({"object_id": ids, "uri": ids, "size_bytes": [1] * len(ids), "etag": ids})])
    if rows:
        log.commit(scores(run, rows))
    if finish:
        log.finish({})
    else:
        log.stop()


def compared(root: TableRoot, a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> Comparison:
    write(root, "a", a)
    write(root, "b", b)
    return compare_runs(root, "a", "b")


def test_clips_are_counted_as_in_both_in_one_only_and_scored_in_both(root: TableRoot) -> None:
    found = compared(
        root,
        [scored(1, 0.1), scored(2, 0.2), rejected(3, "truncated"), scored(4, 0.4)],
        [scored(1, 0.1), rejected(2, "decode_timeout"), scored(3, 0.3), scored(5, 0.5), scored(6, 0.6)],
    )
    assert (found.num_both, found.num_only_a, found.num_only_b, found.num_scored_both) == (3, 1, 2, 1)
    assert found.outcomes == {
        ("scored", "scored"): 1,
        ("scored", "rejected: decode_timeout"): 1,
        ("rejected: truncated", "scored"): 1,
    }


def test_clips_join_by_clip_id_where_the_runs_read_them_from_different_places(root: TableRoot) -> None:
    moved = [scored(n, 0.1 * n, object_id=f"elsewhere{n}") for n in (1, 2, 3)]
    found = compared(root, [scored(n, 0.1 * n) for n in (1, 2, 3)], moved)
    assert (found.num_both, found.num_only_a, found.num_only_b) == (3, 0, 0)


def test_an_object_that_one_run_could_not_read_joins_by_its_object_id(root: TableRoot) -> None:
    found = compared(
        root,
        [rejected(1, "read_error"), scored(2, 0.2), rejected(3, "not_dicom")],
        [scored(1, 0.1), rejected(2, "read_error"), rejected(3, "not_dicom")],
    )
    assert (found.num_both, found.num_only_a, found.num_only_b) == (3, 0, 0)
    assert found.outcomes[("rejected: read_error", "scored")] == 1
    assert found.outcomes[("scored", "rejected: read_error")] == 1
    assert found.outcomes[("rejected: not_dicom", "rejected: not_dicom")] == 1


def test_a_clip_under_several_uris_counts_once_by_the_row_that_latest_scores_shows(root: TableRoot) -> None:
    copies = [
        rejected(0, "decode_timeout", clip_id="clip01"),
        scored(2, 0.2, clip_id="clip01"),
        scored(1, 0.1),
    ]
    found = compared(root, copies, [scored(1, 0.4)])
    assert (found.a.num_objects, found.a.num_clips, found.num_both, found.num_only_a) == (3, 1, 1, 0)
    assert found.largest[0].probability_a == pytest.approx(0.1)


def test_flips_are_counted_each_way_by_each_run_s_own_threshold(root: TableRoot) -> None:
    a = [scored(1, 0.4), scored(2, 0.6, status="gated"), scored(3, 0.6), scored(4, 0.45), rejected(5, "truncated")]
    b = [
        scored(1, 0.55, threshold=0.44),  # satisfactory -> not
        scored(2, 0.43, threshold=0.44),  # not -> satisfactory
        scored(3, 0.6, threshold=0.44),
        scored(4, 0.45, threshold=0.44),  # the same score under another threshold
        scored(5, 0.1, threshold=0.44),
    ]
    found = compared(root, a, b)
    assert (found.flips_to_positive, found.flips_to_negative, found.num_verdicts_both) == (2, 1, 4)
    assert found.a.thresholds == (0.5,)
    assert found.b.thresholds == (pytest.approx(0.44),)
    assert {c.clip_id for c in found.largest if c.flipped} == {"clip01", "clip02", "clip04"}


def test_differences_are_those_of_numpy_and_scipy(root: TableRoot) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 1, 50).astype(np.float32)
    b = np.clip(a + rng.normal(0.02, 0.1, 50), 0, 1).astype(np.float32)
    found = compared(root, [scored(n, float(p)) for n, p in enumerate(a)], [scored(n, float(p)) for n, p in enumerate(b)])
    difference = b.astype(float) - a.astype(float)
    d = found.differences
    assert d is not None
    assert d.mean == pytest.approx(difference.mean())
    assert d.mean_absolute == pytest.approx(np.abs(difference).mean())
    assert d.max_absolute == pytest.approx(np.abs(difference).max())
    assert d.quantiles[0.95] == pytest.approx(np.quantile(difference, 0.95))
    assert d.pearson == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-6)
    assert d.spearman == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-6)
    largest = np.argsort(-np.abs(difference))[:10]
    assert [c.clip_id for c in found.largest] == [f"clip{n:02}" for n in largest]
    assert [c.difference for c in found.largest] == pytest.approx(list(difference[largest]))


def test_one_probability_for_all_clips_has_no_correlation(root: TableRoot) -> None:
    found = compared(root, [scored(n, 0.5) for n in range(5)], [scored(n, 0.1 * n) for n in range(5)])
    assert found.differences is not None
    assert (found.differences.pearson, found.differences.spearman) == (None, None)


def test_no_clip_scored_in_both_is_still_a_report(root: TableRoot, tmp_path: Path, capsys: Any) -> None:
    found = compared(root, [rejected(1, "truncated")], [scored(2, 0.2)])
    assert (found.num_both, found.differences, found.largest) == (0, None, ())
    with pytest.raises(ValueError, match="no clip is scored in both"):
        draw(found, tmp_path / "x.png")
    assert compare(root, "a", "b", plot=tmp_path / "x.png") == 0
    assert "no plot" in capsys.readouterr().out
    assert not (tmp_path / "x.png").exists()


def test_a_run_without_rows_compares_as_empty(root: TableRoot) -> None:
    write(root, "empty", [], finish=False)
    write(root, "a", [scored(1, 0.1)])
    found = compare_runs(root, "a", "empty")
    assert (found.num_both, found.num_only_a, found.num_only_b, found.b.finished) == (0, 1, 0, False)


def test_tasks_without_a_verdict_have_no_flips(root: TableRoot) -> None:
    without = {"bundles": [("calcium", "c" * 64)], "quality_status": None, "quality_probability": None}
    without |= {"quality_threshold": None, "quality_satisfactory": None, "calcium_status": "scored"}
    for run, shift in (("a", 0.0), ("b", 0.1)):
        write(root, run, [scored(n, 0.0, **without, calcium_probability=0.1 * n + shift) for n in range(5)])
    found = compare_runs(root, "a", "b", task="calcium")
    assert (found.num_scored_both, found.flips_to_positive, found.a.thresholds) == (5, None, ())
    assert found.differences is not None
    assert found.differences.mean == pytest.approx(0.1)
    assert found.a.bundle == "c" * 64
    with pytest.raises(TablesError, match="run a was not asked for quality"):
        compare_runs(root, "a", "b")


def test_a_task_with_a_threshold_has_the_verdict_that_it_gives(
    root: TableRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    without = {"bundles": [("artery", "a" * 64)], "quality_status": None, "quality_probability": None}
    without |= {"quality_threshold": None, "quality_satisfactory": None, "artery_status": "scored", "artery_threshold": 0.5}
    for run, shift in (("a", 0.0), ("b", 0.2)):
        write(root, run, [scored(n, 0.0, **without, artery_probability=0.2 * n + shift) for n in range(4)])
    found = compare_runs(root, "a", "b", task="artery")
    assert (found.flips_to_positive, found.flips_to_negative, found.num_verdicts_both) == (1, 0, 4)
    compare(root, "a", "b", task="artery")
    assert "1 LCA in A but not in B, 0 in B but not in A" in " ".join(capsys.readouterr().out.split())


def test_rows_compare_without_tables(root: TableRoot) -> None:
    write(root, "a", [scored(1, 0.1), scored(2, 0.9)])
    rows = read_run(root, "a")
    found = compare_rows(rows, rows, run_a="x", run_b="x")
    assert found.differences is not None
    assert found.differences.max_absolute == 0
    assert found.pairs.to_pylist()[1] == {
        "clip_id": "clip02",
        "probability_a": pytest.approx(0.9),
        "probability_b": pytest.approx(0.9),
        "positive_a": True,
        "positive_b": True,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "other"), "there is no run other in these tables; there is a"),
        (("a", "a", "nonsense"), "no task 'nonsense' to compare: one of quality, artery, oblique, stenosis, calcium"),
    ],
)
def test_what_is_not_there_is_one_line(root: TableRoot, arguments: tuple[str, ...], message: str) -> None:
    write(root, "a", [scored(1, 0.1)])
    run_a, run_b, *task = arguments
    with pytest.raises(TablesError) as caught:
        compare(root, run_a, run_b, task=task[0] if task else "quality")
    assert str(caught.value) == message


def test_the_report_says_it_all_and_the_plot_is_a_png(root: TableRoot, tmp_path: Path, capsys: Any) -> None:
    write(root, "a", [scored(1, 0.4), scored(2, 0.6), rejected(3, "truncated")])
    write(root, "b", [scored(1, 0.6), scored(2, 0.6, bundles=[("quality", "e" * 64)]), scored(3, 0.2)])
    plot = tmp_path / "plot.png"
    assert compare(root, "a", "b", plot=plot) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "clips in both: 3 (scored in both: 2); only in A: 0; only in B: 0",
        "rejected: truncated scored 1 changed",
        "Flips of the verdict: 1 of 2 (50.0%): 1 satisfactory in A but not in B, 0 in B but not in A",
        "mean +0.10000",
        "clip01 0.4000 0.6000 +0.2000 flip",
        "plot: ",
    ):
        assert text in out
    header = plot.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", header[16:24])) > 500
    with pytest.raises(TablesError, match="cannot be written"):
        compare(root, "a", "b", plot=tmp_path / "absent" / "plot.png")
