"""docker/compose.yaml as it is: `up`, and the command of docker/README.md moves a server between the two nodes.

Only the images of others are this machine's own programs (`imported`), because no registry can be reached here.
"""

from __future__ import annotations

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

import pytest

from integration.image import ROOT, Ended, docker, run
from integration.imported import NoProgram, imported, nats_server
from integration.socket_proxy import NoProxy, haproxy
from sidecar.demo.compare import compare

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


@pytest.fixture
def project(image: str) -> Iterator[Project]:
    name = f"sidecar-test-{uuid4().hex[:8]}"
    directory = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
    directory.chmod(0o755)
    try:
        with imported({"game": Path("/bin/true"), "haproxy": haproxy(), "nats": nats_server()}) as images:
            environ = {
                "COMPOSE_PROJECT_NAME": name,
                "DEMO_DIR": str(directory),
                "SIDECAR_IMAGE": image,
                "GAME_IMAGE": images["game"],
                "HAPROXY_IMAGE": images["haproxy"],
                "NATS_IMAGE": images["nats"],
            }
            project = Project("docker/compose.yaml", environ, directory)
            try:
                yield project
            finally:
                project.compose("down", "--volumes", "--timeout", "20")
    except (NoProgram, NoProxy) as why:
        if os.environ.get("CI"):
            pytest.fail(str(why))
        pytest.skip(str(why))
    finally:
        shutil.rmtree(directory)


def documented(pattern: str) -> list[str]:
    """The arguments of the first command of docker/README.md that fits, after the file's name."""
    text = (ROOT / "docker/README.md").read_text("utf-8").replace("\\\n", " ")
    found = re.search(rf"^ *docker compose -f docker/compose\.yaml ({pattern}.*)$", text, re.MULTILINE)
    assert found is not None, f"docker/README.md has no command {pattern}"
    return shlex.split(found[1])


def test_the_documented_commands_move_a_server(project: Project) -> None:
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
    # the bus took them in, with their own passwords
    assert "bus: connected" in project.compose("logs", "node-a").said
