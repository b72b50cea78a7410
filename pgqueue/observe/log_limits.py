"""Which of many equal lines are written: samples of successes, and repeated faults told once a minute.

Used by observe/logs, which holds a lock around each call; touches nothing but the monotonic clock.
"""

from __future__ import annotations

import time
from typing import Final

REPEAT_S: Final = 60.0  # a fault that repeats is told once, then once a minute with its count
KEYS_MAX: Final = 1_000


class Sampler:
    """Of each second's successes, which get a line, and how many each line stands for."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = 0
        self._told = 0
        self.skipped = 0

    def choose(self, count: int) -> list[tuple[int, int]]:
        """(index, stands for) of those of `count` attempts that get a line."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._told = second, 0
        lines = min(count, self._per_second - self._told)
        if lines <= 0:
            self.skipped += count
            return []
        self._told += lines
        ends = [(i + 1) * count // lines for i in range(lines)]
        chosen = [(end - 1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
        if self.skipped:
            chosen[0] = (chosen[0][0], chosen[0][1] + self.skipped)
            self.skipped = 0
        return chosen


class Repeats:
    """Which of many equal faults is told: the first, then one a minute."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}

    def may_tell(self, key: str) -> int | None:
        """How many were kept back since the last line, or None to keep this one back too."""
        now = time.monotonic()
        entry = self._seen.get(key)
        if entry is None:
            if len(self._seen) >= KEYS_MAX:
                self._seen.clear()
            self._seen[key] = [now, 0]
            return 0
        if now - entry[0] < REPEAT_S:
            entry[1] += 1
            return None
        kept_back, entry[0], entry[1] = int(entry[1]), now, 0
        return kept_back
