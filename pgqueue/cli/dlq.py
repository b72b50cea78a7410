"""`pgqueue dlq …`: dead letters."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from pgqueue.cli.bulk import DryRun, Everything, Ids, Limit, Queue, Reason, Task, Yes, chosen
from pgqueue.cli.jobs import JobId, desk, hidden, verdicts
from pgqueue.cli.session import Session, say, verb

COLUMNS: Final = (
    "job_id",
    "task",
    "queue",
    "reason",
    "error_type",
    "error_message",
    "attempts",
    "failed_at",
    "redriven_as",
)
GROUP_COLUMNS: Final = (
    "error_fingerprint",
    "dead",
    "task",
    "queue",
    "reason",
    "error_type",
    "first_at",
    "last_at",
    "sample_message",
)

app = typer.Typer(
    name="dlq", help="Dead letters: what failed for good, why, and what to do with it.", no_args_is_help=True
)

Why = Annotated[
    str | None,
    typer.Option(
        "--because", help="Only with this reason: max_retries, rejected, worker_crash, …", show_default=False
    ),
]
Error = Annotated[
    str | None, typer.Option("--error-type", help="Only with this error class.", show_default=False)
]
Fingerprint = Annotated[
    str | None, typer.Option("--fingerprint", help="Only of this group.", show_default=False)
]
Since = Annotated[
    str | None, typer.Option("--since", help="Only from the last 24h, 30m, …", show_default=False)
]


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    main.add_typer(app)


def _letters(session: Session) -> Any:
    from pgqueue.control.dead_letters import DeadLetters

    return DeadLetters(desk(session))


def _filter(
    queue: str | None,
    task: str | None,
    because: str | None,
    error: str | None,
    fingerprint: str | None,
    since: str | None,
) -> Any:
    from pgqueue.control.dead_letters import AGE_MAX_S, DeadFilter
    from pgqueue.core.durations import parse_duration

    age_s = AGE_MAX_S if since is None else parse_duration(since, field="since")
    return DeadFilter(queue, task, because, error, fingerprint, age_s)


@verb(app, "list")
def list_letters(
    session: Session,
    *,
    queue: Queue = None,
    task: Task = None,
    because: Why = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    redriven: Annotated[bool, typer.Option("--redriven", help="Also those already redriven.")] = False,
    limit: Limit = 50,
) -> None:
    """Dead letters, newest first."""
    rows = _letters(session).list(
        _filter(queue, task, because, error, fingerprint, since), limit=limit, waiting=not redriven
    )
    if session.printer.rows(rows, COLUMNS, name="job_id") == limit:
        say(f"the newest {limit}; --limit shows more")


@verb(app)
def groups(session: Session, *, queue: Queue = None, task: Task = None, limit: Limit = 50) -> None:
    """Dead letters by cause, the most frequent first."""
    session.printer.rows(
        _letters(session).groups(queue=queue, task=task, limit=limit),
        GROUP_COLUMNS,
        name="error_fingerprint",
        kind="group",
    )


@verb(app, "get")
def get_letter(
    session: Session,
    *,
    job_id: JobId,
    show_args: Annotated[
        bool, typer.Option("--show-args", help="Show values of arguments and headers; audited.")
    ] = False,
    reason: Reason = None,
) -> None:
    """One dead letter with its error, traceback and attempts."""
    from pgqueue.control.jobs import Jobs

    row = _letters(session).get(job_id)
    if show_args:
        Jobs(desk(session)).reveal(job_id, reason)
    session.printer.one(row if show_args else hidden(row), name="job_id")


@verb(app)
def redrive(
    session: Session,
    *,
    ids: Ids = None,
    queue: Queue = None,
    task: Task = None,
    because: Why = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    everything: Everything = False,
    to_queue: Annotated[
        str | None, typer.Option("--to-queue", help="Run them in another queue.", show_default=False)
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="0 (first) to 9.", show_default=False)
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=0, help="So many a second; 0 = all at once.")] = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Enqueue dead jobs again as new, linked jobs. Doing it twice makes no second job."""
    letters = _letters(session)
    where = _filter(queue, task, because, error, fingerprint, since)
    targets = chosen(
        ids,
        lambda: letters.matching(where),
        filtered=any((queue, task, because, error, fingerprint, since)),
        everything=everything,
        dry_run=dry_run,
        yes=yes,
        deed="redrive",
    )
    if not targets:
        return 0
    done = letters.redrive(*targets, reason=reason, queue=to_queue, priority=priority, rate_per_s=rate)
    session.printer.rows(
        [{"job_id": old, "redriven_as": new} for old, new in done.items()],
        ("job_id", "redriven_as"),
        name="redriven_as",
    )
    missing = [old for old, new in done.items() if new is None]
    return 0 if not missing else 3 if len(missing) == len(done) else 7


@verb(app)
def discard(
    session: Session,
    *,
    ids: Ids = None,
    queue: Queue = None,
    task: Task = None,
    because: Why = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    everything: Everything = False,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Give dead letters up: they move to the history as cancelled."""
    letters = _letters(session)
    where = _filter(queue, task, because, error, fingerprint, since)
    targets = chosen(
        ids,
        lambda: letters.matching(where),
        filtered=any((queue, task, because, error, fingerprint, since)),
        everything=everything,
        dry_run=dry_run,
        yes=yes,
        deed="discard",
    )
    if not targets:
        return 0
    done = letters.discard(*targets, reason=reason)
    return verdicts(
        session, {i: "discarded" if ok else "unknown" for i, ok in done.items()}, good=("discarded",)
    )


@verb(app)
def export(
    session: Session,
    *,
    queue: Queue = None,
    task: Task = None,
    because: Why = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    show_args: Annotated[
        bool, typer.Option("--show-args", help="With the values of arguments and headers.")
    ] = False,
) -> None:
    """Write the waiting dead letters out, one JSON object a line (or -o csv)."""
    from pgqueue.cli.out import Printer
    from pgqueue.cli.session import Output

    rows = _letters(session).export(_filter(queue, task, because, error, fingerprint, since))
    form = session.output if session.output is not Output.TABLE else Output.JSONL
    shown = rows if show_args else (hidden(row) for row in rows)
    Printer(form, headers=not session.common.no_headers).rows(
        shown, (*COLUMNS, "args", "traceback"), name="job_id"
    )
