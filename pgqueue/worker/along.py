"""What is written along with a move of jobs, in its transaction: results for idempotency keys, and rows of a full audit.

Called by the claimer and by whoever settles successes; pure. Most jobs want neither, and then nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from pgqueue.storage.settling import NOTHING
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.outcome import Prepared

Succeeded = tuple[ClaimedJob, Prepared, str | None]
"""A job that succeeded: with what it returned, as JSON."""


def along(succeeded: Iterable[Succeeded]) -> Mapping[str, str]:
    """The statements to run after the settlement, by name, with their rows as JSON; most often none."""
    kept: list[str] = []
    moves: list[dict[str, Any]] = []
    for job, prepared, result in succeeded:
        if result is not None and (key := prepared.extras.get("idempotency_key")) is not None:
            kept.append(
                f'{{"task":{_text(job.task_name)},"key":{_text(key)},"job_id":{job.id},"result":{result}}}'
            )
        if job.task is not None and job.task.audit_full:
            moves.append(
                {
                    "job_id": job.id,
                    "from_state": "running",
                    "to_state": "succeeded",
                    "reason": "succeeded",
                    "queue": job.queue,
                    "task": job.task_name,
                    "attempt": job.attempt,
                    "claim_id": job.claim.id,
                    "worker_id": job.claim.worker_id,
                }
            )
    if not (kept or moves):
        return NOTHING
    found = {"keep_results": f"[{','.join(kept)}]"} if kept else {}
    return {**found, "note_moves": orjson.dumps(moves).decode()} if moves else found


def claims_to_note(
    rows: Sequence[Sequence[Any]], from_state: str, worker_id: str, audited: frozenset[str]
) -> str | None:
    """The rows of note_moves for what a claim statement returned; None if no job's task is `audited`."""
    moves = [
        {
            "job_id": row[0],
            "from_state": from_state,
            "to_state": "running",
            "reason": "claimed",
            "queue": row[8],
            "task": row[2],
            "attempt": row[4],
            "worker_id": worker_id,
        }
        for row in rows
        if row[2] in audited
    ]
    return orjson.dumps(moves).decode() if moves else None


def _text(value: str) -> str:
    return orjson.dumps(value).decode()
