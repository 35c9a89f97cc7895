"""The rules that the table is made of: what a state becomes, and what is to be done, when it is told something.

A rule is a pure function of a state and an event. It does not ask which end we are or which stage it is in the table
for; where it stands in `table.py` says so. Labels such as S1 and D6 name the rules of ownership in
`docs/ARCHITECTURE.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from sidecar.errors import IllegalTransition
from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import CALLS, Effect
from sidecar.lifecycle.events import Event, Failing
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Status

Decision = tuple[State, tuple[Effect, ...]]
Rule = Callable[[State, Event], Decision]


# -- how a rule is made ------------------------------------------------------------------------------------------------
def _with(state: State, stage: Stage, *effects: Effect, **changes: object) -> Decision:
    """The state moved to `stage`; a call among the effects gets the next number."""
    call = state.call + 1 if CALLS.intersection(effects) else state.call
    new = msgspec.structs.replace(state, stage=stage, call=call, **changes)
    if not new.is_final:
        status = Status.PENDING if stage in (Stage.STOPPING, Stage.ADMITTING) else Status.PROCESSING
        new = msgspec.structs.replace(new, status=Status.CANCELLING if new.cancel_requested else status)
    return new, effects


def _because(state: State, event: Event) -> State:
    """Keep the first failure's reason. An upload that fails while it is being cut was failed by the cancel."""
    if state.reason is not None or state.stage is Stage.CUTTING or not isinstance(event, Failing):
        return state
    return msgspec.structs.replace(state, reason=event.code, message=event.message)


def _final(
    state: State, status: Status, *, failure: bool = False, restore: bool = False, cleanup: Effect | None = None
) -> Decision:
    """The status is final from here on; what is owed follows."""
    effects = tuple(
        effect
        for effect, owed in (
            (Effect.RESTORE_SERVER, restore),
            (cleanup, cleanup is not None),
            (Effect.TELL_FAILURE, failure),
        )
        if owed and effect is not None
    )
    new, effects = _with(
        state,
        Stage.SETTLING,
        *effects,
        status=status,
        owes_failure=failure,
        owes_restore=restore,
        owes_cleanup=cleanup is not None,
    )
    return (new, effects) if effects else _settled(new)


def _settled(state: State) -> Decision:
    """From settling on to cooling or the end, once nothing is owed."""
    if state.stage is not Stage.SETTLING or state.owes_failure or state.owes_restore or state.owes_cleanup:
        return state, ()
    if state.needs_hold:
        return _with(state, Stage.COOLING, Effect.HOLD_SLOT)
    return _with(state, Stage.ENDED)


def _undone(state: State) -> Status:
    return Status.CANCELLED if state.cancel_requested else Status.FAILED


def _because_or(state: State, event: Event, code: str, message: str) -> State:
    state = _because(state, event)
    if state.reason is None:
        code = "transfer.cancelled" if state.cancel_requested else code
        message = "The transfer was cancelled." if state.cancel_requested else message
        state = msgspec.structs.replace(state, reason=code, message=message)
    return state


_INTERRUPTED = ("transfer.interrupted", "This node was restarted in the middle of the transfer.")
_DISOWNED = ("transfer.disowned", "The panel did not give the server to this node.")
_NOT_DONE = ("peer.reset", "The destination did not take the server.")
_NEEDS_BY_CODE: Final = {
    "daemon.restart_needed": (
        "The server is here and complete and the data is safe, but the node daemon holds it as transferring or does "
        "not know it: restart the node daemon."
    ),
}
_NEEDS_LOOK: Final = "The server is here and complete, but its container is not: see the reason, then start the server."
_MOST_MENDS: Final = 2  # H3: what the panel refuses three times over, it does not refuse by chance


def ignore(state: State, event: Event) -> Decision:
    """It may come late or twice, and changes nothing."""
    return state, ()


def refuse(state: State, event: Event) -> Decision:
    """The caller gets 409; nothing changes."""
    return state, ()


def bug(state: State, event: Event) -> Decision:
    """It cannot come."""
    raise IllegalTransition(f"{type(event).__name__} in stage {state.stage}")


def go(stage: Stage, *effects: Effect) -> Rule:
    return lambda state, event: _with(_because(state, event), stage, *effects)


def again(*effects: Effect) -> Rule:
    """The same stage once more; an unanswered call may still land (D9)."""
    return lambda state, event: _with(state, state.stage, *effects, stray=state.stray or _may_land(event))


def _may_land(event: Event) -> bool:
    unanswered = on.FailureUnanswered | on.SuccessUnanswered | on.FailureGivenUp | on.HandOverUnanswered
    return isinstance(event, unanswered) or (isinstance(event, on.HandedOver) and event.slow)


