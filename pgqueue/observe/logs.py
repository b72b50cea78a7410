"""What the rooms' events become as log lines: one canonical line per attempt, `job.settled`, and one per event.

Called by the command line, and by applications that run a worker themselves. Arguments and results are in no
line. The keys of these lines are a surface that people rely on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from structlog.typing import FilteringBoundLogger

from pgqueue.core.events import (
    AlertChanged,
    AlertUndelivered,
    AttemptEnded,
    AttemptsSucceeded,
    ClaimLostSeen,
    ClaimTaken,
    DatabaseTrouble,
    DutyDone,
    EndpointOpened,
    JobHeld,
    JobsEnqueued,
    JobsRescued,
    LeaderChanged,
    OutboxDelivered,
    OutboxFailed,
    OutboxRouted,
    ProcessChanged,
    RelayChanged,
    ScheduleFailed,
    ScheduleFired,
    ScheduleMissed,
    SinkChanged,
    Warned,
    WorkerChanged,
)
from pgqueue.observe.log_facts import alert_facts, attempt_facts, process_facts
from pgqueue.observe.log_format import Lines, configure_logging, level_of, processors_of
from pgqueue.observe.log_limits import Repeats, Sampler
from pgqueue.observe.log_sink import LogSink, stderr_sink
from pgqueue.settings import Settings

__all__ = ["LogListener", "configure_logging"]

_ALERT_LEVELS: Final = {"page": "error", "warn": "warning", "info": "info"}
_LEVELS: Final = {"retry": "warning", "dead": "error"}
_EVENT_NAMES: Final = {
    "heartbeat_late": "heartbeat.late",
    "handler_transaction_old": "handler.transaction_old",
}


class LogListener:
    """Writes the rooms' events as log lines: `app.events.listen(LogListener(settings))`.

    facts: what every line says besides its own, as for `configure_logging`.
    """

    def __init__(
        self, settings: Settings, sink: LogSink | None = None, *, facts: Mapping[str, str] | None = None
    ) -> None:
        self._level = level_of(settings)
        self._log: FilteringBoundLogger = structlog.wrap_logger(
            Lines(sink or stderr_sink()),
            processors=processors_of(settings, facts),
            wrapper_class=structlog.make_filtering_bound_logger(self._level),
        )
        self._lock = threading.Lock()
        self._successes = Sampler(settings.log_success_rate)
        self._repeats = Repeats()
        self._troubles: dict[str, str] = {}
        self._trouble_since = 0.0
        self._tell: dict[type, Callable[[Any], None]] = {
            AttemptEnded: self._attempt,
            AttemptsSucceeded: self._succeeded,
            ClaimTaken: self._claim,
            ClaimLostSeen: self._claim_lost,
            JobsEnqueued: self._enqueued,
            JobHeld: self._held,
            JobsRescued: self._rescued,
            WorkerChanged: self._worker,
            ProcessChanged: self._process,
            DatabaseTrouble: self._trouble,
            EndpointOpened: self._endpoint,
            Warned: self._warned,
            DutyDone: self._duty,
            ScheduleFired: self._fired,
            ScheduleMissed: self._missed,
            ScheduleFailed: self._schedule_failed,
            LeaderChanged: self._leader,
            OutboxRouted: self._routed,
            OutboxDelivered: self._delivered,
            OutboxFailed: self._undelivered,
            SinkChanged: self._sink_changed,
            RelayChanged: self._relay,
            AlertChanged: self._alert,
            AlertUndelivered: self._alert_undelivered,
        }

    def __call__(self, event: object) -> None:
        """Write `event`; kinds that have no line are left out."""
        tell = self._tell.get(type(event))
        if tell is not None:
            tell(event)

    def _attempt(self, event: AttemptEnded) -> None:
        self._line(_LEVELS.get(event.outcome, "info"), "job.settled", **attempt_facts(event))

    def _succeeded(self, event: AttemptsSucceeded) -> None:
        if self._level > logging.INFO:
            return
        with self._lock:
            chosen = self._successes.choose(event.count)
        for index, stands_for in chosen:
            sampled = {} if stands_for == 1 else {"sampled_of": stands_for}
            self._line(
                "info",
                "job.settled",
                **attempt_facts(event.line(index)),
                **sampled,
            )

    def _enqueued(self, event: JobsEnqueued) -> None:
        facts: dict[str, Any] = {"job_id": event.job_id} if event.job_id else {"jobs_count": event.count}
        facts |= {"task": event.task, "queue": event.queue, "created_count": event.created}
        if event.trace_id is not None:
            facts["trace_id"] = event.trace_id
        self._line("debug", "job.enqueued", **facts)

    def _claim(self, event: ClaimTaken) -> None:
        self._line(
            "debug",
            "claim.batch",
            jobs_count=event.jobs,
            wanted_count=event.wanted,
            claim_s=round(event.seconds, 6),
            mode=event.mode,
        )

    def _claim_lost(self, event: ClaimLostSeen) -> None:
        self._line(
            "warning",
            "claim.lost",
            job_id=event.job_id,
            task=event.task,
            queue=event.queue,
            claim_id=event.claim_id,
        )

    def _held(self, event: JobHeld) -> None:
        self._limited(
            f"held {event.reason} {event.task}",
            "job.held",
            job_id=event.job_id,
            task=event.task,
            queue=event.queue,
            reason=event.reason,
        )

    def _rescued(self, event: JobsRescued) -> None:
        self._line(
            "warning",
            "job.rescued",
            worker_id=event.worker_id,
            cause=event.cause,
            held_count=event.held,
            dead_count=event.dead,
        )

    def _worker(self, event: WorkerChanged) -> None:
        name = {"live": "worker.started"}.get(event.status, f"worker.{event.status}")
        facts: dict[str, Any] = {"worker_id": event.worker_id}
        if event.queues:
            facts |= {"queues": ",".join(event.queues), "slots_count": event.slots}
        if event.note:
            facts["note"] = event.note
        if event.status == "stopped" and self._successes.skipped:
            facts["unlogged_count"] = self._successes.skipped
        self._line("warning" if event.status == "lost" else "info", name, **facts)

    def _process(self, event: ProcessChanged) -> None:
        level = "error" if event.status == "given_up" else "warning" if event.exit_code else "info"
        self._line(level, f"process.{event.status}", **process_facts(event))

    def _trouble(self, event: DatabaseTrouble) -> None:
        """All rooms lose the same server at once: one line when the first does, one when the last has it back."""
        now = time.monotonic()
        with self._lock:
            if not event.over:
                is_news = event.cause not in self._troubles.values()
                if not self._troubles:
                    self._trouble_since = now
                self._troubles[event.room] = event.cause
            else:
                is_news = self._troubles.pop(event.room, None) is not None and not self._troubles
        if is_news and event.over:
            self._line(
                "info", "database.restored", room=event.room, down_s=round(now - self._trouble_since, 3)
            )
        elif is_news:
            self._line("error", "database.unreachable", room=event.room, cause=event.cause)

    def _endpoint(self, event: EndpointOpened) -> None:
        self._line("info", "endpoint.opened", endpoint=event.name, host=event.host, port=event.port)

    def _warned(self, event: Warned) -> None:
        name = _EVENT_NAMES.get(event.key, "warning")
        self._limited(event.key, name, **event.fields, key=event.key, message=event.message)

    def _duty(self, event: DutyDone) -> None:
        self._line(
            "debug",
            "upkeep.done",
            duty=event.duty,
            duty_s=round(event.seconds, 6),
            changed_count=event.changed,
        )

    def _fired(self, event: ScheduleFired) -> None:
        self._line(
            "info",
            "schedule.fired",
            schedule=event.schedule,
            run_key=event.run_key,
            fire_at=event.fire_at.isoformat(),
            outcome=event.outcome,
            job_id=event.job_id,
            late_s=round(event.late_s, 3),
            scheduler_id=event.scheduler_id,
        )

    def _missed(self, event: ScheduleMissed) -> None:
        self._line(
            "warning",
            "schedule.missed",
            schedule=event.schedule,
            fires_count=event.fires,
            exact=event.exact,
            scheduler_id=event.scheduler_id,
        )

    def _schedule_failed(self, event: ScheduleFailed) -> None:
        self._limited(
            f"schedule {event.schedule} {event.cause}",
            "schedule.failed",
            schedule=event.schedule,
            cause=event.cause,
            again_in_s=round(event.again_in_s, 3),
        )

    def _leader(self, event: LeaderChanged) -> None:
        name = "leader.acquired" if event.leads else "leader.lost"
        self._line(
            "info", name, scheduler_id=event.scheduler_id, **({"note": event.note} if event.note else {})
        )

    def _routed(self, event: OutboxRouted) -> None:
        self._line(
            "debug" if not event.unroutable else "error",
            "outbox.routed",
            topic=event.topic,
            messages_count=event.messages,
            jobs_count=event.jobs,
            deliveries_count=event.deliveries,
            parked_count=event.parked,
            unroutable_count=event.unroutable,
            oldest_s=round(event.oldest_s, 3),
            route_s=round(event.seconds, 6),
        )

    def _delivered(self, event: OutboxDelivered) -> None:
        self._line(
            "debug",
            "outbox.delivered",
            message_id=event.message_id,
            topic=event.topic,
            sink=event.sink,
            attempt=event.attempt,
            delivery_s=round(event.delivery_s, 6),
            end_to_end_s=round(event.end_to_end_s, 3),
        )

    def _undelivered(self, event: OutboxFailed) -> None:
        facts = {
            "message_id": event.message_id,
            "topic": event.topic,
            "sink": event.sink,
            "attempt": event.attempt,
            "outcome": event.outcome,
            "error_type": event.error_type,
            "error_message": event.error_message,
        }
        if event.outcome == "dead":
            self._line("error", "outbox.failed", **facts, reason=event.reason, blocks_key=event.blocks)
        else:
            delay_s = None if event.next_delay_s is None else round(event.next_delay_s, 3)
            self._limited(
                f"outbox {event.sink} {event.error_type}", "outbox.failed", **facts, next_delay_s=delay_s
            )

    def _sink_changed(self, event: SinkChanged) -> None:
        if event.open_s is None:
            self._line("info", "sink.restored", sink=event.sink)
        else:
            self._limited(f"sink {event.sink}", "sink.unavailable", sink=event.sink, again_in_s=event.open_s)

    def _relay(self, event: RelayChanged) -> None:
        self._line("info", f"relay.{event.status}", relay_id=event.relay_id, sinks=",".join(event.sinks))

    def _alert(self, event: AlertChanged) -> None:
        level = _ALERT_LEVELS[event.severity] if event.state == "firing" and not event.silenced else "info"
        self._line(level, f"alert.{event.state}", **alert_facts(event))

    def _alert_undelivered(self, event: AlertUndelivered) -> None:
        self._line(
            "error", "alert.undelivered", sink=event.sink, alerts_count=event.alerts, cause=event.cause
        )

    def _limited(self, limit_key: str, name: str, /, **facts: Any) -> None:
        with self._lock:
            repeated = self._repeats.may_tell(limit_key)
        if repeated is not None:
            self._line("warning", name, **facts, **({"repeated_count": repeated} if repeated else {}))

    def _line(self, level: str, name: str, /, **facts: Any) -> None:
        getattr(self._log, level)(name, **facts)
