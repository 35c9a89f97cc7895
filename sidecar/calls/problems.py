"""Everything that is told of a failure, in one JSON shape, made in one place.

    {"error": "...", "code": "transfer.exists", "request_id": "...", ...facts}

`error` is the documented sentence where the documented contract or the node daemons have one for that case, word for
word ("heads" included); panels compare and show it. What we know beyond it stands in `detail`. `code` is a key of
`errors.CODES` and decides the status. A bug shows nothing of its inside.
"""

from __future__ import annotations

from typing import Any, Final

from sidecar.engine.log_lines import printable
from sidecar.errors import SidecarError

_RESERVED: Final = frozenset({"error", "detail", "code", "request_id"})

_NOT_AUTHENTICATED: Final = "The required authorization heads were not present in the request."
_NOT_AUTHORIZED: Final = "You are not authorized to access this endpoint."
_NOT_FOUND: Final = "The requested resource does not exist on this instance."
_NOT_STOPPED: Final = "Failed to stop the server before initiating transfer"
INTERNAL: Final = "An unexpected error was encountered while processing this request"

DOCUMENTED: Final[dict[str, str]] = {
    "request.malformed": "The data passed in the request was not in a parsable format. Please try again.",
    "request.unknown_route": _NOT_FOUND,
    "auth.missing": _NOT_AUTHENTICATED,
    "auth.jwt": _NOT_AUTHENTICATED,
    "auth.jwt_expired": _NOT_AUTHENTICATED,
    "auth.jwt_replayed": _NOT_AUTHENTICATED,
    "auth.token": _NOT_AUTHORIZED,
    "auth.jwt_scope": _NOT_AUTHORIZED,
    "socket.too_many": "Too many open websocket connections.",
    "server.unknown": _NOT_FOUND,
    "server.stop_failed": _NOT_STOPPED,
    "server.stop_timeout": _NOT_STOPPED,
    "transfer.unknown": _NOT_FOUND,
    "transfer.exists": "A transfer is already in progress for this server.",
    "transfer.none": "Server is not currently being transferred.",
    "upload.content_type": "invalid content type",
    "upload.order": "archive must be sent before the checksum",
    "upload.missing_part": "missing archive or checksum",
    "archive.checksum": "checksums don't match",
    "disk.full": "There is not enough disk space available to perform that action.",
    "transfer.internal": INTERNAL,
}


def told(error: SidecarError, request_id: str) -> dict[str, Any]:
    """The JSON body that tells a caller of `error`."""
    documented = DOCUMENTED.get(error.code)
    body: dict[str, Any] = {"error": documented or printable(error.message)}
    is_internal = error.code == "transfer.internal"
    if documented is not None and not is_internal and error.message != documented:
        body["detail"] = printable(error.message)
    body["code"] = error.code
    body["request_id"] = request_id
    if not is_internal:
        for name, fact in error.facts.items():
            if name not in _RESERVED:
                body[name] = printable(fact) if isinstance(fact, str) else fact
    return body
