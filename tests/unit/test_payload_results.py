"""Results: what is stored, what becomes a marker, and that nothing a handler returns can raise."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import pytest

from pgqueue.core.payload import RESULT_BYTES_MAX, encode_result


class Colour(Enum):
    RED = "red"


class Text(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class StrSub(str):
    __slots__ = ()


@dataclass
class Point:
    x: float
    y: float = 0
    _hidden: Any = field(default=None)


class Pair(NamedTuple):
    a: int
    b: int


def test_no_result_is_no_result():
    assert encode_result(None) == (None, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"captured": 1250}, '{"captured":1250}'),
        ({}, "{}"),
        (0, "0"),
        (False, "false"),
        ("x", '"x"'),
        ([1, (2,)], "[1,[2]]"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), '"2026-01-02T03:04:05+00:00"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        ({"id": UUID(int=1)}, '{"id":"00000000-0000-0000-0000-000000000001"}'),
        (Point(1.5, 2), '{"x":1.5,"y":2}'),
        ([Colour.RED, Number.ONE], '["red",1]'),
        (StrSub("x"), '"x"'),
        (Pair(1, 2), "[1,2]"),
        ({"a": "\\u0000"}, '{"a":"\\\\u0000"}'),
    ],
)
def test_a_result_may_be_richer_than_arguments(value, text):
    assert encode_result(value) == (text, None)


class Vicious:
    def __getattribute__(self, name):
        raise SystemError("no attribute for you")

    def __repr__(self):
        raise ValueError

    __str__ = __repr__


@dataclass
class RaisingProperty:
    a: int = 1

    def __getattribute__(self, name):
        if name == "a":
            raise ValueError("hunter2")
        return object.__getattribute__(self, name)


class HostileEnum(Enum):
    A = object()


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(10_000):
        value = [value]
    return value


def _circle() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    return circle


@pytest.mark.proves("I5", "I7")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (object, r"the object at \$ is not JSON"),
        (lambda: {"a": [{1}]}, r"the set at \$\.a\[0\]"),
        (lambda: {"a": "b\0"}, r"the text at \$\.a contains a NUL"),
        (lambda: {"b\0": 1}, "NUL"),
        (lambda: "\0", "NUL"),
        (lambda: "\ud800", "lone surrogate"),
        (lambda: math.nan, r"the number at \$ is NaN"),
        (lambda: {"a": [math.inf]}, r"\$\.a\[0\] is NaN or infinite"),
        (lambda: Point(math.nan), r"\$\.x is NaN"),
        (lambda: 2**64, "beyond 64 bits"),
        (lambda: {1: 2}, "a key at .* is a int, not text"),
        (lambda: {Text.RED: 2}, "a key at .* is a Text"),
        (lambda: Decimal(1), "Decimal"),
        (lambda: "x" * RESULT_BYTES_MAX, "more than 65536 bytes"),
        (lambda: "é" * 32_768, "more than 65536 bytes"),
        (lambda: ["x"] * 10_000_000, "too large"),
        (lambda: {"a": ["x" * 60_000] * 1_000_000}, "too large"),
        (Vicious, "it raised SystemError"),
        (RaisingProperty, "it raised ValueError"),
        (lambda: HostileEnum.A, "object"),
        (_circle, "nested deeper than 64 levels, or contains itself"),
        (lambda: len, "builtin_function_or_method"),
        (lambda: Point, "type"),
    ],
)
def test_a_result_that_cannot_be_stored_becomes_a_marker_and_a_warning(make, says):
    text, warning = encode_result(make())
    marker = orjson.loads(text)
    assert list(marker) == ["pgqueue_unstorable"]
    assert len(text.encode()) < 2_000
    assert "hunter2" not in text
    assert re.search(says, marker["pgqueue_unstorable"])
    assert re.search(says, warning)
    assert "succeeded" in warning


@pytest.mark.proves("I5")
def test_a_bottomless_result_becomes_a_marker():
    value = _deep()
    try:
        text, warning = encode_result(value)
    finally:
        while value:
            value = value.pop()
    assert "pgqueue_unstorable" in text
    assert "nested deeper than 64" in warning


@pytest.mark.proves("I5")
def test_a_result_may_nest_64_levels_and_no_more():
    value: Any = [UUID(int=1)]
    for _ in range(63):
        value = [value]
    assert encode_result(value)[1] is None
    assert "nested deeper than 64" in encode_result([value])[1]


@pytest.mark.proves("I5")
def test_a_result_at_its_limit_is_stored_and_one_byte_more_is_not():
    fits = "x" * (RESULT_BYTES_MAX - 2)
    assert encode_result(fits) == (f'"{fits}"', None)
    assert "pgqueue_unstorable" in encode_result(fits + "x")[0]
    assert encode_result({"a": "xy"}, bytes_max=10) == ('{"a":"xy"}', None)
    assert "pgqueue_unstorable" in encode_result({"a": "xyz"}, bytes_max=10)[0]


def test_a_marker_holds_no_character_that_postgres_or_a_terminal_minds():
    hostile = type("Évil\x1b[31m\n", (), {})
    text, warning = encode_result({"k\0\ud800\x1b" * 50: hostile()})
    assert all(character.isprintable() for character in orjson.loads(text)["pgqueue_unstorable"])
    assert "\x1b" not in warning


@pytest.mark.proves("I5")
@pytest.mark.parametrize(
    "grow", [lambda inner: [inner] * 10, lambda inner: dict.fromkeys("abcdefghij", inner)]
)
def test_a_small_result_that_would_encode_to_a_huge_text_becomes_a_marker(grow):
    value: Any = 0
    for _ in range(60):
        value = grow(value)
    text, warning = encode_result(value)
    assert "pgqueue_unstorable" in text
    assert "too large" in warning
