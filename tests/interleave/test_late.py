"""A cancel, a rescue, a burial or a sweep that meets a settlement, a beat or an enqueue: every order.

The real statements must come through all of them, and each one's broken twin must be caught in some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, enqueue, places_of, row_of, transitions
from rig.interleave import Scene, begin, caught, commit, explore, make_function_naive, naive
from rig.orders import Step

BLIND_CANCEL = ("cancel", "WHERE j.id = cancel.job_id FOR UPDATE", "WHERE j.id = cancel.job_id")


class RetryAndCancel(Scene):
    """A running job fails and would be retried while somebody cancels it: it must not run again."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.job = enqueue(conn)
        (self.taken,) = self.hand(conn).claim()

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.fail, commit], [begin, self.cancel, commit]]

    def fail(self, conn: psycopg.Connection[Any]) -> None:
        self.hand(conn).settle("retry", self.taken, error_type="ValueError")

    def cancel(self, conn: psycopg.Connection[Any]) -> None:
        row = conn.execute("SELECT pgqueue.cancel(%s, 'why')", [self.job]).fetchone()
        self.verdict = row[0] if row else None

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        if places_of(conn, self.job) != ["job_history"]:
            return [f"after {self.verdict} it waits for another run"]
        ends = [move for move in transitions(conn, self.job) if move[1] == "cancelled"]
        return [] if len(ends) == 1 else [f"ended {len(ends)} times"]


@pytest.mark.proves("P19", "P6", "P22")
def test_a_cancelled_job_that_fails_meanwhile_is_not_tried_again(database: Database) -> None:
    assert explore(database, RetryAndCancel()) == []


def test_twin_a_retry_that_does_not_look_for_a_cancel_runs_again(database: Database) -> None:
    # In its reason, too: the database takes no row of a retry that says it was cancelled.
    blind = naive(
        "settle_otherwise",
        ("j.cancel_requested_at IS NOT NULL AND s.kind", "false AND s.kind"),
        ("WHEN j.cancel_requested_at IS NULL THEN s.reason", "WHEN true THEN s.reason"),
    )
    assert caught(database, RetryAndCancel(blind))


def test_twin_a_cancel_without_a_lock_is_lost_on_the_way(database: Database) -> None:
    make_function_naive(database, *BLIND_CANCEL)
    assert caught(database, RetryAndCancel())


class LateRetry(Scene):
    """Worker A was declared dead and its job runs at B; A wakes up and reports a failure."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.job = enqueue(conn)
        (self.old,) = self.hand(conn).claim()
        Hand(conn).rescue(self.old.claim_id)
        again = Hand(conn).claim_suspect()
        assert again is not None
        self.new = again

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.late, commit], [begin, self.succeed, commit]]

    def late(self, conn: psycopg.Connection[Any]) -> None:
        self.settled_by_a = self.hand(conn).settle("retry", self.old)

    def succeed(self, conn: psycopg.Connection[Any]) -> None:
        self.settled_by_b = self.hand(conn).succeed(self.new)

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        found = []
        if self.settled_by_a:
            found.append("a claim that was lost settled something")
        if self.settled_by_b != {self.job} or places_of(conn, self.job) != ["job_history"]:
            found.append("the newest claim could not settle")
        return found


@pytest.mark.proves("P4", "F3")
def test_a_late_failure_changes_nothing(database: Database) -> None:
    assert explore(database, LateRetry()) == []


def test_twin_a_failure_guarded_by_the_state_alone_takes_the_job_from_its_new_run(database: Database) -> None:
    by_state = naive(
        "settle_otherwise",
        ("j.claim_id = s.claim_id", "j.state = 'running'"),
        ("j.claim_id = a.claim_id", "j.state = 'running'"),
    )
    assert caught(database, LateRetry(by_state))


class RetryAndRescue(Scene):
    """A worker was declared dead just as it reports a failure: one of the two counts."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.job = enqueue(conn)
        (self.taken,) = self.hand(conn).claim()

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.fail, commit], [begin, self.rescue, commit]]

    def fail(self, conn: psycopg.Connection[Any]) -> None:
        self.settled = self.hand(conn).settle("retry", self.taken)

    def rescue(self, conn: psycopg.Connection[Any]) -> None:
        self.rescued = self.hand(conn).rescue(self.taken.claim_id)

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        if self.settled and self.rescued:
            return ["it was settled, and rescued as if it had not been"]
        if not self.settled and not self.rescued:
            return ["nobody has it"]
        row = row_of(conn, "jobs", self.job)
        state = "scheduled" if self.settled else "held"
        return [] if row is not None and row["state"] == state else [f"{state} is not what its row says"]


