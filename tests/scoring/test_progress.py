"""What a run says in a job's log."""

import io

from angio_ray.scoring.progress import Progress, _duration


def test_a_log_gets_plain_lines_with_rate_rejects_and_what_is_left():
    stream = io.StringIO()
    with Progress(1000, 200, stream=stream, every_s=0) as progress:
        progress.add_statuses(["scored"] * 90 + ["gated"] * 6 + ["rejected"] * 4)
        progress.waiting = 3
        progress.tick()
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert lines[0].startswith("300 of 1,000 clips (30 %), ")
    assert "6 gated, 4 rejected" in lines[0]
    assert "to go" in lines[0]
    assert "3 to try again" in lines[-1]


def test_durations_read_well():
    assert [_duration(s) for s in (5, 89, 120, 5400, 9000)] == ["5 s", "89 s", "2 min", "1.5 h", "2.5 h"]
