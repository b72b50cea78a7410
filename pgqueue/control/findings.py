"""What `pgqueue doctor` answers with: one frozen row per check. Made by the doctor's files, read by the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result; `fix` is a command or SQL that mends it, `safe` whether `--fix` may do that by itself."""

    verdict: Verdict
    check: str
    message: str
    fix: str = ""
    safe: bool = False


def literal(text: str) -> str:
    """A stored name inside a printed SQL text."""
    return "'" + text.replace("'", "''") + "'"
