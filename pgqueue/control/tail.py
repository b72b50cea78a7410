"""Attempts as they end, newest last: `pgqueue jobs tail`. Reads only, a bounded number of rows at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from pgqueue.control.desk import Desk, read, task_filter
from pgqueue.storage.statements import statement

ROWS_MAX: Final = 1_000
FIRST_LOOK_S: Final = 3_600.0
# A settlement is read again for so long: who noted the earlier moment may commit later.
OVERLAP: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The end of one attempt. `state`: where the job went; `scheduled` with reason `retry`: it is tried again."""

    at: datetime
    id: int
    task: str
    queue: str
    state: str
    reason: str | None
    attempt: int
    wait_s: float | None
    run_s: float | None
    error_type: str | None
    next_run_at: datetime | None


def follow(
    desk: Desk,
    *,
    queue: str | None = None,
    task: str | None = None,
    last: int = 10,
    every_s: float = 1.0,
    for_s: float | None = None,
) -> Iterator[Settled | int]:
    """The `last` ends of the past hour, then each as it comes; an int: so many at least were left out, being too many.

    for_s: end after so long; None: never. Raises DatabaseUnreachable.
    """
    until = None if for_s is None else time.monotonic() + for_s
    asked: dict[str, Any] = {"queue": queue, **task_filter(task)}
    back, first = timedelta(seconds=FIRST_LOOK_S), True
    seen: dict[tuple[int, datetime, str], None] = {}
    with desk.connection("jobs tail") as conn:
        while True:
            now: datetime = conn.execute(statement("scheduler_clock")).fetchall()[0][0]
            since = now - back
            rows = read(conn, Settled, "tail_jobs", {**asked, "since": since, "limit": ROWS_MAX})
            seen = {key: None for key in seen if key[1] > since}
            fresh = [row for row in rows if (row.id, row.at, row.state) not in seen]
            if len(rows) == ROWS_MAX and not first:
                yield ROWS_MAX
            yield from reversed(fresh[:last] if first else fresh)
            seen.update({(row.id, row.at, row.state): None for row in fresh})
            back, first = OVERLAP + timedelta(seconds=every_s), False
            left_s = every_s if until is None else min(every_s, until - time.monotonic())
            if left_s <= 0:
                return
            time.sleep(left_s)
