"""A key that is used while its life ends, its job starts, or its dead job is redriven: every order.

The real statements must come through all of them, and each one's broken twin must be caught in some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import enqueue
from rig.interleave import Scene, begin, caught, commit, explore, make_function_naive, naive
from rig.orders import Step

OVER = "UPDATE pgqueue.dedup_keys SET expires_at = clock_timestamp() - interval '1 s'"
EXPIRE_BLINDLY = ("FOR UPDATE SKIP LOCKED", "")


class KeyScene(Scene):
    """Jobs of one task under one key; what was told to whom, and who has the key in the end."""

    scope = "live"

    def enqueue(self, conn: psycopg.Connection[Any]) -> int:
        return enqueue(conn, idempotency_key="k", key_scope=self.scope)

    def again(self, conn: psycopg.Connection[Any]) -> None:
        self.told.append(self.enqueue(conn))

    def expire(self, conn: psycopg.Connection[Any]) -> None:
        self.hand(conn).run("expire_keys", batch=10)

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        live = {row[0] for row in conn.execute("SELECT id FROM pgqueue.jobs").fetchall()}
        holders = {row[0] for row in conn.execute("SELECT job_id FROM pgqueue.dedup_keys").fetchall()}
        found = []
        if len(live) > 1:
            found.append(f"{len(live)} jobs of one key")
        if live - holders:
            found.append("a live job has lost its key")
        if set(self.told) != live:
            found.append(f"told {self.told}, there is {live}")
        return found


class OverAndUsedTwice(KeyScene):
    """The first job has ended, its key is due for upkeep, and two producers want it."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.told: list[int] = []
        self.enqueue(conn)
        hand = self.hand(conn)
        hand.succeed(*hand.claim())
        conn.execute(OVER)

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.again, commit], [begin, self.again, commit], [self.expire]]


class TimedOverAndUsedTwice(OverAndUsedTwice):
    """The same for a key with a time."""

    scope = "time"


@pytest.mark.proves("P13", "F53")
@pytest.mark.parametrize("scene", [OverAndUsedTwice, TimedOverAndUsedTwice])
def test_a_key_whose_life_is_over_is_taken_over_once(database: Database, scene: type[KeyScene]) -> None:
    assert explore(database, scene()) == []


def test_twin_an_expiry_that_locks_nothing_takes_a_new_jobs_key(database: Database) -> None:
    assert caught(database, OverAndUsedTwice(naive("expire_keys", EXPIRE_BLINDLY)))


class StartedAndUsedTwice(KeyScene):
    """The job that waited is being started, which ends its key's life, and two producers wait to see."""

    scope = "waiting"

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.told: list[int] = []
        self.first = self.enqueue(conn)

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.start, commit], [self.again], [self.again]]

    def start(self, conn: psycopg.Connection[Any]) -> None:
        self.hand(conn).claim(1)

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        waiting = {
            row[0] for row in conn.execute("SELECT id FROM pgqueue.jobs WHERE state = 'ready'").fetchall()
        }
        return (
            []
            if len(waiting) <= 1 and waiting | {self.first} >= set(self.told)
            else [f"{waiting}, told {self.told}"]
        )


@pytest.mark.proves("P13", "DD5")
def test_a_key_whose_job_starts_is_taken_over_once(database: Database) -> None:
    assert explore(database, StartedAndUsedTwice()) == []


def test_twin_a_takeover_that_does_not_say_from_whom_makes_two_jobs(database: Database) -> None:
    from_whom = "AND k.job_id = holder.job_id AND k.expires_at = holder.expires_at"
    make_function_naive(database, "take_key", from_whom, "")
    assert caught(database, StartedAndUsedTwice())


