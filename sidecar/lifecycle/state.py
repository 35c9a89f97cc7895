"""What a transfer knows about itself: the whole of it is journaled after every decision."""

from __future__ import annotations

import msgspec

from sidecar.lifecycle.stages import IN_DOUBT, Stage
from sidecar.lifecycle.statuses import Role, Status


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One end of one transfer. Plain values, no clocks: what a restart cannot make true is not in it."""

    role: Role
    stage: Stage
    status: Status = Status.PENDING
    reason: str | None = None  # the first failure's code; kept
    message: str | None = None
    needs: str | None = None  # what a human has to do
    cancel_requested: bool = False
    restart_after_cancel: bool = True
    respond_async: bool = False  # the panel had its 202 before the stop
    beside: bool = False  # the server is handed over to a local node daemon, which tells the panel
    mends: int = 0  # how often the daemon was made to forget a server that the panel did not give it (H3)
    past_point: bool = False  # the boundary that ends the archive part may be out (S1)
    delete_requested: bool = False  # the panel's DELETE came
    call: int = 0  # the number of the latest call to the arbiter
    stray: bool = False  # a call of ours was given up and can still land (D9)
    owes_failure: bool = False
    owes_restore: bool = False
    owes_cleanup: bool = False

    @property
    def is_final(self) -> bool:
        """The status will not change any more."""
        return self.status.is_final

    @property
    def in_doubt(self) -> bool:
        """The outcome is not known: nothing may be started or deleted."""
        return self.stage in IN_DOUBT

    @property
    def holds_slot(self) -> bool:
        """No other transfer of the server may begin on this node; not while its volume goes to trash either (S5)."""
        return self.stage is not Stage.ENDED or self.owes_cleanup

    @property
    def may_run_server(self) -> bool:
        """This node is the one that may run or change the server, as far as this transfer is concerned."""
        if self.role is Role.SOURCE:
            return self.is_final and self.status is not Status.COMPLETED
        return self.stage is Stage.ACTIVATING or self.status is Status.COMPLETED

    @property
    def needs_hold(self) -> bool:
        """A call of this transfer, or the other end's `success`, can still land at the panel (S7, D9)."""
        failed_in_doubt = self.role is Role.SOURCE and self.past_point and self.status is not Status.COMPLETED
        return self.stray or failed_in_doubt


def first(role: Role, *, respond_async: bool = False, beside: bool = False) -> State:
    """A transfer that has just been accepted.

    Args: `respond_async` is a source's: the panel has its 202 before the stop. `beside` is a destination's: it works
    beside a node daemon, to which the server is handed over.
    """
    stage = Stage.STOPPING if role is Role.SOURCE else Stage.ADMITTING
    return State(role=role, stage=stage, respond_async=respond_async, beside=beside)
