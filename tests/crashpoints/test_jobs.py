"""A worker broken at every message of a claim, a step, a job's own transaction and a batch settlement: the job succeeds
with one effect in the database, and what it called in a step was called once. The twins do the same by hand.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any, ClassVar

import psycopg
import pytest
from rig.crashsite import Site
from rig.points import Scenario, play
from rig.wire import Mode

from pgqueue import App, JobContext, Retry

EFFECT = "INSERT INTO effects VALUES (%s)"


class OwnTransaction(Scenario):
    """A handler that writes through ctx.conn."""

    role = "pgqueue/job"
    modes = (Mode.BEFORE, Mode.AFTER, Mode.HOLE, Mode.HALF)
    hole_s: ClassVar[float | None] = 0.1
    """What a handler asks has no deadline of ours; its link is given up as the kernel would."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.calls: Counter[int] = Counter()
        site.conn.execute("CREATE TABLE effects (n int)")
        site.wire.hole_s = self.hole_s

    def go(self, number: int) -> None:
        self.site.conn.execute("SELECT pgqueue.enqueue('task', jsonb_build_object('n', %s::int))", [number])
        self.work(through=True)

    def work(self, *, through: bool) -> None:
        retry = Retry(max_retries=30, initial_delay="10ms", max_delay="20ms")
        app = self.site.app(through=through, retry=retry)
        self.task(app)
        assert app.worker("default", concurrency=1, drain=True).run() == 0
        app.close()

    def task(self, app: App) -> None:
        @app.task(name="task")
        def task(ctx: JobContext, n: int) -> None:
            ctx.conn.execute(EFFECT, [n])

    def after(self, number: int) -> list[str]:
        self.site.quiet(self.role)
        ended = self.site.rows("SELECT state FROM pgqueue.job_history WHERE (args->>'n')::int = %s", number)
        effects = self.site.one("SELECT count(*) FROM effects WHERE n = %s", number)
        left = self.site.one("SELECT count(*) FROM pgqueue.jobs")
        wrong = [] if ended == [("succeeded",)] else [f"the job ended as {ended}"]
        wrong += [f"{effects} effects"] * (effects != 1) + [f"{left} jobs left"] * (left != 0)
        return wrong + [f"{self.calls[number]} calls"] * (self.calls[number] > 1)


class EffectOfItsOwn(OwnTransaction):
    """Naive: writes over a connection of its own and lets the job be settled afterwards."""

    role = "naive"

    def task(self, app: App) -> None:
        @app.task(name="task")
        def task(n: int) -> None:
            dsn = self.site.wire.dsn(self.site.database.name)
            conn: psycopg.Connection[Any] = psycopg.connect(
                dsn, application_name="naive", autocommit=True, connect_timeout=2
            )
            with contextlib.closing(conn):
                conn.execute(EFFECT, [n])


class Claim(OwnTransaction):
    """What a worker says to get its jobs."""

    role = "pgqueue/claim"
    hole_s = None


class Settlement(OwnTransaction):
    """A handler without a transaction: its settlement goes with others', and it never runs twice."""

    role = "pgqueue/settle"
    hole_s = None

    def task(self, app: App) -> None:
        @app.task(name="task")
        def task(n: int) -> None:
            self.calls[n] += 1
            self.site.conn.execute(EFFECT, [n])


class Step(OwnTransaction):
    """A call in a step, on the connection that records it."""

    role = "pgqueue/step"
    hole_s = None

    def task(self, app: App) -> None:
        @app.task(name="task")
        def task(ctx: JobContext, n: int) -> None:
            ctx.step("call", lambda: self.call(n))
            ctx.conn.execute(EFFECT, [n])

    def call(self, number: int) -> int:
        self.calls[number] += 1
        return self.calls[number]


class StepBesideTransaction(Step):
    """The same, broken where the job's own transaction is."""

    role = "pgqueue/job"
    hole_s = OwnTransaction.hole_s


class CallWithoutStep(StepBesideTransaction):
    """Naive: calls, and counts on its transaction."""

    def task(self, app: App) -> None:
        @app.task(name="task")
        def task(ctx: JobContext, n: int) -> None:
            self.call(n)
            ctx.conn.execute(EFFECT, [n])


@pytest.mark.proves("P3", "P6", "P7", "F1", "F15a", "F15b", "F15c")
@pytest.mark.parametrize(
    ("kind", "most"),
    [(OwnTransaction, 20), (Claim, 16), (Settlement, 20), (Step, 20), (StepBesideTransaction, 16)],
)
def test_a_job_has_one_effect_wherever_its_worker_is_broken(
    site: Site, kind: type[OwnTransaction], most: int
) -> None:
    assert play(site.wire, kind(site), most=most).violations == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OwnTransaction, Claim, Settlement, Step, StepBesideTransaction])
def test_the_same_at_each_message(site: Site, kind: type[OwnTransaction]) -> None:
    assert play(site.wire, kind(site)).violations == []


@pytest.mark.parametrize("kind", [EffectOfItsOwn, CallWithoutStep])
def test_twin_what_is_done_beside_the_job_is_done_twice(site: Site, kind: type[OwnTransaction]) -> None:
    assert play(site.wire, kind(site), most=20).violations != []
