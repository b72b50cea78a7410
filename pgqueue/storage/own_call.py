"""One enqueue in a transaction of our own: what to do after an error, and what became of a lost COMMIT.

Called by storage/own_pool.py. Before COMMIT was sent nothing is committed for sure; after it only the database knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Any, Final

import psycopg

from pgqueue.errors import DatabaseUnreachable, UnknownOutcome
from pgqueue.storage.caller_faults import explain
from pgqueue.storage.connect import PRODUCER, connect, place_of
from pgqueue.storage.deadline import SETUP_S, deadline
from pgqueue.storage.faults import Fault, classify, summary_of
from pgqueue.storage.statements import statement

GIVE_UP_S: Final = 10.0
"""How long a call is repeated, and how long the truth about a lost COMMIT is looked for."""

MESSAGE_RECEIPT: Final = "message "
REPLACED: Final = 1 << 62
"""A statement's number is minus the id of the job that had the key, and so much less if the call replaced it."""

_PAUSE_S: Final = 0.2
_FREE_TRIES: Final = 5  # a restarted server leaves a pool full of dead connections, to be found one by one
_REPEATED: Final = frozenset(
    {Fault.RETRY, Fault.RECONNECT, Fault.UNKNOWN, Fault.READ_ONLY, Fault.POOLED, Fault.RESOURCE}
)


class After(Enum):
    """What to do next."""

    DONE = auto()
    REPEAT = auto()
    READ_BACK = auto()


class Call:
    """The state of one call over its attempts; knows nothing of sync and async."""

    def __init__(self, dsn: str, *, repeats: bool) -> None:
        self.values: list[Any] = []
        self.receipt: str | None = None
        self.sending = (
            False  # an error while nothing of ours is on its way is the error of the caller's generator
        )
        self.committing = False
        self.until = time.monotonic() + GIVE_UP_S
        self._dsn = dsn
        self._repeats = repeats
        self._tries = 0

    def begin(self) -> None:
        """A new attempt: forget the last one's answers."""
        self.values, self.receipt, self.sending, self.committing = [], None, False, False
        self._tries += 1

    def took(self, row: tuple[Any, ...] | None) -> None:
        """A statement's answer; enqueue_one_own brings its receipt along."""
        if row is None:
            raise psycopg.InterfaceError("a statement of the producer returned no row")
        self.values.append(row[0])
        if len(row) > 1:
            self.receipt = row[1]

    def lacks_receipt(self) -> Mapping[str, int] | None:
        """The parameters to ask for a bulk's receipt with: one new job stands for all, they commit together."""
        if self.receipt is not None or not self.values or isinstance(self.values[0], int):
            return None
        for number in reversed(list(self._numbers())):
            if number > 0:
                return {"job_id": number}
        return None

    def judge(self, error: Exception, *, broken: bool) -> After:
        """What to do after `error`; raises what the caller gets to see if nothing helps."""
        if not self.sending:
            raise error
        fault = Fault.RECONNECT if isinstance(error, TimeoutError) else classify(error, broken=broken)
        if self.committing and (broken or fault in {Fault.RECONNECT, Fault.UNKNOWN}):
            if self.receipt is not None:
                return After.READ_BACK
            if not any(number <= -REPLACED for number in self._numbers()):
                return After.DONE  # there was nothing to commit: every key had its job
            # A job that was replaced by this call may be replaced by it once more.
        if fault in _REPEATED and self._repeats and time.monotonic() < self.until:
            return After.REPEAT
        if broken or fault is Fault.RECONNECT:
            raise DatabaseUnreachable(
                f"{place_of(self._dsn)}: lost while enqueueing, nothing was enqueued: {summary_of(error)}; try again"
            ) from None
        if isinstance(error, psycopg.Error):
            explain(error)
        raise error

    def learned(self, outcome: str) -> After:
        """What to do once the truth about a lost COMMIT is known: committed or absent."""
        if outcome == "committed":
            return After.DONE
        if self._repeats and time.monotonic() < self.until:
            return After.REPEAT
        raise DatabaseUnreachable(
            f"{place_of(self._dsn)}: lost during COMMIT, nothing was enqueued; try again"
        )

    def _numbers(self) -> Iterator[int]:
        """What the statements answered: a number, or an array's text such as {1,2,-3}."""
        for value in self.values:
            yield from [value] if isinstance(value, int) else map(int, filter(None, value[1:-1].split(",")))

    def pause_s(self) -> float:
        """How long to wait before the next attempt."""
        return 0.0 if self._tries < _FREE_TRIES else _PAUSE_S


def read_back(dsn: str, receipt: str | None, connect_timeout_s: float) -> str:
    """What became of a transaction: committed or absent. Waits while its old backend is still at work on it.

    Raises UnknownOutcome if the database does not tell in ten seconds.
    """
    until = time.monotonic() + GIVE_UP_S
    of_message = (receipt or "").startswith(MESSAGE_RECEIPT)
    question = "emit_outcome" if of_message else "enqueue_outcome"
    while True:
        try:
            with (
                connect(dsn, PRODUCER, connect_timeout_s=connect_timeout_s, prepare=False) as conn,
                deadline(conn, SETUP_S),
            ):
                row = conn.execute(statement(question), {"receipt": receipt}).fetchone()
                verdict = "unreadable" if row is None else str(row[0])
        except (psycopg.Error, DatabaseUnreachable) as error:
            verdict = f"not to be learned: {summary_of(error)}"
        if verdict in {"committed", "absent"}:
            return verdict
        if time.monotonic() > until:
            if of_message:
                raise UnknownOutcome(
                    f"emit in {place_of(dsn)}: the answer to COMMIT was lost and the outcome is {verdict}; look whether"
                    " its receivers have the message before you emit it again"
                )
            raise UnknownOutcome(
                f"enqueue in {place_of(dsn)}: the answer to COMMIT was lost and the outcome is {verdict}; "
                "look for the job before you enqueue it again, or use an idempotency key"
            )
        time.sleep(_PAUSE_S)
