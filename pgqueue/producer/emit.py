"""Messages into the outbox: checked and encoded first, then one statement where the caller is.

Called by `app.outbox` and `ctx.emit`; touches the database through storage alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pgqueue.core.message import inherited
from pgqueue.core.names import check_headers, check_key, check_topic
from pgqueue.core.payload import PAYLOAD_BYTES_MAX, encode_args
from pgqueue.errors import InvalidArguments
from pgqueue.storage.binding import AsyncWhere, SyncWhere, run_async, run_one
from pgqueue.storage.own_pool import OwnConnections
from pgqueue.tracing import emitting, origin_of, with_trace

EmitPlan = Mapping[str, Any]
"""The parameters of emit_one."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A message whose plan is made inside the emit's span, whose context it carries."""

    topic: str
    plan: Callable[[], EmitPlan]


def plan_message(
    topic: str,
    payload: Mapping[str, Any] | None,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    job_id: int | None = None,
    job_headers: Mapping[str, str] | None = None,
    bytes_max: int = PAYLOAD_BYTES_MAX,
    wake: bool = True,
) -> EmitPlan:
    """Check a message and make the statement's parameters; sends nothing. Raises InvalidInput.

    `job_id`, `job_headers`: of the job whose handler emits it; its trace and correlation go along.
    """
    check_topic(topic)
    try:
        text = encode_args(payload or {}, bytes_max=bytes_max)
    except InvalidArguments as error:
        raise InvalidArguments("payload", error.reason, path=error.path, limit=error.limit) from None
    given = None if headers is None else check_headers(headers)
    whole = {**(with_trace(None) or {}), **(given or {})}
    if job_headers:
        whole = {**inherited(job_headers), **whole, **origin_of(job_headers)}
    return {
        "topic": topic,
        "payload": text,
        "key": None if key is None else check_key(key, field="key"),
        "headers": orjson.dumps(whole).decode() if whole else None,
        "job_id": job_id,
        "wake": wake,
    }


def emit(where: SyncWhere | AsyncWhere | None, draft: Draft, *, own: OwnConnections | None) -> int:
    """Emit in the transaction of `where`, or, where it is None, in one of `own`; returns the message's id.

    Raises as `enqueue` does.
    """
    with emitting(check_topic(draft.topic)) as span:
        plan = draft.plan()
        if where is None and own is not None:
            number = own.put_message(plan)
        else:
            number = run_one(where, ("emit_one", plan))
        span.made(number)
        return number


async def emit_async(
    where: SyncWhere | AsyncWhere | None, draft: Draft, *, own: OwnConnections | None
) -> int:
    """As `emit`, on an async connection or session."""
    with emitting(check_topic(draft.topic)) as span:
        plan = draft.plan()
        if where is None and own is not None:
            number = await own.put_message_async(plan)
        else:
            number = (await run_async(where, [("emit_one", plan)], checked=True))[0]
        span.made(number)
        return number
