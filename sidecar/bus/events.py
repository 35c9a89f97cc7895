"""Reading events from the bus: what is believed of a message, and what is not.

The subject is what the broker's permissions hold a publisher to; the body is only what it says. So an event whose body
names another node, server, transfer, direction or kind than its subject is refused: a node could otherwise speak for
its neighbours.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from sidecar.lifecycle.statuses import Role, Status
from sidecar.settings.values import NODE_ID_PATTERN
from sidecar.views import EventKind, Progress

MAX_BODY_BYTES: Final = 64 * 1024  # a node publishes none above it; larger ones are not looked at
_MAX_NUMBER: Final = 2**62
_INFIX: Final = ".v1.event."
_EVENTS: Final = frozenset(f"transfer.{kind.value}" for kind in EventKind)

# A broker takes any byte but white space in a subject: its words are checked like the body's.
_Uuid = Annotated[str, Meta(max_length=36, pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_Word = Annotated[str, Meta(max_length=64)]
_Number = Annotated[int, Meta(ge=0, lt=_MAX_NUMBER)]


class BusEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event as it came from the bus: the body of `docs/PROTOCOL.md`. `message` and `args` are a stranger's text."""

    event: _Word
    args: list[str]
    transfer: _Uuid
    server: _Uuid
    node: Annotated[str, Meta(max_length=48, pattern=NODE_ID_PATTERN)]
    role: Role
    direction: _Word
    status: Status
    stage: _Word
    seq: _Number
    number: _Number = 0
    time: Annotated[float, Meta(ge=0, lt=1e11)]  # a thousand years
    reason: _Word | None = None
    message: str | None = None
    progress: Progress | None = None

    @property
    def kind(self) -> EventKind:
        return EventKind(self.event.removeprefix("transfer."))


class NoEvent(ValueError):
    """A message that is no event of this protocol; the text says why."""


_decoder: Final = msgspec.json.Decoder(BusEvent)


def root_of(subject_filter: str) -> str:
    """The root of a filter that `subjects.event_filter` made."""
    return subject_filter.partition(_INFIX)[0]


def read_event(root: str, subject: str, body: bytes) -> BusEvent:
    """The event of a message. Raises NoEvent."""
    if len(body) > MAX_BODY_BYTES:
        raise NoEvent(f"its body has {len(body)} bytes")
    try:
        event = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoEvent(f"its body is none: {type(error).__name__}") from None
    words = (event.node, event.role.direction, event.event.removeprefix("transfer."), event.server, event.transfer)
    if subject != root + _INFIX + ".".join(words) or event.direction != event.role.direction:
        raise NoEvent("its body does not belong to its subject")
    if event.event not in _EVENTS:
        raise NoEvent("it is of no known kind")
    if event.progress is not None and not _is_sane(event.progress):
        raise NoEvent("its progress is out of bounds")
    return event


def _is_sane(progress: Progress) -> bool:
    """Numbers that can be compared, divided and shown. JSON has no infinity, but very large numbers."""
    numbers = (getattr(progress, name) for name in Progress.__struct_fields__)
    return all(number is None or 0 <= number < _MAX_NUMBER for number in numbers)


def read_body(body: bytes) -> dict[str, Any]:
    """All of an event's body, with fields that this version does not know. Raises NoEvent."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoEvent(f"its body is none: {type(error).__name__}") from None
