"""What happens inside the rooms, as typed facts. Rooms emit; logs, metrics and traces listen.

No room imports a logger's or a metric's name, and a listener that raises, blocks or counts wrong changes no
job's fate: it is isolated, and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """One attempt, as its canonical log line and its metrics tell it."""

    job_id: int
    task: str
    queue: str
    attempt: int
    max_attempts: int
    outcome: str
    reason: str
    wait_s: float
    run_s: float
    worker_id: str
    claim_id: str
    error_type: str | None = None
    error_message: str | None = None
    error_fingerprint: str | None = None
    sqlstate: str | None = None
    next_delay_s: float | None = None
    warning: str | None = None
    headers: dict[str, str] | None = None
    idempotency_key: str | None = None
    total_s: float | None = None
    settle_s: float | None = None
    span_ids: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class AttemptsSucceeded:
    """Successful attempts, as many as were settled together: the hot path speaks once per batch.

    `line(i)` builds the i-th attempt's full line, `facts()` all of (task, queue, wait_s, run_s, total_s): a
    listener pays only for what it uses. `spans()`: their spans' (trace id, span id); None where nobody traces.
    """

    count: int
    settle_s: float
    line: Callable[[int], AttemptEnded]
    facts: Callable[[], list[tuple[str, str, float, float, float]]]
    spans: Callable[[], list[tuple[str, str] | None]] | None = None


@dataclass(frozen=True, slots=True)
class SettlementWritten:
    """A settling statement's answer: how many claims it ended, in how long."""

    jobs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TransactionEnded:
    """A handler's transaction, from its first touch to its commit or rollback."""

    queue: str
    seconds: float
    committed: bool


@dataclass(frozen=True, slots=True)
class LoopLagged:
    """How late the event loop of async handlers came to a moment it had set itself; told twice a second."""

    seconds: float


@dataclass(frozen=True, slots=True)
class JobsEnqueued:
    """This process enqueued jobs of a task, in a transaction that may yet be rolled back.

    `job_id`: of a single one; `created`: how many of `count` are new; `trace_id`: of the span it was done in, if any.
    """

    task: str
    queue: str | None
    job_id: int | None
    count: int
    created: int
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class TraceIgnored:
    """A job's trace context could not be read; it runs without."""

    job_id: int


@dataclass(frozen=True, slots=True)
class ClaimTaken:
    """A claim statement's answer."""

    jobs: int
    wanted: int
    seconds: float
    mode: str


@dataclass(frozen=True, slots=True)
class ClaimLostSeen:
    """The fence refused a settlement: another claim of the job is newer, nothing was committed."""

    job_id: int
    task: str
    queue: str
    claim_id: str


@dataclass(frozen=True, slots=True)
class JobHeld:
    """A claimed job was put aside without using an attempt."""

    job_id: int
    task: str
    queue: str
    reason: str


@dataclass(frozen=True, slots=True)
class JobsRescued:
    """Claims of a dead worker were taken back."""

    worker_id: str
    cause: str
    held: int
    dead: int


@dataclass(frozen=True, slots=True)
class WorkerChanged:
    """A worker process started, drains, stopped, or was declared dead by others (`lost`)."""

    worker_id: str
    status: str
    queues: tuple[str, ...] = ()
    slots: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class ProcessChanged:
    """A child of one of our processes was started, ended, or is not started again.

    `role`: worker, suspect, scheduler or relay. `again_in_s`: when it is started again; None: it is not, or only
    when it is needed. `database`: the one it works on, where there are several.
    """

    role: str
    number: int
    pid: int
    status: str
    exit_code: int | None = None
    lived_s: float | None = None
    again_in_s: float | None = None
    deaths: int = 0
    database: str | None = None


@dataclass(frozen=True, slots=True)
class DatabaseTrouble:
    """A room's connection met a fault, or is well again (`over`). Once per change of cause."""

    room: str
    cause: str
    over: bool
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True)
class EndpointOpened:
    """This process can be asked over HTTP: `name` is what for (metrics, health)."""

    name: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Warned:
    """Something an operator should know and nothing else reports; `key` tells one kind from another."""

    key: str
    message: str
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DutyDone:
    """One round of an upkeep duty."""

    duty: str
    seconds: float
    changed: int


