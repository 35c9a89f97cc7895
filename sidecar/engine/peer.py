"""Who is at the other end: asked before the upload, without credentials, and never believed for more than a dialect."""

from __future__ import annotations

from enum import StrEnum
from ssl import SSLContext
from typing import Any

from sidecar.errors import PeerFailed, SidecarError
from sidecar.wire.destination import Target
from sidecar.wire.upload import fetch_json

PROTOCOL = 1  # docs/PROTOCOL.md
MAX_ANSWER_BYTES = 16 * 1024


class PeerKind(StrEnum):
    SIDECAR = "sidecar"
    SIDECAR_BESIDE = "sidecar_beside"  # one of our own that hands over to a node daemon
    CALAGOPUS = "calagopus"
    UNKNOWN = "unknown"  # Pterodactyl, Pelican, or whatever else answers

    @property
    def is_ours(self) -> bool:
        return self in (PeerKind.SIDECAR, PeerKind.SIDECAR_BESIDE)

    @property
    def calls_for_minutes(self) -> bool:
        """Whether its `success` can land at the panel minutes after the upload was cut (S7)."""
        return self in (PeerKind.SIDECAR_BESIDE, PeerKind.CALAGOPUS)


def probe(target: Target, timeout_s: float, tls: SSLContext | None) -> PeerKind:
    """`GET /api/transfers/sidecar`. Blocking, one attempt.

    Only an answer makes a stranger: one of our own that is taken for a stranger because a call was lost gets an archive
    without its symlinks. A Calagopus daemon answers unknown routes in JSON, which the Go daemons do not
    (docs/PROTOCOL.md).

    Raises PeerFailed (`peer.*`): nobody answered, or a proxy did that has nobody behind it; `peer.protocol` where what
    answered is not what we can read.
    """
    status, body = fetch_json(
        target,
        "GET",
        f"{target.path.rstrip('/')}/sidecar",
        headers={},
        timeout_s=timeout_s,
        max_bytes=MAX_ANSWER_BYTES,
        ssl_context=tls,
    )
    if status >= 500:
        raise PeerFailed("peer.status", f"{target.origin} answered {status} before anything was sent", status=status)
    if not isinstance(body, dict):
        return PeerKind.UNKNOWN
    if status == 200 and _speaks(body):
        return PeerKind.SIDECAR_BESIDE if body.get("beside") is True else PeerKind.SIDECAR
    if status == 404 and body.get("error") == "route not found":
        return PeerKind.CALAGOPUS
    return PeerKind.UNKNOWN


def _speaks(body: dict[str, Any]) -> bool:
    versions = body.get("protocol")
    return isinstance(body.get("sidecar"), str) and isinstance(versions, list) and PROTOCOL in versions


def settle(
    target: Target, server: str, transfer: str, token: str, timeout_s: float, tls: SSLContext | None
) -> str | None:
    """Without a panel: ask the destination how the transfer ended, failing it if it is not committed. Blocking.

    Returns `completed`, `failed`, or None where it did not say.
    """
    try:
        status, body = fetch_json(
            target,
            "POST",
            f"{target.path.rstrip('/')}/sidecar/settle",
            headers={"Authorization": token},
            timeout_s=timeout_s,
            max_bytes=MAX_ANSWER_BYTES,
            body={"server": server, "transfer": transfer},
            ssl_context=tls,
        )
    except SidecarError:
        return None
    outcome = body.get("outcome") if status == 200 and isinstance(body, dict) else None
    return outcome if outcome in ("completed", "failed") else None
