"""The demo from its first to its last second: server, schema, processes, the loop, drain, PROOF, and all ended again.

Called by `pgqueue demo`. One thread; whatever ends it, nothing is left running.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import psycopg

from pgqueue.demo.chaos import Chaos
from pgqueue.demo.fleet import DemoFailed, Fleet
from pgqueue.demo.proof import Proof, Score, is_ready, prove, score, unfinished
from pgqueue.demo.report import Report
from pgqueue.demo.statements import ALERTS, SCHEMA
from pgqueue.embedded import EmbeddedPostgres
from pgqueue.storage.migrate import upgrade

TICK_S: Final = 0.1
LAG_WINDOW_S: Final = 5.0
LOOK_SHARE: Final = 10  # looking may cost a tenth of the time: in a long run the tables grow
DRAIN_MAX_S: Final = 60.0
DEFERRED_WAIT_MAX_S: Final = 15.0  # fees due later than this after the end are not waited for
READY_MAX_S: Final = 30.0
SCHEDULERS: Final = 2
RELAYS: Final = 2
SCHEDULES: Final = 4
SUBSCRIPTIONS: Final = 3
HOLD_MAX_S: Final = 600.0
APPLICATION_NAME: Final = "rides-demo"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asked for. `speed`: seconds of the story per second."""

    duration_s: float = 30.0
    headless: bool = False
    chaos: bool = False
    speed: float = 60.0
    as_json: bool = False
    workers: int = 3


@dataclass(slots=True)
class _Signals:
    """Which signal came, if any: the first one ends the run in order, the second at once."""

    number: int | None = None
    heard: list[int] = field(default_factory=list)

    def hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.heard.append(number)
        self.number = number
        if len(self.heard) > 1:
            raise KeyboardInterrupt


def run_demo(options: DemoOptions) -> int:
    """Run the demo; returns 0 if PROOF holds at the end, 1 if not, 128 + n after the signal n."""
    on_terminal = sys.stdout.isatty() and not options.headless
    report = Report(picture=on_terminal)
    with _without_others_settings(), _listening() as signals:
        try:
            return _perform(options, report, signals, hold=on_terminal and sys.stdin.isatty())
        except KeyboardInterrupt:
            return 128 + (signals.number or signal.SIGINT)
        finally:
            report.close()


def _perform(options: DemoOptions, report: Report, signals: _Signals, *, hold: bool) -> int:
    report.say("starting PostgreSQL …")
    with EmbeddedPostgres() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE rides")
        dsn = server.dsn("rides")
        upgrade(dsn)
        report.say(f"PostgreSQL {server.version} is up in {server.socket_dir}, the schema is migrated")
        with psycopg.connect(dsn, autocommit=True, application_name=APPLICATION_NAME) as conn:
            conn.execute(SCHEMA)
            conn.execute(ALERTS)
            logs = server.socket_dir / "demo"  # deleted with the server, even if this process is killed
            logs.mkdir(mode=0o700)
            stage = _Stage(options, report, signals, conn, logs, dsn)
            return stage.play(server, hold=hold)


