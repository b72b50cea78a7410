"""How far a handler says it is: the note that `ctx.progress` takes, checked, and the words people read it in.

Called by the worker's contexts and by the command line; pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pgqueue.core.clean import clean_text
from pgqueue.errors import InvalidOption

NOTE_CHARS_MAX: Final = 200
NUMBER_MAX: Final = 2**53
"""Numbers up to here are whole in every reader of JSON."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units, of whatever kind; `total` None: nobody knows how many there will be."""

    done: float
    total: float | None
    note: str | None


def check_progress(done: object, total: object = None, note: object = None) -> Progress:
    """Check what a handler reports. Raises InvalidOption in one line, without the values."""
    if note is not None and not isinstance(note, str):
        raise InvalidOption("progress", "note must be text")
    if note is not None and len(note) > NOTE_CHARS_MAX:
        raise InvalidOption("progress", "note is too long", limit=f"{NOTE_CHARS_MAX} characters")
    words = None if note is None else clean_text(note)
    return Progress(_number("done", done), None if total is None else _number("total", total), words)


def percent_of(done: float, total: float | None) -> float | None:
    """How much of it is done, 0 to 100; None where nobody knows how much there is."""
    return None if not total else min(100.0, 100 * done / total)


def progress_words(stored: Mapping[str, Any] | None) -> str:
    """The stored note in a few words: `40 of 100 (40 %), loading`."""
    if stored is None:
        return ""
    done, total, note = stored["done"], stored["total"], stored["note"]
    percent = percent_of(done, total)
    count = f"{done:,g}" if total is None else f"{done:,g} of {total:,g}"
    share = "" if percent is None else f" ({percent:.0f} %)"
    return f"{count}{share}" + (f", {note}" if note else "")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption("progress", f"{name} must be a number")
    if not math.isfinite(value) or not 0 <= value <= NUMBER_MAX:
        raise InvalidOption("progress", f"{name} is out of range", limit="0 to 2^53")
    return value
