"""Loaded by Pythons that run under a clock of their own (rig/clock.py): mends how libfaketime treats `time.sleep`.

Python sleeps until an absolute moment of the monotonic clock, which the library shifts like a wall-clock time although
it was told to leave that clock alone: the call then fails, or lasts for hours.
"""

from __future__ import annotations

import select
import time


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep
