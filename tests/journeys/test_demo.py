"""`pgqueue demo` as a program reads it: the last line of stdout, the exit code, and nothing left behind.

PROOF itself is tested too: each violation that can be planted is found by the count that is named after it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from rig.database import Database
from rig.people import PYTHON_PATH, python_of, stranger
from rig.proc import Proc
from rig.wait import wait_for

from pgqueue.demo.proof import Proof, is_ready, prove, score, unfinished
from pgqueue.demo.statements import SCHEMA

KEYS = {"rides", "captures", "receipts", "kills", "dead_letters", "lag_p95_s", "proof"}
CLEAN = {
    "ok": True,
    "captured_twice": 0,
    "captured_without_ledger": 0,
    "ledger_without_settlement": 0,
    "rides_lost": 0,
    "fires_not_once": 0,
    "incentives_twice": 0,
    "charged_twice": 0,
    "events_lost": 0,
    "events_out_of_order": 0,
}
BUSY = re.compile(r"captures [1-9]")
OTHERS = {"PGHOST": "nowhere.invalid", "PGOPTIONS": "-c nonsense=1", "PGQUEUE_LEASE_S": "nonsense"}


def demo(*options: str, mark: str, **variables: str) -> Proc:
    return Proc(
        [sys.executable, "-m", "pgqueue", "demo", "--headless", *options],
        env={"RIDES_DEMO_TEST_MARK": mark, **variables},
    )


def left_behind(mark: str, folder: str) -> list[str]:
    """Processes that carry our mark or serve our folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            marked = mark.encode() in (process / "environ").read_bytes()
        except OSError:
            continue  # it ended while we looked, or is another user's
        if marked or folder in command:
            found.append(f"{process.name} {command}")
    return found


def started(process: Proc) -> str:
    """Wait until payments are captured; returns the server's folder."""
    wait_for(lambda: BUSY.search(process.stderr) or not process.running, 60, "the first capture")
    folder = re.search(r"is up in (\S+?),", process.stderr)
    assert folder is not None, process.tail()
    assert Path(folder[1]).is_dir()
    return folder[1]


@pytest.mark.proves("P3", "P4", "P6", "F2", "F10")
def test_it_holds_its_proof_while_workers_are_killed() -> None:
    with demo("--duration", "8", "--chaos", "--json", mark=str(uuid.uuid4())) as process:
        assert process.wait(180) == 0, process.tail()
        result = json.loads(process.stdout.splitlines()[-1])
    assert set(result) >= KEYS
    assert result["proof"] == CLEAN
    assert result["drained"] is True
    assert result["rides"] > result["captures"] > 0
    assert result["receipts"] > 0
    assert result["kills"] > 0
    assert result["fires"] > 0
    assert result["events"] >= 2 * result["captures"]
    assert result["lag_p95_s"] > 0


def test_a_signal_ends_it_in_order_with_proof_and_nothing_stays() -> None:
    """And variables that are meant for another database do not reach it."""
    mark = str(uuid.uuid4())
    with demo("--duration", "600", mark=mark, **OTHERS) as process:
        folder = started(process)
        process.signal(signal.SIGINT)
        assert process.wait(60) == 130, process.tail()
        assert "PROOF holds (stopped early)" in process.stdout
    assert left_behind(mark, folder) == []
    assert not Path(folder).exists()


def test_killing_it_takes_server_workers_and_files_along() -> None:
    mark = str(uuid.uuid4())
    with demo("--duration", "600", mark=mark) as process:
        folder = started(process)
        process.kill()
        wait_for(lambda: not left_behind(mark, folder), 45, "the end of its processes")
        wait_for(lambda: not Path(folder).exists(), 15, f"the end of {folder}")


