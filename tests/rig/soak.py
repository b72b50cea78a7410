"""How long a soak runs and with which seed; `make soak DURATION=30m SEED=7` puts both into the environment."""

from __future__ import annotations

import os
import random

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def soak_duration_s(default: str) -> float:
    """Seconds of `DURATION` ("90s", "30m", "8h"), or of `default`."""
    text = os.environ.get("SOAK_DURATION") or default
    return float(text[:-1]) * _UNITS_S[text[-1]]


def soak_seed() -> int:
    """`SEED`, or a random one; it is printed so that a failure can be replayed."""
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(2**31))
    print(f"seed {seed}: replay with SEED={seed}")
    return seed
