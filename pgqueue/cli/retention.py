"""`pgqueue queues keep`: how long one queue's history is kept."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue.cli.bulk import DryRun, Reason
from pgqueue.cli.queues import Name
from pgqueue.cli.queues import app as queues_app
from pgqueue.cli.session import Session, say, verb
from pgqueue.errors import InvalidOption


def register(main: typer.Typer) -> None:
    """Hang the verb into `pgqueue queues`."""
    del main
    verb(queues_app)(keep)


def keep(
    session: Session,
    *,
    queue: Name,
    days: Annotated[
        int | None,
        typer.Option(
            "--days", help="Days its ended jobs are kept, if fewer than for all.", show_default=False
        ),
    ] = None,
    as_all: Annotated[bool, typer.Option("--as-all", help="As long as the setting says for all.")] = False,
    reason: Reason = None,
    dry_run: DryRun = False,
) -> None:
    """Keep one queue's history shorter than the rest."""
    from pgqueue.control.retention import keep_history

    if (days is None) is not as_all:
        raise InvalidOption("days", "give --days or --as-all")
    words = "as long as the rest" if days is None else f"for {days} days"
    if dry_run:
        say(f"would keep the history of queue {queue} {words}")
        return
    say(f"keep the history of queue {queue} in {session.desk.place} ({session.desk.environment})")
    keep_history(session.desk, queue, days, reason=reason)
    say(f"the history of queue {queue} is kept {words}")
