"""A scoring driver without models, as a process to kill: takes a run, commits its manifest's pending objects, finishes.

    python run_driver.py TABLES RUN [--objects N] [--batch N] [--pause S] [--interval S] [--die WHERE] [--at N]

Prints one line per step, so that a test can act between them. `--die` kills the process by SIGKILL: `before` or
`after` commit number --at, `file` as soon as a data file of that commit appears, `log` as soon as its log entry does.
Exit code 0: finished, 4: another driver holds the run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot
from angio_ray.tables.run_log import RunHeld, RunLog
from angio_ray.tables.schema import arrow_schema, conform

CONFIG = {"models": ["quality"], "quality": {"threshold": 0.5, "digest": "d1"}}
FINGERPRINT = "0123456789abcdef"


def say(text: str) -> None:
    print(text, flush=True)


def object_ids(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


def score_rows(run_id: str, ids: list[str], **columns: Any) -> pa.Table:
    """Rows as a scorer would give them, the same for the same object whoever makes them."""
    numbers = [int(object_id, 16) for object_id in ids]
    rows = [
        {
            "run_id": run_id,
            "object_id": object_id,
            "clip_id": f"c{number}",
            "patient_id": f"p{number // 8}",
            "study_id": f"s{number // 4}",
            "status": "scored",
            "scored_at": datetime.now(UTC),
            "attempts": 1,
            "sampled_frames": [number, number + 2],
            "bundles": [("quality", "d1")],
            "quality_status": "scored",
            "quality_probability": (number % 100) / 100,
            "quality_threshold": 0.5,
            "quality_satisfactory": number % 100 < 50,
        }
        | columns
        for object_id, number in zip(ids, numbers, strict=True)
    ]
    return conform("scores", pa.Table.from_pylist(rows, arrow_schema("scores")))


def manifest_rows(ids: list[str]) -> pa.Table:
    return pa.table(
        {"object_id": ids, "uri": [f"/in/{i}" for i in ids], "size_bytes": [int(i, 16) for i in ids], "etag": ids}
    )


def kill_when(folder: Path, pattern: str, known: set[str]) -> None:
    while not {path.name for path in folder.glob(pattern)} - known:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("tables")
    parser.add_argument("run")
    parser.add_argument("--objects", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--wait-for-line", action="store_true", help="before each commit, wait for a line on stdin")
    parser.add_argument("--die", choices=("before", "after", "file", "log"))
    parser.add_argument("--at", type=int, default=2)
    arguments = parser.parse_args()

    root = TableRoot(Storage(arguments.tables))
    root.ensure(FINGERPRINT)
    scores = Path(arguments.tables) / "scores"
    try:
        log = RunLog.open(root, arguments.run, CONFIG, interval_s=arguments.interval)
        say("claimed")
        if not log.has_manifest:
            log.write_manifest([manifest_rows(object_ids(arguments.objects))])
        for number, table in enumerate(log.pending(arguments.batch), 1):
            rows = score_rows(arguments.run, table.column("object_id").to_pylist())
            if arguments.wait_for_line:
                say("ready")
                sys.stdin.readline()
            if number == arguments.at:
                if arguments.die == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                place = {"file": (scores, "*.parquet"), "log": (scores / "_delta_log", "*.json")}.get(arguments.die)
                if place:
                    folder, pattern = place
                    known = {path.name for path in folder.glob(pattern)}
                    threading.Thread(target=kill_when, args=(folder, pattern, known), daemon=True).start()
            log.commit(rows)
            if number == arguments.at and arguments.die:
                # `after`; for `file` and `log` the other thread kills within an instant, and here at the latest
                os.kill(os.getpid(), signal.SIGKILL)
            say(f"committed {number}")
        log.finish({"scored": arguments.objects})
    except RunHeld as error:
        say(f"held: {error}")
        return 4
    say("finished")
    return 0


if __name__ == "__main__":
    sys.exit(main())
