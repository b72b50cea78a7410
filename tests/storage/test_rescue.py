"""The statements of rescue.sql and heart.sql, each: what it takes, what its guard leaves, nothing, its limit.

On the newest and the oldest supported server; acts through rig.hands, looks at the tables themselves.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, Taken, enqueue, places_of, row_of, shared_database, transitions, wiped
from rig.wait import wait_for

LOCK_KEY = 4_611_686_018_427_387_905  # needs both halves of the lock's 64 bits
START = uuid.UUID(int=0)


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
    """The rescuer: alive."""
    hand = Hand(conn)
    hand.register()
    return hand


def status_of(conn: psycopg.Connection[Any], worker: Hand) -> str:
    row = conn.execute("SELECT status FROM pgqueue.workers WHERE id = %s", [worker.worker_id]).fetchone()
    assert row is not None
    return str(row[0])


def silent(hand: Hand, seconds: float) -> None:
    """A worker that was last heard of so long ago."""
    hand.conn.execute(
        "UPDATE pgqueue.workers SET beat_at = clock_timestamp() - make_interval(secs => %s) WHERE id = %s",
        [seconds, hand.worker_id],
    )


def victim(conn: psycopg.Connection[Any], jobs: int = 1, **options: Any) -> tuple[Hand, list[Taken]]:
    """A worker that took jobs and was declared dead."""
    dead = Hand(conn)
    dead.register()
    for _ in range(jobs):
        enqueue(conn, **options)
    taken = dead.claim(jobs)
    conn.execute(
        "UPDATE pgqueue.workers SET status = 'dead', ended_at = clock_timestamp() WHERE id = %s",
        [dead.worker_id],
    )
    return dead, sorted(taken, key=lambda job: job.id)


# Who is dead.


@pytest.mark.proves("P9")
def test_a_worker_whose_lease_ran_out_is_buried_and_one_within_it_is_not(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    late, fresh = Hand(conn), Hand(conn)
    late.register(lease_s=15), fresh.register(lease_s=15)
    silent(late, 15.1), silent(fresh, 14)
    assert [(str(row["id"]), row["case"]) for row in hand.bury()] == [(late.worker_id, "lease_expired")]
    assert (status_of(conn, late), status_of(conn, fresh)) == ("dead", "live")
    assert hand.bury() == [], "once"


@pytest.mark.proves("P9", "F54")
def test_a_free_liveness_lock_buries_after_two_seconds_of_silence(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    heart = any_database.connect()
    heart.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
    worker = Hand(conn)
    worker.register(lock_key=LOCK_KEY)
    silent(worker, 3)
    assert hand.bury() == []
    assert suspicion(conn, worker) is False
    heart.close()
    # The server frees the lock when it notices, a moment after the client has gone.
    wait_for(
        lambda: conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,),
        what="a free lock",
    )
    hand.run("watch_workers")
    assert suspicion(conn, worker) is True
    assert hand.bury() == [], "the lock may be on its way back"
    conn.execute("UPDATE pgqueue.workers SET suspected_at = suspected_at - interval '2.1 s'")
    assert [row["case"] for row in hand.bury()] == ["lock_free"]


@pytest.mark.proves("F54")
def test_a_lock_that_was_retaken_or_a_beat_clears_the_suspicion(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    worker = Hand(conn)
    worker.register(lock_key=LOCK_KEY)
    hand.run("watch_workers")
    assert suspicion(conn, worker) is True
    assert worker.beat() is False
    assert suspicion(conn, worker) is False
    hand.run("watch_workers")
    any_database.connect().execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
    hand.run("watch_workers")
    assert suspicion(conn, worker) is False


def suspicion(conn: psycopg.Connection[Any], worker: Hand) -> bool:
    row = conn.execute(
        "SELECT suspected_at IS NOT NULL FROM pgqueue.workers WHERE id = %s", [worker.worker_id]
    ).fetchone()
    assert row is not None
    return bool(row[0])


@pytest.mark.proves("S10")
def test_a_stranger_on_the_lock_leaves_the_lease_to_decide(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    worker = Hand(conn)
    worker.register(lock_key=LOCK_KEY, lease_s=15)
    any_database.connect().execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
    silent(worker, 14)
    assert hand.bury() == []
    silent(worker, 16)
    assert [row["case"] for row in hand.bury()] == ["lease_expired"]


@pytest.mark.proves("F26s")
@pytest.mark.parametrize("lock_key", [LOCK_KEY, None])
def test_a_beat_that_lies_ahead_counts_from_now(
    conn: psycopg.Connection[Any], hand: Hand, lock_key: int | None
) -> None:
    """The clock was put back: by its last beat alone a dead worker would keep its claims until the clock has caught up."""
    worker = Hand(conn)
    worker.register(lock_key=lock_key)
    silent(worker, -3600)
    assert hand.bury() == []
    beaten = "SELECT beat_at <= clock_timestamp() FROM pgqueue.workers WHERE id = %s"
    assert conn.execute(beaten, [worker.worker_id]).fetchone() == (True,)
    conn.execute(
        "UPDATE pgqueue.workers SET beat_at = beat_at - interval '15.1 s' WHERE id = %s", [worker.worker_id]
    )
    assert [row["case"] for row in hand.bury()] == ["lease_expired"]


def test_a_worker_without_a_lock_is_never_suspected(conn: psycopg.Connection[Any], hand: Hand) -> None:
    hand.run("watch_workers")
    assert suspicion(conn, hand) is False


@pytest.mark.parametrize("status", ["stopped", "dead"])
def test_workers_that_ended_are_not_buried_again(
    conn: psycopg.Connection[Any], hand: Hand, status: str
) -> None:
    ended = Hand(conn)
    ended.register()
    silent(ended, 100)
    conn.execute("UPDATE pgqueue.workers SET status = %s WHERE id = %s", [status, ended.worker_id])
    assert hand.bury() == []


# What the dead held.


def dead_claims(hand: Hand, *, after: Any = START, batch: int = 200) -> list[str]:
    return [str(row["claim_id"]) for row in hand.run("dead_claims", after=after, batch=batch)]


@pytest.mark.proves("F36")
def test_open_claims_are_found_whatever_became_of_the_workers_row(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue(conn)
    hand.claim()
    _, (marked,) = victim(conn)
    gone, (orphan,) = victim(conn)
    conn.execute("DELETE FROM pgqueue.workers WHERE id = %s", [gone.worker_id])
    assert set(dead_claims(hand)) == {marked.claim_id, orphan.claim_id}


def test_dead_claims_are_paged_past_any_number_of_living_ones(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    """A full page of claims that may not be rescued once hid the rest."""
    for _ in range(7):
        enqueue(conn)
        hand.claim(1)
    dead = [taken.claim_id for _ in range(5) for taken in victim(conn)[1]]
    found: list[str] = []
    after: Any = START
    while page := dead_claims(hand, after=after, batch=2):
        assert len(page) <= 2
        found += page
        after = page[-1]
    assert found == sorted(dead, key=uuid.UUID)


@pytest.mark.proves("P6", "F1")
def test_a_rescued_job_is_held_as_a_suspect_with_the_crash_among_its_errors(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    dead, (job,) = victim(conn)
    (rescued,) = hand.rescue(job.claim_id)
    assert (rescued["id"], rescued["to_state"], rescued["queue"], rescued["task"]) == (
        job.id,
        "held",
        "default",
        "t",
    )
    row = row_of(conn, "jobs", job.id)
    assert row is not None
    assert (row["state"], row["hold_reason"], row["attempt"]) == ("held", "suspect", 1)
    assert (row["claim_id"], row["worker_id"], row["ready_seq"], row["started_at"]) == (None,) * 4
    (error,) = row["errors"]
    assert (error["type"], error["attempt"], error["worker_id"]) == ("WorkerCrash", 1, dead.worker_id)
    assert transitions(conn, job.id) == [("running", "held", "rescued")]
    assert conn.execute("SELECT count(*) FROM pgqueue.claims").fetchone() == (0,)


@pytest.mark.proves("P6", "F5")
def test_a_job_that_used_up_its_attempts_is_dead_lettered_as_a_crash(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    dead, (job,) = victim(conn, max_attempts=1, args={"n": 1})
    assert [row["to_state"] for row in hand.rescue(job.claim_id)] == ["dead"]
    assert places_of(conn, job.id) == ["dead_letter_jobs"]
    letter = row_of(conn, "dead_letter_jobs", job.id)
    assert letter is not None
    assert (letter["reason"], letter["error_type"], letter["attempts"]) == ("worker_crash", "WorkerCrash", 1)
    assert (letter["args"], str(letter["worker_id"])) == ({"n": 1}, dead.worker_id)
    assert letter["error_fingerprint"]
    assert transitions(conn, job.id) == [("running", "dead", "worker_crash")]


@pytest.mark.parametrize(("own_policy", "ends"), [(None, "dead"), ('{"max_retries": 5}', "held")])
def test_the_tasks_attempts_as_configured_now_decide_unless_the_job_has_its_own(
    conn: psycopg.Connection[Any], hand: Hand, own_policy: str | None, ends: str
) -> None:
    _, (job,) = victim(conn, max_attempts=6, retry=own_policy)
    conn.execute(
        "INSERT INTO pgqueue.tasks (name, queue, priority, max_attempts) VALUES ('t', 'default', 5, 1)"
    )
    assert [row["to_state"] for row in hand.rescue(job.claim_id)] == [ends]


@pytest.mark.proves("P4")
def test_a_living_workers_claim_is_not_rescued(conn: psycopg.Connection[Any], hand: Hand) -> None:
    worker = Hand(conn)
    worker.register()
    enqueue(conn)
    (job,) = worker.claim()
    assert hand.rescue(job.claim_id) == []
    assert worker.succeed(job) == {job.id}


@pytest.mark.proves("P6")
def test_a_rescue_after_the_settlement_takes_nothing(conn: psycopg.Connection[Any], hand: Hand) -> None:
    dead, (first, second) = victim(conn, 2)
    dead.succeed(first)
    assert [row["id"] for row in hand.rescue(first.claim_id)] == [second.id]
    assert places_of(conn, first.id) == ["job_history"]
    assert hand.rescue(first.claim_id) == []


@pytest.mark.proves("P4", "F3")
def test_a_job_that_another_claim_holds_by_now_is_not_rescued_with_the_old_one(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    dead, (job,) = victim(conn)
    conn.execute(
        "INSERT INTO pgqueue.claims SELECT %s, worker_id, claimed_at, job_ids FROM pgqueue.claims",
        [uuid.uuid4()],
    )
    hand.rescue(job.claim_id)
    again = hand.claim_suspect()
    assert again is not None
    (leftover,) = dead_claims(hand)
    assert leftover not in {job.claim_id, again.claim_id}
    assert hand.rescue(leftover) == []
    assert hand.succeed(again) == {job.id}
    assert dead.succeed(job) == set()


@pytest.mark.proves("F21")
def test_a_locked_job_is_rescued_in_a_later_round(any_database: Database, hand: Hand) -> None:
    _, (locked, free) = victim(hand.conn, 2)
    admin = any_database.connect(autocommit=False)
    admin.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", [locked.id])
    assert [row["id"] for row in hand.rescue(locked.claim_id)] == [free.id]
    assert dead_claims(hand) == [locked.claim_id], "the claim stays until its last job is taken"
    admin.rollback()
    assert [row["id"] for row in hand.rescue(locked.claim_id)] == [locked.id]
    assert dead_claims(hand) == []


def test_a_claim_of_jobs_that_are_gone_is_closed(conn: psycopg.Connection[Any], hand: Hand) -> None:
    dead, (job,) = victim(conn)
    dead.succeed(job)
    assert hand.rescue(job.claim_id) == []
    assert dead_claims(hand) == []


@pytest.mark.proves("F36")
def test_workers_are_forgotten_a_day_after_their_end_unless_a_claim_still_names_them(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    idle, (job,) = victim(conn)
    holder, _ = victim(conn)
    young = Hand(conn)
    young.register()
    conn.execute("UPDATE pgqueue.workers SET ended_at = ended_at - interval '25 h' WHERE status = 'dead'")
    conn.execute(
        "UPDATE pgqueue.workers SET status = 'stopped', ended_at = clock_timestamp() WHERE id = %s",
        [young.worker_id],
    )
    hand.rescue(job.claim_id)
    hand.run("forget_workers")
    left = {str(row[0]) for row in conn.execute("SELECT id FROM pgqueue.workers").fetchall()}
    assert left == {hand.worker_id, holder.worker_id, young.worker_id}
    assert idle.worker_id not in left


@pytest.mark.proves("F51")
def test_the_wishes_of_workers_that_are_gone_are_forgotten(conn: psycopg.Connection[Any], hand: Hand) -> None:
    gone, _ = victim(conn)
    for worker in (gone, hand):
        worker.run("fall_asleep", queues=["default", "mail"], id=worker.worker_id)
    hand.run("forget_sleepers")
    rows = conn.execute("SELECT DISTINCT worker_id::text FROM pgqueue.sleepers").fetchall()
    assert rows == [(hand.worker_id,)]


# The heart.


def test_registering_makes_the_row_that_people_see(conn: psycopg.Connection[Any]) -> None:
    worker = Hand(conn)
    worker.register(queues=("mail", "pay"), lease_s=7)
    row = conn.execute(
        "SELECT status, queues, lease_s, slots, started_at = beat_at FROM pgqueue.workers WHERE id = %s",
        [worker.worker_id],
    ).fetchone()
    assert row is not None
    assert row[:4] == ("live", ["mail", "pay"], 7.0, 1)


def test_queues_become_known_and_keep_their_switches(conn: psycopg.Connection[Any], hand: Hand) -> None:
    conn.execute("SELECT pgqueue.pause('pay')")
    hand.run("register_queues", queues=["pay", "mail"], defaults="{}")
    rows = conn.execute("SELECT name, paused_at IS NOT NULL FROM pgqueue.queues ORDER BY name").fetchall()
    assert rows == [("mail", False), ("pay", True)]


def test_tasks_tell_producers_their_defaults_and_only_changes_are_written(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    def register(attempts: int) -> Any:
        text = f'[{{"name": "t", "queue": "mail", "priority": 2, "max_attempts": {attempts}}}]'
        hand.run("register_tasks", tasks=text)
        return conn.execute("SELECT queue, priority, max_attempts, xmin::text FROM pgqueue.tasks").fetchone()

    first = register(4)
    assert first[:3] == ("mail", 2, 4)
    assert register(4) == first
    assert register(5)[:3] == ("mail", 2, 5)
    row = row_of(conn, "jobs", enqueue(conn, "t"))
    assert row is not None
    assert (row["queue"], row["priority"], row["max_attempts"]) == ("mail", 2, 5)


@pytest.mark.proves("F3")
def test_a_late_beat_of_a_worker_declared_dead_brings_nothing_back(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    dead, _ = victim(conn)
    assert dead.beat() is None
    assert status_of(conn, dead) == "dead"
    assert hand.beat() is False
    assert Hand(conn).beat() is None, "a worker that never registered"


def test_a_beat_tells_that_an_operator_wants_a_drain(conn: psycopg.Connection[Any], hand: Hand) -> None:
    conn.execute("UPDATE pgqueue.workers SET drain_requested_at = clock_timestamp()")
    assert hand.beat("draining") is True
    assert status_of(conn, hand) == "draining"


@pytest.mark.proves("P19")
def test_cancel_requests_reach_the_claims_holder_and_nobody_else(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    wanted, other = enqueue(conn), enqueue(conn)
    taken = {job.id: job for job in hand.claim()}
    assert hand.run("cancel_requests", id=hand.worker_id) == []
    assert conn.execute("SELECT pgqueue.cancel(%s, 'why')", [wanted]).fetchone() == ("requested",)
    (request,) = hand.run("cancel_requests", id=hand.worker_id)
    assert (request["id"], str(request["claim_id"])) == (wanted, taken[wanted].claim_id)
    assert Hand(conn).run("cancel_requests", id=str(uuid.uuid4())) == []
    hand.succeed(taken[wanted])
    assert hand.run("cancel_requests", id=hand.worker_id) == []
    assert other in taken


def test_pauses_are_told_and_one_that_has_ended_is_lifted(conn: psycopg.Connection[Any], hand: Hand) -> None:
    assert hand.run("paused_queues") == []
    conn.execute(
        "SELECT pgqueue.pause('pay'), pgqueue.pause('mail', NULL, clock_timestamp() + interval '1 h')"
    )
    assert {row["name"] for row in hand.run("paused_queues")} == {"pay", "mail"}
    conn.execute("UPDATE pgqueue.queues SET paused_until = clock_timestamp() WHERE name = 'mail'")
    assert {row["name"] for row in hand.run("paused_queues")} == {"pay"}
    assert conn.execute("SELECT paused_at FROM pgqueue.queues WHERE name = 'mail'").fetchone() == (None,)


def test_leaving_in_order_ends_the_row_but_never_revives_a_dead_one(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    dead, _ = victim(conn)
    for worker in (hand, dead):
        worker.run("end_worker", id=worker.worker_id, claimed=3, settled=2, failed=1, claims_lost=0)
    row = conn.execute(
        "SELECT status, claimed, settled, failed, ended_at IS NOT NULL FROM pgqueue.workers WHERE id = %s",
        [hand.worker_id],
    ).fetchone()
    assert row == ("stopped", 3, 2, 1, True)
    assert status_of(conn, dead) == "dead"


def test_falling_asleep_twice_is_one_wish_and_waking_ends_it(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    for _ in range(2):
        hand.run("fall_asleep", queues=["mail", "default"], id=hand.worker_id)
    assert conn.execute("SELECT count(*) FROM pgqueue.sleepers").fetchone() == (2,)
    hand.run("stay_awake", id=hand.worker_id)
    assert conn.execute("SELECT count(*) FROM pgqueue.sleepers").fetchone() == (0,)


def test_a_drain_is_done_when_nothing_is_left_to_do_now(conn: psycopg.Connection[Any], hand: Hand) -> None:
    def drained() -> bool:
        return bool(hand.one("drained", queues=["default"]))

    assert drained()
    enqueue(conn, delay="1 hour")
    enqueue(conn, queue="other")
    assert drained(), "deferred jobs and other queues are not waited for"
    enqueue(conn)
    assert not drained(), "ready"
    (job,) = hand.claim()
    assert not drained(), "running"
    hand.settle("retry", job, delay_s=3600)
    assert not drained(), "waits for a retry"
    conn.execute("UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'suspect' WHERE id = %s", [job.id])
    assert not drained(), "suspect"
    conn.execute("UPDATE pgqueue.jobs SET hold_reason = 'unknown_task' WHERE id = %s", [job.id])
    assert drained(), "held for another reason"
    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'scheduled', hold_reason = NULL, attempt = 0, run_at = clock_timestamp()"
        " WHERE id = %s",
        [job.id],
    )
    assert not drained(), "due"


def test_a_paused_queue_does_not_keep_a_drain_waiting(conn: psycopg.Connection[Any], hand: Hand) -> None:
    enqueue(conn)
    conn.execute("SELECT pgqueue.pause('default')")
    assert hand.one("drained", queues=["default"]) is True
