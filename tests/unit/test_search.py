"""Where a search begins: at the start when a sweep is due, near its last place otherwise, and on if it was not done."""

from __future__ import annotations

import pytest

from pgqueue.upkeep import search as room
from pgqueue.upkeep.search import NEAR_S, SWEEP_TIMES, Search


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    return now


def looked(search: Search, clock: list[float], *entries: int, takes_s: float = 0.0) -> int:
    """One search that sees these entries; where it began."""
    search.begin()
    began: int = search.at["n"]
    for entry in entries:
        search.saw({"n": entry})
    clock[0] += takes_s
    search.finish()
    return began


def test_a_dear_sweep_is_rare_and_searches_between_begin_near_the_last_place(clock: list[float]) -> None:
    search = Search.over(n=0)
    assert looked(search, clock, 5, 9, takes_s=1.0) == 0
    swept = clock[0]
    clock[0] += NEAR_S
    assert looked(search, clock, 12) == 0, "nothing was seen that long ago"
    clock[0] += NEAR_S / 2
    assert looked(search, clock) == 9, "entries of the last second may still have late neighbours"
    clock[0] += NEAR_S / 2
    assert looked(search, clock) == 9
    clock[0] += NEAR_S / 2
    assert looked(search, clock) == 12
    clock[0] = swept + SWEEP_TIMES * 1.0
    assert looked(search, clock) == 0, "the sweep is due"


def test_a_cheap_sweep_is_made_each_time(clock: list[float]) -> None:
    search = Search.over(n=0)
    for entry in (3, 4, 5):
        assert looked(search, clock, entry, takes_s=0.001) == 0
        clock[0] += NEAR_S


def test_a_search_that_was_cut_short_goes_on_where_it_stopped(clock: list[float]) -> None:
    search = Search.over(n=0)
    search.begin()
    search.saw({"n": 4})
    clock[0] += 60
    search.begin()
    assert search.at == {"n": 4}
    search.saw({"n": 6})
    search.finish()
    assert not search.under_way


def test_a_sweep_that_sees_less_than_before_loses_no_place(clock: list[float]) -> None:
    search = Search.over(n=0)
    looked(search, clock, 50, takes_s=0.01)
    for _ in range(3):
        clock[0] += NEAR_S
        looked(search, clock, 7, takes_s=1.0)
    clock[0] += NEAR_S
    assert looked(search, clock) == 50


def test_who_finds_another_at_it_begins_no_later_than_it_would_have(clock: list[float]) -> None:
    search = Search.over(n=0)
    search.begin()
    search.leave()
    assert not search.under_way
    search.begin()
    assert search.at == {"n": 0}, "it has swept nothing yet"
