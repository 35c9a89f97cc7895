"""The engine's contract, fulfilled without an engine: it remembers what it was asked and answers as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal

from sidecar.engine.contract import Caller, IncomingUpload, ServerView, StartTransfer
from sidecar.errors import Refused
from sidecar.lifecycle.statuses import Role, Status
from sidecar.views import EventKind, Progress, TransferEvent, TransferView

SERVER = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
OTHER = "11111111-2222-4333-8444-555555555555"
TRANSFER = "a0b1c2d3-e4f5-4a6b-8c7d-8e9fa0b1c2d3"

Receiver = Callable[[IncomingUpload], Awaitable[None]]


def view(
    server: str = SERVER, *, role: Role = Role.SOURCE, status: Status = Status.PROCESSING, transfer: str = TRANSFER
) -> TransferView:
    return TransferView(
        transfer=transfer,
        server=server,
        node="node-a",
        role=role,
        direction=role.direction,
        status=status,
        stage="streaming",
        in_doubt=False,
        peer="http://127.0.0.1:1",
        progress=Progress(bytes_done=50, bytes_total=200, files_done=1, files_total=4),
        accepted_at=1.0,
        updated_at=2.0,
        finished_at=None,
        reason=None,
        message=None,
        needs=None,
    )


def status_event(decision: int, status: Status, *, role: Role = Role.SOURCE, server: str = SERVER) -> TransferEvent:
    return TransferEvent(
        kind=EventKind.STATUS,
        transfer=TRANSFER,
        server=server,
        node="node-a",
        role=role,
        decision=decision,
        time=1772663415.25,
        status=status,
        stage="streaming",
    )


def log_event(text: str, *, role: Role = Role.SOURCE) -> TransferEvent:
    return TransferEvent(
        kind=EventKind.LOGS,
        transfer=TRANSFER,
        server=SERVER,
        node="node-a",
        role=role,
        time=1772663415.25,
        status=Status.PROCESSING,
        stage="streaming",
        message=text,
        line=f"documented: {text}",
    )


def progress_event(bytes_done: int) -> TransferEvent:
    return TransferEvent(
        kind=EventKind.PROGRESS,
        transfer=TRANSFER,
        server=SERVER,
        node="node-a",
        role=Role.SOURCE,
        time=1772663415.25,
        status=Status.PROCESSING,
        stage="streaming",
        progress=Progress(bytes_done=bytes_done, bytes_total=100),
    )


class FakeTransfers:
    """`failures[method]` is raised by that method. `receiver` is run with each upload."""

    def __init__(self) -> None:
        self.known: dict[str, ServerView] = {
            SERVER: ServerView(uuid=SERVER, state="running", is_transferring=False, transferred=False, volume="/v")
        }
        self.current: dict[str, TransferView] = {}
        self.failures: dict[str, Exception] = {}
        self.receiver: Receiver | None = None
        self.on_view: Callable[[], None] | None = None
        self.starter: Callable[[Caller | None], Awaitable[None]] | None = None
        self.started: list[tuple[StartTransfer, Caller | None, bool]] = []
        self.received: list[IncomingUpload] = []
        self.cancelled: list[tuple[str, Role]] = []
        self.deleted: list[str] = []
        self.resolved: list[tuple[str, str]] = []
        self.settled: list[tuple[str, str]] = []
        self._consumers: dict[asyncio.Queue[TransferEvent | None], str | None] = {}
        self._consumers_changed = asyncio.Event()

    @property
    def consumers(self) -> int:
        return len(self._consumers)

    async def start(self, request: StartTransfer, *, caller: Caller | None, respond_async: bool) -> TransferView:
        self._maybe_fail("start")
        if request.expires_at is not None and time.time() >= request.expires_at:
            raise Refused("request.expired", "The command's expires_at has passed; nothing was started.")
        self.started.append((request, caller, respond_async))
        if self.starter is not None:
            await self.starter(caller)
        self.current[request.server] = view(request.server)
        return self.current[request.server]

    async def receive(self, upload: IncomingUpload) -> TransferView:
        self.received.append(upload)
        self._maybe_fail("receive")
        if self.receiver is not None:
            await self.receiver(upload)
        return view(upload.server, role=Role.DESTINATION, status=Status.COMPLETED)

    async def cancel(self, server: str, role: Role) -> TransferView:
        self._maybe_fail("cancel")
        if server not in self.current or self.current[server].role is not role:
            raise Refused("transfer.none", "Server is not currently being transferred.")
        self.cancelled.append((server, role))
        return self.current[server]

    async def delete_server(self, server: str) -> bool:
        self._maybe_fail("delete_server")
        await self.server(server)
        self.deleted.append(server)
        return True

    async def resolve(self, server: str, outcome: Literal["completed", "failed"]) -> TransferView:
        self._maybe_fail("resolve")
        self.resolved.append((server, outcome))
        return view(server, status=Status(outcome))

    async def settle(self, server: str, transfer: str) -> Literal["completed", "failed"]:
        self._maybe_fail("settle")
        self.settled.append((server, transfer))
        return "completed"

    def views(self) -> list[TransferView]:
        return list(self.current.values())

    def view(self, server: str) -> TransferView | None:
        if self.on_view is not None:
            self.on_view()
        return self.current.get(server)

    def find(self, transfer: str) -> TransferView | None:
        return next((view for view in self.current.values() if view.transfer == transfer), None)

    async def servers(self) -> list[ServerView]:
        return list(self.known.values())

    async def server(self, server: str) -> ServerView:
        self._maybe_fail("server")
        if server not in self.known:
            raise Refused("server.unknown", "This node has no such server.")
        return self.known[server]

    def events(self, server: str | None) -> AsyncGenerator[TransferEvent, None]:
        return self._consume(server)

    async def publish(self, *events: TransferEvent) -> None:
        for event in events:
            for waiting, server in self._consumers.items():
                if server in (None, event.server):
                    waiting.put_nowait(event)

    async def wait_consumers(self, count: int) -> None:
        while len(self._consumers) != count:
            self._consumers_changed.clear()
            await self._consumers_changed.wait()

    def end_consumers(self) -> None:
        """What the engine does to a consumer that is too slow."""
        for waiting in self._consumers:
            waiting.put_nowait(None)

    async def _consume(self, server: str | None) -> AsyncGenerator[TransferEvent, None]:
        waiting: asyncio.Queue[TransferEvent | None] = asyncio.Queue()
        self._consumers[waiting] = server
        self._consumers_changed.set()
        try:
            while (event := await waiting.get()) is not None:
                yield event
        finally:
            self._consumers.pop(waiting, None)
            self._consumers_changed.set()

    def _maybe_fail(self, method: str) -> None:
        if method in self.failures:
            raise self.failures[method]
