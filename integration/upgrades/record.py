"""Records what a release leaves behind: journals of transfers that SIGKILL cut at several stages, and one conversation.

    git worktree add ../release <commit>
    python -m integration.upgrades.record ../release integration/upgrades/<version>

Two nodes of that checkout run as processes, with this tree's stand-in panel, without containers. See README.md there
for what comes out.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import jwt

from integration.link import Link, link_to
from integration.nodes import Node
from sidecar.demo.node import free_port
from sidecar.demo.panel import PanelServer, StandInPanel
from tests.engine.rig import SERVER, grow_world

SMALL_BYTES: Final = 20_000  # in the conversation
BIG_BYTES: Final = 600_000
HELD_AFTER: Final = 200_000  # more than one piece of the link
NEVER: Final = 4102444800  # 2100: a recording is replayed much later
PATIENCE_S: Final = 60.0


class Release:
    """Two nodes of an old checkout, and what a recording needs of them."""

    def __init__(self, nodes: dict[str, Node], link: Link, panel: StandInPanel | None) -> None:
        self.nodes = nodes
        self.link = link
        self.panel = panel

    async def begin(self) -> None:
        destination = self.nodes["b"]
        now = int(time.time())
        claims = {"iss": "recorder", "sub": SERVER, "iat": now, "nbf": now - 300, "exp": NEVER, "scope": "transfer"}
        body = {
            "url": f"{self.link.url}/api/transfers",
            "token": "Bearer " + jwt.encode(claims, destination.token, algorithm="HS256"),
            "server": {"uuid": SERVER, "start_on_completion": False},
        }
        answer = await self.nodes["a"].ask("POST", f"/api/servers/{SERVER}/transfer", json=body)
        assert answer.status_code == 202, answer.text
        if self.panel is not None:
            self.panel.assume_transfer(SERVER, "node-b")

    async def until(self, name: str, **fields: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                view = await self.nodes[name].view(SERVER)
                if all(view.get(field) == value for field, value in fields.items()):
                    return
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        for node in self.nodes.values():
            await node.kill()


@asynccontextmanager
async def release(
    checkout: Path, home: Path, *, with_panel: bool, big_bytes: int = BIG_BYTES
) -> AsyncIterator[Release]:
    async with PanelServer() as panel:
        sections: dict[str, dict[str, Any]] = {
            "panel": {"url": panel.url if with_panel else "", "call_timeout_s": 5.0},
            "containers": {"runtime": "none"},
            "limits": {"reserve_bytes": 0, "reserve_inodes": 0},
            "transfer": {"shutdown_grace_s": 0.0},
        }
        within = ("env", "-C", str(checkout), f"PYTHONPATH={checkout}")
        nodes = {}
        for name in ("a", "b"):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            nodes[name] = Node(
                f"node-{name}", home / name, host="127.0.0.1", port=port, url=url, sections=sections, within=within
            )
            node = nodes[name]
            panel.panel.add_node(node.name, token_id=node.token_id, token=node.token, url=url)
        panel.panel.add_server(SERVER, "node-a")
        grow_world(nodes["a"].volume(SERVER), big_bytes=big_bytes)
        async with link_to(nodes["b"].port) as link:
            try:
                for node in nodes.values():
                    await node.start()
                yield Release(nodes, link, panel.panel if with_panel else None)
            finally:
                for node in nodes.values():
                    await node.stop()


async def sending(at: Release) -> None:
    at.link.hold_after(HELD_AFTER)
    await at.begin()
    await at.link.held.wait()
    await at.until("b", stage="receiving")


async def undecided(at: Release) -> None:
    """Both are past the point of no return, and the panel's answer does not come."""
    assert at.panel is not None
    held = asyncio.Event()
    at.panel.before_call = lambda route: held.set() if route == "success" else None
    at.panel.script("success", "hold")
    await at.begin()
    await held.wait()
    await at.until("a", stage="awaiting_verdict")


async def completed(at: Release) -> None:
    await at.begin()
    for name in ("a", "b"):
        await at.until(name, status="completed", stage="ended")


async def owing(at: Release) -> None:
    """Cancelled, and the panel cannot be told."""
    assert at.panel is not None
    held = asyncio.Event()
    at.panel.before_call = lambda route: held.set() if route == "failure" else None
    at.panel.script("failure", *["hold"] * 4)
    at.link.hold_after(HELD_AFTER)
    await at.begin()
    await at.link.held.wait()
    await at.nodes["a"].ask("DELETE", f"/api/servers/{SERVER}/transfer")
    await held.wait()
    await at.until("a", stage="settling")


SCENES: Final = {
    "sending": (sending, True),
    "undecided": (undecided, True),
    "completed": (completed, True),
    "owing": (owing, True),
    "standalone": (completed, False),
}


async def record_journals(checkout: Path, target: Path) -> None:
    for name, (scene, with_panel) in SCENES.items():
        with tempfile.TemporaryDirectory() as home:
            async with release(checkout, Path(home), with_panel=with_panel) as at:
                await scene(at)
                await at.kill()
                for node in at.nodes:
                    (journal,) = (Path(home) / node / "state" / "transfers").glob("*.journal")
                    place = target / name / f"node-{node}"
                    place.mkdir(parents=True)
                    shutil.copyfile(journal, place / journal.name)
        print(f"recorded {name}")


async def record_conversation(checkout: Path, target: Path) -> None:
    """Every byte between both nodes, by connection in the order in which they were opened."""
    with tempfile.TemporaryDirectory() as home:
        async with release(checkout, Path(home), with_panel=False, big_bytes=SMALL_BYTES) as at:
            count = 0

            async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal count
                count += 1
                name = f"{count}"
                there, onward = await asyncio.open_connection("127.0.0.1", at.nodes["b"].port)
                await asyncio.gather(
                    pump(reader, onward, target / f"{name}-request.http"),
                    pump(there, writer, target / f"{name}-answer.http"),
                )

            async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
                with path.open("wb") as file:
                    while piece := await reader.read(65536):
                        file.write(piece)
                        writer.write(piece)
                        await writer.drain()
                writer.close()

            await asyncio.to_thread(target.mkdir, parents=True)
            server = await asyncio.start_server(carry, "127.0.0.1", 0)
            at.link.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await completed(at)
            server.close()
    print(f"recorded {count} connections")


async def main(checkout: Path, target: Path) -> None:
    await record_journals(checkout, target)
    await record_conversation(checkout, target / "conversation")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))
