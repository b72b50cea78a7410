"""The doctor's look at what runs out: disk by table, dead rows, connections, transaction ids. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from pgqueue.control.findings import Finding
from pgqueue.storage.statements import statement

DEAD_ROWS_MIN: Final = 1_000_000
DEAD_TIMES: Final = 5
XID_WARN: Final = 1_000_000_000
XID_FAIL: Final = 1_800_000_000
TABLES_SHOWN: Final = 5


def space_checks(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    """Every check of this file."""
    with conn.cursor(row_factory=dict_row) as cursor:
        tables = cursor.execute(statement("doctor_space")).fetchall()
        limits = cursor.execute(statement("doctor_limits")).fetchall()[0]
    yield from _dead_rows(tables)
    total = sum(row["bytes"] for row in tables)
    shown = ", ".join(f"{row['name']} {_size(row['bytes'])}" for row in tables[:TABLES_SHOWN])
    yield Finding("PASS", "disk", f"{_size(total)} in all: {shown}")
    yield _connections(limits)
    yield _ids(limits)


def _dead_rows(tables: list[dict[str, Any]]) -> Iterator[Finding]:
    bloated = [
        row for row in tables if row["dead"] > DEAD_ROWS_MIN and row["dead"] > DEAD_TIMES * row["live"]
    ]
    for row in bloated:
        yield Finding(
            "WARN",
            "dead rows",
            f"{row['name']}: about {row['dead']:,} dead rows beside {row['live']:,} live ones",
            f"VACUUM (ANALYZE) pgqueue.{row['name']}",
        )
    if not bloated:
        yield Finding("PASS", "dead rows", "vacuum keeps up")


def _connections(limits: dict[str, Any]) -> Finding:
    wanted, free = limits["wanted"], limits["connections_free"]
    if wanted <= free:
        return Finding("PASS", "pools", f"living workers open {wanted} of {free} connections at most")
    return Finding(
        "WARN",
        "pools",
        f"living workers may open {wanted} connections and the server has {free} for all",
        f"ALTER SYSTEM SET max_connections = {2 * wanted}; restart the server; or fewer slots per process",
    )


def _ids(limits: dict[str, Any]) -> Finding:
    age = limits["xid_age"]
    if age <= XID_WARN:
        return Finding("PASS", "transaction ids", f"{age:,} are in use since the last freeze")
    return Finding(
        "FAIL" if age > XID_FAIL else "WARN",
        "transaction ids",
        f"{limits['name']}: {age:,} are in use since the last freeze; at 2^31 the server takes no writes",
        "VACUUM (FREEZE)",
    )


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"
