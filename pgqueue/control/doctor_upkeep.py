"""What `pgqueue doctor` says of upkeep: duties that fail or that nobody does, rollups that do not follow. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from pgqueue.storage.statements import statement

ROLLUPS_AGE_S: Final = 300.0
RECOUNT_AGE_S: Final = 2 * 86_400.0


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what is wrong, a line each; what to say if nothing is; and how to mend it."""

    name: str
    wrong: Sequence[str]
    fine: str
    fix: str


def upkeep_checks(conn: psycopg.Connection[Any]) -> Iterator[Check]:
    """The checks, on a connection that is open."""
    yield Check(
        "upkeep",
        [_duty(row) for row in _rows(conn, "doctor_upkeep")],
        "no duty fails or is overdue",
        "SELECT * FROM pgqueue.upkeep_status; a worker that runs does what is overdue",
    )
    (age,) = _rows(conn, "doctor_rollups")
    behind = []
    if (age["rollups_s"] or 0) > ROLLUPS_AGE_S:
        behind.append(f"the newest counted minute is {age['rollups_s']:.0f} s old")
    if (age["recount_s"] or 0) > RECOUNT_AGE_S:
        behind.append(f"days are recounted up to {age['recount_s']:.0f} s ago")
    yield Check(
        "rollups",
        behind,
        "minutes and days are counted",
        "start a worker: each of them counts; then look at duties rollups and recount in pgqueue.upkeep_status",
    )


def _duty(row: dict[str, Any]) -> str:
    words = []
    if row["overdue"]:
        words.append(f"is {row['overdue_s']:.0f} s overdue")
    if row["failing"]:
        words.append(f"failed {row['failed_s']:.0f} s ago: {row['error']}")
    return f"duty {row['duty']} {', and '.join(words)}"


def _rows(conn: psycopg.Connection[Any], name: str) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement(name)).fetchall()
