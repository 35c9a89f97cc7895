"""One request to the node daemon, on a connection of its own.

No pool: the daemon is on this machine, a connection costs some 0.1 ms, and a request that is never sent on an old
connection never meets one that the daemon is just closing (which for a POST could not be repeated). It also means that
no two callers' requests ever share a connection, so nothing can be smuggled from one into the other.

Written beside the usual HTTP clients because of what they lack: they send the whole body before they read the answer,
and so would push gigabytes at a daemon that has refused them long ago.

Memory: `BUFFER_BYTES` and one read of asyncio (256 KiB) of the answer, `BUFFER_BYTES` and one piece of the request.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, Self, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from sidecar.errors import HostFailed

BUFFER_BYTES: Final = 256 << 10
HEAD_BYTES: Final = 64 << 10  # of one answer; a daemon's have some 500 bytes
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class FrontLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what is passed through. Times in seconds; none of them is for a whole body."""

    connect_s: float = 5.0  # to the daemon, TLS and a WebSocket's handshake included
    answer_s: float = 1800.0  # without a byte in either direction before the answer: daemons pack archives in a call
    stall_s: float = 300.0  # without a byte taken by the one who should, or sent within an answer
    continue_s: float = 2.0  # for the daemon's word on `Expect: 100-continue`
    max_message_bytes: int = 1 << 20  # one WebSocket message of the daemon's


class DaemonAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the daemon listens."""

    host: str
    port: int
    is_tls: bool

    @classmethod
    def of(cls, url: str) -> Self:
        """Args: url: `http[s]://host[:port]`. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        is_tls = parts.scheme == "https"
        return cls(host=parts.hostname, port=parts.port or (443 if is_tls else 80), is_tls=is_tls)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def tls(self) -> ssl.SSLContext | None:
        """On loopback nobody can stand between, and the certificate names the node's public address."""
        if not self.is_tls:
            return None
        context = ssl.create_default_context()
        if self.host in _LOOPBACK:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class LineBroken(Exception):
    """The daemon hung up, stalled, or does not speak HTTP. The text says which."""


class AnswerHead(msgspec.Struct, frozen=True):
    status: int
    fields: list[tuple[bytes, bytes]]


class Line(asyncio.Protocol):
    """One task reads the answer, another one writes the request."""

    def __init__(self, method: str) -> None:
        self._is_head = method == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        self._head: AnswerHead | None = None
        self._head_bytes = 0
        self._may_continue = False
        self._ends_with_connection = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_paused = False
        self._is_complete = False
        self._failure: str | None = None
        self._moves = 0  # bytes went in either direction
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def open(
        cls, address: DaemonAddress, context: ssl.SSLContext | None, *, method: str, connect_s: float
    ) -> Line:
        """Raises HostFailed (`daemon.unreachable`)."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_s):
                _, line = await loop.create_connection(
                    lambda: cls(method),
                    address.host,
                    address.port,
                    ssl=context,
                    server_hostname=address.host if context is not None else None,
                )
        except (OSError, TimeoutError) as error:
            raise HostFailed("daemon.unreachable", "The node daemon beside this sidecar does not answer.") from error
        return line

    # the two tasks' side

    def write(self, data: bytes) -> None:
        """Queue bytes of the request; follow with `drain`."""
        self._moves += 1
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self, stall_s: float) -> None:
        """Return once there is room for more. Raises LineBroken."""
        await self._wait(self._writable, stall_s, "took no byte of the request")
        if self._failure is not None or self._is_over:
            raise LineBroken(self._failure or "the node daemon hung up")
        self._moves += 1

    async def wait_continue(self, wait_s: float) -> None:
        """Return once the daemon wants the body or answers without it, at the latest after `wait_s`."""
        try:
            async with asyncio.timeout(wait_s):
                while not (self._may_continue or self._head is not None or self._is_over):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return

    async def head(self, answer_s: float) -> AnswerHead:
        """The final answer's head. Raises LineBroken, also after `answer_s` in which no byte went anywhere."""
        while self._head is None:
            if self._is_over:
                raise LineBroken(self._failure or "the node daemon hung up without an answer")
            self._arrived.clear()
            await self._wait(self._arrived, answer_s, "did not answer")
        return self._head

    async def piece(self, stall_s: float) -> bytes:
        """The next bytes of the answer's body, at most some `BUFFER_BYTES` and one read; empty at its proper end.

        Raises LineBroken where the daemon hung up before that end.
        """
        while not self._pieces:
            if self._is_complete:
                return b""
            if self._is_over:
                raise LineBroken(self._failure or "the node daemon hung up in the middle of its answer")
            self._arrived.clear()
            await self._wait(self._arrived, stall_s, "stopped in the middle of its answer")
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def abort(self) -> None:
        """Drop the connection. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self, event: asyncio.Event, stall_s: float, otherwise: str) -> None:
        while True:
            moves = self._moves
            try:
                async with asyncio.timeout(stall_s):
                    await event.wait()
                    return
            except TimeoutError:
                if moves == self._moves:
                    raise LineBroken(f"the node daemon {otherwise} for {stall_s:g} s") from None

    @property
    def _is_over(self) -> bool:
        return self._transport is None or self._failure is not None

    # what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        self._moves += 1
        if self._is_complete or self._failure is not None:
            return  # behind the end of the answer there is nothing
        if self._head is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the node daemon switched to another protocol, unasked")
        except httptools.HttpParserError as error:
            if not self._is_complete:
                self._fail(f"the node daemon's answer is not HTTP: {error}")
        if self._head is None and self._head_bytes > HEAD_BYTES:
            self._fail(f"the head of the node daemon's answer is longer than {HEAD_BYTES} bytes")
        if self._size > BUFFER_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        if self._ends_with_connection and self._failure is None:
            self._is_complete = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self._arrived.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._moves += 1
        self._writable.set()

    # what the parser tells

    def on_message_begin(self) -> None:
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._head is not None or 100 <= status < 200:
            self._may_continue = self._may_continue or status == 100
            return
        if not 200 <= status <= 599:
            raise ValueError(f"{status} is no status")  # httptools makes it an error of the parser
        codings = [value.strip().lower() for name, value in self._fields if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise ValueError("a coding that was not asked for")
        self._head = AnswerHead(status, self._fields)
        if self._is_head or status in (204, 304):
            self._is_complete = True
        elif not codings and all(name != b"content-length" for name, _ in self._fields):
            self._ends_with_connection = True

    def on_body(self, body: bytes) -> None:
        if not self._is_complete:
            self._pieces.append(body)
            self._size += len(body)

    def on_message_complete(self) -> None:
        if self._head is not None and not self._ends_with_connection:
            self._is_complete = True

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._writable.set()
        self.abort()
