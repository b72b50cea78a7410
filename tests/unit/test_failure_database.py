"""Database errors in words: SQLSTATE, primary message and constraint, never the row's values."""

from __future__ import annotations

import asyncpg
import psycopg
import pytest
import sqlalchemy.exc
from psycopg.errors import UniqueViolation
from psycopg.pq import DiagnosticField

from pgqueue.core.failure import Failure, describe
from pgqueue.core.redact import Redactor

CANARY = "hunter2-5f0c"


def describe_(error: BaseException) -> Failure:
    return describe(error, task="capture_payment", redact=Redactor())


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def everything(failure: Failure) -> str:
    return f"{failure.error_type}\n{failure.message}\n{failure.traceback}"


def unique_violation() -> UniqueViolation:
    """Return what psycopg raises for a duplicate key: its text carries the row's values."""
    return UniqueViolation(
        f'duplicate key value violates unique constraint "users_email_key"\nDETAIL:  Key (email)=({CANARY}) already exists.',
        info={
            DiagnosticField.SQLSTATE: b"23505",
            DiagnosticField.MESSAGE_PRIMARY: b'duplicate key value violates unique constraint "users_email_key"',
            DiagnosticField.MESSAGE_DETAIL: f"Key (email)=({CANARY}) already exists.".encode(),
            DiagnosticField.CONSTRAINT_NAME: b"users_email_key",
        },
        encoding="utf-8",
    )


EXPECTED = (
    '23505: duplicate key value violates unique constraint "users_email_key" (constraint users_email_key)'
)


@pytest.mark.proves("S6", "S8")
def test_a_database_error_is_told_by_sqlstate_and_primary_message_never_by_detail():
    assert CANARY in str(unique_violation())
    failure = describe_(raised(unique_violation()))
    assert failure.error_type == "psycopg.errors.UniqueViolation"
    assert failure.sqlstate == "23505"
    assert failure.message == EXPECTED
    assert CANARY not in everything(failure)


@pytest.mark.proves("S6", "S8")
def test_a_database_error_inside_sqlalchemys_keeps_neither_detail_nor_parameters():
    wrapped = sqlalchemy.exc.IntegrityError("INSERT INTO users …", {"email": CANARY}, unique_violation())
    assert CANARY in str(wrapped)
    failure = describe_(raised(wrapped))
    assert failure.error_type == "sqlalchemy.exc.IntegrityError"
    assert failure.message == EXPECTED
    assert CANARY not in everything(failure)
    statement = sqlalchemy.exc.StatementError(
        "bad bind", "INSERT …", {"email": CANARY}, ValueError("not a date")
    )
    assert CANARY in str(statement)
    assert describe_(raised(statement)).message == "not a date"
    assert CANARY not in everything(describe_(raised(statement)))


@pytest.mark.proves("S8")
def test_an_asyncpg_error_is_told_without_its_detail():
    error = asyncpg.UniqueViolationError("duplicate key")
    error.detail = f"Key (email)=({CANARY}) already exists."
    error.constraint_name = "users_email_key"
    assert CANARY in str(error)
    failure = describe_(raised(error))
    assert (failure.sqlstate, failure.message) == (
        "23505",
        "23505: duplicate key (constraint users_email_key)",
    )
    assert CANARY not in everything(failure)


@pytest.mark.proves("S8")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda error: RuntimeError(f"could not save: {error}"),
        lambda error: RuntimeError(f"could not save: {error!r}"),
        lambda error: ExceptionGroup("could not save", [error]),
        RuntimeError,
    ],
)
def test_a_database_error_quoted_by_another_error_loses_its_detail(wrap):
    error = wrap(unique_violation())
    error.__context__ = raised(unique_violation())
    failure = describe_(raised(error))
    assert "could not save" in failure.message or "duplicate key" in failure.message
    assert CANARY not in everything(failure)


@pytest.mark.proves("S8")
def test_a_connection_error_without_sqlstate_keeps_its_text():
    failure = describe_(raised(psycopg.OperationalError("connection refused")))
    assert (failure.sqlstate, failure.message) == (None, "connection refused")


@pytest.mark.parametrize("code", [23505, "", "2350", "23 05", None, "2350é"])
def test_a_foreign_attribute_named_sqlstate_is_not_believed(code):
    error = ValueError("told")
    error.sqlstate = code
    assert describe_(error).sqlstate is None


class ForeignDiagnostics:
    message_primary = 7
    sqlstate = 8
    constraint_name = 9


def test_a_foreign_attribute_named_diag_is_not_believed():
    error = ValueError("told")
    error.diag = ForeignDiagnostics()
    assert (describe_(error).sqlstate, describe_(error).message) == (None, "told")
    error.sqlstate = "23505"
    assert describe_(error).message == "23505: told"
