"""emit ∥ emit ∥ route, route ∥ route, route ∥ settle, claim ∥ claim, skip ∥ settle: every order, each with a broken twin."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.interleave import begin, commit, make_function_naive
from rig.orders import Step, merges, play

from pgqueue.storage.statements import statement

SINK = "s"
TABLES = (
    "outbox, outbox_lanes, outbox_deliveries, outbox_dead_letters, outbox_subscriptions, jobs, operator_audit"
)
ASTRAY = """
SELECT 'message ' || o.id || ' counts ' || o.pending FROM pgqueue.outbox o
WHERE o.pending <> (SELECT count(*) FROM pgqueue.outbox_deliveries d WHERE d.message_id = o.id)
UNION ALL SELECT 'delivery ' || d.message_id || ' has no line' FROM pgqueue.outbox_deliveries d
WHERE NOT EXISTS (SELECT FROM pgqueue.outbox_lanes l WHERE l.sink = d.sink AND l.lane = d.lane)
UNION ALL SELECT 'delivery ' || d.message_id || ' has no message' FROM pgqueue.outbox_deliveries d
WHERE NOT EXISTS (SELECT FROM pgqueue.outbox o WHERE o.id = d.message_id)"""


class Relay:
    """A relay's statements by hand; what it sent, in order."""

    def __init__(self, sent: list[int]) -> None:
        self.sent = sent
        self.claim_id = str(uuid.uuid4())
        self.taken: list[tuple[str, int]] = []

    def claim(self, conn: psycopg.Connection[Any]) -> None:
        parameters = {"sinks": [SINK], "wants": [10], "run": 1, "lease_s": 60}
        mine = {"claim_id": self.claim_id, "relay_id": self.claim_id}
        rows = conn.execute(statement("claim_lanes"), {**parameters, **mine}).fetchall()
        self.taken = [(row[1], row[4]) for row in rows]

    def send(self, conn: psycopg.Connection[Any]) -> None:
        self.sent += [number for _, number in self.taken]

    def settle(self, conn: psycopg.Connection[Any]) -> None:
        for lane, number in self.taken:
            settle(conn, lane, self.claim_id, [number])


def settle(conn: psycopg.Connection[Any], lane: str, claim_id: str, delivered: Sequence[int]) -> None:
    nothing = {"failed": None, "fate": None, "counts": True, "reason": None, "delay_s": 0, "keep_s": None}
    more = {"error_type": None, "error_message": None, "delivered": list(delivered)}
    where = {"sink": SINK, "lane": lane, "claim_id": claim_id}
    conn.execute(statement("settle_lane"), {**nothing, **more, **where})


def route(conn: psycopg.Connection[Any]) -> None:
    conn.execute(statement("route_messages"), {"batch": 1, "careful": False})


def emit(conn: psycopg.Connection[Any], key: str | None) -> int:
    row = conn.execute("SELECT pgqueue.emit('a', '{}', %s)", [key]).fetchone()
    assert row is not None
    return int(row[0])


def in_transaction(step: Step) -> Step:
    def both(conn: psycopg.Connection[Any]) -> None:
        begin(conn)
        step(conn)

    return both


def order_of_jobs(conn: psycopg.Connection[Any]) -> list[int]:
    rows = conn.execute("SELECT headers->>'pgqueue.message_id' FROM pgqueue.jobs ORDER BY id").fetchall()
    return [int(number) for (number,) in rows]


