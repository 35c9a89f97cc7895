"""A node's API on loopback, served by the real server, with an engine that is told what to say."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, cast

import httpx
from websockets.asyncio.client import ClientConnection, connect

from sidecar.api.app import build_app
from sidecar.api.health import Readiness
from sidecar.api.reading import ApiLimits
from sidecar.api.websocket import SocketSettings
from sidecar.wire.listener import ApiServer
from tests.api.fake_transfers import SERVER, FakeTransfers
from tests.api.tokens import NODE_TOKEN, NOW, auth, bearer

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own, within 15 s."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(15):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


class Node:
    def __init__(self, transfers: FakeTransfers, port: int, http: httpx.AsyncClient) -> None:
        self.transfers = transfers
        self.port = port
        self.http = http

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A request with the node token, unless headers are given."""
        options.setdefault("headers", bearer(NODE_TOKEN))
        return await self.http.request(method, path, **options)

    def socket(self, server: str = SERVER, **options: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}/api/servers/{server}/ws", proxy=None, **options)

    async def raw(self, head: str, body: bytes = b"") -> bytes:
        """What the node answers on a plain connection until it closes it; a reset counts as the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            await writer.drain()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def node(
    transfers: FakeTransfers | None = None,
    *,
    require_scope: bool = False,
    respond_async: bool = False,
    sockets: SocketSettings | None = None,
    limits: ApiLimits | None = None,
    readiness: Readiness | None = None,
    now: Callable[[], float] = lambda: NOW,
    engine_info: Any = None,
    metrics_token: str = "",
) -> AsyncIterator[Node]:
    transfers = transfers or FakeTransfers()
    app = build_app(
        transfers=transfers,
        auth=auth(require_scope=require_scope),
        readiness=readiness or Readiness([], clock=lambda: 0.0),
        limits=limits or ApiLimits(),
        sockets=sockets or SocketSettings(),
        codecs=("gzip", "zstd"),
        respond_async=respond_async,
        engine_info=engine_info,
        now=now,
        metrics_token=metrics_token,
    )
    server = ApiServer(cast("Any", app))
    port = await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            yield Node(transfers, port, http)
    finally:
        await server.stop(grace_s=1.0)


class Talk:
    """The client's side of a WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, event: str, *args: str) -> None:
        await self.connection.send(json.dumps({"event": event, "args": list(args)}))

    async def hear(self) -> tuple[str, list[str]]:
        message = json.loads(await self.connection.recv())
        return message["event"], message["args"]
