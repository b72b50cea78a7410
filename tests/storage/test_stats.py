"""The rollups: what is counted equals what the rows say, each minute once, late rows by the recount; percentiles; plans.

Rows are written with the times a test needs; the counting itself goes by the database's clock.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from rig.database import Database
from rig.hands import Hand, enqueue, shared_database, wiped

BOUNDS = [0.001 * 2**k for k in range(25)]
NOW = datetime.now(UTC)
MIDNIGHT = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module", params=["18", "15"])
def shared(request: pytest.FixtureRequest) -> Iterator[Database]:
    with shared_database(request, request.param) as database:
        yield database


@pytest.fixture
def any_database(shared: Database) -> Iterator[Database]:
    with wiped(shared) as database:
        yield database
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            conn.execute("UPDATE pgqueue.stats_progress SET done_upto = NULL")


@pytest.fixture
def conn(any_database: Database) -> psycopg.Connection[Any]:
    return any_database.connect()


@pytest.fixture
def hand(conn: psycopg.Connection[Any]) -> Hand:
    return Hand(conn)


def succeeded(
    conn: psycopg.Connection[Any],
    at: datetime,
    wait_s: float = 0.01,
    run_s: float = 0.1,
    *,
    queue: str = "q",
    task: str = "t",
) -> None:
    conn.execute(
        """INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, wait_s, run_s, priority, attempts, max_attempts, state, queue, task, args)
           SELECT 1, f.at, f.at, f.at, f.at, %s, %s, 5, 1, 1, 'succeeded', %s, %s, '{}' FROM (SELECT %s::timestamptz AS at) f""",
        [wait_s, run_s, queue, task, at],
    )


def moved(
    conn: psycopg.Connection[Any],
    at: datetime,
    before: str,
    after: str,
    reason: str,
    wait_s: float | None = 0.01,
    run_s: float | None = 0.1,
) -> None:
    conn.execute(
        "INSERT INTO pgqueue.job_transitions (job_id, at, from_state, to_state, reason, actor, queue, task, wait_s, run_s) VALUES (1, %s, %s, %s, %s, 'x', 'q', 't', %s, %s)",
        [at, before, after, reason, wait_s, run_s],
    )


def progress(conn: psycopg.Connection[Any], what: str, upto: datetime | None) -> None:
    conn.execute("UPDATE pgqueue.stats_progress SET done_upto = %s WHERE what = %s", [upto, what])


def done_upto(conn: psycopg.Connection[Any], what: str) -> datetime:
    row = conn.execute("SELECT done_upto FROM pgqueue.stats_progress WHERE what = %s", [what]).fetchone()
    assert row is not None
    upto: datetime = row[0]
    return upto


def stats(conn: psycopg.Connection[Any], grain_s: int = 60) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT * FROM pgqueue.stats_minutely WHERE grain_s = %s ORDER BY bucket_at, queue, task, outcome",
            [grain_s],
        ).fetchall()


def bucket(seconds: float) -> int:
    return sum(seconds >= bound for bound in BOUNDS)


def closed_minute(ago: int) -> datetime:
    # A minute is closed 15 seconds after its end.
    return (datetime.now(UTC) - timedelta(seconds=16)).replace(second=0, microsecond=0) - ago * MINUTE


def test_the_buckets_are_powers_of_two_of_a_millisecond(conn: psycopg.Connection[Any]) -> None:
    for seconds, slot in [
        (0, 0),
        (0.0009, 0),
        (0.001, 1),
        (0.0019, 1),
        (0.002, 2),
        (1.0, 10),
        (1.1, 11),
        (16_777.0, 24),
        (16_777.3, 25),
        (1e9, 25),
    ]:
        row = conn.execute(
            "SELECT width_bucket(%s::double precision, pgqueue.bucket_bounds())", [seconds]
        ).fetchone()
        assert row == (slot,), seconds
        assert bucket(seconds) == slot


def test_counts_equal_the_rows(conn: psycopg.Connection[Any], hand: Hand) -> None:
    rng = random.Random(7)
    since = closed_minute(30)
    seen: dict[tuple[datetime, str, str], list[tuple[float, float]]] = {}
    for _ in range(400):
        minute, queue, task = rng.choice([0, 1, 5, 29]), rng.choice(["a", "b"]), rng.choice(["t", "u"])
        wait_s, run_s = 10 ** rng.uniform(-4, 5), 10 ** rng.uniform(-4, 4)
        succeeded(
            conn,
            since + minute * MINUTE + timedelta(seconds=rng.uniform(0, 59.99)),
            wait_s,
            run_s,
            queue=queue,
            task=task,
        )
        seen.setdefault((since + minute * MINUTE, queue, task), []).append((wait_s, run_s))
    succeeded(conn, since - timedelta(milliseconds=1))
    progress(conn, "rollups", since)
    assert hand.run("roll_up", minutes_max=30)[0]["written"] == len(seen)
    rows = stats(conn)
    assert {(row["bucket_at"], row["queue"], row["task"]) for row in rows} == set(seen)
    for row in rows:
        pairs = seen[row["bucket_at"], row["queue"], row["task"]]
        assert row["n"] == len(pairs)
        for column, durations in (("wait", [w for w, _ in pairs]), ("run", [r for _, r in pairs])):
            counts = Counter(bucket(seconds) for seconds in durations)
            assert row[f"{column}_n"] == [counts[slot] for slot in range(26)]
            assert row[f"{column}_sum_s"] == pytest.approx(sum(durations), rel=1e-4)
            assert row[f"{column}_max_s"] == pytest.approx(max(durations), rel=1e-4)


@pytest.mark.parametrize(
    ("before", "after", "reason", "outcome"),
    [
        ("running", "scheduled", "retry", "retry"),
        ("running", "scheduled", "snoozed", "snoozed"),
        ("running", "ready", "released", "released"),
        ("running", "held", "rescued", "rescued"),
        ("running", "held", "unknown_task", "held"),
        ("running", "dead", "max_retries", "dead"),
        ("running", "cancelled", "cancel_requested", "cancelled"),
        ("ready", "cancelled", "cancelled", "cancelled"),
        ("scheduled", "dead", "expired", "dead"),
        ("scheduled", "ready", "run_now", None),
        ("dead", "cancelled", "discarded", None),
        ("dead", "ready", "redriven", None),
    ],
)
def test_each_end_of_an_attempt_has_its_outcome(
    conn: psycopg.Connection[Any], before: str, after: str, reason: str, outcome: str | None
) -> None:
    at = closed_minute(3)
    moved(conn, at, before, after, reason)
    found = conn.execute(
        "SELECT outcome, n FROM pgqueue.count_attempts(%s, %s)", [at, at + MINUTE]
    ).fetchall()
    assert found == ([] if outcome is None else [(outcome, 1)])


def test_what_a_queue_promises_is_counted_exactly(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "INSERT INTO pgqueue.queues (name, sla_s, defaults) VALUES ('q', 1, '{\"run_objective_s\": 2}')"
    )
    at = closed_minute(3)
    for wait_s, run_s in ((0.5, 1.0), (1.0, 3.0), (1.1, 2.0), (3.0, 9.0)):
        succeeded(conn, at, wait_s, run_s)
    succeeded(conn, at, queue="other")
    moved(conn, at, "running", "scheduled", "retry", 0.1, 0.1)
    moved(conn, at, "ready", "cancelled", "cancelled", None, None)
    met = "SELECT queue, outcome, n, wait_met, run_met FROM pgqueue.count_attempts(%s, %s) ORDER BY 1, 2"
    assert conn.execute(met, [at, at + MINUTE]).fetchall() == [
        ("other", "succeeded", 1, None, None),
        ("q", "cancelled", 1, 0, 0),
        ("q", "retry", 1, 1, 0),
        ("q", "succeeded", 4, 2, 2),
    ]


def test_what_never_started_counts_without_a_duration(conn: psycopg.Connection[Any]) -> None:
    at = closed_minute(3)
    moved(conn, at, "ready", "cancelled", "cancelled", None, None)
    row = conn.execute(
        "SELECT n, wait_n, run_n, wait_max_s FROM pgqueue.count_attempts(%s, %s)", [at, at + MINUTE]
    ).fetchone()
    assert row == (1, [0] * 26, [0] * 26, None)


def test_a_cancelled_job_counts_once_though_history_and_audit_both_have_it(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    conn.execute("SELECT pgqueue.cancel(%s)", [enqueue(conn)])
    enqueue(conn)
    (taken,) = hand.claim()
    hand.settle("cancelled", taken)
    counted = "SELECT outcome, sum(n)::int FROM pgqueue.count_attempts(clock_timestamp() - interval '1 minute', clock_timestamp() + interval '1 minute') GROUP BY 1"
    assert conn.execute(counted).fetchall() == [("cancelled", 2)]


def test_a_minute_is_counted_once_and_not_before_it_is_over(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    assert hand.run("roll_up", minutes_max=60) == [{"written": 0, "behind": False}], "begins with the present"
    first = done_upto(conn, "rollups")
    assert first.second == 0
    clock = conn.execute("SELECT clock_timestamp()").fetchone()
    assert clock is not None
    assert timedelta(seconds=15) <= clock[0] - first < timedelta(seconds=76)
    progress(conn, "rollups", first - 3 * MINUTE)
    succeeded(conn, first - 3 * MINUTE)
    succeeded(conn, first - timedelta(microseconds=1))
    succeeded(conn, first + timedelta(seconds=75))
    assert hand.run("roll_up", minutes_max=2) == [{"written": 1, "behind": True}]
    assert hand.run("roll_up", minutes_max=2)[0]["written"] == 1
    assert hand.run("roll_up", minutes_max=2)[0]["written"] == 0
    assert [row["n"] for row in stats(conn)] == [1, 1]


def test_two_that_count_at_once_count_once(any_database: Database, hand: Hand) -> None:
    since = closed_minute(5)
    succeeded(hand.conn, since)
    progress(hand.conn, "rollups", since)
    other = Hand(any_database.connect(autocommit=False))
    assert other.run("roll_up", minutes_max=60)[0]["written"] == 1
    hand.conn.execute("SET lock_timeout = '500ms'")
    assert hand.run("roll_up", minutes_max=60) == [{"written": 0, "behind": False}], (
        "it goes its way, and waits for nobody"
    )
    other.conn.rollback()
    assert hand.run("roll_up", minutes_max=60)[0]["written"] == 1


@pytest.mark.proves("F26s")
def test_after_the_clock_was_put_back_its_minutes_are_counted_whole(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    upto = closed_minute(-120)
    progress(conn, "rollups", upto)
    succeeded(conn, upto - MINUTE)
    assert hand.run("roll_up", minutes_max=60)[0]["written"] == 0
    assert done_upto(conn, "rollups") < upto, "goes on from the present clock"
    minute = closed_minute(2)
    for _ in range(2):
        succeeded(conn, minute)
        progress(conn, "rollups", minute)
        hand.run("roll_up", minutes_max=60)
    assert [row["n"] for row in stats(conn)] == [2], "a minute that comes twice holds the rows of both"


def test_late_rows_are_found_by_the_recount_of_a_closed_day(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    yesterday = MIDNIGHT - timedelta(days=1)
    moments = [yesterday + timedelta(hours=h, minutes=m) for h, m in ((0, 0), (0, 9), (5, 30), (23, 59))]
    for moment in moments:
        succeeded(conn, moment)
    conn.execute("SELECT pgqueue.count_minutes(%s, %s)", [yesterday, MIDNIGHT])
    conn.execute("SELECT pgqueue.merge_minutes(%s, %s)", [yesterday, MIDNIGHT])
    succeeded(conn, moments[2] + timedelta(seconds=1))
    moved(conn, moments[3], "running", "scheduled", "retry")
    progress(conn, "recount", yesterday)
    steps = 0
    corrected = 0
    while True:
        (row,) = hand.run("recount", minutes_max=10)
        corrected += row["corrected"]
        steps += 1
        if not row["behind"]:
            break
    assert (steps, corrected) == (144, 2)
    assert [(row["bucket_at"], row["outcome"], row["n"]) for row in stats(conn)] == [
        (moments[0], "succeeded", 1),
        (moments[1], "succeeded", 1),
        (moments[2], "succeeded", 2),
        (moments[3], "retry", 1),
        (moments[3], "succeeded", 1),
    ]
    assert [(row["bucket_at"].hour, row["n"]) for row in stats(conn, 3600)] == [
        (0, 2),
        (5, 2),
        (23, 1),
        (23, 1),
    ]
    (retry, plain) = stats(conn, 86400)
    assert (retry["outcome"], retry["n"], plain["n"], sum(plain["wait_n"])) == ("retry", 1, 5, 5)
    assert hand.run("recount", minutes_max=10) == [{"corrected": 0, "behind": False}]
    assert done_upto(conn, "recount") in {MIDNIGHT, MIDNIGHT + timedelta(days=1)}


def test_a_count_of_counted_minutes_writes_nothing(conn: psycopg.Connection[Any]) -> None:
    at = closed_minute(3)
    succeeded(conn, at)
    count = "SELECT pgqueue.count_minutes(%s, %s), pgqueue.merge_minutes(%s, %s)"
    span = [at - timedelta(hours=25), at + MINUTE]
    assert conn.execute(count, span * 2).fetchone()[0] == 1  # type: ignore[index]
    assert conn.execute(count, span * 2).fetchone() == (0, 0)


def test_hours_sum_their_minutes(conn: psycopg.Connection[Any]) -> None:
    hour = MIDNIGHT - timedelta(hours=5)
    for minute, wait_s in ((0, 0.003), (7, 0.003), (59, 40.0)):
        succeeded(conn, hour + minute * MINUTE, wait_s)
    succeeded(conn, hour + 60 * MINUTE, 0.003)
    conn.execute("SELECT pgqueue.count_minutes(%s, %s)", [hour, hour + timedelta(hours=2)])
    conn.execute("SELECT pgqueue.merge_minutes(%s, %s)", [hour, hour + timedelta(minutes=90)])
    (row,) = stats(conn, 3600)
    assert (row["bucket_at"], row["n"], row["wait_n"][2], row["wait_n"][16]) == (hour, 3, 2, 1)
    assert row["wait_max_s"] == pytest.approx(40)
    assert row["wait_sum_s"] == pytest.approx(40.006)


def test_queues_are_sampled_once_a_minute(conn: psycopg.Connection[Any], hand: Hand) -> None:
    hand.register(queues=["mail"])
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('mail') ON CONFLICT DO NOTHING")
    enqueue(conn, queue="mail")
    hand.run("sample_queues")
    hand.run("sample_queues")
    rows = [row for row in stats(conn) if row["queue"] == "mail"]
    assert rows[0]["series"] == "queue"
    assert (rows[0]["due"], rows[0]["due_max"], rows[0]["slots"]) == (1, 1, 1)
    assert len({row["bucket_at"] for row in rows}) == len(rows)
    conn.execute(
        """INSERT INTO pgqueue.stats_minutely (grain_s, bucket_at, series, queue, task, outcome, n, due, due_max, lag_s, lag_max_s)
           SELECT 60, %s::timestamptz + make_interval(mins => i), 'queue', 'old', '', '', 1, i, i, i * 2, i * 2 FROM generate_series(1, 3) i""",
        [MIDNIGHT - timedelta(hours=3)],
    )
    conn.execute("SELECT pgqueue.merge_minutes(%s, %s)", [MIDNIGHT - timedelta(hours=3), MIDNIGHT])
    (row,) = [row for row in stats(conn, 3600) if row["queue"] == "old"]
    assert (row["n"], row["due"], row["due_max"], row["lag_s"], row["lag_max_s"], row["wait_n"]) == (
        3,
        2,
        3,
        4,
        6,
        None,
    )


def test_rollups_go_after_their_time_in_batches(conn: psycopg.Connection[Any], hand: Hand) -> None:
    for grain_s, ages_h in (
        (60, (47, 49, 50, 51)),
        (3600, (24 * 89, 24 * 91)),
        (86400, (24 * 700, 24 * 740)),
    ):
        for age_h in ages_h:
            conn.execute(
                "INSERT INTO pgqueue.stats_minutely (grain_s, bucket_at, series, queue, task, outcome, n) VALUES (%s, %s, 'work', 'q', 't', 'dead', 1)",
                [grain_s, NOW - timedelta(hours=age_h)],
            )
    assert hand.one("prune_stats", batch=2) == 0, "what the recount has not passed is kept"
    progress(conn, "recount", MIDNIGHT)
    assert [hand.one("prune_stats", batch=2) for _ in range(3)] == [4, 1, 0]
    assert [len(stats(conn, grain_s)) for grain_s in (60, 3600, 86400)] == [1, 1, 1]


def percentile(
    conn: psycopg.Connection[Any], counts: list[int], q: float, max_s: float | None = None
) -> float | None:
    row = conn.execute(
        "SELECT pgqueue.bucket_percentile(%s::integer[], %s, %s)", [counts, q, max_s]
    ).fetchone()
    assert row is not None
    value: float | None = row[0]
    return value


@pytest.mark.parametrize("name", ["exponential", "lognormal", "uniform", "gamma", "weibull"])
def test_percentiles_are_near_the_true_ones(conn: psycopg.Connection[Any], name: str) -> None:
    rng = random.Random(11)
    draw = {
        "exponential": lambda: rng.expovariate(20),
        "lognormal": lambda: rng.lognormvariate(-4, 0.8),
        "uniform": lambda: rng.uniform(0.004, 0.06),
        "gamma": lambda: rng.gammavariate(2, 0.01),
        "weibull": lambda: rng.weibullvariate(0.5, 1.5),
    }[name]
    durations = sorted(draw() for _ in range(20_000))
    counts = Counter(bucket(seconds) for seconds in durations)
    # The quicker a tail ends inside a bucket, the further off: the last one's does most of all.
    tail = 0.33 if name == "weibull" else 0.22
    for q, tolerance in ((0.5, 0.10), (0.95, tail), (0.99, tail)):
        true = durations[int(q * len(durations))]
        about = percentile(conn, [counts[slot] for slot in range(26)], q, durations[-1])
        assert about == pytest.approx(true, rel=tolerance), q


def test_percentiles_at_the_edges(conn: psycopg.Connection[Any]) -> None:
    def one_in(slot: int, n: int = 1) -> list[int]:
        return [n if i == slot else 0 for i in range(26)]

    assert percentile(conn, [0] * 26, 0.5) is None
    assert percentile(conn, one_in(0, 10), 0.5) == pytest.approx(0.0005)
    assert percentile(conn, one_in(4), 1.0) == pytest.approx(0.016)
    assert percentile(conn, one_in(4), 0.0) == pytest.approx(0.008)
    assert percentile(conn, one_in(4), 1.0, 0.009) == pytest.approx(0.009), "never above the true maximum"
    assert percentile(conn, one_in(25), 0.5) == pytest.approx(0.001 * 2**24), (
        "without a maximum, its lower bound"
    )
    assert percentile(conn, one_in(25), 1.0, 20_000.0) == pytest.approx(20_000)
    assert percentile(conn, one_in(4), 1.5) is None


def test_the_last_minutes_by_queue_and_task(conn: psycopg.Connection[Any], hand: Hand) -> None:
    assert hand.run("recent_work", minutes=5) == [], "nothing is counted yet"
    at = closed_minute(3)
    for _ in range(9):
        succeeded(conn, at, 0.003, 0.5)
    succeeded(conn, at, 0.003, 0.5, task="u")
    moved(conn, at, "running", "scheduled", "retry", 0.003, 8.0)
    succeeded(conn, at - timedelta(hours=2), 100, 100)
    progress(conn, "rollups", closed_minute(200))
    hand.run("roll_up", minutes_max=500)
    total, t, u = hand.run("recent_work", minutes=5)
    assert [(row["queue"], row["task"], row["ended"]) for row in (total, t, u)] == [
        ("q", None, 11),
        ("q", "t", 10),
        ("q", "u", 1),
    ]
    assert (total["succeeded"], total["retried"], total["dead"], total["other"]) == (10, 1, 0, 0)
    assert total["per_minute"] == pytest.approx(2.2)
    assert 0.002 <= total["wait_p50_s"] <= 0.003 + 1e-6
    assert 0.256 <= total["run_p50_s"] <= 0.512
    assert total["run_max_s"] == 8.0
    assert 4.096 <= total["run_p99_s"] <= 8.0


def test_a_minute_is_found_without_reading_the_days(
    any_database: Database, conn: psycopg.Connection[Any]
) -> None:
    """Under a generic plan only the day in question is opened, and of it only some blocks."""
    conn.execute(
        """INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, wait_s, run_s, priority, attempts, max_attempts, state, queue, task, args)
           SELECT i, f.at, f.at, f.at, f.at, 0.1, 0.1, 5, 1, 1, 'succeeded', 'q', 't', jsonb_build_object('n', i)
           FROM generate_series(1, 100000) i, LATERAL (SELECT %s::timestamptz + make_interval(secs => i * 0.5) AS at) f""",
        [MIDNIGHT],
    )
    conn.execute("VACUUM ANALYZE pgqueue.job_history")
    body = conn.execute(
        "SELECT prosrc FROM pg_proc WHERE oid = 'pgqueue.count_attempts(timestamptz, timestamptz)'::regprocedure"
    ).fetchone()
    assert body is not None
    text = (
        body[0]
        .replace("count_attempts.since", "$1")
        .replace("count_attempts.until", "$2")
        .strip()
        .rstrip(";")
    )
    conn.execute("SET plan_cache_mode = force_generic_plan")
    conn.execute(f"PREPARE counting (timestamptz, timestamptz) AS {text}".encode())
    since = MIDNIGHT + timedelta(hours=6)
    plan = conn.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE counting ('{since}', '{since + MINUTE}')".encode()
    ).fetchone()
    assert plan is not None

    def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield node
        for child in node.get("Plans", []):
            yield from nodes(child)

    top = plan[0][0]["Plan"]
    read = {
        node["Relation Name"] for node in nodes(top) if "Relation Name" in node and node["Actual Loops"] > 0
    }
    assert read - {"queues"} == {
        f"job_history_{MIDNIGHT:%Y%m%d}",
        f"job_transitions_{MIDNIGHT:%Y%m%d}",
    }
    (history,) = [
        node for node in nodes(top) if node.get("Relation Name") == f"job_history_{MIDNIGHT:%Y%m%d}"
    ]
    assert history["Node Type"] == "Bitmap Heap Scan"
    blocks = conn.execute(
        "SELECT pg_relation_size(%s::regclass) / 8192", [f"pgqueue.job_history_{MIDNIGHT:%Y%m%d}"]
    ).fetchone()
    assert blocks is not None
    assert history["Shared Hit Blocks"] + history["Shared Read Blocks"] < blocks[0] / 5
    assert top["Actual Rows"] == 1


def test_todays_new_blocks_get_their_index_entries(conn: psycopg.Connection[Any], hand: Hand) -> None:
    for _ in range(3):
        succeeded(conn, NOW)
    assert hand.one("summarize_days") >= 1
    assert hand.one("summarize_days") == 0
