"""`pgqueue bench`: medians of several runs, with minimum and maximum, on a throwaway PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pgqueue.cli.session import Output, Session, say, verb

COLUMNS = ("workload", "median", "min", "max", "unit", "runs", "details")


def register(main: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(main)(bench)


def bench(
    session: Session,
    *,
    workload: Annotated[
        list[str] | None,
        typer.Option("--workload", help="May be repeated.", show_default="all but the long ones"),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=100, help="Jobs per run.")] = 60_000,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Runs per workload; the median counts.")] = 5,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Worker processes.")] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="Length of the workloads that take a time.")
    ] = 10.0,
    rate: Annotated[
        int, typer.Option("--rate", min=20, help="Jobs per second, for `old-transaction`.")
    ] = 5_000,
    pending: Annotated[
        int, typer.Option("--pending", min=1000, help="Jobs that wait, for `backlog`.")
    ] = 1_000_000,
    history: Annotated[int, typer.Option("--history", min=0, help="Ended jobs, for `backlog`.")] = 0,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write everything, as JSON, to this file.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            help="Compare ratios with this file, such as bench/ratios.json; exit 1 if one is worse.",
        ),
    ] = None,
) -> int:
    """Measure on an embedded PostgreSQL with its defaults (fsync on). Absolute figures say something about this machine only."""
    import json

    import psycopg

    from pgqueue.bench.figures import Summary, ratios_of, worse
    from pgqueue.bench.machine import describe
    from pgqueue.bench.pgbench import find_pgbench
    from pgqueue.bench.rig import Plan, Rig
    from pgqueue.bench.workloads import WORKLOADS
    from pgqueue.embedded import EmbeddedPostgres
    from pgqueue.storage.migrate import upgrade

    unknown = [name for name in workload or () if name not in WORKLOADS]
    if unknown:
        raise typer.BadParameter(f"no workload {unknown[0]}; there are {', '.join(WORKLOADS)}")
    stored = None if check is None else json.loads(check.read_text(encoding="utf-8"))
    chosen = workload or [name for name, one in WORKLOADS.items() if not one.long]
    plan = Plan(
        jobs=jobs,
        processes=processes,
        seconds=seconds,
        rate=rate,
        pending=max(pending, 2 * jobs),
        history=history,
    )
    machine, summaries = describe(), []
    with EmbeddedPostgres(settings={"shared_buffers": "512MB", "max_wal_size": "4GB"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE bench")
        dsn = server.dsn("bench")
        upgrade(dsn)
        say(
            f"PostgreSQL {server.version} with fsync, {machine}; {jobs} jobs, {runs} runs, {processes} worker processes"
        )
        rig = Rig(dsn, plan, postmaster=server.pid, bin_dir=server.bin_dir)
        has_pgbench = find_pgbench(server.bin_dir) is not None
        if not has_pgbench:
            say("no pgbench was found: no floor, and no workload that needs it")
        try:
            for name in chosen:
                one = WORKLOADS[name]
                if one.needs_pgbench and not has_pgbench:
                    say(f"{name}: skipped, it needs pgbench")
                    continue
                summaries.append(Summary(name, one.unit, tuple(one.measure(rig) for _ in range(runs))))
                say(f"{name}: {summaries[-1].row()['median']:,} {one.unit}")
        finally:
            rig.close()
    if save is not None:
        document = {"machine": asdict(machine), "server": server.version, "plan": asdict(plan), "runs": runs}
        document["workloads"] = [summary.document() for summary in summaries]
        save.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if session.output is Output.TABLE:
        say("")
    session.printer.rows([summary.row() for summary in summaries], COLUMNS, name="workload", kind="bench")
    lines: list[Any] = [] if stored is None else worse(ratios_of(summaries), stored)
    for line in lines:
        say(f"worse than stored: {line}")
    return 1 if lines else 0
