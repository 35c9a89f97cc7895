"""The sidecar in front of a node daemon: what is not the sidecar's own goes to the daemon and back, byte for byte.

Own are only the routes of transfers, the console socket (`passthrough.py`) and the probes. Everything else streams:
the request while it arrives, the answer while it is made, neither ever held. An answer that comes before the request's
end is given at once. What ends on one side ends on the other: a caller who hangs up takes the request to the daemon
with it, and a daemon that dies in the middle of an answer leaves the caller with a broken one, never with a short one
that looks whole.

There is no total time, only stalls, on both sides. Not passed on: trailers, 1xx answers other than 100, other upgrades
than WebSocket, the reason phrase.

Memory per request: one read of the wire layer and 64 KiB of the request, `front_line`'s of the answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sidecar.api.front_headers import end_to_end, first, forwarded
from sidecar.api.front_line import DaemonAddress, FrontLimits, Line, LineBroken
from sidecar.api.problems import problem
from sidecar.api.reading import CallerGone, NoAnswer, maybe_connection, request_id
from sidecar.calls.auth import NodeAuth, maybe_uuid
from sidecar.engine.contract import Transfers
from sidecar.engine.log_lines import printable
from sidecar.errors import HostFailed, Refused, SidecarError

_log = logging.getLogger(__name__)

PASSED_ON_KEY: Final = "sidecar.passed_on"  # in a scope: the answer is the daemon's, its fields too
_PIECE_BYTES: Final = 256 << 10  # to a caller at once; it has `stall_s` to take one
_BODILESS: Final = frozenset({204, 304})

_OWN: Final = re.compile(
    r"/api/transfers(?:/.*)?|/api/servers/[^/]+/(?:transfer(?:/resolve)?|ws)|/healthz|/readyz", re.DOTALL
)


def is_own(path: str) -> bool:
    """Whether a path is the sidecar's. `path` is decoded, without its query."""
    return _OWN.fullmatch(path) is not None


def is_passed_on(method: str, path: str) -> bool:
    """For `ApiServer(is_streamed=...)`: requests whose bodies may have any size and take any time."""
    return not is_own(path)


