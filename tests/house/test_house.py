"""The house's own rules, where a test can hold them."""

from __future__ import annotations

import ast
import re

from rig.database import ROOT

from pgqueue.core.states import REASONS, reference
from pgqueue.storage.statements import STATEMENTS

IDS = re.compile(
    r"^(P([1-9]|1\d|2[0-3])|F([1-9]|[1-5]\d|6[01])[a-e]?s?|I([1-9]|[1-3]\d|4[0-2])|S([1-9]|1\d|2[0-6])|(OP|CT|ST|SA|PB|NT|EQ|DD)\d+)$"
)
SOURCES = sorted((ROOT / "pgqueue").rglob("*.py"))


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    text = "\n".join(path.read_text() for path in SOURCES)
    unused = {name for name in STATEMENTS if f'"{name}"' not in text}
    assert unused == set()


def test_marks_name_known_ids() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "proves"
            ):
                for argument in node.args:
                    assert isinstance(argument, ast.Constant)
                    assert IDS.match(str(argument.value)), f"{path}: {argument.value}"


def test_no_code_reads_pickles_or_evaluates_text() -> None:
    banned = {"pickle", "marshal", "shelve", "dill"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not banned & {alias.name for alias in node.names}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path


def test_public_names_have_docstrings() -> None:
    missing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(str(path))
        for node in tree.body:
            if (
                isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                missing.append(f"{path.name}:{node.name}")
    assert missing == []


def test_the_page_of_states_is_current() -> None:
    page = ROOT / "docs" / "reference" / "states.md"
    assert page.read_text() == reference(), (
        "python -c 'from pgqueue.core.states import reference; print(reference(), end=str())' > docs/reference/states.md"
    )
    assert all(f"{before or '[*]'} --> {after}\n" in page.read_text() for before, after in REASONS)


def test_the_quickstart_is_the_readmes() -> None:
    example = (ROOT / "examples" / "quickstart.py").read_text().split('"""\n\n', 1)[1]
    assert example.strip() in (ROOT / "README.md").read_text()
