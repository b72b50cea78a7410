"""`pgqueue worker`: runs an application's jobs until it is told to stop, in this process or in several."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pgqueue.cli.session import HEALTH_PORT, METRICS_PORT, Session, given, verb


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app)(worker)


def worker(
    session: Session,
    *,
    app: Annotated[
        str, typer.Option("-A", "--app", metavar="MODULE:APP", help="The application: where its App is.")
    ],
    queues: Annotated[
        str | None,
        typer.Option(
            "-q",
            "--queues",
            help="Queues, with slots of their own or sharing: critical:8,default.",
            show_default="those its tasks name",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("-c", "--concurrency", help="Jobs that run at a time.", show_default="the setting"),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            min=1,
            max=256,
            help="Worker processes, restarted when they die; each has its own slots.",
        ),
    ] = 1,
    drain: Annotated[
        bool, typer.Option("--drain", help="Leave when nothing is ready, running or retrying.")
    ] = False,
    metrics_port: Annotated[int | None, METRICS_PORT] = None,
    health_port: Annotated[int | None, HEALTH_PORT] = None,
    suspects_only: Annotated[bool, typer.Option("--suspects-only", hidden=True)] = False,
    lifeline: Annotated[bool, typer.Option("--lifeline", hidden=True)] = False,
    inherit_address: Annotated[bool, typer.Option("--inherit-address", hidden=True)] = False,
) -> int:
    """Run the application's jobs. SIGTERM stops in order, a second one at once."""
    from pgqueue.app import load_app
    from pgqueue.observe.logs import LogListener, configure_logging
    from pgqueue.observe.serve import serve_observability
    from pgqueue.observe.statement_spans import StatementSpans
    from pgqueue.worker.processes import watch_parent

    if processes > 1:
        arguments = [
            "-A",
            app,
            *_option("-q", queues),
            *_option("-c", concurrency),
            *(["--drain"] if drain else []),
        ]
        ports = given(metrics_port=metrics_port, health_port=health_port)
        return _supervise(session, arguments, processes, ports)
    application = load_app(app)
    # A process for suspects, and one of several under a --dsn, works on its parent's database, whatever address the
    # application holds.
    inherited = suspects_only or inherit_address
    address = session.common.dsn or (session.settings.database_url if inherited else None)
    if address:
        application.use(database_url=address)
    application.use(**given(metrics_port=metrics_port, health_port=health_port))
    settings = application.settings
    configure_logging(settings)
    application.events.listen(LogListener(settings))
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


def _supervise(session: Session, arguments: list[str], count: int, ports: dict[str, int]) -> int:
    """Several of this command under one parent. An address is handed on in the environment, where others cannot read it."""
    from pgqueue.core.events import Events
    from pgqueue.observe.logs import LogListener, configure_logging
    from pgqueue.observe.serve import serve_observability
    from pgqueue.worker.family import FamilyVitals, ports_of
    from pgqueue.worker.processes import Processes

    settings = session.settings.model_copy(update=ports)
    children = [ports_of(settings, number) for number in range(count)]
    configure_logging(settings)
    events = Events()
    events.listen(LogListener(settings))
    environment = dict(os.environ)
    hidden = ["--lifeline"]
    if session.common.dsn:
        environment["PGQUEUE_DATABASE_URL"] = session.common.dsn
        hidden.append("--inherit-address")
    command = [sys.executable, "-m", "pgqueue", "worker"]
    parent = Processes(
        [[*command, *arguments, *own.options, *hidden] for own in children],
        events,
        environment=environment,
        grace_s=settings.grace_s,
    )
    # The children serve the metrics; health is asked of the parent, and it asks them.
    parents = settings.model_copy(update={"metrics_port": None})
    with serve_observability(parents, events, FamilyVitals(parent, children), component="supervisor"):
        return parent.run(signals=True)


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]
