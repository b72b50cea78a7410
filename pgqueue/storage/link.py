"""A room's own connection that comes back by itself, and the one retry loop around the database.

Used by every long-lived room (claimer, settler, heart, upkeep, scheduler, relay). A room gives a function
of a connection; this file decides by storage/faults.py whether to repeat it, reconnect first, or give up.
"""

from __future__ import annotations

import contextlib
import random
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg

from pgqueue.errors import DatabaseError, DatabaseUnreachable
from pgqueue.storage.connect import Role, connect, is_pooled
from pgqueue.storage.deadline import deadline
from pgqueue.storage.faults import Fault, classify, is_transient, sqlstate_of, summary_of

T = TypeVar("T")

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0  # work resumes within 5 s of a server accepting connections again
BUG_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a room met on its connection: reported once per change of cause, then once when it is over."""

    room: str
    cause: str
    over: bool = False
    sqlstate: str | None = None


class Link:
    """One connection for one room. Not thread-safe: the room that owns it is one thread."""

    def __init__(
        self,
        dsn: str,
        role: Role,
        *,
        label: str = "",
        connect_timeout_s: float = 5,
        deadline_s: float = 15,
        stop: threading.Event | None = None,
        report: Callable[[Trouble], None] | None = None,
    ) -> None:
        self._dsn = dsn
        self._role = role
        self._label = label
        self._connect_timeout_s = connect_timeout_s
        self._deadline_s = deadline_s
        self._stop = stop or threading.Event()
        self._report = report
        self._cause: str | None = None
        self._prepare = True
        self._conn: psycopg.Connection[Any] | None = None
        self.generation = 0  # counts connections; a room drops what it remembered when this changes
        self.pooled = False
        self.reconnects = 0
        self.tried_at = time.monotonic()  # a room that waits for the database is alive

    def run(
        self,
        work: Callable[[psycopg.Connection[Any]], T],
        *,
        repeat: bool = True,
        deadline_s: float | None = None,
    ) -> T:
        """Run `work(connection)` and return its value, repeating it while that can help.

        `repeat=False`: a lost connection is the caller's to judge (the work may have been committed); it is
        raised as it came. Raises DatabaseUnreachable once `stop` is set and the server does not answer, and
        what `work` raised when no retry mends it.
        """
        pause_s = BACKOFF_FIRST_S
        bugs = 0
        while True:
            conn: psycopg.Connection[Any] | None = None
            self.tried_at = time.monotonic()
            try:
                conn = self._connected()
                with deadline(conn, deadline_s or self._deadline_s):
                    value = work(conn)
            except (psycopg.Error, DatabaseUnreachable, OSError) as error:
                fault = self._met(error, conn)
                bugs += fault in {Fault.BUG, Fault.MISUSE, Fault.ABORTED}
                if not is_transient(fault) and not (fault is Fault.BUG and bugs < BUG_TRIES):
                    raise
                if not repeat and conn is not None and fault is not Fault.RETRY:
                    raise
                if self._stop.wait(pause_s * random.uniform(0.5, 1)):  # noqa: S311 - jitter, no secret
                    raise DatabaseUnreachable(
                        f"{self._role.name}: {summary_of(error)}; gave up, as the process is stopping"
                    ) from error
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
            else:
                self._calm()
                return value

    def try_once(
        self, work: Callable[[psycopg.Connection[Any]], T], *, deadline_s: float | None = None
    ) -> T | None:
        """Run `work` once and return its value, or None if the database did not go along; the cause is reported."""
        conn: psycopg.Connection[Any] | None = None
        try:
            conn = self._connected()
            with deadline(conn, deadline_s or self._deadline_s):
                value = work(conn)
        except (psycopg.Error, DatabaseUnreachable, OSError) as error:
            if not is_transient(self._met(error, conn)):
                raise
            return None
        self._calm()
        return value

    def is_cut(self) -> bool:
        """Whether the server has closed the open, idle connection; asks the socket, not the server."""
        conn = self._conn
        if conn is None or conn.closed:
            return True
        try:
            if select.select([conn.pgconn.socket], [], [], 0)[0]:
                conn.pgconn.consume_input()
        except (psycopg.Error, OSError, ValueError):
            return True
        return conn.pgconn.status != psycopg.pq.ConnStatus.OK

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self._conn is not None:
            with contextlib.suppress(psycopg.Error):
                self._conn.close()
            self._conn = None

    def _connected(self) -> psycopg.Connection[Any]:
        conn = self._conn
        if conn is not None and not conn.closed:
            return conn
        conn = connect(
            self._dsn,
            self._role,
            label=self._label,
            connect_timeout_s=self._connect_timeout_s,
            prepare=self._prepare,
        )
        if self._prepare:
            try:
                self.pooled = is_pooled(conn)
            except psycopg.Error:
                conn.close()
                raise
            if self.pooled:
                self._prepare = False
                conn.prepare_threshold = None
        self._conn = conn
        self.generation += 1
        self.reconnects += self.generation > 1
        return conn

    def _met(self, error: Exception, conn: psycopg.Connection[Any] | None) -> Fault:
        """Classify, tidy the connection up, and report a new cause."""
        broken = conn is None or bool(conn.closed or conn.broken)
        fault = classify(error, broken=broken)
        if isinstance(error, DatabaseUnreachable):
            fault = Fault.RECONNECT
        if fault is Fault.POOLED:
            self._prepare = False
        if conn is not None:
            if fault in {Fault.RECONNECT, Fault.UNKNOWN, Fault.READ_ONLY, Fault.POOLED} or broken:
                self.close()
            else:
                with contextlib.suppress(psycopg.Error):
                    conn.rollback()
        if is_transient(fault) and fault is not Fault.RETRY:
            cause = str(error) if isinstance(error, DatabaseError) else summary_of(error)
            if cause != self._cause:
                self._cause = cause
                if self._report is not None:
                    self._report(Trouble(self._role.name, cause, sqlstate=sqlstate_of(error)))
        return fault

    def _calm(self) -> None:
        if self._cause is not None:
            cause, self._cause = self._cause, None
            if self._report is not None:
                self._report(Trouble(self._role.name, cause, over=True))
