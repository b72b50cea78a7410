"""`pgqueue worker`: runs an application's jobs until it is told to stop."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue.cli.session import Session, verb

if TYPE_CHECKING:
    from pgqueue.worker.runtime import Worker


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
    drain: Annotated[
        bool, typer.Option("--drain", help="Leave when nothing is ready, running or retrying.")
    ] = False,
    suspects_only: Annotated[bool, typer.Option("--suspects-only", hidden=True)] = False,
) -> int:
    """Run the application's jobs. SIGTERM stops in order, a second one at once."""
    from pgqueue.app import load_app
    from pgqueue.observe.logs import LogListener, configure_logging

    application = load_app(app)
    # A process for suspects works on its parent's database, whatever address the application holds.
    address = session.common.dsn or (session.settings.database_url if suspects_only else None)
    if address:
        application.use(database_url=address)
    settings = application.settings
    configure_logging(settings)
    application.events.listen(LogListener(settings))
    worker = application.worker(
        queues, concurrency=concurrency, drain=drain, app_reference=app, suspects_only=suspects_only
    )
    if suspects_only:
        threading.Thread(
            target=_leave_with_parent, args=[worker], name="pgqueue-lifeline", daemon=True
        ).start()
    return worker.run(signals=True)


def _leave_with_parent(worker: Worker) -> None:
    """The parent holds the other end of stdin and never writes: the end of the stream is its end."""
    while os.read(0, 4096):
        pass
    worker.stop()
