"""The rules of ownership that concern the table, one test each, by their labels."""

# ruff: noqa: N802 (a rule is called as it is labelled)
from __future__ import annotations

from typing import Final

import msgspec
import pytest

from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import Event
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State, first
from sidecar.lifecycle.statuses import Role, Status
from sidecar.lifecycle.table import decide, refuses

Told = tuple[State, list[Effect]]


def tell(state: State, *events: Event) -> Told:
    """Tell it the events in turn; outcomes answer the latest call. Returns the last decision's effects."""
    effects: tuple[Effect, ...] = ()
    for event in events:
        if event.is_outcome:
            event = msgspec.structs.replace(event, call=state.call)
        state, effects = decide(state, event)
    return state, list(effects)


SOURCE: Final = first(Role.SOURCE)
DESTINATION: Final = first(Role.DESTINATION)
TO_THE_POINT: Final = (on.ServerStopped(), on.ArchiveSent())
SENDING: Final = tell(SOURCE, on.ServerStopped())[0]
AWAITING: Final = tell(SOURCE, *TO_THE_POINT)[0]
REPORTING: Final = tell(AWAITING, on.UploadUnsure())[0]
ASKING: Final = tell(REPORTING, on.FailureRefused())[0]
RECEIVING: Final = tell(DESTINATION, on.Admitted())[0]
PREPARING: Final = tell(RECEIVING, on.BodyVerified())[0]
COMMITTING: Final = tell(PREPARING, on.Prepared())[0]
ANNOUNCING: Final = tell(COMMITTING, on.Committed())[0]
WITHDRAWING: Final = tell(ANNOUNCING, on.SourceGone(), on.OwnerNotListed())[0]


BESIDE: Final = tell(
    first(Role.DESTINATION, beside=True), on.Admitted(), on.BodyVerified(), on.Prepared(), on.Committed()
)[0]
HANDED_OVER: Final = tell(BESIDE, on.HandedOver())[0]
MENDING: Final = tell(HANDED_OVER, on.OwnerNotListed())[0]


def test_a_transfer_that_goes_well() -> None:
    source, effects = tell(AWAITING, on.ServerDeleted(), on.OwnerNotListed())
    assert (source.status, effects) == (Status.COMPLETED, [Effect.TRASH_DEPARTED])
    assert tell(source, on.CleanedUp())[0].stage is Stage.ENDED
    destination, effects = tell(ANNOUNCING, on.SuccessAccepted(), on.OwnerListed())
    assert effects == [Effect.ACTIVATE]
    destination, effects = tell(destination, on.Activated())
    assert (destination.status, destination.stage, effects) == (Status.COMPLETED, Stage.ENDED, [])


# -- the source -------------------------------------------------------------------------------------------------------
def test_S1_the_point_is_in_the_state_that_is_journaled_before_the_boundary_goes_out() -> None:
    assert not SENDING.past_point
    state, effects = tell(SENDING, on.ArchiveSent())
    assert state.past_point
    assert state.in_doubt
    assert effects == [Effect.FINISH_UPLOAD]


def test_S1_a_restart_after_the_point_is_in_doubt_and_one_before_it_is_not() -> None:
    after, effects = tell(AWAITING, on.Restarted())
    assert after.in_doubt
    assert Effect.RESTORE_SERVER not in effects
    before, effects = tell(SENDING, on.Restarted())
    assert before.status is Status.FAILED
    assert Effect.RESTORE_SERVER in effects


@pytest.mark.parametrize("event", [on.SendFailed(), on.Restarted()])
def test_S2_before_the_point_a_failure_is_final_at_once_and_the_panel_is_owed_it(event: Event) -> None:
    state, effects = tell(SENDING, event)
    assert state.status is Status.FAILED
    assert state.may_run_server
    assert effects == [Effect.RESTORE_SERVER, Effect.TELL_FAILURE]
    state, _ = tell(state, on.ServerRestored())
    assert state.owes_failure
    assert state.holds_slot


