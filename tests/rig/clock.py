"""Clocks that are wrong: a server or a client under libfaketime, whose time can be set while it runs.

Where the library is missing it is installed if that can be done (root, Debian's apt); else the test is skipped and says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest

HOUR_S = 3600
_PLACES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)


class Clock:
    """A wall clock of its own for the processes that are started with `environment`; time spans stay true."""

    def __init__(self, folder: Path, name: str = "clock", *, ahead_s: float = 0) -> None:
        self._library = faketime()
        self._file = folder / name
        self._ahead_s = ahead_s
        self.step_to(0)
        self._file.chmod(0o644)

    def step_to(self, seconds: float) -> None:
        """From now on it is so far ahead of where it began (behind, if negative)."""
        # Replaced in one go: a reader in the middle of a write would see another time.
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._ahead_s + seconds:+.3f}\n")
        new.chmod(0o644)
        new.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """What a server or any other program needs."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def python(self, path: Path) -> dict[str, str]:
        """What a Python needs that imports from `path`."""
        return {**self.environment, "PYTHONPATH": f"{path}:{Path(__file__).with_name('clocksite')}"}


def until_next(span_s: int) -> float:
    """Seconds until the wall clock shows a multiple of `span_s`.

    A clock that begins just past one lets no fire come by itself, at whatever time the test is run.
    """
    return span_s - time.time() % span_s


@cache
def faketime() -> Path:
    """The library; skips the test where there is none and none can be installed."""
    found = _find()
    if found is None:
        why = _install()
        found = _find()
        if found is None:
            pytest.skip(f"libfaketime is not installed: {why}")
    return found


def _find() -> Path | None:
    candidates = (Path(place, "faketime", "libfaketimeMT.so.1") for place in _PLACES)
    return next((path for path in candidates if path.exists()), None)


def _install() -> str:
    if os.geteuid() != 0:
        return "only root could install it (Debian: apt install libfaketime)"
    if shutil.which("apt-get") is None:
        return "there is no apt-get to install it with"
    try:
        tried = subprocess.run(
            ["apt-get", "install", "-y", "--no-install-recommends", "libfaketime"],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired:
        return "apt-get install libfaketime did not end"
    return f"apt-get install libfaketime ended with {tried.returncode}: {tried.stderr.strip()[-200:]}"
