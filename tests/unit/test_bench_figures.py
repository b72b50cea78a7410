"""The benchmark's arithmetic: medians, which figures are compared between machines, and when one counts as worse."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rig.database import ROOT

from pgqueue.bench.drains import percentile
from pgqueue.bench.figures import Figure, Summary, neat, ratios_of, worse
from pgqueue.bench.workloads import WORKLOADS


def summary(*values: float, **details: float) -> Summary:
    return Summary("noop", "jobs/s", tuple(Figure(value, dict(details), {"s": [value]}) for value in values))


def test_the_median_counts_and_extremes_are_shown() -> None:
    row = summary(30, 10, 20_123.4, 11, 12, wal_bytes_per_job=1017.71).row()
    assert (row["median"], row["min"], row["max"], row["runs"]) == (12, 10, 20_123, 5)
    assert row["details"] == {"wal_bytes_per_job": 1018}


def test_the_document_keeps_every_value_and_the_median_runs_series() -> None:
    document = summary(30, 10, 20).document()
    assert document["values"] == [30, 10, 20]
    assert document["series"] == {"s": [20]}
    assert json.loads(json.dumps(document)) == document


def test_a_detail_that_one_run_lacks_is_left_out() -> None:
    figures = (Figure(1, {"a_ratio": 1.0, "b_ratio": 2.0}), Figure(1, {"a_ratio": 3.0}))
    assert Summary("x", "u", figures).details == {"a_ratio": 2.0}


def test_only_what_hardly_depends_on_the_machine_is_compared() -> None:
    details = {
        "wal_bytes_per_job": 1000.0,
        "clean_ratio": 0.9,
        "worker_cpu_us_per_job": 20.0,
        "pgbench_per_s": 5.0,
        "claim_p99_ms": 3.0,
    }
    assert ratios_of([summary(1, **details)]) == {"noop.wal_bytes_per_job": 1000.0, "noop.clean_ratio": 0.9}


STORED: dict[str, dict[str, Any]] = {
    "noop.clean_ratio": {"value": 1.0, "slack": 0.1, "better": "more"},
    "noop.wal_bytes_per_job": {"value": 1000, "slack": 0.1, "better": "less"},
}


@pytest.mark.parametrize(
    ("measured", "bad"),
    [
        ({"noop.clean_ratio": 0.91, "noop.wal_bytes_per_job": 1099.0}, []),
        ({"noop.clean_ratio": 0.89}, ["noop.clean_ratio"]),
        ({"noop.clean_ratio": 2.0}, []),
        ({"noop.wal_bytes_per_job": 1101.0}, ["noop.wal_bytes_per_job"]),
        ({"noop.wal_bytes_per_job": 10.0}, []),
        ({}, []),
        ({"other": 1.0}, []),
    ],
)
def test_worse_by_more_than_the_slack_is_told(measured: dict[str, float], bad: list[str]) -> None:
    assert [line.split(":")[0] for line in worse(measured, STORED)] == bad


def test_the_stored_ratios_are_ones_that_workloads_give() -> None:
    stored = json.loads((ROOT / "bench" / "ratios.json").read_text())
    assert len(stored) >= 8
    for name, bound in stored.items():
        assert name.split(".")[0] in WORKLOADS
        assert set(bound) == {"value", "slack", "better"}
        assert bound["better"] in {"more", "less"}
        assert 0 < bound["slack"] < 1
        # A name that is never compared would make the check silent.
        assert list(ratios_of([Summary(name.split(".")[0], "u", (Figure(1, {name.split(".")[1]: 1.0}),))]))


@pytest.mark.parametrize(
    ("value", "shown"), [(0.123456, 0.123), (12.3456, 12.3), (999.9, 1000), (43_210.9, 43_211), (0, 0)]
)
def test_numbers_are_shown_with_the_digits_they_deserve(value: float, shown: float) -> None:
    assert neat(value) == shown


def test_percentiles_of_few_values_stay_among_them() -> None:
    assert percentile([1.0], 0.99) == 1.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert percentile([float(n) for n in range(100)], 0.99) == 99.0


@pytest.fixture(scope="module")
def plots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_plots", ROOT / "bench" / "plots.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_plot_is_drawn_from_what_the_benchmark_saves(plots: ModuleType) -> None:
    def saved(name: str, value: float, details: dict[str, float], **series: list[float]) -> dict[str, Any]:
        return Summary(name, "u", (Figure(value, details, series),)).document()

    document = {
        "plan": {"jobs": 1000, "pending": 100_000},
        "workloads": [
            saved("claimers", 9000, {}, claimers=[1, 2, 64], jobs_per_s=[3000.0, 9000.0, 8000.0]),
            saved("latency", 1.2, {}, latency_ms=[0.8, 0.9, 1.2, 1.3, 40.0]),
            saved("old-transaction", 2000, {}, held_per_s=[1900.0, 2000.0, 2010.0]),
            saved("backlog", 800, {"empty_per_s": 900.0}),
        ],
    }
    drawn = plots.charts(document)
    assert set(drawn) == {"claimers", "latency", "old-transaction", "backlog"}
    for text in drawn.values():
        root = ET.fromstring(text)
        marks = [one for one in root.iter() if one.tag.endswith(("circle", "rect"))]
        assert len(marks) > 2
        for mark in marks:
            assert 0 <= float(mark.get("cy", mark.get("y", "0"))) <= plots.HEIGHT


def test_a_histogram_counts_every_value(plots: ModuleType) -> None:
    values = [0.1 * n for n in range(1000)]
    assert sum(plots.histogram(values, 0.5).ys) == 1000


@pytest.mark.parametrize(("value", "top"), [(0.5, 1), (7, 8), (9.5, 10), (2100, 4000), (43_000, 50_000)])
def test_scales_end_at_round_numbers_above(plots: ModuleType, value: float, top: float) -> None:
    assert plots._round_up(value) >= value
    assert plots._round_up(value) == top
