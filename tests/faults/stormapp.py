"""The tasks of the fault tests, run by real worker processes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from pgqueue import App, JobContext, Retry

app = App()
EFFECT = "INSERT INTO rig_effects (job_id, claim_id, n) VALUES (%s, pg_catalog.current_setting('pgqueue.claim')::uuid, %s)"


@app.task(name="flaky", retry=Retry(max_retries=40, initial_delay="20ms", max_delay="300ms"))
def flaky(ctx: JobContext, n: int) -> None:
    """Writes its effect, and often fails after that."""
    ctx.conn.execute(EFFECT, (ctx.job.id, n))
    time.sleep(0.001)
    if random.random() < 0.2:
        raise ValueError("fails after its effect")


@app.task(name="killer", retry=Retry(max_retries=2, initial_delay="20ms"))
def killer(ctx: JobContext, n: int) -> None:
    """Takes its process along."""
    os._exit(7)


@app.task(name="good", retry=Retry(max_retries=2, initial_delay="20ms"))
def good(ctx: JobContext, n: int) -> None:
    """An innocent neighbour."""
    ctx.conn.execute(EFFECT, (ctx.job.id, n))
    time.sleep(0.005)


@app.task(name="sleeper", retry=Retry(max_retries=5))
def sleeper(ctx: JobContext) -> None:
    """Writes its effect, then waits for a file: long enough to be stopped past its lease."""
    ctx.conn.execute(EFFECT, (ctx.job.id, ctx.job.attempt))
    folder = Path(os.environ["RIG_FOLDER"])
    (folder / f"started-{ctx.job.attempt}").touch()
    if ctx.job.attempt == 1:
        while not (folder / "go").exists():
            time.sleep(0.01)
