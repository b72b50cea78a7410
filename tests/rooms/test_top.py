"""`pgqueue top` on a terminal of 80 by 24, by its keys, against a database; and off a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

import pytest
from rig.database import Database
from rig.proc import run
from rig.wait import wait_for_async
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static, TabbedContent

from pgqueue import App, Reject
from pgqueue.cli.top_app import NAMES, TABS, Help, TopApp
from pgqueue.control.desk import Desk
from pgqueue.control.watch import Watch
from pgqueue.errors import DatabaseError
from pgqueue.storage.connect import TOP

SECRET = "hunter-two-777"
SIZE = (80, 24)


@pytest.fixture
def app(database: Database) -> Iterator[App]:
    app = App(database.dsn)

    @app.task(name="pay", queue="critical")
    def pay(card: str) -> None:
        raise Reject("the bank declined")

    @app.task(name="sum")
    def total(card: str) -> None:
        return None

    app.enqueue("pay", {"card": SECRET})
    assert app.worker("critical", concurrency=1, drain=True).run() == 0
    app.enqueue("sum", {"card": SECRET}, delay="1h")
    app.schedules.upsert("nightly", task="sum", cron="0 3 * * *", args={"card": SECRET})
    yield app
    app.close()


@pytest.fixture
def top(database: Database) -> Iterator[TopApp]:
    with contextlib.closing(Watch(database.dsn)) as watch:
        yield TopApp(watch, 0.2)


def table(top: TopApp, name: str) -> list[list[str]]:
    found = top.query_one(f"#{name}-table", DataTable)
    return [[str(cell) for cell in found.get_row_at(n)] for n in range(found.row_count)]


def words(top: TopApp, name: str) -> str:
    return str(top.query_one(f"#{name}", Static).render())


async def seen(pilot: Pilot[None], met: Callable[[], object], what: str) -> None:
    async def asked() -> object:
        await pilot.pause()
        return met()

    waited: Awaitable[object] = wait_for_async(asked, 20, what=what)
    await waited


async def test_tabs_show_what_is_there_and_no_values(app: App, top: TopApp) -> None:
    async with top.run_test(size=SIZE) as pilot:
        await seen(pilot, lambda: table(top, "queues"), "queues")
        assert {row[0] for row in table(top, "queues")} >= {"critical", "default"}
        assert [row[1:4] for row in table(top, "jobs")] == [["scheduled", "sum", "default"]]
        assert [row[:4] for row in table(top, "dead_letters")] == [["1", "pay", "critical", "rejected"]]
        assert [row[:3] for row in table(top, "schedules")] == [["nightly", "enabled", "sum"]]
        assert "1 dead letters wait" in words(top, "summary")
        for number, name in enumerate(NAMES, 1):
            await pilot.press(str(number))
            assert top.query_one(TabbedContent).active == name
            assert SECRET not in top.export_screenshot()
        for name in TABS:
            assert SECRET not in str(table(top, name))
        await pilot.press("question_mark")
        assert isinstance(top.screen, Help)
        await pilot.press("escape")
        await pilot.press("q")
    assert top.return_code == 0


async def test_the_screen_stands_still_while_it_is_frozen(app: App, top: TopApp) -> None:
    async with top.run_test(size=SIZE) as pilot:
        await seen(pilot, lambda: len(table(top, "jobs")) == 1, "one job")
        await pilot.press("space")
        assert "FROZEN" in words(top, "foot")
        taken = words(top, "head")
        app.enqueue("sum", {"card": "x"}, delay="1h")
        # The same watch sees the job; a refresh that is asked for while frozen draws nothing.
        assert len(top._watch.take().jobs) == 2
        top._refresh()
        await pilot.pause()
        assert (len(table(top, "jobs")), words(top, "head")) == (1, taken)
        await pilot.press("space")
        await seen(pilot, lambda: len(table(top, "jobs")) == 2, "the second job")
        assert "FROZEN" not in words(top, "foot")


async def test_a_filter_narrows_the_jobs_and_a_wrong_one_says_why(app: App, top: TopApp) -> None:
    app.enqueue("pay", {"card": "x"}, delay="1h")
    async with top.run_test(size=SIZE) as pilot:
        await seen(pilot, lambda: len(table(top, "jobs")) == 2, "two jobs")
        await pilot.press("slash", *"colour:red", "enter")
        assert "unknown field" in words(top, "foot")
        line = top.query_one("#filter", Input)
        assert line.has_class("open")
        line.value = "queue:critical"
        await pilot.press("enter")
        await seen(pilot, lambda: [row[2] for row in table(top, "jobs")] == ["pay"], "the narrowed list")
        assert "queue:critical" in words(top, "foot")


async def test_a_lost_database_is_named_and_comes_back(app: App, top: TopApp, database: Database) -> None:
    banner = "#banner"
    async with top.run_test(size=SIZE) as pilot:
        await seen(pilot, lambda: table(top, "jobs"), "jobs")
        name = database.name
        with contextlib.closing(_admin(database)) as admin:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND application_name = 'pgqueue/top'",
                [name],
            )
            try:
                await seen(
                    pilot,
                    lambda: (
                        top.query_one(banner).has_class("lost")
                        and "not currently accepting" in words(top, "banner")
                    ),
                    "the banner",
                )
                assert len(table(top, "jobs")) == 1
            finally:
                admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await seen(pilot, lambda: not top.query_one(banner).has_class("lost"), "fresh figures")


def test_its_connection_cannot_write(app: App, database: Database) -> None:
    desk = Desk(database.dsn, via="cli", role=TOP)
    with pytest.raises(DatabaseError, match="read-only"):
        desk.note("look", "x", None)


def test_off_a_terminal_it_prints_what_stats_prints(app: App, database: Database) -> None:
    code, out, err = run("top", "--dsn", database.dsn)
    assert code == 0
    assert "slots busy" in out
    assert "critical" in out
    assert "pgqueue stats" in err
    assert SECRET not in out + err


def _admin(database: Database):
    import psycopg

    return psycopg.connect(database.server.dsn("postgres"), autocommit=True)
