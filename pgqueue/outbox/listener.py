"""Hears that a message was emitted, on a direct connection of its own. Polling is the floor: all it may do is be early.

Started by the runtime where a direct connection is to be had.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg

from pgqueue.core.events import DatabaseTrouble, Events
from pgqueue.errors import DatabaseUnreachable
from pgqueue.storage.connect import LISTEN, connect
from pgqueue.storage.deadline import cut, deadline
from pgqueue.storage.faults import summary_of

SELF_TEST_S: Final = 10.0
ANSWER_S: Final = 5.0
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 2.0


class OutboxListener:
    """One per relay. A notice carries nothing and is never trusted: it only makes the relay look."""

    def __init__(
        self, dsn: str, wake: Callable[[], None], events: Events, *, label: str, connect_timeout_s: float
    ) -> None:
        self._dsn = dsn
        self._wake = wake
        self._events = events
        self._label = label
        self._connect_timeout_s = connect_timeout_s
        self._stop = threading.Event()
        self._conn: psycopg.Connection[Any] | None = None
        self._cause: str | None = None
        self._thread = threading.Thread(target=self._work, name="pgqueue-relay-listen", daemon=True)

    @property
    def hears(self) -> bool:
        """Whether it listens at the moment, so that being notified makes sense."""
        return self._conn is not None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it, whatever it waits for."""
        self._stop.set()
        conn = self._conn
        if conn is not None:
            cut(conn)
        self._thread.join(2)

    def _work(self) -> None:
        pause_s = PAUSE_FIRST_S
        while not self._stop.is_set():
            try:
                with contextlib.closing(self._connected()) as conn:
                    self._conn = conn
                    self._wake()  # a notice sent while nobody listened is lost: look once
                    self._tell(None)
                    pause_s = PAUSE_FIRST_S
                    self._hear(conn)
            except (psycopg.Error, DatabaseUnreachable, OSError) as error:
                if not self._stop.is_set():
                    self._tell(str(error) if isinstance(error, DatabaseUnreachable) else summary_of(error))
            self._conn = None
            self._stop.wait(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def _connected(self) -> psycopg.Connection[Any]:
        conn = connect(
            self._dsn, LISTEN, label=self._label, connect_timeout_s=self._connect_timeout_s, prepare=False
        )
        with deadline(conn, ANSWER_S):
            conn.execute(b"LISTEN pgqueue_outbox")
        return conn

    def _hear(self, conn: psycopg.Connection[Any]) -> None:
        asked_at = time.monotonic()
        while not self._stop.is_set():
            for _ in conn.notifies(timeout=SELF_TEST_S, stop_after=1):
                self._wake()
            if time.monotonic() - asked_at >= SELF_TEST_S:
                asked_at = time.monotonic()
                with deadline(conn, ANSWER_S):
                    conn.execute(b"SELECT")

    def _tell(self, cause: str | None) -> None:
        if cause == self._cause:
            return
        told = cause or self._cause or ""
        self._cause = cause
        self._events.emit(DatabaseTrouble("relay listener", told, over=cause is None))
