"""The database's state as metrics: a collector over the snapshot, for `pgqueue exporter`.

Made by cli/exporter, or by an application for its own registry: `registry.register(DatabaseMetrics(Snapshots(dsn)))`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from prometheus_client.metrics_core import Metric as Family

from pgqueue.observe.metric_table import DATABASE_METRICS
from pgqueue.observe.metrics import family_of
from pgqueue.observe.snapshot import Snapshots, Value
from pgqueue.observe.tally import Key, LabelBudget

# Under `other` these add up; of the rest the largest counts, so that no trouble is hidden by an average.
_SUMMED: Final = frozenset(
    {
        "alerts_firing",
        "outbox_pending",
        "outbox_failing",
        "outbox_dead_letters",
        "jobs",
        "jobs_held",
        "dead_letters",
        "dead_letters_recent",
        "recent_attempts",
        "workers",
        "worker_slots_total",
    }
)
DROPPED: Final = "snapshot_labels_dropped"


class DatabaseMetrics:
    """A collector; what one scrape found serves the next ones for five seconds."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Family]:
        """All metrics; without a database only that it is not up."""
        snapshot = self._snapshots.latest()
        # A new budget each time: rows come in the order of their names, so the same ones keep them.
        budget = LabelBudget()
        found: dict[str, dict[Key, float]] = {}
        up = snapshot is not None and snapshot.up
        _put(found, budget, ("database_up", (), float(up)))
        if snapshot is not None:
            for value in snapshot.values:
                _put(found, budget, value)
            _put(found, budget, ("snapshot_seconds", (), snapshot.seconds))
            _put(found, budget, ("snapshot_age_seconds", (), max(0.0, time.monotonic() - snapshot.taken_at)))
            for part in snapshot.failed:
                _put(found, budget, ("snapshot_failed", (part,), 1))
            found[DROPPED] = {(label,): count for label, count in budget.dropped.items()}
        for metric in DATABASE_METRICS:
            yield family_of(metric, found.get(metric.name, {}))

    def describe(self) -> Iterator[Family]:
        """The names, which a registry checks against its others; the database is not asked for them."""
        for metric in DATABASE_METRICS:
            yield family_of(metric, {})


def _put(found: dict[str, dict[Key, float]], budget: LabelBudget, value: Value) -> None:
    name, key, number = value
    values = found.setdefault(name, {})
    key = _fitted(budget, _LABELS[name], key)
    if key in values:
        number = values[key] + number if name in _SUMMED else max(values[key], number)
    values[key] = number


def _fitted(budget: LabelBudget, labels: Key, key: Key) -> Key:
    if labels == ("queue", "task"):
        return budget.fit_pair(*key)
    return tuple(budget.fit(label, value) for label, value in zip(labels, key, strict=True))


_LABELS: Final = {metric.name: metric.labels for metric in DATABASE_METRICS}
