"""How long a queue's ended jobs are kept, where that is shorter than for all: `pgqueue queues keep`."""

from __future__ import annotations

from typing import Final

from pgqueue.control.desk import Desk
from pgqueue.core.names import check_queue
from pgqueue.errors import InvalidOption, NotFoundError

HISTORY_DAYS_MAX: Final = 36_500


def keep_history(desk: Desk, queue: str, days: int | None, *, reason: str | None = None) -> None:
    """Keep a queue's history for so many days, not counting today; None: as long as the setting says for all.

    Raises InvalidOption, NotFoundError, DatabaseUnreachable.
    """
    desk.need_reason(reason)
    check_queue(queue)
    if days is not None and not 1 <= days <= HISTORY_DAYS_MAX:
        raise InvalidOption("days", f"1 to {HISTORY_DAYS_MAX}")
    parameters = {"queue": queue, "days": days, "reason": reason, "actor": desk.actor, "via": desk.via}
    if not desk.value("keep_history", parameters):
        raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
