"""`pgqueue queues …` and `pgqueue workers list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgqueue.cli.bulk import DryRun, Limit, Reason
from pgqueue.cli.session import Session, say, verb

if TYPE_CHECKING:
    from pgqueue.control.queues import Queues

COLUMNS: Final = (
    "queue",
    "paused",
    "due",
    "lag_s",
    "running",
    "scheduled",
    "held",
    "workers_live",
    "slots",
    "dead_waiting",
)
WORKER_COLUMNS: Final = (
    "id",
    "kind",
    "status",
    "stale",
    "host",
    "pid",
    "version",
    "queues",
    "slots",
    "busy",
    "settled",
    "failed",
    "beat_at",
)

app = typer.Typer(
    name="queues", help="Queues: what is due, how late, who works; pause and resume.", no_args_is_help=True
)
workers_app = typer.Typer(name="workers", help="Worker processes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="Queue name.")]


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    main.add_typer(app)
    main.add_typer(workers_app)


def queues_of(session: Session) -> Queues:
    """Questions and deeds about queues."""
    from pgqueue.control.queues import Queues

    return Queues(session.desk)


@verb(app, "list")
def list_queues(session: Session) -> None:
    """Every known queue."""
    queues = queues_of(session)
    session.printer.rows(queues.list(), COLUMNS, name="queue", kind="queue")
    for stray in queues.strays():
        say(f"queue {stray.queue}: jobs wait and no worker ever served it; start one with -q {stray.queue}")


@verb(app, "get")
def get_queue(session: Session, *, queue: Name) -> None:
    """One queue, with its pause."""
    session.printer.one(queues_of(session).get(queue), name="queue", kind="queue")


@verb(app)
def pause(
    session: Session,
    *,
    queue: Name,
    reason: Reason = None,
    until_after: Annotated[
        str | None, typer.Option("--for", help="Ends by itself after this: 30m.", show_default=False)
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until every worker has heard of it.")
    ] = True,
    dry_run: DryRun = False,
) -> None:
    """Pause a queue: when this returns, none of its jobs starts any more. What runs may finish."""
    from pgqueue.control.queues import WAIT_MAX_S
    from pgqueue.core.durations import parse_duration
    from pgqueue.core.names import check_queue

    for_s = None if until_after is None else parse_duration(until_after, field="for", minimum_s=1)
    check_queue(queue)
    if dry_run:
        say(f"would pause queue {queue} in {session.desk.place}")
        return
    say(f"pause queue {queue} in {session.desk.place} ({session.desk.environment})")
    queues_of(session).pause(queue, reason=reason, for_s=for_s, wait_s=WAIT_MAX_S if wait else 0)
    say(f"queue {queue} is paused")


@verb(app)
def resume(session: Session, *, queue: Name, reason: Reason = None, dry_run: DryRun = False) -> None:
    """Lift a pause."""
    if dry_run:
        row = queues_of(session).get(queue)
        say(f"would resume queue {queue}" if row.paused else f"queue {queue} is not paused")
        return
    say(f"resume queue {queue} in {session.desk.place} ({session.desk.environment})")
    lifted = queues_of(session).resume(queue, reason=reason)
    say(f"queue {queue} is running" if lifted else f"queue {queue} was not paused")


@verb(workers_app, "list")
def list_workers(
    session: Session,
    *,
    ended: Annotated[bool, typer.Option("--ended", help="Also those that stopped or died lately.")] = False,
    limit: Limit = 200,
) -> None:
    """Worker processes, the living first."""
    session.printer.rows(
        queues_of(session).workers(ended=ended, limit=limit), WORKER_COLUMNS, name="id", kind="worker"
    )
