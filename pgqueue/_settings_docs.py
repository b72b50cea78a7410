"""The settings as people read them: one row each for help texts, and the page docs/reference/settings.md.

Called by `pgqueue.settings` alone; pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from pgqueue._settings_values import UNITS_S


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One setting for people: how it is called, where, and what it is without being set."""

    name: str
    env: str
    default: str
    description: str


def describe(table: type[BaseSettings]) -> list[SettingDoc]:
    """Every setting of `table`, in its order."""
    prefix = table.model_config.get("env_prefix", "")
    return [
        SettingDoc(name, f"{prefix}{name.upper()}", _show_default(name, field), field.description or "")
        for name, field in table.model_fields.items()
    ]


def render(settings: Sequence[SettingDoc], relations: Sequence[str]) -> str:
    """The reference page's Markdown."""
    rows = [f"| `{s.name}` | `{s.env}` | {s.default} | {s.description} |" for s in settings]
    lines = [f"- {text.split(':', 1)[0].split(', or', 1)[0]}" for text in relations]
    return "\n".join(
        [
            "# Settings",
            "",
            "Made from `pgqueue/settings.py`; do not edit by hand.",
            "",
            "An option of the command line wins over an environment variable, that over the configuration file,",
            "that over the default. The file is the one that `PGQUEUE_CONFIG` names, or the nearest of",
            "`pgqueue.toml`, `pgqueue.yaml` and `[tool.pgqueue]` in `pyproject.toml` at or above the working folder.",
            'Durations are text with a unit: `"250ms"`, `"30s"`, `"5m"`, `"1h30m"`, `"7d"`. All problems are told at',
            "once, and the exit code is 78.",
            "",
            "| setting | variable | default | what it is |",
            "|---|---|---|---|",
            *rows,
            "",
            "Must hold together:",
            "",
            *lines,
            "",
            "Retry policies stand in tables of their own; the most particular one counts:",
            "",
            "```toml",
            "[tool.pgqueue.retry.default]",
            "max_retries = 5",
            'backoff_strategy = "exponential_jitter"',
            'initial_delay = "2s"',
            'max_delay = "5m"',
            "",
            "[tool.pgqueue.retry.queues.critical]",
            "max_retries = 10",
            "",
            "[tool.pgqueue.retry.tasks.capture_payment]",
            "max_retries = 12",
            'max_delay = "1h"',
            "```",
            "",
            "What is promised of a queue and whose it is; `pgqueue queues set` wins over it:",
            "",
            "```toml",
            "[tool.pgqueue.queues.critical]",
            'sla = "5s"               # a due job is to start within this',
            "sla_target = 0.99        # share of starts that are to keep it",
            'run_objective = "30s"    # a run is to take at most this',
            "run_target = 0.995       # share of ended jobs that are to succeed within it",
            "dead_letter_limit = 0    # dead letters allowed per 15 minutes",
            'tier = "critical"        # wakes people; the other is "standard"',
            'owner = "payments"',
            'display_name = "Payments"',
            "```",
            "",
            "In YAML, `retry_policy` is another name for `retry.default`:",
            "",
            "```yaml",
            "retry_policy:",
            "  max_retries: 5",
            "  backoff_strategy: exponential_jitter",
            "  initial_delay: 2s",
            "  max_delay: 5m",
            "```",
            "",
        ]
    )


def _show_default(name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if name.endswith("_s") and isinstance(value, float):
        return f"`{_show_seconds(value)}`"
    if name in {"retry", "webhooks"} or value in ((), "", None, {}):
        return "–"
    return f"`{str(value).lower()}`"


def _show_seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit in ("d", "h", "m"):
        if seconds > UNITS_S[unit] and seconds % UNITS_S[unit] == 0:
            return f"{seconds / UNITS_S[unit]:g}{unit}"
    return f"{seconds:g}s"
