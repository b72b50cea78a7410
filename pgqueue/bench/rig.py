"""A database to measure on: filling and clearing it, real worker processes, and the count of lost and doubled jobs.

Used by the measurements of this package. A run that loses or doubles a job is an error, not a figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from pgqueue.bench.app import CLAIMS_VARIABLE
from pgqueue.bench.machine import children_cpu_s, rss_mb, server_cpu_s
from pgqueue.bench.statements import sql
from pgqueue.errors import PgQueueError

NOTE: Final = "x" * 70  # with the names around it about 100 bytes of arguments
CHUNK: Final = 20_000
HISTORY_CHUNK: Final = 200_000
STATE_TIMEOUT_S: Final = 300
LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the runs are."""

    jobs: int = 60_000
    processes: int = 1
    seconds: float = 10.0  # of the flows: old transaction, producers
    rate: int = 5_000  # jobs per second of the old transaction's flow
    pending: int = 1_000_000
    history: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """What one drain cost beside its time."""

    wal_bytes: int
    rows: int
    commits: int
    server_cpu_s: float | None
    client_cpu_s: float
    rss_mb: float
    claims_ms: tuple[float, ...]


class Rig:
    """One database of one server."""

    def __init__(self, dsn: str, plan: Plan, *, postmaster: int, bin_dir: Path) -> None:
        self.dsn = dsn
        self.plan = plan
        self.bin_dir = bin_dir
        self._postmaster = postmaster
        self.conn = psycopg.connect(dsn, autocommit=True, application_name="pgqueue-bench")
        self.conn.execute(sql("schema"))
        self._start_cpu_s: float | None = None
        self._ended_cpu_s = 0.0

    def close(self) -> None:
        """Close the connection."""
        self.conn.close()

    def clear(self) -> None:
        """Empty every table, and let no checkpoint of an earlier run fall into the next."""
        self.conn.execute(sql("clear"))
        self.conn.execute("CHECKPOINT")

    def fill(self, task: str, jobs: int, queue: str = "default") -> None:
        """Enqueue in bulk."""
        for at in range(0, jobs, CHUNK):
            self.conn.execute(
                sql("fill"), {"task": task, "note": NOTE, "jobs": min(CHUNK, jobs - at), "queue": queue}
            )

    def fill_history(self, rows: int) -> None:
        """Rows of history as finished jobs leave them, in a queue of their own."""
        for at in range(0, rows, HISTORY_CHUNK):
            last = min(rows, at + HISTORY_CHUNK)
            self.conn.execute(sql("fill_history"), {"note": NOTE, "first": at + 1, "last": last})

    def one(self, query: bytes) -> Any:
        """The first column of the only row."""
        row = self.conn.execute(query).fetchone()
        assert row is not None  # noqa: S101 - aggregates only
        return row[0]

    def check(self, jobs: int, *, effects: bool = False, left: int = 0) -> None:
        """Raise unless `jobs` succeeded, each once, and `left` are still there."""
        row = self.conn.execute(sql("outcome")).fetchone()
        assert row is not None  # noqa: S101 - aggregates
        done, distinct, live, dead, written, written_distinct = row
        if (done, distinct, live, dead) != (jobs, jobs, left, 0) or (
            effects and (written, written_distinct) != (jobs, jobs)
        ):
            raise PgQueueError(
                f"bench: {done} of {jobs} jobs succeeded ({distinct} different ones), {live} live instead of {left}, {dead} dead, "
                f"{written} effects ({written_distinct} different ones): the run does not count"
            )

    def wal(self) -> int:
        """Bytes of WAL so far."""
        return int(self.one(b"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"))

    def rows_and_commits(self) -> tuple[int, int]:
        """Rows written and transactions committed so far."""
        self.conn.execute("SELECT pg_stat_force_next_flush()")
        self.conn.execute("SELECT pg_stat_clear_snapshot()")
        row = self.conn.execute(sql("rows")).fetchone()
        assert row is not None  # noqa: S101 - this database has a row
        return row[0], row[1]

    def drain(self, *options: str, processes: int | None = None) -> Work:
        """Run workers until nothing is left, and return what it cost."""
        idle_s = self._cost_of_a_start()
        wal, server_s = self.wal(), server_cpu_s(self._postmaster)
        rows, commits = self.rows_and_commits()
        with tempfile.TemporaryDirectory(prefix="pgqueue-bench-") as folder:
            claims = Path(folder, "claims")
            processes = processes or self.plan.processes
            memory = _Memory()
            environment = {CLAIMS_VARIABLE: str(claims)}
            with self.workers("--drain", *options, processes=processes, environment=environment) as started:
                memory.watch(started)
                codes = [process.wait() for process in started]
            # The workers' clients are ended children now: their time counts.
            client_s = self._ended_cpu_s - processes * idle_s
            if any(codes):
                raise PgQueueError(f"bench: a worker left with exit code {max(codes)}")
            times = claim_times(claims)
        rows_after, commits_after = self.rows_and_commits()
        server_after = server_cpu_s(self._postmaster)
        return Work(
            self.wal() - wal,
            rows_after - rows,
            commits_after - commits,
            None if server_s is None or server_after is None else server_after - server_s,
            max(0.0, client_s),
            memory.most,
            times,
        )

    @contextmanager
    def workers(
        self,
        *options: str,
        processes: int | None = None,
        queue: str = "default",
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Worker processes for the block; asked to stop at its end if they have not."""
        command = [
            *(sys.executable, "-m", "pgqueue", "worker", "-A", "pgqueue.bench.app:app"),
            *("-q", queue, *options),
        ]
        variables = {
            **os.environ,
            "PGQUEUE_DATABASE_URL": self.dsn,
            "PGQUEUE_LOG_LEVEL": "warning",
            **(environment or {}),
        }
        before = children_cpu_s()
        started = [
            subprocess.Popen(command, env=variables)  # noqa: S603 - our own command
            for _ in range(processes or self.plan.processes)
        ]
        try:
            yield started
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(60)
            self._ended_cpu_s = children_cpu_s() - before

    def until(
        self,
        done: Callable[[], bool],
        what: str,
        timeout_s: float = STATE_TIMEOUT_S,
        by: Sequence[subprocess.Popen[bytes]] = (),
    ) -> None:
        """Wait for a state of the database, which the processes `by` bring about: none of them may leave before."""
        deadline = time.monotonic() + timeout_s
        while not done():
            for process in by:
                if process.poll() is not None:
                    raise PgQueueError(f"bench: a worker left with exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise PgQueueError(f"bench: {what} did not happen within {timeout_s:.0f} s")
            time.sleep(LOOK_S)

    def _cost_of_a_start(self) -> float:
        """Processor time of a worker that finds nothing to do: imports, which a drain's time does not hold either."""
        if self._start_cpu_s is None:
            with self.workers("--drain", "-c", "8", processes=1, queue="nothing") as started:
                started[0].wait()
            self._start_cpu_s = self._ended_cpu_s
        return self._start_cpu_s


def claim_times(file: Path) -> tuple[float, ...]:
    """How long the claims of workers that have ended took, in milliseconds, sorted."""
    return tuple(sorted(1000 * s for line in file.read_text().splitlines() for s in json.loads(line)))


class _Memory:
    """The most resident memory of any watched process, looked at ten times a second."""

    def __init__(self) -> None:
        self.most = 0.0

    def watch(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Watch until they end."""
        threading.Thread(target=self._look, args=[processes], daemon=True).start()

    def _look(self, processes: list[subprocess.Popen[bytes]]) -> None:
        while any(process.returncode is None for process in processes):
            for process in processes:
                self.most = max(self.most, rss_mb(process.pid) or 0.0)
            time.sleep(LOOK_S)
