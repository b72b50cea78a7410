"""A worker's connections cut at every message of a job's life, before it is sent and after: what happened is what counts.

The answer to COMMIT is among those that get lost: whether the job was settled is read back, never guessed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partialmethod
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.wait import wait_for
from rig.wire import Mode, Wire

from pgqueue import App, AsyncBatchContext, AsyncJobContext, BatchContext, Job, JobContext, Retry, Worker
from pgqueue.core.events import AttemptsSucceeded, ClaimLostSeen, Warned
from pgqueue.storage.link import Link
from pgqueue.worker.settler import Settler
from pgqueue.worker.steps import Recorded, StepBook

MESSAGES_MAX = 60  # more than any of these lives has; the loop ends at the first message that does not exist
PATIENT = Retry(max_retries=30, initial_delay="10ms", max_delay="20ms")
INSERT = "INSERT INTO effects VALUES (%s, %s)"


@dataclass
class Site:
    """An App whose worker goes through the wire, except for its heart and its listener; and what became of its jobs."""

    app: App
    wire: Wire
    conn: psycopg.Connection[Any]
    runs: list[int] = field(default_factory=list)
    events: list[object] = field(default_factory=list)
    _running: tuple[Worker, threading.Thread] | None = None

    def start(self) -> None:
        worker = self.app.worker("default", concurrency=1)
        self._running = worker, threading.Thread(target=worker.run)
        self._running[1].start()

    def stop(self) -> None:
        self.wire.disarm()
        if self._running is not None:
            worker, thread = self._running
            worker.stop()
            thread.join(30)
            assert not thread.is_alive()
        self.app.close()

    def live(self, task: str, jobs: int = 1) -> list[int]:
        """Enqueue jobs, past the wire, and wait until they have succeeded; their ids."""
        made = "SELECT pgqueue.enqueue_many(%s, array_fill('{}'::jsonb, ARRAY[%s]))"
        ids = [row[0] for row in self.conn.execute(made, [task, jobs]).fetchall()]
        done = "SELECT FROM pgqueue.job_history WHERE job_id = ANY (%s) AND state = 'succeeded'"
        wait_for(lambda: self.conn.execute(done, [ids]).rowcount == jobs, 20, what=f"jobs {ids} to succeed")
        return ids

    def lives(self, task: str, role: str, *, sent: bool, jobs: int = 1) -> int:
        """The life of `jobs` jobs for each message of `role`, cut there; how many messages there were."""
        for message in range(1, MESSAGES_MAX):
            self.wire.arm(role, message, Mode.AFTER if sent else Mode.BEFORE)
            ids = self.live(task, jobs)
            if not self.wire.fired.is_set():
                return message - 1
            rows = self.conn.execute(
                "SELECT job_id, attempts, jsonb_array_length(coalesce(errors, '[]')),"
                " (SELECT count(*) FROM effects e WHERE e.job_id = h.job_id) FROM pgqueue.job_history h"
                " WHERE job_id = ANY (%s) ORDER BY job_id",
                [ids],
            ).fetchall()
            runs = {job_id: self.runs.count(job_id) for job_id in ids}
            assert rows == [(job_id, runs[job_id], runs[job_id] - 1, 1) for job_id in ids], (
                f"cut at message {message}: ids, attempts, errors and effects {rows}; runs {runs}"
            )
        raise AssertionError(f"{role} sends ever more messages")

    def found_out(self) -> set[str]:
        """In which ways successes were noticed."""
        batches = [event for event in self.events if isinstance(event, AttemptsSucceeded)]
        return {batch.line(number).reason for batch in batches for number in range(batch.count)}

    def seen(self, ctx: JobContext | AsyncJobContext) -> tuple[int, int]:
        self.runs.append(ctx.job.id)
        return ctx.job.id, ctx.job.attempt


@pytest.fixture
def site(database: Database) -> Iterator[Site]:
    conn = database.connect()
    conn.execute("CREATE TABLE effects (job_id bigint, attempt int)")
    with Wire(database.server.socket_dir, database.server.port) as wire:
        app = App(
            wire.dsn(database.name),
            direct_database_url=database.dsn,
            retry=PATIENT,
            heartbeat_s=0.2,
            lease_s=8,
            promote_interval_s=0.02,
        )
        site = Site(app, wire, conn)
        app.events.listen(site.events.append)
        try:
            yield site
        finally:
            site.stop()


@pytest.mark.proves("P3", "P5", "P6", "P7", "F15a", "F15b")
@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
def test_a_jobs_own_transaction_cut_anywhere_has_one_effect(site: Site, sent: bool) -> None:
    @site.app.task(name="effect")
    def effect(ctx: JobContext) -> None:
        seen = site.seen(ctx)
        ctx.conn.execute(INSERT, seen)

    site.start()
    for _ in range(7):  # by then the statements are prepared, as they are in the long run
        site.live("effect")
    assert site.lives("effect", "pgqueue/job", sent=sent) > 5
    # COMMIT is in the last message: it arrived, or it did not.
    assert site.found_out() == ({"succeeded", "read_back"} if sent else {"succeeded"})
    assert len(set(site.runs)) < len(site.runs), "some cuts came before the COMMIT, and the job ran again"


@pytest.mark.proves("P3", "P5", "P6", "P7", "F48")
@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_groups_transaction_cut_anywhere_is_read_back_for_each_member(
    site: Site, kind: str, sent: bool
) -> None:
    """After a lost answer its members were once run again without a trace."""

    def sync_member(ctx: JobContext) -> None:
        seen = site.seen(ctx)
        ctx.conn.execute(INSERT, seen)

    async def async_member(ctx: AsyncJobContext) -> None:
        seen = site.seen(ctx)
        await ctx.conn.execute(INSERT, seen)

    site.app.task(name="member", group_commit=3)(async_member if kind == "async" else sync_member)
    site.start()
    for _ in range(3):
        site.live("member", 3)
    assert site.lives("member", "pgqueue/job", sent=sent, jobs=3) > 10
    assert site.found_out() == ({"succeeded", "read_back"} if sent else {"succeeded"})


@pytest.mark.proves("P3", "P6", "P7", "F60")
@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_windows_call_cut_anywhere_loses_nobody_and_has_one_effect_each(
    site: Site, kind: str, sent: bool
) -> None:
    """Its gathering, its effects, its settlement. Whom a gathering took whose answer was lost, the heart gives back."""

    def sync_cells(ctx: BatchContext, jobs: list[Job]) -> None:
        site.runs.extend(job.id for job in jobs)
        for job in jobs:
            ctx.conn.execute(INSERT, (job.id, job.attempt))

    async def async_cells(ctx: AsyncBatchContext, jobs: list[Job]) -> None:
        site.runs.extend(job.id for job in jobs)
        for job in jobs:
            await ctx.conn.execute(INSERT, (job.id, job.attempt))

    site.app.task(name="cells", batch_window="100ms")(async_cells if kind == "async" else sync_cells)
    site.start()
    for _ in range(3):
        site.live("cells", 3)
    assert site.lives("cells", "pgqueue/job", sent=sent, jobs=3) > 10
    warnings = {event.key for event in site.events if isinstance(event, Warned)}
    assert {"gather_failed", "claim_returned"} & warnings == (
        {"gather_failed", "claim_returned"} if sent else {"gather_failed"}
    )


@pytest.mark.proves("P5", "P6", "P7", "F15a", "F15b")
@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
def test_a_batch_settlement_cut_anywhere_settles_once_and_runs_nothing_again(
    database: Database, site: Site, sent: bool
) -> None:
    outside = database.connect()  # what is written here does not roll back with anything

    @site.app.task(name="plain")
    def plain(ctx: JobContext) -> None:
        outside.execute(INSERT, site.seen(ctx))

    site.start()
    for _ in range(7):
        site.live("plain")
    assert site.lives("plain", "pgqueue/settle", sent=sent) >= 4
    assert len(set(site.runs)) == len(site.runs)
    assert not [event for event in site.events if isinstance(event, ClaimLostSeen)]


@pytest.mark.proves("P6", "F15b")
def test_a_claim_whose_answer_was_lost_is_found_and_given_back(site: Site) -> None:
    @site.app.task(name="effect")
    def effect(ctx: JobContext) -> None:
        seen = site.seen(ctx)
        ctx.conn.execute(INSERT, seen)

    site.start()
    cut = 0
    while not [event for event in site.events if isinstance(event, Warned) and event.key == "claim_returned"]:
        cut += 1
        assert cut < MESSAGES_MAX, "no cut ever lost a claim's answer"
        site.wire.arm("pgqueue/claim", cut % 6 + 1, Mode.AFTER)
        site.live("effect")
    assert len(set(site.runs)) == len(site.runs), "nothing of a lost claim had started"
    counts = "SELECT count(*), count(DISTINCT e.job_id), max(attempts) FROM effects e JOIN pgqueue.job_history USING (job_id)"
    assert site.conn.execute(counts).fetchone() == (len(site.runs), len(site.runs), 1)


class Called:
    """Somebody outside who counts how often each job has called."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, key: str) -> int:
        self.keys.append(key)
        return self.keys.count(key)


