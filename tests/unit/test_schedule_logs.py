"""What the scheduler's events look like as log lines."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pgqueue.core.events import LeaderChanged, ScheduleFailed, ScheduleFired, ScheduleMissed
from pgqueue.observe.log_sink import LogSink
from pgqueue.observe.logs import LogListener
from pgqueue.settings import Settings


class Kept(LogSink):
    """A sink that keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


def told(*events: object) -> list[dict[str, Any]]:
    sink = Kept()
    listener = LogListener(Settings(log_format="json"), sink)
    for event in events:
        listener(event)
    return [json.loads(line) for line in sink.lines]


def test_each_event_is_one_line() -> None:
    at = datetime(2026, 11, 24, 8, tzinfo=UTC)
    fired, missed, failed, acquired, lost = told(
        ScheduleFired("s", "2026-11-24T08:00", at, "enqueued", 7, 0.0123, "me"),
        ScheduleMissed("s", 3, True, "me"),
        ScheduleFailed("s", "cron: never fires", 2.0),
        LeaderChanged("me", leads=True),
        LeaderChanged("me", leads=False, note="it stops"),
    )
    assert (
        fired.items()
        >= {
            "event": "schedule.fired",
            "level": "info",
            "schedule": "s",
            "run_key": "2026-11-24T08:00",
            "fire_at": "2026-11-24T08:00:00+00:00",
            "outcome": "enqueued",
            "job_id": 7,
            "late_s": 0.012,
            "scheduler_id": "me",
        }.items()
    )
    assert missed.items() >= {"event": "schedule.missed", "level": "warning", "fires_count": 3}.items()
    assert failed.items() >= {"event": "schedule.failed", "level": "warning", "again_in_s": 2.0}.items()
    assert (acquired["event"], "note" in acquired) == ("leader.acquired", False)
    assert (lost["event"], lost["note"]) == ("leader.lost", "it stops")


def test_a_schedule_that_keeps_failing_is_told_once() -> None:
    assert len(told(*[ScheduleFailed("s", "cause", 1.0)] * 5)) == 1


@pytest.mark.parametrize("outcome", ["skipped", "duplicate"])
def test_a_fire_without_a_job_has_none(outcome: str) -> None:
    (line,) = told(ScheduleFired("s", "k", datetime(2026, 1, 1, tzinfo=UTC), outcome, None, 0.0, "me"))
    assert line["job_id"] is None
