"""An ASGI application served on loopback inside the running loop, able to close a connection without an answer.

uvicorn under a task: it takes no signals here, and nothing of it is left after `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final, cast

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_GRACE_S: Final = 1
_TRANSPORT: Final = "loopback.transport"


class Dropped(Response):
    """Closes the connection without an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][_TRANSPORT].abort()
        while (await receive())["type"] != "http.disconnect":
            pass


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which hands its transport to the application: nothing in ASGI closes a connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {_TRANSPORT: self.transport}


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's loop: it takes no signals, and tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.leaving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # the headers that every answer has
        await self.leaving.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Without uvicorn's fixed pause: idle connections are closed at once, calls under way get a moment."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        calls = set(self.server_state.tasks)
        if calls:
            _, late = await asyncio.wait(calls, timeout=_GRACE_S)
            for call in late:
                call.cancel()
            if late:
                await asyncio.wait(late)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the transports tell their protocols


class LoopbackServer:
    """Listens on 127.0.0.1 between `start` and `stop`; `port` 0 takes a free one and keeps it."""

    def __init__(self, app: ASGIApp, *, port: int = 0, websockets: bool = False) -> None:
        self._app = app
        self._port = port
        self._websockets = websockets
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Returns the URL when connections are accepted."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        server = _Server(
            uvicorn.Config(
                self._app,
                http=_Protocol,
                ws="websockets-sansio" if self._websockets else "none",
                lifespan="off",
                log_config=None,
                access_log=False,
            )
        )
        self._server = server
        self._serving = asyncio.create_task(server.serve(sockets=[listener]), name="loopback server")
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait((self._serving, listening), return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            listening.cancel()
            await self._serving  # raises why
        return f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Close the listener and the connections; calls under way get a second."""
        server, serving = self._server, self._serving
        self._server = self._serving = None
        if server is not None and serving is not None:
            server.leaving.set()
            await serving
