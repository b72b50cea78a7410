"""`pgqueue relay`: takes messages out of the outbox and delivers them until it is told to stop."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue.cli.session import Session, verb


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app)(relay)


def relay(
    session: Session,
    *,
    app: Annotated[
        str, typer.Option("-A", "--app", metavar="MODULE:APP", help="The application: where its App is.")
    ],
    drain: Annotated[
        bool, typer.Option("--drain", help="Leave when nothing is left that would be delivered by itself.")
    ] = False,
) -> int:
    """Deliver the outbox's messages. Start as many as you like: they share the work. SIGTERM stops in order."""
    from pgqueue.app import load_app
    from pgqueue.observe.logs import LogListener, configure_logging

    application = load_app(app)
    if session.common.dsn is not None:
        application.use(database_url=session.common.dsn)
    settings = application.settings
    configure_logging(settings)
    application.events.listen(LogListener(settings))
    return application.relay(app_reference=app, drain=drain).run(signals=True)
