"""Schedules over two whole years of clock changes, against a walk over the zones and against cronsim.

The walk reads each zone half hour by half hour from UTC and never asks what a local time means, so it shares
no idea with the code under test: it has a table of what the clock showed, and looks local minutes up in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.core.cron import Fire, due_fires, parse_cron, parse_interval
from pgqueue.errors import InvalidSchedule

START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
HALF_HOUR, MINUTE, DAY = timedelta(minutes=30), timedelta(minutes=1), timedelta(days=1)

ZONES = (
    "America/New_York",
    "Europe/Berlin",
    "Africa/Cairo",  # changes at midnight, on a Friday
    "America/Santiago",  # southern, changes at midnight
    "Australia/Lord_Howe",  # changes by 30 minutes
    "America/Barbados",  # never changes
    "America/Nuuk",  # the gap ends at midnight of the next day
    "Africa/Casablanca",  # sets its clock back for Ramadan
)


@dataclass(frozen=True)
class Reading:
    """What an expression means, written by hand: no parser of cron texts takes part."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: Callable[[date], bool]
    fixed: bool


def _last_day(day: date) -> bool:
    return (day + DAY).day == 1


def _second_sunday(day: date) -> bool:
    return day.isoweekday() == 7 and 8 <= day.day <= 14


READINGS = {
    "30 1 * * *": Reading((30,), (1,), lambda _: True, fixed=True),
    "30 2 * * *": Reading((30,), (2,), lambda _: True, fixed=True),
    "0 0 * * *": Reading((0,), (0,), lambda _: True, fixed=True),
    "15 1,23 * * *": Reading((15,), (1, 23), lambda _: True, fixed=True),
    "*/20 2 * * *": Reading((0, 20, 40), (2,), lambda _: True, fixed=True),
    "0 1-3 * * *": Reading((0,), (1, 2, 3), lambda _: True, fixed=True),
    "45 1-2 8-14 3,11 *": Reading(
        (45,), (1, 2), lambda d: 8 <= d.day <= 14 and d.month in {3, 11}, fixed=True
    ),
    "0 0 1 * 1": Reading((0,), (0,), lambda d: d.day == 1 or d.isoweekday() == 1, fixed=True),
    "30 0-4/2 L * 0": Reading((30,), (0, 2, 4), lambda d: _last_day(d) or d.isoweekday() == 7, fixed=True),
    "0 2 * 3,9,11 sun#2": Reading(
        (0,), (2,), lambda d: _second_sunday(d) and d.month in {3, 9, 11}, fixed=True
    ),
    "0 */2 * 2-4,9-11 *": Reading(
        (0,), tuple(range(0, 24, 2)), lambda d: d.month in {2, 3, 4, 9, 10, 11}, fixed=False
    ),
    "*/30 * * 3-4,9-11 0,4-6": Reading(
        (0, 30),
        tuple(range(24)),
        lambda d: d.month in {3, 4, 9, 10, 11} and d.isoweekday() >= 4,
        fixed=False,
    ),
}


# The densest expression is left out where other zones already change their clocks in the same way.
PAIRS = [
    (text, zone)
    for text in READINGS
    for zone in ZONES
    if not text.startswith("*/30") or zone not in {"America/Nuuk", "Africa/Casablanca"}
]


@cache
def clock_table(zone: str) -> dict[datetime, list[datetime]]:
    """Local half hour → the UTC half hours at which the zone's clock showed it (none, one or two)."""
    tz = ZoneInfo(zone)
    table: dict[datetime, list[datetime]] = defaultdict(list)
    at = START - 2 * DAY
    while at < END + 2 * DAY:
        shown = at.astimezone(tz).replace(tzinfo=None)
        last = (at + HALF_HOUR - MINUTE).astimezone(tz).replace(tzinfo=None)
        # What makes half hours as good as minutes: no zone of the list changes within one.
        assert last - shown == HALF_HOUR - MINUTE
        assert shown.minute % 30 == 0
        table[shown.replace(fold=0)].append(at)
        at += HALF_HOUR
    return dict(table)


def walk(reading: Reading, zone: str) -> dict[datetime, str]:
    """The wanted fires of two years: instant → run key."""
    table = clock_table(zone)
    wanted: dict[datetime, str] = {}
    for wall in _local_minutes(reading):
        offset = timedelta(minutes=wall.minute % 30)
        shown = [at + offset for at in table.get(wall - offset, [])]
        if not reading.fixed:
            wanted.update({at: at.isoformat() for at in shown})
            continue
        if shown:
            at = shown[0]
        else:
            after_gap = wall - offset
            while after_gap not in table:
                after_gap += HALF_HOUR
            at = table[after_gap][0]
        wanted.setdefault(at, wall.isoformat(timespec="minutes"))
    return {at: key for at, key in wanted.items() if START <= at < END}


