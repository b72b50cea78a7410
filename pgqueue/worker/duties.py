"""Which upkeep duties a worker process does, and how often. Wired here because two of them are about the worker itself."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import psycopg

from pgqueue.storage.connect import CHORES
from pgqueue.storage.statements import statement
from pgqueue.upkeep.alerts import alerts_duty
from pgqueue.upkeep.chores import chores
from pgqueue.upkeep.duties import Done, Duty, Upkeep
from pgqueue.upkeep.promote import promote_duty
from pgqueue.upkeep.rescue import rescue_duty
from pgqueue.upkeep.windows import windows_duty
from pgqueue.worker.state import WorkerState
from pgqueue.worker.suspects import SuspectProcesses, suspects_duty

FREE_BATCH: Final = 500


def worker_upkeep(state: WorkerState, dsn: str, processes: SuspectProcesses | None) -> tuple[Upkeep, Upkeep]:
    """What a worker process does beside its jobs: its own duties, and in a second thread its share of the fleet's."""

    def made(duties: list[Duty], **more: Any) -> Upkeep:
        return Upkeep(
            dsn,
            duties,
            state.events,
            actor=state.actor,
            label=state.label,
            connect_timeout_s=state.settings.connect_timeout_s,
            **more,
        )

    shared = [
        alerts_duty(state.settings, state.events, lambda: state.actor),
        *chores(state.settings, state.actor),
    ]
    return made(worker_duties(state, processes)), made(shared, role=CHORES)


def worker_duties(state: WorkerState, processes: SuspectProcesses | None) -> list[Duty]:
    """The duties of each worker process; `processes` run its suspects, None: it runs them itself while idle."""
    settings = state.settings
    return [
        promote_duty(settings.promote_interval_s, state.wake.set),
        windows_duty(settings.promote_interval_s, state.wake.set),
        rescue_duty(settings.rescue_interval_s, state.events, lambda: state.actor, state.wake.set),
        suspects_duty(settings.rescue_interval_s, state, state.queues, processes),
        Duty("free_held", settings.upkeep_interval_s, partial(_free_held, state)),
    ]


def _free_held(state: WorkerState, conn: psycopg.Connection[Any]) -> Done:
    """Jobs that were held because nobody knew their task, now that this worker does."""
    row = conn.execute(
        statement("free_held"),
        {
            "queues": list(state.queues),
            "tasks": list(state.registry.tasks),
            "batch": FREE_BATCH,
            "actor": state.actor,
        },
    ).fetchone()
    freed = int(row[0]) if row is not None else 0
    if freed:
        state.wake.set()
    return Done(freed, again_in_s=0 if freed >= FREE_BATCH else None)