def test_S2_the_debt_is_paid_only_by_an_answer_across_restarts_too() -> None:
    state, effects = tell(SENDING, on.SendFailed(), on.ServerRestored(), on.FailureUnanswered())
    assert effects == [Effect.TELL_FAILURE]
    state, effects = tell(state, on.Restarted())
    assert effects == [Effect.TELL_FAILURE]
    assert state.holds_slot
    for answer in (on.FailureAccepted(), on.FailureRefused()):
        paid, _ = tell(state, answer)
        assert not paid.owes_failure
        assert paid.stage is Stage.COOLING  # the unanswered one may still land (D9)


def test_S2_a_cancel_before_the_point_cuts_inside_the_archive_part() -> None:
    state, effects = tell(SENDING, on.CancelRequested())
    assert (state.stage, state.status, effects) == (Stage.CUTTING, Status.CANCELLING, [Effect.CUT_UPLOAD])
    assert Effect.FINISH_UPLOAD not in tell(state, on.ArchiveSent())[1]
    state, effects = tell(state, on.UploadCut())
    assert (state.status, effects) == (Status.CANCELLED, [Effect.RESTORE_SERVER, Effect.TELL_FAILURE])


@pytest.mark.parametrize("event", [on.StopFailed(), on.CallerGone(), on.Restarted()])
def test_S2_a_stop_that_failed_owes_the_panel_nothing_unless_it_had_its_202(event: Event) -> None:
    state, effects = tell(SOURCE, event)
    assert (state.status, effects) == (Status.FAILED, [Effect.RESTORE_SERVER])
    _, effects = tell(first(Role.SOURCE, respond_async=True), event)
    assert effects == [Effect.RESTORE_SERVER, Effect.TELL_FAILURE]


@pytest.mark.parametrize("event", [on.UploadUnsure(), on.CancelRequested(), on.Restarted()])
def test_S3a_anything_but_a_200_reports_failure_and_stays_stopped(event: Event) -> None:
    state, effects = tell(AWAITING, event)
    assert state.stage is Stage.REPORTING_FAILURE
    assert effects[-1] is Effect.TELL_FAILURE
    assert Effect.RESTORE_SERVER not in effects
    assert not state.is_final
    assert not state.may_run_server


def test_S3a_unreachable_it_is_told_for_ever() -> None:
    state = REPORTING
    for event in (on.FailureUnanswered(), on.FailureUnanswered(), on.Restarted(), on.FailureUnanswered()):
        state, effects = tell(state, event)
        assert (state.stage, effects) == (Stage.REPORTING_FAILURE, [Effect.TELL_FAILURE])


def test_S3b_failure_refused_asks_the_oracle() -> None:
    state, effects = tell(REPORTING, on.FailureRefused())
    assert (state.stage, effects) == (Stage.ASKING_OWNER, [Effect.ASK_OWNER])
    assert not state.may_run_server


def test_S3c_failure_accepted_asks_the_oracle_too() -> None:
    state, effects = tell(REPORTING, on.FailureAccepted())
    assert (state.stage, effects) == (Stage.ASKING_OWNER, [Effect.ASK_OWNER])
    assert not state.may_run_server


def test_S3c_only_listed_permits_a_start() -> None:
    state, effects = tell(ASKING, on.OwnerListed())
    assert (state.status, effects) == (Status.FAILED, [Effect.RESTORE_SERVER])
    state, effects = tell(ASKING, on.OwnerUnanswered())
    assert (state.stage, effects) == (Stage.ASKING_OWNER, [Effect.ASK_OWNER])
    state, effects = tell(ASKING, on.OwnerNotListed())
    assert (state.status, effects) == (Status.COMPLETED, [])
    assert not state.may_run_server


