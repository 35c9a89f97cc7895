"""The table, pair by pair. What each stage does is written out here, so that a change of it is seen and reviewed."""

from __future__ import annotations

from typing import Final

import msgspec
import pytest

from sidecar.errors import CODES, IllegalTransition
from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import CALLS, Effect
from sidecar.lifecycle.events import EVENTS, Event
from sidecar.lifecycle.rules import bug, ignore, refuse
from sidecar.lifecycle.stages import DESTINATION_STAGES, IN_DOUBT, SHARED_STAGES, SOURCE_STAGES, Stage, stages_of
from sidecar.lifecycle.state import State, first
from sidecar.lifecycle.statuses import Role, Status
from sidecar.lifecycle.table import TABLE, decide, refuses
from tests.lifecycle import draw
from tests.lifecycle.states import CALL, every_case, states_in

UPLOAD: Final = "SendFailed UploadUnsure CallerGone ArchiveSent UploadCut UploadAccepted"
RECEIPT: Final = "Admitted BodyVerified Prepared ReceiptStopped"
SUCCESS: Final = "SuccessAccepted SuccessRefused SuccessRefusedEarly SuccessUnanswered SourceGone"
FAILURE: Final = "FailureAccepted FailureRefused FailureRefusedEarly FailureUnanswered FailureGivenUp"
HAND_OVER: Final = "HandedOver HandOverUnanswered HandOverUnsent"
OWNER: Final = "OwnerListed OwnerNotListed OwnerUnanswered"
LATE: Final = f"{UPLOAD} {RECEIPT} AdmissionFailed ReceiptFailed PrepareFailed {SUCCESS} {OWNER} {HAND_OVER}"

