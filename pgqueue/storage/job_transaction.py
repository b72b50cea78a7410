"""A job's transaction: opened at the handler's first touch, ended by its settlement or rolled back.

The sync and the async shell share their shape. `ctx.conn` and `ctx.session` come from here; both are the same
connection and the same transaction.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import pq
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgqueue.storage.deadline import deadline
from pgqueue.storage.handlers import AsyncJobConnection, JobConnection
from pgqueue.storage.settling import NOTHING, settle_and_commit, settle_and_commit_async

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection as SAConnection

    from pgqueue.storage.job_session import AsyncJobSession, JobSession

SETTLE_DEADLINE_S: Final = 15
_STEP: Final = b"SAVEPOINT pgqueue_member"
_NEXT: Final = b"RELEASE SAVEPOINT pgqueue_member; SAVEPOINT pgqueue_member"
_UNDO: Final = b"ROLLBACK TO SAVEPOINT pgqueue_member"


class JobTransaction:
    """A sync handler's transaction. One per run, used in one thread."""

    __slots__ = ("_conn", "_pool", "_sa", "_session", "_stepped", "_timeout_s", "began", "claim_id")

    def __init__(self, pool: ConnectionPool[JobConnection], claim_id: str, timeout_s: float | None) -> None:
        self._pool = pool
        self.claim_id = claim_id
        self._timeout_s = timeout_s
        self._stepped = False
        self.began = time.monotonic()
        self._conn: JobConnection | None = None
        self._session: JobSession | None = None
        self._sa: SAConnection | None = None

    @property
    def conn(self) -> JobConnection:
        """The connection; lent by the pool at the first call."""
        if self._conn is None:
            self._conn = self._pool.getconn()
            self._conn.enter_job(self.claim_id, self._timeout_s)
        return self._conn

    @property
    def session(self) -> JobSession:
        """A Session on the same transaction."""
        if self._session is None:
            self._sa, self._session = _sessions().open_session(self.conn)
        return self._session

    def flush(self) -> None:
        """Send what the session still holds."""
        if self._session is not None:
            self._session.flush()

    def step(self) -> None:
        """Begin the next member of a group: what it writes can be undone alone. One message, and nobody waits for it."""
        conn = self.conn
        conn.answered()
        conn.tell(_NEXT if self._stepped else _STEP)
        self._stepped = True

    def fails(self) -> bool:
        """Whether an error has left nothing of it to be committed, though the handler may have hidden it."""
        conn = self.conn
        conn.answered()
        conn.refuse_if_ended()
        return conn.pgconn.transaction_status == pq.TransactionStatus.INERROR

    def undo_step(self) -> bool:
        """Undo the current member's part; False if the transaction cannot be saved."""
        try:
            if self._session is not None:
                self._session.expunge_all()
            self.conn.execute(_UNDO)
        except psycopg.Error:
            return False
        return True

    def settle(
        self, settlement: dict[str, Any], *, many: bool = False, also: Mapping[str, str] = NOTHING
    ) -> None:
        """Flush, settle and commit, with the statements of `also`. Raises what the database answers: `abort` it then."""
        conn = self.conn
        self.flush()
        with deadline(conn, SETTLE_DEADLINE_S):
            settle_and_commit(conn, settlement, many=many, also=also)
        self._give_back(conn)

    def abort(self) -> None:
        """Roll back whatever is open and give the connection back; never raises."""
        conn = self._conn
        if conn is None:
            return
        conn.leave_job()
        with deadline(conn, SETTLE_DEADLINE_S):
            with contextlib.suppress(psycopg.Error):
                conn.answered()
            with contextlib.suppress(psycopg.Error):
                conn.rollback()
                conn.reset_session()
        self._give_back(conn)

    @property
    def opened(self) -> bool:
        """Whether the handler touched it."""
        return self._conn is not None

    @property
    def lost(self) -> bool:
        """Whether its connection broke."""
        return self._conn is not None and bool(self._conn.closed)

    def _give_back(self, conn: JobConnection) -> None:
        self._conn = None
        conn.leave_job()
        if self._session is not None:
            conn.hush = True
            with contextlib.suppress(Exception):
                self._session.close()
                if self._sa is not None:
                    self._sa.close()
            conn.hush = False
            self._session = self._sa = None
        self._pool.putconn(conn)


