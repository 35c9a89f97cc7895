"""The table: what every stage does with every event. `decide` reads it and nothing else.

    source       stopping -> sending -> awaiting_verdict -> confirming_departure -> settling
                                |               |                |      ^
                                |               `> reporting_failure -> asking_owner
                                `> cutting ...
    destination  admitting -> receiving -> preparing -> committing -> announcing -> confirming_arrival -> activating
                     `-----------`------------`> stopping_receipt        |               ^      `-> discarding
                                                                 checking_owner -> withdrawing
                 beside a node daemon: committing -> handing_over -> confirming_handover -> activating
                                                         |    ^- mending <-'           `-> withdrawing
                                                         `> checking_owner
    both         settling -> cooling -> ended

It is total: every pair of a stage and an event is a transition, `ignore` (it may come late, and changes nothing),
`refuse` (the caller gets 409) or `bug` (it cannot come; the transfer stops and its data is kept). Labels such as S1
and D6 name the rules of ownership in `docs/ARCHITECTURE.md`; `tests/model` checks exhaustively that they hold a world
together.

Pure: no await, no I/O, no clock, no randomness, no logging. The rules do not ask which end we are; the stages know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sidecar.lifecycle import events as on
from sidecar.lifecycle import rules
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import Event
from sidecar.lifecycle.rules import Decision, Rule, again, bug, go, ignore, refuse
from sidecar.lifecycle.stages import DESTINATION_STAGES, SOURCE_STAGES, Stage
from sidecar.lifecycle.state import State

Table = Mapping[tuple[Stage, type[Event]], Rule]

_LATE_UPLOAD: Final = (on.UploadAccepted, on.UploadUnsure, on.UploadCut, on.ArchiveSent, on.SendFailed)
_LATE_RECEIPT: Final = (on.Admitted, on.BodyVerified, on.Prepared, on.ReceiptStopped)
_LATE_STOP: Final = (on.CallerGone,)
_OUTCOMES: Final = tuple(event for event in on.EVENTS if event.is_outcome)
_LATE_OTHERS: Final = tuple(event for event in _OUTCOMES if not event.__name__.startswith("Failure"))

_Row = dict[type[Event] | tuple[type[Event], ...], Rule]

_ROWS: Final[dict[Stage, _Row]] = {
    Stage.STOPPING: {
        (on.ServerStopped, on.StopFailed, on.CallerGone): rules.stop_ended,
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,  # the engine cancels first
        on.Restarted: rules.interrupted_stop,
    },
    Stage.SENDING: {
        on.ArchiveSent: rules.past_point,
        on.SendFailed: rules.not_sent,
        on.CancelRequested: rules.cancel(Stage.CUTTING, Effect.CUT_UPLOAD),
        on.ServerDeleted: ignore,
        on.Restarted: rules.not_sent,
        _LATE_STOP: ignore,
    },
    Stage.CUTTING: {
        (on.UploadCut, on.SendFailed): rules.not_sent,
        on.ArchiveSent: ignore,
        on.CancelRequested: refuse,
        on.ServerDeleted: ignore,
        on.Restarted: rules.not_sent,
        _LATE_STOP: ignore,
    },
    Stage.AWAITING_VERDICT: {
        on.UploadAccepted: go(Stage.CONFIRMING_DEPARTURE, Effect.ASK_OWNER),
        on.UploadUnsure: rules.unsure,
        on.CancelRequested: rules.cancel(Stage.REPORTING_FAILURE, Effect.CUT_UPLOAD, Effect.TELL_FAILURE),
        on.ServerDeleted: rules.deleted_in_doubt,
        on.Restarted: rules.unsure_after_restart,
        on.Resolved: refuse,
        _LATE_STOP: ignore,
    },
    Stage.CONFIRMING_DEPARTURE: {
        on.OwnerNotListed: rules.departed,
        on.OwnerListed: rules.listed_after_all,
        on.OwnerUnanswered: again(Effect.ASK_OWNER),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: rules.deleted_in_doubt,
        on.Resolved: rules.resolved_source,
        on.Restarted: rules.unsure_after_restart,
        _LATE_UPLOAD + _LATE_STOP: ignore,
    },
    Stage.REPORTING_FAILURE: {
        (on.FailureAccepted, on.FailureRefused): go(Stage.ASKING_OWNER, Effect.ASK_OWNER),
        (on.FailureRefusedEarly, on.FailureUnanswered): again(Effect.TELL_FAILURE),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: rules.deleted_in_doubt,
        on.Resolved: rules.resolved_source,
        on.Restarted: rules.unsure_after_restart,
        _LATE_UPLOAD + _LATE_STOP: ignore,
    },
    Stage.ASKING_OWNER: {
        on.OwnerListed: rules.still_ours,
        on.OwnerNotListed: rules.departed,
        on.OwnerUnanswered: again(Effect.ASK_OWNER),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: rules.deleted_in_doubt,
        on.Resolved: rules.resolved_source,
        on.Restarted: rules.unsure_after_restart,
        _LATE_UPLOAD + _LATE_STOP: ignore,
    },
    Stage.ADMITTING: {
        on.Admitted: go(Stage.RECEIVING, Effect.RECEIVE),
        on.AdmissionFailed: rules.not_received,
        on.CancelRequested: rules.cancel(Stage.STOPPING_RECEIPT, Effect.STOP_RECEIPT),
        on.ServerDeleted: ignore,
        on.Restarted: rules.not_received,
    },
    Stage.RECEIVING: {
        on.BodyVerified: go(Stage.PREPARING, Effect.PREPARE),
        on.ReceiptFailed: rules.not_received,
        on.CancelRequested: rules.cancel(Stage.STOPPING_RECEIPT, Effect.STOP_RECEIPT),
        on.ServerDeleted: ignore,
        on.Restarted: rules.not_received,
    },
    Stage.STOPPING_RECEIPT: {
        (on.ReceiptStopped, on.ReceiptFailed, on.AdmissionFailed, on.PrepareFailed): rules.not_received,
        (on.Admitted, on.BodyVerified, on.Prepared): ignore,
        on.CancelRequested: refuse,
        on.ServerDeleted: ignore,
        on.Restarted: rules.not_received,
    },
    Stage.PREPARING: {
        on.Prepared: go(Stage.COMMITTING, Effect.COMMIT),
        on.PrepareFailed: rules.not_received,
        on.CancelRequested: rules.cancel(Stage.STOPPING_RECEIPT, Effect.STOP_RECEIPT),
        on.ServerDeleted: ignore,
        on.Restarted: rules.not_received,
    },
    Stage.COMMITTING: {
        on.Committed: rules.committed,
        on.CommitFailed: again(Effect.COMMIT),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: refuse,
        on.Restarted: again(Effect.COMMIT),
        _LATE_RECEIPT: ignore,
    },
    Stage.ANNOUNCING: {
        (on.SuccessAccepted, on.SuccessRefused): go(Stage.CONFIRMING_ARRIVAL, Effect.ASK_OWNER),
        on.SuccessRefusedEarly: again(Effect.TELL_SUCCESS),
        on.SuccessUnanswered: rules.announce_again,
        on.SourceGone: go(Stage.CHECKING_OWNER, Effect.ASK_OWNER),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: rules.resolved_destination,
        on.Restarted: rules.check_owner_unanswered,
        _LATE_RECEIPT: ignore,
    },
    Stage.HANDING_OVER: {
        on.HandedOver: rules.handed_over,
        on.HandOverUnanswered: rules.check_owner_unanswered,
        on.HandOverUnsent: rules.hand_over_again,
        on.SourceGone: go(Stage.CHECKING_OWNER, Effect.ASK_OWNER),
        on.OwnerListed: rules.ours,
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: rules.resolved_destination,
        on.Restarted: rules.check_owner_unanswered,
        _LATE_RECEIPT: ignore,
    },
    Stage.CONFIRMING_HANDOVER: {
        on.OwnerListed: rules.ours,
        on.OwnerNotListed: rules.not_handed_over,
        on.OwnerUnanswered: again(Effect.ASK_OWNER),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: rules.resolved_destination,
        on.Restarted: rules.check_owner_unanswered,
        _LATE_RECEIPT: ignore,
    },
    Stage.MENDING: {
        on.Mended: rules.hand_over_again,
        on.MendAbandoned: go(Stage.CHECKING_OWNER, Effect.ASK_OWNER),
        on.MendFailed: again(Effect.MEND),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: refuse,  # the volume may be aside, and the daemon may be deleting what it finds in its place
        on.Restarted: again(Effect.MEND),
        _LATE_RECEIPT: ignore,
    },
    Stage.CHECKING_OWNER: {
        on.OwnerListed: rules.ours,
        on.OwnerNotListed: go(Stage.WITHDRAWING, Effect.TELL_FAILURE),
        on.OwnerUnanswered: again(Effect.ASK_OWNER),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: rules.resolved_destination,
        on.Restarted: rules.check_owner_unanswered,
        _LATE_RECEIPT: ignore,
    },
    Stage.WITHDRAWING: {
        (on.FailureAccepted, on.FailureRefused): go(Stage.CONFIRMING_ARRIVAL, Effect.ASK_OWNER),
        (on.FailureRefusedEarly, on.FailureUnanswered): again(Effect.TELL_FAILURE),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: rules.resolved_destination,
        on.Restarted: rules.check_owner_unanswered,
        _LATE_RECEIPT: ignore,
    },
    Stage.CONFIRMING_ARRIVAL: {
        on.OwnerListed: rules.ours,
        on.OwnerNotListed: rules.not_ours,
        on.OwnerUnanswered: again(Effect.ASK_OWNER),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: rules.resolved_destination,
        on.Restarted: rules.check_owner_unanswered,
        _LATE_RECEIPT: ignore,
    },
    Stage.ACTIVATING: {
        (on.Activated, on.ActivationFailed): rules.active,
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: refuse,
        on.Restarted: again(Effect.ACTIVATE),
        _LATE_RECEIPT + _OUTCOMES: ignore,
    },
    Stage.DISCARDING: {
        on.Discarded: rules.discarded,
        on.DiscardFailed: again(Effect.DISCARD),
        on.CancelRequested: rules.cancel(None),
        on.ServerDeleted: ignore,
        on.Resolved: refuse,
        on.Restarted: again(Effect.DISCARD),
        _LATE_RECEIPT + _OUTCOMES: ignore,
    },
    Stage.SETTLING: {
        (on.FailureAccepted, on.FailureRefused, on.FailureGivenUp): rules.paid(owes_failure=False),
        (on.FailureRefusedEarly, on.FailureUnanswered): rules.failure_owed,
        (on.ServerRestored, on.RestoreFailed): rules.paid(owes_restore=False),
        (on.CleanedUp, on.CleanUpFailed): rules.paid(owes_cleanup=False),
        on.CancelRequested: refuse,
        on.Resolved: refuse,
        on.ServerDeleted: rules.deleted_at_last,
        on.Restarted: rules.settle_again,
        _LATE_UPLOAD + _LATE_RECEIPT + _LATE_STOP + _LATE_OTHERS: ignore,
        (on.AdmissionFailed, on.ReceiptFailed, on.PrepareFailed): ignore,
    },
    Stage.COOLING: {
        on.HoldOver: go(Stage.ENDED),
        (on.CleanedUp, on.CleanUpFailed): rules.paid(owes_cleanup=False),
        on.CancelRequested: refuse,
        on.Resolved: refuse,
        on.ServerDeleted: rules.deleted_at_last,
        on.Restarted: rules.cool_again,
        _LATE_UPLOAD + _LATE_RECEIPT + _LATE_STOP + _OUTCOMES: ignore,
        (on.AdmissionFailed, on.ReceiptFailed, on.PrepareFailed): ignore,
    },
    Stage.ENDED: {
        (on.CleanedUp, on.CleanUpFailed): rules.paid(owes_cleanup=False),
        on.CancelRequested: refuse,
        on.Resolved: refuse,
        on.ServerDeleted: rules.deleted_at_last,
        on.Restarted: rules.end_again,
        _LATE_UPLOAD + _LATE_RECEIPT + _LATE_STOP + _OUTCOMES: ignore,
        (on.AdmissionFailed, on.ReceiptFailed, on.PrepareFailed, on.HoldOver): ignore,
    },
}


def _total() -> dict[tuple[Stage, type[Event]], Rule]:
    table: dict[tuple[Stage, type[Event]], Rule] = {}
    for stage in Stage:
        for keys, rule in _ROWS[stage].items():
            for event in keys if isinstance(keys, tuple) else (keys,):
                if (stage, event) in table:
                    raise ValueError(f"{stage} says twice what {event.__name__} does")
                table[stage, event] = rule
        for event in on.EVENTS:
            missing = refuse if event is on.Resolved else bug  # nothing is in doubt there
            table.setdefault((stage, event), missing)
    return table


TABLE: Final[Table] = _total()


def decide(state: State, event: Event, table: Table = TABLE) -> Decision:
    """The new state and what is to be done. An outcome of an earlier call is stale and changes nothing.

    Args: `table` is another one only where it is to be shown what a rule is good for.
    Raises IllegalTransition where the table says `bug`: a programming error.
    """
    if event.is_outcome and getattr(event, "call", 0) != state.call:
        return state, ()
    return table[state.stage, type(event)](state, event)


def refuses(state: State, event: Event) -> bool:
    """Whether the caller of `event` is to be told 409. Asked before `decide`."""
    rule = TABLE[state.stage, type(event)]
    if rule is refuse:
        return True
    return isinstance(event, on.CancelRequested) and state.cancel_requested


assert set(_ROWS) == set(Stage) and SOURCE_STAGES | DESTINATION_STAGES  # a stage without a row is a bug found at import
