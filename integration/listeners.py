"""Who listens to a transfer: a subscriber of the bus, and a panel's page on the WebSocket of a node."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, Final

import jwt
import msgspec
import nats
from nats.aio.msg import Msg
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

OPEN_S: Final = 10.0


class BusEvents:
    """Every event on the bus, in the order of its arrival."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.subjects: list[str] = []

    async def take(self, message: Msg) -> None:
        self.events.append(msgspec.json.decode(message.data))
        self.subjects.append(message.subject)

    def of(self, node: str, event: str, server: str) -> list[dict[str, Any]]:
        return [e for e in self.events if (e["node"], e["event"], e["server"]) == (node, event, server)]

    def statuses(self, node: str, server: str) -> list[str]:
        return [event["status"] for event in self.of(node, "transfer.status", server)]

    def lines(self, node: str, server: str) -> list[str]:
        return [event["args"][0] for event in self.of(node, "transfer.logs", server)]

    def numbers(self, server: str) -> dict[tuple[str, str], list[int]]:
        """`seq` of statuses and log lines, by node and transfer."""
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for event in self.events:
            if event["server"] == server and event["event"] != "transfer.progress":
                found[event["node"], event["transfer"]].append(event["seq"])
        return found


@contextlib.asynccontextmanager
async def listening_bus(url: str) -> AsyncIterator[BusEvents]:
    heard = BusEvents()
    client = await nats.connect(url, connect_timeout=5)
    try:
        await client.subscribe("transfer.v1.event.>", cb=heard.take)
        await client.flush()
        yield heard
    finally:
        await client.close()


class Page:
    """What one socket has said."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, list[str]]] = []

    def words(self, event: str) -> list[str]:
        return [word for name, args in self.messages if name == event for word in args]


@contextlib.asynccontextmanager
async def open_page(node_url: str, server: str, *, token: str, origin: str) -> AsyncIterator[Page]:
    """A socket as a panel's page opens it, authenticated when this is entered."""
    page = Page()
    address = f"{node_url.replace('http', 'ws', 1)}/api/servers/{server}/ws"
    async with connect(address, origin=Origin(origin), open_timeout=OPEN_S, proxy=None) as socket:
        await socket.send(msgspec.json.encode({"event": "auth", "args": [socket_token(server, token)]}).decode())
        listening = asyncio.create_task(_listen(socket, page))
        try:
            async with asyncio.timeout(OPEN_S):
                while not page.words("status"):  # noqa: ASYNC110 - a record of what came, not an event
                    await asyncio.sleep(0.01)
            yield page
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening


async def _listen(socket: Any, page: Page) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for text in socket:
            message = msgspec.json.decode(text)
            page.messages.append((message["event"], message.get("args") or []))


def socket_token(server: str, key: str) -> str:
    """As a panel mints it for an administrator."""
    now = int(time.time())
    claims = {
        "iss": "panel",
        "aud": ["node"],
        "jti": "5e1f0b7a",
        "iat": now,
        "nbf": now - 300,
        "exp": now + 600,
        "scope": "websocket",
        "user_uuid": "3d8d1b0c-3f5c-4b7e-9a51-0b8a3a1f6c2d",
        "server_uuid": server,
        "permissions": ["*", "admin.websocket.errors", "admin.websocket.transfer"],
    }
    return jwt.encode(claims, key, algorithm="HS256")
