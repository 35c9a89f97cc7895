"""The stages inside the documented statuses. A stage says where a transfer is, and which end of it we are."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sidecar.lifecycle.statuses import Role


class Stage(StrEnum):
    """Source and destination share the file; each stage belongs to one end, the last three to both."""

    # source
    STOPPING = "stopping"  # the server is being stopped; the panel has no answer yet
    SENDING = "sending"  # the archive is under way; nothing is decided
    CUTTING = "cutting"  # given up before the point of no return; the upload's threads are ending
    AWAITING_VERDICT = "awaiting_verdict"  # past the point (S1): in doubt, the upload is still open
    CONFIRMING_DEPARTURE = "confirming_departure"  # 200 or DELETE came: the oracle is asked (S3d)
    REPORTING_FAILURE = "reporting_failure"  # in doubt: `failure` is told until answered (S3a)
    ASKING_OWNER = "asking_owner"  # `failure` was answered: the oracle decides (S3b, S3c)
    # destination
    ADMITTING = "admitting"  # slot taken; the panel's configuration, the old volume and the disk are looked at
    RECEIVING = "receiving"  # the body goes into staging
    STOPPING_RECEIPT = "stopping_receipt"  # cancelled before the commit; the reader and writer threads are ending
    PREPARING = "preparing"  # verified; all that may fail without harm (D4)
    COMMITTING = "committing"  # the intent is journaled: roll forward only (D5)
    ANNOUNCING = "announcing"  # `success` is told while the source is connected (D6)
    HANDING_OVER = "handing_over"  # the local daemon is asked to adopt the volume; it tells the panel itself
    CONFIRMING_HANDOVER = "confirming_handover"  # the daemon has answered: the oracle decides (H1)
    MENDING = "mending"  # not listed: the volume aside, the daemon forgets, the volume back (H3)
    CHECKING_OWNER = "checking_owner"  # `success` may no longer be sent: the oracle is asked (D6e)
    WITHDRAWING = "withdrawing"  # not listed: `failure` closes the transfer at the panel (D6e)
    CONFIRMING_ARRIVAL = "confirming_arrival"  # the panel has answered: the oracle decides (D6a, D6c, D6f)
    ACTIVATING = "activating"  # ours: the environment is made (D7)
    DISCARDING = "discarding"  # not ours: the volume goes to trash (D6f)
    # both
    SETTLING = "settling"  # the status is final; debts are being paid: `failure`, the server's start, clean-up
    COOLING = "cooling"  # a call of ours can still land at the panel: the slot is kept (S7, D9)
    ENDED = "ended"  # the slot is free


SOURCE_STAGES: Final = frozenset(
    {
        Stage.STOPPING,
        Stage.SENDING,
        Stage.CUTTING,
        Stage.AWAITING_VERDICT,
        Stage.CONFIRMING_DEPARTURE,
        Stage.REPORTING_FAILURE,
        Stage.ASKING_OWNER,
    }
)
SHARED_STAGES: Final = frozenset({Stage.SETTLING, Stage.COOLING, Stage.ENDED})
DESTINATION_STAGES: Final = frozenset(Stage) - SOURCE_STAGES - SHARED_STAGES

# Between the end of the archive part and the verdict: nothing is started and nothing is deleted.
IN_DOUBT: Final = frozenset(
    {
        Stage.AWAITING_VERDICT,
        Stage.CONFIRMING_DEPARTURE,
        Stage.REPORTING_FAILURE,
        Stage.ASKING_OWNER,
        Stage.COMMITTING,
        Stage.ANNOUNCING,
        Stage.HANDING_OVER,
        Stage.CONFIRMING_HANDOVER,
        Stage.MENDING,
        Stage.CHECKING_OWNER,
        Stage.WITHDRAWING,
        Stage.CONFIRMING_ARRIVAL,
    }
)


def stages_of(role: Role) -> frozenset[Stage]:
    """Every stage that a transfer of that role can be in."""
    return (SOURCE_STAGES if role is Role.SOURCE else DESTINATION_STAGES) | SHARED_STAGES
