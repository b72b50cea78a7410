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


@dataclass(frozen=True, slots=True)
class Registry:
    """All tasks of an App, and which policy a queue asks for."""

    tasks: Mapping[str, RegisteredTask]
    policy: Callable[[str, str], Retry]
