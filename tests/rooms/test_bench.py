"""The benchmark as it runs: small runs on a server of the test's own give figures, and a run that loses a job gives none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig.database import Database
from rig.proc import run

from pgqueue.bench.pgbench import find_pgbench, run_pgbench
from pgqueue.bench.rig import Plan, Rig
from pgqueue.bench.workloads import WORKLOADS
from pgqueue.errors import PgQueueError

SMALL = Plan(jobs=400, seconds=1, pending=1200, history=500)


@pytest.fixture
def rig(database: Database) -> Iterator[Rig]:
    one = Rig(database.dsn, SMALL, postmaster=database.server.pid, bin_dir=database.server.bin_dir)
    yield one
    one.close()


@pytest.mark.parametrize("name", ["noop", "effect", "group", "batch", "sleep"])
def test_a_drain_gives_a_rate_and_what_a_job_cost(rig: Rig, name: str) -> None:
    figure = WORKLOADS[name].measure(rig)
    assert figure.value > 0
    # Enqueued, claimed, deleted, kept; and the effect.
    effects = 0 if name in {"noop", "sleep"} else 1
    assert 4 + effects <= figure.details["rows_per_job"] < 4.6 + effects
    assert 500 < figure.details["wal_bytes_per_job"] < 5000
    assert figure.details["worker_rss_mb"] > 10
    if name == "effect":
        assert figure.details["pgbench_ratio"] == pytest.approx(
            figure.value / figure.details["pgbench_per_s"]
        )


@pytest.mark.parametrize("name", ["enqueue-single", "enqueue-bulk", "single-life", "old-xmin", "backlog"])
def test_the_other_small_workloads_give_figures(rig: Rig, name: str) -> None:
    figure = WORKLOADS[name].measure(rig)
    assert figure.value > 0
    ratios = [value for detail, value in figure.details.items() if detail.endswith("ratio")]
    assert all(value > 0 for value in ratios)


def test_producers_side_by_side_lose_nothing(rig: Rig) -> None:
    figure = WORKLOADS["wakeups"].measure(rig)
    assert figure.details["silent_ratio"] > 0


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM pgqueue.job_history WHERE job_id = (SELECT min(job_id) FROM pgqueue.job_history)",
        "INSERT INTO pgqueue.job_history SELECT (h).* FROM (SELECT h FROM pgqueue.job_history h LIMIT 1) x",
        "SELECT pgqueue.enqueue('noop')",
        "INSERT INTO pgqueue_bench.effects SELECT min(job_id) FROM pgqueue.job_history",
    ],
)
def test_a_lost_or_doubled_job_is_an_error_and_no_figure(rig: Rig, damage: str) -> None:
    rig.clear()
    rig.fill("effect", 50)
    rig.drain("-c", "2")
    rig.check(50, effects=True)
    rig.conn.execute(damage.encode())
    with pytest.raises(PgQueueError, match="the run does not count"):
        rig.check(50, effects=True)


def test_pgbenchs_failures_are_ours(rig: Rig) -> None:
    program = find_pgbench(rig.bin_dir)
    assert program is not None
    assert run_pgbench(program, rig.dsn, "SELECT 1;\n", clients=2, transactions=5) > 0
    with pytest.raises(PgQueueError, match="division by zero"):
        run_pgbench(program, rig.dsn, "SELECT 1/0;\n", clients=1, transactions=5)


def test_the_command_prints_a_table_saves_everything_and_compares(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"noop.wal_bytes_per_job": {"value": 1, "slack": 0.1, "better": "less"}}')
    small = ("--workload", "noop", "--jobs", "200", "--runs", "2")
    code, out, err = run(
        "bench",
        *small,
        "--save",
        str(tmp_path / "all.json"),
        "--check",
        str(bad),
        "-o",
        "json",
        timeout_s=300,
    )
    assert code == 1
    assert "worse than stored: noop.wal_bytes_per_job" in err
    assert "with fsync" in err
    document = json.loads((tmp_path / "all.json").read_text())
    assert document["plan"]["jobs"] == 200
    assert document["machine"]["cores"] >= 1
    (one,) = document["workloads"]
    assert len(one["values"]) == 2
    assert json.loads(out)
    code, _, err = run("bench", "--workload", "nosuch")
    assert code == 2
    assert "no workload nosuch" in err
