"""A client-side deadline for every call: a stopped server answers neither a query nor a cancel.

One watchdog thread per process. When a call is overdue it asks the server to cancel; if that brings nothing
it closes the socket, which wakes whoever waits on it with an error. Called throughout storage, by rooms seldom.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import psycopg

CANCEL_GRACE_S: Final = 2.0
SETUP_S: Final = 5.0
"""The limit for what is said on a new connection before its work: settings, and questions about the other side."""
_TICK_S: Final = 0.25


AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class _Call:
    __slots__ = ("cancelled_at", "conn", "due")

    def __init__(self, conn: AnyConnection, due: float) -> None:
        self.conn = conn
        self.due = due
        self.cancelled_at: float | None = None


class _Watchdog:
    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def add(self, conn: AnyConnection, seconds: float) -> int:
        call = _Call(conn, time.monotonic() + seconds)
        key = id(call)
        self._calls[key] = call
        if self._pid != os.getpid():
            self._start()
        return key

    def remove(self, key: int) -> None:
        self._calls.pop(key, None)

    def _start(self) -> None:
        with self._lock:
            if self._pid == os.getpid():
                return
            self._pid = os.getpid()
            self._thread = threading.Thread(target=self._run, name="pgqueue-deadline", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_TICK_S)
            now = time.monotonic()
            for call in list(self._calls.values()):
                if call.due <= now:
                    self._end(call, now)

    def _end(self, call: _Call, now: float) -> None:
        if call.cancelled_at is None:
            call.cancelled_at = now
            # The cancel itself may hang on the same dead server, so it gets a thread and a time-out.
            threading.Thread(target=_cancel, args=(call.conn,), name="pgqueue-cancel", daemon=True).start()
        elif now - call.cancelled_at > CANCEL_GRACE_S:
            cut(call.conn)


def _cancel(conn: AnyConnection) -> None:
    with contextlib.suppress(psycopg.Error):
        if isinstance(conn, psycopg.Connection):
            conn.cancel_safe(timeout=CANCEL_GRACE_S)
        else:  # its own way needs its event loop, and this is another thread
            conn.pgconn.get_cancel().cancel()


def cut(conn: AnyConnection) -> None:
    """Shut the connection's socket down, whoever waits on it."""
    with contextlib.suppress(psycopg.Error, OSError):
        handle = socket.socket(fileno=os.dup(conn.pgconn.socket))
        try:
            handle.shutdown(socket.SHUT_RDWR)
        finally:
            handle.close()


_WATCHDOG: Final = _Watchdog()


@contextlib.contextmanager
def deadline(conn: AnyConnection, seconds: float) -> Iterator[None]:
    """Bound the calls on `conn` inside the block to `seconds`: then cancel, then cut."""
    key = _WATCHDOG.add(conn, seconds)
    try:
        yield
    finally:
        _WATCHDOG.remove(key)