def test_it_runs_as_a_plain_user() -> None:
    person = stranger()
    done = subprocess.run(
        [python_of(person), "-m", "pgqueue", "demo", "--headless", "--json", "--duration", "3"],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", **PYTHON_PATH},
        timeout=180,
        **person.as_user,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["proof"] == CLEAN


def test_bad_options_are_refused() -> None:
    with Proc([sys.executable, "-m", "pgqueue", "demo", "--speed", "0"]) as process:
        assert process.wait(30) == 2
        assert "--speed" in process.stderr


VIOLATIONS = {
    "captured_twice": """
        INSERT INTO rides_demo.captures (ride_id, job_id, amount_cents) VALUES (1, 101, 900)""",
    "captured_without_ledger": """
        INSERT INTO rides_demo.captures (ride_id, job_id, amount_cents) VALUES (2, 102, 900);
        INSERT INTO rides_demo.events (uid, topic, ride_id) VALUES
          (gen_random_uuid(), 'ride.completed', 2), (gen_random_uuid(), 'ride.captured', 2)""",
    "ledger_without_settlement": """
        INSERT INTO rides_demo.ledger (job_id, ride_id, kind, amount_cents) VALUES (999, 2, 'fee', 500)""",
    "rides_lost": """
        WITH ride AS (INSERT INTO rides_demo.rides (status, amount_cents, card) VALUES ('completed', 900, 'good') RETURNING id)
        INSERT INTO rides_demo.events (uid, topic, ride_id) SELECT gen_random_uuid(), 'ride.completed', id FROM ride""",
    "fires_not_once": "DELETE FROM pgqueue.schedule_runs WHERE run_key = '7'",
    "incentives_twice": """
        INSERT INTO rides_demo.incentives (driver_id, week, job_id, amount_cents) VALUES (1, 1, 105, 150)""",
    "charged_twice": "INSERT INTO rides_demo.charges (key, ride_id, amount_cents) VALUES ('other', 1, 900)",
    "events_lost": "DELETE FROM rides_demo.events WHERE ride_id = 4",
    "events_out_of_order": """
        UPDATE rides_demo.events SET topic = CASE topic WHEN 'ride.captured' THEN 'ride.completed' ELSE 'ride.captured' END
        WHERE ride_id = 1""",
}
OTHER_WRONG_FIRES = [
    """INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, job_id, leader)
    SELECT schedule, 'again', fire_at, outcome, job_id, leader FROM pgqueue.schedule_runs WHERE run_key = '3'""",
    "INSERT INTO rides_demo.fires SELECT * FROM rides_demo.fires LIMIT 1",
    "UPDATE pgqueue.schedules SET next_fire_at = now() - interval '1 minute'",
]
# A ride in each of the places where it may be: captured, waiting, dead, and not completed at all.
SOUND = """
    INSERT INTO rides_demo.rides (status, amount_cents, card, capture_job_id) VALUES
      ('completed', 900, 'good', 101), ('confirmed', 900, 'good', NULL), ('cancelled', 900, 'good', NULL);
    INSERT INTO rides_demo.captures (ride_id, job_id, amount_cents) VALUES (1, 101, 900);
    INSERT INTO rides_demo.ledger (job_id, ride_id, kind, amount_cents) VALUES
      (101, 1, 'capture', 900), (102, 3, 'fee', 500);
    INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, finished_at, priority, attempts, max_attempts, state, queue, task, args, wait_s)
      SELECT id, now(), now(), now(), 5, 1, 6, 'succeeded', 'critical', 'capture_payment', '{}', 0.25 FROM unnest('{101,102}'::int[]) AS id;
    INSERT INTO rides_demo.rides (status, amount_cents, card, capture_job_id)
      SELECT 'completed', 900, 'good', pgqueue.enqueue('capture_payment');
    INSERT INTO rides_demo.rides (status, amount_cents, card, capture_job_id) VALUES ('completed', 900, 'declined', 103);
    INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts, first_failed_at, failed_at, created_at, job_created_at)
      VALUES (103, 'critical', 'capture_payment', '{}', 5, 'rejected', 1, 6, now(), now(), now(), now());
    INSERT INTO rides_demo.incentives (driver_id, week, job_id, amount_cents) VALUES (1, 1, 104, 150), (2, 1, 105, 150), (1, 2, 106, 150);
    INSERT INTO rides_demo.charges (key, ride_id, amount_cents, calls) VALUES ('one', 1, 900, 2), ('two', 4, 900, 1);
    INSERT INTO rides_demo.events (uid, topic, ride_id) VALUES (gen_random_uuid(), 'ride.completed', 1),
      (gen_random_uuid(), 'ride.captured', 1), (gen_random_uuid(), 'ride.completed', 1), (gen_random_uuid(), 'ride.completed', 4);
    SELECT pgqueue.emit('ride.completed', '{"ride_id": 5}');
    INSERT INTO pgqueue.schedules (name, task, every_s, starts_at, created_at, last_fire_at, next_fire_at)
      VALUES ('hourly', 'rank', 60, now() - interval '20 minutes', now() - interval '615 seconds', now() - interval '30 seconds', now()),
        ('not-yet', 'rank', 86400, now() + interval '1 second', now() - interval '615 seconds', now() - interval '615 seconds', now() + interval '1 second');
    INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, job_id, leader)
      SELECT 'hourly', n::text, now() - n * interval '1 minute', 'enqueued', 200 + n, 'a' FROM generate_series(1, 10) n;
    INSERT INTO rides_demo.fires (schedule, fire_at, job_id) SELECT schedule, fire_at, job_id FROM pgqueue.schedule_runs;
"""


def test_proof_is_silent_about_a_sound_history(database: Database) -> None:
    conn = database.connect()
    conn.execute(SCHEMA)
    conn.execute(SOUND)
    assert prove(conn) == Proof(0, 0, 0, 0, 0, 0, 0, 0, 0)
    numbers = score(conn, window_s=60)
    assert (numbers.rides, numbers.captures, numbers.dead_letters, numbers.live_jobs) == (5, 1, 1, 1)
    assert numbers.lag_p95_s == pytest.approx(0.25)
    assert unfinished(conn, within_s=1) == 2
    assert not is_ready(conn, workers=1, schedules=2, subscriptions=0)
    assert not is_ready(conn, workers=0, schedules=3, subscriptions=0)
    assert not is_ready(conn, workers=0, schedules=2, subscriptions=1)
    assert is_ready(conn, workers=0, schedules=2, subscriptions=0)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_proof_finds_what_is_planted_and_nothing_else(database: Database, name: str) -> None:
    conn = database.connect()
    conn.execute(SCHEMA)
    conn.execute(SOUND)
    conn.execute(VIOLATIONS[name])
    found = prove(conn)
    assert not found.ok
    assert {planted: getattr(found, planted) for planted in VIOLATIONS} == {
        planted: int(planted == name) for planted in VIOLATIONS
    }


@pytest.mark.parametrize("planted", OTHER_WRONG_FIRES, ids=["logged-twice", "served-twice", "forgotten"])
def test_proof_finds_each_way_in_which_a_schedule_goes_wrong(database: Database, planted: str) -> None:
    conn = database.connect()
    conn.execute(SCHEMA)
    conn.execute(SOUND)
    conn.execute(planted)
    assert prove(conn).fires_not_once >= 1


def test_a_drain_waits_for_retries_and_for_what_is_due_soon(database: Database) -> None:
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('a', delay => interval '1 hour')")
    conn.execute("SELECT pgqueue.enqueue('b', delay => interval '5 seconds')")
    conn.execute("SELECT pgqueue.enqueue('c', delay => interval '1 hour')")
    conn.execute("UPDATE pgqueue.jobs SET attempt = 1 WHERE task = 'c'")
    assert unfinished(conn, within_s=0) == 1
    assert unfinished(conn, within_s=10) == 2
