"""Windows: where a job is put, when one of them leads, what it gathers, and the races of the three; on both servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, Taken, enqueue, row_of, shared_database, transitions, wiped
from rig.interleave import Scene, begin, caught, commit, explore, naive
from rig.orders import Step

WEEK_S = 7 * 86_400


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
    conn = any_database.connect()
    know(conn)
    return conn


@pytest.fixture
def hand(conn: psycopg.Connection[Any]) -> Hand:
    return Hand(conn)


def know(conn: psycopg.Connection[Any], window_s: float = 300) -> None:
    """The task as a worker registers it: what producers without its code go by."""
    conn.execute(
        "INSERT INTO pgqueue.tasks (name, queue, priority, max_attempts, batch_window_s, batch_key)"
        " VALUES ('cells', 'default', 5, 3, %s, 'cell') ON CONFLICT (name) DO UPDATE SET batch_window_s = excluded.batch_window_s",
        [window_s],
    )


def put(conn: psycopg.Connection[Any], *cells: Any, **options: Any) -> list[int]:
    return [enqueue(conn, "cells", args={"cell": cell}, **options) for cell in cells]


def end(conn: psycopg.Connection[Any], *, late_s: int = 10) -> None:
    """The window ends: times are moved in the table, the clock is never faked."""
    conn.execute(
        "UPDATE pgqueue.jobs SET run_at = date_trunc('second', clock_timestamp()) - make_interval(secs => %s) WHERE hold_reason = 'window'",
        [late_s],
    )


def states(conn: psycopg.Connection[Any], ids: Sequence[int]) -> list[str]:
    rows = conn.execute(
        "SELECT state FROM pgqueue.jobs WHERE id = ANY (%s) ORDER BY array_position(%s, id)",
        [list(ids), list(ids)],
    ).fetchall()
    return [state for (state,) in rows]


@pytest.mark.proves("P8")
@pytest.mark.parametrize(
    ("moment", "window_s", "window_end"),
    [
        ("2026-11-24T10:04:59.999999Z", 300, "2026-11-24T10:05:00Z"),
        ("2026-11-24T10:05:00Z", 300, "2026-11-24T10:10:00Z"),
        ("2026-11-24T10:05:00Z", 0.25, "2026-11-24T10:05:00.25Z"),
        ("2026-11-24T10:05:00Z", 86_400, "2026-11-25T00:00:00Z"),
        # Weeks begin on Mondays: the 24th is a Tuesday.
        ("2026-11-24T10:05:00Z", WEEK_S, "2026-11-30T00:00:00Z"),
        ("2026-11-29T23:59:59Z", WEEK_S, "2026-11-30T00:00:00Z"),
        ("1999-12-31T23:59:59Z", 3_600, "2000-01-01T00:00:00Z"),
    ],
)
def test_windows_lie_on_whole_multiples_of_their_length_since_a_monday(
    conn: psycopg.Connection[Any], moment: str, window_s: float, window_end: str
) -> None:
    conn.execute("SET TimeZone = 'America/St_Johns'")
    row = conn.execute("SELECT pgqueue.window_end(%s, %s)", [moment, window_s]).fetchone()
    assert row == (datetime.fromisoformat(window_end),)


def test_a_producer_that_knows_nothing_but_the_name_fills_the_window(conn: psycopg.Connection[Any]) -> None:
    (first,) = put(conn, "a")
    row = row_of(conn, "jobs", first)
    assert row is not None
    assert (row["state"], row["hold_reason"], row["ready_seq"], row["batch_key"]) == (
        "held",
        "window",
        None,
        "a",
    )
    assert row["created_at"] < row["run_at"] <= row["created_at"] + timedelta(minutes=5)
    assert row["run_at"].timestamp() % 300 == 0
    # With every option given, by bulk, with a key, and with a delay: into the window that the delay leads to.
    others = put(conn, "a", queue="default", priority=5, max_attempts=3)
    others += put(conn, "a", idempotency_key="k")
    ids = conn.execute(
        "SELECT pgqueue.enqueue_many('cells', ARRAY['{\"cell\": \"a\"}', '{}']::jsonb[])"
    ).fetchall()
    others += [job_id for (job_id,) in ids]
    (later,) = put(conn, "a", delay="10 minutes")
    rows = conn.execute(
        "SELECT run_at, batch_key, state FROM pgqueue.jobs WHERE id = ANY (%s) ORDER BY id", [others]
    ).fetchall()
    # The clock may have passed the window's end meanwhile.
    assert all((run_at - row["run_at"]).total_seconds() in {0, 300} for run_at, _, _ in rows)
    assert [(key, state) for _, key, state in rows] == [("a", "held")] * 3 + [("", "held")]
    delayed = row_of(conn, "jobs", later)
    assert delayed is not None
    assert (delayed["run_at"] - row["run_at"]).total_seconds() in {600, 900}


def test_a_key_is_a_value_of_any_kind_and_a_long_one_becomes_a_digest(conn: psycopg.Connection[Any]) -> None:
    ids = put(conn, "é" * 100, "x" * 201, 7, None, {"a": 1}, "")
    keys = [row["batch_key"] for job_id in ids if (row := row_of(conn, "jobs", job_id))]
    assert keys[:1] == ["é" * 100]
    assert len(keys[1]) == 32
    assert keys[2:] == ["7", "", '{"a": 1}', ""]


def test_nothing_leads_before_the_end_and_one_of_each_window_after_it(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    know(conn, WEEK_S)
    ids = put(conn, "a", "a", "b", "a")
    other_queue = put(conn, "a", queue="other")
    assert hand.lead() == 0
    assert hand.one("next_window") > 0
    end(conn)
    assert hand.one("next_window") is None
    assert hand.promote() == {}, "promotion is for jobs on their own"
    assert hand.lead() == 3
    assert sorted(states(conn, ids)) == ["held", "held", "ready", "ready"]
    assert states(conn, other_queue) == ["ready"]
    assert hand.lead() == 0, "they lead already"
    leaders = hand.claim()
    assert hand.lead() == 0, "the claimed one may gather still"
    assert len(leaders) == 2
    assert {row["wait_s"] >= 10 for row in (job.row for job in leaders)} == {True}


def test_a_leader_gathers_its_own_window_alone(conn: psycopg.Connection[Any], hand: Hand) -> None:
    ids = put(conn, *["a"] * 5)
    end(conn, late_s=20)
    earlier_window = set(ids)
    others = put(conn, "b", "b")
    end_others = "UPDATE pgqueue.jobs SET run_at = run_at - interval '20 s' WHERE id = ANY (%s)"
    conn.execute(end_others, [others])
    later_window = put(conn, "a", "a")
    hand.lead()
    (leader,) = [job for job in hand.claim() if job.id in earlier_window]
    along = hand.gather(leader)
    assert {leader.id} | {job.id for job in along} == earlier_window
    assert {job.row["attempt"] for job in along} == {1}
    assert leader.row.keys() == along[0].row.keys()
    assert states(conn, later_window) == ["held", "held"]
    row = conn.execute(
        "SELECT job_ids FROM pgqueue.claims WHERE claim_id = %s", [along[0].claim_id]
    ).fetchone()
    assert row is not None
    assert set(row[0]) == {job.id for job in along}
    assert hand.succeed(leader, *along) == earlier_window
    assert hand.gather(leader) == []


def test_a_window_larger_than_a_call_goes_on_with_the_next_leader_at_once(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    listener = any_database.connect()
    listener.execute("LISTEN pgqueue_wake")
    ids = put(conn, *["a"] * 10)
    end(conn)
    hand.lead()
    hand.run("fall_asleep", queues=["default"], id=hand.worker_id)
    calls = []
    while leaders := hand.claim():
        (leader,) = leaders
        calls.append([leader, *hand.gather(leader, most=3)])
    assert [len(call) for call in calls] == [4, 4, 2]
    assert sorted(job.id for call in calls for job in call) == ids
    assert len(list(listener.notifies(timeout=2, stop_after=2))) == 2, "the two that led next woke somebody"
    assert hand.lead() == 0


def test_a_call_of_one_leaves_the_rest_to_the_next(conn: psycopg.Connection[Any], hand: Hand) -> None:
    put(conn, "a", "a")
    end(conn)
    hand.lead()
    (leader,) = hand.claim()
    assert hand.gather(leader, most=0) == []
    assert len(hand.claim()) == 1


def test_a_leader_whose_claim_is_lost_gathers_nothing(conn: psycopg.Connection[Any], hand: Hand) -> None:
    ids = put(conn, "a", "a", "a")
    end(conn)
    hand.lead()
    (leader,) = hand.claim()
    hand.rescue(leader.claim_id)
    assert hand.gather(leader) == []
    assert hand.lead() == 1, "the rescued one has left its window, so another leads"
    assert sorted(states(conn, ids)) == ["held", "held", "ready"]


@pytest.mark.proves("P6", "F60")
@pytest.mark.parametrize("what", ["cancel", "retry", "run_now", "reschedule", "unknown_task"])
def test_a_window_whose_leader_went_another_way_is_led_anew(
    conn: psycopg.Connection[Any], hand: Hand, what: str
) -> None:
    ids = put(conn, "a", "a", "a")
    end(conn)
    hand.lead()
    if what == "cancel":
        conn.execute("SELECT pgqueue.cancel(id) FROM pgqueue.jobs WHERE state = 'ready'")
    elif what == "reschedule":
        conn.execute(
            "SELECT pgqueue.reschedule(id, delay => '1 hour') FROM pgqueue.jobs WHERE state = 'ready'"
        )
    elif what == "run_now":
        conn.execute("SELECT pgqueue.run_now(id) FROM pgqueue.jobs WHERE state = 'held'")
        (leader, *_) = hand.claim()
        assert hand.gather(leader) == [], "the others were made ready each by itself"
        return
    else:
        (leader,) = hand.claim()
        if what == "unknown_task":
            hand.settle("held", leader, reason="unknown_task")
            assert hand.lead() == 0, "one is enough to find out that nobody knows the task"
            assert hand.free_held(tasks=["cells"]) == 1
        else:
            hand.settle(what, leader, delay_s=60)
    assert hand.lead() == 1
    (leader,) = [job for job in hand.claim() if hand.gather(job)]
    assert conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE hold_reason = 'window'").fetchone() == (0,)
    assert len(ids) == 3


@pytest.mark.proves("F60", "P18")
@pytest.mark.parametrize("how", ["released", "lost answer"])
def test_what_is_given_back_goes_back_to_its_window(
    conn: psycopg.Connection[Any], hand: Hand, how: str
) -> None:
    ids = put(conn, *["a"] * 4)
    end(conn)
    hand.lead()
    (leader,) = hand.claim()
    along = hand.gather(leader)
    before = conn.execute("SELECT DISTINCT run_at FROM pgqueue.jobs").fetchall()
    if how == "released":
        hand.settle("released", leader, *along)
    else:
        for claim_id in {leader.claim_id, along[0].claim_id}:
            hand.run("release_claim", claim_id=claim_id, actor="worker:x")
    assert states(conn, ids) == ["held"] * 4
    rows = conn.execute(
        "SELECT DISTINCT run_at, hold_reason, attempt, ready_seq FROM pgqueue.jobs"
    ).fetchall()
    assert rows == [(*before[0], "window", 0, None)]
    assert [transitions(conn, job_id) for job_id in ids] == [[("running", "held", "released")]] * 4
    hand.lead()
    (leader,) = hand.claim()
    assert len(hand.gather(leader)) == 3
    # From a later attempt on it has left its window.
    hand.settle("retry", leader, delay_s=0)
    hand.promote()
    (again,) = hand.claim()
    hand.settle("released", again)
    assert states(conn, [leader.id]) == ["ready"]


@pytest.mark.proves("F60")
def test_a_job_that_commits_late_is_led_when_its_windows_call_has_ended(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    put(conn, "a", "a")
    end(conn)
    hand.lead()
    (leader,) = hand.claim()
    along = hand.gather(leader)
    # It was enqueued in time, by a transaction that commits only now.
    (late,) = put(conn, "a")
    conn.execute(
        "UPDATE pgqueue.jobs SET run_at = (SELECT max(run_at) FROM pgqueue.jobs WHERE id <> %s AND id = ANY (%s)) WHERE id = %s",
        [late, [job.id for job in along], late],
    )
    assert hand.lead() == 0
    hand.succeed(leader, *along)
    assert hand.lead() == 1
    assert [job.id for job in hand.claim()] == [late]


def test_locked_jobs_are_passed_over(
    any_database: Database, conn: psycopg.Connection[Any], hand: Hand
) -> None:
    ids = put(conn, "a", "a", "a")
    end(conn)
    admin = any_database.connect(autocommit=False)
    admin.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", [ids[0]])
    assert hand.lead() == 1
    (leader,) = hand.claim()
    assert len(hand.gather(leader)) == 1
    admin.rollback()
    hand.succeed(leader)
    assert states(conn, [ids[0]]) == ["held"]


def test_windows_are_seen_page_by_page(conn: psycopg.Connection[Any], hand: Hand) -> None:
    put(conn, *range(7))
    end(conn)
    place: dict[str, Any] = {"run_at": datetime(1970, 1, 1, tzinfo=UTC), "queue": "", "task": "", "key": ""}
    pages = []
    while True:
        found = conn.execute(hand_text("lead_windows"), {**place, "batch": 3}).fetchone()
        if found is None:
            break
        pages.append(found[:2])
        place = dict(zip(place, found[2:], strict=True))
    assert pages == [(3, 3), (3, 3), (1, 1)]


def hand_text(name: str) -> bytes:
    from pgqueue.storage.statements import statement

    return statement(name)


# Races.


class TwoLeaders(Scene):
    """Two workers see the same window without a leader."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        know(conn)
        put(conn, "a", "a", "a")
        end(conn)

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.lead, commit], [begin, self.lead, commit]]

    def lead(self, conn: psycopg.Connection[Any]) -> None:
        hand = self.hand(conn)
        if self.texts or hand.one("try_windows"):
            hand.lead()

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        row = conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE state = 'ready'").fetchone()
        return [] if row == (1,) else [f"{row} jobs lead one window"]


