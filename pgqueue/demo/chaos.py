"""What `--chaos` does: every second or two a worker, scheduler or relay is killed with SIGKILL, and now and
then a connection is cut.

Called by the demo's loop. Everything it does is a row of `rides_demo.incidents` first.
"""

from __future__ import annotations

import random
from typing import Any, Final

import psycopg

from pgqueue.demo.fleet import Fleet
from pgqueue.demo.statements import CUT, KILL

KILL_EVERY_S: Final = (1.0, 2.0)
CUT_EVERY_S: Final = (1.0, 3.0)
_dice: Final = random.Random()  # noqa: S311 - a story's chances, no secret


class Chaos:
    """The saboteur of one run."""

    def __init__(self, now: float) -> None:
        self._kill_at = now + _dice.uniform(*KILL_EVERY_S)
        self._cut_at = now + _dice.uniform(*CUT_EVERY_S)

    def act(self, now: float, fleet: Fleet, conn: psycopg.Connection[Any]) -> None:
        """Do what is due."""
        if now >= self._kill_at:
            victim = _dice.choice(fleet.mortal)
            conn.execute(KILL, {"target": f"{victim.name}, process {victim.pid}"})
            victim.kill()
            self._kill_at = now + _dice.uniform(*KILL_EVERY_S)
        if now >= self._cut_at:
            conn.execute(CUT)
            self._cut_at = now + _dice.uniform(*CUT_EVERY_S)
