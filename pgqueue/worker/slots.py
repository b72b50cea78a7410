"""A pool of slots: which queues share it, what waits in its local buffer, how many handlers run.

The claimer fills it, sync executor threads and the async executor take from it. A waiting thread is woken
only when it is needed: quick handlers run one after the other in one thread, without a switch per job.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.windows import leads

TOGETHER_S = 5.0  # how long a batch seen keeps the claims large
QUICK_S = 0.0002  # a task whose handler usually returns faster than a thread can be woken


class Pool:
    """Slots of one group of queues. All methods are thread-safe."""

    def __init__(self, queues: tuple[str, ...], slots: int, *, buffer_s: float, batch_max: int) -> None:
        self.queues = queues
        self.slots = slots
        self._buffer_s = buffer_s
        self._batch_max = batch_max
        self._ready: deque[ClaimedJob] = deque()
        self._ready_async: deque[ClaimedJob] = deque()
        self._cond = threading.Condition(threading.Lock())
        self._idle = 0
        self._closed = False
        self._starved = False
        self._nudged_at_finished = -1
        self._rate = 0.0  # jobs finished per second, recently
        self._rate_at = time.monotonic()
        self._rate_finished = 0
        self.running = 0
        self.finished = 0
        self.pump_async: Callable[[], None] = _nothing
        self.want_more: Callable[[], None] = _nothing
        self._quick: dict[str, float] = {}
        self._together = 0
        self._together_until = 0.0

    def want(self) -> int:
        """How many jobs to claim now: free slots, plus about `buffer_s` of work ahead at the recent rate."""
        with self._cond:
            if self._closed:
                return 0
            self._measure()
            waiting = len(self._ready) + len(self._ready_async)
            ahead = max(self._ahead(), self._together if time.monotonic() < self._together_until else 0)
            room = self.slots - self.running + ahead - waiting
            # A small top-up costs a round trip as a full batch does, so wait until half the work ahead is used.
            if room <= 0 or (waiting and waiting * 2 > ahead and self.running >= self.slots):
                return 0
            return min(room, self._batch_max)

    def add(self, jobs: Iterable[ClaimedJob]) -> None:
        """Put claimed jobs into the buffer."""
        with self._cond:
            has_async = False
            for job in jobs:
                # Not for one that leads a window: the others are no claims ahead, its call gathers them.
                if job.task is not None and job.task.together > 1 and not leads(job):
                    self._together = max(self._together, job.task.together)
                    self._together_until = time.monotonic() + TOGETHER_S
                if job.task is not None and job.task.is_async:
                    self._ready_async.append(job)
                    has_async = True
                else:
                    self._ready.append(job)
            if self._ready and self._idle:
                self._cond.notify()
        if has_async:
            self.pump_async()

    def take(self, previous: ClaimedJob | None, run_s: float) -> ClaimedJob | None:
        """Finish `previous` (which ran for `run_s`) and wait for the next sync job; None when the pool is closed."""
        ask = False
        with self._cond:
            if previous is not None:
                self._finished(previous, run_s)
            while not self._ready or self.running >= self.slots:
                if self._closed:
                    return None
                self._starved = not self._ready
                if self._ready_async and self.running < self.slots:
                    self.pump_async()  # the slot that just became free is theirs
                self._idle += 1
                if self._starved:
                    self.want_more()
                self._cond.wait()
                self._idle -= 1
            job = self._ready.popleft()
            self.running += 1
            left = len(self._ready)
            if (
                left
                and self._idle
                and self.running < self.slots
                and self._quick.get(job.task_name, 1.0) > QUICK_S
            ):
                self._cond.notify()
            ask = left * 2 == self._ahead() or left == 0
        if ask:
            self.want_more()
        return job

    def take_along(self, first: ClaimedJob, most: int, *, is_async: bool = False) -> list[ClaimedJob]:
        """Take up to `most` more jobs of `first`'s task out of the buffer, for the slot that runs `first`."""
        with self._cond:
            source = self._ready_async if is_async else self._ready
            taken: list[ClaimedJob] = []
            kept: deque[ClaimedJob] = deque()
            while source and len(taken) < most:
                job = source.popleft()
                (taken if job.task_name == first.task_name and not leads(job) else kept).append(job)
            kept.extend(source)
            source.clear()
            source.extend(kept)
        self.want_more()
        return taken

    def count_along(self, jobs: int) -> None:
        """Jobs that ran along with another in its slot are finished."""
        with self._cond:
            self.finished += jobs

    def take_async(self) -> ClaimedJob | None:
        """Take an async job if a slot is free; never waits."""
        with self._cond:
            if not self._ready_async or self.running >= self.slots:
                return None
            self.running += 1
            return self._ready_async.popleft()

    def finish_async(self, job: ClaimedJob, run_s: float) -> None:
        """Finish an async job."""
        with self._cond:
            self._finished(job, run_s)
            if self._ready and self._idle:
                self._cond.notify()
            ask = not self._ready_async or len(self._ready_async) * 2 == self._ahead()
        if ask:
            self.want_more()

    def nudge(self) -> None:
        """Wake more threads if the buffer waits and nothing finished since the last nudge: a quick task turned slow."""
        with self._cond:
            if self._ready and self._idle and self._nudged_at_finished == self.finished:
                self._cond.notify(self._idle)
            self._nudged_at_finished = self.finished

    def drop(self, wanted: Callable[[ClaimedJob], bool] | None = None) -> list[ClaimedJob]:
        """Take jobs that have not started out of the buffer: all, or those `wanted`."""
        with self._cond:
            every = [*self._ready, *self._ready_async]
            dropped = [job for job in every if wanted is None or wanted(job)]
            if dropped:
                gone = {job.id for job in dropped}
                self._ready = deque(job for job in self._ready if job.id not in gone)
                self._ready_async = deque(job for job in self._ready_async if job.id not in gone)
            return dropped

    def waiting(self) -> int:
        """Jobs claimed but not started."""
        return len(self._ready) + len(self._ready_async)

    def abandon(self) -> None:
        """A stuck handler's claim was ended: its slot is free again, for a fresh thread."""
        with self._cond:
            self.running -= 1
            self._cond.notify()
        self.pump_async()

    def close(self) -> None:
        """No more jobs: waiting threads return."""
        with self._cond:
            self._closed = True
            self._cond.notify_all()

    def _finished(self, job: ClaimedJob, run_s: float) -> None:
        self.running -= 1
        self.finished += 1
        known = self._quick.get(job.task_name)
        self._quick[job.task_name] = run_s if known is None else known + 0.1 * (run_s - known)

    def _ahead(self) -> int:
        return min(self._batch_max, int(self._rate * self._buffer_s))

    def _measure(self) -> None:
        now = time.monotonic()
        elapsed = now - self._rate_at
        if elapsed < 0.005:
            return
        rate = (self.finished - self._rate_finished) / elapsed
        # Up at once (a burst must not starve), down slowly (an empty moment says nothing about speed).
        self._rate = rate if rate > self._rate else self._rate + (rate - self._rate) * min(1.0, elapsed)
        self._rate_at, self._rate_finished = now, self.finished


def _nothing() -> None:
    """Stand-in until the rooms are wired."""
