"""The options of a job as an application gives them, checked once and then frozen. Pure.

Called by `task.using(…)`, by `app.enqueue` and by the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final

from pgqueue.core.durations import check_moment, parse_duration
from pgqueue.core.names import check_headers, check_key, check_priority, check_queue, check_tags
from pgqueue.core.retry import Retry
from pgqueue.errors import InvalidName, InvalidOption, InvalidTime

KeyBuilder = Callable[[Mapping[str, object]], str]
"""Makes an idempotency key from a job's arguments: one rule for many jobs."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The options of `task.using(…)`, checked. None: not given."""

    queue: str | None = None
    priority: int | None = None
    delay_s: float | None = None
    run_at: datetime | None = None
    idempotency_key: str | KeyBuilder | None = None
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
        """Check options by the names that `task.using` documents. Raises InvalidInput for the first that is wrong.

        An option that is None counts as not given.
        """
        known: dict[str, Any] = {}
        for name, value in raw.items():
            entry = _CHECKS.get(name)
            if entry is None:
                near = get_close_matches(name[:60], list(_CHECKS), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_CHECKS)}"
                raise InvalidOption(name[:60], f"is no option of a job; {hint}")
            if value is not None:
                field, check = entry
                known[field] = check(value)
        if "delay_s" in known and "run_at" in known:
            raise InvalidTime("delay", "is given together with run_at; give one of them")
        return cls(**known)

    def merged(self, other: JobOptions) -> JobOptions:
        """These options, with what `other` says over them; a delay replaces a run_at, and the reverse."""
        given = {name: value for name in _FIELDS if (value := getattr(other, name)) is not None}
        if "delay_s" in given:
            given.setdefault("run_at", None)
        elif "run_at" in given:
            given["delay_s"] = None
        given["wake"] = self.wake and other.wake
        return replace(self, **given)

    def key_for(self, args: Mapping[str, object], *, field: str = "idempotency_key") -> str | None:
        """The idempotency key of a job with these arguments; raises InvalidName if a builder makes no key."""
        key = self.idempotency_key
        if not callable(key):
            return key
        try:
            built = key(args)
        except Exception as error:
            raise InvalidName(field, f"the key builder raised {type(error).__name__}; mend it") from error
        return check_key(built, field=field)


_FIELDS: Final = tuple(field.name for field in fields(JobOptions))


def _key(value: Any) -> str | KeyBuilder:
    return value if callable(value) else check_key(value, field="idempotency_key")


def _retry(value: Any) -> Retry:
    if not isinstance(value, Retry):
        raise InvalidOption("retry", f"must be a Retry, not {type(value).__name__}")
    value.to_json()  # a policy that cannot be stored is refused now, not by the statement
    return value


def _moment(field: str) -> Callable[[Any], datetime]:
    def check(value: Any) -> datetime:
        moment = check_moment(value, field=field)
        try:
            # Python knows offsets of a day, Postgres none past 15:59:59.
            return moment.astimezone(UTC)
        except OverflowError:
            raise InvalidTime(field, "lies outside the years that UTC can tell") from None

    return check


def _duration(field: str, minimum_s: float = 0) -> Callable[[Any], float]:
    return lambda value: parse_duration(value, field=field, minimum_s=minimum_s)


_CHECKS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "queue": ("queue", check_queue),
    "priority": ("priority", check_priority),
    "delay": ("delay_s", _duration("delay")),
    "run_at": ("run_at", _moment("run_at")),
    "idempotency_key": ("idempotency_key", _key),
    "key_ttl": ("key_ttl_s", _duration("key_ttl", 0.001)),
    "concurrency_key": ("concurrency_key", lambda value: check_key(value, field="concurrency_key")),
    "retry": ("retry", _retry),
    "timeout": ("timeout_s", _duration("timeout", 0.001)),
    "expires_at": ("expires_at", _moment("expires_at")),
    "headers": ("headers", check_headers),
    "tags": ("tags", lambda value: tuple(check_tags(value))),
}
