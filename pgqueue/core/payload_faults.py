"""Why a value is not JSON: the slow half of `payload`, entered only when something is to be refused.

Called by `payload` alone; pure. Messages name the place and the type, never the value.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pgqueue.errors import InvalidArguments

DEPTH_MAX = 64
INT_MIN = -(2**63)
INT_MAX = 2**63 - 1

_PATH_KEY_CHARS_MAX = 40
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SUBCLASS_BASES: tuple[type, ...] = (str, int, dict, list)


class UnstorableError(Exception):
    """A handler's result that JSON cannot hold; `reason` is a sentence about its type and place."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def fault(args: dict[str, object], limit: int) -> InvalidArguments:
    """Return the error that says what in `args` was refused."""
    return find(args, limit) or InvalidArguments("args", "cannot be encoded as JSON")


def find(args: dict[str, object], limit: int) -> InvalidArguments | None:
    """Return the first fault in `args`, in order of reading, or None."""
    found = _find(args, 1, _Budget(limit), ())
    if found is None or found.reason is None:
        return None if found is None else too_large(limit)
    return InvalidArguments(
        "args", found.reason, path="$" + "".join(reversed(found.steps)), limit=found.limit
    )


def too_large(limit: int) -> InvalidArguments:
    """Return the error for arguments over the size limit."""
    return InvalidArguments(
        "args",
        "are too large; store the data in a table or a file and pass its id",
        limit=f"{limit} bytes as JSON",
    )


def plain_base(value: Any) -> type | None:
    """Return the builtin type whose subclass `value` may pass as, or None. Enums are never that."""
    if isinstance(value, Enum):
        return None
    return next((base for base in _SUBCLASS_BASES if isinstance(value, base)), None)


def json_kind(value: object) -> str:
    """Return what JSON calls a decoded value's type."""
    if value is None:
        return "null"
    names = {list: "an array", dict: "an object", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")


def depth_exceeds(value: Any, levels: int) -> bool:
    """Say whether containers nest deeper than `levels`; recursion stops there."""
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    items = value.values() if isinstance(value, dict) else value
    return any(depth_exceeds(item, levels - 1) for item in items)


def plain(value: Any, bytes_max: int) -> Any:
    """Return a handler's result as plain dicts, lists and scalars; raises UnstorableError."""
    return _plain(value, "$", 1, _Budget(bytes_max))


def refuse_nul(tree: Any) -> None:
    """Raise UnstorableError if a string or key of a plain tree holds a NUL character."""
    for path, text in _strings(tree, "$"):
        if "\x00" in text:
            raise UnstorableError(f"the text at {path} contains a NUL character")


class _Budget:
    """What may still be visited: a small value that is shared many times encodes to a huge text."""

    __slots__ = ("left",)

    def __init__(self, limit: int) -> None:
        self.left = limit

    def spend(self, amount: int) -> bool:
        self.left -= amount
        return self.left >= 0


class _Found:
    """A fault on its way up: each container it passes adds a step, so that only faults cost a path."""

    __slots__ = ("limit", "reason", "steps")

    def __init__(self, reason: str | None, limit: str | None = None) -> None:
        self.reason = reason  # None: the arguments as a whole are too large
        self.limit = limit
        self.steps: list[str] = []


def _find(value: Any, depth: int, budget: _Budget, above: tuple[int, ...]) -> _Found | None:
    if not _is_container(value):
        return _find_in_scalar(value, budget)
    if id(value) in above:
        return _Found("contains itself")
    if depth > DEPTH_MAX:
        return _Found("is nested too deep", f"{DEPTH_MAX} levels")
    above = (*above, id(value))
    search = _find_in_object if isinstance(value, dict) else _find_in_array
    return search(value, depth, budget, above)


def _find_in_array(value: Any, depth: int, budget: _Budget, above: tuple[int, ...]) -> _Found | None:
    if not budget.spend(2 * len(value)):
        return _Found(None)
    for index, item in enumerate(list.__iter__(value) if isinstance(value, list) else value):
        found = _find(item, depth + 1, budget, above)
        if found is not None:
            found.steps.append(f"[{index}]")
            return found
    return None


def _find_in_scalar(value: Any, budget: _Budget) -> _Found | None:
    # Size first: looking for a bad character in 100 MB takes longer than refusing them may.
    if isinstance(value, str) and not budget.spend(len(value)):
        return _Found(None)
    reason = _scalar_fault(value)
    return None if reason is None else _Found(reason)


def _find_in_object(value: Any, depth: int, budget: _Budget, above: tuple[int, ...]) -> _Found | None:
    if not budget.spend(5 * len(value)):
        return _Found(None)
    for key, item in dict.items(value):
        if isinstance(key, str) and not budget.spend(len(key)):
            return _Found(None)
        reason = _key_fault(key)
        if reason is not None:
            return _Found(reason)
        found = _find(item, depth + 1, budget, above)
        if found is not None:
            found.steps.append(_key_step(key))
            return found
    return None


def _is_container(value: Any) -> bool:
    # A named tuple would lose its names, so of the tuples only the exact type passes.
    return type(value) is tuple or (isinstance(value, dict | list) and not isinstance(value, Enum))


def _key_fault(key: Any) -> str | None:
    if type(key) is str:
        reason = _text_fault(key)
        return None if reason is None else f"has a key that {reason}"
    hint = "its `.value`" if isinstance(key, Enum) else "str(key)"
    return f"has a key of type {type(key).__name__}, but JSON keys are text; pass {hint}"


def _text_fault(text: str) -> str | None:
    nul = text.find("\x00")
    if nul >= 0:
        return f"contains a NUL character at position {nul}, which Postgres cannot store"
    bad = _SURROGATE.search(text)
    if bad:
        return f"contains a lone surrogate at position {bad.start()}; decode the bytes with errors='replace'"
    return None


def _scalar_fault(value: Any) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, Enum):
        return f"is an enum member ({type(value).__name__}); pass its `.value`"
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, int):
        fits = INT_MIN <= int.__index__(value) <= INT_MAX
        return None if fits else "is an integer beyond 64 bits; pass str(value)"
    if type(value) is float:
        return (
            None if math.isfinite(value) else "is NaN or infinite, which JSON cannot say; pass None or text"
        )
    return f"is a {type(value).__name__}, which JSON cannot hold; {_hint(value)}"


