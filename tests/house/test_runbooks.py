"""Every alert has a runbook and every runbook an alert; what runbooks tell people to run exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from rig.database import ROOT

from pgqueue.cli.main import app

RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
RULES = (ROOT / "sql" / "schema" / "82_alerts.sql").read_text()
PARTS = ("**Symptom.**", "**Impact.**", "## Look", "## Causes", "## Fix", "## Verify", "## Prevent")
SHIPPED = dict(re.findall(r"^ +\('(\w+)', '\w+', [\d.]+, \d+, '\w+', '([a-z-]+)'\)", RULES, re.MULTILINE))


IN_PROMETHEUS = dict(
    re.findall(
        r"- alert: Pgqueue(\w+)\n(?:.*\n)*?.*runbook_url: docs/runbooks/([a-z-]+)\.md",
        (ROOT / "deploy" / "prometheus" / "pgqueue.rules.yml").read_text(),
    )
)


def command(words: list[str]) -> Any:
    """The command that these words call, by way of the groups that they name."""
    found: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(found, "commands") or word.startswith("-"):
            return found
        assert word in found.commands, f"pgqueue {' '.join(words)}: no such verb"
        found = found.commands[word]
    return found


def commands_in(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_shipped_rule_has_a_runbook_that_names_it() -> None:
    assert len(SHIPPED) > 10
    for rule, slug in SHIPPED.items():
        page = (ROOT / "docs" / "runbooks" / f"{slug}.md").read_text()
        assert f"`{rule}`" in page, f"docs/runbooks/{slug}.md does not name {rule}"


def test_every_runbook_is_that_of_a_rule() -> None:
    assert {path.stem for path in RUNBOOKS} == {*SHIPPED.values(), *IN_PROMETHEUS.values()}


def test_a_rule_of_one_name_has_one_runbook() -> None:
    both = SHIPPED.keys() & IN_PROMETHEUS.keys()
    assert len(both) > 15
    assert {name: SHIPPED[name] for name in both} == {name: IN_PROMETHEUS[name] for name in both}


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_a_runbook_has_all_parts_in_order(path: Path) -> None:
    text = path.read_text()
    places = [text.find(part) for part in PARTS]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_what_a_runbook_tells_people_to_run_exists(path: Path) -> None:
    lines = commands_in(path.read_text())
    assert lines
    for line in lines:
        words = shlex.split(line)
        if words[0] == "pgqueue":
            verb = command(words[1:])
            options = {
                option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)
            }
            asked = {word for word in words[1:] if re.fullmatch(r"--?[a-zA-Z][a-z-]*", word)}
            assert asked <= options, f"{line}: {asked - options}"
        elif "-f" in words:
            assert (ROOT / words[words.index("-f") + 1]).is_file(), line
        else:
            assert words[0] in {"psql", "export"}, line


def test_a_runbook_that_names_a_verb_that_is_not_there_is_found() -> None:
    with pytest.raises(AssertionError, match="no such verb"):
        command(["queues", "explode"])