def charges(site: Site, kind: str, called: Called) -> None:
    """A task that calls once in a step, and needs a second attempt after it: there the record must be."""

    @site.app.task(name="charge_sync")
    def charge_sync(ctx: JobContext) -> None:
        seen = site.seen(ctx)
        assert ctx.step("charge", called) == 1
        if ctx.job.attempt == 1:
            raise ValueError("after its step")
        ctx.conn.execute(INSERT, seen)

    @site.app.task(name="charge_async")
    async def charge_async(ctx: AsyncJobContext) -> None:
        seen = site.seen(ctx)
        assert await ctx.step("charge", called) == 1
        if ctx.job.attempt == 1:
            raise ValueError("after its step")
        await ctx.conn.execute(INSERT, seen)

    site.start()
    for _ in range(3):
        site.live(f"charge_{kind}")


@pytest.mark.proves("P5", "P7", "F15a", "F15b", "F50")
@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_steps_record_cut_anywhere_is_there_and_its_call_made_once(
    site: Site, kind: str, sent: bool
) -> None:
    called = Called()
    charges(site, kind, called)
    assert site.lives(f"charge_{kind}", "pgqueue/step", sent=sent) >= 6
    assert len(set(called.keys)) == len(called.keys)
    assert len(site.runs) == 2 * len(set(site.runs)), "no cut cost an attempt"
    assert site.conn.execute("SELECT count(*) FROM pgqueue.job_steps").fetchone() == (len(called.keys),)


