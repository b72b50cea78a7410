"""Many producers, one key: one job, one id; and the naive way that makes two, or none."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from rig.database import Database

PRODUCERS = 100
SURVIVORS = (7, 8, 40)  # two that meet, and one that comes late


def produce(database: Database, statement: str) -> tuple[set[int], int]:
    """Every producer uses the key; all but three roll back. Returns ids told to the survivors, and jobs that exist."""
    told: set[int] = set()
    failures: list[BaseException] = []
    barrier = threading.Barrier(20)

    def one(number: int) -> None:
        try:
            with psycopg.connect(database.dsn) as conn:
                if number < barrier.parties:
                    barrier.wait(20)
                row = conn.execute(statement).fetchone()
                assert row is not None
                if number in SURVIVORS:
                    conn.commit()
                    told.add(row[0])
                else:
                    conn.rollback()
        except BaseException as error:
            failures.append(error)

    numbers = iter(range(PRODUCERS))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            one(number)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    count = database.connect().execute("SELECT count(*) FROM pgqueue.jobs").fetchone()
    assert count is not None
    return told, count[0]


@pytest.mark.proves("P13", "F53")
def test_a_hundred_producers_get_one_job_and_its_id(database: Database) -> None:
    told, jobs = produce(database, "SELECT pgqueue.enqueue('t', '{}', idempotency_key => 'k')")
    assert len(told) == 1
    assert jobs == 1


def test_twin_check_then_insert_makes_several(database: Database) -> None:
    conn = database.connect()
    conn.execute("CREATE TABLE naive (key text, id bigint)")
    conn.execute(
        """CREATE FUNCTION naive_enqueue() RETURNS bigint LANGUAGE plpgsql AS $$
        DECLARE found_id bigint; BEGIN
          SELECT id INTO found_id FROM naive WHERE key = 'k';
          IF found_id IS NOT NULL THEN RETURN found_id; END IF;
          PERFORM pg_sleep(0.01);
          found_id := pgqueue.enqueue('t');
          INSERT INTO naive VALUES ('k', found_id);
          RETURN found_id;
        END $$"""
    )
    worst = 0
    for _ in range(5):
        conn.execute("TRUNCATE naive, pgqueue.jobs")
        told, jobs = produce(database, "SELECT naive_enqueue()")
        worst = max(worst, len(told), jobs)
        if worst > 1:
            return
    pytest.fail("the naive enqueue was never caught making two jobs: the rig proves nothing")


def two(database: Database) -> tuple[psycopg.Connection[Any], psycopg.Connection[Any]]:
    return psycopg.connect(database.dsn), psycopg.connect(database.dsn)


@pytest.mark.proves("P2", "F59")
def test_a_duplicate_after_waiting_gets_the_first_jobs_id(database: Database) -> None:
    first, second = two(database)
    with first, second:
        row = first.execute(
            "SELECT job_id, created FROM pgqueue.enqueue_job('t', idempotency_key => 'k')"
        ).fetchone()
        assert row is not None
        assert row[1]
        answer: list[Any] = []
        thread = threading.Thread(
            target=lambda: answer.append(
                second.execute(
                    "SELECT job_id, created FROM pgqueue.enqueue_job('t', idempotency_key => 'k')"
                ).fetchone()
            )
        )
        thread.start()
        first.commit()
        thread.join(20)
        assert answer == [(row[0], False)]


@pytest.mark.proves("P13", "F53")
def test_an_expired_key_is_taken_over_once(database: Database) -> None:
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t', '{}', idempotency_key => 'k')")
    conn.execute("UPDATE pgqueue.dedup_keys SET expires_at = clock_timestamp() - interval '1 s'")
    told, jobs = produce(database, "SELECT pgqueue.enqueue('t', '{}', idempotency_key => 'k')")
    assert len(told) == 1
    assert jobs == 2  # the first one, and the one that took the key over