class Stage:
    """A database with one subscription, set up anew for each order."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.conn = database.connect()

    def reset(self, *, task: bool) -> None:
        self.conn.execute(f"TRUNCATE {', '.join('pgqueue.' + name for name in TABLES.split(', '))}".encode())
        wanted = (
            '[{"pattern": "*", "sink": "task:t", "task": "t"}]' if task else '[{"pattern": "*", "sink": "s"}]'
        )
        self.conn.execute("SELECT FROM pgqueue.put_subscriptions('', %s)", [wanted])

    def play(self, scripts: Sequence[Sequence[Step]], order: Sequence[int]) -> None:
        errors = play(self.database.dsn, self.conn, scripts, order)
        assert errors == [[] for _ in scripts], order

    def astray(self) -> list[str]:
        return [row[0] for row in self.conn.execute(ASTRAY).fetchall()]

    def naive(self, function: str, real: str, instead: str) -> None:
        make_function_naive(self.database, function, real, instead)


@pytest.fixture
def stage(database: Database) -> Stage:
    return Stage(database)


Router = Callable[[psycopg.Connection[Any]], None]


def late_commits(
    stage: Stage, key: str | None, router: Callable[[], Router]
) -> Iterator[tuple[list[int], list[int]]]:
    """Two producers and a relay in every order: ids in the order of their commits, and as they became jobs."""
    for order in merges([2, 2, 2]):
        stage.reset(task=True)
        committed: list[int] = []

        def producer(committed: list[int] = committed) -> list[Step]:
            made: list[int] = []

            def end(conn: psycopg.Connection[Any]) -> None:
                # Noted before: once it has committed, the next producer of the key may commit and be noted first.
                committed.append(made[0])
                conn.execute("COMMIT")

            def start(conn: psycopg.Connection[Any]) -> None:
                begin(conn)
                made.append(emit(conn, key))

            return [start, end]

        relay = router()
        stage.play([producer(), producer(), [relay, relay]], order)
        for _ in range(2):
            relay(stage.conn)
        yield committed, order_of_jobs(stage.conn)


@pytest.mark.proves("P17", "F35")
def test_a_key_is_delivered_in_the_order_of_commits(stage: Stage) -> None:
    for committed, delivered in late_commits(stage, "k", lambda: route):
        assert delivered == committed


@pytest.mark.proves("P17", "F35")
def test_without_a_key_a_late_commit_is_not_skipped(stage: Stage) -> None:
    late = 0
    for committed, delivered in late_commits(stage, None, lambda: route):
        assert sorted(delivered) == sorted(committed)
        late += delivered != sorted(delivered)
    assert late, "no order let the lower id commit after the higher one was delivered"


def test_the_twin_without_the_keys_lock_delivers_out_of_order(stage: Stage) -> None:
    stage.naive(
        "put_message",
        "PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue outbox ' || put_message.key, 0));",
        "",
    )
    assert any(delivered != committed for committed, delivered in late_commits(stage, "k", lambda: route))


def test_the_twin_with_a_cursor_over_ids_skips_a_late_commit(stage: Stage) -> None:
    def cursor() -> Router:
        last = [0]

        def take(conn: psycopg.Connection[Any]) -> None:
            row = conn.execute(
                "SELECT pgqueue.put_job('t', headers => jsonb_build_object('pgqueue.message_id', o.id::text)), o.id"
                " FROM pgqueue.outbox o WHERE o.id > %s ORDER BY o.id LIMIT 1",
                last,
            ).fetchone()
            if row is not None:
                last[0] = row[1]

        return take

    assert any(set(delivered) < set(committed) for committed, delivered in late_commits(stage, None, cursor))


def gaps_between_two_routers(stage: Stage) -> bool:
    """Whether somebody could ever see the second message of a key where the first is not."""
    for order in merges([2, 2, 2]):
        stage.reset(task=True)
        first, second = emit(stage.conn, "k"), emit(stage.conn, "k")
        seen: list[list[int]] = []
        look: Step = lambda conn, seen=seen: seen.append(order_of_jobs(conn))  # type: ignore[misc]
        router = [in_transaction(route), commit]
        stage.play([router, router, [look, look]], order)
        for _ in range(2):
            route(stage.conn)
        assert sorted(order_of_jobs(stage.conn)) == [first, second]
        if any(second in jobs and first not in jobs for jobs in seen):
            return True
    return False


@pytest.mark.proves("P17")
def test_two_routers_leave_no_gap(stage: Stage) -> None:
    assert not gaps_between_two_routers(stage)


def test_the_twin_in_which_routers_pass_each_other_leaves_one(stage: Stage) -> None:
    stage.naive(
        "route_messages",
        "IF NOT pg_try_advisory_xact_lock(hashtextextended('pgqueue outbox router', 0)) THEN",
        "IF false THEN",
    )
    stage.naive(
        "route_messages",
        "LIMIT route_messages.batch FOR UPDATE",
        "LIMIT route_messages.batch FOR UPDATE SKIP LOCKED",
    )
    assert gaps_between_two_routers(stage)


def lost_lines(stage: Stage) -> list[str]:
    """What is astray after a line's last message was settled while the next one was routed into it."""
    found: list[str] = []
    for order in merges([2, 2]):
        stage.reset(task=False)
        emit(stage.conn, "k")
        route(stage.conn)
        relay = Relay([])
        relay.claim(stage.conn)
        emit(stage.conn, "k")
        stage.play([[in_transaction(route), commit], [in_transaction(relay.settle), commit]], order)
        found += stage.astray()
    return found


@pytest.mark.proves("P17")
def test_a_line_that_gets_a_message_while_it_is_emptied_stays(stage: Stage) -> None:
    assert lost_lines(stage) == []


