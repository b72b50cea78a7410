"""The cron grammar that schedules may use, and the refusals that point at the bad field.

Called by core.cron before croniter sees a text: croniter alone also accepts random fields, endless steps
and backward ranges, and its meanings of some of them changed between versions. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from pgqueue.errors import InvalidSchedule

EXPRESSION_CHARS_MAX = 256

ALIASES: Mapping[str, str] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

_EXCERPT_CHARS_MAX = 72
_NTH = re.compile(r"([0-9]|[a-z]{3})#[1-5]", re.ASCII)
_ITEM = re.compile(
    r"(?:(?P<star>\*)|(?P<low>[0-9]{1,2}|[a-z]{3})(?:-(?P<high>[0-9]{1,2}|[a-z]{3}))?)(?:/(?P<step>[0-9]{1,3}))?",
    re.ASCII,
)
_NOT_UNDERSTOOD = (
    (re.compile(r"^$"), "an item of the list is empty; remove the comma"),
    (re.compile(r"^[hr](?:\(|/|$)"), "H and R give each scheduler another time; write a number"),
    (
        re.compile(r"#"),
        "# stands between a weekday and 1 to 5, in the weekday field only; write for example 1#2",
    ),
    (re.compile(r"\?"), "? is not supported; write *"),
    (
        re.compile(r"^(?:[0-9]*[lw]+|[lw]+[0-9]*)$"),
        "of L and W only a lone L for the month's last day is supported",
    ),
    (
        re.compile(r""),
        "not understood; write numbers, ranges such as 1-5, lists such as 1,15 or steps such as */10",
    ),
)


@dataclass(frozen=True, slots=True)
class CronField:
    """One of the five fields: its name in messages, its bounds, the step above which it says nonsense."""

    name: str
    low: int
    high: int
    step_max: int
    names: Mapping[str, int] = field(default_factory=dict)


FIELDS = (
    CronField("minute", 0, 59, 60),
    CronField("hour", 0, 23, 24),
    CronField("day-of-month", 1, 31, 31),
    CronField("month", 1, 12, 12, {name: number for number, name in enumerate(MONTHS, start=1)}),
    CronField("weekday", 0, 7, 7, {name: number for number, name in enumerate(WEEKDAYS)}),
)
DAY, WEEKDAY = 2, 4


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def check_expression(expression: object) -> tuple[str, ...]:
    """The five fields of a cron text, lower-cased, aliases replaced.

    Raises InvalidSchedule: one line that says what is wrong and what to write, then the expression with
    a caret line under the bad part.
    """
    if not isinstance(expression, str):
        raise InvalidSchedule("cron", f"needs text with five fields, not {type(expression).__name__}")
    _check_characters(expression)
    tokens = [_Token(m.group().lower(), m.start()) for m in re.finditer(r"[^ \t]+", expression)]
    if tokens and tokens[0].text.startswith("@"):
        return tuple(_alias(expression, tokens).split())
    _check_count(expression, tokens)
    for rule, token in zip(FIELDS, tokens, strict=True):
        _check_field(expression, rule, token)
    if "#" in tokens[WEEKDAY].text and tokens[DAY].text != "*":
        refuse(
            expression,
            tokens[DAY].start,
            tokens[DAY].end,
            "day-of-month must be * beside a numbered weekday such as 1#2",
        )
    return tuple(token.text for token in tokens)


def refuse(expression: str, start: int, end: int, reason: str) -> NoReturn:
    """Raise InvalidSchedule with `reason` and a caret line under expression[start:end].

    A long expression is shown as a window around the fault; what would break the line is shown as "?".
    """
    opening = max(0, min(start - _EXCERPT_CHARS_MAX // 3, len(expression) - _EXCERPT_CHARS_MAX))
    window = expression[opening : opening + _EXCERPT_CHARS_MAX]
    before = "..." if opening else ""
    after = "..." if opening + len(window) < len(expression) else ""
    shown = before + "".join(c if " " <= c <= "~" else "?" for c in window.replace("\t", " ")) + after
    at = len(before) + start - opening
    carets = "^" * max(1, min(end - start, len(shown) - at))
    raise InvalidSchedule("cron", f"{reason}\n  {shown}\n  {' ' * at}{carets}")


def refuse_never(expression: str) -> NoReturn:
    """Raise InvalidSchedule for an expression whose day and month never meet."""
    spans = [match.span() for match in re.finditer(r"[^ \t]+", expression)]
    refuse(
        expression,
        spans[DAY][0],
        spans[-1][1],
        "never fires: no year has such a day; correct the day or the month",
    )


def _check_characters(expression: str) -> None:
    length = len(expression)
    if length > EXPRESSION_CHARS_MAX:
        reason = f"has {length} characters, the limit is {EXPRESSION_CHARS_MAX}; use ranges and steps"
        refuse(expression, EXPRESSION_CHARS_MAX, length, reason)
    for at, char in enumerate(expression):
        if char != "\t" and not " " <= char <= "~":
            kind = "a line break" if char in "\r\n" else f"the character U+{ord(char):04X}"
            refuse(expression, at, at + 1, f"holds {kind} in column {at + 1}; write five fields on one line")


def _alias(expression: str, tokens: list[_Token]) -> str:
    token = tokens[0]
    if len(tokens) == 1 and token.text in ALIASES:
        return ALIASES[token.text]
    known = " ".join(ALIASES)
    if token.text == "@every":
        reason = 'intervals are written every="15m", not as a cron expression'
    elif token.text == "@reboot":
        reason = f"@reboot is not a time; write five fields or one of {known}"
    else:
        reason = f"not a known name; write five fields or only one of {known}"
    refuse(expression, token.start, tokens[-1].end, reason)


def _check_count(expression: str, tokens: list[_Token]) -> None:
    wanted = " ".join(rule.name for rule in FIELDS)
    if len(tokens) < len(FIELDS):
        missing = tokens[-1].end + 1 if tokens else 0
        refuse(expression, missing, missing + 1, f"has {len(tokens)} of the five fields: {wanted}")
    if len(tokens) > len(FIELDS):
        reason = (
            f"has {len(tokens)} fields, five are allowed ({wanted}); "
            'seconds and years are not, a period under a minute is every="10s"'
        )
        refuse(expression, tokens[len(FIELDS)].start, tokens[-1].end, reason)


def _check_field(expression: str, rule: CronField, token: _Token) -> None:
    items = token.text.split(",")
    start = token.start
    for item in items:
        reason = _item_fault(rule, item, alone=len(items) == 1)
        if reason is None and rule.name == "weekday" and ("#" in item) != ("#" in items[0]):
            reason = "numbered weekdays such as 1#2 cannot stand beside plain ones"
        if reason is not None:
            refuse(expression, start, start + max(1, len(item)), f"{rule.name}: {reason}")
        start += len(item) + 1


def _item_fault(rule: CronField, item: str, *, alone: bool) -> str | None:
    if rule.name == "day-of-month" and item == "l":
        return None
    if rule.name == "weekday" and (nth := _NTH.fullmatch(item)):
        return _value_fault(rule, nth[1])
    match = _ITEM.fullmatch(item)
    if match is None:
        return next(reason for pattern, reason in _NOT_UNDERSTOOD if pattern.search(item))
    if item == "*":
        return None if alone else "* already means every value; remove the rest of the list"
    return _range_fault(rule, match["low"], match["high"]) or _step_fault(rule, match)


def _step_fault(rule: CronField, match: re.Match[str]) -> str | None:
    if match["step"] is None:
        return None
    if not 1 <= int(match["step"]) <= rule.step_max:
        return f"a step is 1 to {rule.step_max}"
    if rule.name == "weekday" and match["star"] is None and match["high"] is None:
        # croniter ends such a step at Saturday, others at Sunday.
        return "a step needs a range here; write for example 1-5/2"
    return None


def _value_fault(rule: CronField, text: str) -> str | None:
    if text.isdigit():
        if rule.low <= int(text) <= rule.high:
            return None
        return f"out of range; write {rule.low} to {rule.high}"
    if text in rule.names:
        return None
    if rule.names:
        return f"not a name; write {rule.low} to {rule.high} or one of {' '.join(rule.names)}"
    return f"has no names; write {rule.low} to {rule.high}"


def _range_fault(rule: CronField, low: str | None, high: str | None) -> str | None:
    ends = [text for text in (low, high) if text is not None]
    fault = next((found for text in ends if (found := _value_fault(rule, text))), None)
    if fault is not None or low is None or high is None:
        return fault
    first, last = (int(text) if text.isdigit() else rule.names[text] for text in (low, high))
    if rule.name == "weekday" and high == "sun" and low != "sun":
        last = 7
    if first < last:
        return None
    if first == last:
        # croniter reads 5-5 as the whole field.
        return f"a range needs two different ends; write {low}"
    head = low if first == rule.high else f"{low}-{rule.high}"
    tail = str(rule.low) if last == rule.low else f"{rule.low}-{high}"
    return f"the range runs backwards; write the lower end first, or {head},{tail}"
