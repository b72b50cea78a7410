"""`ctx.once`: a key that a handler takes in its job's transaction, so that what it guards is done once.

Called by the contexts on the handler's own connection; commits or rolls back with the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import orjson
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import tuple_row

from pgqueue.core.durations import parse_duration
from pgqueue.core.names import check_key
from pgqueue.core.payload import encode_args
from pgqueue.errors import InvalidArguments
from pgqueue.storage.statements import statement

TTL_DEFAULT_S: Final = 86_400.0
RESULT_BYTES_MAX: Final = 65_536

_WRAP: Final = '{"result":'


class Once:
    """The answer of `ctx.once`: true for the first. For later ones, `job_id` is the first job and `result` what it kept."""

    __slots__ = ("_key", "first", "job_id", "result")

    def __init__(self, key: OnceKey, row: tuple[Any, ...]) -> None:
        taken, holder, result = row
        self._key = key
        self.first: bool = taken
        self.job_id: int = holder
        self.result: Any = None if result is None else orjson.loads(result)

    def __bool__(self) -> bool:
        return self.first


class SyncOnce(Once):
    """In a sync handler."""

    __slots__ = ("_conn",)

    def __init__(self, key: OnceKey, row: tuple[Any, ...], conn: Connection[Any]) -> None:
        super().__init__(key, row)
        self._conn = conn

    def keep(self, value: object) -> None:
        """Store what later callers get as `result`: plain JSON of at most 64 KiB. Raises InvalidArguments."""
        self._conn.execute(statement("keep_once"), self._key.keeping(value))
        self.result = value


class AsyncOnce(Once):
    """In an async handler."""

    __slots__ = ("_conn",)

    def __init__(self, key: OnceKey, row: tuple[Any, ...], conn: AsyncConnection[Any]) -> None:
        super().__init__(key, row)
        self._conn = conn

    async def keep(self, value: object) -> None:
        """As `SyncOnce.keep`."""
        await self._conn.execute(statement("keep_once"), self._key.keeping(value))
        self.result = value


class OnceKey:
    """A checked key of a task's handlers, with its life."""

    __slots__ = ("_parameters",)

    def __init__(self, task: str, job_id: int, key: str, ttl: str | float | timedelta | None) -> None:
        self._parameters: Mapping[str, Any] = {
            "task": f"once:{task}",
            "key": check_key(key, field="key"),
            "job_id": job_id,
            "ttl_s": None if ttl is None else parse_duration(ttl, field="ttl", minimum_s=0.001),
        }

    def take(self, conn: Connection[Any]) -> SyncOnce:
        """Take it in the connection's transaction."""
        cursor: Cursor[Any] = Cursor(conn, row_factory=tuple_row)
        return SyncOnce(self, _one(cursor.execute(statement("take_once"), self._parameters).fetchone()), conn)

    async def take_async(self, conn: AsyncConnection[Any]) -> AsyncOnce:
        """The same on an async connection."""
        cursor: AsyncCursor[Any] = AsyncCursor(conn, row_factory=tuple_row)
        await cursor.execute(statement("take_once"), self._parameters)
        return AsyncOnce(self, _one(await cursor.fetchone()), conn)

    def keeping(self, value: object) -> Mapping[str, Any]:
        """The parameters that store `value` under the key."""
        try:
            text = encode_args({"result": value}, bytes_max=RESULT_BYTES_MAX + len(_WRAP) + 1)
        except InvalidArguments as error:
            raise InvalidArguments("once", error.reason, path=error.path, limit=error.limit) from None
        return {**self._parameters, "result": text[len(_WRAP) : -1]}


def _one(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    assert row is not None  # noqa: S101 - the statement always has one row
    return row
