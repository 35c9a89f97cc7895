"""The NATS server for trying things out: its configuration, loaded by a real one, and who may do what there."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client

from charts.tests.rendering import Rendered, env_of, mounts_of, render, volumes_of
from sidecar.demo.nats import end_process, find_nats_server
from sidecar.demo.node import free_port
from sidecar.settings.load import id_of_host
from tests.bus.events import message as event

LONG = "ip-10-0-0-1." + "a" * 40 + ".compute.internal"
NODES = ["worker-1", "worker-2.example.com", LONG]
PATIENCE_S = 10.0
SERVER = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return render("standalone", {"nats": {"nodes": NODES}})


def passwords(rendered: Rendered) -> dict[str, str]:
    data = rendered.one("Secret", "sidecar-nats")["stringData"]
    return {key.removesuffix(".password"): value for key, value in data.items() if key.endswith(".password")}


@asynccontextmanager
async def broker(rendered: Rendered, directory: Path) -> AsyncIterator[str]:
    """The rendered configuration with nothing but its addresses and its directory changed."""
    text = rendered.one("Secret", "sidecar-nats")["stringData"]["nats.conf"]
    port = free_port()
    for there, here in (("0.0.0.0:4222", f"127.0.0.1:{port}"), ("0.0.0.0:8222", f"127.0.0.1:{free_port()}")):
        assert text.count(there) == 1
        text = text.replace(there, here)
    text = text.replace('"/data"', f'"{directory / "data"}"')
    config = directory / "nats.conf"
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(
        find_nats_server(), "--config", str(config), "--log", str(directory / "nats.log")
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    break
        assert process.returncode is None, (directory / "nats.log").read_text()
        yield f"nats://127.0.0.1:{port}"
    finally:
        await end_process(process, PATIENCE_S)


@asynccontextmanager
async def logged_in(url: str, rendered: Rendered, user: str, inbox: str) -> AsyncIterator[tuple[Client, list[str]]]:
    """A client, and the broker's complaints about it."""
    complaints: list[str] = []

    async def note(error: Exception) -> None:
        complaints.append(str(error))

    client = await nats.connect(
        url, user=user, password=passwords(rendered)[user], inbox_prefix=inbox.encode(), error_cb=note
    )
    try:
        yield client, complaints
    finally:
        await client.close()


def test_a_node_speaks_as_itself_and_watch_hears_it(rendered: Rendered, tmp_path: Path) -> None:
    asyncio.run(_speaking(rendered, tmp_path))


async def _speaking(rendered: Rendered, directory: Path) -> None:
    async with broker(rendered, directory) as url, logged_in(url, rendered, "watch", "_INBOX_watch") as (watch, _):
        heard = await watch.subscribe("transfer.v1.event.>")
        await watch.flush()
        for node in NODES:
            own = id_of_host(node)
            async with logged_in(url, rendered, node, f"_INBOX_{own}") as (client, complaints):
                await client.publish(f"transfer.v1.event.{own}.outgoing.status.{SERVER}.t", b"mine")
                await client.flush()
                message = await heard.next_msg(timeout=PATIENCE_S)
                assert message.subject.split(".")[3] == own
                assert complaints == []
                for other in (id_of_host(name) for name in NODES if name != node):
                    await client.publish(f"transfer.v1.event.{other}.outgoing.status.{SERVER}.t", b"not mine")
                    await client.subscribe(f"transfer.v1.command.{other}.>")
                await client.subscribe("transfer.v1.event.>")
                await client.subscribe("_INBOX.>")
                await client.publish("$JS.API.STREAM.DELETE.TRANSFER_EVENTS", b"")
                await client.flush()
                async with asyncio.timeout(PATIENCE_S):
                    while len(complaints) < 7:  # noqa: ASYNC110 - the client only calls back
                        await asyncio.sleep(0.02)
                assert all("ermissions violation" in complaint for complaint in complaints)
        with pytest.raises(nats.errors.TimeoutError):
            await heard.next_msg(timeout=0.2)


def test_a_stream_can_be_made_and_read(rendered: Rendered, tmp_path: Path) -> None:
    asyncio.run(_stream(rendered, tmp_path))


async def _stream(rendered: Rendered, directory: Path) -> None:
    told = event(node="worker-1", status="completed")
    async with broker(rendered, directory) as url:
        async with logged_in(url, rendered, "worker-1", "_INBOX_worker-1") as (client, complaints):
            jetstream = client.jetstream()
            await jetstream.add_stream(name="TRANSFER_EVENTS", subjects=["transfer.v1.event.>"])
            kept = await jetstream.publish(*told)
            assert kept.seq == 1
            assert (await jetstream.stream_info("TRANSFER_EVENTS")).state.messages == 1
            assert complaints == []
        async with logged_in(url, rendered, "watch", "_INBOX_watch") as (watch, complaints):
            past = await watch.jetstream().pull_subscribe("transfer.v1.event.>", durable=None, stream="TRANSFER_EVENTS")
            (message,) = await past.fetch(1, timeout=PATIENCE_S)
            assert message.data == told[1]
            await message.ack()
            await watch.flush()
            assert complaints == []
        (directory / "password").write_text(passwords(rendered)["watch"])
        command = ("-m", "sidecar", "watch", "--nats", url, "--user", "watch", "--once", "--json")
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--password-file", directory / "password", stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S * 3)
        assert process.returncode == 0
        assert json.loads(said)["status"] == "completed"


@pytest.mark.parametrize("login", [{}, {"user": "worker-1", "pass": "wrong"}, {"user": "stranger", "pass": ""}])
def test_nobody_gets_in_without_a_password(rendered: Rendered, tmp_path: Path, login: dict[str, str]) -> None:
    async def attempt() -> bytes:
        async with broker(rendered, tmp_path) as url, asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
            said = await reader.read()
            writer.close()
            await writer.wait_closed()
            return said

    said = asyncio.run(attempt())
    assert b"-ERR 'Authorization Violation'" in said
    assert b"PONG" not in said


def test_the_nodes_log_in_with_what_was_made_for_them(rendered: Rendered) -> None:
    container, secret = rendered.sidecar, rendered.one("Secret", "sidecar-nats")
    assert env_of(container)["SIDECAR_NATS_USER"] == "$(SIDECAR_NODE_NAME)"
    mount = mounts_of(container)[env_of(container)["SIDECAR_NATS_PASSWORD_FILE"]]
    assert mount["subPathExpr"] == "$(SIDECAR_NODE_NAME).password"
    assert volumes_of(rendered.pod)[mount["name"]]["secret"]["secretName"] == secret["metadata"]["name"]
    assert set(passwords(rendered)) == {*NODES, "watch"}
    assert all(re.fullmatch("[A-Za-z0-9]{32}", password) for password in passwords(rendered).values())
    assert len(set(passwords(rendered).values())) == len(NODES) + 1
    assert 'url = "nats://sidecar-nats:4222"' in rendered.toml
    assert rendered.one("Service", "sidecar-nats")["spec"]["ports"][0]["port"] == 4222


def test_it_is_not_there_unless_it_is_wanted() -> None:
    rendered = render("daemonset")
    assert not rendered.of("StatefulSet")
    assert not rendered.of("Secret")
    assert "[nats]" not in rendered.toml
