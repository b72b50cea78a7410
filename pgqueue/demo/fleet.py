"""The demo's processes: started, watched, killed on purpose, started again, and ended with the demo whatever ends it.

Each process has a guardian beside it (the one that embedded servers have): when the demo dies, even by
SIGKILL, the guardian's stdin closes and it takes its process along.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pgqueue import _embedded_guardian
from pgqueue.errors import PgQueueError

STOP_TIMEOUT_S: Final = 15.0
END_TIMEOUT_S: Final = 5.0
DEATHS_MAX: Final = (
    3  # a process that ends by itself this often is a fault to be shown, not to be hidden by restarts
)
LOG_LINES: Final = 15


class DemoFailed(PgQueueError):  # noqa: N818 - as the command line says it
    """The demo could not go on; the message ends with the last words of the process that failed."""


class Member:
    """One place in the fleet: a command that is to run, and the process that does."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        self._plan = {
            "command": list(command),
            "env": dict(environment),
            "log": str(log),
            "uid": None,
            "gid": None,
            "orphan_mode": "kill",
            "delete": [],
        }
        self._guardian: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self.pid = 0

    def start(self) -> None:
        """Start the process. The guardian's standard input is its life line."""
        self._guardian = subprocess.Popen(  # noqa: S603 - this Python, our own script
            [sys.executable, "-I", "-S", _embedded_guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        assert self._guardian.stdin is not None  # noqa: S101 - both were opened with a pipe
        assert self._guardian.stdout is not None  # noqa: S101
        self._guardian.stdin.write(json.dumps(self._plan).encode() + b"\n")
        self._guardian.stdin.flush()
        said = self._guardian.stdout.readline().decode().strip()
        if not said.isdigit():
            raise DemoFailed(f"{self.name} could not be started: {said or self.last_words()}")
        self.pid = int(said)

    def order(self, order: str) -> None:
        """Tell the guardian to stop the process in order (`smart`) or to `kill` it."""
        if self._guardian is not None and self._guardian.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                self._guardian.stdin.write(f"{order}\n".encode())
                self._guardian.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and a new process in its place."""
        self.order("kill")
        self.wait(END_TIMEOUT_S)
        self.start()

    def look(self) -> None:
        """Start the process again if it ended by itself; raises DemoFailed if it keeps ending."""
        if self._guardian is None or self._guardian.poll() is None:
            return
        code = self._guardian.returncode
        self._deaths += 1
        if self._deaths >= DEATHS_MAX:
            raise DemoFailed(
                f"{self.name} ended by itself with code {code}; it said last:\n{self.last_words()}"
            )
        self.wait(END_TIMEOUT_S)
        self.start()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the process's end; returns its exit code, or None when it is still there."""
        guardian = self._guardian
        if guardian is None:
            return 0
        try:
            code = guardian.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        for pipe in (guardian.stdin, guardian.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._guardian = None
        return code

    def last_words(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        return ""


class Fleet:
    """All processes of the demo. Leaving the block ends them."""

    def __init__(self, dsn: str, log_dir: Path, *, speed: float) -> None:
        self._environment = {
            **os.environ,
            "PGQUEUE_DATABASE_URL": dsn,
            "PGQUEUE_LOG_FORMAT": "json",
            "PGQUEUE_LOG_LEVEL": "warning",
            "RIDES_DEMO_SPEED": repr(speed),
            "RIDES_DEMO_BEGAN": repr(time.time()),
            "RIDES_DEMO_OUTSIDE_PORT": str(_free_port()),
            "PGQUEUE_ALERT_INTERVAL_S": "1s",
            "PGQUEUE_ALERT_TAKEOVER_S": "4s",
        }
        self._log_dir = log_dir
        self.workers: list[Member] = []
        self.schedulers: list[Member] = []
        self.relays: list[Member] = []
        self.outside: Member | None = None
        self.exporter: Member | None = None
        self.metrics_url = ""
        self.api: Member | None = None

    def start_workers(self, number: int) -> None:
        """Start workers as anybody would: by the command line."""
        command = [
            *(sys.executable, "-m", "pgqueue", "worker", "-A", "pgqueue.demo.app:app"),
            *("-q", "critical:4,default:4,mail:2,batch:2"),
        ]
        for place in range(1, number + 1):
            member = self._member(f"worker-{place}", command)
            member.start()
            self.workers.append(member)

    def start_outside(self) -> None:
        """Start what is not of the service: the payment gateway and the partner."""
        self.outside = self._member("outside", [sys.executable, "-m", "pgqueue.demo.outside"])
        self.outside.start()

    def start_exporter(self) -> None:
        """Start what tells Prometheus of the database's state, at `metrics_url`."""
        port = _free_port()
        self.metrics_url = f"http://127.0.0.1:{port}/metrics"
        command = [sys.executable, "-m", "pgqueue", "exporter", "--port", str(port)]
        self.exporter = self._member("exporter", command)
        self.exporter.start()

    def start_schedulers(self, number: int) -> None:
        """Start schedulers: one leads, the others wait for its end."""
        self.schedulers = self._start("scheduler", number)

    def start_relays(self, number: int) -> None:
        """Start relays, which share the work."""
        self.relays = self._start("relay", number)

    @property
    def mortal(self) -> list[Member]:
        """The processes of the service that may be killed at any moment."""
        return [*self.workers, *self.schedulers, *self.relays]

    def start_api(self) -> None:
        """Start the API simulator."""
        self.api = self._member("api", [sys.executable, "-m", "pgqueue.demo.simulator"])
        self.api.start()

    def look(self) -> None:
        """Start again what ended by itself."""
        for member in self._members():
            member.look()

    def stop_api(self) -> None:
        """Let the API finish the requests at hand and leave."""
        if self.api is not None:
            _stop([self.api])
            self.api = None

    def stop(self) -> None:
        """Stop everything in order; what does not leave in time is killed."""
        self.stop_api()
        _stop(self.mortal)
        for group in (self.schedulers, self.relays, self.workers):
            group.clear()
        _stop([one for one in (self.exporter, self.outside) if one is not None])
        self.exporter = self.outside = None

    def last_words(self) -> str:
        """The ends of all logs, to say why something did not go on."""
        spoken = ((member.name, member.last_words()) for member in self._members())
        return "they said last:\n" + "\n".join(f"{name}: {words or 'nothing'}" for name, words in spoken)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
            return
        for member in self._members():
            member.order("kill")
        for member in self._members():
            member.wait(END_TIMEOUT_S)

    def _members(self) -> list[Member]:
        return [*self.mortal, *(one for one in (self.exporter, self.outside, self.api) if one is not None)]

    def _start(self, verb: str, number: int) -> list[Member]:
        command = [sys.executable, "-m", "pgqueue", verb, "-A", "pgqueue.demo.app:app"]
        members = [self._member(f"{verb}-{place}", command) for place in range(1, number + 1)]
        for member in members:
            member.start()
        return members

    def _member(self, name: str, command: Sequence[str]) -> Member:
        return Member(name, command, self._environment, self._log_dir / f"{name}.log")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _stop(members: Sequence[Member]) -> None:
    for member in members:
        member.order("smart")
    until = time.monotonic() + STOP_TIMEOUT_S
    for member in members:
        if member.wait(max(0.0, until - time.monotonic())) is None:
            member.order("kill")
            member.wait(END_TIMEOUT_S)
