"""Making foreign text fit for Postgres, logs and terminals: cleaned of what they refuse, and cut.

Called by `failure` and wherever words of a handler are stored (progress notes, reasons); pure.
"""

from __future__ import annotations

import re

_MARK_BYTES = 48
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SPELLED = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_DETAIL = re.compile(
    r"((?:DETAIL|DÉTAIL|DETALLE)\s{0,2}:\s).*?(?=(?:\n|\\n)\s{0,8}(?:HINT|CONTEXT|LINE|QUERY|STATEMENT)\b|\Z)",
    re.DOTALL,
)
_PARAMETERS = re.compile(r"(\[parameters: ).*?(?=\(Background on this error|\Z)", re.DOTALL)


def clean_text(text: str) -> str:
    """Return `text` with lone surrogates and control characters (all but newline and tab) spelled out.

    A NUL becomes the four characters `\\x00`; a byte smuggled in by surrogateescape becomes `\\udc80`.
    """
    text = text.replace("\r\n", "\n").encode("utf-8", "backslashreplace").decode("utf-8")
    return text.translate(_SPELLED) if _CONTROL.search(text) else text


def hide_row_values(text: str) -> str:
    """Return `text` without what database drivers add to messages: DETAIL lines and statement parameters."""
    if "DETAIL" in text or "DÉTAIL" in text or "DETALLE" in text:
        text = _DETAIL.sub(r"\1(hidden)", text)
    if "[parameters: " in text:
        text = _PARAMETERS.sub(r"\1hidden] ", text).rstrip()
    return text


def cut_chars(text: str, chars_max: int) -> str:
    """Return `text`, or its two ends with a note between, when it is longer than `chars_max` characters."""
    if len(text) <= chars_max:
        return text
    half = chars_max // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def cut_bytes(text: str, bytes_max: int) -> str:
    """Return `text` in at most `bytes_max` UTF-8 bytes: two thirds head, one third tail, a note between."""
    if len(text) * 4 <= bytes_max:
        return text
    data = text.encode()
    if len(data) <= bytes_max:
        return text
    room = bytes_max - _MARK_BYTES
    if room <= 0:
        return data[:bytes_max].decode("utf-8", "ignore")
    tail = room // 3
    head = room - tail
    left_out = len(data) - room
    # A multi-byte character cut in two at either edge is dropped.
    return (
        data[:head].decode("utf-8", "ignore")
        + f"\n… {left_out} bytes left out …\n"
        + data[len(data) - tail :].decode("utf-8", "ignore")
    )
