"""Real nodes that are driven over NATS alone: no panel, no REST call of ours but a look at readiness."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID

import httpx
import nats.errors

from integration.nodes import Node
from sidecar.demo.nats import run_nats
from sidecar.demo.node import free_port
from tests.api.fake_transfers import SERVER
from tests.bus.command_rig import Asker, asking, command_token
from tests.engine.rig import differences, grow_world, transfer_token, tree_of

KILLS: Final = 4
SETTLE_S: Final = 30.0


class Field:
    """Nodes, a broker, and somebody who commands them."""

    def __init__(self, nats_url: str, directory: Path, asker: Asker | None = None) -> None:
        self._asker = asker
        self.nats_url = nats_url
        self._directory = directory
        self._sections: Mapping[str, Mapping[str, Any]] = {
            "containers": {"runtime": "none"},
            "nats": {"url": nats_url, "directory": "create"},
            "transfer": {"shutdown_grace_s": 5},
            "limits": {"reserve_bytes": 0},
        }
        self.nodes: list[Node] = []

    @property
    def asker(self) -> Asker:
        assert self._asker is not None
        return self._asker

    def node(self, name: str, directory: str | None = None) -> Node:
        port = free_port()
        home = self._directory / (directory or name)
        url = f"http://127.0.0.1:{port}"
        node = Node(name, home, host="127.0.0.1", port=port, url=url, sections=self._sections)
        self.nodes.append(node)
        return node

    async def told(self, node: Node, command: str, body: Any = None, *, token: str | None = None) -> dict[str, Any]:
        """An answer of that node, which may still be coming back: asked again until there is one."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                proof = token or command_token(key=node.token, aud=node.name)
                with contextlib.suppress(nats.errors.NoRespondersError, nats.errors.TimeoutError):
                    answer = await self.asker.told(command, body, node=node.name, token=proof, timeout_s=2.0)
                    if answer.get("code") != "auth.jwt_replayed":  # made before the node was started
                        return answer
                await asyncio.sleep(0.05)


@asynccontextmanager
async def field(directory: Path) -> AsyncIterator[Field]:
    (directory / "nats").mkdir()
    async with run_nats(directory / "nats", jetstream=True) as broker, asking(broker.url) as asker:
        made = Field(broker.url, directory, asker)
        try:
            yield made
        finally:
            for node in made.nodes:
                await node.stop()


def start_body(destination: Node, server: str, **more: Any) -> dict[str, Any]:
    return {
        "url": f"{destination.url}/api/transfers",
        "token": transfer_token(destination.token, server),
        "server": {"uuid": server},
        **more,
    }


def documented_start() -> Callable[[str, str, str, dict[str, Any]], Awaitable[dict[str, Any]]]:
    """The panel's function of `docs/PROTOCOL.md`, as it stands there."""
    page = Path(__file__).parents[1] / "docs" / "PROTOCOL.md"
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if "def start" in block
    ]
    names: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), names)
    function: Callable[[str, str, str, dict[str, Any]], Awaitable[dict[str, Any]]] = names["start"]
    return function


def test_a_server_moves_by_the_bus_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with field(tmp_path) as f:
            a, b = f.node("node-a"), f.node("node-b")
            await asyncio.gather(a.start(), b.start())
            grow_world(a.volume(SERVER), big_bytes=500_000)
            world = tree_of(a.volume(SERVER))
            await f.told(a, "info")  # both take commands
            await f.told(b, "info")
            started = await documented_start()(f.nats_url, a.name, a.token, start_body(b, SERVER))
            assert started["status"] == "pending", started
            asked = {"transfer": started["transfer"]}
            async with asyncio.timeout(SETTLE_S):
                while (await f.told(a, "status", asked))["status"] != "completed":  # noqa: ASYNC110 - it is asked for
                    await asyncio.sleep(0.02)
            arrived = await f.told(b, "status", asked)  # the same transfer, by the same id
            assert (arrived["status"], arrived["role"]) == ("completed", "destination")
            assert differences(b.volume(SERVER), world) == []
            assert (await f.told(a, "cancel", asked))["code"] == "transfer.none"
            entries = await f.asker.client.jetstream().key_value("transfer_nodes")
            for node in (a, b):
                entry = json.loads((await entries.get(node.name)).value or b"")
                assert (entry["node"], entry["commands"]) == (node.name, "token")
                assert entry["free_bytes"] > 0
            # A command that comes with the end of the node is answered, or nobody is there for it: never lost.
            proofs = [command_token(key=a.token, aud=a.name) for _ in range(20)]
            asking_still = [asyncio.create_task(f.asker.told("list", node=a.name, token=proof)) for proof in proofs]
            a.terminate()
            answers = await asyncio.gather(*asking_still, return_exceptions=True)
            assert all(isinstance(answer, dict | nats.errors.NoRespondersError) for answer in answers), answers
            assert await a.exit_code() == 0

    asyncio.run(scenario())


