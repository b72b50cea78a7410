"""The pretended API server: books, confirms, completes and cancels rides, each in a transaction of its own.

Started by the demo as a process (`python -m pgqueue.demo.simulator`); it enqueues inside its transactions and
runs no job. A request whose connection broke is sent again, as a client would.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import psycopg

from pgqueue.demo.rides import FEE_AFTER_S, capture_payment, charge_cancellation_fee
from pgqueue.demo.story import SPEED, app

REQUEST_THREADS: Final = 2
RIDES_PER_S: Final = 25.0
APPLICATION_NAME: Final = "rides-api"
RECONNECT_PAUSE_S: Final = 0.1

# How many of a hundred bookings …
RIDER_GIVES_UP: Final = 2  # … are rolled back after everything was written
RIDER_CANCELS: Final = 10  # … are cancelled before a driver confirms
NOBODY_CONFIRMS: Final = 8  # … find no driver, so the deferred fee falls due
# … and how many of a thousand cards
DECLINED: Final = 8
UNREADABLE: Final = 2
DRIVERS: Final = 40
CELLS: Final = 12
SENT_TWICE: Final = 10  # of a hundred completions, because the answer came late

Request = Callable[["Api"], None]
_dice: Final = random.Random()  # noqa: S311 - a story's chances, no secret


class Api:
    """One request thread: its connection, and the requests that are to come."""

    def __init__(self, dsn: str, stop: threading.Event) -> None:
        self._dsn = dsn
        self._stop = stop
        self._conn: psycopg.Connection[Any] | None = None
        self._due: list[tuple[float, int, Request]] = []
        self._numbers = count()

    def serve(self) -> None:
        """Book at a steady rate and do what falls due, until told to stop."""
        booking_at = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if self._due and self._due[0][0] <= now:
                self._answer(heapq.heappop(self._due)[2])
            elif booking_at <= now:
                booking_at = max(booking_at, now - 1) + _dice.expovariate(RIDES_PER_S / REQUEST_THREADS)
                self._answer(book)
            else:
                following = min(booking_at, self._due[0][0] if self._due else booking_at)
                self._stop.wait(following - now)
        if self._conn is not None:
            self._conn.close()

    @property
    def conn(self) -> psycopg.Connection[Any]:
        """An open connection; a broken one is replaced."""
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(self._dsn, application_name=APPLICATION_NAME, connect_timeout=5)
        return self._conn

    def later(self, story_s: float, request: Request) -> None:
        """Send `request` after so many seconds of the story."""
        heapq.heappush(self._due, (time.monotonic() + story_s / SPEED, next(self._numbers), request))

    def _answer(self, request: Request) -> None:
        try:
            request(self)
        except psycopg.OperationalError:
            # Nobody knows whether it was committed. Each request looks at the ride's status first, so that
            # sending it again is harmless; a booking may leave a ride that nobody drives.
            if self._conn is not None:
                self._conn.close()
            heapq.heappush(self._due, (time.monotonic() + RECONNECT_PAUSE_S, next(self._numbers), request))


def book(api: Api) -> None:
    """A ride is requested; the fee for finding no driver is enqueued with it, for later."""
    chance = _dice.uniform(0, 100)
    with api.conn.transaction() as transaction:
        row = api.conn.execute(
            "INSERT INTO rides_demo.rides (amount_cents, card) VALUES (%s, %s) RETURNING id",
            (_dice.randrange(500, 5000), _card()),
        ).fetchone()
        assert row is not None  # noqa: S101 - INSERT … RETURNING
        ride_id: int = row[0]
        job = charge_cancellation_fee.using(delay=FEE_AFTER_S).enqueue(api.conn, ride_id=ride_id)
        api.conn.execute("UPDATE rides_demo.rides SET fee_job_id = %s WHERE id = %s", (job.id, ride_id))
        if chance < RIDER_GIVES_UP:
            raise psycopg.Rollback(transaction)  # the ride and its job are gone together
    if chance < RIDER_GIVES_UP + RIDER_CANCELS:
        api.later(_dice.uniform(10, 60), lambda api: cancel(api, ride_id))
    elif chance >= RIDER_GIVES_UP + RIDER_CANCELS + NOBODY_CONFIRMS:
        api.later(_dice.uniform(10, 150), lambda api: confirm(api, ride_id))


def confirm(api: Api, ride_id: int) -> None:
    """A driver takes the ride."""
    with api.conn.transaction():
        api.conn.execute(
            "UPDATE rides_demo.rides SET status = 'confirmed', driver_id = %s WHERE id = %s AND status = 'requested'",
            (_dice.randint(1, DRIVERS), ride_id),
        )
    api.later(_dice.uniform(60, 240), lambda api: complete(api, ride_id))


def complete(api: Api, ride_id: int) -> None:
    """The ride ends: its completion and the job that captures its payment are one commit."""
    _complete(api, ride_id)
    if _dice.uniform(0, 100) < SENT_TWICE:
        _complete(api, ride_id)


def cancel(api: Api, ride_id: int) -> None:
    """The rider cancels in time: the ride, and the fee that was waiting for it."""
    with api.conn.transaction():
        row = api.conn.execute(
            "UPDATE rides_demo.rides SET status = 'cancelled', ended_at = clock_timestamp()"
            " WHERE id = %s AND status = 'requested' RETURNING fee_job_id",
            (ride_id,),
        ).fetchone()
        if row is not None:
            api.conn.execute("SELECT pgqueue.cancel(%s, 'the rider cancelled in time', 'rides-api')", row)


def _complete(api: Api, ride_id: int) -> None:
    with api.conn.transaction():
        row = api.conn.execute(
            "UPDATE rides_demo.rides SET status = 'completed', ended_at = coalesce(ended_at, clock_timestamp())"
            " WHERE id = %s AND status IN ('confirmed', 'completed') RETURNING amount_cents, card, capture_job_id, driver_id",
            (ride_id,),
        ).fetchone()
        if row is None:
            return
        if row[2] is None:
            api.conn.execute("UPDATE rides_demo.drivers SET rides = rides + 1 WHERE id = %s", (row[3],))
            told = {"ride_id": ride_id, "cell": ride_id % CELLS}
            app.outbox.emit(api.conn, "ride.completed", told, key=f"ride:{ride_id}")
        # The key makes a second completion the same job.
        job = capture_payment.using(idempotency_key=f"ride:{ride_id}:capture").enqueue(
            api.conn, ride_id=ride_id, amount_cents=row[0], card=row[1]
        )
        api.conn.execute("UPDATE rides_demo.rides SET capture_job_id = %s WHERE id = %s", (job.id, ride_id))


def _card() -> str:
    chance = _dice.uniform(0, 1000)
    return "declined" if chance < DECLINED else "unreadable" if chance < DECLINED + UNREADABLE else "good"


def main() -> None:
    """Serve until SIGTERM; the requests at hand are finished."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    dsn = os.environ["PGQUEUE_DATABASE_URL"]
    threads = [
        threading.Thread(target=Api(dsn, stop).serve, name=f"rides-api-{number}")
        for number in range(REQUEST_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
