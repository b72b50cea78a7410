"""A worker, a scheduler and an exporter as their observers see them: metrics at rest, probes, a lost database."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rig.database import Database
from rig.logins import make_logins
from rig.proc import Proc
from rig.wait import wait_for

from pgqueue import App, Reject, Retry, Worker
from pgqueue.cli.main import main
from pgqueue.core.events import AttemptEnded, AttemptsSucceeded, Warned
from pgqueue.observe.database_metrics import DatabaseMetrics
from pgqueue.observe.health import DatabaseProbe
from pgqueue.observe.metric_table import DATABASE_METRICS
from pgqueue.observe.serve import Ports, serve_observability
from pgqueue.observe.snapshot import COUNTED_MAX, PARTS, Snapshots
from pgqueue.storage.statements import STATEMENTS
from pgqueue.worker.old_transactions import OldTransactions

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def parsed(text: str) -> Values:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def at(values: Values, name: str, **labels: str) -> float | None:
    return values.get((f"pgqueue_{name}", frozenset(labels.items())))


def total(values: Values, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(v for (n, pairs), v in values.items() if n == f"pgqueue_{name}" and wanted <= pairs)


def failing(port: int, path: str) -> list[str]:
    status, body = get(port, path)
    names: list[str] = json.loads(body)["failing"]
    assert (status == 200) == (not names)
    return names


@contextmanager
def observed(site: Any, worker: Worker) -> Iterator[Ports]:
    tasks = [(task.queue, task.name) for task in site.app.tasks.values()]
    with serve_observability(
        site.app.settings, site.app.events, worker.vitals, component="worker", tasks=tasks
    ) as ports:
        yield ports


@pytest.mark.proves("P22")
def test_at_rest_the_metrics_are_the_rows(make_site: Callable[..., Any]) -> None:
    site = make_site(metrics_port=0, health_port=0, poll_max_s=0.25, heartbeat_s=0.2)

    @site.app.task(name="fine")
    def fine() -> None: ...

    @site.app.task(name="effect", queue="money")
    def effect(ctx: Any) -> None:
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 'x')", (ctx.job.id,))

    @site.app.task(name="bad")
    def bad() -> None:
        raise Reject("no")

    @site.app.task(name="slow")
    async def slow() -> None: ...

    site.conn.execute("INSERT INTO pgqueue.queues (name, sla_s) VALUES ('money', 3600)")
    worker = site.start()
    with observed(site, worker) as ports:
        wait_for(lambda: worker.vitals.objectives_s() == {"money": 3600.0}, what="the promise heard")
        for _ in range(20):
            fine.enqueue(site.conn)
            effect.enqueue(site.conn)
            bad.enqueue(site.conn)
            slow.enqueue(site.conn)
        wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.jobs") == 0, 30, "an empty queue")

        def rest() -> Values | None:
            values = parsed(get(ports.metrics, "/metrics")[1])
            seen = (
                total(values, "jobs_settled_total") >= 80
                and total(values, "handler_transaction_seconds_count") >= 20
                and total(values, "settle_jobs_sum") >= 60
                and total(values, "event_loop_lag_seconds_count") >= 1
            )
            return values if seen else None

        values = wait_for(rest, what="everything counted")
    for queue, task, state, count in site.rows(
        "SELECT queue, task, state, count(*) FROM pgqueue.job_history GROUP BY 1, 2, 3"
        " UNION ALL SELECT queue, task, 'dead', count(*) FROM pgqueue.dead_letter_jobs GROUP BY 1, 2"
    ):
        assert at(values, "jobs_settled_total", queue=queue, task=task, outcome=state) == count
        assert at(values, "job_run_seconds_count", queue=queue, task=task) == count
        assert at(values, "job_wait_seconds_bucket", queue=queue, task=task, le="+Inf") == count
    assert total(values, "settle_jobs_sum") == 60, "the rest was settled with its effect"
    assert at(values, "handler_transaction_seconds_count", queue="money") == 20
    assert at(values, "sla_starts_total", queue="money", met="true") == 20
    assert total(values, "sla_starts_total") == 20
    assert total(values, "claim_jobs_sum") == 80
    assert total(values, "wakeups_total") > 0
    assert total(values, "worker_slots", state="idle") + total(values, "worker_slots", state="busy") == 4
    assert total(values, "heartbeat_age_seconds") < 30
    assert total(values, "listener_failures_total") == 0
    assert next(key for key in values if key[0] == "pgqueue_build_info")[1] >= {("component", "worker")}


def test_what_the_customer_felt_counts_from_the_first_due_moment(site: Any) -> None:
    @site.app.task(name="flaky", retry=Retry(max_retries=3, initial_delay="1s", backoff_strategy="constant"))
    def flaky(ctx: Any) -> None:
        if ctx.job.attempt < 3:
            raise RuntimeError("not yet")

    flaky.using(delay="1s").enqueue(site.conn)
    site.drain()
    while site.one("SELECT count(*) FROM pgqueue.jobs"):
        site.drain()
    ended = [event for event in site.events if isinstance(event, AttemptEnded)]
    assert [(event.outcome, event.total_s) for event in ended] == [("retry", None), ("retry", None)]
    (done,) = [event.line(0) for event in site.events if isinstance(event, AttemptsSucceeded)]
    felt = site.one(
        "SELECT extract(epoch FROM finished_at - enqueued_at)::float - 1 FROM pgqueue.job_history"
    )
    assert done.total_s == pytest.approx(felt, abs=0.5)
    assert done.total_s > 2 > done.wait_s + done.run_s
    assert done.settle_s > 0


def test_the_probes_follow_a_worker_through_its_life(make_site: Callable[..., Any]) -> None:
    site = make_site(health_port=0, grace_s=30)
    go = threading.Event()

    @site.app.task(name="waits")
    def waits() -> None:
        assert go.wait(30)

    worker = site.app.worker(None, concurrency=2)
    with observed(site, worker) as ports:
        assert failing(ports.health, "/startupz") == ["started"]
        assert failing(ports.health, "/healthz") == []
        assert "started" in failing(ports.health, "/readyz")
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            wait_for(lambda: failing(ports.health, "/readyz") == [], what="ready")
            assert failing(ports.health, "/startupz") == []
            assert main(["health", "--port", str(ports.health)]) == 0
            waits.enqueue(site.conn)
            wait_for(lambda: worker.state.running, what="a running handler")
            worker.stop()
            assert failing(ports.health, "/readyz") == ["not_draining"]
            assert failing(ports.health, "/healthz") == [], "a process that drains must not be killed for it"
            assert main(["health", "--port", str(ports.health)]) == 1
        finally:
            go.set()
            thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_transaction_that_stays_open_is_warned_about_once(
    make_site: Callable[..., Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue.worker.old_transactions.LOOK_S", 0.02)
    site = make_site(handler_transaction_warn_s=0.2)
    go = threading.Event()
    looked: list[int] = []
    look = OldTransactions.look
    monkeypatch.setattr(OldTransactions, "look", lambda self: (look(self), looked.append(1)))

    if how == "sync":

        @site.app.task(name="slow")
        def slow(ctx: Any) -> None:
            ctx.conn.execute("SELECT 1")
            assert go.wait(30)
    else:

        @site.app.task(name="slow")
        async def slow(ctx: Any) -> None:
            await ctx.conn.execute("SELECT 1")
            while not go.is_set():  # noqa: ASYNC110 - the event is another thread's
                await asyncio.sleep(0.01)

    @site.app.task(name="quick")
    def quick(ctx: Any) -> None:
        ctx.conn.execute("SELECT 1")

    def told() -> list[Warned]:
        return [e for e in site.events if isinstance(e, Warned) and e.key == "handler_transaction_old"]

    job = slow.enqueue(site.conn)
    quick.enqueue(site.conn)
    site.start()
    try:
        wait_for(told, 30, "the warning")
        count = len(looked)
        wait_for(lambda: len(looked) > count + 5, 30, "further looks")
    finally:
        go.set()
    (warning,) = told()
    assert warning.fields["job_id"] == job.id
    assert warning.fields["task"] == "slow"
    site.wait_state(job.id, "succeeded")


def test_a_thread_that_stands_still_is_not_live(make_site: Callable[..., Any], monkeypatch: Any) -> None:
    site = make_site(health_port=0)
    blocked, go = threading.Event(), threading.Event()

    @site.app.task(name="blocks")
    async def blocks() -> None:
        blocked.set()
        assert go.wait(30)  # the mistake: it blocks the loop

    worker = site.start()
    with observed(site, worker) as ports:
        blocks.enqueue(site.conn)
        assert blocked.wait(30)
        assert failing(ports.health, "/healthz") == []
        monkeypatch.setattr("pgqueue.worker.vitals.STILL_S", 0.7)
        try:
            wait_for(lambda: failing(ports.health, "/healthz") == ["event_loop"], what="the loop found out")
        finally:
            go.set()
        wait_for(lambda: failing(ports.health, "/healthz") == [], what="the loop turning again")


def test_a_lost_database_is_no_reason_to_restart(
    make_site: Callable[..., Any], database: Database, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("pgqueue.observe.health.FRESH_S", 0.0)
    site = make_site(health_port=0, heartbeat_s=0.2, lease_s=1.0, tcp_user_timeout_s=0.6, poll_max_s=0.5)

    @site.app.task(name="t")
    def t() -> None: ...

    worker = site.start()
    with observed(site, worker) as ports:
        wait_for(lambda: failing(ports.health, "/readyz") == [], what="ready")
        with psycopg.connect(database.server.dsn(), autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database.name,)
            )
            try:
                wait_for(
                    lambda: {"database", "heartbeat"} <= set(failing(ports.health, "/readyz")),
                    what="not ready",
                )
                assert failing(ports.health, "/healthz") == []
                assert main(["health", "--port", str(ports.health)]) == 5
                assert "database" in capsys.readouterr().out
            finally:
                admin.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")
        wait_for(lambda: failing(ports.health, "/readyz") == [], 30, "ready again")


def test_a_wrong_schema_is_not_ready(empty_database: Database) -> None:
    probe = DatabaseProbe(empty_database.dsn)
    assert {check.name: check.ok for check in probe.checks()} == {"database": True, "schema": False}
    probe.close()


def test_health_of_a_port_where_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--port", "1"]) == 1
    assert "no answer" in capsys.readouterr().out


APP = """
from pgqueue import App

