"""Schedules that code defines become rows, once per start of a scheduler; what code no longer names is an orphan.

Called by the runtime before its first round. A pause, and what was decided already, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import psycopg

from pgqueue.core.events import Events, Warned
from pgqueue.core.registry import Registry
from pgqueue.core.schedule import ScheduleDefinition
from pgqueue.storage.statements import statement


def store_tasks(conn: psycopg.Connection[Any], registry: Registry) -> None:
    """Tell the database the tasks' queues, priorities and attempts: a fire may come before any worker does."""
    tasks = [
        {
            "name": task.name,
            "queue": task.queue,
            "priority": task.priority,
            "max_attempts": registry.policy(task.name, task.queue).max_attempts,
            "batch_window_s": task.batch_window_s,
            "batch_key": task.batch_key,
            "audit_full": task.audit_full,
        }
        for task in registry.tasks.values()
    ]
    if tasks:
        conn.execute(statement("register_tasks"), {"tasks": orjson.dumps(tasks).decode()})


def store_schedules(
    conn: psycopg.Connection[Any], definitions: Sequence[ScheduleDefinition], defined_in: str | None
) -> Mapping[str, str]:
    """Define or change the schedules of the code called `defined_in`; what became of each: created, changed, same."""
    changes = {}
    for definition in definitions:
        parameters = {
            "definition": definition.as_json(),
            "source": "code",
            "defined_in": defined_in,
            "reason": None,
            "actor": None,
            "via": "code",
        }
        row = conn.execute(statement("put_schedule"), parameters).fetchone()
        changes[definition.name] = str(row[0]) if row is not None else "same"
    return changes


def mark_orphans(
    conn: psycopg.Connection[Any],
    definitions: Sequence[ScheduleDefinition],
    defined_in: str,
    events: Events,
    *,
    prune_as: str | None = None,
) -> None:
    """Stop the schedules that this code defined once and does not any more; delete them if `prune_as` says who does."""
    names = [definition.name for definition in definitions]
    rows = conn.execute(statement("orphan_schedules"), {"names": names, "defined_in": defined_in}).fetchall()
    for (name,) in sorted(rows):
        events.emit(
            Warned(
                f"schedule_orphaned {name}",
                f"schedule {name}: no longer defined in code, so it fires no more; delete it with"
                " `pgqueue schedules delete`, or define it again",
                {"schedule": name},
            )
        )
    if prune_as is not None:
        conn.execute(statement("prune_orphans"), {"defined_in": defined_in, "actor": prune_as})
