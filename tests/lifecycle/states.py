"""Every state that a stage can be in, as far as a decision can tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

import msgspec

from sidecar.lifecycle import events as on
from sidecar.lifecycle.events import EVENTS, Event
from sidecar.lifecycle.stages import IN_DOUBT, SHARED_STAGES, SOURCE_STAGES, Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Role, Status

BOTH: Final = (False, True)
BEFORE_THE_POINT: Final = frozenset({Stage.STOPPING, Stage.SENDING, Stage.CUTTING})
BESIDE: Final = frozenset({Stage.HANDING_OVER, Stage.CONFIRMING_HANDOVER, Stage.MENDING})
MAY_HAVE_CALLED: Final = IN_DOUBT - {Stage.COMMITTING} | {Stage.ACTIVATING, Stage.DISCARDING}
MAY_HAVE_MENDED: Final = MAY_HAVE_CALLED - {Stage.ANNOUNCING}
FINAL: Final = (Status.CANCELLED, Status.FAILED, Status.COMPLETED)
CALL: Final = 3  # the number of the latest call, where there was one


def status_in(stage: Stage, cancelled: bool) -> Status:
    if cancelled:
        return Status.CANCELLING
    return Status.PENDING if stage in (Stage.STOPPING, Stage.ADMITTING) else Status.PROCESSING


def states_in(stage: Stage) -> Iterator[State]:
    """All of them, of either role."""
    if stage in SHARED_STAGES:
        for role, status in product(Role, FINAL):
            yield from _final(stage, role, status)
        return
    role = Role.SOURCE if stage in SOURCE_STAGES else Role.DESTINATION
    past = role is Role.SOURCE and stage not in BEFORE_THE_POINT
    always_cancelled = stage in (Stage.CUTTING, Stage.STOPPING_RECEIPT)
    for cancelled, stray, at_once, restart, delete in product(BOTH, repeat=5):
        if (always_cancelled and not cancelled) or (stray and stage not in MAY_HAVE_CALLED):
            continue
        if role is Role.DESTINATION and (at_once or not restart or delete):
            continue
        if (not restart and not cancelled) or (delete and not past):
            continue
        state = State(
            role=role,
            stage=stage,
            status=status_in(stage, cancelled),
            reason="transfer.disowned" if stage is Stage.DISCARDING else None,
            cancel_requested=cancelled,
            restart_after_cancel=restart,
            respond_async=at_once,
            past_point=past,
            delete_requested=delete,
            stray=stray,
            call=CALL,
        )
        if stage not in BESIDE:
            yield state
        if role is Role.DESTINATION and stage is not Stage.ANNOUNCING:
            for mends in range(3) if stage in MAY_HAVE_MENDED else (0,):
                yield msgspec.structs.replace(state, beside=True, mends=mends)


def _final(stage: Stage, role: Role, status: Status) -> Iterator[State]:
    done = status is Status.COMPLETED
    for past, stray, failure, restore, cleanup in product(BOTH, repeat=5):
        if role is Role.SOURCE:
            fits = (past or not done) and not (failure and past) and not (restore and done) and cleanup <= done
        else:
            fits = not past and not restore and not (done and (failure or cleanup))
        state = State(
            role=role,
            stage=stage,
            status=status,
            reason=None if done else "transfer.interrupted",
            message=None if done else "This node was restarted in the middle of the transfer.",
            cancel_requested=status is Status.CANCELLED,
            past_point=past,
            delete_requested=cleanup and role is Role.SOURCE,
            stray=stray,
            call=CALL,
            owes_failure=failure,
            owes_restore=restore,
            owes_cleanup=cleanup,
        )
        debts = failure or restore or cleanup
        if stage is Stage.SETTLING:
            fits = fits and debts
        else:
            fits = fits and not (failure or restore) and (not cleanup or role is Role.SOURCE)
            fits = fits and (stage is Stage.ENDED or state.needs_hold)
        if fits:
            yield state


def variants_of(event: type[Event]) -> tuple[Event, ...]:
    """The event as it can come, answering the latest call."""
    if event is on.AdmissionFailed:
        return (on.AdmissionFailed(), on.AdmissionFailed(tell_panel=False))
    if event is on.HandedOver:
        return (on.HandedOver(call=CALL), on.HandedOver(call=CALL, slow=True))
    if event is on.CancelRequested:
        return (on.CancelRequested(), on.CancelRequested(restart=False))
    if event is on.Resolved:
        return (on.Resolved("completed"), on.Resolved("failed"))
    made = event()
    return (msgspec.structs.replace(made, call=CALL) if made.is_outcome else made,)


def every_case() -> Iterator[tuple[State, Event]]:
    for stage in Stage:
        for state in states_in(stage):
            for kind in EVENTS:
                for event in variants_of(kind):
                    yield state, event
