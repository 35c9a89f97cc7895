"""What of the composition root concerns the bus: one connection, and the parts that share it.

Each part is built by a function of its own from what all of them have in common, `Shared`, and adds to it: a check for
readiness, a task that runs until the end, something to be done with each new connection. No part knows another.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from sidecar.api.health import Check
from sidecar.bus.connection import BusConnection, check_bus
from sidecar.bus.mirror import Mirror
from sidecar.bus.settings import BusSettings
from sidecar.bus.subjects import Subjects
from sidecar.engine.node import Node
from sidecar.settings.values import Settings

CANCEL_AGAIN_S: Final = 0.5
FLUSH_S: Final = 2.0  # at the end: the last events of a drained node


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every part of the bus has in common.

    epoch: this run of the program, a word that no other run has, on this node or another of the same id. An event's id
    holds it, and the directory of nodes tells two processes with one node id apart by it.
    """

    settings: Settings
    node: Node
    stack: AsyncExitStack  # closed in reverse, after the node
    connection: BusConnection
    subjects: Subjects
    epoch: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    checks: list[Check] = field(default_factory=list)


async def open_bus(settings: Settings, node: Node, stack: AsyncExitStack) -> list[Check]:
    """Build and start everything on the bus; `stack` ends it. Returns what readiness asks. Waits for no broker."""
    shared = Shared(
        settings=settings,
        node=node,
        stack=stack,
        connection=BusConnection(bus_settings(settings)),
        subjects=Subjects(root=settings.nats.root, node=settings.node.id),
    )
    shared.checks.append(Check("bus", lambda: check_bus(shared.connection), is_required=False))
    await stack.enter_async_context(shared.connection)
    await _events(shared)
    return shared.checks


def bus_settings(settings: Settings) -> BusSettings:
    """How this node reaches the broker. Raises HostFailed (`settings.invalid`)."""
    nats = settings.nats
    return BusSettings(
        urls=nats.urls,
        name=f"transfer-sidecar {settings.node.id}",
        inbox_prefix=f"_INBOX_{settings.node.id}",
        user=nats.user or None,
        password=nats.password.reveal() or None,
        token=nats.token.reveal() or None,
        creds_file=nats.creds,
        nkey_seed=nats.nkey_seed.reveal() or None,
        tls_ca=nats.tls_ca,
        tls_cert=nats.tls_cert,
        tls_key=nats.tls_key,
    )


async def _events(shared: Shared) -> None:
    """Every event of every transfer, to the bus."""
    mirror = Mirror(
        events=lambda: shared.node.events(None),
        connection=shared.connection,
        subjects=shared.subjects,
        epoch=shared.epoch,
    )
    background = await shared.stack.enter_async_context(cancelled_at_the_end())
    background(asyncio.create_task(mirror.run(), name="bus mirror"))
    shared.stack.push_async_callback(mirror.flush, FLUSH_S)


@asynccontextmanager
async def cancelled_at_the_end() -> AsyncIterator[Callable[[asyncio.Task[None]], None]]:
    """Takes tasks, and ends them with the scope."""
    tasks: list[asyncio.Task[None]] = []
    try:
        yield tasks.append
    finally:
        left = set(tasks)
        while left:  # more than once: the bus's client library swallows a cancellation that meets it while it flushes
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
