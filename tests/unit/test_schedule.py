"""A schedule's definition: what is refused at the door, and what is kept of the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgqueue.core.schedule import (
    NAME_CHARS_MAX,
    ScheduleDefinition,
    check_schedule_name,
    define_schedule,
    timing_of,
)
from pgqueue.errors import (
    InvalidArguments,
    InvalidInput,
    InvalidName,
    InvalidOption,
    InvalidSchedule,
    InvalidTime,
    InvalidTimezone,
)

T0 = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


def define(**options: Any) -> ScheduleDefinition:
    return define_schedule(**{"name": "promo-expiry", "task": "promo.expire", "cron": "0 0 * * *", **options})


def test_the_defaults() -> None:
    made = define()
    assert made == ScheduleDefinition("promo-expiry", "promo.expire", "0 0 * * *", None)
    assert (made.tz, made.misfire, made.max_catch_up, made.grace_s, made.overlap, made.jitter_s) == (
        "UTC",
        "latest",
        100,
        60.0,
        "allow",
        0.0,
    )


def test_durations_zones_and_arguments_are_read_as_people_write_them() -> None:
    made = define(
        cron=None,
        every="1h30m",
        tz="America/Barbados",
        args={"ids": [1, 2]},
        grace="5m",
        jitter=timedelta(seconds=30),
        headers={"team": "growth"},
    )
    assert (made.cron, made.every_s, made.grace_s, made.jitter_s) == (None, 5400.0, 300.0, 30.0)
    assert json.loads(made.args) == {"ids": [1, 2]}


def test_the_json_of_a_definition_is_its_columns() -> None:
    made = define(args={"n": 1}, starts_at=T0, headers={"a": "b"})
    stored = json.loads(made.as_json())
    assert stored.keys() == ScheduleDefinition.__dataclass_fields__.keys()
    assert (stored["args"], stored["headers"], stored["starts_at"]) == (
        {"n": 1},
        {"a": "b"},
        "2026-11-24T08:00:00+00:00",
    )


@pytest.mark.proves("I27", "I28", "I29", "I32", "I33")
@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"cron": "0 0 30 2 *"}, InvalidSchedule, "cron"),
        ({"cron": "* * * *"}, InvalidSchedule, "cron"),
        ({"cron": "0 0 * * * *"}, InvalidSchedule, "cron"),
        ({"cron": "R 0 * * *"}, InvalidSchedule, "cron"),
        ({"cron": b"0 0 * * *"}, InvalidSchedule, "cron"),
        ({"cron": None}, InvalidSchedule, "cron"),
        ({"every": "5m"}, InvalidSchedule, "cron"),
        ({"cron": None, "every": 0}, InvalidSchedule, "every"),
        ({"cron": None, "every": "100000h"}, InvalidSchedule, "every"),
        ({"tz": "Nope/X"}, InvalidTimezone, "tz"),
        ({"tz": "../../etc/passwd"}, InvalidTimezone, "tz"),
        ({"tz": None}, InvalidTimezone, "tz"),
        ({"name": ""}, InvalidName, "schedule"),
        ({"name": "a b"}, InvalidName, "schedule"),
        ({"name": "nul\x00"}, InvalidName, "schedule"),
        ({"name": "x" * (NAME_CHARS_MAX + 1)}, InvalidName, "schedule"),
        ({"name": 5}, InvalidName, "schedule"),
        ({"task": "no task"}, InvalidName, "task"),
        ({"queue": "Loud"}, InvalidName, "queue"),
        ({"priority": 10}, InvalidOption, "priority"),
        ({"misfire": "maybe"}, InvalidSchedule, "misfire"),
        ({"max_catch_up": 0}, InvalidSchedule, "max_catch_up"),
        ({"max_catch_up": 10_001}, InvalidSchedule, "max_catch_up"),
        ({"overlap": "queue"}, InvalidSchedule, "overlap"),
        ({"overlap": None}, InvalidSchedule, "overlap"),
        ({"grace": "-1s"}, InvalidTime, "grace"),
        ({"grace": "400d"}, InvalidTime, "grace"),
        ({"jitter": "2d"}, InvalidTime, "jitter"),
        ({"jitter": "30"}, InvalidTime, "jitter"),
        ({"starts_at": datetime(2026, 1, 1)}, InvalidTime, "starts_at"),
        ({"ends_at": "2026-01-01"}, InvalidTime, "ends_at"),
        ({"starts_at": T0, "ends_at": T0 - timedelta(days=1)}, InvalidSchedule, "ends_at"),
        ({"starts_at": T0, "ends_at": T0 + timedelta(hours=1)}, InvalidSchedule, "ends_at"),
        ({"args": {"when": T0}}, InvalidArguments, "args"),
        ({"headers": {"a": "b" * 8000}}, InvalidOption, "headers"),
        ({"headers": {"a": 1}}, InvalidOption, "headers"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_stored(
    options: dict[str, Any], error: type[InvalidInput], field: str
) -> None:
    with pytest.raises(error) as refused:
        define(**options)
    assert refused.value.field == field


def test_names_at_the_limit() -> None:
    assert check_schedule_name("x" * NAME_CHARS_MAX)
    assert check_schedule_name("0.a_B-9") == "0.a_B-9"


def test_an_interval_counts_from_its_start() -> None:
    start = datetime(2026, 11, 24, 8, 0, 7, tzinfo=UTC)
    fire = define(cron=None, every="1h", starts_at=start).timing.next_fire(T0)
    assert fire is not None
    assert fire.at == start
    plain = define(cron=None, every="1h").timing.next_fire(start)
    assert plain is not None
    assert plain.at == T0 + timedelta(hours=1)


def test_nothing_fires_outside_the_window() -> None:
    made = define(
        cron="*/10 * * * *", starts_at=T0 + timedelta(minutes=20), ends_at=T0 + timedelta(minutes=40)
    )
    fires = [fire.at for fire in made.timing.iter_fires(T0)]
    assert fires == [T0 + timedelta(minutes=m) for m in (20, 30, 40)]
    assert made.timing.next_fire(T0 + timedelta(minutes=40)) is None


def test_a_row_that_says_neither_is_refused() -> None:
    with pytest.raises(InvalidSchedule):
        timing_of(None, None, "UTC", None, None)


def test_definitions_are_equal_when_their_columns_are() -> None:
    assert define() == define()
    assert replace(define(), misfire="all") != define()
