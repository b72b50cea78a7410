"""What `pgqueue doctor --fix` may do by itself: a fixed menu, each a deed that takes nothing away, with its audit row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pgqueue.control.desk import Desk
from pgqueue.control.findings import Finding
from pgqueue.storage.statements import statement

PARTITIONS_AHEAD_DAYS: Final = 7
MENU: Final[Mapping[str, tuple[str, Mapping[str, Any], str]]] = {
    "partitions": (
        "ensure_partitions",
        {"ahead_days": PARTITIONS_AHEAD_DAYS},
        f"make the days up to {PARTITIONS_AHEAD_DAYS} ahead",
    ),
    "alerts": ("restore_alert_rules", {}, "put the shipped rules back that are missing"),
    "roles": ("roles_grant", {}, "grant the four roles what they lack"),
}
"""By check: the statement, its parameters, and what it does in words."""


def mendable(findings: Sequence[Finding]) -> dict[str, str]:
    """The checks that can be mended safely now, and what that means in words."""
    wrong = {finding.check for finding in findings if finding.safe and finding.verdict != "PASS"}
    return {check: words for check, (_, _, words) in MENU.items() if check in wrong}


def mend(desk: Desk, check: str, reason: str | None) -> None:
    """Mend one check, in one transaction with its audit row. Raises DatabaseError without the right to."""
    name, parameters, words = MENU[check]
    with desk.connection(f"mend {check}") as conn, conn.transaction():
        conn.execute(statement(name), parameters)
        conn.execute(
            statement("note_operation"),
            {
                "actor": desk.actor,
                "via": desk.via,
                "action": "doctor_fix",
                "target": f"{check}: {words}",
                "reason": reason,
                "matched": 1,
                "changed": 1,
                "detail": None,
            },
        )
