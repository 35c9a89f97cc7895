"""One lasting connection to the broker, made of many short ones.

The client library repairs connections itself, but not always (it closes for good when a password is rotated, a user's
JWT expires or a payload is too large), not with jitter, and not when unsent bytes sit in a dead socket. So its repair
is switched off, and `run` does it in one way for every cause: connect, stay until anything is wrong, throw the client
away, wait a little longer each time, connect again. Transfers never wait for any of this: without a broker `publish`
fails at once.

The library's own buffer for the time without a broker is off too (`pending_size` 0): it delivers late what its caller
has given up on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from sidecar.bus.link import BusDenied, Link, abort, first, settled, until_broken
from sidecar.bus.settings import BusSettings
from sidecar.errors import HostFailed

_log = logging.getLogger(__name__)

LOG_EVERY_S: Final = 30.0  # a broker that is down says the same thing at every attempt
LASTING_S: Final = 5.0  # a broker that takes us in and throws us out at once is not tried without end
_CLOSE_S: Final = 1.0  # a client that does not close by itself is cut
_BUS_ERRORS: Final = (nats.errors.Error, OSError, TimeoutError, EOFError, ValueError)
_MESSAGE_ERRORS: Final = (nats.errors.MaxPayloadError, nats.errors.BadSubjectError, nats.errors.BadHeaderError)
_ANSWERS: Final = (nats.js.errors.APIError, nats.js.errors.NoStreamResponseError, nats.errors.NoRespondersError)
_HEADER_BYTES: Final = 64  # the header block's own first and last line, generously


T = TypeVar("T")
OnConnected = Callable[[Client], Awaitable[None]]


class BusState(StrEnum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


class BusDown(Exception):
    """There is no working connection at the moment. Never leaves this package."""


class BusConnection:
    """Args: settings; on_connected, as `each_connection` takes it."""

    def __init__(self, settings: BusSettings, *, on_connected: OnConnected | None = None) -> None:
        # What the library says itself comes through `_on_error`, in one line. A PONG that arrives after its flush was
        # given up would print a traceback; the client is thrown away then anyway.
        logging.getLogger("nats").setLevel(logging.CRITICAL)
        self._settings = settings
        self._options = settings.connect_options()
        self._on_connected: list[OnConnected] = []
        if on_connected is not None:
            self.each_connection(on_connected)
        self._link: Link | None = None
        self._state = BusState.CONNECTING
        self._changed = asyncio.Condition()
        self._is_stopping = asyncio.Event()
        self._connections = 0
        self._denied = 0
        self._last_error = ""
        self._said: dict[str, float] = {}
        self._run: asyncio.Task[None] | None = None

    def each_connection(self, on_connected: OnConnected) -> None:
        """Run this with each new client before it counts as connected: to subscribe, in the order of these calls.

        It is bounded by the attempt's own time. What it raises of the library's errors ends the attempt, and so keeps
        every other user of the connection off it: raise only what the connection itself is to blame for.
        """
        self._on_connected.append(on_connected)

    @property
    def state(self) -> BusState:
        return self._state

    @property
    def is_connected(self) -> bool:
        link = self._link
        return self._state is BusState.CONNECTED and link is not None and link.client.is_connected

    @property
    def connections(self) -> int:
        """How many connections have been made so far; a change means that the broker may have missed something."""
        return self._connections

    @property
    def last_error(self) -> str:
        """Why there is no connection, in words without secrets; empty while there is one."""
        return self._last_error

    async def __aenter__(self) -> Self:
        """Begin to connect, in the background. Returns at once."""
        self._run = asyncio.create_task(self._supervise(), name="bus connection")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what is unsent, within `drain_s`, and close. Never hangs."""
        assert self._run is not None
        self._is_stopping.set()
        try:
            await self._run
        finally:
            self._run.cancel()  # where this very exit was cancelled

    async def wait_connected(self) -> None:
        """Return once there is a connection. Raises BusDown when the connection has been closed for good."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.is_connected or self._state is BusState.CLOSED)
        if self._state is BusState.CLOSED:
            raise BusDown("closed")

    async def wait_change(self, connection: int) -> None:
        """Return once that connection, counted as `connections` does, is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._connections != connection or not self.is_connected)

    @property
    def is_closed(self) -> bool:
        return self._state is BusState.CLOSED

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Hand one message to the client; only `settle` tells whether the broker got it.

        Raises BusDown, ValueError where the fault is the message's own. The size is checked here, headers included:
        the broker answers a message above its bound by closing the connection.
        """
        link = self._link
        if link is None or not self.is_connected:
            raise BusDown("not connected")
        client = link.client
        size = self.message_bytes(payload, headers)
        if size > client.max_payload:
            raise ValueError(f"the message has {size} bytes, the broker takes {client.max_payload}")
        try:
            await client.publish(subject, payload, headers=headers)
        except _MESSAGE_ERRORS as error:
            raise ValueError(str(error)) from error
        except _BUS_ERRORS as error:
            self._suspect(link, error)
            raise BusDown(str(error)) from error

    async def use(self, work: Callable[[Client], Coroutine[Any, Any, T]], within_s: float, *, subject: str = "") -> T:
        """Run `work` with the client of the moment, until it ends, the connection does, or the time is over.

        Args: subject, a part of what it publishes to: the broker's refusal of that ends it too, for nothing else does.
        Raises BusDenied, BusDown where there is no connection any more, TimeoutError where there still seems to be one
        (`settle` finds out), ValueError where the fault is a message's own, and what JetStream answers
        (`nats.js.errors.APIError`, `NoStreamResponseError`, `nats.errors.NoRespondersError`).
        """
        link = self._link
        if link is None or not self.is_connected:
            raise BusDown("not connected")
        try:
            return await until_broken(work(link.client), link, within_s, subject)
        except (*_ANSWERS, TimeoutError, BusDenied):
            raise
        except _MESSAGE_ERRORS as error:
            raise ValueError(str(error)) from error
        except (nats.errors.Error, OSError, EOFError) as error:
            self._suspect(link, error)
            raise BusDown(str(error)) from error

    @property
    def max_payload(self) -> int:
        """The largest message that the broker takes, headers included, in bytes. Raises BusDown."""
        return self._client.max_payload

    @property
    def server_info(self) -> dict[str, Any]:
        """What the broker said of itself when it was connected to. Raises BusDown."""
        return dict(self._client._server_info)  # the library has no call for it

    @property
    def _client(self) -> Client:
        if self._link is None:
            raise BusDown("not connected")
        return self._link.client

    def message_bytes(self, payload: bytes, headers: dict[str, str]) -> int:
        """Size of a message as `max_payload` counts it, generously."""
        return len(payload) + _HEADER_BYTES + sum(len(name) + len(value) + 4 for name, value in headers.items())

    async def settle(self, within_s: float) -> None:
        """Return once the broker has taken everything published on this connection. Raises BusDown.

        The broker answers in order, so a round trip that began with nothing left in the client proves it. (One that
        began earlier proves nothing: the client's PING overtakes what it has not written yet.) A connection that does
        not manage it in time is thrown away: unsent bytes in a dead socket would otherwise pile up without any sign.
        """
        link = self._link
        if link is None or not self.is_connected:
            raise BusDown("not connected")
        try:
            if not await first(settled(link.client, within_s), link.is_broken.wait(), within_s):
                raise nats.errors.ConnectionClosedError if link.is_broken.is_set() else nats.errors.TimeoutError
        except _BUS_ERRORS as error:
            self._suspect(link, error)
            raise BusDown(str(error)) from error

    def facts(self) -> dict[str, Any]:
        """For readiness: the state, and how it got there."""
        return {"state": self.state.value, "connections": self._connections, "denied": self._denied}

    def _suspect(self, link: Link, error: Exception) -> None:
        if self._link is link:
            self._link = None  # nobody else may try it again
            self._note(error)
        link.is_broken.set()

    async def _supervise(self) -> None:
        attempt = 0
        try:
            while not self._is_stopping.is_set():
                try:
                    link = await self._connect()
                except _BUS_ERRORS as error:
                    self._note(error)
                else:
                    began = asyncio.get_running_loop().time()
                    await self._stay(link)
                    if asyncio.get_running_loop().time() - began >= LASTING_S:
                        attempt = 0
                if not self._is_stopping.is_set():
                    await self._pause(attempt)
                    attempt += 1
        finally:
            await self._set(BusState.CLOSED)

    async def _connect(self) -> Link:
        """One attempt, bounded, that leaves nothing behind where it fails."""
        link = Link()
        bound_s = self._settings.connect_s * (len(self._settings.urls) + 1)
        try:
            if not await first(self._attempt(link), self._is_stopping.wait(), bound_s):
                raise nats.errors.TimeoutError
        except BaseException as error:
            await self._discard(link.client)
            if isinstance(error, nats.errors.NoServersError) and isinstance(link.error, _BUS_ERRORS):
                raise link.error from error  # it says why
            raise
        return link

    async def _attempt(self, link: Link) -> None:
        async def on_lost() -> None:
            link.is_broken.set()

        client = link.client

        async def on_error(error: Exception) -> None:
            await self._on_error(link, error)

        await client.connect(**self._options, error_cb=on_error, closed_cb=on_lost, disconnected_cb=on_lost)
        for on_connected in self._on_connected:
            await on_connected(client)
        # A subscription counts from the second round trip on: the first may be answered before it is in place.
        for _ in range(2):
            await client.flush(timeout=max(1, int(self._settings.connect_s)))
        if not client.is_connected:
            raise nats.errors.ConnectionClosedError

    async def _stay(self, link: Link) -> None:
        """Until this connection is lost, suspected or to be closed; then nothing of it is left."""
        self._link = link
        self._connections += 1
        self._denied = 0
        self._last_error = ""
        self._said.clear()
        await self._set(BusState.CONNECTED)
        _log.info("bus: connected to %s", self._settings.shown_urls)
        try:
            await first(link.is_broken.wait(), self._is_stopping.wait(), None)
            if not link.is_broken.is_set():
                await self._drain(link.client)
        finally:
            self._link = None
            await self._set(BusState.CONNECTING)
            await self._discard(link.client)
        if not self._is_stopping.is_set():
            _log.warning("bus: connection lost; transfers go on without it")

    async def _drain(self, client: Client) -> None:
        draining = asyncio.create_task(client.drain(), name="bus drain")
        await asyncio.wait({draining}, timeout=self._settings.drain_s)
        while not draining.done():  # more than once: the library takes the first one for the end of the subscriptions
            draining.cancel()
            await asyncio.wait({draining}, timeout=_CLOSE_S)
        if draining.cancelled() or draining.exception() is not None:
            reason = "no answer" if draining.cancelled() else _words(draining.exception() or TimeoutError())
            _log.warning("bus: not everything was sent before the end: %s", reason)

    async def _discard(self, client: Client) -> None:
        """Close a client by force: it would wait for unsent bytes to be taken."""
        abort(client)
        try:
            async with asyncio.timeout(_CLOSE_S):
                await client.close()
        except (*_BUS_ERRORS, AttributeError, AssertionError) as error:  # a half-made client lacks some of its parts
            _log.debug("bus: closing a client: %s", _words(error))

    async def _pause(self, attempt: int) -> None:
        """Full jitter around a doubling bound, so that a broker's restart is not met by all nodes at once."""
        bound_s = min(self._settings.retry_max_s, self._settings.retry_min_s * 2 ** min(attempt, 16))
        delay_s = random.uniform(bound_s / 2, bound_s)
        try:
            async with asyncio.timeout(delay_s):
                await self._is_stopping.wait()
        except TimeoutError:
            return

    async def _set(self, state: BusState) -> None:
        async with self._changed:
            self._state = state
            self._changed.notify_all()

    async def _on_error(self, link: Link, error: Exception) -> None:
        link.error = error
        words = str(error).lower()
        if "permissions violation" in words:  # the library has no class for it; the broker drops it all
            self._denied += 1
            link.denials = [*link.denials[-15:], words]
            link.is_denied.set()
        self._note(error)

    def _note(self, error: Exception) -> None:
        """One line per kind of error and `LOG_EVERY_S`; never a credential, which errors of the library do not hold."""
        words = self._last_error = _words(error)
        now = asyncio.get_running_loop().time()
        if now - self._said.get(words, -LOG_EVERY_S) >= LOG_EVERY_S:
            if len(self._said) > 64:
                self._said.clear()
            self._said[words] = now
            _log.warning("bus: %s: %s", self._settings.shown_urls, words)


async def check_bus(connection: BusConnection) -> dict[str, Any]:
    """The readiness probe of the bus. Raises HostFailed (`bus.down`, `bus.denied`): degraded, never not ready."""
    if not connection.is_connected:
        raise HostFailed("bus.down", "The broker cannot be reached; events wait for it.", **connection.facts())
    if connection.facts()["denied"]:
        raise HostFailed("bus.denied", "The broker refuses subjects of this node.", **connection.facts())
    return connection.facts()


def _words(error: BaseException) -> str:
    """For people: without the library's name, and with its class only where that is all or it is nobody's word."""
    if isinstance(error, socket.gaierror):
        return error.strerror or "the name is not known"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)  # its own says what call failed
    text = str(error).removeprefix("nats: ")[:300]
    if not text:
        return type(error).__name__
    return text if isinstance(error, (OSError, nats.errors.Error)) else f"{type(error).__name__}: {text}"
