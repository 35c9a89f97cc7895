"""Small requests: framed, bounded in bytes and time, and their callers' hang-ups noticed."""

from __future__ import annotations

import asyncio
import queue
import socket
from collections.abc import Iterator

import pytest

from sidecar.wire.flow import WireLimits
from tests.wire.serving import (
    WAIT_S,
    Node,
    Receive,
    Scope,
    Send,
    answer,
    chunked,
    connection_of,
    read_all,
    read_response,
    reset,
    serving,
)

GET = b"GET /x HTTP/1.1\r\nHost: node\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    content = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        content += message["body"]
        if not message["more_body"]:
            break
    await answer(send, 200, scope["method"].encode() + b" " + content)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with serving(echo, limits=WireLimits(head_timeout_s=0.2, body_timeout_s=0.2, linger_s=1.0)) as running:
        yield running


def post(body: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([b"POST /x HTTP/1.1", b"Host: node", *fields, b"", b""]) + body


@pytest.mark.parametrize("size", [1, 10, 10_000])
def test_requests_on_one_connection_are_answered_in_order(node: Node, size: int) -> None:
    wire = (
        b"\r\n"
        + post(b"first", b"Content-Length: 5")
        + GET
        + post(chunked(b"second" * 30, 7), b"Transfer-Encoding: chunked")
        + post(b"", b"Content-Length: 0", b"Connection: close")
    )
    with node.dial() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(wire), size):
            client.sendall(wire[at : at + size])
        responses = read_all(client).split(b"HTTP/1.1 200 OK\r\n")
    bodies = [response.partition(b"\r\n\r\n")[2] for response in responses[1:]]
    assert bodies == [b"POST first", b"GET ", b"POST " + b"second" * 30, b"POST "]


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"\x16\x03\x01 TLS where none is spoken\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", b"400"),
        (post(b"", b"Transfer-Encoding: chunked", b"Content-Length: 3"), b"400"),
        (post(b"x\r\n", b"Transfer-Encoding: chunked"), b"400"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 40_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 8_000 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nA: b", b"408"),  # never ends
        (post(b"abc", b"Content-Length: 9"), b"408"),  # never comes
        (GET[:-2], b"408"),
    ],
)
def test_what_is_no_request_is_refused_once_and_the_connection_closed(node: Node, wire: bytes, status: bytes) -> None:
    with node.dial() as client:
        client.sendall(wire)
        response = read_all(client)
    assert response.split(b" ")[1] == status
    assert response.count(b"HTTP/1.1") == 1
    assert b'"code": "request.malformed"' in response


def test_garbage_behind_a_request_is_refused_after_its_answer(node: Node) -> None:
    with node.dial() as client:
        client.sendall(GET + b"\x00\x01garbage\r\n\r\n")
        responses = read_all(client)
    assert responses.startswith(b"HTTP/1.1 200 OK")
    assert b"HTTP/1.1 400 Bad Request" in responses


def test_a_connection_without_a_request_is_closed(node: Node) -> None:
    with node.dial() as client:
        assert read_all(client) == b""


class Holding:
    """Holds a request until its caller is gone, in one of the ways in which an application can wait."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.seen: queue.Queue[str] = queue.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        assert connection.peer == "127.0.0.1"
        self.seen.put("began")
        if self.way == "wait_closed":
            await connection.wait_closed()
        elif self.way == "poll":
            while connection.is_open:  # noqa: ASYNC110  (an engine looks before a call, it does not wait)
                await asyncio.sleep(0)
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
        assert not connection.is_open
        self.seen.put("closed")


@pytest.mark.parametrize("ending", [reset, socket.socket.close])
@pytest.mark.parametrize("way", ["wait_closed", "poll", "receive"])
@pytest.mark.parametrize(
    "wire",
    [GET, GET + GET, GET + b"x" * 5000, post(b"x" * 200_000, b"Content-Length: 300000"), GET + GET * 5000],
    ids=["alone", "pipelined", "garbage", "body", "flood"],
)
def test_a_caller_that_hangs_up_is_noticed_with_data_pending(wire: bytes, way: str, ending: object) -> None:
    app = Holding(way)
    with serving(app) as node:
        client = node.dial()
        client.sendall(wire)
        assert app.seen.get(timeout=WAIT_S) == "began"
        assert callable(ending)
        ending(client)
        assert app.seen.get(timeout=WAIT_S) == "closed"


def test_an_answer_before_the_body_is_readable() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 413, b"too large")

    with serving(refuse) as node, node.dial() as client:
        client.sendall(post(b"x" * 500_000, b"Content-Length: 600000"))
        assert read_all(client).endswith(b"too large")


def test_too_many_connections_are_answered_503() -> None:
    with serving(echo, max_connections=2) as node, node.dial(), node.dial(), node.dial() as third:
        third.sendall(GET)
        assert read_response(third).startswith(b"HTTP/1.1 503")


def test_a_failing_application_is_a_500_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    with serving(broken) as node, node.dial() as client:
        client.sendall(GET)
        assert read_response(client).startswith(b"HTTP/1.1 500")
    assert [record.getMessage() for record in caplog.records] == ["Exception in ASGI application\n"]


def test_stopping_cancels_what_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    began: queue.Queue[str] = queue.Queue()

    async def forever(scope: Scope, receive: Receive, send: Send) -> None:
        began.put("began")
        await asyncio.Event().wait()

    with serving(forever) as node:
        client = node.dial()
        client.sendall(GET)
        assert began.get(timeout=WAIT_S)
    with client:
        assert read_all(client) == b""
    assert not caplog.records


def test_a_port_in_use_is_an_error(node: Node) -> None:
    with pytest.raises(OSError, match="in use"), serving(echo, port=node.port):
        pass
