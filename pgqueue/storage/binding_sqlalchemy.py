"""SQLAlchemy's connections and sessions, sync and async, on any driver. Called by storage/binding.py alone.

Everything is Core text through the user's own object: a Session autoflushes, savepoints count, and the transaction
that SQLAlchemy has not begun yet is begun by it. The driver's connection is never used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import TextClause, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from pgqueue.errors import ConflictError
from pgqueue.storage.binding import Step, run_framed
from pgqueue.storage.caller_faults import explain
from pgqueue.storage.statements import statement

_warned: Final[WeakSet[Engine]] = WeakSet()


def is_sync(where: object) -> bool:
    """Whether `where` is one of SQLAlchemy's sync kinds, or of a subclass of one."""
    return isinstance(where, Connection | Session | scoped_session)


def is_async(where: object) -> bool:
    """Whether `where` is one of SQLAlchemy's async kinds."""
    return isinstance(where, AsyncConnection | AsyncSession | async_scoped_session)


def run(where: Any, steps: Iterable[Step], *, checked: bool, may_refuse: bool = False) -> list[Any]:
    """As binding.run, for what `is_sync`."""
    if isinstance(where, scoped_session):
        where = where()
    _require_usable(where)

    def execute(step: Step) -> Any:
        if isinstance(where, Session) and where.autoflush:
            where.flush()  # here and not by the statement: an error of the user's own rows is the user's own
        try:
            result = where.execute(_clause(step[0]), dict(step[1]))
            return result.scalar_one() if result.returns_rows else None
        except DBAPIError as error:
            explain(error)

    return run_framed(
        execute,
        steps,
        in_transaction=not _commits_at_once(where),
        checked=checked,
        may_refuse=may_refuse,
    )


async def run_async(
    where: Any, steps: Iterable[Step], *, checked: bool, may_refuse: bool = False
) -> list[Any]:
    """As binding.run_async, for what `is_async`."""
    if isinstance(where, async_scoped_session):
        where = where()
    if isinstance(where, AsyncConnection) and where.sync_connection is None:
        raise ConflictError(
            "where: the connection was not opened yet, nothing was enqueued; "
            "write `async with engine.connect() as connection`"
        )
    values: list[Any] = await where.run_sync(
        lambda sync: run(sync, steps, checked=checked, may_refuse=may_refuse)
    )
    return values


def _require_usable(where: Connection | Session) -> None:
    if isinstance(where, Session):
        if not where.is_active:
            raise ConflictError(
                "where: the session's transaction has failed before, nothing was enqueued; roll it back, then enqueue again"
            )
        return
    if where.closed or where.invalidated:
        raise ConflictError("where: the connection is closed, nothing was enqueued; open a new one")
    transaction = where.get_nested_transaction() or where.get_transaction()
    if transaction is not None and not transaction.is_active:
        raise ConflictError(
            "where: the transaction has failed before, nothing was enqueued; roll it back, then enqueue again"
        )


def _commits_at_once(where: Connection | Session) -> bool:
    connection = where.connection() if isinstance(where, Session) else where
    if not getattr(connection.connection.dbapi_connection, "autocommit", False):
        return False
    if connection.engine not in _warned:
        _warned.add(connection.engine)
        warnings.warn(
            f"pgqueue: {connection.engine!r} is in AUTOCOMMIT mode, so an enqueued job exists at once, "
            "whatever becomes of the rest of your work",
            stacklevel=2,
        )
    return True


@cache
def _clause(name: str) -> TextClause:
    """psycopg's `%(name)s` as SQLAlchemy's `:name`; the statements use CAST, so no other colon stands in them."""
    return text(re.sub(r"%\((\w+)\)s", r":\1", statement(name).decode()))
