"""The handlers that the benchmark's worker processes run: `pgqueue worker -A pgqueue.bench.app:app`."""

from __future__ import annotations

import asyncio
from typing import Any

from pgqueue import App, Job, JobContext

app = App()
_EFFECT = "INSERT INTO pgqueue_bench.effects (job_id) VALUES (%s)"


@app.task(name="noop")
def noop(n: int, note: str) -> None:
    """Does nothing."""


@app.task(name="effect")
def effect(ctx: JobContext, n: int, note: str) -> None:
    """One row in the job's transaction."""
    ctx.conn.execute(_EFFECT, (ctx.job.id,))


@app.task(name="group", group_commit=32)
def group(ctx: JobContext, n: int, note: str) -> None:
    """One row each, up to 32 jobs to a commit."""
    ctx.conn.execute(_EFFECT, (ctx.job.id,))


@app.task(name="batch", batch=500)
def batch(ctx: JobContext, jobs: list[Job]) -> None:
    """One row for each of up to 500 jobs in one statement."""
    ctx.conn.execute(
        "INSERT INTO pgqueue_bench.effects (job_id) SELECT unnest(%s::bigint[])", ([job.id for job in jobs],)
    )


@app.task(name="sleep")
async def sleep(n: int, note: str) -> None:
    """Waits a millisecond on the loop."""
    await asyncio.sleep(0.001)


@app.task(name="latency")
def latency(ctx: Any, n: int, note: str) -> None:
    """Nothing to do: its start is what is measured, by the database's clock."""
