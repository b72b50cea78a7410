"""The statements of settle.sql, each: what it writes, what the fence leaves alone, nothing asked, many at once.

On the newest and the oldest supported server; acts through rig.hands, looks at the tables themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, Taken, enqueue, places_of, row_of, shared_database, transitions, wiped

ERRORS_KEPT_MAX = 25


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


def taken_one(hand: Hand, task: str = "t", **options: Any) -> Taken:
    enqueue(hand.conn, task, **options)
    (taken,) = hand.claim()
    return taken


def stale(hand: Hand) -> tuple[Taken, Taken]:
    """A job claimed twice: the claim that was lost, and the newest one."""
    old = taken_one(hand)
    hand.run("release_claim", claim_id=old.claim_id, actor="rig")
    (new,) = hand.claim()
    return old, new


# settle_succeeded


def test_a_success_moves_the_job_to_history_with_its_times_and_fence(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    job = taken_one(hand, "rides.capture", args={"ride_id": 7}, idempotency_key="k", tags=["a"])
    assert hand.succeed(job, results=[{"captured": 1250}]) == {job.id}
    assert places_of(conn, job.id) == ["job_history"]
    row = row_of(conn, "job_history", job.id)
    assert row is not None
    assert (row["state"], row["task"], row["queue"], row["args"]) == (
        "succeeded",
        "rides.capture",
        "default",
        {"ride_id": 7},
    )
    assert row["result"] == {"captured": 1250}
    assert (str(row["claim_id"]), str(row["worker_id"])) == (job.claim_id, hand.worker_id)
    assert (row["attempts"], row["max_attempts"], row["idempotency_key"], row["tags"]) == (1, 6, "k", ["a"])
    assert row["enqueued_at"] <= row["due_at"] <= row["started_at"] <= row["finished_at"]
    assert row["run_s"] == 0.5
    assert 0.25 <= row["wait_s"] < 60, "waiting ends at the handler's start, so the local buffer counts"
    assert transitions(conn, job.id) == [], "the plain path is told by the history row"


def test_a_success_without_a_result_stores_none(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job = taken_one(hand)
    assert hand.succeed(job, results=[None]) == {job.id}
    row = row_of(conn, "job_history", job.id)
    assert row is not None
    assert row["result"] is None


def test_results_find_their_own_jobs(conn: psycopg.Connection[Any], hand: Hand) -> None:
    for _ in range(4):
        enqueue(conn)
    taken = hand.claim()
    values = [{"n": 0}, None, [1], "text"]
    assert hand.succeed(*taken, results=values) == {job.id for job in taken}
    rows = [row_of(conn, "job_history", job.id) for job in taken]
    assert [row["result"] if row else "missing" for row in rows] == values


@pytest.mark.proves("P4", "F3")
def test_a_stale_claim_settles_nothing_and_the_newest_does(conn: psycopg.Connection[Any], hand: Hand) -> None:
    old, new = stale(hand)
    assert hand.succeed(old) == set()
    assert places_of(conn, old.id) == ["jobs"]
    assert hand.succeed(new) == {new.id}


@pytest.mark.proves("P4")
def test_in_a_mixed_batch_only_the_lost_claims_are_missing(conn: psycopg.Connection[Any], hand: Hand) -> None:
    old, new = stale(hand)
    other = taken_one(hand)
    assert hand.succeed(old, other) == {other.id}
    assert places_of(conn, new.id) == ["jobs"]


def test_settling_twice_is_settling_once(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job = taken_one(hand)
    assert (hand.succeed(job), hand.succeed(job)) == ({job.id}, set())
    assert places_of(conn, job.id) == ["job_history"]


def test_nothing_to_settle_is_fine(hand: Hand) -> None:
    assert hand.succeed() == set()
    assert hand.settle_each([]) == set()


# settle_in_transaction


@pytest.mark.proves("P3")
def test_effect_and_settlement_commit_together(conn: psycopg.Connection[Any], hand: Hand) -> None:
    conn.execute("DROP TABLE IF EXISTS effects")
    conn.execute("CREATE TABLE effects (job_id bigint)")
    job = taken_one(hand)
    with conn.transaction():
        hand.mark(job)
        conn.execute("INSERT INTO effects VALUES (%s)", [job.id])
        hand.settle_in_transaction(job, result='{"ok": true}')
    row = row_of(conn, "job_history", job.id)
    assert row is not None
    assert (row["result"], row["run_s"]) == ({"ok": True}, 0.5)
    assert conn.execute("SELECT count(*) FROM effects").fetchone() == (1,)


@pytest.mark.proves("P3", "P4", "F3")
def test_a_lost_claim_raises_and_takes_the_effect_with_it(conn: psycopg.Connection[Any], hand: Hand) -> None:
    conn.execute("DROP TABLE IF EXISTS effects")
    conn.execute("CREATE TABLE effects (job_id bigint)")
    old, new = stale(hand)
    with pytest.raises(psycopg.Error) as caught, conn.transaction():
        hand.mark(old)
        conn.execute("INSERT INTO effects VALUES (%s)", [old.id])
        hand.settle_in_transaction(old)
    assert caught.value.sqlstate == "PQ001"
    assert conn.execute("SELECT count(*) FROM effects").fetchone() == (0,)
    assert places_of(conn, new.id) == ["jobs"]


@pytest.mark.proves("F47")
@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN"])
def test_a_transaction_that_the_handler_ended_settles_nothing(
    any_database: Database, hand: Hand, ending: str
) -> None:
    job = taken_one(hand)
    raw = any_database.connect()
    raw.execute("BEGIN")
    mine = Hand(raw)
    mine.mark(job)
    raw.execute(ending.encode())
    if not ending.endswith("CHAIN"):
        raw.execute("BEGIN")
    with pytest.raises(psycopg.Error) as caught:
        mine.settle_in_transaction(job)
    assert caught.value.sqlstate == "PQ002"
    raw.execute("ROLLBACK")
    assert places_of(hand.conn, job.id) == ["jobs"]


@pytest.mark.proves("F47")
def test_a_swallowed_error_is_met_by_the_settlement(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job = taken_one(hand)
    with pytest.raises(psycopg.errors.InFailedSqlTransaction), conn.transaction():
        hand.mark(job)
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1 / 0")
        hand.settle_in_transaction(job)
    assert places_of(conn, job.id) == ["jobs"]


def test_a_savepoint_inside_the_handler_keeps_the_mark(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job = taken_one(hand)
    with conn.transaction():
        hand.mark(job)
        with pytest.raises(psycopg.errors.DivisionByZero), conn.transaction():
            conn.execute("SELECT 1 / 0")
        hand.settle_in_transaction(job)
    assert places_of(conn, job.id) == ["job_history"]


# settle_otherwise


def test_a_retry_waits_for_its_delay_and_remembers_the_error(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    job = taken_one(hand)
    settled = hand.settle(
        "retry",
        job,
        delay_s=90,
        error_type="ValueError",
        error_message="m" * 2000,
        error_fingerprint="f",
        max_attempts=9,
    )
    assert settled == {job.id}
    row = row_of(conn, "jobs", job.id)
    assert row is not None
    assert (row["state"], row["attempt"], row["ready_seq"], row["claim_id"]) == ("scheduled", 1, None, None)
    assert row["max_attempts"] == 9, "the policy as the worker has it now is the one that is shown"
    (error,) = row["errors"]
    assert {key: error[key] for key in ("attempt", "type", "fingerprint", "worker_id")} == {
        "attempt": 1,
        "type": "ValueError",
        "fingerprint": "f",
        "worker_id": hand.worker_id,
    }
    assert error["message"] == "m" * 1000
    waits = conn.execute(
        "SELECT extract(epoch FROM run_at - clock_timestamp())::float8 BETWEEN 80 AND 90 FROM pgqueue.jobs"
    ).fetchone()
    assert waits == (True,)
    audit = conn.execute(
        "SELECT from_state, to_state, reason, actor, attempt, claim_id::text, error_type, run_s, wait_s >= 0.25,"
        " next_run_at = (SELECT run_at FROM pgqueue.jobs) FROM pgqueue.job_transitions"
    ).fetchall()
    actor = f"worker:{hand.worker_id}"
    assert audit == [("running", "scheduled", "retry", actor, 1, job.claim_id, "ValueError", 0.5, True, True)]


@pytest.mark.proves("P23")
def test_only_so_many_errors_are_kept_with_a_live_job(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job = taken_one(hand, max_attempts=100)
    many = [{"attempt": n, "at": "2024-01-01T00:00:00Z"} for n in range(ERRORS_KEPT_MAX + 1)]
    kept = many[:ERRORS_KEPT_MAX]
    conn.execute(
        "UPDATE pgqueue.jobs SET errors = %s WHERE id = %s", [psycopg.types.json.Jsonb(kept), job.id]
    )
    hand.settle("retry", job, error_type="ValueError", error_message="the newest")
    row = row_of(conn, "jobs", job.id)
    assert row is not None
    assert len(row["errors"]) == ERRORS_KEPT_MAX
    assert row["errors"][0] == kept[0], "the first failure stays: when it began is what people ask"
    assert row["errors"][-1]["message"] == "the newest"


@pytest.mark.parametrize(
    ("kind", "state", "placed"), [("snoozed", "scheduled", False), ("released", "ready", True)]
)
def test_a_snooze_and_a_release_cost_no_attempt(
    conn: psycopg.Connection[Any], hand: Hand, kind: str, state: str, placed: bool
) -> None:
    job = taken_one(hand)
    assert hand.settle(kind, job) == {job.id}
    row = row_of(conn, "jobs", job.id)
    assert row is not None
    assert (row["state"], row["attempt"], row["errors"]) == (state, 0, None)
    assert (row["ready_seq"] is not None and row["ready_seq"] > job.id) is placed
    assert transitions(conn, job.id) == [("running", state, kind)]


@pytest.mark.proves("I24")
def test_a_hold_keeps_the_due_time_and_costs_no_attempt(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job = taken_one(hand)
    before = row_of(conn, "jobs", job.id)
    assert hand.settle("held", job, reason="unknown_task") == {job.id}
    row = row_of(conn, "jobs", job.id)
    assert before is not None
    assert row is not None
    assert (row["state"], row["hold_reason"], row["attempt"], row["ready_seq"]) == (
        "held",
        "unknown_task",
        0,
        None,
    )
    assert row["run_at"] == before["run_at"], "the job has been waiting since it was due"
    assert transitions(conn, job.id) == [("running", "held", "unknown_task")]


def test_a_dead_letter_tells_everything_about_the_end(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job = taken_one(hand, "rides.capture", args={"ride_id": 7}, headers='{"a": "b"}', tags=["x"], timeout_s=3)
    hand.settle("retry", job, error_type="ValueError", error_message="first", error_fingerprint="f1")
    hand.promote()
    (again,) = hand.claim()
    hand.settle(
        "dead",
        again,
        reason="max_retries",
        max_attempts=2,
        error_type="KeyError",
        error_message="second",
        error_fingerprint="f2",
        traceback="Traceback …",
    )
    assert places_of(conn, job.id) == ["dead_letter_jobs"]
    letter = row_of(conn, "dead_letter_jobs", job.id)
    assert letter is not None
    assert (letter["reason"], letter["error_type"], letter["error_message"]) == (
        "max_retries",
        "KeyError",
        "second",
    )
    assert (letter["error_fingerprint"], letter["traceback"]) == ("f2", "Traceback …")
    assert (letter["attempts"], letter["max_attempts"]) == (2, 2)
    assert [(e["attempt"], e["message"]) for e in letter["errors"]] == [(1, "first"), (2, "second")]
    assert letter["job_created_at"] < letter["first_failed_at"] < letter["failed_at"]
    assert letter["failed_at"] == letter["created_at"]
    assert (letter["args"], letter["headers"], letter["tags"], letter["timeout_s"]) == (
        {"ride_id": 7},
        {"a": "b"},
        ["x"],
        3,
    )
    assert str(letter["claim_id"]) == again.claim_id
    assert transitions(conn, job.id)[-1] == ("running", "dead", "max_retries")


def test_a_job_that_dies_at_its_first_failure_failed_first_and_last_at_once(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    job = taken_one(hand)
    hand.settle("dead", job, reason="rejected", error_type="Reject")
    letter = row_of(conn, "dead_letter_jobs", job.id)
    assert letter is not None
    assert letter["first_failed_at"] == letter["failed_at"] == letter["created_at"]


def test_a_cancelled_run_ends_in_history(conn: psycopg.Connection[Any], hand: Hand) -> None:
    job = taken_one(hand)
    assert hand.settle("cancelled", job, reason="cancel_requested", note="why") == {job.id}
    row = row_of(conn, "job_history", job.id)
    assert row is not None
    assert (row["state"], str(row["claim_id"])) == ("cancelled", job.claim_id)
    assert transitions(conn, job.id) == [("running", "cancelled", "cancel_requested")]


@pytest.mark.proves("P19")
@pytest.mark.parametrize("kind", ["retry", "snoozed", "released", "held"])
def test_a_job_whose_cancel_was_asked_for_does_not_wait_for_another_run(
    conn: psycopg.Connection[Any], hand: Hand, kind: str
) -> None:
    job = taken_one(hand)
    assert conn.execute("SELECT pgqueue.cancel(%s, 'why')", [job.id]).fetchone() == ("requested",)
    assert hand.settle(kind, job) == {job.id}
    row = row_of(conn, "job_history", job.id)
    assert row is not None
    assert (row["state"], row["attempts"]) == ("cancelled", 1)
    assert transitions(conn, job.id) == [("running", "cancelled", "cancel_requested")]


def test_a_job_that_died_or_succeeded_before_it_heard_of_the_cancel_keeps_its_end(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue(conn), enqueue(conn)
    died, succeeded = hand.claim()
    for job in (died, succeeded):
        conn.execute("SELECT pgqueue.cancel(%s, 'why')", [job.id])
    hand.settle("dead", died, reason="rejected", error_type="Reject")
    hand.succeed(succeeded)
    assert places_of(conn, died.id) == ["dead_letter_jobs"]
    row = row_of(conn, "job_history", succeeded.id)
    assert row is not None
    assert row["state"] == "succeeded"


KINDS = ["retry", "snoozed", "released", "held", "dead", "cancelled"]


@pytest.mark.proves("P4", "F3")
@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_claim_ends_nothing_in_any_way(conn: psycopg.Connection[Any], hand: Hand, kind: str) -> None:
    old, new = stale(hand)
    before = row_of(conn, "jobs", old.id)
    assert hand.settle(kind, old, reason="unknown_task") == set()
    assert row_of(conn, "jobs", new.id) == before
    assert transitions(conn, old.id) == [("running", "ready", "released")], "only the rig's own release"


def test_all_kinds_in_one_statement(conn: psycopg.Connection[Any], hand: Hand) -> None:
    for _ in KINDS:
        enqueue(conn)
    taken = dict(zip(KINDS, hand.claim(), strict=True))
    records = [hand.record(kind, job, error_type="E") for kind, job in taken.items()]
    assert hand.settle_each(records) == {job.id for job in taken.values()}
    places = {kind: places_of(conn, job.id) for kind, job in taken.items()}
    assert places == {
        "retry": ["jobs"],
        "snoozed": ["jobs"],
        "released": ["jobs"],
        "held": ["jobs"],
        "dead": ["dead_letter_jobs"],
        "cancelled": ["job_history"],
    }


@pytest.mark.proves("P22")
def test_every_settlement_but_success_is_one_audit_row_with_who_and_why(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    for _ in KINDS:
        enqueue(conn)
    taken = hand.claim()
    hand.settle_each([hand.record(kind, job) for kind, job in zip(KINDS, taken, strict=True)])
    rows = conn.execute(
        "SELECT count(*), count(DISTINCT job_id), bool_and(actor = %s), bool_and(reason <> '') FROM pgqueue.job_transitions",
        [f"worker:{hand.worker_id}"],
    ).fetchone()
    assert rows == (len(KINDS), len(KINDS), True, True)


# Reading back what became of a claim.


@pytest.mark.proves("P7", "F15")
@pytest.mark.parametrize("kind", ["succeeded", "dead", "retry"])
def test_what_a_claim_settled_is_found_by_its_fence(
    conn: psycopg.Connection[Any], hand: Hand, kind: str
) -> None:
    old, new = stale(hand)
    assert hand.one("find_settled", id=new.id, claim_id=new.claim_id) is False
    if kind == "succeeded":
        hand.succeed(new)
    else:
        hand.settle(kind, new)
    assert hand.one("find_settled", id=new.id, claim_id=new.claim_id) is True
    if kind != "retry":  # the rig's own release of the old claim is in the audit, as any is
        assert hand.run("find_claim", id=new.id) == []
    assert old.claim_id != new.claim_id


def test_an_open_claim_is_found_in_its_live_row(hand: Hand) -> None:
    job = taken_one(hand)
    assert str(hand.one("find_claim", id=job.id)) == job.claim_id


@pytest.mark.proves("P7", "F57")
def test_the_read_back_waits_for_a_settlement_that_is_still_under_way(
    any_database: Database, hand: Hand
) -> None:
    """A plain read would say "still open" about a commit that happens a moment later."""
    job = taken_one(hand)
    slow = any_database.connect(autocommit=False)
    other = Hand(slow)
    other.mark(job)
    other.settle_in_transaction(job)
    hand.conn.execute("SET lock_timeout = '100ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        hand.run("find_claim", id=job.id)
    plain = hand.conn.execute("SELECT claim_id::text FROM pgqueue.jobs WHERE id = %s", [job.id]).fetchone()
    assert plain == (job.claim_id,), "the broken twin"
    slow.commit()
    assert hand.run("find_claim", id=job.id) == []
    assert hand.one("find_settled", id=job.id, claim_id=job.claim_id) is True
