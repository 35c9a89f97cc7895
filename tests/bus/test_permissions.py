"""`docker/nats/`: what each role may do and what not, on a server that runs with that very configuration."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import nats.js.errors
import nkeys
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig
from nats.js.kv import KeyValue

from sidecar.bus.asking import Asker
from sidecar.bus.connection import BusConnection
from sidecar.bus.watch import EVENT_STREAM
from sidecar.demo.node import DemoNode, free_port, run_node
from tests.bus.command_rig import command_token
from tests.bus.configured import FILES, PASSWORDS, ConfiguredBroker, Someone, configured, someone
from tests.bus.event_rig import settings, until
from tests.bus.events import SERVER, message
from tests.bus.test_bus import certificate
from tests.watch.test_run import in_loop, once

BUCKET: Final = "transfer_nodes"
TOKEN: Final = "token-of-node-a-0000000000000000"


async def prepare(client: Client) -> KeyValue:
    """What the operator makes once."""
    stream = client.jetstream()
    await stream.add_stream(StreamConfig.from_response(json.loads((FILES / "transfer_events.json").read_text("utf-8"))))
    await stream.add_consumer(
        EVENT_STREAM,
        ConsumerConfig(
            durable_name="reader", ack_policy=AckPolicy.EXPLICIT, filter_subject="transfer.v1.event.*.*.status.>"
        ),
    )
    return await stream.create_key_value(bucket=BUCKET, history=1, direct=True)


# fmt: off
PUBLISH: Final[dict[str, tuple[list[str], list[str]]]] = {
    "node-a": (
        ["transfer.v1.event.node-a.outgoing.status.s.t", "transfer.v1.command.node-a.self.here",
         "$KV.transfer_nodes.node-a", "$JS.API.STREAM.INFO.TRANSFER_EVENTS", "$JS.API.STREAM.INFO.KV_transfer_nodes",
         "$JS.API.DIRECT.GET.TRANSFER_EVENTS.transfer.v1.event.node-a.>",
         "$JS.API.DIRECT.GET.KV_transfer_nodes.$KV.transfer_nodes.node-b"],
        ["transfer.v1.event.node-b.outgoing.status.s.t", "transfer.v1.event.node-a",
         "transfer.v1.event.*.outgoing.status.s.t", "transfer.v1.event.>",
         "transfer.v1.command.node-a.start", "transfer.v1.command.node-b.start",
         "transfer.v1.command.node-b.self.here", "transfer.v1.command._all.list", "$KV.transfer_nodes.node-b",
         "$KV.transfer_nodes.*", "$KV.transfer_nodes.>", "_INBOX_panel.x", "_INBOX_node-b.x", "$SRV.PING",
         "$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.DELETE.TRANSFER_EVENTS",
         "$JS.API.STREAM.PURGE.TRANSFER_EVENTS", "$JS.API.STREAM.UPDATE.TRANSFER_EVENTS",
         "$JS.API.STREAM.MSG.GET.TRANSFER_EVENTS", "$JS.API.STREAM.MSG.DELETE.TRANSFER_EVENTS",
         "$JS.API.DIRECT.GET.TRANSFER_EVENTS", "$JS.API.DIRECT.GET.TRANSFER_EVENTS.transfer.v1.event.node-b.>",
         "$JS.API.DIRECT.GET.TRANSFER_EVENTS.transfer.v1.event.>", "$JS.API.STREAM.DELETE.KV_transfer_nodes",
         "$JS.API.CONSUMER.CREATE.TRANSFER_EVENTS.x", "$JS.API.CONSUMER.MSG.NEXT.TRANSFER_EVENTS.reader",
         "$JS.API.CONSUMER.DELETE.TRANSFER_EVENTS.reader", "$SYS.REQ.SERVER.PING", "anything"],
    ),
    "panel": (
        ["transfer.v1.command.node-a.start", "transfer.v1.command._all.list", "$SRV.PING", "$SRV.INFO.transfer-sidecar",
         "$SRV.STATS.transfer-sidecar.someid", "$JS.API.STREAM.INFO.TRANSFER_EVENTS",
         "$JS.API.CONSUMER.INFO.TRANSFER_EVENTS.mine", "$JS.ACK.TRANSFER_EVENTS.mine.1.1.1.1.0"],
        ["transfer.v1.event.node-a.outgoing.status.s.t", "transfer.v1.command.node-a.self.here",
         "$KV.transfer_nodes.node-a", "_INBOX_node-a.x", "$JS.API.STREAM.DELETE.TRANSFER_EVENTS",
         "$JS.API.STREAM.PURGE.TRANSFER_EVENTS", "$JS.API.STREAM.UPDATE.TRANSFER_EVENTS", "$JS.API.STREAM.CREATE.X",
         "$JS.API.STREAM.MSG.DELETE.TRANSFER_EVENTS", "$JS.API.CONSUMER.DELETE.TRANSFER_EVENTS.reader",
         "$JS.API.CONSUMER.CREATE.OTHER.x", "$JS.API.STREAM.DELETE.KV_transfer_nodes", "$JS.API.INFO",
         "$SYS.REQ.SERVER.PING", "anything"],
    ),
    "reader": (
        ["$JS.API.CONSUMER.INFO.TRANSFER_EVENTS.reader", "$JS.API.CONSUMER.MSG.NEXT.TRANSFER_EVENTS.reader"],
        ["transfer.v1.event.node-a.outgoing.status.s.t", "transfer.v1.command.node-a.list",
         "transfer.v1.command._all.list", "$KV.transfer_nodes.node-a", "_INBOX_panel.x", "$SRV.PING",
         "$JS.API.CONSUMER.MSG.NEXT.TRANSFER_EVENTS.other", "$JS.API.CONSUMER.CREATE.TRANSFER_EVENTS.mine",
         "$JS.API.CONSUMER.DELETE.TRANSFER_EVENTS.reader", "$JS.ACK.TRANSFER_EVENTS.other.1.1.1.1.0",
         "$JS.API.STREAM.INFO.TRANSFER_EVENTS", "$JS.API.STREAM.DELETE.TRANSFER_EVENTS",
         "$JS.API.DIRECT.GET.TRANSFER_EVENTS", "anything"],
    ),
}
SUBSCRIBE: Final[dict[str, tuple[list[str], list[str]]]] = {
    "node-a": (
        ["transfer.v1.command.node-a.start", "transfer.v1.command.node-a.self.here", "transfer.v1.command._all.list",
         "$SRV.PING", "$SRV.INFO.transfer-sidecar", "$SRV.STATS.transfer-sidecar.someid", "_INBOX_node-a.>"],
        [">", "*", "*.>", "transfer.>", "transfer.v1.event.>", "transfer.v1.event.node-a.>", "transfer.v1.command.>",
         "transfer.v1.command.*.start", "transfer.v1.command.node-b.start", "_INBOX.>", "_INBOX_panel.>",
         "_INBOX_node-b.>", "$KV.>", "$KV.transfer_nodes.*", "$JS.>", "$JS.ACK.>", "$SYS.>"],
    ),
    "panel": (
        ["transfer.v1.event.>", "transfer.v1.event.*.*.*.s.*", "_INBOX_panel.x.*"],
        [">", "transfer.>", "transfer.v1.command.>", "transfer.v1.command.node-a.start", "_INBOX.>", "_INBOX_node-a.>",
         "_INBOX_reader.>", "$KV.>", "$JS.>", "$SRV.>", "$SYS.>"],
    ),
    "reader": (
        ["transfer.v1.event.*.*.status.>", "transfer.v1.event.node-a.outgoing.status.s.t", "_INBOX_reader.x"],
        [">", "transfer.v1.event.>", "transfer.v1.event.*.*.*.s.t", "transfer.v1.event.*.*.logs.>",
         "transfer.v1.command.>", "_INBOX.>", "_INBOX_panel.>", "$KV.>", "$JS.>", "$SYS.>"],
    ),
}
# fmt: on


@pytest.mark.parametrize("user", ["node-a", "panel", "reader"])
@in_loop
async def test_what_a_role_may_publish_and_hear(tmp_path: Path, user: str) -> None:
    async with configured(tmp_path) as server, someone(server, "admin") as admin:
        await prepare(admin.client)
        async with someone(server, user) as one:
            for subject in PUBLISH[user][0]:
                assert await one.may_publish(subject), subject
            for subject in PUBLISH[user][1]:
                assert not await one.may_publish(subject), subject
            for subject in SUBSCRIBE[user][0]:
                assert await one.may_subscribe(subject), subject
                assert await one.may_subscribe(subject, queue="some"), subject
            for subject in SUBSCRIBE[user][1]:
                assert not await one.may_subscribe(subject), subject
                assert not await one.may_subscribe(subject, queue="some"), subject
        assert (await admin.client.jetstream().stream_info(EVENT_STREAM)).config.name == EVENT_STREAM
        assert len(server.denied) >= len(PUBLISH[user][1]) + 2 * len(SUBSCRIBE[user][1])


@in_loop
async def test_nobody_comes_in_without_a_password(tmp_path: Path) -> None:
    async with configured(tmp_path) as server:
        for login in ({}, {"token": "x"}, {"user": "node-a", "password": "guess"}, {"user": "admin", "password": ""}):
            async with BusConnection(settings(server.url, **login)) as connection:
                await until(lambda: "uthorization" in connection.last_error)
                assert connection.connections == 0


@in_loop
async def test_events_commands_and_directory_of_real_clients(tmp_path: Path) -> None:
    """With the client library's own calls, whose subjects differ from version to version."""
    async with (
        configured(tmp_path) as server,
        someone(server, "admin") as admin,
        someone(server, "node-a") as node,
        someone(server, "panel") as panel,
        someone(server, "reader") as reader,
    ):
        await prepare(admin.client)
        # the node: an acknowledged event, its newest event, its entry by compare-and-set
        stream = node.client.jetstream()
        subject, body = message()
        assert (await stream.publish(subject, body, headers={"Nats-Msg-Id": "1"})).seq == 1
        assert (await stream.stream_info(EVENT_STREAM)).state.messages == 1
        newest = await stream.get_last_msg(EVENT_STREAM, "transfer.v1.event.node-a.>", direct=True)
        assert newest.data == body
        entries = await stream.key_value(BUCKET)
        revision = await entries.create("node-a", b"{}")
        await entries.update("node-a", b'{"node": "node-a"}', last=revision)
        with pytest.raises(nats.js.errors.KeyWrongLastSequenceError):
            await entries.update("node-a", b"{}", last=revision)
        # a panel: its own consumers, the directory, a command
        durable = await panel.client.jetstream().pull_subscribe(
            "transfer.v1.event.*.*.status.>", durable="mine", stream=EVENT_STREAM
        )
        (heard,) = await durable.fetch(1, timeout=10)
        assert heard.data == body
        await heard.ack()
        seen = await panel.client.jetstream().key_value(BUCKET)
        assert (await seen.get("node-a")).value == b'{"node": "node-a"}'
        answering = await node.client.subscribe("transfer.v1.command.node-a.list", queue="node-a")
        for _ in range(2):  # the first may be answered before the subscription is in place
            await node.client.flush()
        asked = asyncio.create_task(panel.client.request("transfer.v1.command.node-a.list", b"", timeout=10))
        command = await answering.next_msg(10)
        await command.respond(b"[]")
        assert (await asked).data == b"[]"
        # a reader: its one consumer
        bound = await reader.client.jetstream().pull_subscribe_bind("reader", stream=EVENT_STREAM)
        (told,) = await bound.fetch(1, timeout=10)
        assert told.data == body
        await told.ack()
        await reader.client.flush()
        assert server.denied == []
        # an answer is one answer, and to nobody else
        assert not await node.may_publish(command.reply)
        assert not await node.may_publish("_INBOX_panel.other")


