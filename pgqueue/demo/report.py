"""How the demo tells its story: a table that renews itself on a terminal, a line a second elsewhere, PROOF at the end.

Written to by the demo's loop; it decides nothing and asks nothing of the database.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pgqueue.demo.proof import Proof, Score

WORDS: Final = (
    ("rides booked", "rides"),
    ("payments captured", "captures"),
    ("receipts sent", "receipts"),
    ("cancellation fees", "fees"),
    ("schedules fired", "fires"),
    ("incentives paid", "incentives"),
    ("events at the partner's webhook", "events"),
    ("alerts fired", "alerts"),
    ("alerts resolved", "alerts_resolved"),
    ("attempts retried", "retries"),
    ("jobs rescued from killed workers", "rescued"),
    ("dead letters", "dead_letters"),
    ("processes killed", "kills"),
    ("connections cut", "cuts"),
    ("jobs waiting or running", "live_jobs"),
)


class Report:
    """One run's output: talk on stderr, the picture or the result on stdout."""

    def __init__(self, *, picture: bool) -> None:
        self._console = Console(file=sys.stdout)
        self._live: Live | None = None
        if picture:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def say(self, line: str) -> None:
        """A line of talk."""
        if self._live is not None and self._live.is_started:
            self._console.print(line, markup=False, highlight=False)
            return
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def show(self, elapsed_s: float, score: Score, proof: Proof) -> None:
        """The numbers of this second."""
        if self._live is None:
            self.say(_line(elapsed_s, score, proof))
            return
        if not self._live.is_started:
            self._live.start()
        self._live.update(_picture(elapsed_s, score, proof), refresh=True)

    def close(self) -> None:
        """Take the picture away; harmless without one."""
        if self._live is not None and self._live.is_started:
            self._live.stop()

    def finish(self, elapsed_s: float, score: Score, proof: Proof, *, undone: int | None) -> None:
        """The result: the last numbers and PROOF, on stdout. `undone` None: the run was stopped before it drained."""
        self.close()
        out = [_line(elapsed_s, score, proof), "", "PROOF"]
        out += [
            f"  {name:<36}{count:>6}  {'ok' if count == 0 else 'VIOLATED'}" for name, count in proof.lines()
        ]
        if undone:
            out.append(f"  {'jobs not done when the drain ended':<36}{undone:>6}  VIOLATED")
        holds = proof.ok and not undone
        out.append(
            f"PROOF {'holds' if holds else 'DOES NOT HOLD'}"
            + ("" if undone is not None else " (stopped early)")
        )
        sys.stdout.write("\n".join(out) + "\n")
        sys.stdout.flush()

    def result(self, elapsed_s: float, score: Score, proof: Proof, *, undone: int | None) -> None:
        """The same as one JSON object on one line."""
        sys.stdout.write(json.dumps(_as_json(elapsed_s, score, proof, undone)) + "\n")
        sys.stdout.flush()


def _line(elapsed_s: float, score: Score, proof: Proof) -> str:
    lag = "–" if score.lag_p95_s is None else f"{score.lag_p95_s:.3f} s"
    return (
        f"{elapsed_s:5.0f} s  rides {score.rides}  captures {score.captures}  receipts {score.receipts}  "
        f"fees {score.fees}  fires {score.fires}  incentives {score.incentives}  events {score.events}  alerts {score.alerts} (resolved {score.alerts_resolved})  lag p95 {lag}  retries {score.retries}  rescued {score.rescued}  "
        f"dead letters {score.dead_letters}  kills {score.kills}  cuts {score.cuts}  "
        f"PROOF {'ok' if proof.ok else 'VIOLATED'}"
    )


def _picture(elapsed_s: float, score: Score, proof: Proof) -> Group:
    table = Table(
        title=f"rides on pgqueue, {elapsed_s:.0f} s", title_justify="left", show_header=False, box=None
    )
    table.add_column()
    table.add_column(justify="right")
    values = asdict(score)
    for words, name in WORDS:
        table.add_row(words, f"{values[name]:,}")
    table.add_row("lag p95, last 5 s", "–" if score.lag_p95_s is None else f"{score.lag_p95_s:.3f} s")
    proofs = Table(title="PROOF, by SQL, every second", title_justify="left", show_header=False, box=None)
    proofs.add_column()
    proofs.add_column(justify="right")
    for words, count in proof.lines():
        proofs.add_row(words, Text(str(count), style="green" if count == 0 else "bold red"))
    return Group(table, "", proofs)


def _as_json(elapsed_s: float, score: Score, proof: Proof, undone: int | None) -> dict[str, Any]:
    return {
        **asdict(score),
        "seconds": round(elapsed_s, 1),
        "drained": undone == 0,
        "proof": {"ok": proof.ok and not undone, **asdict(proof)},
    }
