"""Cron expressions that mean the same, clock changes row by row, and time zones."""

from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

import pgqueue.core.cron
from pgqueue.core.cron import (
    Fire,
    check_timezone,
    clock_change_notes,
    describe_cron,
    parse_cron,
    parse_interval,
)
from pgqueue.errors import InvalidTimezone

NEW_YORK = ZoneInfo("America/New_York")
BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
UTC_ZONE = ZoneInfo("UTC")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fires_of_day(text: str, tz: ZoneInfo, year: int, month: int, day: int) -> list[Fire]:
    midnight = datetime(year, month, day)
    start, end = (moment.replace(tzinfo=tz).astimezone(UTC) for moment in (midnight, midnight + DAY))
    instant = timedelta(microseconds=1)
    return parse_cron(text).fires_between(start - instant, end - instant, tz, 2000)


# --- expressions that mean the same


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@Annually", "0 0 1 1 *"),
        ("  05\t04 *  * * ", "5 4 * * *"),
        ("0 0 * JAN,mar Mon", "0 0 * 1,3 1"),
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * fri-sun", "0 0 * * 5,6,0"),
        ("5/15 * * * *", "5,20,35,50 * * * *"),
        ("59/15 * * * *", "59 * * * *"),  # another meaning before croniter 7
        ("6/1 * * * *", "6-59 * * * *"),  # and here
        ("0 0 * */5 *", "0 0 * 1,6,11 *"),
        ("0 0 1-31 * *", "0 0 * * *"),
    ],
)
@pytest.mark.proves("CT3")
def test_two_spellings_fire_alike(text: str, same_as: str) -> None:
    after = at("2026-02-27T13:07")
    fires, same = (
        [fire.at for fire in parse_cron(each).fires_between(after, after + 3 * 365 * DAY, BERLIN, 50)]
        for each in (text, same_as)
    )
    assert fires == same
    assert len(fires) >= 3


@pytest.mark.parametrize("step", range(1, 8))
def test_every_weekday_range_names_its_days(step: int) -> None:
    """croniter folds 7 into 0, which turns 5-7 into a range over the week's end."""
    for low in range(7):
        for high in range(low + 1, 8):
            fires = parse_cron(f"0 0 * * {low}-{high}/{step}").fires_between(
                at("2026-01-03T12:00"), at("2026-01-10T12:00"), UTC_ZONE, 99
            )
            wanted = {day % 7 for day in range(low, high + 1, step)}
            assert {fire.at.isoweekday() % 7 for fire in fires} == wanted


@pytest.mark.proves("I28")
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29"]),
        ("0 0 * 2 1#5", ["2044-02-29", "2072-02-29"]),
        ("0 0 L 2 *", ["2027-02-28", "2028-02-29"]),
        ("0 0 31 * *", ["2026-03-31", "2026-05-31"]),
        ("0 0 30 2 1", ["2027-02-01", "2027-02-08"]),  # never on a 30 February, but on Mondays
    ],
)
def test_rare_days_are_found(text: str, wanted: list[str]) -> None:
    fires = parse_cron(text).fires_between(at("2026-03-01T00:00"), at("2090-01-01T00:00"), UTC_ZONE, 2)
    assert [f"{fire.at:%Y-%m-%d}" for fire in fires] == wanted


@pytest.mark.proves("I30", "CT4")
def test_day_of_month_and_weekday_are_alternatives_and_the_words_say_so() -> None:
    fires = parse_cron("0 0 1 * 1").fires_between(
        at("2026-09-01T00:00"), at("2026-10-06T00:00"), UTC_ZONE, 99
    )
    assert [fire.at.day for fire in fires] == [7, 14, 21, 28, 1, 5]
    assert "OR on Monday (day-of-month OR weekday: either is enough)" in describe_cron("0 0 1 * 1")


def test_each_computation_starts_afresh() -> None:
    cron = parse_cron("0 12 * * *")
    endless = cron.iter_fires(at("2026-01-01T00:00"), UTC_ZONE)
    next(endless)
    assert cron.next_fire(at("2026-01-01T00:00"), UTC_ZONE).at == at("2026-01-01T12:00")
    assert next(endless).at == at("2026-01-02T12:00")
    assert (str(cron), cron.hour_is_fixed) == ("0 12 * * *", True)


# --- clock changes


