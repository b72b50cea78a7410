"""A step that is recorded while its job is taken over: the new run sees the record, or the record is refused."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import enqueue
from rig.interleave import Scene, begin, caught, commit, explore, naive
from rig.orders import Step


class RecordAndTakeOver(Scene):
    """Worker A has made its call and records the answer; A is held for dead and B runs the job anew."""

    def set_up(self, conn: psycopg.Connection[Any]) -> None:
        self.calls = 1
        self.acknowledged = self.refused = False
        self.to_call: str | None = None
        enqueue(conn)
        (self.old,) = self.hand(conn).claim()

    def scripts(self) -> Sequence[Sequence[Step]]:
        return [[begin, self.record, commit], [self.rescue, self.look, self.call]]

    def record(self, conn: psycopg.Connection[Any]) -> None:
        self.acknowledged = self.put(conn, self.old.claim_id)

    def put(self, conn: psycopg.Connection[Any], claim_id: str) -> bool:
        rows = self.hand(conn).run(
            "record_step",
            id=self.old.id,
            claim_id=claim_id,
            name="charge",
            result='"paid"',
            refused=None,
            run_s=0.5,
            record_id=str(uuid.uuid4()),
        )
        return bool(rows)

    def rescue(self, conn: psycopg.Connection[Any]) -> None:
        self.hand(conn).rescue(self.old.claim_id)

    def look(self, conn: psycopg.Connection[Any]) -> None:
        new = self.hand(conn).claim_suspect()
        if new is None:
            return
        (found,) = self.hand(conn).run("find_step", id=new.id, claim_id=new.claim_id, name="charge")
        self.to_call = new.claim_id if found["record_id"] is None else None

    def call(self, conn: psycopg.Connection[Any]) -> None:
        if self.to_call is not None:
            self.calls += 1
            self.refused = not self.put(conn, self.to_call)
            self.to_call = None

    def wrong(self, conn: psycopg.Connection[Any]) -> list[str]:
        self.rescue(conn)
        self.look(conn)
        self.call(conn)
        found = []
        if self.acknowledged and self.calls > 1:
            found.append("recorded, and called again")
        if not self.acknowledged and self.calls == 1:
            found.append("neither recorded nor called again")
        if self.refused:
            found.append("the newest run was refused")
        return found


@pytest.mark.proves("P4", "P5", "F50")
def test_what_is_recorded_is_not_called_again_by_whoever_takes_the_job_over(database: Database) -> None:
    assert explore(database, RecordAndTakeOver()) == []


def test_twin_a_record_that_locks_nothing_comes_too_late(database: Database) -> None:
    assert caught(database, RecordAndTakeOver(naive("record_step", ("FOR KEY SHARE", ""))))


def test_twin_a_record_without_the_fence_stands_beside_a_second_call(database: Database) -> None:
    assert caught(database, RecordAndTakeOver(naive("record_step", ("AND j.claim_id = %(claim_id)s ", ""))))
