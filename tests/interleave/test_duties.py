"""Who does a duty of the fleet, when several come at once: exactly one, in every order; a twin that must fail."""

from __future__ import annotations

from typing import Any

import psycopg
from rig.database import Database
from rig.hands import Hand
from rig.interleave import Step, merges, play

PARAMETERS = {"duty": "d", "interval_s": 600.0, "lease_s": 90.0}
DUE = "SELECT next_at <= clock_timestamp() FROM pgqueue.upkeep_duties WHERE duty = 'd'"


def takers(database: Database, steps: int, script: Any) -> list[int]:
    """How many of two took the duty, order by order."""
    conn = database.connect()
    found = []
    for known in (True, False):
        for order in merges([steps, steps]):
            conn.execute("DELETE FROM pgqueue.upkeep_duties")
            if known:
                conn.execute(
                    "INSERT INTO pgqueue.upkeep_duties (duty, next_at) VALUES ('d', clock_timestamp() - interval '1 s')"
                )
            taken: list[int] = []
            errors = play(database.dsn, conn, [script(taken), script(taken)], order)
            assert errors == [[], []]
            found.append(len(taken))
    return found


def test_one_of_two_takes_a_duty_that_is_due(database: Database) -> None:
    def script(taken: list[int]) -> list[Step]:
        def begin(conn: psycopg.Connection[Any]) -> None:
            conn.execute("BEGIN")

        def take(conn: psycopg.Connection[Any]) -> None:
            if Hand(conn).one("take_duty", **PARAMETERS) == 0:
                taken.append(1)

        def commit(conn: psycopg.Connection[Any]) -> None:
            conn.execute("COMMIT")

        return [begin, take, commit]

    assert set(takers(database, 3, script)) == {1}


def test_the_twin_that_looks_before_it_takes_has_two_takers(database: Database) -> None:
    def script(taken: list[int]) -> list[Step]:
        due: list[bool] = []

        def look(conn: psycopg.Connection[Any]) -> None:
            row = conn.execute(DUE).fetchone()
            due.append(row is None or row[0])

        def take(conn: psycopg.Connection[Any]) -> None:
            if due[0]:
                conn.execute(
                    "INSERT INTO pgqueue.upkeep_duties (duty, next_at) VALUES ('d', clock_timestamp() + interval '90 s')"
                    " ON CONFLICT (duty) DO UPDATE SET next_at = excluded.next_at"
                )
                taken.append(1)

        return [look, take]

    assert 2 in takers(database, 2, script)
