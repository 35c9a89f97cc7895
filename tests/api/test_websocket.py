"""The console socket over a real connection: admission, words, expiry, permissions, clients that misbehave."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sidecar.api.websocket import SocketSettings
from sidecar.lifecycle.statuses import Role, Status
from sidecar.settings.values import Dialect
from tests.api.fake_transfers import OTHER, SERVER, FakeTransfers, log_event, status_event, view
from tests.api.node import Node, Talk, in_loop, node
from tests.api.tokens import NOW, signed, socket_claims

GOOD = signed(socket_claims())
MORTAL = signed(socket_claims(permissions=["*"]))


async def authenticated(connection: Any, token: str = GOOD) -> Talk:
    talk = Talk(connection)
    await talk.say("auth", token)
    event, args = await talk.hear()
    assert (event, args) == ("auth success", sorted(args))
    assert await talk.hear() == ("status", ["running"])
    return talk


async def refusal(n: Node, **options: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as refused:
        async with n.socket(**options):
            pass
    response = refused.value.response
    body = json.loads(bytes(response.body or b"{}"))
    assert body["request_id"] == response.headers["x-request-id"]
    return response.status_code, body


@in_loop
async def test_both_dialects_reach_the_client() -> None:
    async with node() as n, n.socket() as connection:
        talk = await authenticated(connection)
        await n.transfers.wait_consumers(1)
        await n.transfers.publish(
            status_event(1, Status.PROCESSING),
            log_event("Streaming archive to destination..."),
            status_event(3, Status.COMPLETED, server=OTHER),
            status_event(3, Status.COMPLETED),
        )
        heard = [await talk.hear() for _ in range(6)]
        assert heard[:3] == [
            ("transfer.status", ["processing"]),
            ("transfer status", ["processing"]),
            ("transfer.logs", ["documented: Streaming archive to destination..."]),
        ]
        assert heard[3][0] == "transfer logs"
        assert heard[3][1][0].startswith(
            "\x1b[33m\x1b[1mWed, 04 Mar 2026 22:30:15 UTC [Transfer System] [Source Node]:"
        )
        assert heard[4:] == [("transfer.status", ["completed"]), ("transfer status", ["completed"])]


@pytest.mark.parametrize(
    ("dialect", "words"),
    [
        (Dialect.DOCUMENTED, [("transfer.status", ["completed"])]),
        (Dialect.DAEMON, [("transfer status", ["success"]), ("transfer status", ["completed"])]),
    ],
)
@in_loop
async def test_one_dialect(dialect: Dialect, words: list[Any]) -> None:
    settings = SocketSettings(dialects=frozenset({dialect}))
    async with node(sockets=settings) as n, n.socket() as connection:
        talk = await authenticated(connection)
        await n.transfers.wait_consumers(1)
        await n.transfers.publish(status_event(1, Status.COMPLETED, role=Role.DESTINATION))
        assert [await talk.hear() for _ in words] == words


@in_loop
async def test_log_lines_need_the_permission_literally() -> None:
    async with node() as n, n.socket() as connection:
        talk = await authenticated(connection, MORTAL)
        await n.transfers.wait_consumers(1)
        await n.transfers.publish(log_event("secret"), status_event(2, Status.FAILED))
        assert await talk.hear() == ("transfer.status", ["failed"])


@in_loop
async def test_a_transfer_under_way_is_told_at_once() -> None:
    transfers = FakeTransfers()
    transfers.current[SERVER] = view()
    async with node(transfers) as n, n.socket() as connection:
        talk = await authenticated(connection)
        assert await talk.hear() == ("transfer.status", ["processing"])


@in_loop
async def test_a_server_on_its_way_here_can_be_watched() -> None:
    transfers = FakeTransfers()
    transfers.known.clear()
    transfers.current[SERVER] = view(role=Role.DESTINATION)
    async with node(transfers) as n, n.socket() as connection:
        talk = Talk(connection)
        await talk.say("auth", GOOD)
        assert (await talk.hear())[0] == "auth success"
        assert await talk.hear() == ("status", ["offline"])


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (signed(socket_claims(exp=int(NOW))), "jwt: exp claim is invalid"),
        (signed(socket_claims(permissions=["control.console"])), "jwt: missing connect permission"),
        (signed(socket_claims(server_uuid=OTHER)), "jwt: server uuid mismatch"),
        (signed(socket_claims(), key="another node's token, long enough"), "jwt: The token is damaged"),
        ("", "jwt: no jwt present"),
    ],
)
@in_loop
async def test_bad_tokens_are_told_and_may_be_mended(token: str, words: str) -> None:
    async with node() as n, n.socket() as connection:
        talk = Talk(connection)
        await talk.say("auth", token)
        event, args = await talk.hear()
        assert event == "jwt error"
        assert args[0].startswith("Error Event [")
        assert words in args[0]
        assert n.transfers.consumers == 0
        await authenticated(connection)


@in_loop
async def test_authentication_again_says_only_success() -> None:
    async with node() as n, n.socket() as connection:
        talk = await authenticated(connection)
        await n.transfers.wait_consumers(1)
        await talk.say("auth", MORTAL)
        assert (await talk.hear()) == ("auth success", ["*"])
        await n.transfers.publish(log_event("secret"), status_event(2, Status.FAILED))
        assert await talk.hear() == ("transfer.status", ["failed"])
        assert n.transfers.consumers == 1


@in_loop
async def test_other_messages_are_ignored() -> None:
    async with node(sockets=SocketSettings(message_burst=100)) as n, n.socket() as connection:
        for message in (
            "not json",
            "[]",
            '{"event": 7}',
            '{"event": "auth", "args": "x"}',
            '{"event":"send command","args":["stop"]}',
            '{"event":"set state","args":["kill"]}',
            "[" * 4000,
            b"\xff\x00",
        ):
            await connection.send(message)
        await authenticated(connection)


@in_loop
async def test_too_many_messages_are_dropped_and_it_is_said_once() -> None:
    settings = SocketSettings(message_burst=2, message_interval_s=1000)
    async with node(sockets=settings) as n, n.socket() as connection:
        talk = Talk(connection)
        for _ in range(5):
            await talk.say("auth", "x")
        assert [(await talk.hear())[0] for _ in range(3)] == ["jwt error", "jwt error", "throttled"]
        await connection.close()
        with pytest.raises(ConnectionClosed):
            await talk.hear()


@in_loop
async def test_a_message_above_the_bound_closes() -> None:
    async with node() as n, n.socket() as connection:
        await connection.send("x" * 5000)
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


@in_loop
async def test_a_client_that_never_authenticates_is_closed() -> None:
    async with node(sockets=SocketSettings(auth_s=0.05)) as n, n.socket() as connection:
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


@in_loop
async def test_expiry_is_told_and_silences() -> None:
    now = NOW
    settings = SocketSettings(tick_s=0.02, auth_s=0.5)
    async with node(sockets=settings, now=lambda: now) as n, n.socket() as connection:
        talk = await authenticated(connection)
        await n.transfers.wait_consumers(1)
        now = NOW + 600 - 60
        assert await talk.hear() == ("token expiring", [])
        now = NOW + 600
        while (await talk.hear())[0] != "token expired":
            pass
        await n.transfers.publish(status_event(1, Status.PROCESSING))
        heard = set()
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                heard.add((await talk.hear())[0])
        assert heard <= {"token expired"}
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.reason == "token expired"


@in_loop
async def test_who_is_not_admitted() -> None:
    settings = SocketSettings(panel_url="https://panel.test", max_per_server=2)
    async with node(sockets=settings) as n:
        assert (await refusal(n))[0] == 403
        assert (await refusal(n, origin="https://evil.test"))[0] == 403
        good = {"origin": "https://panel.test"}
        status, body = await refusal(n, server=OTHER, **good)
        assert (status, body["error"]) == (404, "The requested resource does not exist on this instance.")
        assert (await refusal(n, server="x", **good))[0] == 404
        async with n.socket(**good), n.socket(**good):
            status, body = await refusal(n, **good)
            assert (status, body["error"]) == (400, "Too many open websocket connections.")
        while True:  # the closed ones leave their places, at the server's own time
            try:
                async with n.socket(**good):
                    break
            except InvalidStatus:
                continue


@in_loop
async def test_a_client_that_falls_behind_is_closed() -> None:
    async with node() as n, n.socket() as connection:
        await authenticated(connection)
        await n.transfers.wait_consumers(1)
        n.transfers.end_consumers()
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013


@in_loop
async def test_a_client_that_takes_nothing_delays_nobody() -> None:
    async with node(sockets=SocketSettings(send_s=0.2)) as n:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", n.port))
        async with n.socket(sock=slow, max_queue=1) as lazy, n.socket() as quick:
            await authenticated(lazy)
            talk = await authenticated(quick)
            await n.transfers.wait_consumers(2)
            lazy.transport.pause_reading()
            for _ in range(4000):
                await n.transfers.publish(log_event("x" * 1500))
            await n.transfers.publish(status_event(4001, Status.COMPLETED))
            while (await talk.hear())[0] != "transfer.status":
                pass
            await n.transfers.wait_consumers(1)  # the lazy one's place is free again
            lazy.transport.abort()


@in_loop
async def test_a_client_that_leaves_takes_its_consumer_with_it() -> None:
    async with node() as n:
        async with n.socket() as connection:
            await authenticated(connection)
            await n.transfers.wait_consumers(1)
        await n.transfers.wait_consumers(0)


@in_loop
async def test_nothing_is_missed_between_the_state_and_the_events() -> None:
    transfers = FakeTransfers()
    transfers.current[SERVER] = view()
    endings = []

    def then_it_ends() -> None:
        """The transfer ends in the moment in which the socket has read its state."""
        ending = transfers.publish(status_event(9, Status.COMPLETED))
        endings.append(asyncio.get_running_loop().create_task(ending))

    async with node(transfers) as n, n.socket() as connection:
        talk = Talk(connection)
        transfers.on_view = then_it_ends
        await authenticated(connection)
        assert await talk.hear() == ("transfer.status", ["processing"])
        assert await talk.hear() == ("transfer.status", ["completed"])
