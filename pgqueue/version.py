"""The version of this package, as its metadata has it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

DISTRIBUTION: Final = "pgqueue-jobs"


def _read() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0+unknown"  # run from a folder that was never installed


VERSION: Final = _read()
