"""What to say when the database refuses an enqueue on the caller's own connection. Called by storage/binding.py.

What the caller's own code handles (serialization failures, lost connections) stays the driver's exception, with a
note; what only pgqueue's operator can mend becomes one line. Parameters and row values never get into a message.
"""

from __future__ import annotations

import re
from typing import Any, Final, NoReturn

from pgqueue.errors import ConflictError, DatabaseError, DuplicateKey, PgQueueError, SchemaMismatch
from pgqueue.storage.faults import sqlstate_of, summary_of

DUPLICATE_KEY_STATE: Final = "PQ013"
_KEYED: Final = re.compile(r"task (\S{1,200}): job (\d+) has this idempotency key")
_NOTES = {
    "40001": "pgqueue: from REPEATABLE READ up, two transactions that use one idempotency key meet like any "
    "conflicting writes; repeat the transaction",
    "40P01": "pgqueue: two transactions took idempotency keys, or keys of messages, in opposite orders; repeat the transaction",
    "55P03": "pgqueue: the idempotency key, or the key of a message, is held by a transaction that is still open; repeat the transaction",
}


def explain(error: Exception) -> NoReturn:
    """Raise what helps the caller of an enqueue whose statement met `error`: the error itself, or one of ours."""
    if hasattr(error, "hide_parameters"):
        # SQLAlchemy's message lists the parameters, and those are the job's arguments.
        error.hide_parameters = True
    origin: Any = getattr(error, "orig", None) or error
    state = _state(origin)
    if not isinstance(state, str):
        raise error
    if state in _NOTES:
        error.add_note(_NOTES[state])
        raise error
    keyed = _KEYED.search(str(origin)) if state == DUPLICATE_KEY_STATE else None
    ours = _translated(state, origin) if keyed is None else DuplicateKey(keyed[1], int(keyed[2]))
    if ours is None:
        raise error
    raise ours from None


def _state(origin: Any) -> Any:
    return getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)


def _translated(state: str, origin: BaseException) -> PgQueueError | None:
    if state == "25P02":
        return ConflictError(
            "where: the transaction has failed before, nothing was enqueued; roll it back, then enqueue again"
        )
    if state == "25006":
        return ConflictError(
            "where: the transaction is read-only, nothing was enqueued; enqueue on one that may write"
        )
    if state in {"3F000", "42P01", "42883", "42703"}:
        return SchemaMismatch(
            f"schema pgqueue: missing in this database, or older than this code ({state}); run `pgqueue db upgrade`"
        )
    if state == "42501":
        return DatabaseError(
            "schema pgqueue: this role may not enqueue; grant it USAGE on the schema and EXECUTE on its functions"
        )
    if state[:2] in {"21", "22", "23", "54"}:
        return DatabaseError(f"enqueue: Postgres refused the job: {_summary(origin)}")
    return None


def _summary(origin: BaseException) -> str:
    if sqlstate_of(origin) is None:
        return str(_state(origin))
    return summary_of(origin)