class _Stage:
    """One run, with everything it needs at hand."""

    def __init__(
        self,
        options: DemoOptions,
        report: Report,
        signals: _Signals,
        conn: psycopg.Connection[Any],
        logs: Path,
        dsn: str,
    ) -> None:
        self._options = options
        self._report = report
        self._signals = signals
        self._conn = conn
        self._logs = logs
        self._dsn = dsn
        self._began = time.monotonic()
        self._ended: float | None = None
        self._look_at = 0.0
        self._broken: Proof | None = None

    def play(self, server: EmbeddedPostgres, *, hold: bool) -> int:
        """Work, drain, prove; returns the exit code."""
        options = self._options
        with Fleet(self._dsn, self._logs, speed=options.speed) as fleet:
            fleet.start_outside()
            fleet.start_schedulers(SCHEDULERS)
            fleet.start_relays(RELAYS)
            fleet.start_workers(options.workers)
            fleet.start_api()
            fleet.start_exporter()
            self._wait_until_all_work(fleet)
            self._report.say(
                f"{options.workers} workers, {SCHEDULERS} schedulers, {RELAYS} relays and the API run; a second is {options.speed:g} of the story"
                + ("; processes are being killed and connections cut" if options.chaos else "")
            )
            self._report.say(f"metrics: {fleet.metrics_url}")
            self._work(fleet)
            fleet.stop_api()
            undone = self._drain(fleet)
            self._ended = time.monotonic()
            if hold and undone is not None:
                code = self._finish(undone)
                self._hold(server, fleet)
                return code
        return self._finish(undone)

    def _work(self, fleet: Fleet) -> None:
        self._began = time.monotonic()
        until = self._began + self._options.duration_s
        chaos = Chaos(self._began) if self._options.chaos else None
        while (now := time.monotonic()) < until and not self._signals.heard:
            fleet.look()
            if chaos is not None:
                chaos.act(now, fleet, self._conn)
            self._look(now)
            time.sleep(TICK_S)

    def _drain(self, fleet: Fleet) -> int | None:
        """Wait for what is left; returns how many jobs were not done in time, None if a signal ended the wait."""
        began = time.monotonic()
        while not self._signals.heard:
            now = time.monotonic()
            # Deferred jobs that are due later than DEFERRED_WAIT_MAX_S after the end are not waited for.
            left = unfinished(self._conn, within_s=max(0.0, began + DEFERRED_WAIT_MAX_S - now))
            if left == 0 or now > began + DRAIN_MAX_S:
                return left
            fleet.look()
            self._look(now)
            time.sleep(TICK_S)
        return None

    def _look(self, now: float) -> None:
        if now < self._look_at:
            return
        proof = prove(self._conn)
        if not proof.ok and self._broken is None:
            self._broken = proof
        self._report.show(now - self._began, score(self._conn, window_s=LAG_WINDOW_S), proof)
        cost_s = time.monotonic() - now
        self._look_at = max(now + 1.0, now + LOOK_SHARE * cost_s)

    def _finish(self, undone: int | None) -> int:
        elapsed_s = (self._ended or time.monotonic()) - self._began
        numbers: Score = score(self._conn, window_s=elapsed_s + READY_MAX_S)
        # A violation that healed by itself is one all the same.
        proof = self._broken or prove(self._conn)
        self._report.finish(elapsed_s, numbers, proof, undone=undone)
        if self._options.as_json:
            self._report.result(elapsed_s, numbers, proof, undone=undone)
        if not proof.ok or undone:
            return 1
        return 128 + self._signals.number if self._signals.number else 0

    def _wait_until_all_work(self, fleet: Fleet) -> None:
        until = time.monotonic() + READY_MAX_S
        while not self._all_work() and not self._signals.heard:
            if time.monotonic() > until:
                raise DemoFailed(f"not all processes work after {READY_MAX_S:g} s; {fleet.last_words()}")
            fleet.look()
            time.sleep(TICK_S)

    def _all_work(self) -> bool:
        return is_ready(
            self._conn,
            workers=self._options.workers,
            schedules=SCHEDULES,
            subscriptions=SUBSCRIPTIONS,
        )

    def _hold(self, server: EmbeddedPostgres, fleet: Fleet) -> None:
        """On a terminal: leave everything up for a while, for looking around."""
        psql = server.bin_dir / "psql"
        unfound = shutil.which("pgqueue") is None
        for line in (
            "",
            "Server and workers stay up until you press Enter (or for ten minutes). Try in another terminal:",
            f'  export PGQUEUE_DATABASE_URL="{self._dsn}"',
            *([f'  export PATH="{Path(sys.executable).parent}:$PATH"'] if unfound else []),
            "  pgqueue stats                     # depth, lag against the objective, percentiles; -w to watch",
            "  pgqueue top                       # the same and more, live",
            "  pgqueue alerts list               # what fired and resolved",
            "  pgqueue doctor                    # what an operator should mend, and how",
            "  pgqueue dlq groups                # what died, by cause",
            "  pgqueue dlq redrive --all --yes   # try it again",
            f"  curl {fleet.metrics_url}",
            "  pgqueue outbox status             # messages to tasks and to the partner's webhook",
            "  pgqueue schedules list            # what comes by itself; `schedules log surge-prices`",
            f"  {psql} \"$PGQUEUE_DATABASE_URL\" -c 'TABLE pgqueue.dead_letter_summary'",
        ):
            self._report.say(line)
        until = time.monotonic() + HOLD_MAX_S
        while time.monotonic() < until and not self._signals.heard:
            fleet.look()
            readable, _, _ = select.select([sys.stdin], [], [], TICK_S)
            if readable:
                return


@contextlib.contextmanager
def _without_others_settings() -> Iterator[None]:
    """libpq's and pgqueue's variables speak of the user's own database: here they would only mislead."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextlib.contextmanager
def _listening() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.signal(number, signals.hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
