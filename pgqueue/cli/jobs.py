"""`pgqueue enqueue` and `pgqueue jobs …`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.bulk import (
    Asked,
    DryRun,
    Everything,
    Ids,
    JobId,
    Limit,
    Queue,
    Rate,
    Reason,
    Task,
    Where,
    Words,
    Yes,
    carry_out,
    chosen,
    filter_text,
)
from pgqueue.cli.complete import queue_names, task_names
from pgqueue.cli.session import Session, say, verb
from pgqueue.errors import InvalidArguments, InvalidTime

if TYPE_CHECKING:
    from pgqueue.control.jobs import JobFilter, Jobs

COLUMNS: Final = (
    "id",
    "task",
    "queue",
    "state",
    "attempt",
    "max_attempts",
    "created_at",
    "run_at",
    "error_type",
    "reason",
)
STDIN: Final = "-"

app = typer.Typer(name="jobs", help="Jobs: list, look at, cancel, try again.", no_args_is_help=True)

State = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        help="ready, running, scheduled, held, succeeded, cancelled or dead; may be repeated.",
        show_default="live",
    ),
]
RunAt = Annotated[
    str | None,
    typer.Option("--run-at", help="Not before this moment: 2026-12-01T08:00Z.", show_default=False),
]
ShowArgs = Annotated[
    bool, typer.Option("--show-args", help="Show values of arguments, headers and result; audited.")
]


def jobs_of(session: Session) -> Jobs:
    """Questions and deeds about jobs."""
    from pgqueue.control.jobs import Jobs

    return Jobs(session.desk)


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    verb(main, "enqueue")(enqueue)
    main.add_typer(app)


def enqueue(
    session: Session,
    *,
    task: Annotated[str, typer.Argument(help="Task name.", autocompletion=task_names)],
    args: Annotated[str, typer.Argument(metavar="JSON", help="Its arguments by name; - reads stdin.")] = "{}",
    queue: Annotated[
        str | None,
        typer.Option(
            "--queue", help="Default: the task's own.", show_default=False, autocompletion=queue_names
        ),
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="0 (first) to 9.", show_default=False)
    ] = None,
    delay: Annotated[
        str | None, typer.Option("--delay", help="Not before this time has passed: 5m.", show_default=False)
    ] = None,
    run_at: RunAt = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="At most one job per task and key.", show_default=False),
    ] = None,
    key_ttl: Annotated[
        str | None, typer.Option("--key-ttl", help="The key's life.", show_default="24h")
    ] = None,
    key_scope: Annotated[
        str | None,
        typer.Option(
            "--key-scope",
            help="How long the key is held: time, forever, live or waiting.",
            show_default="time",
        ),
    ] = None,
    on_conflict: Annotated[
        str | None,
        typer.Option(
            "--on-conflict",
            help="If the key has a job: return_existing, raise (exit code 4), or replace while it waits.",
            show_default="return_existing",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Enqueue one job by its task's name."""
    from pgqueue.producer.enqueue import enqueue as send
    from pgqueue.producer.plan import JobOptions, TaskDefaults, plan_one
    from pgqueue.storage.own_pool import OwnConnections

    given = {
        "queue": queue,
        "priority": priority,
        "delay": delay,
        "run_at": _moment(run_at),
        "idempotency_key": idempotency_key,
        "key_ttl": key_ttl,
        "key_scope": key_scope,
        "on_conflict": on_conflict,
    }
    options = JobOptions.checked(**{name: value for name, value in given.items() if value is not None})
    plan = plan_one(
        task,
        _arguments(args),
        options,
        defaults=TaskDefaults(key_ttl_s=session.settings.key_ttl_s),
        signature=None,
        bytes_max=session.settings.payload_bytes_max,
    )
    if dry_run:
        say(f"would enqueue {task} in {session.desk.place}")
        return
    say(f"enqueue {task} in {session.desk.place} ({session.desk.environment})")
    own = OwnConnections(session.settings.database_url, connect_timeout_s=session.settings.connect_timeout_s)
    try:
        with session.desk.explained("enqueue"):
            job = send(None, plan, own=own)
    finally:
        own.close()
    if job.replaced:
        say(
            f"job {job.id} has this idempotency key already and still waits: it has the new arguments and time"
        )
    elif not job.created:
        say(f"job {job.id} has this idempotency key already: nothing was enqueued")
    session.printer.one(
        {"id": job.id, "created": job.created, "replaced": job.replaced, "task": job.task}, name="id"
    )