def _local_minutes(reading: Reading) -> Iterator[datetime]:
    day = date(2025, 12, 31)
    while day <= date(2028, 1, 1):
        if reading.days(day):
            for hour in reading.hours:
                for minute in reading.minutes:
                    yield datetime(day.year, day.month, day.day, hour, minute)
        day += DAY


@cache
def our_fires(text: str, zone: str) -> tuple[Fire, ...]:
    fires = parse_cron(text).iter_fires(START - MINUTE, ZoneInfo(zone))
    return tuple(takewhile(lambda fire: fire.at < END, fires))


@pytest.mark.proves("P16", "I31", "CT1", "CT2")
@pytest.mark.parametrize(("text", "zone"), PAIRS)
def test_two_years_equal_the_walk_over_the_zones_clock(text: str, zone: str) -> None:
    fires = our_fires(text, zone)
    assert {fire.at: fire.wall_key for fire in fires} == walk(READINGS[text], zone)
    assert [fire.at for fire in fires] == sorted({fire.at for fire in fires})
    assert len({fire.wall_key for fire in fires}) == len(fires)


# Where we and cronsim differ, and why ours is wanted: (only ours, only cronsim's), in local time.
MINUTE_STAR = "cronsim calls a job fixed only if its minute does not start with *; here the hour decides"
SKIPS_AHEAD = "cronsim moves on by whole hours and loses the rest of an hour that a half-hour change cut"
DIFFERENCES = {
    ("*/20 2 * * *", "America/New_York"): (MINUTE_STAR, ["03-08 03:00 EDT", "03-14 03:00 EDT"], []),
    ("*/20 2 * * *", "Europe/Berlin"): (
        MINUTE_STAR,
        ["03-29 03:00 CEST", "03-28 03:00 CEST"],
        [f"{day} 02:{minute} CET" for day in ("10-25", "10-31") for minute in ("00", "20", "40")],
    ),
    ("*/20 2 * * *", "Africa/Casablanca"): (
        MINUTE_STAR,
        ["03-22 03:00 +01", "03-14 03:00 +01"],
        [f"{day} 02:{minute} +00" for day in ("02-15", "02-07") for minute in ("00", "20", "40")],
    ),
    ("*/20 2 * * *", "Australia/Lord_Howe"): (
        f"{MINUTE_STAR}; {SKIPS_AHEAD}",
        [
            f"{month} {clock}"
            for year in (("04-05", "10-04"), ("04-04", "10-03"))
            for month, clock in (
                (year[0], "02:00 +1030"),
                (year[0], "02:20 +1030"),
                (year[1], "02:30 +11"),
            )
        ],
        [],
    ),
    ("0 */2 * 2-4,9-11 *", "Australia/Lord_Howe"): (
        SKIPS_AHEAD,
        ["04-05 02:00 +1030", "04-04 02:00 +1030"],
        [],
    ),
}


@pytest.mark.proves("P16", "I31", "CT2")
@pytest.mark.parametrize(("text", "zone"), PAIRS)
def test_two_years_equal_cronsim_but_for_the_listed_differences(text: str, zone: str) -> None:
    tz = ZoneInfo(zone)
    other = CronSim(text, (START - MINUTE).astimezone(tz))
    theirs = Counter(takewhile(lambda at: at < END, (at.astimezone(UTC) for at in other)))
    ours = Counter(fire.at for fire in our_fires(text, zone))

    def local(moments: Counter[datetime]) -> list[str]:
        return [f"{at.astimezone(tz):%m-%d %H:%M %Z}" for at in sorted(moments.elements())]

    _why, only_ours, only_theirs = DIFFERENCES.get((text, zone), ("", [], []))
    assert (local(ours - theirs), local(theirs - ours)) == (only_ours, only_theirs)


@pytest.mark.proves("CT1")
def test_croniter_alone_fires_twice_in_the_overlap() -> None:
    """The broken twin: if croniter mends this, the port can become thinner."""
    tz = ZoneInfo("America/New_York")
    midnight = datetime(2026, 11, 1, tzinfo=tz)
    raw = croniter("30 1 * * *", midnight, ret_type=datetime)
    assert [raw.get_next(datetime).astimezone(UTC).hour for _ in range(2)] == [5, 6]
    ours = parse_cron("30 1 * * *").fires_between(midnight, midnight + DAY, tz, 9)
    assert [fire.at.hour for fire in ours] == [5]


_FIELD_BOUNDS = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6))


