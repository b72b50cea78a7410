"""The grammar of names, keys and the small options of a job: what may stand in a column.

Called before the first statement of every enqueue and by registration; pure. The CHECK constraints and
SQL functions repeat these rules for producers in SQL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pgqueue.errors import InvalidName, InvalidOption

QUEUE_CHARS_MAX = 63
TASK_CHARS_MAX = 200
TOPIC_CHARS_MAX = 200
KEY_BYTES_MAX = 200
PRIORITY_MAX = 9
HEADERS_BYTES_MAX = 8_192
HEADER_NAME_CHARS_MAX = 200
TAGS_MAX = 20
TAG_CHARS_MAX = 60

_QUEUE = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*")
# C0, DEL, C1 and lone surrogates: Postgres refuses NUL and surrogates, terminals obey the rest.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_BUT_TAB = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")


def check_queue(name: str) -> str:
    """Return a queue's name if it is a lower-case letter and up to 62 of `a-z 0-9 _ . -`; else InvalidName."""
    reason = _not_text(name)
    if reason is None and not _QUEUE.fullmatch(name):
        reason = "must start with a lower-case letter and hold only a-z, 0-9, _, . and -; rename the queue"
    if reason is not None:
        raise InvalidName("queue", reason, limit=f"1–{QUEUE_CHARS_MAX} characters")
    return name


def check_task(name: str) -> str:
    """Return a task's name if it is made of ASCII identifiers joined by dots (`-` allowed); else InvalidName."""
    return _check_dotted(name, "task", TASK_CHARS_MAX)


def check_topic(name: str) -> str:
    """Return a topic such as `ride.completed`; same grammar as a task's name; else InvalidName."""
    return _check_dotted(name, "topic", TOPIC_CHARS_MAX)


def check_key(value: str, *, field: str) -> str:
    """Return an idempotency, concurrency or message key of 1–200 UTF-8 bytes; else InvalidName."""
    limit = f"1–{KEY_BYTES_MAX} bytes"
    if not isinstance(value, str):
        raise InvalidName(field, f"{_not_text(value)}; pass str(value)", limit=limit)
    if not value or len(value) > KEY_BYTES_MAX:
        raise InvalidName(field, "is empty" if not value else "is too long; pass a digest of it", limit=limit)
    bad = _CONTROL.search(value)
    if bad:
        raise InvalidName(field, f"holds {_describe(bad[0])} at position {bad.start()}", limit=limit)
    if len(value.encode()) > KEY_BYTES_MAX:
        raise InvalidName(field, "is too long; pass a digest of it", limit=limit)
    return value


def check_priority(value: int) -> int:
    """Return a priority from 0 (first) to 9 (last); anything else, bools included, is an InvalidOption."""
    if type(value) is not int:
        raise InvalidOption(
            "priority", f"must be an int, not {type(value).__name__}", limit=f"0–{PRIORITY_MAX}, 0 runs first"
        )
    if not 0 <= value <= PRIORITY_MAX:
        raise InvalidOption("priority", "is out of range", limit=f"0–{PRIORITY_MAX}, 0 runs first")
    return value


def check_headers(mapping: Mapping[str, str]) -> dict[str, str]:
    """Return headers as a dict of text to text, at most 8 KiB as JSON.

    Control characters are refused, newlines included: sinks send headers on over HTTP.
    """
    limit = f"≤ {HEADERS_BYTES_MAX} bytes as JSON"
    if not isinstance(mapping, Mapping):
        raise InvalidOption("headers", f"must be a mapping of text to text, not {type(mapping).__name__}")
    if len(mapping) > HEADERS_BYTES_MAX // 6:  # '"":"",' is the least that an entry takes
        raise InvalidOption("headers", "are too many", limit=limit)
    headers: dict[str, str] = {}
    for name, value in mapping.items():
        _check_header(name, value)
        headers[str(name)] = str(value)
    if len(orjson.dumps(headers)) > HEADERS_BYTES_MAX:
        raise InvalidOption("headers", "are too large; keep bulky data in the job's arguments", limit=limit)
    return headers


def check_tags(seq: Sequence[str]) -> list[str]:
    """Return the tags in order, each once: at most 20, each of 1–60 characters; else InvalidOption."""
    if isinstance(seq, str | bytes) or not isinstance(seq, Sequence | set | frozenset):
        raise InvalidOption("tags", f'must be a list of text such as ["refund"], not {type(seq).__name__}')
    if len(seq) > TAGS_MAX:
        raise InvalidOption("tags", "are too many", limit=f"≤ {TAGS_MAX}")
    tags: dict[str, None] = {}
    for index, tag in enumerate(sorted(seq, key=str) if isinstance(seq, set | frozenset) else seq):
        path = f"$[{index}]"
        if not isinstance(tag, str):
            raise InvalidOption("tags", f"must be text, not {type(tag).__name__}", path=path)
        if not 0 < len(tag) <= TAG_CHARS_MAX:
            raise InvalidOption(
                "tags", "is empty or too long", path=path, limit=f"1–{TAG_CHARS_MAX} characters"
            )
        bad = _CONTROL.search(tag)
        if bad:
            raise InvalidOption("tags", f"holds {_describe(bad[0])} at position {bad.start()}", path=path)
        tags[str(tag)] = None
    return list(tags)


def _check_header(name: Any, value: Any) -> None:
    if not isinstance(name, str):
        raise InvalidOption("headers", f"a name is not text but {type(name).__name__}")
    if not 0 < len(name) <= HEADER_NAME_CHARS_MAX:
        limit = f"1–{HEADER_NAME_CHARS_MAX} characters"
        raise InvalidOption("headers", "a name is empty or too long", limit=limit)
    bad = _CONTROL.search(name)
    if bad:
        raise InvalidOption("headers", f"a name holds {_describe(bad[0])} at position {bad.start()}")
    path = f"$.{name}"
    if not isinstance(value, str):
        reason = f"the value must be text, not {type(value).__name__}; pass str(value)"
        raise InvalidOption("headers", reason, path=path)
    if len(value) > HEADERS_BYTES_MAX:
        raise InvalidOption(
            "headers", "the value is too long", path=path, limit=f"≤ {HEADERS_BYTES_MAX} bytes"
        )
    bad = _CONTROL_BUT_TAB.search(value)
    if bad:
        reason = f"the value holds {_describe(bad[0])} at position {bad.start()}"
        raise InvalidOption("headers", reason, path=path)


def _check_dotted(name: str, field: str, chars_max: int) -> str:
    reason = _not_text(name)
    # The length comes first: matching a megabyte to refuse it is wasted work.
    if reason is None and (len(name) > chars_max or not _DOTTED.fullmatch(name)):
        reason = (
            "must be identifiers joined by dots, each of ASCII letters, digits, _ and - "
            "and not starting with a digit"
        )
    if reason is not None:
        raise InvalidName(field, reason, limit=f"1–{chars_max} characters")
    return name


def _not_text(value: Any) -> str | None:
    return None if isinstance(value, str) else f"must be text, not {type(value).__name__}"


def _describe(character: str) -> str:
    if character == "\x00":
        return "a NUL character"
    if "\ud800" <= character <= "\udfff":
        return "a lone surrogate"
    return f"the control character U+{ord(character):04X}"