@verb(app, "list", watch=True)
def list_jobs(
    session: Session,
    *,
    words: Words = None,
    where: Where = None,
    state: State = None,
    queue: Queue = None,
    task: Task = None,
    limit: Limit = 50,
    after: Annotated[
        int | None,
        typer.Option("--after", help="Go on after this job, as the last page said.", show_default=False),
    ] = None,
) -> None:
    """Jobs, newest first."""
    from pgqueue.control.jobs import NEWEST

    page = jobs_of(session).page(
        _filter(state or (), queue, task, filter_text(where, words)),
        limit=limit,
        before=NEWEST if after is None else after,
    )
    session.printer.rows(page.rows, COLUMNS, name="id")
    if page.before is not None:
        looked = "" if len(page.rows) == limit else "looked at the newest 100,000; "
        say(f"{looked}more: --after {page.before}")


@verb(app, "get", watch=True)
def get_job(session: Session, *, job_id: JobId, show_args: ShowArgs = False, reason: Reason = None) -> None:
    """One job with everything kept of it. Values of arguments are hidden unless asked for."""
    from pgqueue.cli.hide import hidden, revealed
    from pgqueue.core.redact import Redactor

    jobs = jobs_of(session)
    row = jobs.get(job_id)
    if show_args:
        jobs.reveal(job_id, reason)
        session.printer.one(revealed(row, Redactor(session.settings.redact)), name="id")
    else:
        session.printer.one(hidden(row), name="id")


@verb(app)
def timeline(session: Session, *, job_id: JobId) -> None:
    """One job's life, in order: who, when, why."""
    session.printer.rows(
        jobs_of(session).timeline(job_id),
        ("at", "event", "from_state", "to_state", "reason", "actor", "attempt", "detail"),
        name="event",
        kind="event",
    )


