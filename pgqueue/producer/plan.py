"""From a call to the parameters of one statement: checked, encoded, complete. Pure; sends nothing.

Whatever can be refused is refused here, so that a refused enqueue never touches the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final

import orjson

from pgqueue.core.durations import check_moment, parse_duration
from pgqueue.core.names import check_headers, check_key, check_priority, check_queue, check_tags, check_task
from pgqueue.core.payload import PAYLOAD_BYTES_MAX, encode_args
from pgqueue.core.retry import Retry
from pgqueue.core.signature import HandlerSignature, check_call
from pgqueue.errors import InvalidArguments, InvalidOption, InvalidTime
from pgqueue.producer.trace import with_trace

CHUNK: Final = 1_000  # jobs per statement


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """What a job gets where its options say nothing; None: the database looks it up in `tasks`."""

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The options of `task.using(…)`, checked. None: not given."""

    queue: str | None = None
    priority: int | None = None
    delay_s: float | None = None
    run_at: datetime | None = None
    idempotency_key: str | None = None
    key_ttl_s: float | None = None
    concurrency_key: str | None = None
    retry: Retry | None = None
    timeout_s: float | None = None
    expires_at: datetime | None = None
    headers: Mapping[str, str] | None = None
    tags: tuple[str, ...] | None = None
    parent_id: int | None = None
    wake: bool = True

    @classmethod
    def checked(cls, **raw: Any) -> JobOptions:
        """Check options as an application gives them. Raises InvalidInput for the first that is wrong."""
        unknown = [name for name in raw if name not in _CHECKS]
        if unknown:
            near = get_close_matches(unknown[0], list(_CHECKS), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_CHECKS)}"
            raise InvalidOption(unknown[0], f"no such option; {hint}")
        known = {}
        for name, value in raw.items():
            if value is not None:
                field, check = _CHECKS[name]
                known[field] = check(value)
        options = cls(**known)
        options._check_pair()
        return options

    def merged(self, later: JobOptions) -> JobOptions:
        """These options, with what `later` says over them."""
        given = {f.name: getattr(later, f.name) for f in fields(later) if getattr(later, f.name) is not None}
        if "delay_s" in given:
            given.setdefault("run_at", None)
        elif "run_at" in given:
            given.setdefault("delay_s", None)
        if not self.wake:
            given["wake"] = False
        return replace(self, **given)

    def _check_pair(self) -> None:
        if self.delay_s is not None and self.run_at is not None:
            raise InvalidTime("delay", "given together with run_at; give one of them")
        if self.key_ttl_s is not None and self.idempotency_key is None:
            raise InvalidOption("key_ttl", "given without idempotency_key; it is the life of that key")


@dataclass(frozen=True, slots=True)
class EnqueuePlan:
    """One statement's worth of jobs: one, or up to a thousand of one task."""

    task: str
    queue: str | None
    count: int
    single: bool
    parameters: Mapping[str, Any]


def plan_one(
    task: str,
    args: Mapping[str, object],
    options: JobOptions,
    *,
    defaults: TaskDefaults,
    signature: HandlerSignature | None,
    bytes_max: int = PAYLOAD_BYTES_MAX,
) -> EnqueuePlan:
    """Plan one job. Raises InvalidArguments if the arguments are not JSON, too large, or do not fit the handler."""
    check_task(task)
    text = _encode(args, signature, bytes_max)
    shared = _shared(task, options, defaults)
    return EnqueuePlan(
        task, shared["queue"], 1, True, {**shared, "args": text, "key": options.idempotency_key}
    )