@dataclass(frozen=True, slots=True)
class ScheduleFired:
    """A fire was decided by this scheduler: `enqueued`, `skipped`, or `duplicate` (another one had decided it).

    `late_s` is the time from the fire to the decision, by the database's clock.
    """

    schedule: str
    run_key: str
    fire_at: datetime
    outcome: str
    job_id: int | None
    late_s: float
    scheduler_id: str


@dataclass(frozen=True, slots=True)
class ScheduleMissed:
    """Fires that the misfire policy left out, as many as one tick met; at least so many, if not `exact`."""

    schedule: str
    fires: int
    exact: bool
    scheduler_id: str


@dataclass(frozen=True, slots=True)
class ScheduleFailed:
    """A schedule could not be fired; it is tried again, and its fires are not lost."""

    schedule: str
    cause: str
    again_in_s: float


@dataclass(frozen=True, slots=True)
class LeaderChanged:
    """A scheduler process leads from now on, or does not any more."""

    scheduler_id: str
    leads: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class OutboxRouted:
    """Messages of one topic became jobs or stand in line before their sinks; `parked`: nobody subscribes to it.

    `oldest_s`: how long the oldest of them had waited.
    """

    topic: str
    messages: int
    jobs: int
    deliveries: int
    parked: int
    unroutable: int
    oldest_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class OutboxDelivered:
    """A sink has a message. `delivery_s` is the sink's own time, `end_to_end_s` counts from the emit."""

    message_id: int
    topic: str
    sink: str
    attempt: int
    delivery_s: float
    end_to_end_s: float


@dataclass(frozen=True, slots=True)
class OutboxFailed:
    """A sink did not take a message. `outcome`: retry, or dead (with the reason); `blocks`: its key waits."""

    message_id: int
    topic: str
    sink: str
    attempt: int
    outcome: str
    reason: str | None
    blocks: bool
    error_type: str
    error_message: str
    next_delay_s: float | None


@dataclass(frozen=True, slots=True)
class SinkChanged:
    """A sink is left alone for `open_s` seconds after failures in a row, or took a message again (None)."""

    sink: str
    open_s: float | None


@dataclass(frozen=True, slots=True)
class RelayChanged:
    """A relay process started or stopped."""

    relay_id: str
    status: str
    sinks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertChanged:
    """An alert is `firing`, or was `resolved` after `lasted_s`. `key`: what it is about, empty = the database."""

    event_id: int
    alert: str
    kind: str
    key: str
    state: str
    severity: str
    value: float
    threshold: float
    lasted_s: float
    silenced: bool
    runbook: str


@dataclass(frozen=True, slots=True)
class AlertUndelivered:
    """A sink could not be told of so many alerts, and no more tries are made."""

    sink: str
    alerts: int
    cause: str


Event = (
    AttemptEnded
    | AttemptsSucceeded
    | SettlementWritten
    | TransactionEnded
    | LoopLagged
    | JobsEnqueued
    | TraceIgnored
    | ClaimTaken
    | ClaimLostSeen
    | JobHeld
    | JobsRescued
    | WorkerChanged
    | ProcessChanged
    | DatabaseTrouble
    | EndpointOpened
    | Warned
    | DutyDone
    | ScheduleFired
    | ScheduleMissed
    | ScheduleFailed
    | LeaderChanged
    | OutboxRouted
    | OutboxDelivered
    | OutboxFailed
    | SinkChanged
    | RelayChanged
    | AlertChanged
    | AlertUndelivered
)
Listener = Callable[[object], None]


class Events:
    """Where rooms say what happened."""

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()
        self.failures = 0

    @property
    def heard(self) -> bool:
        """Whether anybody listens: what is costly to tell need not be made otherwise."""
        return bool(self._listeners)

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every event from now on, in the thread that emits it."""
        self._listeners = (*self._listeners, listener)

    def emit(self, event: object) -> None:
        """Tell every listener; what one raises is counted and goes no further."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener's fault must not become a job's
                self.failures += 1