@in_loop
async def test_no_detour_leads_to_what_is_denied(tmp_path: Path) -> None:
    """JetStream delivers to any subject that a consumer or a request names: it must not act for those who may not."""
    async with (
        configured(tmp_path) as server,
        someone(server, "admin") as admin,
        someone(server, "panel") as panel,
        someone(server, "reader") as reader,
    ):
        entries = await prepare(admin.client)
        stream = admin.client.jetstream()
        await entries.put("node-a", b"true")
        targets = [
            "$KV.transfer_nodes.node-a",
            *(f"$JS.API.STREAM.{verb}.TRANSFER_EVENTS" for verb in ("DELETE", "PURGE")),
        ]
        for number, target in enumerate(targets):
            await panel.client.jetstream().add_consumer(
                EVENT_STREAM, ConsumerConfig(name=f"p{number}", deliver_subject=target, ack_policy=AckPolicy.NONE)
            )
            await reader.may_publish("$JS.API.CONSUMER.MSG.NEXT.TRANSFER_EVENTS.reader", reply=target)
        for number in range(5):
            await stream.publish(*message(seq=number))
        for target in targets:
            await reader.may_publish("$JS.API.CONSUMER.MSG.NEXT.TRANSFER_EVENTS.reader", reply=target)
        entry = await entries.get("node-a")
        assert (entry.value, entry.revision) == (b"true", 1)
        await entries.update("node-a", b"renewed", last=1)
        assert (await stream.stream_info(EVENT_STREAM)).state.messages == 5


