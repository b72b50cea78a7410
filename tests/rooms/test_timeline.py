"""One job's life as `job_timeline` tells it: from the message it came from to the job that repeats it."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand

from pgqueue import App

pytestmark = pytest.mark.proves("P22")

BIG = 30_000


@pytest.fixture
def conn(database: Database) -> psycopg.Connection[Any]:
    return database.connect()


@pytest.fixture
def hand(conn: psycopg.Connection[Any]) -> Hand:
    hand = Hand(conn)
    hand.register()
    return hand


def one(conn: psycopg.Connection[Any], text: str, *values: Any) -> Any:
    row = conn.execute(text.encode(), values).fetchone()
    return None if row is None else row[0]


def life(conn: psycopg.Connection[Any], job_id: int) -> list[tuple[Any, ...]]:
    return conn.execute(
        "SELECT event, from_state, to_state, reason, attempt FROM pgqueue.job_timeline(%s)", [job_id]
    ).fetchall()


def test_one_job_through_everything(database: Database, conn: psycopg.Connection[Any], hand: Hand) -> None:
    message = one(conn, "SELECT pgqueue.emit('ride.completed', '{\"ride_id\": 7}', 'ride:7')")
    conn.execute("SELECT pgqueue.subscribe('ride.completed', 'pay')")
    conn.execute("SELECT pgqueue.route_messages(10)")
    job_id = one(conn, "SELECT id FROM pgqueue.jobs WHERE task = 'pay'")

    (first,) = hand.claim()
    failed = {"error_type": "ValueError", "error_message": "declined", "error_fingerprint": "f"}
    hand.settle("retry", first, **failed)
    assert hand.promote() == {"default": 1}
    (second,) = hand.claim()
    step = {"name": "charge", "result": '"ch_1"', "refused": None, "run_s": 0.5}
    hand.run("record_step", id=job_id, claim_id=second.claim_id, record_id=first.claim_id, **step)
    conn.execute("SELECT pgqueue.put_message('ride.paid', '{}', 'ride:7', job_id => %s)", [job_id])
    conn.execute("UPDATE pgqueue.workers SET status = 'dead', ended_at = clock_timestamp()")
    hand = Hand(conn)
    hand.register()
    hand.rescue(second.claim_id)
    third = hand.claim_suspect()
    assert third is not None
    assert life(conn, job_id)[-1] == ("claimed", "held", "running", "claimed", 3)
    assert one(conn, "SELECT pgqueue.cancel(%s, 'too late?', 'olga', 'cli')", job_id) == "requested"
    hand.settle("dead", third, reason="max_retries", **failed)
    assert one(conn, "SELECT pgqueue.cancel(%s, 'again', 'olga', 'cli')", job_id) == "ended"
    again = one(conn, "SELECT pgqueue.redrive(%s, 'card renewed', 'olga', 'cli')", job_id)

    assert life(conn, job_id) == [
        ("enqueued", None, None, None, None),
        ("transition", "running", "scheduled", "retry", 1),
        ("step", None, None, "charge", 2),
        ("emitted", None, None, "ride.paid", None),
        ("transition", "running", "held", "rescued", 2),
        ("operator", None, None, "cancel", None),
        ("transition", "running", "dead", "max_retries", 3),
        ("operator", None, None, "redrive", None),
    ]
    app = App(database.dsn)
    entries = app.timeline(job_id)
    app.close()
    details = {(entry.event, entry.reason): entry.detail or "" for entry in entries}
    assert details["enqueued", None] == f"from message {message}, ride.completed"
    assert details["transition", "retry"].startswith("ValueError: declined, waited ")
    assert details["transition", "rescued"].startswith("WorkerCrash: the worker process ended")
    assert details["step", "charge"] == "took 0.500 s"
    assert details["emitted", "ride.paid"].endswith("key ride:7, no relay has seen it")
    assert details["operator", "cancel"] == "too late?, via cli"
    assert details["operator", "redrive"] == f"card renewed, via cli, as job {again}"
    assert {entry.actor for entry in entries if entry.event == "operator"} == {"olga"}
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)

    # The step was recorded before: it came along.
    assert [(event, reason) for event, _, _, reason, _ in life(conn, again)] == [
        ("step", "charge"),
        ("enqueued", None),
        ("transition", "redriven"),
    ]
    (hers,) = hand.claim()
    hand.succeed(hers)
    assert life(conn, again)[-1][:4] == ("ended", "running", "succeeded", "succeeded")


def test_what_became_of_its_messages(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job_id = one(conn, "SELECT pgqueue.enqueue('pay')")
    conn.execute("SELECT pgqueue.put_message('ride.paid', '{}', job_id => %s)", [job_id])
    conn.execute("SELECT pgqueue.route_messages(10)")
    conn.execute(
        "INSERT INTO pgqueue.outbox_dead_letters (message_id, sink, uid, topic, payload, emitted_at, job_id, reason, blocks, attempts,"
        " error_type, first_failed_at, created_at) SELECT 7, 'web', gen_random_uuid(), 'ride.rated', '{}', now(), %s, 'max_retries',"
        " false, 5, 'SinkError', now(), clock_timestamp()",
        [job_id],
    )
    told = conn.execute(
        "SELECT event, reason, detail FROM pgqueue.job_timeline(%s) WHERE event IN ('emitted', 'undelivered')",
        [job_id],
    ).fetchall()
    assert [row[:2] for row in told] == [("emitted", "ride.paid"), ("undelivered", "ride.rated")]
    assert told[0][2].endswith("nobody subscribes")
    assert told[1][2] == "message 7 to web, max_retries, SinkError, after 5 tries"


@pytest.mark.proves("F45")
def test_a_timeline_reads_no_table_from_end_to_end(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SET synchronous_commit = off")
    conn.execute(
        "SELECT count(*) FROM pgqueue.enqueue_jobs('t', (SELECT array_agg('{}'::jsonb) FROM generate_series(1, %s)))",
        [BIG],
    )
    conn.execute(
        "INSERT INTO pgqueue.outbox (id, emitted_at, job_id, topic, payload) SELECT i, now(), i, 't', '{}' FROM generate_series(1, %s) i",
        [BIG],
    )
    conn.execute(
        "INSERT INTO pgqueue.outbox_dead_letters (message_id, sink, uid, topic, payload, emitted_at, job_id, reason, blocks, attempts,"
        " first_failed_at, created_at) SELECT i, 'web', gen_random_uuid(), 't', '{}', now(), i, 'gave_up', false, 1, now(), now()"
        " FROM generate_series(1, %s) i",
        [BIG],
    )
    conn.execute(
        "INSERT INTO pgqueue.operator_audit (actor, via, action, target) SELECT 'o', 'sql', 'cancel', 'job ' || i FROM generate_series(1, %s) i",
        [BIG],
    )
    conn.execute(
        "INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task)"
        " SELECT i, 'held', 'ready', 'freed', 'a', 'q', 't' FROM generate_series(1, %s) i",
        [BIG],
    )
    conn.execute("VACUUM ANALYZE")
    conn.execute("SET plan_cache_mode = force_generic_plan")
    job_id = one(conn, "SELECT max(id) FROM pgqueue.jobs")
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("SELECT pg_stat_reset()")
    assert one(conn, "SELECT count(*) FROM pgqueue.job_timeline(%s)", job_id) >= 1
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("SELECT 1")
    read_whole = conn.execute(
        "SELECT s.relname FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid WHERE s.schemaname = 'pgqueue'"
        " AND s.seq_scan > 0 AND c.reltuples > 1000"
    ).fetchall()
    assert read_whole == []
