"""Retention of dead letters against people who redrive or discard them, in every order; a twin that must fail."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, enqueue
from rig.interleave import Step, merges, play

# As if the choice were made without a lock, and the letters deleted by their ids.
NAIVE = """
WITH old AS MATERIALIZED (
  SELECT d.job_id FROM pgqueue.dead_letter_jobs d WHERE d.redriven_as IS NULL AND d.created_at < clock_timestamp() - interval '40 days'
)
SELECT pgqueue.discard(o.job_id, 'naive') FROM old o
"""


def begin(conn: psycopg.Connection[Any]) -> None:
    conn.execute("BEGIN")


def commit(conn: psycopg.Connection[Any]) -> None:
    conn.execute("COMMIT")


def old_letter(conn: psycopg.Connection[Any]) -> int:
    hand = Hand(conn)
    job_id = enqueue(conn)
    (taken,) = hand.claim()
    hand.settle("dead", taken, reason="gave_up")
    conn.execute("UPDATE pgqueue.dead_letter_jobs SET created_at = clock_timestamp() - interval '50 days'")
    return job_id


def violations(database: Database, prune: Step) -> int:
    """Orders after which the letter is gone although a job goes on with its work, or neither is there nor was discarded."""
    conn = database.connect()
    found = 0
    for order in merges([3, 3]):
        conn.execute(
            "DELETE FROM pgqueue.jobs; DELETE FROM pgqueue.dead_letter_jobs; DELETE FROM pgqueue.job_history"
        )
        letter = old_letter(conn)

        def redrive(actor: psycopg.Connection[Any], letter: int = letter) -> None:
            actor.execute("SELECT pgqueue.redrive(%s)", [letter])

        errors = play(database.dsn, conn, [[begin, redrive, commit], [begin, prune, commit]], order)
        assert errors == [[], []]
        jobs, letters, history = (
            database.one(f"SELECT count(*) FROM pgqueue.{table}")
            for table in ("jobs", "dead_letter_jobs", "job_history")
        )
        assert jobs <= 1
        found += (jobs, letters, history) not in {(1, 1, 0), (0, 0, 1)}
    return found


@pytest.mark.proves("F53", "P6")
def test_a_letter_is_either_redriven_and_kept_or_discarded(database: Database) -> None:
    def prune(conn: psycopg.Connection[Any]) -> None:
        Hand(conn).one("discard_old_letters", keep_days=40, batch=10, actor="x")

    assert violations(database, prune) == 0


@pytest.mark.proves("F53")
def test_the_twin_that_takes_no_lock_throws_a_redriven_letter_away(database: Database) -> None:
    def prune(conn: psycopg.Connection[Any]) -> None:
        conn.execute(NAIVE)

    assert violations(database, prune) > 0
