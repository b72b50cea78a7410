"""One worker is asked to finish and leave: it takes nothing new, ends by itself, and the deed is a row."""

from __future__ import annotations

from typing import Any

import pytest
from rig.wait import wait_for

from pgqueue import ConflictError, InvalidInput, NotFoundError
from pgqueue.cli.main import main


@pytest.mark.proves("P22", "S26")
def test_a_worker_that_is_asked_to_drain_leaves(site: Any) -> None:
    queues = site.app.queues
    site.start()
    worker_id = site.one("SELECT id::text FROM pgqueue.workers")
    assert main(["workers", "drain", worker_id[:8], "--dry-run", "--dsn", site.database.dsn]) == 0
    assert site.one("SELECT drain_requested_at FROM pgqueue.workers") is None
    assert main(["workers", "drain", worker_id[:8], "--reason", "a rollout", "--dsn", site.database.dsn]) == 0
    wait_for(
        lambda: site.one("SELECT status FROM pgqueue.workers") == "stopped", 30, what="the worker to leave"
    )
    audit = site.rows("SELECT action, target, reason, via FROM pgqueue.operator_audit")
    assert audit == [("drain", f"worker {worker_id}", "a rollout", "cli")]
    with pytest.raises(ConflictError, match="left already"):
        queues.drain_worker(worker_id)
    with pytest.raises(NotFoundError, match="workers list"):
        queues.drain_worker("00000000-0000")
    for wrong in ("0", "%_______", "'; DROP TABLE x"):
        with pytest.raises(InvalidInput):
            queues.drain_worker(wrong)
