"""What is read from a request: its server, its JSON body, the connection it came on. Everything bounded.

A body is read piece by piece up to `max_json_bytes` and within `json_body_s`, whatever its headers promise, and only
then decoded; a field that is wrong is named with its path (`$.server.uuid`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar, cast

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sidecar.calls.auth import maybe_uuid
from sidecar.calls.transfers import decode
from sidecar.errors import Refused

if TYPE_CHECKING:
    from sidecar.wire.server import Connection

REQUEST_ID_KEY: Final = "sidecar.request_id"
CONNECTION_EXTENSION: Final = "sidecar.connection"

T = TypeVar("T")


class ApiLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what callers of the JSON routes send."""

    max_json_bytes: int = 64 * 1024  # the largest documented body, with hundreds of backups, has some 20 KiB
    json_body_s: float = 15.0  # a panel gives a whole call 15 s


class CallerGone(Exception):
    """The caller hung up before its request was complete: there is nobody to answer."""


class NoAnswer(Response):
    """Closes the connection without a single byte of an answer (a reset, so that no proxy takes it for the end of one).

    Waits for the closing, so that the server does not take the silence for a bug and answer 500 itself.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._connection.abort()
        await self._connection.wait_closed()


def request_id(scope: Scope) -> str:
    """The id that this request has in its answer and in the log."""
    return cast(str, scope[REQUEST_ID_KEY])


def maybe_connection(scope: Scope) -> Connection | None:
    """The connection that the request came on, where the HTTP server shows it."""
    connection: Connection | None = (scope.get("extensions") or {}).get(CONNECTION_EXTENSION)
    return connection


def server_in_path(scope: Scope) -> str:
    """The path's server as a UUID in lower case. Raises Refused (`server.unknown`) for anything else."""
    server = maybe_uuid(scope["path_params"]["server"])
    if server is None:
        raise Refused("server.unknown", "The path holds no UUID of a server.")
    return server


async def read_json(request: Request, shape: type[T], limits: ApiLimits) -> T:
    """The request's body as `shape`; fields that `shape` does not have are ignored.

    Raises Refused (`request.too_large`, `request.timeout`, `request.malformed`, `request.invalid`), CallerGone.
    Memory: `max_json_bytes`, twice while it is decoded.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(limits.json_body_s):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.max_json_bytes:
                    raise Refused(
                        "request.too_large",
                        f"The request body has more than {limits.max_json_bytes} bytes.",
                        limit_bytes=limits.max_json_bytes,
                    )
    except TimeoutError as error:
        raise Refused(
            "request.timeout", "The request body did not arrive in time.", after_s=limits.json_body_s
        ) from error
    except ClientDisconnect as error:
        raise CallerGone from error
    return decode(body, shape)
