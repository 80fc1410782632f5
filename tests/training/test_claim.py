"""One driver to an experiment: the second stops, a dead one gives way, one that was replaced notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from angio_ray.storage import Storage
from angio_ray.tables.fence import RunHeld
from angio_ray.tables.run_log import this_host
from angio_ray.training import claim
from angio_ray.training.claim import Claim


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_BEAT_S", 0.05)
    monkeypatch.setattr(claim, "_SETTLE_S", 0.2)
    monkeypatch.setattr(claim, "_SILENT_S", 2.5)


def place(folder: Path) -> Storage:
    """Never empty, as the place of a training: an empty folder is what a lost mount looks like."""
    (folder / "ABOUT.txt").touch()
    return Storage(str(folder))


def left_by(out: Storage, **facts: Any) -> None:
    mine = {
        "event": "claimed",
        "driver": "d",
        "host": this_host(),
        "pid": os.getpid(),
        "at": "2020-01-01T00:00:00+00:00",
    }
    out.write_bytes(out.child("e", "claim.json"), json.dumps(mine | {"beat": 0} | facts).encode())


def test_the_second_driver_stops_and_the_first_leaves_nothing_behind(tmp_path: Path) -> None:
    out = place(tmp_path)
    with Claim(out, "e") as first:
        with pytest.raises(RunHeld, match="another driver holds experiment e"), Claim(out, "e"):
            raise AssertionError
        with Claim(out, "other"):
            pass
        first.check()
    assert not (tmp_path / "e" / "claim.json").exists()
    with Claim(out, "e"):
        pass


def test_a_dead_driver_gives_way(tmp_path: Path) -> None:
    out = place(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for facts in ({"pid": ended.pid}, {"pid": os.getpid()}, {"host": "another:1"}):  # the second: a pid used again
        left_by(out, **facts)
        with Claim(out, "e") as held:
            held.check()


def test_a_living_driver_on_another_machine_is_seen_by_its_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "_SILENT_S", 60.0)  # it is a process that has to start first
    out = place(tmp_path)
    left_by(out, host="another:1")
    script = (
        "import json, sys, time\n"
        "for beat in range(1, 1000):\n"
        "    time.sleep(0.1)\n"
        "    text = open(sys.argv[1]).read()\n"
        "    facts = json.loads(text) if text else {}\n"
        "    open(sys.argv[1] + '.new', 'w').write(json.dumps({**facts, 'beat': beat}))\n"
        "    import os; os.replace(sys.argv[1] + '.new', sys.argv[1])\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "e" / "claim.json")])
    try:
        with pytest.raises(RunHeld), Claim(out, "e"):
            raise AssertionError
    finally:
        other.kill()
        other.wait()


def replaced(first: Claim, out: Storage) -> None:
    """Another driver's claim in place of the first one's, again and again: a sign of life may be on its way."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left_by(out, driver="later")
        time.sleep(0.2)
        first.check()


def test_a_driver_that_was_replaced_notices_and_leaves_the_claim(tmp_path: Path) -> None:
    out = place(tmp_path)
    with Claim(out, "e") as first, pytest.raises(RunHeld):
        replaced(first, out)
    assert json.loads((tmp_path / "e" / "claim.json").read_text())["driver"] == "later"
