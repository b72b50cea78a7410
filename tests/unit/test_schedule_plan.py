"""One tick's verdict, by policy: exactly which fires run, which are missed, what is written of them, what comes next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.core.schedule import define_schedule
from pgqueue.core.schedule_plan import (
    FIRES_PER_TICK_MAX,
    MISSED_ROWS_MAX,
    PREVIEW_FIRES_MAX,
    TickPlan,
    jitter_of,
    plan_tick,
    preview,
)

NOW = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)


def plan(*, back: timedelta, now: datetime = NOW, **options: Any) -> TickPlan:
    made = define_schedule(
        **{"name": "s", "task": "t", **({} if "every" in options else {"cron": "0 * * * *"}), **options}
    )
    return plan_tick(
        made.timing,
        name=made.name,
        last_fire_at=now - back,
        now=now,
        misfire=made.misfire,
        max_catch_up=made.max_catch_up,
        grace_s=made.grace_s,
        jitter_s=made.jitter_s,
    )


def hours(found: TickPlan, outcome: str) -> list[int]:
    return [run.fire_at.hour for run in found.runs if run.outcome == outcome]


@pytest.mark.proves("P15", "F33")
@pytest.mark.parametrize(
    ("options", "fired", "missed"),
    [
        ({"misfire": "latest"}, [12], [9, 10, 11]),
        ({"misfire": "skip", "grace": "60s"}, [12], [9, 10, 11]),
        ({"misfire": "skip", "grace": "10s"}, [], [9, 10, 11, 12]),
        ({"misfire": "skip", "grace": "2h"}, [11, 12], [9, 10]),
        ({"misfire": "all"}, [9, 10, 11, 12], []),
        ({"misfire": "all", "max_catch_up": 3}, [10, 11, 12], [9]),
    ],
)
def test_after_a_downtime_each_policy_does_exactly_what_it_says(
    options: dict[str, Any], fired: list[int], missed: list[int]
) -> None:
    found = plan(back=timedelta(hours=3, minutes=30), **options)
    assert (hours(found, "enqueue"), hours(found, "missed")) == (fired, missed)
    assert (found.missed_total, found.missed_exact) == (len(missed), True)
    assert found.decided_until == NOW.replace(minute=0, second=0)
    assert found.next_fire_at == found.decided_until + timedelta(hours=1)


def test_nothing_due_is_a_plan_without_runs() -> None:
    found = plan(back=timedelta(seconds=20))
    assert found.runs == ()
    assert found.decided_until == NOW - timedelta(seconds=20)
    assert found.next_fire_at == datetime(2026, 11, 24, 13, tzinfo=UTC)


@pytest.mark.proves("F26s")
def test_a_clock_that_stepped_back_finds_nothing_due_and_repeats_nothing() -> None:
    found = plan(back=-timedelta(hours=2))
    assert found.runs == ()
    assert found.decided_until == NOW + timedelta(hours=2)
    assert found.next_fire_at == datetime(2026, 11, 24, 15, tzinfo=UTC)


def test_rows_of_missed_fires_are_bounded_and_one_more_tells_of_the_rest() -> None:
    found = plan(back=timedelta(seconds=1000), every="1s")
    missed = [run for run in found.runs if run.outcome == "missed"]
    assert len(missed) == MISSED_ROWS_MAX + 1
    summary = missed[0]
    assert summary.run_key == f"missed-before:{missed[1].run_key}"
    assert summary.fire_at == NOW - timedelta(seconds=1000)
    assert summary.note == (
        f"{999 - MISSED_ROWS_MAX} fires between 2026-11-24T11:43:50+00:00 and"
        f" {missed[1].fire_at.isoformat()} were missed without a row of their own"
    )
    assert found.missed_total == 999
    assert len({run.run_key for run in found.runs}) == len(found.runs)


def test_missed_fires_at_the_limit_have_a_row_each() -> None:
    found = plan(back=timedelta(seconds=MISSED_ROWS_MAX + 1), every="1s")
    assert [run.outcome for run in found.runs] == ["missed"] * MISSED_ROWS_MAX + ["enqueue"]
    assert not found.runs[0].run_key.startswith("missed-before:")


def test_missed_fires_that_are_not_even_listed_are_told_of() -> None:
    found = plan(back=timedelta(seconds=20_000), every="1s", misfire="all", max_catch_up=10_000)
    assert found.runs[0].run_key == f"missed-before:{found.runs[1].run_key}"
    assert found.missed_total == 10_000
    assert [run.outcome for run in found.runs[1:]] == ["enqueue"] * FIRES_PER_TICK_MAX


def test_years_of_downtime_are_a_lower_bound_for_a_cron_expression() -> None:
    found = plan(back=timedelta(days=800), cron="* * * * *")
    assert not found.missed_exact
    assert found.missed_total >= 9_999
    assert (found.runs[0].note or "").startswith("at least ")
    assert len(found.runs) == MISSED_ROWS_MAX + 2


@pytest.mark.proves("P15")
def test_a_long_catch_up_comes_in_pieces_that_leave_nothing_out() -> None:
    last, now, ticks = NOW - timedelta(seconds=2500), NOW, []
    made = define_schedule(name="s", task="t", every="1s", misfire="all", max_catch_up=10_000)
    while True:
        found = plan_tick(
            made.timing,
            name="s",
            last_fire_at=last,
            now=now,
            misfire="all",
            max_catch_up=10_000,
            grace_s=60,
            jitter_s=0,
        )
        if not found.runs:
            break
        ticks.append(found)
        last = found.decided_until
    assert [len(tick.runs) for tick in ticks] == [1000, 1000, 500]
    assert all(tick.missed_total == 0 for tick in ticks)
    fires = [run.fire_at for tick in ticks for run in tick.runs]
    assert fires == [NOW - timedelta(seconds=2500 - i) for i in range(1, 2501)]
    # A piece that was cut is due again at once.
    assert ticks[0].next_fire_at is not None
    assert ticks[0].next_fire_at <= now


def test_a_window_that_is_over_is_caught_up_to_its_end_and_then_fires_no_more() -> None:
    end = NOW.replace(minute=0, second=0) - timedelta(hours=1)
    found = plan(back=timedelta(hours=3), misfire="all", ends_at=end)
    assert hours(found, "enqueue") == [10, 11]
    assert found.next_fire_at is None
    late = plan(back=timedelta(hours=3), misfire="skip", grace="30m", ends_at=end)
    assert (hours(late, "enqueue"), hours(late, "missed")) == ([], [10, 11])
    assert late.missed_total == 2


def test_a_window_that_has_not_begun_plans_its_first_fire() -> None:
    start = NOW + timedelta(days=1)
    found = plan(back=timedelta(hours=3), misfire="all", starts_at=start)
    assert found.runs == ()
    assert found.next_fire_at == datetime(2026, 11, 25, 13, tzinfo=UTC)


@pytest.mark.proves("P16", "I31")
def test_the_overlap_has_one_run_key_and_the_gap_its_first_instant() -> None:
    twice = plan(
        back=timedelta(hours=24),
        now=datetime(2026, 10, 25, 12, tzinfo=UTC),
        cron="30 2 * * *",
        tz="Europe/Berlin",
        misfire="all",
    )
    assert [(run.run_key, run.fire_at) for run in twice.runs] == [
        ("2026-10-25T02:30", datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    ]
    assert "occurs twice" in (twice.runs[0].note or "")
    gap = plan(
        back=timedelta(hours=24),
        now=datetime(2026, 3, 29, 12, tzinfo=UTC),
        cron="30 2 * * *",
        tz="Europe/Berlin",
        misfire="all",
    )
    assert [(run.run_key, run.fire_at) for run in gap.runs] == [
        ("2026-03-29T02:30", datetime(2026, 3, 29, 1, 0, tzinfo=UTC))
    ]


def test_jitter_is_the_same_everywhere_and_spreads() -> None:
    assert jitter_of("s", "2026-11-24T00:00", 60) == jitter_of("s", "2026-11-24T00:00", 60)
    delays = [jitter_of(f"s{i}", "k", 60) for i in range(500)]
    assert all(0 <= delay < 60 for delay in delays)
    assert 25 < sum(delays) / len(delays) < 35
    assert jitter_of("s", "k", 0) == 0


def test_jitter_moves_the_job_and_not_the_fire() -> None:
    found = plan(back=timedelta(hours=1), jitter="10m")
    run = found.runs[0]
    assert run.fire_at == NOW.replace(minute=0, second=0)
    assert timedelta(0) < run.run_at - run.fire_at < timedelta(minutes=10)
    assert run.run_key == "2026-11-24T12:00:00+00:00"


@given(
    back_s=st.integers(0, 40_000),
    every_s=st.integers(1, 5_000),
    misfire=st.sampled_from(["skip", "latest", "all"]),
    keep=st.integers(1, 50),
    grace_s=st.integers(0, 10_000),
)
def test_every_fire_is_decided_once(back_s: int, every_s: int, misfire: str, keep: int, grace_s: int) -> None:
    """Runs, missed rows and the count add up to the fires of the stretch, whatever the policy."""
    found = plan(
        back=timedelta(seconds=back_s),
        every=every_s,
        misfire=misfire,
        max_catch_up=keep,
        grace=grace_s,
    )
    start = int((NOW - timedelta(seconds=back_s)).timestamp())
    fires = int(NOW.timestamp()) // every_s - start // every_s
    enqueued = sum(run.outcome == "enqueue" for run in found.runs)
    assert found.missed_exact
    if enqueued < FIRES_PER_TICK_MAX:
        assert enqueued + found.missed_total == fires
    if fires:
        assert found.decided_until <= NOW
    assert found.next_fire_at is not None
    assert found.next_fire_at > found.decided_until


@pytest.mark.proves("I30", "I31")
def test_a_preview_has_words_fires_and_notes() -> None:
    made = define_schedule(name="s", task="t", cron="30 2 * * *", tz="Europe/Berlin")
    shown = preview(made.timing, after=datetime(2026, 3, 1, tzinfo=UTC), count=3)
    assert (shown.words, shown.tz, len(shown.fires)) == ("at 02:30 every day", "Europe/Berlin", 3)
    assert shown.notes == ("02:30 does not exist on 2026-03-29 in Europe/Berlin: fires at 03:00",)
    either = define_schedule(name="s", task="t", cron="0 0 1 * 1").timing
    assert "either is enough" in either.words


def test_a_preview_is_bounded() -> None:
    made = define_schedule(name="s", task="t", every="1s")
    assert len(preview(made.timing, after=NOW, count=10**9).fires) == PREVIEW_FIRES_MAX
    assert made.timing.words == "every 1s"
