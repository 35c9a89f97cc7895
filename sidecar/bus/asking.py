"""The other side of the commands: one request to a node, and a look into the directory, for the command line.

Uses nothing but what `docs/PROTOCOL.md` tells everybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from uuid import uuid4

import jwt
import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from sidecar.bus.connection import BusConnection, BusDown
from sidecar.bus.directory import bucket_name
from sidecar.bus.messages import NodeEntry
from sidecar.bus.settings import BusSettings
from sidecar.bus.subjects import Subjects

T = TypeVar("T")

TOKEN_S: Final = 60.0
ANSWER_S: Final = 15.0
CONSUMER_S: Final = 10.0  # what a look leaves on the broker is gone after this
_ERRORS: Final = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError, ValueError)


class NotReached(Exception):
    """The broker, the node or the directory did not answer; the text says why."""


class NodeRefused(Exception):
    """The node's own refusal. code: a key of `errors.CODES`, of its version of the program."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


class Begun(msgspec.Struct, frozen=True):
    """What `start` and `cancel` answer, as far as it is shown; of any version of the program."""

    transfer: str
    status: str


class ListedProgress(msgspec.Struct, frozen=True):
    percent: float | None = None


class ListedTransfer(msgspec.Struct, frozen=True):
    server: str
    direction: str
    status: str
    progress: ListedProgress = ListedProgress()
    peer: str | None = None
    reason: str | None = None


class Listed(msgspec.Struct, frozen=True):
    """What `list` answers, as far as it is shown."""

    transfers: tuple[ListedTransfer, ...]


def understood(node: str, answer: dict[str, Any], form: type[T]) -> T:
    """A node's answer in its form. Raises NotReached where it has another."""
    try:
        return msgspec.convert(answer, form)
    except msgspec.ValidationError as error:
        raise NotReached(f"{node}: its answer is not understood: {error}") from error


class Asker:
    """Args: client, connected; root of the subjects."""

    def __init__(self, client: Client, root: str) -> None:
        self._client = client
        self._root = root

    async def ask(self, node: str, command: str, body: dict[str, Any], *, key: str | None) -> dict[str, Any]:
        """One command. Args: key, that node's token, with which a token for this command is made; None: without proof.

        Raises NotReached, NodeRefused, ValueError for a node id that is none.
        """
        headers = {} if key is None else {"Authorization": f"Bearer {command_token(node, command, key)}"}
        subject = Subjects(node, self._root).command(command)
        try:
            reply = await self._client.request(
                subject, msgspec.json.encode(body), timeout=ANSWER_S, headers=headers or None
            )
            answer = msgspec.json.decode(reply.data, type=dict[str, Any])
        except nats.errors.NoRespondersError as error:
            raise NotReached(f"no node {node} takes commands on this bus") from error
        except (*_ERRORS, msgspec.DecodeError) as error:
            raise NotReached(f"{node}: {_words(error)}") from error
        if isinstance(answer.get("code"), str):
            sentence = answer.get("detail") or answer.get("error")
            raise NodeRefused(answer["code"], str(sentence))
        return answer

    async def nodes(self) -> list[NodeEntry]:
        """Who is in the directory, by name. Left out: what this version cannot read, and who names another.

        Raises NotReached.
        """
        try:
            entries = await self._client.jetstream(timeout=ANSWER_S).key_value(bucket_name(self._root))
            watcher = await entries.watchall(ignore_deletes=True, inactive_threshold=CONSUMER_S)
            try:
                found = []
                async with asyncio.timeout(ANSWER_S):
                    while (entry := await watcher.updates(timeout=ANSWER_S)) is not None:  # type: ignore[no-untyped-call]
                        found.append((entry.key, entry.value or b""))
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]
        except nats.js.errors.BucketNotFoundError as error:
            raise NotReached(f"there is no directory {bucket_name(self._root)} on this bus") from error
        except _ERRORS as error:
            raise NotReached(f"the directory: {_words(error)}") from error
        nodes = []
        for key, value in found:
            try:
                node = msgspec.json.decode(value, type=NodeEntry)
            except msgspec.DecodeError:
                continue
            if node.node == key:  # the broker binds a node to its key, not to what it writes there
                nodes.append(node)
        return sorted(nodes, key=lambda node: node.node)


@asynccontextmanager
async def connected(settings: BusSettings) -> AsyncIterator[tuple[BusConnection, Client]]:
    """One connection for as long as the block. Raises NotReached."""
    clients: list[Client] = []

    async def keep(client: Client) -> None:
        clients.append(client)

    async with BusConnection(settings, on_connected=keep) as connection:
        try:
            async with asyncio.timeout(settings.connect_s):
                await connection.wait_connected()
        except (TimeoutError, BusDown) as error:
            raise NotReached(f"{settings.shown_urls}: {connection.last_error or 'no answer'}") from error
        yield connection, clients[-1]


@asynccontextmanager
async def asking(settings: BusSettings, root: str) -> AsyncIterator[Asker]:
    """As `connected`, for questions."""
    async with connected(settings) as (_, client):
        yield Asker(client, root)


def command_token(node: str, command: str, key: str) -> str:
    """A token for one command of one node. Args: key, that node's token."""
    now = time.time()
    claims = {"aud": node, "scope": command, "jti": str(uuid4()), "iat": now, "exp": now + TOKEN_S}
    return jwt.encode(claims, key, algorithm="HS256")


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