@in_loop
async def test_the_directory_is_read_and_nobody_poses_in_it(tmp_path: Path) -> None:
    """As `transfer-sidecar nodes` reads it: what stands under a key is that node's, whatever it says."""
    async with (
        configured(tmp_path) as server,
        someone(server, "admin") as admin,
        someone(server, "node-a") as node,
        someone(server, "panel") as panel,
    ):
        await prepare(admin.client)
        facts = {"epoch": "e", "version": "1", "protocol": [1], "codecs": ["gzip"], "beside": False}
        facts |= {"commands": "token", "max_outgoing": 1, "max_incoming": 1, "started_at": 0.0}
        for name in ("node-b", "node-a"):  # first another's name, then its own, over the same key
            entry = json.dumps({**facts, "node": name, "url": f"https://{name}.example/api/transfers"}).encode()
            await node.client.publish("$KV.transfer_nodes.node-a", entry)
            await node.client.flush()
            found = await Asker(panel.client, "transfer").nodes()
            assert [one.node for one in found] == (["node-a"] if name == "node-a" else [])
        assert server.denied == []


@in_loop
async def test_questions_about_the_service_are_not_answered_onto_what_the_node_may_publish(tmp_path: Path) -> None:
    """The node answers with its own permissions: not onto its entry of the directory, nor into the events."""
    async with configured(tmp_path) as server, someone(server, "admin") as admin, someone(server, "panel") as panel:
        entries = await prepare(admin.client)
        place = tmp_path / "node-a"
        place.mkdir()
        async with run_node(
            place, "node-a", sections(server), port=free_port(), token_id="t" * 16, token=TOKEN
        ) as node:
            await until_ready(node)
            before = await entries.get("node-a")
            told = (await admin.client.jetstream().stream_info(EVENT_STREAM)).state.messages
            event = f"transfer.v1.event.node-a.outgoing.status.{SERVER}.{SERVER}"
            for verb in ("PING", "INFO", "STATS"):
                for detour in ("$KV.transfer_nodes.node-a", event, "transfer.v1.command.node-a.list"):
                    await panel.client.publish(f"$SRV.{verb}.transfer-sidecar", b"", reply=detour)
                answer = await panel.client.request(f"$SRV.{verb}.transfer-sidecar", b"", timeout=10)
                assert json.loads(answer.data)["name"] == "transfer-sidecar"  # and those before it are dealt with
            after = await entries.get("node-a")
            assert after.value is not None and json.loads(after.value)["node"] == "node-a"
            assert json.loads(after.value)["epoch"] == json.loads(before.value or b"{}")["epoch"]
            assert (await admin.client.jetstream().stream_info(EVENT_STREAM)).state.messages == told