_HINTS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (float, "pass float(value)"),
    ((Decimal, UUID), "pass str(value) and convert it back in the handler"),
    ((date, time), "pass value.isoformat()"),  # datetime is a date
    (timedelta, "pass value.total_seconds()"),
    ((set, frozenset), "pass sorted(value)"),
    ((bytes, bytearray, memoryview), "pass it as base64 text, or store it and pass its id"),
    (tuple, "pass list(value) or value._asdict()"),
)


def _hint(value: Any) -> str:
    for kinds, hint in _HINTS:
        if isinstance(value, kinds):
            return hint
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "pass dataclasses.asdict(value)"
    if hasattr(type(value), "model_dump"):
        return "pass value.model_dump(mode='json')"
    if hasattr(type(value), "__await__"):
        return "await it first"
    return "pass its id, or the plain values that the handler needs"


def _plain(value: Any, path: str, depth: int, budget: _Budget) -> Any:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Enum):
        return _plain(value.value, path, depth, budget)
    if isinstance(value, str):
        return _plain_text(value, path, budget)
    if isinstance(value, int | float):
        return _plain_number(value, path)
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else _plain_container(value, path, depth, budget)


def _plain_text(value: str, path: str, budget: _Budget) -> str:
    text = str.__str__(value)
    if not budget.spend(len(text)):
        raise UnstorableError("it is too large")
    if _SURROGATE.search(text):
        raise UnstorableError(f"the text at {path} contains a lone surrogate")
    return text


def _plain_number(value: float, path: str) -> float:
    if isinstance(value, int):
        number = int.__index__(value)
        if not INT_MIN <= number <= INT_MAX:
            raise UnstorableError(f"the integer at {path} is beyond 64 bits")
        return number
    real = float.__float__(value)
    if not math.isfinite(real):
        raise UnstorableError(f"the number at {path} is NaN or infinite")
    return real


def _plain_container(value: Any, path: str, depth: int, budget: _Budget) -> Any:
    if depth > DEPTH_MAX:
        raise UnstorableError(f"it is nested deeper than {DEPTH_MAX} levels, or contains itself")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries: dict[Any, Any] = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if not field.name.startswith("_")
        }
    elif isinstance(value, dict):
        entries = value
    elif isinstance(value, list | tuple):
        if not budget.spend(2 * len(value)):
            raise UnstorableError("it is too large")
        return [_plain(item, f"{path}[{i}]", depth + 1, budget) for i, item in enumerate(value)]
    else:
        raise UnstorableError(f"the {type(value).__name__} at {path} is not JSON")
    if not budget.spend(5 * len(entries)):
        raise UnstorableError("it is too large")
    tree: dict[str, Any] = {}
    for key, item in entries.items():
        if isinstance(key, Enum) or not isinstance(key, str):
            raise UnstorableError(f"a key at {path} is a {type(key).__name__}, not text")
        tree[_plain(key, path, depth, budget)] = _plain(item, path + _key_step(key), depth + 1, budget)
    return tree


def _strings(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield path, key
            yield from _strings(item, path + _key_step(key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from _strings(item, f"{path}[{index}]")


def _key_step(key: str) -> str:
    short = key if len(key) <= _PATH_KEY_CHARS_MAX else f"{key[:_PATH_KEY_CHARS_MAX]}…"
    return f".{short}" if _PLAIN_KEY.fullmatch(short) else f"[{json.dumps(short)}]"
