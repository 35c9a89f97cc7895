"""A node's commands on a real broker, and somebody who sends them."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from sidecar.bus.commands import Commands
from sidecar.bus.connection import BusConnection
from sidecar.bus.control import Control, Pace
from sidecar.bus.directory import Directory
from sidecar.bus.entry import EntryMaker
from sidecar.bus.fence import Fence
from sidecar.bus.messages import NodeEntry
from sidecar.bus.settings import BusSettings
from sidecar.bus.subjects import Subjects
from sidecar.calls.auth import NodeAuth
from sidecar.calls.command_auth import CommandAuth
from sidecar.engine.contract import Transfers
from sidecar.errors import Refused
from tests.api.fake_transfers import SERVER, FakeTransfers
from tests.api.tokens import NODE_TOKEN, signed

NODE: Final = "node-a"
QUICK: Final = Pace(beat_s=0.05, expiry_s=0.5, drain_s=5.0, again_s=0.05)
JETSTREAM: Final = "jetstream {{ store_dir: {store} }}"
BODY: Final[dict[str, Any]] = {
    "url": "https://destination.test/api/transfers",
    "token": "Bearer DESTINATION_JWT",
    "server": {"uuid": SERVER, "start_on_completion": False},
}
_numbers = itertools.count()


def bus_settings(url: str, **changes: object) -> BusSettings:
    quick: dict[str, object] = {
        "urls": (url,),
        "inbox_prefix": f"_INBOX_{NODE}",
        "retry_min_s": 0.02,
        "retry_max_s": 0.1,
        "connect_s": 2.0,
        "drain_s": 1.0,
    }
    return msgspec.convert({**quick, **changes}, BusSettings)


def command_token(command: str = "command", key: str = NODE_TOKEN, **changes: Any) -> str:
    """A token as a panel makes one; claims that are None are left out."""
    now = time.time()
    claims = {"aud": NODE, "jti": f"id-{next(_numbers)}", "iat": now, "exp": now + 60, "scope": command}
    return signed({**claims, **changes}, key)


class Asker:
    """Whoever commands the node: a plain client of the broker."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def ask(
        self,
        command: str,
        body: Any = None,
        *,
        token: str | None = NODE_TOKEN,
        headers: dict[str, str] | None = None,
        node: str = NODE,
        timeout_s: float = 10.0,
    ) -> Msg:
        proof = {"Authorization": f"Bearer {token}"} if token is not None else {}
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return await self.client.request(
            f"transfer.v1.command.{node}.{command}", data, timeout=timeout_s, headers={**proof, **(headers or {})}
        )

    async def told(self, command: str, body: Any = None, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((await self.ask(command, body, **options)).data)
        return answer

    async def code(self, command: str, body: Any = None, **options: Any) -> str:
        """The reason of a refusal, or "" for an answer."""
        return str((await self.told(command, body, **options)).get("code", ""))


@asynccontextmanager
async def asking(url: str, **options: Any) -> AsyncIterator[Asker]:
    client = await nats.connect(url, **options)
    try:
        yield Asker(client)
    finally:
        await client.close()


class Commanded:
    """One process's share of a node on the bus."""

    def __init__(self, transfers: FakeTransfers, control: Control, connection: BusConnection) -> None:
        self.transfers = transfers
        self.control = control
        self.connection = connection
        self.barred: list[str | None] = []

    async def wait(self, condition: Callable[[dict[str, str | bool]], bool]) -> None:
        while not condition(self.control.facts()):  # noqa: ASYNC110 - the public view
            await asyncio.sleep(0.005)

    async def wait_ready(self) -> None:
        await self.wait(lambda facts: facts["commands"] is True)

    async def wait_standing(self, standing: str) -> None:
        await self.wait(lambda facts: facts["standing"] == standing)


@asynccontextmanager
async def commanded(
    url: str,
    *,
    transfers: FakeTransfers | None = None,
    engine: Transfers | None = None,
    is_required: bool = True,
    directory: str = "off",
    epoch: str = "epoch-1",
    former: frozenset[str] = frozenset(),
    pace: Pace = QUICK,
    max_bytes: int = 65536,
    now: Callable[[], float] = time.time,
    **changes: object,
) -> AsyncIterator[Commanded]:
    """Args: engine, a real one in the place of the fake; directory, off, verify or create; changes, of the broker's
    settings."""
    transfers = transfers or FakeTransfers()
    subjects = Subjects(NODE)

    async def free_bytes() -> int:
        return 12345

    maker = EntryMaker(
        NodeEntry(
            node=NODE,
            epoch=epoch,
            version="1.2.3",
            protocol=(1,),
            codecs=("gzip",),
            beside=False,
            url="https://node-a.test/api/transfers",
            commands="token",
            max_outgoing=2,
            max_incoming=2,
            started_at=time.time(),
        ),
        transfers=engine or transfers,
        free_bytes=free_bytes,
        now=now,
    )
    auth = NodeAuth(NODE_TOKEN, require_scope=False, now=now)
    commands = Commands(
        transfers=engine or transfers,
        auth=CommandAuth(auth, node=NODE, is_required=is_required, now=now),
        subjects=subjects,
        entry=maker.entry,
        max_bytes=max_bytes,
    )

    async def on_connected(client: Client) -> None:
        await control.on_connected(client)

    def bar(reason: Refused | None) -> None:
        node.barred.append(reason.code if reason is not None else None)

    connection = BusConnection(bus_settings(url, **changes), on_connected=on_connected)
    shelf = Directory(root="transfer", node=NODE, may_create=directory == "create", expiry_s=pace.expiry_s)
    control = Control(
        connection=connection,
        subjects=subjects,
        epoch=epoch,
        fence=Fence(epoch, former, expiry_s=pace.expiry_s),
        directory=None if directory == "off" else shelf,
        service=commands.service(lambda: {"node": NODE, "epoch": epoch}),
        entry=maker.entry,
        bar=bar,
        pace=pace,
    )
    node = Commanded(transfers, control, connection)
    async with connection, control.running():
        yield node
