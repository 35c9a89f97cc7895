"""Console sockets through the sidecar to a stand-in daemon: what passes, what is added, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from sidecar.api.front_line import FrontLimits
from sidecar.api.front_session import Grants
from sidecar.api.websocket import SocketSettings
from sidecar.calls.auth import SocketClaims
from sidecar.lifecycle.statuses import Role, Status
from sidecar.settings.values import Dialect
from tests.api.fake_transfers import OTHER, SERVER, FakeTransfers, log_event, status_event, view
from tests.api.front_rig import Exchange, Fronted, closed_port, fronted, raw_daemon
from tests.api.node import Talk, in_loop
from tests.api.tokens import NOW, signed, socket_claims

GOOD = signed(socket_claims())
MORTAL = signed(socket_claims(permissions=["*"]))
FORGED = signed(socket_claims(), key="x" * 32)
Handler = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def daemon(handler: Handler, **options: Any) -> AsyncIterator[str]:
    server: Server
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        yield f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


def console(node: Fronted, server: str = SERVER, **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{node.port}/api/servers/{server}/ws", proxy=None, **options)


async def wings(socket: ServerConnection) -> None:
    """As the daemons: any token whose text is not `bad` is good. Says what it is told with `say`."""
    async for raw in socket:
        message = json.loads(raw)
        match message:
            case {"event": "auth", "args": ["bad"]}:
                await socket.send('{"event":"jwt error","args":["no"]}')
            case {"event": "auth"}:
                await socket.send('{"event":"auth success"}')
                await socket.send('{"event":"status","args":["running"]}')
            case {"event": "say", "args": [text]}:
                await socket.send(text)
            case {"event": "close", "args": [code, reason]}:
                await socket.close(int(code), reason)
            case {"event": "die"}:
                socket.transport.abort()


async def accepted(connection: ClientConnection, token: str = GOOD) -> Talk:
    talk = Talk(connection)
    await talk.say("auth", token)
    assert json.loads(await connection.recv()) == {"event": "auth success"}
    assert await talk.hear() == ("status", ["running"])
    return talk


async def hear(connection: ClientConnection) -> str:
    """The next event's name; its arguments may be missing, as some daemons leave them out."""
    name: str = json.loads(await connection.recv())["event"]
    return name


async def daemon_says(talk: Talk, event: str, word: str) -> None:
    await talk.say("say", json.dumps({"event": event, "args": [word]}))


async def ended(connection: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await connection.recv()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


@in_loop
async def test_messages_pass_both_ways() -> None:
    seen: list[Request] = []

    async def echo(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen.append(socket.request)
        async for message in socket:
            await socket.send([message[:3], message[3:]])  # in two fragments

    options: dict[str, Any] = {"subprotocols": ["b"], "origin": "https://panel.test", "user_agent_header": "browser"}
    async with (
        daemon(echo, subprotocols=[Subprotocol("b")]) as url,
        fronted(url) as node,
        console(node, additional_headers={"X-A": "1"}, **options) as connection,
    ):
        assert connection.subprotocol == "b"
        for message in ("text äöü", "", b"\x00\xffbinary", "x" * 30_000):
            await connection.send(message)
            assert await connection.recv() == message
        await (await connection.ping())
    headers = seen[0].headers
    assert seen[0].path == f"/api/servers/{SERVER}/ws"
    assert headers["origin"] == "https://panel.test"
    assert headers["host"] == f"127.0.0.1:{node.port}"
    assert (headers["x-a"], headers["user-agent"]) == ("1", "browser")
    assert headers["x-forwarded-for"] == "127.0.0.1"


@pytest.mark.parametrize(("code", "reason"), [(4409, "server is suspended"), (1001, ""), (1012, "x"), (1000, "bye")])
@in_loop
async def test_the_daemons_last_word_is_the_clients(code: int, reason: str) -> None:
    async with daemon(wings) as url, fronted(url) as node, console(node) as connection:
        await Talk(connection).say("close", str(code), reason)
        assert await ended(connection) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(4001, "bye"), (1001, ""), (1000, "")])
@in_loop
async def test_the_clients_last_word_is_the_daemons(code: int, reason: str) -> None:
    words: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

    async def listening(socket: ServerConnection) -> None:
        await socket.wait_closed()
        words.put_nowait((socket.close_code or 0, socket.close_reason or ""))

    async with daemon(listening) as url, fronted(url) as node, console(node) as connection:
        await connection.close(code, reason)
        assert await words.get() == (code, reason)


