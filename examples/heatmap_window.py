"""A window: what happens in a cell of the map within five minutes is counted by one call, in one transaction.

pgqueue worker -A examples.heatmap_window:app
"""

from __future__ import annotations

import psycopg

from pgqueue import App, BatchContext, Job

app = App()


@app.task(name="redraw_cell", batch_window="5m", batch_key="cell")
def redraw_cell(ctx: BatchContext, jobs: list[Job]) -> None:
    # All of one cell and one window. The cell's row is written once, however many rides there were.
    ctx.conn.execute(
        "INSERT INTO heatmap AS h VALUES (%s, %s) ON CONFLICT (cell) DO UPDATE SET rides = h.rides + excluded.rides",
        (jobs[0].args["cell"], len(jobs)),
    )


def end_ride(conn: psycopg.Connection, ride_id: int, cell: str) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO rides VALUES (%s, %s)", (ride_id, cell))
        redraw_cell.enqueue_many(conn, [{"cell": cell, "ride_id": ride_id}])
