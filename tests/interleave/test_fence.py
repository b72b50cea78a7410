"""claim ∥ settle ∥ rescue, settle ∥ settle, settle ∥ cancel: every order of the real statements, and the twin without a fence."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.orders import merges, play

from pgqueue.storage.statements import STATEMENTS

FENCED = STATEMENTS["settle_in_transaction"]
UNFENCED = FENCED.replace(b"AND j.claim_id = %(claim_id)s", b"AND j.state = 'running'")
Step = Callable[[psycopg.Connection[Any]], None]


class Scene:
    """One job, worker A that claimed it, and workers that may come after."""

    def __init__(self, database: Database, settle: bytes) -> None:
        self.dsn = database.dsn
        self.conn = database.connect()
        self.settle = settle
        self.conn.execute("CREATE TABLE IF NOT EXISTS rig_effects (job_id bigint, claim_id uuid)")

    def reset(self) -> None:
        self.conn.execute(
            "TRUNCATE rig_effects, pgqueue.jobs, pgqueue.claims, pgqueue.job_history, pgqueue.dead_letter_jobs, pgqueue.workers"
        )
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


def three_sides(scene: Scene) -> tuple[list[list[Step]], list[int]]:
    a, b = (lambda: scene.claim_a), scene.b
    scripts: list[list[Step]] = [
        [scene.begin(a), scene.end(a)],
        [scene.bury, scene.rescue],
        [scene.claim_b, scene.begin(b), scene.end(b)],
    ]
    return scripts, [len(script) for script in scripts]


def violating(scene: Scene) -> int:
    scripts, lengths = three_sides(scene)
    count = 0
    for order in merges(lengths):
        scene.reset()
        play(scene.dsn, scene.conn, scripts, order)
        scene.finish()
        count += bool(scene.violations())
    return count


@pytest.mark.proves("P3", "P4", "P6")
def test_claim_settle_rescue_in_every_order(scene: Callable[[bytes], Scene]) -> None:
    assert violating(scene(FENCED)) == 0


def test_twin_a_settlement_guarded_by_the_state_alone_violates(scene: Callable[[bytes], Scene]) -> None:
    assert UNFENCED != FENCED
    assert violating(scene(UNFENCED)) > 0


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


@pytest.mark.proves("P6", "F53")
def test_redrive_and_redrive_make_one_job(scene: Callable[[bytes], Scene]) -> None:
    stage = scene(FENCED)

    def redrive(conn: psycopg.Connection[Any]) -> None:
        conn.execute("SELECT pgqueue.redrive(%s)", (stage.job,))

    def begin(conn: psycopg.Connection[Any]) -> None:
        conn.execute("BEGIN")

    def commit(conn: psycopg.Connection[Any]) -> None:
        conn.execute("COMMIT")

    for order in merges([3, 3]):
        stage.reset()
        stage.conn.execute(
            STATEMENTS["settle_otherwise"],
            {
                "batch": f'[{{"id": {stage.job}, "claim_id": "{stage.claim_a}", "kind": "dead", "reason": "rejected", "buffered_s": 0, "run_s": 0}}]'
            },
        )
        play(stage.dsn, stage.conn, [[begin, redrive, commit]] * 2, order)
        assert stage.conn.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (1,)
        assert stage.conn.execute(
            "SELECT d.redriven_as = j.id FROM pgqueue.dead_letter_jobs d, pgqueue.jobs j"
        ).fetchone() == (True,)
