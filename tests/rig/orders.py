"""Runs scripted steps of several connections in every order. A step that waits for a lock lets the others go on.

Each actor has a thread and a connection of its own; whether a step is blocked is read from pg_stat_activity.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from typing import Any

import psycopg

Step = Callable[[psycopg.Connection[Any]], None]
BLOCKED_LOOK_S = 0.004
STEP_MAX_S = 10.0


class Actor:
    """A connection that does its steps one after the other, in its own thread."""

    def __init__(self, dsn: str) -> None:
        self.conn = psycopg.connect(dsn, autocommit=True)
        self.pid = self.conn.info.backend_pid
        self._todo: Queue[Step | None] = Queue()
        self.pending = 0
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def give(self, step: Step) -> None:
        self.pending += 1
        self._todo.put(step)

    def close(self) -> None:
        self._todo.put(None)
        self._thread.join(STEP_MAX_S)
        self.conn.close()

    def _work(self) -> None:
        while (step := self._todo.get()) is not None:
            try:
                step(self.conn)
            except psycopg.Error as error:
                self.errors.append(error)
                if not self.conn.closed:
                    self.conn.execute("ROLLBACK")
            finally:
                self.pending -= 1


def merges(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Every order of the actors' steps that keeps each actor's own order: lists of actor numbers."""
    if not any(lengths):
        yield []
        return
    for number, left in enumerate(lengths):
        if left:
            rest = [count - (i == number) for i, count in enumerate(lengths)]
            for tail in merges(rest):
                yield [number, *tail]


def play(
    dsn: str, watch: psycopg.Connection[Any], scripts: Sequence[Sequence[Step]], order: Sequence[int]
) -> list[list[BaseException]]:
    """Play one order to its end; returns each actor's errors."""
    actors = [Actor(dsn) for _ in scripts]
    steps = [iter(script) for script in scripts]
    try:
        for number in order:
            actors[number].give(next(steps[number]))
            _settle_down(watch, actors[number])
        until = time.monotonic() + STEP_MAX_S
        while any(actor.pending for actor in actors):
            if time.monotonic() > until:
                raise AssertionError(f"order {list(order)} does not end")
            time.sleep(0.0005)
        return [actor.errors for actor in actors]
    finally:
        for actor in actors:
            actor.close()


def _settle_down(watch: psycopg.Connection[Any], actor: Actor) -> None:
    until = time.monotonic() + STEP_MAX_S
    look_at = time.monotonic() + BLOCKED_LOOK_S
    while actor.pending:
        now = time.monotonic()
        if now > look_at:
            row = watch.execute(
                "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", (actor.pid,)
            ).fetchone()
            if row is not None and row[0] == "Lock":
                return
            look_at = now + BLOCKED_LOOK_S
        if now > until:
            raise AssertionError("a step neither ends nor waits for a lock")
        time.sleep(0.0002)