@st.composite
def cron_texts(draw: st.DrawFn) -> str:
    """Expressions of the whole grammar whose meaning is undisputed between implementations."""
    fields = []
    for low, high in _FIELD_BOUNDS:
        numbers = sorted(draw(st.sets(st.integers(low, high), min_size=2, max_size=4)))
        step = draw(st.integers(1, high))
        shape = draw(st.sampled_from(["star", "step", "one", "list", "range", "range step"]))
        fields.append(
            {
                "star": "*",
                "step": f"*/{step}",
                "one": f"{numbers[0]}",
                "list": ",".join(map(str, numbers)),
                "range": f"{numbers[0]}-{numbers[-1]}",
                "range step": f"{numbers[0]}-{numbers[-1]}/{step}",
            }[shape]
        )
    # Beside a restricted day field, `*/n` is "and" to some crons and "or" to others.
    if fields[2].startswith("*/") or fields[4].startswith("*/"):
        fields[2 if fields[4].startswith("*/") else 4] = "*"
    return " ".join(fields)


MOMENTS = st.datetimes(datetime(2025, 1, 1), datetime(2029, 1, 1), timezones=st.just(UTC))


@settings(deadline=None, max_examples=100)
@given(text=cron_texts(), after=MOMENTS)
def test_in_utc_every_expression_agrees_with_cronsim(text: str, after: datetime) -> None:
    ours = [fire.at for fire in islice(parse_cron(text).iter_fires(after, ZoneInfo("UTC")), 5)]
    assert ours == list(islice(CronSim(text, after), 5))


CHANGES = st.sampled_from(
    [
        ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
        ("Africa/Cairo", datetime(2026, 10, 29, 21, tzinfo=UTC)),
        ("America/Nuuk", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ]
)
SECONDS_AROUND = st.integers(-3 * 3600, 3 * 3600)
DENSE = st.sampled_from(
    ["* * * * *", "0 * * * *", "*/7 1-3 * * *", "30 1,2,23 * * *", "*/20 */2 * * *", "13 0-23/3 * * *"]
)


@pytest.mark.proves("P14", "P16")
@settings(deadline=None, max_examples=100)
@given(text=DENSE, change=CHANGES, offset_s=SECONDS_AROUND)
def test_wherever_a_scheduler_wakes_up_it_sees_the_same_fires(
    text: str, change: tuple[str, datetime], offset_s: int
) -> None:
    zone, change_at = change
    tz, cron = ZoneInfo(zone), parse_cron(text)
    start, end = change_at - timedelta(hours=3), change_at + timedelta(hours=6)
    all_fires = cron.fires_between(start, end, tz, 2000)
    woken = change_at + timedelta(seconds=offset_s)
    later = [fire for fire in all_fires if fire.at > woken]
    # Equality includes the run key: two schedulers that wake at different moments write the same row.
    assert cron.fires_between(woken, end, tz, 2000) == later
    assert cron.next_fire(woken, tz) == (later[0] if later else cron.next_fire(end, tz))
    assert cron.newest_fires(start, woken, tz, 7).fires == [f for f in all_fires if f.at <= woken][-7:]


@pytest.mark.proves("P15", "F33")
@settings(deadline=None, max_examples=100)
@given(
    schedule=st.one_of(
        st.builds(parse_cron, DENSE), st.builds(parse_interval, st.floats(min_value=1, max_value=7200))
    ),
    change=CHANGES,
    down_s=st.integers(0, 20_000),
    policy=st.sampled_from(["skip", "latest", "all"]),
    max_catch_up=st.integers(1, 50),
    grace_s=st.integers(0, 10_000),
)
def test_no_fire_of_a_downtime_is_forgotten_or_counted_twice(
    schedule, change: tuple[str, datetime], down_s: int, policy: str, max_catch_up: int, grace_s: int
) -> None:
    tz, now = ZoneInfo(change[0]), change[1] + timedelta(hours=2)
    last = now - timedelta(seconds=down_s)
    due = due_fires(
        schedule, last_fire=last, now=now, tz=tz, misfire=policy, max_catch_up=max_catch_up, grace_s=grace_s
    )
    every = schedule.fires_between(last, now, tz, 30_000)
    listed = min(len(every), 10_000)
    assert [*due.missed, *due.fire] == every[len(every) - listed :]
    assert due.missed_total_exact
    assert due.missed_total == len(every) - len(due.fire)
    wanted = {
        "skip": sum(now - fire.at <= timedelta(seconds=grace_s) for fire in every[len(every) - listed :]),
        "latest": min(1, len(every)),
        "all": min(max_catch_up, len(every)),
    }[policy]
    assert len(due.fire) == wanted
    assert due.newest == (every[-1] if every else None)


@pytest.mark.proves("I27", "I29")
@settings(deadline=None, max_examples=300)
@given(text=st.one_of(st.text(max_size=300), st.text("0123456789*/,-#?LWHRlwhrsunjaf@ \t\n", max_size=40)))
def test_any_text_is_an_expression_or_one_refusal_that_points_at_its_fault(text: str) -> None:
    try:
        parse_cron(text)
    except InvalidSchedule as refusal:
        sentence, shown, carets = str(refusal).split("\n")
        assert sentence.startswith("cron: ")
        assert carets.strip("^ ") == ""
        assert carets.endswith("^")
        assert len(carets) <= len(shown) + 2  # a blank and a caret, where a field is missing
