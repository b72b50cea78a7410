"""Runs pgbench beside the server that is measured: the floor that the same statements have without Python in between."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pgqueue.errors import PgQueueError

_RATE: Final = re.compile(r"^tps = ([0-9.]+) \(without", re.MULTILINE)
_FAILED: Final = re.compile(r"^number of failed transactions: ([0-9]+)", re.MULTILINE)
THREADS_MAX: Final = 4
TIMEOUT_S: Final = 600


def find_pgbench(bin_dir: Path) -> str | None:
    """The server's own pgbench, or any on PATH or in Debian's place; None where there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"), reverse=True)
    for candidate in (str(bin_dir / "pgbench"), "pgbench", *map(str, debian)):
        if (found := shutil.which(candidate)) is not None:
            return found
    return None


def run_pgbench(
    program: str,
    dsn: str,
    script: str,
    *,
    clients: int,
    transactions: int | None = None,
    seconds: int | None = None,
    prepared: bool = True,
    variables: Mapping[str, int | str] | None = None,
) -> float:
    """Transactions per second of `script`, by `transactions` of each client or for `seconds`. Raises if any failed."""
    with tempfile.TemporaryDirectory(prefix="pgqueue-bench-") as folder:
        path = Path(folder, "script.sql")
        path.write_text(script, encoding="utf-8")
        command = [
            *(program, "--no-vacuum", "--file", str(path), "--client", str(clients)),
            *("--jobs", str(min(THREADS_MAX, clients)), "--protocol", "prepared" if prepared else "extended"),
            *(["--time", str(seconds)] if transactions is None else ["--transactions", str(transactions)]),
            *(f"--define={name}={value}" for name, value in (variables or {}).items()),
            dsn,
        ]
        done = subprocess.run(  # noqa: S603 - a program that was looked for by its name
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    rate, failed = _RATE.search(done.stdout), _FAILED.search(done.stdout)
    if done.returncode or rate is None or (failed is not None and failed[1] != "0"):
        said = [*done.stderr.splitlines(), *done.stdout.splitlines()]
        cause = next((line for line in said if "ERROR" in line), said[-1] if said else "it said nothing")
        raise PgQueueError(f"bench: pgbench ended with exit code {done.returncode}: {cause.strip()[:300]}")
    return float(rate[1])
