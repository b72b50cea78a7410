"""Everything a worker, a scheduler, an operator, a reader and a producer do works for a login with that role alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand
from rig.logins import make_logins
from rig.wait import wait_for

from pgqueue import App, JobContext, Reject, RetryAfter, Snooze
from pgqueue.cli.main import main
from pgqueue.control.doctor import examine
from pgqueue.errors import DatabaseError
from pgqueue.scheduler.runtime import Scheduler

pytestmark = pytest.mark.proves("S4")

PLACES = """SELECT 'live ' || state, count(*) FROM pgqueue.jobs GROUP BY 1 UNION ALL SELECT state, count(*) FROM pgqueue.job_history
    GROUP BY 1 UNION ALL SELECT 'dead ' || reason, count(*) FROM pgqueue.dead_letter_jobs GROUP BY 1 ORDER BY 1"""


class Shop:
    """An application whose worker logs in as a worker and nothing else."""

    def __init__(self, database: Database) -> None:
        self.database = database
        login = make_logins(database)
        database.connect().execute("CREATE TABLE effects (job_id bigint)")
        database.connect().execute("GRANT INSERT ON effects TO pgqueue_worker")
        self.producer = App(login("producer"))
        self.worker = App(login("worker"), grace_s=5)
        self.operator = App(login("operator"))
        self.reader_dsn = login("reader")
        self.operator_dsn = login("operator")
        tried: set[int] = set()

        @self.worker.task(name="effect")
        def effect(ctx: JobContext) -> None:
            ctx.conn.execute("INSERT INTO effects VALUES (%s)", (ctx.job.id,))

        @self.worker.task(name="plain")
        def plain() -> None: ...

        @self.worker.task(name="spawn")
        def spawn(ctx: JobContext) -> None:
            ctx.enqueue(plain)

        @self.worker.task(name="again")
        def again(ctx: JobContext) -> None:
            if ctx.job.id not in tried:
                tried.add(ctx.job.id)
                raise RetryAfter("10ms")

        @self.worker.task(name="later")
        def later(ctx: JobContext) -> None:
            if ctx.job.id not in tried:
                tried.add(ctx.job.id)
                raise Snooze("10ms")

        @self.worker.task(name="die")
        def die() -> None:
            raise Reject("no")

        @self.worker.task(name="group", group_commit=8)
        def group(ctx: JobContext) -> None:
            ctx.conn.execute("INSERT INTO effects VALUES (%s)", (ctx.job.id,))

        @self.worker.task(name="batch", batch=10)
        def batch(ctx: JobContext, jobs: list[object]) -> None:
            ctx.conn.execute("INSERT INTO effects SELECT -1 FROM generate_series(1, %s)", (len(jobs),))

    def drain(self) -> None:
        assert self.worker.worker(concurrency=4, drain=True).run() == 0

    def places(self) -> dict[str, int]:
        return dict(self.database.connect().execute(PLACES).fetchall())

    def close(self) -> None:
        for app in (self.producer, self.worker, self.operator):
            app.close()


@pytest.fixture
def shop(any_database: Database) -> Iterator[Shop]:
    shop = Shop(any_database)
    yield shop
    shop.close()


def test_a_producer_enqueues_and_a_worker_works(shop: Shop) -> None:
    with psycopg.connect(make_logins(shop.database)("producer")) as conn:
        for name in ("effect", "plain", "spawn", "again", "later", "die", "nosuch"):
            shop.producer.enqueue(name, where=conn)
    key = {"idempotency_key": "k", "delay": "50ms", "headers": {"h": "v"}, "tags": ["t"]}
    first = shop.producer.enqueue("group", **key)
    assert shop.producer.enqueue("group", **key).id == first.id
    for _ in range(5):
        shop.producer.enqueue("batch")
    shop.drain()
    wait_for(
        lambda: shop.drain() is None and "live scheduled" not in shop.places(),  # type: ignore[func-returns-value]
        30,
        what="the deferred job to be done",
    )
    assert shop.places() == {"dead rejected": 1, "live held": 1, "succeeded": 12}
    effects = shop.database.connect().execute("SELECT count(*) FROM effects").fetchone()
    assert effects == (7,)


def test_a_worker_rescues_promotes_and_keeps_house(shop: Shop) -> None:
    admin = shop.database.connect()
    gone = Hand(admin)
    gone.register(lease_s=0.001)
    job = shop.producer.enqueue("plain")
    held = shop.producer.enqueue("effect", priority=9)
    assert [taken.id for taken in gone.claim(1)] == [job.id]
    admin.execute(
        "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'unknown_task', ready_seq = NULL WHERE id = %s",
        [held.id],
    )
    admin.execute("UPDATE pgqueue.workers SET beat_at = beat_at - interval '1 hour'")
    admin.execute("INSERT INTO pgqueue.dedup_keys VALUES ('t', 'old', 1, now(), now() - interval '1 day')")
    admin.execute(
        "INSERT INTO pgqueue.queues (name, paused_at, paused_until) VALUES ('lifted', now(), now())"
    )
    worker = shop.worker.worker(concurrency=2)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_for(lambda: shop.places() == {"succeeded": 2}, 60, what="both jobs to end")
        done = """SELECT NOT EXISTS (SELECT FROM pgqueue.dedup_keys)
            AND NOT EXISTS (SELECT FROM pgqueue.queues WHERE paused_at IS NOT NULL)"""
        wait_for(lambda: shop.database.one(done), 60, what="the key to expire and the pause to be lifted")
    finally:
        worker.stop()
        thread.join(30)
    assert not thread.is_alive()


def test_a_scheduler_fires_as_a_worker(shop: Shop) -> None:
    shop.worker.schedule(every="1h", name="hourly")(shop.worker.tasks["plain"])
    scheduler = Scheduler(
        shop.worker.registry(),
        list(shop.worker._schedules.values()),
        shop.worker.settings,
        events=shop.worker.events,
        patience_s=0.4,
        poll_s=0.1,
    )
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    admin = shop.database.connect()
    try:
        planned = "SELECT count(*) FROM pgqueue.schedules WHERE planned_revision = revision"
        wait_for(lambda: shop.database.one(planned) == 1, 30, what="the schedule to be planned")
        admin.execute("""UPDATE pgqueue.schedules SET last_fire_at = clock_timestamp() - interval '1 hour',
            next_fire_at = clock_timestamp()""")
        fired = "SELECT count(*) FROM pgqueue.schedule_runs WHERE outcome = 'enqueued'"
        wait_for(lambda: shop.database.one(fired) == 1, 30, what="the fire")
    finally:
        scheduler.stop()
        thread.join(30)
    assert not thread.is_alive()


@pytest.mark.proves("S4")
def test_a_relay_delivers_as_a_worker_what_a_producer_emitted(shop: Shop) -> None:
    @shop.worker.on("ride.completed")
    @shop.worker.task(name="receipt")
    def receipt(ctx: JobContext, ride_id: int) -> None:
        ctx.emit("receipt.sent", {"ride_id": ride_id}, key=f"ride:{ride_id}")
        ctx.conn.execute("INSERT INTO effects VALUES (%s)", (ctx.job.id,))

    def relay() -> None:
        assert shop.worker.relay(app_reference="tests:app", drain=True).run() == 0

    relay()
    with psycopg.connect(make_logins(shop.database)("producer")) as conn:
        shop.producer.outbox.emit(conn, "ride.completed", {"ride_id": 7}, key="ride:7")
    shop.producer.outbox.emit(None, "ride.completed", {"ride_id": 8}, key="ride:8")
    relay()
    shop.drain()
    relay()
    assert shop.database.one("SELECT count(*) FROM effects") == 2
    assert shop.places() == {"succeeded": 2}
    for words in (("outbox", "list"), ("alerts", "list"), ("stats",)):
        assert main([*words, "--dsn", shop.operator_dsn]) == 0


@pytest.mark.proves("S16")
def test_a_producer_moves_and_ends_what_waits_and_no_more(shop: Shop) -> None:
    job = shop.producer.enqueue("plain", delay="1h").id
    assert shop.producer.jobs.reschedule(job, delay="2h", reason="five more minutes") == {job: "rescheduled"}
    with pytest.raises(DatabaseError, match="run_now"):
        shop.producer.jobs.run_now(job)
    assert shop.producer.jobs.cancel(job) == {job: "cancelled"}
    deeds = shop.database.connect().execute("SELECT action, db_role FROM pgqueue.operator_audit ORDER BY id")
    assert deeds.fetchall() == [("reschedule", "login_producer"), ("cancel", "login_producer")]


OPERATORS_VERBS = [
    ("jobs", "list", "--state", "scheduled", "--state", "held"),
    ("jobs", "list", "--state", "succeeded", "--state", "dead"),
    ("jobs", "get", "LIVE"),
    ("jobs", "get", "LIVE", "--show-args"),
    ("jobs", "timeline", "LIVE"),
    ("jobs", "run-now", "LIVE", "--reason", "why"),
    ("jobs", "cancel", "LIVE"),
    ("dlq", "list"),
    ("dlq", "groups"),
    ("dlq", "get", "DEAD"),
    ("dlq", "redrive", "DEAD"),
    ("dlq", "discard", "DEAD"),
    ("queues", "list"),
    ("queues", "pause", "default", "--no-wait"),
    ("queues", "resume", "default"),
    ("queues", "set", "default", "--owner", "payments"),
    ("workers", "list", "--ended"),
    ("stats",),
    ("schedules", "list"),
    ("schedules", "pause", "hourly"),
    ("schedules", "resume", "hourly"),
    ("schedules", "run", "hourly"),
    ("enqueue", "plain"),
    ("db", "check"),
    ("db", "roles"),
]


@pytest.mark.proves("S16", "S26")
def test_an_operator_does_all_of_it_and_each_deed_is_a_row(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.operator.schedules.upsert("hourly", task="plain", every="1h")
    dead = shop.producer.enqueue("die").id
    shop.drain()
    live = shop.producer.enqueue("plain", delay="1h").id
    for words in OPERATORS_VERBS:
        arguments = [{"LIVE": str(live), "DEAD": str(dead)}.get(word, word) for word in words]
        code = main([*arguments, "--dsn", shop.operator_dsn])
        talk = capsys.readouterr()
        assert code == 0, f"{' '.join(words)}: {talk.err}"
    deeds = (
        shop.database.connect()
        .execute("SELECT action, db_role FROM pgqueue.operator_audit ORDER BY id")
        .fetchall()
    )
    assert {role for _, role in deeds} == {"login_operator"}
    assert [action for action, _ in deeds] == [
        *(
            "schedule",
            "reveal_args",
            "run_now",
            "cancel",
            "redrive",
            "discard",
            "pause",
            "resume",
            "set",
            "pause",
            "resume",
            "run_now",
        ),
    ]


def test_a_reader_looks_and_cannot_touch(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    job = shop.producer.enqueue("plain", {}).id
    shop.drain()
    for words in (
        ("stats",),
        ("queues", "list"),
        ("workers", "list"),
        ("schedules", "list"),
        ("jobs", "timeline", str(job)),
        ("db", "check"),
    ):
        assert main([*words, "--dsn", shop.reader_dsn]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for words in (("jobs", "cancel", str(job)), ("queues", "pause", "default"), ("jobs", "list")):
        assert main([*words, "--dsn", shop.reader_dsn]) == 1
        talk = capsys.readouterr().err
        assert "pgqueue_operator" in talk
        assert talk.count("\n") <= 2


def test_doctor_runs_as_an_operator_and_looks_at_the_roles(shop: Shop) -> None:
    findings = {finding.check: finding for finding in examine(shop.operator._desk)}
    assert findings["roles"].verdict == "PASS"
    assert json.dumps([str(finding) for finding in findings.values()])
