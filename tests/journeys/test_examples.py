"""Every file in examples/ runs as written, against a real server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from rig.database import ROOT, Database
from rig.wait import wait_for
from sqlalchemy import create_engine

Load = Callable[[str], ModuleType]
TESTED = {
    "quickstart",
    "orders_sqlalchemy",
    "weather_async",
    "payouts_outside",
    "fee_deferred",
    "heatmap_window",
    "rides_published",
    "card_gateway",
}


@pytest.fixture
def load(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import an example as a worker would, on this test's database."""
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)
    loaded: list[ModuleType] = []

    def from_file(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # where SQLAlchemy looks annotations up
        spec.loader.exec_module(module)
        loaded.append(module)
        return module

    yield from_file
    for module in loaded:
        module.app.close()


def drain(module: ModuleType) -> None:
    assert module.app.worker(concurrency=2, drain=True).run() == 0


def test_every_example_is_tested() -> None:
    assert {path.stem for path in Path(ROOT, "examples").glob("*.py")} == TESTED


def test_quickstart(database: Database, load: Load) -> None:
    conn = database.connect()
    conn.execute(
        "CREATE TABLE captures (ride_id int, amount_cents int); CREATE TABLE rides (id int, status text)"
    )
    example = load("quickstart")
    example.complete_ride(database.dsn, 7)
    example.complete_ride(database.dsn, 7)
    drain(example)
    assert conn.execute("SELECT * FROM captures").fetchall() == [(7, 1250)]


def test_orders_sqlalchemy(database: Database, load: Load) -> None:
    example = load("orders_sqlalchemy")
    engine = create_engine(database.sqlalchemy_url)
    example.Base.metadata.create_all(engine)
    engine.dispose()
    order = example.place_order(database.sqlalchemy_url, 1990)
    drain(example)
    conn = database.connect()
    assert conn.execute("SELECT order_id, total_cents FROM invoices").fetchall() == [(order, 1990)]
    assert conn.execute("SELECT result FROM pgqueue.job_history").fetchall() == [({"invoice": 1},)]


async def test_weather_async(database: Database, load: Load) -> None:
    conn = database.connect()
    conn.execute("CREATE TABLE cities (name text); CREATE TABLE weather (city text, degrees float)")
    example = load("weather_async")
    assert await example.register_city(database.dsn, "Bridgetown")
    assert await example.register_city(database.dsn, "Speightstown")
    assert not await example.register_city(database.dsn, "Bridgetown")
    drain(example)
    assert conn.execute("SELECT * FROM weather ORDER BY city").fetchall() == [
        ("Bridgetown", 29.5),
        ("Speightstown", 29.5),
    ]
    assert conn.execute("SELECT attempts FROM pgqueue.job_history ORDER BY job_id").fetchall() == [(1,), (2,)]


@pytest.mark.proves("P5")
def test_payouts_outside(database: Database, load: Load) -> None:
    conn = database.connect()
    conn.execute("CREATE TABLE payouts (driver_id int, cents int, receipt text)")
    example: Any = load("payouts_outside")
    calls: list[str] = []

    class Unreliable(example.Bank):  # type: ignore[misc]
        """Moves the money, then loses its first answer: the caller must ask again."""

        def pay(self, driver_id: int, cents: int, *, key: str) -> str:
            if driver_id == 2:
                raise example.AccountClosedError
            calls.append(key)
            receipt = str(super().pay(driver_id, cents, key=key))
            if len(calls) == 1:
                raise ConnectionError("the answer was lost")
            return receipt

    example.bank = bank = Unreliable()
    for driver_id in (1, 2):
        example.pay_driver.enqueue(None, driver_id=driver_id, cents=5000)
    drain(example)
    assert conn.execute("SELECT * FROM payouts").fetchall() == [(1, 5000, "receipt 1")]
    assert len(calls) == 2
    assert list(bank.moved.values()) == [5000]  # two calls, one key: the money moved once
    assert conn.execute(
        "SELECT reason, attempts, error_message FROM pgqueue.dead_letter_jobs"
    ).fetchall() == [("rejected", 1, "the driver's account is closed")]


@pytest.mark.proves("P8", "P19")
def test_fee_deferred(database: Database, load: Load) -> None:
    example = load("fee_deferred")
    observer = database.connect()
    observer.execute("CREATE TABLE rides (id int, status text, fee_job_id bigint)")
    with psycopg.connect(database.dsn) as conn:
        example.book(conn, 1, timedelta(milliseconds=300))
        example.book(conn, 2, timedelta(milliseconds=300))
        example.cancel(conn, 2)
        example.book(conn, 3)
    # A drain does not wait for what is deferred, so the fee's moment comes first.
    wait_for(
        lambda: (
            observer.execute("SELECT min(run_at) <= clock_timestamp() FROM pgqueue.jobs").fetchone()
            == (True,)
        ),
        what="the fee falling due",
    )
    drain(example)
    assert observer.execute("SELECT id, status FROM rides ORDER BY id").fetchall() == [
        (1, "expired"),
        (2, "cancelled"),
        (3, "requested"),
    ]
    assert observer.execute(
        "SELECT state, started_at >= due_at FROM pgqueue.job_history ORDER BY job_id"
    ).fetchall() == [
        ("succeeded", True),
        ("cancelled", None),
    ]
    assert observer.execute("SELECT state FROM pgqueue.jobs").fetchall() == [("scheduled",)]


@pytest.mark.proves("P3")
def test_heatmap_window(database: Database, load: Load) -> None:
    conn = database.connect()
    conn.execute(
        "CREATE TABLE rides (id int, cell text); CREATE TABLE heatmap (cell text PRIMARY KEY, rides int)"
    )
    example = load("heatmap_window")
    for ride_id in range(6):
        example.end_ride(conn, ride_id, f"c{ride_id % 2}")
    drain(example)
    assert conn.execute("SELECT count(*) FROM heatmap").fetchone() == (0,), "the window has not ended"
    conn.execute("UPDATE pgqueue.jobs SET run_at = date_trunc('second', now()) - interval '1 s'")
    drain(example)
    assert conn.execute("SELECT * FROM heatmap ORDER BY cell").fetchall() == [("c0", 3), ("c1", 3)]


@pytest.mark.proves("P17")
def test_rides_published(database: Database, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("rides_published")
    with psycopg.connect(database.dsn) as conn:
        module.complete(conn, 7)
        conn.commit()
        module.complete(conn, 8)
        conn.rollback()
    assert module.app.relay(drain=True).run() == 0
    drain(module)
    ride = {"ride_id": 7}
    assert module.broker.log == [("ride.arrived", "ride:7", ride), ("ride.completed", "ride:7", ride)]
    assert capsys.readouterr().out == "receipt for ride 7\n"


@pytest.mark.proves("P5")
def test_card_gateway(database: Database, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    conn = database.connect()
    conn.execute("CREATE TABLE card_charges (ride_id int, receipt text)")
    example: Any = load("card_gateway")
    with example.Gateway() as gateway:
        gateway.trouble = ["fail", "hang", "late"]
        monkeypatch.setattr(example, "GATEWAY", gateway.place)
        monkeypatch.setattr(example, "TIMEOUT_S", 0.3)
        for _ in range(2):
            job = example.charge_card.enqueue(None, ride_id=7, cents=1250)
        drain(example)
    key = 'unique:{"ride_id":7}:charge'
    assert gateway.calls == [key] * 4
    assert gateway.charges == {key: {"id": "ch_1", "cents": "1250"}}
    assert conn.execute("SELECT * FROM card_charges").fetchall() == [(7, "ch_1")]
    assert conn.execute("SELECT job_id, name, attempt FROM pgqueue.job_steps").fetchall() == [
        (job.id, "charge", 4)
    ]
