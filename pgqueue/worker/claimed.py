"""A claimed job on its way through the process, and the claim it belongs to. Internal nouns of this room."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from pgqueue.core.job import Job
from pgqueue.core.registry import RegisteredTask


class Claim:
    """One batch's fence. `open` holds the ids of its jobs that are not settled yet."""

    __slots__ = ("id", "lost", "open", "received", "worker_id")

    def __init__(self, claim_id: str, worker_id: str, job_ids: Iterable[int]) -> None:
        self.id = claim_id
        self.worker_id = worker_id
        self.open = set(job_ids)
        self.received = time.monotonic()
        self.lost = False


class ClaimedJob:
    """A row of the claim statement. Decoding is left to the executor, so that one bad row harms only itself."""

    __slots__ = (
        "args_text",
        "attempt",
        "claim",
        "created_epoch",
        "done",
        "expired",
        "extras_text",
        "id",
        "max_attempts",
        "pool",
        "priority",
        "queue",
        "ready_seq",
        "task",
        "task_name",
        "wait_s",
    )

    def __init__(self, row: Sequence[Any], claim: Claim, task: RegisteredTask | None) -> None:
        (
            self.id,
            self.pool,
            self.task_name,
            self.args_text,
            self.attempt,
            self.max_attempts,
            self.priority,
            self.ready_seq,
            self.queue,
            self.wait_s,
            self.expired,
            self.extras_text,
            self.created_epoch,
        ) = row
        self.claim = claim
        self.task = task
        self.done = False  # settled, or taken away from its handler

    def extras(self) -> dict[str, Any]:
        """Headers, tags, keys and the like; most jobs have none."""
        return orjson.loads(self.extras_text) if self.extras_text is not None else {}

    def seen_by_handler(self, args: dict[str, Any], extras: dict[str, Any], max_attempts: int) -> Job:
        """Build the public noun; only when a handler asks for it."""
        return Job(
            id=self.id,
            task=self.task_name,
            queue=self.queue,
            priority=self.priority,
            attempt=self.attempt,
            max_attempts=max_attempts,
            args=args,
            headers=extras.get("headers") or {},
            tags=tuple(extras.get("tags") or ()),
            created_at=datetime.fromtimestamp(self.created_epoch, UTC),
            idempotency_key=extras.get("idempotency_key"),
            concurrency_key=extras.get("concurrency_key"),
            parent_id=extras.get("parent_id"),
            redrive_of=extras.get("redrive_of"),
            wait_s=self.wait_s,
        )


class ClaimBook:
    """The claims this process holds, and those whose last job is settled: the next claim statement closes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Claim] = {}
        self._spent: list[str] = []

    def add(self, claim: Claim) -> None:
        """Note a claim before its jobs are handed out."""
        with self._lock:
            self._open[claim.id] = claim

    def settled(self, claim: Claim, job_id: int) -> None:
        """A job of the claim is settled, or lost; saying it twice is harmless."""
        with self._lock:
            claim.open.discard(job_id)
            if not claim.open and self._open.pop(claim.id, None) is not None:
                self._spent.append(claim.id)

    def settled_many(self, claim: Claim, job_ids: Iterable[int]) -> None:
        """The same for several jobs of one claim."""
        with self._lock:
            claim.open.difference_update(job_ids)
            if not claim.open and self._open.pop(claim.id, None) is not None:
                self._spent.append(claim.id)

    def take_spent(self) -> list[str]:
        """The claims to close now; give them back with `give_spent` if the statement did not go through."""
        with self._lock:
            spent, self._spent = self._spent, []
            return spent

    def give_spent(self, spent: list[str]) -> None:
        """Undo `take_spent`."""
        with self._lock:
            self._spent.extend(spent)

    def known(self) -> set[str]:
        """Ids of all claims that are open or wait to be closed."""
        with self._lock:
            return {*self._open, *self._spent}

    def lose_all(self) -> list[Claim]:
        """This worker was declared dead: its claims are lost, unless a settlement still gets through."""
        with self._lock:
            lost = list(self._open.values())
            for claim in lost:
                claim.lost = True
            self._open.clear()
            self._spent.clear()
            return lost
