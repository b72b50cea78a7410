"""Starts this project's programs as real processes, with their output kept and their end guaranteed.

Used by tests of workers, schedulers, the CLI and faults. Each process is ended by its own handle, never by
name, and takes what it started with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rig.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]
END_TIMEOUT_S = 10.0


class Proc:
    """A running program; its stdout and stderr go to files, so nothing blocks on a full pipe."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | None = subprocess.DEVNULL,
    ) -> None:
        self.command = list(command)
        self._logs = tempfile.TemporaryDirectory(prefix="pgqproc-")
        self._out = Path(self._logs.name, "stdout")
        self._err = Path(self._logs.name, "stderr")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.popen = subprocess.Popen(
                self.command,
                stdin=stdin,
                stdout=out,
                stderr=err,
                cwd=cwd or ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the program alone, as a crash would be; its children find out by themselves."""
        self.popen.kill()
        self.popen.wait(END_TIMEOUT_S)

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code; fails with the program's own words when it does not end in time."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} did not end within {timeout_s:g} s:\n{self.tail()}") from None

    def wait_for_text(self, text: str, timeout_s: float = 20.0) -> str:
        """Everything said so far once `text` was said, on either stream."""

        def said() -> str:
            both = self.stdout + self.stderr
            if text in both:
                return both
            assert self.running, (
                f"{self} ended with {self.popen.returncode} before saying {text!r}:\n{self.tail()}"
            )
            return ""

        return wait_for(said, timeout_s, f"{self} saying {text!r}")

    def tail(self, lines: int = 30) -> str:
        return "\n".join((self.stdout + self.stderr).splitlines()[-lines:])

    def end(self) -> None:
        """End the program and all of its process group, whatever state they are in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(END_TIMEOUT_S)
        self._logs.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            value.add_note(f"{self} said last:\n{self.tail()}")
        self.end()

    def __str__(self) -> str:
        return " ".join(Path(part).name if index < 1 else part for index, part in enumerate(self.command))


def pgqueue(*args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Proc:
    """The `pgqueue` command in a process of its own: `with pgqueue("worker", "-A", "m:app", env=…) as p:`."""
    return Proc([sys.executable, "-m", "pgqueue", *args], env=env, cwd=cwd)


def python(script: str, *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Proc:
    """A Python program given as text."""
    return Proc([sys.executable, "-c", script, *args], env=env, cwd=cwd)


def run(*args: str, env: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> tuple[int, str, str]:
    """One `pgqueue` command to its end: exit code, stdout, stderr."""
    with pgqueue(*args, env=env) as process:
        return process.wait(timeout_s), process.stdout, process.stderr


@contextlib.contextmanager
def running(*processes: Proc) -> Iterator[tuple[Proc, ...]]:
    """Several processes that all end with the block."""
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(process) for process in processes)
