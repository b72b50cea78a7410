"""What the benchmark says about the machine, and what it reads from it: processor time of the server, memory of a process."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True)
class Machine:
    """Where figures were made; `load` tells who else was there."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load: float

    def __str__(self) -> str:
        return (
            f"{self.cores} cores ({self.processor}), {self.memory_gib:.0f} GiB, {self.system}, "
            f"Python {self.python}, load {self.load:.1f} at the start"
        )


def describe() -> Machine:
    """The machine as it is now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        _processor(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory,
        f"{platform.system()} {platform.machine()}",
        platform.python_version(),
        os.getloadavg()[0],
    )


def server_cpu_s(postmaster: int) -> float | None:
    """Processor time of a server so far, its ended backends included; None where there is no /proc."""
    if not (_PROC / str(postmaster) / "stat").exists():
        return None
    own = _stat(postmaster)
    total = sum(own[11:15])  # its own, and that of the children it has waited for
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                found = _stat(int(folder.name))
                if found[1] == postmaster:
                    total += sum(found[11:13])
    return total / _TICKS


def children_cpu_s() -> float:
    """Processor time of the ended children of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rss_mb(pid: int) -> float | None:
    """Resident memory of a process now; None when it has ended or there is no /proc."""
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return None


def _stat(pid: int) -> list[int]:
    """Fields 3 onwards of /proc/pid/stat; the state, a letter, as 0."""
    fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    return [0, *(int(field) for field in fields[1:])]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
