"""What a worker knows about a task: the App's registration, without the App. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pgqueue.core.retry import Retry
from pgqueue.core.signature import HandlerSignature


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    """A task as its worker runs it; `retry` is the policy that applies when the job carries none of its own."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    signature: HandlerSignature
    queue: str
    priority: int
    retry: Retry
    timeout_s: float | None
    batch: int = 0  # jobs handed to one call; 0 = one job, one call
    batch_key: str | None = None  # the argument whose value keeps jobs apart: one call per value
    batch_window_s: float | None = (
        None  # jobs are collected so long, and then handed to one call; None = at once
    )
    group_commit: int = 0  # jobs that share a transaction, a savepoint each; 0 = one each
    audit_full: bool = False  # the plain path of its jobs is written to the audit as well

    @property
    def together(self) -> int:
        """How many jobs are worth taking at once."""
        return max(self.batch, self.group_commit, 1)

    @property
    def shares(self) -> bool:
        """Whether its jobs share a call or a transaction; a batch of one is still handed over as a list."""
        return self.batch > 0 or self.group_commit > 1


@dataclass(frozen=True, slots=True)
class Registry:
    """All tasks of an App, and which policy a queue asks for."""

    tasks: Mapping[str, RegisteredTask]
    policy: Callable[[str, str], Retry]
