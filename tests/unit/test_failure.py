"""Failures in words: clean, cut, redacted, without row values, whatever the exception itself does."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from pgqueue.core import failure as module
from pgqueue.core.failure import (
    CONSTANT_FAILURE,
    MESSAGE_BYTES_MAX,
    TRACEBACK_BYTES_MAX,
    Failure,
    describe,
)
from pgqueue.core.redact import Redactor

CANARY = "hunter2-5f0c"
REDACT = Redactor()


def describe_(error: BaseException, **options) -> Failure:
    return describe(error, task="capture_payment", redact=REDACT, **options)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def everything(failure: Failure) -> str:
    return f"{failure.error_type}\n{failure.message}\n{failure.traceback}"


def test_an_ordinary_error_is_told_in_full():
    failure = describe_(raised(ValueError("no ride 7")))
    assert failure.error_type == "ValueError"
    assert failure.message == "no ride 7"
    assert failure.sqlstate is None
    assert len(failure.fingerprint) == 16
    lines = failure.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith("in raised")
    assert lines[2].strip() == "raise error"
    assert lines[-1] == "ValueError: no ride 7"


def test_a_class_of_a_module_is_named_with_it():
    class Declined(Exception):
        pass

    assert describe_(Declined()).error_type.endswith("<locals>.Declined")
    assert describe_(Declined()).error_type.startswith(f"{__name__}.")
    assert describe_(Declined()).message == ""


def test_a_class_with_an_endless_name_is_cut():
    endless = type("E" * 10_000, (Exception,), {})
    assert len(describe_(endless()).error_type) == 200


@pytest.mark.proves("I6")
@pytest.mark.parametrize(
    "text",
    [
        "a\0b",
        "\ud800",
        b"\xff\xfe".decode("utf-8", "surrogateescape"),
        "".join(map(chr, range(256))),
        "\x1b[2J",
    ],
)
def test_an_error_text_that_postgres_refuses_is_cleaned(text):
    failure = describe_(raised(ValueError(text)))
    stored = everything(failure)
    assert stored.encode("utf-8")
    assert not {c for c in stored if ord(c) < 32} - {"\n", "\t"}
    assert failure is not CONSTANT_FAILURE


@pytest.mark.proves("I6", "S8")
@pytest.mark.parametrize("character", ["x", "€", "\0", "\ud800", "password=x "])
def test_an_error_text_of_megabytes_keeps_its_two_ends_in_8_kib(character):
    failure = describe_(raised(ValueError(f"HEAD {character * 1_000_000} TAIL")))
    assert len(failure.message.encode()) <= MESSAGE_BYTES_MAX == 8_192
    assert len(failure.traceback.encode()) <= TRACEBACK_BYTES_MAX == 16_384
    assert failure.message.startswith("HEAD")
    assert failure.message.endswith("TAIL")
    assert "left out" in failure.message


@pytest.mark.proves("I6")
def test_an_error_text_of_50_mb_is_described_quickly():
    error = ValueError("x" * 50_000_000)
    started = time.thread_time()
    failure = describe_(error)
    spent_s = time.thread_time() - started
    assert len(failure.message.encode()) <= MESSAGE_BYTES_MAX
    assert spent_s < 2


def test_the_limit_of_the_message_is_an_option():
    assert len(describe_(ValueError("x" * 500), bytes_max=100).message.encode()) <= 100
    assert describe_(ValueError("x" * 100), bytes_max=100).message == "x" * 100


@pytest.mark.proves("I6", "S6", "S7")
@pytest.mark.parametrize(
    "text",
    [
        f"cannot reach postgresql://app:{CANARY}@db/rides",
        f"bad config: password={CANARY}",
        f"401 for Authorization: Bearer {CANARY}",
        "x" * 60_000 + f" password={CANARY} " + "x" * 10_000,
        "x" * 65_500 + f" password={CANARY * 20} " + "x" * 65_500,
        "x" * 65_520 + f" password={CANARY * 20} " + "x" * 65_000,
        f"token={CANARY}" + "\0" * 10_000,
    ],
)
def test_secrets_do_not_reach_the_message_or_the_traceback(text):
    inner = ValueError(text)
    outer = RuntimeError(text)
    outer.__cause__ = raised(inner)
    group = ExceptionGroup(text, [inner, outer])
    for error in (inner, outer, group):
        failure = describe_(raised(error))
        assert CANARY not in everything(failure)
        assert failure is not CONSTANT_FAILURE


@pytest.mark.proves("S6")
@pytest.mark.parametrize("kept_chars", [500, 8_192, 131_072])
@pytest.mark.parametrize("shift", [-30, -12, -10, -9, -5, 0, 5])
def test_no_cut_parts_a_secret_from_its_name(kept_chars, shift):
    """Each inner limit cuts out the middle; the secret starts at, before or after either edge of it."""
    secret = CANARY * 3
    for edge in (kept_chars // 2, 2 * kept_chars - kept_chars // 2):
        text = "x " * ((edge + shift) // 2) + f"password={secret} "
        text += "y " * ((2 * kept_chars - len(text)) // 2)
        error = raised(ValueError(text))
        for failure in (describe_(error), describe_(ExceptionGroup("g", [error]))):
            assert CANARY[-6:] not in everything(failure)


@pytest.mark.proves("S6")
def test_what_follows_a_hidden_detail_in_a_chain_is_still_told():
    outer = RuntimeError("outer told")
    outer.__cause__ = raised(RuntimeError(f"inner\nDETAIL:  Key (a)=({CANARY})"))
    text = describe_(raised(outer)).traceback
    assert CANARY not in text
    assert text.endswith("RuntimeError: outer told")


def test_secrets_in_source_lines_are_masked():
    def leak():
        password="hunter2-in-source"; raise ValueError(len(password))  # fmt: skip  # noqa: E702

    try:
        leak()
    except ValueError as error:
        failure = describe_(error)
    assert "hunter2-in-source" not in everything(failure)
    assert "password=" in failure.traceback


def test_local_variables_are_never_told():
    def with_locals():
        secret_local = CANARY.upper()
        raise ValueError(len(secret_local))

    with pytest.raises(ValueError) as caught:
        with_locals()
    assert CANARY.upper() not in everything(describe_(caught.value))


class RaisingStr(Exception):
    def __str__(self):
        raise RuntimeError("no")


class ExitingStr(Exception):
    def __str__(self):
        raise SystemExit(3)


class WrongStr(Exception):
    def __str__(self):
        return 7  # noqa: PLE0307 - the fault under test


class LoopingStr(Exception):
    def __str__(self):
        return str(self)


class StrSubclass(str):
    __slots__ = ()

    def encode(self, *args):
        raise RuntimeError("no")

    def replace(self, *args):
        raise RuntimeError("no")

    def __len__(self):
        raise RuntimeError("no")


class ReturnsStrSubclass(Exception):
    def __str__(self):
        return StrSubclass("fine")


class RaisingAttributes(Exception):
    def __getattr__(self, name):
        raise RuntimeError(name)

    @property
    def diag(self):
        raise SystemExit


class HostileMeta(type):
    def __getattribute__(cls, name):
        if name in ("__module__", "__qualname__"):
            raise RuntimeError("no")
        return type.__getattribute__(cls, name)


class HostileClass(Exception, metaclass=HostileMeta):
    pass


@pytest.mark.proves("I7", "P21")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (RaisingStr, "<unprintable RaisingStr>"),
        (ExitingStr, "<unprintable ExitingStr>"),
        (WrongStr, "<unprintable WrongStr>"),
        (LoopingStr, "<unprintable LoopingStr>"),
        (ReturnsStrSubclass, "fine"),
        (lambda: RaisingAttributes("told"), "told"),
        (KeyboardInterrupt, ""),
        (lambda: SystemExit(3), "3"),
        (GeneratorExit, ""),
        (asyncio.CancelledError, ""),
        (MemoryError, ""),
        (lambda: KeyError("x"), "'x'"),
    ],
)
def test_an_exception_of_any_kind_is_recorded_by_its_type(make, message):
    error = make()
    failure = describe_(raised(error))
    assert failure.message == message
    assert failure.error_type.rpartition(".")[2] == type(error).__name__
    last = f"{failure.error_type}: {message}"
    assert f"\n{last}".endswith(failure.traceback[-len(last) - 1 :])


@pytest.mark.proves("I6", "I7")
def test_what_cannot_be_described_is_the_constant():
    failure = describe_(HostileClass())
    assert failure is CONSTANT_FAILURE
    assert failure.message
    assert failure.error_type
    assert failure.fingerprint == "0" * 16
    assert everything(failure).isascii()


@pytest.mark.proves("I7")
def test_an_exception_group_is_summarised_by_its_members():
    group = BaseExceptionGroup(
        "three calls failed",
        [ValueError("one"), ExceptionGroup("inner", [KeyError("two"), RaisingStr()]), KeyboardInterrupt()],
    )
    message = describe_(raised(group)).message
    for part in (
        "three calls failed",
        "ValueError: one",
        "KeyError: 'two'",
        "<unprintable RaisingStr>",
        "KeyboardInterrupt",
    ):
        assert part in message


@pytest.mark.proves("I7")
def test_a_group_of_thousands_or_of_great_depth_stays_small():
    wide = ExceptionGroup("wide", [ValueError("x" * 10_000) for _ in range(10_000)])
    assert len(describe_(wide).message) < 4_000
    assert describe_(wide).message.endswith("…")
    deep: Exception = ValueError("leaf")
    for _ in range(500):
        deep = ExceptionGroup("level", [deep])
    assert describe_(deep).message.endswith("ValueError: leaf")


def test_causes_and_contexts_are_told_oldest_first():
    def fails():
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    try:
        try:
            fails()
        except ValueError:
            raise OSError("third")
    except OSError as error:
        text = describe_(error).traceback
    positions = [
        text.index(part)
        for part in (
            "KeyError: 'first'",
            "direct cause",
            "ValueError: second",
            "While this",
            "OSError: third",
        )
    ]
    assert positions == sorted(positions)


def test_a_suppressed_context_is_not_told():
    told = ValueError("told")
    told.__context__ = raised(KeyError("hidden"))
    assert "hidden" in describe_(told).traceback
    told.__suppress_context__ = True
    assert describe_(told).traceback == "ValueError: told"


@pytest.mark.proves("P21")
def test_a_chain_that_bites_its_tail_or_never_ends_is_cut():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert describe_(first).traceback.count("ValueError: first") == 1
    chain = ValueError("0")
    for n in range(1, 1_000):
        outer = ValueError(str(n))
        outer.__cause__ = chain
        chain = outer
    assert describe_(chain).traceback.count("ValueError: ") == module._CHAIN_MAX


def recurse(depth: int) -> None:
    if depth == 0:
        raise ValueError("deep")
    recurse(depth - 1)


@pytest.mark.proves("P21")
def test_a_deep_traceback_keeps_its_first_and_last_frames():
    try:
        recurse(300)
    except ValueError as error:
        text = describe_(error).traceback
    assert text.count("  File ") == module.TRACEBACK_FRAMES_MAX == 50
    lines = text.splitlines()
    notes = [index for index, line in enumerate(lines) if "252 frames left out" in line]
    assert len(notes) == 1
    assert sum(line.startswith("  File ") for line in lines[: notes[0]]) == 10
    assert 'raise ValueError("deep")' in text
    assert len(text.encode()) <= TRACEBACK_BYTES_MAX


@pytest.mark.parametrize(("depth", "frames", "cut"), [(47, 49, False), (48, 50, False), (49, 50, True)])
def test_50_frames_are_told_in_full_and_51_are_not(depth, frames, cut):
    with pytest.raises(ValueError) as caught:
        recurse(depth)
    text = describe_(caught.value).traceback
    assert text.count("  File ") == frames
    assert ("left out" in text) is cut


@pytest.mark.proves("P21")
def test_a_recursion_error_is_described():
    try:
        recurse(sys.getrecursionlimit() * 2)
    except RecursionError as error:
        failure = describe_(error)
    assert failure.error_type == "RecursionError"
    assert failure is not CONSTANT_FAILURE


def test_the_same_fault_has_one_fingerprint_and_another_fault_another():
    def at_one_line(n):
        raise ValueError(f"no ride {n}")

    def elsewhere(n):
        raise ValueError(f"no ride {n}")

    prints = {}
    for name, call in {
        "a": lambda: at_one_line(1),
        "b": lambda: at_one_line(22),
        "c": lambda: elsewhere(1),
    }.items():
        try:
            call()
        except ValueError as error:
            prints[name] = describe_(error).fingerprint
    assert prints["a"] == prints["b"] != prints["c"]
    error = raised(ValueError("x"))
    assert describe_(error).fingerprint != describe(error, task="other", redact=REDACT).fingerprint
