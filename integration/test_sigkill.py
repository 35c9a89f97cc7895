"""SIGKILL of either node, for real, at every stage that it writes down: it ends by itself; nothing is lost or forked.

Two node processes without containers and one stand-in panel. Each kill has a server of its own; the earlier ones are
still settling when the next blow falls, so a kill hits whatever else is under way. All are looked at in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID

from integration.nodes import HURRIED, Node
from sidecar.demo.node import free_port
from sidecar.demo.panel import PanelServer, TransferNotStarted
from sidecar.journal.records import Unreadable, decode
from sidecar.lifecycle.stages import Stage
from tests.engine.rig import differences, grow_world, tree_of

SOURCE: Final = ("sending", "awaiting_verdict", "confirming_departure", "settling")
DESTINATION: Final = ("receiving", "committing", "announcing", "confirming_arrival", "activating")
MOMENTS: Final = 3  # more kills, at moments that are drawn
BIG_BYTES: Final = 4_000_000
SETTLE_S: Final = 30.0


class Battlefield:
    def __init__(self, panel: PanelServer, nodes: dict[str, Node], homes: dict[str, Path]) -> None:
        self.panel = panel.panel
        self.nodes = nodes
        self.worlds: dict[str, dict[str, tuple[object, ...]]] = {}
        self._homes = homes
        self._clicks: list[asyncio.Task[None]] = []

    def add_server(self) -> str:
        server = str(UUID(int=len(self.worlds) + 1, version=4))
        volume = self.nodes["a"].volume(server)
        grow_world(volume, big_bytes=BIG_BYTES)
        self.worlds[server] = tree_of(volume)
        self.panel.add_server(server, "a")
        return server

    def click(self, server: str) -> None:
        """An administrator's click, whose end nobody waits for."""
        self._clicks.append(asyncio.create_task(self._start(server)))

    async def _start(self, server: str) -> None:
        try:
            await self.panel.start_transfer(server, "b")
        except TransferNotStarted:
            return  # the source was killed before its answer: the panel rolled back

    async def reaches(self, victim: str, server: str, stage: str) -> None:
        """Until the victim has written that stage down, or a later one, or its transfer is over."""
        order = list(Stage)
        async with asyncio.timeout(SETTLE_S):
            while (now := self._stage(victim, server)) is None or order.index(now) < order.index(Stage(stage)):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def _stage(self, victim: str, server: str) -> Stage | None:
        for path in (self._homes[victim] / "state" / "transfers").glob("*.journal"):
            try:
                record = decode(path.read_bytes().rstrip(b"\n").rpartition(b"\n")[2])
            except (Unreadable, OSError):
                continue
            if record.facts.server == server:
                return record.state.stage
        return None

    async def kill_and_restart(self, victim: str) -> None:
        await self.nodes[victim].kill()
        await self.nodes[victim].start()

    async def settle(self) -> None:
        await asyncio.gather(*self._clicks)
        async with asyncio.timeout(SETTLE_S):
            for node in self.nodes.values():
                while any(view["stage"] != "ended" for view in (await node.ask("GET", "/api/transfers")).json()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def check(self, server: str) -> str:
        """The invariant of one server; returns its owner."""
        owner = self.panel.owner(server)
        assert self.panel.transfer(server) is None, f"{server}: the panel still waits"
        a, b = self.nodes["a"], self.nodes["b"]
        world = self.worlds[server]
        wrong = differences(self.nodes[owner].volume(server), world)
        assert not wrong, f"{server}: its owner {owner} does not have it: {wrong}"
        for node in (a, b):
            for kept in node.trash(server):
                assert not differences(kept, world), f"{server}: {kept} is not whole"
        left, came = await a.view(server), await b.view(server)
        assert left["status"] == ("completed" if owner == "b" else left["status"]), (server, left)
        if owner == "a":
            assert left["status"] in ("failed", "cancelled"), (server, left)
            assert came.get("status") in (None, "failed", "cancelled"), (server, came)
            assert not b.volume(server).exists(), f"{server}: b has what is not its own"
        else:
            assert came["status"] == "completed", (server, came)
            is_kept = bool(a.trash(server)) or not differences(a.volume(server), world)
            assert is_kept, f"{server}: the old copy was purged"
        return owner


@asynccontextmanager
async def battlefield(
    home: Path, more_sections: Mapping[str, Mapping[str, Any]] | None = None
) -> AsyncIterator[Battlefield]:
    async with PanelServer() as panel:
        sections: dict[str, Mapping[str, Any]] = {
            "panel": {"url": panel.url, "call_timeout_s": 1.5},
            "containers": {"runtime": "none"},
            "transfer": {"allowed_destinations": ("http://127.0.0.1:*",), "max_outgoing": 32, "max_incoming": 32},
            "limits": {"reserve_bytes": 0, "reserve_inodes": 0},
            **(more_sections or {}),
        }
        nodes: dict[str, Node] = {}
        homes = {name: home / name for name in ("a", "b")}
        try:
            for name in homes:
                port = free_port()
                url = f"http://127.0.0.1:{port}"
                node = Node(
                    f"node-{name}",
                    homes[name],
                    host="127.0.0.1",
                    port=port,
                    url=url,
                    sections=sections,
                    program=HURRIED,
                )
                nodes[name] = node
                panel.panel.add_node(name, token_id=node.token_id, token=node.token, url=url)
            await asyncio.gather(*(node.start() for node in nodes.values()))
            yield Battlefield(panel, nodes, homes)
        finally:
            for node in nodes.values():
                await node.stop()


def test_sigkill_at_every_stage_of_either_end(tmp_path: Path) -> None:
    """Symptom: server locked "transferring" for ever after a node restart. Every transfer reaches its end by itself."""

    async def scenario() -> None:
        async with battlefield(tmp_path) as field:
            blows = [("a", stage) for stage in SOURCE] + [("b", stage) for stage in DESTINATION]
            Random(3).shuffle(blows)
            for victim, stage in blows:
                server = field.add_server()
                field.click(server)
                await field.reaches(victim, server, stage)
                await field.kill_and_restart(victim)
            await field.settle()
            owners = [await field.check(server) for server in field.worlds]
            assert {"a", "b"} == set(owners), owners  # some arrived, some were undone
            assert field.nodes["a"].leftovers() == field.nodes["b"].leftovers() == []

    asyncio.run(scenario())


def test_sigkill_at_moments_that_are_drawn(tmp_path: Path) -> None:
    """Both ends, one after the other, at moments of a seed."""

    async def scenario() -> None:
        random = Random(11)
        async with battlefield(tmp_path) as field:
            for _ in range(MOMENTS):
                server = field.add_server()
                field.click(server)
                await asyncio.sleep(random.uniform(0.0, 0.4))
                await field.nodes["a"].kill()
                if random.random() < 0.5:
                    await field.kill_and_restart("b")
                await field.nodes["a"].start()
            await field.settle()
            for server in field.worlds:
                if await field.nodes["a"].view(server):  # else it was killed before it had heard of it
                    await field.check(server)
            assert field.nodes["a"].leftovers() == field.nodes["b"].leftovers() == []

    asyncio.run(scenario())
