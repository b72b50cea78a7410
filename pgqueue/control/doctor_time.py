"""The doctor's look at schedules: who fires them, which cannot fire or are late, and whether both sides know the zones.

Called by control/doctor on its connection. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg
from psycopg.rows import dict_row

from pgqueue.control.desk import read
from pgqueue.control.findings import Finding, literal
from pgqueue.control.schedules import ScheduleRow
from pgqueue.core.schedule_plan import preview
from pgqueue.errors import InvalidInput
from pgqueue.storage.statements import statement

OVERDUE_S: Final = 120.0
FIRES_LOOKED_AT: Final = 10
ZONE_MOMENTS: Final = 24
ZONE_STEP: Final = timedelta(days=31)


def time_checks(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    """Every check of this file."""
    now: datetime = conn.execute(statement("scheduler_clock")).fetchall()[0][0]
    schedules = read(conn, ScheduleRow, "schedule_status", {"name": None})
    yield _leader(conn)
    wrong = [finding for row in schedules for finding in _schedule(row, now)]
    yield from wrong
    if not wrong:
        yield Finding("PASS", "schedules", f"{len(schedules)}, each of which fires as it says")
    yield from _clock_changes(schedules, now)
    yield from _zones(conn, schedules, now)


def _leader(conn: psycopg.Connection[Any]) -> Finding:
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(statement("doctor_leader")).fetchall()[0]
    if row["enabled"] and not row["leads"]:
        return Finding(
            "FAIL",
            "scheduler",
            f"{row['enabled']} schedules are enabled and no scheduler leads",
            "pgqueue scheduler -A module:app; behind a pooler with direct_database_url set",
        )
    beside = max(0, row["schedulers"] - 1)
    words = f"one leads, {beside} stand by" if row["leads"] else "no schedule needs one"
    return Finding("PASS", "scheduler", words)


def _schedule(row: ScheduleRow, now: datetime) -> Iterator[Finding]:
    what = f"schedule {row.name}"
    if row.state in {"paused", "orphaned"}:
        return
    try:
        timing = row.timing
        fires = preview(timing, after=now, count=FIRES_LOOKED_AT).fires
    except InvalidInput as error:
        yield Finding(
            "FAIL",
            "schedules",
            f"{what}: cannot fire: {str(error).splitlines()[0]}",
            f"pgqueue schedules delete {row.name}",
        )
        return
    if not fires:
        yield Finding("WARN", "schedules", f"{what}: no fire is left", f"pgqueue schedules delete {row.name}")
        return
    if row.last_error is not None:
        yield Finding(
            "FAIL",
            "schedules",
            f"{what}: the scheduler could not fire it: {row.last_error}",
            f"pgqueue schedules get {row.name}",
        )
    if row.overdue_s > OVERDUE_S:
        yield Finding(
            "FAIL",
            "schedules",
            f"{what}: is {row.overdue_s:.0f} s overdue",
            "pgqueue scheduler -A module:app",
        )
    gap_s = min(((b.at - a.at).total_seconds() for a, b in pairwise(fires)), default=None)
    if (
        row.overlap == "allow"
        and gap_s is not None
        and row.last_duration_s is not None
        and row.last_duration_s > gap_s
    ):
        yield Finding(
            "WARN",
            "schedules",
            f"{what}: its last run took {row.last_duration_s:.0f} s and it fires every {gap_s:.0f} s",
            f"UPDATE pgqueue.schedules SET overlap = 'skip', revision = revision + 1 WHERE name = {literal(row.name)}",
        )


def _clock_changes(schedules: Sequence[ScheduleRow], now: datetime) -> Iterator[Finding]:
    for row in schedules:
        if row.state != "enabled":
            continue
        try:
            notes = preview(row.timing, after=now, count=1).notes
        except InvalidInput:
            continue  # said above
        for note in notes:
            yield Finding("PASS", "clock changes", f"schedule {row.name}: {note}")


def _zones(
    conn: psycopg.Connection[Any], schedules: Sequence[ScheduleRow], now: datetime
) -> Iterator[Finding]:
    check = "time zones"
    names = sorted({row.tz for row in schedules if row.state != "orphaned"})
    known = [name for name in names if _offset_s(name, now) is not None]
    fine = True
    if known:
        moments = [now.astimezone(UTC) + n * ZONE_STEP for n in range(ZONE_MOMENTS)]
        asked = {"zones": known, "moments": moments}
        told: set[str] = set()
        for zone, moment, offset_s in conn.execute(statement("doctor_zones"), asked).fetchall():
            if zone in told or (moment is not None and _offset_s(zone, moment) == offset_s):
                continue
            fine = False
            told.add(zone)
            words = "is not known to the server" if moment is None else f"differs from {moment:%Y-%m-%d} on"
            yield Finding(
                "WARN",
                check,
                f"zone {zone} {words}: schedules follow this host, queries of people the server",
                "pip install --upgrade tzdata; and the package tzdata on the database's host",
            )
    if fine:
        yield Finding("PASS", check, "this host and the server agree on the zones in use")


def _offset_s(name: str, moment: datetime) -> float | None:
    try:
        offset = moment.astimezone(ZoneInfo(name)).utcoffset()
    except (KeyError, ValueError, OSError):
        return None  # said with its schedule
    return None if offset is None else offset.total_seconds()