@pytest.mark.parametrize("event", [on.UploadAccepted(), on.ServerDeleted()])
def test_S3d_a_200_and_a_DELETE_are_confirmed_by_the_oracle(event: Event) -> None:
    state, effects = tell(AWAITING, event)
    assert (state.stage, effects) == (Stage.CONFIRMING_DEPARTURE, [Effect.ASK_OWNER])
    assert tell(state, on.OwnerNotListed())[0].status is Status.COMPLETED


def test_S3d_a_200_but_listed_is_in_doubt_and_the_upload_is_cut() -> None:
    state, effects = tell(AWAITING, on.UploadAccepted(), on.OwnerListed())
    assert (state.stage, effects) == (Stage.REPORTING_FAILURE, [Effect.CUT_UPLOAD, Effect.TELL_FAILURE])


def test_S3_a_cancel_in_doubt_may_end_as_completed() -> None:
    state, effects = tell(AWAITING, on.CancelRequested())
    assert (state.status, effects) == (Status.CANCELLING, [Effect.CUT_UPLOAD, Effect.TELL_FAILURE])
    assert tell(state, on.FailureRefused(), on.OwnerNotListed())[0].status is Status.COMPLETED
    assert tell(state, on.FailureAccepted(), on.OwnerListed())[0].status is Status.CANCELLED


@pytest.mark.parametrize("state", [REPORTING, ASKING])
def test_S3_an_operator_may_decide_and_the_call_under_way_is_stale(state: State) -> None:
    ours, effects = tell(state, on.Resolved("failed"))
    assert (ours.status, effects) == (Status.FAILED, [Effect.CUT_UPLOAD, Effect.RESTORE_SERVER])
    assert ours.call != state.call
    assert ours.stray
    gone, effects = tell(state, on.Resolved("completed"))
    assert (gone.status, gone.stage, effects) == (
        Status.COMPLETED,
        Stage.COOLING,
        [Effect.CUT_UPLOAD, Effect.HOLD_SLOT],
    )


def test_S4_an_early_409_before_the_point_does_not_pay_the_debt() -> None:
    state, effects = tell(SENDING, on.SendFailed(), on.ServerRestored(), on.FailureRefusedEarly())
    assert state.owes_failure
    assert effects == [Effect.TELL_FAILURE]


def test_S4b_only_the_answer_to_a_call_sent_after_the_30_s_decides() -> None:
    state, effects = tell(REPORTING, on.FailureRefusedEarly())
    assert (state.stage, effects) == (Stage.REPORTING_FAILURE, [Effect.TELL_FAILURE])
    early = on.FailureRefused(call=REPORTING.call)
    assert decide(state, early) == (state, ())  # the answer to the earlier call, read late


def test_S5_the_source_deletes_nothing_until_the_panels_DELETE() -> None:
    state, effects = tell(AWAITING, on.UploadAccepted(), on.OwnerNotListed())
    assert (state.stage, effects) == (Stage.ENDED, [])
    state, effects = tell(state, on.ServerDeleted())
    assert effects == [Effect.TRASH_DEPARTED]
    assert state.holds_slot, "no other transfer may bring the server back before its old volume is away"
    assert not tell(state, on.CleanedUp())[0].holds_slot
    assert tell(state, on.Restarted())[1] == [Effect.TRASH_DEPARTED]


def test_S5_a_DELETE_in_doubt_moves_nothing_before_the_oracle_has_spoken() -> None:
    for state in (AWAITING, REPORTING, ASKING):
        asked, effects = tell(state, on.ServerDeleted())
        assert effects == [Effect.ASK_OWNER]
        assert Effect.TRASH_DEPARTED in tell(asked, on.OwnerNotListed())[1]
        assert Effect.TRASH_DEPARTED not in tell(asked, on.OwnerListed())[1]


def test_S5_a_DELETE_of_a_server_that_did_not_leave_is_not_this_transfers_concern() -> None:
    state, _ = tell(ASKING, on.OwnerListed(), on.ServerRestored())
    assert tell(state, on.ServerDeleted()) == (state, [])


