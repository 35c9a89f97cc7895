"""Every way to fail, on one page. The branch says whose fault it is, and so what to do about it.

    SidecarError
    |- Refused       the caller asked for something that cannot be had: correct the request
    |  |- BadRequest · Unauthenticated · Forbidden · UnknownServer · Conflict · Busy
    |- PeerFailed    the other node, a panel or the network between: look there, try again
    |- HostFailed    this node: Docker, disk, broker, settings: look here
    `- DataCorrupt   what arrived is not what was sent, or is not safe to keep

An error carries a stable dotted `code` (the table `CODES`: code -> HTTP status, one sentence of what it means), a
message for a person, and `facts`: sizes, ids and paths as plain values. Codes are part of the public contract: they
stand in REST answers, journal records and bus events. Bugs (`IllegalTransition`) are outside this tree on purpose.
"""

from __future__ import annotations

from typing import Final

Fact = str | int | float | bool

CODES: Final[dict[str, tuple[int, str]]] = {
    # the caller
    "request.malformed": (400, "the request body is not the JSON object that the route takes"),
    "request.invalid": (400, "a field of the request is missing or has a wrong value"),
    "request.too_large": (413, "the request body is larger than the route takes"),
    "request.timeout": (408, "the request body did not arrive in time"),
    "request.expired": (410, "the command's time was over before it arrived"),
    "request.key_reused": (422, "the idempotency key was used for another request"),
    "request.no_reply": (400, "the command came without a subject to answer on, so nothing was done"),
    "request.busy": (503, "as many requests of this kind are being answered as this node takes at once"),
    "request.unknown_route": (404, "there is no such route"),
    "request.method": (405, "the route exists, but not with this method"),
    "auth.missing": (401, "the Authorization header is missing or not a bearer token"),
    "auth.token": (403, "the bearer token is not this node's"),
    "auth.jwt": (401, "the transfer token is damaged, signed with another key or algorithm, or lacks a claim"),
    "auth.jwt_expired": (401, "the transfer token has expired"),
    "auth.jwt_scope": (403, "the transfer token was issued for something else"),
    "auth.jwt_replayed": (401, "the command token has been used before"),
    "auth.origin": (403, "the WebSocket's origin is not allowed"),
    "socket.too_many": (400, "as many WebSocket connections are open as this node allows"),
    "server.unknown": (404, "this node has no such server"),
    "server.busy": (409, "the server is being installed or restored"),
    "server.departed": (409, "the server has left this node; only its old files are here"),
    "server.deletion_refused": (409, "the settings of this node refuse the deletion of servers"),
    "transfer.exists": (409, "a transfer of this server is in progress on this node"),
    "transfer.quarantine": (409, "a call of the server's previous transfer can still land at the panel"),
    "transfer.unknown": (404, "this node remembers no transfer of that server"),
    "transfer.none": (409, "the server is not being transferred"),
    "transfer.too_many": (503, "this node runs as many transfers as its settings allow"),
    "node.stopping": (503, "this node is being stopped: it ends its transfers and takes no more"),
    "node.fenced": (503, "another sidecar holds this node's id on the bus: this one starts nothing new"),
    "transfer.undecided": (409, "the outcome of the transfer is not known yet"),
    "destination.not_allowed": (400, "the settings of this node do not allow that destination"),
    "upload.content_type": (400, "the upload is not multipart/form-data"),
    "upload.malformed": (400, "the upload's chunks or parts are damaged"),
    "upload.multiplex": (400, "a stream of an upload that is dealt out over several is missing, repeated or too many"),
    "upload.order": (400, "a checksum came before the archive"),
    "upload.missing_part": (400, "the upload has no archive or no checksum"),
    "upload.repeated_part": (400, "the upload has two parts of one name"),
    "volume.exists": (409, "this node already has a live volume of that server"),
    # the other node, the panel, the network
    "upload.truncated": (400, "the source hung up in the middle of the upload"),
    "upload.stalled": (408, "no byte of the upload arrived for too long"),
    "peer.unresolvable": (502, "the destination's host name has no address"),
    "peer.refused": (502, "the destination refuses connections"),
    "peer.unreachable": (502, "the destination cannot be reached"),
    "peer.tls": (502, "the destination's certificate or TLS settings are not acceptable"),
    "peer.reset": (502, "the connection to the destination broke"),
    "peer.stalled": (504, "the destination took no byte for too long"),
    "peer.no_answer": (504, "the destination never answered the upload"),
    "peer.status": (502, "the destination answered with another status than 200"),
    "peer.redirect": (502, "the destination answered with a redirect, which is not followed"),
    "peer.proxy": (502, "a proxy in front of the destination refused or dropped the upload"),
    "peer.protocol": (502, "the destination's answer is not HTTP"),
    "peer.misrouted": (502, "the destination is not the node that it should be"),
    "panel.unreachable": (500, "the panel cannot be reached or answers with server errors"),
    "panel.refused": (500, "the panel refuses this node's call"),
    "panel.malformed": (500, "the panel's answer is not what the remote API documents"),
    # this node
    "transfer.cancelled": (409, "the transfer was cancelled"),
    "transfer.disowned": (500, "the panel gave the server to another node"),
    "transfer.interrupted": (500, "this node was restarted in the middle of the transfer"),
    "transfer.internal": (500, "a bug in this node stopped the transfer; its data is kept"),
    "server.stop_failed": (500, "the server could not be stopped"),
    "server.stop_timeout": (500, "the server did not stop in time"),
    "server.started_outside": (500, "somebody started the server while it was being transferred"),
    "engine.unreachable": (500, "the container engine does not answer"),
    "engine.failed": (500, "the container engine refused an operation"),
    "environment.failed": (500, "the server's container could not be created or started"),
    "environment.image": (500, "the server's image is missing and cannot be pulled"),
    "daemon.unreachable": (500, "the node daemon beside this sidecar does not answer"),
    "daemon.strange": (500, "the node daemon's answer is not what any known kind of daemon sends"),
    "daemon.refused": (500, "the node daemon refused a request"),
    "daemon.restart_needed": (500, "the node daemon holds the server as transferring; restarting the daemon mends it"),
    "volume.missing": (404, "the server's volume does not exist on this node"),
    "volume.changed": (500, "the server's files kept changing while they were read"),
    "volume.unreadable": (500, "a file of the server cannot be read"),
    "bus.down": (500, "the message broker cannot be reached; transfers go on without it"),
    "bus.rival": (500, "another sidecar that uses this node's id was heard on the bus"),
    "bus.no_directory": (500, "the bus has no directory of nodes, so two nodes of one id would not be kept apart"),
    "bus.denied": (500, "the message broker refuses the subjects of this node"),
    "bus.outbox_full": (500, "the disk has no room for the outbox of events; they wait in memory"),
    "bus.outbox_failed": (500, "the outbox of events cannot be written to; they wait in memory"),
    "bus.outbox_damaged": (500, "the outbox of events was damaged and put aside; events may be lost"),
    "bus.stream_missing": (500, "the broker has no stream for the events; they wait in the outbox"),
    "bus.stream_differs": (500, "the broker's stream of events is not configured as it should be"),
    "bus.stream_refuses": (500, "the broker's stream does not take events; they wait in the outbox"),
    "disk.full": (500, "there is not enough disk space"),
    "disk.inodes": (500, "there are not enough free inodes"),
    "disk.failed": (500, "the disk refused an operation"),
    "journal.failed": (500, "a decision could not be written down, so it was not acted on"),
    "settings.invalid": (500, "the configuration is wrong"),
    # the data
    "archive.checksum": (400, "the checksum of the archive does not match"),
    "archive.format": (500, "the archive's format is not one that this node reads"),
    "archive.damaged": (500, "the archive is damaged"),
    "archive.hostile": (500, "the archive holds an entry that must not be extracted"),
    "archive.limit": (500, "the archive is larger than the settings of this node allow"),
}


class SidecarError(Exception):
    """The root. `code` is a key of `CODES`; `facts` never hold secrets."""

    def __init__(self, code: str, message: str, **facts: Fact) -> None:
        if code not in CODES:
            raise ValueError(f"{code!r} is not a reason code")
        super().__init__(message)
        self.code = code
        self.message = message
        self.facts = facts

    @property
    def status(self) -> int:
        """The HTTP status that answers a request which failed this way."""
        return CODES[self.code][0]


class Refused(SidecarError):
    """The caller's fault: nothing was started and nothing has changed."""


class PeerFailed(SidecarError):
    """The other node, the panel or the network. May work another time."""


class HostFailed(SidecarError):
    """This node: its engine, disk, broker or settings."""


class DataCorrupt(SidecarError):
    """The bytes are not those that were sent, or are not safe to keep."""


class IllegalTransition(Exception):
    """A bug: the lifecycle was told something that its table does not foresee."""
