"""One console socket between a client and the node daemon: both directions, and the sidecar's events in between.

What is added, held back and passed on is said in `passthrough.py`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from sidecar.api.dialects import Speaker
from sidecar.api.front_headers import for_handshake
from sidecar.api.front_line import FrontLimits
from sidecar.api.reading import request_id
from sidecar.api.websocket import LOGS_PERMISSION, SocketSettings
from sidecar.calls.auth import NodeAuth, SocketClaims
from sidecar.engine.contract import Transfers
from sidecar.errors import Refused
from sidecar.lifecycle.statuses import Role
from sidecar.settings.values import Dialect
from sidecar.views import EventKind

_log = logging.getLogger(__name__)

CLOSE_S: Final = 2.0  # for the other side's half of a closing handshake
_ANSWER_S: Final = 10.0  # a daemon that has not answered an `auth` by then has dropped it (rate limit)
_LOOKED_AT_CHARS: Final = 16 << 10  # longer messages are console output, never one of the words below
_WORDS: Final = re.compile(r'"(?:auth success|jwt error|token expired|transfer status)"')
_AUTH: Final = re.compile(r'"auth"')

# Close codes. Source: RFC 6455 section 7.4.1, the IANA registry (1012 to 1014).
_NORMAL: Final = 1000
_NO_CODE: Final = 1005
_LOST: Final = 1006
_POLICY: Final = 1008
_BROKEN: Final = 1011
_TRY_LATER: Final = 1013
_BAD_GATEWAY: Final = 1014
_UNSENDABLE: Final = frozenset({_NO_CODE, _LOST, 1015})


class _Message(msgspec.Struct, frozen=True):
    event: str
    args: list[Any] | None = None


_MESSAGE: Final = msgspec.json.Decoder(_Message)


class _Ended(Exception):
    """The end of a socket: what is still to be told to the client and the daemon. None: cut, there is nobody left."""

    def __init__(self, *, client: tuple[int, str] | None, daemon: tuple[int, str] | None) -> None:
        super().__init__()
        self.client = client
        self.daemon = daemon


class Grants:
    """What the daemon's answers say about the tokens that the client has sent.

    An answer does not name its token, and a client may send several at once: an acceptance then grants only what all
    of those permit that are not answered yet.
    """

    def __init__(self) -> None:
        self.current: SocketClaims | None = None
        self._waiting: SocketClaims | None = None
        self._unanswered = 0
        self._asked_at = 0.0

    def asked(self, claims: SocketClaims | None, at_s: float) -> None:
        """The client has sent a token; None: one that says nothing to us. Args: at_s, a monotonic time."""
        if at_s - self._asked_at > _ANSWER_S:
            self._unanswered = 0
        self._asked_at = at_s
        self._waiting = claims if self._unanswered == 0 else _both(self._waiting, claims)
        self._unanswered += 1

    def accepted(self) -> None:
        if self._unanswered:
            self.current = self._waiting
            self._unanswered -= 1

    def refused(self) -> None:
        self._unanswered = max(0, self._unanswered - 1)

    def expired(self) -> None:
        self.current = None


def _both(one: SocketClaims | None, other: SocketClaims | None) -> SocketClaims | None:
    if one is None or other is None:
        return None
    return SocketClaims(
        one.server, other.user, one.permissions & other.permissions, min(one.expires_at, other.expires_at)
    )


class Session:
    """One socket whose two handshakes are done or, on the client's side, about to be."""

    def __init__(
        self,
        websocket: WebSocket,
        daemon: ClientConnection,
        server: str | None,
        transfers: Transfers,
        auth: NodeAuth,
        settings: SocketSettings,
        limits: FrontLimits,
        now: Callable[[], float],
    ) -> None:
        self._websocket = websocket
        self._daemon = daemon
        self._server = server
        self._transfers = transfers
        self._auth = auth
        self._settings = settings
        self._limits = limits
        self._now = now
        self._grants = Grants()
        self._speaker = Speaker(settings.dialects)
        self._said: set[str] = set()  # words of the daemon dialect, of transfer `_said_of`
        self._said_of = ""
        self._accepted_once = asyncio.Event()  # a token, by the daemon
        self._authenticated = asyncio.Event()  # a token that is good to us too
        self._tags = {"request_id": request_id(websocket.scope)}

    async def run(self) -> None:
        ended = _Ended(client=(_BROKEN, "internal error"), daemon=(_NORMAL, ""))
        try:
            await self._websocket.accept(self._daemon.subprotocol, self._handshake_fields())
            async with asyncio.TaskGroup() as group:
                group.create_task(self._client_to_daemon())
                group.create_task(self._daemon_to_client())
                if self._server is not None:
                    group.create_task(self._merge(self._server))
                    group.create_task(self._hurry())
        except* _Ended as group_of:
            ended = next(error for error in group_of.exceptions if isinstance(error, _Ended))
        except* (WebSocketDisconnect, OSError):
            ended = _Ended(client=None, daemon=None)
        except* Exception:  # noqa: BLE001 - the outermost layer of a socket
            _log.exception("a bug in a socket", extra=self._tags)
        await self._end(ended)

    def _handshake_fields(self) -> list[tuple[bytes, bytes]]:
        response = self._daemon.response
        assert response is not None
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]
        return for_handshake(fields)

    async def _end(self, ended: _Ended) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._close_client(ended.client))
            group.create_task(self._close_daemon(ended.daemon))

    async def _close_client(self, word: tuple[int, str] | None) -> None:
        if word is None:
            return  # returning from the application closes what is left
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._websocket.close(*word)
        except (TimeoutError, OSError, RuntimeError, WebSocketDisconnect):
            pass  # it takes not even that

    async def _close_daemon(self, word: tuple[int, str] | None) -> None:
        if word is None:
            self._daemon.transport.abort()
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                if word[0] == _NO_CODE:
                    self._daemon.protocol.send_close()
                    for data in self._daemon.protocol.data_to_send():
                        self._daemon.transport.write(data)
                    await self._daemon.wait_closed()
                else:
                    await self._daemon.close(*word)
        except (TimeoutError, OSError, WebSocketException):
            pass

    # the two directions

    async def _client_to_daemon(self) -> None:
        while True:
            received = await self._websocket.receive()
            if received["type"] == "websocket.disconnect":
                code = received.get("code", _NO_CODE)
                if "reason" not in received or code in (_LOST, 1015):  # no close frame: the connection itself ended
                    raise _Ended(client=None, daemon=None)
                raise _Ended(client=None, daemon=(code, received["reason"] or ""))
            text = received.get("text")
            if text is not None:
                self._hear_client(text)
            try:
                async with asyncio.timeout(self._limits.stall_s):
                    await self._daemon.send(text if text is not None else received["bytes"])
            except TimeoutError:
                raise _Ended(client=(_BAD_GATEWAY, "the node daemon takes nothing"), daemon=None) from None
            except ConnectionClosed:
                return  # the other direction knows with which word

    async def _daemon_to_client(self) -> None:
        while True:
            try:
                message = await self._daemon.recv()
            except ConnectionClosed as closed:
                raise _Ended(client=_last_word(closed), daemon=None) from None
            message_of = self._hear_daemon(message) if isinstance(message, str) else None
            if message_of is not None and self._is_held_back(message_of):
                continue
            await self._to_client(message)
            if message_of is not None and message_of.event == "auth success":
                self._grants.accepted()
                if self._grants.current is not None:
                    self._authenticated.set()

    async def _to_client(self, message: str | bytes) -> None:
        try:
            async with asyncio.timeout(self._limits.stall_s):
                if isinstance(message, str):
                    await self._websocket.send_text(message)
                else:
                    await self._websocket.send_bytes(message)
        except TimeoutError:
            raise _Ended(client=None, daemon=(_NORMAL, "")) from None

    # listening along

    def _hear_client(self, text: str) -> None:
        if self._server is None or len(text) > _LOOKED_AT_CHARS or _AUTH.search(text) is None:
            return
        message = _maybe_message(text)
        if message is None or message.event != "auth":
            return
        token = message.args[0] if message.args else None
        claims = None
        if isinstance(token, str):
            try:
                claims = self._auth.socket_claims(token, self._server)
            except Refused as refused:
                _log.info("a socket's token says nothing to the sidecar: %s", refused.message, extra=self._tags)
        self._grants.asked(claims, asyncio.get_running_loop().time())

    def _hear_daemon(self, text: str) -> _Message | None:
        """The message, if it is one of those that concern us."""
        if self._server is None or len(text) > _LOOKED_AT_CHARS or _WORDS.search(text) is None:
            return None
        message = _maybe_message(text)
        if message is not None and message.event == "jwt error":
            self._grants.refused()
        elif message is not None and message.event == "token expired":
            self._grants.expired()
        elif message is not None and message.event == "auth success":
            self._accepted_once.set()
        return message

    def _is_held_back(self, message: _Message) -> bool:
        """Whether a `transfer status` is about the errand of a hand-over, and the sidecar tells the transfer itself."""
        if message.event != "transfer status" or self._server is None or not self._hears():
            return False
        view = self._transfers.view(self._server)
        if view is None or view.role is not Role.DESTINATION or Dialect.DAEMON not in self._settings.dialects:
            return False
        word = message.args[0] if message.args else None
        return not view.status.is_final or (view.transfer == self._said_of and word in self._said)

    def _hears(self) -> bool:
        claims = self._grants.current
        return claims is not None and self._now() < claims.expires_at

    # the sidecar's own events

    async def _merge(self, server: str) -> None:
        await self._authenticated.wait()
        async with aclosing(self._transfers.events(server)) as events:
            following = asyncio.ensure_future(anext(events, None))
            try:
                # After one turn of the loop the engine knows of us: nothing is missed between state and events.
                await asyncio.sleep(0)
                view = self._transfers.view(server)
                for event, args in self._speaker.current(view) if view is not None else []:
                    await self._tell(event, args)
                happened = await following
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            while happened is not None:
                claims = self._grants.current
                if claims is not None and self._hears():
                    messages = self._speaker.tell(happened, sees_logs=LOGS_PERMISSION in claims.permissions)
                    if happened.kind is EventKind.STATUS:
                        self._remember(happened.transfer, messages)
                    for event, args in messages:
                        await self._tell(event, args)
                happened = await anext(events, None)
        raise _Ended(client=(_TRY_LATER, "too slow"), daemon=(_NORMAL, ""))

    def _remember(self, transfer: str, messages: list[tuple[str, list[str]]]) -> None:
        if transfer != self._said_of:
            self._said_of = transfer
            self._said.clear()
        self._said |= {word for event, args in messages if event == "transfer status" for word in args}

    async def _tell(self, event: str, args: list[str]) -> None:
        await self._to_client(msgspec.json.encode({"event": event, "args": args}).decode())

    # the time to authenticate: some daemons set none, and a place here is worth something

    async def _hurry(self) -> None:
        try:
            async with asyncio.timeout(self._settings.auth_s):
                await self._accepted_once.wait()
        except TimeoutError:
            raise _Ended(client=(_POLICY, "no authentication"), daemon=(_POLICY, "no authentication")) from None


def _maybe_message(text: str) -> _Message | None:
    try:
        return _MESSAGE.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _last_word(closed: ConnectionClosed) -> tuple[int, str]:
    """What the client is told when the connection to the daemon is over."""
    if closed.rcvd is not None and not (closed.sent is not None and closed.rcvd_then_sent is False):
        if closed.rcvd.code == _NO_CODE:
            return _NORMAL, ""
        return (_BAD_GATEWAY, "") if closed.rcvd.code in _UNSENDABLE else (closed.rcvd.code, closed.rcvd.reason)
    if closed.sent is not None:  # our end of it found fault: too big, not UTF-8
        return closed.sent.code, closed.sent.reason
    return _BAD_GATEWAY, "the node daemon hung up"