def test_S5_a_deletion_before_the_point_cancels_and_does_not_start_the_server() -> None:
    state, effects = tell(SENDING, on.CancelRequested(restart=False), on.UploadCut())
    assert (state.status, effects) == (Status.CANCELLED, [Effect.TELL_FAILURE])


def test_S7_after_a_failure_past_the_point_the_slot_is_kept() -> None:
    state, effects = tell(ASKING, on.OwnerListed(), on.ServerRestored())
    assert (state.stage, effects) == (Stage.COOLING, [Effect.HOLD_SLOT])
    assert state.holds_slot
    again, effects = tell(state, on.Restarted())
    assert (again, effects) == (state, [Effect.HOLD_SLOT])  # counted anew
    assert not tell(state, on.HoldOver())[0].holds_slot


def test_S7_does_not_concern_a_failure_before_the_point_or_a_departure() -> None:
    state, _ = tell(SENDING, on.SendFailed(), on.ServerRestored(), on.FailureAccepted())
    assert state.stage is Stage.ENDED
    assert tell(AWAITING, on.UploadAccepted(), on.OwnerNotListed())[0].stage is Stage.ENDED


# -- the destination --------------------------------------------------------------------------------------------------
def test_D1_the_slot_is_held_from_the_first_state_to_the_end() -> None:
    for state in (SOURCE, SENDING, AWAITING, REPORTING, DESTINATION, RECEIVING, ANNOUNCING, WITHDRAWING):
        assert state.holds_slot


def test_D2_a_transfer_that_the_panel_does_not_know_is_refused_in_silence() -> None:
    state, effects = tell(DESTINATION, on.AdmissionFailed(code="panel.refused", tell_panel=False))
    assert (state.status, state.reason, effects) == (Status.FAILED, "panel.refused", [Effect.REMOVE_STAGING])


def test_D4_a_failure_to_prepare_is_a_failed_transfer() -> None:
    state, effects = tell(PREPARING, on.PrepareFailed(code="environment.image"))
    assert (state.status, state.reason) == (Status.FAILED, "environment.image")
    assert effects == [Effect.REMOVE_STAGING, Effect.TELL_FAILURE]


def test_D4b_a_409_to_an_early_call_decides_nothing() -> None:
    state, effects = tell(ANNOUNCING, on.SuccessRefusedEarly())
    assert (state.stage, effects) == (Stage.ANNOUNCING, [Effect.TELL_SUCCESS])
    state, effects = tell(WITHDRAWING, on.FailureRefusedEarly())
    assert (state.stage, effects) == (Stage.WITHDRAWING, [Effect.TELL_FAILURE])


def test_D5_after_the_intent_a_crash_rolls_forward_only() -> None:
    for event in (on.Restarted(), on.CommitFailed()):
        state, effects = tell(COMMITTING, event)
        assert (state.stage, effects) == (Stage.COMMITTING, [Effect.COMMIT])
    assert tell(ANNOUNCING, on.Restarted())[1] == [Effect.ASK_OWNER]


def test_D6_the_panel_is_told_only_after_the_commit() -> None:
    assert tell(COMMITTING, on.Committed())[1] == [Effect.TELL_SUCCESS]


def test_D6a_success_refused_asks_the_oracle() -> None:
    state, effects = tell(ANNOUNCING, on.SuccessRefused())
    assert (state.stage, effects) == (Stage.CONFIRMING_ARRIVAL, [Effect.ASK_OWNER])
    assert tell(state, on.OwnerListed())[1] == [Effect.ACTIVATE]
    assert tell(state, on.OwnerNotListed())[1] == [Effect.DISCARD]


