"""docker/compose.yaml as it is: `up`, and the command of docker/README.md moves a server between the two nodes.

Only the images of others are this machine's own programs (`imported`), because no registry can be reached here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import httpx
import pytest
import yaml

from integration.image import ROOT, Ended, docker, run
from integration.imported import NoProgram, imported, nats_server
from integration.socket_proxy import NoProxy, haproxy
from sidecar.demo.compare import compare
from sidecar.demo.daemon import StandInDaemon
from sidecar.demo.node import free_port
from sidecar.demo.panel import PanelServer
from sidecar.demo.panel_documents import Family

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]

COMPOSE: Final = ROOT / ".venv-tools/bin/docker-compose"
SERVER: Final = "11111111-2222-4333-8444-555555555555"
_UP_S: Final = 180


class Project:
    """One run of the compose file under a name of its own."""

    def __init__(self, file: str, environ: dict[str, str], directory: Path) -> None:
        self.name = environ["COMPOSE_PROJECT_NAME"]
        self.directory = directory
        self._command = [str(COMPOSE), "-f", file]
        self._environ = environ

    def compose(self, *arguments: str, timeout_s: float = _UP_S) -> Ended:
        return run([*self._command, *arguments], environ=self._environ, timeout_s=timeout_s)

    def volume(self, node: str) -> Path:
        return self.directory / node / SERVER

    def inspect(self, service: str) -> dict[str, object]:
        (shown,) = json.loads(docker("inspect", f"{self.name}-{service}-1").said)
        found: dict[str, object] = shown
        return found

    def is_running(self, service: str) -> bool:
        state = self.inspect(service)["State"]
        assert isinstance(state, dict)
        return bool(state["Running"])


@pytest.fixture(scope="module")
def images(image: str) -> Iterator[dict[str, str]]:
    """What the files name by variables."""
    try:
        with imported({"game": Path("/bin/true"), "haproxy": haproxy(), "nats": nats_server()}) as made:
            names = {f"{name.upper()}_IMAGE": tag for name, tag in made.items()}
            yield {"TRANSFER_SIDECAR_IMAGE": image, **names}
    except (NoProgram, NoProxy) as why:
        if os.environ.get("CI"):
            pytest.fail(str(why))
        pytest.skip(str(why))


@contextlib.contextmanager
def running(file: str, images: dict[str, str], **environ: str) -> Iterator[Project]:
    """A project of its own, which is gone afterwards. Its directory is `DEMO_DIR`."""
    directory = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
    directory.chmod(0o755)
    names = {"COMPOSE_PROJECT_NAME": f"sidecar-test-{uuid4().hex[:8]}", "DEMO_DIR": str(directory)}
    project = Project(file, {**images, **names, **environ}, directory)
    try:
        yield project
    finally:
        project.compose("down", "--volumes", "--timeout", "20")
        shutil.rmtree(directory)


def documented(pattern: str) -> list[str]:
    """The arguments of the first command of docker/README.md that fits, after the file's name."""
    text = (ROOT / "docker/README.md").read_text("utf-8").replace("\\\n", " ")
    found = re.search(rf"^ *docker compose -f docker/compose\.yaml ({pattern}.*)$", text, re.MULTILINE)
    assert found is not None, f"docker/README.md has no command {pattern}"
    return shlex.split(found[1])


def test_the_documented_commands_move_a_server(images: dict[str, str]) -> None:
    with running("docker/compose.yaml", images) as project:
        _moves(project)


