"""No question of people, dashboards or scrapers reads without an end: rows, time and text are bounded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from rig.database import Database

from pgqueue import App
from pgqueue.control.audit import Audit
from pgqueue.control.limits import LIMIT_MAX
from pgqueue.core import filter as filters
from pgqueue.errors import InvalidInput, InvalidOption
from pgqueue.storage.connect import CLI, HEALTH, METRICS, TOP, Role, connect
from pgqueue.storage.statements import STATEMENTS

LISTS: dict[str, Callable[[App, int], object]] = {
    "jobs": lambda app, limit: app.jobs.list(limit=limit),
    "dead letters": lambda app, limit: app.dead_letters.list(limit=limit),
    "groups": lambda app, limit: app.dead_letters.groups(limit=limit),
    "messages": lambda app, limit: app.outbox.list(limit=limit),
    "audit": lambda app, limit: Audit(app._desk).list(limit=limit),
    "alerts": lambda app, limit: app.alerts.list(limit=limit),
    "workers": lambda app, limit: app.queues.workers(limit=limit),
    "fires": lambda app, limit: app.schedules.runs("s", limit=limit),
}
LARGE = (
    "jobs",
    "job_history",
    "job_transitions",
    "dead_letter_jobs",
    "outbox",
    "outbox_dead_letters",
    "operator_audit",
)
LISTING = re.compile(r"^(list|tail|find)_")
# Rows of one job or message, or as many as ids are given.
BY_KEY = {"find_job", "find_settled", "find_claim", "find_step"}


@pytest.fixture
def app(database: Database) -> App:
    return App(database.dsn)


@pytest.mark.proves("S15")
@pytest.mark.parametrize("name", LISTS)
def test_a_list_answers_with_so_many_rows_at_most(app: App, name: str) -> None:
    ask = LISTS[name]
    for wrong in (0, -1, LIMIT_MAX + 1, 2**40):
        with pytest.raises(InvalidOption, match=r"1–10000"):
            ask(app, wrong)
    ask(app, LIMIT_MAX)
    app.close()


@pytest.mark.proves("S15")
def test_statements_that_list_large_tables_have_a_limit() -> None:
    listing = {
        name: str(text) for name, text in STATEMENTS.items() if LISTING.match(name) and name not in BY_KEY
    }
    large = {
        name: text
        for name, text in listing.items()
        if any(f"FROM pgqueue.{table} " in text for table in LARGE)
    }
    assert len(large) >= 5
    # A page of a window, or a call of a function that takes the limit.
    assert [name for name, text in large.items() if "LIMIT" not in text and "window" not in text] == [
        "list_messages"
    ]
    assert "5000" in str(STATEMENTS["messages_window"])


@pytest.mark.proves("S15")
@pytest.mark.parametrize(("role", "most_s"), [(METRICS, 2), (TOP, 2), (HEALTH, 2), (CLI, 30)])
def test_the_server_itself_ends_a_question_that_takes_too_long(
    database: Database, role: Role, most_s: int
) -> None:
    with connect(database.dsn, role, connect_timeout_s=10) as conn:
        row = conn.execute(
            "SELECT setting::integer FROM pg_settings WHERE name = 'statement_timeout'"
        ).fetchone()
        assert row is not None
        assert 0 < row[0] <= most_s * 1000


@pytest.mark.proves("S15")
def test_a_question_that_takes_too_long_is_ended(database: Database) -> None:
    with (
        connect(database.dsn, METRICS, connect_timeout_s=10) as conn,
        pytest.raises(psycopg.errors.QueryCanceled),
    ):
        conn.execute("SELECT pg_catalog.pg_sleep(60)")


@pytest.mark.proves("S15")
@pytest.mark.parametrize(
    "text",
    ["a" * (filters.CHARS_MAX + 1), "queue:q " * (filters.TERMS_MAX + 1), "queue:" + "q," * 60 + "q"],
)
def test_a_filter_has_its_bounds(text: str) -> None:
    with pytest.raises(InvalidInput):
        filters.parse_filter(text, "jobs")


@pytest.mark.proves("S15")
def test_no_statement_takes_an_expression_or_an_order_from_a_person() -> None:
    """What a person types is a value: never a regular expression, a column to sort by, or SQL."""
    for name, found in STATEMENTS.items():
        text: Any = str(found)
        assert not re.search(r"(?<![<>=!])~\*? *%\(", text), name
        assert not re.search(r"SIMILAR TO +%\(|ORDER BY +%\(|LIKE +%\(", text), name