# Where an event leads ("=": stays), what is refused and what is ignored. What is not named cannot come.
EXPECTED: Final[dict[Stage, dict[str, str]]] = {
    Stage.STOPPING: {
        "sending settling ended": "ServerStopped",
        "settling ended": "StopFailed CallerGone Restarted",
        "=": "CancelRequested",
        "refused": "Resolved",
        "ignored": "ServerDeleted",
    },
    Stage.SENDING: {
        "awaiting_verdict": "ArchiveSent",
        "settling": "SendFailed Restarted",
        "cutting": "CancelRequested",
        "refused": "Resolved",
        "ignored": "CallerGone ServerDeleted",
    },
    Stage.CUTTING: {
        "settling": "SendFailed UploadCut Restarted",
        "refused": "CancelRequested Resolved",
        "ignored": "CallerGone ArchiveSent ServerDeleted",
    },
    Stage.AWAITING_VERDICT: {
        "confirming_departure": "UploadAccepted ServerDeleted",
        "reporting_failure": "UploadUnsure CancelRequested Restarted",
        "refused": "Resolved",
        "ignored": "CallerGone",
    },
    Stage.CONFIRMING_DEPARTURE: {
        "settling cooling ended": "OwnerNotListed",
        "reporting_failure": "OwnerListed Restarted",
        "settling cooling": "Resolved",
        "=": "OwnerUnanswered ServerDeleted CancelRequested",
        "ignored": UPLOAD,
    },
    Stage.REPORTING_FAILURE: {
        "asking_owner": "FailureAccepted FailureRefused",
        "confirming_departure": "ServerDeleted",
        "settling cooling": "Resolved",
        "=": "FailureRefusedEarly FailureUnanswered CancelRequested Restarted",
        "ignored": UPLOAD,
    },
    Stage.ASKING_OWNER: {
        "settling cooling": "OwnerListed Resolved",
        "settling cooling ended": "OwnerNotListed",
        "confirming_departure": "ServerDeleted",
        "reporting_failure": "Restarted",
        "=": "OwnerUnanswered CancelRequested",
        "ignored": UPLOAD,
    },
    Stage.ADMITTING: {
        "receiving": "Admitted",
        "settling": "AdmissionFailed Restarted",
        "stopping_receipt": "CancelRequested",
        "refused": "Resolved",
        "ignored": "ServerDeleted",
    },
    Stage.RECEIVING: {
        "preparing": "BodyVerified",
        "settling": "ReceiptFailed Restarted",
        "stopping_receipt": "CancelRequested",
        "refused": "Resolved",
        "ignored": "ServerDeleted",
    },
    Stage.STOPPING_RECEIPT: {
        "settling": "AdmissionFailed ReceiptFailed PrepareFailed ReceiptStopped Restarted",
        "refused": "CancelRequested Resolved",
        "ignored": "ServerDeleted Admitted BodyVerified Prepared",
    },
    Stage.PREPARING: {
        "committing": "Prepared",
        "settling": "PrepareFailed Restarted",
        "stopping_receipt": "CancelRequested",
        "refused": "Resolved",
        "ignored": "ServerDeleted",
    },
    Stage.COMMITTING: {
        "announcing handing_over": "Committed",
        "=": "CommitFailed CancelRequested Restarted",
        "refused": "Resolved",
        "ignored": f"ServerDeleted {RECEIPT}",
    },
    Stage.ANNOUNCING: {
        "confirming_arrival": "SuccessAccepted SuccessRefused",
        "= checking_owner": "SuccessUnanswered",
        "checking_owner": "SourceGone Restarted",
        "activating discarding": "Resolved",
        "=": "SuccessRefusedEarly CancelRequested",
        "ignored": f"ServerDeleted {RECEIPT}",
    },
    Stage.HANDING_OVER: {
        "confirming_handover": "HandedOver",
        "checking_owner": "HandOverUnanswered SourceGone Restarted",
        "= checking_owner": "HandOverUnsent",
        "activating": "OwnerListed",
        "activating discarding": "Resolved",
        "=": "CancelRequested",
        "ignored": f"ServerDeleted {RECEIPT}",
    },
    Stage.CONFIRMING_HANDOVER: {
        "activating": "OwnerListed",
        "mending withdrawing": "OwnerNotListed",
        "checking_owner": "Restarted",
        "activating discarding": "Resolved",
        "=": "OwnerUnanswered CancelRequested",
        "ignored": f"ServerDeleted {RECEIPT}",
    },
    Stage.MENDING: {
        "handing_over checking_owner": "Mended",
        "checking_owner": "MendAbandoned",
        "=": "MendFailed CancelRequested Restarted",
        "refused": "Resolved",
        "ignored": f"ServerDeleted {RECEIPT}",
    },
    Stage.CHECKING_OWNER: {
        "activating": "OwnerListed",
        "withdrawing": "OwnerNotListed",
        "activating discarding": "Resolved",
        "=": "OwnerUnanswered CancelRequested Restarted",
        "ignored": f"ServerDeleted {RECEIPT}",
    },
    Stage.WITHDRAWING: {
        "confirming_arrival": "FailureAccepted FailureRefused",
        "checking_owner": "Restarted",
        "activating discarding": "Resolved",
        "=": "FailureRefusedEarly FailureUnanswered CancelRequested",
        "ignored": f"ServerDeleted {RECEIPT}",
    },
    Stage.CONFIRMING_ARRIVAL: {
        "activating": "OwnerListed",
        "discarding": "OwnerNotListed",
        "checking_owner": "Restarted",
        "activating discarding": "Resolved",
        "=": "OwnerUnanswered CancelRequested",
        "ignored": f"ServerDeleted {RECEIPT}",
    },
    Stage.ACTIVATING: {
        "cooling ended": "Activated ActivationFailed",
        "=": "CancelRequested Restarted",
        "refused": "Resolved",
        "ignored": f"ServerDeleted {RECEIPT} {SUCCESS} {FAILURE} {OWNER} {HAND_OVER}",
    },
    Stage.DISCARDING: {
        "cooling ended": "Discarded",
        "=": "DiscardFailed CancelRequested Restarted",
        "refused": "Resolved",
        "ignored": f"ServerDeleted {RECEIPT} {SUCCESS} {FAILURE} {OWNER} {HAND_OVER}",
    },
    Stage.SETTLING: {
        "= cooling ended": "FailureAccepted FailureRefused ServerRestored RestoreFailed CleanedUp CleanUpFailed",
        "= cooling": "FailureGivenUp",
        "=": "FailureRefusedEarly FailureUnanswered ServerDeleted Restarted",
        "refused": "CancelRequested Resolved",
        "ignored": LATE,
    },
    Stage.COOLING: {
        "ended": "HoldOver",
        "=": "CleanedUp CleanUpFailed ServerDeleted Restarted",
        "refused": "CancelRequested Resolved",
        "ignored": f"{LATE} {FAILURE}",
    },
    Stage.ENDED: {
        "=": "CleanedUp CleanUpFailed ServerDeleted Restarted",
        "refused": "CancelRequested Resolved",
        "ignored": f"{LATE} {FAILURE} HoldOver",
    },
}


