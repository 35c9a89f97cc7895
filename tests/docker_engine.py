"""A real Docker engine for tests: import the fixture `docker_engine` and mark the tests with `pytest.mark.docker`.

No registry is needed: the image is the machine's own static busybox, imported. Without an engine the tests are skipped
with the reason; where the environment says CI=true they fail instead, so that a broken CI does not look like a pass.
Everything that a test makes carries a label of its run and is removed at the end of the test.
"""

import io
import os
import shutil
import socket
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import docker
import docker.errors
import pytest
import requests

LABEL: Final = "transfer-sidecar.test"
DATA_TARGET: Final = "/home/container"
_APPLETS: Final = ("sh", "sleep", "cat", "touch", "true", "kill", "env", "id", "ls")

# a game server as far as a runtime can tell: ends at "stop" on its console and at TERM
PROGRAM: Final = (
    "trap 'echo signal; exit 0' TERM INT; echo up; while read -r line; do [ \"$line\" = stop ] && exit 0; done; "
    "while :; do sleep 1 & wait $!; done"
)
STUBBORN: Final = "trap '' TERM INT; while :; do sleep 1; done"
_COMMAND: Final = '["/bin/sh", "-c", "cd /home/container && eval \\"$STARTUP\\""]'  # as images of game panels do


class TestEngine:
    """The SDK's client, an image, and what a test made of it."""

    __test__ = False

    def __init__(self, client: docker.DockerClient, host: str, image: str) -> None:
        self.client = client
        self.host = host
        self.image = image
        self.run_label = uuid.uuid4().hex
        self._directories: list[Path] = []

    def run(self, name: str, volume: Path | None, command: str = PROGRAM, **options: Any) -> Any:
        """Start a container that mounts `volume` where a server's data belongs."""
        return self.client.containers.run(self.image, **self._options(name, volume, command, options))

    def create(self, name: str, volume: Path | None, command: str = PROGRAM, **options: Any) -> Any:
        """The same without the start."""
        return self.client.containers.create(self.image, **self._options(name, volume, command, options))

    def _options(self, name: str, volume: Path | None, command: str, options: dict[str, Any]) -> dict[str, Any]:
        volumes = {str(volume): {"bind": DATA_TARGET, "mode": "rw"}} if volume is not None else {}
        chosen = {"volumes": volumes, "network_mode": "none", "stdin_open": True, "tty": True, **options}
        labels = {LABEL: self.run_label, **chosen.pop("labels", {})}
        return {"name": name, "command": ["/bin/sh", "-c", command], "detach": True, "labels": labels, **chosen}

    def document(self, name: str) -> Any:
        """What `inspect` says now."""
        return self.client.api.inspect_container(name)

    def adopt(self, directory: Path) -> None:
        """Remove at the end, too, whatever mounts something of `directory`: what the code under test creates."""
        self._directories.append(directory)

    def remove_all(self) -> None:
        for row in self.client.api.containers(all=True):
            sources = [mount.get("Source") or "" for mount in row.get("Mounts") or []]
            is_ours = (row.get("Labels") or {}).get(LABEL) == self.run_label or any(
                Path(source).is_relative_to(directory) for source in sources for directory in self._directories
            )
            if is_ours:
                try:
                    self.client.api.remove_container(row["Id"], force=True, v=True)
                except docker.errors.NotFound:
                    continue


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, which CI must have", pytrace=False)
    pytest.skip(reason)


def _connect(host: str) -> docker.DockerClient:
    try:
        if host.startswith("unix://"):
            with socket.socket(socket.AF_UNIX) as probe:  # the SDK leaves its own open where nobody listens
                probe.connect("/" + host.removeprefix("unix://").lstrip("/"))
        client = docker.DockerClient(base_url=host, timeout=30)
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        _missing(f"no Docker engine answers at {host} ({error})")
    return client


def _image_of_busybox(busybox: Path) -> bytes:
    """A root file system in a tar: one static program under many names."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for directory, mode in (("bin", 0o755), ("tmp", 0o1777), ("home", 0o755), ("home/container", 0o755)):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        tar.add(busybox.resolve(), "bin/busybox", filter=_executable)
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return content.getvalue()


def _executable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode = 0o755
    return entry


def _is_static(program: Path) -> bool:
    return b"ld-linux" not in program.read_bytes()[:4096] and b"ld-musl" not in program.read_bytes()[:4096]


@pytest.fixture(scope="session")
def _docker_image() -> Iterator[TestEngine]:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    client = _connect(host)
    try:
        found = shutil.which("busybox", path=f"{os.environ.get('PATH', os.defpath)}:/bin:/usr/bin")
        if found is None or not _is_static(Path(found)):
            _missing("there is no static busybox to make an image of (Debian: busybox-static)")
        image = f"transfer-sidecar-test:{uuid.uuid4().hex[:12]}"
        repository, tag = image.split(":")
        client.api.import_image_from_data(
            _image_of_busybox(Path(found)), repository=repository, tag=tag, changes=[f"CMD {_COMMAND}"]
        )
        try:
            yield TestEngine(client, host, image)
        finally:
            client.images.remove(image, force=True)
    finally:
        client.close()


@pytest.fixture
def docker_engine(_docker_image: TestEngine, tmp_path: Path) -> Iterator[TestEngine]:
    """The engine; what the test makes, and what mounts something of its `tmp_path`, is removed afterwards."""
    engine = TestEngine(_docker_image.client, _docker_image.host, _docker_image.image)
    engine.adopt(tmp_path)
    try:
        yield engine
    finally:
        engine.remove_all()
