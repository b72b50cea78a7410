"""Measurements of what flows: single enqueues, producers side by side, latency, claimers side by side, an old transaction over time."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from pgqueue.bench.app import CLAIMS_VARIABLE, app, latency
from pgqueue.bench.drains import SLOTS, drain, hold_snapshot, percentile
from pgqueue.bench.figures import Figure
from pgqueue.bench.pgbench import find_pgbench, run_pgbench
from pgqueue.bench.rig import NOTE, Rig, claim_times
from pgqueue.bench.statements import claim_function, claimer_script, sql
from pgqueue.errors import PgQueueError

LATENCY_RATE: Final = 50
LATENCY_JOBS_MAX: Final = 1000
SINGLES_MAX: Final = 4_000
BLOCK: Final = 200  # the two sides of a comparison take turns this often
PRODUCERS: Final = 16
CLAIMERS: Final = (1, 2, 4, 8, 16, 32, 64)
CLAIM_BATCH: Final = 10
CLAIMS_PER_S_MAX: Final = 40_000
FLOW_STEP_S: Final = 0.05
CLEAN_MAX_S: Final = 120.0
_BARE: Final = sql("bare_insert")
NO_SLEEPERS: Final = {"PGQUEUE_WAKEUPS": "false"}
_BULK_MEMORY: Final = """
import resource, sys
from pgqueue.bench.app import app
import psycopg
count, note, dsn = int(sys.argv[1]), sys.argv[2], sys.stdin.read()
with psycopg.connect(dsn) as conn:
    app.tasks["noop"].enqueue_many(conn, ({"n": n, "note": note} for n in range(1000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    app.tasks["noop"].enqueue_many(conn, ({"n": n, "note": note} for n in range(count)))
    conn.rollback()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def enqueue_bulk(rig: Rig) -> Figure:
    """`enqueue_many` of all jobs in one transaction; and how much memory a million of them would take away."""
    rig.clear()
    began = time.perf_counter()
    with psycopg.connect(rig.dsn) as conn:
        app.tasks["noop"].enqueue_many(conn, ({"n": n, "note": NOTE} for n in range(rig.plan.jobs)))
    rate = rig.plan.jobs / (time.perf_counter() - began)
    done = subprocess.run(  # noqa: S603 - our own program; the address goes over stdin
        [sys.executable, "-c", _BULK_MEMORY, str(rig.plan.jobs), NOTE],
        input=rig.dsn,
        capture_output=True,
        text=True,
        check=True,
    )
    return Figure(rate, {"memory_growth_mb": float(done.stdout)})


def enqueue_single(rig: Rig) -> Figure:
    """One job to a transaction, taking turns with a bare INSERT of the same row on the same connection."""
    rig.clear()
    count = min(rig.plan.jobs, SINGLES_MAX)
    task = app.tasks["noop"]
    spent = {"ours": 0.0, "bare": 0.0}
    with psycopg.connect(rig.dsn, autocommit=True) as conn:
        for at in range(-BLOCK, count, BLOCK):  # the first block is for warming up
            ours = _timed(BLOCK, lambda n, at=at: task.enqueue(conn, n=at + n, note=NOTE))  # type: ignore[misc]
            bare = _timed(BLOCK, lambda n, at=at: _bare_insert(conn, at + n))  # type: ignore[misc]
            if at >= 0:
                spent["ours"] += ours
                spent["bare"] += bare
    rounded = -(-count // BLOCK) * BLOCK
    return Figure(
        rounded / spent["ours"],
        {"bare_insert_per_s": rounded / spent["bare"], "insert_ratio": spent["bare"] / spent["ours"]},
    )


def single_life(rig: Rig) -> Figure:
    """WAL over the life of jobs that were enqueued one by one, in bytes per job."""
    rig.clear()
    count = min(rig.plan.jobs, SINGLES_MAX)
    before = rig.wal()
    with psycopg.connect(rig.dsn, autocommit=True) as conn:
        for n in range(count):
            app.tasks["noop"].enqueue(conn, n=n, note=NOTE)
    enqueued = rig.wal() - before
    work = rig.drain("-c", str(SLOTS))
    rig.check(count)
    each = (enqueued + work.wal_bytes) / count
    return Figure(each, {"wal_bytes_per_job": each, "enqueue_wal_bytes_per_job": enqueued / count})


def latency_idle(rig: Rig) -> Figure:
    """Fifty single jobs a second at an idle worker: from the enqueue to the handler's start, in milliseconds."""
    rig.clear()
    count = min(rig.plan.jobs, LATENCY_JOBS_MAX)
    with rig.workers("-c", str(SLOTS), processes=1):
        rig.until(
            lambda: bool(rig.one(b"SELECT count(*) FROM pgqueue.sleepers")), "the worker's going to sleep"
        )
        with psycopg.connect(rig.dsn, autocommit=True) as conn:
            due = time.perf_counter()
            for n in range(count):
                latency.enqueue(conn, n=n, note=NOTE)
                due += 1 / LATENCY_RATE
                time.sleep(max(0.0, due - time.perf_counter()))
        rig.until(lambda: rig.one(b"SELECT count(*) FROM pgqueue.job_history") == count, "the last start")
    rig.check(count)
    waits = [float(wait) for (wait,) in rig.conn.execute(sql("latencies")).fetchall()]
    return Figure(
        percentile(waits, 0.5),
        {"p99_ms": percentile(waits, 0.99), "max_ms": waits[-1]},
        {"latency_ms": waits},
    )


def wakeups(rig: Rig) -> Figure:
    """Sixteen producers of single jobs beside awake workers, with wake-ups and without."""
    with_them = _produce(rig, {})
    without = _produce(rig, NO_SLEEPERS)
    return Figure(with_them, {"silent_per_s": without, "silent_ratio": with_them / without})


def claimers(rig: Rig) -> Figure:
    """Claims and settlements of ten by pgbench, by one to sixty-four claimers; the figure is the best rate in jobs.

    The most claimers are measured with a queue each, too: what they lose then, they lose to the machine.
    """
    program = _needed_pgbench(rig)
    rig.conn.execute(claim_function().encode())
    rates = [_claimed(rig, program, clients, apart=False) for clients in CLAIMERS]
    apart = _claimed(rig, program, CLAIMERS[-1], apart=True)
    best = max(rates)
    details = {f"at_{clients}": rate for clients, rate in zip(CLAIMERS, rates, strict=True)}
    return Figure(
        best,
        {
            **details,
            "most_claimers_ratio": rates[-1] / best,
            "apart": apart,
            "most_claimers_apart_ratio": apart / best,
        },
        {"claimers": list(CLAIMERS), "jobs_per_s": rates},
    )


def _claimed(rig: Rig, program: str, clients: int, *, apart: bool) -> float:
    seconds = max(1, round(rig.plan.seconds / len(CLAIMERS)))
    filled = max(rig.plan.jobs, CLAIMS_PER_S_MAX * seconds)
    queues = clients if apart else 1
    rig.clear()
    for number in range(queues):
        rig.fill("noop", filled // queues, f"q{number}")
    rate = run_pgbench(
        program,
        rig.dsn,
        claimer_script(CLAIM_BATCH, queues),
        clients=clients,
        seconds=seconds,
        variables={"floor": -1, "spent": "00000000-0000-0000-0000-000000000000"},
    )
    left = int(rig.one(b"SELECT count(*) FROM pgqueue.jobs"))
    if left < queues:
        raise PgQueueError("bench: the claimers found the queue empty, so the rate is none: raise --jobs")
    rig.check(filled // queues * queues - left, left=left)
    return rate * CLAIM_BATCH


def old_transaction(rig: Rig) -> Figure:
    """A steady flow for some time, with an open transaction and without: what was done in it, and how it went over time."""
    clean = _flow(rig, min(rig.plan.seconds, CLEAN_MAX_S), hold=False)
    held = _flow(rig, rig.plan.seconds, hold=True)
    return Figure(
        held.per_s,
        {
            "clean_per_s": clean.per_s,
            "flow_ratio": held.per_s / clean.per_s,
            "wait_p99_ms": percentile(held.waits_ms, 0.99),
            "clean_wait_p99_ms": percentile(clean.waits_ms, 0.99),
            "claim_p99_ms": percentile(held.claims_ms, 0.99),
            "clean_claim_p99_ms": percentile(clean.claims_ms, 0.99),
        },
        {"held_per_s": held.series},
    )


def sleeping(rig: Rig) -> Figure:
    """Async handlers that sleep a millisecond, 256 at a time in one process."""
    return drain(rig, "sleep", slots=256, processes=1)


@dataclass(frozen=True, slots=True)
class _Flowed:
    per_s: float
    waits_ms: list[float]
    claims_ms: Sequence[float]
    series: list[float]


def _flow(rig: Rig, seconds: float, *, hold: bool) -> _Flowed:
    rig.clear()
    step = int(rig.plan.rate * FLOW_STEP_S)
    with tempfile.TemporaryDirectory(prefix="pgqueue-bench-") as folder:
        claims = Path(folder, "claims")
        with (
            psycopg.connect(rig.dsn) as old,
            rig.workers("-c", str(SLOTS), environment={CLAIMS_VARIABLE: str(claims)}),
        ):
            if hold:
                hold_snapshot(old)
            began = due = time.perf_counter()
            sent = 0
            while time.perf_counter() - began < seconds:
                rig.fill("noop", step)
                sent += step
                due += FLOW_STEP_S
                time.sleep(max(0.0, due - time.perf_counter()))
            rig.until(lambda: rig.one(b"SELECT count(*) FROM pgqueue.jobs") == 0, "the end of the flow")
        times = claim_times(claims)
    rig.check(sent)
    waits = [float(wait) for (wait,) in rig.conn.execute(sql("latencies")).fetchall()]
    series = [float(count) for _, count in rig.conn.execute(sql("per_second")).fetchall()]
    return _Flowed(sent / rig.one(sql("seconds")), waits, times, series)


def _produce(rig: Rig, environment: dict[str, str]) -> float:
    program = _needed_pgbench(rig)
    rig.clear()
    script = f"""SELECT pgqueue.enqueue('noop', '{{"n": 1, "note": "{NOTE}"}}');\n"""
    with rig.workers("-c", str(SLOTS), environment=environment):
        rig.until(
            lambda: bool(rig.one(b"SELECT count(*) FROM pgqueue.workers WHERE status = 'live'")), "a worker"
        )
        rate = run_pgbench(
            program, rig.dsn, script, clients=PRODUCERS, seconds=max(2, round(rig.plan.seconds / 2))
        )
        rig.until(lambda: rig.one(b"SELECT count(*) FROM pgqueue.jobs") == 0, "the end of the work")
    rig.check(int(rig.one(b"SELECT count(*) FROM pgqueue.job_history")))
    return rate


def _needed_pgbench(rig: Rig) -> str:
    program = find_pgbench(rig.bin_dir)
    if program is None:
        raise PgQueueError(
            "bench: no pgbench beside the server, on PATH or in /usr/lib/postgresql: install postgresql-contrib's, or leave this workload out"
        )
    return program


def _timed(count: int, do: Callable[[int], object]) -> float:
    began = time.perf_counter()
    for n in range(count):
        do(n)
    return time.perf_counter() - began


def _bare_insert(conn: psycopg.Connection[Any], n: int) -> None:
    conn.execute(_BARE, {"args": f'{{"n": {n}, "note": "{NOTE}"}}'})
