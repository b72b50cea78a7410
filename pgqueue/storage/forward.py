"""Connections to another database's outbox, to which a relay hands messages over.

Called by outbox/forward.py. One statement a message, a transaction each; a repetition is recognized over there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from pgqueue.errors import ConfigurationError, DatabaseUnreachable, SinkUnavailable
from pgqueue.storage.connect import (
    RELAY,
    connect,
    connect_arguments,
    is_pooled,
    place_of,
    session_settings,
)
from pgqueue.storage.deadline import SETUP_S, deadline
from pgqueue.storage.faults import classify, is_transient, summary_of
from pgqueue.storage.migrate import require_head
from pgqueue.storage.statements import statement

CALL_S: Final = 15.0


class ForwardTarget:
    """Another database with pgqueue's schema. Thread-safe."""

    def __init__(self, dsn: str, *, connections: int, connect_timeout_s: float) -> None:
        self._dsn = dsn
        self._connect_timeout_s = connect_timeout_s
        self._pooled = False
        try:
            arguments = connect_arguments(dsn, RELAY, label="forward", connect_timeout_s=connect_timeout_s)
        except psycopg.Error:
            raise ConfigurationError(
                "dsn: not readable; write a libpq URI (postgresql://user@host/dbname) or keywords"
            ) from None
        conninfo = str(arguments.pop("conninfo"))
        self._pool = ConnectionPool[psycopg.Connection[Any]](
            conninfo,
            kwargs={**arguments, "prepare_threshold": None},
            min_size=0,
            max_size=connections,
            configure=self._configure,
            check=_check,
            open=False,
            name="pgqueue-forward",
        )

    def open(self) -> None:
        """Look at the other side once. Raises SchemaMismatch; a server that is down is no error, messages wait."""
        try:
            with connect(
                self._dsn, RELAY, label="forward", connect_timeout_s=self._connect_timeout_s, prepare=False
            ) as conn:
                require_head(conn)
                self._pooled = is_pooled(conn)
        except (DatabaseUnreachable, psycopg.OperationalError):
            self._pooled = True  # not known: then no session is given settings of ours
        self._pool.open()

    def accept(self, parameters: Mapping[str, Any]) -> bool:
        """Hand a message over; False if it was there before. Raises SinkUnavailable, or what no repetition mends."""
        try:
            with (
                self._pool.connection(timeout=self._connect_timeout_s + 1) as conn,
                deadline(conn, CALL_S),
            ):
                row = conn.execute(statement("accept_message"), parameters).fetchone()
        except PoolTimeout:
            raise SinkUnavailable(f"{place_of(self._dsn)}: no connection") from None
        except psycopg.Error as error:
            if is_transient(classify(error)):
                raise SinkUnavailable(f"{place_of(self._dsn)}: {summary_of(error)}") from None
            raise
        return row is not None and row[0] is not None

    def close(self) -> None:
        """Close the connections."""
        self._pool.close(timeout=1)

    def _configure(self, conn: psycopg.Connection[Any]) -> None:
        if self._pooled:
            return
        with deadline(conn, SETUP_S):
            for text in session_settings(RELAY):
                conn.execute(text)


def _check(conn: psycopg.Connection[Any]) -> None:
    # The pool's own check waits for ever: a server that hangs would keep the courier, and its line, for good.
    with deadline(conn, SETUP_S):
        ConnectionPool.check_connection(conn)
