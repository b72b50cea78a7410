"""Several worker processes under one parent: starts them, restarts those that die, passes signals on, reports.

Called by `pgqueue worker --processes N` and `pgqueue all`. The parent runs no job, imports no application and opens no
connection. Every child, and every process for suspects, holds a life line to its parent: see `watch_parent`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final, Literal

from pgqueue.core.events import Events, ProcessChanged

LOOK_S: Final = 0.05
PARENT_CHECK_S: Final = 1.0
LATE_S: Final = 15.0  # what a child that stops gets beyond its handlers' grace period
NOW_S: Final = 2.0  # what one gets that is to stop at once, and perhaps cannot hear
# Usage, schema, configuration: a second start would end in the same way.
FINAL_CODES: Final = frozenset({2, 6, 78})


@dataclass(frozen=True, slots=True)
class Patience:
    """How soon a process that died is started again, and how often."""

    steady_s: float = 30.0  # who lived this long did not die of its start
    first_s: float = 0.5
    most_s: float = 15.0
    deaths_max: int = 8  # quick deaths in a row

    def pause_s(self, deaths: int) -> float:
        """The pause after the `deaths`-th quick death in a row: none after the first, then doubling."""
        return 0.0 if deaths <= 1 else min(self.most_s, self.first_s * 2.0 ** (deaths - 2))


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs: `role` is what it is called in reports, `database` what its log lines name, if anything."""

    command: Sequence[str]
    environment: Mapping[str, str]
    role: str = "worker"
    database: str | None = None


@dataclass(frozen=True, slots=True)
class ChildReport:
    """How one child fares. `left`: it ended by itself with exit code 0 and is not started again."""

    number: int
    state: Literal["running", "restarting", "left"]
    pid: int | None
    restarts: int
    exit_code: int | None  # of its last end
    role: str = "worker"


@dataclass(slots=True, eq=False)
class _Child:
    number: int
    program: Program
    popen: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float | None = 0.0  # when it is to be started; None: it runs, or has left
    deaths: int = 0
    restarts: int = -1
    exit_code: int | None = None


def spawn(command: Sequence[str], environment: Mapping[str, str], *, apart: bool) -> subprocess.Popen[bytes]:
    """Start a process that holds its life line as stdin; `apart`: out of reach of the terminal's signals."""
    return subprocess.Popen(  # noqa: S603 - our own command
        list(command), stdin=subprocess.PIPE, env=dict(environment), process_group=0 if apart else None
    )


