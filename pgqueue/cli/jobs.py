"""`pgqueue enqueue` and `pgqueue jobs …`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer

from pgqueue.cli.bulk import DryRun, Everything, Ids, Limit, Queue, Reason, Task, Yes, chosen
from pgqueue.cli.session import Session, say, verb
from pgqueue.errors import ConflictError, InvalidArguments, InvalidTime, NotFoundError

if TYPE_CHECKING:
    from pgqueue.control.jobs import Jobs

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

app = typer.Typer(name="jobs", help="Jobs: list, look at, cancel, try again.", no_args_is_help=True)

State = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        help="ready, running, scheduled, held, succeeded, cancelled or dead; may be repeated.",
        show_default="live",
    ),
]
JobId = Annotated[int, typer.Argument(metavar="ID", help="Job id.")]


def desk(session: Session) -> Any:
    """The control room's desk for this run."""
    from pgqueue.control.desk import Desk

    return Desk(
        session.settings.database_url, via="cli", connect_timeout_s=session.settings.connect_timeout_s
    )


def jobs_of(session: Session) -> Jobs:
    """Questions and deeds about jobs."""
    from pgqueue.control.jobs import Jobs

    return Jobs(desk(session))


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    verb(main, "enqueue")(enqueue)
    main.add_typer(app)


def enqueue(
    session: Session,
    *,
    task: Annotated[str, typer.Argument(help="Task name.")],
    args: Annotated[str, typer.Argument(metavar="JSON", help="Its arguments by name.")] = "{}",
    queue: Annotated[
        str | None, typer.Option("--queue", help="Default: the task's own.", show_default=False)
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="0 (first) to 9.", show_default=False)
    ] = None,
    delay: Annotated[
        str | None, typer.Option("--delay", help="Not before this time has passed: 5m.", show_default=False)
    ] = None,
    run_at: Annotated[
        str | None,
        typer.Option("--run-at", help="Not before this moment: 2026-12-01T08:00Z.", show_default=False),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="At most one job per task and key.", show_default=False),
    ] = None,
    key_ttl: Annotated[
        str | None, typer.Option("--key-ttl", help="The key's life.", show_default="24h")
    ] = None,
    dry_run: DryRun = False,
) -> int | None:
    """Enqueue one job by its task's name."""
    from pgqueue.producer.enqueue import enqueue as send
    from pgqueue.producer.plan import JobOptions, TaskDefaults, plan_one
    from pgqueue.storage.own_pool import OwnConnections

    try:
        values = orjson.loads(args)
    except orjson.JSONDecodeError as error:
        raise InvalidArguments(
            "args", f"not JSON at position {error.pos}; write it as '{{\"ride_id\": 7}}'"
        ) from None
    given = {
        "queue": queue,
        "priority": priority,
        "delay": delay,
        "run_at": _moment(run_at),
        "idempotency_key": idempotency_key,
        "key_ttl": key_ttl,
    }
    options = JobOptions.checked(**{name: value for name, value in given.items() if value is not None})
    plan = plan_one(
        task,
        values,
        options,
        defaults=TaskDefaults(),
        signature=None,
        bytes_max=session.settings.payload_bytes_max,
    )
    if dry_run:
        say(f"would enqueue {task}")
        return None
    own = OwnConnections(session.settings.database_url, connect_timeout_s=session.settings.connect_timeout_s)
    try:
        job = send(None, plan, own=own)
    finally:
        own.close()
    session.printer.one({"id": job.id, "created": job.created, "task": job.task}, name="id")
    return None


@verb(app, "list")
def list_jobs(
    session: Session, *, state: State = None, queue: Queue = None, task: Task = None, limit: Limit = 50
) -> int:
    """Jobs, newest first."""
    rows = jobs_of(session).list(states=state or (), queue=queue, task=task, limit=limit)
    count = session.printer.rows(rows, COLUMNS, name="id")
    if count == limit:
        say(f"the newest {limit}; --limit shows more")
    return 0


@verb(app, "get")
def get_job(
    session: Session,
    *,
    job_id: JobId,
    show_args: Annotated[
        bool, typer.Option("--show-args", help="Show values of arguments, headers and result; audited.")
    ] = False,
    reason: Reason = None,
) -> None:
    """One job with everything kept of it. Values of arguments are hidden unless asked for."""
    jobs = jobs_of(session)
    row = jobs.get(job_id)
    if show_args:
        jobs.reveal(job_id, reason)
    else:
        row = hidden(row)
    session.printer.one(row, name="id")


