"""The database's state as numbers: one snapshot serves any number of scrapes, and is taken at most every five seconds.

Used by observe/database_metrics. A part that fails or takes too long is left out and named; the others stand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pgqueue.observe.tally import Key
from pgqueue.storage.connect import METRICS
from pgqueue.storage.link import Link
from pgqueue.storage.revisions import state_of
from pgqueue.storage.statements import statement

FRESH_S: Final = 5.0
RARELY_S: Final = 30.0
ALL_S: Final = 6.0
"""Parts that have not been asked by then are left out: a scraper waits for ten seconds, as a rule."""
WAIT_S: Final = 8.0
COUNTED_MAX: Final = 10_000
STATES: Final = ("scheduled", "held", "ready", "running")
RECENT_OUTCOMES: Final = ("succeeded", "retry", "dead", "other")
QUANTILES: Final = ("0.5", "0.95", "0.99", "1")
SCHEDULE_STATES: Final = ("enabled", "paused", "orphaned", "ended")

Value = tuple[str, Key, float]
Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was found: `values` are (metric, labels, value); `failed` the parts that are missing."""

    taken_at: float
    seconds: float
    up: bool
    values: tuple[Value, ...]
    failed: tuple[str, ...]


class Snapshots:
    """Takes snapshots over one connection, when somebody asks and the last one is old."""

    def __init__(self, dsn: str, *, label: str = "", fresh_s: float = FRESH_S) -> None:
        self._link = Link(dsn, METRICS, label=label, connect_timeout_s=2, deadline_s=4)
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._last: Snapshot | None = None
        self._kept: dict[str, tuple[float, list[Value]]] = {}
        self.taken = 0

    def latest(self) -> Snapshot | None:
        """A fresh snapshot; the last one if another scrape is at it and the database is slow; None before the first."""
        if not self._lock.acquire(timeout=WAIT_S):
            return self._last
        try:
            last = self._last
            if last is None or time.monotonic() - last.taken_at >= self._fresh_s:
                last = self._last = self._take()
            return last
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._link.close()

    def _take(self) -> Snapshot:
        began = time.monotonic()
        self.taken += 1
        values: list[Value] = []
        failed: list[str] = []
        usable = self._ask(lambda conn: state_of(conn).usable)
        up = usable is not None
        if up:
            values.append(("schema_at_head", (), float(bool(usable))))
        for part in PARTS if usable else ():
            found = None if time.monotonic() - began > ALL_S else self._part(part)
            if found is None:
                failed.append(part.name)
            else:
                values += found
        now = time.monotonic()
        return Snapshot(now, now - began, up, tuple(values), tuple(failed))

    def _part(self, part: Part) -> list[Value] | None:
        kept = self._kept.get(part.name)
        if kept is not None and time.monotonic() - kept[0] < part.every_s:
            return kept[1]
        rows = self._ask(lambda conn: conn.execute(statement(part.statement)).fetchall())
        if rows is None:
            return None
        values = list(part.tell(rows))
        if part.every_s:
            self._kept[part.name] = (time.monotonic(), values)
        return values

    def _ask(self, work: Callable[[Any], Any]) -> Any:
        """What `work` returns; None if the database did not go along, whatever the reason."""
        try:
            return self._link.try_once(work)
        except Exception:  # noqa: BLE001 - told as a part that is missing; the other parts must not suffer
            self._link.close()
            return None


@dataclass(frozen=True, slots=True)
class Part:
    """One statement of the snapshot and what its rows tell; `every_s`: kept for so long."""

    name: str
    statement: str
    tell: Callable[[Rows], Iterable[Value]]
    every_s: float = 0.0


def _queues(rows: Rows) -> Iterator[Value]:
    for queue, paused, due, scheduled, held, running, *more in rows:
        key = (queue,)
        lag_s, limited_lag_s, slots, dead_recent, sla_s, sla_target, limit, tier, owner = more
        for state, count in zip(STATES, (scheduled, held, due, running), strict=True):
            yield "jobs", (queue, state), min(count, COUNTED_MAX)
            yield "jobs_estimated", (queue, state), float(count > COUNTED_MAX and state != "running")
        yield "queue_lag_seconds", key, lag_s
        yield "queue_limited_lag_seconds", key, limited_lag_s
        yield "queue_paused", key, float(paused)
        if sla_s is not None:
            yield "queue_sla_seconds", key, sla_s
            yield "queue_sla_target_ratio", key, sla_target
        yield "queue_dead_letter_limit", key, limit
        yield "queue_info", (queue, tier, owner), 1
        yield "worker_slots_total", key, slots
        yield "dead_letters_recent", key, min(dead_recent, COUNTED_MAX)


def _held(rows: Rows) -> Iterator[Value]:
    for queue, reason, held in rows:
        yield "jobs_held", (queue, reason), min(held, COUNTED_MAX)


