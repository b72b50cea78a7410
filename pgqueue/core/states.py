"""The states of a job, the legal moves between them, and the words that give the reason for a move.

The one table that SQL checks, audit rows and the verdict of fault tests are compared with; pure.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType


class JobState(StrEnum):
    """Where a job stands. The first four are live rows; the last three are ends."""

    SCHEDULED = "scheduled"
    HELD = "held"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    DEAD = "dead"


LIVE: frozenset[str] = frozenset({JobState.SCHEDULED, JobState.HELD, JobState.READY, JobState.RUNNING})
ENDED: frozenset[str] = frozenset({JobState.SUCCEEDED, JobState.CANCELLED, JobState.DEAD})

_HOLDS = frozenset({"unknown_task", "suspect", "fuse", "concurrency_limit", "rate_limit", "operator"})
_NEVER_RUN = frozenset({"expired", "worker_crash"})
_CANCELS = frozenset({"cancelled", "cancel_requested"})

REASONS: MappingProxyType[tuple[str, str], frozenset[str]] = MappingProxyType(
    {
        ("scheduled", "ready"): frozenset({"promoted", "run_now", "rescheduled"}),
        # To another moment; the only move that changes no state.
        ("scheduled", "scheduled"): frozenset({"rescheduled"}),
        ("scheduled", "held"): _HOLDS,
        ("scheduled", "cancelled"): _CANCELS,
        ("scheduled", "dead"): _NEVER_RUN,
        ("ready", "running"): frozenset({"claimed"}),
        ("ready", "held"): _HOLDS,
        ("ready", "scheduled"): frozenset({"rescheduled"}),
        ("ready", "cancelled"): _CANCELS,
        ("ready", "dead"): _NEVER_RUN,
        ("held", "ready"): frozenset({"freed", "run_now", "rescheduled"}),
        # A suspect of a worker's death is claimed alone, straight from where it is held.
        ("held", "running"): frozenset({"claimed"}),
        ("held", "scheduled"): frozenset({"rescheduled"}),
        ("held", "cancelled"): _CANCELS,
        ("held", "dead"): _NEVER_RUN,
        ("running", "succeeded"): frozenset({"succeeded"}),
        ("running", "scheduled"): frozenset({"retry", "snoozed"}),
        ("running", "ready"): frozenset({"released", "rescued"}),
        ("running", "held"): _HOLDS | {"released", "rescued"},
        ("running", "cancelled"): _CANCELS,
        ("running", "dead"): frozenset(
            {"max_retries", "gave_up", "rejected", "bad_args", "worker_crash", "expired", "timeout"}
        ),
        ("dead", "cancelled"): frozenset({"discarded"}),
        # The first row of the new job that repeats a dead one.
        ("dead", "ready"): frozenset({"redriven"}),
        ("dead", "scheduled"): frozenset({"redriven"}),
    }
)
"""Each legal move (from, to) with the reasons that an audit row may give for it."""

TRANSITIONS: frozenset[tuple[str, str]] = frozenset(REASONS)
"""Each legal move (from, to). A redrive makes a new job, whose first row says where it comes from."""


def is_legal(from_state: str, to_state: str, reason: str | None = None) -> bool:
    """Say whether a job may move so, and, if `reason` is given, for that reason."""
    reasons = REASONS.get((from_state, to_state))
    return reasons is not None and (reason is None or reason in reasons)
