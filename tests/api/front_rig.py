"""A sidecar in front of stand-in daemons: raw ones for HTTP, so that every byte is said, and one for sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from sidecar.api.app import Beside, build_app
from sidecar.api.front import is_passed_on
from sidecar.api.front_line import FrontLimits
from sidecar.api.health import Readiness
from sidecar.api.reading import ApiLimits
from sidecar.api.websocket import SocketSettings
from sidecar.wire.flow import WireLimits
from sidecar.wire.listener import ApiServer
from tests.api.fake_transfers import FakeTransfers
from tests.api.tokens import NOW, auth

Handler = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One connection at the daemon: the request's head, and both streams."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.line, *fields = head.decode("latin-1").split("\r\n")[:-2]
        self.fields = [(name, value) for name, _, value in (field.partition(": ") for field in fields)]
        self.reader = reader
        self.writer = writer

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key.lower() == name), None)

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def body(self) -> bytes:
        """The request's body, taken out of its framing."""
        if self.field("transfer-encoding") is None:
            return await self.reader.readexactly(int(self.field("content-length") or 0))
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def wait_gone(self) -> None:
        """Return once the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass


@asynccontextmanager
async def raw_daemon(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Its URL. Every connection gets one `handler`, and is closed when that returns."""
    tasks = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(Exchange(await reader.readuntil(b"\r\n\r\n"), reader, writer))
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


class Dialled:
    """A plain connection to the sidecar."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def ask(self, head: str, body: bytes = b"") -> None:
        """Args: head, with `|` for line ends and without the last ones."""
        await self.say(head.replace("|", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")

    async def rest(self) -> bytes:
        """What comes until the end. Raises ConnectionError for a reset."""
        return await self.reader.read()


class Fronted:
    def __init__(self, port: int, transfers: FakeTransfers) -> None:
        self.port = port
        self.transfers = transfers

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[Dialled]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Dialled(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def asked(self, head: str, body: bytes = b"") -> bytes:
        """The whole answer to one request on a connection of its own."""
        async with self.dial() as connection:
            await connection.ask(head + "|Connection: close", body)
            return await connection.rest()


@asynccontextmanager
async def fronted(
    daemon_url: str,
    *,
    transfers: FakeTransfers | None = None,
    is_front: bool = True,
    limits: FrontLimits | None = None,
    wire: WireLimits | None = None,
    sockets: SocketSettings | None = None,
    now: Callable[[], float] = lambda: NOW,
) -> AsyncIterator[Fronted]:
    transfers = transfers or FakeTransfers()
    app = build_app(
        transfers=transfers,
        auth=auth(),
        readiness=Readiness([], clock=lambda: 0.0),
        limits=ApiLimits(),
        sockets=sockets or SocketSettings(),
        codecs=("gzip",),
        now=now,
        beside=Beside(daemon_url=daemon_url, is_front=is_front, limits=limits or FrontLimits()),
    )
    server = ApiServer(cast("Any", app), limits=wire, is_streamed=is_passed_on)
    port = await server.start()
    try:
        yield Fronted(port, transfers)
    finally:
        await server.stop(grace_s=1.0)
        assert len(asyncio.all_tasks()) < 20, asyncio.all_tasks()


async def closed_port() -> str:
    """A URL at which nobody listens."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}"
