"""`python worker.py -A module:app …` is `pgqueue worker -A module:app …`."""

from __future__ import annotations

import sys

from pgqueue.cli.main import run

if __name__ == "__main__":
    run(["worker", *sys.argv[1:]])
