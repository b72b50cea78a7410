"""What a handler may say of its progress, and how people read it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pgqueue.core.progress import NOTE_CHARS_MAX, NUMBER_MAX, check_progress, percent_of, progress_words
from pgqueue.errors import InvalidOption


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None,), "progress: done must be a number"),
        (("7",), "progress: done must be a number"),
        ((True,), "progress: done must be a number"),
        ((-1,), "progress: done is out of range (limit: 0 to 2^53)"),
        ((math.nan,), "progress: done is out of range (limit: 0 to 2^53)"),
        ((NUMBER_MAX + 1,), "progress: done is out of range (limit: 0 to 2^53)"),
        ((1, math.inf), "progress: total is out of range (limit: 0 to 2^53)"),
        ((1, "9"), "progress: total must be a number"),
        ((1, 2, b"x"), "progress: note must be text"),
        ((1, 2, "x" * (NOTE_CHARS_MAX + 1)), "progress: note is too long (limit: 200 characters)"),
    ],
)
def test_what_cannot_be_noted_is_refused_in_one_line(given: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        check_progress(*given)
    assert str(refused.value) == words


def test_what_lies_at_the_limits_is_taken_and_a_hostile_note_is_spelled_out() -> None:
    found = check_progress(NUMBER_MAX, 0, "x" * NOTE_CHARS_MAX)
    assert (found.done, found.total) == (NUMBER_MAX, 0)
    assert check_progress(0.5, None, "a\x00b\udc80").note == "a\\x00b\\udc80"


@pytest.mark.parametrize(
    ("done", "total", "note", "words"),
    [
        (40, 100, "loading", "40 of 100 (40 %), loading"),
        (1200, None, None, "1,200"),
        (0, 0, None, "0 of 0"),
        (12, 10, None, "12 of 10 (100 %)"),
    ],
)
def test_the_words_people_read(done: float, total: float | None, note: str | None, words: str) -> None:
    assert progress_words({"done": done, "total": total, "note": note, "at": "…"}) == words
    assert progress_words(None) == ""
    assert percent_of(done, None) is None
