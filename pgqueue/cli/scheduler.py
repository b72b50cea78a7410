"""`pgqueue scheduler`: enqueues an application's scheduled jobs until it is told to stop."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue.cli.session import HEALTH_PORT, METRICS_PORT, Session, given, verb
from pgqueue.cli.work import Application, InheritAddress, Lifeline


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app)(scheduler)


def scheduler(
    session: Session,
    *,
    app: Application,
    metrics_port: Annotated[int | None, METRICS_PORT] = None,
    health_port: Annotated[int | None, HEALTH_PORT] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Delete the schedules that its code defined once and does not any more."
        ),
    ] = False,
    lifeline: Lifeline = False,
    inherit_address: InheritAddress = False,
) -> int:
    """Enqueue scheduled jobs. Start as many as you like: one leads, the others wait. SIGTERM stops in order."""
    from pgqueue.app import load_app
    from pgqueue.observe.logs import LogListener, configure_logging
    from pgqueue.observe.serve import serve_observability
    from pgqueue.worker.processes import watch_parent

    address = session.common.dsn or (session.settings.database_url if inherit_address else None)
    application = load_app(app)
    if address:
        application.use(database_url=address)
    application.use(**given(metrics_port=metrics_port, health_port=health_port))
    settings = application.settings
    configure_logging(settings)
    application.events.listen(LogListener(settings))
    process = application.scheduler(app_reference=app, prune=prune)
    if lifeline:
        watch_parent(process.stop)
    with serve_observability(settings, application.events, process.vitals, component="scheduler"):
        return process.run(signals=True)
