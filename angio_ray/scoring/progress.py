"""What a run says while it works: one live line on a terminal, a plain line every few seconds in a job's log."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

_RATE_WINDOW_S = 60.0


class Progress:
    """Counts rows and says clips/s over the last minute, rejects and the time to go. Use as a context manager."""

    def __init__(self, total: int, done: int = 0, *, stream: TextIO | None = None, every_s: float = 10.0) -> None:
        self.total = total
        self.done = done
        self.counts: Counter[str] = Counter()
        self.waiting = 0
        """Clips set aside for another try."""
        self.every_s = every_s
        self.console = Console(file=stream or sys.stderr)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self._recent: deque[tuple[float, int]] = deque([(time.monotonic(), done)])
        self._said = time.monotonic()

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self.live.stop()
        self.console.print(self.line(), highlight=False, soft_wrap=True)

    def add_statuses(self, statuses: Sequence[str]) -> None:
        """Rows that have their final status."""
        self.counts.update(statuses)
        self.done += len(statuses)
        self._recent.append((time.monotonic(), self.done))
        self.tick()

    def tick(self) -> None:
        """Call often: refreshes the live line, or prints a log line when one is due."""
        now = time.monotonic()
        while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        if self.live:
            if now - self._said >= 0.2:
                self._said = now
                self.live.update(Text(self.line()), refresh=True)
        elif now - self._said >= self.every_s:
            self._said = now
            self.console.print(self.line(), highlight=False, soft_wrap=True)

    def rate(self) -> float:
        """Clips per second over the last minute."""
        first_time, first_done = self._recent[0]
        return (self.done - first_done) / max(time.monotonic() - first_time, 1e-9)

    def line(self) -> str:
        """`1,200 of 20,000 clips (6 %), 41.3 clips/s, 12 rejected, 8 min to go`."""
        rate = self.rate()
        parts = [
            f"{self.done:,} of {self.total:,} clips ({100 * self.done // max(self.total, 1)} %)",
            f"{rate:.1f} clips/s",
        ]
        parts += [f"{self.counts[s]:,} {s}" for s in ("gated", "rejected") if self.counts[s]]
        if self.waiting:
            parts.append(f"{self.waiting:,} to try again")
        if self.done < self.total and rate > 0:
            parts.append(f"{_duration((self.total - self.done) / rate)} to go")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
