"""Scenarios played once per message and mode: a clean run is recorded first, then each point of it is broken once.

Used by tests/crashpoints. A scenario says how one go looks and what must hold after it; its naive twin is another
scenario, of which the same check must find something.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

from rig.wire import Mode

SEED: Final = 20261124
FIRED_SHARE_MIN: Final = 0.8


@dataclass(frozen=True, slots=True)
class Point:
    """The `number`-th message (from 1) of a clean run, and what is done to it."""

    number: int
    name: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.mode} at message {self.number}, {self.name}"


class Breakable(Protocol):
    """A wire: it names what passes, and breaks at the n-th of it."""

    fired: threading.Event

    def recording(self, role: str) -> AbstractContextManager[list[str]]: ...

    def arm(self, role: str, message: int, mode: Mode, *, on_fired: Callable[[], object] = ...) -> None: ...

    def disarm(self) -> None: ...


class Scenario:
    """One thing that is broken at each of its messages. `role`: whose messages, by application_name."""

    role: ClassVar[str]
    modes: ClassVar[Sequence[Mode]] = tuple(mode for mode in Mode if mode is not Mode.ERROR)

    def go(self, number: int) -> None:
        """Do it once, over the wire; `number` tells its traces from those of others. Errors are the go's own."""
        raise NotImplementedError

    def killed(self) -> None:
        """The process that was at it is dead: make what stands for it do nothing more."""

    def after(self, number: int) -> list[str]:
        """Restart past the wire, drain, and say what is wrong about this go."""
        raise NotImplementedError


@dataclass(slots=True)
class Played:
    """What came of it."""

    name: str
    messages: int
    points: int = 0
    fired: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.messages} messages, {self.fired} of {self.points} points broken,"
            f" {len(self.violations)} violations, {self.seconds:.1f} s"
        )


def play(wire: Breakable, scenario: Scenario, *, most: int | None = None, first: int = 1) -> Played:
    """Record a clean go, then break each (message, mode) once, or `most` of those with names of their own."""
    began = time.monotonic()
    with wire.recording(scenario.role) as names:
        scenario.go(first)
    clean = scenario.after(first)
    assert clean == [], f"without any fault: {clean}"
    assert names, f"no message of {scenario.role}"
    points = points_of(names, scenario.modes, most)
    played = Played(type(scenario).__name__, len(names), len(points))
    for number, point in enumerate(points, first + 1):
        then = scenario.killed if point.mode.kills else _nothing
        wire.arm(scenario.role, point.number, point.mode, on_fired=then)
        try:
            scenario.go(number)
            played.fired += wire.fired.is_set()
            wire.disarm()
            played.violations += [f"{point}: {what}" for what in scenario.after(number)]
        except BaseException as error:
            error.add_note(str(point))
            raise
    played.seconds = time.monotonic() - began
    print(played)
    # A run after a fault may send less than a clean one; most of what was recorded has to be met all the same.
    assert played.fired >= FIRED_SHARE_MIN * played.points, f"{played}; recorded: {names}"
    return played


def points_of(names: Sequence[str], modes: Sequence[Mode], most: int | None) -> list[Point]:
    """All points; or, of one message for each name, a sample that has every name before it has one twice."""
    if most is None:
        return [Point(number, name, mode) for number, name in enumerate(names, 1) for mode in modes]
    chance = random.Random(SEED)
    by_name: dict[str, list[int]] = {}
    for number, name in enumerate(names, 1):
        by_name.setdefault(name, []).append(number)
    rounds: list[Point] = []
    offsets = {name: chance.randrange(len(modes)) for name in by_name}
    for turn in range(len(modes)):
        row = [
            Point(chance.choice(numbers), name, modes[(offsets[name] + turn) % len(modes)])
            for name, numbers in by_name.items()
        ]
        chance.shuffle(row)
        rounds += row
    return rounds[:most]


def _nothing() -> None:
    """Who is not killed goes on."""
