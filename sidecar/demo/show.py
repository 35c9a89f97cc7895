"""Shows one transfer, fed from the bus alone: statuses, log lines and a progress bar.

What a panel or an operator's own tool would see: every line comes from a message on `<root>.v1.event.>`, nothing from
inside the nodes. On a terminal the bar stays at the bottom and moves; elsewhere everything is plain lines. Messages may
be repeated, late or lost, so a view never waits for one.

Every text of a message is printed without markup and without control characters: it comes from elsewhere.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_FINAL: Final = frozenset({"completed", "failed", "cancelled"})
_STYLES: Final = {"completed": "bold green", "failed": "bold red", "cancelled": "bold yellow", "cancelling": "yellow"}
_MARKUP: Final = re.compile(r"\[/?(?:[a-z_]+)\]")  # of the documented line format: [yellow][bold]...[default]
_REFRESH_PER_S: Final = 10
_TEXT_COLUMNS: Final = 80  # of a line, beside the bar
_BAR_COLUMNS: Final = (10, 40)
_PLAIN_EVERY_S: Final = 1.0  # progress lines where there is no terminal


class Progress(msgspec.Struct, frozen=True):
    bytes_done: int = 0
    bytes_total: int | None = None
    files_done: int = 0
    files_total: int | None = None
    wire_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None


class Event(msgspec.Struct, frozen=True):
    """The body of a message. Fields that are not shown are not read."""

    event: str  # transfer.status, transfer.logs, transfer.progress
    node: str = ""
    role: str = ""
    status: str = ""
    stage: str = ""
    reason: str | None = None
    message: str | None = None
    args: list[Any] = msgspec.field(default_factory=list)
    progress: Progress | None = None
    seq: int = 0
    time: str | float | None = None

    @property
    def is_final(self) -> bool:
        return self.event == "transfer.status" and self.status in _FINAL


def read_event(body: bytes) -> Event | None:
    """The event of a message, or None for a message that is not one."""
    try:
        return msgspec.json.decode(body, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class Show:
    """The view; a context manager. `feed` every message to it.

    Args: clock: seconds, for how often a plain progress line is printed.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._latest: dict[str, Event] = {}  # role -> the latest progress
        self._last_line_at: float | None = None
        self._seen: set[tuple[str, str, int]] = set()  # status and log events by node, kind and number
        self._live = (
            Live(console=console, get_renderable=self._bars, refresh_per_second=_REFRESH_PER_S, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Show:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def feed(self, event: Event) -> None:
        """Show one event; a repeated one is dropped."""
        if event.event == "transfer.progress":
            self._take_progress(event)
            return
        key = (event.node, event.event, event.seq)
        if key in self._seen:
            return
        self._seen.add(key)
        if event.event == "transfer.status":
            self._print_status(event)
        elif event.event == "transfer.logs":
            self._print_log(event)

    def _take_progress(self, event: Event) -> None:
        if event.progress is None:
            return
        self._latest[event.role] = event
        if self._live is not None:
            return  # the bar is drawn anew by itself
        now = self._clock()
        if self._last_line_at is None or now - self._last_line_at >= _PLAIN_EVERY_S:
            self._last_line_at = now
            self._console.print(Text(f"  {event.role:<12} {describe(event.progress)}"))

    def _print_status(self, event: Event) -> None:
        line = Text(f"{_clean(event.role):<12} ")
        line.append(_clean(event.status), _STYLES.get(event.status, "bold cyan"))
        if event.stage and not event.is_final:
            line.append(f" ({_clean(event.stage)})", "dim")
        if event.message or event.reason:
            line.append(f": {_clean(event.message or event.reason or '')}")
        self._console.print(line)

    def _print_log(self, event: Event) -> None:
        text = event.message
        if text is None and event.args:
            text = _MARKUP.sub("", str(event.args[0]))
        if text:
            self._console.print(Text(f"  {_clean(event.role):<12} {_clean(text)}", "dim"))

    def _bars(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for role, event in sorted(self._latest.items(), reverse=True):  # the source above
            progress = event.progress
            if progress is not None:
                total = progress.bytes_total
                bar = ProgressBar(
                    total=float(total) if total else None,
                    completed=progress.bytes_done,
                    width=max(_BAR_COLUMNS[0], min(_BAR_COLUMNS[1], self._console.width - _TEXT_COLUMNS)),
                    complete_style="cyan",
                    finished_style="green",
                )
                facts = Text(describe(progress), no_wrap=True, overflow="ellipsis")
                table.add_row(Text(f"{_clean(role):<12}", no_wrap=True), bar, facts)
        return table


def describe(progress: Progress) -> str:
    """`43 %  129.0 / 300.0 MB, 51 / 120 files, 210.3 MB/s, 1 s left`; what is not known is left out."""
    parts = []
    if progress.bytes_total:
        percent = min(100.0, 100.0 * progress.bytes_done / progress.bytes_total)
        parts.append(f"{percent:3.0f} %  {progress.bytes_done / 1e6:.1f} / {progress.bytes_total / 1e6:.1f} MB")
    else:
        parts.append(f"{progress.bytes_done / 1e6:.1f} MB")
    total = f" / {progress.files_total}" if progress.files_total is not None else ""
    parts.append(f"{progress.files_done}{total} files")
    if progress.rate_bytes_per_s > 0:
        parts.append(f"{progress.rate_bytes_per_s / 1e6:.1f} MB/s")
    if progress.eta_s is not None:
        parts.append(f"{progress.eta_s:.0f} s left")
    return ", ".join(parts)


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
