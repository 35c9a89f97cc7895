"""`/api/servers/{server}/ws`: the console socket that panels' pages open, as far as transfers go.

The protocol is the node daemons': text messages `{"event": ..., "args": [...]}`, the token in the first message, words
like `auth success`, `jwt error`, `token expiring`. A socket hears about one server. Statuses go to everyone who may
connect; log lines to those whose token names `admin.websocket.transfer` (`*` does not cover it, as in the daemons).

Nothing a socket does can slow a transfer: each consumes its own bounded event stream of the engine, and a client that
takes no bytes for `send_s` or falls behind that stream is closed. What strangers may cost is bounded: sockets per
server and in all, the size and rate of their messages, the time to authenticate.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from sidecar.api.dialects import Speaker
from sidecar.api.origins import Origins
from sidecar.api.problems import problem
from sidecar.api.reading import maybe_connection, request_id, server_in_path
from sidecar.calls.auth import NodeAuth, SocketClaims
from sidecar.calls.problems import INTERNAL
from sidecar.engine.contract import Transfers
from sidecar.engine.log_lines import printable
from sidecar.errors import HostFailed, Refused, SidecarError
from sidecar.settings.values import Dialect
from sidecar.views import TransferEvent

_log = logging.getLogger(__name__)

LOGS_PERMISSION: Final = "admin.websocket.transfer"
_CLOSE_S: Final = 1.0  # to get one close frame out to a client that may take nothing

# Close codes. Source: RFC 6455 section 7.4.1, the IANA registry (1013).
_POLICY: Final = 1008
_TOO_BIG: Final = 1009
_BROKEN: Final = 1011
_TRY_LATER: Final = 1013


class SocketSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How sockets behave, and the bounds on them."""

    panel_url: str = ""  # its origin may connect
    allowed_origins: tuple[str, ...] = ()
    dialects: frozenset[Dialect] = frozenset(Dialect)
    max_per_server: int = 30  # as the daemons
    max_total: int = 256  # half of the connections that the server takes: REST must get through
    max_message_bytes: int = 4_096  # as the daemons; a token has some 500
    message_burst: int = 10  # as the daemons
    message_interval_s: float = 0.2
    auth_s: float = 30.0  # to send the first token, or a new one after expiry
    tick_s: float = 30.0  # as the daemons
    expiring_s: float = 60.0
    send_s: float = 30.0  # a client that takes no byte for so long is gone


class Sockets:
    """All open sockets of this node. Args: now, seconds since 1970, for the tokens' times."""

    def __init__(
        self, *, transfers: Transfers, auth: NodeAuth, settings: SocketSettings, now: Callable[[], float]
    ) -> None:
        self._transfers = transfers
        self._auth = auth
        self._settings = settings
        self._now = now
        self._origins = Origins(settings.panel_url, settings.allowed_origins)
        self._open: dict[str, int] = {}

    async def serve(self, websocket: WebSocket) -> None:
        """One socket, from its handshake to its end. Refusals are answered with JSON before the upgrade."""
        tags = {"request_id": request_id(websocket.scope)}
        try:
            server = await self._admit(websocket)
        except SidecarError as error:
            _log.info("socket refused: %s: %s", error.code, printable(error.message), extra=tags)
            await websocket.send_denial_response(problem(error, tags["request_id"]))
            return
        except Exception:  # noqa: BLE001 - the outermost layer of a socket
            _log.exception("a bug in a route", extra=tags)
            internal = HostFailed("transfer.internal", INTERNAL)
            await websocket.send_denial_response(problem(internal, tags["request_id"]))
            return
        self._open[server] = self._open.get(server, 0) + 1
        try:
            await _Session(websocket, server, self._transfers, self._auth, self._settings, self._now).run()
        finally:
            self._open[server] -= 1
            if not self._open[server]:
                del self._open[server]

    async def _admit(self, websocket: WebSocket) -> str:
        server = server_in_path(websocket.scope)
        self._origins.check(websocket.headers.getlist("origin"))
        if self._transfers.view(server) is None:  # a server on its way here has no volume yet, and may be watched
            await self._transfers.server(server)
        is_full = self._open.get(server, 0) >= self._settings.max_per_server
        if is_full or sum(self._open.values()) >= self._settings.max_total:
            raise Refused("socket.too_many", "Too many open websocket connections.")
        return server


