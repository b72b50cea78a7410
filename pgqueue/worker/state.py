"""What the rooms of one worker process share: who it is, what it holds, how it fares, when it should stop."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from pgqueue.core.events import DatabaseTrouble, Events
from pgqueue.core.redact import Redactor
from pgqueue.core.registry import Registry
from pgqueue.settings import Settings
from pgqueue.storage.link import Trouble
from pgqueue.worker.claimed import ClaimBook, ClaimedJob

NEVER: Final = float("inf")


@dataclass(slots=True, eq=False)
class Running:
    """One handler at work: what the monitor needs to end its claim, and the handler to hear of it."""

    job: ClaimedJob
    started: float
    deadline: float
    context: Any
    cancel_reason: str | None = None
    thread: int = field(default_factory=threading.get_ident)
    ended_by: dict[str, str] = field(default_factory=dict)
    cancel: Any = None  # for an async handler: how to cancel its task
    others: tuple[ClaimedJob, ...] = ()  # the rest of its batch or group


@dataclass(slots=True)
class WorkerState:
    """Shared by all rooms of one worker process; counters are written by one room each."""

    registry: Registry
    settings: Settings
    events: Events
    queues: tuple[str, ...]
    slots: int
    kind: str = "worker"
    worker_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    claims: ClaimBook = field(default_factory=ClaimBook)
    running: dict[int, Running] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    lease_until: float = 0.0
    claimed: int = 0
    settled: int = 0
    failed: int = 0
    claims_lost: int = 0
    beats_late: int = 0
    port: int | None = None  # where metrics and probes are served, told with each beat
    stuck: set[int] = field(default_factory=set)  # threads whose handler outlived its time and still runs
    suspects: int = 0
    objectives_s: dict[str, float] = field(default_factory=dict)  # by queue, replaced whole with each beat
    draining: threading.Event = field(default_factory=threading.Event)
    ending: threading.Event = field(default_factory=threading.Event)
    wake: threading.Event = field(default_factory=threading.Event)
    noticed: bool = False  # the wake-up came from the database, not from a room of this process
    redactor: Redactor = field(default_factory=Redactor)
    steps: Any = None  # the StepBook, which reports through this state
    progress: Any = None  # the ProgressBook, likewise

    @property
    def label(self) -> str:
        """The short id in application names and actors."""
        return self.worker_id[:8]

    @property
    def actor(self) -> str:
        """Who this worker is in audit rows."""
        return f"worker:{self.worker_id}"

    def may_start(self) -> bool:
        """Whether this process may still believe in its claims: its lease counts from the last good beat's sending."""
        return time.monotonic() < self.lease_until

    def forget(self, running: Running, by: str = "its thread") -> bool:
        """Take a run off the list of those at work. False if another side, its thread or the monitor, came first."""
        first = running.ended_by.setdefault("by", by)  # atomic: one of them has to end the job, and only one
        for job in (running.job, *running.others):
            if self.running.get(job.id) is running:
                self.running.pop(job.id, None)
        return first == by

    def trouble(self, trouble: Trouble) -> None:
        """Pass a room's connection trouble on."""
        self.events.emit(DatabaseTrouble(trouble.room, trouble.cause, trouble.over, trouble.sqlstate))
