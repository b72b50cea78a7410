"""The dashboards: every SQL panel answers on a real server as a reader, every metric and label of a panel exists."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest
from rig.database import ROOT, Database
from rig.logins import make_logins

from pgqueue.observe.metric_table import DATABASE_METRICS, PREFIX, PROCESS_METRICS

FOLDER = ROOT / "deploy" / "grafana"
METRICS = {f"{PREFIX}{metric.name}": metric for metric in (*PROCESS_METRICS, *DATABASE_METRICS)}


def panels(name: str) -> list[dict[str, Any]]:
    dashboard = json.loads((FOLDER / f"{name}.json").read_text())
    assert dashboard["uid"] == name
    found: list[dict[str, Any]] = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return found


def test_every_sql_panel_answers_to_a_reader(any_database: Database) -> None:
    any_database.connect().execute("SELECT pgqueue.enqueue('t')")
    login = make_logins(any_database)
    asked = 0
    with psycopg.connect(login("reader"), autocommit=True) as conn:
        for panel in panels("pgqueue-postgres"):
            for target in panel["targets"]:
                text = re.sub(r"\$__timeFrom\(\)", "'2026-01-01T00:00Z'::timestamptz", target["rawSql"])
                text = re.sub(r"\$__timeTo\(\)", "'2026-01-01T06:00Z'::timestamptz", text)
                assert "$" not in text, panel["title"]
                try:
                    conn.execute(text.encode()).fetchall()
                except psycopg.Error as error:
                    raise AssertionError(f"{panel['title']}: {error}") from error
                if target["format"] == "time_series":
                    assert "BETWEEN $__timeFrom() AND $__timeTo()" in target["rawSql"], panel["title"]
                asked += 1
    assert asked > 12


def test_every_metric_and_label_of_a_panel_exists() -> None:
    seen = set()
    for panel in panels("pgqueue-prometheus"):
        for target in panel["targets"]:
            for name, labels in re.findall(r"\b(pgqueue_[a-z_]+)\{([^}]*)\}", target["expr"]):
                base = name.removesuffix("_bucket") if name not in METRICS else name
                assert base in METRICS, f"{panel['title']}: {name}"
                asked = set(re.findall(r"(\w+)(?:=~|!=|=)", labels))
                assert asked - {"environment"} <= set(METRICS[base].labels), f"{panel['title']}: {name}"
                seen.add(base)
    assert len(seen) > 25


@pytest.mark.parametrize("name", ["pgqueue-prometheus", "pgqueue-postgres"])
def test_panels_lie_beside_each_other_and_each_name_is_told_once_in_a_row(name: str) -> None:
    places = [tuple(panel["gridPos"].values()) for panel in panels(name)]
    assert len(places) == len(set(places))
    ids = [panel["id"] for panel in panels(name)]
    assert len(ids) == len(set(ids))


def test_the_alerts_of_prometheus_name_panels_that_exist() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "pgqueue.rules.yml").read_text()
    titles = " ".join(panel["title"] for panel in panels("pgqueue-prometheus")).lower()
    for named in re.findall(r"Panel: \w[\w ]*, ([\w ]+)\.", rules):
        assert named.lower() in titles, named