@pytest.mark.proves("P4", "P6")
def test_a_failure_and_a_rescue_exclude_each_other(database: Database) -> None:
    assert explore(database, RetryAndRescue()) == []


def test_twin_a_rescue_without_row_locks_overwrites_a_settlement(database: Database) -> None:
    assert caught(database, RetryAndRescue(naive("rescue_claim", ("FOR UPDATE OF j SKIP LOCKED", ""))))


class LateBeat(Scene):
    """A worker whose lease ran out beats again while it is being buried."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.worker = self.hand(conn)
        self.worker.register(lease_s=15)
        enqueue(conn)
        (self.taken,) = self.worker.claim()
        conn.execute("UPDATE pgqueue.workers SET beat_at = clock_timestamp() - interval '20 s'")

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.beat, commit], [begin, self.bury, commit, self.rescue]]

    def beat(self, conn: psycopg.Connection[Any]) -> None:
        late = self.hand(conn)
        late.worker_id = self.worker.worker_id
        self.alive = late.beat()

    def bury(self, conn: psycopg.Connection[Any]) -> None:
        Hand(conn).run("bury_workers")

    def rescue(self, conn: psycopg.Connection[Any]) -> None:
        self.rescued = len(Hand(conn).rescue(self.taken.claim_id))

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        if self.alive is not None and self.rescued:
            return ["it was told that it lives, and its jobs were taken"]
        if self.alive is None and not self.rescued:
            return ["it was told that it is dead, and nobody took its jobs"]
        return []


@pytest.mark.proves("F3", "P9")
def test_a_late_beat_and_a_burial_agree_on_who_has_the_jobs(database: Database) -> None:
    assert explore(database, LateBeat()) == []


def test_twin_a_beat_that_revives_the_dead_leaves_both_with_the_jobs(database: Database) -> None:
    reviving = naive("beat", (" AND w.status IN ('live', 'draining')", ""))
    assert caught(database, LateBeat(reviving))


class ExpiryAndEnqueue(Scene):
    """A key's life is over: one producer takes it anew while it is swept away, another comes too."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute(
            "INSERT INTO pgqueue.dedup_keys (task, key, job_id, created_at, expires_at)"
            " VALUES ('t', 'k', 1, clock_timestamp(), clock_timestamp() - interval '1 s')"
        )
        self.told: list[int] = []

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.produce, commit], [self.expire], [self.produce]]

    def produce(self, conn: psycopg.Connection[Any]) -> None:
        self.told.append(enqueue(conn, idempotency_key="k"))

    def expire(self, conn: psycopg.Connection[Any]) -> None:
        self.hand(conn).one("expire_keys", batch=10)

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        row = conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE idempotency_key = 'k'").fetchone()
        if row == (1,) and len(set(self.told)) == 1:
            return []
        return [f"jobs of one key: {row}, ids told: {self.told}"]


@pytest.mark.proves("P13", "F53")
def test_a_key_taken_anew_survives_the_sweep_of_the_old_one(database: Database) -> None:
    assert explore(database, ExpiryAndEnqueue()) == []


def test_twin_a_sweep_without_row_locks_deletes_a_living_key(database: Database) -> None:
    assert caught(database, ExpiryAndEnqueue(naive("expire_keys", ("FOR UPDATE SKIP LOCKED", ""))))
