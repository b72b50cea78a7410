"""`make demo` as a program reads it: the last line of stdout, the exit code, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

KEYS = {"rides", "captures", "receipts", "kills", "dead_letters", "lag_p95_s", "proof"}
PROOF = {"ok", "captured_twice", "captured_without_ledger", "ledger_without_settlement", "rides_lost"}


@pytest.mark.proves("P3", "P6")
def test_the_demo_holds_its_proof_while_workers_are_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue", "demo", "--headless", "--duration", "8", "--chaos", "--json"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) >= KEYS
    assert set(result["proof"]) >= PROOF
    assert result["proof"] == {
        "ok": True,
        "captured_twice": 0,
        "captured_without_ledger": 0,
        "ledger_without_settlement": 0,
        "rides_lost": 0,
    }
    assert result["rides"] > 0
    assert result["captures"] > 0
    assert result["kills"] > 0
