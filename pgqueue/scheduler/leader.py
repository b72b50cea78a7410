"""Who ticks: the process that holds an advisory lock, and others where that one does not do its work.

Called by the runtime. The lock only saves work; what makes a fire happen once is the unique key of its run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import psycopg

from pgqueue.core.events import Events, LeaderChanged, Warned
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement

PATIENCE_S: Final = 3.0
"""A fire this late is ticked by whoever sees it; with one poll it stays below five seconds."""
STAND_IN_LATE_S: Final = 0.1
"""What a stand-in leaves to a leader that has come back to its senses."""
SESSION_SILENT_MS: Final = 3_000
"""The server ends a leader's session that says nothing for so long: a stopped process keeps its socket open."""


class Leadership:
    """One process's place among the schedulers.

    It leads, or follows (fires are its business once they are `patience_s` late), or stands in: having had to act
    without the lock it goes on acting, until it has found nothing to do for `patience_s`.
    """

    def __init__(
        self,
        link: Link,
        scheduler_id: str,
        events: Events,
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._id = scheduler_id
        self._events = events
        self._patience_s = patience_s
        self._clock = clock
        self._generation = 0
        self._leads = False
        self._stands_in_until = 0.0
        self._told_pooled = False
        self._told_pid: int | None = None

    @property
    def leads(self) -> bool:
        """Whether this process believes to hold the lock; it may be wrong, and that does no harm."""
        return self._leads

    @property
    def late_s(self) -> float:
        """How late a fire must be to be this process's business."""
        if self._leads:
            return 0.0
        return STAND_IN_LATE_S if self._clock() < self._stands_in_until else self._patience_s

    def try_lead(self, conn: psycopg.Connection[Any]) -> None:
        """Take the lock if it is free. A lock goes with its connection."""
        if self._link.pooled:
            self._refuse_pooler()
            return
        if self._generation != self._link.generation:
            self.lose("its connection was lost")
            conn.execute(statement("scheduler_session"), {"silent_ms": SESSION_SILENT_MS})
            self._generation = self._link.generation
        if self._leads:
            return
        row = conn.execute(statement("scheduler_try_lead")).fetchone()
        if row is not None and row[0]:
            self._leads = True
            self._told_pid = None
            self._events.emit(LeaderChanged(self._id, leads=True))

    def acted(self, conn: psycopg.Connection[Any]) -> None:
        """Take note that fires had to be ticked by a process that does not lead; says once why that was needed."""
        self._stands_in_until = self._clock() + self._patience_s
        if self._link.pooled:
            return
        holder = conn.execute(statement("scheduler_lock_holder")).fetchone()
        if holder is None or holder[0] == self._told_pid:
            return
        self._told_pid = holder[0]
        name = f" ({holder[1]})" if holder[1] else ""
        self._events.emit(
            Warned(
                "leader_silent",
                f"fires are late and database process {holder[0]}{name} holds the scheduler's lock; ticking without it:"
                " end that process if it is no scheduler of yours",
                {"pid": holder[0]},
            )
        )

    def lose(self, note: str) -> None:
        """Stop believing to lead."""
        if self._leads:
            self._leads = False
            self._events.emit(LeaderChanged(self._id, leads=False, note=note))

    def _refuse_pooler(self) -> None:
        self.lose("a transaction pooler stands between")
        if not self._told_pooled:
            self._told_pooled = True
            self._events.emit(
                Warned(
                    "scheduler_pooled",
                    "the DSN leads through a transaction pooler, where no scheduler can lead: fires come up to"
                    f" {self._patience_s:g} s late; set direct_database_url to an address past the pooler",
                )
            )