class Front:
    """An ASGI application for HTTP: each request to the daemon, its answer back."""

    def __init__(self, *, address: DaemonAddress, limits: FrontLimits) -> None:
        self._address = address
        self._limits = limits
        self._tls = address.tls()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises CallerGone where the caller hung up and the server has no way to close."""
        try:
            line = await self.open(scope)
        except HostFailed as error:
            await refuse(error, scope, receive, send)
            return
        await self.exchange(line, scope, receive, send)

    async def open(self, scope: Scope) -> Line:
        """A connection for this request. Raises HostFailed (`daemon.unreachable`)."""
        return await Line.open(self._address, self._tls, method=scope["method"], connect_s=self._limits.connect_s)

    async def exchange(self, line: Line, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and the answer back. Closes `line`."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        trouble: LineBroken | CallerGone | None = None
        try:
            line.write(self._request_head(scope))
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._pass_request(line, scope, receive))
                await self._pass_answer(line, sending, scope, noted)
        except* (LineBroken, CallerGone) as group_of:
            trouble = next(error for error in group_of.exceptions if isinstance(error, LineBroken | CallerGone))
        finally:
            line.abort()
        if trouble is None:
            return
        if isinstance(trouble, LineBroken):
            _log.warning("passed on: %s", trouble, extra={"request_id": request_id(scope)})
            if not has_begun:
                error = HostFailed("daemon.unreachable", "The node daemon hung up or does not answer.")
                await refuse(error, scope, receive, send)
                return
        connection = maybe_connection(scope)
        if connection is None:
            raise trouble
        await NoAnswer(connection)(scope, receive, send)

    def _request_head(self, scope: Scope) -> bytes:
        scope[PASSED_ON_KEY] = True
        peer = scope["client"][0] if scope.get("client") else ""
        fields = forwarded(scope["headers"], peer=peer, scheme=scope["scheme"])
        if first(fields, b"host") is None:
            fields.insert(0, (b"host", self._address.authority.encode()))
        if _is_chunked(scope):
            fields = [pair for pair in fields if pair[0] != b"content-length"]
            fields.append((b"transfer-encoding", b"chunked"))
        fields.append((b"connection", b"close"))
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        lines = [b"%s %s%s HTTP/1.1" % (scope["method"].encode(), scope["raw_path"], query)]
        lines += [name + b": " + value for name, value in fields]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    async def _pass_request(self, line: Line, scope: Scope, receive: Receive) -> None:
        """The body, as it comes; then watch for the caller's hang-up. Raises CallerGone."""
        is_chunked = _is_chunked(scope)
        if (first(scope["headers"], b"expect") or b"").lower() == b"100-continue":
            await line.wait_continue(self._limits.continue_s)
        has_more = takes = True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CallerGone
            body, has_more = message["body"], message.get("more_body", False)
            if not takes:
                continue  # the answer is on its way, or the end of the connection
            if is_chunked:
                body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + (b"" if has_more else b"0\r\n\r\n")
            line.write(body)
            try:
                await line.drain(self._limits.stall_s)
            except LineBroken:
                takes = False
        while (await receive())["type"] != "http.disconnect":
            pass
        raise CallerGone

    async def _pass_answer(self, line: Line, sending: asyncio.Task[None], scope: Scope, send: Send) -> None:
        """Raises LineBroken."""
        head = await line.head(self._limits.answer_s)
        fields = end_to_end(head.fields)
        if head.status in _BODILESS:
            fields = [pair for pair in fields if pair[0] != b"content-length"]
        await send({"type": "http.response.start", "status": head.status, "headers": fields})
        while data := await line.piece(self._limits.stall_s):
            for at in range(0, len(data), _PIECE_BYTES):
                await self._give({"body": data[at : at + _PIECE_BYTES], "more_body": True}, send)
        sending.cancel()  # before the end: then a hang-up means nothing any more
        await self._give({"body": b"", "more_body": False}, send)

    async def _give(self, piece: Message, send: Send) -> None:
        try:
            async with asyncio.timeout(self._limits.stall_s):
                await send({"type": "http.response.body", **piece})
        except TimeoutError:
            raise CallerGone from None


class ServerRoute:
    """`/api/servers/{server}`: DELETE concerns the sidecar too, everything else is the daemon's.

    The volume is moved aside before the daemon removes what is there, so that an operator can bring it back while it
    is retained. The daemon is connected to first: one that is down must not be left with a server without files.
    """

    def __init__(self, *, front: Front, transfers: Transfers, auth: NodeAuth) -> None:
        self._front = front
        self._transfers = transfers
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Refused (`auth.missing`, `auth.token`, `server.deletion_refused` ...)."""
        server = maybe_uuid(scope["path_params"]["server"])
        if scope["method"] != "DELETE" or server is None:
            await self._front(scope, receive, send)
            return
        self._auth.check_node_token(Request(scope).headers.getlist("authorization"))
        try:
            line = await self._front.open(scope)
        except HostFailed as error:
            await refuse(error, scope, receive, send)
            return
        tells_daemon = True
        try:
            tells_daemon = await self._transfers.delete_server(server)
            _log.info("server %s deleted by the panel", server, extra={"request_id": request_id(scope)})
        except Refused as refused:
            if refused.code != "server.unknown":  # its files are gone already; the daemon may still know of it
                line.abort()
                raise
        except BaseException:
            line.abort()
            raise
        if tells_daemon:
            await self._front.exchange(line, scope, receive, send)
            return
        # The daemon deletes what it finds: it is told by the transfer, once the files are known to be nobody's here.
        line.abort()
        await Response(status_code=204)(scope, receive, send)


async def refuse(error: SidecarError, scope: Scope, receive: Receive, send: Send) -> None:
    """502 in our JSON: as a gateway the sidecar is well, what is behind it is not."""
    scope.pop(PASSED_ON_KEY, None)
    _log.error("not passed on: %s: %s", error.code, printable(error.message), extra={"request_id": request_id(scope)})
    response = problem(error, request_id(scope))
    response.status_code = 502
    await response(scope, receive, send)


def _is_chunked(scope: Scope) -> bool:
    return first(scope["headers"], b"transfer-encoding") is not None  # the wire layer takes no other coding
