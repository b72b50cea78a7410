"""A job's arguments and result as JSON text: strict on the way in, confined on the way out.

Called once per enqueue and once per run, so the path for small flat arguments is short; pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from pgqueue.core import payload_faults
from pgqueue.core.payload_faults import DEPTH_MAX, INT_MAX, INT_MIN, plain
from pgqueue.errors import InvalidArguments

__all__ = [
    "DEPTH_MAX",
    "PAYLOAD_BYTES_HARD_MAX",
    "PAYLOAD_BYTES_MAX",
    "RESULT_BYTES_MAX",
    "decode_args",
    "encode_args",
    "encode_result",
]

PAYLOAD_BYTES_MAX = 262_144
PAYLOAD_BYTES_HARD_MAX = 8 * 1024 * 1024
RESULT_BYTES_MAX = 65_536

_REASON_CHARS_MAX = 300


class _RefusedError(Exception):
    """Something in the arguments is not plain JSON; `payload_faults` finds out what and where."""


class _TooLargeError(_RefusedError):
    """The arguments are over the size limit; looking for other faults would take longer than it is worth."""


def encode_args(args: Mapping[str, object], *, bytes_max: int = PAYLOAD_BYTES_MAX) -> str:
    """Return a job's arguments as JSON text that Postgres will take as jsonb and Python will read back.

    Accepts dict, list, tuple, str, int within ±2^63, finite float, bool and None, nested up to 64 deep.
    `bytes_max` bounds the encoded size and is itself bounded by 8 MiB. Raises InvalidArguments with the
    place (`$.items[3].price`) and, where there is one, the way to pass such a value.

    What JSON and jsonb do not keep: tuples come back as lists, -0.0 as 0.0, a float that is a whole
    number from 1e16 up as an int; the order of keys is lost. Unicode forms (NFC, NFD) are kept as given.
    """
    limit = min(bytes_max, PAYLOAD_BYTES_HARD_MAX)
    if type(args) is not dict:
        args = _as_dict(args)
    try:
        _measure_object(args, 1, 0, limit)
        data = orjson.dumps(args)
    except _TooLargeError:
        raise payload_faults.too_large(limit) from None
    except (_RefusedError, TypeError, RecursionError):
        raise payload_faults.fault(args, limit) from None
    if len(data) > limit:
        raise payload_faults.too_large(limit)
    # A hit may also be a backslash followed by "u0000" in the caller's own text: only then look closely.
    if b"\\u0000" in data:
        found = payload_faults.find(args, limit)
        if found is not None:
            raise found
    return data.decode()


def decode_args(text: str) -> dict[str, object]:
    """Return the arguments stored as `text`; raises InvalidArguments, and nothing else, if they are unusable.

    Integers beyond 64 bits, which only producers in SQL can store, are read as floats.
    """
    try:
        value = orjson.loads(text)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        # The decoder's message names a position and a rule, never the text itself.
        reason = error.msg if isinstance(error, orjson.JSONDecodeError) else type(error).__name__
        raise InvalidArguments("args", f"the stored arguments cannot be decoded: {reason}") from None
    if type(value) is not dict:
        raise InvalidArguments("args", f"must be a JSON object, not {payload_faults.json_kind(value)}")
    # Fewer opening brackets than the limit cannot nest deeper than the limit.
    if text.count("{") + text.count("[") > DEPTH_MAX and payload_faults.depth_exceeds(value, DEPTH_MAX):
        raise InvalidArguments(
            "args", "the stored arguments are nested too deep", limit=f"{DEPTH_MAX} levels"
        )
    return value


def encode_result(value: object, *, bytes_max: int = RESULT_BYTES_MAX) -> tuple[str | None, str | None]:
    """Return a handler's result as (JSON text, warning); None becomes (None, None). Never raises.

    Results may be richer than arguments: datetimes, dates, UUIDs, enums and dataclasses become the JSON
    that stands for them. What still cannot be stored becomes a marker object that says why, plus the
    same sentence as a warning: a job that did its work is never run again because of its answer.
    """
    if value is None:
        return None, None
    try:
        data = _dump_plain(value, bytes_max) or _dump_result(value, bytes_max)
    except payload_faults.UnstorableError as error:
        return _marker(error.reason)
    except Exception as error:  # noqa: BLE001 - properties and __str__ of foreign objects may raise anything
        return _marker(f"it raised {type(error).__name__} while being encoded")
    return data, None


def _dump_plain(value: object, bytes_max: int) -> str | None:
    """Encode the usual result, a dict that would pass as arguments, by their quick path; else None."""
    if type(value) is not dict:
        return None
    try:
        _measure_object(value, 1, 0, bytes_max)
        data = orjson.dumps(value)
    except (_RefusedError, TypeError, RecursionError):
        return None
    return data.decode() if len(data) <= bytes_max and b"\\u0000" not in data else None


def _dump_result(value: object, bytes_max: int) -> str:
    tree = plain(value, bytes_max)
    data = orjson.dumps(tree)
    if len(data) > bytes_max:
        raise payload_faults.UnstorableError(f"it encodes to more than {bytes_max} bytes")
    if b"\\u0000" in data:
        payload_faults.refuse_nul(tree)
    return data.decode()


def _marker(reason: str) -> tuple[str, str]:
    # Type names come from foreign code: without surrogates and control characters Postgres takes the text.
    clean = "".join(character if character.isprintable() else "?" for character in reason[:_REASON_CHARS_MAX])
    return (
        orjson.dumps({"pgqueue_unstorable": clean}).decode(),
        f"the job succeeded but its result was not stored: {clean}",
    )


def _as_dict(args: Any) -> dict[str, object]:
    if not isinstance(args, Mapping):
        raise InvalidArguments(
            "args", f"must be a mapping of argument names to values, not {type(args).__name__}"
        )
    return dict(args)


def _measure_object(value: Any, depth: int, size: int, limit: int) -> int:  # noqa: C901 - one loop, for speed
    """Check exact types and add up a lower bound of the encoded size, so that dumping stays cheap."""
    # '"":0,' is the least an entry takes; asking first keeps a huge or shared tree from being walked.
    size += 5 * len(value)
    if depth > DEPTH_MAX:
        raise _RefusedError
    if size > limit:
        raise _TooLargeError
    for key, item in value.items():
        if type(key) is not str:
            raise _RefusedError
        size += len(key)
        kind = type(item)
        if kind is str:
            size += len(item)
        elif kind is int:
            if not INT_MIN <= item <= INT_MAX:
                raise _RefusedError
        elif item is None or kind is bool:
            pass
        elif kind is float:
            if item - item != 0.0:  # NaN or infinite
                raise _RefusedError
        else:
            size = _measure(item, depth + 1, size, limit)
    if size > limit:
        raise _TooLargeError
    return size


def _measure(value: Any, depth: int, size: int, limit: int) -> int:  # noqa: C901, PLR0912 - one loop, for speed
    kind = type(value)
    if kind is dict:
        return _measure_object(value, depth, size, limit)
    if kind is not list and kind is not tuple:
        return _measure_subclass(value, depth, size, limit)
    size += 2 * len(value)
    if depth > DEPTH_MAX:
        raise _RefusedError
    if size > limit:
        raise _TooLargeError
    for item in value:
        kind = type(item)
        if kind is str:
            size += len(item)
        elif kind is int:
            if not INT_MIN <= item <= INT_MAX:
                raise _RefusedError
        elif item is None or kind is bool:
            pass
        elif kind is float:
            if item - item != 0.0:
                raise _RefusedError
        else:
            size = _measure(item, depth + 1, size, limit)
    if size > limit:
        raise _TooLargeError
    return size


def _measure_subclass(value: Any, depth: int, size: int, limit: int) -> int:
    # Harmless subclasses (markup strings, ordered dicts) pass as what they are; enums never do.
    base = payload_faults.plain_base(value)
    if base is None:
        raise _RefusedError
    if base is dict:
        return _measure_object(dict(dict.items(value)), depth, size, limit)
    if base is list:
        return _measure(list(list.__iter__(value)), depth, size, limit)
    if base is int:
        if not INT_MIN <= int.__index__(value) <= INT_MAX:
            raise _RefusedError
        return size
    return size + str.__len__(value)
