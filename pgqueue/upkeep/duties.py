"""Runs the duties of one process by turns: one thread, one connection, each duty with its interval.

A duty that fails is reported and tried again at its next turn; it never stops the others. What was done, by whom
and why not is noted in upkeep_duties. A round is a step of bounded work; a duty that has more asks for its next soon.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from pgqueue.core.events import DatabaseTrouble, DutyDone, Events, Warned
from pgqueue.errors import DatabaseUnreachable
from pgqueue.storage.connect import UPKEEP, Role
from pgqueue.storage.faults import Fault, classify, summary_of
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement

LEASE_S: Final = (
    90.0  # a round ends within the statement timeouts of its steps; after this another process takes over
)
FAILED_S: Final = 10.0  # the longest rest of a duty that failed
LOOK_S: Final = 1.0  # how soon a process looks again whether a duty that another one does is free
NOTE_S: Final = (
    30.0  # duties that every process does are noted this often, or rows would be written all the time
)
IDLE_S: Final = 1.0

_CONNECTION: Final = frozenset(
    {Fault.RECONNECT, Fault.UNKNOWN, Fault.READ_ONLY, Fault.POOLED, Fault.RESOURCE}
)


@dataclass(frozen=True, slots=True)
class Done:
    """One round's result: how much changed, and in how many seconds the next is wanted (None = after the interval)."""

    changed: int
    again_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Duty:
    """One duty. `alone`: one process does it for the whole fleet, whichever comes first once it is due."""

    name: str
    interval_s: float
    run: Callable[[psycopg.Connection[Any]], Done]
    alone: bool = False


@dataclass(slots=True)
class _Tally:
    """Rounds of a duty that are not noted yet."""

    noted_at: float = float("-inf")
    rounds: int = 0
    changed: int = 0
    longest_s: float = 0.0


class Upkeep:
    """The duties of one process that share a thread. `when`: does them only while it says so."""

    def __init__(
        self,
        dsn: str,
        duties: Sequence[Duty],
        events: Events,
        *,
        actor: str,
        label: str,
        connect_timeout_s: float,
        role: Role = UPKEEP,
        when: Callable[[], bool] | None = None,
    ) -> None:
        self._duties = tuple(duties)
        self._events = events
        self._actor = actor
        self._when = when
        self._tallies = {duty.name: _Tally() for duty in self._duties}
        self._stop = threading.Event()
        self._link = Link(
            dsn,
            role,
            label=label,
            connect_timeout_s=connect_timeout_s,
            deadline_s=LEASE_S,
            stop=self._stop,
            report=lambda trouble: events.emit(
                DatabaseTrouble(trouble.room, trouble.cause, trouble.over, trouble.sqlstate)
            ),
        )
        self._thread = threading.Thread(target=self._work, name=f"pgqueue-{role.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it after the statement it is at."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5)
        self._link.close()

    def _work(self) -> None:
        now = time.monotonic()
        due = {duty.name: now for duty in self._duties}
        while not self._stop.is_set():
            if self._when is not None and not self._when():
                self._link.close()
                self._stop.wait(IDLE_S)
                continue
            duty = min(self._duties, key=lambda d: due[d.name])
            rest_s = due[duty.name] - time.monotonic()
            if rest_s > 0:
                # Not longer than it takes to notice that `when` has changed.
                self._stop.wait(rest_s if self._when is None else min(rest_s, IDLE_S))
                continue
            due[duty.name] = time.monotonic() + self._round(duty)

    def _round(self, duty: Duty) -> float:
        """Do one round, if it is this process's turn; returns the seconds until it should look again."""
        try:
            return self._link.run(lambda conn: self._turn(conn, duty))
        except DatabaseUnreachable:  # the process is stopping
            return duty.interval_s
        except Exception as error:  # noqa: BLE001 - one duty's fault must not stop the others
            self._warn(duty, summary_of(error))
            return min(duty.interval_s, FAILED_S)

    def _turn(self, conn: psycopg.Connection[Any], duty: Duty) -> float:
        if duty.alone:
            wait_s = _take(conn, duty)
            if wait_s > 0:
                return min(duty.interval_s, max(wait_s, LOOK_S))
        began = time.monotonic()
        try:
            done = duty.run(conn)
        except Exception as error:
            broken = conn.closed or conn.broken
            if broken or (isinstance(error, psycopg.Error) and classify(error, broken=broken) in _CONNECTION):
                raise
            with contextlib.suppress(psycopg.Error):
                conn.rollback()
            cause = summary_of(error)
            self._warn(duty, cause)
            next_in_s = min(duty.interval_s, FAILED_S)
            self._note(conn, duty, _Tally(), time.monotonic() - began, next_in_s, cause)
            return next_in_s
        return self._done(conn, duty, done, time.monotonic() - began)

    def _done(self, conn: psycopg.Connection[Any], duty: Duty, done: Done, took_s: float) -> float:
        if done.changed:
            self._events.emit(DutyDone(duty.name, took_s, done.changed))
        next_in_s = (
            duty.interval_s if done.again_in_s is None else min(duty.interval_s, max(0.0, done.again_in_s))
        )
        tally = self._tallies[duty.name]
        tally.rounds += 1
        tally.changed += done.changed
        tally.longest_s = max(tally.longest_s, took_s)
        if duty.alone or time.monotonic() - tally.noted_at >= NOTE_S:
            self._note(conn, duty, tally, took_s, next_in_s, None)
            self._tallies[duty.name] = _Tally(noted_at=time.monotonic())
        return next_in_s

    def _note(
        self,
        conn: psycopg.Connection[Any],
        duty: Duty,
        tally: _Tally,
        ago_s: float,
        next_in_s: float,
        error: str | None,
    ) -> None:
        parameters = {
            "duty": duty.name,
            "ago_s": ago_s,
            "took_s": tally.longest_s,
            "rounds": tally.rounds,
            "changed": tally.changed,
            "next_in_s": next_in_s if duty.alone else None,
            "error": error,
            "actor": self._actor,
        }
        conn.execute(statement("note_duty"), parameters)

    def _warn(self, duty: Duty, cause: str) -> None:
        self._events.emit(Warned(f"upkeep_{duty.name}", f"upkeep {duty.name} failed: {cause}"))


def _take(conn: psycopg.Connection[Any], duty: Duty) -> float:
    """Take a duty for the length of the lease: 0, or the seconds until it is due."""
    parameters = {"duty": duty.name, "interval_s": duty.interval_s, "lease_s": LEASE_S}
    row = conn.execute(statement("take_duty"), parameters).fetchone()
    return 0.0 if row is None else float(row[0])
