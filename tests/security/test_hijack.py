"""Functions with their owner's rights, and a whole life of jobs, under a search_path that shadows what they call."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest
from rig.database import Database
from rig.hostile import plant
from rig.logins import make_logins

from pgqueue import App, JobContext, Reject, Retry
from pgqueue.cli.main import main

DEFINERS = """SELECT p.proname::text, p.proowner = n.nspowner, p.proconfig,
    EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0)
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'pgqueue' AND p.prosecdef"""

# A call of each, by the least of the roles that may, in an order in which each finds what it acts on.
CALLS = {
    "put_job": (
        "producer",
        "SELECT pgqueue.put_job('t', idempotency_key => 'k', delay => interval '1 h', headers => '{\"a\": \"b\"}')",
    ),
    "put_jobs": ("producer", "SELECT pgqueue.put_jobs('t', '[{}, {}]', idempotency_keys => ARRAY['x', 'y'])"),
    "enqueue": ("producer", "SELECT pgqueue.enqueue('t', '{\"n\": 1}', priority => 3)"),
    "enqueue_job": ("producer", "SELECT * FROM pgqueue.enqueue_job('t', tags => ARRAY['a'])"),
    "enqueue_jobs": ("producer", "SELECT * FROM pgqueue.enqueue_jobs('t', ARRAY['{}']::pg_catalog.jsonb[])"),
    "enqueue_many": ("producer", "SELECT * FROM pgqueue.enqueue_many('t', ARRAY['{}']::pg_catalog.jsonb[])"),
    "enqueue_receipt": ("producer", "SELECT pgqueue.enqueue_receipt(1)"),
    "enqueue_outcome": ("producer", "SELECT pgqueue.enqueue_outcome('1 1 1.5')"),
    "cancel": ("producer", "SELECT pgqueue.cancel(2, 'why')"),
    "run_now": ("operator", "SELECT pgqueue.run_now(1, 'why')"),
    "reschedule": ("producer", "SELECT pgqueue.reschedule(1, delay => '1 h')"),
    "redrive": ("operator", "SELECT pgqueue.redrive(900, 'why')"),
    "discard": ("operator", "SELECT pgqueue.discard(901, 'why')"),
    "pause": ("operator", "SELECT pgqueue.pause('default', 'why')"),
    "resume": ("operator", "SELECT pgqueue.resume('default')"),
    "note_operation": ("operator", "SELECT pgqueue.note_operation(NULL, NULL, 'a', 'b', 'c')"),
    "put_schedule": (
        "operator",
        'SELECT pgqueue.put_schedule(\'{"name": "s", "task": "t", "every_s": 60}\')',
    ),
    "pause_schedule": ("operator", "SELECT pgqueue.pause_schedule('s')"),
    "resume_schedule": ("operator", "SELECT pgqueue.resume_schedule('s')"),
    "run_schedule": ("operator", "SELECT pgqueue.run_schedule('s')"),
    "tick_schedule": (
        "worker",
        """SELECT * FROM pgqueue.tick_schedule('s', (SELECT revision FROM pgqueue.schedules), (SELECT last_fire_at FROM pgqueue.schedules),
            pg_catalog.clock_timestamp(), pg_catalog.clock_timestamp(),
            '[{"run_key": "k", "fire_at": "2026-01-01T00:00Z", "run_at": "2026-01-01T00:00Z", "outcome": "enqueued"}]', 'me')""",
    ),
    "prune_orphans": ("worker", "SELECT * FROM pgqueue.prune_orphans('app', 'me')"),
    "delete_schedule": ("operator", "SELECT pgqueue.delete_schedule('s')"),
    "drain_worker": ("operator", "SELECT pgqueue.drain_worker('01234567')"),
    "set_queue": ("operator", "SELECT pgqueue.set_queue('default', '{\"owner\": \"one\"}')"),
    "register_queues": (
        "worker",
        "SELECT pgqueue.register_queues(ARRAY['default', 'other'], '{\"default\": {\"owner\": \"two\"}}')",
    ),
    "evaluate_alerts": (
        "worker",
        "SELECT * FROM pgqueue.evaluate_alerts('me', 'leader', 'pgqueue_0000', ARRAY['log', 'notify'])",
    ),
    "ack_alert": ("operator", "SELECT pgqueue.ack_alert(1, 'why')"),
    "set_alert_rule": ("operator", "SELECT pgqueue.set_alert_rule('NoWorkers', '{\"threshold\": 1}', 'why')"),
    "restore_alert_rules": ("operator", "SELECT pgqueue.restore_alert_rules()"),
    "emit": ("producer", "SELECT pgqueue.emit('ride.completed', '{}', 'ride:7')"),
    "put_message": (
        "producer",
        "SELECT pgqueue.put_message('ride.completed', '{}', 'ride:7', '{\"a\": \"b\"}')",
    ),
    "emit_receipt": ("producer", "SELECT pgqueue.emit_receipt(1)"),
    "emit_outcome": (
        "producer",
        "SELECT pgqueue.emit_outcome('message 1 1 6a1f0c9e-3f0e-4c57-9df0-000000000000 x')",
    ),
    "accept_message": (
        "producer",
        "SELECT pgqueue.accept_message(pg_catalog.gen_random_uuid(), 'ride.completed', '{}')",
    ),
    "put_subscriptions": (
        "worker",
        'SELECT * FROM pgqueue.put_subscriptions(\'app\', \'[{"pattern": "ride.*", "sink": "web"}]\')',
    ),
    "subscribe": ("operator", "SELECT pgqueue.subscribe('ride.*', 't')"),
    "route_messages": ("worker", "SELECT * FROM pgqueue.route_messages(10)"),
    "claim_lanes": (
        "worker",
        """SELECT * FROM pgqueue.claim_lanes(ARRAY['web'], ARRAY[1], 5, 10, pg_catalog.gen_random_uuid(),
            pg_catalog.gen_random_uuid())""",
    ),
    "settle_lane": (
        "worker",
        "SELECT pgqueue.settle_lane('web', '=k', pg_catalog.gen_random_uuid(), ARRAY[1])",
    ),
    "replay_message": ("operator", "SELECT pgqueue.replay_message(1)"),
    "skip_message": ("operator", "SELECT pgqueue.skip_message(1)"),
    "unsubscribe": ("operator", "SELECT pgqueue.unsubscribe('ride.*', 't')"),
    "take_once": ("worker", "SELECT * FROM pgqueue.take_once('t', 'once', 1, '1 h')"),
    "keep_once": ("worker", "SELECT pgqueue.keep_once('t', 'once', 1, '{}')"),
    "keep_results": (
        "worker",
        """SELECT pgqueue.keep_results('[{"task": "t", "key": "k", "job_id": 1, "result": {"a": 1}}]')""",
    ),
    "note_moves": (
        "worker",
        """SELECT pgqueue.note_moves('[{"job_id": 1, "from_state": "ready", "to_state": "running", "reason": "claimed",
            "queue": "q", "task": "t", "attempt": 1, "worker_id": "6a1f0c9e-3f0e-4c57-9df0-000000000000"}]')""",
    ),
    "key_result": ("producer", "SELECT pgqueue.key_result('t', 'k')"),
    "paused_queues": ("worker", "SELECT * FROM pgqueue.paused_queues()"),
    "ensure_partitions": ("worker", "SELECT pgqueue.ensure_partitions(10)"),
    "drop_partition": ("worker", "SELECT pgqueue.drop_partition(1)"),
    "prune_default_partitions": ("worker", "SELECT pgqueue.prune_default_partitions(1, 10)"),
    "sweep_history": ("worker", "SELECT * FROM pgqueue.sweep_history(10)"),
    "prune_redriven": ("worker", "SELECT pgqueue.prune_redriven(1, 10)"),
    "discard_old_letters": ("worker", "SELECT pgqueue.discard_old_letters(1, 10, 'me')"),
    "summarize_days": ("worker", "SELECT pgqueue.summarize_days()"),
    "roll_up": ("worker", "SELECT * FROM pgqueue.roll_up(5)"),
    "recount": ("worker", "SELECT * FROM pgqueue.recount(5)"),
    "work_stats": ("reader", "SELECT * FROM pgqueue.work_stats('yesterday', 'today')"),
    "keep_history": ("operator", "SELECT pgqueue.keep_history('default', 5)"),
    # Called by the two rollups above and by nobody else.
    "count_attempts": ("owner", "SELECT * FROM pgqueue.count_attempts('yesterday', 'today')"),
    "count_minutes": ("owner", "SELECT * FROM pgqueue.count_minutes('yesterday', 'today')"),
    "merge_minutes": ("owner", "SELECT * FROM pgqueue.merge_minutes('yesterday', 'today')"),
    "explain": ("reader", "SELECT * FROM pgqueue.explain(1)"),
    "job_timeline": ("reader", "SELECT * FROM pgqueue.job_timeline(1)"),
}
LETTERS = """INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts, first_failed_at,
    failed_at, created_at, job_created_at) SELECT n, 'default', 't', '{}', 5, 'gave_up', 1, 1, now(), now(), now(), now()
    FROM generate_series(900, 901) n"""


