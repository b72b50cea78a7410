"""What an error that left a handler, or its settlement, means for the job. Shared by all executors."""

from __future__ import annotations

import os
from typing import Final, Literal

import psycopg

from pgqueue.errors import TransactionMisuse
from pgqueue.storage.faults import Fault, classify

HIDDEN_ERROR: Final = (
    "the handler swallowed a database error; nothing it wrote could be committed. "
    "Let it raise, or put the risky part into `with ctx.transaction()`"
)
ENDED_INSIDE: Final = (
    "the job's transaction was ended inside its handler; return to commit, raise to roll back"
)

Verdict = Literal["failed", "claim_lost", "unknown"] | TransactionMisuse


def leave_if_forked(pid: int) -> None:
    """End a child that a handler forked and that came back from it: the sockets and the jobs are its parent's."""
    if os.getpid() != pid:
        os._exit(1)


def refuse_hidden_error(*, fails: bool) -> None:
    """Raise TransactionMisuse for a handler that returned though nothing of its transaction can be committed."""
    if fails:
        raise TransactionMisuse(HIDDEN_ERROR)


def handler_fault(error: BaseException, *, lost: bool) -> Verdict:
    """Say whether the attempt failed, the fence refused, the COMMIT's fate is unknown, or the transaction was misused."""
    if not isinstance(error, psycopg.Error):
        return "failed"
    fault = classify(error, broken=lost)
    if fault is Fault.CLAIM_LOST:
        return "claim_lost"
    if fault is Fault.MISUSE:
        return TransactionMisuse(ENDED_INSIDE)
    if fault is Fault.ABORTED:
        return TransactionMisuse(HIDDEN_ERROR)
    if fault in {Fault.RECONNECT, Fault.UNKNOWN} and lost:
        # Perhaps the answer to COMMIT was lost: the settler reads the truth back before anything is decided.
        return "unknown"
    return "failed"
