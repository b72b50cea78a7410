"""claim ∥ settle ∥ rescue, settle ∥ settle, settle ∥ cancel: every order of the real statements, and the twin without a fence."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import wipe
from rig.orders import merges, play

from pgqueue.storage.statements import STATEMENTS

FENCED = STATEMENTS["settle_in_transaction"]
UNFENCED = FENCED.replace(
    b"AND j.claim_id OPERATOR(pg_catalog.=) %(claim_id)s", b"AND j.state OPERATOR(pg_catalog.=) 'running'"
)
assert UNFENCED != FENCED, "the twin is no twin"
Step = Callable[[psycopg.Connection[Any]], None]


class Scene:
    """One job, worker A that claimed it, and workers that may come after."""

    def __init__(self, database: Database, settle: bytes) -> None:
        self.dsn = database.dsn
        self.conn = database.connect()
        self.settle = settle
        self.conn.execute("CREATE TABLE IF NOT EXISTS rig_effects (job_id bigint, claim_id uuid)")

    def reset(self) -> None:
        # Not TRUNCATE: it makes a new file for every partition, in each of some hundred orders.
        self.conn.execute("DELETE FROM rig_effects")
        wipe(self.conn)
        self.job = self.conn.execute("SELECT pgqueue.enqueue('t')").fetchone()[0]  # type: ignore[index]
        self.first = self.register()
        self.claim_a = uuid.uuid4()
        self.conn.execute(
            STATEMENTS["claim_batch"],
            {
                "pools": [1],
                "queues": ["default"],
                "priorities": [5],
                "floors": [-1],
                "wants": [1],
                "spent": [],
                "claim_id": self.claim_a,
                "worker_id": self.first,
            },
        )
        self.second = self.register()
        self.claims_b: list[uuid.UUID] = []

    def register(self) -> uuid.UUID:
        worker = uuid.uuid4()
        self.conn.execute(
            "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues) VALUES (%s, 60, 1, 'h', 'v', '{default}')",
            (worker,),
        )
        return worker

    def begin(self, claim: Callable[[], uuid.UUID | None]) -> Step:
        def step(conn: psycopg.Connection[Any]) -> None:
            claim_id = claim()
            if claim_id is not None:
                conn.execute("BEGIN")
                conn.execute("SELECT set_config('pgqueue.claim', %s, true)", (str(claim_id),))
                conn.execute("INSERT INTO rig_effects VALUES (%s, %s)", (self.job, claim_id))

        return step

    def end(self, claim: Callable[[], uuid.UUID | None]) -> Step:
        def step(conn: psycopg.Connection[Any]) -> None:
            claim_id = claim()
            if claim_id is not None and conn.info.transaction_status.name == "INTRANS":
                conn.execute(
                    self.settle,
                    {
                        "id": self.job,
                        "claim_id": claim_id,
                        "mark": str(claim_id),
                        "buffered": 0.0,
                        "run": 0.0,
                        "result": None,
                    },
                )
                conn.execute("COMMIT")

        return step

    def bury(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute("UPDATE pgqueue.workers SET status = 'dead' WHERE id = %s", (self.first,))

    def rescue(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute(STATEMENTS["rescue_claim"], {"claim_id": self.claim_a, "actor": "worker:b"})

    def claim_b(self, conn: psycopg.Connection[Any]) -> None:
        claim = uuid.uuid4()
        if conn.execute(
            STATEMENTS["claim_suspect"], {"queues": ["default"], "claim_id": claim, "worker_id": self.second}
        ).fetchall():
            self.claims_b.append(claim)

    def b(self) -> uuid.UUID | None:
        return self.claims_b[-1] if self.claims_b else None

    def finish(self) -> None:
        """What the fleet does in the end: rescue once more, and run what is left."""
        self.bury(self.conn)
        for _ in range(3):
            self.rescue(self.conn)
            self.claim_b(self.conn)
            left = self.conn.execute("SELECT claim_id FROM pgqueue.jobs WHERE state = 'running'").fetchone()
            if left is not None and left[0] in self.claims_b:
                self.begin(lambda: left[0])(self.conn)
                self.end(lambda: left[0])(self.conn)

    def violations(self) -> list[str]:
        found = []
        places = self.conn.execute(
            "SELECT count(*) FROM (SELECT id FROM pgqueue.jobs UNION ALL SELECT job_id FROM pgqueue.job_history"
            " UNION ALL SELECT job_id FROM pgqueue.dead_letter_jobs) p"
        ).fetchone()
        if places != (1,):
            found.append(f"in {places} places")
        effects = self.conn.execute("SELECT claim_id FROM rig_effects").fetchall()
        settled = self.conn.execute(
            "SELECT claim_id FROM pgqueue.job_history WHERE state = 'succeeded'"
        ).fetchall()
        if effects != settled:
            found.append(f"effects of {len(effects)} claims, settled by {len(settled)}, or by another")
        return found


@pytest.fixture
def scene(database: Database) -> Callable[[bytes], Scene]:
    return lambda settle: Scene(database, settle)


def three_sides(scene: Scene) -> list[list[Step]]:
    a, b = (lambda: scene.claim_a), scene.b
    return [
        [scene.begin(a), scene.end(a)],
        [scene.bury, scene.rescue],
        [scene.claim_b, scene.begin(b), scene.end(b)],
    ]


def two_claims(scene: Scene) -> list[list[Step]]:
    """A was rescued and B has its job; both believe it theirs. The first step of B makes it so."""
    a, b = (lambda: scene.claim_a), scene.b

    def taken_over(conn: psycopg.Connection[Any]) -> None:
        scene.bury(conn)
        scene.rescue(conn)
        scene.claim_b(conn)
        scene.begin(b)(conn)

    return [[scene.begin(a), scene.end(a)], [taken_over, scene.end(b)]]


def violating(scene: Scene, scripts: Sequence[Sequence[Step]]) -> Iterator[tuple[list[int], list[str]]]:
    """The orders that break a promise, with what was broken, as they are found."""
    for order in merges([len(script) for script in scripts]):
        scene.reset()
        play(scene.dsn, scene.conn, scripts, order)
        scene.finish()
        if found := scene.violations():
            yield order, found


@pytest.mark.proves("P3", "P4", "P6")
def test_claim_settle_rescue_in_every_order(scene: Callable[[bytes], Scene]) -> None:
    stage = scene(FENCED)
    assert list(violating(stage, three_sides(stage))) == []


def test_twin_a_settlement_guarded_by_the_state_alone_violates(scene: Callable[[bytes], Scene]) -> None:
    stage = scene(UNFENCED)
    assert next(violating(stage, three_sides(stage)), None) is not None


@pytest.mark.proves("P3", "P4", "F3")
def test_two_claims_of_one_job_settle_it_once(scene: Callable[[bytes], Scene]) -> None:
    stage = scene(FENCED)
    assert list(violating(stage, two_claims(stage))) == []


def test_twin_without_a_fence_the_older_claim_settles_the_newer_ones_job(
    scene: Callable[[bytes], Scene],
) -> None:
    stage = scene(UNFENCED)
    assert next(violating(stage, two_claims(stage)), None) is not None


@pytest.mark.proves("P4")
def test_two_settlements_of_one_claim(scene: Callable[[bytes], Scene]) -> None:
    stage = scene(FENCED)
    a = lambda: stage.claim_a
    scripts: list[list[Step]] = [[stage.begin(a), stage.end(a)], [stage.begin(a), stage.end(a)]]
    for order in merges([2, 2]):
        stage.reset()
        errors = play(stage.dsn, stage.conn, scripts, order)
        assert sum(len(mine) for mine in errors) == 1
        assert {getattr(e, "sqlstate", None) for mine in errors for e in mine} == {"PQ001"}
        assert stage.violations() == []


@pytest.mark.proves("P19", "P6")
def test_settle_and_cancel(scene: Callable[[bytes], Scene]) -> None:
    stage = scene(FENCED)
    a = lambda: stage.claim_a

    def cancel(conn: psycopg.Connection[Any]) -> None:
        conn.execute("SELECT pgqueue.cancel(%s)", (stage.job,))

    scripts: list[list[Step]] = [[stage.begin(a), stage.end(a)], [cancel]]
    for order in merges([2, 1]):
        stage.reset()
        play(stage.dsn, stage.conn, scripts, order)
        stage.finish()
        assert stage.violations() == []
