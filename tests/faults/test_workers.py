"""Real worker processes, killed, stopped and poisoned: one effect per succeeded job, nothing lost, innocents unharmed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.proc import Proc
from rig.wait import wait_for

FOLDER = Path(__file__).parent
KILLS_MAX = 16
# Twice the promised five seconds: the machine is shared with the tests themselves.
RESUMES_S = 10

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
    "P22 every dead letter has its transition": """
        SELECT d.job_id FROM pgqueue.dead_letter_jobs d
        WHERE NOT EXISTS (SELECT FROM pgqueue.job_transitions t WHERE t.job_id = d.job_id AND t.to_state = 'dead')""",
}


@pytest.fixture
def conn(database: Database) -> psycopg.Connection[Any]:
    conn = database.connect()
    conn.execute("CREATE TABLE rig_effects (job_id bigint, claim_id uuid, n int)")
    conn.execute("CREATE TABLE rig_asked (id bigint)")
    return conn


def ask(conn: psycopg.Connection[Any], task: str, count: int) -> None:
    conn.execute(
        "INSERT INTO rig_asked SELECT pgqueue.enqueue(%s, jsonb_build_object('n', i)) FROM generate_series(1, %s) i",
        (task, count),
    )


def check(conn: psycopg.Connection[Any]) -> None:
    broken = {name: conn.execute(sql).fetchmany(5) for name, sql in CHECKS.items()}
    assert {name: rows for name, rows in broken.items() if rows} == {}


def worker(database: Database, *options: str, **env: str) -> Proc:
    return Proc(
        [sys.executable, "-m", "pgqueue", "worker", "-A", "stormapp:app", *options],
        env={
            "PGQUEUE_DATABASE_URL": database.dsn,
            "PYTHONPATH": str(FOLDER),
            "PGQUEUE_LOG_LEVEL": "warning",
            **env,
        },
    )


@contextmanager
def fleet(database: Database, size: int, *options: str, **env: str) -> Iterator[list[Proc]]:
    with ExitStack() as stack:
        yield [stack.enter_context(worker(database, *options, **env)) for _ in range(size)]


def one(conn: psycopg.Connection[Any], sql: str) -> Any:
    row = conn.execute(sql).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.proves("P3", "P4", "P6", "P9", "F2", "F49")
def test_workers_are_killed_every_second_and_each_success_has_one_effect(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    dice = random.Random(20261124)
    ask(conn, "flaky", 3000)
    # Innocents may lose attempts to kills; the policy of the task allows for it, the catalogue tells the rescuers.
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(database, "-c", "4")) for _ in range(3)]
        kills = 0
        while one(conn, "SELECT count(*) FROM pgqueue.jobs") and kills < KILLS_MAX:
            # The storm's own rhythm; nothing is waited for.
            time.sleep(1)
            victim = dice.randrange(len(workers))
            if dice.random() < 0.3:  # with the processes that it started for suspects
                os.killpg(workers[victim].pid, signal.SIGKILL)
            else:
                workers[victim].popen.kill()
            workers[victim].popen.wait(10)
            kills += 1
            workers[victim] = stack.enter_context(worker(database, "-c", "4"))
        wait_for(
            lambda: one(conn, "SELECT count(*) FROM pgqueue.jobs") == 0,
            90,
            what="the calm to finish the work",
        )
        assert kills > 2
    check(conn)
    assert one(conn, "SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 3000
    assert one(conn, "SELECT count(*) FROM pgqueue.job_transitions WHERE reason = 'rescued'") > 0


@pytest.mark.proves("P6", "F5", "F46")
def test_a_job_that_kills_its_process_dies_alone(database: Database, conn: psycopg.Connection[Any]) -> None:
    ask(conn, "good", 100)
    ask(conn, "killer", 1)
    ask(conn, "good", 100)
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(database, "-c", "4")) for _ in range(2)]

        def supervised() -> bool:
            for number, process in enumerate(workers):
                if not process.running:
                    workers[number] = stack.enter_context(worker(database, "-c", "4"))
            return bool(one(conn, "SELECT count(*) FROM pgqueue.jobs") == 0)

        wait_for(supervised, 60, what="every job to end")
    assert conn.execute(
        "SELECT task, reason, attempts, error_type FROM pgqueue.dead_letter_jobs"
    ).fetchall() == [("killer", "worker_crash", 3, "WorkerCrash")]
    assert (
        one(conn, "SELECT count(*) FROM pgqueue.job_history WHERE task = 'good' AND state = 'succeeded'")
        == 200
    )
    check(conn)


@pytest.mark.proves("P4", "F3")
def test_a_worker_stopped_past_its_lease_commits_nothing(
    database: Database, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    env = {
        "RIG_FOLDER": str(tmp_path),
        "PGQUEUE_HEARTBEAT_S": "1s",
        "PGQUEUE_LEASE_S": "3s",
        "PGQUEUE_TCP_USER_TIMEOUT_S": "2s",
    }
    ask(conn, "sleeper", 1)
    conn.execute("UPDATE pgqueue.jobs SET args = '{}'")
    with worker(database, "-c", "2", **env) as first:
        wait_for((tmp_path / "started-1").exists, 20, what="the first run")
        first.freeze()
        with worker(database, "-c", "2", **env) as second:
            wait_for(
                lambda: one(conn, "SELECT count(*) FROM pgqueue.job_history") == 1,
                30,
                what="the second run to succeed",
            )
            assert (tmp_path / "started-2").exists()
            (tmp_path / "go").touch()
            first.thaw()
            wait_for(lambda: "claim.lost" in first.stderr, 20, what="the loss to be reported")
            assert second.running
    assert conn.execute("SELECT job_id, n FROM rig_effects").fetchall() == [
        (one(conn, "SELECT id FROM rig_asked"), 2)
    ]
    check(conn)


@pytest.mark.proves("P1", "P7", "P9", "F11", "F12", "F43")
def test_the_server_is_restarted_under_load(database: Database, conn: psycopg.Connection[Any]) -> None:
    server = database.server
    ask(conn, "flaky", 1500)
    with fleet(database, 2, "-c", "4") as workers:
        # A worker that finds no server at its start ends at once with exit code 5; both must be past that point.
        wait_for(
            lambda: one(conn, "SELECT count(*) FROM pgqueue.workers") == 2,
            30,
            what="both workers to register",
        )
        for mode in ("immediate", "immediate", "fast"):
            before = one(conn, "SELECT count(*) FROM pgqueue.job_history")
            wait_for(
                lambda before=before: one(conn, "SELECT count(*) FROM pgqueue.job_history") > before + 50,
                30,
                what="work under way",
            )
            server.restart(mode)
            conn = database.connect()
            back = one(conn, "SELECT count(*) FROM pgqueue.job_history")
            wait_for(
                lambda back=back: one(conn, "SELECT count(*) FROM pgqueue.job_history") > back,
                RESUMES_S,
                what="work to resume",
            )
        wait_for(lambda: one(conn, "SELECT count(*) FROM pgqueue.jobs") == 0, 90, what="everything to end")
        assert all(process.running for process in workers)
    check(conn)
    assert one(conn, "SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 1500


def test_the_checks_find_what_is_planted(database: Database, conn: psycopg.Connection[Any]) -> None:
    """A rig that has never failed proves nothing."""
    conn.execute("INSERT INTO rig_asked VALUES (1000001)")
    with pytest.raises(AssertionError, match="P6"):
        check(conn)
    conn.execute("DELETE FROM rig_asked")
    conn.execute("INSERT INTO rig_effects VALUES (5, gen_random_uuid(), 1)")
    with pytest.raises(AssertionError, match="P3"):
        check(conn)
    conn.execute("DELETE FROM rig_effects")
    conn.execute(
        "INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts, first_failed_at, failed_at,"
        " created_at, job_created_at) VALUES (7, 'q', 't', '{}', 5, 'x', 1, 1, now(), now(), now(), now())"
    )
    with pytest.raises(AssertionError, match="P22"):
        check(conn)
