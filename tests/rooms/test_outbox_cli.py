"""`pgqueue relay` and `pgqueue outbox …` as programs see them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psycopg
import pytest
from rig.database import Database
from rig.proc import pgqueue, run
from rig.wait import wait_for

HERE = Path(__file__).parent


@pytest.fixture
def env(database: Database, tmp_path: Path) -> dict[str, str]:
    return {
        "PGQUEUE_DATABASE_URL": database.dsn,
        "PYTHONPATH": str(HERE),
        "RELAY_FILE": str(tmp_path / "got"),
        "PGQUEUE_ACTOR": "tester",
    }


def emit(conn: psycopg.Connection[object], topic: str, payload: object, key: str | None = None) -> int:
    row = conn.execute("SELECT pgqueue.emit(%s, %s, %s)", [topic, json.dumps(payload), key]).fetchone()
    assert row is not None
    return int(str(row[0]))


def got(env: dict[str, str]) -> list[str]:
    path = Path(env["RELAY_FILE"])
    return [line.split()[2] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.proves("P17", "P18")
def test_a_relay_delivers_until_it_is_told_to_stop(database: Database, env: dict[str, str]) -> None:
    conn = database.connect()
    with pgqueue("relay", "-A", "relayapp:app", env=env) as relay:
        relay.wait_for_text("relay.started")
        for number in range(20):
            emit(conn, "file.a", {"n": number}, key="k")
        emit(conn, "ride.completed", {"n": 1})
        wait_for(lambda: len(got(env)) == 20, 20, what="the messages")
        wait_for(lambda: database.one("SELECT count(*) FROM pgqueue.jobs") == 1, 20, what="the job")
        emit(conn, "file.a", {"n": 20, "take_s": 1}, key="k")
        emit(conn, "file.a", {"n": 21}, key="k")
        wait_for(lambda: len(got(env)) >= 21, 20, what="the slow message")
        relay.signal(signal.SIGTERM)
        assert relay.wait() == 0
        assert "outbox.delivered" in relay.stderr
        assert relay.stdout == ""
    assert got(env)[:21] == [str(number) for number in range(21)]
    assert database.one("SELECT count(*) FROM pgqueue.outbox_relays") == 0
    assert database.one("SELECT count(*) FROM pgqueue.outbox_lanes WHERE claim_id IS NOT NULL") == 0
    # The slow one was finished and said so; what was behind it comes with the next relay, once.
    assert run("relay", "-A", "relayapp:app", "--drain", env=env)[0] == 0
    assert got(env) == [str(number) for number in range(22)]


@pytest.mark.proves("P17", "F34")
def test_a_killed_relays_messages_come_again_with_the_same_uid_and_in_order(
    database: Database, env: dict[str, str]
) -> None:
    conn = database.connect()
    impatient = {
        **env,
        "PGQUEUE_LEASE_S": "1s",
        "PGQUEUE_HEARTBEAT_S": "0.3s",
        "PGQUEUE_TCP_USER_TIMEOUT_S": "0.5s",
    }
    with pgqueue("relay", "-A", "relayapp:app", env=impatient) as relay:
        relay.wait_for_text("relay.started")
        # Sent, not yet said: the sink has written its line and still sleeps.
        emit(conn, "file.a", {"n": 0, "take_s": 60}, key="k")
        emit(conn, "file.a", {"n": 1}, key="k")
        wait_for(lambda: got(env) == ["0"], 20, what="the first delivery")
        relay.kill()
    conn.execute("UPDATE pgqueue.outbox SET payload = payload - 'take_s'")
    assert run("relay", "-A", "relayapp:app", "--drain", env=impatient, timeout_s=60)[0] == 0
    assert got(env) == ["0", "0", "1"]
    uids = [line.split()[0] for line in Path(env["RELAY_FILE"]).read_text().splitlines()]
    assert uids[0] == uids[1] != uids[2]


@pytest.mark.proves("P22")
def test_a_dead_message_is_seen_replayed_and_skipped(database: Database, env: dict[str, str]) -> None:
    conn = database.connect()
    bad = emit(conn, "file.a", {"n": 1, "fail": True}, key="k")
    emit(conn, "file.a", {"n": 2}, key="k")
    free = emit(conn, "file.b", {"n": 3})
    emit(conn, "nobody.wants", {})
    assert free > bad
    assert run("relay", "-A", "relayapp:app", "--drain", env=env)[0] == 0
    assert got(env) == ["3"], "the key waits, others flow"
    code, out, said = run("outbox", "status", "-o", "json", env=env)
    assert code == 0
    topics = {row["topic"]: row for row in json.loads(out)}
    assert (topics["file.a"]["dead"], topics["file.a"]["blocked_keys"], topics["file.a"]["pending"]) == (
        1,
        1,
        1,
    )
    assert topics["nobody.wants"]["parked"] == 1
    assert "1 keys wait for a decision" in said
    assert "nobody subscribes" in said
    rows = json.loads(run("outbox", "list", "-o", "json", env=env)[1])
    assert [(row["message_id"], row["state"]) for row in rows] == [(bad + 1, "blocked"), (free + 1, "parked")]
    (dead,) = json.loads(run("outbox", "list", "--state", "dead", "-o", "json", env=env)[1])
    assert (dead["message_id"], dead["sink"], dead["attempts"], dead["reason"]) == (
        bad,
        "file",
        3,
        "max_retries",
    )
    assert dead["error_message"] == "told to fail"
    # Replayed, it fails again; then it is given up and its key goes on.
    assert run("outbox", "replay", str(bad), "--dry-run", env=env)[0] == 0
    assert run("outbox", "replay", str(bad), "--reason", "again", env=env)[0] == 0
    assert run("relay", "-A", "relayapp:app", "--drain", env=env)[0] == 0
    assert got(env) == ["3"]
    code, out, _ = run("outbox", "skip", "--topic", "file.*", "--yes", "-o", "json", env=env)
    assert (code, json.loads(out)) == (0, [{"message_id": bad, "verdict": "skipped"}])
    assert run("relay", "-A", "relayapp:app", "--drain", env=env)[0] == 0
    assert got(env) == ["3", "2"]
    assert run("outbox", "skip", str(bad), env=env)[0] == 3
    audit = conn.execute(
        "SELECT actor, via, action, target, reason FROM pgqueue.operator_audit ORDER BY id"
    ).fetchall()
    assert audit == [
        ("tester", "cli", "replay", f"message {bad}", "again"),
        ("tester", "cli", "skip", f"message {bad}", None),
        ("tester", "cli", "skip", "messages state:dead topic:file.*", None),
    ]


def test_listing_goes_on_where_it_stopped(database: Database, env: dict[str, str]) -> None:
    conn = database.connect()
    for number in range(5):
        emit(conn, "a.b", {"n": number})
    code, out, said = run("outbox", "list", "--limit", "2", "-o", "name", env=env)
    assert (code, out, said) == (0, "message/1\nmessage/2\n", "more: --after 2\n")
    assert run("outbox", "list", "--after", "4", "-o", "name", env=env)[1] == "message/5\n"
    assert run("outbox", "list", "--state", "odd", env=env)[0] == 2
    assert run("outbox", "list", "--after", "x", env=env)[0] == 2


def test_subscriptions_are_shown(database: Database, env: dict[str, str]) -> None:
    assert run("relay", "-A", "relayapp:app", "--drain", env=env)[0] == 0
    rows = json.loads(run("outbox", "subscriptions", "-o", "json", env=env)[1])
    assert [(row["pattern"], row["sink"], row["defined_in"]) for row in rows] == [
        ("file.*", "file", "relayapp:app"),
        ("ride.completed", "task:receipt", "relayapp:app"),
    ]


def test_a_relay_that_cannot_work_says_why(env: dict[str, str], empty_database: Database) -> None:
    code, _, said = run(
        "relay", "-A", "relayapp:app", env={**env, "PGQUEUE_DATABASE_URL": empty_database.dsn}
    )
    assert code == 6
    assert "pgqueue db upgrade" in said
