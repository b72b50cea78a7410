"""Measurements of draining: jobs are enqueued in bulk, then real workers run until nothing is left.

The time is the database's, from the first start to the last end, so a worker's own start is not in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from pgqueue.bench.app import CLAIMS_VARIABLE
from pgqueue.bench.figures import Figure
from pgqueue.bench.pgbench import find_pgbench, run_pgbench
from pgqueue.bench.rig import Rig, Work, claim_times
from pgqueue.bench.statements import effect_script, sql

SLOTS = 8


def drain(
    rig: Rig, task: str, *, slots: int = SLOTS, effects: bool = False, processes: int | None = None
) -> Figure:
    """Jobs per second, and what one job cost."""
    rig.clear()
    jobs = rig.plan.jobs
    wal, rows = rig.wal(), rig.rows_and_commits()[0]
    rig.fill(task, jobs)
    enqueued, rows_enqueued = rig.wal() - wal, rig.rows_and_commits()[0] - rows
    work = rig.drain("-c", str(slots), processes=processes)
    rig.check(jobs, effects=effects)
    return Figure(jobs / rig.one(sql("seconds")), _costs(work, jobs, enqueued, rows_enqueued))


def effect_and_floor(rig: Rig) -> Figure:
    """One effect and one commit per job, beside the same statements by pgbench with as many clients as slots."""
    ours = drain(rig, "effect", effects=True)
    program = find_pgbench(rig.bin_dir)
    if program is None:
        return ours
    rig.clear()
    each = rig.plan.jobs // SLOTS
    rig.fill("effect", each * SLOTS)
    rig.conn.execute(sql("claim_all"))
    floor = run_pgbench(
        program,
        rig.dsn,
        effect_script(),
        clients=SLOTS,
        transactions=each,
        variables={"base": rig.one(b"SELECT min(id) FROM pgqueue.jobs"), "each": each, "at": 0},
    )
    rig.check(each * SLOTS, effects=True)
    return Figure(ours.value, {**ours.details, "pgbench_per_s": floor, "pgbench_ratio": ours.value / floor})


def old_snapshot(rig: Rig) -> Figure:
    """A no-op drain while another transaction holds a snapshot from before it, beside a clean one."""
    clean = drain(rig, "noop")
    rig.clear()
    with psycopg.connect(rig.dsn) as old:
        hold_snapshot(old)
        rig.fill("noop", rig.plan.jobs)
        work = rig.drain("-c", str(SLOTS))
    rig.check(rig.plan.jobs)
    held = rig.plan.jobs / rig.one(sql("seconds"))
    details = {"clean_per_s": clean.value, "clean_ratio": held / clean.value, **_claims(work)}
    return Figure(held, details)


def backlog(rig: Rig) -> Figure:
    """A drain's rate and claims while many more jobs wait behind in the same queue, beside those without."""
    jobs = rig.plan.jobs
    rig.clear()
    rig.fill("noop", jobs)
    clean = rig.drain("-c", str(SLOTS))
    rig.check(jobs)
    clean_rate = jobs / rig.one(sql("seconds"))
    rig.clear()
    if rig.plan.history:
        rig.fill_history(rig.plan.history)
    rig.fill("noop", rig.plan.pending)
    rig.conn.execute("VACUUM ANALYZE pgqueue.jobs")
    rig.conn.execute("CHECKPOINT")  # the filling is not what is measured
    # Counting would read every row: the workers' own counters come with their beats.
    told = b"SELECT coalesce(sum(settled), 0) FROM pgqueue.workers WHERE ended_at IS NULL"
    before = rig.one(told)
    with tempfile.TemporaryDirectory(prefix="pgqueue-bench-") as folder:
        claims = Path(folder, "claims")
        environment = {CLAIMS_VARIABLE: str(claims), "PGQUEUE_HEARTBEAT_S": "0.25s"}
        with rig.workers("-c", str(SLOTS), environment=environment) as started:
            rig.until(lambda: rig.one(told) - before >= jobs, "the drain of a part", by=started)
        times = claim_times(claims)
    done = rig.plan.pending - int(rig.one(b"SELECT count(*) FROM pgqueue.jobs"))
    rig.check(done, left=rig.plan.pending - done)
    rate = done / rig.one(sql("seconds"))
    behind = {"claim_p50_ms": percentile(times, 0.5), "claim_p99_ms": percentile(times, 0.99)}
    empty = {f"empty_{name}": value for name, value in _claims(clean).items()}
    return Figure(rate, {"empty_per_s": clean_rate, "empty_ratio": rate / clean_rate, **behind, **empty})


def hold_snapshot(old: psycopg.Connection[Any]) -> None:
    """Let this connection hold what others delete from now on."""
    old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    old.execute("SELECT count(*) FROM pgqueue.queues")


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the sorted values lie."""
    return values[min(len(values) - 1, int(part * len(values)))]


def _claims(work: Work) -> dict[str, float]:
    if not work.claims_ms:
        return {}
    return {"claim_p50_ms": percentile(work.claims_ms, 0.5), "claim_p99_ms": percentile(work.claims_ms, 0.99)}


def _costs(work: Work, jobs: int, wal: int, rows: int) -> dict[str, float]:
    costs = {
        "wal_bytes_per_job": (wal + work.wal_bytes) / jobs,
        "rows_per_job": (rows + work.rows) / jobs,
        "commits_per_job": work.commits / jobs,
        "worker_cpu_us_per_job": 1e6 * work.client_cpu_s / jobs,
        "worker_rss_mb": work.rss_mb,
        **_claims(work),
    }
    if work.server_cpu_s is not None:
        costs["server_cpu_us_per_job"] = 1e6 * work.server_cpu_s / jobs
    return costs
