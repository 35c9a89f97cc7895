"""Mode dind as it is rendered: two pods with an engine each, and a server that moves from one to the other.

The engine's image cannot be had without a registry. The one here is made of this machine's own engine, with a script in
the place of the official entry point, which prepares what privileges cannot: certificates, and the choice of iptables.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import docker
import pytest
from docker.errors import NotFound

from charts.tests.conftest import skip_or_fail
from charts.tests.kubelet import Kubelet
from charts.tests.rendering import NAME, render
from charts.tests.test_run import USER, status
from integration.game_server import DATA_TARGET, GameServer, NoGame, import_image, sessions
from integration.imported import NoProgram, engine_programs, imported
from sidecar.archive.staging import VolumeLayout
from sidecar.archive.trash import list_trash
from sidecar.demo.compare import compare
from sidecar.demo.node import free_port
from sidecar.demo.panel import PanelServer
from sidecar.demo.panel_documents import ServerKind
from sidecar.demo.world import make_world

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]

PODS: Final = (f"{NAME}-0", f"{NAME}-1")
TOKENS: Final = {pod: f"token-of-{pod}-0123456789abcdef" for pod in PODS}
ENTRY_POINT: Final = '#!/bin/sh\nexec "$@"\n'
# no bridge, no iptables: this machine may have neither to give
ARGUMENTS: Final = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
ENGINE_S: Final = 60.0


class Pod:
    """One pod on this machine. Args: name; directory, a short path, because a socket's has at most 107 bytes."""

    def __init__(self, name: str, directory: Path, image: str, panel_url: str) -> None:
        self.name = name
        self.port = free_port()
        self.data = directory / "data"
        self.data.mkdir(parents=True)
        (directory / "engine").mkdir()
        values = {
            "listen": {"host": "127.0.0.1", "port": self.port},
            "nats": {"enabled": False},
            "dind": {"extraArgs": ARGUMENTS, "shutdownTimeoutSeconds": 20},
            "config": {
                "panel": {"url": panel_url},
                "containers": {"network": "host", "data_target": DATA_TARGET},
                "limits": {"reserve_bytes": 1048576},
            },
        }
        self.kubelet = Kubelet(
            render("dind", values),
            name=name,
            directory=directory / "kubelet",
            image=image,
            secrets={"node-tokens": {f"{name}.token": TOKENS[name], f"{name}.token-id": name}},
            emptied={"data": self.data, "engine": directory / "engine"},
        )
        self.socket = directory / "engine" / "docker.sock"

    @contextlib.contextmanager
    def engine(self, image: str) -> Iterator[Any]:
        """A client of its engine, while that runs."""
        try:
            self.kubelet.start_engine(image, ENGINE_S)
            client = docker.DockerClient(base_url=f"unix://{self.socket}", timeout=60)
            try:
                yield client
            finally:
                client.close()
        finally:
            self.kubelet.remove()

    def volume(self, server: str) -> Path:
        return self.data / "volumes" / server


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dind-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def engine_image() -> Iterator[str]:
    try:
        with imported({"engine": engine_programs()}, {"dockerd-entrypoint.sh": ENTRY_POINT}) as made:
            yield made["engine"]
    except NoProgram as why:
        skip_or_fail(str(why))


def test_a_server_moves_between_two_pods(image: str, engine_image: str, directory: Path) -> None:
    asyncio.run(_moves(image, engine_image, directory))


async def _moves(image: str, engine_image: str, directory: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        panel = (await stack.enter_async_context(PanelServer())).panel
        pods = [Pod(name, directory / str(number), image, panel.url) for number, name in enumerate(PODS)]
        engines = [stack.enter_context(pod.engine(engine_image)) for pod in pods]
        game = await asyncio.to_thread(_import_game, engines)
        first, second = pods
        server = str(uuid4())
        for pod in pods:
            panel.add_node(pod.name, token_id=pod.name, token=TOKENS[pod.name], url=f"http://127.0.0.1:{pod.port}")
            assert pod.socket.stat().st_gid == USER
            assert (pod.data / "volumes").stat().st_uid == USER
            assert pod.kubelet.probe_engine("livenessProbe")
            await asyncio.to_thread(pod.kubelet.start)
        kind = ServerKind(image=f"~{game.image}", invocation="sleep 1000000", environment={}, stop=("command", "stop"))
        panel.add_server(server, first.name, kind)
        await asyncio.to_thread(_make_volume, first.volume(server))
        _start(engines[0], game, server)
        for pod in pods:
            await asyncio.to_thread(pod.kubelet.until, lambda pod=pod: status(pod.port, "/readyz") == 200, "/readyz")  # type: ignore[misc]
        await asyncio.to_thread(first.kubelet.until, lambda: len(sessions(first.volume(server))) == 1, "the game")
        await panel.start_transfer(server, second.name, start_on_completion=True)
        await asyncio.to_thread(
            second.kubelet.until, lambda: _is_running(engines[1], server), "the server to run in the second pod"
        )
        assert panel.owner(server) == second.name
        with pytest.raises(NotFound):
            engines[0].containers.get(server)
        said = sessions(second.volume(server))
        assert [line.partition(":")[0] for line in said] == ["started", "asked to end by console", "saved", "started"]
        assert (await asyncio.to_thread(_difference_of_worlds, first, second, server)) == []
        for pod in pods:
            assert await asyncio.to_thread(pod.kubelet.stop) == 0
        # The engine ends last, and its servers with it, each in its own time.
        assert await asyncio.to_thread(second.kubelet.stop_engine) == 0
        assert sessions(second.volume(server))[-1] == "saved"


def _import_game(engines: list[Any]) -> GameServer:
    try:
        return import_image(engines, uuid4().hex[:12])
    except NoGame as why:
        skip_or_fail(str(why))


def _make_volume(volume: Path) -> None:
    make_world(volume, 5)
    (volume / "logs").mkdir(exist_ok=True)
    for path in (volume, *volume.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)


def _start(engine: Any, game: GameServer, server: str) -> None:
    """As a panel's user has made it there; paths are the engine's."""
    engine.containers.run(
        game.image,
        name=server,
        detach=True,
        tty=True,
        stdin_open=True,
        user=f"{USER}:{USER}",
        network_mode="host",
        labels={"Service": "Pterodactyl", "ContainerType": "server_process"},
        environment={"STARTUP": "sleep 1000000"},
        volumes={f"/srv/transfer-sidecar/volumes/{server}": {"bind": DATA_TARGET, "mode": "rw"}},
    )


def _is_running(engine: Any, server: str) -> bool:
    try:
        return bool(engine.containers.get(server).status == "running")
    except NotFound:
        return False


def _difference_of_worlds(first: Pod, second: Pod, server: str) -> list[Any]:
    """Of what the source keeps in its trash and what has arrived, apart from what a running server writes."""
    volumes = first.data / "volumes"
    (kept,) = list_trash(VolumeLayout.detect(volumes / server, volumes).trash_root)
    assert (kept.server, kept.complete) == (server, True)
    found = compare(kept.path, second.volume(server))
    assert found.entries > 20
    return [d for d in found.differences if not d.path.startswith("logs")]
