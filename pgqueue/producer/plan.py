"""From a call to the parameters of its statements: checked, encoded, complete. Pure; sends nothing.

Whatever can be refused is refused here, so that a refused enqueue never touches the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

import orjson

from pgqueue.core.keys import Conflict, KeyScope
from pgqueue.core.names import check_key, check_task
from pgqueue.core.payload import PAYLOAD_BYTES_MAX, encode_args
from pgqueue.core.signature import HandlerSignature, check_call
from pgqueue.errors import InvalidArguments, InvalidOption, InvalidTime
from pgqueue.producer.options import JobOptions, KeyBuilder
from pgqueue.tracing import with_trace

__all__ = [
    "EnqueuePlan",
    "JobOptions",
    "KeyBuilder",
    "TaskDefaults",
    "plan_many",
    "plan_one",
]

CHUNK_JOBS: Final = 1_000
"""Jobs per statement of a bulk."""
CHUNK_BYTES: Final = 4 * 1024 * 1024
"""A chunk of large jobs ends sooner: what one statement carries stays small against any memory limit."""
CHECKED_JOBS_MAX: Final = 10 * CHUNK_JOBS
"""A list up to this length is checked whole before the first statement; a longer one, or a generator, as it is sent."""


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """What a job gets where its options say nothing; None: the database looks it up in `tasks`.

    `key_ttl_s` None: 24 hours. `wake`: whether workers that sleep are notified at commit. `window_s`: over how long its
    jobs are collected, 0 = it has no window; `batch_key`: the argument whose value keeps them apart. `audit`: whether the
    plain path of its jobs is written to the audit.
    """

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    key_ttl_s: float | None = None
    wake: bool = True
    window_s: float | None = None
    batch_key: str | None = None
    audit: bool | None = None


@dataclass(frozen=True, slots=True)
class EnqueuePlan:
    """One statement's worth of jobs: one, or up to a thousand of one task; which statement, and its parameters."""

    task: str
    queue: str | None
    statement: str
    parameters: Mapping[str, Any]
    on_conflict: str | None = None


# What the short statement does without.
_RARE: Final = attrgetter(
    "delay_s",
    "run_at",
    "idempotency_key",
    "key_ttl_s",
    "key_scope",
    "on_conflict",
    "concurrency_key",
    "retry",
    "timeout_s",
    "expires_at",
    "headers",
    "tags",
    "parent_id",
)
_NONE_OF_THEM: Final = (None,) * 13


def plan_one(
    task: str,
    args: Mapping[str, object],
    options: JobOptions,
    *,
    defaults: TaskDefaults,
    signature: HandlerSignature | None,
    bytes_max: int = PAYLOAD_BYTES_MAX,
) -> EnqueuePlan:
    """Plan one job. Raises InvalidArguments if the arguments are not JSON, too large, or do not fit the handler.

    `signature` None: the handler is not known here, its worker checks. `bytes_max`: of the arguments as JSON.
    """
    if signature is None:  # else the name was checked when the task was registered
        check_task(task)
    text = _encode(args, signature, bytes_max)
    if (
        not (defaults.window_s or defaults.audit)
        and _RARE(options) == _NONE_OF_THEM
        and with_trace(None) is None
    ):
        queue = options.queue or defaults.queue
        return EnqueuePlan(
            task,
            queue,
            "enqueue_now",
            {
                "task": task,
                "args": text,
                "queue": queue,
                "priority": defaults.priority if options.priority is None else options.priority,
                "max_attempts": defaults.max_attempts,
                "wake": options.wake and defaults.wake,
            },
        )
    parameters = _shared(task, options, defaults)
    parameters["args"] = text
    parameters["key"] = options.key_for(args)
    if options.on_conflict == Conflict.RAISE:
        # The caller is told by the answer, not by an error of the database: its transaction goes on.
        parameters["on_conflict"] = None
    return EnqueuePlan(task, parameters["queue"], "enqueue_one", parameters, options.on_conflict)


def plan_many(
    task: str,
    jobs: Iterable[Mapping[str, object]],
    options: JobOptions,
    *,
    defaults: TaskDefaults,
    signature: HandlerSignature | None,
    bytes_max: int = PAYLOAD_BYTES_MAX,
    idempotency_keys: Iterable[str | None] | None = None,
) -> list[EnqueuePlan] | Iterator[EnqueuePlan]:
    """Plan many jobs of one task, a chunk to a statement.

    A list is checked whole and comes back as a list of plans; a generator, or a list of more than 10,000 jobs, is
    planned while the iterator returned here is read, so that memory stays bounded. `idempotency_keys`: one per job, in
    order, None for a job without; or let `options.idempotency_key` build them. An error names its job: `args[17]`.
    """
    check_task(task)
    if isinstance(options.idempotency_key, str):
        raise InvalidOption(
            "idempotency_key",
            "one key for many jobs would make them one; pass a function of the arguments, or idempotency_keys",
        )
    if options.idempotency_key is not None and idempotency_keys is not None:
        raise InvalidOption("idempotency_keys", "are given together with a key builder; give one of them")
    keys = _Keys(options, idempotency_keys)
    shared = _shared(task, options, defaults, keyed=keys.any)
    plans = (
        EnqueuePlan(
            task,
            shared["queue"],
            "enqueue_many",
            {**shared, "args": args, "keys": literal},
            options.on_conflict,
        )
        for args, literal in _chunks(_encoded(jobs, signature, bytes_max, keys))
    )
    if isinstance(jobs, Sequence) and len(jobs) <= CHECKED_JOBS_MAX:
        return list(plans)
    return plans


