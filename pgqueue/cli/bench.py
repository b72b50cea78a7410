"""`pgqueue bench`: medians of several runs, with minimum and maximum, on a throwaway PostgreSQL."""

from __future__ import annotations

import platform
import statistics
from typing import Annotated

import typer

from pgqueue.cli.session import Output, Session, say, verb

COLUMNS = ("workload", "median", "min", "max", "unit", "runs", "jobs", "details")


def register(main: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(main)(bench)


def bench(
    session: Session,
    *,
    workload: Annotated[
        list[str] | None, typer.Option("--workload", help="May be repeated.", show_default="all")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=100, help="Jobs per run.")] = 60_000,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Runs per workload; the median counts.")] = 5,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Worker processes.")] = 1,
) -> None:
    """Measure on an embedded PostgreSQL with its defaults (fsync on). Absolute figures say something about this machine only."""
    import psycopg

    from pgqueue.bench.workloads import WORKLOADS, Bench
    from pgqueue.embedded import EmbeddedPostgres
    from pgqueue.storage.migrate import upgrade

    unknown = [name for name in workload or () if name not in WORKLOADS]
    if unknown:
        raise typer.BadParameter(f"no workload {unknown[0]}; there are {', '.join(WORKLOADS)}")
    rows = []
    with EmbeddedPostgres(settings={"shared_buffers": "512MB", "max_wal_size": "4GB"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE bench")
        dsn = server.dsn("bench")
        upgrade(dsn)
        say(
            f"PostgreSQL {server.version}, Python {platform.python_version()}, {platform.machine()}; {jobs} jobs, {runs} runs, {processes} worker processes"
        )
        target = Bench(dsn, jobs=jobs, processes=processes)
        try:
            for name in workload or WORKLOADS:
                unit, measure = WORKLOADS[name]
                figures = [measure(target) for _ in range(runs)]
                values = [figure.value for figure in figures]
                details = {
                    key: round(statistics.median(figure.details[key] for figure in figures), 2)
                    for key in figures[0].details
                }
                rows.append(
                    {
                        "workload": name,
                        "median": round(statistics.median(values), 2),
                        "min": round(min(values), 2),
                        "max": round(max(values), 2),
                        "unit": unit,
                        "runs": runs,
                        "jobs": jobs,
                        "details": details,
                    }
                )
                say(f"{name}: {rows[-1]['median']:,} {unit}")
        finally:
            target.close()
    if session.output is Output.TABLE:
        say("")
    session.printer.rows(rows, COLUMNS, name="workload", kind="bench")