@pytest.mark.proves("F60")
def test_a_window_gets_one_leader(database: Database) -> None:
    assert explore(database, TwoLeaders()) == []


def test_twin_without_the_lock_of_the_duty_it_gets_two(database: Database) -> None:
    assert caught(database, TwoLeaders(naive("lead_windows", ("WITH RECURSIVE", "WITH  RECURSIVE"))))


class GatherCancelLead(Scene):
    """A leader gathers while one of the others is cancelled, and another worker looks for windows without a leader."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        know(conn)
        self.ids = put(conn, "a", "a", "a")
        end(conn)
        self.hand(conn).lead()
        self.worker = self.hand(conn)
        (self.leader,) = self.worker.claim()
        self.along: list[int] = []
        self.verdict = ""

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.gather, commit], [begin, self.cancel, commit], [self.lead]]

    def gather(self, conn: psycopg.Connection[Any]) -> None:
        self.along = [job.id for job in self.hand(conn).gather(self.leader)]

    def cancel(self, conn: psycopg.Connection[Any]) -> None:
        other = next(i for i in self.ids if i != self.leader.id)
        row = conn.execute("SELECT pgqueue.cancel(%s)", [other]).fetchone()
        self.verdict = "" if row is None else str(row[0])

    def lead(self, conn: psycopg.Connection[Any]) -> None:
        Hand(conn).lead()

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        found = []
        running = {
            job_id
            for (job_id,) in conn.execute("SELECT id FROM pgqueue.jobs WHERE state = 'running'").fetchall()
        }
        if running != {self.leader.id, *self.along}:
            found.append(f"running: {running}; the call has {self.leader.id} and {self.along}")
        if conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE state = 'ready'").fetchone() != (0,):
            found.append("the window was led twice")
        if (self.verdict == "cancelled") == (len(self.along) == 2):
            found.append(f"{self.verdict}, and the call has {self.along}")
        return found


@pytest.mark.proves("P4", "P19", "F60")
def test_a_gathering_leaves_what_is_cancelled_and_nobody_leads_beside_it(database: Database) -> None:
    assert explore(database, GatherCancelLead()) == []


class TwoGatherings(Scene):
    """Two jobs lead one window, as after a leader whose process was thought gone: both gather."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        know(conn)
        put(conn, *["a"] * 5)
        end(conn)
        conn.execute(
            "UPDATE pgqueue.jobs SET state = 'ready', hold_reason = NULL, ready_seq = id"
            " WHERE id IN (SELECT id FROM pgqueue.jobs ORDER BY id LIMIT 2)"
        )
        self.worker = self.hand(conn)
        self.leaders = self.worker.claim()
        self.gathered: list[int] = []

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [
            [begin, lambda conn: self.gather(conn, self.leaders[0]), commit],
            [begin, lambda conn: self.gather(conn, self.leaders[1]), commit],
        ]

    def gather(self, conn: psycopg.Connection[Any], leader: Taken) -> None:
        self.gathered += [job.id for job in self.hand(conn).gather(leader)]

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        return [] if len(self.gathered) == len(set(self.gathered)) == 3 else [f"gathered: {self.gathered}"]


@pytest.mark.proves("P4", "F60")
def test_two_that_gather_one_window_share_it_out(database: Database) -> None:
    assert explore(database, TwoGatherings()) == []


def test_twin_a_gathering_without_row_locks_hands_a_job_to_two_calls(database: Database) -> None:
    assert caught(database, TwoGatherings(naive("gather_window", ("FOR UPDATE SKIP LOCKED", ""))))
