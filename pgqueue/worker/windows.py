"""At the start of a call that leads a window: the other jobs of the window are claimed for it.

Called by the executors in place of what a plain batch finds in the buffer. Only here, not with the claim: a leader that
waits in the buffer holds nothing, so a process that stops or dies gives the window back whole.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgqueue.core.events import Warned
from pgqueue.storage.faults import summary_of
from pgqueue.storage.handlers import AsyncJobConnection, JobConnection
from pgqueue.storage.statements import statement
from pgqueue.worker.claimed import Claim, ClaimedJob
from pgqueue.worker.state import WorkerState


def leads(job: ClaimedJob) -> bool:
    """Whether others may wait to go along with this job. On a later attempt it has left its window."""
    return job.task is not None and job.task.batch_window_s is not None and job.attempt == 1


def gather(
    state: WorkerState, connections: ConnectionPool[JobConnection], leader: ClaimedJob
) -> list[ClaimedJob]:
    """Claim the jobs that go along with `leader`. Without an answer it runs alone, and the others are led anew."""
    if not _may_gather(state, leader):
        return []
    claim_id = str(uuid.uuid4())
    try:
        with connections.connection() as conn:
            conn.reset_session()  # what the last handler left there would hold for this statement, too
            rows = conn.execute(statement("gather_window"), _parameters(state, leader, claim_id)).fetchall()
    except psycopg.Error as error:
        # It may have been committed: the heart finds a claim that nobody knows, and gives it back.
        _warn(state, error)
        return []
    return _noted(state, leader, claim_id, rows)


async def gather_async(
    state: WorkerState, connections: AsyncConnectionPool[AsyncJobConnection], leader: ClaimedJob
) -> list[ClaimedJob]:
    """As `gather`, on the loop."""
    if not _may_gather(state, leader):
        return []
    claim_id = str(uuid.uuid4())
    try:
        async with connections.connection() as conn:
            await conn.reset_session()  # as above
            cursor = await conn.execute(statement("gather_window"), _parameters(state, leader, claim_id))
            rows = await cursor.fetchall()
    except psycopg.Error as error:
        _warn(state, error)
        return []
    return _noted(state, leader, claim_id, rows)


def _may_gather(state: WorkerState, leader: ClaimedJob) -> bool:
    """Whether its call will begin: one that is given back must not take others along."""
    return not leader.claim.lost and leader.queue not in state.paused and state.may_start()


def _parameters(state: WorkerState, leader: ClaimedJob, claim_id: str) -> dict[str, Any]:
    task = leader.task
    return {
        "leader": leader.id,
        "leader_claim": leader.claim.id,
        "most": 0 if task is None else task.batch - 1,
        "claim_id": claim_id,
        "worker_id": state.worker_id,
        "pool": leader.pool,
        "audit": task is not None and task.audit_full,
    }


def _noted(
    state: WorkerState, leader: ClaimedJob, claim_id: str, rows: Sequence[Sequence[Any]]
) -> list[ClaimedJob]:
    if not rows:
        return []
    claim = Claim(claim_id, state.worker_id, (row[0] for row in rows))
    state.claims.add(claim)
    state.claimed += len(rows)
    return sorted((ClaimedJob(row, claim, leader.task) for row in rows), key=lambda job: job.id)


def _warn(state: WorkerState, error: psycopg.Error) -> None:
    state.events.emit(
        Warned(
            "gather_failed",
            f"a window's jobs could not be gathered: {summary_of(error)}; they come in another call",
        )
    )
