"""`pgqueue schedules …`: look at schedules, ask what an expression would do, define, pause, run now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.bulk import DryRun, Limit, Reason
from pgqueue.cli.complete import schedule_names, task_names
from pgqueue.cli.session import Session, say, verb
from pgqueue.errors import InvalidArguments

if TYPE_CHECKING:
    from pgqueue.control.schedules import Schedules
    from pgqueue.core.schedule_plan import Preview

COLUMNS: Final = (
    "name",
    "state",
    "task",
    "queue",
    "when",
    "tz",
    "next_fire_at",
    "overdue_s",
    "last_fire_at",
    "last_outcome",
    "last_duration_s",
    "source",
)
RUN_COLUMNS: Final = ("fire_at", "outcome", "job_id", "ticked_at", "leader", "note")
FIRE_COLUMNS: Final = ("at", "local", "note")

app = typer.Typer(name="schedules", help="Schedules: what comes by itself, and when.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Schedule name.",
        parser=lambda text: text.removeprefix("schedule/"),
        autocompletion=schedule_names,
    ),
]
Every = Annotated[
    str | None, typer.Option("--every", help="Instead of an expression, a period: 15m.", show_default=False)
]
Zone = Annotated[str, typer.Option("--tz", help="IANA zone in which the expression is read.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, max=1_000, help="How many fires.")]


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    main.add_typer(app)


def schedules_of(session: Session) -> Schedules:
    """Questions and deeds about schedules."""
    from pgqueue.control.schedules import Schedules

    return Schedules(session.desk)


@verb(app, "list", watch=True)
def list_schedules(session: Session) -> None:
    """Every schedule: its next fire, its last run and what became of it."""
    from pgqueue.core.durations import format_duration

    rows = schedules_of(session).list()
    session.printer.rows(
        ({**asdict(row), "when": row.cron or f"every {format_duration(row.every_s or 0)}"} for row in rows),
        COLUMNS,
        name="name",
        kind="schedule",
    )
    for row in rows:
        if row.last_error is not None:
            say(f"schedule {row.name}: cannot fire: {row.last_error}")
        if row.state == "orphaned":
            say(
                f"schedule {row.name}: {row.defined_in or 'its code'} no longer defines it, so it fires no more;"
                " `pgqueue schedules delete` removes it"
            )


@verb(app, "get")
def get_schedule(session: Session, *, name: Name) -> None:
    """One schedule, with its definition."""
    session.printer.one(asdict(schedules_of(session).get(name)), name="name", kind="schedule")


@verb(app, "log", watch=True)
def show_log(session: Session, *, name: Name, limit: Limit = 50) -> None:
    """A schedule's fires, newest first, missed ones too."""
    runs = schedules_of(session).runs(name, limit=limit)
    session.printer.rows(map(asdict, runs), RUN_COLUMNS, name="run_key", kind="run")


@verb(app, "next")
def next_fires(session: Session, *, name: Name, count: Count = 5) -> None:
    """A schedule's next fires, in UTC and in its zone."""
    _show(session, schedules_of(session).next(name, count=count))


@verb(app, "preview")
def preview(
    session: Session,
    *,
    cron: Annotated[
        str | None,
        typer.Argument(metavar="CRON", help="Five fields or @daily and the like.", show_default=False),
    ] = None,
    every: Every = None,
    tz: Zone = "UTC",
    count: Count = 5,
    after: Annotated[
        str | None, typer.Option("--after", help="From this moment: 2026-10-24T00:00Z.", show_default="now")
    ] = None,
) -> None:
    """What an expression means, when it fires, and what clock changes do to it. Needs no database."""
    from pgqueue.control.schedules import preview_of

    _show(session, preview_of(cron, every=every, tz=tz, after=_moment(after, "after"), count=count))


