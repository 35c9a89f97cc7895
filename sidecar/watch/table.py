"""The live table: rows of the board as lines of a terminal, as many and as wide as there is room for.

What is less needed goes first when it is narrow: age, rate, stage, time left. One column takes the width that remains:
the bar while bytes move, and what went wrong instead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sidecar.lifecycle.statuses import Status
from sidecar.views import Progress
from sidecar.watch.board import Row, counted
from sidecar.watch.shown import clean, clock, duration, size

STYLES: Final = {
    Status.COMPLETED: "green",
    Status.FAILED: "bold red",
    Status.CANCELLED: "yellow",
    Status.CANCELLING: "yellow",
    Status.PROCESSING: "cyan",
    Status.PENDING: "cyan",
}
_FRESH_S: Final = 30.0  # a rate that is older says nothing about now
_NODE_COLUMNS: Final = 12
_WIDE_NODE_COLUMNS: Final = 24
_PERCENT_COLUMNS: Final = 5
_MIN_BAR_COLUMNS: Final = 8
_WITH_STAGE: Final = 104
_WITH_RATE: Final = 84
_WITH_AGE: Final = 72
_WITH_LEFT: Final = 64
_WITH_UUID: Final = 150


def draw(
    rows: Sequence[Row], *, columns: int, lines: int | None, now: float, headline: str, warning: str = ""
) -> RenderableType:
    """Args: rows: in their order; columns, lines: of the terminal, without lines all rows; now: seconds since 1970;
    headline: what is listened to; warning: what is wrong with that."""
    active, ended = counted(rows)
    room = len(rows) if lines is None else max(1, lines - 3 - (1 if warning else 0))
    shown = rows if len(rows) <= room else rows[: max(1, room - 1)]
    parts: list[RenderableType] = []
    top = Text(f"{active} active, {ended} ended", "bold", no_wrap=True, overflow="ellipsis")
    top.append(f"  {clean(headline)}", "not bold dim")
    parts.append(top)
    if warning:
        parts.append(Text(clean(warning), "bold yellow", no_wrap=True, overflow="ellipsis"))
    if rows:
        parts.append(_table(shown, columns, now))
    else:
        parts.append(Text("no transfers", "dim"))
    if len(shown) < len(rows):
        parts.append(Text(f"… and {len(rows) - len(shown)} more", "dim", no_wrap=True))
    return Group(*parts)


def _table(rows: Sequence[Row], columns: int, now: float) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=True, header_style="dim")
    uuid_columns = 36 if columns >= _WITH_UUID else 8
    node_columns = _WIDE_NODE_COLUMNS if columns >= _WITH_UUID else _NODE_COLUMNS
    route_columns = min(2 * node_columns + 3, max((len(route(row)) for row in rows), default=0), max(11, columns // 3))
    table.add_column("SERVER", width=uuid_columns, no_wrap=True)
    table.add_column("FROM → TO", width=max(9, route_columns), no_wrap=True, overflow="ellipsis")
    table.add_column("STATUS", width=10, no_wrap=True)
    if columns >= _WITH_STAGE:
        table.add_column("STAGE", width=18, no_wrap=True, overflow="ellipsis")
    table.add_column("PROGRESS", ratio=1, min_width=_PERCENT_COLUMNS, no_wrap=True, overflow="ellipsis")
    if columns >= _WITH_RATE:
        table.add_column("RATE", width=9, justify="right", no_wrap=True)
    if columns >= _WITH_LEFT:
        table.add_column("LEFT", width=6, justify="right", no_wrap=True)
    if columns >= _WITH_AGE:
        table.add_column("AGE", width=4, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, columns, uuid_columns, now), style="" if row.is_active else "dim")
    return table


def _cells(row: Row, columns: int, uuid_columns: int, now: float) -> list[RenderableType]:
    cells: list[RenderableType] = [
        clean(row.server)[:uuid_columns],
        Text(route(row), no_wrap=True, overflow="ellipsis"),
        Text(row.status.value, STYLES[row.status]),
    ]
    if columns >= _WITH_STAGE:
        cells.append(Text(stages(row), no_wrap=True, overflow="ellipsis"))
    cells.append(_progress(row))
    moving = moves(row, now)
    if columns >= _WITH_RATE:
        cells.append(f"{size(moving.rate_bytes_per_s)}/s" if moving is not None else "")
    if columns >= _WITH_LEFT:
        cells.append(clock(moving.eta_s) if moving is not None and moving.eta_s is not None else "")
    if columns >= _WITH_AGE:
        cells.append(duration(now - row.heard_at))
    return cells


def _progress(row: Row) -> RenderableType:
    """The bar, or what went wrong, or how much it was."""
    if reason(row):
        return Text(_with_percent(row, reason(row)), no_wrap=True, overflow="ellipsis")
    if row.progress is None:
        return Text("")
    if not row.is_active:
        return Text(size(row.progress[0].bytes_done), no_wrap=True, overflow="ellipsis")
    known = row.progress[0].percent
    if known is None:
        return Text(size(row.progress[0].bytes_done), no_wrap=True, overflow="ellipsis")
    line = Table.grid(expand=True, padding=(0, 1, 0, 0))
    line.add_column(width=_PERCENT_COLUMNS - 1, justify="right", no_wrap=True)
    line.add_column(ratio=1, no_wrap=True)
    line.add_row(f"{int(known)}%", ProgressBar(total=100.0, completed=known, complete_style="cyan"))
    return line


def _with_percent(row: Row, text: str) -> str:
    known = row.progress[0].percent if row.progress is not None else None
    return f"{int(known)}% {text}" if known is not None and row.is_active else text


def route(row: Row) -> str:
    """`node-a → node-b`; an end that is not heard of (it has no sidecar, or no bus) is a question mark."""
    source = clean(row.source.node) if row.source is not None else "?"
    destination = clean(row.destination.node) if row.destination is not None else "?"
    return f"{source} → {destination}"


def stages(row: Row) -> str:
    """`sending/receiving`, of the ends that still work."""
    return clean("/".join(dict.fromkeys(row.stages)).replace("_", " "))


def reason(row: Row) -> str:
    """`peer.reset: the connection broke`; empty where nothing is wrong."""
    code, message = row.why
    if code is None:
        return ""
    return clean(f"{code}: {message}" if message else code)


def moves(row: Row, now: float) -> Progress | None:
    """The measure of a transfer whose bytes move at this time."""
    if row.progress is None or not row.is_active or row.leading.status is not Status.PROCESSING:
        return None
    progress, at = row.progress
    is_over = progress.bytes_total is not None and progress.bytes_done >= progress.bytes_total
    return progress if now - at <= _FRESH_S and not is_over else None


def plain(row: Row, now: float) -> str:
    """One transfer as one line without any drawing, all in full."""
    words = [row.server, route(row), row.status.value]
    if row.is_active and stages(row):
        words.append(stages(row))
    if row.progress is not None:
        progress = row.progress[0]
        total = f"/{size(progress.bytes_total)}" if progress.bytes_total is not None else ""
        percent = f"{int(progress.percent)}% " if progress.percent is not None else ""
        words.append(f"{percent}{size(progress.bytes_done)}{total}")
    moving = moves(row, now)
    if moving is not None:
        words.append(f"{size(moving.rate_bytes_per_s)}/s")
        if moving.eta_s is not None:
            words.append(f"{clock(moving.eta_s)} left")
    if reason(row):
        words.append(reason(row))
    return "  ".join(words)
