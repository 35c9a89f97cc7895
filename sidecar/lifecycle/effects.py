"""What a transfer does. Imperative; every effect is idempotent, and its end comes back as an event.

The effects of one decision begin in their order. A call whose number is not the latest any more is not made.
"""

from __future__ import annotations

from enum import StrEnum


class Effect(StrEnum):
    # source
    STOP_SERVER = "stop_server"  # -> ServerStopped, StopFailed, CallerGone
    SEND_ARCHIVE = "send_archive"  # -> ArchiveSent, SendFailed
    FINISH_UPLOAD = "finish_upload"  # -> UploadAccepted, UploadUnsure
    CUT_UPLOAD = "cut_upload"  # at once: begins before the effects that follow it; -> UploadCut once it is gone
    RESTORE_SERVER = "restore_server"  # -> ServerRestored, RestoreFailed
    TRASH_DEPARTED = "trash_departed"  # -> CleanedUp, CleanUpFailed
    # destination
    ADMIT = "admit"  # -> Admitted, AdmissionFailed
    RECEIVE = "receive"  # -> BodyVerified, ReceiptFailed
    STOP_RECEIPT = "stop_receipt"  # -> ReceiptStopped
    PREPARE = "prepare"  # -> Prepared, PrepareFailed
    COMMIT = "commit"  # -> Committed, CommitFailed
    TELL_SUCCESS = "tell_success"  # -> Success*, SourceGone
    HAND_OVER = "hand_over"  # a numbered call -> HandedOver, HandOver*, SourceGone, OwnerListed
    MEND = "mend"  # -> Mended, MendAbandoned, MendFailed
    ACTIVATE = "activate"  # -> Activated, ActivationFailed
    DISCARD = "discard"  # -> Discarded, DiscardFailed
    REMOVE_STAGING = "remove_staging"  # -> CleanedUp, CleanUpFailed
    # both
    TELL_FAILURE = "tell_failure"  # -> Failure*
    ASK_OWNER = "ask_owner"  # -> Owner*
    HOLD_SLOT = "hold_slot"  # -> HoldOver


# Effects that are numbered calls: only the answer to the latest one counts.
CALLS = frozenset({Effect.TELL_SUCCESS, Effect.TELL_FAILURE, Effect.ASK_OWNER, Effect.HAND_OVER})
