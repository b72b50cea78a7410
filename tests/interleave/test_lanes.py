"""claim ∥ claim, claim ∥ cancel, promote ∥ promote, promote ∥ cancel, hold ∥ free, redrive ∥ redrive: every order.

Each with a twin whose lock is taken out of the real statement: where the twin passes, the rig proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, Taken, enqueue, places_of, row_of, transitions, wipe
from rig.orders import merges, play

from pgqueue.storage.statements import STATEMENTS

SKIP_LOCKED = b"FOR UPDATE SKIP LOCKED"
Step = Callable[[psycopg.Connection[Any]], None]
LOCKED: dict[str, bytes] = {}


def unlocked(name: str) -> dict[str, bytes]:
    """The statement without its row lock, as texts of a hand."""
    text = STATEMENTS[name]
    assert SKIP_LOCKED in text
    return {name: text.replace(SKIP_LOCKED, b"")}


def unlock_function(conn: psycopg.Connection[Any], signature: str, locking: str) -> None:
    """Replace a function of the test's own database by itself without the row lock of the query that ends so."""
    row = conn.execute("SELECT pg_get_functiondef(%s::regprocedure)", [signature]).fetchone()
    assert row is not None
    assert row[0].count(f"{locking} FOR UPDATE;") == 1
    conn.execute(row[0].replace(f"{locking} FOR UPDATE;", f"{locking};").encode())


class Stage:
    """A database that is emptied before each order, and what the actors saw."""

    def __init__(self, database: Database, texts: dict[str, bytes] | None = None) -> None:
        self.dsn = database.dsn
        self.conn = database.connect()
        self.texts = texts or {}
        self.hand = Hand(self.conn)
        self.job = 0
        self.seen: list[Any] = []

    def transaction(self, act: Callable[[Hand], Any]) -> list[Step]:
        """Two steps: begin and act, then commit. What `act` returns is seen only if the commit happens."""
        answers: list[Any] = []

        def begin(conn: psycopg.Connection[Any]) -> None:
            conn.execute("BEGIN")
            answers.append(act(Hand(conn, texts=self.texts)))

        def commit(conn: psycopg.Connection[Any]) -> None:
            conn.execute("COMMIT")
            self.seen += answers

        return [begin, commit]

    def violations(
        self,
        prepare: Callable[[], Any],
        actors: Callable[[], Sequence[list[Step]]],
        broken: Callable[[], bool],
    ) -> list[list[int]]:
        """The orders that broke the promise."""
        found = []
        for order in merges([2] * len(actors())):
            wipe(self.conn)
            self.seen = []
            prepare()
            errors = play(self.dsn, self.conn, actors(), order)
            assert errors == [[] for _ in errors], (order, errors)
            if broken():
                found.append(order)
        return found

    def row(self, table: str = "jobs") -> dict[str, Any]:
        row = row_of(self.conn, table, self.job)
        assert row is not None, table
        return row

    def ready(self) -> None:
        self.job = enqueue(self.conn)

    def due(self) -> None:
        self.job = enqueue(self.conn, delay="1 hour")
        self.conn.execute("UPDATE pgqueue.jobs SET run_at = clock_timestamp() - interval '1 s'")

    def cancel(self, hand: Hand) -> str:
        row = hand.conn.execute("SELECT pgqueue.cancel(%s)", [self.job]).fetchone()
        assert row is not None
        return str(row[0])


@pytest.fixture
def stage(database: Database) -> Callable[..., Stage]:
    return lambda texts=None: Stage(database, texts)


def claim_claim(stage: Stage) -> list[list[int]]:
    def broken() -> bool:
        taken = [job.id for jobs in stage.seen for job in jobs]
        return taken != [stage.job] or stage.row()["attempt"] != 1

    return stage.violations(
        stage.ready, lambda: [stage.transaction(lambda hand: hand.claim()) for _ in "ab"], broken
    )


@pytest.mark.proves("P4", "P6")
def test_one_of_two_claimers_gets_the_job(stage: Callable[..., Stage]) -> None:
    assert claim_claim(stage(LOCKED)) == []


def test_twin_claimers_without_a_row_lock_both_get_it(stage: Callable[..., Stage]) -> None:
    assert claim_claim(stage(unlocked("claim_batch"))) != []


def claim_cancel(stage: Stage) -> list[list[int]]:
    def broken() -> bool:
        answer = next(one for one in stage.seen if isinstance(one, str))
        claimed = [job for jobs in stage.seen if not isinstance(jobs, str) for job in jobs]
        # Either it was cancelled and nobody has it, or somebody has it and was asked to stop.
        expected = ("requested", ["jobs"]) if claimed else ("cancelled", ["job_history"])
        return (answer, places_of(stage.conn, stage.job)) != expected

    return stage.violations(
        stage.ready,
        lambda: [stage.transaction(lambda hand: hand.claim()), stage.transaction(stage.cancel)],
        broken,
    )


