"""`pgqueue exporter`: the database's state for Prometheus, from one process, until it is told to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgqueue.cli.session import Session, given, verb
from pgqueue.errors import ConfigurationError

if TYPE_CHECKING:
    from pgqueue.core.vitals import Check, Reading

PORT: Final = 9470


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app)(exporter)


def exporter(
    session: Session,
    *,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="Port of /metrics; 0 takes a free one.")
    ] = PORT,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Address to listen on.", show_default="the setting listen_host"),
    ] = None,
) -> int:
    """Serve the state of queues, schedules and database to Prometheus; one is enough. SIGTERM ends it."""
    import signal
    from queue import SimpleQueue

    from pgqueue.core.events import Events
    from pgqueue.observe.logs import LogListener, configure_logging
    from pgqueue.observe.serve import need_client, serve_observability
    from pgqueue.observe.snapshot import Snapshots

    need_client()
    from pgqueue.observe.database_metrics import DatabaseMetrics

    settings = session.settings.model_copy(
        update={"metrics_port": port, "health_port": None, **given(listen_host=host)}
    )
    configure_logging(settings)
    events = Events()
    events.listen(LogListener(settings))
    # A signal may come while this thread is inside `get`: a put may, where an Event's set would want its lock.
    heard: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda told, _: heard.put(told))
    snapshots = Snapshots(settings.database_url)
    try:
        with serve_observability(
            settings, events, _Idle(), component="exporter", collectors=[DatabaseMetrics(snapshots)]
        ) as ports:
            if not ports.metrics:
                raise ConfigurationError(
                    f"--port {port}: cannot be listened on at {settings.listen_host}; choose another"
                )
            heard.get()
    finally:
        snapshots.close()
    return 0


class _Idle:
    """An exporter has no loop that could stop turning; whether the database answers, the probe itself asks."""

    def live(self) -> Sequence[Check]:
        return ()

    def ready(self) -> Sequence[Check]:
        return ()

    def started(self) -> Sequence[Check]:
        return ()

    def readings(self) -> Sequence[Reading]:
        return ()

    def objectives_s(self) -> Mapping[str, float]:
        return {}
