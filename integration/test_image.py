"""The container image: what is in it, how it is confined, and that it works like that."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from integration.image import CONFINED, USER, docker
from sidecar import __version__

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

TOKEN = "token-of-the-image-0123456789abcdef"
READY_S = 30.0
POLL_S = 0.05
COMMANDS = ("", "serve", "demo", "config check", "healthcheck", "resolve")


def test_it_is_confined_by_itself(image: str) -> None:
    (shown,) = json.loads(docker("image", "inspect", image).said)
    config = shown["Config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "transfer-sidecar", "healthcheck"]
    assert config["Entrypoint"] == ["transfer-sidecar"]
    assert config["Volumes"] is None
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.title"] == "transfer-sidecar"
    assert labels["org.opencontainers.image.created"].endswith("Z")
    assert set(labels) >= {f"org.opencontainers.image.{name}" for name in ("licenses", "revision", "description")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts(image: str, command: str) -> None:
    done = docker("run", "--rm", "--network=none", *CONFINED, image, *command.split(), "--help")
    assert done.code == 0, done.said
    assert "Usage" in done.said


def test_every_extension_module_loads(image: str) -> None:
    """They are stripped of their symbols, and one backend is taken out."""
    program = """
import importlib, pathlib, sys
root = pathlib.Path(sys.prefix, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
names = [str(path.relative_to(root)).split(".")[0].replace("/", ".") for path in root.rglob("*.so")]
for name in names: importlib.import_module(name)
import sidecar.wiring, sidecar.demo.panel, zstandard, lz4.frame, nacl.signing
for codec in (zstandard, lz4.frame): assert codec.decompress(codec.compress(b"x" * 9)) == b"x" * 9
print(len(names))
"""
    python = "--entrypoint=/opt/transfer-sidecar/bin/python"
    done = docker("run", "--rm", "--network=none", *CONFINED, python, image, "-W", "error", "-c", program)
    assert done.code == 0, done.said
    assert int(done.said) > 10


def test_nothing_in_it_can_be_changed_by_its_user(image: str) -> None:
    find = f"find / -xdev ( -user {USER} -o -group {USER} -o ( -perm -0002 ! -type l ) ) ! -path /tmp ! -path /var/tmp"
    done = docker("run", "--rm", "--network=none", "--user=0", "--entrypoint=find", image, *find.split()[1:])
    # the state's place, and what the engine itself puts into a container
    left = {line for line in done.said.split() if not line.startswith(("/proc", "/sys", "/dev", "/run/lock"))}
    assert left == {"/var/lib/transfer-sidecar"}


def test_a_forgotten_volume_is_an_error(image: str) -> None:
    settings = _settings()
    done = docker("run", "--rm", "--network=none", *CONFINED, *settings, image)
    assert done.code == 1
    assert "state directory" in done.said and "Read-only file system" in done.said


def test_a_wrong_setting_is_named(image: str) -> None:
    done = docker("run", "--rm", "--network=none", *CONFINED, "-e", "SIDECAR_NODE_ID=a", image)
    assert (done.code, "node.token" in done.said) == (2, True), done.said


def test_it_gets_ready_healthy_and_stops_in_order(image: str, tmp_path: Path) -> None:
    with _serving(image, tmp_path) as name:
        began = time.monotonic()
        _until(lambda: docker("exec", name, "transfer-sidecar", "healthcheck", "--ready").code == 0, name)
        assert time.monotonic() - began < READY_S
        _until(lambda: _inspect(name)["State"]["Health"]["Status"] == "healthy", name)
        limits = docker("exec", name, "cat", "/proc/1/status").said
        assert "CapEff:\t0000000000000000" in limits and "NoNewPrivs:\t1" in limits
        assert docker("stop", "--time=20", name).code == 0
        state = _inspect(name)["State"]
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False), docker("logs", name).said
        assert "stopped" in docker("logs", name).said


@contextlib.contextmanager
def _serving(image: str, directory: Path) -> Iterator[str]:
    volumes, state = directory / "volumes", directory / "state"
    for folder in (volumes, state):
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)  # whoever runs the tests, the image's user must write here
    name = f"sidecar-test-{uuid4().hex[:12]}"
    mounts = ("-v", f"{volumes}:{volumes}", "-v", f"{state}:/var/lib/transfer-sidecar")
    place = ("-e", f"SIDECAR_SERVERS_VOLUMES={volumes}")
    often = ("--health-interval=1s", "--health-start-period=1s")
    done = docker(
        "run", "--detach", f"--name={name}", "--network=none", *CONFINED, *often, *mounts, *place, *_settings(), image
    )
    assert done.code == 0, done.said
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def _settings() -> tuple[str, ...]:
    settings = {"NODE_ID": "image", "NODE_TOKEN": TOKEN, "CONTAINERS_RUNTIME": "none"}
    return tuple(part for name, value in settings.items() for part in ("-e", f"SIDECAR_{name}={value}"))


def _inspect(name: str) -> dict[str, Any]:
    (shown,) = json.loads(docker("inspect", name).said)
    found: dict[str, Any] = shown
    return found


def _until(condition: Any, name: str) -> None:
    deadline = time.monotonic() + READY_S
    while not condition():
        assert time.monotonic() < deadline, docker("logs", name).said
        time.sleep(POLL_S)
