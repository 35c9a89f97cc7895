"""This node on the bus, beside its events: its commands, its entry in the directory, and its fence.

On each new connection, and every `beat_s` from then on: look whose the node's id is, renew the entry, say "here", and
take commands if the id is this process's own. "Here" is said on a subject of the node's own, which every process of
that id hears: so the broker proves that subscriptions are in place (ours comes back), and each of two processes of one
id hears of the other, fenced or not, with a directory or without.

Nothing waits for any of this, and no failure of it stops anything but commands.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from sidecar.bus.connection import BusConnection, BusDown
from sidecar.bus.directory import Directory, Moved, Unavailable
from sidecar.bus.fence import Fence, Standing
from sidecar.bus.messages import NodeEntry
from sidecar.bus.service import Service
from sidecar.bus.subjects import Subjects
from sidecar.errors import HostFailed, Refused

_log = logging.getLogger(__name__)

HERE_S: Final = 5.0  # our own word comes back from the broker within milliseconds
LEAVE_S: Final = 2.0  # a broker that does not answer at the end lets the entry age
CLAIMS: Final = 3  # tries of one beat, where somebody else writes at the same time
_BUS_ERRORS: Final = (nats.errors.Error, OSError, TimeoutError, ValueError)

_encode = msgspec.json.Encoder().encode


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. Tests make them short."""

    beat_s: float = 10.0
    expiry_s: float = 35.0  # three beats and a little
    drain_s: float = 5.0  # for commands in flight at the end
    again_s: float = 1.0  # after a failure on a connection that stands


class _Here(msgspec.Struct, frozen=True):
    epoch: str


