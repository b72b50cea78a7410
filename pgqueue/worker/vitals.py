"""How a worker process is doing: what its health probes and its gauges say.

Made by worker/runtime; asked by observe/serve in its own threads, so it only looks and never waits.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from pgqueue.core.vitals import Check, Reading
from pgqueue.worker.async_executor import AsyncExecutor
from pgqueue.worker.claimer import Claimer
from pgqueue.worker.heart import Heart
from pgqueue.worker.slots import Pool
from pgqueue.worker.state import WorkerState

STILL_S: Final = 30.0
"""A thread that has not moved for so long, its longest planned pause apart, will not move again."""


class WorkerVitals:
    """Implements core/vitals.Vitals. Its parts are filled in while the worker starts."""

    def __init__(self, state: WorkerState, pools: Sequence[Pool]) -> None:
        self._state = state
        self._pools = pools
        self.heart: Heart | None = None
        self.claimer: Claimer | None = None
        self.loop: AsyncExecutor | None = None

    def served_at(self, port: int) -> None:
        """Metrics or probes can be asked for on this port: the worker's row says so from its next beat on."""
        self._state.port = port

    def live(self) -> Sequence[Check]:
        """Its claim thread and its event loop turn. A worker that drains claims nothing, and that is no fault."""
        now, checks = time.monotonic(), []
        if self.claimer is not None and not self._state.draining.is_set():
            still_s = STILL_S + self._state.settings.poll_max_s
            checks.append(Check("claim_loop", now - self.claimer.moved_at < still_s))
        if self.loop is not None and not self._state.ending.is_set():
            checks.append(Check("event_loop", now - self.loop.ticked_at < STILL_S))
        return checks

    def ready(self) -> Sequence[Check]:
        """It holds its lease and takes jobs."""
        return [
            *self.started(),
            *self.live(),
            Check("heartbeat", self._state.may_start()),
            Check("not_draining", not self._state.draining.is_set()),
        ]

    def started(self) -> Sequence[Check]:
        """Its first beat is written, and it claims."""
        return [Check("started", self.heart is not None and self.claimer is not None)]

    def readings(self) -> Sequence[Reading]:
        """Slots, handlers at work, the age of the heartbeat, wake-ups."""
        found: list[Reading] = []
        for pool in self._pools:
            name, busy, waiting = ",".join(pool.queues), pool.running, pool.waiting()
            found += [
                Reading("worker_slots", busy, (name, "busy")),
                Reading("worker_slots", max(0, pool.slots - busy), (name, "idle")),
                Reading("worker_slots", waiting, (name, "buffered")),
            ]
        # A copy: the executors' threads go on meanwhile.
        at_work = Counter(run.job.queue for run in dict(self._state.running).values())
        found += [Reading("jobs_running", at_work[queue], (queue,)) for queue in self._state.queues]
        if self.heart is not None:
            found.append(Reading("heartbeat_age_seconds", time.monotonic() - self.heart.beat_at))
        if self.claimer is not None:
            found += [
                Reading("wakeups_total", count, (source,)) for source, count in self.claimer.wakeups.items()
            ]
        return found

    def objectives_s(self) -> Mapping[str, float]:
        """By queue, the seconds within which a start is promised."""
        return self._state.objectives_s
