"""`pgqueue top`: the whole on a live screen that only reads; off a terminal, what `pgqueue stats` prints.

The screen is cli/top_app, loaded when the verb runs.
"""

from __future__ import annotations

import sys
from contextlib import closing
from importlib.util import find_spec
from typing import Annotated

import typer

from pgqueue.cli.look import stats
from pgqueue.cli.session import Output, Session, say, verb
from pgqueue.errors import ConfigurationError


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app)(top)


def top(
    session: Session,
    *,
    every: Annotated[
        str, typer.Option("--every", help="How often the screen is drawn anew; a bare number is seconds.")
    ] = "2s",
) -> None:
    """Queues, jobs, dead letters, schedules, workers and alerts, live. Changes nothing; `q` leaves, `?` helps."""
    from pgqueue.core.durations import parse_duration

    spoken = float(every) if every.replace(".", "", 1).isdecimal() else every
    every_s = parse_duration(spoken, field="every", minimum_s=0.5)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not on_terminal or session.output is not Output.TABLE:
        say("pgqueue: top needs a terminal and no other form; here is what `pgqueue stats` prints")
        stats(session)
        return
    if find_spec("textual") is None:
        raise ConfigurationError("top: textual is not installed; pip install 'pgqueue-jobs[tui]'")
    from pgqueue.cli.top_app import TopApp
    from pgqueue.control.watch import Watch

    with closing(Watch(session.settings.database_url)) as watch:
        TopApp(watch, every_s).run()
