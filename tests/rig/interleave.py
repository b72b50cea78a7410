"""Plays a scene in every order of its steps and tells in which orders something is wrong afterwards.

A scene sets the stage, gives one script of steps per connection, and judges what is left. The same scene with a
naive statement in place of the real one is its broken twin, which must be caught.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from rig.database import Database
from rig.hands import Hand, wipe
from rig.orders import Step, merges, play

from pgqueue.storage.statements import statement


class Scene:
    """One job or a few, and several connections that want something of them."""

    def __init__(self, texts: Mapping[str, bytes] | None = None) -> None:
        """`texts`: naive statements by name, for a broken twin."""
        self.texts = dict(texts or {})

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        """Make the rows, and forget what steps noted last time."""
        raise NotImplementedError

    def scripts(self) -> Sequence[Sequence[Step]]:
        """The steps of each connection, in order."""
        raise NotImplementedError

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        """What breaks a promise, in words; nothing when all is well."""
        raise NotImplementedError

    def hand(self, conn: psycopg.Connection[Any]) -> Hand:
        return Hand(conn, texts=self.texts)


def explore(database: Database, scene: Scene) -> list[str]:
    """Play every order; one line per order that ended wrong."""
    return list(_wrong_orders(database, scene))


def caught(database: Database, twin: Scene) -> bool:
    """Whether a broken twin breaks its promise in some order; that it cannot be played is no such thing."""
    return any("Error" not in line for line in _wrong_orders(database, twin))


def _wrong_orders(database: Database, scene: Scene) -> Iterator[str]:
    conn = database.connect()
    orders = list(merges([len(script) for script in scene.scripts()]))
    assert len(orders) > 1, "a scene of one order shows nothing"
    for order in orders:
        wipe(conn)
        scene.set_up(conn)
        errors = [error for mine in play(database.dsn, conn, scene.scripts(), order) for error in mine]
        wrong = [f"{type(error).__name__}: {error}" for error in errors] + scene.wrong(conn)
        if wrong:
            yield f"{order}: {'; '.join(wrong)}"


def begin(conn: psycopg.Connection[Any]) -> None:
    conn.execute("BEGIN")


def commit(conn: psycopg.Connection[Any]) -> None:
    conn.execute("COMMIT")


def naive(name: str, *changes: tuple[str, str]) -> dict[str, bytes]:
    """The statement `name` with parts of its guard replaced, for a broken twin."""
    text = statement(name)
    for real, instead in changes:
        assert real.encode() in text, f"{name} has no {real!r} any more: the twin is no twin"
        text = text.replace(real.encode(), instead.encode())
    return {name: text}


def make_function_naive(database: Database, function: str, real: str, instead: str) -> None:
    """Replace a part of a function's text in this database, for a broken twin."""
    text = database.one("SELECT pg_get_functiondef(%s::regproc)", [f"pgqueue.{function}"])
    assert real in text, f"{function} has no {real!r} any more: the twin is no twin"
    database.connect().execute(text.replace(real, instead).encode())
