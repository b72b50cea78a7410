"""The README's application, as a module: `pgqueue worker -A examples.quickstart:app -q critical`."""

import psycopg

from pgqueue import App, JobContext, Retry

app = App()  # PGQUEUE_DATABASE_URL, DATABASE_URL, or libpq's PG* variables


@app.task(queue="critical", retry=Retry(max_retries=5, initial_delay="2s", max_delay="5m"), timeout="30s")
def capture_payment(ctx: JobContext, ride_id: int, amount_cents: int) -> dict[str, int]:
    ctx.conn.execute("INSERT INTO captures (ride_id, amount_cents) VALUES (%s, %s)", (ride_id, amount_cents))
    return {"captured": amount_cents}  # kept as the job's result


def complete_ride(dsn: str, ride_id: int) -> None:
    with psycopg.connect(dsn) as conn:  # your own transaction
        conn.execute("UPDATE rides SET status = 'completed' WHERE id = %s", (ride_id,))
        capture_payment.using(idempotency_key=f"ride:{ride_id}:capture").enqueue(
            conn, ride_id=ride_id, amount_cents=1250
        )
