"""Makes the folders an embedded Postgres needs, with the owner and modes that keep everyone else out.

Called by `pgqueue.embedded` alone. It runs `initdb` and, for a password, Postgres in single-user mode; it
never writes into a cluster that it did not make.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgqueue._embedded_binaries import Account, Binaries, can_traverse
from pgqueue.errors import ConfigurationError, DatabaseUnreachable

SUPERUSER = "postgres"
SOCKET_DIR_CHARS_MAX = 85  # the kernel allows 107 bytes for the path, `/.s.PGSQL.65535.lock` included
PROGRAM_TIMEOUT_S = 120.0
STDERR_LINES_MAX = 12
MOUNT_POINT_ERRORS = {errno.EBUSY, errno.EXDEV}
INHERITED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
OWNERLESS_IDENT_VERSION = 16  # from here a map may say "any role"


@dataclass(frozen=True, slots=True)
class Runner:
    """Who runs which programs with which variables: what every program of one server has in common."""

    account: Account
    binaries: Binaries
    environment: Mapping[str, str]

    def variables(self) -> dict[str, str]:
        """The little a server needs: our other variables may be secrets, and the account is not always us."""
        ours = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
        return {**ours, "LC_ALL": "C", **self.environment}

    def run(self, program: str, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run one of Postgres's programs as the account, to its end."""
        try:
            return subprocess.run(  # noqa: S603 - the programs that find_binaries checked
                [str(self.binaries.bin_dir / program), *args],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=PROGRAM_TIMEOUT_S,
                check=False,
                cwd="/",
                env=self.variables(),
                user=self.account.uid,
                group=self.account.gid,
                extra_groups=None if self.account.uid is None else [],
            )
        except subprocess.TimeoutExpired:
            raise DatabaseUnreachable(
                f"{program} took longer than {PROGRAM_TIMEOUT_S:g} s: look at the load of this machine's disk"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"{program} cannot be run as {self.account.name!r} ({error.strerror}): start as another user"
            ) from None


def make_run_dir(runner: Runner) -> Path:
    """A 0700 folder with a short path for the socket and the files that say who may connect."""
    account = runner.account
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108 - mkdtemp, 0700
        if len(parent.encode()) + len("/pgq-12345678") > SOCKET_DIR_CHARS_MAX:
            continue
        if os.access(parent, os.W_OK | os.X_OK) and can_traverse(Path(parent), account):
            run_dir = Path(tempfile.mkdtemp(prefix="pgq-", dir=parent))
            give(run_dir, account, 0o700)
            _write_access_files(run_dir, runner)
            return run_dir
    raise ConfigurationError(
        f"no temporary folder with a short path that {account.name!r} can reach: set TMPDIR to one"
    )


def make_cluster(target: Path, runner: Runner, *, sync: bool) -> None:
    """Run initdb beside the final folder and rename: a half-made cluster is never found there."""
    partial: Path | None = None
    try:
        _make_parents(target.parent)
        if target.exists() and any(target.iterdir()):
            raise ConfigurationError(f"{target} holds other files and no cluster: choose an empty data_dir")
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        give(partial, runner.account, 0o700)
        if not can_traverse(target.parent, runner.account):
            raise ConfigurationError(
                f"{target} cannot be reached by the account {runner.account.name!r}, which must run the server"
                " because Postgres refuses root: choose a data_dir below /var/lib or /tmp"
            )
        _initdb(partial, runner, sync=sync)
        partial.rename(target)
    except OSError as error:
        if error.errno in MOUNT_POINT_ERRORS:
            raise ConfigurationError(
                f"{target} is a mount point: name a folder inside it as data_dir"
            ) from None
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and (target / "PG_VERSION").exists():
            return  # another process made the same cluster first
        raise ConfigurationError(
            f"{target} cannot be used ({error.strerror}): choose another data_dir"
        ) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def set_password(data_dir: Path, runner: Runner, password: str) -> None:
    """Give the superuser a password while nobody can connect; a standby keeps its primary's."""
    if any((data_dir / name).exists() for name in ("standby.signal", "recovery.signal")):
        return
    if "\n" in password:  # it would end the statement in single-user mode
        raise ConfigurationError("the password of an embedded Postgres must be one line: choose another")
    literal = password.replace("'", "''")
    done = runner.run(
        *("postgres", "--single", "-D", str(data_dir), "-c", "exit_on_error=on", "postgres"),
        stdin=f"ALTER ROLE {SUPERUSER} PASSWORD '{literal}'\n",
    )
    if done.returncode != 0:  # its output repeats the statement, so it is not shown
        raise DatabaseUnreachable(
            f"the password of {data_dir} could not be set: start it without tcp to see what is wrong with it"
        )


def give(path: Path, account: Account, mode: int) -> None:
    """Hand `path` to the account that runs the server."""
    path.chmod(mode)
    if account.uid is not None and account.gid is not None:
        os.chown(path, account.uid, account.gid)


def last_lines(text: str, lines: int = STDERR_LINES_MAX) -> str:
    """The end of a program's or a server's words."""
    return "\n".join(text.strip().splitlines()[-lines:])


def _make_parents(folder: Path) -> None:
    """Like mkdir -p, but what it makes can be passed through by the server's account, whatever the umask."""
    for step in [step for step in reversed((folder, *folder.parents)) if not step.exists()]:
        step.mkdir(exist_ok=True)
        step.chmod(0o711)


def _initdb(folder: Path, runner: Runner, *, sync: bool) -> None:
    options: Sequence[str] = () if sync else ("--no-sync",)
    done = runner.run(
        *("initdb", "-D", str(folder), "-U", SUPERUSER, "--encoding=UTF8", "--locale=C"),
        *("--auth=reject", "--no-instructions", *options),
    )
    if done.returncode != 0:
        raise ConfigurationError(f"initdb failed in {folder.parent}: {last_lines(done.stderr)}")
    # In the file and not on the command line, so that ALTER SYSTEM can still change them.
    with (folder / "postgresql.conf").open("a") as file:
        file.write("timezone = 'UTC'\nlog_timezone = 'UTC'\nlog_line_prefix = '%m [%p] %q%a '\n")


def _write_access_files(run_dir: Path, runner: Runner) -> None:
    """Who may connect; outside the cluster, so that a kept folder's own files stay untouched."""
    # Before 16 a map cannot say "any role", so there the 0700 folder alone guards the socket.
    local = "peer map=owner" if runner.binaries.version >= OWNERLESS_IDENT_VERSION else "trust"
    (run_dir / "pg_hba.conf").write_text(
        f"local all,replication all {local}\nhost all,replication all 127.0.0.1/32 scram-sha-256\n"
    )
    names = {pwd.getpwuid(os.geteuid()).pw_name, runner.account.name, "root"}
    (run_dir / "pg_ident.conf").write_text("".join(f'owner "{name}" all\n' for name in sorted(names)))
    for name in ("pg_hba.conf", "pg_ident.conf"):
        give(run_dir / name, runner.account, 0o600)
