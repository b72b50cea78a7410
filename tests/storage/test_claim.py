"""The statements of claim.sql, each: what it takes, what its guard leaves alone, nothing there, its limit.

On the newest and the oldest supported server; acts through rig.hands, looks at the tables themselves.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import PRIORITIES, Hand, Taken, enqueue, row_of, shared_database, transitions, wiped

CLAIM_COLUMNS = [
    *("id", "pool", "task", "args", "attempt", "max_attempts", "priority", "ready_seq", "queue"),
    *("wait_s", "expired", "extras", "created_at"),
]


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
    hand = Hand(conn)
    hand.register()
    return hand


def ids(taken: list[Taken]) -> list[int]:
    """RETURNING promises no order; the order of claiming is that of (priority, ready_seq)."""
    return [job.id for job in sorted(taken, key=lambda job: (job.row["priority"], job.row["ready_seq"]))]


def test_a_claim_takes_the_ready_job_under_its_fence_and_counts_the_attempt(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    job_id = enqueue(conn, args={"ride_id": 7})
    (taken,) = hand.claim()
    row = row_of(conn, "jobs", job_id)
    assert row is not None
    assert (row["state"], row["attempt"]) == ("running", 1)
    assert (str(row["claim_id"]), str(row["worker_id"])) == (taken.claim_id, hand.worker_id)
    assert row["started_at"] is not None
    assert conn.execute("SELECT claim_id::text, worker_id::text, job_ids FROM pgqueue.claims").fetchall() == [
        (taken.claim_id, hand.worker_id, [job_id])
    ]


def test_a_claim_returns_what_a_run_needs_and_arguments_as_text(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue(conn, "rides.capture", args={"ride_id": 7})
    (taken,) = hand.claim()
    assert list(taken.row) == CLAIM_COLUMNS
    assert taken.row["args"] == '{"ride_id": 7}'
    assert (taken.row["task"], taken.row["queue"], taken.row["priority"]) == ("rides.capture", "default", 5)
    assert (taken.row["attempt"], taken.row["max_attempts"], taken.row["pool"]) == (1, 6, 1)
    assert taken.row["extras"] is None, "a plain job costs no second decoding"
    assert 0 <= taken.row["wait_s"] < 60
    assert taken.row["expired"] is None


def test_the_rarer_columns_travel_together(conn: psycopg.Connection[Any], hand: Hand) -> None:
    enqueue(
        conn,
        headers='{"trace": "abc"}',
        tags=["a"],
        idempotency_key="k",
        concurrency_key="c",
        timeout_s=3.5,
        retry='{"max_retries": 1}',
    )
    (taken,) = hand.claim()
    extras = conn.execute("SELECT %s::jsonb", [taken.row["extras"]]).fetchone()
    assert extras is not None
    assert extras[0].pop("claimed_epoch") > 1_700_000_000
    assert extras == (
        {
            "first_due_epoch": None,
            "headers": {"trace": "abc"},
            "tags": ["a"],
            "idempotency_key": "k",
            "concurrency_key": "c",
            "timeout_s": 3.5,
            "retry": {"max_retries": 1},
            "parent_id": None,
            "redrive_of": None,
        },
    )


def test_an_expired_job_is_claimed_and_said_to_be_so(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job_id = enqueue(conn)
    conn.execute(
        "UPDATE pgqueue.jobs SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s", [job_id]
    )
    (taken,) = hand.claim()
    assert taken.row["expired"] is True


def test_nothing_ready_is_an_empty_answer_and_leaves_no_claim(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue(conn, delay="1 hour")
    assert hand.claim() == []
    assert conn.execute("SELECT count(*) FROM pgqueue.claims").fetchone() == (0,)


@pytest.mark.proves("P11")
def test_a_claim_takes_the_better_priority_first_and_then_the_older(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    late = [enqueue(conn, priority=5) for _ in range(3)]
    urgent = [enqueue(conn, priority=0) for _ in range(2)]
    idle = [enqueue(conn, priority=9)]
    assert ids(hand.claim(3)) == [*urgent, late[0]]
    assert ids(hand.claim(3)) == [*late[1:], *idle]


def test_a_claim_takes_no_more_than_it_wants(conn: psycopg.Connection[Any], hand: Hand) -> None:
    jobs = [enqueue(conn) for _ in range(5)]
    assert ids(hand.claim(2)) == jobs[:2]
    assert conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'").fetchone() == (2,)


def test_each_pool_takes_from_its_own_queues_up_to_its_own_want(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    mail = [enqueue(conn, queue="mail") for _ in range(3)]
    pay = [enqueue(conn, queue="pay") for _ in range(3)]
    ship = enqueue(conn, queue="ship")
    lanes = [(1, "pay", 5, -1), (2, "mail", 5, -1), (2, "ship", 5, -1)]
    taken = hand.claim_lanes([2, 4], lanes)
    by_pool = {pool: {job.id for job in taken if job.row["pool"] == pool} for pool in (1, 2)}
    assert by_pool == {1: set(pay[:2]), 2: {*mail, ship}}


def test_a_pool_that_wants_nothing_gets_nothing(conn: psycopg.Connection[Any], hand: Hand) -> None:
    enqueue(conn, queue="pay")
    enqueue(conn, queue="mail")
    taken = hand.claim_lanes([0, 1], [(1, "pay", 5, -1), (2, "mail", 5, -1)])
    assert [job.row["queue"] for job in taken] == ["mail"]


def test_queues_share_a_pool_by_priority_before_the_turn_of_the_queue(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    """The claimer lists lanes by priority, then by queue: an urgent job of the second queue goes first."""
    plain = enqueue(conn, queue="first", priority=5)
    urgent = enqueue(conn, queue="second", priority=1)
    assert [job.id for job in hand.claim(1, queues=("first", "second"))] == [urgent]
    assert [job.id for job in hand.claim(1, queues=("first", "second"))] == [plain]


@pytest.mark.parametrize("state", ["scheduled", "held", "running"])
def test_only_ready_jobs_are_taken(conn: psycopg.Connection[Any], hand: Hand, state: str) -> None:
    job_id = enqueue(conn, **({"delay": "1 hour"} if state == "scheduled" else {}))
    if state == "running":
        assert len(hand.claim()) == 1
    if state == "held":
        conn.execute(
            "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'operator', ready_seq = NULL WHERE id = %s",
            [job_id],
        )
    assert Hand(conn).claim() == []


@pytest.mark.proves("P20")
def test_a_paused_queue_gives_nothing_and_the_others_go_on(conn: psycopg.Connection[Any], hand: Hand) -> None:
    paused = enqueue(conn, queue="pay")
    other = enqueue(conn, queue="mail")
    conn.execute("SELECT pgqueue.pause('pay', 'bank is down')")
    assert ids(hand.claim(queues=("pay", "mail"))) == [other]
    conn.execute("SELECT pgqueue.resume('pay')")
    assert ids(hand.claim(queues=("pay", "mail"))) == [paused]


@pytest.mark.proves("F21")
def test_a_job_locked_by_somebody_is_left_and_the_next_is_taken(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    locked, free = enqueue(conn), enqueue(conn)
    admin = any_database.connect(autocommit=False)
    admin.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", [locked])
    assert ids(hand.claim()) == [free]
    admin.rollback()
    assert ids(hand.claim()) == [locked]


@pytest.mark.proves("F44")
def test_a_job_that_commits_below_the_floor_is_found_by_a_sweep_and_by_nothing_else(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    slow_producer = any_database.connect(autocommit=False)
    late = enqueue(slow_producer)
    early = enqueue(conn)
    (seen,) = hand.claim()
    assert seen.id == early > late
    slow_producer.commit()
    assert hand.claim(floor=seen.row["ready_seq"]) == [], "the broken twin: a claimer that never sweeps"
    assert ids(hand.claim()) == [late]


def test_the_floor_itself_is_behind_the_claimer(conn: psycopg.Connection[Any], hand: Hand) -> None:
    first, second = enqueue(conn), enqueue(conn)
    assert ids(hand.claim(floor=first)) == [second]


def test_a_claim_closes_the_claims_that_are_spent_and_no_others(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue(conn), enqueue(conn)
    (first,), (second,) = hand.claim(1), hand.claim(1)
    hand.succeed(first)
    assert hand.claim(spent=[first.claim_id]) == []
    assert conn.execute("SELECT claim_id::text FROM pgqueue.claims").fetchall() == [(second.claim_id,)]


@pytest.mark.proves("P4", "F36", "F43")
def test_every_claim_has_a_fence_of_its_own(conn: psycopg.Connection[Any], hand: Hand) -> None:
    for _ in range(4):
        enqueue(conn)
    fences = {job.claim_id for _ in range(4) for job in hand.claim(1)}
    assert len(fences) == 4
    assert {uuid.UUID(fence).version for fence in fences} == {4}


@pytest.mark.proves("P1")
def test_a_claim_commits_without_waiting_for_the_disk_and_leaves_the_session_as_it_was(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue(conn)
    with conn.transaction():
        assert len(hand.claim()) == 1
        assert conn.execute("SHOW synchronous_commit").fetchone() == ("off",)
    assert conn.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_two_claimers_share_a_lane_without_waiting(any_database: Database, hand: Hand) -> None:
    conn = hand.conn
    jobs = [enqueue(conn) for _ in range(4)]
    other_conn = any_database.connect(autocommit=False)
    mine = Hand(other_conn).claim(2)
    conn.execute("SET lock_timeout = '1s'")
    assert ids(hand.claim()) == jobs[2:]
    other_conn.rollback()
    assert ids(mine) == jobs[:2]
    assert ids(hand.claim()) == jobs[:2], "a claim that was rolled back is no claim"


# Suspects: jobs whose last process died.


def suspect(conn: psycopg.Connection[Any], **options: Any) -> int:
    job_id = enqueue(conn, **options)
    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'suspect', ready_seq = NULL, attempt = 1 WHERE id = %s",
        [job_id],
    )
    return job_id


@pytest.mark.proves("F46")
def test_a_suspect_is_claimed_alone_and_gets_a_place_in_its_lane(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    first, second = suspect(conn), suspect(conn)
    taken = hand.claim_suspect()
    assert taken is not None
    assert taken.id == first
    assert list(taken.row) == CLAIM_COLUMNS
    row = row_of(conn, "jobs", first)
    assert row is not None
    assert (row["state"], row["hold_reason"], row["attempt"]) == ("running", None, 2)
    assert row["ready_seq"] > second
    assert conn.execute("SELECT job_ids FROM pgqueue.claims").fetchall() == [([first],)]


def test_suspects_of_paused_or_other_queues_are_left(conn: psycopg.Connection[Any], hand: Hand) -> None:
    suspect(conn, queue="pay")
    suspect(conn, queue="mail")
    conn.execute("SELECT pgqueue.pause('pay')")
    assert hand.claim_suspect(queues=("pay", "other")) is None
    assert hand.claim_suspect(queues=("pay", "mail")) is not None


def test_other_held_jobs_are_no_suspects(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job_id = suspect(conn)
    conn.execute("UPDATE pgqueue.jobs SET hold_reason = 'unknown_task' WHERE id = %s", [job_id])
    assert hand.claim_suspect() is None
    assert hand.one("count_suspects", queues=["default"]) == 0
    assert hand.claim() == []


def test_a_suspect_locked_by_another_claimer_is_passed_over(any_database: Database, hand: Hand) -> None:
    first, second = suspect(hand.conn), suspect(hand.conn)
    other = any_database.connect(autocommit=False)
    taken = Hand(other).claim_suspect()
    assert taken is not None
    mine = hand.claim_suspect()
    assert mine is not None
    assert [taken.id, mine.id] == [first, second]
    other.rollback()


def test_suspects_are_counted_per_queue_and_capped(conn: psycopg.Connection[Any], hand: Hand) -> None:
    assert hand.one("count_suspects", queues=["default"]) == 0
    suspect(conn, queue="mail")
    assert hand.one("count_suspects", queues=["default"]) == 0
    assert hand.one("count_suspects", queues=["default", "mail"]) == 1
    conn.execute(
        "INSERT INTO pgqueue.jobs (id, created_at, run_at, priority, max_attempts, state, hold_reason, queue, task, args)"
        " SELECT 1000 + i, now(), now(), 5, 5, 'held', 'suspect', 'default', 't', '{}' FROM generate_series(1, 150) i"
    )
    assert hand.one("count_suspects", queues=["default"]) == 100


# Jobs nobody knew how to run.


def held(conn: psycopg.Connection[Any], task: str, **options: Any) -> int:
    job_id = enqueue(conn, task, **options)
    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'unknown_task', ready_seq = NULL WHERE id = %s",
        [job_id],
    )
    return job_id


@pytest.mark.proves("F55")
def test_held_jobs_are_freed_by_a_worker_that_knows_their_task(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    known, unknown = held(conn, "known"), held(conn, "unknown")
    assert hand.free_held(tasks=["known", "other"]) == 1
    row = row_of(conn, "jobs", known)
    assert row is not None
    assert (row["state"], row["hold_reason"], row["attempt"]) == ("ready", None, 0)
    assert row["ready_seq"] > unknown, "at the tail of its lane"
    assert transitions(conn, known) == [("held", "ready", "freed")]
    assert transitions(conn, unknown) == []
    assert hand.free_held(tasks=["known", "other"]) == 0


def test_only_jobs_held_for_that_reason_in_that_queue_are_freed(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    held(conn, "known", queue="mail")
    by_operator = held(conn, "known")
    conn.execute("UPDATE pgqueue.jobs SET hold_reason = 'operator' WHERE id = %s", [by_operator])
    assert hand.free_held(tasks=["known"]) == 0


def test_held_jobs_are_freed_in_batches(conn: psycopg.Connection[Any], hand: Hand) -> None:
    for _ in range(5):
        held(conn, "known")
    assert [hand.free_held(tasks=["known"], batch=2) for _ in range(4)] == [2, 2, 1, 0]


def test_freeing_wakes_a_sleeping_worker(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    held(conn, "known")
    hand.run("fall_asleep", queues=["default"], id=hand.worker_id)
    assert wakes_during(any_database, lambda: hand.free_held(tasks=["known"])) == 1


def wakes_during(database: Database, deed: Callable[[], Any]) -> int:
    """How many wake-ups a deed sends."""
    listener = database.connect()
    listener.execute("LISTEN pgqueue_wake")
    deed()
    return len(list(listener.notifies(timeout=0.2)))


# Claims whose answer was lost.


def age_claims(conn: psycopg.Connection[Any]) -> None:
    conn.execute("UPDATE pgqueue.claims SET claimed_at = claimed_at - interval '6 s'")


def test_a_worker_finds_its_own_claims_once_their_answer_cannot_be_on_its_way(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue(conn), enqueue(conn)
    (mine,), (others,) = hand.claim(1), Hand(conn).claim(1)
    assert hand.run("own_claims", worker_id=hand.worker_id) == []
    age_claims(conn)
    assert [str(row["claim_id"]) for row in hand.run("own_claims", worker_id=hand.worker_id)] == [
        mine.claim_id
    ]
    assert mine.claim_id != others.claim_id


@pytest.mark.proves("P6")
def test_a_lost_answer_gives_its_jobs_back_without_using_up_an_attempt(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    job_id = enqueue(conn)
    (taken,) = hand.claim()
    released = hand.run("release_claim", claim_id=taken.claim_id, actor="worker:x")
    assert [row["id"] for row in released] == [job_id]
    row = row_of(conn, "jobs", job_id)
    assert row is not None
    assert (row["state"], row["attempt"], row["claim_id"], row["started_at"]) == ("ready", 0, None, None)
    assert row["ready_seq"] > job_id
    assert transitions(conn, job_id) == [("running", "ready", "released")]
    assert conn.execute("SELECT count(*) FROM pgqueue.claims").fetchone() == (0,)


@pytest.mark.proves("P4")
def test_releasing_a_claim_touches_no_job_that_left_it(conn: psycopg.Connection[Any], hand: Hand) -> None:
    ended, kept = enqueue(conn), enqueue(conn)
    first, second = sorted(hand.claim(), key=lambda job: job.id)
    hand.succeed(first)
    assert [row["id"] for row in hand.run("release_claim", claim_id=second.claim_id, actor="a")] == [kept]
    assert row_of(conn, "job_history", ended) is not None
    (again,) = hand.claim()
    assert hand.run("release_claim", claim_id=second.claim_id, actor="a") == []
    assert hand.succeed(again) == {kept}


def test_the_priorities_are_those_that_the_table_allows(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(
            "INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args)"
            " VALUES (1, now(), now(), 1, %s, 1, 'ready', 'default', 't', '{}')",
            [max(PRIORITIES) + 1],
        )
