"""What the edges (REST, WebSocket, bus) may ask of the engine, as plain requests and one protocol.

The edges check who calls and whether the request is well formed; everything that concerns a transfer is decided behind
`Transfers`, so that REST and the bus cannot differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from sidecar.lifecycle.statuses import Role
from sidecar.views import TransferEvent, TransferView

if TYPE_CHECKING:
    from sidecar.wire.server import Connection


class StartTransfer(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request to move a server away from this node."""

    server: str  # UUID, lower case
    url: str  # the destination's POST /api/transfers
    token: str  # verbatim Authorization value for the destination; a secret
    start_on_completion: bool = False
    backups: tuple[str, ...] = ()  # UUIDs of those that are to travel too
    backup_form: Literal["pelican", "calagopus"] = "pelican"  # the names that the destination's family knows
    delete_backups: bool = False  # those that the destination is known to have kept
    key: str | None = None  # a caller's name for this request: one transfer, however often it comes
    expires_at: float | None = None  # seconds since 1970: a transfer that could only begin later is not wanted any more

    def digest(self) -> str:
        """What tells this request from another one with the same key: SHA-256, hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, key=None, expires_at=None))).hexdigest()

    def __repr__(self) -> str:
        return f"StartTransfer(server={self.server!r}, url={self.url!r}, token=***)"


class Caller(Protocol):
    """The connection a request came on; what `wire.server.Connection` offers."""

    @property
    def is_open(self) -> bool: ...

    async def wait_closed(self) -> None: ...


class IncomingUpload(msgspec.Struct, frozen=True, kw_only=True):
    """An upload whose token and content type were found good; its body is untouched."""

    server: str  # the token's subject
    transfer: str | None  # the source's id for it, where the source is a sidecar
    connection: Connection
    boundary: bytes
    peer: str  # address of the source
    start_on_completion: bool | None = None  # None: the source did not say
    content_bytes: int | None = None  # announced size of all files
    entries: int | None = None  # announced number of entries
    is_sidecar: bool = False
    is_calagopus: bool = False  # takes any complete answer for success: fail it by closing without one
    multiplex_streams: int = 0  # more requests of the same transfer that the source will send
    multiplex_stream: int | None = None  # this request is one of those


class SourceCut(Exception):
    """The upload failed and its connection was closed without an answer on purpose: send nothing."""


class ServerView(msgspec.Struct, frozen=True, kw_only=True):
    """One server as `GET /api/servers` shows it (shape: the daemon API)."""

    uuid: str
    state: str  # offline, starting, running, stopping
    is_transferring: bool
    transferred: bool  # left this node; its files are kept until the panel's DELETE
    volume: str


class Transfers(Protocol):
    """The engine's face. Every method raises `errors.SidecarError` with a stable code."""

    async def start(self, request: StartTransfer, *, caller: Caller | None, respond_async: bool) -> TransferView:
        """Take the slot, stop the server, start to send. Returns once the answer may be 202.

        With `respond_async` it returns before the stop. With a `caller` that hangs up before the return nothing is
        started, and the server runs again if it ran. A request with a `key` that has begun a transfer before, at any
        time that this node remembers, begins nothing and returns that transfer.
        Raises Refused (`request.expired`, `server.unknown`, `transfer.exists`, `transfer.quarantine`,
        `transfer.too_many`, `destination.not_allowed`, `request.invalid`, `request.key_reused`, `node.fenced`),
        HostFailed (`server.stop_timeout` ...).
        """

    async def receive(self, upload: IncomingUpload) -> TransferView:
        """Receive, verify, commit and announce a server. Returns when the source may be answered 200.

        Raises any SidecarError: answer it. Raises SourceCut: send nothing.
        """

    async def cancel(self, server: str, role: Role) -> TransferView:
        """Ask the transfer of that server on this end to stop. Returns at once (202).

        Raises Refused (`transfer.none`).
        """

    async def delete_server(self, server: str) -> bool:
        """The panel's DELETE: the server has left (or is deleted by an operator): its volume goes to trash.

        Returns whether a daemon beside this node may be told now: the files have left their place. False: a transfer
        sees to the files and tells the daemon, when it knows whose the server is; until then they stay.

        Raises Refused (`server.unknown`, `server.deletion_refused`).
        """

    async def resolve(self, server: str, outcome: Literal["completed", "failed"]) -> TransferView:
        """An operator's word on a transfer in doubt.

        Raises Refused (`transfer.none` where nothing is in doubt).
        """

    async def settle(self, server: str, transfer: str) -> Literal["completed", "failed"]:
        """Without a panel: the source asks how its transfer ended; one that is not committed is failed by the question.

        Raises Refused (`transfer.none` where the node uses a panel).
        """

    def views(self) -> list[TransferView]:
        """All transfers that this node remembers, unfinished first, then newest first."""

    def view(self, server: str) -> TransferView | None:
        """The newest transfer of that server, or None."""

    def find(self, transfer: str) -> TransferView | None:
        """The transfer of that id, or None where this node does not remember it."""

    async def servers(self) -> list[ServerView]:
        """The servers whose volumes this node has."""

    async def server(self, server: str) -> ServerView:
        """One of them. Raises Refused (`server.unknown`)."""

    def events(self, server: str | None) -> AsyncGenerator[TransferEvent, None]:
        """Events from now on, of one server or of all; consume under `aclosing`.

        A slow consumer loses progress events first; if even its status and log events exceed the bound, the
        iterator ends. Memory: at most 1,024 events a consumer.
        """
