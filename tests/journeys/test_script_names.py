"""A task of a program that was started as a script has the name by which a worker finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from pgqueue import App
app = App("postgresql://nowhere")
@app.task()
def pay(ride_id: int) -> None: ...
print(pay.name)
"""


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["jobs.py"], "jobs.pay"),
        (["shop/jobs.py"], "jobs.pay"),
        (["-m", "shop.jobs"], "shop.jobs.pay"),
        (["-m", "shop"], "shop.pay"),
        (["-c", PROGRAM], "__main__.pay"),  # typed in: nobody else can import it
    ],
    ids=["script", "script-in-folder", "module", "package", "typed-in"],
)
def test_a_task_is_named_by_its_module_and_not_by_main(tmp_path: Path, command: list[str], name: str) -> None:
    (tmp_path / "shop").mkdir()
    for place in ("jobs.py", "shop/jobs.py", "shop/__init__.py", "shop/__main__.py"):
        (tmp_path / place).write_text("" if "init" in place else PROGRAM)
    run = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == name
