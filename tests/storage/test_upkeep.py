"""The statements of upkeep.sql: who takes a duty, days made and dropped, what retention takes and what it leaves.

On the newest and the oldest supported server; ages are made by moving stored times.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, enqueue, places_of, row_of, shared_database, transitions, wiped

TODAY = datetime.now(UTC).date()


@pytest.fixture(scope="module", params=["18", "15"])
def shared(request: pytest.FixtureRequest) -> Iterator[Database]:
    with shared_database(request, request.param) as database:
        yield database


@pytest.fixture
def any_database(shared: Database) -> Iterator[Database]:
    with wiped(shared) as database:
        yield database
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            for part in days(conn):
                if not TODAY <= date.fromisoformat(part[-8:]) <= TODAY + timedelta(days=7):
                    conn.execute(f"DROP TABLE pgqueue.{part}".encode())
            conn.execute("UPDATE pgqueue.stats_progress SET done_upto = NULL")


@pytest.fixture
def conn(any_database: Database) -> psycopg.Connection[Any]:
    return any_database.connect()


@pytest.fixture
def hand(conn: psycopg.Connection[Any]) -> Hand:
    return Hand(conn)


def days(conn: psycopg.Connection[Any]) -> list[str]:
    return [
        name
        for (name,) in conn.execute(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent"
            " WHERE p.relname IN ('job_history', 'job_transitions') AND c.relname ~ '_[0-9]{8}$' ORDER BY 1"
        )
    ]


def old_day(conn: psycopg.Connection[Any], age: int, table: str = "job_history") -> str:
    day = TODAY - timedelta(days=age)
    name = f"{table}_{day:%Y%m%d}"
    conn.execute(
        f"CREATE TABLE pgqueue.{name} PARTITION OF pgqueue.{table}"
        f" FOR VALUES FROM ('{day} 00:00:00+00') TO ('{day + timedelta(days=1)} 00:00:00+00')".encode()
    )
    return name


def ended(conn: psycopg.Connection[Any], at: str, queue: str = "default", count: int = 1) -> None:
    conn.execute(
        """INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, priority, attempts, max_attempts, state, queue, task, args)
           SELECT i, f.at, f.at, f.at, f.at, 5, 1, 1, 'succeeded', %s, 't', jsonb_build_object('pad', repeat('x', 200))
           FROM (SELECT %s::timestamptz AS at) f, generate_series(1, %s) i""",
        [queue, at, count],
    )


def dead_letter(hand: Hand, age_days: float, *, redriven_days: float | None = None) -> int:
    job_id = enqueue(hand.conn)
    (taken,) = hand.claim()
    hand.settle("dead", taken, reason="gave_up")
    hand.conn.execute(
        "UPDATE pgqueue.dead_letter_jobs SET created_at = clock_timestamp() - make_interval(hours => %s) WHERE job_id = %s",
        [round(age_days * 24), job_id],
    )
    if redriven_days is not None:
        hand.conn.execute("SELECT pgqueue.redrive(%s)", [job_id])
        hand.conn.execute(
            "UPDATE pgqueue.dead_letter_jobs SET redriven_at = clock_timestamp() - make_interval(hours => %s) WHERE job_id = %s",
            [round(redriven_days * 24), job_id],
        )
        hand.conn.execute("DELETE FROM pgqueue.jobs WHERE redrive_of = %s", [job_id])
    return job_id


def take(hand: Hand, duty: str = "d", interval_s: float = 600, lease_s: float = 90) -> float:
    return float(hand.one("take_duty", duty=duty, interval_s=interval_s, lease_s=lease_s))


def note(hand: Hand, **more: Any) -> None:
    parameters = {"duty": "d", "ago_s": 2.0, "took_s": 2.0, "rounds": 1, "changed": 5, "next_in_s": 600.0}
    hand.run("note_duty", **{**parameters, "error": None, "actor": "worker:1", **more})


def status(conn: psycopg.Connection[Any]) -> tuple[Any, ...] | None:
    return conn.execute(
        "SELECT rounds, changed, failures, failing, error, by_whom FROM pgqueue.upkeep_status WHERE duty = 'd'"
    ).fetchone()


def test_a_duty_is_taken_once_until_it_is_due_again(any_database: Database, hand: Hand) -> None:
    other = Hand(any_database.connect())
    assert take(hand) == 0
    assert 80 < take(other) <= 90, "the lease keeps others away"
    note(hand)
    assert 590 < take(other) <= 600, "then the interval does"
    hand.conn.execute("UPDATE pgqueue.upkeep_duties SET next_at = clock_timestamp() - interval '1 ms'")
    assert take(other) == 0
    assert take(hand) > 80


@pytest.mark.proves("F26s")
def test_a_clock_that_was_put_back_does_not_stop_a_duty(hand: Hand) -> None:
    assert take(hand, interval_s=60) == 0
    hand.conn.execute("UPDATE pgqueue.upkeep_duties SET next_at = clock_timestamp() + interval '1 hour'")
    assert take(hand, interval_s=60) == 0, "no round of this duty can be so far ahead"
    assert take(hand, interval_s=60) > 80


def test_what_a_duty_did_and_why_it_failed_is_a_row(conn: psycopg.Connection[Any], hand: Hand) -> None:
    note(hand)
    note(hand, changed=2, rounds=3)
    assert status(conn) == (4, 7, 0, False, None, "worker:1")
    note(hand, rounds=0, changed=0, error="55P03 canceling statement", actor="worker:2", next_in_s=30.0)
    assert status(conn) == (4, 7, 1, True, "55P03 canceling statement", "worker:2")
    note(hand, ago_s=0.0)
    assert status(conn) == (5, 12, 1, False, "55P03 canceling statement", "worker:1"), (
        "the last failure stays"
    )


@pytest.mark.proves("F52")
def test_day_partitions_are_made_ahead(conn: psycopg.Connection[Any], hand: Hand) -> None:
    assert hand.one("ensure_partitions", ahead_days=7) == 0, "the migration made them"
    assert hand.one("ensure_partitions", ahead_days=9) == 4, "two days of two tables"
    assert hand.one("ensure_partitions", ahead_days=9) == 0
    new = f"job_history_{TODAY + timedelta(days=9):%Y%m%d}"
    one_like_the_others = (
        "SELECT count(*) FROM pg_index i WHERE i.indrelid = to_regclass('pgqueue.' || %s) AND i.indisvalid"
    )
    counts = {
        conn.execute(one_like_the_others, [name]).fetchone() for name in (new, f"job_history_{TODAY:%Y%m%d}")
    }
    assert len(counts) == 1
    assert counts != {(0,)}


@pytest.mark.proves("F29", "F52")
def test_settlements_go_on_while_a_day_is_made(any_database: Database, hand: Hand) -> None:
    """The broken twin is CREATE TABLE … PARTITION OF: it waits for every open settlement, and the next ones behind it."""
    maker = any_database.connect(autocommit=False)
    settling = Hand(any_database.connect(autocommit=False))
    enqueue(hand.conn), enqueue(hand.conn)
    first, second = hand.claim()
    settling.succeed(first)
    assert Hand(maker).one("ensure_partitions", ahead_days=9) == 4, "an open settlement is no hindrance"
    hand.conn.execute("SET lock_timeout = '500ms'")
    assert hand.succeed(second) == {second.id}, "nor is an open making of days for the next"
    maker.commit()
    settling.conn.rollback()
    settling.succeed(first)
    day = TODAY + timedelta(days=20)
    maker.execute("SET lock_timeout = '200ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        maker.execute(
            f"CREATE TABLE pgqueue.job_history_{day:%Y%m%d} PARTITION OF pgqueue.job_history"
            f" FOR VALUES FROM ('{day} 00:00:00+00') TO ('{day + timedelta(days=1)} 00:00:00+00')".encode()
        )
    maker.rollback()
    settling.conn.rollback()


@pytest.mark.proves("F52")
def test_a_day_without_a_partition_settles_into_the_default_one(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    for table in ("job_history", "job_transitions"):
        conn.execute(f"DROP TABLE pgqueue.{table}_{TODAY:%Y%m%d}".encode())
    enqueue(conn), enqueue(conn)
    first, second = hand.claim()
    assert hand.succeed(first) == {first.id}
    assert hand.settle("dead", second) == {second.id}
    assert conn.execute("SELECT count(*) FROM pgqueue.job_history_default").fetchone() == (1,)
    assert conn.execute("SELECT count(*) FROM pgqueue.job_transitions_default").fetchone() == (1,)
    assert hand.one("ensure_partitions", ahead_days=7) == 0, "today's rows lie in the default; no error"
    assert hand.one("prune_default_partitions", keep_days=1, batch=10) == 0
    conn.execute("DELETE FROM pgqueue.job_history_default; DELETE FROM pgqueue.job_transitions_default")
    assert hand.one("ensure_partitions", ahead_days=7) == 2


def test_rows_of_the_default_partition_go_when_their_time_is_over(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    ended(conn, f"{TODAY - timedelta(days=4)} 12:00+00", count=3)
    ended(conn, f"{TODAY - timedelta(days=3)} 00:00+00", count=2)
    assert hand.one("prune_default_partitions", keep_days=3, batch=2) == 2
    assert hand.one("prune_default_partitions", keep_days=3, batch=2) == 1
    assert hand.one("prune_default_partitions", keep_days=3, batch=2) == 0
    assert conn.execute("SELECT count(*) FROM pgqueue.job_history").fetchone() == (2,)


def test_days_are_dropped_by_age_the_oldest_first(conn: psycopg.Connection[Any], hand: Hand) -> None:
    parts = [old_day(conn, 40), old_day(conn, 41, "job_transitions"), old_day(conn, 42)]
    assert hand.one("drop_partition", keep_days=42) is None
    assert [hand.one("drop_partition", keep_days=39) for _ in range(4)] == [*reversed(parts), None]
    assert not set(parts) & set(days(conn))


@pytest.mark.proves("F29")
def test_a_drop_waits_for_a_reader_only_shortly_and_never_holds_up_a_claim(
    any_database: Database, hand: Hand
) -> None:
    part = old_day(hand.conn, 40)
    reader = any_database.connect(autocommit=False)
    reader.execute("SELECT count(*) FROM pgqueue.job_history")
    dropper = any_database.connect(autocommit=False)
    with pytest.raises(psycopg.errors.LockNotAvailable):
        Hand(dropper).one("drop_partition", keep_days=39)
    dropper.rollback()
    reader.rollback()
    assert part in days(hand.conn)
    enqueue(hand.conn), enqueue(hand.conn)
    hand.conn.execute("SET lock_timeout = '500ms'")
    assert Hand(dropper).one("drop_partition", keep_days=39) == part
    locked = {
        name
        for (name,) in dropper.execute(
            "SELECT l.relation::regclass::text FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock' AND l.locktype = 'relation'"
        )
    }
    assert not {
        name for name in locked if name.startswith("pgqueue.") and not name.startswith("pgqueue.job_history")
    }, locked
    assert len(hand.claim()) == 2, "while the drop is not even committed"
    dropper.commit()


@pytest.mark.parametrize("days", [-1, 61])
def test_partitions_are_made_within_bounds(hand: Hand, days: int) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="0 to 60"):
        hand.one("ensure_partitions", ahead_days=days)


@pytest.mark.parametrize("days", [0, 36_501])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("drop_partition", {}),
        ("prune_default_partitions", {"batch": 1}),
        ("prune_redriven", {"batch": 1}),
        ("discard_old_letters", {"batch": 1, "actor": "x"}),
    ],
)
def test_retention_is_within_bounds(hand: Hand, name: str, more: dict[str, Any], days: int) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="1 to 36500"):
        hand.one(name, keep_days=days, **more)


def sweep(hand: Hand, blocks: int = 1000) -> tuple[int, bool]:
    (row,) = hand.run("sweep_history", blocks=blocks)
    return row["deleted"], row["looked"]


def counted_upto(conn: psycopg.Connection[Any], day: date) -> None:
    conn.execute(
        "UPDATE pgqueue.stats_progress SET done_upto = %s::date::timestamp AT TIME ZONE 'UTC' WHERE what = 'recount'",
        [day],
    )


def test_a_queue_may_keep_its_history_shorter(conn: psycopg.Connection[Any], hand: Hand) -> None:
    for age in (5, 4, 3):
        old_day(conn, age)
        for queue in ("mail", "default"):
            ended(conn, f"{TODAY - timedelta(days=age)} 12:00+00", queue, count=100)
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('mail'), ('default')")
    counted_upto(conn, TODAY)
    assert sweep(hand) == (0, False), "no queue asked for it"
    conn.execute("SELECT pgqueue.keep_history('mail', 3, 'small talk')")
    assert [sweep(hand), sweep(hand), sweep(hand)] == [(100, True), (100, True), (0, False)]
    left = "SELECT queue, count(*) FROM pgqueue.job_history GROUP BY 1 ORDER BY 1"
    assert conn.execute(left).fetchall() == [("default", 300), ("mail", 100)]
    conn.execute("SELECT pgqueue.keep_history('default', 4)")
    assert [sweep(hand), sweep(hand)] == [(100, True), (0, False)], (
        "a day is searched again for one more queue"
    )
    assert conn.execute(left).fetchall() == [("default", 200), ("mail", 100)]
    assert conn.execute(
        "SELECT action, target, reason, detail ->> 'history_days' FROM pgqueue.operator_audit ORDER BY id"
    ).fetchall() == [
        ("keep_history", "queue mail", "small talk", "3"),
        ("keep_history", "queue default", None, "4"),
    ]


def test_a_day_is_searched_in_steps_of_blocks(conn: psycopg.Connection[Any], hand: Hand) -> None:
    old_day(conn, 5)
    ended(conn, f"{TODAY - timedelta(days=5)} 12:00+00", "mail", count=500)
    conn.execute("INSERT INTO pgqueue.queues (name, history_days) VALUES ('mail', 1)")
    counted_upto(conn, TODAY)
    steps = []
    while (step := sweep(hand, blocks=5))[1]:
        steps.append(step[0])
    assert sum(steps) == 500
    assert len(steps) > 2
    assert max(steps) < 5 * 8192 / 250, "no step touches more than its blocks"


def test_what_is_not_counted_yet_is_kept(conn: psycopg.Connection[Any], hand: Hand) -> None:
    old_day(conn, 3)
    ended(conn, f"{TODAY - timedelta(days=3)} 12:00+00", "mail")
    conn.execute("INSERT INTO pgqueue.queues (name, history_days) VALUES ('mail', 1)")
    assert sweep(hand) == (0, False)
    counted_upto(conn, TODAY - timedelta(days=3))
    assert sweep(hand) == (0, False)
    counted_upto(conn, TODAY - timedelta(days=2))
    assert sweep(hand) == (1, True)


def test_keep_history_refuses_what_makes_no_sense(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="1 to 36500"):
        conn.execute("SELECT pgqueue.keep_history('mail', 0)")
    assert conn.execute("SELECT pgqueue.keep_history('mail', 3)").fetchone() == (False,), "not known"
    assert conn.execute("SELECT count(*) FROM pgqueue.operator_audit").fetchone() == (0,)


def test_redriven_letters_go_after_their_time_in_batches(conn: psycopg.Connection[Any], hand: Hand) -> None:
    old = [dead_letter(hand, 50, redriven_days=age) for age in (33, 32, 31)]
    young = dead_letter(hand, 50, redriven_days=29)
    waiting = dead_letter(hand, 50)
    assert [hand.one("prune_redriven", keep_days=30, batch=2) for _ in range(3)] == [2, 1, 0]
    assert [row_of(conn, "dead_letter_jobs", job_id) is None for job_id in (*old, young, waiting)] == [
        *[True] * 3,
        False,
        False,
    ]


@pytest.mark.proves("P22", "P6")
def test_letters_nobody_decided_about_are_discarded_with_their_audit(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    old = [dead_letter(hand, age) for age in (43, 42, 41)]
    young, redriven = dead_letter(hand, 39), dead_letter(hand, 50, redriven_days=1)
    discard = {"keep_days": 40, "batch": 2, "actor": "worker:1"}
    assert [hand.one("discard_old_letters", **discard) for _ in range(3)] == [2, 1, 0]
    assert [places_of(conn, job_id) for job_id in (*old, young, redriven)] == [["job_history"]] * 3 + [
        ["dead_letter_jobs"]
    ] * 2
    assert transitions(conn, old[0])[-1] == ("dead", "cancelled", "discarded")
    assert conn.execute(
        "SELECT DISTINCT actor, via, reason FROM pgqueue.operator_audit WHERE action = 'discard'"
    ).fetchall() == [("worker:1", "upkeep", "dead-letter retention")]


def test_a_letter_that_somebody_redrives_is_left_alone(any_database: Database, hand: Hand) -> None:
    letter = dead_letter(hand, 50)
    operator = any_database.connect(autocommit=False)
    operator.execute("SELECT pgqueue.redrive(%s)", [letter])
    hand.conn.execute("SET lock_timeout = '500ms'")
    assert hand.one("discard_old_letters", keep_days=40, batch=10, actor="x") == 0
    operator.commit()
    assert hand.one("discard_old_letters", keep_days=40, batch=10, actor="x") == 0
    assert row_of(hand.conn, "dead_letter_jobs", letter) is not None