@verb(app)
def cancel(
    session: Session,
    *,
    ids: Ids = None,
    state: State = None,
    where: Where = None,
    queue: Queue = None,
    task: Task = None,
    everything: Everything = False,
    rate: Rate = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Cancel waiting jobs; running ones are asked to stop."""
    jobs, meant = jobs_of(session), _filter(state or (), queue, task, where)
    asked = Asked(
        ids,
        bool(state or queue or task or where),
        everything,
        dry_run,
        yes,
        reason,
        "cancel",
        rate_per_s=rate,
    )
    targets = chosen(session, asked, lambda: jobs.matched(meant))
    if not targets:
        return 0
    done = ({"id": i, "verdict": v} for i, v in jobs.each_cancel(targets, reason))
    return _verdicts(session, asked, len(targets), done, {"cancelled", "requested"}, meant)


@verb(app, "run-now")
def run_now(
    session: Session,
    *,
    ids: Ids = None,
    where: Where = None,
    queue: Queue = None,
    task: Task = None,
    everything: Everything = False,
    rate: Rate = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Make scheduled and held jobs ready now."""
    jobs, meant = jobs_of(session), _filter(("scheduled", "held"), queue, task, where)
    asked = Asked(
        ids, bool(queue or task or where), everything, dry_run, yes, reason, "run now", rate_per_s=rate
    )
    targets = chosen(session, asked, lambda: jobs.matched(meant))
    if not targets:
        return 0
    done = ({"id": i, "verdict": v} for i, v in jobs.each_run_now(targets, reason))
    return _verdicts(session, asked, len(targets), done, {"freed", "ready", "running"}, meant)


@verb(app)
def reschedule(
    session: Session,
    *,
    ids: Ids = None,
    delay: Annotated[
        str | None, typer.Option("--delay", help="So long from now: 5m.", show_default=False)
    ] = None,
    run_at: RunAt = None,
    where: Where = None,
    queue: Queue = None,
    task: Task = None,
    everything: Everything = False,
    rate: Rate = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Move waiting jobs to another moment; a filter means the scheduled ones."""
    from pgqueue.control.jobs import moment

    to = moment(delay, _moment(run_at))
    jobs, meant = jobs_of(session), _filter(("scheduled",), queue, task, where)
    asked = Asked(
        ids, bool(queue or task or where), everything, dry_run, yes, reason, "reschedule", rate_per_s=rate
    )
    targets = chosen(session, asked, lambda: jobs.matched(meant))
    if not targets:
        return 0
    done = ({"id": i, "verdict": v} for i, v in jobs.each_reschedule(targets, to, reason))
    return _verdicts(session, asked, len(targets), done, {"rescheduled"}, meant)


@verb(app)
def retry(
    session: Session,
    *,
    ids: Ids = None,
    where: Where = None,
    queue: Queue = None,
    task: Task = None,
    everything: Everything = False,
    rate: Rate = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Try jobs again: waiting ones now, dead ones as new, linked jobs. A filter means held and dead ones, if it names no state."""
    jobs, meant = jobs_of(session), _filter((), queue, task, where)
    asked = Asked(
        ids, bool(queue or task or where), everything, dry_run, yes, reason, "retry", rate_per_s=rate
    )
    targets = chosen(session, asked, lambda: jobs.retriable(meant))
    if not targets:
        return 0
    done = ({"id": new or old, "verdict": v, "of": old} for old, v, new in jobs.each_retry(targets, reason))
    return _verdicts(session, asked, len(targets), done, {"freed", "ready", "redriven"}, meant)


@verb(app)
def wait(
    session: Session,
    *,
    job_id: JobId,
    timeout: Annotated[str, typer.Option("--timeout", help="Give up after this.")] = "60s",
) -> int:
    """Wait until a job has ended; its result, as JSON, goes to stdout. Exit code 1 if it ended badly or not in time."""
    from pgqueue.core.durations import parse_duration

    try:
        result = jobs_of(session).wait(job_id, timeout_s=parse_duration(timeout, field="timeout"))
    except TimeoutError as error:
        say(f"pgqueue: {error}")
        return 1
    session.printer.document(result)
    return 0


def _filter(states: Sequence[str], queue: str | None, task: str | None, where: str | None) -> JobFilter:
    from pgqueue.control.jobs import JobFilter
    from pgqueue.core.filter import parse_filter

    return JobFilter(states, queue, task, parse_filter(where or "", "jobs"))


def _verdicts(session: Session, asked: Asked, total: int, done: Any, good: set[str], where: object) -> int:
    return carry_out(
        session,
        asked,
        total,
        done,
        columns=("id", "verdict"),
        name="id",
        good=lambda row: row["verdict"] in good,
        unknown=lambda row: row["verdict"] == "unknown",
        words=None if asked.ids else str(where),
    )


def _arguments(text: str) -> Mapping[str, object]:
    """The arguments as Python values; the standard decoder, because it keeps big integers whole."""
    try:
        values = json.loads(sys.stdin.read() if text == STDIN else text)
    except json.JSONDecodeError as error:
        raise InvalidArguments(
            "args", f"not JSON at position {error.pos}; write it as '{{\"ride_id\": 7}}'"
        ) from None
    except (ValueError, RecursionError):
        raise InvalidArguments(
            "args", "not JSON that can be read: it is nested too deep, or no UTF-8"
        ) from None
    if not isinstance(values, dict):
        raise InvalidArguments("args", "not a JSON object; pass the arguments by name, as '{\"ride_id\": 7}'")
    return values


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidTime("run_at", "not a moment; write it as 2026-12-01T08:00Z") from None
