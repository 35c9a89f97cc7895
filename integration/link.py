"""A TCP relay that stands for the network between two nodes: it holds, releases and cuts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

_PIECE_BYTES: Final = 64 * 1024
_CLOSE_S: Final = 5.0
_BUFFER_BYTES: Final = 256 * 1024  # what a held connection takes in besides


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Link:
    """Use `link_to` or `relay`. Everything is about bytes towards the destination; answers pass at once."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._hold_after: int | None = None
        self._released = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.held = asyncio.Event()
        self.url = ""

    def hold_after(self, carried_bytes: int) -> None:
        """Carry so much of each connection, then nothing more until `release`."""
        self._hold_after = carried_bytes
        self._released.clear()
        self.held.clear()

    def release(self) -> None:
        self._hold_after = None
        self._released.set()

    def cut(self) -> None:
        """Reset every connection; new ones are carried."""
        self.release()
        for writer in self._writers:
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, onward = await self._connect()
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, onward, is_upload=True))
                group.create_task(self._pump(there, writer, is_upload=False))
        except* OSError:
            pass
        finally:
            self._writers -= {writer, onward}
            for end in (writer, onward):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_upload: bool) -> None:
        carried = 0
        while piece := await reader.read(_PIECE_BYTES):
            if is_upload and self._hold_after is not None and carried + len(piece) > self._hold_after:
                self.held.set()
                await self._released.wait()
            writer.write(piece)
            await writer.drain()
            carried += len(piece)
        writer.write_eof()

    async def close(self) -> None:
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)


@contextlib.asynccontextmanager
async def relay(listener: socket.socket, connect: Connect) -> AsyncIterator[Link]:
    """What connects to `listener` is carried to what `connect` opens, until the scope ends."""
    link = Link(connect)
    server = await asyncio.start_server(link.carry, sock=listener, limit=_PIECE_BYTES)
    link.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield link
    finally:
        server.close()
        await link.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def link_to(port: int) -> AsyncIterator[Link]:
    """A link to a loopback port."""
    listener = loopback_listener()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    async with relay(listener, partial(asyncio.open_connection, "127.0.0.1", port, limit=_PIECE_BYTES)) as link:
        yield link


def loopback_listener() -> socket.socket:
    """Bound, in the network namespace of the thread that asks."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener
