"""What is said on the bus besides events: the requests and replies of the commands, and an entry of the directory.

`docs/schemas/` is made from these (`schemas.py`); `docs/PROTOCOL.md` says what they mean. Times are seconds since 1970.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from sidecar.calls.transfers import StartBody, StartServer
from sidecar.lifecycle.statuses import Status
from sidecar.views import TransferView

MAX_KEY_CHARS = 128
MAX_LISTED = 500  # half a MiB at most; a broker takes 1 MiB

Key = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_CHARS, pattern=r"^[!-~]+$")]


class CommandServer(StartServer, frozen=True, kw_only=True):
    uuid: str


class StartCommand(StartBody, frozen=True, kw_only=True):
    """Move a server away from this node: the body of `POST /api/servers/{server}/transfer`, with `server.uuid`."""

    server: CommandServer
    idempotency_key: Annotated[Key | None, Meta(description="The same key begins one transfer, however often.")] = None
    expires_at: Annotated[float | None, Meta(description="Seconds since 1970; refused when it arrives later.")] = None


class TransferCommand(Struct, frozen=True):
    """One transfer of this node, by its server or by its own id; one of them, not both."""

    server: str | None = None
    transfer: str | None = None


class ListCommand(Struct, frozen=True):
    """All transfers that the node remembers, unfinished ones first, then the newest."""

    limit: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = 100


class InfoCommand(Struct, frozen=True):
    """What the node is."""


class StartReply(Struct, frozen=True):
    """Accepted: the transfer runs, and its first status is this one. What becomes of it is told by events."""

    transfer: str
    status: Status


class CancelReply(Struct, frozen=True):
    """Cancelling; that it is cancelled, or was too late, is told by events."""

    transfer: str
    status: Status


class ListReply(Struct, frozen=True):
    node: str
    transfers: tuple[TransferView, ...]
    total: int  # how many the node remembers


class Problem(Struct, frozen=True):
    """A request that was refused or has failed; more fields may say more."""

    error: str  # a sentence for people
    code: str  # stable
    request_id: str  # also in the node's log
    detail: str | None = None


class NodeEntry(Struct, frozen=True, kw_only=True):
    """One node, as the directory and `info` show it: hints, each as old as `time`."""

    node: str
    epoch: str  # of this run of the program: another one at every start
    version: str
    protocol: tuple[int, ...]  # versions of the transfer protocol that it speaks
    codecs: tuple[str, ...]  # that it reads
    beside: bool  # its servers are run by a node daemon
    url: str | None  # where it takes transfers, where the settings say so
    commands: str  # token, subject or off: what its commands need
    max_outgoing: int
    max_incoming: int
    started_at: float
    outgoing: int = 0  # transfers under way
    incoming: int = 0
    free_bytes: int | None = None  # on the volumes' filesystem; None: not known
    time: float = 0.0