@pytest.mark.proves("S2")
def test_definers_have_a_fixed_path_and_a_bounded_owner(any_database: Database) -> None:
    found = any_database.connect().execute(DEFINERS).fetchall()
    assert len(found) > 20
    for name, owned, settings, public in found:
        assert "search_path=pg_catalog, pg_temp" in settings, name
        assert owned, name
        assert not public, name


@pytest.mark.proves("S2")
def test_no_definer_can_be_hijacked(any_database: Database) -> None:
    login = make_logins(any_database)
    admin = any_database.connect()
    admin.execute(LETTERS)
    definers = {row[0] for row in admin.execute(DEFINERS).fetchall()}
    assert definers == CALLS.keys(), "say in CALLS how each is called"
    plant(any_database)
    for name, (role, text) in CALLS.items():
        with psycopg.connect(any_database.dsn if role == "owner" else login(role), autocommit=True) as conn:
            try:
                conn.execute(text.encode())
            except psycopg.Error as error:
                raise AssertionError(f"{name}: {error}") from error


@pytest.mark.proves("S2")
def test_the_attempt_would_succeed_on_a_function_without_a_path(database: Database) -> None:
    """The twin: the same functions, their path taken away, run the planted code with their owner's rights."""
    login = make_logins(database)
    admin = database.connect()
    for name in ("put_job", "pause"):
        admin.execute(f"ALTER FUNCTION pgqueue.{name} RESET search_path".encode())
    plant(database)
    for role, text in (("producer", CALLS["put_job"][1]), ("operator", CALLS["pause"][1])):
        with (
            psycopg.connect(login(role), autocommit=True) as conn,
            pytest.raises(psycopg.errors.RaiseException, match="hijacked"),
        ):
            conn.execute(text.encode())


