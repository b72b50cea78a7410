"""The doctor's look at what waits for somebody: messages, dead letters above their limit, tasks an application lacks.

Called by control/doctor on its connection. Reads only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import psycopg

from pgqueue.control.desk import read
from pgqueue.control.findings import Finding, literal
from pgqueue.control.outbox import TopicStatus
from pgqueue.control.rows import QueueHealth
from pgqueue.storage.statements import statement

OUTBOX_LATE_S: Final = 60.0


def work_checks(conn: psycopg.Connection[Any], tasks: Collection[str] | None) -> Iterator[Finding]:
    """Every check of this file; `tasks`: those an application registers, None where none was named."""
    yield from _outbox(conn)
    yield from _growth(conn)
    if tasks is not None:
        yield from _tasks(conn, tasks)


def _outbox(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    fine = True
    for row in read(conn, TopicStatus, "outbox_status"):
        for finding in _topic(row):
            fine = False
            yield finding
    if fine:
        yield Finding("PASS", "outbox", "no message waits for long, each topic has a receiver")


def _topic(row: TopicStatus) -> Iterator[Finding]:
    what, check = f"topic {row.topic}", "outbox"
    if row.parked:
        yield Finding(
            "WARN",
            check,
            f"{what}: {row.parked} messages are parked, as nobody subscribes",
            f"SELECT pgqueue.subscribe({literal(row.topic)}, 'TASK'); or start what receives it",
        )
    if row.oldest_age_s > OUTBOX_LATE_S:
        yield Finding(
            "FAIL",
            check,
            f"{what}: the oldest message has waited for {row.oldest_age_s:.0f} s",
            "pgqueue relay -A module:app",
        )
    if row.blocked_keys or row.dead:
        yield Finding(
            "WARN",
            check,
            f"{what}: {row.dead} messages were given up, {row.blocked_keys} keys wait for a decision about one",
            f"pgqueue outbox list --state dead --topic {row.topic}; then outbox replay or skip",
        )
    if row.failing:
        yield Finding(
            "WARN",
            check,
            f"{what}: deliveries of {row.failing} lines fail",
            f"pgqueue outbox list --state failing --topic {row.topic}",
        )


def _growth(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    fine = True
    for row in read(conn, QueueHealth, "queue_health", {"queue": None}):
        if row.dead_recent > row.dead_letter_limit:
            fine = False
            yield Finding(
                "WARN",
                "dead letter growth",
                f"queue {row.queue}: {row.dead_recent} dead letters in 15 minutes, {row.dead_letter_limit} are allowed",
                f"pgqueue dlq groups --queue {row.queue}",
            )
    if fine:
        yield Finding("PASS", "dead letter growth", "no queue is above its limit")


def _tasks(conn: psycopg.Connection[Any], tasks: Collection[str]) -> Iterator[Finding]:
    fine = True
    for task, place, count, example in conn.execute(statement("doctor_named_tasks")).fetchall():
        if task in tasks:
            continue
        fine = False
        words, fix = {
            "jobs": (f"{count} of the newest 10,000 jobs name it", f"pgqueue jobs cancel --task {task}"),
            "schedules": (f"schedule {example} fires it", f"pgqueue schedules pause {example}"),
            "outbox": (
                f"{count} subscriptions deliver to it",
                f"SELECT pgqueue.unsubscribe({literal(example)}, {literal(task)})",
            ),
        }[place]
        yield Finding(
            "WARN",
            "tasks",
            f"task {task}: the application does not register it, and {words}",
            f"{fix}; or deploy it",
        )
    if fine:
        yield Finding("PASS", "tasks", "the application registers every task that is named")
