"""The demo's game server as a real container: a tiny program that runs until it is told to stop, in an image made here.

The image is the machine's own static busybox and nothing else, imported into the engine, so no registry is needed. All
that was made (image, containers that mount the demo's directory) is removed by `remove_all`. Blocking.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import struct
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import docker

LABEL: Final = "transfer-sidecar.demo"
_ENGINE_S: Final = 30
_PT_INTERP: Final = 3  # ELF: the program wants a dynamic loader
_ELF_64: Final = 2
# TERM ends it, as a game's own stop does; `wait` is what a shell can be interrupted in
_PROGRAM: Final = b"""#!/bin/sh
trap "echo stopping; exit 0" TERM INT
echo running
while :; do sleep 1 & wait $!; done
"""


class NoContainer(Exception):
    """Why the demo moves files only; one line for a person."""


class Game:
    """The engine, and what the demo made in it. Use `Game.find`."""

    def __init__(self, client: docker.DockerClient, busybox: Path, directory: Path) -> None:
        self._client = client
        self._busybox = busybox
        self._directory = directory
        self.image = f"transfer-sidecar-demo:{directory.name.rpartition('-')[2].lower()}"

    @classmethod
    def find(cls, directory: Path) -> Game:
        """Args: directory: the demo's own, under which all volumes are.

        Raises NoContainer.
        """
        import docker
        import requests

        host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        if not host.startswith("unix://"):
            raise NoContainer(f"the Docker engine {host} is not this machine's")
        busybox = shutil.which("busybox", path=f"{os.environ.get('PATH', os.defpath)}:/bin:/usr/bin")
        if busybox is None or not is_static(Path(busybox)):
            raise NoContainer("there is no static busybox to make an image of (Debian: busybox-static)")
        if not _listens(host.removeprefix("unix://")):
            raise NoContainer("no Docker engine answers")
        try:
            client = docker.DockerClient(base_url=host, timeout=_ENGINE_S)
            try:
                client.ping()
            except BaseException:
                client.close()
                raise
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError):
            raise NoContainer("no Docker engine answers") from None
        return cls(client, Path(busybox), directory)

    @property
    def engine_url(self) -> str:
        return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")

    def make_image(self) -> None:
        """Import the image."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name in ("bin", "tmp", "home", "home/container"):
                folder = tarfile.TarInfo(name)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            program = tarfile.TarInfo("bin/busybox")
            program.mode, program.size = 0o755, self._busybox.stat().st_size
            with self._busybox.open("rb") as file:
                tar.addfile(program, file)
            game = tarfile.TarInfo("bin/game")
            game.mode, game.size = 0o755, len(_PROGRAM)
            tar.addfile(game, io.BytesIO(_PROGRAM))
            for name in ("sh", "sleep"):
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        repository, _, tag = self.image.partition(":")
        self._client.api.import_image_from_data(
            archive.getvalue(), repository=repository, tag=tag, changes=['CMD ["/bin/game"]', f"LABEL {LABEL}=1"]
        )

    def run(self, name: str, volume: Path, data_target: str) -> str:
        """Start a container of the image on a volume. Returns its id."""
        container = self._client.containers.run(
            self.image,
            name=name,
            detach=True,
            tty=True,
            stdin_open=True,
            user=f"{os.getuid()}:{os.getgid()}",
            network_mode="none",
            labels={LABEL: "1", "ContainerType": "server_process"},  # the daemons' mark for what may be removed
            volumes={str(volume): {"bind": data_target, "mode": "rw"}},
            restart_policy={"Name": "always"},
        )
        return str(container.id)

    def containers_on(self, volume: Path) -> dict[str, str]:
        """Name and state of the containers that mount a volume, or what was there when they were made."""
        return {
            container.name or "": container.status
            for container in self._ours()
            if any(mount.get("Source") == str(volume) for mount in _mounts(container))
        }

    def remove_all(self) -> None:
        """Remove every container that mounts something of the demo, and the image. Nothing there is fine."""
        import docker

        try:
            for container in self._ours():
                try:
                    container.remove(force=True, v=True)
                except docker.errors.NotFound:
                    continue
            with contextlib.suppress(docker.errors.ImageNotFound):
                self._client.images.remove(self.image, force=True)
        finally:
            self._client.close()

    def _ours(self) -> list[Any]:
        return [
            container
            for container in self._client.containers.list(all=True, ignore_removed=True)
            if any(Path(str(mount.get("Source", ""))).is_relative_to(self._directory) for mount in _mounts(container))
        ]


def _mounts(container: Any) -> list[dict[str, Any]]:
    return list(container.attrs.get("Mounts") or ())


def _listens(path: str) -> bool:
    """Whether somebody is behind a socket; the SDK leaves its own open where nobody is."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ENGINE_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def is_static(program: Path) -> bool:
    """Whether a 64-bit ELF program needs no loader and no libraries of its machine; False for anything else."""
    with program.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] != _ELF_64:
            return False
        order = "<" if head[5] == 1 else ">"
        (table,) = struct.unpack_from(f"{order}Q", head, 32)
        size, count = struct.unpack_from(f"{order}HH", head, 54)
        file.seek(table)
        headers = file.read(size * count)
    if len(headers) < size * count:
        return False
    return all(struct.unpack_from(f"{order}I", headers, index * size)[0] != _PT_INTERP for index in range(count))
