"""`pgqueue.reschedule`: what it moves, what it leaves and says why, what it writes down, and its races.

On the newest and the oldest supported server. Races are played in every order, each with a broken twin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, enqueue, row_of, shared_database, transitions, wiped
from rig.interleave import Scene, begin, caught, commit, explore, make_function_naive
from rig.orders import Step


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


def move(conn: psycopg.Connection[Any], job_id: int, **given: Any) -> str:
    names = ", ".join(f"{name} => %({name})s" for name in given)
    row = conn.execute(
        f"SELECT pgqueue.reschedule(%(job_id)s, {names})".encode(), {"job_id": job_id, **given}
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_a_scheduled_job_is_moved_and_says_so(conn: psycopg.Connection[Any]) -> None:
    job_id = enqueue(conn, delay="1 hour")
    before = row_of(conn, "jobs", job_id)
    later = datetime.now(UTC) + timedelta(days=2)
    assert (
        move(conn, job_id, run_at=later, reason="the party is over", actor="olga", via="cli") == "rescheduled"
    )
    row = row_of(conn, "jobs", job_id)
    assert before is not None
    assert row == {**before, "run_at": later}
    assert transitions(conn, job_id) == [("scheduled", "scheduled", "rescheduled")]
    audit = conn.execute(
        "SELECT a.actor, a.via, a.action, a.target, a.reason, (a.detail ->> 'to')::timestamptz, (a.detail ->> 'from')::timestamptz,"
        " t.next_run_at, t.note FROM pgqueue.operator_audit a, pgqueue.job_transitions t"
    ).fetchall()
    why = "the party is over"
    assert audit == [("olga", "cli", "reschedule", f"job {job_id}", why, later, before["run_at"], later, why)]


def test_a_ready_job_leaves_its_lane_and_comes_back_at_its_tail(conn: psycopg.Connection[Any]) -> None:
    hand = Hand(conn)
    moved, stays = enqueue(conn), enqueue(conn)
    assert move(conn, moved, delay="1 hour") == "rescheduled"
    assert [job.id for job in hand.claim()] == [stays]
    assert transitions(conn, moved) == [("ready", "scheduled", "rescheduled")]
    assert move(conn, moved, delay="0 s") == "rescheduled"
    row = row_of(conn, "jobs", moved)
    assert row is not None
    assert row["state"] == "ready"
    assert row["ready_seq"] > stays
    assert [job.id for job in hand.claim()] == [moved]


@pytest.mark.proves("P8")
def test_a_moment_that_has_passed_makes_it_ready_at_once_and_waiting_counts_from_now(
    conn: psycopg.Connection[Any],
) -> None:
    job_id = enqueue(conn, queue="mail", delay="1 hour")
    listener = psycopg.connect(conn.info.dsn, autocommit=True)
    listener.execute("LISTEN pgqueue_wake")
    hand = Hand(conn)
    hand.run("fall_asleep", queues=["mail"], id=hand.worker_id)
    assert move(conn, job_id, run_at="2001-01-01T00:00Z") == "rescheduled"
    assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1
    listener.close()
    row = row_of(conn, "jobs", job_id)
    assert row is not None
    assert row["state"] == "ready"
    assert datetime.now(UTC) - row["run_at"] < timedelta(minutes=1)


def test_what_cannot_be_moved_says_why_and_stays(conn: psycopg.Connection[Any]) -> None:
    hand = Hand(conn)
    running = enqueue(conn)
    (taken,) = hand.claim()
    ready = enqueue(conn)
    held = enqueue(conn, task="nobody_knows")
    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'suspect', ready_seq = NULL WHERE id = %s",
        [held],
    )
    expires = enqueue(conn, delay="1 hour", expires_at=datetime.now(UTC) + timedelta(hours=2))
    before = {job_id: row_of(conn, "jobs", job_id) for job_id in (running, ready, held, expires)}
    assert move(conn, running, delay="1 hour") == "running"
    assert move(conn, ready, delay="0 s") == "ready"
    assert move(conn, held, delay="1 hour") == "held"
    assert move(conn, expires, delay="3 hours") == "expires"
    assert {job_id: row_of(conn, "jobs", job_id) for job_id in before} == before
    assert hand.succeed(taken) == {running}
    assert move(conn, running, delay="1 hour") == "ended"
    assert move(conn, 999_999_999, delay="1 hour") == "unknown"
    row = conn.execute("SELECT count(*) FROM pgqueue.operator_audit").fetchone()
    assert row == (0,), "nothing was done"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"delay": None}, "run_at: give it or delay, one of them"),
        ({"delay": "1 s", "run_at": "2030-01-01T00:00Z"}, "run_at: give it or delay, one of them"),
        ({"delay": "-1 s"}, "delay: must not be negative"),
        ({"delay": "11 years"}, "delay: is too long"),
        ({"run_at": "infinity"}, "run_at: lies too far in the future"),
        ({"run_at": "-infinity"}, "run_at: is not a moment"),
    ],
)
def test_a_moment_that_is_none_is_refused(
    conn: psycopg.Connection[Any], given: dict[str, Any], words: str
) -> None:
    job_id = enqueue(conn, delay="1 hour")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=words):
        move(conn, job_id, **given)


# Races.


class MoveClaimPromote(Scene):
    """A job is due: somebody moves it away by an hour, while it is promoted and claimed."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.job = enqueue(conn, delay="1 hour")
        conn.execute("UPDATE pgqueue.jobs SET run_at = clock_timestamp() - interval '1 s'")
        self.verdict = ""
        self.claimed: list[int] = []

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.move, commit], [self.promote, begin, self.claim, commit]]

    def move(self, conn: psycopg.Connection[Any]) -> None:
        self.verdict = move(conn, self.job, delay="1 hour")

    def promote(self, conn: psycopg.Connection[Any]) -> None:
        self.hand(conn).promote()

    def claim(self, conn: psycopg.Connection[Any]) -> None:
        self.claimed = [job.id for job in self.hand(conn).claim()]

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        row = row_of(conn, "jobs", self.job)
        if row is None:
            return ["it is gone"]
        found = []
        if self.verdict == "rescheduled" and (self.claimed or row["state"] != "scheduled"):
            found.append(f"it was moved, and is {row['state']}")
        if self.verdict == "running" and not self.claimed:
            found.append("it was said to run, and nobody has it")
        if self.verdict not in {"rescheduled", "running"}:
            found.append(f"a due job was not moved: {self.verdict}")
        if self.claimed and row["state"] != "running":
            found.append(f"a worker has it, and its row says {row['state']}")
        return found


