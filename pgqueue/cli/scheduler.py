"""`pgqueue scheduler`: enqueues an application's scheduled jobs until it is told to stop."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue.cli.session import Session, verb


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app)(scheduler)


def scheduler(
    session: Session,
    *,
    app: Annotated[
        str, typer.Option("-A", "--app", metavar="MODULE:APP", help="The application: where its App is.")
    ],
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Delete the schedules that its code defined once and does not any more."
        ),
    ] = False,
) -> int:
    """Enqueue scheduled jobs. Start as many as you like: one leads, the others wait. SIGTERM stops in order."""
    from pgqueue.app import load_app
    from pgqueue.observe.logs import LogListener, configure_logging

    application = load_app(app)
    if session.common.dsn is not None:
        application.use(database_url=session.common.dsn)
    settings = application.settings
    configure_logging(settings)
    application.events.listen(LogListener(settings))
    return application.scheduler(app_reference=app, prune=prune).run(signals=True)
