"""A task with a window whose worker dies in the middle of its first call, and one that kills whoever runs it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pgqueue import App, Job, JobContext, Retry

app = App()
EFFECT = "INSERT INTO rig_effects (job_id, claim_id) VALUES (%s, pg_catalog.current_setting('pgqueue.claim')::uuid)"


@app.task(
    name="cells",
    batch=30,
    batch_window="1h",
    batch_key="cell",
    retry=Retry(max_retries=4, initial_delay="20ms"),
)
def cells(ctx: JobContext, jobs: list[Job]) -> None:
    """Writes its effects; the first call then dies before it is settled."""
    ctx.conn.cursor().executemany(EFFECT, [(job.id,) for job in jobs])
    died = Path(os.environ["RIG_FOLDER"], "died")
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if any(job.args.get("kills") for job in jobs):
        os.kill(os.getpid(), signal.SIGKILL)