def test_D6b_success_unanswered_starts_nothing_and_is_told_again() -> None:
    state, effects = tell(ANNOUNCING, on.SuccessUnanswered())
    assert (state.stage, effects) == (Stage.ANNOUNCING, [Effect.TELL_SUCCESS])
    assert not state.may_run_server


def test_D6c_success_accepted_is_confirmed_by_the_oracle() -> None:
    state, effects = tell(ANNOUNCING, on.SuccessAccepted())
    assert (state.stage, effects) == (Stage.CONFIRMING_ARRIVAL, [Effect.ASK_OWNER])
    assert not state.may_run_server


@pytest.mark.parametrize("event", [on.Restarted(), on.SourceGone()])
def test_D6d_success_is_not_sent_after_a_restart_or_without_the_source(event: Event) -> None:
    state, effects = tell(ANNOUNCING, event)
    assert (state.stage, effects) == (Stage.CHECKING_OWNER, [Effect.ASK_OWNER])
    for later in (on.OwnerUnanswered(), on.Restarted(), on.OwnerNotListed(), on.OwnerListed()):
        assert Effect.TELL_SUCCESS not in tell(state, later)[1]


def test_D6e_not_listed_closes_the_transfer_with_failure_until_answered() -> None:
    state, effects = tell(ANNOUNCING, on.SourceGone(), on.OwnerNotListed())
    assert (state.stage, effects) == (Stage.WITHDRAWING, [Effect.TELL_FAILURE])
    state, effects = tell(state, on.FailureUnanswered())
    assert (state.stage, effects) == (Stage.WITHDRAWING, [Effect.TELL_FAILURE])
    assert tell(ANNOUNCING, on.SourceGone(), on.OwnerListed())[1] == [Effect.ACTIVATE]


@pytest.mark.parametrize("answer", [on.FailureAccepted(), on.FailureRefused()])
def test_D6f_then_the_oracle_is_asked_again_and_what_is_not_listed_goes_to_trash(answer: Event) -> None:
    state, effects = tell(WITHDRAWING, answer)
    assert (state.stage, effects) == (Stage.CONFIRMING_ARRIVAL, [Effect.ASK_OWNER])
    assert tell(state, on.OwnerListed())[1] == [Effect.ACTIVATE]
    state, effects = tell(state, on.OwnerNotListed())
    assert effects == [Effect.DISCARD]
    assert tell(state, on.DiscardFailed())[1] == [Effect.DISCARD]
    assert tell(state, on.Restarted())[1] == [Effect.DISCARD]
    state, _ = tell(state, on.Discarded())
    assert (state.status, state.reason) == (Status.FAILED, "transfer.disowned")


def test_D7_a_failed_activation_changes_no_owner() -> None:
    state, _ = tell(ANNOUNCING, on.SuccessAccepted(), on.OwnerListed(), on.ActivationFailed(code="environment.failed"))
    assert (state.status, state.reason) == (Status.COMPLETED, "environment.failed")
    assert state.may_run_server
    assert state.needs


def test_D7_a_daemon_that_must_be_restarted_is_named_as_the_remedy() -> None:
    failed = on.ActivationFailed(code="daemon.restart_needed")
    state, _ = tell(HANDED_OVER, on.OwnerListed(), failed)
    assert (state.status, state.stage, state.reason) == (Status.COMPLETED, Stage.ENDED, "daemon.restart_needed")
    assert "restart the node daemon" in (state.needs or "")


@pytest.mark.parametrize("event", [on.ReceiptFailed(code="archive.checksum"), on.Restarted()])
def test_D8_before_the_commit_staging_is_removed_and_the_panel_told(event: Event) -> None:
    state, effects = tell(RECEIVING, event)
    assert state.status is Status.FAILED
    assert effects == [Effect.REMOVE_STAGING, Effect.TELL_FAILURE]