@in_loop
async def test_a_close_without_a_code_and_no_close_at_all() -> None:
    codes: asyncio.Queue[int] = asyncio.Queue()

    async def listening(socket: ServerConnection) -> None:
        await socket.wait_closed()
        codes.put_nowait(socket.close_code or 0)

    async with daemon(listening) as url, fronted(url) as node:
        async with console(node) as connection:
            connection.protocol.send_close()
            connection.transport.write(b"".join(connection.protocol.data_to_send()))
            assert await codes.get() == 1005
        async with console(node) as connection:
            connection.transport.abort()
            assert await codes.get() == 1006


@in_loop
async def test_a_daemon_that_dies_is_a_bad_gateway() -> None:
    async with daemon(wings) as url, fronted(url) as node, console(node) as connection:
        await Talk(connection).say("die")
        assert await ended(connection) == (1014, "the node daemon hung up")


@in_loop
async def test_a_message_that_is_too_big_ends_both() -> None:
    limits = FrontLimits(max_message_bytes=1000)
    async with daemon(wings) as url, fronted(url, limits=limits) as node, console(node) as connection:
        await Talk(connection).say("say", "x" * 1001)
        assert (await ended(connection))[0] == 1009


@pytest.mark.parametrize("status", [400, 401, 403, 404, 503])
@in_loop
async def test_a_refused_handshake_is_passed_on(status: int) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(http.HTTPStatus(status), '{"error":"no"}')
        response.headers["X-Request-Id"] = "theirs"
        return response

    async with daemon(wings, process_request=refuse) as url, fronted(url) as node:
        with pytest.raises(InvalidStatus) as refused:
            async with console(node):
                pass
    response = refused.value.response
    assert (response.status_code, bytes(response.body)) == (status, b'{"error":"no"}')
    assert response.headers["x-request-id"] == "theirs"


