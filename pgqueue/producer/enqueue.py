"""Runs a plan where the caller wants it: on its connection or session, or in a transaction of the App's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pgqueue.producer.plan import EnqueuePlan
from pgqueue.storage.binding import Step, Where, run, run_async
from pgqueue.storage.own_pool import OwnConnections


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An enqueued job. `created` is False when its idempotency key already had a job, whose id this is."""

    id: int
    created: bool
    task: str
    queue: str | None


def enqueue(where: Where, plan: EnqueuePlan, *, own: OwnConnections) -> Enqueued:
    """Enqueue one job where the caller is (None: in a transaction of `own`)."""
    steps = [_step(plan)]
    return _single(plan, (own.run(steps) if where is None else run(where, steps, single=True))[0])


async def enqueue_async(where: Where, plan: EnqueuePlan, *, own: OwnConnections) -> Enqueued:
    """As `enqueue`, on an async connection or session."""
    steps = [_step(plan)]
    return _single(
        plan, (await own.run_async(steps) if where is None else await run_async(where, steps, single=True))[0]
    )


def enqueue_many(where: Where, plans: Iterable[EnqueuePlan], *, own: OwnConnections) -> list[Enqueued]:
    """Enqueue many jobs, all or none."""
    taken: list[EnqueuePlan] = []
    values = (
        own.run(list(_steps(plans, taken)))
        if where is None
        else run(where, _steps(plans, taken), single=False)
    )
    return _all(taken, values)


async def enqueue_many_async(
    where: Where, plans: Iterable[EnqueuePlan], *, own: OwnConnections
) -> list[Enqueued]:
    """As `enqueue_many`, on an async connection or session."""
    taken: list[EnqueuePlan] = []
    steps = _steps(plans, taken)
    values = (
        await own.run_async(list(steps)) if where is None else await run_async(where, steps, single=False)
    )
    return _all(taken, values)


def _steps(plans: Iterable[EnqueuePlan], taken: list[EnqueuePlan]) -> Iterable[Step]:
    """The plans' statements as they come; of a plan that was sent only its size is kept."""
    for plan in plans:
        step = _step(plan)
        taken.append(EnqueuePlan(plan.task, plan.queue, plan.count, plan.single, {}))
        yield step


def _step(plan: EnqueuePlan) -> Step:
    return ("enqueue_one" if plan.single else "enqueue_many"), plan.parameters


def _single(plan: EnqueuePlan, value: Any) -> Enqueued:
    number = int(value)
    return Enqueued(abs(number), number > 0, plan.task, plan.queue)


def _all(plans: list[EnqueuePlan], values: list[Any]) -> list[Enqueued]:
    done: list[Enqueued] = []
    for plan, value in zip(plans, values, strict=True):
        done.extend(_single(plan, number) for number in str(value).strip("{}").split(",") if number)
    return done