def test_D8_a_cancel_before_the_commit_waits_for_the_receipt_to_stop() -> None:
    for state in (DESTINATION, RECEIVING, PREPARING):
        stopping, effects = tell(state, on.CancelRequested())
        assert (stopping.status, effects) == (Status.CANCELLING, [Effect.STOP_RECEIPT])
        done, effects = tell(stopping, on.ReceiptStopped())
        assert (done.status, effects) == (Status.CANCELLED, [Effect.REMOVE_STAGING, Effect.TELL_FAILURE])


def test_D8_after_the_commit_nothing_is_deleted_by_a_cancel() -> None:
    for state in (COMMITTING, ANNOUNCING, WITHDRAWING):
        cancelled, effects = tell(state, on.CancelRequested())
        assert (cancelled.stage, cancelled.status, effects) == (state.stage, Status.CANCELLING, [])
        assert refuses(cancelled, on.CancelRequested())


def test_D8_a_cancel_closes_the_window_for_another_success() -> None:
    state, effects = tell(ANNOUNCING, on.CancelRequested(), on.SuccessUnanswered())
    assert (state.stage, effects) == (Stage.CHECKING_OWNER, [Effect.ASK_OWNER])


def test_D9_a_call_that_was_given_up_keeps_the_slot_at_the_end() -> None:
    given_up = {
        "source": (SENDING, on.SendFailed(), on.ServerRestored(), on.FailureUnanswered(), on.FailureAccepted()),
        "source, departed": (REPORTING, on.FailureUnanswered(), on.FailureRefused(), on.OwnerNotListed()),
        "source, killed": (REPORTING, on.Restarted(), on.FailureRefused(), on.OwnerNotListed()),
        "destination": (RECEIVING, on.ReceiptFailed(), on.CleanedUp(), on.FailureGivenUp()),
        "destination, ours": (
            ANNOUNCING,
            on.SuccessUnanswered(),
            on.SuccessRefused(),
            on.OwnerListed(),
            on.Activated(),
        ),
        "destination, killed": (ANNOUNCING, on.Restarted(), on.OwnerListed(), on.Activated()),
    }
    for name, (state, *events) in given_up.items():
        ended, effects = tell(state, *events)  # type: ignore[arg-type]
        assert (ended.stage, effects) == (Stage.COOLING, [Effect.HOLD_SLOT]), name
        assert tell(ended, on.HoldOver())[0].stage is Stage.ENDED, name


# -- the hand-over to a local daemon ----------------------------------------------------------------------------------
def test_H_beside_a_daemon_only_the_daemon_tells_success() -> None:
    assert (BESIDE.stage, BESIDE.in_doubt, BESIDE.may_run_server) == (Stage.HANDING_OVER, True, False)
    assert tell(COMMITTING, on.Committed())[1] == [Effect.TELL_SUCCESS]
    committing = tell(first(Role.DESTINATION, beside=True), on.Admitted(), on.BodyVerified(), on.Prepared())[0]
    assert tell(committing, on.Committed())[1] == [Effect.HAND_OVER]


def test_H_what_is_listed_already_is_not_handed_over() -> None:
    assert tell(BESIDE, on.OwnerListed())[1] == [Effect.ACTIVATE]


@pytest.mark.parametrize("slow", [False, True])
def test_H1_no_answer_of_the_daemon_proves_anything(slow: bool) -> None:
    state, effects = tell(BESIDE, on.HandedOver(slow=slow))
    assert (state.stage, effects) == (Stage.CONFIRMING_HANDOVER, [Effect.ASK_OWNER])
    assert state.stray == slow, "a call that the daemon has given up can still land (D9)"
    assert not state.may_run_server
    assert tell(state, on.OwnerUnanswered())[1] == [Effect.ASK_OWNER]
    assert tell(state, on.OwnerListed())[1] == [Effect.ACTIVATE]
    assert Effect.DISCARD not in tell(state, on.OwnerNotListed())[1]


