"""The doctor's look at promises and at those who watch them: objectives, long pauses, alerts, notifications. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from pgqueue.control.desk import read
from pgqueue.control.findings import Finding
from pgqueue.control.rows import QueueHealth
from pgqueue.storage.statements import statement

EVALUATION_LATE_S: Final = 120.0
PAUSE_LONG_S: Final = 86_400.0
NOTIFICATIONS_SHARE: Final = 0.1


def watch(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    """Every check of this file."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(statement("doctor_watch")).fetchone()
    assert row is not None  # noqa: S101 - an aggregate without GROUP BY has one row
    yield from _promises(read(conn, QueueHealth, "queue_health", {"queue": None}), row)
    yield from _alerts(row)
    used = row["notifications"]
    if used > NOTIFICATIONS_SHARE:
        yield Finding(
            "WARN",
            "notifications",
            f"the server's queue of notifications is {used:.0%} full: when it is full, commits that notify fail",
            "end the session that has listened longest without reading: see pg_stat_activity",
        )
    else:
        yield Finding("PASS", "notifications", "the server's queue of notifications is nearly empty")


def _promises(queues: list[QueueHealth], row: dict[str, Any]) -> Iterator[Finding]:
    fine = True
    for queue in queues:
        lacking = [
            word
            for word, value, matters in (
                ("SLA", queue.sla_s, True),
                ("owner", queue.owner, queue.tier == "critical"),
            )
            if matters and value is None
        ]
        if queue.known and lacking:
            fine = False
            options = {"SLA": "--sla 5s", "owner": "--owner TEAM"}
            yield Finding(
                "WARN",
                "promises",
                f"queue {queue.queue}: has no {' and no '.join(lacking)}, so nobody is told when its jobs are late",
                f"pgqueue queues set {queue.queue} {' '.join(options[word] for word in lacking)}",
            )
        if queue.paused_at is not None and (row["now"] - queue.paused_at).total_seconds() > PAUSE_LONG_S:
            fine = False
            yield Finding(
                "WARN",
                "promises",
                f"queue {queue.queue}: has been paused for more than a day by {queue.paused_by}",
                f"pgqueue queues resume {queue.queue}",
            )
    if fine:
        yield Finding("PASS", "promises", "each known queue has an SLA, none is forgotten in a pause")


def _alerts(row: dict[str, Any]) -> Iterator[Finding]:
    fine = True
    age_s = row["evaluation_age_s"]
    if (age_s is None and row["workers_settled"]) or (age_s or 0) > EVALUATION_LATE_S:
        fine = False
        when = "never" if age_s is None else f"{age_s:.0f} s ago"
        yield Finding(
            "WARN",
            "alerts",
            f"alerts were evaluated {when}",
            "start a scheduler or a worker and look at what its upkeep logs; meanwhile run `pgqueue alerts check` from cron",
        )
    for name in row["failing_rules"]:
        fine = False
        yield Finding(
            "FAIL",
            "alerts",
            f"rule {name} cannot be evaluated",
            "pgqueue alerts rules; it says why",
        )
    if row["missing_rules"]:
        fine = False
        yield Finding(
            "WARN",
            "alerts",
            f"shipped rules are missing: {', '.join(row['missing_rules'])}",
            "pgqueue db upgrade",
            safe=True,
        )
    if row["given_up"]:
        fine = False
        yield Finding(
            "WARN",
            "alerts",
            f"{row['given_up']} alerts of the last day could not be told to a sink",
            "see alert_deliveries.last_error, and alert_webhook_url of the settings",
        )
    if fine:
        yield Finding("PASS", "alerts", "every shipped rule is there, and rules are evaluated")
