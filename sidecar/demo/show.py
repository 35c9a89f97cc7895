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
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sidecar.bus.events import BusEvent
from sidecar.lifecycle.statuses import Role
from sidecar.views import EventKind, Progress
from sidecar.watch.shown import clean
from sidecar.watch.table import STYLES

_MARKUP: Final = re.compile(r"\[/?(?:[a-z_]+)\]")  # of the documented line format: [yellow][bold]...[default]
_REFRESH_PER_S: Final = 10
_TEXT_COLUMNS: Final = 80  # of a line, beside the bar
_BAR_COLUMNS: Final = (10, 40)
_PLAIN_EVERY_S: Final = 1.0  # progress lines where there is no terminal


class Show:
    """The view; a context manager. `feed` every message to it.

    Args: clock: seconds, for how often a plain progress line is printed.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._latest: dict[Role, Progress] = {}
        self._last_line_at: float | None = None
        self._seen: set[tuple[str, Role, str, int]] = set()  # status and log events by node, role, kind and number
        self.ended: set[Role] = set()
        """The ends that have told a final status."""
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

    def feed(self, event: BusEvent) -> None:
        """Show one event; a repeated one is dropped."""
        if event.kind is EventKind.PROGRESS:
            self._take_progress(event)
            return
        key = (event.node, event.role, event.event, event.seq)
        if key in self._seen:
            return
        self._seen.add(key)
        if event.kind is EventKind.STATUS:
            self._print_status(event)
        else:
            self._print_log(event)

    def _take_progress(self, event: BusEvent) -> None:
        if event.progress is None:
            return
        self._latest[event.role] = event.progress
        if self._live is not None:
            return  # the bar is drawn anew by itself
        now = self._clock()
        if self._last_line_at is None or now - self._last_line_at >= _PLAIN_EVERY_S:
            self._last_line_at = now
            self._console.print(Text(f"  {event.role.value:<12} {describe(event.progress)}"))

    def _print_status(self, event: BusEvent) -> None:
        if event.status.is_final:
            self.ended.add(event.role)
        line = Text(f"{event.role.value:<12} ")
        line.append(event.status.value, STYLES[event.status])
        if event.stage and not event.status.is_final:
            line.append(f" ({clean(event.stage)})", "dim")
        if event.message or event.reason:
            line.append(f": {clean(event.message or event.reason or '')}")
        self._console.print(line)

    def _print_log(self, event: BusEvent) -> None:
        text = event.message
        if text is None and event.args:
            text = _MARKUP.sub("", event.args[0])
        if text:
            self._console.print(Text(f"  {event.role.value:<12} {clean(text)}", "dim"))

    def _bars(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for role, progress in sorted(self._latest.items(), reverse=True):  # the source above
            total = progress.bytes_total
            bar = ProgressBar(
                total=float(total) if total else None,
                completed=progress.bytes_done,
                width=max(_BAR_COLUMNS[0], min(_BAR_COLUMNS[1], self._console.width - _TEXT_COLUMNS)),
                complete_style="cyan",
                finished_style="green",
            )
            facts = Text(describe(progress), no_wrap=True, overflow="ellipsis")
            table.add_row(Text(f"{role.value:<12}", no_wrap=True), bar, facts)
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
