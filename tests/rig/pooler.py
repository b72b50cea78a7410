"""A PgBouncer in transaction mode before an embedded server, on a socket of its own; ended with the block.

Used by tests of what works behind a pooler. It needs the program; installing it is Debian's business and ours to try.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from rig.database import Database
from rig.proc import Proc
from rig.wait import wait_for

PORT = 6432
INSTALL_TIMEOUT_S = 120
POOL_SIZE = 2


def pgbouncer() -> str:
    """The program; the test is skipped, with the reason, where it is not and cannot be installed."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["apt-get", "install", "-y", "-q", "pgbouncer"],
                capture_output=True,
                timeout=INSTALL_TIMEOUT_S,
                check=False,
            )
        found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        pytest.skip("no pgbouncer on PATH, and it cannot be installed here: apt-get install pgbouncer")
    return found


@contextlib.contextmanager
def pooled(database: Database) -> Iterator[str]:
    """The DSN of `database` behind a transaction pooler with two server connections."""
    program = pgbouncer()
    server = database.server
    with tempfile.TemporaryDirectory(prefix="pgqbouncer-") as name:
        folder = Path(name)
        config, users = folder / "pgbouncer.ini", folder / "users.txt"
        users.write_text(f'"{server.user}" ""\n')
        config.write_text(
            "[databases]\n"
            f"{database.name} = host={server.socket_dir} port={server.port} dbname={database.name}\n"
            "[pgbouncer]\n"
            f"listen_addr =\nlisten_port = {PORT}\nunix_socket_dir = {folder}\n"
            f"auth_type = trust\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\nmax_client_conn = 200\n"
            # What libpq itself may say at start-up; what we set, we set by statements.
            "ignore_startup_parameters = extra_float_digits\n"
        )
        command = [program, str(config)]
        if os.geteuid() == 0:
            # It refuses to run as root; the server's account may enter the server's folder.
            owner = server.socket_dir.stat()
            for path in (folder, config, users):
                os.chown(path, owner.st_uid, owner.st_gid)
            command = [
                *("setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"),
                *command,
            ]
        with Proc(command) as proc:
            dsn = f"postgresql://{server.user}@/{database.name}?host={folder}&port={PORT}"

            def answers() -> bool:
                assert proc.running, proc.stderr
                with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn, connect_timeout=2):
                    return True
                return False

            wait_for(answers, 15, "an answer through PgBouncer")
            yield dsn
