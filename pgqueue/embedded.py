"""A Postgres of one's own: throwaway for tests and demos, or kept in a folder; from a wheel or local programs.

Called by the demo, the benches, `pgqueue.testing` and this project's own tests. It starts processes and
touches its own folders; it opens no connection to the server (who needs one uses `dsn()`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from pgqueue import _embedded_guardian
from pgqueue._embedded_binaries import (
    Binaries,
    choose_account,
    choose_binaries,
    find_binaries,
    runnable_by,
)
from pgqueue._embedded_cluster import SUPERUSER, Runner, last_lines, make_cluster, make_run_dir, set_password
from pgqueue._embedded_postmaster import (
    POLL_S,
    alive,
    live_postmaster,
    outlive,
    ready_pid,
    recorded_pid,
    start_lock,
)
from pgqueue.errors import ConfigurationError, ConflictError, DatabaseUnreachable

__all__ = ["Binaries", "EmbeddedPostgres", "StopMode", "find_binaries"]

StopMode = Literal["smart", "fast", "immediate"]

SOCKET_PORT = 5432
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
ESCALATE_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 12
PORT_TRIES_MAX = 5
# What the server says when the processes of a killed predecessor have not quite gone yet.
STILL_DYING = "pre-existing shared memory block"
PORT_TAKEN = "could not bind"


class EmbeddedPostgres:
    """One Postgres server, owned by this process and ended with it.

    `data_dir` None makes a throwaway cluster in a temporary folder, deleted by `stop()`; a path is made if
    need be and kept. `settings` are server settings (`{"fsync": "off"}`); the defaults are Postgres's own,
    so data is safe. `tcp` opens a random port on 127.0.0.1 beside the socket, with a scram `password`.
    `environment` adds variables to the server's. The socket's folder is 0700: only the user who starts the
    server, root, and the account that runs it can connect.

    Raises ConfigurationError when no Postgres is found or the folder cannot be used, ConflictError when the
    folder is being served already, DatabaseUnreachable when the server does not come up.
    """

    user = SUPERUSER

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        bin_dir: Path | None = None,
        tcp: bool = False,
        password: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._kept_dir = Path(data_dir).absolute() if data_dir is not None else None
        account = choose_account(self._kept_dir)
        found = choose_binaries(bin_dir, self._kept_version())
        self._runner = Runner(account, runnable_by(account, found), dict(environment or {}))
        self._settings = dict(settings or {})
        self._tcp = tcp
        self._run_dir: Path | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()
        self.password = password or secrets.token_hex(24)
        self.port = SOCKET_PORT

    @property
    def bin_dir(self) -> Path:
        """Where the programs are that run this server (and `psql`, `pg_basebackup`, … beside them)."""
        return self._runner.binaries.bin_dir

    @property
    def version(self) -> int:
        """The server's major version."""
        return self._runner.binaries.version

    @property
    def data_dir(self) -> Path:
        """The cluster's folder (PGDATA)."""
        return self._kept_dir or self.socket_dir / "data"

    @property
    def socket_dir(self) -> Path:
        """The 0700 folder that holds the server's socket; what libpq takes as `host`."""
        if self._run_dir is None:
            raise ConflictError("the embedded Postgres has no folder before start() and after stop()")
        return self._run_dir

    @property
    def log_path(self) -> Path:
        """The server's own log."""
        return self.data_dir / "server.log"

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        pid = live_postmaster(self.data_dir)
        if pid is None:
            raise ConflictError(f"the embedded Postgres in {self.data_dir} is not running: start() it")
        return pid

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._guardian is not None and self._guardian.poll() is None

    def dsn(self, dbname: str = "postgres", *, user: str = SUPERUSER, tcp: bool = False) -> str:
        """A libpq URI for `dbname`: over the socket, or over 127.0.0.1 with the password if `tcp`."""
        if not tcp:
            host = quote(str(self.socket_dir), safe="")
            return f"postgresql://{quote(user)}@/{quote(dbname, safe='')}?host={host}&port={self.port}"
        if not self._tcp:
            raise ConfigurationError(
                "this embedded Postgres listens on its socket only: make it with tcp=True"
            )
        login = f"{quote(user)}:{quote(self.password, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    def start(self) -> Self:
        """Make the cluster if there is none, start the server and return when it accepts connections."""
        if self.running:
            raise ConflictError(
                f"the embedded Postgres in {self.data_dir} is running already: stop() it first"
            )
        self._forget_guardian()
        first = self._run_dir is None
        try:
            if first:
                self._run_dir = make_run_dir(self._runner)
            if not (self.data_dir / "PG_VERSION").exists():
                make_cluster(self.data_dir, self._runner, sync=self._kept_dir is not None)
            deadline = time.monotonic() + START_TIMEOUT_S
            with start_lock(self.data_dir, deadline):
                self._refuse_served_folder()
                if self._tcp and first:
                    set_password(self.data_dir, self._runner, self.password)
                self._launch(deadline, choose_port=self._tcp and first)
        except BaseException:
            with contextlib.suppress(ConflictError):  # why it did not start is the news, not how it ended
                self.halt("immediate")
            if first:
                self._delete_folders()
            raise
        return self

    def stop(self, mode: StopMode = "fast", *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the server; a throwaway cluster is deleted. Harmless when it is stopped already."""
        if os.getpid() != self._owner_pid:
            return  # a forked child unwinding its copy of our `with` must not end the parent's server
        try:
            self.halt(mode, timeout_s=timeout_s)
        finally:
            self._delete_folders()

    def halt(self, mode: StopMode = "fast", *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the server and keep its data and DSN, so that `start()` goes on from there.

        Raises ConflictError if it did not stop in time; it has been killed then.
        """
        guardian = self._guardian
        if guardian is None:
            return
        in_time = True
        for order, patience_s in (
            (mode, timeout_s),
            ("immediate", ESCALATE_TIMEOUT_S),
            ("kill", ESCALATE_TIMEOUT_S),
        ):
            with contextlib.suppress(BrokenPipeError):  # the guardian is gone: the kernel ends its server
                assert guardian.stdin is not None  # noqa: S101 - it was opened with a pipe
                guardian.stdin.write(f"{order}\n".encode())
                guardian.stdin.flush()
            try:
                guardian.wait(patience_s)
                break
            except subprocess.TimeoutExpired:
                in_time = False
        self._forget_guardian()
        if not in_time:
            raise ConflictError(
                f"the embedded Postgres in {self.data_dir} did not stop within {timeout_s:g} s ({mode}) and was"
                " killed: close its clients first, or stop it in mode immediate"
            )

    def kill(self) -> None:
        """End the server as a crash would: nothing is flushed, the next `start()` recovers."""
        self.halt("immediate")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop in `mode`, then start again on the same data, socket and port."""
        self.halt(mode)
        self.start()

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the server's log."""
        with contextlib.suppress(FileNotFoundError):
            return last_lines(self.log_path.read_text(errors="replace"), lines)
        return ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _kept_version(self) -> int | None:
        if self._kept_dir is None:
            return None
        try:
            return int((self._kept_dir / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise ConfigurationError(
                f"{self._kept_dir} cannot be read as a cluster by this user: choose another data_dir"
            ) from None

    def _refuse_served_folder(self) -> None:
        pid_file = self.data_dir / "postmaster.pid"
        serving = live_postmaster(self.data_dir)
        if serving is not None:
            raise ConflictError(
                f"{self.data_dir} is served by process {serving} already: stop that server or choose another data_dir"
            )
        recorded = recorded_pid(self.data_dir)
        if recorded is not None and alive(recorded):
            # The number was reused by a process that is no server of this folder; Postgres would refuse to start.
            pid_file.unlink(missing_ok=True)
        for leftover in self.socket_dir.glob(".s.PGSQL.*"):
            leftover.unlink(missing_ok=True)

    def _launch(self, deadline: float, *, choose_port: bool) -> None:
        tries = 0
        while True:
            if choose_port:
                self.port = _free_port()
            if self._try_launch(deadline):
                return
            tries += 1
            tail = self.log_tail(4)
            passing = STILL_DYING in tail or (choose_port and PORT_TAKEN in tail and tries < PORT_TRIES_MAX)
            if passing and time.monotonic() < deadline:
                time.sleep(10 * POLL_S)
                continue
            raise DatabaseUnreachable(
                f"the embedded Postgres in {self.data_dir} did not start; its log ends with:\n{self.log_tail()}"
            )

    def _try_launch(self, deadline: float) -> bool:
        self._guardian = subprocess.Popen(  # noqa: S603 - this Python, our own script
            [sys.executable, "-I", "-S", _embedded_guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        assert self._guardian.stdin is not None  # noqa: S101 - both were opened with a pipe
        assert self._guardian.stdout is not None  # noqa: S101
        self._guardian.stdin.write(json.dumps(self._plan()).encode() + b"\n")
        self._guardian.stdin.flush()
        said = self._guardian.stdout.readline().decode().strip()
        if not said.isdigit():
            raise DatabaseUnreachable(
                f"the embedded Postgres could not be started: {said or self.log_tail()}"
            )
        while self._guardian.poll() is None:
            if ready_pid(self.data_dir) == int(said):
                return True
            if time.monotonic() > deadline:
                raise DatabaseUnreachable(
                    f"the embedded Postgres in {self.data_dir} was not ready within {START_TIMEOUT_S:g} s;"
                    f" its log ends with:\n{self.log_tail()}"
                )
            time.sleep(POLL_S)
        return False

    def _plan(self) -> dict[str, object]:
        fixed = {
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            "unix_socket_permissions": "0700",
            "hba_file": str(self.socket_dir / "pg_hba.conf"),
            "ident_file": str(self.socket_dir / "pg_ident.conf"),
            "logging_collector": "off",
        }
        options = [
            part for name, value in {**self._settings, **fixed}.items() for part in ("-c", f"{name}={value}")
        ]
        throwaway = self._kept_dir is None
        return {
            "command": [str(self.bin_dir / "postgres"), "-D", str(self.data_dir), *options],
            "env": self._runner.variables(),
            "log": str(self.log_path),
            "uid": self._runner.account.uid,
            "gid": self._runner.account.gid,
            "orphan_mode": "immediate" if throwaway else "fast",
            "delete": [str(self.socket_dir)],
        }

    def _forget_guardian(self) -> None:
        """Close the pipes of a guardian that has ended (or has to end now) and wait for it."""
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        for pipe in (guardian.stdin, guardian.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        guardian.wait()
        outlive(self.data_dir)

    def _delete_folders(self) -> None:
        run_dir, self._run_dir = self._run_dir, None
        deadline = time.monotonic() + ESCALATE_TIMEOUT_S
        # Backends of a killed server may still write for a moment: repeat until the tree is gone.
        while run_dir is not None and run_dir.exists() and time.monotonic() < deadline:
            shutil.rmtree(run_dir, ignore_errors=True)
            time.sleep(0 if not run_dir.exists() else POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
