"""The command as a real process: workers and their signals, streams that are closed or blocked, a quick start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.database import Database
from rig.proc import ROOT, Proc, python, run
from rig.wait import wait_for

APPLICATION = """
import os, time
from pathlib import Path
from pgqueue import App, Reject, Retry

app = App({dsn})
folder = Path({folder!r})

@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b

@app.task(name="slow")
def slow(ctx) -> None:
    (folder / "started").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)

@app.task(name="talk")
def talk(ctx, n: int) -> None:
    ctx.log.info("ride.priced", n=n, password="hunter2", text="x" * 2000)

@app.task(name="killer", retry=Retry(max_retries=1, initial_delay="10ms"))
def killer() -> None:
    os._exit(7)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APPLICATION.format(dsn="", folder=str(tmp_path)))
    return tmp_path


@pytest.fixture
def start(database: Database, folder: Path) -> Iterator[Callable[..., Proc]]:
    """Start `pgqueue …` beside the application, on the test's database."""
    started: list[Proc] = []

    def begin(*args: str, **env: str) -> Proc:
        variables = {"PGQUEUE_DATABASE_URL": database.dsn, "PYTHONPATH": f"{folder}:{ROOT}", **env}
        started.append(Proc([sys.executable, "-m", "pgqueue", *args], env=variables, cwd=folder))
        return started[-1]

    yield begin
    for process in started:
        process.end()


def lines(process: Proc) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.stderr.splitlines() if line.startswith("{")]


def test_a_worker_drains_and_says_so(start: Callable[..., Proc], database: Database) -> None:
    database.connect().execute(
        "SELECT pgqueue.enqueue('add', jsonb_build_object('a', n, 'b', 1)) FROM generate_series(1, 20) n"
    )
    worker = start("worker", "-A", "shop:app", "-q", "default:4", "--drain")
    assert worker.wait() == 0
    assert worker.stdout == ""
    told = lines(worker)
    assert [line["event"] for line in told if line["event"].startswith("worker.")] == [
        "worker.started",
        "worker.draining",
        "worker.stopped",
    ]
    settled = [line for line in told if line["event"] == "job.settled"]
    assert sum(line.get("sampled_of", 1) for line in settled) == 20
    assert database.one("SELECT sum(result::int) FROM pgqueue.job_history") == sum(range(2, 22))


@pytest.mark.proves("P18")
def test_sigterm_lets_the_running_job_finish_and_exits_0(
    start: Callable[..., Proc], database: Database, folder: Path
) -> None:
    job = database.one("SELECT pgqueue.enqueue('slow')")
    worker = start("worker", "-A", "shop:app")
    wait_for((folder / "started").exists, 20, "the handler's start")
    worker.signal(signal.SIGTERM)
    worker.wait_for_text("worker.draining")
    (folder / "go").touch()
    assert worker.wait() == 0
    assert database.one("SELECT state FROM pgqueue.job_history WHERE job_id = %s", [job]) == "succeeded"
    assert database.one("SELECT status FROM pgqueue.workers") == "stopped"


@pytest.mark.proves("P18")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_now(
    start: Callable[..., Proc], folder: Path, database: Database, number: signal.Signals, code: int
) -> None:
    database.one("SELECT pgqueue.enqueue('slow')")
    worker = start("worker", "-A", "shop:app")
    wait_for((folder / "started").exists, 20, "the handler's start")
    worker.signal(number)
    worker.wait_for_text("worker.draining")
    worker.signal(number)
    assert worker.wait() == code


def test_a_job_that_kills_its_process_dies_alone_and_the_worker_lives(
    start: Callable[..., Proc], database: Database
) -> None:
    """The worker's child for suspects is the hidden `--suspects-only`: it works on its parent's database."""
    killer = database.one("SELECT pgqueue.enqueue('killer')")
    first = start("worker", "-A", "shop:app", PGQUEUE_RESCUE_INTERVAL_S="100ms", PGQUEUE_HEARTBEAT_S="500ms")
    assert first.wait() == 7
    second = start("worker", "-A", "shop:app", PGQUEUE_RESCUE_INTERVAL_S="100ms", PGQUEUE_HEARTBEAT_S="500ms")
    reason = "SELECT reason FROM pgqueue.dead_letter_jobs WHERE job_id = %s"
    wait_for(lambda: database.one(reason, [killer]), 40, "the killer's end")
    assert database.one(reason, [killer]) == "worker_crash"
    assert second.running
    assert database.one("SELECT count(*) FROM pgqueue.workers WHERE kind = 'suspect'") >= 1
    second.signal(signal.SIGTERM)
    assert second.wait() == 0


