"""Answers that go on: `-w`, `jobs tail`, bars and lines for long work, and deeds at a rate."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rig.database import Database

from pgqueue import App, Reject
from pgqueue.cli import again, bar
from pgqueue.cli.again import spelled_out
from pgqueue.cli.bar import progress_line
from pgqueue.cli.main import main
from pgqueue.cli.session import Output
from pgqueue.control import desk

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def app(database: Database) -> Iterator[App]:
    app = App(database.dsn)

    @app.task(name="good", queue="fine")
    def good() -> None:
        return None

    @app.task(name="bad", queue="poor")
    def bad() -> None:
        raise Reject("no")

    yield app
    app.close()


def interrupted_after(rounds: int, monkeypatch: pytest.MonkeyPatch, between: Callable[[], object]) -> None:
    """Instead of waiting for the next picture do `between`, and after so many rounds press Ctrl-C."""
    left = [rounds]

    def sleep(seconds: float) -> None:
        del seconds
        left[0] -= 1
        if left[0] < 1:
            raise KeyboardInterrupt
        between()

    monkeypatch.setattr(again, "time", SimpleNamespace(sleep=sleep))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["jobs", "list", "-w"], ["jobs", "list", "-w", "2s"]),
        (["jobs", "list", "-w", "--limit", "3"], ["jobs", "list", "-w", "2s", "--limit", "3"]),
        (["jobs", "list", "--watch", "500ms"], ["jobs", "list", "--watch", "500ms"]),
        (["stats", "-w", "5"], ["stats", "-w", "5"]),
        (["jobs", "list", "-w", "state:held"], ["jobs", "list", "-w", "2s", "state:held"]),
        (["jobs", "list", "--", "-w"], ["jobs", "list", "--", "-w"]),
    ],
)
def test_the_value_of_watch_may_be_left_out(given: list[str], read: list[str]) -> None:
    assert spelled_out(given) == read


WATCHED = (
    *(
        "jobs list",
        "jobs get ID",
        "dlq list",
        "dlq groups",
        "queues list",
        "queues get default",
        "workers list",
    ),
    *("schedules list", "outbox list", "outbox status", "alerts list", "audit list"),
)


def test_every_list_can_be_watched_and_ends_with_130(
    cli: Cli, app: App, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.one("INSERT INTO pgqueue.queues (name) VALUES ('default') RETURNING 1")
    job = app.enqueue("later", {}, delay="1h")
    for verb in WATCHED:
        words = verb.replace("ID", str(job.id)).split()
        once = cli(*words, "-o", "json")[1]
        interrupted_after(2, monkeypatch, lambda: None)
        code, out, _ = cli(*words, "-w", "-o", "json")
        assert code == 130, verb
        assert len(out.splitlines()) == 2 * len(once.splitlines()), verb
        assert "\x1b" not in out, verb


def test_a_terminal_gets_a_new_picture_and_what_is_new_is_in_it(
    cli: Cli, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_after(2, monkeypatch, lambda: app.enqueue("later", {}, delay="1h"))
    monkeypatch.setattr("pgqueue.cli.out.sys.stdout.isatty", lambda: True, raising=False)
    code, out, _ = cli("jobs", "list", "-w", "1s")
    _, first, second = out.split("\x1b[H\x1b[2J")
    assert (code, "later" in first, "later" in second) == (130, False, True)
    assert cli("jobs", "list", "-w", "0s")[0] == 2
    assert cli("jobs", "list", "-w", "1x")[0] == 2


def test_tail_tells_the_last_ends_and_those_that_come(
    cli: Cli, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        app.enqueue("good", {})
    app.enqueue("bad", {})
    assert app.worker("fine,poor", concurrency=1, drain=True).run() == 0
    _, out, _ = cli("jobs", "tail", "--for", "0s", "-n", "2", "-o", "jsonl")
    assert len(out.splitlines()) == 2
    _, out, _ = cli("jobs", "tail", "--for", "0s", "--queue", "poor", "-o", "json")
    (end,) = map(json.loads, out.splitlines())
    assert (end["task"], end["state"], end["reason"]) == ("bad", "dead", "rejected")
    assert cli("jobs", "tail", "--for", "0s", "--task", "go*", "-o", "name")[1].count("job/") == 3
    head, line = cli("jobs", "tail", "--for", "0s", "-n", "1", "--task", "good")[1].splitlines()
    assert head.split()[:5] == ["at", "id", "task", "queue", "state"]
    assert line.split()[2:5] == ["good", "fine", "succeeded"]
    assert len(cli("jobs", "tail", "--for", "0s", "-o", "csv")[1].splitlines()) == 5

    waits: list[float] = []

    def more(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) > 1:
            raise KeyboardInterrupt
        app.enqueue("good", {})
        assert app.worker("fine", concurrency=1, drain=True).run() == 0

    monkeypatch.setattr("pgqueue.control.tail.time", SimpleNamespace(sleep=more, monotonic=time.monotonic))
    code, out, _ = cli("jobs", "tail", "-n", "0", "-o", "name")
    assert (code, out.count("job/")) == (130, 1)
    assert cli("jobs", "tail", "--every", "0")[0] == 2


def test_the_line_of_long_work() -> None:
    assert progress_line(120, 480, 3, bar=False) == "120 of 480, 40 a second, 9s left"
    assert progress_line(120, 480, 3, bar=True).startswith("[######------------------] 120 of 480")
    assert progress_line(1200, None, 1, bar=True) == "1,200, 1,200 a second"
    assert progress_line(0, 10, 0, bar=False) == "0 of 10"


def test_long_work_is_a_bar_on_a_terminal_and_a_line_now_and_then_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(bar, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def work() -> str:
        with bar.Bar("cancel", 100, Output.TABLE) as one:
            for done in range(1, 101):
                clock[0] += 0.25
                one.at(done)
        return capsys.readouterr().err

    lines = work().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"cancel: {n} of 100" for n in (20, 40, 60, 80, 100)
    ]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    drawn = work()
    assert drawn.count("\r\x1b[2K") == 101
    assert drawn.endswith("\r\x1b[2K")
    assert "\n" not in drawn


SLOW_DEEDS = (
    ("jobs", "run-now", "--all"),
    ("jobs", "reschedule", "--delay", "2h", "-f", "state:scheduled"),
    ("jobs", "retry", "-f", "state:scheduled"),
    ("jobs", "cancel", "--all"),
    ("dlq", "discard", "--all"),
    ("outbox", "skip", "--state", "parked"),
)


def test_a_rate_holds_every_bulk_deed_back(
    cli: Cli, app: App, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        app.enqueue("bad", {})
        app.outbox.emit(None, "ride.done", {})
    assert app.worker("poor", concurrency=1, drain=True).run() == 0
    database.one("UPDATE pgqueue.outbox SET state = 'parked' RETURNING 1")
    for deed in SLOW_DEEDS:
        database.one("WITH gone AS (DELETE FROM pgqueue.jobs) SELECT 1")
        for _ in range(5):
            app.enqueue("later", {}, delay="1h")
        waits: list[float] = []
        monkeypatch.setattr(desk, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
        code, out, err = cli(*deed, "--rate", "2", "--yes", "-o", "jsonl", "--reason", "slowly")
        assert (code, len(out.splitlines())) == (0, 5), (deed, err)
        # Two to a transaction, a second apart: nobody waits before the first.
        assert len(waits) == 3, deed
        assert waits[0] == 0
        assert waits[1] <= 1 < waits[2] <= 2
        assert cli(*deed, "--rate", "-1", "--yes")[0] == 2
    app.enqueue("later", {}, delay="1h")
    assert cli("jobs", "cancel", "--all", "--rate", "1000000000", "--yes")[0] == 2


def test_an_interrupted_bulk_deed_says_how_far_it_came_and_leaves_its_row(
    cli: Cli, app: App, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        app.enqueue("later", {}, delay="1h")
    waits: list[Any] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(desk, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    code, _, err = cli("jobs", "cancel", "--all", "--rate", "2", "--yes")
    assert code == 130
    assert "cancel: interrupted; at least 4 of 5 are done" in err
    assert database.one("SELECT count(*) FROM pgqueue.jobs") == 1
    assert database.one("SELECT changed FROM pgqueue.operator_audit ORDER BY id DESC LIMIT 1") == 4