def test_rest_serves_without_a_broker(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Field(f"nats://127.0.0.1:{free_port()}", tmp_path).node("node-a")
        try:
            await node.start()
            report = await readiness(node, 200, of="commands")
            assert (report["status"], report["checks"]["commands"]["code"]) == ("degraded", "bus.down")
            assert report["checks"]["fence"]["status"] == "ok"
            assert (await node.ask("GET", "/api/transfers")).json() == []
            node.terminate()
            async with asyncio.timeout(SETTLE_S):
                assert await node.exit_code() == 0
        finally:
            await node.stop()

    asyncio.run(scenario())


def test_a_key_starts_one_transfer_whenever_its_node_is_killed(tmp_path: Path) -> None:
    """SIGKILL around the answer to a start: the same request, sent again, is the same transfer or the first one."""

    async def scenario() -> None:
        random = Random(5)
        async with field(tmp_path) as f:
            a, b = f.node("node-a"), f.node("node-b")
            await asyncio.gather(a.start(), b.start())
            before: dict[str, str] = {}
            for number in range(1, KILLS + 1):
                server = str(UUID(int=number, version=4))
                grow_world(a.volume(server), big_bytes=100_000)
                body = start_body(b, server, idempotency_key=f"key {number}".replace(" ", "-"))
                await f.told(a, "info")  # it takes commands

                async def first_try(body: dict[str, Any] = body, server: str = server) -> None:
                    with contextlib.suppress(nats.errors.Error):
                        answer = await f.asker.told(
                            "start", body, node=a.name, token=command_token(key=a.token, aud=a.name), timeout_s=5.0
                        )
                        if "transfer" in answer:
                            before[server] = answer["transfer"]

                trying = asyncio.create_task(first_try())
                if number % 2:
                    await asyncio.sleep(random.uniform(0.0, 0.03))
                else:  # right behind the decision: before, while or just after it is answered
                    await decided(tmp_path / "node-a" / "state" / "transfers", number)
                await a.kill()
                trying.cancel()
                await asyncio.gather(trying, return_exceptions=True)
                await a.start()
                again = [await f.told(a, "start", body) for _ in range(2)]
                assert again[0] == again[1]
                assert again[0].get("transfer") == before.get(server, again[0].get("transfer"))
                listed = await f.told(a, "list", {"limit": 500})
                assert [view["server"] for view in listed["transfers"]].count(server) == 1
                other = await f.told(a, "start", {**body, "url": f"{b.url}/other"})
                assert other["code"] == "request.key_reused"

    asyncio.run(scenario())


def test_a_second_node_of_one_id_is_fenced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with field(tmp_path) as f:
            first = f.node("node-a")
            await first.start()
            await f.told(first, "info")
            second = f.node("node-a", "pretender")
            starting = asyncio.create_task(second.start())
            try:
                report = await readiness(second, 503)
                assert report["checks"]["fence"]["code"] == "node.fenced"
                grow_world(second.volume(SERVER))
                refused = await second.ask(
                    "POST", f"/api/servers/{SERVER}/transfer", json={"url": "http://x", "token": "x"}
                )
                assert (refused.status_code, refused.json()["code"]) == (503, "node.fenced")
                report = await readiness(first, 200, of="commands")
                assert report["checks"]["commands"]["code"] == "bus.rival"
                assert "node.id" in first.log.read_text()
                assert "fenced" in second.log.read_text()
                epochs = {(await f.told(first, "info"))["epoch"] for _ in range(10)}
                assert epochs == {report["checks"]["commands"]["epoch"]}
                await first.kill()  # its own restart takes its id back at once
                await first.start()
                await f.told(first, "info")
                assert (await readiness(second, 503))["checks"]["fence"]["code"] == "node.fenced"
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)

    asyncio.run(scenario())


async def decided(journal: Path, count: int) -> None:
    """Until the first decisions of so many transfers have been written down."""

    def is_decided() -> bool:
        with os.scandir(journal) as files:
            return sum(file.stat().st_size > 0 for file in files) >= count

    async with asyncio.timeout(SETTLE_S):
        while not is_decided():  # noqa: ASYNC110 - another process's files
            await asyncio.sleep(0.0005)


async def readiness(node: Node, status: int, *, of: str = "fence") -> dict[str, Any]:
    """What it says once it says so with that status, and something else than well of that check."""
    async with asyncio.timeout(SETTLE_S):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await node.ask("GET", "/readyz")
                report: dict[str, Any] = answer.json()
                if answer.status_code == status and report["checks"][of]["status"] != "ok":
                    return report
            await asyncio.sleep(0.1)
