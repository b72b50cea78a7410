"""Everything a live screen shows, asked over one connection that only reads and is bounded: `pgqueue top`.

Used by cli/top. After an error the connection is dropped, and the next snapshot opens a new one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection

from pgqueue.control.alerts import Alert, Alerts
from pgqueue.control.dead_letters import DeadLetters
from pgqueue.control.desk import Desk
from pgqueue.control.jobs import JobFilter, Jobs
from pgqueue.control.queues import Queues
from pgqueue.control.rows import DeadLetterGroup, Fleet, JobRow, QueueHealth, WorkerRow
from pgqueue.control.schedules import ScheduleRow, Schedules
from pgqueue.core.filter import parse_filter
from pgqueue.storage.connect import TOP
from pgqueue.storage.deadline import deadline

ROWS_MAX: Final = 100
CALL_MAX_S: Final = 4.0
"""A server that answers nothing, not even that a statement took too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one refresh found; listings end at 100 rows."""

    fleet: Fleet
    queues: Sequence[QueueHealth]
    jobs: Sequence[JobRow]
    dead_letters: Sequence[DeadLetterGroup]
    schedules: Sequence[ScheduleRow]
    workers: Sequence[WorkerRow]
    alerts: Sequence[Alert]


class Watch:
    """Takes pictures, one at a time, from any thread."""

    def __init__(self, dsn: str) -> None:
        self._desk = _KeptDesk(dsn, via="cli", connect_timeout_s=2, role=TOP)
        self._lock = threading.Lock()

    @property
    def place(self) -> str:
        """The database watched, without its password."""
        return self._desk.place

    def take(self, where: str = "") -> Picture:
        """Ask for everything; `where` narrows the jobs, in the filter grammar.

        Raises InvalidFilter, DatabaseUnreachable, SchemaMismatch, DatabaseError.
        """
        chosen = JobFilter(more=parse_filter(where, "jobs"))
        with self._lock:
            queues = Queues(self._desk)
            return Picture(
                fleet=queues.fleet(),
                queues=queues.list(),
                jobs=Jobs(self._desk).page(chosen, limit=ROWS_MAX).rows,
                dead_letters=DeadLetters(self._desk).groups(limit=ROWS_MAX),
                schedules=Schedules(self._desk).list(),
                workers=queues.workers(limit=ROWS_MAX),
                alerts=Alerts(self._desk).list(limit=ROWS_MAX),
            )

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._desk.close()


class _KeptDesk(Desk):
    """A desk whose questions share one connection until one of them fails."""

    _kept: Connection[Any] | None = None

    @contextlib.contextmanager
    def connection(self, doing: str = "connection") -> Iterator[Connection[Any]]:
        with self.explained(doing):
            conn = self._kept
            if conn is None:
                conn = self._kept = self._opened()
            try:
                with deadline(conn, CALL_MAX_S):
                    yield conn
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        conn, self._kept = self._kept, None
        if conn is not None:
            conn.close()