class _Over(Exception):
    """The end of a socket. `code` None: the client is gone, or takes nothing; there is no one to tell."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Inbound(msgspec.Struct, frozen=True):
    event: str
    args: list[Any] | None = None


class _Session:
    def __init__(
        self,
        websocket: WebSocket,
        server: str,
        transfers: Transfers,
        auth: NodeAuth,
        settings: SocketSettings,
        now: Callable[[], float],
    ) -> None:
        self._websocket = websocket
        self._server = server
        self._transfers = transfers
        self._auth = auth
        self._settings = settings
        self._now = now
        self._claims: SocketClaims | None = None
        self._speaker = Speaker(settings.dialects)
        self._tags = {"request_id": request_id(websocket.scope)}
        self._allowance = float(settings.message_burst)
        self._allowance_at = asyncio.get_running_loop().time()
        self._is_throttled = False

    async def run(self) -> None:
        over = _Over(None)
        try:
            await self._websocket.accept()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(group))
                group.create_task(self._watch_expiry())
        except* (_Over, WebSocketDisconnect, OSError) as ended:
            overs = [error for error in _flat(ended) if isinstance(error, _Over)]
            over = overs[0] if overs else over
        except* Exception:  # noqa: BLE001 - the outermost layer of a socket
            _log.exception("a bug in a socket", extra=self._tags)
            over = _Over(_BROKEN, "internal error")
        await self._close(over)

    async def _close(self, over: _Over) -> None:
        try:
            if over.code is not None:
                async with asyncio.timeout(_CLOSE_S):
                    await self._websocket.close(over.code, over.reason)
                return
        except (TimeoutError, OSError, RuntimeError, WebSocketDisconnect):
            pass  # it takes not even that
        connection = maybe_connection(self._websocket.scope)
        if connection is not None:
            connection.abort()

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        """The client's messages. Anything but `auth` is ignored: the sidecar has no console to send commands to."""
        forwarding: asyncio.Task[None] | None = None
        while True:
            message = await self._next_message()
            if message is None or message.event != "auth":
                continue
            claims = await self._authenticate(message.args or [])
            if claims is None:
                continue
            is_first = self._claims is None
            self._claims = claims
            await self._send("auth success", sorted(claims.permissions))
            if is_first or forwarding is None:
                await self._send("status", [await self._server_state()])
                forwarding = group.create_task(self._forward())

    async def _next_message(self) -> _Inbound | None:
        """The next message, or None for one that says nothing to us."""
        try:
            async with asyncio.timeout(self._settings.auth_s if self._claims is None else None):
                received = await self._websocket.receive()
        except TimeoutError:
            raise _Over(_POLICY, "no authentication") from None
        if received["type"] == "websocket.disconnect":
            raise _Over(None)
        text = received.get("text")
        raw = text.encode("utf-8", "surrogatepass") if text is not None else received.get("bytes") or b""
        if len(raw) > self._settings.max_message_bytes:
            raise _Over(_TOO_BIG, "message too big")
        if not await self._may_speak():
            return None
        try:
            return msgspec.json.decode(raw, type=_Inbound)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    async def _may_speak(self) -> bool:
        """A bucket of messages that fills slowly; what comes above it is dropped, and said once."""
        now = asyncio.get_running_loop().time()
        earned = (now - self._allowance_at) / self._settings.message_interval_s
        self._allowance = min(float(self._settings.message_burst), self._allowance + earned)
        self._allowance_at = now
        if self._allowance >= 1.0:
            self._allowance -= 1.0
            self._is_throttled = False
            return True
        if not self._is_throttled:
            self._is_throttled = True
            await self._send("throttled", ["global"])
        return False

    async def _authenticate(self, args: list[Any]) -> SocketClaims | None:
        try:
            if not args or not isinstance(args[0], str) or not args[0]:
                raise Refused("auth.jwt", "jwt: no jwt present")
            claims = self._auth.socket_claims(args[0], self._server)
        except Refused as refused:
            _log.info("socket not authenticated: %s", refused.message, extra=self._tags)
            await self._send("jwt error", [f"Error Event [{self._tags['request_id']}]: {refused.message}"])
            return None
        user = printable(claims.user, max_chars=64)
        _log.info("socket of server %s authenticated for user %s", self._server, user, extra=self._tags)
        return claims

    async def _server_state(self) -> str:
        try:
            return (await self._transfers.server(self._server)).state
        except SidecarError:
            return "offline"

    async def _forward(self) -> None:
        """Events of this server's transfers to the client, as long as its token is good."""
        async with aclosing(self._transfers.events(self._server)) as events:
            first = asyncio.ensure_future(anext(events, None))
            try:
                # After one turn of the loop the engine knows of us: nothing is missed between state and events.
                await asyncio.sleep(0)
                view = self._transfers.view(self._server)
                for event, args in self._speaker.current(view) if view is not None else []:
                    await self._send(event, args)
                happened = await first
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
            while happened is not None:
                await self._tell(happened)
                happened = await anext(events, None)
        raise _Over(_TRY_LATER, "too slow")

    async def _tell(self, happened: TransferEvent) -> None:
        claims = self._claims
        if claims is None or claims.expires_at <= self._now():
            return
        for event, args in self._speaker.tell(happened, sees_logs=LOGS_PERMISSION in claims.permissions):
            await self._send(event, args)

    async def _watch_expiry(self) -> None:
        """Tell the page in time to fetch a new token; a socket that never gets one is closed."""
        expired_for_s = 0.0
        while True:
            await asyncio.sleep(self._settings.tick_s)
            if self._claims is None:
                continue
            left_s = self._claims.expires_at - self._now()
            if left_s > 0:
                expired_for_s = 0.0
                if left_s <= self._settings.expiring_s:
                    await self._send("token expiring", [])
                continue
            if expired_for_s > self._settings.auth_s:
                raise _Over(_POLICY, "token expired")
            await self._send("token expired", [])
            expired_for_s += self._settings.tick_s

    async def _send(self, event: str, args: list[str]) -> None:
        """One message. The server holds at most its write buffer; a client that takes nothing is given up."""
        text = msgspec.json.encode({"event": event, "args": args}).decode()
        try:
            async with asyncio.timeout(self._settings.send_s):
                await self._websocket.send_text(text)
        except TimeoutError:
            raise _Over(None, "takes nothing") from None


def _flat(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_flat(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
