"""The link between two nodes: passes bytes on until it is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol


class HasPort(Protocol):
    port: int


class Relay:
    """Listens on loopback and connects to wherever `target` listens now (it may be restarted)."""

    def __init__(self) -> None:
        self.target: HasPort | None = None
        self.url = ""
        self.refuses = 0  # connections that are reset before anything is passed on
        self._links: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        links = list(self._links)
        for writer in links:
            writer.transport.abort()
        return len(links)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None and self.target is not None
        if self.refuses:
            self.refuses -= 1
            writer.transport.abort()
            return
        self._tasks.add(task)
        mine = {writer}
        self._links.add(writer)
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", self.target.port)
            mine.add(onward)
            self._links.add(onward)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass(reader, onward))
                group.create_task(_pass(there, writer))
        except OSError:
            pass
        finally:
            self._links -= mine
            self._tasks.discard(task)
            for one in mine:
                one.close()
            for one in mine:
                with suppress(OSError):
                    await one.wait_closed()

    async def close(self) -> None:
        await asyncio.sleep(0)  # what was accepted a moment ago begins now, and can be ended
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, to its end; a reset of one side resets the other."""
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
        if not writer.is_closing() and writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


@asynccontextmanager
async def relay() -> AsyncIterator[Relay]:
    link = Relay()
    server = await asyncio.start_server(link.serve, "127.0.0.1", 0)
    link.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield link
    finally:
        server.close()
        await link.close()
        await server.wait_closed()
