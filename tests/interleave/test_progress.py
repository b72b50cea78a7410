"""A note of progress from a run whose job was taken over meanwhile: it must not stand beside the new run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import psycopg
import pytest
from rig.database import Database
from rig.hands import enqueue
from rig.interleave import Scene, begin, caught, commit, explore, naive
from rig.orders import Step


class NoteAndTakeOver(Scene):
    """Worker A notes its progress; A is held for dead, and B runs the job anew."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        enqueue(conn)
        (self.old,) = self.hand(conn).claim()

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.note, commit], [self.rescue, self.claim]]

    def note(self, conn: psycopg.Connection[Any]) -> None:
        row = {"id": self.old.id, "claim_id": self.old.claim_id, "done": 1, "total": 2, "note": "old"}
        self.hand(conn).run("note_progress", notes=orjson.dumps([row]).decode())

    def rescue(self, conn: psycopg.Connection[Any]) -> None:
        self.hand(conn).rescue(self.old.claim_id)

    def claim(self, conn: psycopg.Connection[Any]) -> None:
        self.hand(conn).claim_suspect()

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        # Passed by while its row was locked, a rescue comes again a moment later, and so does the claim.
        self.rescue(conn)
        self.claim(conn)
        row = conn.execute("SELECT progress FROM pgqueue.jobs").fetchone()
        return ["the old run's note stands beside the new one"] if row is not None and row[0] else []


@pytest.mark.proves("P4")
def test_a_late_note_is_never_the_new_runs(database: Database) -> None:
    assert explore(database, NoteAndTakeOver()) == []


def test_twin_a_note_without_the_fence_stands(database: Database) -> None:
    assert caught(
        database,
        NoteAndTakeOver(
            naive(
                "note_progress",
                ("j.id = a.id AND j.claim_id = a.claim_id", "j.id = a.id"),
                (" AND j.claim_id = m.claim_id", ""),
            )
        ),
    )
