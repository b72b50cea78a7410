"""Other users of the machine, for tests that need somebody who is not us; only root can become one of them."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

# Where this checkout and its dependencies are, for a Python that is not the virtual environment's.
PYTHON_PATH = {
    "PYTHONPATH": f"{Path(__file__).resolve().parents[2]}:{Path(psycopg.__file__).resolve().parents[1]}"
}


@dataclass(frozen=True, slots=True)
class Person:
    """An account, in the form that subprocess takes."""

    name: str
    uid: int
    gid: int

    @property
    def as_user(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def stranger(*others: str) -> Person:
    """An unprivileged account that is none of `others`; skips the test where we may not become somebody else."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    for name in ("nobody", "daemon", "bin"):
        if name not in others:
            entry = pwd.getpwnam(name)
            return Person(name, entry.pw_uid, entry.pw_gid)
    raise AssertionError("no account left")


def python_of(person: Person) -> str:
    """A Python of our version with which `person` can import us; skips where there is none.

    Ours may lie below /root, and the checkout may be private to its owner.
    """
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            answer = subprocess.run(
                [candidate, "-c", "import sys, pgqueue, psycopg; print(sys.version_info[:2])"],
                capture_output=True,
                text=True,
                cwd="/",
                env=PYTHON_PATH,
                **person.as_user,
            )
        except OSError:
            continue
        if answer.stdout.strip() == str(sys.version_info[:2]):
            return candidate
    pytest.skip(f"no Python {sys.version_info[:2]} with which {person.name} can import this checkout")