def test_twin_a_step_that_trusts_what_was_sent_calls_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TrustingBook(StepBook):
        """Takes a lost answer for a yes."""

        def record(self, job: Any, name: str, result: str | None, *rest: Any) -> Recorded:
            try:
                with monkeypatch.context() as patched:
                    patched.setattr(Link, "run", partialmethod(Link.run, repeat=False))
                    return super().record(job, name, result, *rest)
            except psycopg.Error:
                return Recorded(None if result is None else json.loads(result), None)

    monkeypatch.setattr("pgqueue.worker.runtime.StepBook", TrustingBook)
    called = Called()
    charges(site, "sync", called)
    with pytest.raises(AssertionError):  # the second attempt's call answers 2, in each attempt that follows
        site.lives("charge_sync", "pgqueue/step", sent=False)
    assert len(set(called.keys)) < len(called.keys)


def test_twin_a_settlement_that_trusts_what_was_sent_loses_jobs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trust(self: Settler, ended: Any) -> None:
        self._state.claims.settled(ended.job.claim, ended.job.id)

    monkeypatch.setattr(Settler, "put_unknown", trust)

    @site.app.task(name="effect")
    def effect(ctx: JobContext) -> None:
        ctx.conn.execute(INSERT, site.seen(ctx))

    site.start()
    site.live("effect")
    site.wire.arm("pgqueue/job", 1, Mode.BEFORE)
    (job_id,) = site.conn.execute("SELECT pgqueue.enqueue('effect')").fetchone()  # type: ignore[misc]  # one row
    assert site.wire.fired.wait(20)
    site.live("effect")  # the worker has gone on to others
    row = site.conn.execute(
        "SELECT state, claim_id IS NULL FROM pgqueue.jobs WHERE id = %s", [job_id]
    ).fetchone()
    assert row == ("running", False), "nobody believes to hold it, and so nobody will end it"
