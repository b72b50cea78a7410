"""The caller's connection or session, whatever its kind: how to run statements in its transaction, as it stands.

Called by the producer. Nothing is SET, no isolation changed, nothing committed. psycopg's kinds are served here,
SQLAlchemy's in the module beside this one, which is loaded only for who uses it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, Error
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgqueue.errors import ConflictError
from pgqueue.storage.caller_faults import explain
from pgqueue.storage.statements import statement

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection as SAConnection
    from sqlalchemy.ext.asyncio import AsyncConnection as SAAsyncConnection
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    SyncWhere = Connection[Any] | Cursor[Any] | SAConnection | Session | scoped_session[Any]
    AsyncWhere = (
        AsyncConnection[Any] | AsyncCursor[Any] | SAAsyncConnection | AsyncSession | async_scoped_session[Any]
    )
    Where = SyncWhere | AsyncWhere | None
else:
    SyncWhere = AsyncWhere = Where = Any

Step = tuple[str, Mapping[str, Any]]
"""A statement's name and its parameters."""

_PSYCOPG: Final = (Connection, Cursor)
_PSYCOPG_ASYNC: Final = (AsyncConnection, AsyncCursor)
_SYNC_NAMES: Final = (
    "a psycopg Connection or Cursor, a SQLAlchemy Connection, Session or scoped_session, or None"
)
_ASYNC_NAMES: Final = "a psycopg AsyncConnection or AsyncCursor, a SQLAlchemy AsyncConnection, AsyncSession or async_scoped_session, or None"


@dataclass(frozen=True, slots=True)
class Frame:
    """The statements around several steps that make them all or none."""

    begin: str
    end: str
    undo: tuple[str, ...]


TRANSACTION: Final = Frame("enqueue_begin", "enqueue_commit", ("enqueue_rollback",))
SAVEPOINT: Final = Frame(
    "enqueue_savepoint",
    "enqueue_savepoint_release",
    ("enqueue_savepoint_undo", "enqueue_savepoint_release"),
)


def run_one(where: object, step: Step) -> Any:
    """Run one named statement where the caller is and return its value.

    Raises TypeError for what is no connection or session, ConflictError for one that cannot run a statement now;
    what else the database says comes as it is, with a note where one helps.
    """
    if isinstance(where, _PSYCOPG):
        # Not conn.cursor(): the caller's cursor_factory may bind parameters its own way.
        return _send(Cursor(_usable(where), row_factory=tuple_row), step)
    return _sqlalchemy_for(where).run(where, [step], checked=True)[0]


def run(where: object, steps: Iterable[Step], *, checked: bool, may_refuse: bool = False) -> list[Any]:
    """Run named statements where the caller is, all or none, and return the value of each. Raises as `run_one`.

    `checked`: nothing but the database can refuse a later step, so that an open transaction needs no savepoint
    to go back to. `may_refuse`: the database may refuse any of them in its ordinary course.
    """
    if isinstance(where, _PSYCOPG):
        conn = _usable(where)
        cursor: Cursor[Any] = Cursor(conn, row_factory=tuple_row)
        return run_framed(
            lambda step: _send(cursor, step),
            steps,
            in_transaction=_in_transaction(conn),
            checked=checked,
            may_refuse=may_refuse,
        )
    return _sqlalchemy_for(where).run(where, steps, checked=checked, may_refuse=may_refuse)  # type: ignore[no-any-return]


async def run_async(
    where: object, steps: Iterable[Step], *, checked: bool, may_refuse: bool = False
) -> list[Any]:
    """As `run`, on an async connection or session."""
    # An async handler's ctx.conn stands in for a connection until the first awaited call.
    lend: Callable[[], Awaitable[AsyncConnection[Any]]] | None = getattr(where, "pgqueue_connection", None)
    if lend is not None:
        where = await lend()
    if isinstance(where, _PSYCOPG_ASYNC):
        conn = _usable(where)
        cursor: AsyncCursor[Any] = AsyncCursor(conn, row_factory=tuple_row)
        return await _run_framed_async(
            lambda step: _send_async(cursor, step),
            steps,
            in_transaction=_in_transaction(conn),
            checked=checked,
            may_refuse=may_refuse,
        )
    alchemy = _sqlalchemy()
    if alchemy is not None and alchemy.is_async(where):
        return await alchemy.run_async(where, steps, checked=checked, may_refuse=may_refuse)  # type: ignore[no-any-return]
    if isinstance(where, _PSYCOPG) or (alchemy is not None and alchemy.is_sync(where)):
        raise TypeError(f"where: {_kind(where)} is not async; call the method without _async in its name")
    raise TypeError(f"where: {_kind(where)} is no async connection or session; pass {_ASYNC_NAMES}")


