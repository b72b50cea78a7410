"""How one setting's value is read: durations, addresses, lists and tables out of text.

Called by `pgqueue.settings` alone; pure. A ValueError here becomes one line of the configuration's problems
and never repeats the value.
"""

from __future__ import annotations

import json
import math
import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from pgqueue._settings_sources import normalise_dsn

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
# Each unit once, largest first; the same grammar as durations of jobs.
_DURATION = re.compile(
    r"(?=.)"
    + r"\s*".join(rf"(?:[0-9]{{1,15}}(?:\.[0-9]{{1,9}})?{unit})?" for unit in ("w", "d", "h", "m", "s", "ms"))
)
_BARE_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _seconds(value: Any) -> Any:
    """Text with units or a timedelta to seconds; numbers pass. Configuration text never goes without a unit."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool):
        raise ValueError('must be a duration like "30s" or "5m"')  # noqa: TRY004 - pydantic collects ValueErrors
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError("must be a finite number of seconds")
        return float(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _BARE_NUMBER.fullmatch(text):
        raise ValueError(f'has no unit; write "{text}s" for seconds')
    if len(text) > 64 or not _DURATION.fullmatch(text):
        raise ValueError('must be a duration with units ms, s, m, h, d or w, like "30s" or "1h30m"')
    return sum(float(number) * UNITS_S[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhdw])", text))


def _words(value: Any) -> Any:
    return (
        tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value
    )


def json_table(value: Any) -> Any:
    """A table of settings given as JSON text, as environment variables hold it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("must be a JSON object when it comes from the environment") from None


Seconds = Annotated[float, BeforeValidator(_seconds)]
Dsn = Annotated[str, AfterValidator(normalise_dsn)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