def watch_parent(leave: Callable[[], None]) -> None:
    """In a child: call `leave`, in a thread, when the parent has ended, however it did.

    The parent holds the other end of stdin and never writes. What it forked may hold that end too, so the
    parent's number is the second witness.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            readable, _, _ = select.select([0], [], [], PARENT_CHECK_S)
            if readable and not os.read(0, 4096):
                break
        leave()

    threading.Thread(target=watch, name="pgqueue-lifeline", daemon=True).start()


@contextlib.contextmanager
def hearing(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Call `on_signal` for each SIGTERM and SIGINT while the block runs."""

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        on_signal(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Processes:
    """The parent. `run()` blocks until every child has ended for good, and returns the exit code."""

    def __init__(
        self,
        programs: Sequence[Program],
        events: Events,
        *,
        grace_s: float,
        patience: Patience | None = None,
    ) -> None:
        self._children = [_Child(number, program) for number, program in enumerate(programs)]
        self._events = events
        self._grace_s = grace_s
        self._patience = patience or Patience()
        self._signals = 0
        self._signal = 0
        self._stopping = False
        self._kill_at = 0.0
        self._told_twice = False
        self._code = 0

    def report(self) -> tuple[ChildReport, ...]:
        """How each child fares at this moment; may be called from any thread."""
        return tuple(
            ChildReport(
                child.number,
                "running" if popen is not None else "restarting" if child.start_at is not None else "left",
                None if popen is None else popen.pid,
                max(0, child.restarts),
                child.exit_code,
                child.program.role,
            )
            for child in self._children
            for popen in (child.popen,)
        )

    def stop(self) -> None:
        """Ask every child to stop in order; may be called from any thread or a signal handler."""
        self._signals = max(1, self._signals)

    def on_signal(self, number: int) -> None:
        """The first signal stops in order, the second at once: so do the children, who get one of each."""
        self._signals += 1
        self._signal = number

    def run(self, *, signals: bool = False) -> int:
        """Start the children and see to them. 0 if every one ended with 0; 128 + n after a second signal."""
        with hearing(self.on_signal) if signals else contextlib.nullcontext():
            try:
                while self._is_busy():
                    self._obey()
                    for child in self._children:
                        self._see_to(child)
                    time.sleep(LOOK_S)
            finally:
                self._end_all()
        return 128 + self._signal if self._signals > 1 and self._signal else self._code

    def _is_busy(self) -> bool:
        return any(
            c.popen is not None or (c.start_at is not None and not self._stopping) for c in self._children
        )

    def _obey(self) -> None:
        if self._signals and not self._stopping:
            self._stop_all()
        if self._signals > 1 and not self._told_twice:
            self._told_twice = True
            sys.stderr.write("second signal: stopping now; running jobs will be rescued by other workers\n")
            sys.stderr.flush()
            self._tell_all(signal.SIGTERM)
            self._kill_at = time.monotonic() + NOW_S
        if self._stopping and time.monotonic() > self._kill_at:
            self._tell_all(signal.SIGKILL)

    def _stop_all(self) -> None:
        self._stopping = True
        self._kill_at = time.monotonic() + self._grace_s + LATE_S
        self._tell_all(signal.SIGTERM)

    def _tell_all(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.popen is not None:
                child.popen.send_signal(number)

    def _see_to(self, child: _Child) -> None:
        if child.popen is None:
            if not self._stopping and child.start_at is not None and time.monotonic() >= child.start_at:
                self._start(child)
            return
        code = child.popen.poll()
        if code is not None:
            self._ended(child, child.popen, code)

    def _start(self, child: _Child) -> None:
        child.popen = spawn(child.program.command, child.program.environment, apart=True)
        child.started, child.start_at = time.monotonic(), None
        child.restarts += 1
        program = child.program
        self._events.emit(
            ProcessChanged(program.role, child.number, child.popen.pid, "started", database=program.database)
        )

    def _ended(self, child: _Child, popen: subprocess.Popen[bytes], code: int) -> None:
        lived_s = time.monotonic() - child.started
        child.popen, child.exit_code = None, code
        if popen.stdin is not None:
            popen.stdin.close()
        pause_s: float | None = None
        status: Literal["ended", "given_up"] = "ended"
        if self._stopping:
            # One that had not come so far as to hear signals ends by the signal itself: it had nothing to give back.
            if code not in {0, -signal.SIGTERM}:
                self._code = self._code or _as_exit(code)
        elif code:
            child.deaths = child.deaths + 1 if lived_s < self._patience.steady_s else 1
            if code in FINAL_CODES or child.deaths >= self._patience.deaths_max:
                status, self._code = "given_up", _as_exit(code)
            else:
                pause_s = self._patience.pause_s(child.deaths)
                child.start_at = time.monotonic() + pause_s
        self._events.emit(
            ProcessChanged(
                child.program.role,
                child.number,
                popen.pid,
                status,
                code,
                lived_s,
                pause_s,
                child.deaths,
                child.program.database,
            )
        )
        if status == "given_up":
            self._stop_all()

    def _end_all(self) -> None:
        """Whatever went wrong here, no child stays behind."""
        for child in self._children:
            if child.popen is not None:
                child.popen.kill()
                child.popen.wait()


def _as_exit(code: int) -> int:
    """A death by a signal is a failure of the child: the parent itself was not signalled."""
    return code if code > 0 else 1
