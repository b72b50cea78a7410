"""The demo's own SQL, one statement a file in `sql/`; read once, at import."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

_FOLDER: Final = files("pgqueue.demo") / "sql"

SCHEMA: Final = (_FOLDER / "schema.sql").read_bytes()
PROOF: Final = (_FOLDER / "proof.sql").read_bytes()
SCORE: Final = (_FOLDER / "score.sql").read_bytes()
UNFINISHED: Final = (_FOLDER / "unfinished.sql").read_bytes()
KILL: Final = (_FOLDER / "kill.sql").read_bytes()
CUT: Final = (_FOLDER / "cut.sql").read_bytes()
READY: Final = (_FOLDER / "ready.sql").read_bytes()
CHARGE: Final = (_FOLDER / "charge.sql").read_bytes()
EVENT: Final = (_FOLDER / "event.sql").read_bytes()
ALERTS: Final = (_FOLDER / "alerts.sql").read_bytes()