@pytest.mark.parametrize("stage", Stage)
def test_every_pair_of_the_stage(stage: Stage) -> None:
    expected = {name: where for where, names in EXPECTED[stage].items() for name in names.split()}
    for event in EVENTS:
        rule, where = TABLE[stage, event], expected.pop(event.__name__, "bug")
        if where in ("bug", "ignored", "refused"):
            assert rule is {"bug": bug, "ignored": ignore, "refused": refuse}[where], event.__name__
        else:
            assert rule not in (bug, ignore, refuse), event.__name__
            names = {stage.value if name == "=" else name for name in where.split()}
            assert ({one.value for one in draw.does(stage, event).stages} or {stage.value}) == names, event.__name__
    assert not expected, "named, but no event"


def test_the_table_is_total() -> None:
    assert set(TABLE) == {(stage, event) for stage in Stage for event in EVENTS}
    assert len(EVENTS) == len({event.__name__ for event in EVENTS}) > 30
    assert set(Stage) == SOURCE_STAGES | DESTINATION_STAGES | SHARED_STAGES
    assert not SOURCE_STAGES & DESTINATION_STAGES
    assert not IN_DOUBT & SHARED_STAGES


def test_a_stage_never_leads_to_the_other_end() -> None:
    for state, event in every_case():
        if TABLE[state.stage, type(event)] is not bug:
            new, _ = decide(state, event)
            assert new.stage in stages_of(state.role)
            assert new.role is state.role


def test_final_statuses_never_change() -> None:
    for state, event in every_case():
        if state.is_final and TABLE[state.stage, type(event)] is not bug:
            assert decide(state, event)[0].status is state.status


def test_statuses_only_go_forward() -> None:
    """pending -> processing -> cancelling -> a final one; any of them may be left out but the last."""
    order = {Status.PENDING: 0, Status.PROCESSING: 1, Status.CANCELLING: 2}
    for state, event in every_case():
        if TABLE[state.stage, type(event)] is not bug:
            new, _ = decide(state, event)
            assert order.get(new.status, 3) >= order.get(state.status, 3), (state, event)
            assert new.is_final == (new.stage in SHARED_STAGES)


def test_cancel_is_refused_exactly_when_cancelling_or_final() -> None:
    for stage in Stage:
        for state in states_in(stage):
            refused = refuses(state, on.CancelRequested())
            assert refused == (state.status is Status.CANCELLING or state.is_final), state
            if not refused:
                assert decide(state, on.CancelRequested())[0].status is Status.CANCELLING
            else:
                assert decide(state, on.CancelRequested()) == (state, ())


def test_an_operators_word_is_taken_only_in_doubt() -> None:
    for stage in Stage:
        for state in states_in(stage):
            if not refuses(state, on.Resolved()):
                assert state.in_doubt


