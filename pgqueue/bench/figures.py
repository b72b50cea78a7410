"""What a measurement gives: one run's figure, several runs' summary, and both as JSON and as rows of a table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One run's result. `details` are numbers of the same run; `series` are for plots and are kept of the median run."""

    value: float
    details: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """Several runs of one workload."""

    workload: str
    unit: str
    figures: tuple[Figure, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(figure.value for figure in self.figures)

    @property
    def details(self) -> dict[str, float]:
        """The median of each detail that every run has."""
        names = [name for name in self.figures[0].details if all(name in f.details for f in self.figures)]
        return {name: statistics.median(f.details[name] for f in self.figures) for name in names}

    def row(self) -> dict[str, Any]:
        """A row of the table."""
        values = [figure.value for figure in self.figures]
        return {
            "workload": self.workload,
            "median": neat(self.median),
            "min": neat(min(values)),
            "max": neat(max(values)),
            "unit": self.unit,
            "runs": len(values),
            "details": {name: neat(value) for name, value in self.details.items()},
        }

    def document(self) -> dict[str, Any]:
        """Everything, for the file that plots and comparisons are made from."""
        nearest = min(self.figures, key=lambda figure: abs(figure.value - self.median))
        return self.row() | {"values": [neat(f.value) for f in self.figures], "series": nearest.series}


def neat(value: float) -> float:
    """A number with as many digits as it deserves."""
    return round(value) if abs(value) >= 1000 else float(f"{value:.3g}")


def ratios_of(summaries: Sequence[Summary]) -> dict[str, float]:
    """The figures that hardly depend on the machine: ratios within one run, and work per job."""
    kept = ("ratio", "_per_job")
    return {
        f"{summary.workload}.{name}": value
        for summary in summaries
        for name, value in summary.details.items()
        if name.endswith(kept) and "cpu" not in name
    }


def worse(measured: Mapping[str, float], stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each stored ratio that was measured and is worse by more than its slack."""
    lines = []
    for name, bound in stored.items():
        if name not in measured:
            continue
        value, at, slack = measured[name], float(bound["value"]), float(bound["slack"])
        more_is_better = bound["better"] == "more"
        if value < at * (1 - slack) if more_is_better else value > at * (1 + slack):
            lines.append(
                f"{name}: {neat(value)}, stored {neat(at)} (slack {slack:.0%}, {bound['better']} is better)"
            )
    return lines
