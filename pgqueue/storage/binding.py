"""The caller's connection or session, whatever its kind: how to run statements in its transaction, as it stands.

Nothing is SET, no isolation changed, nothing committed; a Session autoflushes as for any statement of its own.
Through SQLAlchemy everything is Core text on the user's own object, so any driver works, and savepoints count.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from sqlalchemy import TextClause, text
from sqlalchemy.engine import Connection as SAConnection
from sqlalchemy.ext.asyncio import AsyncConnection as SAAsyncConnection
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from pgqueue.errors import ConflictError
from pgqueue.storage.statements import statement

SyncWhere = Connection[Any] | Cursor[Any] | SAConnection | Session | scoped_session[Any]
AsyncWhere = (
    AsyncConnection[Any] | AsyncCursor[Any] | SAAsyncConnection | AsyncSession | async_scoped_session[Any]
)
Where = SyncWhere | AsyncWhere | None
Step = tuple[str, Mapping[str, Any]]

_SYNC: Final = (Connection, Cursor, SAConnection, Session, scoped_session)
_ASYNC: Final = (AsyncConnection, AsyncCursor, SAAsyncConnection, AsyncSession, async_scoped_session)
_SYNC_NAMES: Final = (
    "a psycopg Connection or Cursor, a SQLAlchemy Connection, Session or scoped_session, or None"
)
_ASYNC_NAMES: Final = "a psycopg AsyncConnection or AsyncCursor, a SQLAlchemy AsyncConnection, AsyncSession or async_scoped_session, or None"


def run(where: object, steps: Iterable[Step], *, single: bool) -> list[Any]:
    """Run named statements where the caller is and return the first value of each.

    Several steps are all or none, also in a transaction that is already open. Raises TypeError for what is
    no connection or session, ConflictError for one that cannot run a statement now.
    """
    if isinstance(where, Cursor):
        where = where.connection
    if isinstance(where, Connection):
        return _run_psycopg(where, steps, single=single)
    if isinstance(where, SAConnection | Session | scoped_session):
        return _run_sqlalchemy(where, steps, single=single)
    if isinstance(where, _ASYNC):
        raise TypeError(f"where: {type(where).__name__} is async; use the method whose name ends in _async")
    raise TypeError(f"where: {type(where).__name__}; pass {_SYNC_NAMES}")


async def run_async(where: object, steps: Iterable[Step], *, single: bool) -> list[Any]:
    """As `run`, on an async connection or session."""
    lend: Callable[[], Awaitable[AsyncConnection[Any]]] | None = getattr(where, "pgqueue_connection", None)
    if lend is not None:
        where = await lend()
    if isinstance(where, AsyncCursor):
        where = where.connection
    if isinstance(where, AsyncConnection):
        return await _run_psycopg_async(where, steps, single=single)
    if isinstance(where, SAAsyncConnection | AsyncSession | async_scoped_session):
        return await _run_sqlalchemy_async(where, steps, single=single)
    if isinstance(where, _SYNC):
        raise TypeError(
            f"where: {type(where).__name__} is not async; use the method without _async in its name"
        )
    raise TypeError(f"where: {type(where).__name__}; pass {_ASYNC_NAMES}")


def _run_psycopg(conn: Connection[Any], steps: Iterable[Step], *, single: bool) -> list[Any]:
    _check_usable(conn)
    with conn.cursor(row_factory=tuple_row) as cursor:
        if single:
            return [
                _first(cursor.execute(statement(name), parameters).fetchone()) for name, parameters in steps
            ]
        with conn.transaction():
            return [
                _first(cursor.execute(statement(name), parameters).fetchone()) for name, parameters in steps
            ]


async def _run_psycopg_async(conn: AsyncConnection[Any], steps: Iterable[Step], *, single: bool) -> list[Any]:
    _check_usable(conn)
    async with conn.cursor(row_factory=tuple_row) as cursor:
        if single:
            return [_first(await (await cursor.execute(statement(n), p)).fetchone()) for n, p in steps]
        async with conn.transaction():
            return [_first(await (await cursor.execute(statement(n), p)).fetchone()) for n, p in steps]


def _run_sqlalchemy(
    where: SAConnection | Session | scoped_session[Any], steps: Iterable[Step], *, single: bool
) -> list[Any]:
    if single:
        return [where.execute(_clause(name), dict(parameters)).scalar_one() for name, parameters in steps]
    with where.begin_nested():
        return [where.execute(_clause(name), dict(parameters)).scalar_one() for name, parameters in steps]


async def _run_sqlalchemy_async(
    where: SAAsyncConnection | AsyncSession | async_scoped_session[Any],
    steps: Iterable[Step],
    *,
    single: bool,
) -> list[Any]:
    if single:
        return [
            (await where.execute(_clause(name), dict(parameters))).scalar_one() for name, parameters in steps
        ]
    async with where.begin_nested():
        return [
            (await where.execute(_clause(name), dict(parameters))).scalar_one() for name, parameters in steps
        ]


def _check_usable(conn: Connection[Any] | AsyncConnection[Any]) -> None:
    if conn.closed:
        raise ConflictError("where: the connection is closed; open a new one")
    if conn.pgconn.transaction_status == TransactionStatus.INERROR:
        raise ConflictError("where: the transaction has failed before; roll it back, then enqueue again")


def _first(row: tuple[Any, ...] | None) -> Any:
    return None if row is None else row[0]


@cache
def _clause(name: str) -> TextClause:
    """psycopg's `%(name)s` as SQLAlchemy's `:name`; the statements use CAST, so no other colon stands in them."""
    return text(re.sub(r"%\((\w+)\)s", r":\1", statement(name).decode()))
