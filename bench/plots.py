"""Plots of docs/performance.md, drawn as SVG from what `pgqueue bench --save` and bench/peers/run.py wrote.

`python bench/plots.py RESULTS.json FOLDER`. No library: a few lines, bars and labels, readable in light and dark.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 46
COLOURS = ("#2f6fb0", "#c2571a", "#3b8a4d")
TICKS = 4


@dataclass(frozen=True)
class Line:
    """A named line, or bars."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, bars: bool = False, even: bool = False
) -> str:
    """One chart; `even` puts the xs at equal distances, as for 1, 2, 4, 8."""
    top = _round_up(max(max(line.ys) for line in lines))
    xs = sorted({x for line in lines for x in line.xs})
    low, high = xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1

    def x_at(x: float) -> float:
        part = (xs.index(x) + 0.5) / len(xs) if even or bars else (x - low) / (high - low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 18, title, weight="bold"),
        _text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, x_label, anchor="middle"),
        _text(LEFT, 33, y_label, colour="#555555"),
    ]
    for step in range(TICKS + 1):
        value = top * step / TICKS
        y = y_at(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, y + 4, _short(value), anchor="end", colour="#555555"))
    shown = xs if len(xs) <= 12 else xs[:: -(-len(xs) // 8)]
    parts += [
        _text(x_at(x), HEIGHT - BOTTOM + 16, _short(x), anchor="middle", colour="#555555") for x in shown
    ]
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x_at(x), y_at(y)) for x, y in zip(line.xs, line.ys, strict=True)]
        if bars:
            wide = 0.8 * (WIDTH - LEFT - RIGHT) / len(xs)
            parts += [
                f'<rect x="{x - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" fill="{colour}"/>'
                for x, y in points
            ]
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
        if len(lines) > 1:
            parts.append(_text(WIDTH - RIGHT, 18 + 14 * number, line.name, anchor="end", colour=colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def histogram(values: Sequence[float], width: float) -> Line:
    """How many values fall into each `width`; the last bar holds the rest above the 99.5th percentile."""
    ordered = sorted(values)
    most = ordered[min(len(ordered) - 1, int(0.995 * len(ordered)))]
    counts: dict[int, int] = {}
    for value in ordered:
        slot = int(min(value, most) / width)
        counts[slot] = counts.get(slot, 0) + 1
    slots = range(min(counts), max(counts) + 1)
    return Line("jobs", [slot * width for slot in slots], [float(counts.get(slot, 0)) for slot in slots])


def charts(document: dict) -> dict[str, str]:
    """File name → chart, of each workload that has what it needs."""
    found = {one["workload"]: one for one in document["workloads"]}
    made: dict[str, str] = {}
    if one := found.get("claimers"):
        series = one["series"]
        line = Line("claimers", series["claimers"], series["jobs_per_s"])
        made["claimers"] = chart(
            "Claim and settle, batches of ten, by pgbench", "claimers", "jobs/s", [line], even=True
        )
    if (one := found.get("latency")) and one["series"]:
        waits = one["series"]["latency_ms"]
        line = histogram(waits, max(0.1, round(max(waits) / 40, 1)))
        made["latency"] = chart("Enqueue to start, idle worker, 50 jobs/s", "ms", "jobs", [line], bars=True)
    if one := found.get("old-transaction"):
        per_s = one["series"]["held_per_s"]
        line = Line("held", list(range(len(per_s))), per_s)
        made["old-transaction"] = chart(
            "A steady flow while another transaction stays open", "s", "jobs/s", [line]
        )
    if one := found.get("backlog"):
        plan, details = document["plan"], one["details"]
        line = Line("drain", [plan["jobs"], plan["pending"]], [details["empty_per_s"], one["median"]])
        made["backlog"] = chart(
            "Drain by the jobs that wait", "jobs waiting at the start", "jobs/s", [line], bars=True
        )
    return made


def main() -> None:
    """Draw every chart that the results have."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawn in charts(json.loads(source.read_text())).items():
        (folder / f"{name}.svg").write_text(drawn)
        print(folder / f"{name}.svg")


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#222222", weight: str = "normal"
) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}">{text}</text>'


def _round_up(value: float) -> float:
    """The next number of the kind 1, 2, 4, 5, 8 times a power of ten."""
    power = 10.0 ** len(str(int(max(value, 1)))) / 10
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value)


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


if __name__ == "__main__":
    main()
