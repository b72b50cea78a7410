"""Who can enqueue decides which registered task runs, with which JSON: never which code. The worker has its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rig.database import Database

from pgqueue import App

# Names by which other queues were made to import, and payloads by which others were made to build objects.
NAMES = ("os.system", "posix.system", "subprocess.run", "builtins.eval", "evil_module.run", "evil_module")
ARGS: tuple[Any, ...] = (
    {"card": {"__class__": "os.system", "args": ["touch x"]}},
    {"card": {"py/object": "subprocess.Popen", "py/reduce": ["os.system", ["x"]]}},
    {"card": "gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAV0b3VjaJSFlFKULg=="},
    {"card": "!!python/object/apply:os.system ['x']"},
    {"card": "{{ ''.__class__.__mro__ }}"},
)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that could be imported, and leaves a mark if it is."""
    mark = tmp_path / "imported"
    (tmp_path / "evil_module.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef run(**_): Path({str(mark)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return mark


@pytest.mark.proves("S24")
def test_a_producer_makes_a_worker_run_no_code_that_it_does_not_have(database: Database, trap: Path) -> None:
    conn = database.connect()
    app = App(database.dsn)
    seen: list[Any] = []

    @app.task(name="pay")
    def pay(card: Any) -> None:
        seen.append(card)

    loaded = set(sys.modules)
    for name in NAMES:
        conn.execute("SELECT pgqueue.enqueue(%s, '{}')", [name])
    for args in ARGS:
        app.enqueue("pay", args)
    # The handler takes its arguments by name alone; a header is text that nothing reads as a path.
    conn.execute(
        """SELECT pgqueue.enqueue('pay', '{"card": 1}', headers => '{"pgqueue.topic": "evil_module.run", "task": "evil_module"}')"""
    )
    assert app.worker("default", drain=True, concurrency=1).run() == 0
    app.close()
    held = conn.execute("SELECT task, state, hold_reason FROM pgqueue.jobs ORDER BY task").fetchall()
    assert held == [(name, "held", "unknown_task") for name in sorted(NAMES)]
    key = str
    assert sorted(seen, key=key) == sorted([1, *(args["card"] for args in ARGS)], key=key)
    assert all(type(card) in {dict, str, int} for card in seen)
    assert not trap.exists()
    assert "evil_module" not in set(sys.modules) - loaded
    # The twin: the trap works.
    __import__("evil_module")
    assert trap.exists()


@pytest.mark.proves("S24")
def test_what_is_stored_names_no_code(database: Database) -> None:
    """A schedule, a subscription and a subscriber are rows as well: they name tasks, and unknown ones are held or refused."""
    conn = database.connect()
    app = App(database.dsn)

    @app.task(name="pay")
    def pay() -> None: ...

    conn.execute(
        'SELECT pgqueue.put_schedule(\'{"name": "s", "task": "os.system", "cron": "0 0 * * *", "args": {"command": "x"}}\')'
    )
    conn.execute("SELECT pgqueue.run_schedule('s')")
    assert app.worker("default", drain=True, concurrency=1).run() == 0
    app.close()
    assert conn.execute("SELECT task, state, hold_reason FROM pgqueue.jobs").fetchall() == [
        ("os.system", "held", "unknown_task")
    ]