def test_the_twin_that_does_not_lock_the_line_loses_it(stage: Stage) -> None:
    stage.naive("route_messages", "DO UPDATE SET due_at = l.due_at WHERE false", "DO NOTHING")
    assert any("has no line" in what for what in lost_lines(stage))


def sent_by_two(stage: Stage) -> Iterator[list[int]]:
    """What two relays sent of a key's three messages, in every order of their steps."""
    for order in merges([3, 3]):
        stage.reset(task=False)
        ids = [emit(stage.conn, "k") for _ in range(3)]
        for _ in ids:
            route(stage.conn)
        sent: list[int] = []
        both = Relay(sent), Relay(sent)
        stage.play([[one.claim, one.send, one.settle] for one in both], order)
        last = Relay(sent)
        for _ in ids:
            last.claim(stage.conn)
            last.send(stage.conn)
            last.settle(stage.conn)
        assert stage.astray() == []
        assert set(sent) == set(ids)
        yield sent


@pytest.mark.proves("P17", "F34")
def test_two_relays_send_each_message_once_and_in_order(stage: Stage) -> None:
    for sent in sent_by_two(stage):
        assert sent == sorted(set(sent))


def test_the_twin_that_does_not_put_a_claimed_line_off_sends_twice(stage: Stage) -> None:
    stage.naive(
        "claim_lanes",
        "due_at = clock_timestamp() + make_interval(secs => claim_lanes.lease_s)",
        "due_at = l.due_at",
    )
    assert any(len(sent) != len(set(sent)) for sent in sent_by_two(stage))


def late_words(stage: Stage) -> int:
    """How often a relay whose line was taken by another settles a message that nobody has sent."""
    wrong = 0
    for order in merges([1, 3]):
        stage.reset(task=False)
        ids = [emit(stage.conn, "k") for _ in range(2)]
        for _ in ids:
            route(stage.conn)
        sent: list[int] = []
        late, other = Relay(sent), Relay(sent)
        late.claim(stage.conn)
        late.taken = [("=k", ids[1])]  # it went on without saying so, and its lease ran out
        stage.conn.execute("UPDATE pgqueue.outbox_lanes SET due_at = clock_timestamp()")
        other.claim(stage.conn)
        stage.play([[late.settle], [other.send, other.settle, lambda conn: None]], order)
        last = Relay(sent)
        last.claim(stage.conn)
        last.send(stage.conn)
        last.settle(stage.conn)
        wrong += sent != ids
    return wrong


@pytest.mark.proves("P17", "F34")
def test_a_relay_that_lost_its_line_changes_nothing(stage: Stage) -> None:
    assert late_words(stage) == 0


def test_the_twin_without_the_fence_drops_a_message(stage: Stage) -> None:
    stage.naive("settle_lane", " AND l.claim_id = settle_lane.claim_id", "")
    assert late_words(stage) > 0


@pytest.mark.proves("P17")
@pytest.mark.parametrize("deed", ["skip_message", "replay_message"])
def test_an_operators_deed_and_a_relays_word_leave_nothing_astray(stage: Stage, deed: str) -> None:
    for order in merges([2, 2, 2]):
        stage.reset(task=False)
        ids = [emit(stage.conn, "k") for _ in range(3)]
        for _ in ids:
            route(stage.conn)
        relay = Relay([])
        relay.claim(stage.conn)
        if deed == "replay_message":
            nothing = {
                "delivered": [],
                "counts": True,
                "delay_s": 0,
                "keep_s": None,
                "error_type": "E",
                "error_message": "m",
            }
            dead = {
                "failed": ids[0],
                "fate": "block",
                "reason": "rejected",
                "sink": SINK,
                "lane": "=k",
                "claim_id": relay.claim_id,
            }
            stage.conn.execute(statement("settle_lane"), {**nothing, **dead})
        call = f"SELECT pgqueue.{deed}(%s)".encode()
        act: Step = lambda conn, ids=ids: conn.execute(call, [ids[0]])  # type: ignore[misc,assignment,return-value]
        emit(stage.conn, "k")
        stage.play([[in_transaction(step), commit] for step in (act, relay.settle, route)], order)
        assert stage.astray() == [], order
        sent: list[int] = []
        for _ in range(6):
            route(stage.conn)
            last = Relay(sent)
            last.claim(stage.conn)
            last.send(stage.conn)
            last.settle(stage.conn)
        assert sent == sorted(set(sent)), order
        assert stage.conn.execute("SELECT count(*) FROM pgqueue.outbox").fetchone() == (0,), order