# -- source ------------------------------------------------------------------------------------------------------------
def stop_ended(state: State, event: Event) -> Decision:
    if isinstance(event, on.ServerStopped) and not state.cancel_requested:
        return _with(state, Stage.SENDING, Effect.SEND_ARCHIVE)
    # Nothing was started and the panel got no 202, so it is owed nothing, unless it was answered before the stop.
    state = _because_or(state, event, "transfer.interrupted", "The caller hung up before the answer.")
    return _final(state, _undone(state), failure=state.respond_async, restore=state.restart_after_cancel)


def interrupted_stop(state: State, event: Event) -> Decision:
    state = _because_or(state, event, *_INTERRUPTED)
    return _final(state, _undone(state), failure=state.respond_async, restore=state.restart_after_cancel)


def not_sent(state: State, event: Event) -> Decision:
    """S2: before the point a failure or cancel is final at once."""
    state = _because_or(state, event, *_INTERRUPTED)
    return _final(state, _undone(state), failure=True, restore=state.restart_after_cancel)


def past_point(state: State, event: Event) -> Decision:
    """S1: this decision is on disk before the boundary goes out."""
    return _with(state, Stage.AWAITING_VERDICT, Effect.FINISH_UPLOAD, past_point=True)


def cancel(stage: Stage | None, *effects: Effect) -> Rule:
    def rule(state: State, event: Event) -> Decision:
        if state.cancel_requested:
            return refuse(state, event)
        restart = not isinstance(event, on.CancelRequested) or event.restart
        return _with(state, stage or state.stage, *effects, cancel_requested=True, restart_after_cancel=restart)

    return rule


def unsure(state: State, event: Event) -> Decision:
    """S3a: ask the panel to fail it."""
    state = _because_or(state, event, *_NOT_DONE)
    return _with(state, Stage.REPORTING_FAILURE, Effect.TELL_FAILURE)


def unsure_after_restart(state: State, event: Event) -> Decision:
    state = _because_or(state, event, *_INTERRUPTED)
    return _with(state, Stage.REPORTING_FAILURE, Effect.TELL_FAILURE, stray=state.stray or state.call > 0)


def deleted_in_doubt(state: State, event: Event) -> Decision:
    """S3d: the panel's DELETE is confirmed by the oracle too; the files go to trash only after that."""
    stray = state.stray or state.stage is Stage.REPORTING_FAILURE
    return _with(state, Stage.CONFIRMING_DEPARTURE, Effect.ASK_OWNER, delete_requested=True, stray=stray)


def departed(state: State, event: Event) -> Decision:
    """Not listed: the server lives elsewhere. Never start it here."""
    state = msgspec.structs.replace(state, reason=None, message=None)
    return _final(state, Status.COMPLETED, cleanup=Effect.TRASH_DEPARTED if state.delete_requested else None)


def still_ours(state: State, event: Event) -> Decision:
    """S3b, S3c: listed after `failure` was answered: only this permits a start."""
    state = _because_or(state, event, *_NOT_DONE)
    return _final(state, _undone(state), restore=state.restart_after_cancel)


def listed_after_all(state: State, event: Event) -> Decision:
    """S3d: 200 or a DELETE, yet the panel still lists the server here: in doubt as before.

    After a DELETE the upload is still open; the hold of S7 counts on its being cut.
    """
    state = _because_or(state, event, "panel.refused", "The destination answered 200, but the panel did not move it.")
    return _with(state, Stage.REPORTING_FAILURE, Effect.CUT_UPLOAD, Effect.TELL_FAILURE)


def _without_call(state: State) -> State:
    """The call under way is stale and not made any more; if it is out it may still land (D9)."""
    return msgspec.structs.replace(state, stray=True, call=state.call + 1)


def resolved_source(state: State, event: Event) -> Decision:
    assert isinstance(event, on.Resolved)
    state = _without_call(state)
    new, effects = departed(state, event) if event.outcome == "completed" else still_ours(state, event)
    return new, (Effect.CUT_UPLOAD, *effects)


# -- destination -------------------------------------------------------------------------------------------------------
def not_received(state: State, event: Event) -> Decision:
    """D8: before the commit: staging removed, panel told."""
    state = _because_or(state, event, *_INTERRUPTED)
    tell = event.tell_panel if isinstance(event, on.AdmissionFailed) else True
    return _final(state, _undone(state), failure=tell, cleanup=Effect.REMOVE_STAGING)


def announce_again(state: State, event: Event) -> Decision:
    """D6b: no answer: keep everything, do not start. A cancel closes the window."""
    if state.cancel_requested:
        return _with(state, Stage.CHECKING_OWNER, Effect.ASK_OWNER, stray=True)
    return _with(state, Stage.ANNOUNCING, Effect.TELL_SUCCESS, stray=True)