@pytest.mark.proves("P6", "P19")
def test_a_cancelled_job_is_not_claimed(stage: Callable[..., Stage]) -> None:
    assert claim_cancel(stage(LOCKED)) == []


def test_twin_a_cancel_without_a_row_lock_takes_a_running_job_away(stage: Callable[..., Stage]) -> None:
    twin = stage(LOCKED)
    unlock_function(twin.conn, "pgqueue.cancel(bigint,text,text,text)", "cancel.job_id")
    assert claim_cancel(twin) != []


def promote_promote(stage: Stage) -> list[list[int]]:
    def broken() -> bool:
        return sum(sum(counts.values()) for counts in stage.seen) != 1 or stage.row()["state"] != "ready"

    return stage.violations(
        stage.due, lambda: [stage.transaction(lambda hand: hand.promote()) for _ in "ab"], broken
    )


@pytest.mark.proves("P6", "P8")
def test_a_due_job_is_promoted_once(stage: Callable[..., Stage]) -> None:
    assert promote_promote(stage(LOCKED)) == []


def test_twin_promoters_without_a_row_lock_move_it_twice(stage: Callable[..., Stage]) -> None:
    assert promote_promote(stage(unlocked("promote_due"))) != []


def promote_cancel(stage: Stage) -> list[list[int]]:
    def broken() -> bool:
        promoted = any(counts for counts in stage.seen if isinstance(counts, dict))
        before = "ready" if promoted else "scheduled"
        return (
            places_of(stage.conn, stage.job) != ["job_history"]
            or (stage.row("job_history")["ready_seq"] is not None) != promoted
            or transitions(stage.conn, stage.job) != [(before, "cancelled", "cancelled")]
        )

    return stage.violations(
        stage.due,
        lambda: [stage.transaction(lambda hand: hand.promote()), stage.transaction(stage.cancel)],
        broken,
    )


@pytest.mark.proves("P6", "P19", "P22")
def test_a_cancel_tells_from_where_it_took_the_job(stage: Callable[..., Stage]) -> None:
    assert promote_cancel(stage(LOCKED)) == []


def test_twin_a_cancel_without_a_row_lock_tells_the_wrong_place(stage: Callable[..., Stage]) -> None:
    twin = stage(LOCKED)
    unlock_function(twin.conn, "pgqueue.cancel(bigint,text,text,text)", "cancel.job_id")
    assert promote_cancel(twin) != []


def hold_free(stage: Stage) -> list[list[int]]:
    running: list[Taken] = []

    def prepare() -> None:
        stage.ready()
        running[:] = stage.hand.claim()

    def broken() -> bool:
        freed = sum(count for count in stage.seen if isinstance(count, int))
        state = "ready" if freed else "held"
        noted = [step[2] for step in transitions(stage.conn, stage.job)].count("freed")
        return freed > 1 or noted != freed or stage.row()["state"] != state

    return stage.violations(
        prepare,
        lambda: [
            stage.transaction(lambda hand: hand.settle("held", *running, reason="unknown_task")),
            *(stage.transaction(lambda hand: hand.free_held(tasks=["t"])) for _ in "ab"),
        ],
        broken,
    )


@pytest.mark.proves("P6", "P22", "F55")
def test_a_held_job_is_freed_once(stage: Callable[..., Stage]) -> None:
    assert hold_free(stage(LOCKED)) == []


def test_twin_freeing_without_a_row_lock_frees_twice(stage: Callable[..., Stage]) -> None:
    assert hold_free(stage(unlocked("free_held"))) != []


def redrive_redrive(stage: Stage) -> list[list[int]]:
    def prepare() -> None:
        stage.ready()
        stage.hand.settle("dead", *stage.hand.claim(), reason="rejected")

    def redrive(hand: Hand) -> int:
        row = hand.conn.execute("SELECT pgqueue.redrive(%s)", [stage.job]).fetchone()
        assert row is not None
        return int(row[0])

    def broken() -> bool:
        made = [job for (job,) in stage.conn.execute("SELECT id FROM pgqueue.jobs").fetchall()]
        return len(made) != 1 or set(stage.seen) != set(made)

    return stage.violations(prepare, lambda: [stage.transaction(redrive) for _ in "ab"], broken)


@pytest.mark.proves("P6", "F53")
def test_a_dead_letter_is_redriven_once(stage: Callable[..., Stage]) -> None:
    assert redrive_redrive(stage(LOCKED)) == []


def test_twin_redrives_without_a_row_lock_make_two_jobs(stage: Callable[..., Stage]) -> None:
    twin = stage(LOCKED)
    unlock_function(
        twin.conn, "pgqueue.redrive(bigint,text,text,text,text,integer,interval)", "redrive.job_id"
    )
    assert redrive_redrive(twin) != []
