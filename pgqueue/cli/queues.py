"""`pgqueue queues …`: look at queues, promise something of them, pause and drain; and `pgqueue workers list|drain`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.bar import LINE_S
from pgqueue.cli.bulk import DryRun, Limit, Reason
from pgqueue.cli.complete import queue_names, worker_names
from pgqueue.cli.session import Session, say, verb

if TYPE_CHECKING:
    from pgqueue.control.queues import Queues
    from pgqueue.control.rows import QueueHealth

COLUMNS: Final = (
    "queue",
    "tier",
    "paused",
    "due",
    "lag_s",
    "sla_s",
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
    "port",
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

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="Queue name.", autocompletion=queue_names)]


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    main.add_typer(app)
    main.add_typer(workers_app)


def queues_of(session: Session) -> Queues:
    """Questions and deeds about queues."""
    from pgqueue.control.queues import Queues

    return Queues(session.desk)


@verb(app, "list", watch=True)
def list_queues(session: Session) -> None:
    """Every queue, also those that no worker ever served."""
    rows = queues_of(session).list()
    session.printer.rows(rows, COLUMNS, name="queue", kind="queue")
    for row in rows:
        if not row.known:
            say(f"queue {row.queue}: jobs wait and no worker ever served it; start one with -q {row.queue}")


@verb(app, "get", watch=True)
def get_queue(session: Session, *, queue: Name) -> None:
    """One queue, with what is promised of it and its pause."""
    session.printer.one(queues_of(session).get(queue), name="queue", kind="queue")


@verb(app, "set")
def set_queue(
    session: Session,
    *,
    queue: Name,
    sla: Annotated[
        str | None, typer.Option("--sla", help="A due job is to start within this: 5s.", show_default=False)
    ] = None,
    sla_target: Annotated[
        str | None,
        typer.Option("--sla-target", help="Share of starts that are to keep it: 0.99.", show_default=False),
    ] = None,
    run_objective: Annotated[
        str | None,
        typer.Option("--run-objective", help="A run is to take at most this: 30s.", show_default=False),
    ] = None,
    run_target: Annotated[
        str | None,
        typer.Option("--run-target", help="Share of ended jobs that are to keep it.", show_default=False),
    ] = None,
    dead_letter_limit: Annotated[
        str | None,
        typer.Option("--dead-letter-limit", help="Dead letters allowed per 15 minutes.", show_default=False),
    ] = None,
    tier: Annotated[
        str | None, typer.Option("--tier", help="critical (wakes people) or standard.", show_default=False)
    ] = None,
    owner: Annotated[
        str | None, typer.Option("--owner", help="The team that is asked about it.", show_default=False)
    ] = None,
    display_name: Annotated[
        str | None, typer.Option("--display-name", help="Its name for people.", show_default=False)
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option("--unset", help="Take one back to what is configured: sla.", show_default=False),
    ] = None,
    reason: Reason = None,
    dry_run: DryRun = False,
) -> None:
    """Set what is promised of a queue and whose it is. What is not named stays as it is."""
    from pgqueue.core.names import check_queue
    from pgqueue.core.objectives import Objectives
    from pgqueue.errors import InvalidOption

    asked = {
        "sla": sla,
        "sla_target": sla_target,
        "run_objective": run_objective,
        "run_target": run_target,
        "dead_letter_limit": dead_letter_limit,
        "tier": tier,
        "owner": owner,
        "display_name": display_name,
    }
    unwanted = {name.replace("-", "_") for name in unset or []}
    if any(asked.get(name, "") is not None for name in unwanted):
        raise InvalidOption("unset", f"must be one of {', '.join(asked)}, and not set at once")
    options: Any = {name: value for name, value in asked.items() if value is not None or name in unwanted}
    attributes = Objectives.checked(**options)
    check_queue(queue)
    if dry_run:
        words = ", ".join(
            f"{name} = {'as configured' if value is None else value}"
            for name, value in attributes.given.items()
        )
        say(f"would set {words} of queue {queue} in {session.desk.place}")
        return
    say(f"set queue {queue} in {session.desk.place} ({session.desk.environment})")
    change = queues_of(session).set(queue, reason=reason, **options)
    session.printer.one({"queue": queue, "change": change}, name="queue", kind="queue")


@verb(app)
def drain(
    session: Session,
    *,
    queue: Name,
    timeout: Annotated[str, typer.Option("--timeout", help="How long to wait.")] = "10m",
) -> int:
    """Wait until a queue holds nothing that is ready, runs or waits for a retry; exit code 1 if it still does."""
    from pgqueue.core.durations import parse_duration

    timeout_s = parse_duration(timeout, field="timeout")
    told_at = 0.0

    def tell(row: QueueHealth) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= LINE_S:
            told_at = time.monotonic()
            say(f"queue {queue}: {row.due} due, {row.running} running")

    if queues_of(session).drain(queue, timeout_s=timeout_s, told=tell):
        say(f"queue {queue} is drained")
        return 0
    say(f"queue {queue} is not drained after {timeout}; `pgqueue queues get {queue}` shows what is left")
    return 1


@verb(app)
def pause(
    session: Session,
    *,
    queue: Name,
    reason: Reason = None,
    until_after: Annotated[
        str | None, typer.Option("--for", help="Ends by itself after this: 30m.", show_default=False)
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", help="Ends by itself at this moment: 2026-12-01T08:00Z.", show_default=False),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until every worker has heard of it.")
    ] = True,
    dry_run: DryRun = False,
) -> None:
    """Pause a queue: when this returns, none of its jobs starts any more. What runs may finish."""
    from pgqueue.control.queues import WAIT_MAX_S
    from pgqueue.core.durations import parse_duration, parse_moment
    from pgqueue.core.names import check_queue

    moment = None if until is None else parse_moment(until, field="until")
    for_s = None if until_after is None else parse_duration(until_after, field="for", minimum_s=1)
    check_queue(queue)
    if dry_run:
        say(f"would pause queue {queue} in {session.desk.place}")
        return
    say(f"pause queue {queue} in {session.desk.place} ({session.desk.environment})")
    queues_of(session).pause(
        queue, reason=reason, for_s=for_s, until=moment, wait_s=WAIT_MAX_S if wait else 0
    )
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


@verb(workers_app, "list", watch=True)
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


@verb(workers_app, "drain")
def drain_worker(
    session: Session,
    *,
    worker: Annotated[
        str,
        typer.Argument(
            metavar="WORKER", help="Its id, or the first 8 characters.", autocompletion=worker_names
        ),
    ],
    reason: Reason = None,
    dry_run: DryRun = False,
) -> None:
    """Ask a worker to take nothing new, finish what runs and leave; it hears of it with its next beat."""
    if dry_run:
        say(f"would drain worker {worker} in {session.desk.place}")
        return
    say(f"drain worker {worker} in {session.desk.place} ({session.desk.environment})")
    queues_of(session).drain_worker(worker, reason=reason)
    say(f"worker {worker} was asked to finish and leave")
