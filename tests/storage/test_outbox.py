"""The outbox's statements: their plans with 100,000 messages in line, and a message's life on both servers."""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import pytest
from rig.database import Database

from pgqueue.storage.statements import STATEMENTS, statement

IN_LINE = 100_000
PER_KEY = 10
NEW = 600
PARKED = 20_000
CLAIM = str(uuid.uuid4())

FILL = f"""
INSERT INTO pgqueue.outbox (id, emitted_at, pending, state, topic, key, payload)
  SELECT nextval('pgqueue.outbox_seq'), now(), 1, 'routed', 'ride.t' || i %% 20, 'k' || i / {PER_KEY}, '{{"n": 1}}' FROM generate_series(0, {IN_LINE} - 1) i;
INSERT INTO pgqueue.outbox_lanes (sink, lane, due_at)
  SELECT DISTINCT 's' || (o.id %% 2)::text, '=' || o.key, now() FROM (SELECT min(id) AS id, key FROM pgqueue.outbox GROUP BY key) o;
INSERT INTO pgqueue.outbox_deliveries (sink, lane, message_id)
  SELECT l.sink, l.lane, o.id FROM pgqueue.outbox o JOIN pgqueue.outbox_lanes l ON l.lane = '=' || o.key;
INSERT INTO pgqueue.outbox (id, emitted_at, state, topic, payload)
  SELECT nextval('pgqueue.outbox_seq'), now() - interval '40 days', 'parked', 'nobody', '{{}}' FROM generate_series(1, {PARKED});
SELECT FROM pgqueue.put_subscriptions('', '[{{"pattern": "ride.*", "sink": "s0"}}, {{"pattern": "ride.*", "sink": "task:t", "task": "t"}}]');
INSERT INTO pgqueue.outbox (id, emitted_at, topic, key, payload)
  SELECT nextval('pgqueue.outbox_seq'), now(), 'ride.x', 'k' || i, '{{"n": 1}}' FROM generate_series(1, {NEW}) i;
""".replace("%%", "%")


@pytest.fixture
def full(database: Database) -> psycopg.Connection[Any]:
    conn = database.connect()
    conn.execute(FILL.encode())
    conn.execute("VACUUM (ANALYZE)")
    conn.execute("SET plan_cache_mode = force_generic_plan")
    return conn


def measured(conn: psycopg.Connection[Any], name: str, parameters: dict[str, Any]) -> tuple[int, set[str]]:
    """Blocks touched, what functions touch included, and which of our tables were read from end to end."""
    conn.execute("SELECT pg_stat_force_next_flush()")
    before = scans(conn)
    conn.execute("BEGIN")
    row = conn.execute(
        b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement(name), parameters, prepare=False
    ).fetchone()
    conn.execute("COMMIT")
    conn.execute("SELECT pg_stat_force_next_flush()")
    assert row is not None
    plan = (row[0] if not isinstance(row[0], str) else json.loads(row[0]))[0]["Plan"]
    after = scans(conn)
    walked = {table for table, count in after.items() if count > before.get(table, 0)}
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"]), walked


def scans(conn: psycopg.Connection[Any]) -> dict[str, int]:
    conn.execute("SELECT pg_stat_clear_snapshot()")
    rows = conn.execute(
        "SELECT relname::text, seq_scan FROM pg_stat_user_tables WHERE schemaname = 'pgqueue'"
    )
    return dict(rows.fetchall())


BIG = {"outbox", "outbox_lanes", "outbox_deliveries", "outbox_dead_letters", "jobs"}
CLAIMING = {
    "sinks": ["s0", "s1"],
    "wants": [8, 8],
    "run": 20,
    "lease_s": 60,
    "claim_id": CLAIM,
    "relay_id": CLAIM,
}
SETTLING = {
    "sink": "s0",
    "claim_id": CLAIM,
    "failed": None,
    "fate": None,
    "counts": True,
    "reason": None,
    "delay_s": 0,
    "error_type": None,
    "error_message": None,
    "keep_s": None,
}


@pytest.mark.proves("F45", "P17")
def test_routing_and_delivering_read_no_table_from_end_to_end(full: psycopg.Connection[Any]) -> None:
    blocks, walked = measured(full, "route_messages", {"batch": 500, "careful": False})
    assert not walked & BIG
    assert blocks < 500 * 80
    blocks, walked = measured(full, "claim_lanes", CLAIMING)
    assert not walked & BIG
    assert blocks < 4_000
    row = full.execute(
        "SELECT l.lane, array_agg(d.message_id) FROM pgqueue.outbox_lanes l JOIN pgqueue.outbox_deliveries d USING (sink, lane)"
        " WHERE l.claim_id = %s AND l.sink = 's0' GROUP BY l.lane LIMIT 1",
        [CLAIM],
    ).fetchone()
    assert row is not None
    blocks, walked = measured(full, "settle_lane", {**SETTLING, "lane": row[0], "delivered": row[1]})
    assert not walked & BIG
    assert blocks < 500
    held = {"sinks": ["s0"], "lanes": [row[0]], "claims": [CLAIM], "lease_s": 60}
    assert not measured(full, "renew_lanes", held)[1] & BIG
    assert not measured(full, "outbox_drained", {"sinks": ["s0", "s1"]})[1] & BIG
    blocks, walked = measured(full, "prune_parked", {"keep_days": 30, "batch": 1000})
    assert not walked & BIG
    assert blocks < 1000 * 15


