"""How far handlers say they are: the newest note of each, written once a second beside their transactions.

Called by the contexts, from any thread or event loop: a handler leaves its note and goes on. A thread with a
connection of its own writes, in one statement for all; it starts with the first note.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import orjson
import psycopg

from pgqueue.core.events import Warned
from pgqueue.core.progress import check_progress
from pgqueue.storage.connect import PROGRESS
from pgqueue.storage.faults import summary_of
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.state import WorkerState

EVERY_S: Final = 1.0
EVERY_MAX_S: Final = 5.0
# Each note is a new version of the job's row, and a handler with an open transaction keeps them all: whoever runs
# for minutes is noted less often.
SLOWER_AFTER: Final = 60.0


@dataclass(slots=True)
class _Note:
    """The newest note of one run."""

    job: ClaimedJob
    since: float
    row: dict[str, Any]
    fresh: bool = True
    written_at: float | None = None

    def due(self, now: float) -> bool:
        if not self.fresh:
            return False
        wait_s = min(EVERY_MAX_S, max(EVERY_S, (now - self.since) / SLOWER_AFTER))
        return self.written_at is None or now - self.written_at >= wait_s


class ProgressBook:
    """Where a worker process notes how far its handlers are. Thread-safe."""

    def __init__(self, state: WorkerState, dsn: str) -> None:
        self._state = state
        self._dsn = dsn
        self._lock = threading.Lock()
        self._notes: dict[int, _Note] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, job: ClaimedJob, done: object, total: object, note: object) -> None:
        """Leave a note; the last one before a write is the one written. Raises InvalidOption."""
        found = check_progress(done, total, note)
        words = None if found.note is None else self._state.redactor.text(found.note)
        row = {
            "id": job.id,
            "claim_id": job.claim.id,
            "done": found.done,
            "total": found.total,
            "note": words,
        }
        if self._state.running.get(job.id) is None:
            return  # a late handler, whose job was taken from it
        with self._lock:
            known = self._notes.get(job.id)
            if known is not None and known.job is job:
                known.row, known.fresh = row, True
            else:
                self._notes[job.id] = _Note(job, time.monotonic(), row)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="pgqueue-progress", daemon=True)
                self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Stop writing, once the worker is ending."""
        self._wake.set()
        if self._thread is not None:
            self._thread.join(EVERY_S)

    def _work(self) -> None:
        state = self._state
        link = Link(
            self._dsn,
            PROGRESS,
            label=state.label,
            connect_timeout_s=state.settings.connect_timeout_s,
            stop=state.ending,
            report=state.trouble,
        )
        while not state.ending.is_set():
            self._wake.wait()
            self._wake.clear()
            if batch := self._due():
                self._write(link, batch)
            with self._lock:
                if any(note.fresh for note in self._notes.values()):
                    self._wake.set()
            state.ending.wait(EVERY_S)
        link.close()

    def _due(self) -> list[_Note]:
        now = time.monotonic()
        with self._lock:
            for job_id in [job_id for job_id in self._notes if job_id not in self._state.running]:
                del self._notes[job_id]
            due = [note for note in self._notes.values() if note.due(now)]
            for note in due:
                note.fresh = False
            return due

    def _write(self, link: Link, batch: list[_Note]) -> None:
        notes = orjson.dumps([note.row for note in batch]).decode()

        def write(conn: psycopg.Connection[Any]) -> set[int]:
            return {row[0] for row in conn.execute(statement("note_progress"), {"notes": notes}).fetchall()}

        try:
            written = link.try_once(write)
        except Exception as error:  # noqa: BLE001 - a note is not worth a job, and the thread serves all of them
            self._state.events.emit(
                Warned("progress_failed", f"progress of {len(batch)} jobs was not noted: {summary_of(error)}")
            )
            return
        now = time.monotonic()
        for note in batch:
            if written is not None and note.job.id in written:
                note.written_at = now
            else:
                # The row is locked by somebody, or the database is away: once more, while the job runs.
                note.fresh = True
