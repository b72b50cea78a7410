"""A job's transaction: opened at the handler's first touch, ended by its settlement or rolled back.

The sync and the async shell share their shape. `ctx.conn` and `ctx.session` come from here; both are the same
connection and the same transaction.
"""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from typing import Any, Final, NoReturn

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection as SAConnection
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgqueue.errors import TransactionMisuse
from pgqueue.storage.deadline import deadline
from pgqueue.storage.handlers import (
    AsyncJobConnection,
    JobConnection,
    settle_and_commit,
    settle_and_commit_async,
)

_DIALECT: Final = "postgresql+psycopg://"
SETTLE_DEADLINE_S: Final = 15
_STEP: Final = b"SAVEPOINT pgqueue_member"
_NEXT: Final = b"RELEASE SAVEPOINT pgqueue_member; SAVEPOINT pgqueue_member"
_UNDO: Final = b"ROLLBACK TO SAVEPOINT pgqueue_member"


class JobSession(Session):
    """SQLAlchemy's Session on the job's transaction; pgqueue commits it with the settlement."""

    def commit(self) -> NoReturn:
        """Refused: the job's settlement commits."""
        raise TransactionMisuse(
            "ctx.session.commit(): return to commit with the job's settlement, or use session.begin_nested()"
        )

    def rollback(self) -> NoReturn:
        """Refused: raise to roll the job back."""
        raise TransactionMisuse(
            "ctx.session.rollback(): raise to roll the job back, or use session.begin_nested()"
        )


class AsyncJobSession(AsyncSession):
    """SQLAlchemy's AsyncSession on the job's transaction."""

    sync_session_class = JobSession


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
            token = _LENT.set(self.conn)
            try:
                self._sa = _ENGINE.connect()
            finally:
                _LENT.reset(token)
            self._session = JobSession(bind=self._sa, autoflush=True, expire_on_commit=False)
        return self._session

    def flush(self) -> None:
        """Send what the session still holds."""
        if self._session is not None:
            self._session.flush()

    def step(self) -> None:
        """Begin the next member of a group: what it writes can be undone alone. One message, not two."""
        self.conn.execute(_NEXT if self._stepped else _STEP)
        self._stepped = True

    def undo_step(self) -> bool:
        """Undo the current member's part; False if the transaction cannot be saved."""
        try:
            if self._session is not None:
                self._session.expunge_all()
            self.conn.execute(_UNDO)
        except psycopg.Error:
            return False
        return True

    def settle(self, settlement: dict[str, Any], *, many: bool = False) -> None:
        """Flush, settle and commit. Raises what the database answers; then the caller must `abort`."""
        conn = self.conn
        self.flush()
        if conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            conn.execute(b"SELECT")  # begins, if nothing was sent yet; raises, if the handler ended it
        with deadline(conn, SETTLE_DEADLINE_S):
            settle_and_commit(conn, settlement, many=many)
        self._give_back(conn)

    def abort(self) -> None:
        """Roll back whatever is open and give the connection back; never raises."""
        conn = self._conn
        if conn is None:
            return
        conn.leave_job()
        with contextlib.suppress(psycopg.Error), deadline(conn, SETTLE_DEADLINE_S):
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
            self._session = AsyncJobSession(
                bind=_async_engine_of(self), autoflush=True, expire_on_commit=False
            )
        return self._session

    async def flush(self) -> None:
        """Send what the session still holds."""
        if self._session is not None:
            await self._session.flush()

    async def step(self) -> None:
        """Begin the next member of a group: what it writes can be undone alone. One message, not two."""
        conn = await self.connection()
        await conn.execute(_NEXT if self._stepped else _STEP)
        self._stepped = True

    async def undo_step(self) -> bool:
        """Undo the current member's part; False if the transaction cannot be saved."""
        try:
            if self._session is not None:
                self._session.expunge_all()
            await (await self.connection()).execute(_UNDO)
        except psycopg.Error:
            return False
        return True

    async def settle(self, settlement: dict[str, Any], *, many: bool = False) -> None:
        """Flush, settle and commit. Raises what the database answers; then the caller must `abort`."""
        await self.flush()
        conn = await self.connection()
        if conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            await conn.execute(b"SELECT")  # as above
        await settle_and_commit_async(conn, settlement, many=many)
        await self._give_back(conn)

    async def abort(self) -> None:
        """Roll back whatever is open and give the connection back; never raises."""
        conn = self._conn
        if conn is None:
            return
        conn.leave_job()
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


def _lend() -> JobConnection:
    conn = _LENT.get()
    conn.hush = True  # until SQLAlchemy has had its first look, which ends in a rollback of nothing
    return conn


_LENT: Final[ContextVar[JobConnection]] = ContextVar("pgqueue_lent")
_ENGINE: Final[Engine] = create_engine(
    _DIALECT, creator=_lend, poolclass=NullPool, pool_reset_on_return=None, use_native_hstore=False
)


@event.listens_for(_ENGINE, "engine_connect")
def _lent(connection: SAConnection) -> None:
    connection.connection.dbapi_connection.hush = False  # type: ignore[union-attr]  # it is a JobConnection


def _async_engine_of(transaction: AsyncJobTransaction) -> AsyncEngine:
    """An engine for one transaction: an AsyncSession connects when it wants to, so it must know whose it is."""

    async def lend() -> AsyncJobConnection:
        conn = await transaction.connection()
        conn.hush = True
        return conn

    engine = create_async_engine(
        _DIALECT, async_creator=lend, poolclass=NullPool, pool_reset_on_return=None, use_native_hstore=False
    )

    @event.listens_for(engine.sync_engine, "engine_connect")
    def lent(connection: SAConnection) -> None:
        del connection
        if transaction._conn is not None:  # noqa: SLF001 - same file
            transaction._conn.hush = False  # noqa: SLF001

    return engine
