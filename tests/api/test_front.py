"""The sidecar in front of a daemon, over real connections: what passes, how it streams, how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sidecar.api.front import is_own
from sidecar.api.front_line import FrontLimits
from sidecar.errors import Refused
from sidecar.wire.flow import WireLimits
from tests.api.fake_transfers import SERVER, FakeTransfers
from tests.api.front_rig import Exchange, closed_port, fronted, raw_daemon
from tests.api.node import in_loop
from tests.api.tokens import NODE_TOKEN
from tests.wire.test_certificate import Pair

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
KEY = f"|Authorization: Bearer {NODE_TOKEN}"


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.say(OK)


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (f"/api/servers/{SERVER}/transfer", True),
        (f"/api/servers/{SERVER}/transfer/resolve", True),
        (f"/api/servers/{SERVER}/ws", True),
        ("/api/transfers", True),
        ("/api/transfers/x/y", True),
        ("/healthz", True),
        ("/readyz", True),
        ("/api/transfersx", False),
        (f"/api/servers/{SERVER}", False),
        (f"/api/servers/{SERVER}/ws/deny", False),
        (f"/api/servers/{SERVER}/files/transfer", False),
        ("/download/file", False),
        ("/", False),
    ],
)
def test_which_paths_are_own(path: str, own: bool) -> None:
    assert is_own(path) is own


@in_loop
async def test_a_request_and_its_answer_pass_as_they_are() -> None:
    seen: list[Exchange] = []

    async def daemon(exchange: Exchange) -> None:
        seen.append(exchange)
        assert await exchange.body() == b"\x1f\x8bbody"
        await exchange.say(
            b"HTTP/1.1 207 Whatever\r\nX-Request-Id: theirs\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
            b"Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 5\r\n\r\n\x1f\x8b\x00\xff\r"
        )

    async with raw_daemon(daemon) as url, fronted(url) as node:
        answer = await node.asked(
            "PROPFIND /api/x%2Fy/../z?q=%20&p HTTP/1.1|Host: node.example:8080|X-Two: 1|X-Two: 2|TE: trailers"
            "|Connection: X-Secret, Host, X-Forwarded-For|X-Secret: 1|Upgrade: h2c|X-Forwarded-For: 192.0.2.1"
            "|Accept-Encoding: br|Content-Length: 6",
            b"\x1f\x8bbody",
        )
    request = seen[0]
    assert request.line == "PROPFIND /api/x%2Fy/../z?q=%20&p HTTP/1.1"
    assert request.fields == [
        ("host", "node.example:8080"),
        ("x-two", "1"),
        ("x-two", "2"),
        ("accept-encoding", "br"),
        ("content-length", "6"),
        ("x-forwarded-for", "192.0.2.1, 127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("connection", "close"),
    ]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 207 Multi-Status",
        b"x-request-id: theirs",
        b"set-cookie: a=1",
        b"set-cookie: b=2",
        b"content-encoding: gzip",
        b"content-length: 5",
        b"connection: close",
    ]
    assert body == b"\x1f\x8b\x00\xff\r"


@in_loop
async def test_requests_follow_each_other_on_one_connection() -> None:
    async def daemon(exchange: Exchange) -> None:
        body = exchange.line.encode() + b" " + await exchange.body()
        await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    async with raw_daemon(daemon) as url, fronted(url) as node, node.dial() as connection:
        await connection.ask("POST /a HTTP/1.1|Host: n|Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n")
        await connection.ask("GET /b HTTP/1.1|Host: n|Connection: close")
        answers = await connection.rest()
    assert b"POST /a HTTP/1.1 abc" in answers
    assert answers.endswith(b"GET /b HTTP/1.1 ")


@pytest.mark.parametrize(
    ("method", "said", "body"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        ("GET", b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n", b"abc"),
        ("GET", b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nab", b"ab"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"ok"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", b""),
        ("GET", OK + b"and what nobody announced", b"ok"),
    ],
)
@in_loop
async def test_every_form_of_an_answer(method: str, said: bytes, body: bytes) -> None:
    async def daemon(exchange: Exchange) -> None:
        assert exchange.field("range") == "bytes=0-1"
        await exchange.say(said)

    async with raw_daemon(daemon) as url, fronted(url) as node:
        answer = await node.asked(f"{method} /file HTTP/1.1|Host: n|Range: bytes=0-1")
    head, _, got = answer.partition(b"\r\n\r\n")
    status = said.rpartition(b"HTTP/1.")[2].split()[1]
    assert head.split()[1] == status
    if b"transfer-encoding: chunked" in head:
        assert got.endswith(b"0\r\n\r\n")
        got = b"".join(got.split(b"\r\n")[1:-3:2])
    assert got == body
    if method == "HEAD":
        assert b"content-length: 12345" in head


@in_loop
async def test_a_daemon_on_loopback_with_a_certificate_for_another_name(tmp_path: Path) -> None:
    pair = Pair()
    (tmp_path / "both.pem").write_bytes(pair.cert + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")

    async def daemon(exchange: Exchange) -> None:
        if exchange.field("upgrade"):
            await exchange.say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            return
        await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(PIECE) * 8), PIECE * 8)

    async with raw_daemon(daemon, context) as url, fronted(url) as node:
        assert (await node.asked("GET /x HTTP/1.1|Host: n")).endswith(PIECE * 8)
        socket = connect(f"ws://127.0.0.1:{node.port}/api/servers/{SERVER}/ws", proxy=None)
        with pytest.raises(InvalidStatus) as refused:
            async with socket:
                pass
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 700 What\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
@in_loop
async def test_an_answer_that_is_none_is_a_502(said: bytes) -> None:
    async def daemon(exchange: Exchange) -> None:
        await exchange.say(said)

    async with raw_daemon(daemon) as url, fronted(url) as node:
        head, _, body = (await node.asked("GET /x HTTP/1.1|Host: n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert json.loads(body)["code"] == "daemon.unreachable"


@in_loop
async def test_a_daemon_that_is_down_is_a_502() -> None:
    async with fronted(await closed_port()) as node:
        head, _, body = (await node.asked("GET /api/system HTTP/1.1|Host: n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 502 ")
        assert json.loads(body)["code"] == "daemon.unreachable"
        assert json.loads(body)["request_id"].encode() in head
        assert (await node.asked("GET /healthz HTTP/1.1|Host: n")).startswith(b"HTTP/1.1 200")


@in_loop
async def test_own_routes_stay_here() -> None:
    async def daemon(exchange: Exchange) -> None:
        raise AssertionError(exchange.line)

    async with raw_daemon(daemon) as url, fronted(url) as node:
        for path, status in [("/healthz", b"200"), ("/api/transfers", b"401"), ("/api/transfers/x/y/z", b"404")]:
            assert (await node.asked(f"GET {path} HTTP/1.1|Host: n")).split()[1] == status
        answer = await node.asked(f"DELETE /api/servers/{SERVER}/transfer HTTP/1.1|Host: n{KEY}")
        assert answer.split()[1] == b"409"


@in_loop
async def test_without_the_front_only_the_servers_are_the_daemons() -> None:
    async with raw_daemon(hello) as url, fronted(url, is_front=False) as node:
        for path in ("/api/servers", f"/api/servers/{SERVER}", "/api/system?v=2"):
            assert (await node.asked(f"GET {path} HTTP/1.1|Host: n")).endswith(b"ok")
        assert (await node.asked("GET /download/file HTTP/1.1|Host: n")).split()[1] == b"404"


PIECE = bytes(range(256)) * 1024  # 256 KiB
PIECES = 256  # 64 MiB: more than all buffers of both kernels' sockets


@pytest.mark.parametrize("is_chunked", [True, False])
@in_loop
async def test_an_upload_streams_and_waits_for_the_daemon(is_chunked: bool) -> None:
    may_read = asyncio.Event()
    digest = hashlib.sha256()

    async def daemon(exchange: Exchange) -> None:
        await may_read.wait()
        left = -1 if is_chunked else int(exchange.field("content-length") or 0)
        while left:
            if is_chunked:
                size = int(await exchange.reader.readline(), 16)
                if not size:
                    break
                digest.update(await exchange.reader.readexactly(size))
                await exchange.reader.readexactly(2)
            else:
                piece = await exchange.reader.read(1 << 18)
                left -= len(piece)
                digest.update(piece)
        await exchange.say(OK)

    async with raw_daemon(daemon) as url, fronted(url) as node, node.dial() as connection:
        framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(PIECE) * PIECES}"
        await connection.ask(f"POST /upload/file HTTP/1.1|Host: n|{framing}|Connection: close")
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(PIECES):
                await connection.say(b"%x\r\n%s\r\n" % (len(PIECE), PIECE) if is_chunked else PIECE)
                sent += len(PIECE)
            if is_chunked:
                await connection.say(b"0\r\n\r\n")

        sending = asyncio.create_task(send())
        before = -1
        while before != sent:  # until nothing moves any more
            before = sent
            await asyncio.wait([sending], timeout=0.3)
        assert 0 < sent < len(PIECE) * PIECES * 3 // 4, "the daemon took nothing, so somebody has to hold it all"
        may_read.set()
        assert (await connection.rest()).endswith(b"ok")
        await sending
    assert digest.hexdigest() == hashlib.sha256(PIECE * PIECES).hexdigest()


@in_loop
async def test_a_download_streams_and_waits_for_the_caller() -> None:
    made = 0

    async def daemon(exchange: Exchange) -> None:
        nonlocal made
        await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(PIECE) * PIECES))
        for _ in range(PIECES):
            await exchange.say(PIECE)
            made += len(PIECE)

    async with raw_daemon(daemon) as url, fronted(url) as node, node.dial() as connection:
        await connection.ask("GET /download/backup HTTP/1.1|Host: n|Connection: close")
        await connection.head()
        before = -1
        while before != made:
            before = made
            await asyncio.sleep(0.3)
        assert made < len(PIECE) * PIECES * 3 // 4, "the caller took nothing, so somebody has to hold it all"
        digest, size = hashlib.sha256(), 0
        while data := await connection.reader.read(1 << 20):
            digest.update(data)
            size += len(data)
    assert size == len(PIECE) * PIECES
    assert digest.hexdigest() == hashlib.sha256(PIECE * PIECES).hexdigest()


@in_loop
async def test_an_answer_before_the_requests_end_is_given_at_once() -> None:
    async def daemon(exchange: Exchange) -> None:
        await exchange.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
        await exchange.wait_gone()

    async with raw_daemon(daemon) as url, fronted(url) as node, node.dial() as connection:
        await connection.ask("POST /upload/file HTTP/1.1|Host: n|Content-Length: 100000000", PIECE)
        assert (await connection.head()).startswith("HTTP/1.1 413 ")
        assert await connection.rest() == b"large"


@in_loop
async def test_continue_is_the_daemons_word() -> None:
    async def willing(exchange: Exchange) -> None:
        assert exchange.field("expect") == "100-continue"
        await exchange.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await exchange.body() == b"abc"
        await exchange.say(OK)

    async def unwilling(exchange: Exchange) -> None:
        await exchange.say(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")

    head = "POST /upload/file HTTP/1.1|Host: n|Content-Length: 3|Expect: 100-continue|Connection: close"
    async with raw_daemon(willing) as url, fronted(url) as node, node.dial() as connection:
        await connection.ask(head)
        assert (await connection.head()).startswith("HTTP/1.1 100 ")
        await connection.say(b"abc")
        assert (await connection.rest()).endswith(b"ok")
    async with raw_daemon(unwilling) as url, fronted(url) as node, node.dial() as connection:
        await connection.ask(head)
        assert (await connection.rest()).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("is_reset", [True, False])
@pytest.mark.parametrize("where", ["before the answer", "in the request", "in the answer"])
@in_loop
async def test_a_caller_who_hangs_up_takes_the_request_along(where: str, is_reset: bool) -> None:
    began, gone = asyncio.Event(), asyncio.Event()

    async def daemon(exchange: Exchange) -> None:
        if where == "in the answer":
            await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        began.set()
        await exchange.wait_gone()
        gone.set()

    async with raw_daemon(daemon) as url, fronted(url) as node:
        async with node.dial() as connection:
            length = 1000 if where == "in the request" else 0
            await connection.ask(f"POST /x HTTP/1.1|Host: n|Content-Length: {length}")
            await began.wait()
            if is_reset:
                connection.writer.transport.abort()
        await gone.wait()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"], ids=["with a length", "chunked"]
)
@in_loop
async def test_a_daemon_that_dies_in_its_answer_leaves_a_broken_one(framing: bytes) -> None:
    async def daemon(exchange: Exchange) -> None:
        await exchange.say(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nabcde\r\n")

    async with raw_daemon(daemon) as url, fronted(url) as node, node.dial() as connection:
        await connection.ask("GET /x HTTP/1.1|Host: n")
        with pytest.raises(ConnectionError):
            await connection.rest()


@in_loop
async def test_stalls_end_what_has_no_total_time() -> None:
    async def daemon(exchange: Exchange) -> None:
        if exchange.line.startswith("GET"):
            await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
            await exchange.wait_gone()
            return
        if exchange.line.startswith("PUT"):
            await exchange.wait_gone()
            return
        await hello(exchange)

    wire = WireLimits(body_timeout_s=0.1, stream_stall_s=0.3)
    limits = FrontLimits(stall_s=0.2, answer_s=0.4)
    async with raw_daemon(daemon) as url, fronted(url, wire=wire, limits=limits) as node:
        async with node.dial() as connection:  # slow, but never still: three times the total time of our own routes
            await connection.ask("POST /x HTTP/1.1|Host: n|Content-Length: 10|Connection: close")
            for _ in range(10):
                await connection.say(b"x")
                await asyncio.sleep(0.03)
            assert (await connection.rest()).endswith(b"ok")
        async with node.dial() as connection:
            await connection.ask("POST /x HTTP/1.1|Host: n|Content-Length: 10", b"x")
            assert (await connection.rest()).startswith(b"HTTP/1.1 ")  # 408, or 502 where the daemon's time is up
        async with node.dial() as connection:
            await connection.ask("GET /x HTTP/1.1|Host: n")
            with pytest.raises(ConnectionError):
                await connection.rest()
        assert (await node.asked("PUT /x HTTP/1.1|Host: n|Content-Length: 1", b"x")).startswith(b"HTTP/1.1 502 ")


@in_loop
async def test_a_caller_who_takes_nothing_is_given_up() -> None:
    gone = asyncio.Event()

    async def daemon(exchange: Exchange) -> None:
        try:
            await exchange.say(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                await exchange.say(PIECE)
        finally:
            gone.set()

    limits = FrontLimits(stall_s=0.3)
    async with raw_daemon(daemon) as url, fronted(url, limits=limits) as node, node.dial() as connection:
        await connection.ask("GET /x HTTP/1.1|Host: n")
        await gone.wait()


@in_loop
async def test_a_deletion_is_the_engines_first() -> None:
    transfers = FakeTransfers()

    async def daemon(exchange: Exchange) -> None:
        assert transfers.deleted == [SERVER]
        assert exchange.field("authorization") == f"Bearer {NODE_TOKEN}"
        await exchange.say(b"HTTP/1.1 204 No Content\r\nX-Request-Id: theirs\r\n\r\n")

    for is_front in (True, False):
        transfers.deleted.clear()
        async with raw_daemon(daemon) as url, fronted(url, transfers=transfers, is_front=is_front) as node:
            answer = await node.asked(f"DELETE /api/servers/{SERVER.upper()} HTTP/1.1|Host: n{KEY}")
            assert answer.startswith(b"HTTP/1.1 204 ")
            assert b"x-request-id: theirs" in answer


@in_loop
async def test_a_deletion_that_the_engine_does_not_know_is_passed_on() -> None:
    transfers = FakeTransfers()
    transfers.known.clear()
    async with raw_daemon(hello) as url, fronted(url, transfers=transfers) as node:
        assert (await node.asked(f"DELETE /api/servers/{SERVER} HTTP/1.1|Host: n{KEY}")).endswith(b"ok")
        assert (await node.asked(f"DELETE /api/servers/x HTTP/1.1|Host: n{KEY}")).endswith(b"ok")
    assert transfers.deleted == []


@in_loop
async def test_a_deletion_that_is_refused_goes_no_further() -> None:
    passed = []

    async def daemon(exchange: Exchange) -> None:
        passed.append(exchange.line)

    transfers = FakeTransfers()
    async with raw_daemon(daemon) as url, fronted(url, transfers=transfers) as node:
        assert (await node.asked(f"DELETE /api/servers/{SERVER} HTTP/1.1|Host: n")).split()[1] == b"401"
        transfers.failures["delete_server"] = Refused("server.deletion_refused", "No.")
        assert (await node.asked(f"DELETE /api/servers/{SERVER} HTTP/1.1|Host: n{KEY}")).split()[1] == b"409"
    async with fronted(await closed_port(), transfers=transfers) as node:
        transfers.failures.clear()
        assert (await node.asked(f"DELETE /api/servers/{SERVER} HTTP/1.1|Host: n{KEY}")).split()[1] == b"502"
    assert transfers.deleted == [], "nothing is moved aside for a daemon that is not there"
    assert passed == []