def sections(server: ConfiguredBroker) -> dict[str, dict[str, Any]]:
    return {
        "containers": {"runtime": "none"},
        "nats": {"url": server.url, "user": "node-a", "password": PASSWORDS["node-a"], "commands": "subject"},
        "limits": {"reserve_bytes": 1024 * 1024},
    }


async def begin_transfer(node: DemoNode) -> None:
    """One that fails: nobody listens there."""
    volume = node.volumes / SERVER
    volume.mkdir()
    (volume / "world").write_text("a world")
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(
            f"{node.url}/api/servers/{SERVER}/transfer",
            headers={"Authorization": f"Bearer {node.token}"},
            json={"url": "http://127.0.0.1:1/api/transfers", "token": "Bearer x", "server": {"uuid": SERVER}},
        )
    assert answer.status_code == 202, answer.text


async def until_failed(panel: Someone) -> None:
    """Until the stream has the end of it."""
    told = await panel.client.jetstream().pull_subscribe(
        f"transfer.v1.event.*.*.status.{SERVER}.*", durable="the-end", stream=EVENT_STREAM
    )
    status = ""
    while status != "failed":
        (event,) = await told.fetch(1, timeout=30)
        await event.ack()
        status = json.loads(event.data)["status"]


@in_loop
async def test_a_whole_sidecar_needs_nothing_that_is_denied(tmp_path: Path) -> None:
    async with configured(tmp_path) as server, someone(server, "admin") as admin, someone(server, "panel") as panel:
        entries = await prepare(admin.client)
        place = tmp_path / "node-a"
        place.mkdir()
        async with run_node(
            place, "node-a", sections(server), port=free_port(), token_id="t" * 16, token=TOKEN
        ) as node:
            await until_ready(node)
            await begin_transfer(node)
            await until_failed(panel)
            proof = {"Authorization": f"Bearer {command_token(key=TOKEN)}"}
            told = await panel.client.request("transfer.v1.command.node-a.list", b"", timeout=20, headers=proof)
            assert [one["server"] for one in json.loads(told.data)["transfers"]] == [SERVER]
            proof = {"Authorization": f"Bearer {command_token(key=TOKEN)}"}
            told = await panel.client.request("transfer.v1.command._all.list", b"", timeout=20, headers=proof)
            assert json.loads(told.data)["node"] == "node-a"
            pinged = await panel.client.request("$SRV.PING.transfer-sidecar", b"", timeout=20)
            assert json.loads(pinged.data)["name"] == "transfer-sidecar"
            assert json.loads((await entries.get("node-a")).value or b"{}")["node"] == "node-a"
            password = tmp_path / "password"
            password.write_text(PASSWORDS["panel"])
            code, lines, complained = await once(server.url, "--user", "panel", "--password-file", str(password))
            assert (code, complained) == (0, "")
            assert [line.split("  ")[:3] for line in lines] == [[SERVER, "node-a → ?", "failed"]]
            # JetStream delivers to any subject, a command's too: an event is no command, even where no token is needed
            async with someone(server, "reader") as reader:
                detour = "transfer.v1.command.node-a.cancel"
                assert await reader.may_publish("$JS.API.CONSUMER.MSG.NEXT.TRANSFER_EVENTS.reader", reply=detour)
                while "a command (cancel) without a subject to answer on was refused" not in node.log.read_text():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)  # it is told in its log only
        assert server.denied == []


