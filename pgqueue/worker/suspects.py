"""Jobs whose last process died are run alone: any of them may be the one that killed it.

A worker that was started with an application reference (`-A module:app`) runs them in child processes of one
slot each, so that the killer takes nobody with it; an embedded worker runs them when nothing else runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from pgqueue.core.events import ProcessChanged, Warned
from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty
from pgqueue.worker.processes import Patience, spawn
from pgqueue.worker.state import WorkerState

LINGER_S: Final = 3.0  # a child that found nothing for this long leaves
# A child whose parent was killed goes on while there are suspects: a new parent's child takes seconds to come.
ORPHAN_LINGER_S: Final = 0.5
ORPHAN_MAX_S: Final = 30.0
# One that dies took a job along, which is what it is for; one that keeps dying young gets no further than its start.
PATIENCE: Final = Patience(steady_s=10.0)


@dataclass(frozen=True, slots=True)
class _Child:
    number: int
    popen: subprocess.Popen[bytes]
    started: float


class SuspectProcesses:
    """The children of one worker process."""

    def __init__(
        self, state: WorkerState, app_reference: str, *, most: int, environment: dict[str, str]
    ) -> None:
        self._state = state
        self._command = [
            sys.executable,
            "-m",
            "pgqueue",
            "worker",
            "-A",
            app_reference,
            "-q",
            ",".join(state.queues),
            "-c",
            "1",
            "--suspects-only",
        ]
        self._most = most
        self._environment = {**os.environ, **environment}
        self._children: list[_Child] = []
        self._numbers = 0
        self._deaths = 0
        self._not_before = 0.0

    def serve(self, waiting: int) -> None:
        """Start children for `waiting` suspects, as many as are allowed; called again and again."""
        self._reap()
        if self._state.draining.is_set() or time.monotonic() < self._not_before:
            return
        for _ in range(min(waiting, self._most) - len(self._children)):
            try:
                popen = spawn(self._command, self._environment, apart=False)
            except OSError as error:
                self._state.events.emit(
                    Warned("suspect_process", f"cannot start a process for suspects: {error.strerror}")
                )
                return
            child = _Child(self._numbers, popen, time.monotonic())
            self._numbers += 1
            self._children.append(child)
            self._state.events.emit(ProcessChanged("suspect", child.number, popen.pid, "started"))

    def _reap(self) -> None:
        for child in self._children:
            code = child.popen.poll()
            if code is None:
                continue
            if child.popen.stdin is not None:
                child.popen.stdin.close()
            lived_s = time.monotonic() - child.started
            self._deaths = self._deaths + 1 if code and lived_s < PATIENCE.steady_s else 0
            pause_s = PATIENCE.pause_s(self._deaths) if code else None
            self._not_before = time.monotonic() + (pause_s or 0.0)
            self._state.events.emit(
                ProcessChanged(
                    "suspect", child.number, child.popen.pid, "ended", code, lived_s, pause_s, self._deaths
                )
            )
        self._children = [child for child in self._children if child.popen.returncode is None]

    def stop(self) -> None:
        """Ask the children to finish and leave, and wait for them."""
        for child in self._children:
            child.popen.terminate()
        for child in self._children:
            try:
                child.popen.wait(self._state.settings.grace_s + 5)
            except subprocess.TimeoutExpired:
                child.popen.kill()
                child.popen.wait()
        self._children.clear()

    def kill(self) -> None:
        """End the children at once, without waiting for them."""
        for child in self._children:
            child.popen.kill()


def suspects_duty(
    interval_s: float, state: WorkerState, queues: Sequence[str], processes: SuspectProcesses | None
) -> Duty:
    """Look for suspects in this worker's queues, and see to it that they run."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        row = conn.execute(statement("count_suspects"), {"queues": list(queues)}).fetchone()
        waiting = int(row[0]) if row is not None else 0
        if processes is not None:
            processes.serve(waiting)
        else:
            state.suspects = waiting
            if waiting:
                state.wake.set()
        return Done(0)

    return Duty("suspects", interval_s, run)
