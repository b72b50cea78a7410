"""The rules for Prometheus: they load, fire when they should, name metrics that exist and runbooks that are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rig.database import ROOT

from pgqueue.observe.metric_table import DATABASE_METRICS, PREFIX, PROCESS_METRICS

RULES = ROOT / "deploy" / "prometheus" / "pgqueue.rules.yml"
SCRAPE = ROOT / "deploy" / "prometheus" / "prometheus.yml"
PLAYED = Path(__file__).with_name("pgqueue.rules.test.yml")
METRICS = {f"{PREFIX}{metric.name}": metric for metric in (*PROCESS_METRICS, *DATABASE_METRICS)}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prometheus's own checker: as installed, or unpacked from Debian's package without installing it."""
    found = shutil.which("promtool")
    if found:
        return found
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb") and os.geteuid() == 0):
        pytest.skip("no promtool: install Debian's package prometheus, or run as root where apt works")
    folder = tmp_path_factory.mktemp("prometheus")
    fetched = subprocess.run(
        ["apt-get", "download", "prometheus"], cwd=folder, capture_output=True, timeout=300, text=True
    )
    packages = list(folder.glob("prometheus_*.deb"))
    if not packages:
        pytest.skip(f"no promtool: apt-get download prometheus ended with {fetched.returncode}")
    subprocess.run(["dpkg-deb", "-x", packages[0], folder / "unpacked"], check=True, timeout=300)
    return str(folder / "unpacked" / "usr" / "bin" / "promtool")


def test_promtool_accepts_the_rules_and_the_scrape(promtool: str) -> None:
    for kind, path in (("rules", RULES), ("config", SCRAPE)):
        answer = subprocess.run([promtool, "check", kind, path], capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_rules_fire_when_they_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    for path in (RULES, PLAYED):
        shutil.copy(path, tmp_path)
    answer = subprocess.run(
        [promtool, "test", "rules", PLAYED.name], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_alert_is_played_and_its_end_too() -> None:
    played: dict[str, set[bool]] = {}
    for test in yaml.safe_load(PLAYED.read_text())["tests"]:
        for question in test.get("promql_expr_test", ()):
            found = re.fullmatch(
                r'count\(ALERTS\{alertname="(\w+)",alertstate="firing"\}\)', question["expr"]
            )
            if found:
                played.setdefault(found[1], set()).add(bool(question["exp_samples"]))
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert played == {alert: {True, False} for alert in alerts}, "each alert needs its fault and its end here"


def test_a_rule_that_forgets_the_pause_is_found(promtool: str, tmp_path: Path) -> None:
    text = RULES.read_text()
    twin = text.replace(
        "(pgqueue:queue_lag_seconds > pgqueue:queue_sla_seconds and pgqueue:queue_active == 1)",
        "(pgqueue:queue_lag_seconds > pgqueue:queue_sla_seconds)",
    )
    assert twin != text
    (tmp_path / RULES.name).write_text(twin)
    shutil.copy(PLAYED, tmp_path)
    answer = subprocess.run(
        [promtool, "test", "rules", PLAYED.name], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode != 0


def test_every_metric_and_every_label_of_a_rule_exists() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        for name, labels in re.findall(
            r"\b(pgqueue[_:][a-z0-9_:]*[a-z0-9])\b(?:\{([^}]*)\})?", rule["expr"], re.IGNORECASE
        ):
            if ":" in name:
                assert name in recorded, f"{name} is recorded nowhere"
                continue
            metric = METRICS.get(name)
            assert metric is not None, f"{name} is no metric of docs/reference/metrics.md"
            assert set(re.findall(r"(\w+)(?:=~|!=|=)", labels)) <= set(metric.labels), f"{name}: {labels}"


def test_every_alert_says_what_to_do_and_where_to_look() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) > 25
    for rule in alerts:
        assert rule["alert"].startswith("Pgqueue")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard"}
        assert "Panel: " in rule["annotations"]["description"]
        page = ROOT / rule["annotations"]["runbook_url"]
        assert f"`{rule['alert'].removeprefix('Pgqueue')}`" in page.read_text(), (
            f"{page.name}: {rule['alert']}"
        )