def committed(state: State, event: Event) -> Decision:
    """D6: from here on the panel is told: by us, or by the daemon beside us."""
    if state.beside:
        return _with(state, Stage.HANDING_OVER, Effect.HAND_OVER)
    return _with(state, Stage.ANNOUNCING, Effect.TELL_SUCCESS)


def handed_over(state: State, event: Event) -> Decision:
    """H1: no answer of the daemon proves anything."""
    return _with(state, Stage.CONFIRMING_HANDOVER, Effect.ASK_OWNER, stray=state.stray or _may_land(event))


def hand_over_again(state: State, event: Event) -> Decision:
    """The daemon has nothing of it under way. A cancel closes the window."""
    mends = state.mends + isinstance(event, on.Mended)
    if state.cancel_requested:
        return _with(state, Stage.CHECKING_OWNER, Effect.ASK_OWNER, mends=mends)
    return _with(state, Stage.HANDING_OVER, Effect.HAND_OVER, mends=mends)


def not_handed_over(state: State, event: Event) -> Decision:
    """H3: the daemon holds what the panel did not give it: mended at most twice, then D6e, D6f."""
    if state.cancel_requested or state.mends >= _MOST_MENDS:
        return _with(state, Stage.WITHDRAWING, Effect.TELL_FAILURE)
    return _with(state, Stage.MENDING, Effect.MEND)


def check_owner_unanswered(state: State, event: Event) -> Decision:
    """D6d, H2: no `success` after a restart; no second hand-over where the first may still be at work."""
    return _with(state, Stage.CHECKING_OWNER, Effect.ASK_OWNER, stray=True)


def ours(state: State, event: Event) -> Decision:
    return _with(state, Stage.ACTIVATING, Effect.ACTIVATE)


def not_ours(state: State, event: Event) -> Decision:
    """D6f: listed nowhere near us after the transfer was closed."""
    return _with(_because_or(state, event, *_DISOWNED), Stage.DISCARDING, Effect.DISCARD)


def active(state: State, event: Event) -> Decision:
    """D7: a failure here changes no owner; it is reported, and the answer is 200."""
    changes: dict[str, str | None] = {"reason": None, "message": None}
    if isinstance(event, on.ActivationFailed):
        needs = _NEEDS_BY_CODE.get(event.code, _NEEDS_LOOK)
        changes = {"reason": event.code, "message": event.message, "needs": needs}
    return _final(msgspec.structs.replace(state, **changes), Status.COMPLETED)


def discarded(state: State, event: Event) -> Decision:
    return _final(state, _undone(state))


def resolved_destination(state: State, event: Event) -> Decision:
    assert isinstance(event, on.Resolved)
    state = _without_call(state)
    return ours(state, event) if event.outcome == "completed" else not_ours(state, event)


# -- both --------------------------------------------------------------------------------------------------------------
def paid(**debts: bool) -> Rule:
    def rule(state: State, event: Event) -> Decision:
        changes: dict[str, object] = dict(debts)
        if isinstance(event, on.RestoreFailed):
            changes["needs"] = "The server belongs to this node but could not be started again: start it by hand."
        if isinstance(event, on.CleanUpFailed):
            changes["delete_requested"] = False  # a later DELETE tries again; stale staging is swept at the next start
        if _may_land(event):
            changes["stray"] = True
        return _settled(msgspec.structs.replace(state, **changes))

    return rule


def failure_owed(state: State, event: Event) -> Decision:
    """S2: `failure` stays owed until the panel has answered it."""
    return _with(state, state.stage, Effect.TELL_FAILURE, stray=state.stray or _may_land(event))


def settle_again(state: State, event: Event) -> Decision:
    departed = state.status is Status.COMPLETED
    effects = [Effect.RESTORE_SERVER] * state.owes_restore
    effects += [Effect.TRASH_DEPARTED if departed else Effect.REMOVE_STAGING] * state.owes_cleanup
    effects += [Effect.TELL_FAILURE] * state.owes_failure
    return _with(state, state.stage, *effects, stray=state.stray or state.owes_failure)


def cool_again(state: State, event: Event) -> Decision:
    """Counted anew after a restart."""
    effects = [Effect.TRASH_DEPARTED] * state.owes_cleanup
    return _with(state, Stage.COOLING, *effects, Effect.HOLD_SLOT)


def end_again(state: State, event: Event) -> Decision:
    return state, (Effect.TRASH_DEPARTED,) * state.owes_cleanup


def deleted_at_last(state: State, event: Event) -> Decision:
    """S5: the panel deletes a server that has left: its volume goes to trash."""
    if not state.past_point or state.status is not Status.COMPLETED or state.delete_requested:
        return state, ()  # a server that did not leave: an ordinary deletion, not this transfer's concern
    new = msgspec.structs.replace(state, delete_requested=True, owes_cleanup=True)
    return new, (Effect.TRASH_DEPARTED,)