@verb(app)
def timeline(session: Session, *, job_id: JobId) -> None:
    """One job's life, in order: who, when, why."""
    rows = jobs_of(session).timeline(job_id)
    session.printer.rows(
        rows,
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
    queue: Queue = None,
    task: Task = None,
    everything: Everything = False,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Cancel waiting jobs; running ones are asked to stop."""
    jobs = jobs_of(session)
    targets = chosen(
        ids,
        lambda: jobs.matching(states=state or (), queue=queue, task=task),
        filtered=bool(state or queue or task),
        everything=everything,
        dry_run=dry_run,
        yes=yes,
        deed="cancel",
    )
    return (
        verdicts(session, jobs.cancel(*targets, reason=reason), good=("cancelled", "requested"))
        if targets
        else 0
    )


@verb(app, "run-now")
def run_now(
    session: Session,
    *,
    ids: Ids = None,
    queue: Queue = None,
    task: Task = None,
    everything: Everything = False,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Make scheduled and held jobs ready now."""
    jobs = jobs_of(session)
    targets = chosen(
        ids,
        lambda: jobs.matching(states=("scheduled", "held"), queue=queue, task=task),
        filtered=bool(queue or task),
        everything=everything,
        dry_run=dry_run,
        yes=yes,
        deed="run now",
    )
    return (
        verdicts(session, jobs.run_now(*targets, reason=reason), good=("freed", "ready", "running"))
        if targets
        else 0
    )


@verb(app)
def retry(session: Session, *, job_id: JobId, reason: Reason = None, dry_run: DryRun = False) -> None:
    """Try a job again: a waiting one now, a dead one as a new, linked job."""
    jobs = jobs_of(session)
    if dry_run:
        say(f"would retry job {job_id}, which is {jobs.get(job_id)['state']}")
        return
    verdict, new_id = jobs.retry(job_id, reason=reason)
    if verdict == "unknown":
        raise NotFoundError(f"job {job_id}: not found")
    if verdict == "ended":
        raise ConflictError(f"job {job_id}: it has ended well or was cancelled; enqueue it anew")
    session.printer.one({"id": new_id, "verdict": verdict}, name="id")


@verb(app)
def wait(
    session: Session,
    *,
    job_id: JobId,
    timeout: Annotated[str, typer.Option("--timeout", help="Give up after this.")] = "60s",
) -> int:
    """Wait until a job has ended; its result goes to stdout. Exit code 1 if it ended badly or not in time."""
    from pgqueue.core.durations import parse_duration

    try:
        result = jobs_of(session).wait(job_id, timeout_s=parse_duration(timeout, field="timeout"))
    except TimeoutError as error:
        say(f"pgqueue: {error}")
        return 1
    session.printer.line("null" if result is None else str(result))
    return 0


def hidden(row: dict[str, Any]) -> dict[str, Any]:
    """A job without the values of its arguments, headers and result: their names, kinds and sizes."""
    shown = dict(row)
    for field in ("args", "result"):
        text = shown.get(field)
        if isinstance(text, str):
            shown[field] = _shape(text)
    if shown.get("headers"):
        shown["headers"] = sorted(shown["headers"])
    shown.pop("progress", None)
    return shown


def verdicts(session: Session, done: dict[int, str], *, good: tuple[str, ...]) -> int:
    """Write each id's verdict; exit code 0, 7 when some could not be done, 3 or 4 when none could."""
    session.printer.rows([{"id": i, "verdict": v} for i, v in done.items()], ("id", "verdict"), name="id")
    bad = [v for v in done.values() if v not in good]
    if not bad:
        return 0
    if len(bad) < len(done):
        return 7
    return 3 if all(v == "unknown" for v in bad) else 4


def _shape(text: str) -> Any:
    value = orjson.loads(text)
    if isinstance(value, dict):
        return {key: _kind(item) for key, item in value.items()}
    return _kind(value)


def _kind(value: Any) -> str:
    size = f"[{len(value)}]" if isinstance(value, str | list | dict) else ""
    return f"{type(value).__name__}{size}"


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidTime("run_at", "not a moment; write it as 2026-12-01T08:00Z") from None
