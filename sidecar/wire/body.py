"""The body of an upload, from the socket's buffer to a thread, beside ASGI.

ASGI hands a body over as one `bytes` object per piece through a coroutine: measured, that alone costs as much as the
whole rest of the destination. Here the transport is handed a `BufferedProtocol` that receives into one ring of memory;
the reader thread takes runs of bytes out of it where they lie, and frames them there (`wire.framing`).

One producer (the event loop), one consumer (the reader thread). When the ring is full the transport stops reading, so a
slow disk slows the source down and nothing grows.

Memory: `RING_BYTES` per upload.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final, Protocol

from sidecar.errors import PeerFailed, Refused, SidecarError
from sidecar.wire.framing import Framing

RING_BYTES: Final = 2 << 20  # fills while the reader decompresses one piece; more was not faster
PIECE_BYTES: Final = 512 << 10  # the most one read() gives; small enough that its room is soon free again
ROOM_BYTES: Final = 64 << 10  # with less room than this, receiving waits: small reads cost most
_NOTHING: Final = memoryview(b"")


class Owner(Protocol):
    """What stays responsible for the connection: the HTTP protocol that the transport was taken from."""

    @property
    def is_open(self) -> bool: ...
    async def wait_closed(self) -> None: ...
    def abort(self) -> None: ...
    def end_of_input(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Taken(asyncio.BufferedProtocol):
    """A protocol that takes a transport's input over; everything else stays with its owner."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


class Body(Taken):
    """One upload's body. `is_open`, `wait_closed` and `abort` belong to the event loop, `read`, `find` and `close` to
    the one thread that reads it."""

    def __init__(
        self,
        owner: Owner,
        transport: asyncio.Transport,
        framing: Framing,
        held: bytes,
        *,
        has_length: bool,
        stall_timeout_s: float,
    ) -> None:
        super().__init__(owner)
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        self._framing = framing
        self._stall_timeout_s = stall_timeout_s
        self._failure: SidecarError | None = None
        if not has_length:
            self._failure = Refused(
                "upload.malformed", "the upload has neither a Content-Length nor a chunked body, so it has no body"
            )
        self._ring = bytearray(RING_BYTES)
        self._view = memoryview(self._ring)
        # Counted from the beginning of the body; the place in the ring is the count modulo its size.
        self._view[: len(held)] = held
        self._written = len(held)  # received; changed by the loop
        self._position = 0  # framed; changed by the reader
        self._released = 0  # room that may be overwritten; changed by the reader
        self._piece_start = 0
        self._piece_stop = 0
        self._ended = False  # no more bytes will be received
        self._paused = False
        self._changed = threading.Condition()

    # the event loop's side

    @property
    def is_open(self) -> bool:
        return self._owner.is_open

    async def wait_closed(self) -> None:
        await self._owner.wait_closed()

    def abort(self) -> None:
        """Close the connection without an answer; a waiting `read` raises."""
        self._owner.abort()
        self.abandon()

    def abandon(self) -> None:
        """Nothing more will be received: a reader raises `upload.truncated` once it has read what is here."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def get_buffer(self, sizehint: int) -> memoryview:
        start = self._written % RING_BYTES
        room = RING_BYTES - (self._written - self._released)
        return self._view[start : min(start + room, RING_BYTES)]

    def buffer_updated(self, nbytes: int) -> None:
        with self._changed:
            self._written += nbytes
            full = RING_BYTES - (self._written - self._released) < ROOM_BYTES
            if full:
                self._paused = True
            self._changed.notify_all()
        if full:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._owner.end_of_input()
        self.abandon()
        # An answer may still be wanted by who only ended its own direction; TLS knows no such thing.
        return not self._is_tls

    def connection_lost(self, exc: Exception | None) -> None:
        self.abandon()
        super().connection_lost(exc)

    def _resume(self) -> None:
        with self._changed:
            resume = self._paused and not self._ended
            self._paused = False
        if resume:
            self._transport.resume_reading()

    # the reader's side

    def read(self) -> memoryview:
        """The next piece of the body without its framing: 1..`PIECE_BYTES` bytes, in order, valid until the next call;
        empty at the end, where the body was seen to end as its framing says.

        Raises PeerFailed (`upload.truncated`: the source hung up; `upload.stalled`: no byte for the stall time),
        Refused (`upload.malformed`); then again at each call.
        """
        if self._failure is not None:
            raise _without_traceback(self._failure)
        try:
            while not self._framing.done:
                stop = self._wait_for_bytes()
                start = self._position % RING_BYTES
                until = min(start + stop - self._position, start + PIECE_BYTES, RING_BYTES)
                data_start, data_stop = self._framing.advance(self._ring, start, until)
                self._position += data_stop - start
                if data_stop > data_start:
                    self._piece_start, self._piece_stop = data_start, data_stop
                    return self._view[data_start:data_stop]
        except SidecarError as error:
            self._failure = _without_traceback(error)
            raise
        return _NOTHING

    def find(self, needle: bytes, offset: int) -> int:
        """Where in the piece last read `needle` is, from `offset` on; -1 if nowhere. Nothing is copied."""
        found = self._ring.find(needle, self._piece_start + offset, self._piece_stop)
        return found - self._piece_start if found >= 0 else -1

    def close(self) -> None:
        """The reader wants no more, at the end or before it. What still arrives waits in the ring and the kernel until
        the answer is out, then it is discarded within the server's linger bounds."""
        if self._failure is None and not self._framing.done:
            self._failure = PeerFailed("upload.truncated", "the upload was given up before its end")

    def _wait_for_bytes(self) -> int:
        """Give the room of what was read back, and wait until there is something to read. Returns the count of bytes
        received."""
        with self._changed:
            self._released = self._position
            room = RING_BYTES - (self._written - self._released)
            if self._paused and room >= RING_BYTES // 2 and not self._ended:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the wait below ends with the stall time
                    self._loop.call_soon_threadsafe(self._resume)
            if self._written == self._position and not self._changed.wait_for(
                lambda: self._ended or self._written > self._position, self._stall_timeout_s
            ):
                raise PeerFailed(
                    "upload.stalled",
                    f"no byte of the upload arrived for {self._stall_timeout_s:g} s",
                    received_bytes=self._written,
                )
            if self._written == self._position:
                raise PeerFailed(
                    "upload.truncated", "the source hung up in the middle of the upload", received_bytes=self._written
                )
            return self._written


def _without_traceback(error: SidecarError) -> SidecarError:
    """The same error anew: a kept one would keep its frames, and with them the ring, until a garbage collection."""
    return type(error)(error.code, error.message, **error.facts)


class Drain(Taken):
    """Reads and forgets, so that a peer which is still sending can read the answer instead of a reset.

    A closed socket answers further bytes with RST, and RST makes the peer's kernel throw away the answer that it has
    not read yet (RFC 9112 9.6). Ends at the peer's FIN, after `limit_bytes`, or when the owner's timer ends it.
    Memory: one buffer of 64 KiB.
    """

    def __init__(self, owner: Owner, transport: asyncio.Transport, limit_bytes: int) -> None:
        super().__init__(owner)
        self._transport = transport
        self._left = limit_bytes
        self._scratch = bytearray(64 << 10)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left <= 0:
            self._owner.abort()

    def eof_received(self) -> bool:
        self._owner.end_of_input()
        return False  # the transport closes itself, after what is still to be written