def _moves(project: Project) -> None:
    up = project.compose(*documented("up"))
    assert up.code == 0, up.said + project.compose("logs").said
    assert project.is_running("game-a")
    assert not project.is_running("game-b")
    sent = project.compose("exec", "-T", *documented("exec")[1:])
    assert sent.code == 0, sent.said + project.compose("logs", "node-a", "node-b").said
    assert f"{SERVER}: completed" in sent.said
    found = compare(project.volume("a"), project.volume("b"))
    assert found.entries > 10
    # what the game wrote when it was started there, and the directory of that file
    assert {difference.path for difference in found.differences} <= {"game.log", "", "."}
    log = (project.volume("b") / "game.log").read_text().split("\n")
    assert log[:3] == ["started at node-a", "stopped at node-a", "started at node-b"]
    assert project.is_running("game-b")
    assert not project.is_running("game-a")

    # as confined as it says, by what the engine says
    for service in ("node-a", "node-b", "docker-proxy", "nats", "game-b"):
        shown = project.inspect(service)
        host = shown["HostConfig"]
        assert isinstance(host, dict)
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False), service
        assert not host["PortBindings"], service
    mounts = {m["Destination"] for m in project.inspect("node-a")["Mounts"]}  # type: ignore[attr-defined]
    assert "/var/run/docker.sock" not in mounts
    # the bus took them in with their own passwords, and keeps what they tell
    watched = project.compose("run", "--rm", "-T", *documented("run --rm watch")[2:], "--once")
    assert watched.code == 0, watched.said + project.compose("logs", "nats", "node-a").said
    assert SERVER in watched.said and "completed" in watched.said, watched.said
    for node in ("node-a", "node-b"):
        said = project.compose("logs", node).said
        assert "events are kept by the stream" in said and "the directory of nodes is there" in said, said


def test_a_sidecar_in_front_of_a_daemon(images: dict[str, str], tmp_path: Path) -> None:
    """docker/compose.beside.yaml with a daemon's own file, which only root may read."""
    asyncio.run(_beside(images, tmp_path))


async def _beside(images: dict[str, str], directory: Path) -> None:
    token, port, volumes = "token-of-the-daemon-0123456789", free_port(), directory / "data/volumes"
    volumes.mkdir(parents=True)
    (directory / "tls").mkdir()
    async with PanelServer() as panel:
        panel.panel.add_node("node", token_id="tokenId", token=token, url=f"http://127.0.0.1:{port}")
        panel.panel.add_server(SERVER, "node")
        (volumes / SERVER).mkdir()
        async with StandInDaemon(
            Family.PTERODACTYL, token_id="tokenId", token=token, volumes=volumes, panel_url=panel.url
        ) as daemon:
            config = directory / "config.yml"
            config.touch(mode=0o600)
            document = {
                "uuid": str(uuid4()),
                "token_id": "tokenId",
                "token": token,
                "remote": panel.url,
                "api": {"host": "127.0.0.1", "port": int(daemon.url.rpartition(":")[2]), "ssl": {"enabled": False}},
                "system": {"data": str(volumes), "user": {"uid": 4321, "gid": 4321}},
            }
            config.write_text(yaml.safe_dump(document))
            environ = {
                "DAEMON_CONFIG": str(config),
                "DAEMON_DATA": str(directory / "data"),
                "DAEMON_URL": daemon.url,
                "TLS_DIR": str(directory / "tls"),
                "HOST": "127.0.0.1",
                "PORT": str(port),
            }
            with running("docker/compose.beside.yaml", images, **environ) as project:
                up = await asyncio.to_thread(project.compose, "up", "--detach")
                assert up.code == 0, up.said
                await _looks_like_the_daemon(project, f"http://127.0.0.1:{port}", token)


async def _looks_like_the_daemon(project: Project, url: str, token: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        try:
            async with asyncio.timeout(60):
                while not await _is_ready(client):  # noqa: ASYNC110 - another process does not tell
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(project.compose("logs").said) from None
        headers = {"Authorization": f"Bearer {token}"}
        (server,) = (await client.get("/api/servers", headers=headers)).json()
        assert server["configuration"]["uuid"] == SERVER, "it is the daemon that knows its servers"
        assert (await client.get("/api/transfers/sidecar")).json()["beside"] is True
    # CHOWN, DAC_OVERRIDE and FOWNER are bits 0, 1 and 3
    status = project.compose("exec", "-T", "sidecar", "cat", "/proc/1/status").said
    assert "CapEff:\t000000000000000b" in status and "CapBnd:\t000000000000000b" in status, status


async def _is_ready(client: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await client.get("/readyz")).status_code == 200
    return False