async def until_ready(node: DemoNode) -> None:
    """Not merely alive: with everything on the bus."""
    async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as http:
        while (await http.get(f"{node.url}/readyz")).json()["status"] != "ready":  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)


@in_loop
async def test_with_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    async with configured(tmp_path, tls=(cert, key)) as server:
        url = server.url.replace("nats://", "tls://")
        panel = {"user": "panel", "password": PASSWORDS["panel"]}
        async with BusConnection(settings(url, tls_ca=cert, connect_s=10.0, **panel)) as connection:
            await connection.wait_connected()
        async with BusConnection(settings(server.url, **panel)) as connection:  # in the clear
            await until(lambda: bool(connection.last_error))
            assert connection.connections == 0


def add_node(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(directory / "add-node"), *arguments], capture_output=True, text=True, timeout=30, check=False
    )


@in_loop
async def test_a_node_is_added_while_the_server_runs(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    async with configured(tmp_path) as server:
        added = add_node(server.files, "node-c", public)
        assert (added.returncode, added.stderr) == (0, "")
        server.reload()
        async with BusConnection(settings(server.url, nkey_seed=seed.decode())) as connection:
            await connection.wait_connected()  # the server says nowhere that it has read its files again
        async with someone(server, "node-c", nkeys_seed_str=seed.decode()) as node:
            assert await node.may_publish("transfer.v1.event.node-c.outgoing.status.s.t")
            assert not await node.may_publish("transfer.v1.event.node-a.outgoing.status.s.t")
            assert await node.may_subscribe("transfer.v1.command.node-c.start")
            assert not await node.may_subscribe("transfer.v1.command.node-a.start")


def test_a_node_with_a_password_is_added(tmp_path: Path) -> None:
    files = tmp_path / "files"
    shutil.copytree(FILES, files)
    assert add_node(files, "node-c").returncode == 0
    text = (files / "users.conf").read_text("utf-8")
    blocks = {name: text.split(f"    user: {name}\n")[1].split("\n  }\n")[0] for name in ("node-a", "node-b", "node-c")}
    # what the script writes is what the file has already
    assert blocks["node-c"] == blocks["node-a"].replace("node-a", "node-c").replace("NODE_A", "NODE_C")
    assert blocks["node-b"] == blocks["node-a"].replace("node-a", "node-b").replace("NODE_A", "NODE_B")
    checked = subprocess.run(
        [str(Path(sys.executable).parent / "nats-server"), "-t", "-c", str(files / "nats-server.conf")],
        env={f"NATS_{name.replace('-', '_').upper()}_PASSWORD": "word" for name in PASSWORDS},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "usage"),
        (("a", "b", "c"), "usage"),
        (("",), "is not the id"),
        (("a.b",), "is not the id"),
        (('x"', ), "is not the id"),
        (("a*",), "is not the id"),
        (("x" * 49,), "longer"),
        (("panel",), "another meaning"),
        (("_all",), "another meaning"),
        (("node-a",), "already"),
        (("node_a",), "another node's password"),
        (("node-c", "SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM"), "public nkey"),
        (("node-c", "U" * 55), "public nkey"),
        (("node-c", 'U"; x'), "public nkey"),
    ],
)  # fmt: skip
def test_what_cannot_be_added(tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    files = tmp_path / "files"
    shutil.copytree(FILES, files)
    done = add_node(files, *arguments)
    assert done.returncode == 1
    assert why in done.stderr
    assert (files / "users.conf").read_bytes() == (FILES / "users.conf").read_bytes()
    assert {path.name for path in files.iterdir()} == {path.name for path in FILES.iterdir()}


def test_no_secret_is_in_the_files() -> None:
    for line in (FILES / "users.conf").read_text("utf-8").splitlines():
        assert not line.strip().startswith(("password", "nkey", "token")) or ": $NATS_" in line
