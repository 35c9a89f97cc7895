"""The console socket of a stand-in node daemon: authentication in the first message, then events both ways.

The order after `auth success` is the real one's: `status`, and from the Go daemons `stats` for a server that is offline
and neither installed nor transferred. Limits on the rate of messages are left out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import jwt
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from sidecar.demo.daemon_servers import CLOSED, DaemonServer, Power
from sidecar.demo.daemon_words import is_go, message, usage
from sidecar.demo.panel_documents import Family

_GOING_AWAY: Final = 1001
_CONNECT: Final = "websocket.connect"
_TRANSFER: Final = "admin.websocket.transfer"
_POWER: Final = {
    "start": "control.start", "restart": "control.restart", "stop": "control.stop", "kill": "control.stop",
}  # fmt: skip


class Console:
    """One connection. `key`: the node's token; `origin`: the panel's."""

    def __init__(
        self, power: Power, server: DaemonServer, socket: WebSocket, *, key: str, origin: str, booted: float
    ) -> None:
        self._power = power
        self._family = power.family
        self._server = server
        self._socket = socket
        self._key = key
        self._origin = origin
        self._booted = booted
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._claims: dict[str, Any] | None = None

    async def run(self) -> None:
        """Until either side ends it."""
        if is_go(self._family) and self._socket.headers.get("Origin") != self._origin:
            await self._socket.send_denial_response(Response("Forbidden", 403))
            return
        await self._socket.accept()
        self._server.listeners.add(self._queue)
        reading = asyncio.create_task(self._read())
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._server.listeners.discard(self._queue)
            for task in (reading, writing):
                task.cancel()
            await asyncio.wait({reading, writing})

    async def _read(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                text = await self._socket.receive_text()
                try:
                    said = json.loads(text)
                    event, args = str(said["event"]), [str(arg) for arg in said.get("args") or ()]
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                if not await self._handle(event, args):
                    await self._socket.close()
                    return

    async def _write(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                text = await self._queue.get()
                if text == CLOSED:
                    await self._socket.close(_GOING_AWAY, "server deleted")
                    return
                if self._claims is None or ('"transfer logs"' in text and not self._may(_TRANSFER)):
                    continue
                await self._socket.send_text(text)

    async def _say(self, event: str, *args: str) -> None:
        await self._socket.send_text(message(self._family, event, *args))

    def _may(self, permission: str) -> bool:
        permissions = (self._claims or {}).get("permissions") or []
        return permission in permissions or ("*" in permissions and not permission.startswith("admin"))

    async def _handle(self, event: str, args: list[str]) -> bool:
        """False: the daemon closes the connection."""
        if event == "auth":
            return await self._authenticate("".join(args))
        if self._claims is None:
            if self._family is Family.CALAGOPUS:
                return False
            await self._say("jwt error", "jwt: no jwt present")
            return True
        match event:
            case "set state" if (action := "".join(args)) in _POWER and self._may(_POWER[action]):
                self._power.act(self._server, action)
            case "send command" if self._may("control.console") and self._server.container is not None:
                await self._power.containers.write(self._server.container, "".join(args))
                self._power.publish(self._server, "console output", "".join(args))
            case "send stats":
                await self._say("stats", json.dumps(usage(self._server.state, 0)))
        return True

    async def _authenticate(self, token: str) -> bool:
        try:
            claims = jwt.decode(token, self._key, algorithms=["HS256"], options={"verify_aud": False})
        except jwt.ExpiredSignatureError:
            await self._say("jwt error", "jwt: exp claim is invalid" if is_go(self._family) else "JWT expired")
            return True
        except jwt.InvalidTokenError:
            if self._family is Family.CALAGOPUS:
                return False
            await self._say("daemon error", "an unexpected error was encountered")
            return True
        wrong = self._wrong_with(claims)
        if wrong is not None:
            if self._family is Family.CALAGOPUS:
                return False
            await self._say("jwt error", wrong)
            return True
        is_first, self._claims = self._claims is None, claims
        permissions = [] if is_go(self._family) else [str(name) for name in claims["permissions"]]
        await self._say("auth success", *permissions)
        if is_first:
            state = self._server.state
            await self._say("status", state)
            if is_go(self._family) and state == "offline" and not self._server.is_transferring:
                await self._say("stats", json.dumps(usage(state, 0), separators=(",", ":")))
        return True

    def _wrong_with(self, claims: dict[str, Any]) -> str | None:
        checks: list[tuple[Callable[[], bool], str]] = [
            (lambda: int(claims.get("iat", 0)) >= int(self._booted), "jwt: created too far in past (denylist)"),
            (lambda: int(claims["iat"]) <= time.time(), "jwt: iat claim is invalid"),
            (lambda: _CONNECT in claims.get("permissions", ()) or "*" in claims["permissions"],
             "jwt: missing connect permission"),
            (lambda: claims.get("server_uuid") == self._server.uuid, "jwt: server uuid mismatch"),
            (lambda: self._family is not Family.PELICAN or "websocket" in str(claims.get("scope", "")).split(),
             "jwt: missing scope"),
            (lambda: is_go(self._family) or {"iss", "aud", "jti"} <= claims.keys(), "jwt: claims are missing"),
        ]  # fmt: skip
        return next((words for holds, words in checks if not holds()), None)