def test_a_process_for_suspects_uses_its_parents_database_and_leaves_with_it(
    database: Database, folder: Path
) -> None:
    # The application's own address leads nowhere: only the parent's can be meant.
    (folder / "shop.py").write_text(
        APPLICATION.format(dsn="'host=127.0.0.1 port=1 dbname=nowhere'", folder=str(folder))
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "worker", "-A", "shop:app", "-c", "1", "--suspects-only"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PGQUEUE_DATABASE_URL": database.dsn, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_for(
            lambda: database.one("SELECT status FROM pgqueue.workers WHERE kind = 'suspect'"), 20, "the child"
        )
        _, talk = child.communicate(timeout=20)  # closes its stdin
        assert child.returncode == 0, talk
    finally:
        child.kill()


def test_the_dsn_option_wins_over_the_applications_own(
    database: Database, folder: Path, start: Callable[..., Proc]
) -> None:
    (folder / "shop.py").write_text(
        APPLICATION.format(dsn="'host=127.0.0.1 port=1 dbname=nowhere'", folder=str(folder))
    )
    database.one("""SELECT pgqueue.enqueue('add', '{"a": 1, "b": 2}')""")
    assert start("--dsn", database.dsn, "worker", "-A", "shop:app", "--drain").wait() == 0
    assert database.one("SELECT result FROM pgqueue.job_history") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-A", "nowhere:app"], 78, "no module nowhere"),
        (["-A", "shop:nothing"], 78, "no App called nothing"),
        (["-A", "shop:app", "-q", "Bad Queue"], 2, "lower-case letter"),
        (["-A", "shop:app", "-q", "a:0"], 78, "slots"),
        (["-A", "shop:app", "-c", "many"], 2, "-c"),
        ([], 2, "-A"),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(
    start: Callable[..., Proc], arguments: list[str], code: int, words: str
) -> None:
    worker = start("worker", *arguments)
    assert worker.wait() == code
    assert words in worker.stderr
    assert len(worker.stderr.strip().splitlines()) == 1
    assert worker.stdout == ""


@pytest.mark.proves("F19", "S7")
def test_a_database_out_of_reach_is_5_and_one_without_schema_6(
    start: Callable[..., Proc], empty_database: Database
) -> None:
    worker = start("worker", "-A", "shop:app", PGQUEUE_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x")
    assert worker.wait() == 5
    assert "cannot connect to u@127.0.0.1:1/x" in worker.stderr
    assert "hunter2" not in worker.stderr + worker.stdout
    worker = start("worker", "-A", "shop:app", PGQUEUE_DATABASE_URL=empty_database.dsn)
    assert worker.wait() == 6
    assert "pgqueue db upgrade" in worker.stderr


@pytest.mark.proves("F38")
@pytest.mark.parametrize("stream", ["blocked", "closed"])
def test_a_stderr_that_nobody_reads_stops_no_worker(database: Database, folder: Path, stream: str) -> None:
    jobs = 300
    database.connect().execute(
        "SELECT pgqueue.enqueue('talk', jsonb_build_object('n', n)) FROM generate_series(1, %s) n", [jobs]
    )
    command = [sys.executable, "-m", "pgqueue", "worker", "-A", "shop:app", "--drain"]
    if stream == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    read_end, write_end = os.pipe()
    worker = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=write_end,
        cwd=folder,
        env={**os.environ, "PGQUEUE_DATABASE_URL": database.dsn, "PYTHONPATH": str(ROOT)},
    )
    os.close(write_end)
    try:
        assert worker.wait(60) == 0
        assert database.one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == jobs
    finally:
        worker.kill()
        os.close(read_end)


