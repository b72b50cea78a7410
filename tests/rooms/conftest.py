"""Workers in a thread of the test, on the test's own database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.wait import wait_for

from pgqueue import App, Worker


@dataclass
class Site:
    """An App, its database, and workers that end with the test."""

    database: Database
    app: App
    conn: psycopg.Connection[Any]
    events: list[object] = field(default_factory=list)
    _running: list[tuple[Worker, threading.Thread, list[int]]] = field(default_factory=list)

    def drain(self, queues: str | None = None, **options: Any) -> None:
        """Work until nothing is left that is due or retrying."""
        assert self.app.worker(queues, drain=True, **{"concurrency": 4, **options}).run() == 0

    def start(self, queues: str | None = None, **options: Any) -> Worker:
        """Start a worker in the background."""
        worker = self.app.worker(queues, **{"concurrency": 4, **options})
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(worker.run()))
        thread.start()
        self._running.append((worker, thread, codes))
        wait_for(
            lambda: self.one("SELECT count(*) FROM pgqueue.workers WHERE status = 'live'") >= 1,
            what="a live worker",
        )
        return worker

    def stop(self) -> list[int]:
        """Stop all background workers in order; returns their exit codes."""
        for worker, _, _ in self._running:
            worker.stop()
        codes: list[int] = []
        for _, thread, code in self._running:
            thread.join(30)
            assert not thread.is_alive()
            codes += code
        self._running.clear()
        return codes

    def one(self, statement: str, *params: Any) -> Any:
        row = self.conn.execute(statement, params).fetchone()
        return None if row is None else row[0]

    def rows(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.conn.execute(statement, params).fetchall()

    def state(self, job_id: int) -> str:
        """Where a job is: exactly one of the three tables knows it."""
        places = self.rows(
            "SELECT state FROM pgqueue.jobs WHERE id = %s UNION ALL SELECT state FROM pgqueue.job_history WHERE job_id = %s"
            " UNION ALL SELECT 'dead' FROM pgqueue.dead_letter_jobs WHERE job_id = %s",
            job_id,
            job_id,
            job_id,
        )
        assert len(places) == 1, places
        return str(places[0][0])

    def wait_state(self, job_id: int, state: str, timeout_s: float = 15) -> None:
        wait_for(lambda: self.state(job_id) == state, timeout_s, what=f"job {job_id} {state}")


@pytest.fixture
def make_site(database: Database) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**settings: Any) -> Site:
        app = App(database.dsn, **{"grace_s": 5, **settings})
        site = Site(database, app, database.connect())
        app.events.listen(site.events.append)
        site.conn.execute("CREATE TABLE IF NOT EXISTS effects (job_id bigint, note text)")
        sites.append(site)
        return site

    yield make
    for site in sites:
        site.stop()
        site.app.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()
