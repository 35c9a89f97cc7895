"""A wire between a client and a broker that loses what a test wants it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

Loses = Callable[[bytes], bool]


class Wire:
    """loses: asked about each frame that the broker sends (its first line and payload); True loses it."""

    def __init__(self, loses: Loses) -> None:
        self.port = 0
        self.lost = 0
        self._loses = loses

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From the broker to the client, frame by frame."""
        while line := await reader.readline():
            words = line.split()
            frame = line
            if words and words[0] in (b"MSG", b"HMSG"):
                frame += await reader.readexactly(int(words[-1]) + 2)
            if self._loses(frame):
                self.lost += 1
            else:
                writer.write(frame)
                await writer.drain()


@asynccontextmanager
async def wire_to(broker_port: int, loses: Loses) -> AsyncIterator[Wire]:
    wire = Wire(loses)
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", broker_port)
        except OSError:
            writer.close()
            return
        back = asyncio.ensure_future(wire.back(from_broker, writer))
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while data := await reader.read(1 << 16):
                    to_broker.write(data)
                    await to_broker.drain()
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            for end in (writer, to_broker):
                end.close()
            running.discard(task)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    wire.port = listener.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        listener.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
