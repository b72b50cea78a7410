"""Fingerprints: the same fault gets the same name, another fault another."""

from __future__ import annotations

import itertools
import json
import re
from types import TracebackType

import pytest

from pgqueue.core import fingerprint as module
from pgqueue.core.fingerprint import fingerprint, normalize_message, own_frames

BASE = {"task": "t", "error_type": "ValueError", "message": "boom", "frames": ("a.py:f",), "sqlstate": None}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ride 7 not found", "ride 12345 not found"),
        ("took 1.5s", "took 22.75s"),
        ("at -3", "at +4"),
        ("at 2026-01-02 03:04:05", "at 2027-11-22 13:14:15"),
        ("id 3f2504e0-4f89-11d3-9a0c-0305e82c3301", "id 00000000-0000-0000-0000-000000000001"),
        ("<X object at 0x7f00dead>", "<X object at 0x7f00beef>"),
        ("no column 'a b'", "no column 'c'"),
        ('no column "a"', 'no column "it\'s"'),
        ("digest d41d8cd98f00b204", "digest 9e107d9d372bb682"),
        ("can't open 'x'", "can't open 'y z'"),
        ("worker12 died", "worker7 died"),
        ("1e10 too big", "2e300 too big"),
    ],
)
def test_what_varies_between_runs_does_not_count(one, other):
    assert normalize_message(one) == normalize_message(other)
    assert fingerprint(**BASE | {"message": one}) == fingerprint(**BASE | {"message": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ride not found", "driver not found"),
        ("can't open 'x'", "won't open 'x'"),
        ("feedbeef", "deadface"),
        ("", "x"),
    ],
)
def test_what_differs_in_kind_counts(one, other):
    assert normalize_message(one) != normalize_message(other)


def test_each_part_counts_and_the_parts_do_not_run_together():
    variants = [
        BASE,
        BASE | {"task": "u"},
        BASE | {"error_type": "KeyError"},
        BASE | {"frames": ("a.py:g",)},
        BASE | {"frames": ("a.py:f", "b.py:g")},
        BASE | {"frames": ()},
        BASE | {"sqlstate": "23505"},
        BASE | {"message": "bang"},
        BASE | {"task": "tV", "error_type": "alueError"},
    ]
    prints = [fingerprint(**variant) for variant in variants]
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in prints)


def test_a_fingerprint_is_the_same_in_every_process():
    assert fingerprint(**BASE) == "d903424d3df259ad"  # stored for months: a change splits every group


def test_surrogates_do_not_stop_it():
    assert fingerprint(**BASE | {"message": "\ud800", "task": "\udfff"})


def trace_of(call) -> TracebackType:
    try:
        call()
    except Exception as error:
        return error.__traceback__
    raise AssertionError("the call did not raise")


def fails():
    raise ValueError


def recursive(depth):
    if depth == 0:
        fails()
    recursive(depth - 1)


def ping(depth):
    if depth == 0:
        fails()
    pong(depth - 1)


def pong(depth):
    ping(depth)


def test_frames_are_file_and_function_without_the_standard_library():
    frames = own_frames(trace_of(lambda: json.loads("{", object_hook=fails)))
    assert frames == ("test_fingerprint.py:trace_of", "test_fingerprint.py:<lambda>")
    assert own_frames(trace_of(fails)) == ("test_fingerprint.py:trace_of", "test_fingerprint.py:fails")


@pytest.mark.parametrize("function", [recursive, ping])
def test_the_depth_of_a_recursion_does_not_count(function):
    shallow, deep = (own_frames(trace_of(lambda n=n: function(n))) for n in (5, 60))
    assert shallow == deep


def test_frames_of_this_package_and_of_installed_ones_are_left_out():
    for path in (
        module.__file__,
        pytest.__file__,
        itertools.__spec__.origin or "",
        re.__file__,
        "<frozen importlib>",
    ):
        if path != "built-in":
            assert not module._is_own(path)
    assert module._is_own("/srv/app/tasks.py")
    assert module._is_own(__file__)
    assert own_frames(None) == ()


def test_only_the_first_thousand_characters_of_a_message_count():
    same, other = (fingerprint(**BASE | {"message": "x" * 1_000 + end}) for end in ("a", "b"))
    assert same == other
    same, other = (fingerprint(**BASE | {"message": "x" * 999 + end}) for end in ("a", "b"))
    assert same != other


def test_only_the_innermost_30_frames_count():
    source = "\n".join(f"def f{n}(): f{n + 1}()" for n in range(40)) + "\ndef f40(): raise ValueError"
    scope: dict = {}
    exec(compile(source, "/srv/app/chain.py", "exec"), scope)
    assert own_frames(trace_of(scope["f0"])) == tuple(f"chain.py:f{n}" for n in range(11, 41))