@pytest.mark.proves("P23")
def test_what_people_look_at_reads_a_window(full: psycopg.Connection[Any]) -> None:
    window = {"after": 50_000, "upto": 55_000, "state": None, "sink": None, "topic": None}
    assert not measured(full, "list_messages", window)[1] & BIG
    assert not measured(full, "messages_window", {"after": 50_000})[1] & BIG
    dead = {"after": 0, "after_sink": "", "sink": None, "topic": None, "limit": 50}
    assert not measured(full, "list_dead_messages", dead)[1] & (BIG - {"outbox_dead_letters"})
    assert not measured(full, "outbox_status", {})[1] & {"outbox", "outbox_deliveries"}
    for name in ("replay_messages", "skip_messages"):
        deed = {"ids": [60_000], "sink": None, "reason": None, "actor": "a", "via": "cli"}
        blocks, walked = measured(full, name, deed)
        assert not walked & {"outbox", "outbox_deliveries"}, name
        assert blocks < 1_000, name


@pytest.mark.proves("P17")
def test_a_messages_life_is_the_same_on_both_servers(any_database: Database) -> None:
    conn = any_database.connect()
    conn.execute('SELECT FROM pgqueue.put_subscriptions(\'\', \'[{"pattern": "*", "sink": "s0"}]\')')
    conn.execute("SELECT pgqueue.subscribe('ride.*', 't')")
    ids = []
    for key in ("k", "k", None):
        row = conn.execute(
            "SELECT pgqueue.emit('ride.x', '{\"n\": 1}', %s, '{\"h\": \"x\"}')", [key]
        ).fetchone()
        assert row is not None
        ids.append(row[0])
    conn.execute("BEGIN")
    row = conn.execute("SELECT pgqueue.emit_receipt(pgqueue.emit('other', '{}'))").fetchone()
    conn.execute("ROLLBACK")
    assert conn.execute("SELECT pgqueue.emit_outcome(%s)", row).fetchone() == ("absent",)
    routed = conn.execute(STATEMENTS["route_messages"], {"batch": 10, "careful": True}).fetchall()
    assert [row[:6] for row in routed] == [("ride.x", 3, 3, 3, 0, 0)]
    rows = conn.execute(STATEMENTS["claim_lanes"], CLAIMING).fetchall()
    assert [(row[1], row[4]) for row in rows] == [(f"#{ids[2]}", ids[2]), ("=k", ids[0]), ("=k", ids[1])]
    for lane, delivered in ((f"#{ids[2]}", [ids[2]]), ("=k", [ids[0]])):
        call = {**SETTLING, "lane": lane, "delivered": delivered, "keep_s": 60 if lane == "=k" else None}
        assert conn.execute(STATEMENTS["settle_lane"], call).fetchone() == (True,)
    dead = {
        **SETTLING,
        "lane": "=k",
        "delivered": [],
        "failed": ids[1],
        "fate": "block",
        "reason": "rejected",
    }
    assert conn.execute(STATEMENTS["settle_lane"], dead).fetchone() == (True,)
    assert conn.execute(STATEMENTS["settle_lane"], dead).fetchone() == (False,)
    status = conn.execute(STATEMENTS["outbox_status"]).fetchall()
    assert [(row[0], row[1], row[5], row[6], row[9]) for row in status] == [("ride.x", 0, 1, 1, 2)]
    verdict = "SELECT pgqueue.replay_message(%s)"
    assert conn.execute(verdict, [ids[1]]).fetchone() == ("replayed",)
    assert conn.execute(verdict, [ids[1]]).fetchone() == ("waiting",)
    assert conn.execute(verdict, [ids[0]]).fetchone() == ("unknown",)
    assert conn.execute("SELECT pgqueue.skip_message(%s)", [ids[1]]).fetchone() == ("skipped",)
    for table in ("outbox", "outbox_deliveries", "outbox_dead_letters"):
        assert conn.execute(f"SELECT count(*) FROM pgqueue.{table}".encode()).fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (3,)


@pytest.mark.parametrize(
    ("topic", "pattern", "matches"),
    [
        ("ride.completed", "ride.completed", True),
        ("ride.completed", "ride.*", True),
        ("ride.completed.late", "ride.*", True),
        ("ride", "ride.*", False),
        ("rides.completed", "ride.*", False),
        ("anything", "*", True),
        ("ride.completed", "ride.complete", False),
    ],
)
def test_patterns_in_sql(database: Database, topic: str, pattern: str, matches: bool) -> None:
    assert database.one("SELECT pgqueue.topic_matches(%s, %s)", [topic, pattern]) is matches
