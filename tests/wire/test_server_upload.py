"""Uploads through the real server: taken beside ASGI, refused early, cut, slow, and one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import os
import queue
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.errors import PeerFailed, SidecarError
from sidecar.wire.body import PIECE_BYTES, RING_BYTES, Body
from sidecar.wire.flow import WireLimits
from sidecar.wire.server import Connection
from tests.wire.serving import (
    WAIT_S,
    Node,
    Receive,
    Receiver,
    Scope,
    Send,
    answer,
    chunked,
    connection_of,
    multipart_body,
    read_all,
    read_response,
    reset,
    serving,
    upload_head,
)

BOUNDARY = b"frontier"
BODY = multipart_body(BOUNDARY, b"some bytes of an archive")
CHUNKED = b"Transfer-Encoding: chunked"


def length_of(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def node(receiver: Receiver) -> Iterator[Node]:
    with serving(receiver) as running:
        yield running


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("framed", ["chunked", "length"])
def test_an_upload_arrives(node: Node, receiver: Receiver, size: int, framed: str) -> None:
    if framed == "chunked":
        wire = upload_head(BOUNDARY, CHUNKED) + chunked(BODY, size)
    else:
        wire = upload_head(BOUNDARY, length_of(BODY)) + BODY
    with node.dial() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(wire), size):
            client.sendall(wire[at : at + size])
        response = read_all(client)
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in response
    assert [part.name for part in receiver.outcome()] == ["archive", "checksum"]
    assert receiver.was_open.get(timeout=WAIT_S)


def test_a_body_cut_at_every_byte_is_truncated_or_malformed(node: Node, receiver: Receiver) -> None:
    wire = chunked(BODY, 40)
    codes = set()
    for length in range(len(wire)):
        with node.dial() as client:
            client.sendall(upload_head(BOUNDARY, CHUNKED) + wire[:length])
            if length % 3 == 0:
                reset(client)
            elif length % 3 == 1:
                client.shutdown(socket.SHUT_WR)
                assert read_all(client).startswith(b"HTTP/1.1 400")
        codes.add(receiver.failure().code)
    assert codes == {"upload.truncated"}
    with node.dial() as client:
        client.sendall(upload_head(BOUNDARY, CHUNKED) + wire)
        assert read_response(client).startswith(b"HTTP/1.1 200")


def test_a_body_that_stops_is_stalled() -> None:
    receiver = Receiver(stall_timeout_s=0.05)
    with serving(receiver) as node, node.dial() as client:
        client.sendall(upload_head(BOUNDARY, CHUNKED) + chunked(BODY, 40)[:60])
        assert read_all(client).startswith(b"HTTP/1.1 408")
        assert receiver.failure().code == "upload.stalled"


@pytest.mark.parametrize(
    ("fields", "body", "status"),
    [
        ((b"X: y",), BODY, b"400"),  # neither length nor chunks: no body
        ((CHUNKED,), b"zz\r\n", b"400"),
        ((CHUNKED,), b"4\r\nabcdef\r\n", b"400"),
        ((CHUNKED, b"Content-Length: 5"), b"", b"400"),
        ((b"Transfer-Encoding: gzip, chunked",), b"", b"400"),
        ((b"Content-Length: 5", b"Content-Length: 6"), b"", b"400"),
        ((b"Content-Length: 5",), b"hello", b"400"),
    ],
)
def test_a_body_that_is_none_is_refused(node: Node, fields: tuple[bytes, ...], body: bytes, status: bytes) -> None:
    with node.dial() as client:
        client.sendall(upload_head(BOUNDARY, *fields) + body)
        response = read_all(client)
    assert response.split(b" ")[1] == status
    assert response.count(b"HTTP/1.1") == 1


def test_http_1_0_with_a_length(node: Node, receiver: Receiver) -> None:
    with node.dial() as client:
        head = upload_head(BOUNDARY, length_of(BODY)).replace(b"HTTP/1.1", b"HTTP/1.0")
        client.sendall(head + BODY)
        assert b" 200 OK" in read_all(client)
    assert receiver.outcome()


def test_an_upload_after_other_requests_on_one_connection(node: Node, receiver: Receiver) -> None:
    get = b"GET /x HTTP/1.1\r\nHost: node\r\n\r\n"
    upload = upload_head(BOUNDARY, CHUNKED) + chunked(BODY, 9)
    with node.dial() as client:
        client.sendall(get)
        assert read_response(client).endswith(b'"hello"')
        client.sendall(upload)
        assert read_response(client).startswith(b"HTTP/1.1 200")
    with node.dial() as client:  # all in one segment: answered in order
        client.sendall(get + get + upload + b"\x00garbage behind it")
        responses = read_all(client)
    assert responses.count(b"HTTP/1.1 200 OK") == 3
    for _ in range(2):
        assert [part.name for part in receiver.outcome()] == ["archive", "checksum"]


@pytest.mark.parametrize("path", ["/api/transfers", "/x"])
def test_expect_100_continue(node: Node, path: str) -> None:
    url = f"http://127.0.0.1:{node.port}{path}"
    command = ["curl", "-sS", "-v", "-m", "10", "-H", "Expect: 100-continue", "-F", "archive=bytes", url]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ("HTTP/1.1 100 Continue" in result.stderr) == (path == "/api/transfers")
    assert "HTTP/1.1 200 OK" in result.stderr


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 401, b"no")


def test_an_early_answer_is_readable_by_a_client_that_is_still_sending() -> None:
    with serving(refuse) as node:
        client = http.client.HTTPConnection("127.0.0.1", node.port, timeout=WAIT_S)
        with contextlib.closing(client):
            body = (b"x" * (1 << 20) for _ in range(16))  # sends it all before it reads
            client.request("POST", "/api/transfers", body, {"Content-Type": "multipart/form-data"}, encode_chunked=True)
            response = client.getresponse()
            assert (response.status, response.read(), response.headers["connection"]) == (401, b"no", "close")


def test_draining_has_a_bound() -> None:
    limits = WireLimits(linger_bytes=1 << 20)
    with serving(refuse, limits=limits) as node, node.dial() as client:
        client.sendall(upload_head(BOUNDARY, CHUNKED))
        with pytest.raises(ConnectionError):
            while True:
                client.sendall(b"8\r\n12345678\r\n" * 10_000)


def test_draining_has_an_end() -> None:
    with serving(refuse, limits=WireLimits(linger_s=0.05)) as node, node.dial() as client:
        client.sendall(upload_head(BOUNDARY, CHUNKED) + b"5\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 401")  # until the server's FIN
        with pytest.raises(ConnectionError):
            while True:
                client.sendall(b"x")


def is_open(what: Connection | Body) -> bool:
    return what.is_open


class Waiting:
    """An application that leaves an upload alone until it is told what to do."""

    def __init__(self, *, takes: bool = False) -> None:
        self.takes = takes
        self.seen: queue.Queue[str] = queue.Queue()
        self.action: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        self.loop, self.action = asyncio.get_running_loop(), asyncio.Event()
        body = connection.take_body(stall_timeout_s=WAIT_S) if self.takes else None
        assert is_open(connection)
        self.seen.put("began")
        closed = asyncio.create_task(connection.wait_closed())
        acted = asyncio.create_task(self.action.wait())
        await asyncio.wait([closed, acted], return_when=asyncio.FIRST_COMPLETED)
        if closed.done():
            assert not is_open(connection)
            assert (await receive())["type"] == "http.disconnect"
            self.seen.put("closed")
            acted.cancel()
            return
        closed.cancel()
        connection.abort()
        assert not is_open(connection)
        if body is not None:
            with contextlib.suppress(PeerFailed):  # at once: nothing more will come
                await asyncio.to_thread(lambda: [body.read() for _ in range(9)])
        await answer(send, 200)  # goes nowhere
        self.seen.put("aborted")

    def act(self) -> None:
        assert self.loop is not None
        assert self.action is not None
        self.loop.call_soon_threadsafe(self.action.set)


@pytest.mark.parametrize("takes", [False, True])
@pytest.mark.parametrize("ending", [reset, socket.socket.close])
@pytest.mark.parametrize("sent", [0, 50, 100_000])
def test_a_hang_up_is_noticed_with_the_body_untouched_or_unread(takes: bool, ending: object, sent: int) -> None:
    app = Waiting(takes=takes)
    with serving(app) as node:
        client = node.dial()
        client.sendall(upload_head(BOUNDARY, length_of(b"x" * 200_000)) + b"x" * sent)
        assert app.seen.get(timeout=WAIT_S) == "began"
        assert callable(ending)
        ending(client)
        assert app.seen.get(timeout=WAIT_S) == "closed"


@pytest.mark.parametrize("takes", [False, True])
@pytest.mark.parametrize("sent", [b"", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n\r\n"])
def test_abort_sends_nothing(takes: bool, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    app = Waiting(takes=takes)
    with serving(app) as node, node.dial() as client:
        client.sendall(upload_head(BOUNDARY, CHUNKED) + sent)
        assert app.seen.get(timeout=WAIT_S) == "began"
        app.act()
        with pytest.raises(ConnectionResetError):
            assert client.recv(1) == b"reset, not this"
        assert app.seen.get(timeout=WAIT_S) == "aborted"
    assert not caplog.records


def test_a_hang_up_is_noticed_while_the_application_thinks_about_a_whole_body() -> None:
    seen: queue.Queue[str] = queue.Queue()

    async def think(scope: Scope, receive: Receive, send: Send) -> None:
        body = connection_of(scope).take_body(stall_timeout_s=WAIT_S)

        def read() -> int:
            size = 0
            while piece := body.read():
                size += len(piece)
            return size

        assert await asyncio.to_thread(read) == len(BODY)
        assert is_open(body)
        seen.put("read")
        await body.wait_closed()
        assert not is_open(body)
        seen.put("closed")
        await answer(send, 200)

    with serving(think) as node:
        for ending in (reset, socket.socket.close):
            client = node.dial()
            client.sendall(upload_head(BOUNDARY, CHUNKED) + chunked(BODY, 10))
            assert seen.get(timeout=WAIT_S) == "read"
            ending(client)
            assert seen.get(timeout=WAIT_S) == "closed"


@pytest.mark.parametrize(("takes", "bound"), [(False, 1 << 20), (True, RING_BYTES + (1 << 20))])
def test_what_nobody_takes_is_not_read(takes: bool, bound: int) -> None:
    """What the client got rid of is in kernel buffers, whose size is known, or held by the server."""
    app = Waiting(takes=takes)
    with serving(app) as node, node.dial() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.sendall(upload_head(BOUNDARY, CHUNKED))
        assert app.seen.get(timeout=WAIT_S) == "began"
        client.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                sent += client.send(b"8\r\n12345678\r\n" * 4000)
                assert sent < bound + _kernel_buffers()
        reset(client)
        assert app.seen.get(timeout=WAIT_S) == "closed"


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _kernel_buffers() -> int:
    return int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2]) + (
        2 << 20
    )  # and the sender's, which the kernel doubles


def test_a_body_is_taken_once_and_only_from_an_upload() -> None:
    failures: queue.Queue[BaseException] = queue.Queue()

    async def twice(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            connection_of(scope).take_body(stall_timeout_s=1.0)
            connection_of(scope).take_body(stall_timeout_s=1.0)
        except RuntimeError as error:
            failures.put(error)
        await answer(send, 200)

    with serving(twice) as node:
        for wire in (upload_head(BOUNDARY, CHUNKED) + chunked(BODY, 10), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            with node.dial() as client:
                client.sendall(wire)
                assert read_response(client).startswith(b"HTTP/1.1 200")
            assert failures.get(timeout=WAIT_S)


def test_a_reader_is_woken_when_the_upload_is_answered_under_it() -> None:
    outcomes: queue.Queue[BaseException | memoryview] = queue.Queue()

    async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
        body = connection_of(scope).take_body(stall_timeout_s=WAIT_S)

        def read() -> None:
            try:
                outcomes.put(body.read())
            except SidecarError as error:
                outcomes.put(error)

        reader = asyncio.create_task(asyncio.to_thread(read))
        await answer(send, 500)
        await reader

    with serving(impatient) as node, node.dial() as client:
        client.sendall(upload_head(BOUNDARY, CHUNKED))
        assert read_response(client).startswith(b"HTTP/1.1 500")
        got = outcomes.get(timeout=WAIT_S)
        assert isinstance(got, PeerFailed)
        assert got.code == "upload.truncated"


def test_a_hundred_uploads_leave_nothing_behind(node: Node, receiver: Receiver) -> None:
    def upload(number: int) -> None:
        with node.dial() as client:
            client.sendall(upload_head(BOUNDARY, CHUNKED) + chunked(BODY, 40)[: -number % 3 * -20 or None])
            client.shutdown(socket.SHUT_WR)
            read_all(client)
        receiver.outcomes.get(timeout=WAIT_S)

    for number in range(20):  # the pool's threads come up
        upload(number)
    descriptors, threads = _descriptors(), threading.active_count()
    for number in range(100):
        upload(number)
    assert _descriptors() <= descriptors
    assert threading.active_count() <= threads + 8  # the default pool may still have grown
    assert len(asyncio.all_tasks(node.loop)) == 1


def test_a_large_body_passes_in_flat_memory(node: Node, receiver: Receiver) -> None:
    piece = os.urandom(PIECE_BYTES * 2)
    chunk = b"%x\r\n" % len(piece) + piece + b"\r\n"
    head = b'--frontier\r\nContent-Disposition: form-data; name="archive"\r\n\r\n'
    with node.dial() as client:
        client.sendall(upload_head(BOUNDARY, CHUNKED) + chunked(head, 1000)[:-5])
        client.sendall(chunk * 4)
        gc.collect()
        before = _resident_bytes()
        for _ in range(316):
            client.sendall(chunk)
        grown = _resident_bytes() - before
        client.sendall(chunked(b"\r\n--frontier--", 1000))
        assert read_response(client).startswith(b"HTTP/1.1 200")
    assert [part.size_bytes for part in receiver.outcome()] == [320 * len(piece)]
    assert grown < 8 << 20
