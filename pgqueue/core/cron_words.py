"""A cron expression in plain words, for previews, the dashboard and `schedules list`.

Called through core.cron with fields that the grammar accepted. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from croniter import croniter

_MONTHS = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)
_WEEKDAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
_NTH = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth"}
_CLOCK_TIMES_MAX = 6
_PROGRESSION_MIN = 5

_Values = Sequence[int | str]


def describe_fields(fields: Sequence[str]) -> str:
    """Plain words for five checked fields: when in the day, on which days, in which months."""
    values, nth = croniter.expand(" ".join(fields))
    minutes, hours, days, months, weekdays = values
    if hours == ["*"] and not fields[1].startswith("*"):
        hours = list(range(24))  # a fixed hour field, so `0-23` must not read like `*`
    day_words = _nth_words(nth) if nth else _day_words(days, weekdays)
    time_words = _time_words(fields[0], fields[1], minutes, hours)
    if not day_words and time_words.startswith("at ") and "hour" not in time_words:
        day_words = "every day"
    month_words = "" if months == ["*"] else f"in {_listing([_MONTHS[int(m) - 1] for m in months])}"
    return " ".join(part for part in (time_words, day_words, month_words) if part)


def _time_words(minute: str, hour: str, minutes: _Values, hours: _Values) -> str:
    if hours != ["*"] and minutes != ["*"] and len(minutes) * len(hours) <= _CLOCK_TIMES_MAX:
        times = [f"{int(h):02}:{int(m):02}" for h in hours for m in minutes]
        return f"at {_listing(times)}"
    every_hours = _even_step(hour, 24)
    if every_hours and len(minutes) == 1 and minutes != ["*"]:
        return f"every {every_hours} hours at minute {minutes[0]}"
    if hours == ["*"]:
        return _minute_words(minute, minutes, " of every hour")
    plural = "hour" if len(hours) == 1 else "hours"
    clock = f" of {plural} {_numbers(hours)}"
    return _minute_words(minute, minutes, clock)


def _minute_words(minute: str, minutes: _Values, of_hours: str) -> str:
    tail = "" if of_hours == " of every hour" else of_hours
    if minutes == ["*"]:
        return f"every minute{tail}"
    step = _even_step(minute, 60)
    if step:
        return f"every {step} minutes{tail}"
    plural = "minute" if len(minutes) == 1 else "minutes"
    return f"at {plural} {_numbers(minutes)}{of_hours}"


def _even_step(field: str, size: int) -> int | None:
    """The n of `*/n` when it divides its field evenly, so that "every n" is true over the wrap as well."""
    step = field.removeprefix("*/")
    if step == field or not 1 < int(step) < size or size % int(step):
        return None
    return int(step)


def _day_words(days: _Values, weekdays: _Values) -> str:
    by_date = "" if days == ["*"] else _date_words(days)
    by_weekday = "" if weekdays == ["*"] else f"on {_weekday_words([int(w) for w in weekdays])}"
    if by_date and by_weekday:
        return f"{by_date} OR {by_weekday} (day-of-month OR weekday: either is enough)"
    return by_date or by_weekday


def _date_words(days: _Values) -> str:
    numbers = [day for day in days if day != "l"]
    parts = []
    if numbers:
        plural = "day" if len(numbers) == 1 else "days"
        parts.append(f"{plural} {_numbers(numbers)} of the month")
    if "l" in days:
        parts.append("the last day of the month")
    return f"on {' and '.join(parts)}"


def _weekday_words(weekdays: Sequence[int]) -> str:
    # Monday first: a week that ends with Sunday reads as one stretch.
    ordered = sorted(weekdays, key=lambda day: (day - 1) % 7)
    places = [(day - 1) % 7 for day in ordered]
    names = [_WEEKDAYS[day] for day in ordered]
    if len(names) > 2 and places == list(range(places[0], places[-1] + 1)):
        return f"{names[0]} to {names[-1]}"
    return _listing(names)


def _nth_words(nth: dict[int, set[int]]) -> str:
    pairs = sorted((number, weekday) for weekday, numbers in nth.items() for number in numbers)
    return f"on {_listing([f'the {_NTH[n]} {_WEEKDAYS[weekday]}' for n, weekday in pairs])} of the month"


def _numbers(values: _Values) -> str:
    """Numbers for reading, without loss: runs as 1-5, a long even progression by its ends, else all of them."""
    numbers = [int(value) for value in values]
    gaps = {later - earlier for earlier, later in pairwise(numbers)}
    if len(numbers) >= _PROGRESSION_MIN and len(gaps) == 1 and gaps != {1}:
        return f"{numbers[0]}, {numbers[1]}, ... {numbers[-1]}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = []
    for run in runs:
        parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(number) for number in run]
    return _listing(parts)


def _listing(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