app = App()


@app.schedule(every="1s", name="tick")
@app.task(name="t", queue="ticks")
def t():
    pass
"""


def opened(process: Proc, name: str) -> int:
    """The port a process says it serves `name` on."""

    def found() -> int:
        assert process.running, process.tail()
        lines = [json.loads(line) for line in process.stderr.splitlines() if line.startswith("{")]
        return next(
            (
                line["port"]
                for line in lines
                if line["event"] == "endpoint.opened" and line["endpoint"] == name
            ),
            0,
        )

    return wait_for(found, 30, f"{name} served")


@pytest.mark.proves("F39")
def test_processes_of_all_kinds_serve_their_ports(database: Database, tmp_path: Path) -> None:
    (tmp_path / "ticksapp.py").write_text(APP)
    env = {
        "PGQUEUE_DATABASE_URL": database.dsn,
        "PYTHONPATH": str(tmp_path),
        "PGQUEUE_LOG_FORMAT": "json",
        "PGQUEUE_METRICS_PORT": "0",
    }

    def start(*arguments: str, **more: str) -> Proc:
        return Proc([sys.executable, "-m", "pgqueue", *arguments], env={**env, **more})

    with start("scheduler", "-A", "ticksapp:app") as scheduler:
        ticks = opened(scheduler, "metrics")
        wait_for(
            lambda: total(parsed(get(ticks, "/metrics")[1]), "schedule_fires_total", result="enqueued") >= 1,
            30,
        )
        assert failing(ticks, "/readyz") == []
        assert total(parsed(get(ticks, "/metrics")[1]), "scheduler_is_leader") == 1
        # A port that is taken: the worker works all the same.
        with start(
            "worker", "-A", "ticksapp:app", "--metrics-port", str(ticks), "--health-port", "0"
        ) as worker:
            health = opened(worker, "health")
            wait_for(lambda: failing(health, "/readyz") == [], 30, "ready")
            wait_for(lambda: database.one("SELECT count(*) FROM pgqueue.job_history") >= 1, 30)
            assert worker.stderr.count("cannot listen on") == 1
            with start("exporter", "--port", "0") as exporter:
                port = opened(exporter, "metrics")
                assert failing(port, "/readyz") == []
                values = parsed(get(port, "/metrics")[1])
                assert at(values, "database_up") == 1
                assert at(values, "workers", queue="ticks", status="live") == 1
                assert at(values, "scheduler_leaders") == 1
                assert at(values, "schedules", state="enabled") == 1
                exporter.signal(signal.SIGTERM)
                assert exporter.wait() == 0
            with start("relay", "-A", "ticksapp:app") as relay:
                port = opened(relay, "metrics")
                wait_for(lambda: failing(port, "/readyz") == [], 30, "ready")
                assert failing(port, "/healthz") == failing(port, "/startupz") == []
                components = [dict(key[1]).get("component") for key in parsed(get(port, "/metrics")[1])]
                assert "relay" in components
                relay.signal(signal.SIGTERM)
                assert relay.wait() == 0
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
        scheduler.signal(signal.SIGTERM)
        assert scheduler.wait() == 0


def test_a_workers_row_says_where_it_can_be_asked_and_how_often_it_was_away(
    make_site: Callable[..., Any],
) -> None:
    site = make_site(heartbeat_s=0.3, metrics_port=0)

    @site.app.task(name="t")
    def t() -> None: ...

    worker = site.start()
    asked = "SELECT port, claims_lost, beats_late, claim_lost_at IS NULL, beat_late_at IS NULL FROM pgqueue.workers"
    with serve_observability(
        site.app.settings,
        site.app.events,
        worker.vitals,
        component="worker",
        opened=worker.vitals.served_at,
    ) as ports:
        wait_for(lambda: site.rows(asked)[0][0] == ports.metrics, 30, "the port in the row")
        (row,) = site.app.queues.workers()
        assert (row.port, row.claims_lost) == (ports.metrics, 0)
        before = site.rows(asked)[0][2:]
        worker.state.claims_lost += 1
        wait_for(lambda: site.rows(asked)[0][1] == 1, 30, "the lost claim in the row")
        assert site.rows(asked)[0][3] is False
        worker.state.beats_late += 1
        wait_for(lambda: site.rows(asked)[0][2] > before[0], 30, "the late beat in the row")
        assert site.rows(asked)[0][4] is False
    site.stop()
    assert site.rows(asked)[0][:2] == (None, 1)


def scrape(snapshots: Snapshots) -> Values:
    registry = CollectorRegistry()
    registry.register(DatabaseMetrics(snapshots))
    return parsed(generate_latest(registry).decode())


@pytest.fixture
def snapshots(database: Database) -> Iterator[Snapshots]:
    made = Snapshots(database.dsn)
    yield made
    made.close()


def test_the_state_of_the_database_is_told(site: Any, snapshots: Snapshots) -> None:
    @site.app.task(name="pay", queue="critical")
    def pay() -> None: ...

    @site.app.task(name="bad", queue="critical")
    def bad() -> None:
        raise Reject("no")

    bad.enqueue(site.conn)
    site.drain()
    for _ in range(3):
        pay.enqueue(site.conn)
    pay.using(delay="1h").enqueue(site.conn)
    site.app.queues.pause("default", wait_s=0)
    held = pay.enqueue(site.conn).id
    site.conn.execute(
        "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'unknown_task', ready_seq = NULL WHERE id = %s",
        (held,),
    )
    site.conn.execute("UPDATE pgqueue.jobs SET run_at = run_at - interval '90 s' WHERE state = 'ready'")
    site.app.schedules.upsert("nightly", task="pay", every="1h")
    site.app.outbox.emit(site.conn, "ride.completed", {"ride_id": 7}, key="ride:7")
    site.conn.execute(
        "UPDATE pgqueue.queues SET sla_s = 5, owner = 'payments', tier = 'critical' WHERE name = 'critical'"
    )
    values = scrape(snapshots)
    assert [key for key in values if key[0] == "pgqueue_snapshot_failed"] == []
    for state, count in {"ready": 3, "scheduled": 1, "held": 1, "running": 0}.items():
        assert at(values, "jobs", queue="critical", state=state) == count
        assert at(values, "jobs_estimated", queue="critical", state=state) == 0
    assert at(values, "jobs_held", queue="critical", reason="unknown_task") == 1
    assert 90 <= (at(values, "queue_lag_seconds", queue="critical") or 0) < 200
    assert at(values, "queue_paused", queue="default") == 1
    assert at(values, "queue_paused", queue="critical") == 0
    assert at(values, "queue_sla_seconds", queue="critical") == 5
    assert at(values, "queue_sla_target_ratio", queue="critical") == 0.99
    assert at(values, "queue_sla_seconds", queue="default") is None
    assert at(values, "queue_info", queue="critical", tier="critical", owner="payments") == 1
    assert at(values, "queue_limited_lag_seconds", queue="critical") == 0
    assert at(values, "dead_letters", queue="critical", task="bad") == 1
    assert at(values, "dead_letters_recent", queue="critical") == 1
    assert (at(values, "dead_letters_oldest_age_seconds", queue="critical") or -1) >= 0
    assert at(values, "workers", queue="critical", status="live") == 0
    assert at(values, "scheduler_leaders") == 0
    assert at(values, "schedules", state="enabled") == 1
    assert at(values, "schema_at_head") == 1
    assert at(values, "outbox_pending", topic="ride.completed") == 1
    assert (at(values, "outbox_oldest_age_seconds", topic="ride.completed") or -1) >= 0
    assert at(values, "alerts_firing", rule="NoWorkers", severity="page") == 0
    assert at(values, "database_connections_max") == 200
    assert (at(values, "database_connections") or 0) >= 2
    assert (at(values, "table_bytes", table="jobs") or 0) > 0
    assert at(values, "partitions_ahead", table="job_history") == 0 or at(
        values, "partitions_ahead", table="job_history"
    )
    assert (at(values, "snapshot_seconds") or 9) < 9


def test_the_last_minutes_are_told_from_the_rollups(site: Any, snapshots: Snapshots) -> None:
    site.conn.execute("INSERT INTO pgqueue.queues (name, sla_s) VALUES ('critical', 5)")

    @site.app.task(name="pay", queue="critical")
    def pay() -> None: ...

    for _ in range(4):
        pay.enqueue(site.conn)
    site.drain()
    values = scrape(snapshots)
    assert at(values, "recent_attempts", queue="critical", outcome="succeeded") is None, (
        "no minute is counted yet"
    )
    site.conn.execute(
        "INSERT INTO pgqueue.stats_minutely (grain_s, bucket_at, series, queue, task, outcome, n, wait_n, run_n, wait_max_s, run_max_s, wait_met)"
        " SELECT 60, date_trunc('minute', now()) - interval '2 minutes', 'work', 'critical', 'pay', o.outcome, o.n,"
        " array_fill(0, ARRAY[26]) || '{}', (array_fill(0, ARRAY[10]) || ARRAY[o.n] || array_fill(0, ARRAY[15])), 9, 0.9, o.n - 1"
        " FROM (VALUES ('succeeded', 8), ('retry', 2)) AS o (outcome, n)"
    )
    site.conn.execute(
        "UPDATE pgqueue.stats_progress SET done_upto = date_trunc('minute', now()) WHERE what = 'rollups'"
    )
    with closing(Snapshots(site.database.dsn)) as later:
        values = scrape(later)
    assert [key for key in values if key[0] == "pgqueue_snapshot_failed"] == []
    told = {
        o: at(values, "recent_attempts", queue="critical", outcome=o) for o in ("succeeded", "retry", "dead")
    }
    assert told == {"succeeded": 8, "retry": 2, "dead": 0}
    assert 0.5 <= (at(values, "recent_run_seconds", queue="critical", quantile="0.5") or 0) <= 0.9
    assert at(values, "recent_run_seconds", queue="critical", quantile="1") == pytest.approx(0.9)
    assert at(values, "recent_wait_seconds", queue="critical", quantile="1") == 9
    assert at(values, "recent_sla_met_ratio", queue="critical") == pytest.approx(0.8)
    assert 0 <= (at(values, "rollup_age_seconds") or -1) < 120
    assert at(values, "upkeep_failing", duty="rescue") == 0


def test_every_part_answers_on_every_server(any_database: Database) -> None:
    with closing(Snapshots(any_database.dsn)) as snapshots:
        snapshot = snapshots.latest()
    assert snapshot is not None
    assert (snapshot.up, snapshot.failed) == (True, ())


def test_no_part_reads_a_large_table_whole(database: Database) -> None:
    conn = database.connect()
    conn.execute(
        "INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts, first_failed_at,"
        " failed_at, created_at, job_created_at, redriven_as)"
        " SELECT n, 'q' || n % 3, 't' || n % 5, '{}', 5, 'rejected', 1, 1, now(), now(), now(), now(), CASE WHEN n % 50 > 0 THEN 1 END"
        " FROM generate_series(1, 50000) n"
    )
    conn.execute(
        "INSERT INTO pgqueue.jobs (id, created_at, run_at, priority, max_attempts, state, queue, task, args, hold_reason)"
        " SELECT n, now(), now(), 5, 1, 'held', 'q' || n % 3, 't', '{}', CASE WHEN n % 2 = 0 THEN 'suspect' ELSE 'operator' END"
        " FROM generate_series(1, 50000) n"
    )
    conn.execute("ANALYZE pgqueue.dead_letter_jobs")
    conn.execute("ANALYZE pgqueue.jobs")
    for name in (part.statement for part in PARTS):
        plan = "\n".join(row[0] for row in conn.execute(b"EXPLAIN " + STATEMENTS[name]).fetchall())
        assert "Seq Scan on dead_letter_jobs" not in plan, name
        assert "Seq Scan on jobs" not in plan, name
    with closing(Snapshots(database.dsn)) as snapshots:
        values = scrape(snapshots)
    assert total(values, "dead_letters", queue="q1") == pytest.approx(333, abs=2)
    assert at(values, "jobs_held", queue="q0", reason="operator") == 8333


def test_one_snapshot_serves_every_scrape(database: Database) -> None:
    snapshots = Snapshots(database.dsn, fresh_s=3600)
    threads = [threading.Thread(target=scrape, args=(snapshots,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scrape(snapshots)
    assert snapshots.taken == 1
    snapshots.close()


def test_counts_end_where_counting_would_hurt(site: Any, snapshots: Snapshots) -> None:
    @site.app.task(name="pay", queue="critical")
    def pay() -> None: ...

    site.conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('critical')")
    pay.enqueue_many(site.conn, [{} for _ in range(COUNTED_MAX + 500)])
    values = scrape(snapshots)
    assert at(values, "jobs", queue="critical", state="ready") == COUNTED_MAX
    assert at(values, "jobs_estimated", queue="critical", state="ready") == 1


def test_an_open_transaction_and_its_age_are_seen(database: Database, snapshots: Snapshots) -> None:
    conn = database.connect()
    conn.execute("BEGIN")
    conn.execute("SELECT pg_current_xact_id()")
    wait_for(
        lambda: database.one(
            "SELECT max(clock_timestamp() - xact_start) > interval '50 ms' FROM pg_stat_activity"
        )
    )
    assert (at(scrape(snapshots), "oldest_transaction_age_seconds") or 0) >= 0.05


def test_a_part_that_fails_is_named_and_the_rest_stands(database: Database, snapshots: Snapshots) -> None:
    database.connect().execute("DROP VIEW pgqueue.held_summary")
    values = scrape(snapshots)
    assert at(values, "snapshot_failed", part="held") == 1
    assert at(values, "database_up") == 1
    assert at(values, "database_connections_max") == 200


def test_without_a_database_the_exporter_says_that_it_is_down() -> None:
    began = time.monotonic()
    values = scrape(Snapshots("host=/nowhere port=1"))
    assert at(values, "database_up") == 0
    assert at(values, "database_connections_max") is None
    assert time.monotonic() - began < 30


def test_the_exporter_needs_a_free_port(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)
    app = App(database.dsn, metrics_port=0)
    with serve_observability(app.settings, app.events, app.worker().vitals, component="worker") as ports:
        assert main(["exporter", "--port", str(ports.metrics)]) == 78
    assert "choose another" in capsys.readouterr().err


@pytest.mark.proves("S4")
def test_a_reader_may_run_the_exporter(database: Database, site: Any) -> None:
    login = make_logins(database)

    @site.app.task(name="bad")
    def bad() -> None:
        raise Reject("no")

    bad.enqueue(site.conn)
    site.drain()
    with closing(Snapshots(login("reader"))) as snapshots:
        snapshot = snapshots.latest()
    assert snapshot is not None
    assert (snapshot.up, snapshot.failed) == (True, ())
    told = {name for name, _, _ in snapshot.values}
    known = {metric.name for metric in DATABASE_METRICS}
    # Schedules and rollups have nothing to tell here; the rest is made by the collector itself.
    assert told >= {
        "jobs",
        "queue_lag_seconds",
        "workers",
        "dead_letters",
        "database_connections",
        "table_bytes",
    }
    assert told <= known
