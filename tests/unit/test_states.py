"""The state table: exactly these moves, each with reasons, and no way out of an end but one."""

from __future__ import annotations

import itertools

import pytest

from pgqueue.core.decide import Kind
from pgqueue.core.states import ENDED, LIVE, REASONS, TRANSITIONS, JobState, is_legal

LEGAL = {
    None: {"ready", "scheduled", "held"},
    "scheduled": {"scheduled", "ready", "held", "cancelled", "dead"},
    "held": {"ready", "running", "cancelled", "scheduled", "dead"},
    "ready": {"running", "held", "cancelled", "scheduled", "dead"},
    "running": {"succeeded", "scheduled", "ready", "held", "dead", "cancelled"},
    "succeeded": set(),
    "cancelled": set(),
    "dead": {"cancelled", "ready", "scheduled"},
}


@pytest.mark.proves("P6", "P22")
@pytest.mark.parametrize(("old", "new"), list(itertools.product(LEGAL, LEGAL)))
def test_a_move_is_legal_exactly_when_the_table_says_so(old, new):
    assert is_legal(old, new) is (new in LEGAL[old])
    assert ((old, new) in TRANSITIONS) is (new in LEGAL[old])


def test_every_state_is_live_or_an_end():
    assert set(JobState) == LIVE | ENDED == set(LEGAL) - {None}
    assert not LIVE & ENDED
    assert all(str(state) == state.value for state in JobState)


@pytest.mark.proves("P22")
def test_every_move_has_reasons_and_no_other_reason_passes():
    for (old, new), reasons in REASONS.items():
        assert reasons
        assert all(is_legal(old, new, reason) for reason in reasons)
        assert not is_legal(old, new, "because")
        assert all(reason.replace("_", "").isalpha() and reason.islower() for reason in reasons)
    assert is_legal("dead", "ready", "redriven")
    assert is_legal("running", "held", "rescued")
    assert not is_legal("nowhere", "ready")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (None, "ready", "enqueued"),
        (None, "scheduled", "enqueued"),
        (None, "held", "enqueued"),
        ("held", "ready", "promoted"),
        ("scheduled", "ready", "promoted"),
        ("ready", "running", "claimed"),
        ("ready", "scheduled", "rescheduled"),
        ("scheduled", "scheduled", "rescheduled"),
        ("scheduled", "ready", "rescheduled"),
        ("held", "ready", "freed"),
        ("held", "running", "claimed"),
        ("running", "scheduled", "retry"),
        ("running", "scheduled", "snoozed"),
        ("running", "ready", "released"),
        ("running", "ready", "rescued"),
        ("running", "held", "unknown_task"),
        ("running", "held", "suspect"),
        ("running", "held", "fuse"),
        ("running", "dead", "max_retries"),
        ("running", "dead", "gave_up"),
        ("running", "dead", "rejected"),
        ("running", "dead", "bad_args"),
        ("running", "dead", "worker_crash"),
        ("running", "dead", "expired"),
        ("running", "dead", "timeout"),
        ("ready", "dead", "expired"),
        ("held", "dead", "worker_crash"),
        ("running", "cancelled", "cancel_requested"),
        ("dead", "cancelled", "discarded"),
    ],
)
def test_the_reasons_that_other_rooms_write_are_known(old, new, reason):
    assert is_legal(old, new, reason)


def test_every_settlement_has_a_move():
    targets = {
        Kind.SUCCEEDED: "succeeded", Kind.RETRY: "scheduled", Kind.DEAD: "dead", Kind.CANCELLED: "cancelled",
        Kind.SNOOZED: "scheduled", Kind.RELEASED: "ready", Kind.HELD: "held",
    }  # fmt: skip
    assert set(targets) == set(Kind)
    assert all(is_legal("running", new) for new in targets.values())


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        REASONS["dead", "ready"] = frozenset({"x"})
