"""A real server in a thread of its own, applications for it, and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
from uvicorn._types import ASGI3Application

from sidecar.errors import SidecarError
from sidecar.wire.body import Body
from sidecar.wire.flow import WireLimits
from sidecar.wire.listener import ApiServer
from sidecar.wire.multipart import MultipartReader, parse_content_type
from sidecar.wire.server import Connection

WAIT_S = 20.0  # for what must come; a test that reaches it has failed
Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Node:
    """A running server."""

    def __init__(self, server: ApiServer, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self.server = server
        self.loop = loop
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/transfers"

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)


@contextlib.contextmanager
def serving(app: ASGI3Application, *, limits: WireLimits | None = None, **options: Any) -> Iterator[Node]:
    started: queue.Queue[Node | BaseException] = queue.Queue()
    stop = asyncio.Event()

    async def run() -> None:
        server = ApiServer(app, limits=limits, **options)
        try:
            port = await server.start()
        except BaseException as error:
            started.put(error)
            raise
        started.put(Node(server, asyncio.get_running_loop(), port))
        await stop.wait()
        await server.stop(grace_s=0.0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    failures: list[BaseException] = []

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001  (raised again below, in the test's thread)
            failures.append(error)

    worker = threading.Thread(target=thread)
    worker.start()
    node = started.get(timeout=WAIT_S)
    try:
        if isinstance(node, BaseException):
            raise node
        yield node
    finally:
        if isinstance(node, Node):
            node.loop.call_soon_threadsafe(stop.set)
        worker.join(WAIT_S)
    assert not worker.is_alive()
    if failures:
        raise failures[0]


async def answer(send: Send, status: int, body: bytes = b"{}") -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def connection_of(scope: Scope) -> Connection:
    connection = scope["extensions"]["sidecar.connection"]
    assert isinstance(connection, Connection)
    return connection


def header_of(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


class Seen(msgspec.Struct, frozen=True):
    """One part as it was read."""

    name: str
    filename: str | None
    content_type: str | None
    size_bytes: int
    sha256: str
    head: bytes  # its first 64 bytes


def read_parts(body: Body, boundary: bytes) -> list[Seen]:
    """In the reader's thread: every part, hashed."""
    seen = []
    try:
        for part in MultipartReader(body.read, boundary, find=body.find):
            digest, size, head = hashlib.sha256(), 0, b""
            for piece in part:
                digest.update(piece)
                size += len(piece)
                if len(head) < 64:
                    head += bytes(piece[: 64 - len(head)])
            seen.append(Seen(part.name, part.filename, part.content_type, size, digest.hexdigest(), head))
    finally:
        body.close()
    return seen


class Receiver:
    """An application that takes uploads as a destination does, and answers small requests."""

    def __init__(self, *, stall_timeout_s: float = WAIT_S) -> None:
        self.outcomes: queue.Queue[list[Seen] | SidecarError] = queue.Queue()
        self.was_open: queue.Queue[bool] = queue.Queue()
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        if scope["path"] != "/api/transfers":
            await answer(send, 200, b'"hello"')
            return
        try:
            boundary = parse_content_type(header_of(scope, b"content-type"))
            body = connection.take_body(stall_timeout_s=self._stall_timeout_s)
            seen = await asyncio.to_thread(read_parts, body, boundary)
        except SidecarError as error:
            self.outcomes.put(error)
            await answer(send, error.status, error.code.encode())
            return
        self.was_open.put(body.is_open)
        self.outcomes.put(seen)
        await answer(send, 200)

    def outcome(self) -> list[Seen]:
        got = self.outcomes.get(timeout=WAIT_S)
        assert not isinstance(got, SidecarError), got
        return got

    def failure(self) -> SidecarError:
        got = self.outcomes.get(timeout=WAIT_S)
        assert isinstance(got, SidecarError), got
        return got


def read_all(client: socket.socket) -> bytes:
    """What the server sends until it closes; what came before a reset."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            received += data
    return bytes(received)


def read_response(client: socket.socket) -> bytes:
    """One response with a Content-Length: head and body."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        data = client.recv(65536)
        assert data, received
        received += data
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < size:
        body += client.recv(65536)
    return head + b"\r\n\r\n" + body


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()


def multipart_body(boundary: bytes, archive: bytes) -> bytes:
    digest = hashlib.sha256(archive).hexdigest().encode()
    return (
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="archive"; filename="archive.tar.gz"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
        + archive
        + b"\r\n--"
        + boundary
        + b'\r\nContent-Disposition: form-data; name="checksum"\r\n\r\n'
        + digest
        + b"\r\n--"
        + boundary
        + b"--\r\n"
    )


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def upload_head(boundary: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join(
        [
            b"POST /api/transfers HTTP/1.1",
            b"Host: node",
            b"Content-Type: multipart/form-data; boundary=" + boundary,
            *fields,
            b"",
            b"",
        ]
    )
