"""What the demo's story is made of: its clock, its application, its dice. Imported by every process of the demo.

A second of the demo is `SPEED` seconds of the story, which begins ten minutes before a midnight.
"""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta
from typing import Final

from pgqueue import App, Retry

SPEED: Final = float(os.environ.get("RIDES_DEMO_SPEED", "1"))
BEGAN: Final = datetime.fromtimestamp(float(os.environ.get("RIDES_DEMO_BEGAN", "0")), UTC)
MIDNIGHT: Final = BEGAN + timedelta(seconds=600 / SPEED)
OUTSIDE: Final = f"127.0.0.1:{os.environ.get('RIDES_DEMO_OUTSIDE_PORT', '8765')}"
PARTNER_SECRET: Final = "what-the-partner-and-we-both-know"  # noqa: S105 - of a story
dice: Final = random.Random()  # noqa: S311 - a story's chances, no secret

app: Final = App(retry=Retry(max_retries=5, initial_delay=2 / SPEED, max_delay=300 / SPEED))


def in_story(**span: float) -> timedelta:
    """So much time of the story, as time of the clock; schedules cannot come closer than a second."""
    return max(timedelta(seconds=1), timedelta(**span) / SPEED)
