"""`pgqueue queues …`, `workers list`, `stats`, `health`, `version`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgqueue.cli.bulk import DryRun, Limit, Reason
from pgqueue.cli.jobs import desk
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
    verb(main)(stats)
    verb(main)(health)
    verb(main)(version)


def queues_of(session: Session) -> Queues:
    """Questions and deeds about queues."""
    from pgqueue.control.queues import Queues

    return Queues(desk(session))


@verb(app, "list")
def list_queues(session: Session) -> None:
    """Every known queue."""
    queues = queues_of(session)
    session.printer.rows(queues.list(), COLUMNS, name="queue", kind="queue")
    for stray in queues.strays():
        say(
            f"queue {stray['queue']}: jobs wait and no worker ever served it; start one with -q {stray['queue']}"
        )


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
    dry_run: DryRun = False,
) -> None:
    """Pause a queue: when this returns, none of its jobs starts any more. What runs may finish."""
    from pgqueue.core.durations import parse_duration

    for_s = None if until_after is None else parse_duration(until_after, field="for", minimum_s=1)
    if dry_run:
        say(f"would pause queue {queue}")
        return
    queues_of(session).pause(queue, reason=reason, for_s=for_s)
    say(f"queue {queue} is paused")


@verb(app)
def resume(session: Session, *, queue: Name, reason: Reason = None, dry_run: DryRun = False) -> None:
    """Lift a pause."""
    if dry_run:
        say(f"would resume queue {queue}")
        return
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


def stats(
    session: Session,
    *,
    watch: Annotated[
        float | None,
        typer.Option("-w", "--watch", min=0.2, help="Again every so many seconds.", show_default=False),
    ] = None,
) -> None:
    """The fleet and its queues on one screen."""
    queues = queues_of(session)
    before = None
    while True:
        fleet, rows = queues.fleet(), queues.list()
        rate = ""
        if before is not None and fleet["clock"] > before["clock"]:
            seconds = (fleet["clock"] - before["clock"]).total_seconds()
            rate = f", {max(0, fleet['settled'] - before['settled']) / seconds:.0f} settled/s"
        say(
            f"{fleet['workers']} workers, {fleet['busy']} of {fleet['slots']} slots busy, {fleet['settled']} settled, {fleet['failed']} failed attempts{rate}"
        )
        # What is wrong comes first.
        rows.sort(
            key=lambda row: (row["due"] == 0 or row["workers_live"] > 0, -row["lag_s"], -row["dead_waiting"])
        )
        session.printer.rows(rows, COLUMNS, name="queue", kind="queue")
        if watch is None:
            return
        before = fleet
        time.sleep(watch)


def health(
    session: Session,
    *,
    queue: Annotated[str | None, typer.Option("--queue", help="Only this queue.", show_default=False)] = None,
    max_lag: Annotated[str, typer.Option("--max-lag", help="A due job may wait so long.")] = "60s",
) -> int:
    """Exit code 0 if the schema fits, every queue with due jobs has a worker and no due job waits too long; else 1."""
    from pgqueue.core.durations import parse_duration
    from pgqueue.storage.migrate import require_head

    limit_s = parse_duration(max_lag, field="max_lag")
    queues = queues_of(session)
    with desk(session).connection() as conn:
        require_head(conn)
    problems = []
    for row in queues.list(queue):
        if row["paused"]:
            continue
        if row["due"] and not row["workers_live"]:
            problems.append(f"queue {row['queue']}: {row['due']} jobs are due and no worker serves it")
        elif row["lag_s"] > limit_s:
            problems.append(f"queue {row['queue']}: the oldest due job waits for {row['lag_s']:.1f} s")
    problems += [
        f"queue {row['queue']}: jobs wait and no worker ever served it"
        for row in queues.strays()
        if queue in (None, row["queue"])
    ]
    session.printer.one({"healthy": not problems, "problems": problems}, name="healthy", kind="health")
    return 1 if problems else 0


def version(session: Session) -> None:
    """The versions of pgqueue, Python and the schema this code expects."""
    import platform

    from pgqueue.storage.migrate import head
    from pgqueue.version import VERSION

    session.printer.one(
        {"pgqueue": VERSION, "python": platform.python_version(), "schema": head()},
        name="pgqueue",
        kind="version",
    )
