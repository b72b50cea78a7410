"""Jobs whose last process died are run alone: any of them may be the one that killed it.

A worker that was started with an application reference (`-A module:app`) runs them in child processes of one
slot each, so that the killer takes nobody with it; an embedded worker runs them when nothing else runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from pgqueue.core.events import Warned
from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty
from pgqueue.worker.state import WorkerState

LINGER_S: Final = 3.0  # a child that found nothing for this long leaves


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
        self._children: list[subprocess.Popen[bytes]] = []

    def serve(self, waiting: int) -> None:
        """Start children for `waiting` suspects, as many as are allowed."""
        self._children = [child for child in self._children if child.poll() is None]
        if self._state.draining.is_set():
            return
        for _ in range(min(waiting, self._most) - len(self._children)):
            try:
                # stdin is the life line: the child leaves when it closes, however this process ends.
                child = subprocess.Popen(self._command, stdin=subprocess.PIPE, env=self._environment)  # noqa: S603 - our own command
            except OSError as error:
                self._state.events.emit(
                    Warned("suspect_process", f"cannot start a process for suspects: {error.strerror}")
                )
                return
            self._children.append(child)

    def stop(self) -> None:
        """Ask the children to finish and leave, and wait for them."""
        for child in self._children:
            if child.stdin is not None:
                child.stdin.close()
        for child in self._children:
            try:
                child.wait(self._state.settings.grace_s + 5)
            except subprocess.TimeoutExpired:
                child.kill()
        self._children.clear()


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
