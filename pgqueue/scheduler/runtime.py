"""A scheduler process: checks the schema, stores the code's schedules, then leads or waits, round after round.

Called by the CLI and by applications (`app.scheduler()`). One thread, one connection; any number of processes may
run at once.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from pgqueue._signals import hearing
from pgqueue.core.events import DatabaseTrouble, Events
from pgqueue.core.registry import Registry
from pgqueue.core.schedule import ScheduleDefinition
from pgqueue.errors import DatabaseUnreachable
from pgqueue.scheduler.leader import PATIENCE_S, Leadership
from pgqueue.scheduler.register import mark_orphans, store_schedules, store_tasks
from pgqueue.scheduler.tick import BATCH_SCHEDULES, PRUNE_BATCH, Ticker
from pgqueue.scheduler.vitals import SchedulerVitals
from pgqueue.settings import Settings
from pgqueue.storage.connect import CHORES, LEADER, connect
from pgqueue.storage.faults import surfaced
from pgqueue.storage.link import Link, Trouble
from pgqueue.storage.migrate import require_head
from pgqueue.upkeep.alerts import alerts_duty
from pgqueue.upkeep.chores import chores
from pgqueue.upkeep.duties import Upkeep
from pgqueue.upkeep.promote import promote_duty
from pgqueue.upkeep.rescue import rescue_duty

POLL_S: Final = 1.0
"""Longest sleep: within it a follower sees that the lock is free, and everybody a new schedule."""
PAUSE_MIN_S: Final = 0.02
"""Shortest sleep: an overdue schedule that cannot be ticked must not make a busy loop."""
PRUNE_INTERVAL_S: Final = 600.0
HOST_CHARS_MAX: Final = 40


class Scheduler:
    """One scheduler process. `run()` blocks until it is told to stop, and returns the exit code."""

    def __init__(
        self,
        registry: Registry,
        definitions: Sequence[ScheduleDefinition],
        settings: Settings,
        *,
        events: Events | None = None,
        defined_in: str | None = None,
        prune: bool = False,
        patience_s: float = PATIENCE_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._registry = registry
        # In one order in every process, so that two that start at once cannot deadlock.
        self._definitions = sorted(definitions, key=lambda definition: definition.name)
        self._settings = settings
        self._defined_in = defined_in
        self._prune = prune
        self._poll_s = poll_s
        self._prune_at = 0.0
        self._stop = threading.Event()
        self.events = events or Events()
        label = uuid.uuid4().hex[:8]
        self.scheduler_id = f"{platform.node()[:HOST_CHARS_MAX]}:{os.getpid()}:{label}"
        self._link = Link(
            settings.direct_dsn,
            LEADER,
            label=label,
            connect_timeout_s=settings.connect_timeout_s,
            stop=self._stop,
            report=self._report,
        )
        self._leadership = Leadership(self._link, self.scheduler_id, self.events, patience_s=patience_s)
        self._ticker = Ticker(self._link, self.scheduler_id, self.events)
        self._upkeep = self._fleets_upkeep(label)
        self.vitals = SchedulerVitals(self._link, self._leadership, lease_s=settings.lease_s, stop=self._stop)

    @property
    def leads(self) -> bool:
        """Whether this process leads at the moment."""
        return self._leadership.leads

    def stop(self) -> None:
        """Ask it to stop after the statement it is at. Not for signal handlers: `run(signals=True)` hears those."""
        self._stop.set()

    def run(self, *, signals: bool = False) -> int:
        """Work until `stop()` or a signal; returns the exit code.

        Raises SchemaMismatch or DatabaseUnreachable before its first round.
        """
        with contextlib.closing(
            connect(self._settings.direct_dsn, LEADER, connect_timeout_s=self._settings.connect_timeout_s)
        ) as conn:
            require_head(conn)
        with hearing(self.stop) if signals else contextlib.nullcontext():
            try:
                self._link.run(self._register)
                self._upkeep.start()
                self.vitals.round_at = time.monotonic()
                while not self._stop.is_set():
                    pause_s = self._round()
                    self.vitals.round_at = time.monotonic()
                    self._stop.wait(pause_s)
            except DatabaseUnreachable:
                if not self._stop.is_set():
                    raise
            except psycopg.Error as error:
                raise surfaced(error, statement="of the scheduler") from error
            finally:
                self._upkeep.stop()
                self._leadership.lose("it stops")
                self._link.close()
        return 0

    def _fleets_upkeep(self, label: str) -> Upkeep:
        """What has to happen although no worker runs; workers do the same, and whoever comes first does it."""
        settings, actor = self._settings, f"scheduler:{self.scheduler_id}"
        return Upkeep(
            settings.database_url,
            [
                promote_duty(settings.promote_interval_s, lambda: None),
                rescue_duty(settings.rescue_interval_s, self.events, lambda: actor, lambda: None),
                alerts_duty(settings, self.events, lambda: actor, leads=lambda: self._leadership.leads),
                *chores(settings, actor),
            ],
            self.events,
            actor=actor,
            label=label,
            connect_timeout_s=settings.connect_timeout_s,
            role=CHORES,
            when=lambda: self._leadership.leads,
        )

    def _register(self, conn: psycopg.Connection[Any]) -> None:
        store_tasks(conn, self._registry)
        store_schedules(conn, self._definitions, self._defined_in)
        # Code without a name cannot tell its own former schedules from those of other code.
        if self._defined_in is not None:
            prune_as = self.scheduler_id if self._prune else None
            mark_orphans(conn, self._definitions, self._defined_in, self.events, prune_as=prune_as)

    def _round(self) -> float:
        """One look at everything; returns how long nothing is to be done."""
        self._link.run(self._leadership.try_lead)
        due, acted = self._ticker.due(self._leadership.late_s), False
        for at in range(0, len(due), BATCH_SCHEDULES):
            if self._stop.is_set():
                return 0
            acted |= self._ticker.tick(due[at : at + BATCH_SCHEDULES])
        if self._leadership.leads:
            self._prune_runs()
        elif acted:
            self._link.run(self._leadership.acted)
        next_in_s = self._ticker.next_in_s()
        if next_in_s is None:
            return self._poll_s
        return min(self._poll_s, max(PAUSE_MIN_S, next_in_s + self._leadership.late_s))

    def _prune_runs(self) -> None:
        now = time.monotonic()
        if now >= self._prune_at:
            pruned = self._ticker.prune(self._settings.history_retention_days)
            self._prune_at = now + (0 if pruned >= PRUNE_BATCH else PRUNE_INTERVAL_S)

    def _report(self, trouble: Trouble) -> None:
        self.events.emit(DatabaseTrouble(trouble.room, trouble.cause, trouble.over, trouble.sqlstate))
