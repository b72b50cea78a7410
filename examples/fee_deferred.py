"""A deferred job: a fee after five minutes, unless the driver confirms or the rider cancels before.

pgqueue worker -A examples.fee_deferred:app
"""

from datetime import timedelta

import psycopg

from pgqueue import App, JobContext

app = App()


@app.task(name="charge_cancellation_fee")
def charge_cancellation_fee(ctx: JobContext, ride_id: int) -> dict[str, bool]:
    # The state of the world is looked at when the job runs, in the transaction that charges.
    found = ctx.conn.execute(
        "UPDATE rides SET status = 'expired' WHERE id = %s AND status = 'requested'", (ride_id,)
    )
    return {"charged": found.rowcount == 1}


def book(conn: psycopg.Connection, ride_id: int, patience: timedelta = timedelta(minutes=5)) -> None:
    with conn.transaction():
        job = charge_cancellation_fee.using(delay=patience).enqueue(conn, ride_id=ride_id)
        conn.execute("INSERT INTO rides VALUES (%s, 'requested', %s)", (ride_id, job.id))


def cancel(conn: psycopg.Connection, ride_id: int) -> None:
    with conn.transaction():
        row = conn.execute(
            "UPDATE rides SET status = 'cancelled' WHERE id = %s RETURNING fee_job_id", (ride_id,)
        ).fetchone()
        # In the same transaction: either the ride and its fee are both gone, or neither.
        conn.execute("SELECT pgqueue.cancel(%s, 'the rider cancelled in time')", row)
