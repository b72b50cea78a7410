"""From which place of each lane a claim reads: the claimer's memory of what it has seen.

A lane (queue, priority) only grows at its tail, so a claim need not walk what it claimed before; under an old
snapshot those dead entries cannot be removed, and walking them is what makes other queues stand still. A job
whose producer commits late may lie below; wider reads find it:

tight   from the last place seen: while batches come back full
near    from the last place seen one to two seconds ago: while they do not, at most a tenth of the time
sweep   from the start: every second, at most a twentieth of the time

No clock in here: the moment is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PRIORITIES = tuple(range(10))
NEAR_SHIFT_S = 1.0
NEAR_TIMES = 9  # a near read may cost a tenth of the time
SWEEP_TIMES = 19  # a sweep may cost a twentieth


@dataclass(slots=True)
class Lanes:
    """Floors of all lanes of a worker's pools."""

    pools: tuple[tuple[str, ...], ...]
    sweep_interval_s: float = 1.0
    _seen: dict[tuple[str, int], int] = field(default_factory=dict)
    _recent: dict[tuple[str, int], int] = field(default_factory=dict)
    _near: dict[tuple[str, int], int] = field(default_factory=dict)
    _shifted_at: float = 0.0
    _next_near: float = 0.0
    _next_sweep: float = 0.0
    _turn: int = 0

    def forget(self) -> None:
        """Drop every floor: a connection was lost, and with it perhaps claims whose jobs are ready again."""
        self._seen.clear()
        self._recent.clear()
        self._near.clear()
        self._next_sweep = 0.0

    def choose(self, now: float, *, was_full: bool) -> str:
        """Return the mode of the next claim."""
        if now >= self._next_sweep:
            return "sweep"
        if not was_full and now >= self._next_near:
            return "near"
        return "tight"

    def parameters(self, mode: str) -> tuple[list[int], list[str], list[int], list[int]]:
        """Return pools, queues, priorities and floors for the claim statement.

        Within a pool the better priority comes first whatever the queue; queues take turns at being first.
        """
        floors_of = {"tight": self._seen, "near": self._near, "sweep": {}}[mode]
        self._turn += 1
        pools: list[int] = []
        queues: list[str] = []
        priorities: list[int] = []
        floors: list[int] = []
        for number, names in enumerate(self.pools, start=1):
            first = self._turn % len(names)
            turned = (*names[first:], *names[:first])
            for priority in PRIORITIES:
                for queue in turned:
                    pools.append(number)
                    queues.append(queue)
                    priorities.append(priority)
                    floors.append(floors_of.get((queue, priority), -1))
        return pools, queues, priorities, floors

    def saw(self, queue: str, priority: int, ready_seq: int) -> None:
        """A claim returned a job from this place."""
        lane = (queue, priority)
        if ready_seq > self._seen.get(lane, -1):
            self._seen[lane] = ready_seq

    def took(self, mode: str, now: float, seconds: float) -> None:
        """A claim of `mode` ended at `now` after `seconds`: plan the next wide reads, move the near floors up."""
        if mode == "sweep":
            self._next_sweep = now + max(self.sweep_interval_s, SWEEP_TIMES * seconds)
            self._next_near = now + NEAR_TIMES * seconds
        elif mode == "near":
            self._next_near = now + NEAR_TIMES * seconds
        if now - self._shifted_at >= NEAR_SHIFT_S:
            self._near, self._recent = self._recent, dict(self._seen)
            self._shifted_at = now
