"""`ctx.session`: SQLAlchemy's sessions on the connection and in the transaction of a job.

Imported by storage/job_transaction.py at the first use, or at a worker's start: SQLAlchemy is slow to import.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, NoReturn

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection as SAConnection
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgqueue.errors import TransactionMisuse
from pgqueue.storage.handlers import AsyncJobConnection, JobConnection

_DIALECT: Final = "postgresql+psycopg://"


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


def open_session(conn: JobConnection) -> tuple[SAConnection, JobSession]:
    """A Session on `conn`, and SQLAlchemy's connection below it, to be closed after it."""
    token = _LENT.set(conn)
    try:
        below = _ENGINE.connect()
    finally:
        _LENT.reset(token)
    return below, JobSession(bind=below, autoflush=True, expire_on_commit=False)


def open_async_session(
    connection: Callable[[], Awaitable[AsyncJobConnection]], current: Callable[[], AsyncJobConnection | None]
) -> AsyncJobSession:
    """An AsyncSession that asks for its connection at its first statement; `current` is the one it got, while it has it."""
    return AsyncJobSession(bind=_async_engine_of(connection, current), autoflush=True, expire_on_commit=False)


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


def _async_engine_of(
    connection: Callable[[], Awaitable[AsyncJobConnection]], current: Callable[[], AsyncJobConnection | None]
) -> AsyncEngine:
    """An engine for one transaction: an AsyncSession connects when it wants to, so it must know whose it is."""

    async def lend() -> AsyncJobConnection:
        conn = await connection()
        conn.hush = True
        return conn

    engine = create_async_engine(
        _DIALECT, async_creator=lend, poolclass=NullPool, pool_reset_on_return=None, use_native_hstore=False
    )

    @event.listens_for(engine.sync_engine, "engine_connect")
    def lent(connection: SAConnection) -> None:
        del connection
        if (conn := current()) is not None:
            conn.hush = False

    return engine
