"""A worker is killed at every point around a recorded step: the receiver charges once; without step and key, twice."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rig.database import ROOT, Database
from rig.proc import Proc
from rig.wait import wait_for

sys.path.insert(0, str(ROOT))  # the gateway is the example's own

from examples.card_gateway import Gateway

# The ride, where its first attempt is killed, how often the gateway is called for it, and which attempt recorded.
KILLED = [(101, "before", 1, 2), (102, "called", 2, 2), (103, "recorded", 1, 1), (104, "effect", 1, 1)]
TWIN = 201


def worker(database: Database, gateway: Gateway) -> Proc:
    return Proc(
        [sys.executable, "-m", "pgqueue", "worker", "-A", "stepapp:app", "-c", "1"],
        env={
            "PGQUEUE_DATABASE_URL": database.dsn,
            "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}",
            "PGQUEUE_LOG_LEVEL": "warning",
            "CARD_GATEWAY": gateway.place,
        },
    )


@pytest.mark.proves("P5", "P6", "F50")
def test_a_card_is_charged_once_wherever_the_worker_is_killed(database: Database) -> None:
    conn = database.connect()
    conn.execute("CREATE TABLE card_charges (ride_id bigint, receipt text)")
    for ride_id, die, _, _ in KILLED:
        conn.execute("SELECT pgqueue.enqueue('charge', %s)", [json.dumps({"ride_id": ride_id, "die": die})])
    conn.execute(
        "SELECT pgqueue.enqueue('charge_naively', %s)", [json.dumps({"ride_id": TWIN, "die": "called"})]
    )
    with Gateway() as gateway, ExitStack() as stack:
        workers = [stack.enter_context(worker(database, gateway)) for _ in range(2)]

        def supervised() -> bool:
            for number, process in enumerate(workers):
                if not process.running:
                    workers[number] = stack.enter_context(worker(database, gateway))
            return database.one("SELECT count(*) FROM pgqueue.jobs") == 0

        wait_for(supervised, 120, what="every job to end")
        charges = Counter(int(receipt["cents"]) for receipt in gateway.charges.values())
        keys = Counter(gateway.calls)
    assert conn.execute("SELECT count(*) FROM pgqueue.dead_letter_jobs").fetchone() == (0,)
    assert charges == {**{ride_id: 1 for ride_id, *_ in KILLED}, TWIN: 2}
    steps: dict[int, tuple[Any, ...]] = {
        ride_id: (job_id, attempts, recorded_by, receipt)
        for ride_id, job_id, attempts, recorded_by, receipt in conn.execute(
            "SELECT (h.args ->> 'ride_id')::int, h.job_id, h.attempts, s.attempt, s.result"
            " FROM pgqueue.job_history h JOIN pgqueue.job_steps s USING (job_id)"
        )
    }
    paid = conn.execute("SELECT ride_id, receipt FROM card_charges ORDER BY ride_id").fetchall()
    assert [ride_id for ride_id, _ in paid] == [*(ride_id for ride_id, *_ in KILLED), TWIN]
    for ride_id, _, calls, recorded_by in KILLED:
        job_id, attempts, by, receipt = steps[ride_id]
        assert (keys[f"charge:{job_id}:charge"], by) == (calls, recorded_by)
        assert attempts >= 2
        assert (ride_id, receipt) in paid
    assert (
        database.one("SELECT count(*) FROM pgqueue.job_transitions WHERE reason = 'rescued'")
        >= len(KILLED) + 1
    )
