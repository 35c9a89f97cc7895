"""Peers that do not keep the rules: a destination that answers as told, and a source that sends as told."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from tests.engine.rig import SERVER, Rig, transfer_token

Behaviour = Callable[["Received"], Awaitable[None]]


class Received:
    """One upload as a stranger sees it."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self.body = bytearray()
        self.is_cut = False  # it ended before its end
        self._reader = reader
        self._writer = writer

    async def read_all(self) -> None:
        """The chunked body as it is on the wire, to its end or to the peer's."""
        await self._read_until(lambda: self.body.endswith(b"0\r\n\r\n"))

    async def read_to(self, needle: bytes, *, skip: int) -> None:
        """Until `needle` has come, beyond the first `skip` bytes."""
        await self._read_until(lambda: needle in self.body[skip:])

    async def _read_until(self, done: Callable[[], bool]) -> None:
        while not done():
            try:
                piece = await self._reader.read(1 << 20)
            except ConnectionError:
                piece = b""
            if not piece:
                self.is_cut = True
                return
            self.body += piece

    async def answer(self, status: str) -> None:
        with suppress(ConnectionError):
            self._writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            await self._writer.drain()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def wait_hang_up(self) -> None:
        with suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass


class Stranger:
    """A node that is not ours. `asked` is every request; the answer to an upload is `behave`'s business."""

    def __init__(self, *, probe: bytes = b"", behave: Behaviour | None = None, delete_status: str = "204 ok") -> None:
        self.asked: list[tuple[str, str]] = []
        self.uploads: list[Received] = []
        self.url = ""
        self._probe = probe
        self._behave = behave
        self._delete_status = delete_status
        self._busy: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            self.asked.append((method, path))
            if method == "GET":
                kind = b"Content-Type: application/json\r\n" if self._probe else b""
                size = b"Content-Length: %d\r\n\r\n" % len(self._probe)
                writer.write(b"HTTP/1.1 404 Not Found\r\n" + kind + size + self._probe)
            elif method == "DELETE":
                writer.write(f"HTTP/1.1 {self._delete_status}\r\nConnection: close\r\n\r\n".encode())
            else:
                upload = Received(head, reader, writer)
                self.uploads.append(upload)
                if self._behave is not None:
                    await self._behave(upload)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._busy.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def busy(self) -> list[asyncio.Task[None]]:
        return list(self._busy)


@asynccontextmanager
async def stranger(
    behave: Behaviour | None = None, *, probe: bytes = b"", delete_status: str = "204 No Content"
) -> AsyncIterator[Stranger]:
    node = Stranger(probe=probe, behave=behave, delete_status=delete_status)
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
    node.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield node
    finally:
        server.close()
        await asyncio.sleep(0)  # what was accepted a moment ago begins now, and can be ended
        for task in node.busy():
            task.cancel()
        await asyncio.gather(*node.busy(), return_exceptions=True)
        await server.wait_closed()


def answering(status: str) -> Behaviour:
    """Takes the whole body, then answers."""

    async def behave(upload: Received) -> None:
        await upload.read_all()
        await upload.answer(status)

    return behave


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


FILES = {"a.txt": b"hello", "world/level.dat": b"x" * 5000}
ARCHIVE = archive_of(FILES)


def body_of(archive: bytes = ARCHIVE, checksum: str | None = None) -> bytes:
    digest = checksum if checksum is not None else hashlib.sha256(archive).hexdigest()
    parts = [(b"archive", archive), (b"checksum", digest.encode())]
    return (
        b"".join(b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % part for part in parts)
        + b"--B--\r\n"
    )


class RawUpload:
    """A source that does as it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> bytes:
        """All that comes until the destination closes. Raises ConnectionError where it cuts."""
        return await asyncio.wait_for(self._reader.read(), 15)

    async def status(self) -> int:
        """0: it closed without an answer."""
        try:
            answer = await self.answer()
        except ConnectionError:
            return 0
        return int(answer.split(b" ", 2)[1]) if answer else 0

    def reset(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def raw_upload(
    rig: Rig, body: bytes | None = None, *, size: int | None = None, headers: dict[str, str] | None = None
) -> AsyncIterator[RawUpload]:
    """Connected, head sent, and `body` if it is given. `size`: the announced length."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    upload = RawUpload(reader, writer)
    fields = {
        "Host": "b",
        "Authorization": transfer_token(rig.token, SERVER),
        "Content-Type": "multipart/form-data; boundary=B",
        "Content-Length": str(size if size is not None else len(body or b"")),
        "Connection": "close",
        **(headers or {}),
    }
    try:
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await upload.send(f"POST /api/transfers HTTP/1.1\r\n{head}\r\n".encode())
        if body is not None:
            await upload.send(body)
        yield upload
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
