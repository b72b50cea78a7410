"""The retry policy of a task, queue or call: whether a failed job runs again, and after how long.

Called at registration, by the settings and by `decide`; pure: the random number is handed in.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from pgqueue.core.durations import format_duration, parse_duration
from pgqueue.errors import InvalidRetry, InvalidTime

MAX_RETRIES_MAX = 1_000
STRATEGIES: tuple[str, ...] = ("exponential_jitter", "exponential", "linear", "constant")

BackoffFunction = Callable[[int], str | float | timedelta]
ErrorMatch = type[BaseException] | str

_NAMES_MAX = 100
_DOUBLINGS_MAX = 64
_ERROR_NAME = re.compile(r"[^\W\d]\w{0,199}(?:\.(?:[^\W\d]\w{0,199}|<locals>)){0,20}")
_KEYS = ("max_retries", "backoff_strategy", "initial_delay", "max_delay", "retry_on", "give_up_on")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how fast a failed job is tried again.

    `max_retries` counts runs after the first (0–1000). `initial_delay` and `max_delay` are text with
    units ("2s", "5m"), seconds or timedeltas. `backoff_strategy` is one of `exponential_jitter`,
    `exponential`, `linear`, `constant`, or a function from the number of failures so far (1, 2, …) to a
    delay. `retry_on` lists the exceptions worth another try (none listed: all), `give_up_on` those that
    end the job at once and wins over `retry_on`; both take classes, or names for configuration files.

    Raises InvalidRetry for a policy that contradicts itself.
    """

    max_retries: int = 5
    backoff_strategy: str | BackoffFunction = "exponential_jitter"
    initial_delay: str | float | timedelta = "2s"
    max_delay: str | float | timedelta = "5m"
    retry_on: tuple[ErrorMatch, ...] = ()
    give_up_on: tuple[ErrorMatch, ...] = ()
    initial_delay_s: float = field(init=False, repr=False, compare=False)
    max_delay_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.max_retries) is not int:
            raise InvalidRetry("max_retries", f"must be an int, not {type(self.max_retries).__name__}")
        if not 0 <= self.max_retries <= MAX_RETRIES_MAX:
            raise InvalidRetry("max_retries", "is out of range", limit=f"0–{MAX_RETRIES_MAX}")
        _check_strategy(self.backoff_strategy)
        initial_s = _delay_s(self.initial_delay, "initial_delay")
        max_s = _delay_s(self.max_delay, "max_delay")
        if max_s < initial_s:
            raise InvalidRetry(
                "max_delay", "is shorter than initial_delay", limit=f"≥ {format_duration(initial_s)}"
            )
        retry_on = _matches(self.retry_on, "retry_on")
        give_up_on = _matches(self.give_up_on, "give_up_on")
        both = [match for match in retry_on if match in give_up_on]
        if both:
            raise InvalidRetry("retry_on", f"names {_match_name(both[0])}, and so does give_up_on; drop one")
        for name, value in (
            ("initial_delay_s", initial_s),
            ("max_delay_s", max_s),
            ("retry_on", retry_on),
            ("give_up_on", give_up_on),
        ):
            object.__setattr__(self, name, value)

    @property
    def max_attempts(self) -> int:
        """Runs in all: the first and the retries."""
        return self.max_retries + 1

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, where: str) -> Retry:
        """Build a policy from a table of a TOML or YAML file.

        `where` names the table in messages (`queues.payments.retry`). Unlike in Python, a delay must
        carry its unit. Raises InvalidRetry whose field is the full name of the offending key.
        """
        if not isinstance(mapping, Mapping):
            raise InvalidRetry(where, f"must be a table of {', '.join(_KEYS)}, not {type(mapping).__name__}")
        for key in mapping:
            if key not in _KEYS:
                near = get_close_matches(str(key)[:60], _KEYS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(_KEYS)}"
                raise InvalidRetry(f"{where}.{str(key)[:60]}", f"is not a key of a retry policy; {hint}")
        for key in ("initial_delay", "max_delay"):
            if key in mapping and not isinstance(mapping[key], str):
                raise InvalidRetry(f"{where}.{key}", 'must be text with a unit, such as "30s" or "5m"')
        strategy = mapping.get("backoff_strategy", "exponential_jitter")
        if not isinstance(strategy, str):
            raise InvalidRetry(f"{where}.backoff_strategy", f"must be one of {', '.join(STRATEGIES)}")
        for key in ("retry_on", "give_up_on"):
            listed = mapping.get(key, ())
            if isinstance(listed, str) or not isinstance(listed, list | tuple):
                raise InvalidRetry(
                    f"{where}.{key}", 'must be a list of exception names, such as ["TimeoutError"]'
                )
        try:
            return cls(**{str(key): value for key, value in mapping.items()})
        except InvalidRetry as error:
            raise InvalidRetry(
                f"{where}.{error.field}", error.reason, path=error.path, limit=error.limit
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return what `jobs.retry` stores for a policy given with one call: plain JSON, delays in seconds.

        Exceptions are stored by qualified name. Raises InvalidRetry for a function as strategy, which
        cannot be stored.
        """
        if not isinstance(self.backoff_strategy, str):
            raise InvalidRetry(
                "backoff_strategy", "a function cannot be stored with one job; set it on the task instead"
            )
        return {
            "max_retries": self.max_retries,
            "backoff_strategy": self.backoff_strategy,
            "initial_delay_s": self.initial_delay_s,
            "max_delay_s": self.max_delay_s,
            "retry_on": [_match_name(match) for match in self.retry_on],
            "give_up_on": [_match_name(match) for match in self.give_up_on],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Retry:
        """Rebuild what `to_json` stored; raises InvalidRetry if the stored object is not one of ours."""
        if not isinstance(stored, Mapping):
            raise InvalidRetry("retry", f"the stored policy is not an object but {type(stored).__name__}")
        names = {"initial_delay_s": "initial_delay", "max_delay_s": "max_delay"}
        values = {names.get(key, key): value for key, value in stored.items()}
        if not set(values) <= set(_KEYS):
            raise InvalidRetry(
                "retry", "the stored policy has unknown keys; it was written by another version"
            )
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next attempt, and what was wrong with the policy's own answer, if anything."""

    delay_s: float
    warning: str | None = None


def backoff_s(policy: Retry, failures: int, random_unit: float) -> Backoff:
    """Return the delay after the `failures`-th failed attempt (1, 2, …); `random_unit` lies in [0, 1).

    With d = initial_delay and n = failures, each capped at max_delay:

    - `exponential_jitter`: half of d·2^(n-1) fixed, the other half times random_unit. This is the
      "equal jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. It
      spreads a crowd nearly as well as full jitter and never waits less than half of the step, which full
      jitter does: a job whose dependency is down must not burn its attempts in a lucky streak.
    - `exponential`: d·2^(n-1) · `linear`: d·n · `constant`: d

    A function that raises, or returns NaN, a negative number or anything that is no duration, is
    replaced by `exponential_jitter` for this once, and the warning says so.
    """
    failures = max(failures, 1)
    strategy = policy.backoff_strategy
    if isinstance(strategy, str):
        return Backoff(_formula_s(strategy, policy, failures, random_unit))
    try:
        delay_s = parse_duration(strategy(failures), field="backoff_strategy", maximum_s=math.inf)
    except InvalidTime as error:
        problem = f"returned a value that {error.reason}"
    except Exception as error:  # noqa: BLE001 - a policy's bug must not cost the job its settlement
        problem = f"raised {type(error).__name__}"
    else:
        return Backoff(min(delay_s, policy.max_delay_s))
    return Backoff(
        _formula_s("exponential_jitter", policy, failures, random_unit),
        f"the backoff function {problem}; used exponential_jitter instead",
    )


def wants_retry(policy: Retry, error: BaseException) -> bool:
    """Say whether the policy gives this kind of error another try, attempts left or not.

    `give_up_on` beats `retry_on`; an empty `retry_on` means every error. A name matches the class name
    or the qualified name of the error's class or of any class that it inherits from. An exception group
    matches if it or any error inside it does.
    """
    if not policy.give_up_on and not policy.retry_on:
        return True
    errors = list(_leaves(error))
    if any(_is_match(leaf, policy.give_up_on) for leaf in errors):
        return False
    return not policy.retry_on or any(_is_match(leaf, policy.retry_on) for leaf in errors)


def _formula_s(strategy: str, policy: Retry, failures: int, random_unit: float) -> float:
    first, cap = policy.initial_delay_s, policy.max_delay_s
    if strategy == "constant":
        return first
    if strategy == "linear":
        return min(first * failures, cap)
    # 64 doublings take a nanosecond past any cap; more would only overflow.
    step = min(math.ldexp(first, min(failures - 1, _DOUBLINGS_MAX)), cap)
    if strategy == "exponential":
        return step
    return step / 2 + step / 2 * min(max(random_unit, 0.0), 1.0)


def _leaves(error: BaseException) -> Iterable[BaseException]:
    waiting = [error]
    while waiting:
        current = waiting.pop()
        yield current
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(current.exceptions)


def _is_match(error: BaseException, matches: tuple[ErrorMatch, ...]) -> bool:
    for match in matches:
        if not isinstance(match, str):
            if isinstance(error, match):
                return True
        elif any(match in (kind.__name__, _qualified(kind)) for kind in type(error).__mro__):
            return True
    return False


def _check_strategy(strategy: object) -> None:
    if isinstance(strategy, str):
        if strategy in STRATEGIES:
            return
        near = get_close_matches(strategy[:60], STRATEGIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(STRATEGIES)}"
        raise InvalidRetry("backoff_strategy", f"is not a known strategy; {hint}")
    if not callable(strategy):
        raise InvalidRetry(
            "backoff_strategy", f"must be a strategy's name or a function, not {type(strategy).__name__}"
        )
    if inspect.iscoroutinefunction(strategy):
        raise InvalidRetry("backoff_strategy", "must be a plain function, not `async def`")


def _delay_s(value: str | float | timedelta, name: str) -> float:
    try:
        return parse_duration(value, field=name)
    except InvalidTime as error:
        raise InvalidRetry(name, error.reason, limit=error.limit) from None


def _matches(value: Any, name: str) -> tuple[ErrorMatch, ...]:
    entries = (value,) if isinstance(value, str | type) else value
    if not isinstance(entries, tuple | list | set | frozenset):
        raise InvalidRetry(name, f"must be a tuple of exception classes or names, not {type(value).__name__}")
    if len(entries) > _NAMES_MAX:
        raise InvalidRetry(name, "lists too many exceptions", limit=f"≤ {_NAMES_MAX}")
    for entry in entries:
        if isinstance(entry, type):
            if not issubclass(entry, BaseException):
                raise InvalidRetry(name, f"{entry.__name__} is not an exception class")
        elif not isinstance(entry, str):
            raise InvalidRetry(name, f"must hold exception classes or names, not {type(entry).__name__}")
        elif not _ERROR_NAME.fullmatch(entry):
            raise InvalidRetry(name, 'holds text that is no exception name; write it like "TimeoutError"')
    return tuple(entries)


def _match_name(match: ErrorMatch) -> str:
    return match if isinstance(match, str) else _qualified(match)


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
