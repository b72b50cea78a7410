"""`python scheduler.py -A module:app …` is `pgqueue scheduler -A module:app …`."""

from __future__ import annotations

import sys

from pgqueue.cli.main import run

if __name__ == "__main__":
    run(["scheduler", *sys.argv[1:]])
