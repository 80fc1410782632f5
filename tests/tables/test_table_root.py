from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from angio_ray.storage import Storage
from angio_ray.tables.root import KeyMismatch, TableRoot, TablesError
from angio_ray.tables.schema import SCORING, TABLES
from tests.tables.run_driver import FINGERPRINT, object_ids, score_rows


def test_ensure_makes_all_tables_once(root: TableRoot) -> None:
    root.ensure(FINGERPRINT)
    assert [root.open(table).version() for table in SCORING] == [0, 0, 0, 0]
    assert [root.exists(table) for table in TABLES if table not in SCORING] == [False] * 4, "before the first training"
    root.ensure(FINGERPRINT, TABLES)
    assert [root.open(table).version() for table in TABLES] == [0] * 8
    assert root.open("scores").metadata().description.startswith("One row per (run, object)")


def test_another_key_is_refused_and_both_are_named(root: TableRoot) -> None:
    with pytest.raises(KeyMismatch, match=f"{FINGERPRINT}.*ffff"):
        root.ensure("ffff")


def test_identified_tables_go_to_their_own_root(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "identified").mkdir()
    root = TableRoot(Storage(str(tmp_path / "results")), Storage(str(tmp_path / "identified")))
    root.ensure(FINGERPRINT)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["runs", "scores"]
    assert sorted(path.name for path in (tmp_path / "identified").iterdir()) == ["clips", "manifests"]


def test_of_processes_with_different_keys_one_makes_the_tables(tmp_path: Path) -> None:
    # many rounds: a creation that is not atomic lost about every third round, and one round could pass by luck
    program = """
import sys
from angio_ray.storage import Storage
from angio_ray.tables.root import KeyMismatch, TableRoot
print("ready", flush=True)
for line in sys.stdin:
    try:
        TableRoot(Storage(line.strip())).ensure(sys.argv[1])
    except KeyMismatch:
        print("refused", flush=True)
    else:
        print("done", flush=True)
"""
    keys = ["a", "b", "a"]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for key in keys
    ]

    def answers() -> list[str]:
        return [process.stdout.readline().strip() for process in processes if process.stdout is not None]

    try:
        assert answers() == ["ready"] * 3
        for number in range(30):
            tables = tmp_path / str(number)
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{tables}\n")
                process.stdin.flush()
            told = answers()
            handles = [DeltaTable(str(tables / table)) for table in SCORING]
            made_by = {handle.metadata().configuration["angio_ray.key_fingerprint"] for handle in handles}
            assert len(made_by) == 1
            assert [handle.version() for handle in handles] == [0] * len(SCORING)
            assert told == ["done" if {key} == made_by else "refused" for key in keys]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "done"},
        {"reason": "truncated"},
        {"status": "rejected"},
        {"status": "rejected", "reason": "because"},
        {"quality_probability": 1.5},
    ],
    ids=lambda columns: "-".join(columns),
)
def test_constraints_refuse_any_writer(root: TableRoot, columns: dict[str, object]) -> None:
    rows = score_rows("r", object_ids(1), **columns)
    with pytest.raises(DeltaError):
        write_deltalake(root.open("scores"), rows, mode="append")


def test_tables_of_an_older_release_ask_for_the_upgrade(tables: Path) -> None:
    DeltaTable.create(
        str(tables / "scores"),
        score_rows("r", []).select(["run_id", "object_id"]).schema,
        configuration={"angio_ray.key_fingerprint": FINGERPRINT},
        raise_if_key_not_exists=False,
    )
    with pytest.raises(TablesError, match=r"angio-ray tables upgrade"):
        TableRoot(Storage(str(tables))).ensure(FINGERPRINT)
