"""The live screen of `pgqueue top`: one table per tab, drawn from one picture that a thread takes.

Made by cli/top. It asks control/watch and nothing else, and has no deeds; arguments and results are in no column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import DataTable, Input, Static, TabbedContent, TabPane

from pgqueue.cli.out import mapping_of, visible
from pgqueue.control.rows import Fleet
from pgqueue.control.watch import Picture, Watch
from pgqueue.core.durations import format_duration
from pgqueue.core.filter import parse_filter
from pgqueue.core.progress import progress_words
from pgqueue.errors import DatabaseError, InvalidFilter, PgQueueError

TABS: Final[Mapping[str, Sequence[str]]] = {
    "queues": ("queue", "due", "lag_s", "sla_s", "running", "scheduled", "held", "workers_live", "slots", "dead_waiting", "paused", "tier"),
    "jobs": ("id", "state", "task", "queue", "attempt", "progress", "run_at", "error_type", "reason", "priority"),
    "dead_letters": ("dead", "task", "queue", "reason", "error_type", "last_at", "error_fingerprint"),
    "schedules": ("name", "state", "task", "next_fire_at", "overdue_s", "last_outcome", "last_fire_at", "queue"),
    "workers": ("id", "status", "stale", "busy", "slots", "queues", "host", "pid", "settled", "failed", "beat_at"),
    "alerts": ("id", "rule", "key", "state", "severity", "value", "threshold", "fired_at", "acked_by", "silenced"),
}  # fmt: skip
NAMES: Final = ("overview", *TABS)
CELL_CHARS_MAX: Final = 40
HELP: Final = """\
1 to 7, h l      the tabs        arrows, j k   the rows
/                filter the jobs: state:held queue:mail age:>5m; empty = all live ones
space            freeze, and go on
q                leave           ?, escape     close this

