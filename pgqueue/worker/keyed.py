"""What succeeded jobs returned, for their idempotency keys: later callers of a key that outlives its job find it there.

Called by whoever settles successes, in the same transaction; pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.outcome import Prepared


def results_to_keep(succeeded: Iterable[tuple[ClaimedJob, Prepared, str | None]]) -> str | None:
    """The parameter of keep_results for (job, prepared, result as JSON); None if no job has both a key and a result."""
    found = [
        f'{{"task":{_text(job.task_name)},"key":{_text(key)},"job_id":{job.id},"result":{result}}}'
        for job, prepared, result in succeeded
        if result is not None and (key := prepared.extras.get("idempotency_key")) is not None
    ]
    return f"[{','.join(found)}]" if found else None


def _text(value: str) -> str:
    return orjson.dumps(value).decode()
