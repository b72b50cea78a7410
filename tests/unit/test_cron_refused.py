"""Cron expressions that are refused, and that each refusal points at the fault."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from pgqueue.core.cron import EPOCH, EXPRESSION_CHARS_MAX, parse_cron
from pgqueue.errors import InvalidSchedule

# expression, what the carets stand under, part of the sentence
REFUSED = [
    ("", "", "0 of the five fields"),
    ("   ", "", "0 of the five fields"),
    ("* * * *", "", "4 of the five fields"),
    ("60 * * * *", "60", "minute: out of range; write 0 to 59"),
    ("* 24 * * *", "24", "hour: out of range; write 0 to 23"),
    ("* * 0 * *", "0", "day-of-month: out of range; write 1 to 31"),
    ("* * 32 * *", "32", "day-of-month: out of range"),
    ("* * * 0 *", "0", "month: out of range; write 1 to 12"),
    ("* * * 13 *", "13", "month: out of range"),
    ("* * * * 8", "8", "weekday: out of range; write 0 to 7"),
    ("1,2,99 * * * *", "99", "minute: out of range"),
    ("*/0 * * * *", "*/0", "a step is 1 to 60"),
    ("*/61 * * * *", "*/61", "a step is 1 to 60"),
    ("* */25 * * *", "*/25", "a step is 1 to 24"),
    ("0-30/0 * * * *", "0-30/0", "a step is 1 to 60"),
    ("5-1 * * * *", "5-1", "runs backwards; write the lower end first, or 5-59,0-1"),
    ("0 22-0 * * *", "22-0", "or 22-23,0"),
    ("0 0 * dec-feb *", "dec-feb", "runs backwards"),
    ("0 0 * * fri-tue", "fri-tue", "or fri-7,0-tue"),
    ("5-5 * * * *", "5-5", "two different ends; write 5"),
    ("0 0 * * sun-sun", "sun-sun", "two different ends"),
    ("* * * * 1/2", "1/2", "a step needs a range here"),
    ("*,5 * * * *", "*", "* already means every value"),
    ("1,,2 * * * *", ",", "an item of the list is empty"),
    ("1, * * * *", " ", "an item of the list is empty"),
    ("R * * * *", "R", "H and R give each scheduler another time"),
    ("r(0-5) * * * *", "r(0-5)", "H and R"),
    ("0 H * * *", "H", "H and R"),
    ("0 H(0-5)/2 * * *", "H(0-5)/2", "H and R"),
    ("0 0 ? * *", "?", "? is not supported; write *"),
    ("0 0 15W * *", "15W", "only a lone L"),
    ("0 0 * * L5", "L5", "only a lone L"),
    ("0 0 L-3 * *", "L-3", "not understood"),
    ("0 0 * * 1#6", "1#6", "weekday and 1 to 5"),
    ("0 0 1#2 * *", "1#2", "in the weekday field only"),
    ("0 0 * * 1,2#3", "2#3", "cannot stand beside plain ones"),
    ("0 0 1 * 1#2", "1", "day-of-month must be *"),
    ("0 0 * foo *", "foo", "month: not a name"),
    ("jan * * * *", "jan", "minute: has no names"),
    ("-1 * * * *", "-1", "not understood"),
    ("1-2-3 * * * *", "1-2-3", "not understood"),
    ("007 * * * *", "007", "not understood"),
    ("1e1 * * * *", "1e1", "not understood"),
    ("* * * * * *", "*", "has 6 fields, five are allowed"),
    ("* * * * * 0 2026", "0 2026", "has 7 fields"),
    ("@reboot", "@reboot", "is not a time"),
    ("@every 5m", "@every 5m", 'every="15m"'),
    ("@fortnightly", "@fortnightly", "not a known name"),
    ("@daily 5", "@daily 5", "not a known name"),
    ("0 0 30 2 *", "30 2 *", "never fires"),
    ("0 0 31 4,6,9,11 *", "31 4,6,9,11 *", "never fires"),
    ("0 0\n* * *", "?", "a line break in column 4"),
    ("0 0 * * *\r", "?", "a line break in column 10"),
    ("0 0 * * *\x00", "?", "U+0000 in column 10"),
    ("0\u00a00 * * *", "?", "U+00A0 in column 2"),
    ("\u0661 * * * *", "?", "U+0661 in column 1"),
]


@pytest.mark.proves("I27", "I28", "I29", "CT3", "CT4")
@pytest.mark.parametrize(("expression", "bad_part", "phrase"), REFUSED)
def test_a_refused_expression_is_one_sentence_and_carets_under_the_bad_part(
    expression: str, bad_part: str, phrase: str
) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        parse_cron(expression)
    assert caught.value.field == "cron"
    sentence, shown, carets = str(caught.value).split("\n")
    assert phrase in sentence
    if bad_part:
        assert shown[carets.index("^") : len(carets)] == bad_part
    else:
        missing = len(expression) + 1 if expression.strip() else 0
        assert carets == "  " + " " * missing + "^"


@pytest.mark.proves("I27")
@pytest.mark.parametrize("value", [None, b"* * * * *", 5, ["*"] * 5, object()])
def test_what_is_not_text_is_refused_as_such(value: object) -> None:
    with pytest.raises(InvalidSchedule, match=f"not {type(value).__name__}$"):
        parse_cron(value)  # type: ignore[arg-type]


@pytest.mark.proves("I29")
def test_the_length_limit_holds_at_the_limit_and_one_above() -> None:
    longest = "10 * * * *".ljust(EXPRESSION_CHARS_MAX)
    assert parse_cron(longest).next_fire(EPOCH, ZoneInfo("UTC")).at == datetime(1970, 1, 1, 0, 10, tzinfo=UTC)
    for too_long in (longest + " ", ",".join(["1"] * 20_000) + " * * * *"):
        with pytest.raises(InvalidSchedule, match=f"the limit is {EXPRESSION_CHARS_MAX}") as caught:
            parse_cron(too_long)
        assert len(str(caught.value)) < 300


def test_a_fault_far_to_the_right_is_still_shown() -> None:
    with pytest.raises(InvalidSchedule) as caught:
        parse_cron(",".join(str(minute) for minute in range(60)) + " 1,33 * * *")
    _, shown, carets = str(caught.value).split("\n")
    assert shown[carets.index("^") : len(carets)] == "33"
