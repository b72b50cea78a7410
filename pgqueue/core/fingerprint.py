"""One name for "the same failure again": groups dead letters over ids, numbers and line changes.

Called by `failure`; pure.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from pathlib import Path
from types import TracebackType

FINGERPRINT_CHARS = 16

_FRAMES_MAX = 30
_MESSAGE_CHARS_MAX = 1_000
_STDLIB = tuple({f"{Path(sysconfig.get_path(key)).as_posix()}/" for key in ("stdlib", "platstdlib")})
_PACKAGE = f"{Path(__file__).parents[1].as_posix()}/"
_INSTALLED = ("/site-packages/", "/dist-packages/")

# Order matters: a UUID is also made of numbers, a quoted text may hold anything.
_PLACEHOLDERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"), "<uuid>"),
    (re.compile(r"0x[0-9a-fA-F]+"), "<address>"),
    # Quotes inside words are apostrophes ("can't").
    (
        re.compile(r"""(?<!\w)'[^'\n]{0,500}'(?!\w)|"[^"\n]{0,500}"|`[^`\n]{0,500}`|“[^”\n]{0,500}”"""),
        "<text>",
    ),
    (re.compile(r"\b(?=[a-f]{0,64}[0-9])[0-9a-f]{8,64}\b"), "<hex>"),
    (re.compile(r"[-+]?[0-9]+(?:[.,:_-][0-9]+)*(?:[eE][-+]?[0-9]+)?"), "<n>"),
)


def fingerprint(
    *, task: str, error_type: str, message: str, frames: tuple[str, ...] = (), sqlstate: str | None = None
) -> str:
    """Return 16 hexadecimal digits that are equal for failures with one cause.

    Made of the task, the error's type and SQLSTATE, the application's own frames without line numbers,
    and the message with numbers, ids, quoted text and addresses replaced.
    """
    parts = (task, error_type, sqlstate or "", *frames, normalize_message(message))
    data = "\x00".join(parts).encode("utf-8", "backslashreplace")
    return hashlib.sha256(data).hexdigest()[:FINGERPRINT_CHARS]


def normalize_message(message: str) -> str:
    """Return a message with everything that varies between two runs of one fault replaced."""
    message = message[:_MESSAGE_CHARS_MAX]
    for pattern, placeholder in _PLACEHOLDERS:
        message = pattern.sub(placeholder, message)
    return message


def own_frames(trace: TracebackType | None) -> tuple[str, ...]:
    """Return `file:function` of the application's frames, outermost first, repeats of recursion folded."""
    frames: list[str] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        path = code.co_filename.replace("\\", "/")
        if _is_own(path):
            frame = f"{path.rpartition('/')[2]}:{code.co_name}"
            if frame not in frames[-4:]:  # mutual recursion repeats in short cycles
                frames.append(frame)
        trace = trace.tb_next
    return tuple(frames[-_FRAMES_MAX:])


def _is_own(path: str) -> bool:
    if path.startswith(("<frozen ", _PACKAGE)) or any(folder in path for folder in _INSTALLED):
        return False
    return not path.startswith(_STDLIB)