@in_loop
async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(exchange: Exchange) -> None:
        await exchange.say(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    async with raw_daemon(elsewhere) as url, fronted(url) as node, node.dial() as connection:
        await connection.ask(
            f"GET /api/servers/{SERVER}/ws HTTP/1.1|Host: n|Connection: Upgrade|Upgrade: websocket"
            "|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        )
        head = await connection.head()
        assert head.startswith("HTTP/1.1 302 ")
        assert "location: http://127.0.0.1:1/" in head.lower()


@in_loop
async def test_the_sidecars_events_come_after_the_daemons_yes() -> None:
    transfers = FakeTransfers()
    transfers.current[SERVER] = view()
    async with daemon(wings) as url, fronted(url, transfers=transfers) as node, console(node) as connection:
        talk = Talk(connection)
        await talk.say("auth", "bad")
        assert await talk.hear() == ("jwt error", ["no"])
        assert transfers.consumers == 0
        await talk.say("auth", GOOD)
        heard = [json.loads(await connection.recv()) for _ in range(3)]
        assert heard[0] == {"event": "auth success"}
        assert {"event": "transfer.status", "args": ["processing"]} in heard[1:]
        await transfers.wait_consumers(1)
        await transfers.publish(log_event("hello"), status_event(2, Status.COMPLETED))
        assert [(await talk.hear())[0] for _ in range(2)] == ["transfer.logs", "transfer logs"]
        assert await talk.hear() == ("transfer.status", ["completed"])
        assert await talk.hear() == ("transfer status", ["completed"])
        await talk.say("say", '{"event":"console output","args":["still here"]}')
        assert await talk.hear() == ("console output", ["still here"])
    await transfers.wait_consumers(0)


@in_loop
async def test_permissions_decide_what_is_added() -> None:
    async with daemon(wings) as url, fronted(url) as node, console(node) as connection:
        talk = await accepted(connection, MORTAL)
        await node.transfers.wait_consumers(1)
        await node.transfers.publish(log_event("secret"), status_event(2, Status.FAILED))
        assert await talk.hear() == ("transfer.status", ["failed"])


@in_loop
async def test_a_token_that_is_not_ours_adds_nothing() -> None:
    async with daemon(wings) as url, fronted(url) as node, console(node) as connection:
        talk = await accepted(connection, FORGED)  # this daemon takes anything; we do not
        await node.transfers.publish(status_event(1, Status.PROCESSING))
        assert node.transfers.consumers == 0
        await talk.say("say", '{"event":"auth successful","args":["auth success"]}')
        assert (await talk.hear())[0] == "auth successful"
        assert node.transfers.consumers == 0


@pytest.mark.parametrize("by_clock", [True, False])
@in_loop
async def test_an_expired_token_adds_nothing_until_a_new_one(by_clock: bool) -> None:
    clock = [NOW]
    async with daemon(wings) as url, fronted(url, now=lambda: clock[0]) as node, console(node) as connection:
        talk = await accepted(connection)
        await node.transfers.wait_consumers(1)
        if by_clock:
            clock[0] = NOW + 601
        else:
            await daemon_says(talk, "token expired", "")
            assert (await talk.hear())[0] == "token expired"
        await node.transfers.publish(status_event(1, Status.PROCESSING))
        await talk.say("say", '{"event":"next","args":[]}')
        assert (await talk.hear())[0] == "next"
        clock[0] = NOW
        talk = await accepted(connection)
        await node.transfers.publish(status_event(2, Status.COMPLETED))
        assert await talk.hear() == ("transfer.status", ["completed"])


@in_loop
async def test_the_errand_of_a_hand_over_is_not_told_as_the_transfer() -> None:
    transfers = FakeTransfers()
    transfers.current[SERVER] = view(role=Role.DESTINATION)
    async with daemon(wings) as url, fronted(url, transfers=transfers) as node, console(node) as connection:
        talk = Talk(connection)
        await talk.say("auth", GOOD)
        await transfers.wait_consumers(1)
        assert {await hear(connection) for _ in range(3)} == {"auth success", "status", "transfer.status"}
        for word in ("failure", "success"):  # the first errand failed; and one family says both
            await daemon_says(talk, "transfer status", word)
        await daemon_says(talk, "transfer logs", "the daemon's line")
        assert await talk.hear() == ("transfer logs", ["the daemon's line"])
        transfers.current[SERVER] = view(role=Role.DESTINATION, status=Status.COMPLETED)
        await transfers.publish(status_event(1, Status.COMPLETED, role=Role.DESTINATION))
        heard = [await talk.hear() for _ in range(3)]
        assert heard == [
            ("transfer.status", ["completed"]),
            ("transfer status", ["success"]),
            ("transfer status", ["completed"]),
        ]
        for word in ("success", "completed", "failure"):
            await daemon_says(talk, "transfer status", word)
        assert await talk.hear() == ("transfer status", ["failure"]), "what we have not said is the daemon's to say"


@pytest.mark.parametrize("case", ["source", "documented only", "not authenticated"])
@in_loop
async def test_otherwise_the_daemons_words_pass(case: str) -> None:
    transfers = FakeTransfers()
    transfers.current[SERVER] = view(role=Role.SOURCE if case == "source" else Role.DESTINATION)
    dialects = frozenset({Dialect.DOCUMENTED}) if case == "documented only" else frozenset(Dialect)
    settings = SocketSettings(dialects=dialects)
    async with (
        daemon(wings) as url,
        fronted(url, transfers=transfers, sockets=settings) as node,
        console(node) as connection,
    ):
        talk = Talk(connection)
        if case != "not authenticated":
            await talk.say("auth", GOOD)
            for _ in range(3):
                await hear(connection)
        await daemon_says(talk, "transfer status", "success")
        assert await talk.hear() == ("transfer status", ["success"])


def claims(*permissions: str, expires_at: float = 10.0) -> SocketClaims:
    return SocketClaims(SERVER, "u", frozenset(permissions), expires_at)


def granted(grants: Grants) -> SocketClaims | None:
    return grants.current


def test_an_answer_grants_what_every_unanswered_token_permits() -> None:
    grants = Grants()
    grants.accepted()
    assert granted(grants) is None, "an answer that nobody asked for"
    grants.asked(claims("a", "b"), 0.0)
    grants.asked(claims("b", "c", expires_at=5.0), 0.0)
    grants.accepted()
    assert granted(grants) == claims("b", expires_at=5.0)
    grants.refused()
    grants.asked(claims("c"), 1.0)
    grants.accepted()
    assert granted(grants) == claims("c")
    grants.asked(None, 2.0)
    grants.asked(claims("a"), 2.0)
    grants.accepted()
    assert granted(grants) is None, "one of the two says nothing to us, and it may be that which was accepted"
    grants.asked(claims("a"), 13.0)  # the other answer never came: the daemon had dropped that message
    grants.accepted()
    assert granted(grants) == claims("a")


@in_loop
async def test_without_the_daemon_transfers_can_still_be_followed() -> None:
    transfers = FakeTransfers()
    settings = SocketSettings(panel_url="https://panel.test")
    async with fronted(await closed_port(), transfers=transfers, sockets=settings) as node:
        with pytest.raises(InvalidStatus) as refused:  # the origin is ours to check now
            async with console(node, origin="https://evil.test"):
                pass
        assert refused.value.response.status_code == 403
        async with console(node, origin="https://panel.test") as connection:
            talk = Talk(connection)
            await talk.say("auth", GOOD)
            assert [(await talk.hear())[0] for _ in range(2)] == ["auth success", "status"]
            await transfers.wait_consumers(1)
            await transfers.publish(status_event(1, Status.PROCESSING))
            assert await talk.hear() == ("transfer.status", ["processing"])


@in_loop
async def test_a_server_on_its_way_here_can_be_followed() -> None:
    def unknown(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(http.HTTPStatus.NOT_FOUND, "{}")

    transfers = FakeTransfers()
    transfers.known.clear()
    async with daemon(wings, process_request=unknown) as url, fronted(url, transfers=transfers) as node:
        with pytest.raises(InvalidStatus):
            async with console(node):
                pass
        transfers.current[SERVER] = view(role=Role.DESTINATION)
        async with console(node) as connection:
            talk = Talk(connection)
            await talk.say("auth", GOOD)
            assert (await talk.hear())[0] == "auth success"


@in_loop
async def test_other_sockets_pass_with_nothing_added() -> None:
    async with daemon(wings) as url:
        async with fronted(url) as node:
            for path in ("/api/other/ws?x=1", "/api/servers/x/ws"):
                async with connect(f"ws://127.0.0.1:{node.port}{path}", proxy=None) as connection:
                    await accepted(connection)
                    assert node.transfers.consumers == 0
        async with fronted(await closed_port()) as node:
            with pytest.raises(InvalidStatus) as refused:
                async with connect(f"ws://127.0.0.1:{node.port}/api/other/ws", proxy=None):
                    pass
            assert refused.value.response.status_code == 502


@in_loop
async def test_sockets_are_bounded_in_number_and_time() -> None:
    settings = SocketSettings(max_per_server=1, auth_s=0.2)
    async with daemon(wings) as url, fronted(url, sockets=settings) as node, console(node) as connection:
        with pytest.raises(InvalidStatus) as refused:
            async with console(node):
                pass
        assert refused.value.response.status_code == 400
        async with console(node, OTHER):
            pass
        assert await ended(connection) == (1008, "no authentication")


@in_loop
async def test_one_who_falls_behind_the_engine_is_closed() -> None:
    async with daemon(wings) as url, fronted(url) as node, console(node) as connection:
        await accepted(connection)
        await node.transfers.wait_consumers(1)
        node.transfers.end_consumers()
        assert await ended(connection) == (1013, "too slow")


@in_loop
async def test_a_client_that_takes_nothing_slows_the_daemon_down_and_is_given_up() -> None:
    said = 0
    over = asyncio.Event()

    async def flood(socket: ServerConnection) -> None:
        nonlocal said
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send("x" * 100_000)
                said += 1
        over.set()

    settings, limits = SocketSettings(auth_s=60.0), FrontLimits(stall_s=1.0)
    async with (
        daemon(flood) as url,
        fronted(url, sockets=settings, limits=limits) as node,
        console(node, max_queue=1) as connection,
    ):
        await connection.recv()
        connection.transport.pause_reading()
        await over.wait()
        assert said < 1000, "100 MB: somebody would have held it"
        connection.transport.abort()


@in_loop
async def test_a_daemon_that_takes_nothing_slows_the_client_down() -> None:
    may_read = asyncio.Event()

    async def deaf(socket: ServerConnection) -> None:
        await may_read.wait()
        async for _ in socket:
            pass

    async with daemon(deaf, max_queue=1) as url, fronted(url) as node, console(node) as connection:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(3000):
                await connection.send(b"x" * 30_000)
                sent += 1

        flooding = asyncio.create_task(flood())
        before = -1
        while before != sent:
            before = sent
            await asyncio.wait([flooding], timeout=0.3)
        assert 0 < sent < 3000
        may_read.set()
        await flooding
