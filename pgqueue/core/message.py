"""A message of the outbox as its receivers see it, and what of it travels in a job's headers. Pure.

Built by relays for sinks, and by the worker for handlers whose job was a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pgqueue.core.names import TOPIC_CHARS_MAX, check_topic
from pgqueue.core.payload import decode_args
from pgqueue.errors import InvalidName

ID_HEADER: Final = "pgqueue.message_id"
UID_HEADER: Final = "pgqueue.message_uid"
TOPIC_HEADER: Final = "pgqueue.topic"
KEY_HEADER: Final = "pgqueue.message_key"
OURS: Final = "pgqueue."
CARRIED: Final = ("traceparent", "tracestate", "correlation_id")
"""What a job's messages inherit from its own headers, and the jobs they become from them."""

_EVERY: Final = "*"
_SINK: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    `id` is its number in this database's outbox, `uid` the same wherever and however often it arrives: tell
    repetitions by it. `emitted_at` is None for a handler whose job was the message; `attempt` counts its tries at
    this sink, this one included.
    """

    id: int
    uid: str
    topic: str
    key: str | None
    payload: Mapping[str, Any]
    headers: Mapping[str, str]
    emitted_at: datetime | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way to a sink, still closed: payload and headers are the stored JSON texts.

    `age_s`: how old it was when a relay took it.
    """

    id: int
    uid: str
    topic: str
    key: str | None
    payload_text: str
    headers_text: str | None
    emitted_at: datetime
    age_s: float
    attempt: int

    def opened(self) -> Message:
        """The message. Raises InvalidArguments for a payload that Python cannot read."""
        return Message(
            id=self.id,
            uid=self.uid,
            topic=self.topic,
            key=self.key,
            payload=decode_args(self.payload_text),
            headers=self.headers(),
            emitted_at=self.emitted_at,
            attempt=self.attempt,
        )

    def headers(self) -> dict[str, str]:
        """Its headers; what is no text is left out."""
        found = {} if self.headers_text is None else decode_args(self.headers_text)
        return {name: value for name, value in found.items() if isinstance(value, str)}


def message_of(args: Mapping[str, Any], headers: Mapping[str, str]) -> Message | None:
    """The message that a job with these arguments and headers was; None if it was none."""
    number = headers.get(ID_HEADER, "")
    if not (number.isascii() and number.isdecimal()):
        return None
    return Message(
        id=int(number),
        uid=headers.get(UID_HEADER, ""),
        topic=headers.get(TOPIC_HEADER, ""),
        key=headers.get(KEY_HEADER),
        payload=args,
        headers={name: value for name, value in headers.items() if not name.startswith(OURS)},
    )


def inherited(headers: Mapping[str, str]) -> dict[str, str]:
    """What a message takes over from the headers of the job that emits it."""
    return {name: headers[name] for name in CARRIED if name in headers}


def check_pattern(pattern: Any) -> str:
    """Return a subscription's pattern: a topic, `ride.*` for all below ride, or `*`; else InvalidName."""
    if pattern == _EVERY:
        return _EVERY
    stem = pattern.removesuffix(".*") if isinstance(pattern, str) else pattern
    try:
        check_topic(stem)
    except InvalidName as error:
        raise InvalidName(
            "topic", f"{error.reason}; a last part may be *, as in ride.*", limit=error.limit
        ) from None
    if len(pattern) > TOPIC_CHARS_MAX:
        raise InvalidName("topic", "is too long", limit=f"1–{TOPIC_CHARS_MAX} characters")
    return str(pattern)


def check_sink(name: Any) -> str:
    """Return a sink's name if it is a lower-case letter and up to 62 of `a-z 0-9 _ . -`; else InvalidName."""
    if not isinstance(name, str) or not _SINK.fullmatch(name):
        raise InvalidName(
            "sink",
            "must start with a lower-case letter and hold only a-z, 0-9, _, . and -",
            limit="1–63 characters",
        )
    return str(name)
