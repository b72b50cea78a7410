"""`make bench-peers`: other queues that live in Postgres, and ours, on one server in one run, taking turns.

Each system is installed into an environment of its own under .pgqueue/peers, with what its documentation advises,
and run by the script of its name beside this file. What cannot be installed or run is left out, and the reason is
printed. A run that loses or doubles a job gives no figure. Who loses is shown, us included.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from pgqueue.bench.machine import describe
from pgqueue.embedded import EmbeddedPostgres

HERE = Path(__file__).parent
HOME = Path(".pgqueue", "peers")
VERB_TIMEOUT_S = 300
INSTALL_TIMEOUT_S = 300
LATENCY_JOBS = 250


@dataclass(frozen=True)
class System:
    """A system: its script, what pip installs for it, the oldest Python it runs on."""

    name: str
    script: str
    packages: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    more: tuple[tuple[str, str], ...] = ()  # drains that only this one has: the column, the task


SYSTEMS = (
    System(
        "pgqueue",
        "ours.py",
        more=(
            ("effect drain, group_commit=32 /s", "effect32"),
            ("effect drain, batch=500 /s", "effect500"),
        ),
    ),
    System("procrastinate", "procrastinate_peer.py", ("procrastinate", "psycopg[binary,pool]")),
    System("pgqueuer", "pgqueuer_peer.py", ("pgqueuer", "asyncpg", "uvloop", "psycopg[binary]")),
    System("oban", "oban_peer.py", ("oban",), (3, 12)),
    System("awa", "awa_peer.py", ("awa-pg", "psycopg[binary,pool]")),
)
# Looked at, and not measured here.
LEFT_OUT = {
    "absurd": "a workflow engine: its workers poll step by step, which a drain of single-step jobs does not do justice",
    "celery": "needs a Redis or RabbitMQ beside Postgres; none is started here",
}


@dataclass
class Results:
    """What was measured of one system, a list of runs each."""

    version: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """One more run."""
        self.values.setdefault(name, []).append(value)


class PeerError(Exception):
    """A system could not be installed or run; the text is the reason."""


def prepare(system: System, newer: str) -> tuple[Path, str]:
    """The Python that runs a system, and the system's version."""
    if not system.packages:
        return Path(sys.executable), "this checkout"
    home = HOME / system.name
    python = home / "bin" / "python"
    if not python.exists():
        base = _python(system.python, newer)
        say(f"installing {system.name}")
        _command([base, "-m", "venv", "--clear", str(home)], INSTALL_TIMEOUT_S)
        _command([str(python), "-m", "pip", "install", "-q", *system.packages], INSTALL_TIMEOUT_S)
    package = system.packages[0]
    script = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return python, _command([str(python), "-c", script], 60).strip()


