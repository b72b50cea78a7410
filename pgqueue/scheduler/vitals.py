"""How a scheduler process is doing: what its health probes and its gauges say.

Made by scheduler/runtime; asked by observe/serve in its own threads, so it only looks and never waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from pgqueue.core.vitals import Check, Reading
from pgqueue.scheduler.leader import Leadership
from pgqueue.storage.link import Link

STILL_S: Final = 30.0
"""A loop that has not moved for so long will not move again; its longest pause is a second."""


class SchedulerVitals:
    """Implements core/vitals.Vitals; `round_at` is kept by the runtime."""

    def __init__(self, link: Link, leadership: Leadership, *, lease_s: float, stop: threading.Event) -> None:
        self._link = link
        self._leadership = leadership
        self._lease_s = lease_s
        self._stop = stop
        self.round_at: float | None = None

    def live(self) -> Sequence[Check]:
        """Its loop turns, or tries to reach the database."""
        moved_at = max(self.round_at or 0.0, self._link.tried_at)
        return [Check("tick_loop", time.monotonic() - moved_at < STILL_S)]

    def ready(self) -> Sequence[Check]:
        """It has looked at all schedules lately; whether it leads or stands by makes no difference."""
        at = self.round_at
        return [
            *self.started(),
            *self.live(),
            Check("rounds", at is not None and time.monotonic() - at < self._lease_s),
            Check("not_draining", not self._stop.is_set()),
        ]

    def started(self) -> Sequence[Check]:
        """Its schedules are stored."""
        return [Check("started", self.round_at is not None)]

    def readings(self) -> Sequence[Reading]:
        """Whether it leads."""
        return [Reading("scheduler_is_leader", float(self._leadership.leads))]

    def objectives_s(self) -> Mapping[str, float]:
        """A scheduler starts no jobs."""
        return {}