@pytest.mark.proves("P16", "I31", "CT1", "CT2")
@pytest.mark.parametrize(
    ("text", "tz", "day", "wanted"),
    [
        # overlap: the first of two
        ("30 1 * * *", NEW_YORK, (2026, 11, 1), [("05:30", "01:30")]),
        ("30 2 * * *", BERLIN, (2026, 10, 25), [("00:30", "02:30")]),
        # gap: the first instant after it
        ("30 2 * * *", NEW_YORK, (2026, 3, 8), [("07:00", "02:30")]),
        # several minutes lost in one gap are one fire
        ("*/20 2 * * *", NEW_YORK, (2026, 3, 8), [("07:00", "02:00")]),
        (
            "*/20 2 * * *",
            BERLIN,
            (2026, 10, 25),
            [("00:00", "02:00"), ("00:20", "02:20"), ("00:40", "02:40")],
        ),
        # the lost 02:00 and the real 03:00 are one instant, hence one fire
        ("0 1-3 * * *", NEW_YORK, (2026, 3, 8), [("06:00", "01:00"), ("07:00", "02:00")]),
        (
            "0 1-3 * * *",
            NEW_YORK,
            (2026, 11, 1),
            [("05:00", "01:00"), ("07:00", "02:00"), ("08:00", "03:00")],
        ),
        # half an hour: 01:30 to 02:00 occur twice, 02:00 to 02:30 are lost
        ("45 1 * * *", LORD_HOWE, (2026, 4, 5), [("14:45", "01:45")]),
        ("15 2 * * *", LORD_HOWE, (2026, 10, 4), [("15:30", "02:15")]),
        ("45 2 * * *", LORD_HOWE, (2026, 10, 4), [("15:45", "02:45")]),
    ],
)
def test_a_fixed_local_time_fires_once_per_local_day(
    text: str, tz: ZoneInfo, day: tuple[int, int, int], wanted: list[tuple[str, str]]
) -> None:
    fires = fires_of_day(text, tz, *day)
    date = "{:04}-{:02}-{:02}T".format(*day)
    assert [(f"{fire.at:%H:%M}", fire.wall_key) for fire in fires] == [(u, date + w) for u, w in wanted]


@pytest.mark.proves("P16", "I31")
@pytest.mark.parametrize(
    ("text", "tz", "day", "count"),
    [
        ("*/15 * * * *", NEW_YORK, (2026, 11, 1), 100),
        ("*/15 * * * *", NEW_YORK, (2026, 3, 8), 92),
        ("*/15 * * * *", NEW_YORK, (2026, 7, 1), 96),
        ("*/15 * * * *", LORD_HOWE, (2026, 4, 5), 98),
        ("*/15 * * * *", LORD_HOWE, (2026, 10, 4), 94),
        ("0 * * * *", BERLIN, (2026, 10, 25), 25),
        ("0 * * * *", BERLIN, (2026, 3, 29), 23),
        ("* * * * *", BERLIN, (2026, 3, 29), 23 * 60),
        ("0 0-23 * * *", BERLIN, (2026, 10, 25), 24),  # a written-out list is fixed
    ],
)
def test_hourly_and_finer_follow_elapsed_time(
    text: str, tz: ZoneInfo, day: tuple[int, int, int], count: int
) -> None:
    assert len(fires_of_day(text, tz, *day)) == count


@pytest.mark.proves("P16", "CT2")
def test_a_wildcard_hour_keeps_only_instants_at_which_the_clock_matches() -> None:
    fires = fires_of_day("0 */2 * * *", NEW_YORK, 2026, 3, 8)
    assert [fire.at.astimezone(NEW_YORK).hour for fire in fires][:3] == [0, 4, 6]
    # croniter alone moves the lost 02:00 to 03:00.
    midnight = datetime(2026, 3, 8, tzinfo=NEW_YORK)
    both = [
        fire.wall_key
        for fire in parse_cron("30 * * * *").fires_between(midnight, midnight + 3 * HOUR, NEW_YORK, 9)
    ]
    assert both == ["2026-03-08T05:30:00+00:00", "2026-03-08T06:30:00+00:00"]


@pytest.mark.proves("P16")
def test_waking_between_two_passes_of_an_hour_does_not_lose_the_second() -> None:
    hourly = parse_cron("0 * * * *")
    assert hourly.next_fire(at("2026-11-01T05:30"), NEW_YORK).at == at("2026-11-01T06:00")
    assert hourly.next_fire(at("2026-11-01T06:00"), NEW_YORK).at == at("2026-11-01T07:00")