@pytest.mark.proves("S6")
def test_what_a_handler_logs_is_masked_and_bound_to_its_job(
    start: Callable[..., Proc], database: Database
) -> None:
    job = database.one("""SELECT pgqueue.enqueue('talk', '{"n": 5}')""")
    worker = start("worker", "-A", "shop:app", "--drain")
    assert worker.wait() == 0
    (line,) = [line for line in lines(worker) if line["event"] == "ride.priced"]
    assert (line["job_id"], line["n"], line["password"]) == (job, 5, "***")
    assert "hunter2" not in worker.stderr


@pytest.mark.proves("I34")
def test_a_reader_that_leaves_early_is_no_fault(start: Callable[..., Proc], database: Database) -> None:
    database.connect().execute("SELECT pgqueue.enqueue('t') FROM generate_series(1, 5000)")
    env = {**os.environ, "PGQUEUE_DATABASE_URL": database.dsn}
    command = [sys.executable, "-m", "pgqueue", "jobs", "list", "--limit", "5000", "-o", "jsonl"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


@pytest.mark.proves("I34")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_fault(database: Database, closed: str) -> None:
    env = {**os.environ, "PGQUEUE_DATABASE_URL": database.dsn}
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-m", "pgqueue", "stats"],
        capture_output=True,
        cwd=ROOT,
        env=env,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


@pytest.mark.proves("I34")
def test_an_argument_that_is_no_utf_8_is_refused(database: Database) -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"pgqueue", b"jobs", b"list", b"--queue", b"\xff\xfe"],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PGQUEUE_DATABASE_URL": database.dsn},
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"not UTF-8" in done.stderr


def test_an_ascii_terminal_gets_escapes_and_no_traceback(database: Database) -> None:
    database.one("""SELECT pgqueue.enqueue('t', '{"é": "日本"}')""")
    env = {
        **os.environ,
        "PGQUEUE_DATABASE_URL": database.dsn,
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue", "jobs", "get", "1"],
        capture_output=True,
        cwd=ROOT,
        env=env,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\xe9" in done.stdout


def test_an_interrupted_verb_exits_130(start: Callable[..., Proc], database: Database) -> None:
    job = database.one("SELECT pgqueue.enqueue('never')")
    waiting = start("jobs", "wait", str(job), "--timeout", "60s")
    wait_for(
        lambda: database.one(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue/cli' AND state = 'idle'"
        ),
        20,
        "the first look",
    )
    waiting.signal(signal.SIGINT)
    assert waiting.wait() == 130
    assert "Traceback" not in waiting.stderr


def test_the_thin_doors_lead_to_their_verbs() -> None:
    for door, words in (("worker.py", "Run the application's jobs"),):
        with Proc([sys.executable, str(ROOT / door), "--help"]) as process:
            assert process.wait() == 0
            assert words in process.stdout


def test_looking_does_not_load_what_runs_jobs(database: Database) -> None:
    """A verb that needs no application starts without it: no worker, no SQLAlchemy, no Alembic, no rich."""
    program = (
        "import sys\n"
        "from pgqueue.cli.main import main\n"
        "code = main(['stats'])\n"
        "heavy = {'sqlalchemy', 'alembic', 'rich', 'structlog', 'psycopg_pool', 'pgqueue.worker', 'pgqueue.app'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
        "sys.exit(code)\n"
    )
    env = {"PGQUEUE_DATABASE_URL": database.dsn}
    with Proc([sys.executable, "-c", program], env=env) as process:
        assert process.wait() == 0
        assert process.stdout.splitlines()[-1] == "[]"


def test_a_noun_without_a_verb_shows_its_help_and_a_wrong_one_the_nearest() -> None:
    code, out, err = run("jobs")
    assert code == 2
    assert "Commands:" in out + err
    code, out, err = run("dlq", "redirve")
    assert code == 2
    assert "redrive" in err
    assert out == ""


def test_a_worker_whose_application_does_not_use_sqlalchemy_does_not_wait_for_its_import() -> None:
    script = "import sys, pgqueue.app, pgqueue.worker.runtime; print('sqlalchemy' in sys.modules)"
    with python(script) as process:
        assert process.wait(60) == 0
        assert process.stdout.strip() == "False"
