"""Where a duty has been in an index that is read upwards: on from there, and a sweep from the start now and then.

Used by promotion and by windows. Entries of what is done stay in the index while anybody holds an old snapshot; a duty that
began at the start each time would walk them all again with each batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SWEEP_TIMES: Final = 20  # a sweep's length this many times over until the next: 5 % of the time at most
NEAR_S: Final = 1.0  # who commits up to so much later than others of the same time is found without a sweep

Place = Mapping[str, Any]
"""The last entry seen, as the parameters of the statement that goes on behind it."""


@dataclass(slots=True)
class Search:
    """One process's search. What it passed by (committed late, or locked at that moment) is found by a later one."""

    start: Place
    at: Place
    under_way: bool = False
    _newest: Place = field(default_factory=dict)
    _newer: Place = field(default_factory=dict)
    _older: Place = field(default_factory=dict)
    _noted_at: float = 0.0
    _sweeping: bool = False
    _began: float = 0.0
    _sweep_at: float = 0.0

    @classmethod
    def over(cls, **start: Any) -> Search:
        """A search that begins at `start`, which lies before every entry."""
        return cls(start, start, _newest=start, _newer=start, _older=start)

    def begin(self) -> None:
        """Set out: from the start if a sweep is due, else from the last entry seen one to two seconds ago.

        A search under way goes on.
        """
        if self.under_way:
            return
        self.under_way = True
        self._began = time.monotonic()
        self._sweeping = self._began >= self._sweep_at
        self.at = self.start if self._sweeping else self._older

    def saw(self, place: Place) -> None:
        """Everything up to this entry was seen."""
        self.at = place
        self._newest = max(self._newest, place, key=_order)

    def finish(self) -> None:
        """Nothing lies behind `at`."""
        if self._sweeping:
            now = time.monotonic()
            self._sweep_at = now + SWEEP_TIMES * (now - self._began)
        self.leave()

    def leave(self) -> None:
        """All is seen, or somebody else is at it."""
        self.under_way = False
        now = time.monotonic()
        if now - self._noted_at >= NEAR_S:
            self._older, self._newer, self._noted_at = self._newer, self._newest, now


def _order(place: Place) -> tuple[Any, ...]:
    return tuple(place.values())
