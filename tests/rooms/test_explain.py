"""Why is this job not running? One true reason for each case, and a command that exists and lifts it."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from rig.database import Database
from rig.hands import Hand

from pgqueue import App
from pgqueue.cli.main import main


@pytest.fixture
def told(database: Database, capsys: pytest.CaptureFixture[str]) -> Any:
    app = App(database.dsn)

    def explain(job_id: int, reason: str, *words: str, command: str | None = "") -> None:
        answer = app.explain(job_id)
        assert answer.reason == reason
        for word in (f"job {job_id}: ", *words):
            assert word in answer.sentence, answer.sentence
        if command != "":
            assert answer.command == command
        assert main(["jobs", "explain", str(job_id), "--dsn", database.dsn]) == 0
        # The seconds may have gone on meanwhile.
        assert answer.sentence.partition(", in ")[0] in capsys.readouterr().out
        if answer.command is not None and "worker -A" not in answer.command:
            # Every command that is named is one that works.
            assert main([*shlex.split(answer.command)[1:], "--dry-run", "--dsn", database.dsn]) in {0, 2}
            assert "No such command" not in capsys.readouterr().err

    yield explain
    app.close()


def job(conn: Any, options: str = "") -> int:
    row = conn.execute(f"SELECT pgqueue.put_job('t', '{{}}'{options})".encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_each_case_has_its_reason(any_database: Database) -> None:
    conn = any_database.connect()
    hand = Hand(conn)

    def reason(job_id: int) -> tuple[str, str, str | None]:
        row = conn.execute("SELECT reason, sentence, command FROM pgqueue.explain(%s)", [job_id]).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    assert reason(999)[0] == "unknown"
    ready = job(conn)
    assert reason(ready) == (
        "no_worker",
        f"job {ready}: no living worker serves queue default",
        "pgqueue worker -A … -q default",
    )
    hand.register()
    assert reason(ready)[0] == "next"
    assert reason(ready)[2] is None
    behind = job(conn)
    assert reason(behind)[:2] == ("behind", f"job {behind}: behind 1 jobs of queue default")
    first = job(conn, ", priority => 0")
    assert reason(first)[0] == "next"
    assert "behind 2 jobs" in reason(behind)[1]
    expired = job(conn, ", priority => 0, expires_at => now() - interval '1 s'")
    assert reason(expired)[0] == "expired"

    conn.execute("SELECT pgqueue.pause('default', 'a deploy', actor => 'olga')")
    assert reason(ready)[0] == "paused"
    assert "by olga: a deploy" in reason(ready)[1]
    assert reason(ready)[2] == "pgqueue queues resume default"
    conn.execute("SELECT pgqueue.resume('default')")

    later = job(conn, ", delay => interval '1 h'")
    assert reason(later)[0] == "scheduled"
    assert reason(later)[2] == f"pgqueue jobs run-now {later}"
    conn.execute("UPDATE pgqueue.jobs SET run_at = now() - interval '1 min' WHERE id = %s", [later])
    assert reason(later)[0] == "due"

    collected = job(conn, ", window_s => 3600, max_attempts => 6")
    assert reason(collected)[::2] == ("window", f"pgqueue jobs run-now {collected}")
    assert "collected with others of task t until" in reason(collected)[1]
    conn.execute("UPDATE pgqueue.jobs SET run_at = now() - interval '1 min' WHERE id = %s", [collected])
    assert reason(collected)[::2] == ("window_ended", None)
    conn.execute("SELECT pgqueue.pause('default')")
    assert reason(collected)[0] == "paused", "that is what its call waits for"
    conn.execute("SELECT pgqueue.resume('default')")

    running = next(taken for taken in hand.claim(1, queues=["default"]) if taken.id == first)
    assert reason(first)[0] == "running"
    assert f"worker {hand.worker_id[:8]} (rig, pid 1)" in reason(first)[1]
    conn.execute("SELECT pgqueue.cancel(%s)", [first])
    assert reason(first)[0] == "cancelling"
    conn.execute("UPDATE pgqueue.jobs SET cancel_requested_at = NULL WHERE id = %s", [first])
    conn.execute("UPDATE pgqueue.workers SET beat_at = now() - interval '1 h'")
    assert reason(first)[0] == "worker_gone"
    hand.settle(
        "retry",
        running,
        reason="retry",
        delay_s=60,
        error_type="ValueError",
        error_message="no",
        error_fingerprint="f",
    )
    assert reason(first)[0] == "retry"
    assert "after attempt 1 of 6 failed with ValueError" in reason(first)[1]

    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'unknown_task', ready_seq = NULL WHERE id = %s",
        [behind],
    )
    assert reason(behind)[0] == "unknown_task"
    conn.execute("UPDATE pgqueue.jobs SET hold_reason = 'suspect' WHERE id = %s", [behind])
    assert reason(behind)[2] == f"pgqueue jobs run-now {behind}"

    conn.execute("SELECT pgqueue.cancel(%s)", [behind])
    assert reason(behind)[0] == "ended"
    assert "was cancelled" in reason(behind)[1]
    hand.beat()
    conn.execute("SELECT pgqueue.run_now(%s)", [first])
    taken = next(one for one in hand.claim(10) if one.id == first)
    hand.settle(
        "dead",
        taken,
        reason="max_retries",
        error_type="ValueError",
        error_message="no",
        error_fingerprint="f",
    )
    assert reason(first)[0] == "dead"
    assert "max_retries, ValueError" in reason(first)[1]
    assert reason(first)[2] == f"pgqueue dlq redrive {first}"
    conn.execute("SELECT pgqueue.redrive(%s)", [first])
    assert reason(first)[0] == "redriven"


def test_the_command_line_and_python_say_the_same(told: Any, database: Database) -> None:
    conn = database.connect()
    told(999, "unknown", command=None)
    told(job(conn), "no_worker", "queue default")
    later = job(conn, ", delay => interval '1 h'")
    told(later, "scheduled", "scheduled until", command=f"pgqueue jobs run-now {later}")
    Hand(conn).register()
    conn.execute("SELECT pgqueue.pause('default')")
    told(job(conn), "paused", command="pgqueue queues resume default")
