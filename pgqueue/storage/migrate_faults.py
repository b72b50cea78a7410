"""What a database error means to somebody who migrates: one line with the object and the next step.

Called by storage/migrate alone. It reads errors and touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import psycopg

from pgqueue.errors import ConfigurationError, ConflictError, DatabaseError, DatabaseUnreachable, PgQueueError
from pgqueue.storage.faults import Fault, classify, sqlstate_of, summary_of

WORK_WOULD_BE_LOST: Final = "PQ003"
LOCK_NOT_FREE: Final = frozenset({"55P03", "40P01"})

_FOREIGN: Final = (
    ConflictError,
    "schema pgqueue holds objects that pgqueue did not make: move them elsewhere",
)
_CUT_OFF: Final = (
    DatabaseUnreachable,
    "the database is at the revision before or after it: run the command again",
)
_BY_STATE: Final[Mapping[str, tuple[type[PgQueueError], str]]] = {
    "42501": (
        ConfigurationError,
        "connect as the owner of schema pgqueue, or ask for CREATE on the database (first upgrade) or a pgqueue_* role (to look)",
    ),
    "42P06": _FOREIGN,
    "42P07": _FOREIGN,
    "42710": _FOREIGN,
    "42723": _FOREIGN,
    "2BP01": (
        ConflictError,
        "drop what depends on pgqueue's tables first (psql's \\d+ shows views and keys)",
    ),
}
_BY_FAULT: Final[Mapping[Fault, tuple[type[PgQueueError], str]]] = {
    Fault.READ_ONLY: (
        ConfigurationError,
        "this server is a standby or read-only: give the DSN of the primary",
    ),
    Fault.RECONNECT: _CUT_OFF,
    Fault.UNKNOWN: _CUT_OFF,
}


class LocksTakenError(Exception):
    """A table's lock was not free within the lock timeout; the revision may be tried again."""


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Turn an error of Postgres, psycopg or SQLAlchemy into ours, saying what `action` could not be done."""
    try:
        yield
    except Exception as error:
        # SQLAlchemy keeps the driver's error in `orig`; asking for its class would import all of it.
        cause = getattr(error, "orig", error)
        if not isinstance(cause, psycopg.Error):
            raise
        raise _verdict(cause, action) from None


def _verdict(error: psycopg.Error, action: str) -> PgQueueError | LocksTakenError:
    state = sqlstate_of(error)
    if state in LOCK_NOT_FREE:
        return LocksTakenError(action)
    if state == WORK_WOULD_BE_LOST:
        return ConflictError(f"{error.diag.message_primary}; see to them first, or add --force")
    kind, next_step = (
        _BY_STATE.get(state or "")
        or _BY_FAULT.get(classify(error))
        or (DatabaseError, "nothing was changed by it")
    )
    return kind(f"{action}: {summary_of(error)}; {next_step}")
