"""The process between an embedded Postgres and the Python that asked for it, so that neither outlives its use.

Run as a script by `pgqueue.embedded` (standard library only, no import of the package: it starts in
milliseconds and works where the package's own dependencies are not readable). The plan and then the orders
arrive on stdin, never in argv, which every user of the machine can read.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "kill": signal.SIGKILL,
}
PARENT_CHECK_S = 1.0
ORPHAN_STOP_S = 30.0
ORPHAN_ESCALATE_S = 10.0
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Start the server that stdin's first line describes, say its pid, obey, end with its exit code."""
    plan = json.loads(_first_line())
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    ended = [False]
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.__setitem__(0, True))
    parent = os.getppid()
    try:
        server = _start(plan)
    except OSError as error:
        _say(f"error {error.strerror or error} ({error.filename or plan['command'][0]})")
        return 1
    _say(str(server.pid))

    while server.poll() is None:
        readable, _, _ = select.select([0, wake_r], [], [], PARENT_CHECK_S)
        if wake_r in readable:
            os.read(wake_r, 512)
        if 0 in readable:
            orders = os.read(0, 512).decode().split()
            if not orders:
                ended[0] = True
            for order in orders:
                _signal(server, SIGNALS[order])
        # A forked child of the parent may still hold our stdin open: the parent's pid is the second witness.
        if ended[0] or os.getppid() != parent:
            _abandon(server, plan)
            break
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _start(plan: dict[str, Any]) -> subprocess.Popen[bytes]:
    log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if plan["uid"] is not None:
        os.fchown(log, plan["uid"], plan["gid"])
    os.dup2(log, 2)
    server = subprocess.Popen(  # noqa: S603 - the command comes from the process that made us
        plan["command"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env=plan["env"],
        start_new_session=True,
        user=plan["uid"],
        group=plan["gid"],
        extra_groups=None if plan["uid"] is None else [],
        preexec_fn=_die_with_parent(SIGNALS[plan["orphan_mode"]]),  # noqa: PLW1509 - one thread only here
    )
    os.close(log)
    return server


def _die_with_parent(number: int) -> Callable[[], None] | None:
    """Linux ends the server even when this process itself is killed; it runs after the change of user."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)

    return ask


def _abandon(server: subprocess.Popen[bytes], plan: dict[str, Any]) -> None:
    """The parent is gone: stop the server, harder each time, and take what nobody can use any more."""
    for mode, patience_s in (
        (plan["orphan_mode"], ORPHAN_STOP_S),
        ("immediate", ORPHAN_ESCALATE_S),
        ("kill", None),
    ):
        _signal(server, SIGNALS[mode])
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience_s)
            break
    deadline = time.monotonic() + ORPHAN_ESCALATE_S
    for path in plan["delete"]:
        # Backends of a killed server may still write for a moment: repeat until the tree is gone.
        while os.path.lexists(path) and time.monotonic() < deadline:
            shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.02)


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    server.send_signal(number)
    server.send_signal(signal.SIGCONT)  # a stopped server would keep the order pending for ever


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65536)
        if not chunk:
            raise SystemExit(1)  # the parent died before it said what it wanted
        line += chunk
    return line


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())
    os.close(1)


if __name__ == "__main__":
    raise SystemExit(main())
