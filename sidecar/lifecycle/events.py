"""What a transfer can be told. Past tense: each has happened.

`call` in an outcome is the number of the call that it answers; an outcome of another call than the latest is stale and
changes nothing (an oracle's answer may be old when it is read).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec


class Event(msgspec.Struct, frozen=True, tag=True):
    """The root. `is_outcome`: it answers one numbered call of ours."""

    is_outcome: ClassVar[bool] = False


class Failing(Event, frozen=True):
    """Something went wrong; `code` is a key of `errors.CODES`."""

    code: str = "transfer.internal"
    message: str = ""


class Outcome(Event, frozen=True):
    is_outcome: ClassVar[bool] = True
    call: int = 0


# -- source ------------------------------------------------------------------------------------------------------------
class ServerStopped(Event, frozen=True):
    """Verified, not assumed."""


class StopFailed(Failing, frozen=True):
    """The server may still run."""


class CallerGone(Event, frozen=True):
    """Whoever asked for the transfer hung up before the answer."""


class ArchiveSent(Event, frozen=True):
    """All but the end of the archive is out, the last rescan found nothing, the container is verified stopped."""


class SendFailed(Failing, frozen=True):
    """The upload ended before the point of no return; its threads are gone."""


class UploadCut(Event, frozen=True):
    """The upload that we gave up is gone, its threads too."""


class UploadAccepted(Event, frozen=True):
    """The destination answered 200."""


class UploadUnsure(Failing, frozen=True):
    """Anything but a 200 after the point: another status, end of file, reset, stall."""


class ServerDeleted(Event, frozen=True):
    """The panel's DELETE of the server."""


# -- destination -------------------------------------------------------------------------------------------------------
class Admitted(Event, frozen=True):
    """Configuration read, room enough, staging made."""


class AdmissionFailed(Failing, frozen=True):
    tell_panel: bool = True  # False: the panel does not know this transfer, or we must stay silent


class BodyVerified(Event, frozen=True):
    """The whole body is in staging, its digest matches, it is on disk."""


class ReceiptFailed(Failing, frozen=True):
    """The receipt ended before the commit; its threads are gone."""


class ReceiptStopped(Event, frozen=True):
    """The receipt that we gave up is gone, its threads too."""


class Prepared(Event, frozen=True):
    """What may fail without harm has worked."""


class PrepareFailed(Failing, frozen=True):
    pass


class Committed(Event, frozen=True):
    """The volume is in place, durable."""


class CommitFailed(Failing, frozen=True):
    """The disk refused; the intent stands, so it is tried again."""


class SuccessAccepted(Outcome, frozen=True):
    pass


class SuccessRefused(Outcome, frozen=True):
    """409, 403, 404, 417 to a call that was sent when such an answer decides (D4b)."""


class SuccessRefusedEarly(Outcome, frozen=True):
    """The same within 30 s of the POST: decides nothing."""


class SuccessUnanswered(Outcome, frozen=True):
    pass


class SourceGone(Outcome, frozen=True):
    """`success` was not sent, nor the server handed over: the source's connection is closed (D6d)."""


class HandedOver(Outcome, frozen=True):
    """The local daemon has answered, whatever it said: it is done with the hand-over (H1, H2).

    `slow`: it took longer than one call to the panel may, so it may have given one up that can still land (D9).
    """

    slow: bool = False


class HandOverUnanswered(Outcome, frozen=True):
    """Sent, and no answer came: the daemon may still act (H2)."""


class HandOverUnsent(Outcome, frozen=True):
    """Not sent: the daemon is unreachable, or knows the server already."""


class Mended(Event, frozen=True):
    """The daemon has forgotten the server and has deleted what it deletes; the volume is back in its place (H3)."""


class MendAbandoned(Event, frozen=True):
    """The source is gone, or there is nothing to mend; the volume is in its place."""


class MendFailed(Failing, frozen=True):
    """The daemon or the disk did not do it; the volume may be aside."""


class Activated(Event, frozen=True):
    pass


class ActivationFailed(Failing, frozen=True):
    """The environment is not there; the server is ours all the same (D7)."""


class Discarded(Event, frozen=True):
    """The volume is in the trash."""


class DiscardFailed(Failing, frozen=True):
    pass


# -- both --------------------------------------------------------------------------------------------------------------
class FailureAccepted(Outcome, frozen=True):
    pass


class FailureRefused(Outcome, frozen=True):
    """4xx to a call that was sent when such an answer decides (S4b, D4b)."""


class FailureRefusedEarly(Outcome, frozen=True):
    """4xx to a call that was sent within 30 s of our 202 (S4)."""


class FailureUnanswered(Outcome, frozen=True):
    pass


class FailureGivenUp(Outcome, frozen=True):
    """The destination's bounded tries are used up (D8)."""


class OwnerListed(Outcome, frozen=True):
    """The oracle lists the server as this node's."""


class OwnerNotListed(Outcome, frozen=True):
    pass


class OwnerUnanswered(Outcome, frozen=True):
    pass


class CancelRequested(Event, frozen=True):
    """A user's cancel. `restart` is False where the server is to be deleted next."""

    restart: bool = True


class Resolved(Event, frozen=True):
    """An operator's word on a transfer in doubt."""

    outcome: Literal["completed", "failed"] = "failed"


class ServerRestored(Event, frozen=True):
    """It runs again, where it ran before."""


class RestoreFailed(Failing, frozen=True):
    """It could not be started, for good."""


class CleanedUp(Event, frozen=True):
    """Staging is gone; or, at the source, the volume of a server that left is in the trash."""


class CleanUpFailed(Failing, frozen=True):
    pass


class HoldOver(Event, frozen=True):
    """No call of ours can land any more."""


class Restarted(Event, frozen=True):
    """This node was killed and has read its journal."""


def _leaves(root: type[Event]) -> list[type[Event]]:
    below = [leaf for child in root.__subclasses__() for leaf in _leaves(child)]
    return below or [root]


EVENTS: tuple[type[Event], ...] = tuple(_leaves(Event))
