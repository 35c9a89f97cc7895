"""Real transfers, and both nodes and the broker killed at random: what the stream tells is what happened."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from integration.nodes import Node
from integration.test_sigkill import Battlefield, battlefield
from sidecar.demo.node import free_port
from tests.bus.broker import Broker, broker
from tests.bus.event_rig import ids, looking, make_stream, stored

KILLS_S = float(os.environ.get("SIDECAR_KILLS_S", "6"))
FINAL = ("completed", "failed", "cancelled")
PATIENCE_S = 60.0


async def events_of(server: Broker) -> list[dict[str, Any]]:
    """What a consumer has in the end: repeats are dropped by their ids."""
    async with looking(server) as client:
        found = await stored(client)
    bodies = {
        name: msgspec.json.decode(message.data or b"", type=dict[str, Any])
        for name, message in zip(ids(found), found, strict=True)
    }
    return list(bodies.values())


async def until_told(field: Battlefield) -> None:
    """Until no node has events that the broker lacks."""
    async with asyncio.timeout(PATIENCE_S):
        for node in field.nodes.values():
            while True:
                checks = (await node.ask("GET", "/readyz")).json()["checks"]
                if checks["bus"]["status"] == "ok" and checks["events"].get("waiting") == 0:
                    break
                await asyncio.sleep(0.05)


def check(field: Battlefield, events: list[dict[str, Any]], views: dict[str, list[dict[str, Any]]]) -> None:
    for name, node in field.nodes.items():
        own = [event for event in events if event["node"] == node.name]
        assert [event["number"] for event in own] == list(range(1, len(own) + 1))
        told: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in own:
            told[event["transfer"]].append(event)
        assert set(told) == {view["transfer"] for view in views[name]}
        for view in views[name]:
            of_it = told[view["transfer"]]
            counted = [event["seq"] for event in of_it if event["event"] != "transfer.progress"]
            assert counted == list(range(1, len(counted) + 1))
            statuses = [event["status"] for event in of_it if event["event"] == "transfer.status"]
            assert statuses[-1] == view["status"], (name, view, statuses)
            assert statuses[0] in ("pending", "processing", *FINAL)
            assert sum(status in FINAL for status in statuses) == 1  # a final status is told once
            assert len(statuses) == len(set(statuses))
            assert {event["server"] for event in of_it} == {view["server"]}


@pytest.mark.timeout(240 + 4 * KILLS_S)
def test_random_kills_of_nodes_and_broker(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "nats").mkdir()
        with broker(tmp_path / "nats", has_jetstream=True) as server:
            await server.wait_listening()
            async with looking(server) as client:
                await make_stream(client)
            async with battlefield(tmp_path / "field", {"nats": {"url": server.url}}) as field:
                random = Random(17)
                until = time.monotonic() + KILLS_S
                count = 0
                while time.monotonic() < until or count < 4:
                    moved = field.add_server()
                    field.click(moved)
                    await asyncio.sleep(random.uniform(0.0, 0.6))
                    match count % 4:
                        case 0:
                            await field.kill_and_restart("a")
                        case 1:
                            server.stop()
                            await asyncio.sleep(random.uniform(0.0, 0.5))
                            await field.kill_and_restart("b")  # comes back to no broker
                            server.start()
                        case 2:
                            server.stop()
                            server.start()
                        case 3:
                            await field.kill_and_restart("b")
                    count += 1
                await field.settle()
                for moved in field.worlds:
                    if await field.nodes["a"].view(moved):
                        await field.check(moved)
                await until_told(field)
                views = {name: (await node.ask("GET", "/api/transfers")).json() for name, node in field.nodes.items()}
                events = await events_of(server)
                check(field, events, views)
                # one id for both ends
                both = {view["transfer"] for view in views["a"]} & {view["transfer"] for view in views["b"]}
                arrived = {view["transfer"] for view in views["b"] if view["status"] == "completed"}
                assert arrived
                assert arrived <= both
                print(f"{count} blows, {len(views['a'])} transfers, {len(events)} events")

    asyncio.run(main())


def test_a_node_without_its_broker_serves_and_ends(tmp_path: Path) -> None:
    """REST waits for no broker, at the start, in between, and at the end."""

    async def main() -> None:
        port = free_port()
        node = Node(
            "node-a",
            tmp_path / "a",
            host="127.0.0.1",
            port=port,
            url=f"http://127.0.0.1:{port}",
            sections={
                "containers": {"runtime": "none"},
                "nats": {"url": f"nats://127.0.0.1:{free_port()}"},
                "limits": {"reserve_bytes": 0},
                "transfer": {"allowed_destinations": ("http://127.0.0.1:*",)},
            },
        )
        try:
            await node.start()
            server = "12345678-1234-4234-8234-123456789012"
            (node.volume(server)).mkdir()
            request = {"url": f"http://127.0.0.1:{free_port()}/api/transfers", "token": "Bearer x"}
            answer = await node.ask("POST", f"/api/servers/{server}/transfer", json=request)
            assert answer.status_code == 202
            async with asyncio.timeout(PATIENCE_S):
                while (await node.view(server))["status"] != "failed":  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            checks = (await node.ask("GET", "/readyz")).json()["checks"]
            assert (checks["bus"]["status"], checks["bus"]["code"]) == ("degraded", "bus.down")
            assert checks["events"]["waiting"] >= 3  # pending, processing, failed: they wait for it
            began = time.monotonic()
            node.terminate()
            assert await node.exit_code() == 0
            assert time.monotonic() - began < 15
        finally:
            await node.stop()

    asyncio.run(main())
