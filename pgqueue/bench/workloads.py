"""One measurement each: prepares the tables, runs real worker processes, and counts lost and doubled jobs every time.

A run that loses or doubles a job is an error, not a figure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from pgqueue.bench.app import app, latency
from pgqueue.errors import PgQueueError

NOTE: Final = "x" * 70  # with the names around it about 100 bytes of arguments
CHUNK: Final = 20_000
LATENCY_RATE: Final = 50
SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS pgqueue_bench;
CREATE TABLE IF NOT EXISTS pgqueue_bench.effects (job_id bigint)
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One run's result; `value` is jobs per second, or milliseconds for latency."""

    value: float
    details: dict[str, float] = field(default_factory=dict)


class Bench:
    """A database to measure on, and how."""

    def __init__(self, dsn: str, *, jobs: int, processes: int) -> None:
        self._dsn = dsn
        self._jobs = jobs
        self._processes = processes
        self._conn = psycopg.connect(dsn, autocommit=True, application_name="pgqueue-bench")
        self._conn.execute(SCHEMA)

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def drain(
        self, task: str, *, slots: int = 8, effects: bool = False, hold_snapshot: bool = False
    ) -> Figure:
        """Enqueue in bulk, then work until nothing is left; the time is from the first start to the last end."""
        self._clear()
        before = self._wal()
        self._fill(task, self._jobs)
        old = psycopg.connect(self._dsn) if hold_snapshot else None
        try:
            if old is not None:
                old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                old.execute("SELECT count(*) FROM pgqueue.queues")
            self._work("--drain", "-c", str(slots))
        finally:
            if old is not None:
                old.close()
        self._check(effects=effects)
        seconds = self._one(
            "SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM pgqueue.job_history"
        )
        return Figure(self._jobs / seconds, {"wal_bytes_per_job": (self._wal() - before) / self._jobs})

    def enqueue_bulk(self) -> Figure:
        """`enqueue_many` of all jobs in one transaction."""
        self._clear()
        began = time.perf_counter()
        with psycopg.connect(self._dsn) as conn:
            app.tasks["noop"].enqueue_many(conn, ({"n": n, "note": NOTE} for n in range(self._jobs)))
        return Figure(self._jobs / (time.perf_counter() - began))

    def enqueue_single(self) -> Figure:
        """One job to a transaction, against a bare INSERT of the same row on the same connection."""
        self._clear()
        count = min(self._jobs, 3_000)
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            task = app.tasks["noop"]
            ours = _rate(count, lambda n: task.enqueue(conn, n=n, note=NOTE))
            bare = _rate(count, lambda n: _bare_insert(conn, n))
        return Figure(ours, {"bare_insert_per_s": bare, "ratio": ours / bare})

    def latency(self) -> Figure:
        """Fifty single jobs a second at an idle worker: from the enqueue to the handler's start, in milliseconds."""
        self._clear()
        count = min(self._jobs, 500)
        worker = self._start("-c", "8")
        try:
            self._wait(lambda: bool(self._one("SELECT count(*) FROM pgqueue.sleepers")), 30)
            with psycopg.connect(self._dsn, autocommit=True) as conn:
                for n in range(count):
                    latency.enqueue(conn, n=n, note=NOTE)
                    time.sleep(1 / LATENCY_RATE)
            self._wait(lambda: self._one("SELECT count(*) FROM pgqueue.job_history") == count, 30)
        finally:
            worker.terminate()
            worker.wait(60)
        row = self._conn.execute(
            "SELECT 1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY wait_s), 1000 * percentile_cont(0.99) WITHIN GROUP (ORDER BY wait_s)"
            " FROM pgqueue.job_history"
        ).fetchone()
        assert row is not None  # noqa: S101 - an aggregate
        return Figure(float(row[0]), {"p99_ms": float(row[1])})

    def _fill(self, task: str, jobs: int) -> None:
        for at in range(0, jobs, CHUNK):
            self._conn.execute(
                "SELECT count(*) FROM pgqueue.enqueue_jobs(%s, (SELECT array_agg(jsonb_build_object('n', i, 'note', %s::text)) FROM generate_series(1, %s) i))",
                (task, NOTE, min(CHUNK, jobs - at)),
            )

    def _clear(self) -> None:
        self._conn.execute(
            "TRUNCATE pgqueue.jobs, pgqueue.claims, pgqueue.job_history, pgqueue.job_transitions, pgqueue.dead_letter_jobs, pgqueue_bench.effects"
        )
        self._conn.execute("CHECKPOINT")

    def _check(self, *, effects: bool) -> None:
        done = self._one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'")
        left = self._one("SELECT count(*) FROM pgqueue.jobs") + self._one(
            "SELECT count(*) FROM pgqueue.dead_letter_jobs"
        )
        written = self._one("SELECT count(*) FROM pgqueue_bench.effects")
        wrong = done != self._jobs or left or (effects and written != self._jobs)
        if wrong:
            raise PgQueueError(
                f"bench: {done} of {self._jobs} jobs done, {left} left, {written} effects; the run does not count"
            )

    def _work(self, *options: str) -> None:
        processes = [self._start(*options) for _ in range(self._processes)]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise PgQueueError(f"bench: a worker left with exit code {max(codes)}")

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "pgqueue",
            "worker",
            "-A",
            "pgqueue.bench.app:app",
            "-q",
            "default",
            *options,
        ]
        environment = {**os.environ, "PGQUEUE_DATABASE_URL": self._dsn, "PGQUEUE_LOG_LEVEL": "warning"}
        return subprocess.Popen(command, env=environment)  # noqa: S603 - our own command

    def _wal(self) -> int:
        return int(self._one("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"))

    def _one(self, query: str) -> Any:
        row = self._conn.execute(query.encode()).fetchone()
        assert row is not None  # noqa: S101 - aggregates only
        return row[0]

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                raise PgQueueError("bench: the workers did not come to the expected state in time")
            time.sleep(0.05)


def _rate(count: int, do: Callable[[int], object]) -> float:
    began = time.perf_counter()
    for n in range(count):
        do(n)
    return count / (time.perf_counter() - began)


def _bare_insert(conn: psycopg.Connection[Any], n: int) -> None:
    conn.execute(
        "INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args)"
        " SELECT i, clock_timestamp(), clock_timestamp(), i, 5, 6, 'ready', 'default', 'noop', %s::jsonb FROM nextval('pgqueue.job_seq') i",
        (f'{{"n": {n}, "note": "{NOTE}"}}',),
    )


WORKLOADS: Final[dict[str, tuple[str, Callable[[Bench], Figure]]]] = {
    "noop": ("jobs/s", lambda bench: bench.drain("noop")),
    "effect": ("jobs/s", lambda bench: bench.drain("effect", effects=True)),
    "group": ("jobs/s", lambda bench: bench.drain("group", effects=True)),
    "batch": ("jobs/s", lambda bench: bench.drain("batch", effects=True)),
    "sleep": ("jobs/s", lambda bench: bench.drain("sleep", slots=256)),
    "old-xmin": ("jobs/s", lambda bench: bench.drain("noop", hold_snapshot=True)),
    "enqueue-bulk": ("jobs/s", Bench.enqueue_bulk),
    "enqueue-single": ("jobs/s", Bench.enqueue_single),
    "latency": ("ms p50", Bench.latency),
}
