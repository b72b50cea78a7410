"""Metrics of a process: what events become, the bound on labels, the snapshot of names, and the cost when off."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from rig.database import ROOT

from pgqueue.core.events import (
    AlertUndelivered,
    AttemptEnded,
    AttemptsSucceeded,
    ClaimLostSeen,
    ClaimTaken,
    DatabaseTrouble,
    DutyDone,
    Events,
    JobsRescued,
    LoopLagged,
    OutboxDelivered,
    OutboxFailed,
    OutboxRouted,
    ScheduleFired,
    ScheduleMissed,
    SettlementWritten,
    TransactionEnded,
    Warned,
)
from pgqueue.core.vitals import Reading
from pgqueue.observe.metric_table import DATABASE_METRICS, PROCESS_METRICS, render_metrics_markdown
from pgqueue.observe.metrics import ProcessMetrics
from pgqueue.observe.tally import OTHER, PAIRS_MAX, Histogram, LabelBudget

SNAPSHOT = Path(__file__).with_name("metrics_snapshot.txt")
SERIES_MAX = 12_000


class Still:
    """A process without loops, and with a promise for one queue."""

    def live(self) -> list[Any]:
        return []

    ready = started = live

    def readings(self) -> list[Reading]:
        return [Reading("jobs_running", 3, ("critical",)), Reading("wakeups_total", 5, ("poll",))]

    def objectives_s(self) -> dict[str, float]:
        return {"critical": 5.0}


def scrape(*collectors: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What a scraper reads, by its client's own parser."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def at(values: dict[Any, float], name: str, **labels: str) -> float | None:
    return values.get((f"pgqueue_{name}", frozenset(labels.items())))


def succeeded(*facts: tuple[str, str, float, float, float]) -> AttemptsSucceeded:
    def line(_: int) -> AttemptEnded:
        raise AssertionError("metrics never ask for lines")

    return AttemptsSucceeded(len(facts), 0.002, line, lambda: list(facts))


def attempt(outcome: str, **facts: Any) -> AttemptEnded:
    return AttemptEnded(
        **{
            "job_id": 1,
            "task": "pay",
            "queue": "critical",
            "attempt": 1,
            "max_attempts": 6,
            "outcome": outcome,
            "reason": outcome,
            "wait_s": 0.1,
            "run_s": 0.2,
            "worker_id": "w",
            "claim_id": "c",
            **facts,
        }
    )


def test_attempts_are_counted_by_outcome_and_timed_in_buckets() -> None:
    metrics = ProcessMetrics("worker", tasks=[("critical", "pay")], vitals=Still())
    before = scrape(metrics)
    work = {"queue": "critical", "task": "pay"}
    for outcome in ("succeeded", "retry", "dead", "cancelled", "snoozed", "released"):
        assert at(before, "jobs_settled_total", **work, outcome=outcome) == 0
    assert at(before, "claims_lost_total", **work) == 0

    metrics(succeeded(("pay", "critical", 0.005, 0.02, 0.025), ("pay", "critical", 7.0, 0.02, 7.02)))
    metrics(attempt("retry"))
    metrics(attempt("released", run_s=0.0, reason="released"))
    values = scrape(metrics)
    assert at(values, "jobs_settled_total", **work, outcome="succeeded") == 2
    assert at(values, "jobs_settled_total", **work, outcome="retry") == 1
    assert at(values, "jobs_settled_total", **work, outcome="released") == 1
    assert at(values, "job_wait_seconds_count", **work) == 3, "what did not start has no wait"
    assert at(values, "job_wait_seconds_bucket", **work, le="0.005") == 1, "a bound belongs to its bucket"
    assert at(values, "job_wait_seconds_bucket", **work, le="5.0") == 2
    assert at(values, "job_wait_seconds_bucket", **work, le="+Inf") == 3
    assert at(values, "job_run_seconds_sum", **work) == pytest.approx(0.24)
    assert at(values, "job_total_seconds_count", **work) == 2
    assert at(values, "sla_starts_total", queue="critical", met="true") == 2
    assert at(values, "sla_starts_total", queue="critical", met="false") == 1
    assert at(values, "jobs_running", queue="critical") == 3


def test_each_event_has_its_metric() -> None:
    events = Events()
    metrics = ProcessMetrics("scheduler", events=events, vitals=Still())
    events.listen(metrics)
    fired = ScheduleFired("nightly", "k", None, "enqueued", 1, 0.2, "s")  # type: ignore[arg-type]
    for event in (
        SettlementWritten(3, 0.004),
        TransactionEnded("critical", 0.01, committed=True),
        ClaimTaken(4, 8, 0.002, "sweep"),
        ClaimTaken(0, 8, 0.002, "tight"),
        ClaimLostSeen(1, "pay", "critical", "c"),
        JobsRescued("w", "lock_free", 2, 1),
        DatabaseTrouble("claim", "down", over=False, sqlstate="57P01"),
        DatabaseTrouble("claim", "no answer", over=False),
        DatabaseTrouble("claim", "no answer", over=True),
        DutyDone("promote", 0.01, 5),
        Warned("upkeep_promote", "failed"),
        Warned("heartbeat_late", "late"),
        Warned("schedule_orphaned nightly", "gone"),
        LoopLagged(0.03),
        fired,
        OutboxRouted("ride.completed", 5, 5, 0, 0, 0, 0.1, 0.01),
        OutboxDelivered(1, "ride.completed", "bi", 1, 0.02, 0.3),
        OutboxFailed(2, "ride.completed", "bi", 1, "retry", None, False, "Timeout", "no", 1.0),
        AlertUndelivered("webhook", 3, "no answer"),
        ScheduleMissed("nightly", 4, exact=True, scheduler_id="s"),
        object(),
    ):
        events.emit(event)
    values = scrape(metrics)
    told = {
        ("settle_jobs_sum",): 3,
        ("handler_transaction_seconds_count", "queue", "critical"): 1,
        ("claim_seconds_count",): 2,
        ("claim_jobs_sum",): 4,
        ("claim_jobs_count",): 1,
        ("sweep_seconds_count",): 1,
        ("claims_empty_total",): 1,
        ("claims_lost_total", "queue", "critical", "task", "pay"): 1,
        ("rescues_total", "reason", "lock_free"): 3,
        ("db_errors_total", "sqlstate_class", "57"): 1,
        ("db_errors_total", "sqlstate_class", "none"): 1,
        ("db_reconnects_total", "connection", "claim"): 1,
        ("upkeep_seconds_count", "duty", "promote"): 1,
        ("upkeep_failures_total", "duty", "promote"): 1,
        ("heartbeats_late_total",): 1,
        ("warnings_total", "key", "schedule_orphaned"): 1,
        ("event_loop_lag_seconds_count",): 1,
        ("schedule_fires_total", "schedule", "nightly", "result", "enqueued"): 1,
        ("schedule_fires_total", "schedule", "nightly", "result", "missed"): 4,
        ("schedule_delay_seconds_count",): 1,
        ("wakeups_total", "source", "poll"): 5,
        ("outbox_routed_total", "topic", "ride.completed"): 5,
        ("outbox_delivered_total", "topic", "ride.completed", "result", "delivered"): 1,
        ("outbox_delivered_total", "topic", "ride.completed", "result", "retry"): 1,
        ("outbox_delivery_seconds_count", "topic", "ride.completed"): 1,
        ("outbox_end_to_end_seconds_sum", "topic", "ride.completed"): 0.3,
        ("alert_notifications_total", "sink", "webhook", "result", "failed"): 3,
        ("listener_failures_total",): 0,
    }
    for (name, *labels), expected in told.items():
        pairs = dict(zip(labels[::2], labels[1::2], strict=True))
        assert at(values, name, **pairs) == expected, (name, pairs)
    assert events.failures == 0


@pytest.mark.proves("S22", "P23")
def test_ten_thousand_tasks_do_not_make_ten_thousand_labels() -> None:
    tasks = [(f"q{number % 70}", f"task{number}") for number in range(10_000)]
    metrics = ProcessMetrics("worker", tasks=tasks, vitals=Still())
    for queue, task in tasks:
        metrics(succeeded((task, queue, 0.1, 0.1, 0.2)))
        metrics(attempt("dead", queue=queue, task=task))
        metrics(TransactionEnded(queue, 0.1, committed=True))
        metrics(ClaimLostSeen(1, task, queue, "c"))
    for number in range(2_000):
        metrics(ScheduleMissed(f"s{number}", 1, exact=True, scheduler_id="s"))
    values = scrape(metrics)
    assert len(values) <= SERIES_MAX
    named = {dict(labels)["task"] for _, labels in values if "task" in dict(labels)}
    assert OTHER in named
    assert PAIRS_MAX <= len(named) <= 201
    assert len({dict(labels)["queue"] for _, labels in values if "queue" in dict(labels)}) <= 51
    settled = sum(value for (name, _), value in values.items() if name == "pgqueue_jobs_settled_total")
    assert settled == 20_000, "what has no label of its own is counted all the same"
    assert (at(values, "labels_dropped_total", label="task") or 0) > 0
    assert at(values, "labels_dropped_total", label="schedule") == 1_500


def test_the_budget_has_its_bounds() -> None:
    budget = LabelBudget()
    assert [budget.fit("queue", f"q{n}") for n in range(51)][49:] == ["q49", OTHER]
    assert budget.fit("queue", "q7") == "q7"
    assert budget.fit("outcome", "anything") == "anything", "labels of our own words need no bound"
    assert budget.dropped == {"queue": 1}
    fresh = LabelBudget()
    pairs = [fresh.fit_pair("q", f"t{n}") for n in range(PAIRS_MAX + 1)]
    assert pairs[-2:] == [("q", f"t{PAIRS_MAX - 1}"), (OTHER, OTHER)]


def test_a_histogram_holds_every_value_once() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.0, 0.1, 0.100001, 1.0, 5.0):
        histogram.observe(value)
    assert histogram.buckets() == [("0.1", 2), ("1.0", 4), ("+Inf", 5)]
    assert histogram.sum == pytest.approx(6.200001)


def test_a_bucket_shows_its_newest_trace_to_scrapers_that_ask_for_openmetrics() -> None:
    metrics = ProcessMetrics("worker")
    old, new = ("a" * 32, "b" * 16), ("c" * 32, "d" * 16)
    made = succeeded(("t", "q", 0.1, 0.02, 0.2), ("t", "q", 0.1, 0.02, 0.2), ("t", "q", 0.1, 7, 8))
    metrics(replace(made, spans=lambda: [old, new, None]))
    metrics(attempt("retry", run_s=0.5, span_ids=old))
    registry = CollectorRegistry()
    registry.register(metrics)
    shown = openmetrics.generate_latest(registry).decode()
    lines = [line for line in shown.splitlines() if "job_run_seconds_bucket" in line and " # " in line]
    assert len(lines) == 2
    assert 'le="0.025"' in lines[0]
    assert f'trace_id="{new[0]}"' in lines[0]
    assert f'span_id="{new[1]}"' in lines[0]
    assert f'trace_id="{old[0]}"' in lines[1]
    (family,) = (f for f in parse_openmetrics(shown) if f.name == "pgqueue_job_run_seconds")
    assert {s.exemplar.value for s in family.samples if s.exemplar} == {0.02, 0.5}
    assert "trace_id" not in generate_latest(registry).decode()


def test_counting_from_many_threads_loses_nothing() -> None:
    metrics = ProcessMetrics("worker")

    def work() -> None:
        for _ in range(500):
            metrics(succeeded(("pay", "critical", 0.1, 0.1, 0.2)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        scrape(metrics)
    for thread in threads:
        thread.join()
    assert (
        at(scrape(metrics), "jobs_settled_total", queue="critical", task="pay", outcome="succeeded") == 2_000
    )


def test_names_types_and_labels_are_a_surface() -> None:
    """After a wanted change: write the new list into the snapshot, and the change into docs/changes."""
    lines = [
        f"{m.kind} pgqueue_{m.name}{{{','.join(m.labels)}}}" for m in (*PROCESS_METRICS, *DATABASE_METRICS)
    ]
    assert SNAPSHOT.read_text().splitlines() == lines
    families = {
        family.name: family.type
        for metrics in (ProcessMetrics("worker"),)
        for family in text_string_to_metric_families(_text(metrics))
    }
    for metric in PROCESS_METRICS:
        name = f"pgqueue_{metric.name}"
        assert families[name.removesuffix("_total") if metric.kind == "counter" else name] == metric.kind


def _text(collector: Any) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def test_the_reference_page_is_the_table() -> None:
    page = ROOT / "docs" / "reference" / "metrics.md"
    assert page.read_text() == render_metrics_markdown()


def test_the_table_keeps_its_rules() -> None:
    names = [metric.name for metric in (*PROCESS_METRICS, *DATABASE_METRICS)]
    assert len(names) == len(set(names))
    for metric in (*PROCESS_METRICS, *DATABASE_METRICS):
        assert not {"job", "instance"} & set(metric.labels), "the scraper owns these labels"
        assert not {"job_id", "id", "key_value", "error"} & set(metric.labels)
        assert metric.name.endswith("_total") == (metric.kind == "counter") or metric.kind == "gauge"
        assert metric.buckets == tuple(sorted(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert metric.help.endswith(".") or metric.help[0] == "1"
