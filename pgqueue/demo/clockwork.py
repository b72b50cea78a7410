"""What comes by itself or in batches: expiring promo codes, rankings, surge prices, weekly incentives, heatmaps.

Each scheduled handler notes which fire it served, in its job's transaction: PROOF says that none was served twice
or forgotten, whatever became of the schedulers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pgqueue import Job, JobContext
from pgqueue.demo.story import MIDNIGHT, app, in_story

INCENTIVE_CENTS: Final = 150  # per ride


@app.schedule(every=in_story(days=1), starts_at=MIDNIGHT, misfire="all", name="promo-expiry")
@app.task(name="expire_promos", queue="batch", timeout="10s")
def expire_promos(ctx: JobContext) -> dict[str, int]:
    """Scheduled, at midnight: promo codes of yesterday are worth nothing any more."""
    _note_fire(ctx)
    expired = ctx.conn.execute(
        "UPDATE rides_demo.promos SET expired_by = %s WHERE expired_by IS NULL AND last_day < current_date",
        (ctx.job.id,),
    ).rowcount
    return {"expired": expired}


@app.schedule(every=in_story(hours=1), starts_at=MIDNIGHT, misfire="all", name="driver-ranking")
@app.task(name="rank_drivers", queue="batch", timeout="10s")
def rank_drivers(ctx: JobContext) -> None:
    """Scheduled, every hour: who drove most comes first."""
    _note_fire(ctx)
    ctx.conn.execute(
        "UPDATE rides_demo.drivers d SET place = r.place FROM ("
        " SELECT id, rank() OVER (ORDER BY rides DESC) AS place FROM rides_demo.drivers) r WHERE r.id = d.id"
    )


@app.schedule(every=in_story(minutes=1), starts_at=MIDNIGHT, misfire="all", name="surge-prices")
@app.task(name="set_surge_price", queue="batch", timeout="10s")
def set_surge_price(ctx: JobContext) -> None:
    """Scheduled, every minute: the more riders wait, the dearer a ride."""
    _note_fire(ctx)
    ctx.conn.execute(
        "INSERT INTO rides_demo.surges (job_id, waiting) SELECT %s, count(*) FROM rides_demo.rides WHERE status = 'requested'",
        (ctx.job.id,),
    )


@app.schedule(
    every=in_story(weeks=1), starts_at=MIDNIGHT + in_story(minutes=5), misfire="all", name="driver-incentives"
)
@app.task(name="plan_incentives", queue="batch", timeout="30s")
def plan_incentives(ctx: JobContext) -> dict[str, int]:
    """Scheduled, every week: a job per driver, enqueued in the transaction that closes their week."""
    _note_fire(ctx)
    closed = ctx.conn.execute(
        "UPDATE rides_demo.drivers SET week = week + 1, rides_paid = rides WHERE rides > rides_paid"
        " RETURNING id, week, (SELECT o.rides - o.rides_paid FROM rides_demo.drivers o WHERE o.id = drivers.id)"
    ).fetchall()
    for driver_id, week, rides in closed:
        ctx.enqueue(pay_incentive, driver_id=driver_id, week=week, rides=rides)
    return {"drivers": len(closed)}


@app.task(name="pay_incentive", queue="batch", batch=100, timeout="30s")
def pay_incentive(ctx: JobContext, jobs: Sequence[Job]) -> None:
    """Batch: up to a hundred drivers are paid by one statement, in one transaction."""
    ctx.conn.cursor().executemany(
        "INSERT INTO rides_demo.incentives (driver_id, week, job_id, amount_cents) VALUES (%s, %s, %s, %s)",
        [
            (job.args["driver_id"], job.args["week"], job.id, job.args["rides"] * INCENTIVE_CENTS)
            for job in jobs
        ],
    )


@app.on("ride.completed")
@app.task(
    name="refresh_heatmap",
    queue="batch",
    batch_window=in_story(minutes=5),
    batch_key="cell",
    timeout="30s",
)
def refresh_heatmap(ctx: JobContext, jobs: Sequence[Job]) -> None:
    """Batch, by window: the rides that ended in one cell within five minutes warm it up by one statement."""
    ctx.conn.execute(
        "INSERT INTO rides_demo.heatmap (cell, rides) VALUES (%s, %s)"
        " ON CONFLICT (cell) DO UPDATE SET rides = heatmap.rides + excluded.rides, calls = heatmap.calls + 1",
        (jobs[0].args["cell"], len(jobs)),
    )


def _note_fire(ctx: JobContext) -> None:
    headers = ctx.job.headers
    ctx.conn.execute(
        "INSERT INTO rides_demo.fires (schedule, fire_at, job_id) VALUES (%s, %s, %s)",
        (headers["pgqueue.schedule"], headers["pgqueue.fire_at"], ctx.job.id),
    )
