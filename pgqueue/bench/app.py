"""The handlers that the benchmark's worker processes run: `pgqueue worker -A pgqueue.bench.app:app`.

Where PGQUEUE_BENCH_CLAIMS names a file, the times of the claim statements are left there when the worker stops.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, Final

from pgqueue import App, Job, JobContext
from pgqueue.core.events import ClaimTaken, WorkerChanged

CLAIMS_VARIABLE: Final = "PGQUEUE_BENCH_CLAIMS"
_EFFECT = "INSERT INTO pgqueue_bench.effects (job_id) VALUES (%s)"

app = App()


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


class _ClaimTimes:
    """Keeps how long each claim that took something lasted, and writes it down at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: list[float] = []

    def __call__(self, event: object) -> None:
        if isinstance(event, ClaimTaken):
            if event.jobs:
                self._seconds.append(event.seconds)
        elif isinstance(event, WorkerChanged) and event.status == "stopped":
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._seconds) + "\n")


if CLAIMS_VARIABLE in os.environ:
    app.events.listen(_ClaimTimes(Path(os.environ[CLAIMS_VARIABLE])))
