"""What of the composition root concerns the bus: one connection, and the parts that share it.

Each part is built by a function of its own from what all of them have in common, `Shared`, and adds to it: a check for
readiness, a task that runs until the end, something to be done with each new connection. No part knows another.
"""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from sidecar import __version__
from sidecar.api.health import Check
from sidecar.bus.commands import Commands
from sidecar.bus.connection import BusConnection, check_bus
from sidecar.bus.control import Control, Pace
from sidecar.bus.directory import Directory
from sidecar.bus.entry import EntryMaker
from sidecar.bus.fence import Fence
from sidecar.bus.messages import NodeEntry
from sidecar.bus.mirror import Mirror
from sidecar.bus.outbox import Outbox
from sidecar.bus.readiness import check_events
from sidecar.bus.settings import BusSettings
from sidecar.bus.stream import EventStream
from sidecar.bus.subjects import Subjects
from sidecar.calls.auth import NodeAuth
from sidecar.calls.command_auth import CommandAuth
from sidecar.engine.hub import EventHub
from sidecar.engine.node import Node
from sidecar.engine.runs import remember_run
from sidecar.engine.services import Services
from sidecar.settings.values import CommandAccess, Provision, Settings, StreamCare
from sidecar.wire.headers import PROTOCOL_VERSION

CODECS: Final = ("gzip",)  # what this node says that it reads
CANCEL_AGAIN_S: Final = 0.5
OUTBOX: Final = "outbox.sqlite"
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


@dataclass(frozen=True, kw_only=True)
class Bus:
    """What is on the bus: what readiness asks of it, and the part that has to wait for the node to run."""

    checks: list[Check]
    control: Control


async def open_bus(settings: Settings, services: Services, node: Node, auth: NodeAuth, stack: AsyncExitStack) -> Bus:
    """Build and start everything on the bus but its control; `stack` ends it. Waits for no broker.

    Raises HostFailed (`journal.failed`, `settings.invalid`).
    """
    shared = Shared(
        settings=settings,
        node=node,
        stack=stack,
        connection=BusConnection(bus_settings(settings)),
        subjects=Subjects(root=settings.nats.root, node=settings.node.id),
    )
    shared.checks.append(Check("bus", lambda: check_bus(shared.connection), is_required=False))
    control = await _control(shared, services, auth)
    await stack.enter_async_context(shared.connection)
    await _events(shared, services.hub)
    return Bus(checks=shared.checks, control=control)


def bus_settings(settings: Settings) -> BusSettings:
    """How this node reaches the broker. Raises HostFailed (`settings.invalid`)."""
    node = settings.node.id
    return BusSettings.of(settings.nats, name=f"transfer-sidecar {node}", inbox_prefix=f"_INBOX_{node}")


async def _events(shared: Shared, hub: EventHub) -> None:
    """Every event of every transfer: to the outbox, and from there to the bus."""
    settings, nats = shared.settings, shared.settings.nats
    outbox = Outbox(
        settings.state.dir / OUTBOX,
        node=settings.node.id,
        epoch=shared.epoch,
        budget_bytes=nats.outbox_bytes,
        keep_s=nats.outbox_keep_s,
        on_lost=shared.node.tell_statuses,
    )
    await shared.stack.enter_async_context(outbox)
    hub.attach(outbox)
    stream = EventStream(
        shared.connection,
        shared.subjects,
        name=nats.stream,
        may_create=nats.manage_stream is StreamCare.CREATE,
        is_wanted=nats.jetstream,
    )
    mirror = Mirror(outbox=outbox, connection=shared.connection, subjects=shared.subjects, stream=stream)
    shared.checks.append(Check("events", lambda: check_events(outbox, mirror), is_required=False))
    background = await shared.stack.enter_async_context(cancelled_at_the_end())
    background(asyncio.create_task(mirror.run(), name="bus mirror"))
    shared.stack.push_async_callback(mirror.flush, FLUSH_S)


async def _control(shared: Shared, services: Services, auth: NodeAuth) -> Control:
    """Commands, directory and fence."""
    settings, nats, pace = shared.settings, shared.settings.nats, Pace()
    node, public_url = settings.node.id, settings.api.public_url
    former = await services.in_thread(remember_run, settings.state.dir, shared.epoch)
    volumes = settings.servers.volumes
    entry = EntryMaker(
        NodeEntry(
            node=node,
            epoch=shared.epoch,
            version=__version__,
            protocol=(PROTOCOL_VERSION,),
            codecs=CODECS,
            beside=bool(settings.daemon.url),
            url=f"{public_url.rstrip('/')}/api/transfers" if public_url else None,
            commands=nats.commands.value,
            max_outgoing=settings.transfer.max_outgoing,
            max_incoming=settings.transfer.max_incoming,
            started_at=time.time(),
        ),
        transfers=shared.node,
        free_bytes=lambda: services.in_thread(lambda: shutil.disk_usage(volumes).free),
        now=time.time,
    )
    commands = Commands(
        transfers=shared.node,
        auth=CommandAuth(auth, node=node, is_required=nats.commands is CommandAccess.TOKEN, now=time.time),
        subjects=shared.subjects,
        entry=entry.entry,
        max_bytes=settings.limits.max_json_bytes,
    )
    shown = {"node": node, "epoch": shared.epoch, "protocol": str(PROTOCOL_VERSION)}
    may_create = nats.directory is Provision.CREATE
    directory = Directory(root=nats.root, node=node, may_create=may_create, expiry_s=pace.expiry_s)
    control = Control(
        connection=shared.connection,
        subjects=shared.subjects,
        epoch=shared.epoch,
        fence=Fence(shared.epoch, former, expiry_s=pace.expiry_s),
        directory=None if nats.directory is Provision.OFF else directory,
        service=None if nats.commands is CommandAccess.OFF else commands.service(lambda: shown),
        entry=entry.entry,
        bar=shared.node.bar,
        pace=pace,
    )
    shared.connection.each_connection(control.on_connected)
    shared.checks.append(Check("fence", control.check_fence))
    shared.checks.append(Check("commands", control.check, is_required=False))
    return control


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
