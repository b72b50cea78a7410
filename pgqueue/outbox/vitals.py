"""How a relay process is doing: what its health probes and its gauges say.

Made by outbox/runtime; asked by observe/serve in its own threads, so it only looks and never waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from pgqueue.core.vitals import Check, Reading
from pgqueue.storage.link import Link

STILL_S: Final = 30.0
"""A loop that has not moved for so long, its longest planned pause apart, will not move again."""


class RelayVitals:
    """Implements core/vitals.Vitals; `round_at` is kept by the runtime."""

    def __init__(self, link: Link, *, lease_s: float, pause_max_s: float, stop: threading.Event) -> None:
        self._link = link
        self._lease_s = lease_s
        self._pause_max_s = pause_max_s
        self._stop = stop
        self.round_at: float | None = None

    def live(self) -> Sequence[Check]:
        """Its loop turns, or tries to reach the database."""
        moved_at = max(self.round_at or 0.0, self._link.tried_at)
        return [Check("relay_loop", time.monotonic() - moved_at < STILL_S + self._pause_max_s)]

    def ready(self) -> Sequence[Check]:
        """It has looked for messages lately."""
        at = self.round_at
        fresh = at is not None and time.monotonic() - at < self._lease_s + self._pause_max_s
        return [
            *self.started(),
            *self.live(),
            Check("rounds", fresh),
            Check("not_draining", not self._stop.is_set()),
        ]

    def started(self) -> Sequence[Check]:
        """Its subscriptions are stored and its first look is done."""
        return [Check("started", self.round_at is not None)]

    def readings(self) -> Sequence[Reading]:
        """A relay has no gauges: what waits is the database's to tell."""
        return ()

    def objectives_s(self) -> Mapping[str, float]:
        """A relay starts no jobs."""
        return {}
