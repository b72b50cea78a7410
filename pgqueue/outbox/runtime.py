"""A relay process: checks the schema, stores the code's subscriptions, then routes and delivers, round after round.

Called by the CLI and by applications (`app.relay()`). One thread with one connection decides; couriers deliver. Any
number of processes may run at once.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final

import psycopg

from pgqueue._signals import hearing
from pgqueue.core.delivery import Breaker, Verdict, judge
from pgqueue.core.events import (
    DatabaseTrouble,
    Events,
    OutboxDelivered,
    OutboxFailed,
    OutboxRouted,
    RelayChanged,
    SinkChanged,
    Warned,
)
from pgqueue.core.failure import describe
from pgqueue.core.message import Parcel
from pgqueue.core.redact import Redactor
from pgqueue.core.registry import Registry
from pgqueue.errors import DatabaseUnreachable, SinkUnavailable
from pgqueue.outbox.desk import PRUNE_BATCH, ROUTE_BATCH, RelayDesk
from pgqueue.outbox.lines import Couriers, Line, Progress
from pgqueue.outbox.listener import OutboxListener
from pgqueue.outbox.register import Subscription, store_subscriptions, store_tasks
from pgqueue.outbox.sinks import RefusedError, Sender, Sink
from pgqueue.outbox.vitals import RelayVitals
from pgqueue.settings import Settings
from pgqueue.storage.connect import RELAY, connect
from pgqueue.storage.faults import surfaced
from pgqueue.storage.link import Link, Trouble
from pgqueue.storage.migrate import require_head
from pgqueue.storage.statements import statement

PRUNE_INTERVAL_S: Final = 600.0
HOST_CHARS_MAX: Final = 40
ASLEEP_BEATS: Final = 5
"""How many beats a relay's wish to be notified outlives the relay."""


