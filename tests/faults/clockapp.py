"""The tasks of the clock tests, run by real worker processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pgqueue import App, JobContext, Retry

app = App()
EFFECT = "INSERT INTO rig_effects (job_id, claim_id, at) VALUES (%s, pg_catalog.current_setting('pgqueue.claim')::uuid, pg_catalog.clock_timestamp())"


@app.schedule(every="10m", name="tens", misfire="latest")
@app.task(name="tick", queue="ticks")
def tick(ctx: JobContext) -> None:
    """What a schedule fires."""
    ctx.conn.execute(EFFECT, (ctx.job.id,))


@app.task(name="effect", retry=Retry(max_retries=10, initial_delay="50ms"))
def effect(ctx: JobContext) -> None:
    """One row per job, in the job's transaction."""
    ctx.conn.execute(EFFECT, (ctx.job.id,))


@app.task(name="long", retry=Retry(max_retries=10))
def long(ctx: JobContext) -> None:
    """Runs, at its first attempt, until it is told to end."""
    ctx.conn.execute(EFFECT, (ctx.job.id,))
    folder = Path(os.environ["RIG_FOLDER"])
    (folder / f"started-{ctx.job.attempt}").touch()
    while ctx.job.attempt == 1 and not (folder / "go").exists():
        time.sleep(0.01)
