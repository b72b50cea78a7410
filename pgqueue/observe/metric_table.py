"""The table of metrics: name, type, labels, meaning, buckets. What is exposed, documented and tested is read from here.

Pure data for observe/metrics (a process's own) and observe/database_metrics (the database's state). Names are a
surface that people rely on; the prefix `pgqueue_` is added where they leave.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "pgqueue_"

Kind = Literal["counter", "gauge", "histogram"]

WAIT_BUCKETS: Final = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)  # fmt: skip
RUN_BUCKETS: Final = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900)  # fmt: skip
TOTAL_BUCKETS: Final = (.01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 900, 3600)  # fmt: skip
STATEMENT_BUCKETS: Final = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1)  # fmt: skip
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DUTY_BUCKETS: Final = (.001, .005, .025, .1, .5, 2.5, 10, 30)  # fmt: skip
DELAY_BUCKETS: Final = (.01, .05, .1, .5, 1, 5, 10, 60, 300, 3600)  # fmt: skip
LONG_BUCKETS: Final = (.005, .05, .25, 1, 5, 30, 60, 300, 900)  # fmt: skip

OUTCOMES: Final = ("succeeded", "retry", "dead", "cancelled", "snoozed", "released")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `buckets`: upper bounds of a histogram, in the unit that its name ends in."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


def _counter(name: str, labels: str, text: str) -> Metric:
    return Metric(name, "counter", tuple(labels.split()), text)


def _gauge(name: str, labels: str, text: str) -> Metric:
    return Metric(name, "gauge", tuple(labels.split()), text)


def _histogram(name: str, labels: str, buckets: tuple[float, ...], text: str) -> Metric:
    return Metric(name, "histogram", tuple(labels.split()), text, buckets)


PROCESS_METRICS: Final[tuple[Metric, ...]] = (
    _counter("jobs_enqueued_total", "queue task", "Jobs this process enqueued itself, counted before the caller's commit."),
    _counter("jobs_settled_total", "queue task outcome", "Attempts that ended, counted when the commit is known."),
    _counter("claims_lost_total", "queue task", "Attempts whose settlement the fence refused: another claim was newer, nothing was committed."),
    _histogram("job_wait_seconds", "queue task", WAIT_BUCKETS, "From the moment an attempt was due to its handler's start."),
    _histogram("job_run_seconds", "queue task", RUN_BUCKETS, "From a handler's start to its return or error."),
    _histogram("job_total_seconds", "queue task", TOTAL_BUCKETS, "From the moment a job was first due to its success, retries included."),
    _counter("sla_starts_total", "queue met", "Attempts of queues with a promised start, by whether it was kept: true, false."),
    _gauge("jobs_running", "queue", "Jobs whose handlers are at work."),
    _gauge("worker_slots", "queue state", "Slots: busy, idle; and jobs claimed ahead of them: buffered. Queues that share slots stand together, with commas."),
    _histogram("claim_seconds", "", STATEMENT_BUCKETS, "A claim statement, from sending it to its last row."),
    _histogram("claim_jobs", "", BATCH_BUCKETS, "Jobs that a claim brought, where it brought any."),
    _histogram("sweep_seconds", "", STATEMENT_BUCKETS, "Claims that read their lanes from the start."),
    _counter("claims_empty_total", "", "Claims that brought nothing."),
    _histogram("settle_seconds", "", STATEMENT_BUCKETS, "A settling statement with its commit."),
    _histogram("settle_jobs", "", BATCH_BUCKETS, "Jobs that a settling statement ended."),
    _counter("wakeups_total", "source", "Ends of the claimer's pauses: notify (the database said so), local (a slot wants work), poll (time was up)."),
    _counter("rescues_total", "reason", "Jobs taken back from dead workers by this process: lock_free, lease_expired, orphaned."),
    _gauge("heartbeat_age_seconds", "", "Since the last answered beat."),
    _counter("heartbeats_late_total", "", "Beats that came much too late: something held the interpreter."),
    _histogram("event_loop_lag_seconds", "", WAIT_BUCKETS[:12], "How late the loop of async handlers came to its own ticks."),
    _counter("db_errors_total", "sqlstate_class", "Faults that connections of pgqueue met, once per change of cause; none: no answer at all."),
    _counter("db_reconnects_total", "connection", "Connections that were well again after a fault."),
    _histogram("handler_transaction_seconds", "queue", LONG_BUCKETS, "Transactions of handlers, from their first touch to their end."),
    _histogram("upkeep_seconds", "duty", DUTY_BUCKETS, "Rounds of upkeep that changed something."),
    _counter("upkeep_failures_total", "duty", "Rounds of upkeep that failed; each is tried again."),
    _gauge("scheduler_is_leader", "", "1 while this process believes to lead the schedulers."),
    _counter("schedule_fires_total", "schedule result", "Fires this process decided: enqueued, skipped, duplicate (another process had), missed, failed."),
    _histogram("schedule_delay_seconds", "", DELAY_BUCKETS, "From a fire to its decision."),
    _counter("outbox_routed_total", "topic", "Messages that became jobs or stand in line before their sinks."),
    _counter("outbox_delivered_total", "topic result", "Tries of sinks to take a message: delivered, retry, dead."),
    _histogram("outbox_delivery_seconds", "topic", RUN_BUCKETS, "How long a sink took for a message."),
    _histogram("outbox_end_to_end_seconds", "topic", TOTAL_BUCKETS, "From a message's emit to its delivery."),
    _counter("alert_notifications_total", "sink result", "Alerts that a sink could not be told of after all its tries: failed."),
    _counter("warnings_total", "key", "What an operator should know and no other metric tells; the log line has the words."),
    _counter("traces_ignored_total", "", "Jobs whose trace context could not be read."),
    _counter("log_lines_dropped_total", "", "Log lines lost because nobody read them fast enough."),
    _counter("listener_failures_total", "", "Events that one of their listeners failed on."),
    _counter("labels_dropped_total", "label", "Observations told under `other` because a label had too many values."),
    _gauge("build_info", "version python component", "1; what runs here."),
)  # fmt: skip

DATABASE_METRICS: Final[tuple[Metric, ...]] = (
    _gauge("jobs", "queue state", "Live jobs: scheduled, held, ready, running. Exact to 10,000."),
    _gauge("jobs_estimated", "queue state", "1 where `jobs` stopped counting: there are more."),
    _gauge("jobs_held", "queue reason", "Held jobs by what they wait for. Exact to 10,000."),
    _gauge("queue_lag_seconds", "queue", "How long the job that is longest able to start has waited."),
    _gauge("queue_limited_lag_seconds", "queue", "How long the oldest job has waited that a limit holds back."),
    _gauge("queue_sla_seconds", "queue", "Within how many seconds a due job is to start, where that is promised."),
    _gauge("queue_sla_target_ratio", "queue", "The share of jobs for which that is to hold."),
    _gauge("queue_dead_letter_limit", "queue", "Dead letters allowed in 15 minutes."),
    _gauge("queue_info", "queue tier owner", "1; how much the queue matters, and to whom."),
    _gauge("queue_paused", "queue", "1 while nothing new starts on the queue."),
    _gauge("dead_letters", "queue task", "Dead letters neither redriven nor discarded, among the newest 10,000."),
    _gauge("dead_letters_recent", "queue", "Dead letters of the last 15 minutes. Exact to 10,000."),
    _gauge("dead_letters_oldest_age_seconds", "queue", "Age of the oldest dead letter that waits for a decision."),
    _gauge("recent_attempts", "queue outcome", "Attempts that ended in the last five whole minutes: succeeded, retry, dead, other."),
    _gauge("recent_wait_seconds", "queue quantile", "About how long they had waited (p50 within 10 %); quantile 1 is the longest wait, exactly."),
    _gauge("recent_run_seconds", "queue quantile", "About how long they ran, likewise."),
    _gauge("recent_sla_met_ratio", "queue", "The share of them that started within the promised time."),
    _gauge("rollup_age_seconds", "", "Since the last minute that is counted."),
    _gauge("upkeep_overdue_seconds", "duty", "How late a duty of upkeep is that one process does for all."),
    _gauge("upkeep_failing", "duty", "1 if the newest round of the duty failed."),
    _gauge("workers", "queue status", "Worker processes: live, draining, stale (their lease has run out)."),
    _gauge("worker_slots_total", "queue", "Slots of the living workers that serve the queue."),
    _gauge("scheduler_leaders", "", "1 while a scheduler holds the leader's lock."),
    _gauge("schedules", "state", "Schedules: enabled, paused, orphaned, ended."),
    _gauge("schedule_next_fire_timestamp_seconds", "schedule", "The stored plan; in the past = overdue."),
    _gauge("schedule_last_fire_timestamp_seconds", "schedule", "The last fire that was decided."),
    _gauge("schedule_last_outcome", "schedule outcome", "1 for what became of the last fire's job, 0 for the rest."),
    _gauge("outbox_pending", "topic", "Messages not yet delivered, among the oldest 100,000."),
    _gauge("outbox_failing", "topic", "Those at the head of a line whose last try failed."),
    _gauge("outbox_dead_letters", "topic", "Messages given up, neither replayed nor skipped."),
    _gauge("outbox_oldest_age_seconds", "topic", "Age of the oldest message that somebody waits for."),
    _gauge("alerts_firing", "rule severity", "Open incidents of each rule."),
    _gauge("alert_evaluation_age_seconds", "", "Since the rules were last evaluated."),
    _gauge("oldest_transaction_age_seconds", "", "Age of the oldest open transaction, prepared ones included."),
    _gauge("horizon_age_transactions", "", "How many transactions back the oldest row version must be kept, slots included."),
    _gauge("database_up", "", "Whether the last snapshot could be taken."),
    _gauge("database_connections", "", "Connections of clients to the server."),
    _gauge("database_connections_max", "", "The server's limit of connections."),
    _gauge("table_bytes", "table", "Size with indexes and TOAST, partitions summed."),
    _gauge("table_live_rows", "table", "Rows, by the server's statistics."),
    _gauge("table_dead_rows", "table", "Dead row versions, by the server's statistics."),
    _gauge("partitions_ahead", "table", "Days for which partitions exist in advance, without a gap."),
    _gauge("schema_at_head", "", "1 if the schema is at a revision that this version may run on."),
    _gauge("snapshot_seconds", "", "How long the last snapshot took."),
    _gauge("snapshot_age_seconds", "", "How old the values are."),
    _gauge("snapshot_labels_dropped", "label", "Values of the last snapshot told under `other` because a label had too many."),
    _gauge("snapshot_failed", "part", "1 for a part of the last snapshot that failed or took over 2 s; its metrics are absent."),
)  # fmt: skip


def render_metrics_markdown() -> str:
    """The text of docs/reference/metrics.md; a test keeps the file equal to it."""
    return "\n".join(
        (
            "# Metrics",
            "",
            "Made from `pgqueue/observe/metric_table.py`. Each name has the prefix `pgqueue_`. Times are seconds, moments Unix",
            "timestamps. Labels never hold an id, a key, an error or a value of a payload.",
            "",
            "## Of each process",
            "Served by `--metrics-port` of `pgqueue worker`, `scheduler` and `relay`; sum them over processes.",
            "",
            *_rows(PROCESS_METRICS),
            "",
            "## Of the database",
            "Served by `pgqueue exporter`; several exporters tell the same, so aggregate with `max`, never with `sum`.",
            "",
            *_rows(DATABASE_METRICS),
            "",
            "## Buckets",
            "| histogram | upper bounds |",
            "|---|---|",
            *(
                f"| `{m.name}` | {' '.join(f'{bound:g}' for bound in m.buckets)} |"
                for m in PROCESS_METRICS
                if m.buckets
            ),
            "",
        )
    )


def _rows(metrics: Iterable[Metric]) -> list[str]:
    return [
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
        *(
            f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels) or '–'} | {m.help} |"
            for m in metrics
        ),
    ]
