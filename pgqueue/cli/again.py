"""`-w`: an answer again and again. A picture drawn anew on a terminal, more lines elsewhere.

Used by cli/session for the verbs that are registered with `watch=True`, and by `stats`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from pgqueue.cli.out import Printer

EVERY: Final = "2s"
EVERY_MIN_S: Final = 0.1
INTERRUPTED_EXIT: Final = 130

WATCH: Final = typer.Option(
    "-w",
    "--watch",
    metavar="[EVERY]",
    help="Again and again; how often, if not every 2s.",
    show_default=False,
)
_FLAGS: Final = ("-w", "--watch")
_EVERY: Final = re.compile(r"[0-9.]+(ms|s|m|h)?")


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with `-w` alone written as `-w 2s`: the option's value may be left out."""
    spelled: list[str] = []
    for place, argument in enumerate(arguments):
        spelled.append(argument)
        if argument == "--":
            return [*spelled, *arguments[place + 1 :]]
        if argument in _FLAGS and not _EVERY.fullmatch("".join(arguments[place + 1 : place + 2])):
            spelled.append(EVERY)
    return spelled


def again(every: str | None, printer: Callable[[], Printer], draw: Callable[[], int | None]) -> int | None:
    """Draw once, or every so often until somebody interrupts; returns the exit code."""
    if every is None:
        return draw()
    from pgqueue.core.durations import parse_duration

    spoken = float(every) if every.replace(".", "", 1).isdecimal() else every
    every_s = parse_duration(spoken, field="watch", minimum_s=EVERY_MIN_S)
    while True:
        printer().clear()
        draw()
        printer().flush()
        sys.stderr.flush()
        time.sleep(every_s)
