"""The one table of settings: names, units, defaults, bounds, and what must hold between them.

Every room reads `Settings`; `load_settings` is called once by App and the CLI. It reads the environment and
one configuration file, opens no connection, and reports everything that is wrong at once.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pgqueue._settings_docs import SettingDoc, describe, render
from pgqueue._settings_sources import (
    ENV_PREFIX,
    named_values,
    read_config_file,
    redact_dsn,
    unknown_variables,
)
from pgqueue._settings_tables import QueueSettings, RetrySettings, WebhookSettings, columns_of
from pgqueue._settings_values import Dsn, Seconds, Words, json_table
from pgqueue.errors import ConfigurationError

SECRET_CHARS_MIN = 16

__all__ = [
    "RetrySettings",
    "SettingDoc",
    "Settings",
    "WebhookSettings",
    "describe_settings",
    "load_settings",
    "redact_dsn",
    "render_settings_markdown",
]


class Settings(BaseSettings):
    """All settings, checked. Made by `load_settings`; made directly it takes only what it is given."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    database_url: Dsn = Field(
        "",
        repr=False,
        description="Address of the database, as a URL or libpq keywords. Empty: DATABASE_URL, then libpq's PG* variables.",
    )
    direct_database_url: Dsn = Field(
        "",
        repr=False,
        description="Address past a transaction pooler, for wake-ups, worker locks and scheduler leadership. Empty: database_url.",
    )
    environment: str = Field(
        "development",
        min_length=1,
        max_length=64,
        description="Name of this installation; `production` makes operators give a reason for each change.",
    )
    concurrency: int = Field(8, ge=1, le=1000, description="Jobs that one worker process runs at a time.")
    heartbeat_s: Seconds = Field(3.0, ge=0.05, le=3600, description="How often a worker says that it lives.")
    lease_s: Seconds = Field(
        15.0, ge=0.2, le=86_400, description="Silence after which a worker's jobs are given to others."
    )
    poll_min_s: Seconds = Field(
        0.25, ge=0.001, le=3600, description="Pause between looks for work just after the last job."
    )
    poll_max_s: Seconds = Field(
        1.0, ge=0.001, le=3600, description="Longest pause between looks for work when no wake-up comes."
    )
    wakeups: bool = Field(
        True, description="Wake sleeping workers with NOTIFY. Off: polling alone, as two-phase commit needs."
    )
    grace_s: Seconds = Field(
        30.0, ge=0, le=86_400, description="Time that running jobs get to finish after SIGTERM."
    )
    buffer_s: Seconds = Field(
        0.05, ge=0, le=60, description="Work that a process claims ahead of its free slots, in running time."
    )
    claim_batch_max: int = Field(500, ge=1, le=10_000, description="Most jobs taken by one claim statement.")
    settle_batch_max: int = Field(256, ge=1, le=10_000, description="Most jobs settled by one statement.")
    settle_linger_s: Seconds = Field(
        0.002, ge=0, le=10, description="How long a settlement waits for others to share its commit."
    )
    suspect_processes_max: int = Field(
        2,
        ge=1,
        le=64,
        description="Processes of one worker that may each run a single job whose earlier run died with its process.",
    )
    promote_interval_s: Seconds = Field(
        1.0, ge=0.01, le=3600, description="How often due jobs are made ready."
    )
    rescue_interval_s: Seconds = Field(
        0.5, ge=0.01, le=3600, description="How often the jobs of dead workers are looked for."
    )
    sweep_interval_s: Seconds = Field(
        1.0, ge=0.01, le=3600, description="How often a queue is searched from its start for late commits."
    )
    upkeep_interval_s: Seconds = Field(
        10.0, ge=0.1, le=86_400, description="How often expired keys and held jobs are seen to."
    )
    key_ttl_s: Seconds = Field(
        86_400.0, ge=1, le=315_576_000, description="How long an idempotency key refuses a second job."
    )
    payload_bytes_max: int = Field(
        262_144, ge=1024, le=67_108_864, description="Largest arguments of one job, as JSON text."
    )
    result_bytes_max: int = Field(
        65_536, ge=0, le=67_108_864, description="Largest result of one job, as JSON text."
    )
    audit: Literal["changes", "full"] = Field(
        "changes",
        description="What is written to `job_transitions`: every move but the plain path, or, `full`, that too. A task's own `audit=` wins.",
    )
    handler_transaction_warn_s: Seconds = Field(
        60.0, ge=0.1, le=86_400, description="Age from which a handler's open transaction is warned about."
    )
    history_retention_days: int = Field(
        30,
        ge=1,
        le=36_500,
        description="Days that ended jobs stay in job_history, and redriven dead letters after that.",
    )
    dead_letter_retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Days after which a dead letter that nobody decided about is discarded; 0 = never.",
    )
    partitions_ahead_days: int = Field(
        7, ge=2, le=60, description="Days for which history partitions exist in advance."
    )
    connect_timeout_s: Seconds = Field(
        5.0, ge=1, le=300, description="Longest wait for a connection to open; libpq counts whole seconds."
    )
    statement_timeout_s: Seconds = Field(
        10.0, ge=0.1, le=3600, description="Longest run of one of pgqueue's own statements."
    )
    tcp_user_timeout_s: Seconds = Field(
        6.0,
        ge=0.5,
        le=3600,
        description="Unanswered network silence after which a connection counts as lost.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is console on a terminal and JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        "info", description="Least severe lines that are written."
    )
    log_success_rate: int = Field(
        100, ge=0, le=1_000_000, description="Success lines per second and process before they are sampled."
    )
    trace_mode: Literal["link", "parent", "auto"] = Field(
        "link",
        description="How an attempt's trace relates to its enqueue's: `link` to it, be part of it (`parent`), or `auto`: part of it if it starts within a minute.",
    )
    trace_statements: bool = Field(False, description="Spans for claims and settlements too.")
    redact: Words = Field(
        (), description="More names whose values are masked in logs, errors, CLI and dashboard."
    )
    listen_host: str = Field(
        "127.0.0.1", min_length=1, description="Address on which metrics, health and dashboard listen."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of /metrics; 0 takes a free one, unset serves nothing."
    )
    health_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port of /healthz and /readyz; 0 takes a free one, unset serves nothing.",
    )
    alert_interval_s: Seconds = Field(15.0, ge=0.1, le=3600, description="How often alerts are evaluated.")
    alert_takeover_s: Seconds = Field(
        60.0, ge=0.2, le=86_400, description="Silence of the schedulers after which workers evaluate alerts."
    )
    alert_webhook_url: str = Field(
        "", repr=False, description="Where alerts are posted to, as JSON. Empty: nowhere."
    )
    alert_webhook_secret: str = Field(
        "", repr=False, description="Shared secret that signs those posts; needed with alert_webhook_url."
    )
    retry: Annotated[RetrySettings, NoDecode, BeforeValidator(json_table)] = Field(
        default_factory=RetrySettings,
        description="Retry policies: tables `retry.default`, `retry.queues.NAME`, `retry.tasks.NAME`.",
    )
    queues: Annotated[Mapping[str, QueueSettings], NoDecode, BeforeValidator(json_table)] = Field(
        default_factory=dict, description="What is promised of queues: tables `queues.NAME`, see below."
    )

    relay_concurrency: int = Field(
        8, ge=1, le=256, description="Messages of the outbox that one relay delivers to sinks at a time."
    )
    webhooks: Annotated[Mapping[str, WebhookSettings], NoDecode, BeforeValidator(json_table)] = Field(
        default_factory=dict,
        repr=False,
        description="URL and secret of webhooks by name: tables `webhooks.NAME` with `url` and `secret`.",
    )

    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _source_file: Path | None = PrivateAttr(default=None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is unwise but no error, one line each: the caller logs them once."""
        return self._warnings

    @property
    def source_file(self) -> Path | None:
        """The configuration file that was read, if any."""
        return self._source_file

    @property
    def direct_dsn(self) -> str:
        """Where session-bound connections go: past the pooler if an address for that is known."""
        return self.direct_database_url or self.database_url

    def queue_defaults(self) -> dict[str, dict[str, Any]]:
        """What is configured of each queue, by the names of the columns of `pgqueue.queues`."""
        return columns_of(self.queues)

    @field_validator("log_level", "log_format", "trace_mode", "audit", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _relations(self) -> Self:
        broken = [text for _, holds, text in RELATIONS if not holds(self)]
        if broken:
            raise ValueError("\n".join(broken))
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic fixes the signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load_settings` reads the world, so that it can name each value's origin."""
        return (init_settings,)


# What must hold between settings: the names it speaks of, the test, the line for the operator.
RELATIONS: tuple[tuple[frozenset[str], Callable[[Settings], bool], str], ...] = (
    (
        frozenset({"heartbeat_s", "lease_s"}),
        lambda s: 2 * s.heartbeat_s <= s.lease_s,
        "heartbeat_s must be at most half of lease_s, or one late beat loses every running job: raise lease_s",
    ),
    (
        frozenset({"tcp_user_timeout_s", "lease_s"}),
        lambda s: s.tcp_user_timeout_s < s.lease_s,
        "tcp_user_timeout_s must be less than lease_s, or a cut-off worker keeps its locks past its lease: lower it",
    ),
    (
        frozenset({"poll_max_s", "lease_s"}),
        lambda s: s.poll_max_s <= s.lease_s,
        "poll_max_s must be at most lease_s: lower it",
    ),
    (
        frozenset({"poll_min_s", "poll_max_s"}),
        lambda s: s.poll_min_s <= s.poll_max_s,
        "poll_min_s must be at most poll_max_s: lower it",
    ),
    (
        frozenset({"alert_interval_s", "alert_takeover_s"}),
        lambda s: 2 * s.alert_interval_s <= s.alert_takeover_s,
        "alert_takeover_s must be at least twice alert_interval_s, or workers evaluate beside a scheduler: raise it",
    ),
    (
        frozenset({"alert_webhook_url", "alert_webhook_secret"}),
        lambda s: not s.alert_webhook_url or len(s.alert_webhook_secret) >= SECRET_CHARS_MIN,
        "alert_webhook_secret must have at least 16 characters where alert_webhook_url is set: set it",
    ),
    (
        frozenset({"alert_webhook_url"}),
        lambda s: not s.alert_webhook_url or s.alert_webhook_url.startswith(("https://", "http://")),
        "alert_webhook_url must begin with https:// or http://: write it whole",
    ),
)


def load_settings(**overrides: Any) -> Settings:
    """Options over `PGQUEUE_*` over the configuration file over defaults; None overrides nothing.

    Durations are text with a unit, or seconds as a number where Python passes them. The file is
    `PGQUEUE_CONFIG`, or the nearest of pgqueue.toml, pgqueue.yaml and `[tool.pgqueue]` in pyproject.toml at or
    above the working folder. Raises ConfigurationError with every problem, one a line.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    file = read_config_file(None)
    from_env = EnvSettingsSource(Settings)()
    env_problems, env_warnings = unknown_variables(Settings.model_fields)
    problems = [*file.problems, *env_problems]
    from_file = named_values(file, problems)

    merged = {**from_file, **from_env, **given}
    origins = dict.fromkeys(from_file, file.label) | dict.fromkeys(from_env, "env")
    origins |= dict.fromkeys(given, "option")
    if "database_url" not in merged and os.environ.get("DATABASE_URL"):
        merged["database_url"] = os.environ["DATABASE_URL"]
        origins["database_url"] = "DATABASE_URL"

    settings, found = _validate(merged, origins)
    problems += found
    if problems or settings is None:
        raise ConfigurationError("\n".join(problems))
    # The table is frozen for everyone; how it was read is told by the one who read it.
    settings._warnings = (*file.warnings, *env_warnings)  # noqa: SLF001
    settings._source_file = file.path  # noqa: SLF001
    return settings


def describe_settings() -> list[SettingDoc]:
    """Every setting in the order of the table, for help texts and the reference page."""
    return describe(Settings)


def render_settings_markdown() -> str:
    """The text of docs/reference/settings.md; a test keeps the file equal to it."""
    return render(describe_settings(), [text for _, _, text in RELATIONS])


def _validate(merged: dict[str, Any], origins: Mapping[str, str]) -> tuple[Settings | None, list[str]]:
    """The settings, or every problem: with the bad values left out, what remains is checked for relations too."""
    try:
        return Settings(**merged), []
    except ValidationError as error:
        problems: list[str] = []
        bad: set[str] = set()
        for found in error.errors(include_input=False, include_url=False):
            path = [str(step) for step in found["loc"]]
            if path:
                bad.add(path[0])
                problems.append(f"{_where(path, origins)}: {_what(found['type'], path, found['msg'])}")
    if not bad:
        problems = _broken_relations(merged)
    else:
        left = {name: value for name, value in merged.items() if name not in bad}
        problems += [text for text in _broken_relations(left) if not _speaks_of(text, bad)]
    return None, problems


def _broken_relations(values: dict[str, Any]) -> list[str]:
    try:
        Settings(**values)
    except ValidationError as error:
        return [
            line
            for found in error.errors(include_input=False, include_url=False)
            for line in found["msg"].removeprefix("Value error, ").splitlines()
        ]
    return []


def _speaks_of(text: str, names: set[str]) -> bool:
    return any(text == line and about & names for about, _, line in RELATIONS)


def _where(path: list[str], origins: Mapping[str, str]) -> str:
    origin = origins.get(path[0], "option")
    dotted = ".".join(path)
    if origin == "env":
        return f"{ENV_PREFIX}{path[0].upper()}" + (f" at {'.'.join(path[1:])}" if path[1:] else "")
    if origin == "DATABASE_URL":
        return origin
    return dotted if origin == "option" else f"{dotted} in {origin}"


def _what(kind: str, path: list[str], message: str) -> str:
    if kind == "extra_forbidden":
        names = list(Settings.model_fields if len(path) == 1 else RetrySettings.model_fields)
        nearest = difflib.get_close_matches(path[-1], [*names, "retry_policy"], n=1)
        return "no such setting" + (f"; did you mean {nearest[0]}?" if nearest else "")
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
