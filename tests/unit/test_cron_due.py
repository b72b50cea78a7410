"""Intervals, misfire policies after a downtime, and schedules in plain words."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from pgqueue.core.cron import (
    EPOCH,
    FIRES_LISTED_MAX,
    INTERVAL_S_MAX,
    DueFires,
    IntervalSchedule,
    Schedule,
    check_max_catch_up,
    check_misfire,
    describe_cron,
    due_fires,
    parse_cron,
    parse_interval,
)
from pgqueue.errors import InvalidSchedule, InvalidTime

UTC_ZONE = ZoneInfo("UTC")
NEW_YORK = ZoneInfo("America/New_York")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


def decide(schedule: Schedule, last_fire: datetime, now: datetime, **options: Any) -> DueFires:
    wanted = {"tz": UTC_ZONE, "misfire": "all", "max_catch_up": 100, "grace_s": 60.0} | options
    return due_fires(schedule, last_fire=last_fire, now=now, **wanted)


def clock(fires: list) -> list[str]:
    return [f"{fire.at:%H:%M}" for fire in fires]


# --- intervals


@pytest.mark.proves("I33")
@pytest.mark.parametrize("every", [0, -1, 0.999, timedelta(microseconds=1), timedelta(days=36_525)])
def test_an_interval_outside_one_second_to_one_year_is_refused(every: object) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        parse_interval(every)  # type: ignore[arg-type]
    assert caught.value.field == "every"
    assert caught.value.limit


@pytest.mark.proves("I33")
@pytest.mark.parametrize("every", ["", "15", "soon", "1y", None, True, math.nan, math.inf, b"1m", [60]])
def test_an_interval_that_is_no_duration_is_refused(every: object) -> None:
    with pytest.raises(InvalidSchedule, match=r"^every: "):
        parse_interval(every)  # type: ignore[arg-type]


@pytest.mark.proves("I33")
def test_the_limits_of_an_interval_hold_at_the_limit_and_one_above() -> None:
    assert parse_interval(1).every_s == 1
    assert parse_interval("366d").every_s == INTERVAL_S_MAX
    with pytest.raises(InvalidSchedule, match="too long"):
        parse_interval(timedelta(days=366, seconds=1))


@pytest.mark.parametrize(
    ("every", "after", "wanted"),
    [
        ("15m", "2026-06-01T12:07:31", "2026-06-01T12:15:00"),
        ("15m", "2026-06-01T12:15:00", "2026-06-01T12:30:00"),
        ("1h30m", "2026-06-01T12:07:31", "2026-06-01T13:30:00"),
        (1.5, "2026-06-01T12:00:00", "2026-06-01T12:00:01.500000"),
        (timedelta(days=1), "2026-06-01T12:00:00", "2026-06-02T00:00:00"),
    ],
)
def test_an_interval_fires_at_multiples_of_itself_whoever_asks(every: Any, after: str, wanted: str) -> None:
    schedule = parse_interval(every)
    fire = schedule.next_fire(datetime.fromisoformat(after).replace(tzinfo=UTC), NEW_YORK)
    assert fire.wall_key == wanted + "+00:00"
    assert fire.at.isoformat() == fire.wall_key
    same_moment = datetime.fromisoformat(after).replace(tzinfo=UTC).astimezone(timezone(5 * HOUR))
    assert schedule.next_fire(same_moment, UTC_ZONE) == fire


def test_an_anchor_moves_the_multiples_and_clock_changes_do_not() -> None:
    anchored = parse_interval("1d", anchor=datetime(2026, 1, 1, 9, tzinfo=NEW_YORK))
    assert anchored.next_fire(NOON, NEW_YORK).at == datetime(2026, 6, 1, 14, tzinfo=UTC)
    unchecked = IntervalSchedule(86_400, datetime(2026, 1, 1, 9, tzinfo=NEW_YORK))
    assert unchecked.next_fire(NOON, NEW_YORK) == anchored.next_fire(NOON, NEW_YORK)
    before_anchor = datetime(2025, 12, 30, tzinfo=UTC)
    assert anchored.next_fire(before_anchor, NEW_YORK).at == datetime(2025, 12, 30, 14, tzinfo=UTC)
    around_change = anchored.fires_between(NOON - 200 * 24 * HOUR, NOON, NEW_YORK, 500)
    assert {later.at - earlier.at for earlier, later in pairwise(around_change)} == {24 * HOUR}
    with pytest.raises(InvalidTime, match="anchor"):
        parse_interval("1d", anchor=datetime(2026, 1, 1))
    assert str(parse_interval("90s")) == "every 1m 30s"


# --- misfires

OVERDUE = "09:15 09:30 09:45 10:00 10:15 10:30 10:45 11:00 11:15 11:30 11:45 12:00".split()


@pytest.mark.proves("P15", "F33")
@pytest.mark.parametrize(
    ("misfire", "max_catch_up", "fire", "missed"),
    [
        ("skip", 100, OVERDUE[-1:], OVERDUE[:-1]),
        ("latest", 100, OVERDUE[-1:], OVERDUE[:-1]),
        ("all", 100, OVERDUE, []),
        ("all", 3, ["11:30", "11:45", "12:00"], OVERDUE[:-3]),
    ],
)
@pytest.mark.parametrize("schedule", [parse_cron("*/15 * * * *"), parse_interval("15m")])
def test_three_hours_down_per_policy(
    schedule: Schedule, misfire: str, max_catch_up: int, fire: list[str], missed: list[str]
) -> None:
    last, now = NOON - 3 * HOUR, NOON + 20 * SECOND
    due = decide(schedule, last, now, misfire=misfire, max_catch_up=max_catch_up)
    assert (clock(due.fire), clock(due.missed)) == (fire, missed)
    assert (due.missed_total, due.missed_total_exact) == (len(missed), True)
    # The second scheduler that starts at the same moment decides alike, down to the run keys.
    assert decide(schedule, last, now, misfire=misfire, max_catch_up=max_catch_up) == due
    # What is handled is handled: the next tick finds nothing.
    assert due.newest is not None
    assert decide(schedule, due.newest.at, now, misfire=misfire) == DueFires(
        [], [], 0, missed_total_exact=True
    )


@pytest.mark.proves("P15")
def test_nothing_within_grace_leaves_skip_with_nothing_to_fire_and_latest_with_the_newest() -> None:
    hourly = parse_cron("@hourly")
    now = NOON + timedelta(minutes=30)
    skipped = decide(hourly, NOON - 2 * HOUR, now, misfire="skip")
    assert (clock(skipped.fire), clock(skipped.missed)) == ([], ["11:00", "12:00"])
    latest = decide(hourly, NOON - 2 * HOUR, now, misfire="latest")
    assert (clock(latest.fire), clock(latest.missed)) == (["12:00"], ["11:00"])


@pytest.mark.proves("P15")
def test_grace_includes_its_last_moment() -> None:
    hourly = parse_cron("@hourly")
    on_edge = decide(hourly, NOON - HOUR, NOON + 60 * SECOND, misfire="skip", grace_s=60)
    past_it = decide(
        hourly, NOON - HOUR, NOON + timedelta(seconds=60, microseconds=1), misfire="skip", grace_s=60
    )
    assert (clock(on_edge.fire), clock(past_it.fire)) == (["12:00"], [])
    assert clock(decide(hourly, NOON - HOUR, NOON, misfire="skip", grace_s=0).fire) == ["12:00"]
    assert clock(decide(hourly, NOON - 9 * HOUR, NOON, misfire="skip", grace_s=1e300).fire) != ["12:00"]


def test_a_fire_is_due_at_its_instant_and_not_before() -> None:
    hourly = parse_cron("@hourly")
    early = decide(hourly, NOON - HOUR, NOON - timedelta(microseconds=1))
    assert (early.fire, early.missed, early.newest) == ([], [], None)
    assert clock(decide(hourly, NOON - HOUR, NOON).fire) == ["12:00"]


@pytest.mark.proves("P15", "F26s")
@pytest.mark.parametrize("schedule", [parse_cron("* * * * *"), parse_interval(1)])
def test_a_clock_that_stepped_back_finds_nothing_due(schedule: Schedule) -> None:
    assert decide(schedule, NOON, NOON - HOUR) == DueFires([], [], 0, missed_total_exact=True)


@pytest.mark.proves("P15", "P16")
def test_a_downtime_over_the_clock_change_fires_the_repeated_minute_once() -> None:
    last, now = datetime(2026, 11, 1, 4, tzinfo=UTC), datetime(2026, 11, 1, 12, tzinfo=UTC)
    due = decide(parse_cron("30 1 * * *"), last, now, tz=NEW_YORK)
    assert [fire.wall_key for fire in due.fire] == ["2026-11-01T01:30"]
    # Handled once: waking in the second pass of the hour does not see it again.
    assert decide(parse_cron("30 1 * * *"), due.fire[0].at, now, tz=NEW_YORK).fire == []


@pytest.mark.proves("P15", "P23")
def test_decades_of_a_one_second_interval_are_counted_and_not_listed() -> None:
    due = decide(parse_interval(1), EPOCH, NOON, max_catch_up=5)
    seconds = int((NOON - EPOCH) / SECOND)
    assert [fire.at for fire in due.fire] == [NOON - n * SECOND for n in (4, 3, 2, 1, 0)]
    assert len(due.missed) == FIRES_LISTED_MAX - 5
    assert (due.missed_total, due.missed_total_exact) == (seconds - 5, True)
    assert due.missed[-1].at == NOON - 5 * SECOND


@pytest.mark.proves("P15", "P23")
@pytest.mark.parametrize("text", ["* * * * *", "*/5 * * 1 *", "*/5 1-3 * * *"])
def test_decades_of_a_cron_cost_no_more_than_what_is_listed(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    plain = croniter.get_next

    def counted(self: croniter, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(croniter, "get_next", counted)
    due = decide(parse_cron(text), EPOCH, NOON, max_catch_up=2, tz=NEW_YORK)
    assert 0 < steps < 2 * FIRES_LISTED_MAX
    assert len(due.fire) + len(due.missed) == FIRES_LISTED_MAX
    assert due.missed_total >= len(due.missed)
    assert not due.missed_total_exact
    assert due.newest == due.fire[-1]
    later = [fire.at for fire in (*due.missed, *due.fire)]
    assert later == sorted(set(later))
    start = later[0] - timedelta(microseconds=1)
    assert len(parse_cron(text).fires_between(start, NOON, NEW_YORK, 20_000)) == FIRES_LISTED_MAX


@pytest.mark.proves("P23")
@pytest.mark.parametrize("extra", [0, 1])
def test_the_list_is_full_at_its_limit_and_cut_one_above(extra: int) -> None:
    last = NOON - timedelta(minutes=FIRES_LISTED_MAX + extra)
    due = decide(parse_cron("* * * * *"), last, NOON, misfire="latest")
    assert len(due.missed) == FIRES_LISTED_MAX - 1
    assert (due.missed_total, due.missed_total_exact) == (FIRES_LISTED_MAX - 1 + extra, True)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"misfire": "sometimes"}, "misfire"),
        ({"misfire": None}, "misfire"),
        ({"misfire": ["all"]}, "misfire"),
        ({"max_catch_up": 0}, "max_catch_up"),
        ({"max_catch_up": FIRES_LISTED_MAX + 1}, "max_catch_up"),
        ({"max_catch_up": True}, "max_catch_up"),
        ({"max_catch_up": 2.0}, "max_catch_up"),
        ({"grace_s": -1}, "grace_s"),
        ({"grace_s": math.nan}, "grace_s"),
        ({"grace_s": "60"}, "grace_s"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict, field: str) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        decide(parse_cron("@hourly"), NOON - HOUR, NOON, **options)
    assert caught.value.field == field


def test_good_options_come_back_as_they_are() -> None:
    assert [check_misfire(name) for name in ("skip", "latest", "all")] == ["skip", "latest", "all"]
    assert [check_max_catch_up(n) for n in (1, FIRES_LISTED_MAX)] == [1, FIRES_LISTED_MAX]


@pytest.mark.parametrize("schedule", [parse_cron("@hourly"), parse_interval("1h")])
@pytest.mark.parametrize(
    "moment", [datetime(2026, 1, 1), datetime(9950, 1, 1, tzinfo=UTC), "2026-01-01", None]
)
def test_a_moment_without_a_zone_or_out_of_range_is_refused(schedule: Schedule, moment: Any) -> None:
    with pytest.raises(InvalidTime):
        schedule.next_fire(moment, UTC_ZONE)
    with pytest.raises(InvalidTime):
        schedule.fires_between(NOON, moment, UTC_ZONE, 1)
    with pytest.raises(InvalidTime):
        decide(schedule, NOON, moment)


# --- plain words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/15 * * * *", "every 15 minutes"),
        ("*/7 * * * *", "at minutes 0, 7, ... 56 of every hour"),
        ("@hourly", "at minute 0 of every hour"),
        ("0 0-23 * * *", "at minute 0 of hours 0-23"),
        ("0 */2 * * *", "every 2 hours at minute 0"),
        ("0 */5 * * *", "at 00:00, 05:00, 10:00, 15:00 and 20:00 every day"),
        ("@daily", "at 00:00 every day"),
        ("0 8,20 * * *", "at 08:00 and 20:00 every day"),
        ("*/20 2 * * *", "at 02:00, 02:20 and 02:40 every day"),
        ("* 2 * * *", "every minute of hour 2"),
        ("*/15 9-17 * * 1-5", "every 15 minutes of hours 9-17 on Monday to Friday"),
        ("0,1,2,7 */12 * * *", "at minutes 0-2 and 7 of hours 0 and 12"),
        ("30 2 * * 6,7", "at 02:30 on Saturday and Sunday"),
        ("30 2 * * fri-sun", "at 02:30 on Friday to Sunday"),
        ("0 0 L * *", "at 00:00 on the last day of the month"),
        ("0 0 1,15,L * *", "at 00:00 on days 1 and 15 of the month and the last day of the month"),
        ("0 0 */2 * *", "at 00:00 on days 1, 3, ... 31 of the month"),
        ("0 9 * * 1#2,fri#1", "at 09:00 on the first Friday and the second Monday of the month"),
        ("@yearly", "at 00:00 on day 1 of the month in January"),
        ("5 4 * 3-5,9 sun", "at 04:05 on Sunday in March, April, May and September"),
        (
            "0 0 13 * 5",
            "at 00:00 on day 13 of the month OR on Friday (day-of-month OR weekday: either is enough)",
        ),
    ],
)
def test_an_expression_in_plain_words(text: str, words: str) -> None:
    assert describe_cron(text) == words
    assert describe_cron(parse_cron(text)) == words


def test_words_for_a_refused_text_are_the_refusal() -> None:
    with pytest.raises(InvalidSchedule, match="out of range"):
        describe_cron("61 * * * *")
