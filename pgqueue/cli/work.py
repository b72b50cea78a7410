"""`pgqueue worker`: runs an application's jobs until it is told to stop, in this process or in several."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue.cli.group import Member, run_group
from pgqueue.cli.session import HEALTH_PORT, METRICS_PORT, Session, given, verb

Application = Annotated[
    str, typer.Option("-A", "--app", metavar="MODULE:APP", help="The application: where its App is.")
]
Queues = Annotated[
    str | None,
    typer.Option(
        "-q",
        "--queues",
        help="Queues, with slots of their own or sharing: critical:8,default.",
        show_default="those its tasks name",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option("-c", "--concurrency", help="Jobs that run at a time.", show_default="the setting"),
]
Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        min=1,
        max=256,
        help="Worker processes, restarted when they die; each has its own slots. With several --dsn: so many for each.",
    ),
]
Lifeline = Annotated[bool, typer.Option("--lifeline", hidden=True)]
InheritAddress = Annotated[bool, typer.Option("--inherit-address", hidden=True)]


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app)(worker)


def worker(
    session: Session,
    *,
    app: Application,
    queues: Queues = None,
    concurrency: Concurrency = None,
    processes: Processes = 1,
    drain: Annotated[
        bool, typer.Option("--drain", help="Leave when nothing is ready, running or retrying.")
    ] = False,
    metrics_port: Annotated[int | None, METRICS_PORT] = None,
    health_port: Annotated[int | None, HEALTH_PORT] = None,
    suspects_only: Annotated[bool, typer.Option("--suspects-only", hidden=True)] = False,
    lifeline: Lifeline = False,
    inherit_address: InheritAddress = False,
    name_database: Annotated[bool, typer.Option("--name-database", hidden=True)] = False,
) -> int:
    """Run the application's jobs. SIGTERM stops in order, a second one at once. --dsn may be repeated: a fleet for each."""
    from pgqueue.app import load_app
    from pgqueue.observe.logs import LogListener, configure_logging
    from pgqueue.observe.serve import serve_observability
    from pgqueue.observe.statement_spans import StatementSpans
    from pgqueue.storage.connect import place_of
    from pgqueue.worker.processes import watch_parent

    databases: list[str | None] = [*dict.fromkeys(session.common.dsns)] or [None]
    if processes > 1 or len(databases) > 1:
        arguments = ["-A", app, *option("-q", queues), *option("-c", concurrency)]
        arguments += ["--drain"] if drain else []
        members = [Member("worker", arguments, dsn) for dsn in databases for _ in range(processes)]
        return run_group(session, members, given(metrics_port=metrics_port, health_port=health_port))
    application = load_app(app)
    # A process for suspects, and one of several under a --dsn, works on its parent's database, whatever address the
    # application holds.
    inherited = suspects_only or inherit_address
    address = session.common.dsn or (session.settings.database_url if inherited else None)
    if address:
        application.use(database_url=address)
    application.use(**given(metrics_port=metrics_port, health_port=health_port))
    settings = application.settings
    facts = {"database": place_of(settings.database_url)} if name_database else None
    configure_logging(settings, facts=facts)
    application.events.listen(LogListener(settings, facts=facts))
    if settings.trace_statements:
        application.events.listen(StatementSpans())
    worker = application.worker(
        queues, concurrency=concurrency, drain=drain, app_reference=app, suspects_only=suspects_only
    )
    if suspects_only:
        watch_parent(worker.orphaned)
        return worker.run(signals=True)  # the ports are its parent's
    if lifeline:
        watch_parent(worker.stop)
    tasks = [(task.queue, task.name) for task in application.tasks.values()]
    with serve_observability(
        settings,
        application.events,
        worker.vitals,
        component="worker",
        tasks=tasks,
        opened=worker.vitals.served_at,
    ):
        return worker.run(signals=True)


def option(name: str, value: object) -> list[str]:
    """An option for a child's command line, if it was given."""
    return [] if value is None else [name, str(value)]