@pytest.mark.proves("P8", "P4")
def test_a_move_a_promotion_and_a_claim_agree_on_what_becomes_of_a_job(database: Database) -> None:
    assert explore(database, MoveClaimPromote()) == []


def test_twin_a_move_that_looks_without_a_lock_takes_a_job_from_its_worker(database: Database) -> None:
    make_function_naive(
        database, "reschedule", "WHERE j.id = reschedule.job_id FOR UPDATE", "WHERE j.id = reschedule.job_id"
    )
    # The table's checks would refuse the worst of it; without them the claim is simply overwritten.
    for check in ("jobs_claim_check", "jobs_lane_check"):
        database.connect().execute(f"ALTER TABLE pgqueue.jobs DROP CONSTRAINT {check}".encode())
    assert caught(database, MoveClaimPromote())


class TwoMoves(Scene):
    """Two people move a job at once, and one cancels it."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.job = enqueue(conn, delay="1 hour")
        self.verdicts: list[str] = []
        self.cancelled = ""

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [
            [begin, lambda conn: self.move(conn, "2 hours"), commit],
            [lambda conn: self.move(conn, "3 hours")],
            [begin, self.cancel, commit],
        ]

    def move(self, conn: psycopg.Connection[Any], delay: str) -> None:
        self.verdicts.append(move(conn, self.job, delay=delay))

    def cancel(self, conn: psycopg.Connection[Any]) -> None:
        row = conn.execute("SELECT pgqueue.cancel(%s)", [self.job]).fetchone()
        self.cancelled = "" if row is None else str(row[0])

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        found = []
        if self.cancelled != "cancelled" or row_of(conn, "jobs", self.job) is not None:
            found.append(f"the cancel said {self.cancelled} and the job lives")
        moved = conn.execute(
            "SELECT count(*) FROM pgqueue.job_transitions WHERE reason = 'rescheduled'"
        ).fetchone()
        if moved != (self.verdicts.count("rescheduled"),) or set(self.verdicts) - {"rescheduled", "ended"}:
            found.append(f"{self.verdicts} were told, {moved} are written down")
        return found


@pytest.mark.proves("P19", "P22")
def test_moves_and_a_cancel_leave_one_end_and_a_row_for_each_move(database: Database) -> None:
    assert explore(database, TwoMoves()) == []