class Control:
    """Use it as `async with control.running():`, once the engine takes transfers.

    Args: connection; subjects; epoch, the name of this run; fence; directory, None where the settings want none;
    service, None where they want no commands; entry, this node as it is now; bar, told why no transfer may begin, or
    None.
    """

    def __init__(
        self,
        *,
        connection: BusConnection,
        subjects: Subjects,
        epoch: str,
        fence: Fence,
        directory: Directory | None,
        service: Service | None,
        entry: Callable[[], Awaitable[NodeEntry]],
        bar: Callable[[Refused | None], None],
        pace: Pace | None = None,
    ) -> None:
        self._connection = connection
        self._subjects = subjects
        self._epoch = epoch
        self._fence = fence
        self._directory = directory
        self._service = service
        self._entry = entry
        self._bar = bar
        self._pace = pace or Pace()
        self._client: Client | None = None
        self._fresh = asyncio.Event()
        self._here = asyncio.Event()
        self._is_ready = False
        self._is_granted: bool | None = None  # whether the broker took the subscriptions; None: not known yet
        self._no_directory = "not looked for yet"
        self._rival: tuple[str, float] | None = None  # who was heard, and when
        self._said_standing = Standing.UNTOLD

    async def on_connected(self, client: Client) -> None:
        """To be run with each new connection."""
        self._client = client
        self._is_ready = False
        self._fresh.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """On leaving, the entry is given up and commands in flight are answered, within `drain_s`."""
        if self._service is None:
            async with self._living():
                yield
        else:
            async with self._service.running(self._pace.drain_s), self._living():
                yield

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[None]:
        life = asyncio.create_task(self._live(), name="bus control")
        try:
            yield
        finally:
            while not life.done():  # more than once: the client library swallows a cancellation that meets a flush
                life.cancel()
                await asyncio.wait({life}, timeout=0.5)
            if self._directory is not None and self._fence.standing is Standing.HELD and self._connection.is_connected:
                with suppress(Unavailable, Moved, TimeoutError):
                    async with asyncio.timeout(LEAVE_S):
                        await self._directory.leave(self._fence.revision)

    # -- readiness -----------------------------------------------------------------------------------------------------
    async def check_fence(self) -> dict[str, Any]:
        """Readiness, required. Raises Refused (`node.fenced`)."""
        if self._fence.standing is Standing.FENCED:
            raise self._reason()
        return {}

    async def check(self) -> dict[str, Any]:
        """Readiness of commands and directory. Raises HostFailed (`bus.*`), Refused (`node.fenced`): degraded."""
        facts = self.facts()
        if self._fence.standing is Standing.FENCED:
            raise Refused("node.fenced", self._reason().message, **facts)
        if not self._connection.is_connected:
            raise HostFailed("bus.down", "The broker cannot be reached; no command arrives.", **facts)
        if not self._is_ready:
            raise HostFailed("bus.denied", "The broker has not confirmed the subscriptions of this node.", **facts)
        if (rival := self._heard()) is not None:
            raise HostFailed("bus.rival", f"Another sidecar, {rival}, uses this node's id on the bus.", **facts)
        if self._no_directory and self._directory is not None:
            raise HostFailed("bus.no_directory", f"No directory: {self._no_directory}.", **facts)
        return dict(facts)

    def facts(self) -> dict[str, str | bool]:
        facts: dict[str, str | bool] = {"epoch": self._epoch, "standing": self._fence.standing.value}
        facts["commands"] = self._service is not None and self._service.is_open and self._is_ready
        facts["directory"] = "off" if self._directory is None else self._no_directory or "ok"
        if (rival := self._heard()) is not None:
            facts["rival"] = rival
        return facts

    def _heard(self) -> str | None:
        if self._rival is None or self._now() - self._rival[1] > self._pace.expiry_s:
            return None
        return self._rival[0]

    # -- life ----------------------------------------------------------------------------------------------------------
    async def _live(self) -> None:
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            client = self._client
            assert client is not None
            is_settled = False
            try:
                await self._connection.wait_connected()  # from now on it counts what the broker denies
            except BusDown:
                return
            while not self._fresh.is_set():
                try:
                    if not is_settled:
                        await self._settle_in(client)
                        is_settled = True
                    await self._beat(client)
                    await self._wait(self._pace.beat_s * random.uniform(0.8, 1.0))  # not all nodes at once
                except Exception as error:  # noqa: BLE001 - this goes on for as long as the node does
                    if not isinstance(error, _BUS_ERRORS):
                        _log.exception("a bug in the node's life on the bus")
                    _log.debug("bus: control: %s", error)
                    self._is_ready = False
                    await self._wait(self._pace.again_s)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._fresh.wait()

    async def _settle_in(self, client: Client) -> None:
        if self._directory is not None:
            self._directory.bind(client)
        self._fence.reconnected(self._now())
        self._is_granted = None
        await client.subscribe(self._subjects.own("here"), cb=self._on_here)
        if self._service is not None:
            self._service.forget()
            await self._service.show(client)

    async def _beat(self, client: Client) -> None:
        await self._claim()
        self._apply()
        denied = self._connection.facts()["denied"]
        if self._fence.standing is Standing.FENCED:
            if self._service is not None and self._service.is_open:
                await self._service.close(self._pace.drain_s)
        elif self._service is not None and not self._service.is_open:
            self._is_granted = None
            await self._service.open(client)
        await self._say_here(client, denied)

    async def _claim(self) -> None:
        """Look whose the entry is, and renew or take it where it may be ours."""
        if self._directory is None:
            return
        entry = await self._entry()
        try:
            for _ in range(CLAIMS):
                with suppress(Moved):
                    is_known = self._fence.standing is Standing.HELD and self._fence.revision > 0
                    if not is_known and not self._fence.may_claim(await self._directory.look(), self._now()):
                        break
                    self._fence.claimed(await self._directory.put(entry, self._fence.revision))
                    break
                self._fence.lost()
            if self._no_directory:
                _log.info("bus: the directory of nodes is there")
            self._no_directory = ""
        except Unavailable as reason:
            if self._no_directory != str(reason):
                _log.warning("bus: no directory of nodes, so two nodes of one id are not kept apart: %s", reason)
            self._no_directory = str(reason)

    async def _say_here(self, client: Client, denied: int) -> None:
        """Say it and hear it: then everything that was subscribed before it is in place, or denied by now.

        The broker works off a connection in order, so this proves more than a round trip of the client library does;
        and waiting for one of those must never be cancelled: its answer would end the library's reading.
        """
        self._here.clear()
        await client.publish(self._subjects.own("here"), _encode(_Here(self._epoch)))
        async with asyncio.timeout(HERE_S):
            await self._here.wait()
        if self._is_granted is None:  # what is denied later concerns other subjects
            self._is_granted = self._connection.facts()["denied"] == denied
        self._is_ready = self._is_granted

    async def _on_here(self, message: Msg) -> None:
        try:
            epoch = msgspec.json.decode(message.data, type=_Here).epoch[:64]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if epoch == self._epoch:
            self._here.set()
            return
        if self._heard() is None:
            _log.error(
                "bus: another sidecar (epoch %r) uses the node id %s: give each node its own node.id, or stop one "
                "of the two; the later one is fenced where there is a directory",
                epoch,
                self._subjects.node,
            )
        self._rival = (epoch, self._now())

    def _apply(self) -> None:
        standing = self._fence.standing
        if standing is self._said_standing:
            return
        if standing is Standing.FENCED:
            reason = self._reason()
            _log.error("fenced: %s Running transfers go on.", reason.message)
            self._bar(reason)
        elif self._said_standing is Standing.FENCED:
            _log.warning("no longer fenced: the node id %s is this sidecar's own", self._subjects.node)
            self._bar(None)
        self._said_standing = standing

    def _reason(self) -> Refused:
        node, rival = self._subjects.node, self._fence.rival
        return Refused(
            "node.fenced",
            f"Another sidecar (epoch {rival}) holds the node id {node} on the bus, so this one takes no commands "
            f"and begins no transfers. Give each node its own node.id, or stop the other one: the id is free "
            f"{self._pace.expiry_s:g} s after its end.",
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
