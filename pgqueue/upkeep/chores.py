"""The duties that one process does for the whole fleet, whichever comes first: any worker, or the leading scheduler.

Called by worker/ and app.py, which give them a thread and a connection of their own: a long one delays no promotion.
"""

from __future__ import annotations

from pgqueue.settings import Settings
from pgqueue.upkeep.duties import Duty
from pgqueue.upkeep.expiry import expiry_duty
from pgqueue.upkeep.partitions import partitions_duty
from pgqueue.upkeep.rescue import forget_duty
from pgqueue.upkeep.retention import dead_letters_duty, queue_retention_duty, retention_duty
from pgqueue.upkeep.rollups import prune_stats_duty, recount_duty, rollups_duty, samples_duty
from pgqueue.upkeep.steps import steps_duty

STEPS_S = 600.0
FORGET_TIMES = 6  # rows of ended workers are looked at this many times less often than keys


def chores(settings: Settings, actor: str) -> list[Duty]:
    """The fleet's duties. `actor`: who does them, for the audit."""
    keep_days = settings.history_retention_days
    return [
        partitions_duty(ahead_days=settings.partitions_ahead_days),
        rollups_duty(),
        samples_duty(),
        expiry_duty(settings.upkeep_interval_s),
        forget_duty(settings.upkeep_interval_s * FORGET_TIMES),
        retention_duty(keep_days=keep_days),
        steps_duty(STEPS_S, keep_days=keep_days),
        queue_retention_duty(),
        dead_letters_duty(
            redriven_days=keep_days, waiting_days=settings.dead_letter_retention_days, actor=actor
        ),
        recount_duty(),
        prune_stats_duty(),
    ]