class RedriveAndUse(KeyScene):
    """The first job is dead. Somebody redrives it while a producer uses its key and upkeep looks at it."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.told: list[int] = []
        self.dead = self.enqueue(conn)
        hand = self.hand(conn)
        hand.settle("dead", *hand.claim(), reason="rejected")
        conn.execute(OVER)

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.again, commit], [begin, self.redrive, commit], [self.expire]]

    def redrive(self, conn: psycopg.Connection[Any]) -> None:
        row = conn.execute("SELECT pgqueue.redrive(%s)", [self.dead]).fetchone()
        assert row is not None
        self.told.append(row[0])


@pytest.mark.proves("P13", "F53")
def test_a_redrive_and_a_producer_of_one_key_make_one_job(database: Database) -> None:
    assert explore(database, RedriveAndUse()) == []


def test_twin_a_redrive_that_does_not_ask_for_the_key_makes_two_jobs(database: Database) -> None:
    asks = "AND pgqueue.key_is_held(holder.scope, holder.expires_at, holder.job_id)"
    make_function_naive(database, "redrive", asks, "AND false")
    assert caught(database, RedriveAndUse())


def test_twin_an_expiry_that_does_not_see_the_redrive_lets_its_key_go(database: Database) -> None:
    blind = naive("expire_keys", EXPIRE_BLINDLY, ("AND d.redriven_as IS NULL", "AND false"))
    assert caught(database, RedriveAndUse(blind))


class ReplaceAndClaim(Scene):
    """A producer gives a waiting job new arguments while a worker takes it."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.seen: list[Any] = []
        self.replaced = False
        enqueue(conn, args={"n": 1}, idempotency_key="k")

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.replace, commit], [begin, self.claim, commit]]

    def replace(self, conn: psycopg.Connection[Any]) -> None:
        sql = "SELECT replaced FROM pgqueue.enqueue_job('t', '{\"n\": 2}', idempotency_key => 'k', on_conflict => 'replace')"
        (self.replaced,) = conn.execute(sql).fetchone()  # type: ignore[misc]  # one row

    def claim(self, conn: psycopg.Connection[Any]) -> None:
        self.seen += [job.row["args"] for job in self.hand(conn).claim()]

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        self.claim(conn)
        runs_with = [row for row in self.seen if row == '{"n": 2}']
        return (
            []
            if bool(runs_with) == self.replaced
            else [f"replaced: {self.replaced}, but it runs with {self.seen}"]
        )


@pytest.mark.proves("DD3")
def test_a_job_runs_with_the_arguments_that_its_producer_was_told(database: Database) -> None:
    assert explore(database, ReplaceAndClaim()) == []


def test_twin_a_replacement_without_a_lock_promises_what_does_not_come(database: Database) -> None:
    make_function_naive(database, "replace_job", "FOR UPDATE;", ";")
    assert caught(database, ReplaceAndClaim())


class MeetAndStart(Scene):
    """A producer writes a row and meets the job that waits to read it, while a worker starts that job."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute("CREATE TABLE IF NOT EXISTS rig_rows (n int)")
        conn.execute("DELETE FROM rig_rows")
        enqueue(conn, idempotency_key="k", key_scope="waiting")
        self.read: list[int] = []

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.write, commit], [self.start, self.start]]

    def write(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute("INSERT INTO rig_rows VALUES (1)")
        enqueue(conn, idempotency_key="k", key_scope="waiting")

    def start(self, conn: psycopg.Connection[Any]) -> None:
        for _ in self.hand(conn).claim():
            (rows,) = conn.execute("SELECT count(*) FROM rig_rows").fetchone()  # type: ignore[misc]  # one row
            self.read.append(rows)

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        self.start(conn)
        return [] if self.read and self.read[-1] == 1 else ["no job has seen the row"]


@pytest.mark.proves("P13", "DD5")
def test_a_waiting_job_that_a_producer_met_sees_what_the_producer_wrote(database: Database) -> None:
    assert explore(database, MeetAndStart()) == []


def test_twin_a_waiting_job_that_is_only_looked_at_starts_too_soon(database: Database) -> None:
    make_function_naive(database, "key_is_held", "FOR KEY SHARE", "")
    assert caught(database, MeetAndStart())
