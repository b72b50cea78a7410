"""What an application's code says of its topics becomes rows, once per start of a relay.

Called by the runtime before its first round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg

from pgqueue.core.events import Events, Warned
from pgqueue.core.registry import Registry
from pgqueue.storage.statements import statement


@dataclass(frozen=True, slots=True)
class Subscription:
    """Who wants a topic, or all that a pattern means: a task's jobs, or a sink (`task` None)."""

    pattern: str
    sink: str
    task: str | None = None


def store_tasks(conn: psycopg.Connection[Any], registry: Registry) -> None:
    """Tell the database the tasks' queues, priorities and attempts: a message may come before any worker does."""
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


def store_subscriptions(
    conn: psycopg.Connection[Any],
    subscriptions: Iterable[Subscription],
    defined_in: str | None,
    events: Events,
) -> None:
    """Make the subscriptions of the code called `defined_in` what it says now.

    Code without a name cannot tell its own former subscriptions from those of other code, so it takes none away.
    """
    wanted = [
        {"pattern": one.pattern, "sink": one.sink, **({"task": one.task} if one.task else {})}
        for one in subscriptions
    ]
    parameters = {
        "defined_in": defined_in or "",
        "wanted": orjson.dumps(wanted).decode(),
        "prune": defined_in is not None,
    }
    for pattern, sink, change in conn.execute(statement("put_subscriptions"), parameters).fetchall():
        if change == "unsubscribed":
            events.emit(
                Warned(
                    f"outbox_unsubscribed {pattern} {sink}",
                    f"{sink}: no longer subscribed to {pattern}, as {defined_in} does not say so any more; messages"
                    " that stand in its lines already stay there until it is back or they are skipped",
                    {"topic": pattern, "sink": sink},
                )
            )
