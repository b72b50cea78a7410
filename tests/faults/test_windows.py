"""Real workers die while a window fills, in the middle of its call, and by one of its jobs: nothing is lost or done twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.proc import Proc
from rig.wait import wait_for

FOLDER = Path(__file__).parent


def worker(database: Database, folder: Path) -> Proc:
    return Proc(
        [sys.executable, "-m", "pgqueue", "worker", "-A", "windowapp:app", "-c", "2"],
        env={
            "PGQUEUE_DATABASE_URL": database.dsn,
            "PYTHONPATH": str(FOLDER),
            "PGQUEUE_LOG_LEVEL": "warning",
            "RIG_FOLDER": str(folder),
        },
    )


def one(conn: psycopg.Connection[Any], sql: str) -> Any:
    row = conn.execute(sql).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.proves("F60", "P3", "P4", "P6")
def test_a_window_survives_the_death_of_its_workers_at_any_point(database: Database, tmp_path: Path) -> None:
    conn = database.connect()
    conn.execute("CREATE TABLE rig_effects (job_id bigint, claim_id uuid)")
    with worker(database, tmp_path) as first:
        wait_for(
            lambda: one(conn, "SELECT count(*) FROM pgqueue.tasks") == 1, 30, what="the task to be known"
        )
        conn.execute(
            "SELECT pgqueue.enqueue('cells', jsonb_build_object('cell', i % 2, 'kills', i = 7)) FROM generate_series(1, 80) i"
        )
        # In the middle of the window.
        first.kill()
    assert one(conn, "SELECT count(*) FROM pgqueue.jobs WHERE hold_reason = 'window'") == 80
    conn.execute("UPDATE pgqueue.jobs SET run_at = date_trunc('second', clock_timestamp()) - interval '1 s'")
    with worker(database, tmp_path) as second:
        # In the middle of a call.
        second.wait(30)
    assert (tmp_path / "died").exists()
    # The call that died left nothing. The one of the other cell may have ended just before.
    ended = one(conn, "SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'")
    assert ended in {0, 30}
    assert one(conn, "SELECT count(*) FROM rig_effects") == ended
    with worker(database, tmp_path) as third:
        # One of the jobs kills its process whenever it runs: with others once, then alone until its attempts are used up.
        wait_for(
            lambda: not third.running or one(conn, "SELECT count(*) FROM pgqueue.jobs") == 0,
            60,
            what="a call with the killer",
        )
        with worker(database, tmp_path):
            wait_for(
                lambda: one(conn, "SELECT count(*) FROM pgqueue.jobs") == 0, 90, what="every job to be ended"
            )
            wait_for(
                lambda: one(conn, "SELECT count(*) FROM pgqueue.claims") == 0,
                30,
                what="every claim to be closed",
            )
    assert conn.execute(
        "SELECT reason, attempts, args->>'kills' FROM pgqueue.dead_letter_jobs"
    ).fetchall() == [("worker_crash", 5, "true")]
    assert one(conn, "SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 79
    wrong = conn.execute(
        "SELECT h.job_id, e.job_id FROM pgqueue.job_history h FULL JOIN rig_effects e USING (job_id)"
        " WHERE h.job_id IS NULL OR e.job_id IS NULL"
    ).fetchall()
    assert wrong == []
    assert one(conn, "SELECT count(*) FROM rig_effects") == 79
