"""The statements of promote.sql, and of upkeep.sql those about keys, each: what it takes, what its guard leaves, nothing, its limit.

On the newest and the oldest supported server; acts through rig.hands, looks at the tables themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, enqueue, row_of, shared_database, wiped


@pytest.fixture(scope="module", params=["18", "15"])
def shared(request: pytest.FixtureRequest) -> Iterator[Database]:
    with shared_database(request, request.param) as database:
        yield database


@pytest.fixture
def any_database(shared: Database) -> Iterator[Database]:
    with wiped(shared) as database:
        yield database


@pytest.fixture
def conn(any_database: Database) -> psycopg.Connection[Any]:
    return any_database.connect()


@pytest.fixture
def hand(conn: psycopg.Connection[Any]) -> Hand:
    return Hand(conn)


def due(conn: psycopg.Connection[Any], *, late_s: float = 1, **options: Any) -> int:
    """A scheduled job whose time has come: times are moved in the table, the clock is never faked."""
    job_id = enqueue(conn, delay="1 hour", **options)
    conn.execute(
        "UPDATE pgqueue.jobs SET run_at = clock_timestamp() - make_interval(secs => %s) WHERE id = %s",
        [late_s, job_id],
    )
    return job_id


def test_a_due_job_takes_the_tail_of_its_lane_and_keeps_its_due_time(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    job_id = due(conn, queue="mail")
    standing = enqueue(conn, queue="mail")
    before = row_of(conn, "jobs", job_id)
    assert hand.promote() == {"mail": 1}
    row = row_of(conn, "jobs", job_id)
    assert before is not None
    assert row is not None
    assert row["state"] == "ready"
    assert row["ready_seq"] > standing
    assert row["run_at"] == before["run_at"], "waiting time counts from when it was due"


@pytest.mark.proves("P8")
def test_a_job_before_its_time_stays(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job_id = enqueue(conn, delay="2 s")
    assert hand.promote() == {}
    row = row_of(conn, "jobs", job_id)
    assert row is not None
    assert (row["state"], row["ready_seq"]) == ("scheduled", None)


def test_due_jobs_are_promoted_in_order_of_their_time_up_to_the_batch(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    second, first, third = due(conn, late_s=20), due(conn, late_s=30), due(conn, late_s=10)
    assert [hand.promote(batch=2), hand.promote(batch=2), hand.promote(batch=2)] == [
        {"default": 2},
        {"default": 1},
        {},
    ]
    order = conn.execute("SELECT id FROM pgqueue.jobs ORDER BY ready_seq").fetchall()
    assert [job_id for (job_id,) in order] == [first, second, third]


def test_a_held_job_is_not_promoted_however_old(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job_id = due(conn)
    conn.execute("UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'operator' WHERE id = %s", [job_id])
    assert hand.promote() == {}


def test_promotion_passes_locked_jobs_over(any_database: Database, hand: Hand) -> None:
    locked, free = due(hand.conn, late_s=2), due(hand.conn)
    admin = any_database.connect(autocommit=False)
    admin.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", [locked])
    assert hand.promote() == {"default": 1}
    row = row_of(hand.conn, "jobs", free)
    assert row is not None
    assert row["state"] == "ready"
    admin.rollback()


@pytest.mark.proves("P10")
def test_promotion_wakes_only_the_sleepers_of_its_queues(any_database: Database, hand: Hand) -> None:
    listener = any_database.connect()
    listener.execute("LISTEN pgqueue_wake")
    due(hand.conn, queue="mail")
    hand.promote()
    assert list(listener.notifies(timeout=0.2)) == [], "nobody sleeps"
    hand.run("fall_asleep", queues=["mail"], id=hand.worker_id)
    due(hand.conn, queue="other")
    hand.promote()
    assert list(listener.notifies(timeout=0.2)) == [], "the sleeper waits for another queue"
    due(hand.conn, queue="mail")
    hand.promote()
    (notice,) = listener.notifies(timeout=2, stop_after=1)
    assert (notice.channel, notice.payload) == ("pgqueue_wake", "")


def test_the_next_due_moment_is_told_in_seconds(conn: psycopg.Connection[Any], hand: Hand) -> None:
    assert hand.next_due() is None
    enqueue(conn, delay="1 hour")
    enqueue(conn, delay="10 s")
    enqueue(conn)
    assert 5 < hand.next_due() <= 10
    due(conn, late_s=30)
    assert -60 < hand.next_due() <= -30


# Upkeep.


def key(conn: psycopg.Connection[Any], name: str, *, age_s: float) -> None:
    enqueue(conn, idempotency_key=name)
    conn.execute(
        "UPDATE pgqueue.dedup_keys SET expires_at = clock_timestamp() - make_interval(secs => %s) WHERE key = %s",
        [age_s, name],
    )


@pytest.mark.proves("P13")
def test_only_keys_whose_life_is_over_go_oldest_first_in_batches(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    for number in range(3):
        key(conn, f"old{number}", age_s=100 - number)
    key(conn, "young", age_s=-3600)
    assert [hand.one("expire_keys", batch=2), hand.one("expire_keys", batch=2)] == [2, 1]
    assert hand.one("expire_keys", batch=2) == 0
    assert conn.execute("SELECT key FROM pgqueue.dedup_keys").fetchall() == [("young",)]


def test_a_key_that_a_producer_holds_is_left_for_later(any_database: Database, hand: Hand) -> None:
    key(hand.conn, "old", age_s=1)
    producer = any_database.connect(autocommit=False)
    enqueue(producer, idempotency_key="old")
    assert hand.one("expire_keys", batch=10) == 0
    producer.commit()
    assert hand.one("expire_keys", batch=10) == 0, "taken anew, so alive again"
