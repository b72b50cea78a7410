"""What the rooms' events become as metrics of this process: `app.events.listen(ProcessMetrics(…))`.

Made by observe/serve, or by an application for its own registry: `registry.register(metrics)`. Counting is done
once per event, and events of the hot path come once per batch.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Exemplar

from pgqueue.core.events import (
    AlertUndelivered,
    AttemptEnded,
    AttemptsSucceeded,
    ClaimLostSeen,
    ClaimTaken,
    DatabaseTrouble,
    DutyDone,
    Events,
    JobsEnqueued,
    JobsRescued,
    LoopLagged,
    OutboxDelivered,
    OutboxFailed,
    OutboxRouted,
    ScheduleFailed,
    ScheduleFired,
    ScheduleMissed,
    SettlementWritten,
    TraceIgnored,
    TransactionEnded,
    Warned,
)
from pgqueue.core.vitals import Vitals
from pgqueue.observe.log_sink import stderr_sink
from pgqueue.observe.metric_table import OUTCOMES, PREFIX, PROCESS_METRICS, Metric
from pgqueue.observe.tally import Counters, Histogram, Key, LabelBudget
from pgqueue.version import VERSION

_UPKEEP: Final = "upkeep_"


class ProcessMetrics:
    """A listener of events, and a collector for a prometheus_client registry.

    component: `worker`, `scheduler`, … · tasks: (queue, task) of the registered ones, told from the start with 0 ·
    vitals: where gauges come from · events: whose listeners' failures are counted.
    """

    def __init__(
        self,
        component: str,
        *,
        tasks: Iterable[tuple[str, str]] = (),
        vitals: Vitals | None = None,
        events: Events | None = None,
    ) -> None:
        self._component = component
        self._vitals = vitals
        self._events = events
        self._lock = threading.Lock()
        self._budget = LabelBudget()
        self._counters = {m.name: Counters() for m in PROCESS_METRICS if m.kind == "counter"}
        self._histograms: dict[str, dict[Key, Histogram]] = {
            m.name: {} for m in PROCESS_METRICS if m.kind == "histogram"
        }
        self._bounds = {m.name: m.buckets for m in PROCESS_METRICS}
        self._labels = {m.name: m.labels for m in PROCESS_METRICS}
        self._work: dict[tuple[str, str], _Work] = {}
        self._hear: dict[type, Callable[[Any], None]] = {
            AttemptsSucceeded: self._succeeded,
            AttemptEnded: self._attempt,
            SettlementWritten: self._settled,
            TransactionEnded: self._transaction,
            ClaimTaken: self._claim,
            ClaimLostSeen: self._claim_lost,
            JobsRescued: self._rescued,
            DatabaseTrouble: self._trouble,
            DutyDone: self._duty,
            JobsEnqueued: self._enqueued,
            TraceIgnored: lambda _: self._count("traces_ignored_total"),
            Warned: self._warned,
            OutboxRouted: self._routed,
            OutboxDelivered: self._delivered,
            OutboxFailed: self._delivery_failed,
            AlertUndelivered: self._alert_undelivered,
            LoopLagged: lambda event: self._observe("event_loop_lag_seconds", event.seconds),
            ScheduleFired: self._fired,
            ScheduleMissed: self._missed,
            ScheduleFailed: self._schedule_failed,
        }
        settled, lost = self._counters["jobs_settled_total"], self._counters["claims_lost_total"]
        for queue, task in sorted(tasks):
            pair = self._budget.fit_pair(queue, task)
            settled.begin((*pair, outcome) for outcome in OUTCOMES)
            lost.begin([pair])

    def __call__(self, event: object) -> None:
        """Count `event`; kinds that no metric tells are left out."""
        hear = self._hear.get(type(event))
        if hear is not None:
            with self._lock:
                hear(event)

    def collect(self) -> Iterator[Family]:
        """All metrics, as a scrape reads them."""
        read = list(self._readings())
        readings: dict[str, dict[Key, float]] = {}
        with self._lock:
            for name, key, value in read:
                values = readings.setdefault(name, {})
                fitted = tuple(map(self._budget.fit, self._labels[name], key))
                values[fitted] = values.get(fitted, 0) + value
            families = [self._family(metric, readings.get(metric.name, {})) for metric in PROCESS_METRICS]
        yield from families

    def describe(self) -> Iterator[Family]:
        """The names, which a registry checks against its others; nothing is asked for them."""
        for metric in PROCESS_METRICS:
            yield family_of(metric, {})

    def _readings(self) -> Iterator[tuple[str, Key, float]]:
        yield "build_info", (VERSION, platform.python_version(), self._component), 1
        yield "log_lines_dropped_total", (), stderr_sink().dropped
        if self._events is not None:
            yield "listener_failures_total", (), self._events.failures
        for reading in self._vitals.readings() if self._vitals is not None else ():
            yield reading.name, reading.labels, reading.value

    def _family(self, metric: Metric, readings: dict[Key, float]) -> Family:
        if metric.kind == "histogram":
            return family_of(metric, {}, self._histograms[metric.name])
        if metric.name == "labels_dropped_total":
            return family_of(metric, {(label,): count for label, count in self._budget.dropped.items()})
        values: dict[Key, float] = {}
        if metric.kind == "counter":
            values |= self._counters[metric.name].values
        if metric.name == "jobs_settled_total":
            for work in {id(work): work for work in self._work.values()}.values():
                values[*work.labels, "succeeded"] = work.succeeded + values.get(
                    (*work.labels, "succeeded"), 0
                )
        return family_of(metric, {**values, **readings})

    def _succeeded(self, event: AttemptsSucceeded) -> None:
        work = self._work
        promised = self._vitals.objectives_s() if self._vitals is not None else {}
        facts = event.facts()
        if event.spans is not None:
            self._show(facts, event.spans())
        for task, queue, wait_s, run_s, total_s in facts:
            found = work.get((queue, task)) or self._pair(queue, task)
            found.add(wait_s, run_s)
            found.total.observe(total_s)
            found.succeeded += 1
            if promised:
                self._start(queue, wait_s, promised.get(queue))

    def _attempt(self, event: AttemptEnded) -> None:
        found = self._work.get((event.queue, event.task)) or self._pair(event.queue, event.task)
        self._count("jobs_settled_total", (*found.labels, event.outcome))
        if event.total_s is None and event.run_s == 0:
            return  # it did not start
        found.add(event.wait_s, event.run_s)
        if event.span_ids is not None:
            found.run.show(event.run_s, event.span_ids, time.time())
        if self._vitals is not None:
            self._start(event.queue, event.wait_s, self._vitals.objectives_s().get(event.queue))

    def _show(
        self, facts: list[tuple[str, str, float, float, float]], spans: list[tuple[str, str] | None]
    ) -> None:
        now = time.time()
        for (task, queue, _, run_s, _), ids in zip(facts, spans, strict=True):
            if ids is not None:
                (self._work.get((queue, task)) or self._pair(queue, task)).run.show(run_s, ids, now)

    def _pair(self, queue: str, task: str) -> _Work:
        labels = self._budget.fit_pair(queue, task)
        found = self._work.get(labels)
        if found is None:
            found = _Work(
                labels,
                *(
                    self._histogram(name, labels)
                    for name in ("job_wait_seconds", "job_run_seconds", "job_total_seconds")
                ),
            )
            self._work[labels] = found
        if labels == (queue, task):
            self._work[queue, task] = found
        return found

    def _start(self, queue: str, wait_s: float, promised_s: float | None) -> None:
        if promised_s is not None:
            met = "true" if wait_s <= promised_s else "false"
            self._count("sla_starts_total", (self._budget.fit("queue", queue), met))

    def _settled(self, event: SettlementWritten) -> None:
        self._observe("settle_seconds", event.seconds)
        self._observe("settle_jobs", event.jobs)

    def _transaction(self, event: TransactionEnded) -> None:
        self._observe("handler_transaction_seconds", event.seconds, (self._budget.fit("queue", event.queue),))

    def _claim(self, event: ClaimTaken) -> None:
        self._observe("claim_seconds", event.seconds)
        if event.mode == "sweep":
            self._observe("sweep_seconds", event.seconds)
        if event.jobs:
            self._observe("claim_jobs", event.jobs)
        else:
            self._count("claims_empty_total")

    def _claim_lost(self, event: ClaimLostSeen) -> None:
        self._count("claims_lost_total", self._budget.fit_pair(event.queue, event.task))

    def _rescued(self, event: JobsRescued) -> None:
        self._count("rescues_total", (event.cause,), event.held + event.dead)

    def _trouble(self, event: DatabaseTrouble) -> None:
        if event.over:
            self._count("db_reconnects_total", (event.room,))
        else:
            self._count("db_errors_total", (event.sqlstate[:2] if event.sqlstate else "none",))

    def _enqueued(self, event: JobsEnqueued) -> None:
        labels = self._budget.fit_pair(event.queue or "", event.task)
        self._count("jobs_enqueued_total", labels, event.created)

    def _duty(self, event: DutyDone) -> None:
        self._observe("upkeep_seconds", event.seconds, (event.duty,))

    def _warned(self, event: Warned) -> None:
        if event.key.startswith(_UPKEEP):
            self._count("upkeep_failures_total", (self._budget.fit("duty", event.key.removeprefix(_UPKEEP)),))
        elif event.key == "heartbeat_late":
            self._count("heartbeats_late_total")
        else:
            self._count("warnings_total", (self._budget.fit("key", event.key.partition(" ")[0]),))

    def _routed(self, event: OutboxRouted) -> None:
        self._count("outbox_routed_total", (self._budget.fit("topic", event.topic),), event.messages)

    def _delivered(self, event: OutboxDelivered) -> None:
        topic = self._budget.fit("topic", event.topic)
        self._count("outbox_delivered_total", (topic, "delivered"))
        self._observe("outbox_delivery_seconds", event.delivery_s, (topic,))
        self._observe("outbox_end_to_end_seconds", event.end_to_end_s, (topic,))

    def _delivery_failed(self, event: OutboxFailed) -> None:
        self._count("outbox_delivered_total", (self._budget.fit("topic", event.topic), event.outcome))

    def _alert_undelivered(self, event: AlertUndelivered) -> None:
        self._count(
            "alert_notifications_total", (self._budget.fit("sink", event.sink), "failed"), event.alerts
        )

    def _fired(self, event: ScheduleFired) -> None:
        self._schedule(event.schedule, event.outcome)
        self._observe("schedule_delay_seconds", event.late_s)

    def _missed(self, event: ScheduleMissed) -> None:
        self._schedule(event.schedule, "missed", event.fires)

    def _schedule_failed(self, event: ScheduleFailed) -> None:
        self._schedule(event.schedule, "failed")

    def _schedule(self, name: str, result: str, count: int = 1) -> None:
        self._count("schedule_fires_total", (self._budget.fit("schedule", name), result), count)

    def _count(self, name: str, key: Key = (), count: float = 1) -> None:
        self._counters[name].add(key, count)

    def _observe(self, name: str, value: float, key: Key = ()) -> None:
        self._histogram(name, key).observe(value)

    def _histogram(self, name: str, key: Key) -> Histogram:
        known = self._histograms[name]
        found = known.get(key)
        if found is None:
            found = known[key] = Histogram(self._bounds[name])
        return found


class _Work:
    """What is counted for each attempt of a task: found once per job, with no further look-up."""

    __slots__ = ("labels", "run", "succeeded", "total", "wait")

    def __init__(self, labels: tuple[str, str], wait: Histogram, run: Histogram, total: Histogram) -> None:
        self.labels = labels
        self.wait = wait
        self.run = run
        self.total = total
        self.succeeded = 0

    def add(self, wait_s: float, run_s: float) -> None:
        """An attempt that started."""
        self.wait.observe(wait_s)
        self.run.observe(run_s)


def _shown(histogram: Histogram) -> list[Any]:
    """The buckets with their exemplars, which only scrapers that ask for OpenMetrics get to see."""
    told: list[Any] = list(histogram.buckets())
    for place, seen in histogram.exemplars.items():
        labels = {"trace_id": seen.trace_id, "span_id": seen.span_id}
        told[place] = (*told[place], Exemplar(labels, seen.value, seen.at_s))
    return told


def family_of(
    metric: Metric, values: dict[Key, float], histograms: dict[Key, Histogram] | None = None
) -> Family:
    """A metric in the client's form, with its values by their labels."""
    name, labels = PREFIX + metric.name, list(metric.labels)
    if metric.kind == "histogram":
        told = HistogramMetricFamily(name, metric.help, labels=labels)
        for key, histogram in (histograms or {}).items():
            told.add_metric(list(key), buckets=_shown(histogram), sum_value=histogram.sum)
        return told
    family: CounterMetricFamily | GaugeMetricFamily = (
        CounterMetricFamily(name, metric.help, labels=labels)
        if metric.kind == "counter"
        else GaugeMetricFamily(name, metric.help, labels=labels)
    )
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
