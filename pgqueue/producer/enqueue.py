"""Runs a plan where the caller wants it: on its connection or session, or in a transaction of the App's own.

Called by tasks, by the App and by the command line; touches the database through storage alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, overload

import orjson

from pgqueue.core.keys import Conflict
from pgqueue.errors import DuplicateKey, InvalidOption
from pgqueue.producer.plan import EnqueuePlan
from pgqueue.storage.binding import AsyncWhere, Step, SyncWhere, run, run_async, run_one
from pgqueue.storage.own_call import REPLACED
from pgqueue.storage.own_pool import OwnConnections


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An enqueued job. `created` is False when its idempotency key already had a job, whose id this is.

    `queue` is None when the database chose it, for a task that is registered elsewhere. `replaced`: the job waited
    and has this call's arguments and time now, as `on_conflict="replace"` asks. `key`: its idempotency key, if it has one.
    """

    id: int
    created: bool
    task: str
    queue: str | None
    replaced: bool = False
    key: str | None = field(default=None, compare=False, repr=False)

    def result(self, where: SyncWhere, default: Any = None) -> Any:
        """What the job of this key returned, asked on the caller's connection or session; `default` if nothing is known.

        It is stored with the key when the job succeeds, and known as long as the key is held for a time or for ever,
        also when the job's history is gone. Raises InvalidOption if the job was enqueued without a key.
        """
        return self._told(run_one(where, self._question()), default)

    async def result_async(self, where: AsyncWhere, default: Any = None) -> Any:
        """As `result`, on an async connection or session."""
        return self._told((await run_async(where, [self._question()], checked=True))[0], default)

    def _question(self) -> Step:
        if self.key is None:
            raise InvalidOption(
                "idempotency_key",
                f"job {self.id}: no key is known here, so nothing can be stored with it; ask app.jobs.get or app.jobs.wait",
            )
        return "key_result", {"task": self.task, "key": self.key}

    @staticmethod
    def _told(text: str | None, default: Any) -> Any:
        return default if text is None else orjson.loads(text)


class EnqueuedMany(Sequence[Enqueued]):
    """The jobs of one bulk, in the order given. A million of them take eight megabytes: each is made when asked for."""

    __slots__ = ("_numbers", "queue", "task")

    def __init__(self, task: str, queue: str | None, numbers: array[int]) -> None:
        """`numbers`: the ids, negative where an idempotency key already had a job, as the statements answer."""
        self.task = task
        self.queue = queue
        self._numbers = numbers

    @property
    def created_count(self) -> int:
        """How many of them are new."""
        return sum(number > 0 for number in self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Enqueued: ...
    @overload
    def __getitem__(self, index: slice) -> EnqueuedMany: ...
    def __getitem__(self, index: int | slice) -> Enqueued | EnqueuedMany:
        if isinstance(index, slice):
            return EnqueuedMany(self.task, self.queue, self._numbers[index])
        return _enqueued(self._numbers[index], self.task, self.queue)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EnqueuedMany):
            return (self.task, self.queue, self._numbers) == (other.task, other.queue, other._numbers)
        return list(self) == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return f"<{len(self)} jobs of {self.task}>"


def enqueue(where: SyncWhere | AsyncWhere | None, plan: EnqueuePlan, *, own: OwnConnections) -> Enqueued:
    """Enqueue one job in the transaction of `where`, or, where it is None, in one of `own`.

    Raises TypeError for a `where` that is not a sync connection or session, ConflictError for one that cannot run
    a statement now, DuplicateKey if `on_conflict="raise"` and the key has a job. What `own` raises: DatabaseUnreachable, UnknownOutcome.
    """
    if where is None:
        number = own.put_one(plan.parameters)
    else:
        number = run_one(where, (plan.statement, plan.parameters))
    return _told(number, plan)


async def enqueue_async(
    where: SyncWhere | AsyncWhere | None, plan: EnqueuePlan, *, own: OwnConnections
) -> Enqueued:
    """As `enqueue`, on an async connection or session."""
    if where is None:
        number = await own.put_one_async(plan.parameters)
    else:
        number = (await run_async(where, [(plan.statement, plan.parameters)], checked=True))[0]
    return _told(number, plan)


def enqueue_many(
    where: SyncWhere | AsyncWhere | None, plans: Iterable[EnqueuePlan], *, own: OwnConnections
) -> EnqueuedMany:
    """Enqueue many jobs, all or none; the result is in their order.

    Plans that are not a list are made while they are sent: if one is refused, those before it are taken back to a
    savepoint, and the caller's transaction goes on.
    """
    bulk = _Bulk(plans)
    if where is None:
        return bulk.result(own.put_many(bulk.steps()))
    steps = bulk.steps()
    return bulk.result(run(where, steps, checked=isinstance(plans, list), may_refuse=bulk.may_refuse))


async def enqueue_many_async(
    where: SyncWhere | AsyncWhere | None, plans: Iterable[EnqueuePlan], *, own: OwnConnections
) -> EnqueuedMany:
    """As `enqueue_many`, on an async connection or session."""
    bulk = _Bulk(plans)
    if where is None:
        return bulk.result(await own.put_many_async(bulk.steps()))
    steps = bulk.steps()
    return bulk.result(
        await run_async(where, steps, checked=isinstance(plans, list), may_refuse=bulk.may_refuse)
    )


def _told(number: int, plan: EnqueuePlan) -> Enqueued:
    job = _enqueued(number, plan.task, plan.queue, plan.parameters.get("key"))
    if plan.on_conflict == Conflict.RAISE and not job.created:
        raise DuplicateKey(plan.task, job.id)
    return job


def _enqueued(number: int, task: str, queue: str | None, key: str | None = None) -> Enqueued:
    replaced = number <= -REPLACED
    return Enqueued(abs(number) - (REPLACED if replaced else 0), number > 0, task, queue, replaced, key)


class _Bulk:
    """Turns plans into statements as they are wanted, and their answers into the result."""

    def __init__(self, plans: Iterable[EnqueuePlan]) -> None:
        coming = iter(plans)
        first = next(coming, None)
        self._plans = plans if isinstance(plans, list) or first is None else chain([first], coming)
        self._task = ""
        self._queue: str | None = None
        self.may_refuse = first is not None and first.on_conflict == Conflict.RAISE

    def steps(self) -> Iterable[Step]:
        """The statements: a list if the plans are one, so that they can be sent again."""
        steps = self._lazily()
        return list(steps) if isinstance(self._plans, list) else steps

    def result(self, answers: Iterable[str]) -> EnqueuedMany:
        """The jobs, from arrays' texts such as {1,2,-3}."""
        numbers = array("q")
        for answer in answers:
            numbers.extend(map(int, answer[1:-1].split(",")))
        return EnqueuedMany(self._task, self._queue, numbers)

    def _lazily(self) -> Iterator[Step]:
        for plan in self._plans:
            # All are of one task. The plan itself is not kept: memory stays bounded.
            self._task, self._queue = plan.task, plan.queue
            yield plan.statement, plan.parameters
