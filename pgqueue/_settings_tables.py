"""The tables inside the settings: retry policies, and what is promised of queues.

Called by `pgqueue.settings` alone; pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pgqueue._settings_values import Seconds

YEAR_S = 366 * 86_400


def _with_unit(value: Any) -> Any:
    # Inside a table a bare number does not say what it counts.
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Duration = Annotated[Seconds, BeforeValidator(_with_unit)]


RawPolicy = Mapping[str, Any]


class RetrySettings(BaseModel):
    """Retry policies from configuration, as written; what they mean is checked where tasks are registered."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    default: RawPolicy | None = None
    queues: Mapping[str, RawPolicy] = Field(default_factory=dict)
    tasks: Mapping[str, RawPolicy] = Field(default_factory=dict)


class WebhookSettings(BaseModel):
    """Where messages for one webhook go, and what they are signed with."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field("", repr=False)
    secret: str = Field("", repr=False)


class QueueSettings(BaseModel):
    """One queue's objectives and owner, stored by workers at their start; None = as built in."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    sla: Duration | None = Field(None, ge=0.001, le=YEAR_S)
    sla_target: float | None = Field(None, gt=0, lt=1)
    run_objective: Duration | None = Field(None, ge=0.001, le=YEAR_S)
    run_target: float | None = Field(None, gt=0, lt=1)
    dead_letter_limit: int | None = Field(None, ge=0, le=2**31 - 1)
    tier: Literal["critical", "standard"] | None = None
    owner: str | None = Field(None, min_length=1, max_length=200)
    display_name: str | None = Field(None, min_length=1, max_length=200)


def columns_of(queues: Mapping[str, QueueSettings]) -> dict[str, dict[str, Any]]:
    """What is set of each queue, by the names of the table's columns."""
    named = {"sla": "sla_s", "run_objective": "run_objective_s"}
    return {
        queue: {named.get(name, name): value for name, value in given.model_dump(exclude_none=True).items()}
        for queue, given in queues.items()
    }
