"""The commands over a real broker: what they do, what they refuse, and that nothing keeps them from answering."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import nats.errors
import pytest

from sidecar.bus import schemas
from sidecar.bus.service import MAX_RUNNING
from sidecar.engine.contract import Caller
from sidecar.errors import CODES, HostFailed, Refused
from sidecar.lifecycle.statuses import Role, Status
from tests.api.fake_transfers import OTHER, SERVER, TRANSFER, FakeTransfers, view
from tests.api.node import in_loop, node
from tests.api.tokens import NODE_TOKEN, bearer
from tests.bus.broker import broker
from tests.bus.command_rig import BODY, NODE, QUICK, asking, bus_settings, command_token, commanded
from tests.bus.configured import PASSWORDS, configured
from tests.engine.rig import SERVER as RIG_SERVER
from tests.engine.rig import grow_world, request_to, running_node


@in_loop
async def test_all_commands(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            answer = await asker.ask("start", {**BODY, "idempotency_key": "k-1", "expires_at": time.time() + 60})
            assert json.loads(answer.data) == {"transfer": TRANSFER, "status": "pending"}
            assert answer.headers is not None
            assert UUID(answer.headers["X-Request-Id"])
            assert answer.headers["Sidecar-Node"] == NODE
            ((request, caller, respond_async),) = commands.transfers.started
            assert (request.server, request.url, request.token) == (SERVER, BODY["url"], BODY["token"])
            assert (request.key, caller, respond_async) == ("k-1", None, True)
            status = await asker.told("status", {"server": SERVER.upper()})
            assert (status["transfer"], status["progress"]["percent"]) == (TRANSFER, 25.0)
            assert await asker.told("status", {"transfer": TRANSFER}) == status
            listed = await asker.told("list")
            assert listed == {"node": NODE, "transfers": [status], "total": 1}
            assert await asker.told("list", {"limit": 5}, node="_all") == listed
            info = await asker.told("info")
            assert (info["node"], info["outgoing"], info["free_bytes"]) == (NODE, 1, 12345)
            assert await asker.told("cancel", {"transfer": TRANSFER}) == {"transfer": TRANSFER, "status": "processing"}
            assert await asker.told("cancel", {"server": SERVER}) == {"transfer": TRANSFER, "status": "processing"}
            assert commands.transfers.cancelled == [(SERVER, Role.SOURCE)] * 2
            commands.transfers.current[SERVER] = view(role=Role.DESTINATION)
            assert (await asker.told("cancel", {"server": SERVER}))["transfer"] == TRANSFER
            assert commands.transfers.cancelled[2:] == [(SERVER, Role.DESTINATION)]


# What is wrong, in a body without its server: over REST that stands in the path.
BAD_BODIES: list[tuple[bytes, str]] = [
    (b"{", "request.malformed"),
    (b"", "request.malformed"),
    (b"\xff\xfe", "request.malformed"),
    (b"[]", "request.invalid"),
    (b'{"token": "x"%s}', "request.invalid"),
    (b'{"url": 7, "token": "x"%s}', "request.invalid"),
    (b'{"url": "http://x", "token": null%s}', "request.invalid"),
    (b'{"url": "ftp://x", "token": "x"%s}', "request.invalid"),
    (b'{"url": "http://x:99999/", "token": "x"%s}', "request.invalid"),
    (b'{"url": "http://x/\\r\\nHost: y", "token": "x"%s}', "request.invalid"),
    (b'{"url": "http://x", "token": "x\\r\\nHost: y"%s}', "request.invalid"),
    (b'{"url": "http://x", "token": "x", "backups": ["../../etc"]%s}', "request.invalid"),
    (b'{"url": "http://x", "token": "x", "more": "' + b"x" * 70_000 + b'"%s}', "request.too_large"),
]
REFUSALS: list[Exception] = [
    Refused("server.unknown", "This node has no such server."),
    Refused("transfer.exists", "A transfer is already in progress for this server."),
    Refused("transfer.too_many", "This node takes no more transfers at the moment.", limit=2),
    Refused("destination.not_allowed", "Not there: \x1b[31m\r\nNats-Service-Error-Code: 200", host="\udcff"),
    Refused("node.fenced", "Another sidecar has this node's id."),
    HostFailed("engine.unreachable", "The engine does not answer."),
    RuntimeError("a secret of the inside"),
]


@in_loop
async def test_the_bus_and_rest_refuse_the_same_with_the_same_words(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker, node() as rest:
            await commands.wait_ready()

            async def both(content: bytes, path_server: str, headers: dict[str, str], code: str) -> None:
                at_path = await rest.ask(
                    "POST", f"/api/servers/{path_server}/transfer", content=content, headers=headers
                )
                named = b', "server": {"uuid": "%s"}' % path_server.encode()
                body = content.replace(b"%s", named)
                plain = content.replace(b"%s", b"")
                at_path = await rest.ask("POST", f"/api/servers/{path_server}/transfer", content=plain, headers=headers)
                on_bus = await asker.ask("start", body, token=None, headers=headers)
                over_rest, over_bus = at_path.json(), json.loads(on_bus.data)
                assert over_rest["code"] == over_bus["code"] == code
                assert at_path.status_code == CODES[code][0]
                assert on_bus.headers is not None
                assert on_bus.headers["Nats-Service-Error-Code"] == str(CODES[code][0])
                assert on_bus.headers["X-Request-Id"] == over_bus["request_id"]
                assert over_rest["error"] == over_bus["error"]
                assert set(over_rest) == set(over_bus)
                assert "secret" not in on_bus.data.decode() + str(on_bus.headers)

            good = BODY["url"].encode().join((b'{"url": "', b'", "token": "Bearer x"%s}'))
            for content, code in BAD_BODIES:
                await both(content, SERVER, bearer(), code)
            for path_server in ("nonsense", SERVER[:-1], f"{SERVER}.>"):
                await both(good, path_server, bearer(), "server.unknown")
            await both(good, SERVER, {}, "auth.missing")
            await both(good, SERVER, {"Authorization": f"Basic {NODE_TOKEN}"}, "auth.missing")
            await both(good, SERVER, {"Authorization": "Bearer of-another-node"}, "auth.token")
            await both(b"{", "nonsense", {"Authorization": "Bearer of-another-node"}, "auth.token")
            for refusal in REFUSALS:
                rest.transfers.failures["start"] = commands.transfers.failures["start"] = refusal
                await both(good, SERVER, bearer(), getattr(refusal, "code", "transfer.internal"))
            assert commands.transfers.started == rest.transfers.started == []
            for transfers in (rest.transfers, commands.transfers):
                transfers.current.clear()
            assert (await rest.ask("DELETE", f"/api/servers/{SERVER}/transfer")).json()["code"] == "transfer.none"
            assert await asker.code("cancel", {"server": SERVER}) == "transfer.none"
            assert (await rest.ask("GET", f"/api/servers/{SERVER}/transfer")).json()["code"] == "transfer.unknown"
            assert await asker.code("status", {"server": SERVER}) == "transfer.unknown"


@pytest.mark.parametrize(
    ("command", "body", "code"),
    [
        ("start", {name: BODY[name] for name in ("url", "token")}, "request.invalid"),
        ("start", {**BODY, "server": {}}, "request.invalid"),
        ("start", {**BODY, "idempotency_key": ""}, "request.invalid"),
        ("start", {**BODY, "idempotency_key": "x" * 129}, "request.invalid"),
        ("start", {**BODY, "idempotency_key": "a b"}, "request.invalid"),
        ("start", {**BODY, "idempotency_key": 7}, "request.invalid"),
        ("start", {**BODY, "expires_at": "soon"}, "request.invalid"),
        ("start", {**BODY, "expires_at": 1.0}, "request.expired"),
        (
            "start",
            b'{"url": "http://x", "token": "x", "server": {"uuid": "%s"}, "expires_at": 1e999}',
            "request.invalid",
        ),
        ("cancel", {}, "request.invalid"),
        ("cancel", {"server": SERVER, "transfer": TRANSFER}, "request.invalid"),
        ("cancel", {"transfer": ">"}, "request.invalid"),
        ("cancel", {"transfer": TRANSFER}, "transfer.none"),
        ("status", b"", "request.malformed"),
        ("status", {"server": "*"}, "server.unknown"),
        ("status", {"transfer": TRANSFER}, "transfer.unknown"),
        ("list", {"limit": 0}, "request.invalid"),
        ("list", {"limit": 501}, "request.invalid"),
        ("info", b"[]", "request.invalid"),
    ],
)
@in_loop
async def test_refusals_of_commands_alone(tmp_path: Path, command: str, body: Any, code: str) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            assert await asker.code(command, body) == code
            assert commands.transfers.started == []


@in_loop
async def test_tokens(tmp_path: Path) -> None:
    now = time.time()
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            for token, code in (
                (command_token(), ""),
                (command_token("list"), ""),
                (command_token("start list"), ""),
                (command_token(scope=["list"]), ""),
                (command_token(aud=["x", NODE]), ""),
                (command_token("start"), "auth.jwt_scope"),
                (command_token(scope=None), "auth.jwt_scope"),
                (command_token(scope=[["list"]]), "auth.jwt_scope"),
                (command_token(aud="node-b"), "auth.jwt_scope"),
                (command_token(aud=None), "auth.jwt_scope"),
                (command_token(key="x" * 48), "auth.jwt"),
                (command_token(exp=None), "auth.jwt"),
                (command_token(exp=now + 3600), "auth.jwt"),
                (command_token(exp=now - 1), "auth.jwt_expired"),
                (command_token(jti=None), "auth.jwt"),
                (command_token(jti=""), "auth.jwt"),
                (command_token(jti="x" * 129), "auth.jwt"),
                (command_token(jti=7), "auth.jwt"),
                (command_token(iat=None), "auth.jwt"),
                (command_token(iat=now + 60), "auth.jwt"),  # it would outlive the rule of the next line
                (command_token(iat=now - 3600), "auth.jwt_replayed"),  # older than the node: perhaps used before
                ("a.b.c", "auth.jwt"),
                ("wrong", "auth.token"),
                (None, "auth.missing"),
            ):
                assert await asker.code("list", token=token) == code, token
            once = command_token()
            assert await asker.code("status", {"server": SERVER}, token=once) == "transfer.unknown"
            assert await asker.code("list", token=once) == "auth.jwt_replayed"
            upload = command_token(sub=SERVER, scope="transfer")  # what a panel makes for a source
            assert await asker.code("list", token=upload) == "auth.jwt_scope"


@in_loop
async def test_subject_permissions_may_suffice(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url, is_required=False) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            assert await asker.code("list", token=None) == ""
            assert await asker.code("list", token="wrong") == "auth.token"
            assert await asker.code("list", token=None, headers={"AUTHORIZATION": "Bearer wrong"}) == "auth.token"


@in_loop
async def test_what_cannot_be_answered_is_not_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            poisoned = await asker.client.subscribe("transfer.v1.event.>")
            data, headers = json.dumps(BODY).encode(), bearer()
            subject = f"transfer.v1.command.{NODE}.start"
            for reply in (
                "",
                "transfer.v1.event.node-a.x",
                "$KV.transfer_nodes.node-a",
                f"transfer.v1.command.{NODE}.list",
            ):
                await asker.client.publish(subject, data, reply=reply, headers=headers)
            assert await asker.told("list") == {"node": NODE, "transfers": [], "total": 0}
            assert commands.transfers.started == []
            assert poisoned.pending_msgs == 0
            assert sum("without a subject" in record.getMessage() for record in caplog.records) == 1


@in_loop
async def test_hostile_headers_and_subjects(tmp_path: Path) -> None:
    """On the wire, by hand: the client library would not send them."""
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await reader.readline()
            writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB answer.> 1\r\n')
            body = json.dumps(BODY).encode()
            heads = [
                b"NATS/1.0\r\n\r\n",
                b"NATS/1.0\r\nX: y\rAuthorization: Bearer %s\r\n\r\n" % NODE_TOKEN.encode(),
                b"NATS/1.0\r\nAuthorization: Bearer %s\r\nauthorization: Bearer x\r\n\r\n" % NODE_TOKEN.encode(),
                b"NATS/1.0\r\nAuthorization: Bearer x\r\n\tBearer y\r\n\r\n",
                b"NATS/1.0\r\n\xff\xfe: \xff\r\n:\r\n: \r\n\r\n",
                b"NATS/1.0 503\r\n\r\n",
                b"NATS/1.0\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
            ]
            for index, head in enumerate(heads):
                writer.write(
                    b"HPUB transfer.v1.command.%s.start answer.%d %d %d\r\n%s%s\r\n"
                    % (NODE.encode(), index, len(head), len(head) + len(body), head, body)
                )
            for subject in (b"transfer.v1.command.node-a", b"transfer.v1.command.node-a.start.x"):
                writer.write(b"PUB %s answer.x 2\r\n{}\r\n" % subject)
            writer.write(b"PING\r\n")
            await writer.drain()
            answered: set[bytes] = set()
            while len(answered) < len(heads):
                line = await reader.readline()
                if line.startswith((b"HMSG", b"MSG")):
                    answered.add(line.split()[1])
                assert line
            assert commands.transfers.started == []
            assert await asker.code("list") == ""
            writer.close()
            await writer.wait_closed()


@in_loop
async def test_a_bug_shows_nothing_of_its_inside_and_stops_nothing(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            commands.transfers.failures["start"] = KeyError("a secret of the inside")
            answer = await asker.ask("start", BODY)
            problem = json.loads(answer.data)
            assert problem["code"] == "transfer.internal"
            assert set(problem) == {"error", "code", "request_id"}
            assert "secret" not in answer.data.decode() + str(answer.headers)
            stats = json.loads((await asker.client.request("$SRV.STATS.transfer-sidecar", b"")).data)
            (start,) = [endpoint for endpoint in stats["endpoints"] if endpoint["name"] == "start"]
            assert (start["num_errors"], start["last_error"]) == (1, "transfer.internal")


@in_loop
async def test_a_slow_command_keeps_no_other_waiting_and_their_number_is_bounded(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(_: Caller | None) -> None:
        await gate.wait()

    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            commands.transfers.starter = slow
            starting = [asyncio.create_task(asker.ask("start", BODY)) for _ in range(MAX_RUNNING)]
            while len(commands.transfers.started) < MAX_RUNNING:  # noqa: ASYNC110 - it is told by nothing
                await asyncio.sleep(0.002)
            assert await asker.code("status", {"server": SERVER}) == "transfer.unknown"
            assert await asker.code("start", BODY) == "request.busy"
            gate.set()
            assert {json.loads((await task).data)["transfer"] for task in starting} == {TRANSFER}
            assert await asker.code("start", BODY) == ""


@in_loop
async def test_a_server_that_is_slow_to_stop_holds_nobody_up(tmp_path: Path) -> None:
    """A real engine behind the commands: accepted at once, ten times the same start is one, and it can be cancelled."""
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with running_node(tmp_path / "b", "b") as b, running_node(tmp_path / "a", "a") as a:
            grow_world(a.volume())
            a.runtime.add(RIG_SERVER, running=True)
            a.runtime.slow_stop = asyncio.Event()
            body = {
                "url": f"{b.url}/api/transfers",
                "token": request_to(b).token,
                "server": {"uuid": RIG_SERVER},
                "idempotency_key": "once",
            }
            async with commanded(server.url, engine=a.node) as commands, asking(server.url) as asker:
                await commands.wait_ready()
                answers = await asyncio.gather(*(asker.told("start", body) for _ in range(10)))
                assert len({answer["transfer"] for answer in answers}) == 1
                assert {answer["status"] for answer in answers} == {"pending"}
                assert (await asker.told("status", {"server": RIG_SERVER}))["stage"] == "stopping"
                assert await asker.code("start", {**body, "idempotency_key": "twice"}) == "transfer.exists"
                assert (await asker.told("cancel", answers[0]))["transfer"] == answers[0]["transfer"]
                a.runtime.slow_stop.set()
                assert (await a.settled()).status is Status.CANCELLED
                assert await asker.told("start", body) == answers[0]
                assert RIG_SERVER in a.runtime.running


@in_loop
async def test_what_is_in_flight_at_the_end_is_answered(tmp_path: Path) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow(_: Caller | None) -> None:
        begun.set()
        await gate.wait()

    with broker(tmp_path) as server:
        await server.wait_listening()
        async with asking(server.url) as asker:
            async with commanded(server.url) as commands:
                await commands.wait_ready()
                commands.transfers.starter = slow
                answer = asyncio.create_task(asker.ask("start", BODY))
                await begun.wait()
                asyncio.get_running_loop().call_later(0.1, gate.set)
            assert json.loads((await answer).data)["transfer"] == TRANSFER
            with pytest.raises(nats.errors.NoRespondersError):
                await asker.ask("list")


@pytest.mark.parametrize("is_frozen", [False, True])
@in_loop
async def test_leaving_never_waits_for_a_broker_that_is_gone(tmp_path: Path, is_frozen: bool) -> None:
    store = tmp_path / "store"
    with broker(tmp_path, f'jetstream {{ store_dir: "{store}" }}') as server:
        await server.wait_listening()
        pace = msgspec.structs.replace(QUICK, drain_s=0.5)
        async with commanded(server.url, directory="create", pace=pace) as commands:
            await commands.wait_ready()
            if is_frozen:
                server.freeze()
            else:
                server.stop()
            began = time.monotonic()
        assert time.monotonic() - began < 10


@in_loop
async def test_the_shipped_permissions_suffice(tmp_path: Path) -> None:
    """Those of `docker/nats/`; a panel's user reaches commands and nothing of the node's own."""
    async with configured(tmp_path) as server:
        async with asking(server.url, user="admin", password=PASSWORDS["admin"]) as admin:
            await admin.client.jetstream().create_key_value(bucket="transfer_nodes", ttl=35.0, history=1, direct=True)
        word = PASSWORDS[NODE]
        panel = asking(server.url, user="panel", password=PASSWORDS["panel"], inbox_prefix="_INBOX_panel")
        async with commanded(server.url, directory="verify", user=NODE, password=word) as node, panel as asker:
            await node.wait_ready()
            facts = await node.control.check()
            assert (facts["standing"], facts["directory"], facts["commands"]) == ("held", "ok", True)
            assert await asker.code("list") == ""
            assert await asker.code("list", node="_all") == ""
            assert json.loads((await asker.client.request("$SRV.PING.transfer-sidecar")).data)["name"]
            assert server.denied == []
            await asker.client.publish("transfer.v1.command.node-a.self.here", b'{"epoch": "forged"}')
            await asker.client.flush()
            assert await asker.code("list") == ""
            assert "rival" not in node.control.facts()
            assert node.connection.facts()["denied"] == 0 and len(server.denied) == 1


@in_loop
async def test_what_the_tools_of_nats_see(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with commanded(server.url) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            ping = json.loads((await asker.client.request("$SRV.PING", b"")).data)
            assert (ping["type"], ping["name"]) == ("io.nats.micro.v1.ping_response", "transfer-sidecar")
            assert ping["metadata"] == {"node": NODE, "epoch": "epoch-1"}
            for subject in ("$SRV.INFO", "$SRV.INFO.transfer-sidecar", f"$SRV.INFO.transfer-sidecar.{ping['id']}"):
                info = json.loads((await asker.client.request(subject, b"", headers=bearer())).data)
                assert [endpoint["name"] for endpoint in info["endpoints"]] == [*schemas.COMMANDS, "list-all"]
            start = info["endpoints"][0]
            assert (start["subject"], start["queue_group"]) == (f"transfer.v1.command.{NODE}.start", NODE)
            assert json.loads(start["metadata"]["request"]) == schemas.all_schemas()["start.request"]
            await asker.ask("list")
            stats = json.loads((await asker.client.request("$SRV.STATS", b"")).data)
            (listed,) = [endpoint for endpoint in stats["endpoints"] if endpoint["name"] == "list"]
            assert (listed["num_requests"], listed["num_errors"]) == (1, 0)
            assert listed["processing_time"] > 0


@in_loop
async def test_commands_come_back_with_the_broker(tmp_path: Path) -> None:
    with broker(tmp_path, is_up=False) as server:
        async with commanded(server.url) as commands:
            with pytest.raises(HostFailed) as down:
                await commands.control.check()
            assert down.value.code == "bus.down"
            for _ in range(2):
                server.start()
                await server.wait_listening()
                await commands.wait_ready()
                assert (await commands.control.check())["commands"] is True
                async with asking(server.url) as asker:
                    assert await asker.code("list") == ""
                    info = json.loads((await asker.client.request("$SRV.INFO.transfer-sidecar", b"")).data)
                    assert len(info["endpoints"]) == 6
                server.stop()
                await commands.wait(lambda facts: facts["commands"] is False)


@in_loop
async def test_a_denied_subscription_is_not_ready(tmp_path: Path) -> None:
    permissions = """authorization {{ users: [ {{ user: "a", password: "p", permissions: {{
        publish: ["transfer.v1.command.node-a.self.>", "_INBOX.>"],
        subscribe: [{subscribe}"$SRV.>", "transfer.v1.command.node-a.self.>", "_INBOX_node-a.>"] }} }} ] }}"""
    for subscribe, is_ready in (('"transfer.v1.command.node-a.*", ', False), ('"transfer.v1.command.*.*", ', True)):
        with broker(tmp_path, permissions.format(subscribe=subscribe)) as server:
            await server.wait_listening()
            async with commanded(server.url, user="a", password="p") as commands:
                if is_ready:
                    await commands.wait_ready()
                else:
                    while not commands.connection.facts()["denied"]:  # noqa: ASYNC110 - the public view
                        await asyncio.sleep(0.005)
                    with pytest.raises(HostFailed) as denied:
                        await commands.control.check()
                    assert denied.value.code == "bus.denied"


@in_loop
async def test_a_list_never_outgrows_the_broker(tmp_path: Path) -> None:
    with broker(tmp_path, "max_payload: 20000") as server:
        await server.wait_listening()
        transfers = FakeTransfers()
        for number in range(500):
            one = str(UUID(int=number))
            transfers.current[one] = view(one, status=Status.COMPLETED, transfer=one)
        async with commanded(server.url, transfers=transfers) as commands, asking(server.url) as asker:
            await commands.wait_ready()
            assert len((await asker.told("list", {"limit": 10}))["transfers"]) == 10
            assert await asker.code("list", {"limit": 500}) == "transfer.internal"
            assert await asker.code("info") == ""
            assert commands.connection.connections == 1


def test_node_ids_that_are_no_subject() -> None:
    from sidecar.bus.subjects import Subjects

    for node_id in ("_all", "a.b", "*", ">", "", "a b", "a" * 49, "ä"):
        with pytest.raises(ValueError, match="node id"):
            Subjects(node_id)
    assert bus_settings("nats://127.0.0.1:1").inbox_prefix == "_INBOX_node-a"
    assert OTHER != SERVER


def test_no_log_line_holds_a_token(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)

    @in_loop
    async def scenario() -> None:
        with broker(tmp_path) as server:
            await server.wait_listening()
            async with commanded(server.url) as commands, asking(server.url) as asker:
                await commands.wait_ready()
                await asker.ask("start", {**BODY, "token": "Bearer secret-1"})
                await asker.ask("start", {**BODY, "token": "Bearer secret-2\n"}, token="secret-3")

    scenario()
    assert "secret" not in caplog.text
    assert NODE_TOKEN not in caplog.text