class Relay:
    """One relay process. `run()` blocks until it is told to stop, and returns the exit code."""

    def __init__(
        self,
        registry: Registry,
        subscriptions: Sequence[Subscription],
        sinks: Sequence[Sink],
        settings: Settings,
        *,
        version: str,
        events: Events | None = None,
        defined_in: str | None = None,
        drain: bool = False,
    ) -> None:
        self._registry = registry
        self._subscriptions = subscriptions
        self._sinks = {sink.policy.name: sink for sink in sinks}
        self._settings = settings
        self._version = version
        self._defined_in = defined_in
        self._drain = drain
        self.events = events or Events()
        self.relay_id = str(uuid.uuid4())
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._done: SimpleQueue[Progress] = SimpleQueue()
        self._busy: dict[tuple[str, str], Line] = {}
        self._breakers = {name: Breaker() for name in self._sinks}
        self._redactor = Redactor(settings.redact)
        self._beat_at = 0.0
        self._prune_at = 0.0
        self._asleep = False
        self._worked = 0
        label = self.relay_id[:8]
        self._link = Link(
            settings.database_url,
            RELAY,
            label=label,
            connect_timeout_s=settings.connect_timeout_s,
            stop=self._stop,
            report=self._report,
        )
        self.vitals = RelayVitals(
            self._link, lease_s=settings.lease_s, pause_max_s=settings.poll_max_s, stop=self._stop
        )
        self._desk = RelayDesk(self._link, self.relay_id, lease_s=settings.lease_s)
        self._listener = OutboxListener(
            settings.direct_dsn,
            self._wake.set,
            self.events,
            label=label,
            connect_timeout_s=settings.connect_timeout_s,
        )

    def stop(self) -> None:
        """Ask it to finish the messages at hand and leave. Not for signal handlers: `run(signals=True)` hears those."""
        self._stop.set()
        self._wake.set()

    def run(self, *, signals: bool = False) -> int:
        """Work until `stop()`, a signal, or with drain until nothing is left; returns the exit code.

        Raises SchemaMismatch, DatabaseUnreachable or ConfigurationError before its first round.
        """
        with contextlib.closing(
            connect(self._settings.database_url, RELAY, connect_timeout_s=self._settings.connect_timeout_s)
        ) as conn:
            require_head(conn)
        with contextlib.ExitStack() as stack:
            senders: dict[str, Sender] = {}
            for name, sink in self._sinks.items():
                senders[name] = sink.open(self._settings)
                stack.callback(senders[name].close)
            threads = self._settings.relay_concurrency if senders else 0
            couriers = Couriers(threads, self._tell, trace_mode=self._settings.trace_mode)
            stack.callback(couriers.close)
            if signals:
                stack.enter_context(hearing(self.stop))
            if self._settings.wakeups and not self._drain:
                self._listener.start()
                stack.callback(self._listener.stop)
            stack.callback(self._link.close)
            try:
                self._work(couriers, senders)
            except DatabaseUnreachable:
                if not self._stop.is_set():
                    raise
            except psycopg.Error as error:
                raise surfaced(error, statement="of the relay") from error
            finally:
                self.events.emit(RelayChanged(self.relay_id, "stopped"))
        return 0

    def _work(self, couriers: Couriers, senders: dict[str, Sender]) -> None:
        self._link.run(self._register)
        self.events.emit(RelayChanged(self.relay_id, "started", tuple(self._sinks)))
        pause_s = self._settings.poll_min_s
        while not self._stop.is_set():
            self._wake.clear()  # before the look: what comes during it is looked for again
            self._settle_done()
            routed, full = self._route()
            claimed = self._claim(couriers, senders)
            self._upkeep()
            self.vitals.round_at = time.monotonic()
            if routed or claimed or self._busy:
                pause_s = self._settings.poll_min_s
            elif self._drain and self._desk.drained(tuple(self._sinks)):
                break
            if not full:
                self._wake.wait(min(pause_s, self._settings.heartbeat_s))
                pause_s = min(pause_s * 2, self._settings.poll_max_s)
        self._leave(couriers)

    def _leave(self, couriers: Couriers) -> None:
        couriers.stop()
        until = time.monotonic() + self._settings.grace_s
        while self._busy and time.monotonic() < until:
            self._wake.clear()
            self._settle_done()
            self._upkeep()
            if self._busy:
                self._wake.wait(min(max(until - time.monotonic(), 0), self._settings.heartbeat_s))
        self._link.run(lambda conn: conn.execute(statement("forget_relay"), {"id": self.relay_id}))

    def _register(self, conn: psycopg.Connection[Any]) -> None:
        store_tasks(conn, self._registry)
        store_subscriptions(conn, self._subscriptions, self._defined_in, self.events)
        conn.execute(statement("register_relay"), self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "id": self.relay_id,
            "host": platform.node()[:HOST_CHARS_MAX],
            "pid": os.getpid(),
            "version": self._version,
            "sinks": list(self._sinks),
        }

    def _route(self) -> tuple[bool, bool]:
        """Route a batch: whether there was something, and whether there is more at once."""
        started = time.monotonic()
        routed = self._desk.route()
        seconds = time.monotonic() - started
        for one in routed:
            self.events.emit(
                OutboxRouted(
                    one.topic,
                    one.messages,
                    one.jobs,
                    one.deliveries,
                    one.parked,
                    one.unroutable,
                    one.oldest_s,
                    seconds,
                )
            )
        self._worked += bool(routed)
        return bool(routed), sum(one.messages for one in routed) >= ROUTE_BATCH

    def _claim(self, couriers: Couriers, senders: dict[str, Sender]) -> int:
        # Two lines per thread: the next one waits where it can be begun at once.
        free = 2 * self._settings.relay_concurrency - len(self._busy)
        now = time.monotonic()
        wants = []
        for name, sink in self._sinks.items():
            busy = sum(line.sink == name for line in self._busy.values())
            wants.append((name, min(free, self._breakers[name].lines(sink.policy.concurrency, busy, now))))
        random.shuffle(wants)
        lines = self._desk.claim(wants, list(self._busy.values()))
        for line in lines:
            self._busy[line.sink, line.lane] = line
            couriers.give(line, senders[line.sink])
        self._worked += bool(lines)
        return len(lines)

    def _tell(self, progress: Progress) -> None:
        self._done.put(progress)
        self._wake.set()

    def _settle_done(self) -> None:
        while True:
            try:
                progress = self._done.get_nowait()
            except Empty:
                return
            self._settle(progress)

    def _settle(self, progress: Progress) -> None:
        line = progress.line
        verdict: Verdict | None = None
        failure = None
        if progress.failed is not None and progress.error is not None:
            policy = self._sinks[line.sink].policy
            tries = line.attempts if line.failing_id == progress.failed.id else 0
            verdict = judge(
                progress.error,
                retry=policy.retry,
                on_poison=policy.on_poison,
                tries=tries,
                random_unit=random.random(),  # noqa: S311 - jitter
            )
            failure = describe(progress.error, task=line.sink, redact=self._redactor)
        reconnects = self._link.reconnects
        settled = self._desk.settle(
            line,
            [sent.parcel.id for sent in progress.sent],
            failed=None if progress.failed is None else progress.failed.id,
            verdict=verdict,
            failure=failure,
            keep=not progress.over,
        )
        if progress.over:
            self._busy.pop((line.sink, line.lane), None)
        self._tell_of(progress, verdict, failure)
        if not settled and reconnects == self._link.reconnects:
            self.events.emit(
                Warned(
                    f"outbox_line_lost {line.sink}",
                    f"{line.sink}: a line was taken by another relay meanwhile; messages of it arrive there again",
                    {"sink": line.sink},
                )
            )

    def _tell_of(self, progress: Progress, verdict: Verdict | None, failure: Any) -> None:
        line = progress.line
        breaker = self._breakers[line.sink]
        for sent in progress.sent:
            parcel = sent.parcel
            self.events.emit(
                OutboxDelivered(parcel.id, parcel.topic, line.sink, parcel.attempt, sent.seconds, sent.age_s)
            )
        if progress.sent and breaker.took():
            self.events.emit(SinkChanged(line.sink, None))
        if progress.failed is None or verdict is None:
            return
        self._tell_failed(line, progress.failed, verdict, failure)
        error = progress.error
        if isinstance(error, SinkUnavailable | OSError) or (isinstance(error, RefusedError) and error.outage):
            open_s = breaker.refused(
                line.lane, unreachable=isinstance(error, SinkUnavailable), now=time.monotonic()
            )
            if open_s is not None:
                self.events.emit(SinkChanged(line.sink, open_s))

    def _tell_failed(self, line: Line, parcel: Parcel, verdict: Verdict, failure: Any) -> None:
        dead = verdict.fate != "retry"
        self.events.emit(
            OutboxFailed(
                parcel.id,
                parcel.topic,
                line.sink,
                parcel.attempt,
                "dead" if dead else "retry",
                verdict.reason,
                verdict.fate == "block" and parcel.key is not None,
                failure.error_type,
                failure.message,
                None if dead else verdict.delay_s,
            )
        )

    def _upkeep(self) -> None:
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + self._settings.heartbeat_s
            self._desk.renew(list(self._busy.values()))
            # One find may be what woke it; while there are more, it looks by itself and costs producers nothing.
            self._asleep = self._worked <= 1 and self._listener.hears
            self._worked = 0
            asleep_s = ASLEEP_BEATS * self._settings.heartbeat_s if self._asleep else None
            facts = {**self._facts(), "asleep_s": asleep_s}
            self._link.run(lambda conn: conn.execute(statement("relay_beat"), facts))
        elif self._asleep and self._worked > 1:
            self._asleep = False
            facts = {**self._facts(), "asleep_s": None}
            self._link.run(lambda conn: conn.execute(statement("relay_beat"), facts))
        if now >= self._prune_at:
            dropped = self._desk.prune(self._settings.history_retention_days)
            self._prune_at = now + (0 if dropped >= PRUNE_BATCH else PRUNE_INTERVAL_S)
            if dropped:
                self.events.emit(
                    Warned(
                        "outbox_parked_dropped",
                        f"{dropped} messages were dropped that nobody had subscribed to for"
                        f" {self._settings.history_retention_days} days; `pgqueue outbox status` shows the topics",
                        {"messages": dropped},
                    )
                )

    def _report(self, trouble: Trouble) -> None:
        self.events.emit(DatabaseTrouble(trouble.room, trouble.cause, trouble.over))
