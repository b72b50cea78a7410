"""`pgqueue doctor`: each finding names the object and the way to mend it. Reads only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import psycopg
from psycopg.rows import dict_row

from pgqueue.control.desk import Desk
from pgqueue.control.queues import Queues
from pgqueue.errors import SchemaMismatch
from pgqueue.storage.connect import is_pooled
from pgqueue.storage.drift import describe_schema, diff, expected_schema
from pgqueue.storage.migrate import require_head
from pgqueue.storage.statements import statement

VERSION_MIN: Final = 150000
OLD_TRANSACTION_S: Final = 900
AHEAD_DAYS_MIN: Final = 2
CONNECTIONS_SHARE: Final = 0.85

Verdict = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result; `fix` is a command or SQL that mends it."""

    check: str
    verdict: Verdict
    message: str
    fix: str = ""


def examine(desk: Desk) -> list[Finding]:
    """Run every check. Raises DatabaseUnreachable."""
    findings: list[Finding] = []
    began = time.monotonic()
    with desk.connection() as conn:
        row = conn.execute(b"SELECT 1").fetchone()
        findings.append(
            Finding(
                "reachable",
                "PASS",
                f"answers {row[0] if row else ''} after {(time.monotonic() - began) * 1000:.1f} ms",
            )
        )
        findings.extend(_server(conn))
        findings.append(
            Finding(
                "pooler",
                "WARN",
                "the DSN leads through a transaction pooler: no wake-ups, no liveness locks",
                "set direct_database_url",
            )
            if is_pooled(conn)
            else Finding("pooler", "PASS", "the connection is direct")
        )
        try:
            require_head(conn)
        except SchemaMismatch as error:
            findings.append(Finding("schema", "FAIL", str(error), "pgqueue db upgrade"))
            return findings
        findings.append(Finding("schema", "PASS", "at the revision this code expects"))
        for check in (_drift, _tables, _partitions, _transactions, _held):
            findings.extend(check(conn))
    findings.extend(_work(Queues(desk)))
    return findings


def _server(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    row = _one(conn, "doctor_server")
    version = row["version"] // 10000
    yield Finding(
        "version",
        "PASS" if row["version"] >= VERSION_MIN else "FAIL",
        f"PostgreSQL {version}",
        "" if row["version"] >= VERSION_MIN else "upgrade to 15 or later",
    )
    yield _when(
        row["standby"],
        "primary",
        "FAIL",
        "this server is a standby",
        "point the DSN at the primary, or add target_session_attrs=read-write",
    )
    for name in ("fsync", "full_page_writes"):
        yield _when(
            row[name] != "on",
            name,
            "FAIL",
            f"{name} is {row[name]}: a crash of the server may lose jobs",
            f"ALTER SYSTEM SET {name} = on",
        )
    overrides = [f"{r['role']}: {r['setting']}" for r in _all(conn, "doctor_settings")]
    yield _when(
        row["synchronous_commit"] in {"off", "local"} or bool(overrides),
        "synchronous_commit",
        "FAIL",
        f"is {row['synchronous_commit']}"
        + (f" ({'; '.join(overrides)})" if overrides else "")
        + ": an acknowledged enqueue may be lost",
        "ALTER ROLE … RESET synchronous_commit",
    )
    yield _when(
        row["autovacuum"] != "on",
        "autovacuum",
        "FAIL",
        "autovacuum is off: tables grow without end",
        "ALTER SYSTEM SET autovacuum = on",
    )
    used = row["connections"] / row["connections_max"]
    yield _when(
        used > CONNECTIONS_SHARE,
        "connections",
        "WARN",
        f"{row['connections']} of {row['connections_max']} connections are taken",
        "fewer slots per worker, or a higher max_connections",
    )


def _drift(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    differences = diff(expected_schema(), describe_schema(conn))
    if not differences:
        yield Finding("drift", "PASS", "tables, indexes and functions are as shipped")
    for difference in differences[:20]:
        yield Finding(
            "drift", "WARN", str(difference), "compare with `pgqueue db sql`, and undo the change by hand"
        )


def _tables(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    rows = _all(conn, "doctor_tables")
    fixes = {
        "unlogged": "ALTER TABLE pgqueue.{} SET LOGGED",
        "invalid index": "REINDEX INDEX CONCURRENTLY {}",
        "trigger": "DROP TRIGGER {} ON pgqueue.jobs",
    }
    for row in rows:
        yield Finding(
            "tables", "FAIL", f"{row['what']}: {row['name']}", fixes[row["what"]].format(row["name"])
        )
    if not rows:
        yield Finding("tables", "PASS", "all logged, all indexes valid, no trigger on jobs")


def _partitions(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    row = _one(conn, "doctor_partitions")
    yield _when(
        row["ahead"] < AHEAD_DAYS_MIN,
        "partitions",
        "WARN",
        f"{row['ahead']} days are made ahead",
        "SELECT pgqueue.ensure_partitions(7)",
    )
    yield _when(
        row["default_filled"],
        "default partition",
        "WARN",
        "rows lie in a default partition: a day was missing",
        "start a worker, whose upkeep makes days ahead",
    )


def _transactions(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    rows = _all(conn, "doctor_transactions")
    old = rows[0] if rows and rows[0]["age_s"] > OLD_TRANSACTION_S else None
    yield _when(
        old is not None,
        "oldest transaction",
        "WARN",
        ""
        if old is None
        else f"pid {old['pid']} ({old['application'] or 'no name'}, {old['state']}) is open for {old['age_s']:.0f} s: nothing can be cleaned up",
        "" if old is None else f"SELECT pg_terminate_backend({old['pid']})",
    )


def _held(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    held = _one(conn, "doctor_held")["n"]
    yield _when(
        held > 0,
        "unknown tasks",
        "WARN",
        f"{held} jobs are held because no worker knows their task",
        "deploy the worker that has the task; `pgqueue jobs list --state held`",
    )


def _work(queues: Queues) -> Iterator[Finding]:
    stale = [w for w in queues.workers() if w["stale"]]
    yield _when(
        bool(stale),
        "workers",
        "WARN",
        f"{len(stale)} workers have not beaten within their lease",
        "`pgqueue workers list`; another worker takes their jobs back",
    )
    for row in queues.list():
        if row["due"] and not row["workers_live"] and not row["paused"]:
            yield Finding(
                "queues",
                "FAIL",
                f"queue {row['queue']}: {row['due']} jobs are due and no worker serves it",
                f"pgqueue worker -A … -q {row['queue']}",
            )
        if row["dead_waiting"]:
            yield Finding(
                "dead letters",
                "WARN",
                f"queue {row['queue']}: {row['dead_waiting']} dead letters wait for a decision",
                f"pgqueue dlq groups --queue {row['queue']}",
            )
        if row["paused"]:
            yield Finding(
                "queues",
                "WARN",
                f"queue {row['queue']}: paused since {row['paused_at']:%Y-%m-%d %H:%M} by {row['paused_by']}",
                f"pgqueue queues resume {row['queue']}",
            )
    for row in queues.strays():
        yield Finding(
            "queues",
            "FAIL",
            f"queue {row['queue']}: jobs wait and no worker ever served it",
            f"pgqueue worker -A … -q {row['queue']}",
        )


def _when(bad: bool, check: str, verdict: Verdict, message: str, fix: str) -> Finding:
    return Finding(check, verdict, message, fix) if bad else Finding(check, "PASS", "ok")


def _all(conn: psycopg.Connection[Any], name: str) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement(name)).fetchall()


def _one(conn: psycopg.Connection[Any], name: str) -> dict[str, Any]:
    return _all(conn, name)[0]
