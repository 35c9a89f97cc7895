"""The demo beside node daemons: every node has one, and the sidecar stands in front of it on the node's public port.

    panel -> sidecar  everything, as to a daemon; what is not the sidecar's own goes on to the daemon
    source            the daemon's power API stops the server; its crash handler must not notice anything
    destination       the verified files are handed over to the daemon, which tells the panel and starts the server

The daemons are stand-ins in this process, see `daemon.py`. They share one engine, where only one container can be
called by the server's UUID, so each calls its own by the node's name, and the sidecars are told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from sidecar.demo.daemon import StandInDaemon
from sidecar.demo.daemon_containers import EngineContainers
from sidecar.demo.game import LABEL, Game
from sidecar.demo.node import DemoNode
from sidecar.demo.panel_documents import Family

_POLL_S: Final = 0.1
_PATIENCE_S: Final = 60.0  # a start takes a second, on a machine that has nothing else to do


class BesideFailed(Exception):
    """A daemon did not do what was asked, or does not say what is claimed."""


class NodeDaemon(msgspec.Struct, frozen=True):
    """A daemon that runs, and the settings of the sidecar beside it."""

    daemon: StandInDaemon
    sections: Mapping[str, Mapping[str, Any]]


@contextlib.asynccontextmanager
async def run_daemon(
    directory: Path, name: str, server: str, game: Game | None, *, panel_url: str, token_id: str, token: str, port: int
) -> AsyncIterator[NodeDaemon]:
    """A daemon that answers, until the scope ends; its containers are the game's to remove.

    Args: directory: the node's own; game: None: servers run in name only; port: the node's public one.
    """
    container = f"{directory.parent.name}-{name}"
    containers = None
    sections: dict[str, Mapping[str, Any]] = {}
    if game is not None:
        containers = EngineContainers(game.engine_url, labels={LABEL: "1"}, name=lambda _: container)
        sections[f"servers.{server}"] = {"container": container}
    daemon = StandInDaemon(
        Family.PTERODACTYL,
        token_id=token_id,
        token=token,
        volumes=directory / "volumes",
        panel_url=panel_url,
        containers=containers,
    )
    async with daemon:
        sections["daemon"] = {"url": daemon.url}
        sections["api"] = {"host": "127.0.0.1", "port": port, "front": True}
        yield NodeDaemon(daemon, sections)


async def power_on(node: DemoNode, server: str) -> None:
    """Start the server as its owner does: through the node's public port. Returns when it runs.

    Raises BesideFailed.
    """
    async with _calls(node) as client:
        answer = await client.post(f"/api/servers/{server}/power", json={"action": "start"})
        if answer.status_code != httpx.codes.ACCEPTED:
            raise BesideFailed(f"the daemon of {node.name} answered {answer.status_code} to a start: {answer.text}")
        await _wait_running(client, node, server)


async def check(source: DemoNode, destination: DemoNode, server: str) -> None:
    """Return when the destination's daemon lists the server once and runs it, and the source's has forgotten it.

    Raises BesideFailed.
    """
    async with _calls(destination) as client:
        await _wait_running(client, destination, server)
        count = await _count(client, server)
        if count != 1:
            raise BesideFailed(f"the daemon of {destination.name} lists the server {count} times")
    async with _calls(source) as client:
        await _wait_forgotten(client, source, server)


@contextlib.asynccontextmanager
async def _calls(node: DemoNode) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {node.token}"}
    try:
        async with httpx.AsyncClient(base_url=node.url, headers=headers, timeout=10.0, trust_env=False) as client:
            yield client
    except httpx.HTTPError as error:
        raise BesideFailed(f"{node.name} does not pass on to its daemon ({error!r})\n{node.log_tail()}") from error


async def _wait_running(client: httpx.AsyncClient, node: DemoNode, server: str) -> None:
    said = "nothing"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                answer = await client.get(f"/api/servers/{server}")
                if answer.status_code == httpx.codes.OK and answer.json()["state"] == "running":
                    return
                said = f"{answer.status_code} {answer.text[:300]}"
                await asyncio.sleep(_POLL_S)
    raise BesideFailed(f"the daemon of {node.name} does not run the server: {said}\n{node.log_tail()}")


async def _wait_forgotten(client: httpx.AsyncClient, node: DemoNode, server: str) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                if not await _count(client, server):
                    return
                await asyncio.sleep(_POLL_S)
    raise BesideFailed(f"the daemon of {node.name} still lists the server\n{node.log_tail()}")


async def _count(client: httpx.AsyncClient, server: str) -> int:
    listed = (await client.get("/api/servers")).json()
    return sum(item["configuration"]["uuid"] == server for item in listed)
