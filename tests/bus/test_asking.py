"""The other side of the commands: what the command line uses, against real nodes' answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.bus.asking import NodeRefused, NotReached, asking
from sidecar.bus.settings import BusSettings
from tests.api.fake_transfers import SERVER
from tests.api.node import in_loop
from tests.api.tokens import NODE_TOKEN
from tests.bus.broker import broker
from tests.bus.command_rig import BODY, NODE, commanded


@in_loop
async def test_a_node_is_found_and_commanded(tmp_path: Path) -> None:
    with broker(tmp_path, f'jetstream {{ store_dir: "{tmp_path / "store"}" }}') as server:
        await server.wait_listening()
        settings = BusSettings(urls=(server.url,))
        async with commanded(server.url, directory="create") as node, asking(settings, "transfer") as asker:
            await node.wait_ready()
            (found,) = await asker.nodes()
            assert (found.node, found.free_bytes, found.codecs) == (NODE, 12345, ("gzip",))
            for _ in range(2):  # each with a token of its own
                assert (await asker.ask(NODE, "start", BODY, key=NODE_TOKEN))["status"] == "pending"
            assert (await asker.ask(NODE, "list", {}, key=NODE_TOKEN))["total"] == 1
            with pytest.raises(NodeRefused, match=r"auth\.missing") as refused:
                await asker.ask(NODE, "list", {}, key=None)
            assert refused.value.code == "auth.missing"
            with pytest.raises(NodeRefused, match=r"remembers no transfer .*transfer\.unknown"):
                await asker.ask(NODE, "status", {"server": SERVER.replace("6", "7")}, key=NODE_TOKEN)
            with pytest.raises(NotReached, match="no node node-x"):
                await asker.ask("node-x", "list", {}, key=NODE_TOKEN)
            with pytest.raises(ValueError, match="node id"):
                await asker.ask("*", "list", {}, key=NODE_TOKEN)


@in_loop
async def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with broker(tmp_path, "authorization { token: right }") as server:
        await server.wait_listening()
        async with asking(BusSettings(urls=(server.url,), token="right"), "transfer") as asker:
            with pytest.raises(NotReached, match="directory"):
                await asker.nodes()
        with pytest.raises(NotReached, match="uthorization"):
            async with asking(BusSettings(urls=(server.url,), token="wrong", connect_s=1.0), "transfer"):
                pass
    with pytest.raises(NotReached, match=str(server.port)):
        async with asking(BusSettings(urls=(server.url,), connect_s=1.0), "transfer"):
            pass
