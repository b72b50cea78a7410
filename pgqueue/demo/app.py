"""The demo's application, as `pgqueue worker -A pgqueue.demo.app:app` and `pgqueue scheduler -A …` are given it."""

from __future__ import annotations

from pgqueue.demo import clockwork, rides
from pgqueue.demo.story import app

__all__ = ["app", "clockwork", "rides"]
