"""One move between two nodes of ours, as in production but on loopback: two processes that run `serve`.

No panel and no containers: what is measured is the way of the bytes, not a game server's stop and start. The nodes are
new for each move, so that peaks belong to one move; what they cost before the request is not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import httpx
import jwt

from integration.bench.figures import Move, cpu_s, peak_bytes
from integration.bench.volumes import SERVER
from sidecar.demo.nats import end_process
from sidecar.demo.node import DemoNode, free_port, run_node

_POLL_S: Final = 0.25  # asking costs the nodes time that is not the transfer's
_TOKEN_S: Final = 900
_PATIENCE_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 10e6  # beside others on a small machine; a bench that takes longer has failed
_FINAL: Final = ("completed", "failed", "cancelled")
_TOKENS: Final = {"source": "s" * 36, "destination": "d" * 36}


class MoveFailed(Exception):
    """A transfer that did not complete; the text has both nodes' words."""


class Wire(StrEnum):
    """For whom the archive is made."""

    OURS = "ours"
    STRANGERS = "strangers"


def source_volume(directory: Path) -> Path:
    """Where `move` expects the volume."""
    return directory / "source" / "volumes" / SERVER


def destination_volume(directory: Path) -> Path:
    return directory / "destination" / "volumes" / SERVER


async def move(
    directory: Path, wire: Wire, content_bytes: int, gzip_level: int = 1, nats: Mapping[str, Any] | None = None
) -> Move:
    """Move the volume at `source_volume(directory)`, which stays; a copy from before is removed first.

    Args: nats, settings of both nodes for the bus.

    The time begins with the panel's request and ends when both nodes have completed, by their own clocks, which are
    this machine's.
    Raises MoveFailed, sidecar.demo.node.NodeFailed. If cancelled: the processes are ended.
    """
    await asyncio.to_thread(_tidy, directory)
    async with contextlib.AsyncExitStack() as stack:
        source, destination = [
            await stack.enter_async_context(_node(directory, name, gzip_level, nats or {}))
            for name in ("source", "destination")
        ]
        url = destination.url
        if wire is Wire.STRANGERS:
            url = await stack.enter_async_context(_relay(url))
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=30.0))
        patience_s = _PATIENCE_S + content_bytes / _SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(patience_s):
                return await _measure(client, source, destination, url)
        except TimeoutError as error:
            raise MoveFailed(
                f"The transfer takes longer than {patience_s:.0f} s.{_words(source, destination)}"
            ) from error


async def _measure(client: httpx.AsyncClient, source: DemoNode, destination: DemoNode, url: str) -> Move:
    claims = {"sub": SERVER, "exp": int(time.time()) + _TOKEN_S, "scope": "transfer"}
    request = {
        "url": f"{url}/api/transfers",
        "token": f"Bearer {jwt.encode(claims, destination.token, algorithm='HS256')}",
        "server": {"uuid": SERVER, "start_on_completion": False},
    }
    before = [cpu_s(node.pid) for node in (source, destination)]
    began = time.time()
    path = f"/api/servers/{SERVER}/transfer"
    answer = await client.post(source.url + path, json=request, headers=_authorization(source))
    if answer.status_code != 202:
        raise MoveFailed(f"The request was answered {answer.status_code}: {answer.text}")
    views = [await _final_view(client, node, path) for node in (source, destination)]
    for node, view in zip((source, destination), views, strict=True):
        if view["status"] != "completed":
            raise MoveFailed(f"{node.name}: {view['status']}: {view['message']}{_words(source, destination)}")
    after = [cpu_s(node.pid) for node in (source, destination)]
    return Move(
        wall_s=max(view["finished_at"] for view in views) - began,
        source_cpu_s=after[0] - before[0],
        destination_cpu_s=after[1] - before[1],
        source_peak_bytes=peak_bytes(source.pid),
        destination_peak_bytes=peak_bytes(destination.pid),
        wire_bytes=views[0]["progress"]["wire_bytes"],
    )


async def _final_view(client: httpx.AsyncClient, node: DemoNode, path: str) -> dict[str, Any]:
    while True:
        view: dict[str, Any] = (await client.get(node.url + path, headers=_authorization(node))).json()
        if view["status"] in _FINAL:
            return view
        await asyncio.sleep(_POLL_S)


def _authorization(node: DemoNode) -> dict[str, str]:
    return {"Authorization": f"Bearer {node.token}"}


def _words(*nodes: DemoNode) -> str:
    return "".join(f"\n{node.name}:\n{node.log_tail()}" for node in nodes)


def _tidy(directory: Path) -> None:
    shutil.rmtree(directory / "destination", ignore_errors=True)
    shutil.rmtree(directory / "source" / "state", ignore_errors=True)
    (directory / "destination").mkdir()


def _node(
    directory: Path, name: str, gzip_level: int, nats: Mapping[str, Any]
) -> contextlib.AbstractAsyncContextManager[DemoNode]:
    sections: dict[str, dict[str, Any]] = {"containers": {"runtime": "none"}, "transfer": {"gzip_level": gzip_level}}
    if nats:
        sections["nats"] = dict(nats)
    return run_node(
        directory / name, name, sections, port=free_port(), token_id=f"{name}-token-id", token=_TOKENS[name]
    )


@contextlib.asynccontextmanager
async def _relay(url: str) -> AsyncIterator[str]:
    """The address of a relay before `url`, until the scope ends."""
    origin = httpx.URL(url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "integration.bench.relay", str(listener.fileno()), origin.host, str(origin.port)),
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C reaches the bench alone
        )
        port = listener.getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await end_process(process, 2.0)