@pytest.mark.proves("I31")
@pytest.mark.parametrize(
    ("text", "zone", "wanted"),
    [
        (
            "30 1 * * *",
            "America/New_York",
            ["01:30 occurs twice on 2026-11-01 in America/New_York: fires at the first"],
        ),
        (
            "30 2 * * *",
            "America/New_York",
            ["02:30 does not exist on 2026-03-08 in America/New_York: fires at 03:00"],
        ),
        (
            "*/20 2 * * *",
            "America/New_York",
            ["02:00 to 02:40 do not exist on 2026-03-08 in America/New_York: fire once at 03:00"],
        ),
        (
            "0,30 * * * *",
            "Australia/Lord_Howe",
            [
                "01:30 occurs twice on 2026-04-05 in Australia/Lord_Howe: fires both times",
                "02:00 does not exist on 2026-10-04 in Australia/Lord_Howe: no fire",
            ],
        ),
        (
            "30 23 * * *",
            "America/Nuuk",
            [
                "23:30 does not exist on 2026-03-28 in America/Nuuk: fires at 00:00 on 2026-03-29",
                "23:30 occurs twice on 2026-10-24 in America/Nuuk: fires at the first",
            ],
        ),
        (  # the next fire is hours away, and still the lost one is told of
            "30 */2 * * *",
            "America/New_York",
            ["02:30 does not exist on 2026-03-08 in America/New_York: no fire"],
        ),
        ("30 4 * * *", "America/New_York", []),
        ("30 1 * * *", "America/Barbados", []),
    ],
)
def test_the_preview_tells_of_each_clock_change(text: str, zone: str, wanted: list[str]) -> None:
    year = {"after": at("2026-01-01T00:00"), "until": at("2027-01-01T00:00"), "tz": ZoneInfo(zone)}
    cron = parse_cron(text)
    assert clock_change_notes(cron, **year) == wanted
    noted = cron.fires_between(year["after"], year["until"], year["tz"], 20_000)
    assert list(dict.fromkeys(fire.note for fire in noted if fire.note)) == wanted


def test_notes_are_bounded_and_intervals_have_none() -> None:
    year = {"after": at("2026-01-01T00:00"), "until": at("2027-01-01T00:00"), "tz": NEW_YORK}
    assert len(clock_change_notes(parse_cron("* * * * *"), **year)) == 20
    assert len(clock_change_notes(parse_cron("* * * * *"), **year, limit=500)) == 61
    assert clock_change_notes(parse_interval("1m"), **year) == []


# --- time zones


@pytest.mark.proves("I32")
@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("", "is empty"),
        ("Nope/X", "is not in this host's time zone data"),
        ("../../etc/passwd", "is not in this host's time zone data"),
        ("/etc/passwd", "is not in this host's time zone data"),
        ("America", "is a region, not a zone; write for example America/"),
        ("America/", "is a region, not a zone"),
        ("UTC\x00", "is not in this host's time zone data"),
        ("x" * 5000, "5000 characters"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("America/NewYork", "did you mean America/New_York?"),
        ("localtime", "differs from host to host"),
        (None, "not NoneType"),
        (b"UTC", "not bytes"),
        (UTC_ZONE, "not ZoneInfo"),
    ],
)
def test_a_zone_that_is_not_on_the_list_is_refused(name: object, phrase: str) -> None:
    with pytest.raises(InvalidTimezone) as caught:
        check_timezone(name)  # type: ignore[arg-type]
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_listed_zone_is_returned() -> None:
    assert check_timezone("America/Barbados").key == "America/Barbados"
    assert check_timezone("UTC").utcoffset(at("2026-01-01T00:00")) == timedelta(0)


# --- purity


def test_no_module_of_this_corner_reads_a_clock_or_touches_the_world() -> None:
    folder = Path(pgqueue.core.cron.__file__).parent
    modules = sorted(folder.glob("cron*.py"))
    assert len(modules) >= 2
    for module in modules:
        tree = ast.parse(module.read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"now", "utcnow", "today", "fromtimestamp", "open", "read_text"}, module.name
        imported = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"time", "random", "asyncio", "os", "pathlib", "socket"}, module.name