@pytest.mark.parametrize("event", [on.HandOverUnanswered(), on.Restarted()])
def test_H2_without_its_answer_the_daemon_and_the_volume_are_left_alone_until_the_transfer_is_closed(
    event: Event,
) -> None:
    state, effects = tell(BESIDE, event)
    assert (state.stage, state.stray, effects) == (Stage.CHECKING_OWNER, True, [Effect.ASK_OWNER])
    state, effects = tell(state, on.OwnerNotListed())
    assert effects == [Effect.TELL_FAILURE]
    state, effects = tell(state, on.FailureAccepted())
    assert effects == [Effect.ASK_OWNER]
    state, effects = tell(state, on.OwnerNotListed())
    assert effects == [Effect.DISCARD]
    assert tell(state, on.Discarded())[0].stage is Stage.COOLING, "its `success` may land for minutes"


def test_H2_a_late_success_of_an_unanswered_daemon_makes_the_server_ours() -> None:
    state, effects = tell(BESIDE, on.Restarted(), on.OwnerListed())
    assert effects == [Effect.ACTIVATE]
    state, effects = tell(state, on.Activated())
    assert (state.status, state.stage, effects) == (Status.COMPLETED, Stage.COOLING, [Effect.HOLD_SLOT])


def test_H2_what_was_not_sent_is_handed_over_again_unless_cancelled_or_without_the_source() -> None:
    state, effects = tell(BESIDE, on.HandOverUnsent())
    assert (state.stage, state.stray, effects) == (Stage.HANDING_OVER, False, [Effect.HAND_OVER])
    assert tell(BESIDE, on.CancelRequested(), on.HandOverUnsent())[1] == [Effect.ASK_OWNER]
    state, effects = tell(BESIDE, on.SourceGone())
    assert (state.stage, state.stray, effects) == (Stage.CHECKING_OWNER, False, [Effect.ASK_OWNER])


def test_H2_an_operators_word_makes_the_hand_over_stale_and_keeps_the_slot() -> None:
    state, effects = tell(BESIDE, on.Resolved("failed"))
    assert effects == [Effect.DISCARD]
    assert state.call != BESIDE.call
    assert tell(state, on.Discarded())[0].stage is Stage.COOLING


def test_H3_not_listed_is_mended_at_most_twice_then_the_transfer_is_closed() -> None:
    state = BESIDE
    for mends in (1, 2):
        state, effects = tell(state, on.HandedOver(), on.OwnerNotListed())
        assert (state.stage, effects) == (Stage.MENDING, [Effect.MEND])
        state, effects = tell(state, on.Mended())
        assert (state.stage, state.mends, effects) == (Stage.HANDING_OVER, mends, [Effect.HAND_OVER])
    state, effects = tell(state, on.HandedOver(), on.OwnerNotListed())
    assert (state.stage, effects) == (Stage.WITHDRAWING, [Effect.TELL_FAILURE])


def test_H3_a_cancel_ends_the_mending() -> None:
    assert tell(HANDED_OVER, on.CancelRequested(), on.OwnerNotListed())[1] == [Effect.TELL_FAILURE]
    assert tell(MENDING, on.CancelRequested(), on.Mended())[1] == [Effect.ASK_OWNER]


def test_H3_without_the_source_the_oracle_and_failure_decide() -> None:
    state, effects = tell(MENDING, on.MendAbandoned())
    assert (state.stage, effects) == (Stage.CHECKING_OWNER, [Effect.ASK_OWNER])
    assert tell(state, on.OwnerNotListed())[1] == [Effect.TELL_FAILURE]


@pytest.mark.parametrize("event", [on.MendFailed(code="daemon.unreachable"), on.Restarted()])
def test_H3_a_mending_that_was_begun_is_ended_before_anything_else(event: Event) -> None:
    state, effects = tell(MENDING, event)
    assert (state.stage, effects) == (Stage.MENDING, [Effect.MEND])
    assert refuses(state, on.Resolved("failed")), "the volume may be aside"