def plan_many(
    task: str,
    jobs: Iterable[Mapping[str, object]],
    options: JobOptions,
    *,
    defaults: TaskDefaults,
    signature: HandlerSignature | None,
    bytes_max: int = PAYLOAD_BYTES_MAX,
) -> Iterator[EnqueuePlan]:
    """Plan many jobs, a thousand at a time, as the iterable gives them: memory stays bounded.

    An error names the index of the job it met: `args[17]`.
    """
    check_task(task)
    if options.idempotency_key is not None:
        raise InvalidOption(
            "idempotency_key", "one key for many jobs would make them one; enqueue them one by one"
        )
    shared = _shared(task, options, defaults)
    source = iter(jobs)
    done = 0
    while chunk := list(islice(source, CHUNK)):
        texts = []
        for index, args in enumerate(chunk, start=done):
            try:
                texts.append(_encode(args, signature, bytes_max))
            except InvalidArguments as error:
                raise InvalidArguments(
                    f"args[{index}]", error.reason, path=error.path, limit=error.limit
                ) from None
        done += len(chunk)
        # One text for the whole chunk: no array adaptation by the driver, one parse by the server.
        yield EnqueuePlan(
            task, shared["queue"], len(chunk), False, {**shared, "args": f"[{','.join(texts)}]", "keys": None}
        )


def _encode(args: Mapping[str, object], signature: HandlerSignature | None, bytes_max: int) -> str:
    if not isinstance(args, Mapping):
        raise InvalidArguments("args", "not a mapping of names to values")
    if signature is not None:
        misfit = check_call(signature, args)
        if misfit is not None:
            raise InvalidArguments("args", misfit)
    return encode_args(args, bytes_max=bytes_max)


def _shared(task: str, options: JobOptions, defaults: TaskDefaults) -> dict[str, Any]:
    retry = options.retry
    headers = with_trace(options.headers)
    return {
        "task": task,
        "queue": options.queue or defaults.queue,
        "priority": defaults.priority if options.priority is None else options.priority,
        "delay_s": options.delay_s,
        "run_at": None if options.run_at is None else options.run_at.isoformat(),
        "key_ttl_s": options.key_ttl_s,
        "headers": None if headers is None else orjson.dumps(dict(headers)).decode(),
        "max_attempts": defaults.max_attempts if retry is None else retry.max_attempts,
        "retry": None if retry is None else orjson.dumps(retry.to_json()).decode(),
        "timeout_s": options.timeout_s,
        "expires_at": None if options.expires_at is None else options.expires_at.isoformat(),
        "concurrency_key": options.concurrency_key,
        "tags": None if options.tags is None else _array(options.tags),
        "parent_id": options.parent_id,
        "wake": options.wake,
    }


def _array(values: Sequence[str]) -> str:
    """A text[] literal: quoted, with backslashes before quotes and backslashes (PostgreSQL manual, 8.15.6)."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def _retry(value: Any) -> Retry:
    if not isinstance(value, Retry):
        raise InvalidOption("retry", "not a Retry")
    value.to_json()  # a policy that cannot be stored is refused now, not by the statement
    return value


def _duration(name: str, minimum_s: float = 0) -> Any:
    def check(value: str | float | timedelta) -> float:
        return parse_duration(value, field=name, minimum_s=minimum_s)

    return check


_CHECKS: Final[dict[str, tuple[str, Any]]] = {
    "queue": ("queue", check_queue),
    "priority": ("priority", check_priority),
    "delay": ("delay_s", _duration("delay")),
    "run_at": ("run_at", lambda value: check_moment(value, field="run_at")),
    "idempotency_key": ("idempotency_key", lambda value: check_key(value, field="idempotency_key")),
    "key_ttl": ("key_ttl_s", _duration("key_ttl", 0.001)),
    "concurrency_key": ("concurrency_key", lambda value: check_key(value, field="concurrency_key")),
    "retry": ("retry", _retry),
    "timeout": ("timeout_s", _duration("timeout", 0.001)),
    "expires_at": ("expires_at", lambda value: check_moment(value, field="expires_at")),
    "headers": ("headers", check_headers),
    "tags": ("tags", lambda value: tuple(check_tags(value))),
}