def run_framed(
    execute: Callable[[Step], Any],
    steps: Iterable[Step],
    *,
    in_transaction: bool,
    checked: bool,
    may_refuse: bool = False,
) -> list[Any]:
    """Run steps through `execute`, inside a frame if there are several and something can go wrong between them."""
    frame, steps = _frame(steps, in_transaction=in_transaction, checked=checked, may_refuse=may_refuse)
    if frame is None:
        return [execute(step) for step in steps]
    execute((frame.begin, {}))
    try:
        values = [execute(step) for step in steps]
    except BaseException as error:
        try:
            for name in frame.undo:
                execute((name, {}))
        except Exception as second:  # noqa: BLE001 - the first error is the one to tell
            error.add_note(f"going back to where the bulk began failed, too: {type(second).__name__}")
        raise
    execute((frame.end, {}))
    return values


async def _run_framed_async(
    execute: Callable[[Step], Awaitable[Any]],
    steps: Iterable[Step],
    *,
    in_transaction: bool,
    checked: bool,
    may_refuse: bool = False,
) -> list[Any]:
    frame, steps = _frame(steps, in_transaction=in_transaction, checked=checked, may_refuse=may_refuse)
    if frame is None:
        return [await execute(step) for step in steps]
    await execute((frame.begin, {}))
    try:
        values = [await execute(step) for step in steps]
    except BaseException as error:
        try:
            for name in frame.undo:
                await execute((name, {}))
        except Exception as second:  # noqa: BLE001 - the first error is the one to tell
            error.add_note(f"going back to where the bulk began failed, too: {type(second).__name__}")
        raise
    await execute((frame.end, {}))
    return values


def _frame(
    steps: Iterable[Step], *, in_transaction: bool, checked: bool, may_refuse: bool
) -> tuple[Frame | None, Iterator[Step]]:
    coming = iter(steps)
    first = list(islice(coming, 2))
    both = chain(first, coming)
    if not first or (len(first) < 2 and not (may_refuse and in_transaction)):
        return None, both
    if in_transaction and checked and not may_refuse:
        return None, both
    return (SAVEPOINT if in_transaction else TRANSACTION), both


def _usable(where: Any) -> Any:
    """The connection behind `where`; ConflictError if it is known that it can run no statement."""
    if isinstance(where, Cursor | AsyncCursor):
        if where.closed:
            raise ConflictError("where: the cursor is closed, nothing was enqueued; pass an open one")
        where = where.connection
    status = where.pgconn.transaction_status
    if status == TransactionStatus.UNKNOWN:
        raise ConflictError("where: the connection is closed or lost, nothing was enqueued; open a new one")
    if status == TransactionStatus.INERROR:
        raise ConflictError(
            "where: the transaction has failed before, nothing was enqueued; roll it back, then enqueue again"
        )
    if where.read_only:
        raise ConflictError(
            "where: the connection is read-only, nothing was enqueued; enqueue on one that may write"
        )
    return where


def _in_transaction(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    return not conn.autocommit or conn.pgconn.transaction_status != TransactionStatus.IDLE


def _has_rows(cursor: Cursor[Any] | AsyncCursor[Any]) -> bool:
    # Not `description`, which makes an object for every column: a tenth of an enqueue's own time.
    return cursor.pgresult is not None and cursor.pgresult.nfields > 0


def _send(cursor: Cursor[Any], step: Step) -> Any:
    try:
        cursor.execute(statement(step[0]), step[1])
        if not _has_rows(cursor):
            return None
        row = cursor.fetchone()
    except Error as error:
        explain(error)
    return None if row is None else row[0]


async def _send_async(cursor: AsyncCursor[Any], step: Step) -> Any:
    try:
        await cursor.execute(statement(step[0]), step[1])
        if not _has_rows(cursor):
            return None
        row = await cursor.fetchone()
    except Error as error:
        explain(error)
    return None if row is None else row[0]


def _sqlalchemy_for(where: object) -> Any:
    """The module that serves `where`, if it is one of SQLAlchemy's sync kinds; else TypeError."""
    alchemy = _sqlalchemy()
    if alchemy is not None and alchemy.is_sync(where):
        return alchemy
    if isinstance(where, _PSYCOPG_ASYNC) or (alchemy is not None and alchemy.is_async(where)):
        raise TypeError(f"where: {_kind(where)} is async; call the method whose name ends in _async")
    raise TypeError(f"where: {_kind(where)} is no connection or session; pass {_SYNC_NAMES}")


def _kind(where: object) -> str:
    return f"{type(where).__module__}.{type(where).__qualname__}"


def _sqlalchemy() -> Any:
    """The module for SQLAlchemy's kinds, if anybody has loaded SQLAlchemy: else nothing can be one of them."""
    if "sqlalchemy" not in sys.modules:
        return None
    return importlib.import_module("pgqueue.storage.binding_sqlalchemy")
