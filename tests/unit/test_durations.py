"""Durations and moments: what people write, what is refused, and the bounds on both."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest

from pgqueue.core.durations import DURATION_S_MAX, check_moment, format_duration, parse_duration
from pgqueue.errors import InvalidTime


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2),
        ("5m", 300),
        ("1h", 3_600),
        ("1d", 86_400),
        ("1w", 604_800),
        ("1h30m", 5_400),
        ("1h 30m", 5_400),
        ("1d2h3m4s5ms", 93_784.005),
        ("1.5h", 5_400),
        (" 2s ", 2),
        ("0s", 0),
        (0, 0),
        (30, 30),
        (1.5, 1.5),
        (timedelta(minutes=2), 120),
    ],
)
def test_a_duration_is_read_as_seconds(value, seconds):
    assert parse_duration(value, field="delay") == pytest.approx(seconds)


@pytest.mark.proves("I17", "I35")
@pytest.mark.parametrize(
    "value",
    [
        "", " ", "s", "5", "5 m5", "5x", "5M", "-5s", "+5s", "1e3s", "nan", "infs", "1m1h", "1h1h", "5s!",
        "5s;", "1h\n30m", "٥s", "5s" * 100, "9" * 400 + "s", ".5s", "1.s", "1..5s",
        True, False, None, b"5s", [5], 1j,
        math.nan, math.inf, -math.inf, -1, -0.001, 1e15, 10**400, DURATION_S_MAX + 1,
        timedelta(seconds=-1), timedelta.max, timedelta.min,
        "600w", "999999999999999w",
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused_with_its_field(value):
    with pytest.raises(InvalidTime) as refused:
        parse_duration(value, field="delay")
    assert refused.value.field == "delay"
    assert str(refused.value).startswith("delay: ")
    assert "\n" not in str(refused.value)


@pytest.mark.proves("I35")
@pytest.mark.parametrize("text", ["30", "1.5"])
def test_a_bare_number_as_text_is_refused_with_the_way_to_write_it(text):
    with pytest.raises(InvalidTime, match=rf'write "{text}s"'):
        parse_duration(text, field="initial_delay")


@pytest.mark.parametrize(
    ("value", "accepted"), [(0.999, False), (1, True), (31_536_000, True), (31_536_001, False)]
)
@pytest.mark.proves("I33")
def test_bounds_are_accepted_and_one_beyond_is_not(value, accepted):
    if accepted:
        assert parse_duration(value, field="every", minimum_s=1, maximum_s=31_536_000) == value
    else:
        with pytest.raises(InvalidTime) as refused:
            parse_duration(value, field="every", minimum_s=1, maximum_s=31_536_000)
        assert refused.value.limit is not None


def test_what_is_too_short_is_told_apart_from_what_is_negative():
    with pytest.raises(InvalidTime, match="must not be negative"):
        parse_duration(-1, field="delay")
    with pytest.raises(InvalidTime, match="is too short"):
        parse_duration(-1, field="every", minimum_s=1)


def test_ten_years_are_the_longest_duration():
    assert DURATION_S_MAX == 315_576_000
    assert parse_duration(DURATION_S_MAX, field="delay") == DURATION_S_MAX


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0005, "0.5ms"),
        (0.25, "250ms"),
        (0.9994, "999ms"),
        (0.9996, "1s"),
        (2, "2s"),
        (2.5, "2.5s"),
        (59.94, "59.9s"),
        (59.96, "1m"),
        (300, "5m"),
        (90, "1m 30s"),
        (5_400, "1h 30m"),
        (3_661, "1h 1m"),
        (86_400 + 180, "1d"),
        (93_784, "1d 2h"),
        (-2, "-2s"),
        (math.inf, "infs"),
        (math.nan, "nans"),
    ],
)
def test_a_duration_is_written_with_its_two_largest_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [0, 0.25, 2, 2.5, 90, 300, 5_400, 93_600])
def test_what_is_written_reads_back(seconds):
    assert parse_duration(format_duration(seconds), field="x") == pytest.approx(seconds)


def test_an_aware_moment_is_returned_unchanged():
    for zone in (UTC, timezone(timedelta(hours=-4))):
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=zone)
        assert check_moment(moment, field="run_at") is moment


class _NoOffset(tzinfo):
    def utcoffset(self, when):
        return None


@pytest.mark.proves("I16")
@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=_NoOffset())])
def test_a_naive_moment_is_refused(moment):
    with pytest.raises(InvalidTime, match="has no time zone"):
        check_moment(moment, field="run_at")


@pytest.mark.proves("I15")
@pytest.mark.parametrize(("year", "accepted"), [(1, True), (2026, True), (9998, True), (9999, False)])
def test_the_last_year_is_9998(year, accepted):
    moment = datetime(year, 6, 1, tzinfo=UTC)
    if accepted:
        assert check_moment(moment, field="run_at") is moment
    else:
        with pytest.raises(InvalidTime, match="too far"):
            check_moment(moment, field="run_at")


@pytest.mark.parametrize("value", [None, "2026-01-01", 0, datetime(2026, 1, 1).date()])
def test_what_is_no_moment_is_refused(value):
    with pytest.raises(InvalidTime, match="must be a datetime"):
        check_moment(value, field="run_at")


def test_a_text_longer_than_64_characters_is_refused_unread():
    assert parse_duration("1d" + " " * 60 + "1h", field="x") == 90_000
    with pytest.raises(InvalidTime, match="64 characters"):
        parse_duration("1d" + " " * 61 + "1h", field="x")
