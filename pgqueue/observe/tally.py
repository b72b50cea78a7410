"""Numbers between two scrapes: counters, histograms, and a bound on the values of labels.

Used by observe/metrics, which holds a lock around each call. A job costs three searches in short tuples here; the
exposition's own classes are built when a scrape comes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final, NamedTuple

OTHER: Final = "other"
LABELS_MAX: Final = {
    "queue": 50,
    "task": 200,
    "schedule": 500,
    "topic": 100,
    "duty": 30,
    "key": 50,
    "owner": 50,
    "rule": 100,
    "sink": 50,
}
PAIRS_MAX: Final = 180
"""Tasks with histograms of their own; with them a process tells at most 12,000 series."""

Key = tuple[str, ...]


class Sighting(NamedTuple):
    """An example of a bucket: the trace in which the value was seen, and when (Unix time)."""

    trace_id: str
    span_id: str
    value: float
    at_s: float


class Histogram:
    """Counts per bucket, not yet summed up: that is left to the scrape."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Sighting] = {}

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def show(self, value: float, span_ids: tuple[str, str], at_s: float) -> None:
        """Let a value's trace stand as the example of its bucket, in place of an older one."""
        self.exemplars[bisect_left(self.bounds, value)] = Sighting(*span_ids, value, at_s)

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many are at most that), as the exposition wants them."""
        told: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*map(_bound, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            told.append((bound, running))
        return told


class LabelBudget:
    """Which values of a label are told by name; the rest share `other`, and each observation there is counted."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}
        self._own = 0
        self.dropped: dict[str, int] = {}

    def fit(self, label: str, value: str) -> str:
        """Return the value, or `other` once the label has as many values as it may have."""
        limit = LABELS_MAX.get(label)
        known = self._known.setdefault(label, set())
        if limit is None or value in known:
            return value
        if len(known) < limit:
            known.add(value)
            return value
        self.drop(label)
        return OTHER

    def fit_pair(self, queue: str, task: str) -> tuple[str, str]:
        """The same for a queue and a task together: a hundred queues must not multiply with a hundred tasks."""
        pair = (queue, task)
        fitted = self._pairs.get(pair)
        if fitted is not None:
            if fitted != pair:
                self.drop("task")
            return fitted
        if self._own >= PAIRS_MAX:
            self.drop("task")
            return OTHER, OTHER
        self._own += 1
        fitted = self._pairs[pair] = self.fit("queue", queue), self.fit("task", task)
        return fitted

    def drop(self, label: str) -> None:
        """Count an observation that lost its own value."""
        self.dropped[label] = self.dropped.get(label, 0) + 1


class Counters:
    """Counters of one metric, by their labels' values."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[Key, float] = {}

    def add(self, key: Key = (), count: float = 1) -> None:
        """Count."""
        self.values[key] = self.values.get(key, 0) + count

    def begin(self, keys: Iterable[Key]) -> None:
        """Start at 0: what first appears at 1 has no increase, so that event would never be seen."""
        for key in keys:
            self.values.setdefault(key, 0)


def _bound(bound: float) -> str:
    return str(float(bound))
