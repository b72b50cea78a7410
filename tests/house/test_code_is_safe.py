"""No SQL is made of data, nothing stored is ever executed: what the source itself must show."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from rig.database import ROOT

SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "pgqueue").rglob("*.py"))}
EXECUTES = {"execute", "executemany", "copy"}
# A server of our own is started and stopped by these, on no application's data.
OWN_SERVER = {"_embedded_cluster.py", "_embedded_postmaster.py", "embedded.py"}


def built(node: ast.expr) -> bool:
    """Whether an expression puts text together."""
    if isinstance(node, ast.JoinedStr):
        return True
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add | ast.Mod)
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            node.func.attr in {"format", "join", "replace"}
            or (node.func.attr == "encode" and built(node.func.value))
        )
    )


def sent(tree: ast.AST) -> Iterator[ast.expr]:
    """First arguments of what executes."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in EXECUTES
            and node.args
        ):
            yield node.args[0]


@pytest.mark.proves("S1")
def test_no_statement_is_put_together_where_it_is_sent() -> None:
    looked = 0
    for path, tree in SOURCES.items():
        for argument in sent(tree):
            looked += 1
            assert not built(argument), f"{path}:{argument.lineno}: SQL is put together"
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                assert path.name in OWN_SERVER or "bench" in str(path) or path.parts[-2] == "demo", (
                    f"{path}:{argument.lineno}: SQL belongs into sql/queries"
                )
    assert looked > 60


@pytest.mark.parametrize(
    "text", ["c.execute(f'x {y}')", "c.execute('x' + y)", "c.execute('x %s' % y)", "c.execute('x'.format(y))"]
)
def test_the_check_finds_what_it_looks_for(text: str) -> None:
    assert [built(argument) for argument in sent(ast.parse(text))] == [True]


def names(node: ast.AST) -> set[str]:
    """Modules that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]}
    return set()


@pytest.mark.proves("S5")
def test_nothing_stored_is_executed() -> None:
    """No module that makes code or objects of bytes; modules are imported by name only where a person named them."""
    by_name = set()
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            assert not names(node) & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "code"}, path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load"}, (
                f"{path}: {called}"
            )
            if called.endswith("import_module") and not isinstance(node.args[0], ast.Constant):
                by_name.add(path.name)
    # The front door imports its own rooms by a table; -A names a module.
    assert by_name <= {"app.py", "__init__.py"}
