"""The console socket beside a node daemon: the daemon's, with the sidecar's events in between.

Messages pass in both directions one by one; what either side says last (close code and reason, a refused handshake
with its status and body) is said to the other. Pings are answered by whoever gets them: each of the two connections
keeps itself alive. `Origin` goes to the daemon, which checks it.

The sidecar listens along for four things only: the client's `auth`, and the daemon's `auth success`, `jwt error` and
`token expired`. Once the daemon has accepted a token that the sidecar finds good too, the events of this server's
transfers are added, with log lines if that token's permissions name them, until it expires.

`transfer status` is said by two here. As source the daemon knows of no transfer and says nothing. As destination it is
handed an empty archive after the sidecar's commit and then says `success` or `failure` of that errand, which is not the
transfer: an errand that failed is mended and repeated, and one family says `success` after `failure`. So as long as the
sidecar's own incoming transfer is under way, and for the words that it has said itself, the daemon's `transfer status`
is held back from sockets that hear the sidecar's daemon dialect. Its `transfer logs` always pass: they help.

A daemon that cannot be reached leaves the socket to the sidecar's own handling (`websocket.py`): there transfers can be
followed while the daemon restarts. So does a daemon that answers 404 while the server is on its way here.

Memory per socket: one message of the client, and of the daemon `max_message_bytes` six times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.typing import Subprotocol

from sidecar.api.front_headers import end_to_end, first, for_handshake, forwarded
from sidecar.api.front_line import DaemonAddress, FrontLimits
from sidecar.api.front_session import CLOSE_S, Session
from sidecar.api.problems import problem
from sidecar.api.reading import request_id
from sidecar.api.websocket import Sockets, SocketSettings
from sidecar.calls.auth import NodeAuth, maybe_uuid
from sidecar.engine.contract import Transfers
from sidecar.engine.log_lines import printable
from sidecar.errors import HostFailed, Refused, SidecarError
from sidecar.lifecycle.statuses import Role

_log = logging.getLogger(__name__)

_HELD_MESSAGES: Final = 4  # of the daemon's, beyond the one being passed on


class PassThrough:
    """All sockets that are passed through. Args: own, takes a socket over when the daemon cannot be reached."""

    def __init__(
        self,
        *,
        address: DaemonAddress,
        limits: FrontLimits,
        transfers: Transfers,
        auth: NodeAuth,
        settings: SocketSettings,
        own: Sockets,
        now: Callable[[], float],
    ) -> None:
        self._address = address
        self._limits = limits
        self._tls = address.tls()
        self._transfers = transfers
        self._auth = auth
        self._settings = settings
        self._own = own
        self._now = now
        self._open: dict[str, int] = {}

    async def serve(self, websocket: WebSocket) -> None:
        """The console socket of one server."""
        server = maybe_uuid(websocket.path_params["server"])
        if server is None:
            await self.pass_on(websocket.scope, websocket.receive, websocket.send)  # the daemon has a word for it
            return
        await self._serve(websocket, server)

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any other socket of the daemon's: nothing is added."""
        await self._serve(WebSocket(scope, receive, send), None)

    async def _serve(self, websocket: WebSocket, server: str | None) -> None:
        tags = {"request_id": request_id(websocket.scope)}
        key = server or ""
        is_full = server is not None and self._open.get(key, 0) >= self._settings.max_per_server
        if is_full or sum(self._open.values()) >= self._settings.max_total:
            await _deny(websocket, Refused("socket.too_many", "Too many open websocket connections."))
            return
        self._open[key] = self._open.get(key, 0) + 1
        try:
            await self._meet(websocket, server, tags)
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    async def _meet(self, websocket: WebSocket, server: str | None, tags: dict[str, str]) -> None:
        """Both handshakes: the client's is answered as the daemon answers ours."""
        try:
            daemon = await self._dial(websocket)
        except InvalidStatus as refused:
            response = refused.response
            if response.status_code == 404 and server is not None and self._is_on_its_way(server):
                await self._own.serve(websocket)
                return
            if not 300 <= response.status_code <= 599:
                await _deny(websocket, HostFailed("daemon.strange", "The node daemon's handshake makes no sense."), 502)
                return
            await websocket.send_denial_response(_denial(response.status_code, response.headers, response.body))
            return
        except (InvalidURI, ValueError):
            await _deny(websocket, Refused("request.malformed", "The handshake names no usable host or protocol."))
            return
        except (OSError, EOFError, WebSocketException) as error:  # TimeoutError is an OSError
            _log.warning("the node daemon cannot be reached for a socket: %s", printable(str(error)), extra=tags)
            if server is not None:
                await self._own.serve(websocket)
                return
            await _deny(websocket, HostFailed("daemon.unreachable", "The node daemon does not answer."), 502)
            return
        session = Session(
            websocket, daemon, server, self._transfers, self._auth, self._settings, self._limits, self._now
        )
        try:
            await session.run()
        finally:
            daemon.transport.abort()

    async def _dial(self, websocket: WebSocket) -> ClientConnection:
        scope = websocket.scope
        peer = scope["client"][0] if scope.get("client") else ""
        scheme = "https" if scope["scheme"] == "wss" else "http"
        fields = forwarded(scope["headers"], peer=peer, scheme=scheme)
        host = (first(scope["headers"], b"host") or self._address.authority.encode()).decode("latin-1")
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        return await _Connect(
            f"{'wss' if self._address.is_tls else 'ws'}://{host}{scope['raw_path'].decode('latin-1')}{query}",
            host=self._address.host,
            port=self._address.port,
            ssl=self._tls,
            server_hostname=self._address.host if self._tls is not None else None,
            additional_headers=[
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in for_handshake(fields)
            ],
            user_agent_header=None,
            subprotocols=[Subprotocol(name) for name in scope["subprotocols"]] or None,
            compression=None,
            proxy=None,
            open_timeout=self._limits.connect_s,
            ping_interval=None,  # with a slow client the daemon's pong would wait behind what it said
            close_timeout=CLOSE_S,
            max_size=self._limits.max_message_bytes,
            max_queue=_HELD_MESSAGES,
        )

    def _is_on_its_way(self, server: str) -> bool:
        view = self._transfers.view(server)
        return view is not None and view.role is Role.DESTINATION and not view.status.is_final


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception:
        """A redirect is the daemon's answer, and for the client."""
        return exc


def _denial(status: int, fields: Any, body: bytes | bytearray) -> Response:
    response = Response(bytes(body), status_code=status)
    kept = end_to_end((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.raw_items())
    response.raw_headers = [
        *(pair for pair in kept if pair[0] not in (b"content-length",)),
        (b"content-length", b"%d" % len(body)),
    ]
    return response


async def _deny(websocket: WebSocket, error: SidecarError, status: int | None = None) -> None:
    rid = request_id(websocket.scope)
    _log.info("socket refused: %s: %s", error.code, printable(error.message), extra={"request_id": rid})
    response = problem(error, rid)
    response.status_code = status or error.status
    await websocket.send_denial_response(response)