Nothing here changes anything; deeds are verbs of `pgqueue`.
Counts of queues end at 10,001, listings at 100 rows."""


class Taken(Message):
    """A picture is there, or an error in its place."""

    def __init__(self, found: Picture | PgQueueError) -> None:
        super().__init__()
        self.found = found


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "close"),
    ]

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static(HELP, id="help", markup=False)


class TopApp(App[None]):
    """The screen."""

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    CSS = """
    #banner { display: none; background: $error; color: $text; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    #filter.open { display: block; }
    #banner.lost { display: block; }
    #head { height: 1; background: $panel; }
    #foot { height: auto; background: $panel; }
    DataTable { height: 1fr; }
    TabPane { padding: 0; }
    Help { align: center middle; }
    #help { width: 76; height: auto; border: round $primary; padding: 0 1; background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "leave"),
        Binding("space", "freeze", "freeze"),
        Binding("slash", "filter", "filter jobs"),
        Binding("question_mark", "help", "help"),
        Binding("escape", "close_filter", "close", show=False),
        Binding("h", "turn(-1)", show=False),
        Binding("l", "turn(1)", show=False),
        Binding("j", "row(1)", show=False),
        Binding("k", "row(-1)", show=False),
        *(Binding(str(n), f"tab('{name}')", show=False) for n, name in enumerate(NAMES, 1)),
    ]

    def __init__(self, watch: Watch, every_s: float) -> None:
        super().__init__()
        self._watch = watch
        self._every_s = every_s
        self._busy = False
        self._where = ""
        self._before: Fleet | None = None
        self.frozen = False

    def compose(self) -> ComposeResult:
        """Head, banner, tabs, the filter's line, foot."""
        yield Static(id="head", markup=False)
        yield Static(id="banner", markup=False)
        with TabbedContent(initial="overview"):
            with TabPane("overview", id="overview"), VerticalScroll():
                yield Static("asking the database …", id="summary", markup=False)
            for name in TABS:
                with TabPane(name.replace("_", " "), id=name):
                    yield DataTable[Text](id=f"{name}-table", cursor_type="row")
        yield Input(
            id="filter", placeholder="state:held queue:mail age:>5m", select_on_focus=False, disabled=True
        )
        yield Static(id="foot", markup=False)

    def on_mount(self) -> None:
        """Begin to ask."""
        for name, columns in TABS.items():
            self.query_one(f"#{name}-table", DataTable).add_columns(*columns)
        self._told("")
        self.set_interval(self._every_s, self._refresh)
        self._refresh()

    def _refresh(self) -> None:
        if self.frozen or self._busy:
            return
        self._busy = True
        where = self._where
        self.run_worker(lambda: self._take(where), thread=True)

    def _take(self, where: str) -> None:
        found: Picture | PgQueueError
        try:
            found = self._watch.take(where)
        except PgQueueError as error:
            found = error
        except Exception as error:  # noqa: BLE001 - it stands in the banner; a crash of the screen would spell out variables
            found = DatabaseError(f"unexpected {type(error).__name__} while asking")
        self.post_message(Taken(found))

    def on_taken(self, message: Taken) -> None:
        """Draw what was found; what was on the screen stays while the database is lost."""
        self._busy = False
        if self.frozen:
            return
        banner = self.query_one("#banner", Static)
        banner.set_class(isinstance(message.found, PgQueueError), "lost")
        if isinstance(message.found, PgQueueError):
            banner.update(visible_lines(f"no fresh figures: {message.found}".splitlines()))
            return
        self._draw(message.found)

    def _draw(self, picture: Picture) -> None:
        self._head(picture.fleet.clock)
        self.query_one("#summary", Static).update(visible_lines(_overview(picture, self._before)))
        self._before = picture.fleet
        for name, columns in TABS.items():
            table = self.query_one(f"#{name}-table", DataTable)
            row, x, y = table.cursor_row, table.scroll_x, table.scroll_y
            table.clear()
            for one in getattr(picture, name):
                values = mapping_of(one)
                table.add_row(*(_cell(values[column], picture.fleet.clock) for column in columns))
            table.move_cursor(row=row, animate=False, scroll=False)
            table.scroll_to(x, y, animate=False)

    def _head(self, clock: datetime | None) -> None:
        at = "" if clock is None else f"{clock:%H:%M:%S %Z}"
        self.query_one("#head", Static).update(visible(f"pgqueue top  {self._watch.place}  {at}"))

    def _told(self, words: str) -> None:
        state = "FROZEN  " if self.frozen else ""
        where = f"jobs: {self._where}  " if self._where else ""
        self.query_one("#foot", Static).update(
            visible_lines(
                f"{state}{words or where + 'q leave  space freeze  / filter jobs  ? help'}".splitlines()
            )
        )

    def action_freeze(self) -> None:
        """Hold the picture, or go on."""
        self.frozen = not self.frozen
        self._told("")
        self._refresh()

    def action_filter(self) -> None:
        """Open the filter's line."""
        self.action_tab("jobs")
        line = self.query_one("#filter", Input)
        line.disabled = False
        line.add_class("open")
        line.value = self._where
        line.focus()

    def action_close_filter(self) -> None:
        """Close it and leave the filter as it was."""
        line = self.query_one("#filter", Input)
        line.remove_class("open")
        line.disabled = True
        self._told("")
        self._focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take a filter; one that is wrong says why and stays to be mended."""
        try:
            parse_filter(event.value, "jobs")
        except InvalidFilter as error:
            self._told(str(error))
            return
        self._where = event.value.strip()
        self.action_close_filter()
        self._refresh()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_tab(self, name: str) -> None:
        """Turn to a tab."""
        self.query_one(TabbedContent).active = name
        self._focus()

    def action_turn(self, by: int) -> None:
        """Turn to a neighbour."""
        now = NAMES.index(self.query_one(TabbedContent).active)
        self.action_tab(NAMES[(now + by) % len(NAMES)])

    def action_row(self, by: int) -> None:
        """Move the cursor."""
        name = self.query_one(TabbedContent).active
        if name in TABS:
            table = self.query_one(f"#{name}-table", DataTable)
            table.move_cursor(row=table.cursor_row + by)

    def _focus(self) -> None:
        name = self.query_one(TabbedContent).active
        if name in TABS:
            self.query_one(f"#{name}-table", DataTable).focus()
        else:
            self.set_focus(None)


def visible_lines(lines: Iterable[str]) -> str:
    """Lines whose stored words do not steer the terminal."""
    return "\n".join(visible(line) for line in lines)


def _overview(picture: Picture, before: Fleet | None) -> list[str]:
    fleet, rate = picture.fleet, ""
    if before is not None and fleet.clock > before.clock:
        seconds = (fleet.clock - before.clock).total_seconds()
        rate = f", {max(0, fleet.settled - before.settled) / seconds:.0f} settled/s"
    due, running, dead = (
        sum(getattr(row, name) for row in picture.queues) for name in ("due", "running", "dead_waiting")
    )
    lines = [
        f"{fleet.workers} workers, {fleet.busy} of {fleet.slots} slots busy{rate}",
        f"{due} due, {running} running, {dead} dead letters wait",
        "",
    ]
    lines += [f"alert {one.rule} {one.key}: {one.state}, {one.severity}" for one in picture.alerts]
    for row in picture.queues:
        if row.paused:
            lines.append(f"queue {row.queue}: paused by {row.paused_by}")
        elif row.due and not row.workers_live:
            lines.append(f"queue {row.queue}: {row.due} due and no worker serves it")
        elif row.sla_s is not None and row.lag_s > row.sla_s:
            lines.append(f"queue {row.queue}: late, {row.lag_s:.1f} s of {row.sla_s:g} s")
    lines += [
        f"schedule {one.name}: cannot fire; `pgqueue schedules get {one.name}`"
        for one in picture.schedules
        if one.last_error is not None
    ]
    return lines if len(lines) > 3 else [*lines, "nothing is wrong"]


def _cell(value: Any, clock: datetime) -> Text:
    """A cell by the database's clock; Text, since stored words may look like markup."""
    match value:
        case None:
            words = ""
        case bool():
            words = "yes" if value else ""
        case float():
            words = f"{value:.1f}".removesuffix(".0")
        case datetime():
            seconds = round((clock - value).total_seconds())
            age = format_duration(float(abs(seconds)))
            words = f"{age} ago" if seconds >= 0 else f"in {age}"
        case Mapping():
            words = progress_words(value)
        case list():
            words = ",".join(str(item) for item in value)
        case _:
            words = str(value)
    return Text(visible(words[:CELL_CHARS_MAX]), no_wrap=True)
