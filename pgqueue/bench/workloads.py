"""The table of workloads: name, what is measured in which unit, and by which function. Read by `pgqueue bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pgqueue.bench.drains import backlog, drain, effect_and_floor, old_snapshot
from pgqueue.bench.figures import Figure
from pgqueue.bench.flows import (
    claimers,
    enqueue_bulk,
    enqueue_single,
    latency_idle,
    old_transaction,
    single_life,
    sleeping,
    wakeups,
)
from pgqueue.bench.rig import Rig


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of measurement. `needs_pgbench`: it has no figure without."""

    name: str
    unit: str
    measure: Callable[[Rig], Figure]
    needs_pgbench: bool = False
    long: bool = False  # left out unless asked for by name


_ALL: Final = (
    Workload("noop", "jobs/s", lambda rig: drain(rig, "noop")),
    Workload("noop-2", "jobs/s", lambda rig: drain(rig, "noop", processes=2)),
    Workload("effect", "jobs/s", effect_and_floor),
    Workload("group", "jobs/s", lambda rig: drain(rig, "group", effects=True)),
    Workload("batch", "jobs/s", lambda rig: drain(rig, "batch", effects=True)),
    Workload("sleep", "jobs/s", sleeping),
    Workload("enqueue-single", "jobs/s", enqueue_single),
    Workload("enqueue-bulk", "jobs/s", enqueue_bulk),
    Workload("single-life", "WAL bytes/job", single_life),
    Workload("latency", "ms p50", latency_idle),
    Workload("old-xmin", "jobs/s", old_snapshot),
    Workload("wakeups", "enqueues/s", wakeups, needs_pgbench=True),
    Workload("claimers", "jobs/s", claimers, needs_pgbench=True),
    Workload("backlog", "jobs/s", backlog, long=True),
    Workload("old-transaction", "jobs/s", old_transaction, long=True),
)
WORKLOADS: Final[dict[str, Workload]] = {workload.name: workload for workload in _ALL}
