"""What others see of a transfer: the same frozen values for REST, WebSocket and the bus."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from sidecar.lifecycle.statuses import Role, Status


class Progress(msgspec.Struct, frozen=True):
    """How far the bytes are. A hint: never journaled, never a ground to decide."""

    bytes_done: int = 0  # bytes of file content read (source) or written (destination)
    bytes_total: int | None = None  # None: not announced
    files_done: int = 0
    files_total: int | None = None
    wire_bytes: int = 0  # bytes of the archive part sent or received
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None

    @property
    def percent(self) -> float | None:
        """0.0 to 100.0, or None while the total is unknown."""
        if self.bytes_total is None:
            return None
        if self.bytes_total == 0:
            return 100.0
        return min(100.0, 100.0 * self.bytes_done / self.bytes_total)


class TransferView(msgspec.Struct, frozen=True, kw_only=True):
    """One transfer as `GET /api/transfers` and the bus show it. Times are seconds since 1970 (UTC)."""

    transfer: str  # UUID, the same on both ends where both are sidecars
    server: str  # UUID
    node: str
    role: Role
    direction: str  # outgoing or incoming
    status: Status
    stage: str
    in_doubt: bool  # the outcome is not known: nothing is started or deleted
    peer: str | None  # the other end, as scheme://host:port or an address; never a token
    progress: Progress
    accepted_at: float
    updated_at: float
    finished_at: float | None
    reason: str | None  # a key of `errors.CODES`
    message: str | None  # one sentence for a person
    needs: str | None  # what a human has to do, where the state waits for one
    backups: tuple[str, ...] = ()  # UUIDs of the backups that travelled with the server and are known to be kept


class EventKind(StrEnum):
    STATUS = "status"
    LOGS = "logs"
    PROGRESS = "progress"


class TransferEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. `decision` is the journal's record that a status tells, so that a status which is told
    again can be recognised; 0 for log lines and progress."""

    kind: EventKind
    transfer: str
    server: str
    node: str
    role: Role
    decision: int = 0
    time: float
    status: Status
    stage: str
    reason: str | None = None
    message: str | None = None  # status: one sentence; logs: the bare line
    line: str | None = None  # logs: the documented line format
    progress: Progress | None = None
