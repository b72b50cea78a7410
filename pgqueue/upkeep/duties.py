"""Runs the duties of one process by turns: one thread, one connection, each duty with its interval.

A duty that fails is reported and tried again at its next turn; it never stops the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from pgqueue.core.events import DatabaseTrouble, DutyDone, Events, Warned
from pgqueue.errors import DatabaseUnreachable
from pgqueue.storage.connect import UPKEEP
from pgqueue.storage.faults import summary_of
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement


@dataclass(frozen=True, slots=True)
class Done:
    """One round's result: how much changed, and in how many seconds the next is wanted (None = after the interval)."""

    changed: int
    again_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Duty:
    """One duty. `alone`: one process at a time in the whole fleet, by an advisory lock held for the round."""

    name: str
    interval_s: float
    run: Callable[[psycopg.Connection[Any]], Done]
    alone: bool = False


class Upkeep:
    """One per worker process."""

    def __init__(
        self, dsn: str, duties: Sequence[Duty], events: Events, *, label: str, connect_timeout_s: float
    ) -> None:
        self._duties = tuple(duties)
        self._events = events
        self._stop = threading.Event()
        self._link = Link(
            dsn,
            UPKEEP,
            label=label,
            connect_timeout_s=connect_timeout_s,
            deadline_s=30,
            stop=self._stop,
            report=lambda trouble: events.emit(DatabaseTrouble(trouble.room, trouble.cause, trouble.over)),
        )
        self._thread = threading.Thread(target=self._work, name="pgqueue-upkeep", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it after the statement it is at."""
        self._stop.set()
        self._thread.join(5)
        self._link.close()

    def _work(self) -> None:
        now = time.monotonic()
        due = {duty.name: now for duty in self._duties}
        while not self._stop.is_set():
            duty = min(self._duties, key=lambda d: due[d.name])
            if self._stop.wait(max(0.0, due[duty.name] - time.monotonic())):
                return
            due[duty.name] = time.monotonic() + self._round(duty)

    def _round(self, duty: Duty) -> float:
        began = time.monotonic()
        try:
            done = self._link.run(lambda conn: _alone(conn, duty) if duty.alone else duty.run(conn))
        except DatabaseUnreachable:
            return duty.interval_s
        except Exception as error:  # noqa: BLE001 - one duty's fault must not stop the others
            self._events.emit(
                Warned(f"upkeep_{duty.name}", f"upkeep {duty.name} failed: {summary_of(error)}")
            )
            return duty.interval_s
        if done.changed:
            self._events.emit(DutyDone(duty.name, time.monotonic() - began, done.changed))
        return duty.interval_s if done.again_in_s is None else min(duty.interval_s, max(0.0, done.again_in_s))


def _alone(conn: psycopg.Connection[Any], duty: Duty) -> Done:
    with conn.transaction():
        row = conn.execute(statement("try_duty"), {"duty": duty.name}).fetchone()
        return duty.run(conn) if row is not None and row[0] else Done(0)
