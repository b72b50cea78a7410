"""A job as its handler sees it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgqueue.core.message import Message, message_of


@dataclass(frozen=True, slots=True)
class Job:
    """One run's job: what was enqueued, and where it stands.

    `attempt` counts starts, this one included; `wait_s` is how long it waited since it was due, in seconds.
    """

    id: int
    task: str
    queue: str
    priority: int
    attempt: int
    max_attempts: int
    args: Mapping[str, Any]
    headers: Mapping[str, str]
    tags: tuple[str, ...]
    created_at: datetime
    idempotency_key: str | None
    concurrency_key: str | None
    parent_id: int | None
    redrive_of: int | None
    wait_s: float

    @property
    def message(self) -> Message | None:
        """The outbox's message that this job was; None if it was none."""
        return message_of(self.args, self.headers)
