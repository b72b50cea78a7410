"""The one table that says what an error of the database means. Every room that talks to Postgres asks here.

Never by exception class: psycopg raises InternalError for a lost connection (25P03) and for a standby
(25006), and errors met while connecting, or after a server crash, carry no SQLSTATE at all.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final

import psycopg

from pgqueue.errors import ClaimLost, DatabaseError, TransactionMisuse

CLAIM_LOST_STATE: Final = "PQ001"
TRANSACTION_ENDED_STATE: Final = "PQ002"


class Fault(StrEnum):
    """What to do about an error."""

    RETRY = "retry"  # roll back, repeat the whole transaction
    RECONNECT = "reconnect"  # discard the connection; repeat if the statement surely did not commit
    UNKNOWN = "unknown"  # the answer to COMMIT may be lost: read the truth back
    READ_ONLY = "read_only"  # reconnect to a writable host
    POOLED = "pooled"  # a transaction pooler: stop preparing statements
    RESOURCE = "resource"  # pause, capped backoff; never counted against a job
    REFUSED = "refused"  # rights, missing objects: say what to do; slow retry while running
    BAD_DATA = "bad_data"  # one member of a batch: split until it is alone
    ABORTED = "aborted"  # the transaction had failed before
    CLAIM_LOST = "claim_lost"  # the fence refused
    MISUSE = "misuse"  # the handler ended its job's transaction
    BUG = "bug"  # three tries, then surface it with code and statement


_BY_CODE: Final = MappingProxyType(
    {
        "40001": Fault.RETRY,
        "40P01": Fault.RETRY,
        "55P03": Fault.RETRY,
        "57014": Fault.RETRY,
        "55006": Fault.RETRY,
        "57P01": Fault.RECONNECT,
        "57P02": Fault.RECONNECT,
        "57P03": Fault.RECONNECT,
        "57P05": Fault.RECONNECT,
        "25P03": Fault.RECONNECT,
        "25P04": Fault.RECONNECT,
        "08007": Fault.UNKNOWN,
        "40003": Fault.UNKNOWN,
        "25006": Fault.READ_ONLY,
        "26000": Fault.POOLED,
        "42P05": Fault.POOLED,
        "58030": Fault.RESOURCE,
        "57P04": Fault.REFUSED,
        "3D000": Fault.REFUSED,
        "3F000": Fault.REFUSED,
        "42501": Fault.REFUSED,
        "42P01": Fault.REFUSED,
        "42703": Fault.REFUSED,
        "42883": Fault.REFUSED,
        "0A000": Fault.REFUSED,
        "25P01": Fault.ABORTED,
        "25P02": Fault.ABORTED,
        "3B001": Fault.ABORTED,
        CLAIM_LOST_STATE: Fault.CLAIM_LOST,
        TRANSACTION_ENDED_STATE: Fault.MISUSE,
    }
)
_BY_CLASS: Final = MappingProxyType(
    {
        "08": Fault.RECONNECT,
        "53": Fault.RESOURCE,
        "28": Fault.REFUSED,
        "22": Fault.BAD_DATA,
        "23": Fault.BAD_DATA,
        "54": Fault.BAD_DATA,
        "21": Fault.BAD_DATA,
    }
)


def classify(error: BaseException, *, broken: bool = False) -> Fault:
    """Say what `error` means; `broken` is the state of the connection it was met on.

    A code goes before its class, both before the connection's state.
    """
    state = sqlstate_of(error)
    if state is not None:
        known = _BY_CODE.get(state) or _BY_CLASS.get(state[:2])
        if known is not None:
            return known
        return Fault.RECONNECT if broken else Fault.BUG
    if isinstance(error, ClaimLost):
        return Fault.CLAIM_LOST
    if isinstance(error, TransactionMisuse):
        return Fault.MISUSE
    if broken or isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | OSError):
        return Fault.RECONNECT
    return Fault.BUG


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of a psycopg error, or of the one it was raised from; None if there is none."""
    seen = 0
    current: BaseException | None = error
    while current is not None and seen < 5:
        state = getattr(current, "sqlstate", None)
        if isinstance(state, str):
            return state
        current = current.__cause__ or current.__context__
        seen += 1
    return None


def summary_of(error: BaseException) -> str:
    """One line that names a database error without any row value: code, primary message, constraint."""
    diag = getattr(error, "diag", None)
    primary = getattr(diag, "message_primary", None)
    if primary:
        constraint = getattr(diag, "constraint_name", None)
        return f"{sqlstate_of(error)} {primary}" + (f" (constraint {constraint})" if constraint else "")
    # Errors of libpq itself (connect, lost socket) hold no row values; their first line says it all.
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def is_transient(fault: Fault) -> bool:
    """Whether waiting and trying again can help."""
    return fault in {
        Fault.RETRY,
        Fault.RECONNECT,
        Fault.UNKNOWN,
        Fault.READ_ONLY,
        Fault.POOLED,
        Fault.RESOURCE,
        Fault.REFUSED,
    }


def surfaced(error: BaseException, *, statement: str) -> DatabaseError:
    """The error to show for a fault that no retry mends, with the statement's name."""
    return DatabaseError(f"statement {statement}: {summary_of(error)}; run `pgqueue doctor`")
