"""Events folded into one row a transfer, with both of its ends. Pure: no clock, no bus, no terminal.

Events may be repeated and may be old: the newest of each end counts. An end is a node and a role; the two ends of one
transfer id meet in one row. A third one that claims the same id gets a row of its own, so that no node can write into
what another says.

Memory: `MAX_ACTIVE` + `MAX_ENDED` + `_SLACK` rows; what has been quiet for longest falls out first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from sidecar.bus.events import BusEvent
from sidecar.lifecycle.statuses import Role, Status
from sidecar.views import EventKind, Progress

MAX_ACTIVE: Final = 5_000
MAX_ENDED: Final = 500
_SLACK: Final = 64  # rows are counted once in so many new ones
_TEXT: Final = 500  # characters of a message that are kept


class End(msgspec.Struct):
    """One end of a transfer, as its node last said. Times are the node's, seconds since 1970."""

    node: str
    role: Role
    status: Status
    stage: str
    seq: int
    time: float
    reason: str | None = None
    message: str | None = None
    progress: Progress | None = None
    progress_at: float = 0.0


class Row(msgspec.Struct):
    """One transfer."""

    transfer: str
    server: str
    source: End | None = None
    destination: End | None = None

    @property
    def ends(self) -> list[End]:
        return [end for end in (self.source, self.destination) if end is not None]

    @property
    def is_active(self) -> bool:
        return any(not end.status.is_final for end in self.ends)

    @property
    def heard_at(self) -> float:
        """The time of the newest event."""
        return max(end.time for end in self.ends)

    @property
    def leading(self) -> End:
        """The end whose state is the transfer's: one that still works, then one that did not complete."""
        ends = self.ends
        for end in ends:
            if not end.status.is_final:
                return end
        for end in ends:
            if end.status is not Status.COMPLETED:
                return end
        return ends[0]

    @property
    def status(self) -> Status:
        return self.leading.status

    @property
    def stages(self) -> list[str]:
        """Of the ends that still work, the source's first."""
        return [end.stage for end in self.ends if not end.status.is_final and end.stage]

    @property
    def progress(self) -> tuple[Progress, float] | None:
        """The measure of the transfer and its time: the source's, who knows how much there is."""
        for end in self.ends:
            if end.progress is not None:
                return end.progress, end.progress_at
        return None

    @property
    def why(self) -> tuple[str | None, str | None]:
        """Reason code and sentence."""
        for end in (self.leading, *self.ends):
            if end.reason:
                return end.reason, end.message
        return None, None


class Board:
    """Args: servers, nodes: what is looked at; empty: all."""

    def __init__(self, servers: Collection[str] = (), nodes: Collection[str] = ()) -> None:
        self._servers = frozenset(servers)
        self._nodes = frozenset(nodes)
        self._rows: dict[tuple[str, str], Row] = {}  # the least recently changed first
        self._fresh = 0

    def feed(self, event: BusEvent) -> Row | None:
        """Take one event. Returns the row that it changed; None for a repeated, late or unwanted one."""
        if self._servers and event.server not in self._servers:
            return None
        key = self._key(event)
        row = self._rows.get(key)
        fresh = row is None
        if row is None:
            row = Row(event.transfer, event.server)
        end = row.source if event.role is Role.SOURCE else row.destination
        if end is None:
            end = _end(event)
        elif not _is_news(end, event):
            return None
        else:
            _update(end, event)
        if event.role is Role.SOURCE:
            row.source = end
        else:
            row.destination = end
        self._rows.pop(key, None)
        self._rows[key] = row
        if fresh:
            self._fresh += 1
            if self._fresh % _SLACK == 0:
                self._make_room()
        return row if self._is_wanted(row) else None

    def rows(self, *, active_only: bool = False) -> list[Row]:
        """The active ones first, each kind with the newest on top."""
        wanted = [row for row in self._rows.values() if self._is_wanted(row) and (row.is_active or not active_only)]
        return sorted(wanted, key=lambda row: (not row.is_active, -row.heard_at))

    def _key(self, event: BusEvent) -> tuple[str, str]:
        row = self._rows.get((event.transfer, ""))
        if row is None:
            return event.transfer, ""
        end = row.source if event.role is Role.SOURCE else row.destination
        is_same = row.server == event.server and (end is None or end.node == event.node)
        return event.transfer, "" if is_same else f"{event.node}.{event.role.value}.{event.server}"

    def _is_wanted(self, row: Row) -> bool:
        return not self._nodes or any(end.node in self._nodes for end in row.ends)

    def _make_room(self) -> None:
        self._drop_beyond(MAX_ACTIVE, lambda row: row.is_active)
        self._drop_beyond(MAX_ENDED, lambda row: not row.is_active)

    def _drop_beyond(self, bound: int, belongs: Callable[[Row], bool]) -> None:
        keys = [key for key, row in self._rows.items() if belongs(row)]
        for key in keys[: max(0, len(keys) - bound)]:
            del self._rows[key]


def _end(event: BusEvent) -> End:
    end = End(event.node, event.role, event.status, event.stage, event.seq, event.time)
    _update(end, event)
    return end


def _is_news(end: End, event: BusEvent) -> bool:
    if end.status.is_final and event.status is not end.status:
        return False  # a final status never changes: this is an older event, or not true
    if event.kind is EventKind.PROGRESS and event.seq == end.seq:  # it has the number of the event before it
        return event.time >= end.time
    return event.time > end.time or event.seq > end.seq


def _update(end: End, event: BusEvent) -> None:
    end.status, end.stage, end.seq, end.time = event.status, event.stage, event.seq, max(end.time, event.time)
    if event.kind is EventKind.STATUS:
        end.reason = event.reason
        end.message = event.message[:_TEXT] if event.message else None
    elif event.reason:
        end.reason = event.reason
    if event.progress is not None:
        end.progress, end.progress_at = event.progress, event.time


def counted(rows: Sequence[Row]) -> tuple[int, int]:
    """How many are active, and how many have ended."""
    active = sum(row.is_active for row in rows)
    return active, len(rows) - active
