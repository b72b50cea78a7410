"""The filter grammar of the command line and the dashboard: `state:dead task:capture* age:>5m -tag:x`, read into terms.

Called by control; pure. What a term means to the database is compiled in filter_compile, from the terms alone.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from pgqueue.core.durations import parse_duration, parse_moment
from pgqueue.core.states import ENDED, LIVE
from pgqueue.errors import InvalidFilter, InvalidTime

CHARS_MAX: Final = 500
TERMS_MAX: Final = 20
ALTERNATIVES_MAX: Final = 50
ARGS: Final = "args."
ARGS_DEPTH_MAX: Final = 5

Kind = Literal["text", "state", "number", "duration", "moment", "words", "value"]
Scope = Literal["jobs", "dead letters", "audit"]
Operator = Literal["=", "prefix", "any", ">", ">=", "<", "<="]

_COMMON: Final[dict[str, Kind]] = {
    "id": "number",
    "queue": "text",
    "task": "text",
    "attempts": "number",
    "max_attempts": "number",
    "priority": "number",
    "age": "duration",
    "since": "moment",
    "until": "moment",
    "error": "words",
    "error_type": "text",
    "reason": "text",
    "key": "text",
    "worker": "text",
    "parent": "number",
    "schedule": "text",
    "trace": "text",
    "tag": "text",
}
FIELDS: Final[dict[Scope, dict[str, Kind]]] = {
    "jobs": {"state": "state", "wait": "duration", "run": "duration", **_COMMON},
    "dead letters": {"fingerprint": "text", **_COMMON},
    "audit": {
        "id": "number",
        "actor": "text",
        "role": "text",
        "via": "text",
        "action": "text",
        "target": "text",
        "reason": "words",
        "age": "duration",
        "since": "moment",
        "until": "moment",
    },
}
STATES: Final = tuple(sorted(LIVE | ENDED))

_FIELD: Final = re.compile(r"-?([a-z_]+(?:\.[A-Za-z0-9_-]+)*):")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE: Final = re.compile(r'[^\s,"]+')
_COMPARED: Final = re.compile(r"(>=|<=|>|<)")
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Check:
    """One alternative of a term. `low..high` is two tests that both must hold: `and_at_most` is the second's bound."""

    operator: Operator
    value: str | float
    and_at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: any of its tests holds for the field, or none does if it is negated."""

    field: str
    kind: Kind
    tests: tuple[Check, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """All terms must hold. `text` is what was written, for the audit."""

    text: str = ""
    terms: tuple[Term, ...] = ()

    def states(self) -> frozenset[str] | None:
        """The states that the terms allow; None if none of them speaks of states."""
        about = [term for term in self.terms if term.kind == "state"]
        if not about:
            return None
        return frozenset(
            state for state in STATES if all(_allows(term, state) is not term.negated for term in about)
        )

    def __str__(self) -> str:
        return self.text


EVERYTHING: Final = Filter()


def parse_filter(text: str, scope: Scope) -> Filter:
    """Read a filter for jobs, dead letters or the audit.

    Raises InvalidFilter, which points at the fault: an unknown field, a quote that is not closed, a value of the
    wrong kind, or more than 500 characters, 20 terms or 50 alternatives.
    """
    if len(text) > CHARS_MAX:
        raise InvalidFilter(text[:60], 59, "is too long", limit=f"{CHARS_MAX} characters")
    reader = _Reader(text, scope)
    terms: list[Term] = []
    while reader.skip_space():
        if len(terms) == TERMS_MAX:
            raise reader.fault("too many terms", limit=str(TERMS_MAX))
        terms.append(reader.term())
    return Filter(" ".join(text.split()), tuple(terms))


def _allows(term: Term, state: str) -> bool:
    return any(
        test.operator == "any"
        or state == test.value
        or (test.operator == "prefix" and state.startswith(str(test.value)))
        for test in term.tests
    )


class _Read(Protocol):
    def __call__(self, word: str, at: int, /) -> float: ...


class _Reader:
    """A place in the text, moved on by what is read."""

    def __init__(self, text: str, scope: Scope) -> None:
        self._text = text
        self._scope: Scope = scope
        self._at = 0
        self._alternatives = 0

    def skip_space(self) -> bool:
        """Whether anything is left."""
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        return self._at < len(self._text)

    def fault(self, reason: str, *, at: int | None = None, limit: str | None = None) -> InvalidFilter:
        return InvalidFilter(self._text, self._at if at is None else at, reason, limit=limit)

    def term(self) -> Term:
        began = self._at
        bare = re.compile(r"[0-9]{1,18}(?=\s|$)").match(self._text, began)
        if bare:
            self._at = bare.end()
            return Term("id", "number", (Check("=", int(bare[0])),))
        match = _FIELD.match(self._text, began)
        if match is None:
            raise self.fault("expected field:value, such as queue:mail, or a job's id")
        negated = match[0].startswith("-")
        field = match[1]
        kind = self._kind(field, began + negated)
        self._at = match.end()
        tests: list[Check] = []
        while True:
            tests.append(self._test(kind, field))
            self._alternatives += 1
            if self._alternatives > ALTERNATIVES_MAX:
                raise self.fault("too many alternatives", limit=str(ALTERNATIVES_MAX))
            if self._text[self._at : self._at + 1] != ",":
                break
            self._at += 1
        if self._at < len(self._text) and not self._text[self._at].isspace():
            raise self.fault("expected a space or a comma after the value")
        return Term(field, kind, tuple(tests), negated)

    def _kind(self, field: str, at: int) -> Kind:
        fields = FIELDS[self._scope]
        if field in fields:
            return fields[field]
        if field.startswith(ARGS) and self._scope != "audit":
            if field.count(".") > ARGS_DEPTH_MAX:
                raise self.fault("leads too deep into the arguments", at=at, limit=f"{ARGS_DEPTH_MAX} levels")
            return "value"
        near = difflib.get_close_matches(field, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(fields))}"
        if self._scope != "audit" and not near:
            hint += ", args.NAME"
        raise self.fault(f"unknown field of {self._scope}; {hint}", at=at)

    def _test(self, kind: Kind, field: str) -> Check:
        at = self._at
        if self._text[at : at + 1] == '"':
            quoted = _QUOTED.match(self._text, at)
            if quoted is None:
                raise self.fault("this quote is not closed")
            self._at = quoted.end()
            return self._checked(kind, field, re.sub(r"\\(.)", r"\1", quoted[1]), at, quoted=True)
        bare = _BARE.match(self._text, at)
        if bare is None:
            raise self.fault('expected a value; write an empty one as ""')
        self._at = bare.end()
        return self._checked(kind, field, bare[0], at, quoted=False)

    def _checked(self, kind: Kind, field: str, word: str, at: int, *, quoted: bool) -> Check:
        if "\x00" in word or any("\ud800" <= character <= "\udfff" for character in word):
            raise self.fault("holds a character that no text in the database can", at=at)
        match kind:
            case "text" | "words" | "value" if quoted:
                return Check("=", word)
            case "text" | "state" | "words":
                return self._text_test(kind, word, at)
            case "value":
                return self._value_test(word, at)
            case "number":
                return self._number_test(word, at, self._number)
            case "duration":
                return self._number_test(word, at, self._duration)
            case "moment":
                return self._moment_test(field, word, at)

    def _text_test(self, kind: Kind, word: str, at: int) -> Check:
        if word == "*":
            return Check("any", "")
        test = Check("prefix", word[:-1]) if word.endswith("*") and kind != "words" else Check("=", word)
        if kind == "state" and not any(_allows(Term("state", "state", (test,)), state) for state in STATES):
            raise self.fault(f"unknown state; there are {', '.join(STATES)}", at=at)
        return test

    def _value_test(self, word: str, at: int) -> Check:
        if _COMPARED.match(word):
            return self._number_test(word, at, self._number)
        return self._text_test("text", word, at)

    def _number_test(self, word: str, at: int, read: _Read) -> Check:
        sign = _COMPARED.match(word)
        if sign:
            return Check(sign[1], read(word[sign.end() :], at + sign.end()))  # type: ignore[arg-type]
        low, dots, high = word.partition("..")
        if dots:
            return replace(Check(">=", read(low, at)), and_at_most=read(high, at + len(low) + 2))
        return Check("=", read(word, at))

    def _moment_test(self, field: str, word: str, at: int) -> Check:
        """`since:-24h` and `since:2026-11-01T00:00Z`: an age in seconds as a negative number, a moment as it is."""
        operator: Operator = ">=" if field == "since" else "<"
        if word.startswith("-"):
            return Check(operator, -self._duration(word[1:], at + 1))
        try:
            return Check(operator, parse_moment(word, field=field).timestamp())
        except (InvalidTime, OverflowError):
            raise self.fault("expected -24h, or a moment with its zone: 2026-12-01T08:00Z", at=at) from None

    def _number(self, word: str, at: int) -> float:
        if not _NUMBER.fullmatch(word):
            raise self.fault("expected a number, >3, >=3, <3, <=3 or 1..3", at=at)
        return float(word) if "." in word else int(word)

    def _duration(self, word: str, at: int) -> float:
        try:
            seconds = parse_duration(word, field="duration")
        except InvalidTime:
            seconds = math.nan
        if math.isnan(seconds):
            raise self.fault("expected a time such as 30s, >5m, <=1h30m or 1m..5m", at=at)
        return seconds
