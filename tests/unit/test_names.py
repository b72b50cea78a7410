"""The grammar of names, keys and small options, at each limit and one beyond it."""

from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum

import pytest

from pgqueue.core.names import (
    check_headers,
    check_key,
    check_priority,
    check_queue,
    check_tags,
    check_task,
    check_topic,
)
from pgqueue.errors import InvalidName, InvalidOption

HOSTILE = [
    "", " ", "a b", "a'; drop table jobs; --", "a\0b", "a\n", "\na", "*", "a*", "🚕", "é", "שלום", "\u202eabc",
    "a/b", "a\\b", 'a"b', "a;b", "a:b", "\ud800", "a\u200bb", "１",
]  # fmt: skip
NOT_TEXT = [None, 1, b"queue", ["q"], object()]


@pytest.mark.parametrize("name", ["a", "default", "critical-1", "rides.eu_west", "q" * 63])
def test_a_queue_name_is_returned(name):
    assert check_queue(name) == name


@pytest.mark.proves("I2", "I19")
@pytest.mark.parametrize("name", [*HOSTILE, "Default", "1a", "-a", ".a", "_a", "q" * 64, "q" * 300])
def test_a_queue_name_outside_the_grammar_is_refused(name):
    with pytest.raises(InvalidName) as refused:
        check_queue(name)
    assert refused.value.field == "queue"
    assert refused.value.limit == "1–63 characters"


@pytest.mark.parametrize("name", ["f", "app.tasks.capture_payment", "Send-Receipt", "_private", "t" * 200])
def test_a_task_or_topic_name_is_returned(name):
    assert check_task(name) == name
    assert check_topic(name) == name


@pytest.mark.proves("I2", "I19")
@pytest.mark.parametrize("check", [check_task, check_topic])
@pytest.mark.parametrize(
    "name", [*HOSTILE, ".a", "a.", "a..b", "1a", "a.1b", "-a", "a.-b", "os.system()", "t" * 201, "t" * 10_000_000]
)  # fmt: skip
def test_a_task_or_topic_name_outside_the_grammar_is_refused(check, name):
    with pytest.raises(InvalidName) as refused:
        check(name)
    assert refused.value.limit == "1–200 characters"
    assert len(str(refused.value)) < 300


@pytest.mark.proves("I19")
@pytest.mark.parametrize("check", [check_queue, check_task, check_topic])
@pytest.mark.parametrize("name", NOT_TEXT)
def test_a_name_that_is_not_text_is_refused(check, name):
    with pytest.raises(InvalidName, match="must be text"):
        check(name)


@pytest.mark.parametrize("key", ["k", "ride:7:capture", "é" * 100, "🚕" * 50, "k" * 200, "a b'; drop"])
def test_a_key_of_1_to_200_bytes_is_returned(key):
    assert check_key(key, field="idempotency_key") == key


@pytest.mark.proves("I1", "I21")
@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "is empty"),
        ("k" * 201, "too long"),
        ("é" * 100 + "x", "too long"),
        ("🚕" * 51, "too long"),
        ("k" * 10_000_000, "too long"),
        ("a\0b", "a NUL character at position 1"),
        ("ab\ud800", "a lone surrogate at position 2"),
        ("a\nb", r"U\+000A at position 1"),
        ("\x7f", r"U\+007F"),
        ("\x85", r"U\+0085"),
        (7, r"must be text, not int; pass str\(value\)"),
        (None, "must be text"),
        (b"k", "must be text"),
    ],
)
def test_a_key_that_cannot_be_stored_is_refused(key, says):
    with pytest.raises(InvalidName, match=says) as refused:
        check_key(key, field="concurrency_key")
    assert refused.value.field == "concurrency_key"


@pytest.mark.parametrize("value", range(10))
def test_a_priority_from_0_to_9_is_returned(value):
    assert check_priority(value) == value


class _Level(IntEnum):
    HIGH = 1


@pytest.mark.proves("I18")
@pytest.mark.parametrize("value", [True, False, -1, 10, 2**31, 1.0, 1.5, "5", None, _Level.HIGH])
def test_another_priority_is_refused_with_the_range(value):
    with pytest.raises(InvalidOption, match="0–9") as refused:
        check_priority(value)
    assert refused.value.field == "priority"


def test_headers_are_returned_as_a_plain_dict():
    assert check_headers({}) == {}
    headers = OrderedDict({"traceparent": "00-abc", "note": "a\tb é"})
    assert check_headers(headers) == dict(headers)
    assert type(check_headers(headers)) is dict


# {"n":"…"} takes eight bytes around the value.
@pytest.mark.proves("I22")
def test_headers_hold_8_kib_as_json_and_not_a_byte_more():
    assert check_headers({"n": "v" * (8_192 - 8)})
    for headers in (
        {"n": "v" * (8_192 - 7)},
        {"n": "é" * 4_093},
        {str(n): "" for n in range(2_000)},
        {"n": "v" * 9_000},
    ):
        with pytest.raises(InvalidOption, match="8192 bytes"):
            check_headers(headers)


@pytest.mark.proves("I22")
@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (None, "mapping"),
        ([("a", "b")], "mapping"),
        ("a=b", "mapping"),
        ({1: "a"}, "a name is not text"),
        ({"": "a"}, "empty or too long"),
        ({"n" * 201: "a"}, "empty or too long"),
        ({"a\0": "b"}, "NUL"),
        ({"a\n": "b"}, r"U\+000A"),
        ({"a": 1}, "must be text, not int"),
        ({"a": None}, "must be text"),
        ({"a": "b\0"}, "NUL character at position 1"),
        ({"a": "b\r\nX: y"}, r"U\+000D at position 1"),
        ({"a": "\ud800"}, "lone surrogate"),
    ],
)
def test_headers_that_are_not_clean_text_are_refused(headers, says):
    with pytest.raises(InvalidOption, match=says) as refused:
        check_headers(headers)
    assert refused.value.field == "headers"


def test_tags_keep_their_order_and_lose_repeats():
    assert check_tags(["b", "a", "b"]) == ["b", "a"]
    assert check_tags(()) == []
    assert check_tags({"b", "a"}) == ["a", "b"]
    assert check_tags([f"t{n}" for n in range(20)]) == [f"t{n}" for n in range(20)]
    assert check_tags(["é" * 60]) == ["é" * 60]


@pytest.mark.proves("I18")
@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ("refund", "must be a list"),
        (b"refund", "must be a list"),
        (None, "must be a list"),
        ({"a": 1}, "must be a list"),
        ([f"t{n}" for n in range(21)], "too many"),
        ([""], "empty or too long"),
        (["t" * 61], "empty or too long"),
        (["a", 1], r"\$\[1\]"),
        (["a\0"], "NUL"),
        (["a\n"], r"U\+000A"),
    ],
)
def test_tags_outside_the_rules_are_refused(tags, says):
    with pytest.raises(InvalidOption, match=says) as refused:
        check_tags(tags)
    assert refused.value.field == "tags"
