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

REASONS: MappingProxyType[tuple[str | None, str], frozenset[str]] = MappingProxyType(
    {
        # None: there was no job before. Written under audit="full" alone, as are promoted, claimed and succeeded.
        (None, "ready"): frozenset({"enqueued"}),
        (None, "scheduled"): frozenset({"enqueued"}),
        (None, "held"): frozenset({"enqueued"}),
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
        # A window's time has come, and this job of it leads.
        ("held", "ready"): frozenset({"freed", "run_now", "rescheduled", "promoted"}),
        # A suspect of a worker's death is claimed alone, a job of a window along with its leader, from where it is held.
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

TRANSITIONS: frozenset[tuple[str | None, str]] = frozenset(REASONS)
"""Each legal move (from, to). A redrive makes a new job, whose first row says where it comes from."""

_PAGE = """\
# States and transitions

A live job is `ready` (stands in its lane), `running` (claimed), `scheduled` (waits for `run_at`) or `held` (waits until
`hold_reason` is lifted). It ends as `succeeded` or `cancelled` in `job_history`, or as a dead letter. A redrive is a new
job, whose first move comes from the dead one.

One table in `pgqueue.core.states` says which moves there are and why each may happen. This page is made from it, and the
database refuses every other row in `job_transitions` (`job_transitions_move_check`); a test tries each pair of states with
each reason against both. A live job's own row is guarded by what must go together: its state, its claim, its place in a
lane and the reason it is held for (`jobs_claim_check`, `jobs_lane_check`, `jobs_hold_check`).
"""
_HEAD = """\
| from | to | reasons |
|---|---|---|"""


def reference() -> str:
    """The text of docs/reference/states.md; a test keeps the file equal to it."""
    arrows = [f"{before or '[*]'} --> {after}" for before, after in REASONS]
    arrows += [f"{end} --> [*]" for end in (JobState.SUCCEEDED, JobState.CANCELLED)]
    rows = [
        f"| {before or ''} | {after} | {', '.join(f'`{reason}`' for reason in sorted(reasons))} |"
        for (before, after), reasons in REASONS.items()
    ]
    return (
        f"{_PAGE}\n```mermaid\nstateDiagram-v2\n    {_joined(arrows, '    ')}```\n\n{_HEAD}\n{_joined(rows)}"
    )


def _joined(lines: list[str], indent: str = "") -> str:
    return f"\n{indent}".join(lines) + "\n"


def is_legal(from_state: str | None, to_state: str, reason: str | None = None) -> bool:
    """Say whether a job may move so, and, if `reason` is given, for that reason."""
    reasons = REASONS.get((from_state, to_state))
    return reasons is not None and (reason is None or reason in reasons)
