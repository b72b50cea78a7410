"""Emit and COMMIT, broken at every message: an order and its message are there together or not at all, and the caller
is told the truth. The twins are what applications do without an outbox.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest
from rig.crashsite import Site, wrong_jobs
from rig.points import Scenario, play
from rig.wire import Mode

from pgqueue import App, DatabaseUnreachable
from pgqueue.errors import PgQueueError, UnknownOutcome

CALLER = "caller"


class EmitInATransaction(Scenario):
    """A business row and a message in the caller's transaction."""

    role = CALLER

    def __init__(self, site: Site) -> None:
        self.site = site
        self.relay = relay_of(site)
        self.acknowledged: set[int] = set()
        site.conn.execute("CREATE TABLE orders (n int)")
        site.wire.hole_s = 0.1  # the connection is the caller's, and so are its deadlines

    def go(self, number: int) -> None:
        with contextlib.suppress(psycopg.Error, PgQueueError):
            dsn = self.site.wire.dsn(self.site.database.name)
            with contextlib.closing(psycopg.connect(dsn, application_name=CALLER, connect_timeout=2)) as conn:
                self.order(conn, number)
                self.acknowledged.add(number)

    def order(self, conn: psycopg.Connection[Any], number: int) -> None:
        conn.execute("INSERT INTO orders VALUES (%s)", [number])
        self.relay.outbox.emit(conn, "a", {"n": number}, key="k")
        conn.commit()

    def after(self, number: int) -> list[str]:
        self.site.quiet(CALLER)
        self.site.relay(self.relay)
        orders = self.site.one("SELECT count(*) FROM orders WHERE n = %s", number)
        return wrong_jobs(self.site, [number], allowed=(1,) if number in self.acknowledged else (orders,))


class TwoWrites(EmitInATransaction):
    """Naive: the message is written once the order is committed."""

    def order(self, conn: psycopg.Connection[Any], number: int) -> None:
        conn.execute("INSERT INTO orders VALUES (%s)", [number])
        conn.commit()
        self.relay.outbox.emit(conn, "a", {"n": number}, key="k")
        conn.commit()


class EmitOfItsOwn(Scenario):
    """A message in a transaction of pgqueue's own: repeated, read back, or refused."""

    role = "pgqueue/enqueue"

    def __init__(self, site: Site) -> None:
        self.site = site
        self.relay = relay_of(site)
        self.allowed: tuple[int, ...] = ()

    def go(self, number: int) -> None:
        app = self.site.app(through=True)
        self.allowed = (1,)
        try:
            app.outbox.emit(None, "a", {"n": number}, key="k")
        except UnknownOutcome:
            self.allowed = (0, 1)
        except DatabaseUnreachable:
            self.allowed = (0,)
        finally:
            app.close()

    def after(self, number: int) -> list[str]:
        self.site.quiet(self.role)
        self.site.relay(self.relay)
        return wrong_jobs(self.site, [number], allowed=self.allowed)


class RepeatedBlindly(EmitOfItsOwn):
    """Naive: whatever went wrong, it is done again."""

    modes = (Mode.BEFORE, Mode.AFTER, Mode.HOLE)

    def go(self, number: int) -> None:
        self.site.wire.hole_s = 0.1
        self.allowed = (1,)
        dsn = self.site.wire.dsn(self.site.database.name)
        for _ in range(3):
            with (
                contextlib.suppress(psycopg.Error, PgQueueError),
                psycopg.connect(dsn, application_name=self.role, connect_timeout=2) as conn,
            ):
                self.relay.outbox.emit(conn, "a", {"n": number}, key="k")
                conn.commit()
                return


def relay_of(site: Site) -> App:
    """An App past the wire whose relay makes a job of each message."""
    app = site.app(through=False)

    @app.on("a")
    @app.task(name="t")
    def task(n: int) -> None: ...

    return app


@pytest.mark.proves("P1", "P2", "P17", "F15a", "F15b", "F15c")
def test_an_order_and_its_message_are_there_together_or_not_at_all(site: Site) -> None:
    assert play(site.wire, EmitInATransaction(site)).violations == []


def test_twin_a_message_written_after_the_order_is_lost(site: Site) -> None:
    assert play(site.wire, TwoWrites(site)).violations != []


@pytest.mark.proves("P1", "P7", "P17", "F15a", "F15b", "F15c")
def test_an_emit_of_its_own_says_the_truth(site: Site) -> None:
    assert play(site.wire, EmitOfItsOwn(site), most=24).violations == []


@pytest.mark.slow
def test_an_emit_of_its_own_says_the_truth_at_each_message(site: Site) -> None:
    assert play(site.wire, EmitOfItsOwn(site)).violations == []


def test_twin_an_emit_that_is_repeated_blindly_is_doubled(site: Site) -> None:
    assert play(site.wire, RepeatedBlindly(site)).violations != []
