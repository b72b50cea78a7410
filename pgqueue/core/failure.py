"""What is kept of an exception: a type, a clean and redacted message, a fingerprint, a traceback.

Called by the executor for each failed attempt; pure, but for the source lines that `linecache` reads.
Nothing here raises: a failure that cannot be described becomes CONSTANT_FAILURE.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from pgqueue.core.clean import clean_text, cut_bytes, cut_chars, hide_row_values
from pgqueue.core.fingerprint import FINGERPRINT_CHARS, fingerprint, own_frames
from pgqueue.core.redact import Redactor

MESSAGE_BYTES_MAX = 8_192
TRACEBACK_BYTES_MAX = 16_384
TRACEBACK_FRAMES_MAX = 50
TYPE_CHARS_MAX = 200

_RAW_CHARS_MAX = 131_072
"""Cut before redaction, to bound its cost. Far above what is kept: a secret that this cut tears apart
lies in the middle, which the second cut removes."""
_CHAIN_MAX = 8
_MEMBERS_SHOWN_MAX = 5
_MEMBER_CHARS_MAX = 500
_HEAD_FRAMES = 10
_SOURCE_CHARS_MAX = 300
_SQLSTATE_CHARS = 5
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt in words that are safe to store and to show."""

    error_type: str
    message: str
    fingerprint: str
    traceback: str | None
    sqlstate: str | None


CONSTANT_FAILURE: Final = Failure(
    error_type="UndescribableError",
    message="the attempt failed, but its error could not be described or stored",
    fingerprint="0" * FINGERPRINT_CHARS,
    traceback=None,
    sqlstate=None,
)
"""Stands for a failure that cannot be described, or whose description Postgres refused."""


def describe(
    error: BaseException, *, task: str, redact: Redactor, bytes_max: int = MESSAGE_BYTES_MAX
) -> Failure:
    """Return what to keep of `error`; never raises, whatever the exception's own methods do.

    The message is cleaned, redacted and cut to `bytes_max` (head and tail). Of a database error it holds
    SQLSTATE, primary message and constraint, never the DETAIL, which quotes row values.
    """
    try:
        error_type = _type_name(error)
        sqlstate, safe = _sqlstate_and_text(error, redact)
        return Failure(
            error_type=error_type,
            message=cut_bytes(safe, bytes_max),
            fingerprint=fingerprint(
                task=task,
                error_type=error_type,
                message=safe,
                frames=own_frames(error.__traceback__),
                sqlstate=sqlstate,
            ),
            traceback=cut_bytes(_traceback(error, redact), TRACEBACK_BYTES_MAX),
            sqlstate=sqlstate,
        )
    except BaseException:  # noqa: BLE001 - foreign __str__, properties and metaclasses may raise anything
        return CONSTANT_FAILURE


def _safe(text: str, redact: Redactor) -> str:
    return redact.text(hide_row_values(clean_text(cut_chars(text, _RAW_CHARS_MAX))))


