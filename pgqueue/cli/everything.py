"""`pgqueue all`: workers, a scheduler and a relay under one parent, for development and small installations."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue.cli.group import Member, run_group
from pgqueue.cli.session import HEALTH_PORT, METRICS_PORT, Session, given, verb
from pgqueue.cli.work import Application, Concurrency, Processes, Queues, option


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app, "all")(everything)


def everything(
    session: Session,
    *,
    app: Application,
    queues: Queues = None,
    concurrency: Concurrency = None,
    processes: Processes = 1,
    metrics_port: Annotated[int | None, METRICS_PORT] = None,
    health_port: Annotated[int | None, HEALTH_PORT] = None,
) -> int:
    """Run an application's jobs, schedules and messages. One parent, one child each; a child that dies is started again."""
    dsn = session.common.dsn
    work = ["-A", app, *option("-q", queues), *option("-c", concurrency)]
    members = [Member("worker", work, dsn) for _ in range(processes)]
    members += [Member("scheduler", ["-A", app], dsn), Member("relay", ["-A", app], dsn)]
    return run_group(session, members, given(metrics_port=metrics_port, health_port=health_port))