def test_a_call_has_a_number_of_its_own() -> None:
    for state, event in every_case():
        if TABLE[state.stage, type(event)] is not bug:
            new, effects = decide(state, event)
            calls = CALLS.intersection(effects)
            assert len(calls) <= 1
            if calls:
                assert new.call == state.call + 1


@pytest.mark.parametrize("event", [event for event in EVENTS if event.is_outcome])
@pytest.mark.parametrize("call", [0, CALL - 1, CALL + 1])
def test_a_stale_outcome_changes_nothing(event: type[Event], call: int) -> None:
    stale = msgspec.structs.replace(event(), call=call)
    for stage in Stage:
        for state in states_in(stage):
            assert decide(state, stale) == (state, ())


def test_a_bug_is_told() -> None:
    with pytest.raises(IllegalTransition, match="Committed in stage sending"):
        decide(State(role=Role.SOURCE, stage=Stage.SENDING), on.Committed())


def test_nothing_is_started_or_trashed_in_doubt() -> None:
    """Nor staged bytes removed. A decision that ends the doubt may do so."""
    harmful = {Effect.RESTORE_SERVER, Effect.ACTIVATE, Effect.TRASH_DEPARTED, Effect.DISCARD, Effect.REMOVE_STAGING}
    for state, event in every_case():
        if TABLE[state.stage, type(event)] is not bug:
            new, effects = decide(state, event)
            if new.in_doubt:
                assert not harmful.intersection(effects)
                assert not new.may_run_server


def test_a_server_is_started_only_where_it_may_run() -> None:
    for state, event in every_case():
        if TABLE[state.stage, type(event)] is not bug:
            new, effects = decide(state, event)
            if {Effect.RESTORE_SERVER, Effect.ACTIVATE}.intersection(effects):
                assert new.may_run_server


def test_a_debt_has_its_effect() -> None:
    """What a state comes to owe is begun by the same decision, and begun again after a restart."""
    for state, event in every_case():
        if TABLE[state.stage, type(event)] is not bug:
            new, effects = decide(state, event)
            for debt, means in (
                ("owes_failure", {Effect.TELL_FAILURE}),
                ("owes_restore", {Effect.RESTORE_SERVER}),
                ("owes_cleanup", {Effect.TRASH_DEPARTED, Effect.REMOVE_STAGING}),
            ):
                begins = getattr(new, debt) and (isinstance(event, on.Restarted) or not getattr(state, debt))
                if begins:
                    assert means.intersection(effects), (state, event)


def test_a_failure_keeps_its_first_reason() -> None:
    state, _ = decide(
        State(role=Role.SOURCE, stage=Stage.AWAITING_VERDICT, status=Status.PROCESSING, past_point=True),
        on.UploadUnsure(code="peer.stalled", message="It took no byte."),
    )
    state, _ = decide(state, on.FailureAccepted(call=state.call))
    state, _ = decide(state, on.OwnerListed(call=state.call))
    assert (state.status, state.reason, state.message) == (Status.FAILED, "peer.stalled", "It took no byte.")


def test_a_failed_status_has_a_reason_and_a_completed_one_has_none() -> None:
    for state, event in every_case():
        if TABLE[state.stage, type(event)] is not bug and not state.is_final:
            new, _ = decide(state, event)
            if new.is_final and not isinstance(event, on.ActivationFailed):
                assert (new.reason is None) == (new.status is Status.COMPLETED), (state, event)
                assert new.reason is None or new.reason in CODES


@pytest.mark.parametrize("role", Role)
def test_the_first_state(role: Role) -> None:
    state = first(role)
    assert state.status is Status.PENDING
    assert state.holds_slot
    assert not state.may_run_server


def test_the_page_is_current() -> None:
    assert draw.PAGE.read_text(encoding="utf-8") == draw.page(), "write it anew: python -m tests.lifecycle.draw"
