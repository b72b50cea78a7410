"""Arguments in, arguments out, results: each bad input is refused with its place, and nothing else happens."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import pytest

from pgqueue.core.payload import (
    DEPTH_MAX,
    PAYLOAD_BYTES_HARD_MAX,
    PAYLOAD_BYTES_MAX,
    decode_args,
    encode_args,
)
from pgqueue.errors import InvalidArguments


class Colour(Enum):
    RED = "red"


class Text(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class StrSub(str):
    __slots__ = ()


class IntSub(int):
    pass


class FloatSub(float):
    pass


class ListSub(list):
    def __iter__(self):
        raise AssertionError("an overridden method was called")


class DictSub(dict):
    def items(self):
        raise AssertionError("an overridden method was called")


@dataclass
class Point:
    x: float
    y: float = 0
    _hidden: Any = field(default=None)


class Pair(NamedTuple):
    a: int
    b: int


def nested(levels: int) -> dict[str, Any]:
    """Return a dict that nests `levels` containers, itself included."""
    value: Any = {}
    for level in range(levels - 1):
        value = {"k": value} if level % 2 or level == levels - 2 else [value]
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"a": 1, "b": -1.5, "c": "é🚕", "d": True, "e": None},
        {"a": [1, [2, {"b": []}]], "c": {"d": {}}},
        {"a": 2**63 - 1, "b": -(2**63), "c": 1e308, "d": 5e-324},
        {"text": 'quotes " and \\ and \\u0000 and \n'},
        {"": "empty key"},
        {"a": "\x1f\x7f"},
    ],
)
def test_plain_arguments_come_back_equal(args):
    text = encode_args(args)
    assert isinstance(text, str)
    assert decode_args(text) == args


@pytest.mark.proves("I11")
def test_what_json_does_not_keep_is_what_the_docstring_says():
    assert decode_args(encode_args({"t": (1, (2, 3))})) == {"t": [1, [2, 3]]}
    assert encode_args({"one": 1, "float": 1.0}) == '{"one":1,"float":1.0}'
    assert (
        math.copysign(1, decode_args(encode_args({"z": -0.0}))["z"]) == -1
    )  # jsonb, not this codec, drops it
    assert decode_args('{"a":1,"a":2}') == {"a": 2}
    composed, decomposed = "é", "e\u0301"
    assert decode_args(encode_args({"a": composed, "b": decomposed})) == {"a": composed, "b": decomposed}
    for word in ("tuples", "-0.0", "1e16", "order of keys", "NFC"):
        assert word in encode_args.__doc__


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (MappingProxyType({"a": 1}), '{"a":1}'),
        (OrderedDict(a=1), '{"a":1}'),
        ({"a": StrSub("x")}, '{"a":"x"}'),
        ({"a": IntSub(3)}, '{"a":3}'),
        ({"a": ListSub([1])}, '{"a":[1]}'),
        ({"a": [DictSub(b=1)]}, '{"a":[{"b":1}]}'),
        ({"a": defaultdict(list, b=[1])}, '{"a":{"b":[1]}}'),
    ],
)
def test_harmless_subclasses_pass_as_what_they_are(args, text):
    assert encode_args(args) == text


BAD_VALUES = [
    pytest.param("a\0b", "NUL character at position 1", id="NUL", marks=pytest.mark.proves("I1")),
    pytest.param("\0", "NUL character at position 0", id="NUL-first"),
    pytest.param("\\u0000\0", "NUL character at position 6", id="NUL-after-its-escape"),
    pytest.param(math.nan, "NaN or infinite", id="NaN", marks=pytest.mark.proves("I3")),
    pytest.param(math.inf, "NaN or infinite", id="inf", marks=pytest.mark.proves("I3")),
    pytest.param(-math.inf, "NaN or infinite", id="-inf", marks=pytest.mark.proves("I3")),
    pytest.param("ab\ud800", "lone surrogate at position 2", id="surrogate", marks=pytest.mark.proves("I4")),
    pytest.param(2**63, r"beyond 64 bits; pass str\(value\)", id="2^63", marks=pytest.mark.proves("I10")),
    pytest.param(-(2**63) - 1, "beyond 64 bits", id="-2^63-1", marks=pytest.mark.proves("I10")),
    pytest.param(10**5_000, "beyond 64 bits", id="5000-digits", marks=pytest.mark.proves("I10")),
    pytest.param(IntSub(2**64), "beyond 64 bits", id="big-int-subclass"),
    pytest.param({1, 2}, r"is a set.*pass sorted\(value\)", id="set", marks=pytest.mark.proves("I12")),
    pytest.param(frozenset(), "frozenset", id="frozenset"),
    pytest.param(b"x", "is a bytes.*base64", id="bytes", marks=pytest.mark.proves("I12")),
    pytest.param(bytearray(b"x"), "base64", id="bytearray"),
    pytest.param(Decimal("1.5"), r"is a Decimal.*pass str\(value\)", id="Decimal", marks=pytest.mark.proves("I12")),
    pytest.param(UUID(int=1), r"is a UUID.*pass str\(value\)", id="UUID", marks=pytest.mark.proves("I12")),
    pytest.param(datetime(2026, 1, 1, tzinfo=UTC), r"isoformat\(\)", id="datetime", marks=pytest.mark.proves("I12")),
    pytest.param(date(2026, 1, 1), r"isoformat\(\)", id="date"),
    pytest.param(timedelta(1), r"total_seconds\(\)", id="timedelta"),
    pytest.param(Point(1), r"is a Point.*dataclasses.asdict", id="dataclass", marks=pytest.mark.proves("I12")),
    pytest.param(Pair(1, 2), r"is a Pair.*_asdict", id="namedtuple"),
    pytest.param(Colour.RED, r"enum member \(Colour\); pass its `.value`", id="Enum"),
    pytest.param(Text.RED, "`.value`", id="StrEnum"),
    pytest.param(Number.ONE, "`.value`", id="IntEnum"),
    pytest.param(FloatSub(1), r"pass float\(value\)", id="float-subclass"),
    pytest.param(object(), "pass its id", id="object"),
    pytest.param(Point, "pass its id", id="class"),
    pytest.param(len, "pass its id", id="function"),
]  # fmt: skip


@pytest.mark.proves("I12")
@pytest.mark.parametrize(("value", "says"), BAD_VALUES)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: {"a": value}, "$.a"),
        (lambda value: {"items": [0, 0, 0, {"price": value}]}, "$.items[3].price"),
        (lambda value: {"odd key": (value,)}, '$["odd key"][0]'),
        (lambda value: {"x": DictSub(y=ListSub([value]))}, "$.x.y[0]"),
    ],
)
def test_a_value_that_is_not_json_is_refused_with_its_path(wrap, path, value, says):
    with pytest.raises(InvalidArguments, match=says) as refused:
        encode_args(wrap(value))
    assert refused.value.field == "args"
    assert refused.value.path == path


@pytest.mark.parametrize(
    ("args", "says", "path"),
    [
        pytest.param({1: "a"}, r"key of type int.*str\(key\)", "$", marks=pytest.mark.proves("I12")),
        pytest.param({"a": {None: 1}}, "key of type NoneType", "$.a", marks=pytest.mark.proves("I12")),
        pytest.param({"a": {True: 1}}, "key of type bool", "$.a"),
        pytest.param({"a": {Text.RED: 1}}, "key of type Text.*`.value`", "$.a"),
        pytest.param({"a": {StrSub("k"): 1}}, "key of type StrSub", "$.a"),
        pytest.param({"a\0": 1}, "key that contains a NUL character at position 1", "$", marks=pytest.mark.proves("I1")),
        pytest.param({"a": [{"\udfff": 1}]}, "key that contains a lone surrogate", "$.a[0]", marks=pytest.mark.proves("I4")),
        pytest.param({"k" * 500: {1: 1}}, "key of type int", '$["' + "k" * 40 + '\\u2026"]'),
    ],
)  # fmt: skip
def test_a_key_that_is_not_plain_text_is_refused_with_its_object(args, says, path):
    with pytest.raises(InvalidArguments, match=says) as refused:
        encode_args(args)
    assert refused.value.path == path


@pytest.mark.proves("I12")
def test_what_contains_itself_is_refused():
    loop: dict[str, Any] = {"a": [1]}
    loop["a"].append(loop)
    with pytest.raises(InvalidArguments, match="contains itself") as refused:
        encode_args(loop)
    assert refused.value.path == "$.a[1]"


def test_a_value_shared_by_two_places_is_no_circle():
    shared = [1]
    assert encode_args({"a": shared, "b": [shared]}) == '{"a":[1],"b":[[1]]}'


@pytest.mark.proves("I9")
def test_64_levels_are_encoded_and_decoded_and_65_are_neither():
    assert decode_args(encode_args(nested(DEPTH_MAX))) == nested(DEPTH_MAX)
    array: Any = []
    for _ in range(DEPTH_MAX - 2):
        array = [array]
    assert decode_args(encode_args({"a": array})) == {"a": array}
    with pytest.raises(InvalidArguments, match="nested too deep"):
        encode_args({"a": [array]})
    with pytest.raises(InvalidArguments, match="nested too deep") as refused:
        encode_args(nested(DEPTH_MAX + 1))
    assert refused.value.limit == "64 levels"
    with pytest.raises(InvalidArguments, match="nested too deep"):
        decode_args(orjson.dumps(nested(DEPTH_MAX + 1)).decode())


@pytest.mark.proves("I9")
@pytest.mark.parametrize("levels", [200, 1_000, 100_000])
def test_bottomless_nesting_is_refused_in_both_directions(levels):
    value: Any = []
    for _ in range(levels):
        value = [value]
    try:
        with pytest.raises(InvalidArguments, match="nested too deep"):
            encode_args({"a": value})
    finally:
        while value:  # taken apart by hand: freeing such a chain recursively is the interpreter's problem
            value = value.pop()
    with pytest.raises(InvalidArguments):
        decode_args('{"a":' + "[" * levels + "]" * levels + "}")


@pytest.mark.proves("I8")
@pytest.mark.parametrize("character", ["x", "é", "\x01", '"'])
def test_the_size_limit_counts_encoded_bytes(character):
    per_character = len(orjson.dumps(character)) - 2
    room = 1_000 - len('{"a":""}')
    fits = character * (room // per_character)
    assert len(encode_args({"a": fits}, bytes_max=1_000).encode()) <= 1_000
    with pytest.raises(InvalidArguments, match="too large") as refused:
        encode_args({"a": fits + character}, bytes_max=1_000)
    assert refused.value.limit == "1000 bytes as JSON"


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"a": []},
        {"a": {}},
        {"": 0},
        {"": ""},
        {"": [0] * 50},
        {"": [[]] * 50},
        {"": [[0]] * 50},
        {"": ["", 0, None]},
        {"": {"": {"": {}}}},
        {"": [{"": 0}] * 50},
        {str(n): n for n in range(50)},
    ],
)
def test_a_limit_of_exactly_the_encoded_size_is_enough(args):
    size = len(orjson.dumps(args))
    assert encode_args(args, bytes_max=size) == orjson.dumps(args).decode()
    with pytest.raises(InvalidArguments, match="too large"):
        encode_args(args, bytes_max=size - 1)


@pytest.mark.proves("I8")
def test_the_default_limit_is_256_kib_and_no_option_passes_8_mib():
    assert PAYLOAD_BYTES_MAX == 262_144
    around = len('{"a":""}')
    assert encode_args({"a": "x" * (PAYLOAD_BYTES_MAX - around)})
    with pytest.raises(InvalidArguments, match="262144"):
        encode_args({"a": "x" * (PAYLOAD_BYTES_MAX - around + 1)})
    huge = {"a": "x" * (PAYLOAD_BYTES_HARD_MAX - around)}
    assert encode_args(huge, bytes_max=2**40)
    with pytest.raises(InvalidArguments, match="8388608"):
        encode_args({"a": huge["a"] + "x"}, bytes_max=2**40)


def _billion_laughs() -> dict[str, Any]:
    value: Any = ["ha"] * 10
    for _ in range(60):
        value = [value] * 10
    return {"a": value}


@pytest.mark.proves("I8")
@pytest.mark.parametrize(
    "make",
    [
        lambda: {"a": "x" * 1_000_000},
        lambda: {"a": "x" * 100_000_000},
        lambda: {"a" * 100_000_000: 1},
        lambda: {"a": ["x" * 1_000_000] * 1_000},
        lambda: {"a": list(range(1_000_000))},
        lambda: dict.fromkeys(map(str, range(500_000)), 0),
        lambda: {"a": "x" * 100_000_000, "b": {1}},
    ],
    ids=[
        "1MB",
        "100MB",
        "100MB-key",
        "1GB-shared",
        "1M-items",
        "500k-keys",
        "100MB-before-a-set",
    ],
)
def test_arguments_far_too_large_are_refused_in_10_ms(make):
    args = make()
    spent_ms = []
    for _ in range(5):
        # Time of this thread alone: how busy the machine is says nothing about the refusal.
        started = time.thread_time()
        with pytest.raises(InvalidArguments, match="too large"):
            encode_args(args)
        spent_ms.append((time.thread_time() - started) * 1_000)
    print(f"refused in {min(spent_ms):.3f} ms")
    assert min(spent_ms) < 10


@pytest.mark.proves("I8")
def test_a_small_tree_that_would_encode_to_10_61_items_is_refused_at_all():
    """Walked without a bound it never ends; the bound stops it within half as many steps as bytes are allowed."""
    started = time.thread_time()
    with pytest.raises(InvalidArguments, match="too large"):
        encode_args(_billion_laughs())
    assert time.thread_time() - started < 2


@pytest.mark.proves("I13")
@pytest.mark.parametrize("args", [None, [], "a", 1, [("a", 1)], object()])
def test_arguments_that_are_no_mapping_are_refused(args):
    with pytest.raises(InvalidArguments, match="must be a mapping"):
        encode_args(args)


@pytest.mark.proves("S6")
def test_no_refusal_repeats_a_value():
    canary = "hunter2-5f0c"
    for args in (
        {"a": canary + "\0"},
        {"a": [canary, {1, canary}]},
        {"a": Decimal(1), "b": canary},
        {"a": canary * 100_000},
        {"a": {canary.encode(): 1}},
    ):
        with pytest.raises(InvalidArguments) as refused:
            encode_args(args)
        assert canary not in str(refused.value)
        assert canary not in repr(refused.value.__cause__)


@pytest.mark.proves("I10", "I13", "I14")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be decoded"),
        ("{", "cannot be decoded"),
        ('{"a":NaN}', "cannot be decoded"),
        ('{"a":1e400}', "cannot be decoded"),
        ('{"a":' + "1" * 5_000 + "}", "cannot be decoded"),
        ('{"a":"\\ud800"}', "cannot be decoded"),
        ("\ud800", "cannot be decoded"),
        (None, "cannot be decoded"),
        (7, "cannot be decoded"),
        ("null", "must be a JSON object, not null"),
        ("[]", "not an array"),
        ('"x"', "not a string"),
        ("true", "not a boolean"),
        ("1", "not a number"),
        ("1.5", "not a number"),
    ],
)
def test_stored_arguments_that_are_unusable_raise_one_kind_of_error(text, says):
    with pytest.raises(InvalidArguments, match=says):
        decode_args(text)


@pytest.mark.proves("I9")
def test_brackets_inside_text_do_not_count_as_depth():
    assert decode_args(encode_args({"a": "[{" * 500})) == {"a": "[{" * 500}
    assert decode_args(encode_args({"a": [[] for _ in range(500)]})) == {"a": [[]] * 500}


def test_numbers_that_only_sql_can_store_are_confined():
    assert decode_args('{"a":18446744073709551616}') == {"a": 2.0**64}
