"""`pgqueue doctor`: each finding names the object and the way to mend it. Reads only."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from pgqueue.control.desk import Desk, read
from pgqueue.control.doctor_address import address_checks
from pgqueue.control.doctor_space import space_checks
from pgqueue.control.doctor_time import time_checks
from pgqueue.control.doctor_upkeep import upkeep_checks
from pgqueue.control.doctor_watch import watch
from pgqueue.control.doctor_work import work_checks
from pgqueue.control.findings import Finding, Verdict
from pgqueue.control.queues import unserved
from pgqueue.control.roles import missing_roles, role_faults
from pgqueue.control.rows import QueueHealth, WorkerRow
from pgqueue.settings import Settings
from pgqueue.storage.connect import is_pooled
from pgqueue.storage.drift import describe_schema, diff, expected_schema
from pgqueue.storage.revisions import state_of
from pgqueue.storage.statements import statement

SCHEMA_CHECK: Final = "schema"
VERSION_MIN: Final = 150000
ROUND_TRIP_WARN_S: Final = 0.02
OLD_TRANSACTION_WARN_S: Final = 300.0
OLD_TRANSACTION_FAIL_S: Final = 900.0
AHEAD_DAYS_MIN: Final = 2
CONNECTIONS_SHARE: Final = 0.85
DIFFERENCES_SHOWN: Final = 20
WORKERS_MAX: Final = 1_000


def examine(
    desk: Desk, *, settings: Settings | None = None, tasks: Collection[str] | None = None
) -> list[Finding]:
    """Run every check; without a schema that fits, only those of the server. Raises DatabaseUnreachable.

    settings, tasks: what this host is configured with, and what an application registers; None: not looked at.
    """
    findings: list[Finding] = []
    with desk.connection("doctor") as conn:
        findings.extend(_reachable(conn))
        findings.extend(address_checks(conn, settings))
        server = _all(conn, "doctor_server")[0]
        findings.extend(_server(server))
        findings.extend(_flush(conn, server))
        schema = state_of(conn)
        if not schema.usable:
            findings.append(Finding("FAIL", SCHEMA_CHECK, schema.sentence, "pgqueue db upgrade"))
            return findings
        findings.append(Finding("PASS", SCHEMA_CHECK, schema.sentence))
        for check in (
            _drift,
            _roles,
            _tables,
            _partitions,
            _waiting,
            _dead_letters,
            _workers,
            _queues,
            _upkeep,
        ):
            findings.extend(check(conn))
        findings.extend(watch(conn))
        findings.extend(time_checks(conn))
        findings.extend(work_checks(conn, tasks))
        findings.extend(_transactions(conn, sees_all=server["sees_all"]))
        findings.extend(space_checks(conn))
    return findings


def _reachable(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    began = time.monotonic()
    conn.execute(b"SELECT 1")
    took_s = time.monotonic() - began
    slow = took_s > ROUND_TRIP_WARN_S
    yield Finding(
        "WARN" if slow else "PASS",
        "reachable",
        f"a round trip takes {took_s * 1000:.1f} ms",
        "run workers nearer to the database: each batch of jobs costs two round trips" if slow else "",
    )
    if is_pooled(conn):
        yield Finding(
            "WARN",
            "pooler",
            "the address leads through a transaction pooler: no wake-ups, no liveness locks, no scheduler leadership",
            "set direct_database_url to an address past the pooler",
        )
    else:
        yield Finding("PASS", "pooler", "the connection is direct")


def _server(row: dict[str, Any]) -> Iterator[Finding]:
    version = row["version"] // 10000
    yield _judged(
        row["version"] < VERSION_MIN,
        "FAIL",
        "version",
        f"PostgreSQL {version}",
        "upgrade the server to 15 or later",
    )
    yield _judged(
        row["standby"],
        "FAIL",
        "primary",
        "this server is a standby" if row["standby"] else "this server takes writes",
        "point the address at the primary, or add target_session_attrs=read-write",
    )
    yield _judged(
        row["autovacuum"] != "on",
        "FAIL",
        "autovacuum",
        f"autovacuum is {row['autovacuum']}"
        + (": tables grow without end" if row["autovacuum"] != "on" else ""),
        "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf()",
    )
    taken, most = row["connections"], row["connections_max"]
    yield _judged(
        taken > CONNECTIONS_SHARE * most,
        "WARN",
        "connections",
        f"{taken} of {most} connections are taken",
        "fewer slots per worker, or a higher max_connections",
    )


def _flush(conn: psycopg.Connection[Any], row: dict[str, Any]) -> Iterator[Finding]:
    for name in ("fsync", "full_page_writes"):
        bad = row[name] != "on"
        yield _judged(
            bad,
            "FAIL",
            name,
            f"{name} is {row[name]}" + (": a crash of the server may lose or tear jobs" if bad else ""),
            f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()",
        )
    own = row["synchronous_commit"]
    overrides = _all(conn, "doctor_settings")
    for override in overrides:
        yield Finding(
            "FAIL",
            "synchronous_commit",
            f"{override['setting']} for {override['whose']}: an acknowledged enqueue may be lost",
            override["fix"],
        )
    if own in {"off", "local"} and not overrides:
        yield Finding(
            "FAIL",
            "synchronous_commit",
            f"synchronous_commit is {own}: an acknowledged enqueue may be lost",
            "ALTER SYSTEM RESET synchronous_commit; SELECT pg_reload_conf()",
        )
    if own not in {"off", "local"} and not overrides:
        yield Finding("PASS", "synchronous_commit", f"synchronous_commit is {own}, and nothing overrides it")


def _drift(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    differences = diff(expected_schema(), describe_schema(conn))
    if not differences:
        yield Finding("PASS", "drift", "tables, indexes, functions and views are as shipped")
    for difference in differences[:DIFFERENCES_SHOWN]:
        yield Finding(
            "WARN", "drift", str(difference), "compare with `pgqueue db sql`, and undo the change by hand"
        )
    if len(differences) > DIFFERENCES_SHOWN:
        yield Finding("WARN", "drift", f"{len(differences) - DIFFERENCES_SHOWN} further differences")


def _roles(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    missing, faults = missing_roles(conn), role_faults(conn)
    if missing:
        yield Finding("WARN", "roles", f"missing: {', '.join(missing)}", "pgqueue db roles")
    for fault in faults[:DIFFERENCES_SHOWN]:
        yield Finding(
            "WARN" if fault.fault == "missing" else "FAIL",
            "roles",
            str(fault),
            "pgqueue db roles --apply",
            # The grant takes away, too; what somebody was given beyond that is theirs to decide about.
            safe=all(one.fault == "missing" for one in faults),
        )
    if not missing and not faults:
        yield Finding("PASS", "roles", "each of the four has exactly its rights, Public has none")


def _tables(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    rows = _all(conn, "doctor_tables")
    for row in rows:
        yield Finding("FAIL", "tables", f"{row['what']}: {row['name']}", row["fix"])
    if not rows:
        yield Finding(
            "PASS", "tables", "all are logged and vacuumed, all indexes are valid, jobs has no trigger"
        )


def _partitions(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    row = _all(conn, "doctor_partitions")[0]
    yield _judged(
        row["ahead"] < AHEAD_DAYS_MIN,
        "WARN",
        "partitions",
        f"{row['ahead']} days are made ahead",
        "SELECT pgqueue.ensure_partitions(7); then see why no worker's upkeep does it",
        safe=True,
    )
    yield _judged(
        row["default_filled"],
        "WARN",
        "default partition",
        "rows lie in a default partition: a day was missing" if row["default_filled"] else "empty",
        "keep workers running, whose upkeep makes days ahead; those rows go with the table's retention",
    )


def _transactions(conn: psycopg.Connection[Any], *, sees_all: bool) -> Iterator[Finding]:
    check = "oldest transaction"
    old = [
        row
        for row in _all(conn, "doctor_transactions")
        if row["age_s"] is None or row["age_s"] > OLD_TRANSACTION_WARN_S
    ]
    for row in old:
        age = "" if row["age_s"] is None else f" for {row['age_s']:.0f} s"
        yield Finding(
            "FAIL" if (row["age_s"] or 0) > OLD_TRANSACTION_FAIL_S else "WARN",
            check,
            f"{row['who']} holds a snapshot{age}: what workers leave behind cannot be cleaned up",
            row["fix"],
        )
    if not sees_all:
        yield Finding(
            "WARN",
            check,
            "this role is not shown the transactions of others",
            "GRANT pg_read_all_stats TO the role that runs doctor",
        )
    elif not old:
        yield Finding("PASS", check, f"none is older than {OLD_TRANSACTION_WARN_S:.0f} s")


def _waiting(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    row = _all(conn, "doctor_waiting")[0]
    yield _judged(
        row["held"] > 0,
        "WARN",
        "unknown tasks",
        f"{row['held']} jobs are held because no worker knows their task: {row['tasks']}"
        if row["held"]
        else "no job is held for want of its task",
        "deploy a worker that has the task; it frees them by itself",
    )
    yield _judged(
        row["overdue"] > 0,
        "FAIL",
        "promotion",
        f"{row['overdue']} jobs should have become ready, the first {row['overdue_s']:.0f} s ago"
        if row["overdue"]
        else "no scheduled job is overdue",
        "start a worker of any queue: each of them promotes",
    )


def _dead_letters(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    rows = _all(conn, "doctor_dead_letters")
    for row in rows:
        yield Finding(
            "WARN",
            "dead letters",
            f"queue {row['queue']}: {row['n']} dead letters wait for a decision",
            f"pgqueue dlq groups --queue {row['queue']}",
        )
    if not rows:
        yield Finding("PASS", "dead letters", "none waits for a decision")


def _workers(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    workers = read(conn, WorkerRow, "list_workers", {"ended": False, "limit": WORKERS_MAX})
    for worker in (worker for worker in workers if worker.stale):
        yield Finding(
            "WARN",
            "workers",
            f"worker {worker.id[:8]} ({worker.host}, pid {worker.pid}) has not beaten within its lease",
            "look at that process; another worker takes its jobs back",
        )
    versions = sorted({worker.version for worker in workers if not worker.stale})
    yield _judged(
        len(versions) > 1,
        "WARN",
        "versions",
        f"living workers run {' and '.join(versions)}" if versions else "no worker lives",
        "finish the rollout",
    )
    if not any(worker.stale for worker in workers):
        yield Finding("PASS", "workers", f"{len(workers)} live, none is late with its beat")


def _queues(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    fine = True
    for row in read(conn, QueueHealth, "queue_health", {"queue": None}):
        if row.paused:
            fine = False
            since = f"{row.paused_at:%Y-%m-%d %H:%M}" if row.paused_at else "?"
            yield Finding(
                "WARN",
                "queues",
                f"queue {row.queue}: paused since {since} by {row.paused_by}",
                f"pgqueue queues resume {row.queue}",
            )
        elif row.due and not row.workers_live:
            fine = False
            yield Finding(
                "FAIL",
                "queues",
                f"queue {row.queue}: {unserved(row)}",
                f"pgqueue worker -A … -q {row.queue}",
            )
    if fine:
        yield Finding("PASS", "queues", "each queue with due jobs has a worker, none is paused")


def _upkeep(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    for check in upkeep_checks(conn):
        for words in check.wrong:
            yield Finding("WARN", check.name, words, check.fix)
        if not check.wrong:
            yield Finding("PASS", check.name, check.fine)


def _judged(
    bad: bool, verdict: Verdict, check: str, message: str, fix: str, *, safe: bool = False
) -> Finding:
    return Finding(verdict, check, message, fix, safe) if bad else Finding("PASS", check, message)


def _all(conn: psycopg.Connection[Any], name: str) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement(name)).fetchall()
