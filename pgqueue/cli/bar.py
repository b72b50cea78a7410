"""How far long work has come, on stderr: a bar that moves on a terminal, a line every five seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Self

from pgqueue.cli.session import Output, say
from pgqueue.core.durations import format_duration

LINE_S: Final = 5.0
DRAW_S: Final = 0.1
WIDTH: Final = 24
LEFT_MAX_S: Final = 86_400.0

_CLEAN: Final = "\r\x1b[2K"


class Bar:
    """One piece of long work. `total` None: nobody knows how much there is.

    A bar is drawn where stderr is a terminal, unless the answer streams onto the same one (`-o jsonl`).
    """

    def __init__(self, doing: str, total: int | None, output: Output) -> None:
        self._doing = doing
        self._total = total
        streams = output in {Output.JSONL, Output.NAME, Output.CSV} and sys.stdout.isatty()
        self._draws = sys.stderr.isatty() and not streams
        self._began = self._told = time.monotonic()
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            sys.stderr.write(_CLEAN)
            sys.stderr.flush()

    def at(self, done: int) -> None:
        """So many are done now."""
        now = time.monotonic()
        if now - self._told < (DRAW_S if self._draws else LINE_S):
            return
        self._told = now
        words = f"{self._doing}: {progress_line(done, self._total, now - self._began, bar=self._draws)}"
        if self._draws:
            sys.stderr.write(_CLEAN + words)
            sys.stderr.flush()
            self._drawn = True
        else:
            say(words)


def progress_line(done: int, total: int | None, took_s: float, *, bar: bool) -> str:
    """`[######------] 120 of 500, 40 a second, 9s left`."""
    rate = done / took_s if took_s > 0 else 0.0
    pace = f", {rate:,.0f} a second" if rate >= 1 else ""
    if not total:
        return f"{done:,}{pace}"
    filled = WIDTH * min(done, total) // total
    drawn = f"[{'#' * filled}{'-' * (WIDTH - filled)}] " if bar else ""
    left_s = (total - done) / rate if rate > 0 else LEFT_MAX_S
    left = f", {format_duration(float(round(left_s)))} left" if 1 <= left_s < LEFT_MAX_S else ""
    return f"{drawn}{done:,} of {total:,}{pace}{left}"
