"""What every system's script shares: its verbs, the handlers' counting, the effect's row, and how a drain is timed.

Run by `bench/peers/run.py` with the Python of the peers' own environment: `python SYSTEM.py VERB NUMBER TASK`, the
database's address on stdin, one line of JSON on stdout. It knows psycopg and nothing of pgqueue.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

import psycopg

NOTE = "x" * 70
LATENCY_PER_S = 50
LOOK_S = 0.02
GIVE_UP_S = 240
EFFECT = "INSERT INTO bench_effects (n) VALUES (%s)"
EFFECTS = "INSERT INTO bench_effects (n) SELECT unnest(%s::bigint[])"


class Peer(Protocol):
    """One system."""

    remaining: str  # SQL: how many jobs are not ended yet
    clear: str  # SQL: forget every job

    def install(self, dsn: str) -> None:
        """Make its tables."""

    async def fill(self, dsn: str, task: str, count: int) -> None:
        """Enqueue many as its documentation advises for many; arguments {"n", "note", "at"}."""

    async def single(self, dsn: str, task: str, count: int, pace: Callable[[], Awaitable[None]]) -> None:
        """Enqueue one by one, a commit each; `pace` before each."""

    async def work(self, dsn: str, counter: Counter, until: Callable[[], Awaitable[None]]) -> None:
        """Run a worker that hands each job to `counter`, and stop it when `until` returns."""


class Counter:
    """What handlers do: count, and note when the first and each began."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.count = 0
        self.waits_ms: list[float] = []

    def noop(self, at: float) -> None:
        """A job that does nothing."""
        now = time.time()
        if self.started is None:
            self.started = now
        self.count += 1
        if at:
            self.waits_ms.append(1000 * (now - at))


def main(peer: Peer) -> None:
    """Carry out one verb."""
    verb, count, task = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    dsn = sys.stdin.read().strip()
    if verb == "install":
        peer.install(dsn)
        _execute(dsn, "CREATE TABLE IF NOT EXISTS bench_effects (n bigint)")
        answer: dict[str, Any] = {}
    elif verb == "clear":
        _execute(dsn, peer.clear)
        _execute(dsn, "TRUNCATE bench_effects")
        _execute(dsn, "CHECKPOINT")
        answer = {}
    elif verb == "bulk":
        answer = {"seconds": _timed(peer.fill(dsn, task, count))}
    elif verb == "single":
        answer = {"seconds": _timed(peer.single(dsn, task, count, _at_once))}
    elif verb == "feed":
        answer = {"seconds": _timed(peer.single(dsn, task, count, _Paced()))}
    elif verb == "work":
        answer = asyncio.run(_work(peer, dsn, count, "all"))
    elif verb == "part":
        answer = asyncio.run(_work(peer, dsn, count, "part"))
    else:
        raise SystemExit(f"no verb {verb}")
    print(json.dumps(answer))


async def _work(peer: Peer, dsn: str, count: int, amount: Literal["all", "part"]) -> dict[str, Any]:
    """Work `count` jobs off: all there are, or the first of many more."""
    counter = Counter()
    ended: list[float] = []
    done: list[int] = []

    async def until() -> None:
        give_up = time.monotonic() + GIVE_UP_S
        with psycopg.connect(dsn, autocommit=True) as conn:
            while True:
                if counter.count >= count and (
                    amount == "part" or conn.execute(peer.remaining.encode()).fetchone() == (0,)
                ):
                    ended.append(time.time())
                    done.append(counter.count)
                    return
                if time.monotonic() > give_up:
                    return
                await asyncio.sleep(LOOK_S)

    await peer.work(dsn, counter, until)
    with psycopg.connect(dsn, autocommit=True) as conn:
        effects = conn.execute("SELECT count(*), count(DISTINCT n) FROM bench_effects").fetchone()
        left = conn.execute(peer.remaining.encode()).fetchone()
    assert effects is not None
    assert left is not None
    return {
        "seconds": ended[0] - counter.started if ended and counter.started else None,
        "runs": counter.count,
        "runs_at_end": done[0] if done else None,
        "left": left[0],
        "effects": effects[0],
        "distinct": effects[1],
        "waits_ms": counter.waits_ms,
    }


class _Paced:
    """Fifty a second, whatever each takes."""

    def __init__(self) -> None:
        self._due = time.perf_counter()

    async def __call__(self) -> None:
        self._due += 1 / LATENCY_PER_S
        await asyncio.sleep(max(0.0, self._due - time.perf_counter()))


async def _at_once() -> None:
    pass


def _timed(work: Awaitable[None]) -> float:
    async def run() -> float:
        began = time.perf_counter()
        await work
        return time.perf_counter() - began

    return asyncio.run(run())


def _execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(statement.encode())