class _Keys:
    """Where a bulk's idempotency keys come from: a list beside the jobs, a function of their arguments, or nowhere."""

    def __init__(self, options: JobOptions, given: Iterable[str | None] | None) -> None:
        self._options = options
        self._given = None if given is None else iter(given)
        self.any = given is not None or options.idempotency_key is not None

    def take(self, index: int, args: Mapping[str, object]) -> str | None:
        """The key of job `index`; raises InvalidInput if it has none or a bad one."""
        field = f"idempotency_keys[{index}]"
        if self._given is None:
            return self._options.key_for(args, field=field)
        for key in self._given:
            return None if key is None else check_key(key, field=field)
        raise InvalidOption("idempotency_keys", f"end before job {index}; give one per job")

    def finish(self, count: int) -> None:
        """Raise InvalidOption if keys are left over."""
        for _ in self._given or ():
            raise InvalidOption("idempotency_keys", f"go on after {count} jobs; give one per job")


def _encode(args: Mapping[str, object], signature: HandlerSignature | None, bytes_max: int) -> str:
    text = encode_args(args, bytes_max=bytes_max)
    misfit = None if signature is None else check_call(signature, args)
    if misfit is not None:
        raise InvalidArguments("args", misfit)
    return text


def _encoded(
    jobs: Iterable[Mapping[str, object]], signature: HandlerSignature | None, bytes_max: int, keys: _Keys
) -> Iterator[tuple[str, str | None]]:
    count = 0
    for args in jobs:
        try:
            text = _encode(args, signature, bytes_max)
        except InvalidArguments as error:
            raise InvalidArguments(
                f"args[{count}]", error.reason, path=error.path, limit=error.limit
            ) from None
        yield text, (keys.take(count, args) if keys.any else None)
        count += 1
    keys.finish(count)


def _chunks(jobs: Iterable[tuple[str, str | None]]) -> Iterator[tuple[str, str | None]]:
    """Yield chunks of jobs: their arguments as one JSON array, their keys as an array literal or None."""
    texts: list[str] = []
    keys: list[str | None] = []
    size = 0
    for text, key in jobs:
        if len(texts) == CHUNK_JOBS or (texts and size + len(text) > CHUNK_BYTES):
            yield f"[{','.join(texts)}]", _array(keys)
            texts, keys, size = [], [], 0
        texts.append(text)
        keys.append(key)
        size += len(text)
    if texts:
        # One text for the whole chunk: no array adaptation by the driver, one parse by the server.
        yield f"[{','.join(texts)}]", _array(keys)


def _shared(
    task: str, options: JobOptions, defaults: TaskDefaults, *, keyed: bool | None = None
) -> dict[str, Any]:
    """The parameters that jobs of one call have in common."""
    retry, run_at, expires_at = options.retry, options.run_at, options.expires_at
    headers = with_trace(options.headers)
    if keyed is None:
        keyed = options.idempotency_key is not None
    if not keyed:
        for name, value in (
            ("key_ttl", options.key_ttl_s),
            ("key_scope", options.key_scope),
            ("on_conflict", options.on_conflict),
        ):
            if value is not None:
                raise InvalidOption(name, "is given without idempotency_key; it says how that key is used")
    if run_at is not None and expires_at is not None and expires_at <= run_at:
        raise InvalidTime("expires_at", "is not after run_at: the job could never start")
    return {
        "task": task,
        "queue": options.queue or defaults.queue,
        "priority": defaults.priority if options.priority is None else options.priority,
        "delay_s": options.delay_s,
        "run_at": None if run_at is None else run_at.isoformat(),
        "key_ttl_s": (defaults.key_ttl_s if options.key_ttl_s is None else options.key_ttl_s)
        if keyed and options.key_scope in {None, KeyScope.TIME}
        else None,
        "key_scope": options.key_scope,
        "on_conflict": options.on_conflict,
        "headers": None if headers is None else orjson.dumps(dict(headers)).decode(),
        "max_attempts": defaults.max_attempts if retry is None else retry.max_attempts,
        "retry": None if retry is None else orjson.dumps(retry.to_json()).decode(),
        "timeout_s": options.timeout_s,
        "expires_at": None if expires_at is None else expires_at.isoformat(),
        "concurrency_key": options.concurrency_key,
        "tags": None if options.tags is None else _array(options.tags, empty="{}"),
        "parent_id": options.parent_id,
        "wake": options.wake and defaults.wake,
        "window_s": defaults.window_s,
        "batch_key": defaults.batch_key,
        "audit": defaults.audit,
    }


def _array(values: Sequence[str | None], *, empty: str | None = None) -> str | None:
    """A text[] literal: every text quoted, backslashes before quotes and backslashes (PostgreSQL manual, 8.15.6).

    Without any text it is `empty`.
    """
    if not any(value is not None for value in values):
        return empty
    quoted = (
        "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for value in values
    )
    return "{" + ",".join(quoted) + "}"
