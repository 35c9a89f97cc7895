"""The words for where a transfer is: role, the six documented statuses, and the stages inside them.

Source: the documented contract's "Transfer Status Flow"; the stages are ours (`docs/ARCHITECTURE.md` draws them).
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """Which end of a transfer this node is."""

    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def direction(self) -> str:
        """The word of REST and of the bus: `outgoing` or `incoming`."""
        return "outgoing" if self is Role.SOURCE else "incoming"


class Status(StrEnum):
    """The documented statuses. The last three are final and never change."""

    PENDING = "pending"
    PROCESSING = "processing"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    FAILED = "failed"
    COMPLETED = "completed"

    @property
    def is_final(self) -> bool:
        return self in (Status.CANCELLED, Status.FAILED, Status.COMPLETED)