@verb(app, "put")
def put(
    session: Session,
    *,
    name: Name,
    task: Annotated[str, typer.Argument(help="Task of the jobs it enqueues.", autocompletion=task_names)],
    args: Annotated[str, typer.Argument(metavar="JSON", help="Their arguments by name.")] = "{}",
    cron: Annotated[
        str | None, typer.Option("--cron", help="Five fields or @daily and the like.", show_default=False)
    ] = None,
    every: Every = None,
    tz: Zone = "UTC",
    queue: Annotated[
        str | None, typer.Option("--queue", help="Default: the task's own.", show_default=False)
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="0 (first) to 9.", show_default=False)
    ] = None,
    misfire: Annotated[
        str, typer.Option("--misfire", help="Fires nobody handled in time: latest, skip or all.")
    ] = "latest",
    max_catch_up: Annotated[int, typer.Option("--max-catch-up", help="Most fires that `all` runs.")] = 100,
    grace: Annotated[str, typer.Option("--grace", help="How late `skip` still runs.")] = "60s",
    overlap: Annotated[
        str, typer.Option("--overlap", help="allow, or skip while the last job lives.")
    ] = "allow",
    jitter: Annotated[str, typer.Option("--jitter", help="Jobs start up to so much later.")] = "0s",
    starts_at: Annotated[
        str | None, typer.Option("--starts-at", help="No fire before this moment.", show_default=False)
    ] = None,
    ends_at: Annotated[
        str | None, typer.Option("--ends-at", help="No fire after this moment.", show_default=False)
    ] = None,
    reason: Reason = None,
    dry_run: DryRun = False,
) -> None:
    """Define a schedule, or change its definition. A pause stays."""
    from pgqueue.core.schedule import define_schedule

    definition = define_schedule(
        name=name,
        task=task,
        args=_arguments(args),
        cron=cron,
        every=every,
        tz=tz,
        queue=queue,
        priority=priority,
        misfire=misfire,
        max_catch_up=max_catch_up,
        grace=grace,
        overlap=overlap,
        jitter=jitter,
        starts_at=_moment(starts_at, "starts_at"),
        ends_at=_moment(ends_at, "ends_at"),
    )
    if dry_run:
        say(f"would define schedule {name}: {definition.timing.words}, {definition.tz}")
        return
    _tell(session, "define", name)
    change = schedules_of(session).put(definition, reason=reason)
    say(f"schedule {name}: {definition.timing.words}, {definition.tz}")
    session.printer.one({"name": name, "change": change}, name="name", kind="schedule")


@verb(app, "run")
def run_now(session: Session, *, name: Name, reason: Reason = None, dry_run: DryRun = False) -> None:
    """Enqueue a schedule's job now; its next fire stays as it is."""
    schedules = schedules_of(session)
    if dry_run:
        say(f"would enqueue {schedules.get(name).task}")
        return
    _tell(session, "run", name)
    session.printer.one({"id": schedules.run_now(name, reason=reason), "schedule": name}, name="id")


@verb(app)
def pause(session: Session, *, name: Name, reason: Reason = None, dry_run: DryRun = False) -> None:
    """Stop a schedule: when this returns, it enqueues nothing more. Jobs it has enqueued run."""
    schedules = schedules_of(session)
    if dry_run:
        say(f"would pause schedule {name}, which is {schedules.get(name).state}")
        return
    _tell(session, "pause", name)
    schedules.pause(name, reason=reason)
    say(f"schedule {name} is paused")


@verb(app)
def resume(session: Session, *, name: Name, reason: Reason = None, dry_run: DryRun = False) -> None:
    """Let a paused schedule fire again, from now on: what fell into the pause is not made up for."""
    schedules = schedules_of(session)
    if dry_run:
        state = schedules.get(name).state
        say(f"would resume schedule {name}" if state == "paused" else f"schedule {name} is not paused")
        return
    _tell(session, "resume", name)
    resumed = schedules.resume(name, reason=reason)
    say(f"schedule {name} fires again" if resumed else f"schedule {name} was not paused")


@verb(app)
def delete(session: Session, *, name: Name, reason: Reason = None, dry_run: DryRun = False) -> None:
    """Delete a schedule; its log and its jobs stay. One that code defines comes back with the next scheduler."""
    schedules = schedules_of(session)
    if dry_run:
        say(f"would delete schedule {schedules.get(name).name}")
        return
    _tell(session, "delete", name)
    schedules.delete(name, reason=reason)
    say(f"schedule {name} is deleted")


def _tell(session: Session, deed: str, name: str) -> None:
    say(f"{deed} schedule {name} in {session.desk.place} ({session.desk.environment})")


def _show(session: Session, found: Preview) -> None:
    from zoneinfo import ZoneInfo

    say(f"{found.words}, {found.tz}")
    zone = ZoneInfo(found.tz)
    session.printer.rows(
        (
            {"at": fire.at, "local": fire.at.astimezone(zone).isoformat(), "note": fire.note}
            for fire in found.fires
        ),
        FIRE_COLUMNS,
        name="local",
        kind="fire",
    )
    if not found.fires:
        say("no fire is left")
    for note in found.notes:
        say(note)


def _arguments(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArguments("args", "not JSON; write it as '{\"ride_id\": 7}'") from None
    if not isinstance(value, dict):
        raise InvalidArguments("args", "not a JSON object; pass the arguments by name, as '{\"ride_id\": 7}'")
    return value


def _moment(text: str | None, field: str) -> datetime | None:
    from pgqueue.core.durations import parse_moment

    return None if text is None else parse_moment(text, field=field)
