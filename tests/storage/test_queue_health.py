"""`queue_health`: what it counts, and that it reads a bounded number of rows however much there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from rig.database import Database
from rig.hands import Hand, enqueue, shared_database

LARGE = """
INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args)
  SELECT n, now(), now(), n, n % 3, 6, 'ready', 'big', 't', '{}' FROM generate_series(1, 120000) n;
INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args)
  SELECT n, now(), now() + n * interval '1 s', NULL, 5, 6, 'scheduled', 'later', 't', '{}' FROM generate_series(200001, 280000) n;
INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args, hold_reason)
  SELECT n, now(), now(), NULL, 5, 6, 'held', 'limited', 't', '{}', 'rate' FROM generate_series(300001, 360000) n;
INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, error_fingerprint, attempts, max_attempts,
    first_failed_at, failed_at, created_at, job_created_at)
  SELECT n, 'big', 't' || n % 5, '{}', 5, 'max_retries', 'f', 6, 6, now(), now(), now() - n * interval '1 min', now()
  FROM generate_series(1, 60000) n;
"""


@pytest.fixture
def conn(any_database: Database) -> psycopg.Connection[Any]:
    return any_database.connect()


@pytest.fixture(scope="module")
def large(request: pytest.FixtureRequest) -> Iterator[Database]:
    with shared_database(request, "18") as database:
        with database.connect() as conn:
            conn.execute(LARGE)
            conn.execute("VACUUM ANALYZE pgqueue.jobs")
            conn.execute("VACUUM ANALYZE pgqueue.dead_letter_jobs")
        database.close()
        yield database
        database.close()


def health(conn: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return {row["queue"]: row for row in cursor.execute("SELECT * FROM pgqueue.queue_health").fetchall()}


def age(conn: psycopg.Connection[Any], job_id: int, seconds: float) -> None:
    conn.execute(
        "UPDATE pgqueue.jobs SET run_at = clock_timestamp() - make_interval(secs => %s) WHERE id = %s",
        [seconds, job_id],
    )


def test_a_queue_nobody_ever_served_is_listed_whatever_its_jobs_wait_for(
    conn: psycopg.Connection[Any],
) -> None:
    enqueue(conn, queue="ready")
    enqueue(conn, queue="later", delay="1 hour")
    enqueue(conn, queue="held")
    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'unknown_task', ready_seq = NULL WHERE queue = 'held'"
    )
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('calm')")
    rows = health(conn)
    assert {name: row["known"] for name, row in rows.items()} == {
        "ready": False,
        "later": False,
        "held": False,
        "calm": True,
    }
    counts = {name: (row["due"], row["scheduled"], row["held"]) for name, row in rows.items()}
    assert counts == {"ready": (1, 0, 0), "later": (0, 1, 0), "held": (0, 0, 1), "calm": (0, 0, 0)}


def test_lag_is_that_of_the_job_longest_able_to_start_and_not_of_one_that_waits_by_design(
    conn: psycopg.Connection[Any],
) -> None:
    age(conn, enqueue(conn, queue="q"), 5)
    age(conn, enqueue(conn, queue="q", priority=9), 50)
    enqueue(conn, queue="q", delay="1 hour")
    limited = enqueue(conn, queue="q")
    age(conn, limited, 500)
    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'rate', ready_seq = NULL WHERE id = %s",
        [limited],
    )
    row = health(conn)["q"]
    assert 50 <= row["lag_s"] < 80
    assert 500 <= row["limited_lag_s"] < 530
    assert (row["due"], row["held"], row["scheduled"]) == (2, 1, 1)


def test_a_job_whose_promotion_does_not_come_is_due_and_late(conn: psycopg.Connection[Any]) -> None:
    job = enqueue(conn, queue="q", delay="1 hour")
    assert (health(conn)["q"]["due"], health(conn)["q"]["lag_s"]) == (0, 0)
    age(conn, job, 90)
    row = health(conn)["q"]
    assert row["due"] == 1
    assert 90 <= row["lag_s"] < 120


def test_what_runs_is_counted_apart_from_what_is_due(conn: psycopg.Connection[Any]) -> None:
    for _ in range(5):
        enqueue(conn, queue="q")
    hand = Hand(conn)
    hand.register(queues=["q"])
    taken = hand.claim(2, queues=["q"])
    row = health(conn)["q"]
    assert (row["due"], row["running"], row["workers_live"], row["slots"]) == (3, 2, 1, 1)
    hand.succeed(*taken)
    row = health(conn)["q"]
    assert (row["due"], row["running"]) == (3, 0)


def test_a_pause_that_is_over_is_none(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT pgqueue.pause('q', until => clock_timestamp() + interval '1 hour')")
    assert health(conn)["q"]["paused"]
    conn.execute("UPDATE pgqueue.queues SET paused_until = clock_timestamp() - interval '1 s'")
    assert not health(conn)["q"]["paused"]


def test_by_hand_wins_over_configured_wins_over_built_in(conn: psycopg.Connection[Any]) -> None:
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('q')")

    def promised() -> tuple[Any, ...]:
        row = health(conn)["q"]
        return (row["sla_s"], row["sla_target"], row["tier"], row["dead_letter_limit"], row["owner"])

    assert promised() == (None, 0.99, "standard", 0, None)
    configured = {"sla_s": 5, "tier": "critical", "dead_letter_limit": 3, "owner": "pay"}
    conn.execute("UPDATE pgqueue.queues SET defaults = %s", [json.dumps(configured)])
    assert promised() == (5, 0.99, "critical", 3, "pay")
    conn.execute("""SELECT pgqueue.set_queue('q', '{"sla_s": 2.5, "owner": "rides"}')""")
    assert promised() == (2.5, 0.99, "critical", 3, "rides")
    conn.execute("""SELECT pgqueue.set_queue('q', '{"sla_s": null}')""")
    assert promised() == (5, 0.99, "critical", 3, "rides")


def test_set_queue_says_what_it_did_and_writes_it_down_once(conn: psycopg.Connection[Any]) -> None:
    def set_queue(attributes: str) -> str:
        row = conn.execute("SELECT pgqueue.set_queue('q', %s, 'why', 'olga', 'cli')", [attributes]).fetchone()
        assert row is not None
        return str(row[0])

    assert set_queue('{"sla_s": 5}') == "created"
    assert set_queue('{"sla_s": 5}') == "same"
    assert set_queue('{"sla_s": 7}') == "changed"
    audit = conn.execute(
        "SELECT actor, via, action, target, reason, detail FROM pgqueue.operator_audit ORDER BY id"
    ).fetchall()
    assert [row[:5] for row in audit] == [("olga", "cli", "set", "queue q", "why")] * 2
    assert audit[1][5] == {"to": {"sla_s": 7}, "was": {"sla_s": 5}}
    for bad in ("{}", '{"paused_at": "now"}', '{"name": "x"}'):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            set_queue(bad)
    for bad in ('{"sla_s": -1}', '{"tier": "vip"}', '{"sla_target": 1}', '{"owner": ""}'):
        with pytest.raises(psycopg.errors.CheckViolation):
            set_queue(bad)


def test_a_pause_until_a_moment_that_has_passed_is_refused(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="until: lies in the past"):
        conn.execute("SELECT pgqueue.pause('q', until => clock_timestamp() - interval '1 s')")
    assert health(conn) == {}


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from nodes(child)


@pytest.mark.proves("P23")
@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_it_reads_a_bounded_number_of_rows_of_260000_jobs_and_60000_dead_letters(
    large: Database, mode: str
) -> None:
    conn = large.connect()
    conn.execute(f"SET plan_cache_mode = {mode}")
    conn.execute("PREPARE asked AS SELECT * FROM pgqueue.queue_health")
    row = conn.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked").fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    walked = {
        f"{node['Node Type']} {node.get('Relation Name', '')}": node["Actual Rows"] * node["Actual Loops"]
        + node.get("Rows Removed by Filter", 0) * node["Actual Loops"]
        for node in nodes(plan)
        if node.get("Relation Name") in {"jobs", "dead_letter_jobs"}
        or node["Node Type"] == "Bitmap Index Scan"
    }
    assert not [name for name in walked if name.startswith("Seq Scan")], walked
    assert max(walked.values()) <= 41_000, walked  # 3 queues, each counted to 10,001; one window of 20,001
    found = health(conn)
    assert (found["big"]["due"], found["big"]["due_capped"]) == (10_001, True)
    assert (found["later"]["scheduled"], found["later"]["scheduled_capped"]) == (20_001, True)
    assert (found["limited"]["held"], found["limited"]["due"]) == (10_001, 0)
    assert (found["big"]["dead_waiting"], found["big"]["dead_recent"]) == (10_001, 14)