class AsyncJobTransaction:
    """An async handler's transaction."""

    __slots__ = ("_conn", "_pool", "_session", "_stepped", "_timeout_s", "began", "claim_id")

    def __init__(
        self, pool: AsyncConnectionPool[AsyncJobConnection], claim_id: str, timeout_s: float | None
    ) -> None:
        self._pool = pool
        self.claim_id = claim_id
        self._timeout_s = timeout_s
        self._stepped = False
        self.began = time.monotonic()
        self._conn: AsyncJobConnection | None = None
        self._session: AsyncJobSession | None = None

    async def connection(self) -> AsyncJobConnection:
        """The connection; lent by the pool at the first call."""
        if self._conn is None:
            conn = await self._pool.getconn()
            conn.enter_job(self.claim_id, self._timeout_s)
            self._conn = conn
        return self._conn

    @property
    def session(self) -> AsyncJobSession:
        """An AsyncSession on the same transaction; it connects at its first statement."""
        if self._session is None:
            self._session = _sessions().open_async_session(self.connection, lambda: self._conn)
        return self._session

    async def flush(self) -> None:
        """Send what the session still holds."""
        if self._session is not None:
            await self._session.flush()

    async def step(self) -> None:
        """Begin the next member of a group: what it writes can be undone alone. One message, and nobody waits for it."""
        conn = await self.connection()
        await conn.answered()
        conn.tell(_NEXT if self._stepped else _STEP)
        self._stepped = True

    async def fails(self) -> bool:
        """Whether an error has left nothing of it to be committed, though the handler may have hidden it."""
        conn = await self.connection()
        await conn.answered()
        conn.refuse_if_ended()
        return conn.pgconn.transaction_status == pq.TransactionStatus.INERROR

    async def undo_step(self) -> bool:
        """Undo the current member's part; False if the transaction cannot be saved."""
        try:
            if self._session is not None:
                self._session.expunge_all()
            await (await self.connection()).execute(_UNDO)
        except psycopg.Error:
            return False
        return True

    async def settle(
        self, settlement: dict[str, Any], *, many: bool = False, also: Mapping[str, str] = NOTHING
    ) -> None:
        """Flush, settle and commit, with the statements of `also`. Raises what the database answers: `abort` it then."""
        await self.flush()
        conn = await self.connection()
        with deadline(conn, SETTLE_DEADLINE_S):
            await settle_and_commit_async(conn, settlement, many=many, also=also)
        await self._give_back(conn)

    async def abort(self) -> None:
        """Roll back whatever is open and give the connection back; never raises."""
        conn = self._conn
        if conn is None:
            return
        conn.leave_job()
        with deadline(conn, SETTLE_DEADLINE_S):
            with contextlib.suppress(psycopg.Error):
                await conn.answered()
            with contextlib.suppress(psycopg.Error):
                await conn.rollback()
                await conn.reset_session()
        await self._give_back(conn)

    @property
    def opened(self) -> bool:
        """Whether the handler touched it."""
        return self._conn is not None or self._session is not None

    @property
    def lost(self) -> bool:
        """Whether its connection broke."""
        return self._conn is not None and bool(self._conn.closed)

    async def _give_back(self, conn: AsyncJobConnection) -> None:
        self._conn = None
        conn.leave_job()
        if self._session is not None:
            conn.hush = True
            with contextlib.suppress(Exception):
                await self._session.close()
            conn.hush = False
            self._session = None
        await self._pool.putconn(conn)


def warm_sessions() -> None:
    """Prepare `ctx.session` at a worker's start, if the application knows SQLAlchemy; else nobody pays for its import."""
    if "sqlalchemy.orm" in sys.modules:
        _sessions()


def _sessions() -> ModuleType:
    # It costs a quarter of a second, and most handlers use `ctx.conn`.
    return importlib.import_module("pgqueue.storage.job_session")