def _type_name(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return clean_text(name)[:TYPE_CHARS_MAX]


def _sqlstate_and_text(error: BaseException, redact: Redactor) -> tuple[str | None, str]:
    """Return an error's SQLSTATE, if it has one, and its text, safe but uncut.

    Everything is redacted before anybody cuts it shorter: a cut may part a secret from its name.
    """
    # SQLAlchemy wraps the driver's error and puts the statement's parameters into its own text.
    inner = _attribute(error, "orig") if _attribute(error, "statement", _ABSENT) is not _ABSENT else None
    source = inner if isinstance(inner, BaseException) else error
    diagnostics = _attribute(source, "diag")
    sqlstate = _first_sqlstate(
        _attribute(source, "sqlstate"), _attribute(source, "pgcode"), _attribute(diagnostics, "sqlstate")
    )
    primary = _attribute(diagnostics, "message_primary")
    text = primary if isinstance(primary, str) and primary else _text(source)
    if sqlstate is not None:
        # Drivers without a structured primary message append DETAIL and HINT to their text.
        text = text.partition("\nDETAIL")[0]
        constraint = _attribute(diagnostics, "constraint_name") or _attribute(source, "constraint_name")
        named = f" (constraint {constraint})" if isinstance(constraint, str) and constraint else ""
        return sqlstate, _safe(f"{sqlstate}: {text}{named}", redact)
    text = _safe(text, redact)
    if isinstance(error, BaseExceptionGroup):
        text = f"{text}: {'; '.join(_members(error, redact))}"
    return None, text


def _first_sqlstate(*candidates: Any) -> str | None:
    for code in candidates:
        if isinstance(code, str) and len(code) == _SQLSTATE_CHARS and code.isascii() and code.isalnum():
            return code
    return None


def _attribute(holder: Any, name: str, default: Any = None) -> Any:
    try:
        return getattr(holder, name, default)
    except BaseException:  # noqa: BLE001 - a property of a foreign exception may raise anything
        return default


def _text(error: BaseException) -> str:
    try:
        # str.__str__ turns what a str subclass returned into a plain string.
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - a foreign __str__ may raise anything
        return f"<unprintable {type(error).__name__}>"


def _members(group: BaseExceptionGroup[BaseException], redact: Redactor) -> Iterator[str]:
    for shown, leaf in enumerate(_leaves(group)):
        if shown == _MEMBERS_SHOWN_MAX:
            yield "…"
            return
        _, text = _sqlstate_and_text(leaf, redact)
        yield f"{_type_name(leaf)}: {cut_chars(text, _MEMBER_CHARS_MAX)}"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    waiting: list[BaseException] = list(reversed(group.exceptions))
    while waiting:
        current = waiting.pop()
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(reversed(current.exceptions))
        else:
            yield current


def _traceback(error: BaseException, redact: Redactor) -> str:
    """Format the chain of exceptions, oldest first. The standard formatter would print DETAIL and notes raw."""
    chain: list[tuple[BaseException, str]] = []
    current: BaseException | None = error
    link = ""
    while current is not None and len(chain) < _CHAIN_MAX and all(current is not seen for seen, _ in chain):
        chain.append((current, link))
        if current.__cause__ is not None:
            current, link = current.__cause__, "This was the direct cause of the next error:"
        elif not current.__suppress_context__:
            current, link = current.__context__, "While this was being handled, the next error occurred:"
        else:
            current = None
    blocks: list[str] = []
    for member, note in reversed(chain):
        _, text = _sqlstate_and_text(member, redact)
        lines = [
            *_frames(member.__traceback__, redact),
            f"{_type_name(member)}: {cut_chars(text, MESSAGE_BYTES_MAX)}",
        ]
        blocks.append("\n".join(lines if not note else [*lines, "", note, ""]))
    return "\n".join(blocks)


def _frames(trace: TracebackType | None, redact: Redactor) -> list[str]:
    if trace is None:
        return []
    steps: list[TracebackType] = []
    while trace is not None:
        steps.append(trace)
        trace = trace.tb_next
    left_out = len(steps) - TRACEBACK_FRAMES_MAX
    shown = steps
    if left_out > 0:
        shown = steps[:_HEAD_FRAMES] + steps[_HEAD_FRAMES + left_out :]
    lines = ["Traceback (most recent call last):"]
    for index, step in enumerate(shown):
        if left_out > 0 and index == _HEAD_FRAMES:
            lines.append(f"  … {left_out} frames left out …")
        code = step.tb_frame.f_code
        lines.append(clean_text(f'  File "{code.co_filename}", line {step.tb_lineno}, in {code.co_name}'))
        # Without linecache.checkcache: the text as the process loaded it, and no stat() per frame.
        source = linecache.getline(code.co_filename, step.tb_lineno, step.tb_frame.f_globals).strip()
        if source:
            lines.append(f"    {redact.text(clean_text(source))[:_SOURCE_CHARS_MAX]}")
    return lines