def main() -> None:
    """Install, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--singles", type=int, default=1_000)
    parser.add_argument("--backlog", type=int, default=200_000, help="jobs that wait behind those worked off")
    parser.add_argument("--system", action="append", choices=[system.name for system in SYSTEMS])
    parser.add_argument("--python", default="", help="a newer Python, for systems that need it")
    parser.add_argument("--save", type=Path, default=HOME / "results.json")
    options = parser.parse_args()
    HOME.mkdir(parents=True, exist_ok=True)
    for name, why in LEFT_OUT.items():
        say(f"{name}: skipped: {why}")
    machine, results = describe(), {}
    with EmbeddedPostgres(settings={"shared_buffers": "512MB", "max_wal_size": "4GB"}, tcp=True) as server:
        say(f"PostgreSQL {server.version} with fsync, {machine}; {options.jobs} jobs, {options.runs} runs")
        ready = []
        for system in SYSTEMS:
            if options.system and system.name not in options.system:
                continue
            try:
                python, version = prepare(system, options.python)
                database = f"peer_{system.name}"
                with psycopg.connect(server.dsn(), autocommit=True) as admin:
                    admin.execute(f"CREATE DATABASE {database}".encode())
                run = Runner(system, python, server.dsn(database, tcp=True))
                run("install")
            except (PeerError, OSError) as error:
                say(f"{system.name}: skipped: {error}")
                continue
            ready.append(run)
            results[system.name] = Results(version)
        for number in range(options.runs):
            # Another one begins each time, so that nobody always runs on the warmest machine.
            for run in (*ready[number % len(ready) :], *ready[: number % len(ready)]):
                if run.broken is None:
                    try:
                        measure(run, results[run.system.name], options.jobs, options.singles, options.backlog)
                    except PeerError as error:
                        run.broken = str(error)
                        say(f"{run.system.name}: given up: {error}")
                say(f"run {number + 1}: {run.system.name} done")
    document = {
        "machine": asdict(machine),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "jobs": options.jobs,
        "backlog": options.backlog,
        "runs": options.runs,
        "systems": {name: asdict(found) for name, found in results.items()},
    }
    options.save.write_text(json.dumps(document, indent=1) + "\n")
    table(results)


class Runner:
    """Runs the verbs of one system."""

    def __init__(self, system: System, python: Path, dsn: str) -> None:
        self.system = system
        self.dsn = dsn
        self.broken: str | None = None
        self._command = [str(python), str(HERE / system.script)]

    def __call__(self, verb: str, count: int = 0, task: str = "noop") -> dict:
        """One verb to its end."""
        return json.loads(
            _command([*self._command, verb, str(count), task], VERB_TIMEOUT_S, self.dsn).splitlines()[-1]
        )

    def beside(self, verb: str, count: int, task: str) -> subprocess.Popen[str]:
        """Start one that runs beside another."""
        process = subprocess.Popen(
            [*self._command, verb, str(count), task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(self.dsn)
        process.stdin.close()
        process.stdin = None  # or `communicate` would write to it
        return process


def measure(run: Runner, results: Results, jobs: int, singles: int, backlog: int) -> None:
    """Every workload once."""
    run("clear")
    results.add("bulk enqueue /s", jobs / run("bulk", jobs)["seconds"])
    clean = rate(run("work", jobs), jobs)
    results.add("no-op drain /s", clean)
    for column, task in (("effect drain /s", "effect"), *run.system.more):
        run("clear")
        run("bulk", jobs // 4, task)
        results.add(column, rate(run("work", jobs // 4, task), jobs // 4, effects=True))
    run("clear")
    results.add("single enqueue /s", singles / run("single", singles)["seconds"])
    rate(run("work", singles), singles)
    run("clear")
    worker = run.beside("work", LATENCY_JOBS, "noop")
    try:
        run("feed", LATENCY_JOBS)
        said, _ = worker.communicate(timeout=VERB_TIMEOUT_S)
    finally:
        worker.kill()
        worker.wait()
    answer = json.loads(said.splitlines()[-1])
    rate(answer, LATENCY_JOBS)
    # The first fifty fall into the worker's own start.
    waits = sorted(answer["waits_ms"][50:])
    results.add("latency p50 ms", statistics.median(waits))
    results.add("latency p99 ms", waits[int(0.99 * len(waits))])
    run("clear")
    with psycopg.connect(run.dsn) as old:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM pg_class")
        run("bulk", jobs)
        results.add("old snapshot, ratio", rate(run("work", jobs), jobs) / clean)
    run("clear")
    run("bulk", backlog)
    part = run("part", jobs)
    if part["seconds"] is None:
        raise PeerError(f"{part['runs']} runs of {backlog} waiting jobs, wanted {jobs}")
    results.add("with a backlog, ratio", part["runs_at_end"] / part["seconds"] / clean)


def rate(answer: dict, jobs: int, *, effects: bool = False) -> float:
    """Jobs per second; a drain that lost or doubled one is a failure."""
    if answer["seconds"] is None or answer["left"]:
        raise PeerError(f"{answer['left']} of {jobs} jobs were left after {answer['runs']} runs")
    if answer["runs"] != jobs or (effects and (answer["effects"], answer["distinct"]) != (jobs, jobs)):
        raise PeerError(f"{answer['runs']} runs and {answer['effects']} effects of {jobs} jobs")
    return jobs / answer["seconds"]


def table(results: dict[str, Results]) -> None:
    """Medians, with the least and the most."""
    names = list(dict.fromkeys(name for found in results.values() for name in found.values))
    print("| system | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(names))
    for system, found in results.items():
        cells = [_cell(found.values.get(name, [])) for name in names]
        print(f"| {system} {found.version} | " + " | ".join(cells) + " |")


def say(line: str) -> None:
    """Talk, on stderr."""
    print(line, file=sys.stderr, flush=True)


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    digits = 0 if max(values) >= 100 else 2
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({least:,.{digits}f}–{most:,.{digits}f})"


def _python(oldest: tuple[int, int], newer: str) -> str:
    """A Python that is new enough: this one, the one given, or one on PATH."""
    if sys.version_info[:2] >= oldest:
        return sys.executable
    for name in (newer, *(f"python{oldest[0]}.{minor}" for minor in range(oldest[1], oldest[1] + 4))):
        found = shutil.which(name)
        if (
            found is not None
            and subprocess.run([found, "-c", "import venv"], capture_output=True, check=False).returncode == 0
        ):
            return found
    raise PeerError(f"it needs Python {oldest[0]}.{oldest[1]}, and none is on PATH; name one with --python")


def _command(command: list[str], timeout_s: float, talk: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=talk, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"{Path(command[1]).name} did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise PeerError(said[-1].strip()[:200] if said else f"exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
