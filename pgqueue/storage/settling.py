"""The end of a job's transaction in one message: its settlement, COMMIT, and the question what was left on the session.

Called by storage/job_transaction.py with a connection that a handler has used. One message and not a pipeline of
statements, since each statement of a pipeline costs both sides as much as a settlement does; hence literals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import generators, pq

from pgqueue.storage.handlers import AsyncJobConnection, JobConnection, Marked
from pgqueue.storage.statements import statement

_GOOD: Final = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
_PARAMETER: Final = re.compile(rb"%\((\w+)\)s")
_RESET_ROLE: Final = b"RESET SESSION AUTHORIZATION"
_DROP_TEMP: Final = b"DISCARD TEMP"
_UNLISTEN: Final = b"UNLISTEN *"


class _Settlement:
    """One statement of the end, in both its forms: by the name it was prepared under, and as it is written."""

    def __init__(self, name: str) -> None:
        text = statement(name).replace(b"%%", b"%")  # before any value is in it
        self._names = list(dict.fromkeys(found.decode() for found in _PARAMETER.findall(text)))
        at = {name: b"$%d" % number for number, name in enumerate(self._names, 1)}
        named = b"pgqueue_" + name.encode()
        self._text = text
        self.preparation = b"PREPARE %s AS %s" % (
            named,
            _PARAMETER.sub(lambda found: at[found[1].decode()], text),
        )
        self._execution = b"EXECUTE " + named

    def prepared(self, conn: Marked, values: dict[str, Any]) -> bytes:
        """The call of the prepared statement."""
        if not self._names:
            return self._execution
        return b"%s(%s)" % (self._execution, b", ".join(_literal(conn, values[name]) for name in self._names))

    def in_full(self, conn: Marked, values: dict[str, Any]) -> bytes:
        """The statement itself."""
        if not self._names:
            return self._text
        return _PARAMETER.sub(lambda found: _literal(conn, values[found[1].decode()]), self._text)


_ONE: Final = _Settlement("settle_in_transaction")
_MANY: Final = _Settlement("settle_many_in_transaction")
_LEFT: Final = _Settlement("release_session")
# Few jobs have a key and a result, or an audit: not prepared.
_ALSO: Final = {name: _Settlement(name) for name in ("keep_results", "note_moves")}
NOTHING: Final[Mapping[str, str]] = {}
_PREPARATIONS: Final = tuple(each.preparation for each in (_ONE, _MANY, _LEFT))


def settle_and_commit(
    conn: JobConnection, settlement: dict[str, Any], *, many: bool = False, also: Mapping[str, str] = NOTHING
) -> None:
    """Settle, run the statements of `also` with their rows, and commit; raise if any of it was refused.

    The settlement raises when the claim is lost or the mark is gone, and then COMMIT is not reached.
    """
    conn.answered()
    conn.refuse_if_ended()
    conn.leave_job()
    text = _last_message(conn, settlement, many=many, also=also)
    with conn.lock:
        conn.pgconn.send_query(text)
        results = conn.wait(generators.execute(conn.pgconn))
    if rest := _what_is_left(conn, results):
        with conn.pipeline():
            for each in rest:
                conn.execute(each)
        conn.commit()  # psycopg has begun a transaction for them


async def settle_and_commit_async(
    conn: AsyncJobConnection,
    settlement: dict[str, Any],
    *,
    many: bool = False,
    also: Mapping[str, str] = NOTHING,
) -> None:
    """The same on an async connection."""
    await conn.answered()
    conn.refuse_if_ended()
    conn.leave_job()
    text = _last_message(conn, settlement, many=many, also=also)
    async with conn.lock:
        conn.pgconn.send_query(text)
        results = await conn.wait(generators.execute(conn.pgconn))
    if rest := _what_is_left(conn, results):
        async with conn.pipeline():
            for each in rest:
                await conn.execute(each)
        await conn.commit()  # as above


def _last_message(conn: Marked, settlement: dict[str, Any], *, many: bool, also: Mapping[str, str]) -> bytes:
    each = _MANY if many else _ONE
    then = [_ALSO[name].in_full(conn, {"rows": rows}) for name, rows in also.items()]
    if not conn.habits.prepares:
        return b"; ".join((each.in_full(conn, settlement), *then, b"COMMIT", _LEFT.in_full(conn, {})))
    before = () if conn.prepared else _PREPARATIONS
    return b"; ".join((*before, each.prepared(conn, settlement), *then, b"COMMIT", _LEFT.prepared(conn, {})))


def _what_is_left(conn: Marked, results: Sequence[Any]) -> list[bytes]:
    """Check the answers; return the statements that the session still needs, as a rule none."""
    good = [result for result in results if result.status in _GOOD]
    if conn.habits.prepares and not conn.prepared:
        conn.prepared = len(good) >= len(_PREPARATIONS)
    for result in results:
        if result.status not in _GOOD:
            error = psycopg.errors.error_from_result(result)
            if isinstance(error, psycopg.errors.InvalidSqlStatementName):
                # A handler of this pool does DEALLOCATE ALL. From now on nothing relies on what was prepared.
                conn.habits.prepares = False
            raise error
    last = results[-1]
    has_temp, listens = last.get_value(0, 1) != b"0", last.get_value(0, 2) == b"t"
    if not (has_temp or listens):
        return []
    return [_RESET_ROLE, *([_DROP_TEMP] if has_temp else []), *([_UNLISTEN] if listens else [])]


def _literal(conn: Marked, value: Any) -> bytes:
    """A value of a settlement as SQL: None, a number, or text, quoted by libpq for this connection."""
    if value is None:
        return b"NULL"
    if isinstance(value, int | float):
        return repr(value).encode()
    if value.replace("-", "").isalnum() and value.isascii():
        return b"'%s'" % value.encode()  # a UUID
    return pq.Escaping(conn.pgconn).escape_literal(value.encode())