@pytest.mark.proves("S3")
def test_a_life_of_jobs_under_a_hostile_path(
    any_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    any_database.connect().execute("CREATE TABLE public.effects (job_id bigint)")
    plant(any_database)
    app = App(any_database.dsn)

    @app.task
    def effect(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO public.effects VALUES (%s)", (ctx.job.id,))

    @app.task(group_commit=4)
    def group(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO public.effects VALUES (%s)", (ctx.job.id,))

    @app.task
    def plain(ctx: JobContext) -> dict[str, int]:
        ctx.enqueue(effect)
        return {"a": 1}

    @app.task
    async def lazy() -> None: ...

    @app.task(retry=Retry(max_retries=1, initial_delay="10ms"))
    def fails() -> None:
        raise ValueError("no")

    @app.task
    def rejected() -> None:
        raise Reject("no")

    with psycopg.connect(any_database.dsn) as conn:
        for task in (effect, group, plain, lazy, fails, rejected):
            task.using(idempotency_key="k", tags=["x"], expires_at=datetime(2099, 1, 1, tzinfo=UTC)).enqueue(
                conn
            )
        group.enqueue_many(conn, [{} for _ in range(20)])
    plain.enqueue(None)
    job = app.enqueue("lazy", delay="1h")
    assert app.worker(concurrency=4, drain=True).run() == 0
    admin = any_database.connect(options="-c search_path=pg_catalog")
    assert admin.execute("SELECT count(*) FROM public.effects").fetchone() == (24,)
    dead = admin.execute("SELECT task, reason, job_id FROM pgqueue.dead_letter_jobs ORDER BY 1").fetchall()
    assert [row[1] for row in dead] == ["max_retries", "rejected"]
    for words in (
        ("jobs", "list", "--state", "succeeded"),
        ("jobs", "get", str(job.id)),
        ("jobs", "run-now", str(job.id)),
        ("jobs", "timeline", str(job.id)),
        ("dlq", "list"),
        ("dlq", "groups"),
        ("dlq", "redrive", str(dead[0][2])),
        ("dlq", "discard", str(dead[1][2])),
        ("queues", "list"),
        ("stats",),
        ("schedules", "list"),
        ("workers", "list"),
        ("doctor",),
    ):
        assert main([*words, "--dsn", any_database.dsn]) in ({0, 1} if words == ("doctor",) else {0}), (
            capsys.readouterr().err
        )
    app.close()
