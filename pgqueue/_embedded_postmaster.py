"""Is a Postgres serving this folder, is it ready, is it gone: answers from its pid file and the process table.

Called by `pgqueue.embedded` alone. It reads `postmaster.pid`, locks the folder while a server starts in it,
and signals nothing but a server that outlived its guardian.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pgqueue.errors import ConflictError

POLL_S = 0.01
OUTLIVE_TIMEOUT_S = 10.0


@contextlib.contextmanager
def start_lock(data_dir: Path, deadline: float) -> Iterator[None]:
    """One start at a time per folder; the lock goes with the process that holds it."""
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConflictError(
                        f"another process has been starting {data_dir} for too long: end it"
                    ) from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(folder)


def recorded_pid(data_dir: Path) -> int | None:
    """The pid in the folder's pid file, alive or not."""
    lines = _pid_lines(data_dir)
    return abs(int(lines[0])) if lines and lines[0].lstrip("-").isdigit() else None


def ready_pid(data_dir: Path) -> int | None:
    """The pid of a server that accepts connections; the eighth line is what `pg_ctl -w` waits for."""
    lines = _pid_lines(data_dir)
    return int(lines[0]) if len(lines) >= 8 and lines[7].strip() in {"ready", "standby"} else None


def alive(pid: int) -> bool:
    """Whether any process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's process
        return True
    return True


def live_postmaster(data_dir: Path) -> int | None:
    """The pid of the server that serves `data_dir` right now; a reused number does not count."""
    pid = recorded_pid(data_dir)
    if pid is None or not alive(pid):
        return None
    if Path("/proc/self/cwd").exists():
        # A postmaster's working folder is its data folder. A zombie has none, and is no server.
        with contextlib.suppress(OSError):
            return pid if Path(f"/proc/{pid}/cwd").samefile(data_dir) else None
        return None
    named = subprocess.run(  # noqa: S603 - a number is all it gets
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return pid if str(data_dir) in named.stdout else None


def outlive(data_dir: Path) -> None:
    """Wait until the server is gone; end it by hand if its guardian was killed before it could."""
    deadline = time.monotonic() + OUTLIVE_TIMEOUT_S
    while (pid := live_postmaster(data_dir)) is not None:
        if time.monotonic() > deadline + OUTLIVE_TIMEOUT_S:
            raise ConflictError(f"process {pid}, which serves {data_dir}, cannot be ended: look at its state")
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _pid_lines(data_dir: Path) -> list[str]:
    try:
        return (data_dir / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []
