"""How a process says that it is well, and what it measures that no event tells. Pure.

Processes (worker, scheduler, relay) implement `Vitals`; observe/serve asks them when a probe or a scrape comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Check:
    """One question of a health probe, and its answer. The name is all that an outsider sees."""

    name: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a metric at this moment; `name` and the order of `labels` are those of the table of metrics."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


class Vitals(Protocol):
    """What a process knows about itself. Called from threads of its observers: nothing here may wait or ask the database."""

    def live(self) -> Sequence[Check]:
        """Whether its loops turn; false means that only a restart helps, so draining and a lost database are no reason."""
        ...

    def ready(self) -> Sequence[Check]:
        """Whether it does its work now."""
        ...

    def started(self) -> Sequence[Check]:
        """Whether it has begun."""
        ...

    def readings(self) -> Sequence[Reading]:
        """Its gauges, and counters that are too hot for events."""
        ...

    def objectives_s(self) -> Mapping[str, float]:
        """By queue: within how many seconds its jobs are to start; queues without a promise are left out."""
        ...