def _dead_letters(rows: Rows) -> Iterator[Value]:
    oldest: dict[str, float] = {}
    for queue, task, waiting, oldest_age_s in rows:
        yield "dead_letters", (queue, task), min(waiting, COUNTED_MAX)
        oldest[queue] = max(oldest_age_s, oldest.get(queue, 0.0))
    for queue, age_s in oldest.items():
        yield "dead_letters_oldest_age_seconds", (queue,), age_s


def _workers(rows: Rows) -> Iterator[Value]:
    for queue, *counts in rows:
        for status, count in zip(("live", "draining", "stale"), counts, strict=True):
            yield "workers", (queue, status), count


def _leader(rows: Rows) -> Iterator[Value]:
    yield "scheduler_leaders", (), float(rows[0][0])


def _schedules(rows: Rows) -> Iterator[Value]:
    counts = dict.fromkeys(SCHEDULE_STATES, 0)
    for schedule, state, next_fire, last_fire, outcome in rows:
        counts[state] += 1
        if next_fire is not None:
            yield "schedule_next_fire_timestamp_seconds", (schedule,), next_fire
        if last_fire is not None:
            yield "schedule_last_fire_timestamp_seconds", (schedule,), last_fire
        if outcome is not None:
            yield "schedule_last_outcome", (schedule, outcome), 1
    for state, count in counts.items():
        yield "schedules", (state,), count


def _server(rows: Rows) -> Iterator[Value]:
    connections, connections_max, oldest_s, horizon = rows[0]
    yield "database_connections", (), connections
    yield "database_connections_max", (), connections_max
    yield "oldest_transaction_age_seconds", (), oldest_s
    yield "horizon_age_transactions", (), horizon


def _tables(rows: Rows) -> Iterator[Value]:
    for table, size, live, dead in rows:
        yield "table_bytes", (table,), size
        yield "table_live_rows", (table,), live
        yield "table_dead_rows", (table,), dead


def _partitions(rows: Rows) -> Iterator[Value]:
    for table, ahead in rows:
        yield "partitions_ahead", (table,), ahead


def _recent(rows: Rows) -> Iterator[Value]:
    for queue, *figures in rows:
        for outcome, count in zip(RECENT_OUTCOMES, figures[:4], strict=True):
            yield "recent_attempts", (queue, outcome), count
        for name, found in (("recent_wait_seconds", figures[4:8]), ("recent_run_seconds", figures[8:12])):
            for quantile, seconds in zip(QUANTILES, found, strict=True):
                if seconds is not None:
                    yield name, (queue, quantile), seconds
        if figures[12] is not None:
            yield "recent_sla_met_ratio", (queue,), figures[12]


def _rollups(rows: Rows) -> Iterator[Value]:
    for (age_s,) in rows:
        yield "rollup_age_seconds", (), age_s


def _upkeep(rows: Rows) -> Iterator[Value]:
    for duty, overdue_s, is_failing in rows:
        yield "upkeep_overdue_seconds", (duty,), overdue_s
        yield "upkeep_failing", (duty,), float(is_failing)


def _outbox(rows: Rows) -> Iterator[Value]:
    for topic, pending, failing, dead, oldest_age_s in rows:
        yield "outbox_pending", (topic,), pending
        yield "outbox_failing", (topic,), failing
        yield "outbox_dead_letters", (topic,), dead
        yield "outbox_oldest_age_seconds", (topic,), oldest_age_s


def _alerts(rows: Rows) -> Iterator[Value]:
    for rule, severity, firing in rows:
        yield "alerts_firing", (rule, severity), firing


def _evaluation(rows: Rows) -> Iterator[Value]:
    for (age_s,) in rows:
        yield "alert_evaluation_age_seconds", (), age_s


PARTS: Final = (
    Part("queues", "snapshot_queues", _queues),
    Part("workers", "snapshot_workers", _workers),
    Part("dead_letters", "snapshot_dead_letters", _dead_letters),
    Part("held", "snapshot_held", _held),
    Part("leader", "snapshot_leader", _leader),
    Part("schedules", "snapshot_schedules", _schedules),
    Part("server", "snapshot_server", _server),
    Part("outbox", "snapshot_outbox", _outbox),
    Part("alerts", "snapshot_alerts", _alerts),
    Part("evaluation", "snapshot_evaluation", _evaluation),
    Part("rollups", "snapshot_rollups", _rollups),
    Part("upkeep", "snapshot_upkeep", _upkeep),
    Part("recent", "snapshot_recent", _recent, every_s=RARELY_S),
    Part("partitions", "snapshot_partitions", _partitions, every_s=RARELY_S),
    Part("tables", "snapshot_tables", _tables, every_s=RARELY_S),
)
