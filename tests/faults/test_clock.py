"""Clocks that step while workers and schedulers run: the server's decides, a client's changes nothing.

Real processes under libfaketime. What fired stays fired, what runs is settled once, nothing starts early, nothing is lost.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rig.clock import HOUR_S, Clock, until_next
from rig.database import Database
from rig.proc import Proc
from rig.wait import wait_for

from pgqueue import App
from pgqueue.embedded import EmbeddedPostgres
from pgqueue.storage import migrate

FOLDER = Path(__file__).parent
WORKER = ("worker", "-A", "clockapp:app", "-c", "4")
TENS_S = 600  # the schedule of clockapp
SCHEDULER = ("scheduler", "-A", "clockapp:app")
LOADED_S = 90  # every wait ends at its condition; this only bounds a failure

# Each returns no row when its promise holds.
CHECKS = {
    "P6 every job is in exactly one place": """
        SELECT a.id FROM rig_asked a LEFT JOIN (
          SELECT id FROM pgqueue.jobs UNION ALL SELECT job_id FROM pgqueue.job_history UNION ALL SELECT job_id FROM pgqueue.dead_letter_jobs
        ) p ON p.id = a.id GROUP BY a.id HAVING count(p.id) <> 1""",
    "P3 one effect per succeeded job, none for any other": """
        SELECT coalesce(h.job_id, e.job_id) FROM (SELECT job_id FROM pgqueue.job_history WHERE state = 'succeeded') h
        FULL JOIN (SELECT job_id, count(*) AS n FROM rig_effects GROUP BY 1) e USING (job_id)
        WHERE h.job_id IS NULL OR e.n IS DISTINCT FROM 1""",
    "P4 the effect was written under the fence that settled": """
        SELECT e.job_id FROM rig_effects e JOIN pgqueue.job_history h USING (job_id) WHERE e.claim_id <> h.claim_id""",
    "P14 one job per fire": """
        SELECT job_id FROM pgqueue.schedule_runs WHERE job_id IS NOT NULL GROUP BY 1 HAVING count(*) > 1""",
}


def check(conn: psycopg.Connection[Any]) -> None:
    broken = {name: conn.execute(sql).fetchmany(5) for name, sql in CHECKS.items()}
    assert {name: rows for name, rows in broken.items() if rows} == {}


def prepare(conn: psycopg.Connection[Any]) -> None:
    conn.execute("CREATE TABLE rig_effects (job_id bigint, claim_id uuid, at timestamptz)")
    conn.execute("CREATE TABLE rig_asked (id bigint)")


def ask(
    conn: psycopg.Connection[Any], count: int = 1, *, task: str = "effect", delay: str = "0 s"
) -> list[int]:
    return [
        job_id
        for (job_id,) in conn.execute(
            "INSERT INTO rig_asked SELECT pgqueue.enqueue(%s, delay => %s::interval) FROM generate_series(1, %s) RETURNING id",
            [task, delay, count],
        )
    ]


def one(conn: psycopg.Connection[Any], sql: str, *params: Any) -> Any:
    row = conn.execute(sql, params).fetchone()
    return None if row is None else row[0]


def ended(conn: psycopg.Connection[Any], ids: list[int]) -> bool:
    done = "SELECT count(*) FROM pgqueue.job_history WHERE job_id = ANY (%s) AND state = 'succeeded'"
    return bool(one(conn, done, ids) == len(ids))


def program(dsn: str, *args: str, folder: Path, **env: str) -> Proc:
    return Proc(
        [sys.executable, "-m", "pgqueue", *args],
        env={
            "PGQUEUE_DATABASE_URL": dsn,
            "PYTHONPATH": str(FOLDER),
            "PGQUEUE_LOG_LEVEL": "warning",
            "RIG_FOLDER": str(folder),
            **env,
        },
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """Readable for the account that runs the server."""
    with tempfile.TemporaryDirectory(prefix="pgqclock-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.proves("F26s", "P3", "P4", "P6", "P8", "P9", "P14")
def test_the_servers_clock_steps_and_no_job_is_lost_doubled_or_early(folder: Path) -> None:
    clock = Clock(folder, ahead_s=until_next(TENS_S) + 60)
    with ExitStack() as stack:
        server = stack.enter_context(
            EmbeddedPostgres(settings={"fsync": "off"}, environment=clock.environment)
        )
        dsn = server.dsn()
        migrate.upgrade(dsn)
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        prepare(conn)
        workers = [stack.enter_context(program(dsn, *WORKER, folder=folder)) for _ in range(2)]
        stack.enter_context(program(dsn, *SCHEDULER, folder=folder))
        first = ask(conn, 100)
        wait_for(lambda: ended(conn, first), LOADED_S, "the first jobs")
        (running,) = ask(conn, task="long")
        wait_for((folder / "started-1").exists, LOADED_S, "a job that runs through the step")
        soon, far = ask(conn, 20, delay="30 min"), ask(conn, 20, delay="3 hours")
        fires = "SELECT count(*) FROM pgqueue.schedule_runs WHERE outcome = 'enqueued'"
        planned = "SELECT count(*) FROM pgqueue.schedules WHERE planned_revision = revision"
        wait_for(lambda: one(conn, planned) == 1, LOADED_S, "the schedule's plan")
        fired = one(conn, fires)

        # An hour ahead every lease has run out at once: workers declare each other dead, begin anew, and take the jobs back.
        clock.step_to(HOUR_S)
        assert (
            abs(one(conn, "SELECT date_part('epoch', clock_timestamp())") - time.time() - HOUR_S)
            < TENS_S + 120
        )
        now_due = ask(conn, 50)
        wait_for(lambda: ended(conn, now_due + soon), LOADED_S, "what is due an hour later")
        wait_for(lambda: ended(conn, [running]), LOADED_S, "the job that lost its worker")
        (folder / "go").touch()
        wait_for(lambda: one(conn, fires) == fired + 1, LOADED_S, "the latest of the missed fires, once")
        early = "SELECT count(*) FROM pgqueue.job_history WHERE job_id = ANY (%s) AND started_at < due_at"
        assert one(conn, early, soon) == 0
        assert one(conn, "SELECT attempts FROM pgqueue.job_history WHERE job_id = %s", running) == 2
        check(conn)

        # Two hours back, and a worker dies at that moment: its last beat lies two hours ahead, which must not keep it alive.
        workers[0].kill()
        clock.step_to(-HOUR_S)
        later = ask(conn, 100)
        wait_for(lambda: ended(conn, later), LOADED_S, "jobs after the step back")
        stale = (
            "SELECT count(*) FROM pgqueue.workers WHERE status IN ('live', 'draining') AND kind = 'worker'"
        )
        wait_for(lambda: one(conn, stale) == 1, LOADED_S, "the dead worker's row to be found")
        ahead = "SELECT count(*) FROM pgqueue.workers WHERE status IN ('live', 'draining') AND beat_at > clock_timestamp()"
        wait_for(lambda: one(conn, ahead) == 0, LOADED_S, "leases that count from the present")
        assert one(conn, fires) == fired + 1, (
            "what fired stays fired, and nothing fires until the clock has caught up"
        )
        assert (
            one(conn, "SELECT count(*) FROM pgqueue.jobs WHERE id = ANY (%s) AND state = 'scheduled'", far)
            == 20
        )
        check(conn)

        clock.step_to(3 * HOUR_S)
        wait_for(lambda: ended(conn, far), LOADED_S, "what is due three hours later")
        assert one(conn, early, far) == 0
        failing = "SELECT count(*) FROM pgqueue.upkeep_status WHERE failing"
        done = "SELECT count(*) FROM pgqueue.upkeep_duties WHERE duty = 'rollups' AND started_at > clock_timestamp() - interval '10 minutes'"
        wait_for(
            lambda: one(conn, failing) == 0 and one(conn, done) == 1, LOADED_S, "upkeep by the new clock"
        )
        assert one(conn, "SELECT count(*) FROM pgqueue.dead_letter_jobs") == 0
        check(conn)


@pytest.mark.proves("F26", "P8", "P9")
def test_the_clients_clocks_are_wrong_and_step_and_nothing_changes(database: Database, folder: Path) -> None:
    conn = database.connect()
    prepare(conn)
    ahead, behind = Clock(folder, "ahead"), Clock(folder, "behind")
    ahead.step_to(HOUR_S)
    behind.step_to(-HOUR_S)
    app = App(database.dsn)
    with ExitStack() as stack:
        for clock in (ahead, behind):
            stack.enter_context(program(database.dsn, *WORKER, folder=folder, **clock.python(FOLDER)))
        stack.enter_context(program(database.dsn, *SCHEDULER, folder=folder, **ahead.python(FOLDER)))
        wait_for(
            lambda: one(conn, "SELECT count(*) FROM pgqueue.workers WHERE status = 'live'") == 2,
            LOADED_S,
            "two workers",
        )
        app.schedules.upsert("seconds", task="tick", every="1s", misfire="all")
        producer = program(
            database.dsn,
            "enqueue",
            "effect",
            "{}",
            "--delay",
            "2s",
            "--idempotency-key",
            "from-a-wrong-clock",
            folder=folder,
            **behind.python(FOLDER),
        )
        assert stack.enter_context(producer).wait(LOADED_S) == 0
        key = "SELECT job_id FROM pgqueue.dedup_keys WHERE key = 'from-a-wrong-clock'"
        produced = one(conn, key)
        conn.execute("INSERT INTO rig_asked VALUES (%s)", [produced])
        deferred, far = ask(conn, 50, delay="2 s"), ask(conn, 5, delay="30 min")
        wait_for(lambda: ended(conn, [*deferred, produced]), LOADED_S, "deferred jobs")
        late_s = "SELECT max(date_part('epoch', started_at - due_at)), min(started_at - due_at) >= interval '0' FROM pgqueue.job_history WHERE job_id = ANY (%s)"
        row = conn.execute(late_s, [[*deferred, produced]]).fetchone()
        assert row is not None
        assert row[1], "a start before its time"
        assert row[0] < LOADED_S
        created = "SELECT abs(date_part('epoch', due_at - enqueued_at) - 2) < 0.5 FROM pgqueue.job_history WHERE job_id = %s"
        assert one(conn, created, produced), "the delay counts from the database's clock"

        # While they run, one clock jumps back by two hours and the other ahead.
        ahead.step_to(-HOUR_S)
        behind.step_to(HOUR_S)
        more = ask(conn, 100)
        wait_for(lambda: ended(conn, more), LOADED_S, "jobs after the steps")
        fires = (
            "SELECT count(*) FROM pgqueue.schedule_runs WHERE schedule = 'seconds' AND outcome = 'enqueued'"
        )
        before = one(conn, fires)
        wait_for(lambda: one(conn, fires) >= before + 3, LOADED_S, "fires after the steps")
        assert one(conn, "SELECT count(*) FROM pgqueue.schedule_runs WHERE fire_at > ticked_at") == 0
        app.schedules.pause("seconds")
        assert one(conn, "SELECT count(*) FROM pgqueue.workers WHERE status = 'dead'") == 0, (
            "no lease ran out by a client's clock"
        )
        assert one(conn, "SELECT count(*) FROM pgqueue.job_transitions WHERE reason = 'rescued'") == 0
        assert (
            one(conn, "SELECT count(*) FROM pgqueue.jobs WHERE id = ANY (%s) AND state = 'scheduled'", far)
            == 5
        )
        wait_for(
            lambda: one(conn, "SELECT count(*) FROM pgqueue.jobs WHERE state IN ('ready', 'running')") == 0,
            LOADED_S,
            "quiet",
        )
        check(conn)
    app.close()
