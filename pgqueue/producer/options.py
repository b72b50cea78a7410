"""The options of a job as an application gives them, checked once and then frozen. Pure.

Called by `task.using(…)`, by `app.enqueue` and by the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final

from pgqueue.core.durations import check_moment, parse_duration
from pgqueue.core.keys import Conflict, KeyOfArguments, KeyScope
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
    key_scope: str | None = None
    on_conflict: str | None = None
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
        for name, value in _spelt_out(raw).items():
            entry = _CHECKS.get(name)
            if entry is None:
                near = get_close_matches(name[:60], [*_CHECKS, *_SHORT], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join([*_CHECKS, *_SHORT])}"
                raise InvalidOption(name[:60], f"is no option of a job; {hint}")
            if value is not None:
                field, check = entry
                known[field] = check(value)
        if "delay_s" in known and "run_at" in known:
            raise InvalidTime("delay", "is given together with run_at; give one of them")
        if "key_ttl_s" in known and known.get("key_scope", KeyScope.TIME) != KeyScope.TIME:
            raise InvalidOption(
                "key_ttl", "is given together with a key_scope that ends otherwise; give one of them"
            )
        return cls(**known)

    def merged(self, other: JobOptions) -> JobOptions:
        """These options, with what `other` says over them; a delay replaces a run_at, a key's life the life before."""
        given = {name: value for name in _FIELDS if (value := getattr(other, name)) is not None}
        if given.keys() & {"idempotency_key", "key_ttl_s", "key_scope"}:
            given.setdefault("key_ttl_s", None)
            given.setdefault("key_scope", None)
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
        except InvalidName:
            raise
        except Exception as error:
            raise InvalidName(field, f"the key builder raised {type(error).__name__}; mend it") from error
        return check_key(built, field=field)


_FIELDS: Final = tuple(field.name for field in fields(JobOptions))
_SHORT: Final = ("unique", "unique_for", "debounce")


def _spelt_out(raw: dict[str, Any]) -> dict[str, Any]:
    """`unique`, `unique_for` and `debounce` in terms of the options of a key that they stand for."""
    short = {name: raw[name] for name in _SHORT if raw.get(name) is not None}
    if not short:
        return raw
    long = {name: value for name, value in raw.items() if name not in _SHORT and value is not None}
    if "unique_for" in short and "debounce" in short:
        raise InvalidOption("unique_for", "is given together with debounce; give one of them")
    if "unique" in short:
        _add(long, "unique", idempotency_key=KeyOfArguments.of(short["unique"]))
    elif "idempotency_key" not in long:
        if "debounce" in short:
            raise InvalidOption(
                "debounce",
                'needs to know which calls belong together; add unique=("ride_id",) or an idempotency_key',
            )
        long["idempotency_key"] = KeyOfArguments.of(True)
    if "unique_for" in short:
        _add(long, "unique_for", key_ttl=short["unique_for"])
    elif "debounce" in short:
        _add(
            long,
            "debounce",
            delay=parse_duration(short["debounce"], field="debounce", minimum_s=0.001),
            on_conflict=Conflict.REPLACE,
            key_scope=KeyScope.WAITING,
        )
    elif not long.keys() & {"key_ttl", "key_scope"}:
        long["key_scope"] = KeyScope.LIVE
    return long


def _add(long: dict[str, Any], said: str, **options: Any) -> None:
    for name, value in options.items():
        if name in long:
            raise InvalidOption(name, f"is given together with {said}, which sets it; give one of them")
        long[name] = value


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


def _word(field: str, words: type[StrEnum]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in set(words):
            raise InvalidOption(field, f"unknown; there are {', '.join(words)}")
        return str(value)

    return check


_CHECKS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "queue": ("queue", check_queue),
    "priority": ("priority", check_priority),
    "delay": ("delay_s", _duration("delay")),
    "run_at": ("run_at", _moment("run_at")),
    "idempotency_key": ("idempotency_key", _key),
    "key_ttl": ("key_ttl_s", _duration("key_ttl", 0.001)),
    "key_scope": ("key_scope", _word("key_scope", KeyScope)),
    "on_conflict": ("on_conflict", _word("on_conflict", Conflict)),
    "concurrency_key": ("concurrency_key", lambda value: check_key(value, field="concurrency_key")),
    "retry": ("retry", _retry),
    "timeout": ("timeout_s", _duration("timeout", 0.001)),
    "expires_at": ("expires_at", _moment("expires_at")),
    "headers": ("headers", check_headers),
    "tags": ("tags", lambda value: tuple(check_tags(value))),
}
